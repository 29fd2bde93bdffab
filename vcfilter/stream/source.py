"""Where media come from: a file, or a pipe that is read once by several readers."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections import deque
from typing import IO

import av
import av.error
from av.container import InputContainer

from vcfilter._bridge import BridgeError
from vcfilter.errors import MediaError
from vcfilter.stream.raw import MediaDemuxer, open_demuxer

PIPE = "-"

_CHUNK = 1 << 16
_POLL_SECONDS = 0.1


class Source:
    """A media file that is opened several times, or a pipe that is read once for all.

    Args:
        name: path or URL; "-" is standard input.
        readers: how often it is opened, 1 or 2: what a pipe brings is held until all have read it.
    """

    def __init__(self, name: str, readers: int = 2) -> None:
        self.name = name
        self.title = "standard input" if name == PIPE else name
        self._fan: _Fan | None = None
        self._file: IO[bytes] | None = None
        self._readers = readers
        if name == PIPE:
            self._fan = _Fan(sys.stdin.buffer, self.title, readers)
        elif "://" not in name:
            self._check_file()

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once, and not sought in."""
        return self._fan is not None

    def demuxer(self) -> MediaDemuxer:
        """Open it with the bridge.

        Raises:
            MediaError: it cannot be read or is no media file.
        """
        try:
            return open_demuxer(self._fan.tap() if self._fan else self.name)
        except (BridgeError, ValueError) as error:
            raise MediaError(self._refusal(error)) from error

    def container(self) -> InputContainer:
        """Open it with PyAV.

        Raises:
            MediaError: it cannot be read or is no media file.
        """
        try:
            if self._fan:
                return av.open(self._fan.tap(), "r")
            return av.open(media_url(self.name), "r")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(self._refusal(error)) from error

    def drop_first(self) -> None:
        """The reader that opened it first reads no more: nothing of a pipe is held for it."""
        if self._fan:
            self._fan.drop_first()

    def stop(self) -> None:
        """Wait for a pipe no longer: to its readers it ends here."""
        if self._fan:
            self._fan.stop()

    def close(self) -> None:
        """Close what the source opened itself."""
        if self._fan:
            self._fan.close()
        if self._file:
            self._file.close()

    def _check_file(self) -> None:
        try:
            status = os.stat(self.name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(f"{self.name} cannot be read: {reason}") from error
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{self.name} is a folder, not a media file")
        if stat.S_ISFIFO(status.st_mode):
            self._file = open(self.name, "rb")  # noqa: SIM115 (closed by close)
            self._fan = _Fan(self._file, self.name, self._readers)
        elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise MediaError(f"{self.name} is empty")

    def _refusal(self, error: Exception) -> str:
        if "Invalid data" in str(error):
            return f"{self.title} is no media file that FFmpeg reads, or is damaged from its start"
        return f"{self.title} cannot be read: {reason_of(error)}"


def media_url(name: str) -> str:
    """What PyAV calls a path or URL: a colon in a file's name is no protocol."""
    return name if "://" in name else f"file:{name}"


def reason_of(error: BaseException) -> str:
    """What went wrong, without numbers and names that stand in front."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).rstrip(".")


class _Fan:
    """Hands what a pipe brings to each of its taps; holds what the slowest has not taken."""

    def __init__(self, file: IO[bytes], name: str, readers: int) -> None:
        self.name = name
        self._file = file
        self._readers = readers
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._head: list[bytes] | None = []  # from the start, for taps that open later
        self._taps: list[_Tap] = []
        self._ended = False

    def tap(self) -> _Tap:
        """A reader from the first byte on; only as many as were announced can be made."""
        with self._lock:
            if self._head is None:
                raise MediaError(f"{self.name} can be read only once")
            tap = _Tap(self, deque(self._head))
            self._taps.append(tap)
            if len(self._taps) == self._readers:
                self._head = None
            return tap

    def fill(self, tap: _Tap) -> None:
        """Wait until the tap has something, or the pipe has ended."""
        while not self._reading.acquire(timeout=_POLL_SECONDS):
            if self._ended:
                return
        try:
            with self._lock:
                if tap.chunks or self._ended:
                    return
            chunk = self._read()
            with self._lock:
                self._ended = self._ended or not chunk
                if chunk and self._head is not None:
                    self._head.append(chunk)
                for each in self._taps:
                    if chunk and not each.closed:
                        each.chunks.append(chunk)
        finally:
            self._reading.release()

    def _read(self) -> bytes:
        """What comes next; empty at the end, or when a silent pipe is given up."""
        try:
            number = self._file.fileno()
        except (OSError, AttributeError):
            data: bytes = self._file.read(_CHUNK)
            return data
        # Not through the buffered file: a thread that hangs in one aborts Python's exit.
        while not self._ended:
            if select.select([number], [], [], _POLL_SECONDS)[0]:
                return os.read(number, _CHUNK)
        return b""

    def stop(self) -> None:
        """End here; what has come can still be read."""
        self._ended = True

    def drop_first(self) -> None:
        with self._lock:
            self._taps[0].close()

    def close(self) -> None:
        with self._lock:
            self._ended = True
            for tap in self._taps:
                tap.close()


class _Tap:
    """One reader of a pipe, as a binary file object without seek."""

    def __init__(self, fan: _Fan, chunks: deque[bytes]) -> None:
        self.chunks = chunks
        self.name = fan.name
        self.closed = False
        self._fan = fan

    def read(self, size: int = -1) -> bytes:
        if not self.chunks:
            self._fan.fill(self)
        if not self.chunks:
            return b""
        chunk = self.chunks.popleft()
        if 0 <= size < len(chunk):
            self.chunks.appendleft(chunk[size:])
            chunk = chunk[:size]
        return chunk

    def close(self) -> None:
        self.closed = True
        self.chunks.clear()
