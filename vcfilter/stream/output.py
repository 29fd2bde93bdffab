"""Writing neural files in PyAV's manner: add_stream, encode, mux."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from os import PathLike, fspath
from typing import IO, Any, Self

import av
import av.error
import av.stream
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.codec import CodecContext
from av.codec.context import Flags
from av.format import ContainerFormat
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgeError, BridgePacket, Muxer, StreamInfo
from vcfilter.codec import EncoderStatistics
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import EncoderOptions, Runtime
from vcfilter.stream.containers import (
    MATROSKA,
    container_named,
    container_of,
    holds,
    need_neural,
    open_muxer,
)
from vcfilter.stream.encoders import NeuralEncoder
from vcfilter.stream.packets import StreamPacket, from_av
from vcfilter.stream.pixels import PIXEL_FORMATS, PictureReader
from vcfilter.stream.source import reason_of
from vcfilter.stream.target import Target
from vcfilter.stream.timestamps import Rising, rational

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0
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
        self._reader: PictureReader | None = None
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
        """What was coded so far."""
        return self._encoder.statistics if self._encoder else None

    @property
    def drained(self) -> bool:
        return self._drained or self._encoder is None

    @property
    def moved(self) -> int:
        """Frames whose time was moved since the container's clock is too coarse for it."""
        return self._rising.moved if self._rising else 0

    def encode(self, frame: VideoFrame | None = None) -> list[StreamPacket]:
        """Packets that are now ready; they come a segment at a time. None drains.

        A frame without pts follows the one before it by one frame duration.

        Raises:
            ConfigError: the size or a setting cannot be coded, or it is no av.VideoFrame.
            MediaError: the times do not ascend.
        """
        if frame is None:
            self._drained = True
            return self._packets(self._encoder.encode(None)) if self._encoder else []
        if not isinstance(frame, VideoFrame):
            raise ConfigError(f"frame of {type(frame).__name__} is not an av.VideoFrame")
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

    def _open_reader(self, frame: VideoFrame) -> PictureReader:
        depths = {name: depth for depth, name in PIXEL_FORMATS.items()}
        if self.pix_fmt is not None and self.pix_fmt not in depths:
            raise ConfigError(f"pix_fmt {self.pix_fmt!r} is not {' or '.join(depths)}")
        self.width, self.height = self.width or frame.width, self.height or frame.height
        return PictureReader(
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
        """Packets that are now ready; None drains. A frame without pts follows the one before it.

        Raises:
            ConfigError: it is no av.AudioFrame.
            MediaError: the encoder failed.
        """
        context = self.codec_context
        if frame is not None and not isinstance(frame, AudioFrame):
            raise ConfigError(f"frame of {type(frame).__name__} is not an av.AudioFrame")
        if frame is None:
            if self._drained:
                return []
            self._drained = True
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


class OutputContainer:
    """A file that is written; it gets its name when it is closed. A context manager.

    Leaving the block by an exception removes what was written, as does losing the last reference
    to an open container.

    Args:
        file: path, or binary file object (written in one go if it cannot seek; not closed).
        format: FFmpeg's name of the container; None follows the extension.
        runtime: where the networks run.

    Attributes:
        name: of the file.
        format_name: FFmpeg's name of the container.
        metadata: the file's tags, to be set before the first packet is muxed.
        streams: those that were added.

    Raises:
        ConfigError: the container cannot hold a neural stream.
        MediaError: the file cannot be written.
    """

    __slots__ = (
        "_closed", "_file", "_flushed", "_kept", "_muxer", "_runtime", "_target", "_templates",
        "_waiting", "_written", "format_name", "metadata", "name", "streams",
    )  # fmt: skip

    def __init__(
        self,
        file: str | PathLike[str] | IO[bytes],
        format: str | None = None,
        *,
        runtime: Runtime | None = None,
    ) -> None:
        self._target: Target | None = None
        self._file: Any = file
        name = fspath(file) if isinstance(file, str | PathLike) else getattr(file, "name", "")
        self.name = str(name) or "output"
        if not isinstance(file, str | PathLike) and not hasattr(file, "write"):
            raise ConfigError(f"file {file!r} is neither a path nor a binary file object")
        self.format_name = container_of(self.name if format is None else "", format, MATROSKA)
        need_neural(self.name, self.format_name)
        if isinstance(file, str | PathLike):
            self._target = Target(fspath(file), overwrite=True)
            self._file = self._target.file
        self._runtime = runtime
        self.metadata: dict[str, str] = {}
        self.streams: list[OutputStream] = []
        self._templates: dict[int, OutputStream] = {}
        self._kept: list[object] = []  # templates, so that their identity stays theirs
        self._waiting: list[BridgePacket] = []
        self._muxer: Muxer | None = None
        self._closed = False
        self._written = 0
        self._flushed = time.monotonic()

    @property
    def format(self) -> ContainerFormat:
        """The container as PyAV's object."""
        return ContainerFormat(self.format_name, "w")

    def add_stream(
        self,
        codec_name: str,
        rate: int | float | Fraction | None = None,
        options: EncoderOptions | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """Add a stream that is encoded.

        Args:
            codec_name: "vcfilter", or one of FFmpeg's audio encoders ("aac", "libopus").
            rate: frames per second (25 if None), or audio samples per second (48000).
            options: for vcfilter EncoderOptions or its fields, as values or as text
                ("qp": "32", "preset": "fast"); else FFmpeg's options.
            settings: attributes of the stream (width, height, pix_fmt, ...), or of the audio
                encoder (layout, format, bit_rate).

        Returns:
            NeuralStream or AudioStream.

        Raises:
            ConfigError: codec, option or setting is unknown or of the wrong type, or the header
                is written already.
        """
        self._before_header()
        stream: OutputStream
        goal: Any
        index = len(self.streams)
        if codec_name == "vcfilter":
            tick = container_named(self.format_name).tick
            frame_rate = _rate_of(25 if rate is None else rate)
            stream = goal = NeuralStream(index, frame_rate, options or {}, self._runtime, tick)
        else:
            if isinstance(options, EncoderOptions):
                raise ConfigError(f"encoder {codec_name!r} takes FFmpeg's options as a mapping")
            texts = {key: str(value) for key, value in (options or {}).items()}
            samples = _rate_of(48000 if rate is None else rate)
            stream = AudioStream(index, str(codec_name), int(samples), texts)
            goal = stream.codec_context
        for name, value in settings.items():
            if not hasattr(goal, name):
                raise ConfigError(f"{codec_name} has no setting {name!r}")
            setattr(goal, name, value)
        self.streams.append(stream)
        return stream

    def add_stream_from_template(self, template: Any) -> OutputStream:
        """Add a stream whose packets are copied; mux() takes the template's packets then.

        Args:
            template: stream of a container that vcfilter or PyAV opened for reading.

        Raises:
            ConfigError: the container cannot hold it, or the header is written already.
        """
        self._before_header()
        if not isinstance(template, av.stream.Stream) and not hasattr(template, "info"):
            raise ConfigError(f"template {template!r} is not a stream")
        info = template.info if hasattr(template, "info") else info_of(template)
        if info.kind != "attachment" and not holds(self.format_name, info):
            raise ConfigError(f"{self.format_name} cannot hold {info.kind} {info.codec}")
        stream = OutputStream(len(self.streams), info)
        self.streams.append(stream)
        self._templates[id(template)] = stream
        self._kept.append(template)
        return stream

    def mux(self, packets: StreamPacket | av.Packet[Any] | Iterable[Any]) -> None:
        """Write packets, in the order of their times within each stream.

        A packet goes to the stream it belongs to: one of this container, or the one that was
        added from its template. Nothing is written until each encoded stream has made its first
        packet.

        Raises:
            MediaError: the file cannot be written.
            ConfigError: a packet's stream was not added, or it is no packet.
        """
        if self._closed:
            raise ConfigError(f"{self.name} is closed")
        if isinstance(packets, StreamPacket | av.Packet):
            self._mux_one(packets)
        elif isinstance(packets, Iterable) and not isinstance(packets, str | bytes):
            for packet in packets:
                self.mux(packet)
        else:
            raise ConfigError(f"{packets!r} is not a packet")

    def mux_one(self, packet: StreamPacket | av.Packet[Any]) -> None:
        """Write one packet, as mux()."""
        self.mux(packet)

    def _mux_one(self, packet: StreamPacket | av.Packet[Any]) -> None:
        content = self._content(packet)
        if content is None:
            return
        self._waiting.append(content)
        if all(stream.info is not None for stream in self.streams):
            self._write()

    def close(self) -> None:
        """Drain the encoders, write what is left and complete the file.

        Raises:
            MediaError: an encoded stream got no frame, nothing was written, or the file cannot
                be completed.
        """
        if self._closed:
            return
        try:
            self._check_streams()
            for stream in self.streams:
                if not stream.drained:
                    self.mux(stream.encode(None))
            self._closed = True
            self._write()
            if not self._written:
                raise MediaError(f"{self.name}: no packet was written")
            assert self._muxer is not None
            try:
                self._muxer.close()
            except (BridgeError, OSError) as error:
                raise self._failure(error) from error
            if self._target:
                self._target.complete()
        except BaseException:
            self._closed = True
            self._discard()
            raise
        moved = sum(getattr(stream, "moved", 0) for stream in self.streams)
        if moved:
            logger.warning(
                "%s: %d frames lie closer together than %s counts time: moved",
                self.name, moved, self.format_name,
            )  # fmt: skip

    def _check_streams(self) -> None:
        """Raise MediaError if an encoded stream got no frame."""
        for stream in self.streams:
            if stream.info is None:
                raise MediaError(f"{self.name}: stream {stream.index} got no frame")
        if not self.streams:
            raise MediaError(f"{self.name}: no stream was added")

    def abort(self) -> None:
        """Give up: what was written is removed."""
        self._closed = True
        self._discard()

    def _discard(self) -> None:
        if self._muxer is not None:
            self._muxer.abort()
        if self._target:
            self._target.discard()

    def _content(self, packet: StreamPacket | av.Packet[Any]) -> BridgePacket | None:
        """The packet by value, for its stream here; None for an empty one."""
        origin = packet.stream
        stream: OutputStream | None = self._templates.get(id(origin))
        if stream is None and isinstance(origin, OutputStream) and origin in self.streams:
            stream = origin
        if stream is None:
            raise ConfigError(f"the stream of {packet!r} is none of this container")
        if isinstance(packet, av.Packet):
            return from_av(packet, stream.index) if packet.size else None
        content = packet.content
        return None if content is None else replace(content, stream_index=stream.index)

    def _write(self) -> None:
        try:
            if self._muxer is None:
                self._muxer = muxer = open_muxer(self._file, self.format_name)
                for stream in self.streams:
                    assert stream.info is not None
                    muxer.add_stream(replace(stream.info, metadata=stream.metadata))
                muxer.metadata.update(self.metadata)
                muxer.write_header()
            for packet in self._waiting:
                self._muxer.write_packet(packet)
                self._written += 1
            if self._waiting and time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._muxer.flush()  # readable up to here, should the program end
                self._flushed = time.monotonic()
            self._waiting.clear()
        except (BridgeError, OSError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> MediaError:
        reason = reason_of(error)
        if self._target:
            reason = reason.replace(f"{self._target.path}: ", "")
        return MediaError(f"{self.name} cannot be written: {reason}")

    def _before_header(self) -> None:
        if self._muxer is not None:
            raise ConfigError(f"{self.name}: streams are added before the first packet is muxed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


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


def _rate_of(rate: Any) -> Fraction:
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


def info_of(stream: Any) -> StreamInfo:
    """What PyAV knows of an input stream, for the bridge.

    Raises:
        ConfigError: PyAV knows no codec of it.
    """
    kind = stream.type
    context = stream.codec_context
    if context is None:
        raise ConfigError(f"stream {stream.index} ({kind}) has no codec that PyAV knows")
    audio = kind == "audio"
    return StreamInfo(
        kind=kind,
        codec=context.codec.canonical_name,
        extradata=context.extradata or b"",
        time_base=rational(stream.time_base) or Fraction(1, 1000),
        disposition=int(stream.disposition),
        metadata=dict(stream.metadata),
        width=context.width if kind == "video" else 0,
        height=context.height if kind == "video" else 0,
        frame_rate=rational(stream.average_rate) if kind == "video" else None,
        sample_rate=context.sample_rate if audio else 0,
        channels=context.layout.nb_channels if audio else 0,
        sample_format=context.format.name if audio else "",
        frame_size=context.frame_size if audio else 0,
    )
