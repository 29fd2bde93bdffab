"""Writing files: the neural coder's packets, and targets that appear only when complete."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol

import av

from vcfilter._bridge import BridgePacket, Chapter, StreamInfo
from vcfilter.codec import Encoder, EncoderStatistics, PassLog
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import EncoderOptions
from vcfilter.stream.raw import RAW, MediaMuxer, open_muxer
from vcfilter.stream.source import PIPE, reason_of
from vcfilter.stream.streams import StreamCopier, shifted
from vcfilter.stream.track import neural_track

CONTAINERS = {
    ".mkv": "matroska",
    ".mk3d": "matroska",
    ".mka": "matroska",
    ".webm": "webm",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".avi": "avi",
    ".nut": "nut",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".flv": "flv",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".ogv": "ogg",
    ".mxf": "mxf",
    ".wmv": "asf",
    ".h264": "h264",
    ".h265": "hevc",
    ".yuv": "rawvideo",
    ".y4m": "yuv4mpegpipe",
    ".vcf": RAW,
}
"""FFmpeg's container for each file extension; -f chooses any other."""

_part_numbers = count()

NEURAL_CONTAINERS = ("matroska", "nut", "avi", "mov", RAW)
"""Containers that keep a VCF1 track."""


def container_of(target: str, chosen: str | None, default: str) -> str:
    """FFmpeg's name of the target's container.

    Args:
        chosen: given by the user; goes before the extension.
        default: for a pipe and for names without extension.

    Raises:
        ConfigError: the extension or the name is unknown.
    """
    name = chosen
    if name is None:
        suffix = Path(target).suffix.lower()
        if target == PIPE or not suffix:
            return default
        name = CONTAINERS.get(suffix)
    aliases = {"mkv": "matroska", "y4m": "yuv4mpegpipe", "ts": "mpegts"}
    name = aliases.get(name or "", name)
    if name is None or name not in {*av.formats_available, RAW}:
        told = f"-f {chosen}" if chosen else f"the extension of {target}"
        raise ConfigError(f"{told} names no container that is known; give another, or -f FORMAT")
    return name


