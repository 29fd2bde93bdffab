"""What a file holds, without decoding it; and whether all of it decodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from vcfilter._bridge import BridgeError, Demuxer, StreamInfo
from vcfilter.bitstream import PacketInfo, PacketReader, SequenceHeader, level_sizes
from vcfilter.codec import Decoder
from vcfilter.errors import BitstreamError
from vcfilter.frames import FieldOrder, FrameType, VideoFormat
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.containers import Path
from vcfilter.stream.decoders import neural_stream
from vcfilter.stream.packets import coded_packet
from vcfilter.stream.source import Source, reason_of
from vcfilter.stream.streams import LENGTH_IN_HEADER, is_short, name_of, stated_seconds
from vcfilter.stream.track import is_neural


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInfo:
    """One packet of a neural stream.

    Args:
        seconds: presentation time.
        size: bytes of the packet.
        packet: what it says of itself; None if it is damaged.
        error: why it, or a quality level of it, cannot be read; empty if all can.
    """

    seconds: float
    size: int
    packet: PacketInfo | None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result: dict[str, Any] = {"time": round(self.seconds, 6), "size": self.size}
        if self.error:
            result["error"] = self.error
        if self.packet is None:
            return result
        step = self.packet.header.step
        return result | {
            "type": step.type.name.lower(),
            "qp": step.qp if self.packet.sections else None,
            "layer": step.layer,
            "number": step.number,
            "references": list(step.references),
            "slot": step.slot,
            "mode": self.packet.header.mode.hex(),
            "sections": [len(section.data) for section in self.packet.sections],
            "levels": [section.level for section in self.packet.sections],
        }


@dataclass(slots=True)
class StreamSummary:
    """One stream: what the container says, and totals over its packets."""

    info: StreamInfo
    packets: int = 0
    size: int = 0
    keyframes: int = 0
    first: Fraction | None = None
    last: Fraction = Fraction(0)
    frames: list[FrameInfo] = field(default_factory=list)
    reader: PacketReader = field(default_factory=PacketReader)

    @property
    def seconds(self) -> float:
        """From the first packet's time to the end of the last."""
        return float(self.last - self.first) if self.first is not None else 0.0

    @property
    def bitrate(self) -> float:
        """Bit/s."""
        return 8 * self.size / self.seconds if self.seconds > 0 else 0.0

    @property
    def sequence(self) -> SequenceHeader | None:
        """Of a neural stream, from the extradata or the first keyframe."""
        try:
            return SequenceHeader.read(self.info.extradata)
        except BitstreamError:
            found = (frame.packet.sequence for frame in self.frames if frame.packet)
            return next((sequence for sequence in found if sequence), None)

    @property
    def segments(self) -> list[int]:
        """Frames of each segment of a neural stream."""
        lengths: list[int] = []
        for frame in self.frames:
            if frame.packet and frame.packet.header.step.type is FrameType.KEY:
                lengths.append(1)
            elif lengths:
                lengths[-1] += 1
        return lengths

    @property
    def level_sizes(self) -> list[int]:
        """Bytes of a neural stream with 1, 2, ... of the quality levels that are there."""
        packets = [frame.packet for frame in self.frames if frame.packet]
        highest = max((p.sections[-1].level for p in packets if p.sections), default=0)
        sizes = [level_sizes(packet) for packet in packets]
        return [sum(size[level] for size in sizes) for level in range(highest + 1)]

    def to_dict(self, frames: bool) -> dict[str, Any]:
        """For JSON."""
        info = self.info
        result: dict[str, Any] = {
            "index": info.index,
            "kind": info.kind,
            "codec": "vcfilter" if is_neural(info) else info.codec,
            "packets": self.packets,
            "size": self.size,
            "seconds": round(self.seconds, 6),
            "bitrate": round(self.bitrate),
            "metadata": dict(info.metadata),
        }
        if info.kind == "video":
            result |= {"width": info.width, "height": info.height}
            result["frame_rate"] = str(info.frame_rate) if info.frame_rate else None
        if info.kind == "audio":
            result |= {"sample_rate": info.sample_rate, "channels": info.channels}
        if is_neural(info):
            sequence = self.sequence
            result["model"] = sequence.model_id.hex() if sequence else None
            result["bit_depth"] = sequence.video_format.bit_depth if sequence else None
            result["keyframes"] = self.keyframes
            result["segments"] = self.segments
            result["damaged"] = sum(1 for frame in self.frames if frame.error)
            result["levels"] = self.level_sizes
            if frames:
                result["frames"] = [frame.to_dict() for frame in self.frames]
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """What a file holds.

    Args:
        name: of the file.
        container: FFmpeg's name of it.
        size: bytes; None of a pipe.
        seconds: duration; None when unknown.
        metadata: the file's tags.
        chapters: how many.
        streams: each of them.
        warnings: what was wrong, one sentence each.
    """

    name: str
    container: str
    size: int | None
    seconds: float | None
    metadata: Mapping[str, str]
    chapters: int
    streams: tuple[StreamSummary, ...]
    warnings: tuple[str, ...]

    @property
    def neural(self) -> tuple[StreamSummary, ...]:
        """The neural streams."""
        return tuple(stream for stream in self.streams if is_neural(stream.info))

    def to_dict(self, frames: bool) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": self.name,
            "container": self.container,
            "size": self.size,
            "seconds": self.seconds,
            "metadata": dict(self.metadata),
            "chapters": self.chapters,
            "streams": [stream.to_dict(frames) for stream in self.streams],
            "warnings": list(self.warnings),
        }


