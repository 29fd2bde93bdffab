"""The streams of a file that is written, under PyAV's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av.error
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.codec import CodecContext
from av.codec.context import Flags
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgePacket, StreamInfo
from vcfilter.codec import EncoderStatistics
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import EncoderOptions, Runtime
from vcfilter.stream.encoders import NeuralEncoder
from vcfilter.stream.packets import StreamPacket, from_av
from vcfilter.stream.pixels import PIXEL_FORMATS, FrameReader
from vcfilter.stream.source import reason_of
from vcfilter.stream.timestamps import Rising, rational

_RATE_DENOMINATOR = 100_000
_UNTIL_FIRST_FRAME = frozenset(
    ("width", "height", "pix_fmt", "time_base", "rate", "sample_aspect_ratio", "rotation",
     "options", "bit_rate")
)  # fmt: skip


class OutputStream:
    """A stream that is written.

    Attributes:
        index: position in the file.
        metadata: tags, to be set before the first packet is muxed.
        info: what the container will say of it; None until that is known.
        time_base: seconds per tick of its packets; None until that is known.
    """

    __slots__ = ("index", "info", "metadata", "time_base")

    def __init__(self, index: int, info: StreamInfo | None = None) -> None:
        self.index = index
        self.info = info
        self.metadata: dict[str, str] = dict(info.metadata) if info else {}
        self.time_base: Fraction | None = info.time_base if info else None

    @property
    def type(self) -> str:
        """ "video", "audio", "subtitle", "attachment" or "data"."""
        return self.info.kind if self.info else "video"

    @property
    def drained(self) -> bool:
        """Whether nothing is held back that would be written yet."""
        return True

    @property
    def delay(self) -> int | None:
        """Most frames that are held before a packet comes; None when unknown."""
        return None

    def encode(self, frame: Any = None) -> list[StreamPacket]:
        """A copied stream encodes nothing.

        Raises:
            ConfigError: always, where a frame is given.
        """
        if frame is not None:
            raise ConfigError(f"stream {self.index} is copied: it takes packets, not frames")
        return []

    def __repr__(self) -> str:
        return f"<vcfilter.{type(self).__name__} #{self.index}>"


class NeuralStream(OutputStream):
    """A neural video stream that is written.

    All but metadata is to be set before the first frame.

    Attributes:
        width, height: size; 0 takes the first frame's. Frames of another size are scaled.
        pix_fmt: "yuv420p" or "yuv420p10le"; None follows the first frame's depth.
        time_base: seconds per tick; None takes the first frame's, or one tick per frame.
        rate: frames per second.
        sample_aspect_ratio: None when unknown.
        rotation: clockwise rotation for display in degrees.
        options: EncoderOptions, or a mapping of its fields.
        bit_rate: target in bit/s, as EncoderOptions.bitrate; None leaves it to the options.
    """

    __slots__ = (
        "_drained", "_encoder", "_last", "_reader", "_rising", "_runtime", "_tick", "bit_rate",
        "height", "options", "pix_fmt", "rate", "rotation", "sample_aspect_ratio", "width",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        rate: Fraction,
        options: EncoderOptions | Mapping[str, Any],
        runtime: Runtime | None = None,
        tick: Fraction | None = None,
    ) -> None:
        object.__setattr__(self, "_encoder", None)
        super().__init__(index)
        self.width = self.height = 0
        self.pix_fmt: str | None = None
        self.rate = rate
        self.sample_aspect_ratio: Fraction | None = None
        self.rotation = 0
        self.options: Any = options
        self.bit_rate: int | None = None
        self._runtime = runtime
        self._tick = tick
        self._encoder: NeuralEncoder | None
        self._reader: FrameReader | None = None
        self._rising: Rising | None = None
        self._last: int | None = None
        self._drained = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _UNTIL_FIRST_FRAME and self._encoder is not None:
            raise ConfigError(f"{name} of stream {self.index} is set before the first frame")
        if name in ("width", "height") and not isinstance(value, int):
            raise ConfigError(f"{name} {value!r} is not a whole number")
        if name == "options":
            value = options_of(value)
        object.__setattr__(self, name, value)

    @property
    def type(self) -> str:
        return "video"

    @property
    def codec_context(self) -> NeuralStream:
        """The stream itself: it has the encoder's settings under PyAV's names."""
        return self

    @property
    def name(self) -> str:
        """The codec's name."""
        return "vcfilter"

    @property
    def statistics(self) -> EncoderStatistics | None:
        """Totals of what was coded so far; no records of single frames."""
        return self._encoder.statistics if self._encoder else None

    @property
    def drained(self) -> bool:
        return self._drained or self._encoder is None

    @property
    def delay(self) -> int | None:
        return self._encoder.delay if self._encoder else None

    @property
    def moved_count(self) -> int:
        """Frames whose time was moved since the container's clock is too coarse for it."""
        return self._rising.moved_count if self._rising else 0

    def encode(self, frame: VideoFrame | None = None) -> list[StreamPacket]:
        """Packets that are now ready; they come a segment at a time. None drains, and ends it.

        A frame without pts follows the one before it by one frame duration.

        Raises:
            ConfigError: the size or a setting cannot be coded, it is no av.VideoFrame, or the
                stream was drained.
            MediaError: the times do not ascend.
        """
        if frame is None:
            self._drained = True
            return self._packets(self._encoder.encode(None)) if self._encoder else []
        if not isinstance(frame, VideoFrame):
            raise ConfigError(f"frame of {type(frame).__name__} is not an av.VideoFrame")
        if self._drained:
            raise _drained_error(self.index)
        if self.time_base is None:
            base = rational(frame.time_base) if frame.pts is not None else None
            self.time_base = base or 1 / self.rate
        pts = self._pts(frame)
        if self._reader is None:
            self._reader = self._open_reader(frame)
            self._rising = Rising(self.time_base, self._tick)
        assert self._rising is not None
        duration = self._ticks(frame.duration, frame.time_base)
        planes = self._reader.read(frame, self._rising.place(pts), duration)
        if self._encoder is None:
            fmt = self._reader.video_format
            assert fmt is not None
            encoder = NeuralEncoder(self._coding_options(), self._runtime, None, self.metadata)
            self.info = encoder.open(fmt, self.time_base, self.rate)
            self._encoder = encoder
        return self._packets(self._encoder.encode(planes))

    def _coding_options(self) -> EncoderOptions:
        options: EncoderOptions = self.options
        if self.bit_rate is None:
            return options
        return replace(options, bitrate=self.bit_rate)

    def _open_reader(self, frame: VideoFrame) -> FrameReader:
        depths = {name: depth for depth, name in PIXEL_FORMATS.items()}
        if self.pix_fmt is not None and self.pix_fmt not in depths:
            raise ConfigError(f"pix_fmt {self.pix_fmt!r} is not {' or '.join(depths)}")
        self.width, self.height = self.width or frame.width, self.height or frame.height
        return FrameReader(
            aspect=rational(self.sample_aspect_ratio),
            rotation=self.rotation,
            size=(self.width, self.height),
            bit_depth=depths[self.pix_fmt] if self.pix_fmt else None,
        )

    def _pts(self, frame: VideoFrame) -> int:
        assert self.time_base is not None
        if frame.pts is None:
            step = max(1, round(1 / (self.rate * self.time_base)))
            pts = 0 if self._last is None else self._last + step
        else:
            pts = self._ticks(frame.pts, frame.time_base)
        if self._last is not None and pts <= self._last:
            raise MediaError(f"frame with pts {pts} comes after one with pts {self._last}")
        self._last = pts
        return pts

    def _ticks(self, ticks: int | None, time_base: Any) -> int:
        assert self.time_base is not None
        base = rational(time_base)
        if not ticks:
            return 0
        return round(ticks * base / self.time_base) if base else ticks

    def _packets(self, packets: Iterable[BridgePacket]) -> list[StreamPacket]:
        return [StreamPacket(self, packet) for packet in packets]


