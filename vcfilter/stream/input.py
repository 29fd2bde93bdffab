"""Reading neural files in PyAV's manner: streams, demux, decode, seek.

`open()` gives an InputContainer for a file with a neural video stream, PyAV's own container for
any other media, and an OutputContainer for writing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from typing import IO, Any, Literal, Self, overload

from av.audio.frame import AudioFrame
from av.format import ContainerFormat
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgeError, BridgePacket, Chapter, Demuxer
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.containers import Path, check_kind, open_demuxer
from vcfilter.stream.input_stream import MediaFrame, Stream, Streams
from vcfilter.stream.lookup import Shown, copy_of, decode_up_to, look_up
from vcfilter.stream.output import OutputContainer
from vcfilter.stream.packets import StreamPacket
from vcfilter.stream.source import open_av, reason_of, unreadable
from vcfilter.stream.timestamps import seconds_of
from vcfilter.stream.track import is_neural

_TICKS_MAX = (1 << 63) - 1


class InputContainer:
    """A neural file that is read. A context manager.

    One thread demuxes it at a time; another one may decode the packets.

    Args:
        file: path, or binary file object (not closed).
        options: how the neural stream is decoded.
        runtime: where the networks run.
        demuxer: the file, if it is open already.

    Attributes:
        name: of the file.
        options, runtime: as given.
        streams: see Streams; `streams.video[0]` is the neural one.

    Raises:
        MediaError: the file cannot be read.
        ConfigError: an argument is of the wrong type.
    """

    __slots__ = (
        "_demuxer",
        "_depth",
        "_lock",
        "_reader",
        "_returned",
        "_shown",
        "name",
        "options",
        "runtime",
        "streams",
    )

    def __init__(
        self,
        file: Path | IO[bytes],
        options: DecoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        demuxer: Demuxer | None = None,
    ) -> None:
        check_kind("options", options, DecoderOptions, "DecoderOptions")
        check_kind("runtime", runtime, Runtime, "a Runtime")
        self.options = options or DecoderOptions()
        self.runtime = runtime
        self._demuxer = demuxer if demuxer is not None else _demuxer(file)
        self.name = self._demuxer.name
        self.streams = Streams(Stream(self, info) for info in self._demuxer.streams)
        self._lock = threading.Lock()
        self._reader: int | None = None
        self._depth = 0
        self._shown = Shown()  # what frame_at found last
        self._returned: BridgePacket | None = None  # it was read, and comes again

    @property
    def metadata(self) -> dict[str, str]:
        """The file's tags."""
        found: dict[str, str] = self._asked("metadata")
        return found

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return str(self._asked("format_name"))

    @property
    def format(self) -> ContainerFormat:
        """The container as PyAV's object."""
        return ContainerFormat(self.format_name.split(",")[0], "r")

    @property
    def size(self) -> int:
        """Bytes; -1 when unknown, as of a pipe."""
        size: int | None = self._asked("size")
        return -1 if size is None else size

    @property
    def bit_rate(self) -> int:
        """Bit/s of the whole file; 0 when unknown."""
        return int(self._asked("bit_rate"))

    @property
    def duration(self) -> int | None:
        """In microseconds (av.time_base); None when unknown."""
        duration = self._asked("duration")
        return None if duration is None else round(duration * 1_000_000)

    @property
    def start_time(self) -> int | None:
        """Of the first packet, in microseconds (av.time_base)."""
        start = self._asked("start_time")
        return None if start is None else round(start * 1_000_000)

    def chapters(self) -> tuple[Chapter, ...]:
        """The file's chapters."""
        found: tuple[Chapter, ...] = self._asked("chapters")
        return found

    def _asked(self, name: str) -> Any:
        """What the file says of itself; MediaError where it is closed."""
        with self._told("is unreadable"):
            return getattr(self._demuxer, name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The block in which one thread reads; MediaError where another one does."""
        me = threading.get_ident()
        with self._lock:
            if self._reader not in (None, me):
                raise MediaError(f"{self.name} is being read by another thread")
            self._reader = me
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    self._reader = None

    def demux(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> Iterator[StreamPacket]:
        """Packets in the file's order, then an empty one for each stream (it drains).

        Args:
            streams, kinds: as for Streams.get; all streams if nothing is given.

        Raises:
            MediaError: the file cannot be read on or is closed, or another thread reads it.
        """
        chosen = {stream.index: stream for stream in self.streams.get(*streams, **kinds)}
        with self._reading():
            while (packet := self._read()) is not None:
                if packet.stream_index in chosen:
                    yield StreamPacket(chosen[packet.stream_index], packet)
        for stream in chosen.values():
            if stream.type in ("video", "audio", "subtitle"):
                yield StreamPacket(stream, None)

    @overload
    def decode(self, *, video: int) -> Iterator[VideoFrame]: ...
    @overload
    def decode(self, *, audio: int) -> Iterator[AudioFrame]: ...
    @overload
    def decode(
        self, *streams: Stream | int, **kinds: int | Sequence[int]
    ) -> Iterator[MediaFrame]: ...
    def decode(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> Iterator[MediaFrame]:
        """Frames of the chosen streams; of the neural one if nothing is given.

        Yields:
            av.VideoFrame (yuv420p or yuv420p10le) with pts, time_base and colour description,
            and av.AudioFrame.
        """
        if not streams and not kinds:
            streams = (self.streams.video[0],)
        for packet in self.demux(*streams, **kinds):
            yield from packet.decode()

    def seek(
        self,
        offset: int,
        *,
        stream: Stream | None = None,
        backward: bool = True,
        any_frame: bool = False,
    ) -> None:
        """Go to a keyframe; what is demuxed or decoded next comes from there.

        Args:
            offset: in ticks of the stream's time base, or in microseconds (av.time_base).
            stream: whose keyframes count; None leaves the choice to FFmpeg.
            backward: the last keyframe at or before offset, else the first at or after it.
            any_frame: of neural streams no frame before offset comes out, and only those that
                others need are decoded. Packets come from the keyframe on all the same.

        Raises:
            MediaError: there is no such place, the source cannot seek, or it is closed.
            ConfigError: offset is no whole number of 63 bits.
        """
        if not isinstance(offset, int) or abs(offset) > _TICKS_MAX:
            raise ConfigError(f"offset {offset!r} is not a whole number of ticks, of 63 bits")
        with self._told(f"cannot seek to {offset}"):
            self._demuxer.seek(-1 if stream is None else stream.index, offset, backward)
        self._returned = None
        base = Fraction(1, 1_000_000) if stream is None else stream.time_base
        for each in self.streams:
            each.reset()
            if any_frame:
                each.hide_before(offset * base)

    def frame_at(self, seconds: float | Fraction, video: int = 0) -> VideoFrame:
        """The frame that is shown at a time.

        Decoded is what it refers to, directly or not, from the keyframe before it on, and the
        frames that become ready with it: in a long GOP the anchors and one interval. Frames
        that came out are kept, up to 256 MiB: times between them cost nothing. What is demuxed
        next comes from behind that place.

        Args:
            seconds: on the file's own clock. Before the first frame it is the first one, after
                the last frame the last one.
            video: which video stream.

        Raises:
            MediaError: no frame can be decoded there, or the file is closed.
            ConfigError: seconds is no finite number.
        """
        time = seconds_of("seconds", seconds)
        stream = self.streams.get(video=video)[0]
        # Containers round times to ticks: half a tick early is in time.
        ticks = time / stream.time_base + Fraction(1, 2)
        target = min(max(int(ticks), stream.start_time or 0), _TICKS_MAX)
        if not self._shown.covers(stream.index, target):
            self._shown = self._found(stream, target)
        frame = self._shown.at(target) or next(iter(self._shown.frames), None)
        if frame is None:
            raise MediaError(f"{self.name} has no frame that can be decoded at {float(seconds)} s")
        return copy_of(frame)  # its times and samples may be changed

    def forget_shown(self) -> None:
        """Decode anew what `frame_at` is asked for next."""
        self._shown = Shown()

    def _found(self, stream: Stream, target: int) -> Shown:
        """The frame at a time in ticks, and those that came with it."""
        self.seek(target, stream=stream)
        if stream.codec_name == "vcfilter":
            found = look_up(stream, self.demux(stream), target)
            if found is not None:
                self._returned = found.following.content if found.following else None
                return found
            # It is damaged, or the stream begins later: the last one before it, or the first.
            self.seek(target, stream=stream)
        return decode_up_to(stream, self.demux(stream), target) or Shown()

    def close(self) -> None:
        """Release the file."""
        self.forget_shown()
        self._demuxer.close()

    def _read(self) -> BridgePacket | None:
        returned, self._returned = self._returned, None
        if returned is not None:
            return returned
        with self._told("cannot be read on"):
            return self._demuxer.read_packet()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """The block whose failure is a MediaError that says what cannot be done."""
        try:
            yield
        except BridgeError as error:
            raise MediaError(f"{self.name} {what}: {reason_of(error)}") from error
        except ValueError as error:  # it is closed
            raise MediaError(reason_of(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vcfilter.InputContainer {self.name!r}>"


@overload
def open(
    file: Path | IO[bytes],
    mode: Literal["r"] = "r",
    *,
    options: DecoderOptions | None = None,
    runtime: Runtime | None = None,
    format: str | None = None,
) -> InputContainer: ...
@overload
def open(
    file: Path | IO[bytes],
    mode: Literal["w"],
    *,
    options: DecoderOptions | None = None,
    runtime: Runtime | None = None,
    format: str | None = None,
) -> OutputContainer: ...
def open(
    file: Path | IO[bytes],
    mode: Literal["r", "w"] = "r",
    *,
    options: DecoderOptions | None = None,
    runtime: Runtime | None = None,
    format: str | None = None,
) -> InputContainer | OutputContainer:
    """Open a media file in PyAV's manner.

    A file without a neural video stream is opened by PyAV: `av.open(file)` is returned, so that
    one program reads both. No file opens another one: playlists are refused.

    Args:
        file: path, or binary file object.
        mode: "r" to read, "w" to write (an existing file is replaced when the new one is closed).
        options: how neural streams are decoded.
        runtime: where the networks run.
        format: FFmpeg's name of the container, for writing; None follows the extension.

    Raises:
        MediaError: the file cannot be read or written.
        ConfigError: the mode or the container is unknown, or an argument is of the wrong type.
    """
    if mode == "w":
        return OutputContainer(file, format, runtime=runtime)
    if mode != "r":
        raise ConfigError(f"mode {mode!r} is neither 'r' nor 'w'")
    check_kind("options", options, DecoderOptions, "DecoderOptions")
    demuxer = _demuxer(file)
    if any(is_neural(info) for info in demuxer.streams):
        return InputContainer(file, options, runtime=runtime, demuxer=demuxer)
    container = demuxer.format_name
    demuxer.close()
    return open_av(file, container)  # type: ignore[return-value]


def _demuxer(file: Path | IO[bytes]) -> Demuxer:
    if not isinstance(file, str | PathLike) and not hasattr(file, "read"):
        raise ConfigError(f"file {file!r} is neither a path nor a binary file object")
    try:
        return open_demuxer(file)
    except (BridgeError, ValueError) as error:
        name = os.fspath(file) if isinstance(file, str | PathLike) else file
        title = getattr(name, "name", name)
        raise unreadable(str(title), reason_of(error), error) from error


__all__ = [
    "InputContainer",
    "OutputContainer",
    "Stream",
    "StreamPacket",
    "Streams",
    "open",
]
