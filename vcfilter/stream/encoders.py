"""Packets from frames: FFmpeg's encoders through PyAV, and the neural one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate

import av.error
from av.codec import Codec, CodecContext
from av.codec.context import Flags
from av.format import ContainerFormat
from av.format import Flags as FormatFlags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vcfilter._bridge import BridgePacket, StreamInfo
from vcfilter.codec import Encoder, EncoderStatistics, FrameRecord, PassLog
from vcfilter.codec.executor import Executor
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import FieldOrder, Frame, VideoFormat
from vcfilter.options import EncoderOptions, Runtime
from vcfilter.stream.containers import container_named
from vcfilter.stream.packets import bridge_packet, from_av
from vcfilter.stream.pixels import JPEG_MATRIX, PIXEL_FORMATS, convert, to_video_frame
from vcfilter.stream.report import Log
from vcfilter.stream.resume import EarlierRun
from vcfilter.stream.scheduling import scheduling_kept
from vcfilter.stream.source import reason_of
from vcfilter.stream.timestamps import rational
from vcfilter.stream.track import neural_track, video_track

logger = logging.getLogger(__name__)

DEFAULT_CRF = {"libx264": 18, "libx265": 20, "libsvtav1": 24, "libvpx-vp9": 24, "libaom-av1": 24}
"""Constant quality of encoders that have one, when none is asked for."""

_OTHER_CONTROL = ("qp", "b")  # options by which a user asks for anything but a crf
_EVEN_ONLY = ("libx264", "libx265")  # refuse odd sizes in 4:2:0
_ODD_FORMATS = {8: "yuv444p", 10: "yuv444p10le"}
_PARAMS = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}
_TOP = (FieldOrder.TOP_FIRST, FieldOrder.BOTTOM_CODED_TOP_SHOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaCodec:
    """An encoder of FFmpeg's.

    Args:
        name: as in "libx264".
        options: FFmpeg's options of the encoder ("crf": "18").
        pixel_format: FFmpeg's name; None takes the first that keeps the frames best.
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
        """An encoder at a constant quality: near transparent if crf is None and options do not say
        otherwise.

        Raises:
            ConfigError: there is a crf, and options ask for another rate control.
        """
        chosen: dict[str, str] = {}
        other = next((each for each in _OTHER_CONTROL if each in (options or {})), None)
        if crf is not None and other is not None:
            raise ConfigError(f"a crf and {other}={(options or {})[other]} exclude each other")
        if crf is not None or (name in DEFAULT_CRF and other is None):
            chosen["crf"] = f"{DEFAULT_CRF[name] if crf is None else crf:g}"
            if name.startswith("libvpx"):
                chosen["b"] = "0"  # crf alone rules
        return cls(name=name, options={**chosen, **(options or {})}, pixel_format=pixel_format)


def default_codec(container: str, video_format: VideoFormat) -> MediaCodec:
    """What decoded frames are coded with when nothing is asked for."""
    known = container_named(container)
    name = known.encoder or "libx264"
    odd = video_format.width % 2 or video_format.height % 2
    pixel_format = _ODD_FORMATS[video_format.bit_depth] if odd and name in _EVEN_ONLY else None
    if name in DEFAULT_CRF:
        return MediaCodec.named(name, None, pixel_format, known.options)
    return MediaCodec(name=name, options=known.options, pixel_format=pixel_format)