def inspect_file(name: Path) -> FileSummary:
    """Read all packets of a file, neural or not, and sum them up; nothing is decoded.

    Raises:
        MediaError: it cannot be read or is no media file.
    """
    source = Source(name)
    warnings: list[str] = []
    with source.demuxer() as demuxer:
        summaries = {info.index: StreamSummary(info) for info in demuxer.streams}
        while True:
            try:
                packet = demuxer.read_packet()
            except BridgeError as error:
                warnings.append(f"the file breaks off: {reason_of(error)}")
                break
            if packet is None:
                break
            summary = summaries.get(packet.stream_index)
            if summary is None:
                continue
            ticks = packet.pts if packet.pts is not None else packet.dts or 0
            time = ticks * packet.time_base
            summary.packets += 1
            summary.size += len(packet.data)
            summary.keyframes += packet.is_keyframe
            summary.first = time if summary.first is None else min(summary.first, time)
            summary.last = max(summary.last, time + packet.duration * packet.time_base)
            if is_neural(summary.info):
                summary.frames.append(_frame_info(summary.reader, packet.data, float(time)))
        return FileSummary(
            name=source.title,
            container=demuxer.format_name.split(",")[0],
            size=None if source.is_pipe or not os.path.exists(name) else os.path.getsize(name),
            seconds=None if demuxer.duration is None else float(demuxer.duration),
            metadata=demuxer.metadata,
            chapters=len(demuxer.chapters),
            streams=tuple(summaries.values()),
            warnings=tuple(warnings),
        )


def _frame_info(reader: PacketReader, data: bytes, seconds: float) -> FrameInfo:
    try:
        packet = reader.read(data)
        error = "a quality level is damaged or cut short" if packet.lost_levels else ""
        return FrameInfo(seconds=seconds, size=len(data), packet=packet, error=error)
    except BitstreamError as error:
        return FrameInfo(seconds=seconds, size=len(data), packet=None, error=str(error))


def describe_format(fmt: VideoFormat) -> str:
    """Size, depth and colour in words."""
    parts = [f"{fmt.width}x{fmt.height}", f"4:2:0 {fmt.bit_depth} bit"]
    num, den = fmt.sample_aspect_ratio
    if num and num != den:
        parts.append(f"SAR {num}:{den}")
    colors = {1: "BT.709", 5: "BT.601", 6: "BT.601", 9: "BT.2020"}
    if fmt.colorspace in colors:
        parts.append(colors[fmt.colorspace])
    if fmt.color_range:
        parts.append(("limited", "full")[fmt.color_range - 1] + " range")
    if fmt.mastering or fmt.content_light:
        parts.append("HDR10")
    if fmt.field_order > FieldOrder.PROGRESSIVE:
        parts.append("interlaced")
    if fmt.mirrored:
        parts.append("mirrored")
    if fmt.rotation:
        parts.append(f"rotated by {fmt.rotation} degrees")
    return ", ".join(parts)


