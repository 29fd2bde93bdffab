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
from typing import IO, Any, Literal, Self, TypeAlias, overload

import av.error
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.format import ContainerFormat
from av.video.format import VideoFormat as PixelFormat
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgeError, BridgePacket, Chapter, Demuxer, StreamInfo
from vcfilter.codec import Decoder
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import VideoFormat
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.containers import Path, open_demuxer
from vcfilter.stream.context import NeuralContext
from vcfilter.stream.decoders import MediaDecoder
from vcfilter.stream.output import OutputContainer
from vcfilter.stream.packets import StreamPacket, coded_packet
from vcfilter.stream.pixels import PIXEL_FORMATS, to_picture
from vcfilter.stream.source import open_av, reason_of
from vcfilter.stream.track import completed, is_neural

MediaFrame: TypeAlias = VideoFrame | AudioFrame | Any

_KINDS = {"video": "video", "audio": "audio", "subtitles": "subtitle", "data": "data"}
_KEYFRAMES_ONLY = ("NONKEY", "NONINTRA")


class Stream:
    """One stream of an input container, with PyAV's names.

    Attributes:
        container: that it is in.
        info: everything that the container says of it.
        codec_name: "vcfilter" for a neural stream, FFmpeg's name otherwise.
    """

    __slots__ = ("_context", "_decoder", "_lock", "_media", "codec_name", "container", "info")

    def __init__(self, container: InputContainer, info: StreamInfo) -> None:
        self.container = container
        self.info = info
        self.codec_name = "vcfilter" if is_neural(info) else info.codec
        self._decoder: Decoder | None = None
        self._media: MediaDecoder | None = None
        self._context: NeuralContext | None = None
        self._lock = threading.Lock()  # decoders crash where two threads use one

    @property
    def index(self) -> int:
        """Position in the file."""
        return self.info.index

    @property
    def id(self) -> int:
        """The container's own number of the stream."""
        return self.info.id

    @property
    def type(self) -> str:
        """ "video", "audio", "subtitle", "attachment" or "data"."""
        return self.info.kind

    @property
    def name(self) -> str:
        """The codec's name."""
        return self.codec_name

    @property
    def codec_context(self) -> Any:
        """NeuralContext of a neural stream, PyAV's codec context of another.

        Raises:
            MediaError: FFmpeg has no decoder for it.
        """
        if self.codec_name != "vcfilter":
            return self._media_decoder().context
        if self._context is None:
            self._context = NeuralContext(self)
        return self._context

    @property
    def profile(self) -> str | None:
        """The codec's profile; None of a neural stream."""
        if self.codec_name == "vcfilter" or self.info.kind not in ("video", "audio"):
            return None
        profile: str | None = self.codec_context.profile
        return profile

    @property
    def thread_type(self) -> Any:
        """As that of codec_context."""
        return self.codec_context.thread_type

    @thread_type.setter
    def thread_type(self, value: Any) -> None:
        self.codec_context.thread_type = value

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self.info.time_base

    @property
    def average_rate(self) -> Fraction | None:
        """Frames per second; None when unknown."""
        return self.info.frame_rate

    @property
    def base_rate(self) -> Fraction | None:
        """The lowest rate that represents all times exactly; None when unknown."""
        return self.info.base_rate

    @property
    def guessed_rate(self) -> Fraction | None:
        """The average rate, else the base rate."""
        return self.info.frame_rate or self.info.base_rate

    @property
    def start_time(self) -> int | None:
        """In ticks of time_base."""
        return self.info.start_time

    @property
    def duration(self) -> int | None:
        """In ticks of time_base; None when the container does not state it."""
        return self.info.duration

    @property
    def frames(self) -> int:
        """Number of frames as the container states it; 0 when unknown."""
        return self.info.frames

    @property
    def bit_rate(self) -> int | None:
        """Bit/s as the container states it; None when unknown."""
        return self.info.bit_rate or None

    @property
    def metadata(self) -> dict[str, str]:
        """Tags."""
        return dict(self.info.metadata)

    @property
    def language(self) -> str | None:
        """From the tags."""
        return self.info.metadata.get("language")

    @property
    def disposition(self) -> int:
        """FFmpeg's AV_DISPOSITION_* bits."""
        return self.info.disposition

    @property
    def width(self) -> int:
        """Of a video stream, in luma samples."""
        return self.info.width

    @property
    def height(self) -> int:
        """Of a video stream, in luma samples."""
        return self.info.height

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Of a video stream; None when unknown."""
        return self.info.sample_aspect_ratio

    @property
    def display_aspect_ratio(self) -> Fraction | None:
        """Width over height of a video stream as shown; None when the sample's is unknown."""
        aspect = self.info.sample_aspect_ratio
        return aspect * self.width / self.height if aspect and self.height else None

    @property
    def rotation(self) -> int:
        """Clockwise rotation for display in degrees."""
        fmt = self.video_format
        return fmt.rotation if fmt else self.info.rotation

    @property
    def sample_rate(self) -> int:
        """Of an audio stream."""
        return self.info.sample_rate

    @property
    def rate(self) -> int:
        """Of an audio stream: another name of sample_rate."""
        return self.info.sample_rate

    @property
    def channels(self) -> int:
        """Of an audio stream."""
        return self.info.channels

    @property
    def layout(self) -> AudioLayout | None:
        """Of an audio stream."""
        return self.codec_context.layout if self.info.kind == "audio" else None

    @property
    def video_format(self) -> VideoFormat | None:
        """Of a neural stream."""
        fmt = self._neural().video_format if self.codec_name == "vcfilter" else None
        return completed(fmt, self.info) if fmt else None

    @property
    def pix_fmt(self) -> str | None:
        """FFmpeg's name of the decoded frames' format."""
        fmt = self.video_format
        return PIXEL_FORMATS[fmt.bit_depth] if fmt else self.info.pixel_format or None

    @property
    def format(self) -> PixelFormat | None:
        """The same of a video stream as PyAV's object."""
        name = self.pix_fmt if self.info.kind == "video" else None
        return PixelFormat(name, self.width, self.height) if name else None

    @property
    def dropped_frames(self) -> int:
        """Frames of a neural stream that were damaged or missed a reference, so far."""
        decoder = self._decoder
        return decoder.dropped_damaged + decoder.dropped_missing_reference if decoder else 0

    def decode(self, packet: StreamPacket | None = None) -> list[MediaFrame]:
        """Frames that are ready after this packet; None or an empty packet drains.

        Raises:
            ConfigError: it is no packet.
            MediaError: it cannot be decoded.
        """
        if packet is not None and not isinstance(packet, StreamPacket):
            raise ConfigError(f"{packet!r} is not a packet of this container")
        content = packet.content if packet else None
        with self._lock:
            if self.codec_name == "vcfilter":
                return self._decode_neural(content)
            try:
                frames = self._media_decoder().decode(content)
            except (av.error.FFmpegError, ValueError) as error:
                raise MediaError(
                    f"stream {self.index} cannot be decoded: {reason_of(error)}"
                ) from error
            if content is None and self._media is not None:
                self._media.reset()  # ready for what comes after a seek
            return frames

    def _decode_neural(self, content: BridgePacket | None) -> list[MediaFrame]:
        skip = self._context.skip_frame if self._context else "DEFAULT"
        if content is not None and (
            not content.data
            or skip == "ALL"
            or (skip in _KEYFRAMES_ONLY and not content.is_keyframe)
        ):
            return []
        decoder = self._neural()
        frames = decoder.decode(coded_packet(content) if content else None)
        fmt = decoder.video_format
        if fmt is None:
            return []
        fmt = completed(fmt, self.info)
        return [to_picture(frame, fmt, self.time_base) for frame in frames]

    def reset(self) -> None:
        """Forget what was decoded, as after a seek."""
        if self._decoder:
            self._decoder.reset()
        if self._media:
            self._media.reset()

    def _neural(self) -> Decoder:
        if self._decoder is None:
            container = self.container
            self._decoder = Decoder(
                self.info.extradata, container.options, runtime=container.runtime
            )
        return self._decoder

    def _media_decoder(self) -> MediaDecoder:
        if self._media is None:
            self._media = MediaDecoder(self.info)
        return self._media

    def __repr__(self) -> str:
        return f"<vcfilter.Stream #{self.index} {self.type} {self.codec_name}>"