class FrameEncoder:
    """Codes frames with one of FFmpeg's encoders.

    Args:
        codec: which, and how; None takes the container's.
        container: FFmpeg's name of the container that the packets go to.
        threads: threads of the encoder; 0 leaves it to FFmpeg.
        log: where warnings go.

    Raises:
        ConfigError: no such encoder is known, or it codes no video.
    """

    def __init__(
        self, codec: MediaCodec | None, container: str, threads: int = 0, log: Log = logger
    ) -> None:
        self._codec = codec
        self._container = container
        self._threads = threads
        self._log = log
        if codec is not None:
            _encoder_named(codec.name)
        self._reformatter = VideoReformatter()
        self._context: VideoCodecContext | None = None
        self._format: VideoFormat | None = None
        self._pixel_format = ""
        self._time_base = Fraction(1, 1000)

    def nearest_rate(self, frame_rate: Fraction | None) -> Fraction | None:
        """The frame rate that the encoder takes in place of another; None: it takes any times."""
        name = self._codec.name if self._codec else container_named(self._container).encoder
        rates = [rational(rate) for rate in _encoder_named(name or "libx264").frame_rates or ()]
        wanted = frame_rate or Fraction(25)
        return min(
            (rate for rate in rates if rate), key=lambda rate: abs(rate - wanted), default=None
        )

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        """Open the encoder; returns the track for its packets.

        Raises:
            ConfigError: the encoder refuses the size, the pixel format or an option.
        """
        fmt = video_format
        codec = self._codec or default_codec(self._container, fmt)
        if self._codec is None and codec.pixel_format:
            self._log.warning(
                f"{fmt.width}x{fmt.height} is odd: {codec.name} codes it as {codec.pixel_format}"
            )
        self._codec, self._format, self._time_base = codec, fmt, time_base
        encoder = _encoder_named(codec.name)
        self._pixel_format = codec.pixel_format or _best_format(encoder, fmt)
        self._context = context = self._opened(encoder, codec, frame_rate)
        return replace(
            video_track(fmt, time_base, frame_rate),
            codec=encoder.canonical_name,
            codec_tag=_tag(context) if encoder.name == "rawvideo" else "",
            extradata=context.extradata or b"",
            pixel_format=self._pixel_format,
            colorspace=int(context.colorspace),
            color_range=int(context.color_range),
            video_delay=int(context.reorder_depth),
        )

    def _opened(
        self, encoder: Codec, codec: MediaCodec, frame_rate: Fraction | None
    ) -> VideoCodecContext:
        fmt = self._format
        assert fmt is not None
        context = CodecContext.create(encoder.name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = fmt.width, fmt.height
        context.time_base = self._time_base
        if frame_rate:
            context.framerate = frame_rate
        num, den = fmt.sample_aspect_ratio
        options = {**codec.options, **_display_options(codec, fmt, self._log)}
        try:
            context.pix_fmt = self._pixel_format
            if num:
                context.sample_aspect_ratio = Fraction(num, den)
            is_rgb = context.format is not None and context.format.is_rgb
            is_jpeg = self._pixel_format.startswith("yuvj")
            context.colorspace = 0 if is_rgb else JPEG_MATRIX if is_jpeg else fmt.colorspace
            context.color_range = 2 if is_rgb or is_jpeg else fmt.color_range
            context.color_primaries = fmt.color_primaries
            context.color_trc = fmt.color_trc
            context.thread_count = self._threads
            context.options = options
            flags = FormatFlags(ContainerFormat(self._container, "w").flags)
            if flags & FormatFlags.global_header:
                context.flags |= Flags.global_header.value
            with scheduling_kept():
                context.open()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            chosen = " ".join(f"{key}={value}" for key, value in codec.options.items())
            text = f"encoder {codec.name} refuses {fmt.width}x{fmt.height} {self._pixel_format}"
            if "420" in self._pixel_format and (fmt.width % 2 or fmt.height % 2):
                raise ConfigError(
                    f"{text}: the size is odd; --pix-fmt {_ODD_FORMATS[fmt.bit_depth]} codes it"
                ) from error
            raise ConfigError(f"{text} {chosen}".rstrip() + f": {reason_of(error)}") from error
        unknown = [key for key in codec.options if key in context.options]  # left over
        if unknown:
            raise ConfigError(f"encoder {codec.name} has no option {', '.join(unknown)}")
        return context

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        """Packets that are now ready, in the order of their dts; None drains.

        Raises:
            MediaError: the encoder failed.
        """
        context, fmt, codec = self._context, self._format, self._codec
        assert context is not None
        assert fmt is not None
        assert codec is not None
        av_frame = None
        if frame is not None:
            av_frame = to_video_frame(frame, fmt, self._time_base)
            av_frame.pict_type = PictureType.NONE  # the encoder chooses
            av_frame = convert(av_frame, self._pixel_format, self._reformatter)
        try:
            packets = context.encode(av_frame)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"encoder {codec.name} failed: {reason_of(error)}") from error
        return [replace(from_av(packet, 0), time_base=self._time_base) for packet in packets]