@dataclass(slots=True)
class Verdict:
    """Whether a file decodes whole.

    Attributes:
        packets: of the neural stream.
        frames: decoded.
        keyframes: among them.
        damaged: packets dropped because they are damaged.
        missing_reference: packets dropped because a reference is missing.
        lost_levels: frames decoded without quality levels that are damaged.
        other_packets: of the other streams, by kind.
        problems: one sentence each.
    """

    packets: int = 0
    frames: int = 0
    keyframes: int = 0
    damaged: int = 0
    missing_reference: int = 0
    lost_levels: int = 0
    other_packets: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing is missing."""
        return not self.problems


def _cut_short(demuxer: Demuxer, video: StreamInfo, ends: Mapping[int, Fraction]) -> list[str]:
    """Sentences where streams, or the whole file, end well before the file says so.

    Args:
        ends: of streams' last packets, in seconds, by index.
    """
    found = []
    for info in demuxer.streams:
        if info.index == video.index or info.kind == "audio":
            begin = (info.start_time or 0) * info.time_base
            got = ends.get(info.index, begin) - begin
            if is_short(got, stated_seconds(info)):
                found.append(f"{name_of(info)} is cut short after {float(got):.2f} s")
    if demuxer.format_name in LENGTH_IN_HEADER and not found:
        begin = Fraction(0)
        if demuxer.format_name != "matroska,webm":  # which says where it ends
            begin = demuxer.start_time or begin
        got = max(ends.values(), default=begin) - begin
        if is_short(got, demuxer.duration):
            found.append(f"it is cut short after {float(got):.2f} s")
    return found


def verify_file(
    name: Path,
    options: DecoderOptions | None = None,
    progress: Callable[[int, float], None] | None = None,
    *,
    runtime: Runtime | None = None,
) -> Verdict:
    """Check all packets of a neural file and decode it whole.

    Args:
        progress: called with the packets read so far and their time in seconds.

    Raises:
        MediaError: it cannot be read or has no neural video stream.
        ModelMismatchError: it was coded by another model.
        BitstreamError: damage, where options are strict.
    """
    verdict = Verdict()
    source = Source(name)
    with source.demuxer() as demuxer:
        info = neural_stream(demuxer, source.title)
        kinds = {each.index: each.kind for each in demuxer.streams}
        decoder = Decoder(info.extradata, options, runtime=runtime)
        last: int | None = None
        ends: dict[int, Fraction] = {}
        while True:
            try:
                packet = demuxer.read_packet()
            except BridgeError as error:
                verdict.problems.append(f"the file breaks off: {reason_of(error)}")
                break
            if packet is None:
                break
            ticks = packet.pts if packet.pts is not None else packet.dts or 0
            end = (ticks + packet.duration) * packet.time_base
            ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
            if packet.stream_index != info.index:
                verdict.other_packets[kinds.get(packet.stream_index, "data")] += 1
                continue
            neural = coded_packet(packet)
            if last is not None and neural.pts <= last:
                verdict.problems.append(f"packet {verdict.packets} is not after the one before it")
            last = neural.pts
            verdict.packets += 1
            verdict.keyframes += packet.is_keyframe
            verdict.frames += sum(1 for _ in decoder.frames(neural))
            if progress:
                progress(verdict.packets, float(neural.pts * packet.time_base))
        verdict.frames += sum(1 for _ in decoder.frames(None))
        verdict.problems += _cut_short(demuxer, info, ends)
    verdict.damaged = decoder.dropped_damaged
    verdict.missing_reference = decoder.dropped_missing_reference
    verdict.lost_levels = decoder.lost_levels
    if verdict.damaged:
        verdict.problems.append(f"{verdict.damaged} packets are damaged")
    if verdict.missing_reference:
        verdict.problems.append(f"{verdict.missing_reference} frames miss a reference")
    if verdict.lost_levels:
        verdict.problems.append(f"quality levels of {verdict.lost_levels} frames are damaged")
    if not verdict.frames:
        verdict.problems.append("no frame can be decoded")
    return verdict
