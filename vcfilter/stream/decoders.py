"""Frames from packets: PyAV's decoders and the neural one, both fed by one demuxer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import av.error
from av.codec import Codec, CodecContext
from av.codec.codec import UnknownCodecError
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgePacket, Demuxer, StreamInfo
from vcfilter.codec import Decoder
from vcfilter.errors import MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.containers import Path
from vcfilter.stream.packets import coded_packet, to_av
from vcfilter.stream.pixels import FrameReader
from vcfilter.stream.reader import PacketReader, decoded_from
from vcfilter.stream.report import Log
from vcfilter.stream.source import Source, reason_of
from vcfilter.stream.timestamps import Cut, frame_rate, rational
from vcfilter.stream.track import completed, is_neural

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PREFERRED = {
    "av1": "libdav1d",
    "mp1": "mp1float",
    "mp2": "mp2float",
    "mp3": "mp3float",
    "mp3adu": "mp3adufloat",
    "mp3on4": "mp3on4float",
}
"""Decoders that FFmpeg takes for a codec before the one that has the codec's name."""


class MediaDecoder:
    """One of PyAV's decoders, for the packets of a demuxed stream.

    Args:
        info: the stream.
        threads: threads of the decoder; 0 leaves it to FFmpeg.

    Attributes:
        context: PyAV's codec context.

    Raises:
        MediaError: FFmpeg has no decoder for it.
    """

    def __init__(self, info: StreamInfo, threads: int = 0) -> None:
        self._info = info
        self._discarded: set[int] = set()
        self.context: Any = _context(info)
        self.context.thread_type = "AUTO"
        self.context.thread_count = threads
        if info.extradata:
            self.context.extradata = info.extradata
        self.context.options = _decoder_options(info)
        _describe(self.context, info)

    def decode(self, packet: BridgePacket | None) -> list[Any]:
        """Frames that are now ready, their times in ticks of the stream; None drains.

        Raises:
            av.error.FFmpegError: the packet cannot be decoded.
        """
        try:
            if packet is None:
                holds = self.context.is_open and self._info.kind != "subtitle"
                frames = self.context.decode(None) if holds else []
            else:
                if packet.discard and packet.pts is not None:
                    self._discarded.add(packet.pts)
                frames = self.context.decode(to_av(packet))
        except av.error.EOFError:  # drained already
            return []
        base = packet.time_base if packet is not None else self._info.time_base
        for frame in frames:
            if hasattr(frame, "time_base"):
                frame.time_base = base
        if self._discarded:
            frames = [f for f in frames if getattr(f, "pts", None) not in self._discarded]
        return list(frames)

    def reset(self) -> None:
        """Forget what was decoded, as after a seek or after draining."""
        self._discarded.clear()
        if self.context.is_open:
            self.context.flush_buffers()


def _context(info: StreamInfo) -> Any:
    for name in (_PREFERRED.get(info.codec, info.codec), info.codec):
        try:
            return CodecContext.create(Codec(name, "r"))
        except (UnknownCodecError, ValueError):
            continue
    named = info.codec or info.codec_tag or "of unknown codec"
    raise MediaError(f"stream {info.index} ({info.kind} {named}) has no decoder")


def _describe(context: Any, info: StreamInfo) -> None:
    """Set what can be asked of a context before the first packet is decoded."""
    with suppress(ValueError):  # a name or a layout that PyAV does not know
        if info.kind == "video":
            context.width, context.height = info.width, info.height
            if info.frame_rate:
                context.framerate = info.frame_rate
            if info.pixel_format:
                context.pix_fmt = info.pixel_format
        elif info.kind == "audio":
            context.sample_rate = info.sample_rate
            if info.sample_format:
                context.format = info.sample_format
            if info.channel_layout or info.channels:
                context.layout = _layout(info)


def _layout(info: StreamInfo) -> str:
    """The channels as FFmpeg's options name them."""
    if info.channel_layout:
        return f"0x{info.channel_layout:x}"
    return f"{info.channels} channels"


def _decoder_options(info: StreamInfo) -> dict[str, str]:
    """What a decoder must know besides extradata, as FFmpeg's options of a codec context."""
    base = info.time_base
    options = {"pkt_timebase": f"{base.numerator}/{base.denominator}"}
    tag = int.from_bytes(info.codec_tag.encode("latin-1"), "little", signed=True)
    numbers = {
        "codec_tag": tag,
        "block_align": info.block_align,
        "bits_per_coded_sample": info.bits_per_coded_sample,
        "bits_per_raw_sample": info.bits_per_raw_sample,
        "b": info.bit_rate,
    }
    if info.kind == "video":
        numbers |= {"has_b_frames": info.video_delay, "field_order": info.field_order}
        numbers |= {
            "color_primaries": info.color_primaries,
            "color_trc": info.color_trc,
            "colorspace": info.colorspace,
            "color_range": info.color_range,
            "chroma_sample_location": info.chroma_location,
        }
        if info.width and info.height:
            options["video_size"] = f"{info.width}x{info.height}"
        if info.pixel_format:
            options["pixel_format"] = info.pixel_format
        if info.sample_aspect_ratio:
            aspect = info.sample_aspect_ratio
            options["aspect"] = f"{aspect.numerator}/{aspect.denominator}"
    if info.kind == "audio":
        numbers["ar"] = info.sample_rate
        if info.channel_layout or info.channels:
            options["ch_layout"] = _layout(info)
    if info.profile != _UNKNOWN:
        numbers["profile"] = info.profile
    if info.level != _UNKNOWN:
        numbers["level"] = info.level
    return options | {key: str(value) for key, value in numbers.items() if value}


