"""What `info` prints: a file's streams, and the model."""

from __future__ import annotations

import json

from vcfilter.cli.terminal import size_text
from vcfilter.stream.inspect import MOTION_NAMES, FileSummary, describe_format
from vcfilter.stream.track import is_neural


def print_model(weights: str | None, as_json: bool) -> None:
    """The model's id, what decoding costs, and the card in its weights file."""
    from vcfilter.models.checkpoint import read_card
    from vcfilter.models.hierarchical.complexity import complexity
    from vcfilter.models.hierarchical.video import VideoModel

    model = VideoModel.load(weights, "cpu")
    costs = complexity(model)
    card = dict(sorted(read_card(weights).items()))
    if as_json:
        found = {"model": model.model_id.hex(), "card": card, "kmac_per_pixel": costs}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(f"model {model.model_id.hex()}")
    print("cost of decoding, kMAC per luma sample:")
    for kind, parts in costs.items():
        print(f"  {kind:<9}" + ", ".join(f"{part} {cost:.3g}" for part, cost in parts.items()))
    print("card:")
    for key, text in card.items():
        print(f"  {key}: " + text.strip().replace("\n", "\n    "))


def print_summary(summary: FileSummary, frames: bool) -> None:
    """What a file holds; with frames, one line per coded frame too."""
    head = [summary.container]
    if summary.seconds is not None:
        head.append(f"{summary.seconds:.2f} s")
    if summary.size is not None:
        head.append(size_text(summary.size))
        if summary.seconds:
            head.append(f"{8 * summary.size / summary.seconds / 1000:.0f} kbit/s")
    if summary.chapters:
        head.append(f"{summary.chapters} chapters")
    print(f"{summary.name}: {', '.join(head)}")
    for stream in summary.streams:
        info = stream.info
        language = info.metadata.get("language")
        title = f"  stream {info.index}{f' [{language}]' if language else ''}: {info.kind} "
        total = f"{stream.packets} packets, {size_text(stream.size)}"
        total += f", {stream.bitrate / 1000:.1f} kbit/s" if stream.bitrate else ""
        if not is_neural(info):
            detail = info.codec or info.codec_tag or "unknown"
            if info.kind == "video":
                detail += f", {info.width}x{info.height}"
            if info.kind == "audio":
                detail += f", {info.sample_rate} Hz, {info.channels} channels"
            print(f"{title}{detail}; {total}")
            continue
        rate = f", {float(info.frame_rate):.6g} frames/s" if info.frame_rate else ""
        sequence = stream.sequence
        if sequence is None:
            print(f"{title}vcfilter, its sequence header is damaged; {total}")
            continue
        print(f"{title}vcfilter, {describe_format(sequence.video_format)}{rate}; {total}")
        print(f"    model {sequence.model_id.hex()}")
        known = [frame for frame in stream.frames if frame.packet]
        segments = stream.segments
        if segments:
            span = f"{min(segments)} to {max(segments)}" if len(set(segments)) > 1 else segments[0]
            print(f"    {len(segments)} segments of {span} frames")
        for kind in sorted({frame.packet.header.kind for frame in known if frame.packet}):
            same = [f for f in known if f.packet and f.packet.header.kind is kind]
            size = sum(frame.size for frame in same)
            qps = [frame.packet.header.qp for frame in same if frame.packet]
            print(
                f"    {len(same)} {kind.name.lower()} frames, {size_text(size)}, "
                f"mean {size_text(size / len(same))}, qp {min(qps)} to {max(qps)}"
            )
        damaged = len(stream.frames) - len(known)
        if damaged:
            print(f"    {damaged} damaged packets")
        for number, frame in enumerate(stream.frames if frames else ()):
            if frame.packet is None:
                print(f"    {number:6} {frame.seconds:10.3f} s {frame.size:8} bytes  DAMAGED")
                continue
            header = frame.packet.header
            detail = f"qp {header.qp:2}"
            if header.references:
                detail += f" layer {header.layer} distances {header.distances[0]}"
                detail += f"+{header.distances[1]}" if header.distances[1] else ""
                detail += f" motion {MOTION_NAMES[header.motion]}"
                detail += "" if header.residual else " no residual"
            name = header.kind.name.lower()
            print(f"    {number:6} {frame.seconds:10.3f} s {frame.size:8} bytes  {name:5} {detail}")
