"""BD-rates and speeds of an evaluation, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vcfilter.evaluate.bdrate import BdRate, bd_rate
from vcfilter.evaluate.clips import Clip
from vcfilter.evaluate.plots import ms_ssim_db
from vcfilter.evaluate.runner import Codec, Curve, Point

METRICS = {
    "psnr": "PSNR 6:1:1",
    "psnr_y": "PSNR Y",
    "psnr_u": "PSNR U",
    "psnr_v": "PSNR V",
    "ms_ssim": "MS-SSIM (dB)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a report is made from.

    Args:
        clips: prepared clips, in the order of the tables.
        tested: the codecs that were run, in the order of the columns.
        curves: every codec on every clip at every keyframe interval.
        anchor: label of the codec that BD-rates are against.
        threads: threads each codec had; 0: its own choice.
    """

    clips: tuple[Clip, ...]
    tested: tuple[Codec, ...]
    curves: tuple[Curve, ...]
    anchor: str
    threads: int

    @property
    def keyints(self) -> tuple[int, ...]:
        """Keyframe intervals, in the order they first occur."""
        return tuple(dict.fromkeys(curve.keyint for curve in self.curves))

    @property
    def codecs(self) -> tuple[str, ...]:
        """Labels of the codecs."""
        return tuple(codec.label for codec in self.tested)

    def curve(self, clip: str, codec: str, keyint: int) -> Curve:
        """The one curve of a clip, codec and interval."""
        for curve in self.curves:
            if (curve.clip, curve.codec, curve.keyint) == (clip, codec, keyint):
                return curve
        raise KeyError((clip, codec, keyint))


def compare_curves(anchor: Curve, tested: Curve, metric: str = "psnr") -> BdRate:
    """BD-rate of one curve against another in one of METRICS."""

    def values(points: Iterable[Point]) -> list[float]:
        raw = [float(getattr(point, metric)) for point in points]
        return [ms_ssim_db(v) for v in raw] if metric == "ms_ssim" else raw

    return bd_rate(
        [p.kbps for p in anchor.points],
        values(anchor.points),
        [p.kbps for p in tested.points],
        values(tested.points),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of BD-rates: one row per clip, one column per codec, and the columns' averages."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[BdRate, ...]], ...]

    @property
    def averages(self) -> tuple[float | None, ...]:
        """Mean over the clips that have a figure, per column."""
        means: list[float | None] = []
        for column in range(len(self.columns)):
            found = [r[column].percent for _, r in self.rows]
            known = [p for p in found if p is not None]
            means.append(sum(known) / len(known) if known else None)
        return tuple(means)

    def winner(self, row: int, anchor: str) -> str:
        """Codec with the fewest bits on a row's clip, the anchor (0 %) among them."""
        best, least = anchor, 0.0
        for codec, result in zip(self.columns, self.rows[row][1], strict=True):
            if result.percent is not None and result.percent < least:
                best, least = codec, result.percent
        return best


def against_anchor(evaluation: Evaluation, keyint: int, metric: str = "psnr") -> Table:
    """BD-rates of every other codec against the anchor at one keyframe interval."""
    others = tuple(c for c in evaluation.codecs if c != evaluation.anchor)
    rows: list[tuple[str, tuple[BdRate, ...]]] = []
    for clip in evaluation.clips:
        anchor = evaluation.curve(clip.name, evaluation.anchor, keyint)
        tested = (evaluation.curve(clip.name, codec, keyint) for codec in others)
        rows.append((clip.name, tuple(compare_curves(anchor, t, metric) for t in tested)))
    title = f"keyframe interval {keyint}, {METRICS[metric]}, against {evaluation.anchor}"
    return Table(title=title, columns=others, rows=tuple(rows))


def against_intra(evaluation: Evaluation, keyint: int) -> Table:
    """BD-rates of each codec with inter frames against itself with keyframes alone."""
    rows: list[tuple[str, tuple[BdRate, ...]]] = []
    for clip in evaluation.clips:
        results = []
        for codec in evaluation.codecs:
            alone = evaluation.curve(clip.name, codec, 1)
            results.append(compare_curves(alone, evaluation.curve(clip.name, codec, keyint)))
        rows.append((clip.name, tuple(results)))
    title = f"each codec at interval {keyint} against itself with keyframes alone, PSNR 6:1:1"
    return Table(title=title, columns=evaluation.codecs, rows=tuple(rows))


def tables(evaluation: Evaluation) -> list[Table]:
    """All BD-rate tables, the most telling first."""
    found = [against_anchor(evaluation, k, m) for m in METRICS for k in evaluation.keyints]
    if 1 in evaluation.keyints:
        inter = [k for k in evaluation.keyints if k != 1]
        found[len(evaluation.keyints) : 0] = [against_intra(evaluation, k) for k in inter]
    return [table for table in found if table.columns]


def percent_text(value: float | None) -> str:
    """A BD-rate as it is shown: "-12.3 %"."""
    return "none" if value is None else f"{value:+.1f} %"


def text_table(table: Table, anchor: str) -> str:
    """A table for the terminal; figures with a note carry a star, notes follow below."""
    head = ["BD-rate", *table.columns, "fewest bits" if anchor else ""]
    lines = [head]
    notes: list[str] = []
    for i, (clip, results) in enumerate(table.rows):
        cells = []
        for codec, result in zip(table.columns, results, strict=True):
            cells.append(percent_text(result.percent) + ("*" if result.note else ""))
            if result.note:
                notes.append(f"* {clip}, {codec}: {result.note}")
        lines.append([clip, *cells, table.winner(i, anchor) if anchor else ""])
    lines.append(["average", *map(percent_text, table.averages), ""])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([table.title, *(row.rstrip() for row in rows), *notes])


def speeds(evaluation: Evaluation) -> list[tuple[str, int, float, float]]:
    """(codec, keyint, encode, decode frames/s): geometric means over clips and points."""
    found = []
    for keyint in evaluation.keyints:
        for codec in evaluation.codecs:
            points = [
                p for c in evaluation.curves if (c.codec, c.keyint) == (codec, keyint)
                for p in c.points
            ]  # fmt: skip
            encode = math.exp(sum(math.log(p.encode_fps) for p in points) / len(points))
            decode = math.exp(sum(math.log(p.decode_fps) for p in points) / len(points))
            found.append((codec, keyint, encode, decode))
    return found
