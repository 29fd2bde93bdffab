"""The log's curves as an SVG picture, written without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = ("#c8102e", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 30, 45
POINTS = 400  # more would only make the file larger
Row = dict[str, float]


def curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """(step, mean log cost) of each loss; the steps of one phase follow those of the one before."""
    found: dict[str, list[tuple[float, float]]] = {}
    start, number, last = 0.0, 0.0, 0.0
    for row in rows:
        if row["number"] != number:
            start, number = start + last, row["number"]
        last = row["step"]
        for name, value in row.items():
            if isinstance(value, float) and not name.endswith("_bpp") and name != "seconds":
                found.setdefault(name, []).append((start + last, value))
    return {name: thinned(points) for name, points in found.items()}


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Neighbouring points averaged until there are few enough."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The running mean over a tenth of the curve: batches differ more than learning moves them."""
    reach = len(points) // 20
    return [
        (x, sum(v for _, v in near) / len(near))
        for i, (x, _) in enumerate(points)
        if (near := points[max(0, i - reach) : i + reach + 1])
    ]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between two limits, about count of them."""
    raw = (high - low) / count
    unit: float = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def draw(rows: Sequence[Row], target: Path, title: str) -> None:
    """Write the curves of a log.

    Args:
        rows: lines of a log (see `watch.read_log`), at least one.
        target: of the SVG file.
        title: stands over the picture.
    """
    lines = curves(rows)
    every = [point for points in lines.values() for point in points]
    right = max([x for x, _ in every], default=1.0)
    low, high = min([y for _, y in every], default=0.0), max([y for _, y in every], default=1.0)
    low, high = low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3

    def x(step: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * step / right:.1f}"

    def y(value: float) -> str:
        return f"{TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for value in ticks(low, high, 6):
        parts.append(
            f'<path d="M{LEFT} {y(value)}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value)}" dy="4" text-anchor="end">{value:.3g}</text>'
        )
    for value in ticks(0, right, 8):
        parts.append(
            f'<text x="{x(value)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">optimiser steps; mean log of the cost</text>')
    for number, (name, points) in enumerate(sorted(lines.items())):
        colour = COLOURS[number % len(COLOURS)]
        level = TOP + 10 + 18 * number
        for curve, style in ((points, 'opacity="0.3"'), (smooth(points), 'stroke-width="2"')):
            path = " ".join(f"{x(step)},{y(value)}" for step, value in curve)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')
        parts.append(
            f'<path d="M{WIDTH - RIGHT + 12} {level}h18" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{WIDTH - RIGHT + 36}" y="{level}" dy="4">{escape(name)}</text>'
        )
    target.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")
