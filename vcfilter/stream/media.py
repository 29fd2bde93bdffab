"""Ordinary media through PyAV: pictures of any codec in, pictures of any codec out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

import av
import av.error
from av.codec import Codec, CodecContext
from av.codec.context import Flags
from av.container import InputContainer
from av.format import ContainerFormat
from av.format import Flags as FormatFlags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vcfilter._bridge import BridgePacket, StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.stream.pixels import PIXEL_FORMATS, PictureReader, convert, to_picture
from vcfilter.stream.source import reason_of
from vcfilter.stream.timestamps import Grid

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Which part of a file is wanted, in its own time.

    Args:
        start: first time in seconds, on the file's own clock; None for all from the start.
        end: first time that is not wanted; None for all to the end.
    """

    start: Fraction | None = None
    end: Fraction | None = None

    @property
    def offset(self) -> Fraction:
        """What is subtracted from each time, so that a cut begins at zero."""
        return self.start or Fraction(0)

    def before(self, time: Fraction) -> bool:
        """Whether a time lies before the part."""
        return self.start is not None and time < self.start

    def after(self, time: Fraction) -> bool:
        """Whether a time lies after the part."""
        return self.end is not None and time >= self.end


class PictureSource(Protocol):
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

    def frames(self) -> Iterator[Frame]:
        """The frames in display order, their pts strictly ascending."""

    def close(self) -> None:
        """Release the file."""


class MediaPictures:
    """The pictures of one ordinary video stream.

    Args:
        container: PyAV's; closed with this object.
        position: which of the container's video streams.
        info: the same stream as the bridge sees it.
        cut: the part wanted.
        seekable: whether the container can seek (a cut's start is reached by reading if not).
        warn: called with one sentence for each thing that is not kept.
        threads: threads of the decoder; 0 leaves it to FFmpeg.
    """

    def __init__(
        self,
        container: InputContainer,
        position: int,
        info: StreamInfo,
        cut: Cut,
        *,
        seekable: bool,
        warn: Warn,
        threads: int = 0,
    ) -> None:
        self._container = container
        self._stream: VideoStream = container.streams.video[position]
        self._cut = cut
        self._seekable = seekable
        self._warn = warn
        self._threads = threads
        self._reader = PictureReader(
            aspect=info.sample_aspect_ratio,
            rotation=info.rotation,
            chroma_location=info.chroma_location,
            warn=warn,
        )
        self._frame_rate = info.frame_rate or self._stream.average_rate

    @property
    def time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1, 1000)

    @property
    def frame_rate(self) -> Fraction | None:
        return self._frame_rate

    @property
    def video_format(self) -> VideoFormat | None:
        return self._reader.video_format

    def frames(self) -> Iterator[Frame]:
        """The frames; those whose time the source does not tell follow the frame rate.

        Raises:
            MediaError: nothing can be decoded, or the pictures cannot be coded.
        """
        last: int | None = None
        late = 0
        step = self._ticks_per_frame()
        for picture in self._pictures():
            pts = picture.pts
            if pts is None:
                pts = 0 if last is None else last + step
            if self._cut.before(pts * self.time_base):
                continue
            if self._cut.after(pts * self.time_base):
                break
            if last is not None and pts <= last:
                late += 1
                pts = last + 1
            last = pts
            yield self._reader.read(picture, pts, picture.duration or 0)
        if late:
            self._warn(f"{late} frames had a time that was not after the frame before: moved")

    def close(self) -> None:
        self._container.close()

    def _ticks_per_frame(self) -> int:
        rate = self._frame_rate or Fraction(25)
        return max(1, round(1 / (rate * self.time_base)))

    def _pictures(self) -> Iterator[VideoFrame]:
        stream = self._stream
        if stream.codec_context is None:
            raise MediaError("no decoder for the video stream is known")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = self._threads
        if self._cut.start is not None and self._seekable:
            ticks = int(self._cut.start / self.time_base)
            try:
                self._container.seek(ticks, stream=stream)
            except av.error.FFmpegError:
                self._warn("the source cannot seek: it is read from its start")
        damaged = count = 0
        try:
            for packet in self._container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.error.InvalidDataError:
                    damaged += 1
                    continue
                for picture in pictures:
                    if isinstance(picture, VideoFrame):
                        count += 1
                        yield picture
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, MediaError):
                raise
            if not count:
                raise MediaError(f"no picture could be decoded: {reason_of(error)}") from error
            self._warn(f"the source breaks off after {count} frames: {reason_of(error)}")
        if damaged:
            self._warn(f"{damaged} packets of the source could not be decoded")
        if not count:
            raise MediaError("the video stream has no picture that can be decoded")


