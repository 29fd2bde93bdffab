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
from av.format import ContainerFormat

from vcfilter._bridge import BridgeError, BridgePacket, Muxer, StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import EncoderOptions, Runtime
from vcfilter.stream.containers import (
    MATROSKA,
    check_kind,
    container_named,
    container_of,
    holds,
    need_neural,
    open_muxer,
)
from vcfilter.stream.output_stream import AudioStream, NeuralStream, OutputStream, rate_of
from vcfilter.stream.packets import StreamPacket, from_av
from vcfilter.stream.source import reason_of
from vcfilter.stream.target import Target
from vcfilter.stream.timestamps import rational

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0


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
        ConfigError: the container cannot hold a neural stream, or an argument is of the wrong
            type.
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
        check_kind("runtime", runtime, Runtime, "a Runtime")
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
            frame_rate = rate_of(25 if rate is None else rate)
            stream = goal = NeuralStream(index, frame_rate, options or {}, self._runtime, tick)
        else:
            if isinstance(options, EncoderOptions):
                raise ConfigError(f"encoder {codec_name!r} takes FFmpeg's options as a mapping")
            texts = {key: str(value) for key, value in (options or {}).items()}
            samples = rate_of(48000 if rate is None else rate)
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
        moved = sum(getattr(stream, "moved_count", 0) for stream in self.streams)
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
            late = time.monotonic() - self._flushed > _FLUSH_SECONDS
            if self._waiting and (late or self._is_live()):
                self._muxer.flush()  # readable up to here, should the program end
                if hasattr(self._file, "flush"):
                    self._file.flush()
                self._flushed = time.monotonic()
            self._waiting.clear()
        except (BridgeError, OSError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise self._failure(error) from error

    def _is_live(self) -> bool:
        """Whether each packet is handed on at once: with low delay, but not into an ordinary
        Matroska file, where it has no effect but a cluster per packet."""
        if not any(stream.delay == 0 for stream in self.streams):
            return False
        seekable = getattr(self._file, "seekable", lambda: False)()
        return not (self.format_name == MATROSKA and seekable)

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
