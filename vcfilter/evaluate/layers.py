"""Quality levels of one file: what each costs against a file of its own, and beside simulcast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from scipy.interpolate import PchipInterpolator

from vcfilter.bitstream import PacketReader, level_sizes
from vcfilter.errors import ConfigError
from vcfilter.evaluate.clips import Clip, frames_of, planes_of, prepare, write_atomically
from vcfilter.evaluate.comparison import Comparison
from vcfilter.evaluate.runner import Neural, Point, cached_point, identity, neural
from vcfilter.frames import LEVELS_MAX, QP_MAX
from vcfilter.metrics import frame_psnr, ms_ssim
from vcfilter.options import DecoderOptions, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRow:
    """What a file holds up to one quality level, in the frames of one temporal layer.

    Args:
        level: the highest that is decoded, 0 the base. layer: temporal layer; None: all.
        frames: how many. bytes: of their packets, thinned.
        psnr: mean over the frames, dB, Y, U, V weighted 6:1:1. ms_ssim: mean, of luma.
    """

    level: int
    layer: int | None
    frames: int
    bytes: int
    psnr: float
    ms_ssim: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersResult:
    """One clip's file with quality levels.

    Args:
        clip: its name. qps: of the keyframes, by level.
        rows: by level, the sum over all layers first.
        costs: by level, bytes against one file with this quality alone, percent.
        single: bytes of one file at each level's qp.
        simulcast: by level, bytes of files at all qps up to it against the thinned one, percent.
    """

    clip: str
    qps: tuple[int, ...]
    rows: tuple[LevelRow, ...]
    costs: tuple[float, ...]
    single: tuple[int, ...]
    simulcast: tuple[float, ...]

    def total(self, level: int) -> LevelRow:
        """The row of all frames at a level."""
        return next(row for row in self.rows if row.level == level and row.layer is None)


def evaluate_layers(
    comparison: Comparison, layers: int, layer_step: int, progress: Callable[[str], None]
) -> str:
    """Code each clip once with quality levels, decode each level, compare; returns the tables.

    The best level has the lowest of the comparison's qps. The tables are written to the
    comparison's folder too, as layers.md.

    Args:
        layers: quality levels, 2 to 8. layer_step: their distance in qps.
        progress: called with one line after each file.

    Raises:
        ConfigError: a value is out of range, or no qps are left for the levels.
        MediaError: a clip cannot be read, or coding failed.
    """
    if not 2 <= layers <= LEVELS_MAX:
        raise ConfigError(f"layers {layers} is outside 2 to {LEVELS_MAX}")
    if not comparison.presets:
        raise ConfigError("layers are vcfilter's own: it needs a preset")
    best = min(comparison.qps)
    qps = tuple(best + layer_step * k for k in reversed(range(layers)))
    extra = f":layers={layers}:layer_step={layer_step}"
    lines: list[str] = []
    for preset in comparison.presets:
        layered = neural(preset + extra, (best,), comparison.model, comparison.device)
        around = {min(qps[0] + layer_step, QP_MAX), *qps, max(best - layer_step, 0)}
        alone = neural(preset, tuple(sorted(around)), comparison.model, comparison.device)
        results = []
        for path in comparison.clips:
            clip = prepare(path, comparison.cache, comparison.frames)
            results.append(_one(clip, layered, alone, qps, comparison, progress))
        lines += _tables(layered.label, results)
    text = "\n".join(lines)
    comparison.out.mkdir(parents=True, exist_ok=True)
    write_atomically(comparison.out / "layers.md", text + "\n")
    return text


def _one(
    clip: Clip,
    layered: Neural,
    alone: Neural,
    qps: Sequence[int],
    comparison: Comparison,
    progress: Callable[[str], None],
) -> LayersResult:
    def point(codec: Neural, qp: int) -> Point:
        found, hit = cached_point(
            clip,
            codec,
            identity(codec),
            qp,
            comparison.keyint,
            comparison.cache,
            comparison.threads,
        )
        progress(
            f"{clip.name:<20} {codec.label} {qp:>2} {found.kbps:>9.1f} kbit/s {found.psnr:>6.2f} dB"
            f"{'  (cached)' if hit else ''}"
        )
        return found

    singles = {qp: point(alone, qp) for qp in alone.qps}
    stream = Path(point(layered, layered.qps[0]).stream)
    rows: list[LevelRow] = []
    for level in range(len(qps)):
        rows += _rows(clip, stream, level, comparison)
    totals = [row for row in rows if row.layer is None]
    cost = _cost(list(singles.values()))
    sums = np.cumsum([singles[qp].bytes for qp in qps])
    return LayersResult(
        clip=clip.name,
        qps=tuple(qps),
        rows=tuple(rows),
        costs=tuple(cost(row) for row in totals),
        single=tuple(singles[qp].bytes for qp in qps),
        simulcast=tuple(
            100 * (float(total) / row.bytes - 1) for total, row in zip(sums, totals, strict=True)
        ),
    )


def _cost(points: Sequence[Point]) -> Callable[[LevelRow], float]:
    """Percent of bytes that a level takes more than a single file of its PSNR would."""
    curve = sorted({point.psnr: point.bytes for point in points}.items())
    found = PchipInterpolator([psnr for psnr, _ in curve], [np.log(size) for _, size in curve])
    return lambda row: 100 * (row.bytes / float(np.exp(found(row.psnr))) - 1)


def _rows(clip: Clip, stream: Path, level: int, comparison: Comparison) -> Iterator[LevelRow]:
    """The rows of one level, the sum over all layers first."""
    from vcfilter.stream.decoders import neural_frames

    options = DecoderOptions(strict=True, model=comparison.model, levels=level + 1)
    runtime = Runtime(device=comparison.device, threads=comparison.threads)
    found: dict[int | None, list[tuple[int, float, float]]] = {None: []}
    decoded = neural_frames(stream, options, runtime=runtime)
    packets = _packets(stream)
    for original, frame, (layer, sizes) in zip(frames_of(clip.path), decoded, packets, strict=True):
        source = planes_of(original)
        psnr = frame_psnr(source, frame, clip.bit_depth).weighted
        entry = sizes[level], psnr, ms_ssim(source.y, frame.y, clip.bit_depth)
        found[None].append(entry)
        found.setdefault(layer, []).append(entry)
    for key in (None, *sorted(key for key in found if key is not None)):
        each = found[key]
        yield LevelRow(
            level=level,
            layer=key,
            frames=len(each),
            bytes=sum(size for size, _, _ in each),
            psnr=sum(psnr for _, psnr, _ in each) / len(each),
            ms_ssim=sum(value for _, _, value in each) / len(each),
        )


def _packets(stream: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(temporal layer, bytes by levels) of each packet."""
    reader = PacketReader()
    with av.open(str(stream)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                info = reader.read(bytes(packet))
                yield info.header.step.layer, level_sizes(info)


def _tables(label: str, results: Sequence[LayersResult]) -> list[str]:
    """Markdown: per clip temporal layer x level; then what scalability costs."""
    lines = [f"# {label}", ""]
    for result in results:
        lines += [f"## {result.clip}", ""]
        head = "| temporal layer | frames |"
        for level, qp in enumerate(result.qps):
            head += f" level {level} (qp {qp}): bytes | PSNR | MS-SSIM |"
        lines += [head, "|" + "---|" * (2 + 3 * len(result.qps))]
        for layer in dict.fromkeys(row.layer for row in result.rows):
            same = [row for row in result.rows if row.layer == layer]
            line = f"| {'all' if layer is None else layer} | {same[0].frames} |"
            for row in same:
                line += f" {row.bytes} | {row.psnr:.2f} | {row.ms_ssim:.4f} |"
            lines.append(line)
        lines.append("")
    lines += [
        "## Cost of scalability",
        "",
        "Bytes against a file of one level with the same PSNR; and what files of all levels up to"
        " this one would take more than the thinned one.",
        "",
        "| clip |" + "".join(f" level {k} | simulcast |" for k in range(len(results[0].qps))),
        "|" + "---|" * (1 + 2 * len(results[0].qps)),
    ]
    for result in results:
        pairs = zip(result.costs, result.simulcast, strict=True)
        lines.append(
            f"| {result.clip} |" + "".join(f" {c:+.1f} % | {s:+.1f} % |" for c, s in pairs)
        )
    every = np.array([[result.costs, result.simulcast] for result in results]).mean(0).T
    lines.append("| mean |" + "".join(f" {c:+.1f} % | {s:+.1f} % |" for c, s in every))
    return [*lines, ""]
