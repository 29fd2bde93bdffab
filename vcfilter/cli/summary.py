"""What info prints: a file's streams, and a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vcfilter.cli.terminal import count_text, size_text
from vcfilter.options import Runtime
from vcfilter.stream.inspect import (
    FileSummary,
    FrameInfo,
    StreamSummary,
    describe_format,
)
from vcfilter.stream.track import is_neural


def model_values(name: str | None) -> dict[str, Any]:
    """What a model is, its card, and what decoding costs in kMAC per luma sample.

    Args:
        name: name, id or path of a model; None takes the default one.
    """
    from vcfilter.models import store

    model = store.find(name, Runtime(device="cpu"))
    info = model.info
    return {
        "model": info.id.hex(),
        "name": info.name,
        "architecture": info.architecture,
        "presets": list(info.efforts),
        "card": dict(sorted(info.card.items())),
        "kmac_per_pixel": model.complexity(),
    }


def model_lines(name: str | None) -> list[str]:
    """The same in words."""
    found = model_values(name)
    lines = [
        f"model {found['name']}, {found['architecture']}, id {found['model']}",
        f"presets: {' '.join(found['presets'])}",
        "cost of decoding, kMAC per luma sample:",
    ]
    for kind, parts in found["kmac_per_pixel"].items():
        costs = ", ".join(f"{part} {cost:.3g}" for part, cost in parts.items())
        lines.append(f"  {kind:<9}{costs}")
    lines.append("card:")
    for key, text in found["card"].items():
        lines.append(f"  {key}: " + text.strip().replace("\n", "\n    "))
    return lines


def summary_lines(summary: FileSummary, frames: bool) -> list[str]:
    """What a file holds; with frames, one line per coded frame too."""
    head = [summary.container]
    if summary.seconds is not None:
        head.append(f"{summary.seconds:.2f} s")
    if summary.size is not None:
        head.append(size_text(summary.size))
        if summary.seconds:
            head.append(f"{8 * summary.size / summary.seconds / 1000:.0f} kbit/s")
    if summary.chapters:
        head.append(count_text(summary.chapters, "chapter"))
    lines = [f"{summary.name}: {', '.join(head)}"]
    for stream in summary.streams:
        lines += _neural_lines(stream, frames) if is_neural(stream.info) else [_other_line(stream)]
    return lines


def _title(stream: StreamSummary) -> str:
    language = stream.info.metadata.get("language")
    tag = f" [{language}]" if language else ""
    return f"  stream {stream.info.index}{tag}: {stream.info.kind} "


def _total(stream: StreamSummary) -> str:
    rate = f", {stream.bitrate / 1000:.1f} kbit/s" if stream.bitrate else ""
    return f"{count_text(stream.packets, 'packet')}, {size_text(stream.size)}{rate}"


def _other_line(stream: StreamSummary) -> str:
    info = stream.info
    detail = info.codec or info.codec_tag or "unknown"
    if info.kind == "video":
        detail += f", {info.width}x{info.height}"
    if info.kind == "audio":
        detail += f", {info.sample_rate} Hz, {info.channels} channels"
    return f"{_title(stream)}{detail}; {_total(stream)}"


def _neural_lines(stream: StreamSummary, frames: bool) -> Iterator[str]:
    info, sequence = stream.info, stream.sequence
    rate = f", {float(info.frame_rate):.6g} frames/s" if info.frame_rate else ""
    if sequence is None:
        yield f"{_title(stream)}vcfilter, damaged sequence header; {_total(stream)}"
        return
    described = describe_format(sequence.video_format)
    yield f"{_title(stream)}vcfilter, {described}{rate}; {_total(stream)}"
    name = f"{sequence.name} " if sequence.name else ""
    structure = sequence.structure.name.lower().replace("_", "-")
    yield f"    model {name}{sequence.model_id.hex()}"
    yield (
        f"    structure {structure}, references up to {sequence.reach} frames away, "
        f"delay of a decoder {sequence.reorder} frames"
    )
    segments = stream.segments
    if segments:
        few, many = min(segments), max(segments)
        span = count_text(many, "frame") if few == many else f"{few} to {many} frames"
        yield f"    {count_text(len(segments), 'GOP')} of {span}"
    known = [(frame.size, frame.packet) for frame in stream.frames if frame.packet]
    for kind in sorted({packet.header.step.type for _, packet in known}):
        same = [(size, packet) for size, packet in known if packet.header.step.type is kind]
        total = sum(size for size, _ in same)
        qps = [packet.header.step.qp for _, packet in same if packet.sections]
        repeated = len(same) - len(qps)
        yield (
            f"    {count_text(len(same), kind.name.lower() + ' frame')}, {size_text(total)}, "
            f"mean {size_text(total / len(same))}"
            + (f", qp {min(qps)} to {max(qps)}" if qps else "")
            + (f", {repeated} without coded data" if repeated else "")
        )
    if sequence.levels > 1:
        yield from _level_lines(stream)
    damaged = len(stream.frames) - len(known)
    if damaged:
        yield f"    {count_text(damaged, 'damaged packet')}"
    lost = sum(1 for _, packet in known if packet.lost_levels)
    if lost:
        yield f"    {count_text(lost, 'packet')} with damaged quality levels"
    for number, frame in enumerate(stream.frames if frames else ()):
        yield _frame_line(number, frame)


def _level_lines(stream: StreamSummary) -> Iterator[str]:
    """One line per quality level: the bytes of all levels up to it, and its qps."""
    packets = [frame.packet for frame in stream.frames if frame.packet]
    for level, total in enumerate(stream.level_sizes):
        found = [s.qp for packet in packets for s in packet.sections if s.level == level]
        rate = f", {8 * total / stream.seconds / 1000:.1f} kbit/s" if stream.seconds else ""
        yield (
            f"    with {count_text(level + 1, 'quality level')}: {size_text(total)}{rate}"
            + (f", qp {min(found)} to {max(found)}" if found else "")
        )


def _frame_line(number: int, frame: FrameInfo) -> str:
    start = f"    {number:6} {frame.seconds:10.3f} s {frame.size:8} bytes  "
    if frame.packet is None:
        return f"{start}DAMAGED"
    header = frame.packet.header
    step = header.step
    coded = frame.packet.sections
    detail = f"qp {step.qp:2}" if coded else "repeated"
    if step.references:
        detail += f" layer {step.layer} from " + ", ".join(f"{d:+}" for d in step.references)
        detail += "" if step.slot is None else f" slot {step.slot}"
        detail += f" mode {header.mode.hex()}" if header.mode else ""
    detail += "  LEVELS DAMAGED" if frame.packet.lost_levels else ""
    return f"{start}{step.type.name.lower():5} {detail}"