class PictureCoder(Protocol):
    """What turns frames into the packets of a picture track."""

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        """Get ready; returns the track."""

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        """Packets that are now ready, in the order of their dts; None drains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaCodec:
    """An encoder of FFmpeg's.

    Args:
        name: as in "libx264".
        options: FFmpeg's options of the encoder ("crf": "18").
        pixel_format: FFmpeg's name; None takes the first that keeps the picture best.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    pixel_format: str | None = None

    @classmethod
    def named(
        cls,
        name: str,
        crf: float | None = None,
        pixel_format: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> MediaCodec:
        """An encoder at a constant quality: near transparent if crf is None."""
        chosen: dict[str, str] = {}
        if crf is not None or name in DEFAULT_CRF:
            chosen["crf"] = f"{DEFAULT_CRF[name] if crf is None else crf:g}"
        if name.startswith("libvpx"):
            chosen["b"] = "0"  # crf alone rules
        return cls(name=name, options={**chosen, **(options or {})}, pixel_format=pixel_format)


DEFAULT_CRF = {"libx264": 18, "libx265": 20, "libsvtav1": 24, "libvpx-vp9": 24, "libaom-av1": 24}
"""Constant quality of encoders that have one, when none is asked for."""


class MediaCoder:
    """Codes frames with one of FFmpeg's encoders.

    Args:
        codec: which, and how.
        container: FFmpeg's name of the container that the packets go to.
        threads: threads of the encoder; 0 leaves it to FFmpeg.
    """

    def __init__(self, codec: MediaCodec, container: str, threads: int = 0) -> None:
        try:
            self._encoder = Codec(codec.name, "w")
        except (ValueError, av.error.FFmpegError):
            raise ConfigError(
                f"encoder {codec.name!r} is unknown; libx264, libx265, libsvtav1, ffv1 or "
                "rawvideo, for instance, are there"
            ) from None
        if self._encoder.type != "video":
            raise ConfigError(f"encoder {codec.name!r} codes {self._encoder.type}, not pictures")
        self._codec = codec
        self._container = container
        self._threads = threads
        self._reformatter = VideoReformatter()
        self._context: VideoCodecContext | None = None
        self._format: VideoFormat | None = None
        self._pixel_format = ""
        self._time_base = Fraction(1, 1000)
        self._grid: Grid | None = None

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        """Open the encoder.

        Raises:
            ConfigError: the encoder refuses the size, the pixel format or an option.
        """
        fmt = video_format
        self._grid = Grid.over(time_base, frame_rate)
        if self._grid:
            time_base = self._grid.time_base
        self._format, self._time_base = fmt, time_base
        self._pixel_format = self._codec.pixel_format or self._choose(fmt)
        context = CodecContext.create(self._encoder.name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = fmt.width, fmt.height
        context.time_base = time_base
        if frame_rate:
            context.framerate = frame_rate
        num, den = fmt.sample_aspect_ratio
        try:
            context.pix_fmt = self._pixel_format
            if num:
                context.sample_aspect_ratio = Fraction(num, den)
            is_rgb = context.format is not None and context.format.is_rgb
            context.colorspace = 0 if is_rgb else fmt.colorspace
            context.color_range = 2 if is_rgb else fmt.color_range
            context.color_primaries = fmt.color_primaries
            context.color_trc = fmt.color_trc
            context.thread_count = self._threads
            context.options = dict(self._codec.options)
            flags = FormatFlags(ContainerFormat(self._container, "w").flags)
            if flags & FormatFlags.global_header:
                context.flags |= Flags.global_header.value
            context.open()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            chosen = " ".join(f"{key}={value}" for key, value in self._codec.options.items())
            raise ConfigError(
                f"encoder {self._codec.name} refuses {fmt.width}x{fmt.height} "
                f"{self._pixel_format} {chosen}".rstrip()
                + f": {reason_of(error)}"
            ) from error
        unknown = [key for key in self._codec.options if key in context.options]  # left over
        if unknown:
            raise ConfigError(f"encoder {self._codec.name} has no option {', '.join(unknown)}")
        self._context = context
        return StreamInfo(
            kind="video",
            codec=self._encoder.canonical_name,
            codec_tag=_tag(context) if self._encoder.name == "rawvideo" else "",
            extradata=context.extradata or b"",
            time_base=time_base,
            width=fmt.width,
            height=fmt.height,
            sample_aspect_ratio=Fraction(num, den) if num else None,
            frame_rate=frame_rate,
            pixel_format=self._pixel_format,
            color_primaries=fmt.color_primaries,
            color_trc=fmt.color_trc,
            colorspace=int(context.colorspace),
            color_range=int(context.color_range),
            chroma_location=fmt.chroma_location,
            rotation=fmt.rotation,
            field_order=1,
            video_delay=int(context.has_b_frames),
        )

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        context, fmt = self._context, self._format
        assert context is not None
        assert fmt is not None
        picture = None
        if frame is not None:
            if self._grid:
                pts, duration = self._grid.place(frame.pts, frame.duration)
                frame = replace(frame, pts=pts, duration=duration)
            picture = to_picture(frame, fmt, self._time_base)
            picture = convert(picture, self._pixel_format, self._reformatter)
        try:
            packets = context.encode(picture)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"encoder {self._codec.name} failed: {reason_of(error)}") from error
        return [
            BridgePacket(
                stream_index=0,
                data=bytes(packet),
                pts=packet.pts,
                dts=packet.dts,
                duration=packet.duration or 0,
                is_keyframe=packet.is_keyframe,
                time_base=self._time_base,
            )
            for packet in packets
        ]

    def _choose(self, fmt: VideoFormat) -> str:
        """The stream's own pixel format if the encoder takes it, else its first YUV or any."""
        known = [each.name for each in self._encoder.video_formats or ()]
        wanted = [PIXEL_FORMATS[fmt.bit_depth], "yuv420p10le", "yuv420p", "yuvj420p"]
        if fmt.bit_depth == 8:
            wanted.remove("yuv420p10le")
        return next((name for name in wanted if name in known or not known), (known or wanted)[0])


class Y4mCoder:
    """Frames as a YUV4MPEG2 stream: the header is the track's extradata, a packet is a frame.

    YUV4MPEG2 has a constant frame rate and no times: those of the frames are lost.
    """

    def __init__(self) -> None:
        self._index = 0
        self._time_base = Fraction(1, 25)

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        fmt = video_format
        rate = frame_rate or Fraction(25)
        self._time_base = 1 / rate
        num, den = fmt.sample_aspect_ratio
        chroma = {0: "C420mpeg2", 1: "C420mpeg2", 2: "C420jpeg"}.get(fmt.chroma_location, "C420")
        if fmt.bit_depth == 10:
            chroma = "C420p10 XYSCSS=420P10"
        header = (
            f"YUV4MPEG2 W{fmt.width} H{fmt.height} F{rate.numerator}:{rate.denominator} "
            f"Ip A{num}:{den if num else 0} {chroma}"
        )
        if fmt.color_range:
            header += f" XCOLORRANGE={'FULL' if fmt.color_range == 2 else 'LIMITED'}"
        return StreamInfo(kind="video", extradata=header.encode() + b"\n")

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        if frame is None:
            return []
        planes = b"".join(plane.tobytes() for plane in frame.planes)
        self._index += 1
        return [
            BridgePacket(
                stream_index=0,
                data=b"FRAME\n" + planes,
                pts=self._index - 1,
                dts=self._index - 1,
                is_keyframe=True,
                time_base=self._time_base,
            )
        ]


def _tag(context: VideoCodecContext) -> str:
    """The FourCC that tells raw video's pixel format."""
    tag = context.codec_tag
    return "" if tag in ("", "\0\0\0\0") else str(tag)