_UNKNOWN = -99
_ASPECT_TOLERANCE = Fraction(1, 100)


class FrameSource(Protocol):
    """Where frames to be coded come from."""

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick of the frames' pts."""

    @property
    def frame_rate(self) -> Fraction | None:
        """Average frames per second; None when unknown."""

    @property
    def video_format(self) -> VideoFormat | None:
        """What the frames are; known from the first frame on."""

    @property
    def delay(self) -> int | None:
        """Most packets that are held before a frame comes; None when unknown."""

    def frames(self) -> Iterator[Frame]:
        """The frames in display order; a damaged file may repeat times."""


class MediaFrames:
    """The frames of one ordinary video stream.

    Args:
        reader: brings the stream's packets.
        info: the stream.
        cut: the part wanted.
        seekable: whether the source can seek (a cut's start is reached by reading if not).
        bit_depth: 8 or 10; None takes the source's (10 for any above 8).
        log: where warnings go.
        threads: threads of the decoder; 0 leaves it to FFmpeg.
        at_once: each frame comes when its packet is there, if the codec allows that: no threads
            that decode several frames beside each other.

    Raises:
        MediaError: no decoder is known.
    """

    def __init__(
        self,
        reader: PacketReader,
        info: StreamInfo,
        cut: Cut,
        *,
        seekable: bool,
        bit_depth: int | None = None,
        log: Log = logger,
        threads: int = 0,
        at_once: bool = False,
    ) -> None:
        self._reader = reader
        self._info = info
        self._cut = cut if seekable else Cut(end=cut.end)
        self._wanted = cut
        self._log = log
        self._decoder = MediaDecoder(info, threads)
        if at_once:
            self._decoder.context.thread_type = "SLICE"
        self._frame_reader = FrameReader(info=info, bit_depth=bit_depth, log=log)
        self._damaged = self._corrupt = self._count = 0
        self._aspect: Fraction | None = None
        self._aspect_told = False

    @property
    def time_base(self) -> Fraction:
        return self._info.time_base

    @property
    def frame_rate(self) -> Fraction | None:
        return frame_rate(self._info)

    @property
    def video_format(self) -> VideoFormat | None:
        return self._frame_reader.video_format

    @property
    def delay(self) -> int | None:
        return None

    def frames(self) -> Iterator[Frame]:
        """The frames; those whose time the source does not state follow the frame rate.

        Raises:
            MediaError: nothing can be decoded, or the frames cannot be coded.
        """
        last: int | None = None
        step = max(1, round(1 / ((self.frame_rate or Fraction(25)) * self.time_base)))
        av_frames = decoded_from(
            self._reader, self._cut, self._decoded, self._time, self._decoder.reset, self._log
        )
        for av_frame in av_frames:
            pts = av_frame.pts
            if pts is None:
                pts = 0 if last is None else last + step
            last = pts
            if self._wanted.before(pts * self.time_base):
                continue
            if self._wanted.after(pts * self.time_base):
                break
            self._watch_aspect(av_frame)
            self._corrupt += av_frame.is_corrupt
            yield self._frame_reader.read(av_frame, pts, av_frame.duration or 0)
        if self._damaged:
            self._log.warning(f"{self._damaged} packets of the source could not be decoded")
        if self._corrupt:
            self._log.warning(f"{self._corrupt} frames of the source are damaged")
        if not self._count:
            raise MediaError("the video stream has no frame that can be decoded")
        self._reader.read_on(self._wanted.end)

    def _watch_aspect(self, av_frame: VideoFrame) -> None:
        """Warn once where frames are to be displayed in another aspect ratio than the first."""
        ratio = rational(self._decoder.context.sample_aspect_ratio)
        if ratio is None:
            return
        shown = ratio * av_frame.width / av_frame.height
        if self._aspect is None:
            self._aspect = shown
        elif not self._aspect_told and abs(shown / self._aspect - 1) > _ASPECT_TOLERANCE:
            self._aspect_told = True
            self._log.warning("frames change their display aspect ratio: the first one is kept")

    def _time(self, av_frame: VideoFrame) -> Fraction | None:
        return None if av_frame.pts is None else av_frame.pts * self.time_base

    def _decoded(self) -> Iterator[VideoFrame]:
        for packet in self._reader.packets():
            yield from self._frames_of(packet)
        yield from self._frames_of(None)

    def _frames_of(self, packet: BridgePacket | None) -> list[VideoFrame]:
        if packet is not None and not packet.data:
            return []  # AVI fills gaps in time with such
        try:
            av_frames = self._decoder.decode(packet)
        except av.error.InvalidDataError:
            self._damaged += 1
            return []
        except (av.error.FFmpegError, ValueError) as error:
            if not self._count:
                raise MediaError(f"no frame could be decoded: {reason_of(error)}") from error
            self._damaged += 1
            return []
        found = [av_frame for av_frame in av_frames if isinstance(av_frame, VideoFrame)]
        self._count += len(found)
        return found