class AudioStream(OutputStream):
    """An audio stream that one of FFmpeg's encoders makes.

    Attributes:
        codec_context: PyAV's encoder; set its bit_rate, layout, format before the first frame.
    """

    __slots__ = ("_drained", "_next", "codec_context")

    def __init__(self, index: int, codec: str, rate: int, options: Mapping[str, str]) -> None:
        super().__init__(index)
        self.codec_context = _audio_context(codec, rate, options)
        self.time_base = Fraction(1, rate)
        self._drained = False
        self._next = 0

    @property
    def type(self) -> str:
        return "audio"

    @property
    def drained(self) -> bool:
        return self._drained or not self.codec_context.is_open

    def encode(self, frame: AudioFrame | None = None) -> list[StreamPacket]:
        """Packets that are now ready; None drains, and ends it.

        A frame without pts follows the one before it.

        Raises:
            ConfigError: it is no av.AudioFrame, or the stream was drained.
            MediaError: the encoder failed.
        """
        context = self.codec_context
        if frame is not None and not isinstance(frame, AudioFrame):
            raise ConfigError(f"frame of {type(frame).__name__} is not an av.AudioFrame")
        if frame is None:
            if self._drained:
                return []
            self._drained = True
        elif self._drained:
            raise _drained_error(self.index)
        elif frame.pts is None:
            frame.pts, frame.time_base = self._next, Fraction(1, frame.sample_rate)
        if frame is not None and frame.pts is not None:
            base = rational(frame.time_base) or Fraction(1, frame.sample_rate)
            self._next = round(frame.pts * base * frame.sample_rate) + frame.samples
        try:
            if not context.is_open:
                if frame is None:
                    return []
                context.open()
            packets = context.encode(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"encoder {context.name} failed: {reason_of(error)}") from error
        if self.info is None:
            self.info = StreamInfo(
                kind="audio",
                codec=context.codec.canonical_name,
                extradata=context.extradata or b"",
                time_base=Fraction(1, context.sample_rate),
                metadata=self.metadata,
                disposition=1,
                sample_rate=context.sample_rate,
                channels=context.layout.nb_channels,
                sample_format=context.format.name,
                frame_size=context.frame_size,
                bit_rate=context.bit_rate or 0,
            )
        return [
            StreamPacket(self, from_av(packet, self.index, self.time_base)) for packet in packets
        ]