class NeuralCoder:
    """Codes frames with the neural codec.

    Args:
        options: their frame rate is replaced by the source's, where that is known.
        pass_log: of a first pass.
        metadata: tags of the track.

    Attributes:
        encoder: None before open().
    """

    def __init__(
        self,
        options: EncoderOptions,
        pass_log: PassLog | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._options = options
        self._pass_log = pass_log
        self._metadata = dict(metadata or {})
        self._time_base = Fraction(1, 1000)
        self.encoder: Encoder | None = None

    @property
    def statistics(self) -> EncoderStatistics | None:
        """What was coded so far."""
        return self.encoder.statistics if self.encoder else None

    def open(
        self, video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
    ) -> StreamInfo:
        self.encoder, info = open_encoder(
            video_format, self._options, time_base, frame_rate, self._metadata, self._pass_log
        )
        self._time_base = time_base
        return info

    def encode(self, frame: Frame | None) -> list[BridgePacket]:
        assert self.encoder is not None
        return [
            BridgePacket(
                stream_index=0,
                data=packet.data,
                pts=packet.pts,
                dts=packet.pts,
                duration=packet.duration,
                is_keyframe=packet.is_keyframe,
                time_base=self._time_base,
            )
            for packet in self.encoder.encode(frame)
        ]


def open_encoder(
    video_format: VideoFormat,
    options: EncoderOptions,
    time_base: Fraction,
    frame_rate: Fraction | None,
    metadata: Mapping[str, str],
    pass_log: PassLog | None = None,
) -> tuple[Encoder, StreamInfo]:
    """An encoder, and the track for its packets; a known frame rate replaces the options'."""
    if frame_rate:
        options = replace(options, frame_rate=frame_rate)
    encoder = Encoder(video_format, options, pass_log=pass_log)
    return encoder, neural_track(video_format, encoder.extradata, time_base, frame_rate, metadata)


class Target:
    """A file that gets its name only when it is complete; pipes and devices are written directly.

    Args:
        name: path; "-" is standard output.
        overwrite: whether a file of that name may be replaced.
        source: path of a file that must not be the same one.

    Raises:
        MediaError: the target exists, is the source, or cannot be written.
    """

    def __init__(self, name: str, *, overwrite: bool, source: str | None = None) -> None:
        self.name = name
        self.title = "standard output" if name == PIPE else name
        self._part: Path | None = None
        path = Path(name)
        if name == PIPE:
            return
        try:
            self._check(path, overwrite, source)
        except OSError as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{name} cannot be written: {reason_of(error)}") from error
        except ValueError as error:
            raise MediaError(f"{name!r} cannot be written: {error}") from error

    def _check(self, path: Path, overwrite: bool, source: str | None) -> None:
        both = source is not None and path.exists() and os.path.exists(source)
        if both and os.path.samefile(path, str(source)):
            raise MediaError(f"{self.name} is the source: give the target another name")
        if path.is_dir():
            raise MediaError(f"{self.name} is a folder: give a file's name")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return  # a device or a named pipe
        if path.exists() and not overwrite:
            raise MediaError(f"{self.name} exists already: give -y to overwrite it")
        folder = path.parent
        if not folder.is_dir():
            raise MediaError(f"{self.name} cannot be written: there is no folder {folder}")
        # Short: a name has at most 255 bytes. Numbered: threads may write names that begin alike.
        unique = f"{os.getpid()}-{next(_part_numbers)}"
        part = folder / f".{path.stem[:40]}.{unique}.part{path.suffix}"
        with open(part, "wb"):  # tells at once whether the folder can be written
            self._part = part

    @property
    def path(self) -> str:
        """What to open for writing (not for a pipe)."""
        return str(self._part) if self._part else self.name

    @property
    def is_pipe(self) -> bool:
        """Whether it is standard output."""
        return self.name == PIPE

    def complete(self) -> None:
        """Give the finished file its name."""
        if self._part:
            os.replace(self._part, self.name)
            self._part = None

    def keep_partial(self) -> str | None:
        """Keep what was written under another name, beside the target's; returns that name."""
        if not self._part:
            return None
        path = Path(self.name)
        name = str(path.with_name(f"{path.stem}.partial{path.suffix}"))
        os.replace(self._part, name)
        self._part = None
        return name

    def discard(self) -> None:
        """Remove what was written."""
        if self._part:
            self._part.unlink(missing_ok=True)
            self._part = None


class Sink(Protocol):
    """Where the packets of a picture track go."""

    def start(self, info: StreamInfo) -> None:
        """Write the header; the track is known now."""

    def write(self, packet: BridgePacket) -> None:
        """Write one packet of the picture track, and what else belongs before it."""

    def finish(self) -> None:
        """Write the rest and complete the target."""

    def abandon(self, keep: bool) -> str | None:
        """Give up; keep what is playable under another name, if asked to: that name."""


class MuxerSink:
    """A container with the picture track, and streams copied from the source beside it.

    Args:
        target: what is written.
        container: FFmpeg's name of it.
        copier: brings the other streams; None for none.
        metadata, chapters: of the file.
        track: tags and disposition of the picture track come from it.
    """

    def __init__(
        self,
        target: Target,
        container: str,
        *,
        copier: StreamCopier | None,
        metadata: Mapping[str, str],
        chapters: tuple[Chapter, ...],
        track: StreamInfo | None = None,
        offset: Fraction = Fraction(0),
    ) -> None:
        self._target = target
        self._container = container
        self._copier = copier
        self._metadata = dict(metadata)
        self._chapters = chapters
        self._track = track
        self._offset = offset
        self._muxer: MediaMuxer | None = None
        self.video_bytes = 0
        self.packets = 0

    def start(self, info: StreamInfo) -> None:
        if self._track is not None:
            metadata = {**self._track.metadata, **info.metadata}
            info = replace(info, metadata=metadata, disposition=self._track.disposition)
        output: Any = sys.stdout.buffer if self._target.is_pipe else self._target.path
        with translated(self._target):
            self._muxer = muxer = open_muxer(output, self._container)
            muxer.add_stream(info)
            if self._copier:
                self._copier.add_streams(muxer)
            muxer.metadata.update(self._metadata)
            for chapter in self._chapters:
                muxer.add_chapter(chapter)
            muxer.write_header()

    def write(self, packet: BridgePacket) -> None:
        assert self._muxer is not None
        with translated(self._target):
            ticks = packet.dts if packet.dts is not None else packet.pts
            if self._copier and ticks is not None:
                self._copier.copy_until(self._muxer, ticks * packet.time_base - self._offset)
            self._muxer.write_packet(shifted(packet, self._offset))
        self.video_bytes += len(packet.data)
        self.packets += 1

    def finish(self) -> None:
        assert self._muxer is not None
        with translated(self._target):
            if self._copier:
                self._copier.copy_until(self._muxer, None)
            self._muxer.close()
            self._target.complete()

    def abandon(self, keep: bool) -> str | None:
        muxer = self._muxer
        with suppress(OSError, RuntimeError):
            if muxer is not None and keep and self.packets:
                muxer.close()
                return self._target.keep_partial()
            if muxer is not None:
                muxer.abort()
        self._target.discard()
        return None


class PlainSink:
    """Extradata, then the packets' bytes one after another (YUV4MPEG2)."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._file: IO[bytes] | None = None
        self.video_bytes = 0
        self.packets = 0

    def start(self, info: StreamInfo) -> None:
        with translated(self._target):
            if self._target.is_pipe:
                self._file = sys.stdout.buffer
            else:
                self._file = open(self._target.path, "wb")  # noqa: SIM115 (closed by finish)
            self._file.write(info.extradata)

    def write(self, packet: BridgePacket) -> None:
        assert self._file is not None
        with translated(self._target):
            self._file.write(packet.data)
        self.video_bytes += len(packet.data)
        self.packets += 1

    def finish(self) -> None:
        assert self._file is not None
        with translated(self._target):
            self._file.flush()
            if not self._target.is_pipe:
                self._file.close()
            self._target.complete()

    def abandon(self, keep: bool) -> str | None:
        if self._file is not None and not self._target.is_pipe:
            with suppress(OSError):
                self._file.close()
        self._target.discard()
        return None


class translated:
    """Turns the errors of writing into MediaError that names the target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, value: BaseException | None, traceback: Any) -> None:
        if isinstance(value, MediaError | BrokenPipeError) or not isinstance(
            value, OSError | ValueError
        ):
            return
        reason = reason_of(value).replace(f"{self._target.path}: ", "")
        raise MediaError(f"{self._target.title} cannot be written: {reason}") from value