class NeuralFrames:
    """The frames of one neural video stream.

    Damaged packets, and those whose references are missing, are dropped, as are damaged quality
    levels; what was dropped is logged at the end.

    Args:
        reader: brings the stream's packets.
        info: the stream.
        options, runtime: how it is decoded.
        cut: the part wanted; of the frames between the keyframe before it and its first one only
            those are decoded that others need.
        seekable: whether the source can seek.
        log: where warnings go.
        motion: frames bring the motion that they were coded with.
    """

    def __init__(
        self,
        reader: PacketReader,
        info: StreamInfo,
        options: DecoderOptions,
        cut: Cut,
        *,
        seekable: bool,
        runtime: Runtime | None = None,
        log: Log = logger,
        motion: bool = False,
    ) -> None:
        self._reader = reader
        self._info = info
        self._cut = cut if seekable else Cut(end=cut.end)
        self._wanted = cut
        self._log = log
        self.decoder = Decoder(info.extradata, options, runtime=runtime, motion=motion)

    @property
    def time_base(self) -> Fraction:
        return self._info.time_base

    @property
    def frame_rate(self) -> Fraction | None:
        return self._info.frame_rate or self._info.base_rate

    @property
    def video_format(self) -> VideoFormat | None:
        fmt = self.decoder.video_format
        return None if fmt is None else completed(fmt, self._info)

    @property
    def delay(self) -> int | None:
        return self.decoder.delay

    def frames(self) -> Iterator[Frame]:
        """The frames in display order.

        Raises:
            BitstreamError: damage, where options are strict; a change of size.
            MediaError: nothing can be decoded.
        """
        decoder = self.decoder
        count = 0
        found = decoded_from(
            self._reader, self._cut, self._decoded, self._time, decoder.reset, self._log
        )
        for frame in found:
            count += 1
            time = frame.pts * self.time_base
            if self._wanted.before(time):
                continue
            if self._wanted.after(time):
                break
            yield frame
        damaged, missing = decoder.dropped_damaged, decoder.dropped_missing_reference
        if damaged:
            self._log.warning(f"{damaged} damaged packets were dropped")
        if missing:
            self._log.warning(f"{missing} frames were dropped because a reference is missing")
        if decoder.lost_levels:
            self._log.warning(
                f"{decoder.lost_levels} frames have less quality: levels of them are damaged"
            )
        if not count:
            raise MediaError("the video stream has no frame that can be decoded")
        self._reader.read_on(self._wanted.end)

    def _time(self, frame: Frame) -> Fraction:
        return frame.pts * self.time_base

    def _decoded(self) -> Iterator[Frame]:
        for packet in self._reader.packets():
            if packet.data:
                coded = coded_packet(packet)
                # Keyframes are decoded anyway, and tell where the reading began.
                wanted = coded.is_keyframe or not self._wanted.before(coded.pts * self.time_base)
                yield from self.decoder.frames(coded, show=wanted)
        yield from self.decoder.frames(None)


def neural_stream(demuxer: Demuxer, name: str) -> StreamInfo:
    """The first neural video stream.

    Raises:
        MediaError: there is none.
    """
    for info in demuxer.streams:
        if is_neural(info):
            return info
    kinds = ", ".join(info.codec or info.kind for info in demuxer.streams) or "nothing"
    raise MediaError(f"{name} has no neural video stream (it has {kinds})")


def neural_frames(
    path: Path, options: DecoderOptions | None = None, *, runtime: Runtime | None = None
) -> Iterator[Frame]:
    """Decoded frames of a neural file, pts in ticks of its time base.

    Raises:
        MediaError: the file cannot be read or has no neural video stream.
        BitstreamError: damage, where options are strict.
    """
    source = Source(path)
    with source.demuxer() as demuxer:
        info = neural_stream(demuxer, source.title)
        frames = NeuralFrames(
            PacketReader(demuxer, info),
            info,
            options or DecoderOptions(),
            Cut(),
            seekable=not source.is_pipe,
            runtime=runtime,
        )
        yield from frames.frames()