class Streams(tuple[Stream, ...]):
    """The streams of a container, in the file's order."""

    __slots__ = ()

    @property
    def video(self) -> tuple[Stream, ...]:
        """Neural streams first, then other video."""
        videos = self._of("video")
        return tuple(sorted(videos, key=lambda stream: stream.codec_name != "vcfilter"))

    @property
    def audio(self) -> tuple[Stream, ...]:
        """The audio streams."""
        return self._of("audio")

    @property
    def subtitles(self) -> tuple[Stream, ...]:
        """The subtitle streams."""
        return self._of("subtitle")

    @property
    def data(self) -> tuple[Stream, ...]:
        """The data streams."""
        return self._of("data")

    @property
    def attachments(self) -> tuple[Stream, ...]:
        """The attachments."""
        return self._of("attachment")

    def _of(self, kind: str) -> tuple[Stream, ...]:
        return tuple(stream for stream in self if stream.type == kind)

    def _one(self, chosen: object) -> Stream:
        if isinstance(chosen, Stream):
            return chosen
        if not isinstance(chosen, int) or not 0 <= chosen < len(self):
            raise ConfigError(f"{chosen!r} is neither a stream nor an index below {len(self)}")
        return self[chosen]

    def get(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> list[Stream]:
        """Streams by themselves, by index, or by kind and position (video=0, audio=(0, 1))."""
        chosen = [self._one(each) for each in streams]
        for kind, positions in kinds.items():
            if kind not in _KINDS:
                raise ConfigError(f"stream kind {kind!r} is not one of {', '.join(_KINDS)}")
            of_kind = self.video if kind == "video" else self._of(_KINDS[kind])
            for position in (positions,) if isinstance(positions, int) else positions:
                if not 0 <= position < len(of_kind):
                    raise ConfigError(f"{kind}={position}: there are {len(of_kind)} such streams")
                chosen.append(of_kind[position])
        return chosen or list(self)


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

    __slots__ = ("_demuxer", "_depth", "_lock", "_reader", "name", "options", "runtime", "streams")

    def __init__(
        self,
        file: Path | IO[bytes],
        options: DecoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        demuxer: Demuxer | None = None,
    ) -> None:
        _check_type("options", options, DecoderOptions)
        _check_type("runtime", runtime, Runtime)
        self.options = options or DecoderOptions()
        self.runtime = runtime
        self._demuxer = demuxer if demuxer is not None else _demuxer(file)
        self.name = self._demuxer.name
        self.streams = Streams(Stream(self, info) for info in self._demuxer.streams)
        self._lock = threading.Lock()
        self._reader: int | None = None
        self._depth = 0

    @property
    def metadata(self) -> dict[str, str]:
        """The file's tags."""
        return self._demuxer.metadata

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return self._demuxer.format_name

    @property
    def format(self) -> ContainerFormat:
        """The container as PyAV's object."""
        return ContainerFormat(self._demuxer.format_name.split(",")[0], "r")

    @property
    def size(self) -> int:
        """Bytes; -1 when unknown, as of a pipe."""
        size = self._demuxer.size
        return -1 if size is None else size

    @property
    def bit_rate(self) -> int:
        """Bit/s of the whole file; 0 when unknown."""
        return self._demuxer.bit_rate

    @property
    def duration(self) -> int | None:
        """In microseconds (av.time_base); None when unknown."""
        duration = self._demuxer.duration
        return None if duration is None else round(duration * 1_000_000)

    @property
    def start_time(self) -> int | None:
        """Of the first packet, in microseconds (av.time_base)."""
        start = self._demuxer.start_time
        return None if start is None else round(start * 1_000_000)

    def chapters(self) -> tuple[Chapter, ...]:
        """The file's chapters."""
        return self._demuxer.chapters

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
            MediaError: the file cannot be read on, or another thread reads it.
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
            any_frame: accepted for PyAV's sake; decoding starts at keyframes only.

        Raises:
            MediaError: there is no such place, or the source cannot seek.
        """
        del any_frame
        if not isinstance(offset, int):
            raise ConfigError(f"offset {offset!r} is not a whole number of ticks")
        try:
            self._demuxer.seek(-1 if stream is None else stream.index, offset, backward)
        except BridgeError as error:
            raise MediaError(f"{self.name} cannot seek to {offset}: {reason_of(error)}") from error
        for each in self.streams:
            each.reset()

    def frame_at(self, seconds: float | Fraction, video: int = 0) -> VideoFrame:
        """The frame that is shown at a time; costs one segment of decoding at most.

        Args:
            seconds: on the file's own clock. Before the first frame it is the first one, after
                the last frame the last one.
            video: which video stream.

        Raises:
            MediaError: no frame can be decoded there.
            ConfigError: seconds is no number.
        """
        if isinstance(seconds, str):
            raise ConfigError(f"seconds {seconds!r} is not a number")
        stream = self.streams.get(video=video)[0]
        # Containers round times to ticks: half a tick early is in time.
        ticks = Fraction(seconds) / stream.time_base + Fraction(1, 2)
        target = max(int(ticks), stream.start_time or 0)
        self.seek(target, stream=stream)
        shown: VideoFrame | None = None
        frames: Iterator[Any] = self.decode(stream)
        for frame in frames:
            if shown is not None and frame.pts is not None and frame.pts > target:
                break
            shown = frame
        if shown is None:
            raise MediaError(f"{self.name} has no frame that can be decoded at {float(seconds)} s")
        return shown

    def close(self) -> None:
        """Release the file."""
        self._demuxer.close()

    def _read(self) -> BridgePacket | None:
        try:
            return self._demuxer.read_packet()
        except BridgeError as error:
            raise MediaError(f"{self.name} cannot be read on: {reason_of(error)}") from error

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
    _check_type("options", options, DecoderOptions)
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
        raise MediaError(f"{title} cannot be read: {reason_of(error)}") from error


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name} {value!r} is not of {kind.__name__}")


__all__ = [
    "InputContainer",
    "OutputContainer",
    "Stream",
    "StreamPacket",
    "Streams",
    "open",
]