def _encoder_named(name: str) -> Codec:
    try:
        encoder = Codec(name, "w")
    except (ValueError, RuntimeError, av.error.FFmpegError):
        raise ConfigError(
            f"encoder {name!r} is unknown; libx264, libx265, libsvtav1, ffv1 or rawvideo, for "
            "instance, are there"
        ) from None
    if encoder.type != "video":
        raise ConfigError(f"encoder {name!r} codes {encoder.type}, not video")
    return encoder


def _best_format(encoder: Codec, fmt: VideoFormat) -> str:
    """The stream's own pixel format if the encoder takes it, else its first YUV or any."""
    known = [each.name for each in encoder.video_formats or ()]
    wanted = [PIXEL_FORMATS[fmt.bit_depth], "yuv420p10le", "yuv420p", "yuvj420p"]
    if fmt.bit_depth == 8:
        wanted.remove("yuv420p10le")
    if known and known[0].startswith("yuvj"):  # JPEG is full range
        wanted.insert(0, "yuvj420p")
    return next((name for name in wanted if name in known or not known), (known or wanted)[0])


def _display_options(codec: MediaCodec, fmt: VideoFormat, log: Log) -> dict[str, str]:
    """The encoder's options for what PyAV has no field for: HDR10 and field order.

    Options that the user set stay as they are; what the encoder cannot state is logged.
    """
    options: dict[str, str] = {}
    key = _PARAMS.get(codec.name)
    texts: list[str] = []
    if fmt.mastering is not None or fmt.content_light is not None:
        if codec.name == "libx265":
            texts += _x265_hdr(fmt)
        elif codec.name == "libsvtav1":
            texts += _svtav1_hdr(fmt)
        else:
            log.warning(f"{codec.name} cannot state HDR10's brightness: only the container may")
    if fmt.field_order > FieldOrder.PROGRESSIVE:
        if codec.name == "libx264":
            options["flags"] = codec.options.get("flags", "") + "+ildct+ilme"
            texts.append("tff=1" if fmt.field_order in _TOP else "bff=1")
        else:
            log.warning(f"{codec.name} codes the interlaced frames as progressive ones")
    if codec.name == "libx265":
        texts.append("log-level=error")  # x265 prints past FFmpeg's log
    if key and texts:
        given = [codec.options[key]] if key in codec.options else []
        options[key] = ":".join([*texts, *given])
    return options


def _x265_hdr(fmt: VideoFormat) -> list[str]:
    texts = []
    mastering, light = fmt.mastering, fmt.content_light
    if mastering is not None:
        (rx, ry), (gx, gy), (bx, by) = mastering.primaries
        (wx, wy), (low, high) = mastering.white_point, mastering.luminance
        texts.append(
            f"master-display=G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy})L({high},{low})"
        )
    if light is not None:
        texts.append(f"max-cll={light.max_content},{light.max_average}")
    return texts


def _svtav1_hdr(fmt: VideoFormat) -> list[str]:
    texts = []
    mastering, light = fmt.mastering, fmt.content_light
    if mastering is not None:
        red, green, blue, white = (
            f"({x / 50000:.5f},{y / 50000:.5f})"
            for x, y in (*mastering.primaries, mastering.white_point)
        )
        low, high = (value / 10000 for value in mastering.luminance)
        texts.append(f"mastering-display=G{green}B{blue}R{red}WP{white}L({high:.4f},{low:.4f})")
    if light is not None:
        texts.append(f"content-light={light.max_content},{light.max_average}")
    return texts