def _drained_error(index: int) -> ConfigError:
    return ConfigError(f"stream {index} is drained, by encode(None) or close(): it takes no frame")


def _audio_context(codec: str, rate: int, options: Mapping[str, str]) -> AudioCodecContext:
    try:
        context = CodecContext.create(codec, "w")
    except (ValueError, RuntimeError, av.error.FFmpegError):
        raise ConfigError(f"encoder {codec!r} is unknown") from None
    if not isinstance(context, AudioCodecContext):
        raise ConfigError(
            f"encoder {codec!r} is neither 'vcfilter' nor an audio encoder; "
            "av.open writes ordinary video"
        )
    formats = context.codec.audio_formats
    if formats:
        context.format = formats[0].name
    context.sample_rate = rate
    context.layout = "stereo"
    context.time_base = Fraction(1, rate)
    context.options = dict(options)
    context.flags |= Flags.global_header.value
    return context


def options_of(options: object) -> EncoderOptions:
    """EncoderOptions from themselves or a mapping of their fields.

    Raises:
        ConfigError: it is neither, a name is unknown or a value is not what it must be.
    """
    if isinstance(options, EncoderOptions):
        return options
    if not isinstance(options, Mapping):
        raise ConfigError(f"options {options!r} are neither EncoderOptions nor a mapping")
    return EncoderOptions.from_mapping(options)


def rate_of(rate: Any) -> Fraction:
    """A positive rate as a Fraction.

    Raises:
        ConfigError: it is none.
    """
    try:
        value = rational(rate) if hasattr(rate, "numerator") else None
        if value is None:
            value = Fraction(rate).limit_denominator(_RATE_DENOMINATOR)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise ConfigError(f"rate {rate!r} is not a number") from None
    if value <= 0:
        raise ConfigError(f"rate {rate!r} is not positive")
    return value
