"""Writing neural files in PyAV's manner: add_stream, encode, mux."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from os import PathLike, fspath
from typing import IO, TYPE_CHECKING, Any, Self

import av
import av.error
import av.stream
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.codec import CodecContext
from av.codec.context import Flags
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgeError, BridgePacket, StreamInfo, StreamKind
from vcfilter.codec import Encoder, EncoderStatistics
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import EncoderOptions
from vcfilter.stream.pixels import PIXEL_FORMATS, PictureReader
from vcfilter.stream.raw import MediaMuxer, holds, open_muxer
from vcfilter.stream.source import reason_of
from vcfilter.stream.writer import NEURAL_CONTAINERS, Target, container_of, open_encoder

if TYPE_CHECKING:
    from vcfilter.stream.input import Stream, StreamPacket


class OutputPacket:
    """A packet that an output stream made; give it to OutputContainer.mux."""

    __slots__ = ("content", "stream")

    def __init__(self, stream: OutputStream, content: BridgePacket) -> None:
        self.stream = stream
        self.content = content

    @property
    def pts(self) -> int | None:
        """Presentation time in ticks of time_base."""
        return self.content.pts

    @property
    def dts(self) -> int | None:
        """Decoding time in ticks of time_base."""
        return self.content.dts

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self.content.time_base

    @property
    def is_keyframe(self) -> bool:
        """Decoding can start here."""
        return self.content.is_keyframe

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content.data)

    def __bytes__(self) -> bytes:
        return self.content.data


class OutputStream:
    """A stream that is written.

    Attributes:
        index: position in the file.
        metadata: tags, to be set before the first packet is muxed.
        info: what the container will say of it; None until that is known.
    """

    def __init__(self, index: int, info: StreamInfo | None = None) -> None:
        self.index = index
        self.info = info
        self.metadata: dict[str, str] = dict(info.metadata) if info else {}

    def __repr__(self) -> str:
        return f"<vcfilter.{type(self).__name__} #{self.index}>"


class NeuralStream(OutputStream):
    """A neural video stream that is written.

    Attributes:
        width, height: size; 0 takes the first frame's. Frames of another size are scaled.
        pix_fmt: "yuv420p" or "yuv420p10le"; None follows the first frame's depth.
        time_base: seconds per tick; None takes the first frame's, or one tick per frame.
        rate: frames per second.
        sample_aspect_ratio: None when unknown.
        rotation: clockwise rotation for display in degrees.
    """

    def __init__(self, index: int, rate: Fraction, options: EncoderOptions) -> None:
        super().__init__(index)
        self.width = self.height = 0
        self.pix_fmt: str | None = None
        self.time_base: Fraction | None = None
        self.rate = rate
        self.sample_aspect_ratio: Fraction | None = None
        self.rotation = 0
        self._options = options
        self._encoder: Encoder | None = None
        self._reader: PictureReader | None = None
        self._last: int | None = None

    @property
    def statistics(self) -> EncoderStatistics | None:
        """What was coded so far."""
        return self._encoder.statistics if self._encoder else None

    def encode(self, frame: VideoFrame | None = None) -> list[OutputPacket]:
        """Packets that are now ready; they come a segment at a time. None drains.

        A frame without pts follows the one before it by one frame duration.

        Raises:
            ConfigError: the size or a setting cannot be coded.
            MediaError: the times do not ascend.
        """
        if frame is None:
            return self._packets(self._encoder.encode(None)) if self._encoder else []
        if self.time_base is None:
            base = frame.time_base if frame.pts is not None else None
            self.time_base = Fraction(base) if base else 1 / self.rate
        pts = self._pts(frame)
        if self._reader is None:
            self._reader = self._open_reader(frame)
        planes = self._reader.read(frame, pts, self._ticks(frame.duration, frame.time_base))
        if self._encoder is None:
            fmt = self._reader.video_format
            assert fmt is not None
            self._encoder, self.info = open_encoder(
                fmt, self._options, self.time_base, self.rate, self.metadata
            )
        return self._packets(self._encoder.encode(planes))

    def _open_reader(self, frame: VideoFrame) -> PictureReader:
        depths = {name: depth for depth, name in PIXEL_FORMATS.items()}
        if self.pix_fmt is not None and self.pix_fmt not in depths:
            raise ConfigError(f"pix_fmt {self.pix_fmt!r} is not {' or '.join(depths)}")
        self.width, self.height = self.width or frame.width, self.height or frame.height
        return PictureReader(
            aspect=self.sample_aspect_ratio,
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

    def _ticks(self, ticks: int | None, time_base: Fraction | None) -> int:
        assert self.time_base is not None
        if not ticks:
            return 0
        return round(ticks * Fraction(time_base) / self.time_base) if time_base else ticks

    def _packets(self, packets: Iterable[Any]) -> list[OutputPacket]:
        assert self.time_base is not None
        return [
            OutputPacket(
                self,
                BridgePacket(
                    stream_index=self.index,
                    data=packet.data,
                    pts=packet.pts,
                    dts=packet.pts,
                    duration=packet.duration,
                    is_keyframe=packet.is_keyframe,
                    time_base=self.time_base,
                ),
            )
            for packet in packets
        ]


class AudioStream(OutputStream):
    """An audio stream that one of FFmpeg's encoders makes.

    Attributes:
        codec_context: PyAV's encoder; set its bit_rate, layout, format before the first frame.
    """

    def __init__(self, index: int, codec: str, rate: int, options: Mapping[str, str]) -> None:
        super().__init__(index)
        try:
            context = CodecContext.create(codec, "w")
        except (ValueError, av.error.FFmpegError):
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
        self.codec_context = context

    def encode(self, frame: AudioFrame | None = None) -> list[OutputPacket]:
        """Packets that are now ready; None drains."""
        context = self.codec_context
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
        return [OutputPacket(self, by_value(packet, self.index)) for packet in packets]


class OutputContainer:
    """A file that is written; it gets its name when it is closed. A context manager.

    Leaving the block by an exception removes what was written.

    Args:
        file: path, or binary file object (written in one go if it cannot seek; not closed).
        format: FFmpeg's name of the container; None follows the extension.

    Attributes:
        metadata: the file's tags, to be set before the first packet is muxed.

    Raises:
        ConfigError: the container cannot hold a neural stream.
        MediaError: the file cannot be written.
    """

    def __init__(self, file: str | PathLike[str] | IO[bytes], format: str | None = None) -> None:
        self._target: Target | None = None
        self._file: Any = file
        name = fspath(file) if isinstance(file, str | PathLike) else getattr(file, "name", "")
        self.name = str(name) or "output"
        self.format_name = container_of(self.name if format is None else "", format, "matroska")
        if self.format_name not in NEURAL_CONTAINERS:
            raise ConfigError(f"{self.name}: {self.format_name} cannot hold a neural stream")
        if isinstance(file, str | PathLike):
            self._target = Target(fspath(file), overwrite=True)
            self._file = self._target.path
        self.metadata: dict[str, str] = {}
        self.streams: list[OutputStream] = []
        self._templates: dict[int, OutputStream] = {}
        self._kept: list[object] = []  # templates, so that their identity stays theirs
        self._waiting: list[BridgePacket] = []
        self._muxer: MediaMuxer | None = None
        self._closed = False

    def add_stream(
        self,
        codec_name: str,
        rate: int | Fraction | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Add a stream that is encoded.

        Args:
            codec_name: "vcfilter", or one of FFmpeg's audio encoders ("aac", "libopus").
            rate: frames per second (25 if None), or audio samples per second (48000).
            options: for vcfilter the fields of EncoderOptions, as values or as text
                ("qp": "32", "preset": "fast"); else FFmpeg's options.

        Returns:
            NeuralStream or AudioStream.

        Raises:
            ConfigError: codec or option is unknown, or the header is written already.
        """
        self._before_header()
        stream: OutputStream
        if codec_name == "vcfilter":
            frame_rate = Fraction(rate or 25)
            stream = NeuralStream(
                len(self.streams), frame_rate, parse_options(options or {}, frame_rate)
            )
        else:
            texts = {key: str(value) for key, value in (options or {}).items()}
            stream = AudioStream(len(self.streams), codec_name, int(rate or 48000), texts)
        self.streams.append(stream)
        return stream

    def add_stream_from_template(self, template: Stream | av.stream.Stream) -> OutputStream:
        """Add a stream whose packets are copied; mux() takes the template's packets then.

        Args:
            template: stream of a container that vcfilter or PyAV opened for reading.

        Raises:
            ConfigError: the container cannot hold it, or the header is written already.
        """
        self._before_header()
        info = template.info if hasattr(template, "info") else info_of(template)
        if info.kind != "attachment" and not holds(self.format_name, info):
            raise ConfigError(f"{self.format_name} cannot hold {info.kind} {info.codec}")
        stream = OutputStream(len(self.streams), info)
        self.streams.append(stream)
        self._templates[id(template)] = stream
        self._kept.append(template)
        return stream

    def mux(
        self,
        packets: OutputPacket | StreamPacket | av.Packet[Any] | Iterable[Any],
    ) -> None:
        """Write packets, in the order of their times within each stream.

        Nothing is written until each encoded stream has made its first packet.

        Raises:
            MediaError: the file cannot be written.
            ConfigError: a packet's stream was not added.
        """
        if self._closed:
            raise ConfigError(f"{self.name} is closed")
        if isinstance(packets, Iterable) and not isinstance(packets, av.Packet):
            for packet in packets:
                self.mux(packet)
            return
        content = self._content(packets)
        if content is None:
            return
        self._waiting.append(content)
        if all(stream.info is not None for stream in self.streams):
            self._flush()

    def close(self) -> None:
        """Write what is left and complete the file."""
        if self._closed:
            return
        self._closed = True
        try:
            self._check_streams()
            self._flush()
            assert self._muxer is not None
            try:
                self._muxer.close()
            except (BridgeError, OSError) as error:
                raise self._failure(error) from error
            if self._target:
                self._target.complete()
        except BaseException:
            self._discard()
            raise

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

    def _content(self, packet: Any) -> BridgePacket | None:
        """The packet by value, for its stream here; None for an empty one."""
        if isinstance(packet, OutputPacket):
            return packet.content
        if isinstance(packet, BridgePacket):
            return packet
        stream = self._templates.get(id(packet.stream))
        if stream is None:
            raise ConfigError(f"no stream was added from the template of {packet!r}")
        if isinstance(packet, av.Packet):
            return by_value(packet, stream.index) if packet.size else None
        content: BridgePacket | None = packet.content
        if content is None:
            return None
        return replace(content, stream_index=stream.index)

    def _flush(self) -> None:
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
            self._waiting.clear()
        except (BridgeError, OSError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> MediaError:
        return MediaError(f"{self.name} cannot be written: {reason_of(error)}")

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


def parse_options(options: Mapping[str, Any], frame_rate: Fraction) -> EncoderOptions:
    """EncoderOptions from values or texts, as PyAV's options are.

    Raises:
        ConfigError: a name is unknown, or a value is no number or out of range.
    """
    kinds: dict[str, Any] = {
        "qp": int,
        "quality": float,
        "bitrate": int,
        "keyint": int,
        "scenecut": lambda value: str(value).lower() not in ("0", "false", "no", "off"),
        "preset": str,
        "threads": int,
        "device": str,
        "weights": str,
    }
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in kinds:
            raise ConfigError(f"option {name!r} is not one of {', '.join(kinds)}")
        try:
            values[name] = None if value is None else kinds[name](value)
        except (TypeError, ValueError):
            raise ConfigError(f"option {name}={value!r} is not a number") from None
    return EncoderOptions(frame_rate=frame_rate, **values)


def by_value(packet: av.Packet[Any], index: int) -> BridgePacket:
    """PyAV's packet as the bridge's."""
    return BridgePacket(
        stream_index=index,
        data=bytes(packet),
        pts=packet.pts,
        dts=packet.dts,
        duration=packet.duration or 0,
        is_keyframe=packet.is_keyframe,
        time_base=Fraction(packet.time_base),
    )


def info_of(stream: Any) -> StreamInfo:
    """What PyAV knows of an input stream, for the bridge."""
    kind: StreamKind = stream.type
    context = stream.codec_context
    if context is None:
        raise ConfigError(f"stream {stream.index} ({kind}) has no codec that PyAV knows")
    audio = kind == "audio"
    return StreamInfo(
        kind=kind,
        codec=context.codec.canonical_name,
        extradata=context.extradata or b"",
        time_base=Fraction(stream.time_base),
        disposition=int(stream.disposition),
        metadata=dict(stream.metadata),
        width=context.width if kind == "video" else 0,
        height=context.height if kind == "video" else 0,
        frame_rate=stream.average_rate if kind == "video" else None,
        sample_rate=context.sample_rate if audio else 0,
        channels=context.layout.nb_channels if audio else 0,
        sample_format=context.format.name if audio else "",
        frame_size=context.frame_size if audio else 0,
    )
