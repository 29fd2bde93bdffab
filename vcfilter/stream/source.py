"""Where media come from: a file, a sequence of images, a URL, or a pipe that is read once."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from contextlib import suppress
from fractions import Fraction
from glob import escape, glob
from pathlib import Path as FilePath
from typing import IO, Any

import av
import av.error
from av.container import InputContainer

from vcfilter._bridge import BridgeError, Demuxer
from vcfilter.errors import ConfigError, MediaError, MissingFileError, reason_of
from vcfilter.stream.containers import PIPE, Path, open_demuxer, path_of

_CHUNK = 1 << 16
_POLL_SECONDS = 0.1


class Source:
    """A media file, or a pipe that is read once.

    Args:
        name: path or URL; "-" is standard input; "img%03d.png" and "folder/*.png" are sequences
            of images.
        image_rate: frames per second of a sequence of images; None: 25.

    Raises:
        MediaError: there is no such file.
        ConfigError: image_rate is given for what is no sequence.
    """

    def __init__(self, name: Path, image_rate: Fraction | None = None) -> None:
        self.name = path_of("source", name)
        self.title = "standard input" if self.name == PIPE else self.name
        self._file: IO[bytes] | None = None
        self._pipe: _Pipe | None = None
        self._taken = False
        self._sequence = False
        self._image_rate = image_rate
        if self.name == PIPE:
            if sys.stdin is None:
                raise MediaError("standard input is closed")
            self._pipe = _Pipe(sys.stdin.buffer, self.title)
        elif "://" not in self.name:
            self._check_file()
        if image_rate is not None and not self._sequence:
            raise ConfigError(
                f"{self.title} is no pattern of images (%03d.png, *.png), which alone takes a rate"
            )

    @property
    def is_pipe(self) -> bool:
        """Whether it can be read only once, and not sought in."""
        return self._pipe is not None

    @property
    def is_sequence(self) -> bool:
        """Whether it is a sequence of images."""
        return self._sequence

    def demuxer(self) -> Demuxer:
        """Open it.

        Raises:
            MediaError: it cannot be read or is no media file, or a pipe was opened already.
        """
        if self._pipe and self._taken:
            raise MediaError(f"{self.title} can be read only once")
        self._taken = True
        try:
            if self._sequence:
                return _open_sequence(self.name, self._image_rate)
            return open_demuxer(self._pipe or self.name)
        except (BridgeError, ValueError) as error:
            raise MediaError(self._refusal(error)) from error

    def stop(self) -> None:
        """Wait for a pipe no longer: it ends here."""
        if self._pipe:
            self._pipe.ended = True

    def close(self) -> None:
        """Close what the source opened itself."""
        self.stop()
        if self._file:
            self._file.close()

    def _check_file(self) -> None:
        try:
            status = os.stat(self.name)
        except (OSError, ValueError) as error:
            self._sequence = isinstance(error, FileNotFoundError) and is_sequence(self.name)
            if self._sequence:
                if "%" not in FilePath(self.name).name and not glob(_of_python(self.name)):
                    raise MissingFileError(f"{self.name} matches no file") from error
                return
            reason = getattr(error, "strerror", None) or str(error)
            raise unreadable(self.name, reason, error) from error
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{self.name} is a folder, not a media file")
        if stat.S_ISFIFO(status.st_mode):
            self._file = open(self.name, "rb")  # noqa: SIM115 (closed by close)
            self._pipe = _Pipe(self._file, self.name)
        elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
            raise MediaError(f"{self.name} is empty")

    def _refusal(self, error: Exception) -> str:
        if "moov atom not found" in str(error) or "error reading header" in str(error):
            return f"{self.title} lacks its index: it is cut short, or no media file"
        if "Invalid data" in str(error):
            return f"{self.title} is no media file that FFmpeg reads, or is damaged from its start"
        if "size 0x0 is invalid" in str(error):
            return (
                f"{self.title} is raw video, which states no size: give it as YUV4MPEG2 (ffmpeg -f "
                "rawvideo -s 352x288 -i FILE OUT.y4m)"
            )
        return f"{self.title} cannot be read: {reason_of(error)}"


def is_sequence(name: str) -> bool:
    """Whether a name is a pattern of image files: a number (%d, %03d), or a wildcard."""
    base = FilePath(name).name
    place = base.find("%")
    if place >= 0:
        digits = base[place + 1 :].split("d", 1)
        return len(digits) == 2 and (not digits[0] or digits[0].isdecimal())
    return any(char in base for char in "*?[")


def _of_python(pattern: str) -> str:
    """FFmpeg's pattern of wildcards as glob knows it: in the former a backslash quotes."""
    return re.sub(r"\\(.)", lambda quoted: escape(quoted[1]), pattern)


def _open_sequence(name: str, rate: Fraction | None) -> Demuxer:
    options = {"pattern_type": "sequence" if "%" in FilePath(name).name else "glob"}
    if rate is not None:
        options["framerate"] = f"{rate.numerator}/{rate.denominator}"
    return Demuxer(name, "image2", options)


def open_av(name: Path | IO[bytes], container: str | None = None) -> InputContainer:
    """PyAV's container for a file that `open_demuxer` accepts; it opens no other file either.

    Args:
        name: path, URL or binary file object, which is read from its start.
        container: FFmpeg's name of it, where the bridge told that; None finds out.

    Raises:
        MediaError: it cannot be read or is no media file.
    """
    if isinstance(name, str | os.PathLike):
        title = os.fspath(name)
    else:
        title = str(getattr(name, "name", "input"))
    try:
        if container is None:
            with open_demuxer(name) as demuxer:
                container = demuxer.format_name
        options = {"format_whitelist": container}
        if not isinstance(name, str | os.PathLike):
            name.seek(0)
            return av.open(name, "r", options=options)
        return av.open(media_url(title), "r", options={} if "://" in title else options)
    except (BridgeError, av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise unreadable(title, reason_of(error), error) from error


def unreadable(title: str, reason: str, error: BaseException) -> MediaError:
    """The error that says why a file cannot be read; MissingFileError where there is none."""
    kind = MissingFileError if isinstance(error, FileNotFoundError) else MediaError
    return kind(f"{title} cannot be read: {reason}")


def media_url(name: str) -> str:
    """What PyAV calls a path or URL: a colon in a file's name is no protocol."""
    return name if "://" in name else f"file:{name}"


class _Pipe:
    """A pipe as a binary file object without seek; `ended` gives up waiting for it."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self.ended = False
        self._file = file
        self._number: int | None = None
        self._peeked = b""
        with suppress(OSError, AttributeError):
            self._number = file.fileno()

    def seekable(self) -> bool:
        return False

    def peek(self, size: int) -> bytes:
        """What comes next, as far as it is there; it will come again."""
        if not self._peeked:
            self._peeked = self.read(size)
        return self._peeked

    def read(self, size: int = -1) -> bytes:
        """What comes next; empty at the end, or when a silent pipe is given up."""
        if self._peeked:
            size = len(self._peeked) if size < 0 else size
            head, self._peeked = self._peeked[:size], self._peeked[size:]
            return head
        wanted = _CHUNK if size < 0 else min(size, _CHUNK)
        if self._number is None:
            data: Any = b"" if self.ended else self._file.read(wanted)
            return bytes(data)
        # Not through the buffered file: a thread that hangs in one aborts Python's exit.
        while not self.ended:
            if select.select([self._number], [], [], _POLL_SECONDS)[0]:
                return os.read(self._number, wanted)
        return b""


__all__ = ["PIPE", "Source", "is_sequence", "media_url", "open_av", "reason_of", "unreadable"]