def _tag(context: VideoCodecContext) -> str:
    """The FourCC that tells raw video's pixel format."""
    tag = context.codec_tag
    return "" if tag in ("", "\0\0\0\0") else str(tag)


class NeuralEncoder:
    """Codes frames with the neural codec.

    Args:
        options: their frame rate is replaced by the source's, where that is known.
        runtime: where the networks run.
        pass_log: of a first pass.
        metadata: tags of the track.
        executor: gives, for frames of a format, what codes GOPs beside each other, each on one
            thread; None: this process alone, on the runtime's threads.
        earlier: a run over the same frames that is gone on with.

    Attributes:
        encoder: None before open().
        coded_frame: called when a frame is coded; to be set before open().
        keeps_log: whether the encoder's pass log will be asked for.
    """

    def __init__(
        self,
        options: EncoderOptions,
        runtime: Runtime | None = None,
        pass_log: PassLog | None = None,
        metadata: Mapping[str, str] | None = None,
        executor: Callable[[VideoFormat], Executor | None] = lambda _: None,
        earlier: EarlierRun | None = None,
    ) -> None:
        self._options = options
        self._executor = executor
        self._earlier = earlier
        sizes = (len(packet.data) for packet in earlier.packets) if earlier else ()
        self._finished_bytes = [0, *accumulate(sizes)]  # of the first frames
        self._runtime = runtime
        self._pass_log = pass_log
        self._metadata = dict(metadata or {})
        self._time_base = Fraction(1, 1000)
        self.encoder: Encoder | None = None
        self.coded_frame: Callable[[FrameRecord], None] | None = None
        self.keeps_log = False

    @property
    def statistics(self) -> EncoderStatistics | None:
        """Totals of what was coded so far; no records of single frames."""
        return self.encoder.statistics if self.encoder else None

    @property
    def finished(self) -> int:
        """Frames that are taken from the earlier run."""
        return self._earlier.finished if self._earlier else 0

    def finished_of(self, frames: int) -> tuple[int, int]:
        """How many of the first so many frames are taken from the earlier run, and their bytes."""
        frames = min(frames, self.finished)
        return frames, self._finished_bytes[frames]

    @property
    def is_skipping(self) -> bool:
        """Whether frames pass that the earlier run coded."""
        return self.encoder is not None and self.encoder.is_skipping

    @property
    def delay(self) -> int | None:
        """Most frames that are held before a packet comes; None before open()."""
        return self.encoder.delay if self.encoder else None

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        """Get ready; returns the track for the packets.

        Raises:
            ConfigError: the earlier run coded other frames, or with another model.
        """
        options = self._options
        if frame_rate:
            options = replace(options, frame_rate=frame_rate)
        runtime, executor = self._runtime, self._executor(video_format)
        if executor is not None:
            runtime = replace(runtime or Runtime(), threads=1)
        self.encoder = Encoder(
            video_format,
            options,
            runtime=runtime,
            pass_log=self._pass_log,
            executor=executor,
            finished=self._earlier.packets if self._earlier else (),
            coded_frame=self.coded_frame,
        )
        if self._earlier and self._earlier.extradata != self.encoder.extradata:
            raise ConfigError(
                f"{self._earlier.path} holds frames of another format, or of another model: remove "
                "it, or give its source and model"
            )
        self._time_base = time_base
        return neural_track(
            video_format, self.encoder.extradata, time_base, frame_rate, self._metadata
        )

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        """Packets that are now ready; None drains."""
        encoder = self.encoder
        assert encoder is not None
        packets = encoder.encode(frame)
        encoder.statistics.records.clear()  # a live stream has no end
        if not self.keeps_log:
            encoder.statistics.segments.clear()
        return [bridge_packet(packet, 0, self._time_base) for packet in packets]
