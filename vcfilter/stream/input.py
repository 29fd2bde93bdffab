"""Reading neural files in PyAV's manner: streams, demux, decode, seek.

`open()` gives an InputContainer for a file with a neural video stream, PyAV's own container for
any other media, and an OutputContainer for writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from os import PathLike, fspath
from typing import IO, Any, Literal, Self, TypeAlias, overload

import av
import av.container
import av.error
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgeError, BridgePacket, Chapter, StreamInfo
from vcfilter.codec import Decoder
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import VideoFormat
from vcfilter.stream.output import OutputContainer
from vcfilter.stream.pixels import PIXEL_FORMATS, to_picture
from vcfilter.stream.raw import MediaDemuxer, open_demuxer
from vcfilter.stream.reader import DecoderOptions, neural_packet
from vcfilter.stream.source import media_url, reason_of
from vcfilter.stream.track import is_neural

Path: TypeAlias = str | PathLike[str]
MediaFrame: TypeAlias = VideoFrame | AudioFrame | Any

_KINDS = {"video": "video", "audio": "audio", "subtitles": "subtitle", "data": "data"}


class StreamPacket:
    """One packet of one stream, as av.Packet.

    Args:
        stream: which it belongs to.
        packet: its content; None for the empty packet that ends a stream and drains its decoder.
    """

    __slots__ = ("_packet", "stream")

    def __init__(self, stream: Stream, packet: BridgePacket | None) -> None:
        self.stream = stream
        self._packet = packet

    @property
    def pts(self) -> int | None:
        """Presentation time in ticks of time_base."""
        return self._packet.pts if self._packet else None

    @property
    def dts(self) -> int | None:
        """Decoding time in ticks of time_base; None for the empty packet at the end."""
        return self._packet.dts if self._packet else None

    @property
    def duration(self) -> int:
        """In ticks of time_base; 0 when unknown."""
        return self._packet.duration if self._packet else 0

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self._packet.time_base if self._packet else self.stream.time_base

    @property
    def is_keyframe(self) -> bool:
        """Decoding can start here."""
        return self._packet.is_keyframe if self._packet else False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._packet.data) if self._packet else 0

    @property
    def content(self) -> BridgePacket | None:
        """The packet by value; None for the empty one at the end."""
        return self._packet

    def __bytes__(self) -> bytes:
        return self._packet.data if self._packet else b""

    def decode(self) -> list[MediaFrame]:
        """Frames that are now ready: av.VideoFrame or av.AudioFrame."""
        return self.stream.decode(self)

    def __repr__(self) -> str:
        index, kind = self.stream.index, self.stream.type
        return f"<vcfilter.StreamPacket of #{index} {kind}, pts={self.pts}, {self.size} bytes>"


class Stream:
    """One stream of an input container, with PyAV's names.

    Attributes:
        info: everything that the container tells of it.
        codec_name: "vcfilter" for a neural stream, FFmpeg's name otherwise.
    """

    def __init__(self, container: InputContainer, info: StreamInfo) -> None:
        self.container = container
        self.info = info
        self.codec_name = "vcfilter" if is_neural(info) else info.codec
        self._decoder: Decoder | None = None
        self._foreign: Any = None

    @property
    def index(self) -> int:
        """Position in the file."""
        return self.info.index

    @property
    def type(self) -> str:
        """ "video", "audio", "subtitle", "attachment" or "data"."""
        return self.info.kind

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self.info.time_base

    @property
    def average_rate(self) -> Fraction | None:
        """Frames per second; None when unknown."""
        return self.info.frame_rate

    @property
    def start_time(self) -> int | None:
        """In ticks of time_base."""
        return self.info.start_time

    @property
    def duration(self) -> int | None:
        """In ticks of time_base."""
        return self.info.duration

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
    def rotation(self) -> int:
        """Clockwise rotation for display in degrees."""
        fmt = self.video_format
        return fmt.rotation if fmt else self.info.rotation

    @property
    def sample_rate(self) -> int:
        """Of an audio stream."""
        return self.info.sample_rate

    @property
    def channels(self) -> int:
        """Of an audio stream."""
        return self.info.channels

    @property
    def video_format(self) -> VideoFormat | None:
        """Of a neural stream."""
        return self._neural().video_format if self.codec_name == "vcfilter" else None

    @property
    def pix_fmt(self) -> str | None:
        """FFmpeg's name of the decoded pictures' format."""
        fmt = self.video_format
        return PIXEL_FORMATS[fmt.bit_depth] if fmt else self.info.pixel_format or None

    @property
    def dropped_frames(self) -> int:
        """Frames of a neural stream that were damaged or missed a reference, so far."""
        decoder = self._decoder
        return decoder.dropped_damaged + decoder.dropped_missing_reference if decoder else 0

    def decode(self, packet: StreamPacket | None = None) -> list[MediaFrame]:
        """Frames that are ready after this packet; None or an empty packet drains."""
        content = packet.content if packet else None
        if self.codec_name == "vcfilter":
            decoder = self._neural()
            frames = decoder.decode(neural_packet(content) if content else None)
            fmt = decoder.video_format
            return [to_picture(frame, fmt, self.time_base) for frame in frames] if fmt else []
        if self._foreign is None:
            self._foreign = self.container.foreign_decoder(self)
        foreign = None
        if content:
            foreign = av.Packet(content.data)
            foreign.pts, foreign.dts = content.pts, content.dts
            foreign.duration, foreign.time_base = content.duration, content.time_base
        try:
            return list(self._foreign.decode(foreign))
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            raise MediaError(
                f"stream {self.index} cannot be decoded: {reason_of(error)}"
            ) from error

    def reset(self) -> None:
        """Forget what was decoded, as after a seek."""
        if self._decoder:
            self._decoder.reset()
        if self._foreign:
            self._foreign.flush_buffers()

    def _neural(self) -> Decoder:
        if self._decoder is None:
            self._decoder = self.container.options.decoder(self.info.extradata)
        return self._decoder

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

    def get(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> list[Stream]:
        """Streams by themselves, by index, or by kind and position (video=0, audio=(0, 1))."""
        chosen = [each if isinstance(each, Stream) else self[each] for each in streams]
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

    Args:
        file: path, or binary file object (not closed).
        options: how the neural stream is decoded.
        demuxer: the file, if it is open already.

    Attributes:
        streams: see Streams; `streams.video[0]` is the neural one.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(
        self,
        file: Path | IO[bytes],
        options: DecoderOptions | None = None,
        *,
        demuxer: MediaDemuxer | None = None,
    ) -> None:
        self._file = file
        self.options = options or DecoderOptions()
        self._demuxer = demuxer if demuxer is not None else _demuxer(file)
        self.name = self._demuxer.name
        self.streams = Streams(Stream(self, info) for info in self._demuxer.streams)
        self._helper: av.container.InputContainer | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """The file's tags."""
        return self._demuxer.metadata

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return self._demuxer.format_name

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

    def demux(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> Iterator[StreamPacket]:
        """Packets in the file's order, then an empty one for each stream (it drains).

        Args:
            streams, kinds: as for Streams.get; all streams if nothing is given.

        Raises:
            MediaError: the file cannot be read on.
        """
        chosen = {stream.index: stream for stream in self.streams.get(*streams, **kinds)}
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
        """
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

    def foreign_decoder(self, stream: Stream) -> Any:
        """PyAV's decoder for a stream that is not neural."""
        if not isinstance(self._file, str | PathLike):
            raise MediaError(f"stream {stream.index} can be decoded only of a file with a name")
        if self._helper is None:
            self._helper = av.open(media_url(fspath(self._file)), "r")
        context = self._helper.streams[stream.index].codec_context
        if context is None:
            raise MediaError(f"stream {stream.index} ({stream.codec_name}) has no decoder")
        return context

    def close(self) -> None:
        """Release the file."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None
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
    format: str | None = None,
) -> InputContainer: ...
@overload
def open(
    file: Path | IO[bytes],
    mode: Literal["w"],
    *,
    options: DecoderOptions | None = None,
    format: str | None = None,
) -> OutputContainer: ...
def open(
    file: Path | IO[bytes],
    mode: Literal["r", "w"] = "r",
    *,
    options: DecoderOptions | None = None,
    format: str | None = None,
) -> InputContainer | OutputContainer:
    """Open a media file in PyAV's manner.

    A file without a neural video stream is opened by PyAV: `av.open(file)` is returned, so that
    one program reads both.

    Args:
        file: path, or binary file object.
        mode: "r" to read, "w" to write (an existing file is replaced when the new one is closed).
        options: how neural streams are decoded.
        format: FFmpeg's name of the container, for writing; None follows the extension.

    Raises:
        MediaError: the file cannot be read or written.
        ConfigError: the mode or the container is unknown.
    """
    if mode == "w":
        return OutputContainer(file, format)
    if mode != "r":
        raise ConfigError(f"mode {mode!r} is neither 'r' nor 'w'")
    demuxer = _demuxer(file)
    if any(is_neural(info) for info in demuxer.streams):
        return InputContainer(file, options, demuxer=demuxer)
    demuxer.close()
    if not isinstance(file, str | PathLike):
        file.seek(0)
        return av.open(file)  # type: ignore[return-value]
    return av.open(media_url(fspath(file)))  # type: ignore[return-value]


def _demuxer(file: Path | IO[bytes]) -> MediaDemuxer:
    try:
        return open_demuxer(file)
    except (BridgeError, ValueError) as error:
        name = getattr(file, "name", file)
        raise MediaError(f"{name} cannot be read: {reason_of(error)}") from error


__all__ = [
    "InputContainer",
    "OutputContainer",
    "Stream",
    "StreamPacket",
    "Streams",
    "open",
]
