"""The log's curves as an SVG image."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from vcfilter.errors import ConfigError
from vcfilter.train.watch import CONTEST

POINTS = 400  # more would only make the file larger
# Losses that have an axis of their own, in order; all others share the first.
PANELS = {
    "for looks": ("difference", "error", "relative", "texture"),
    "ST-LPIPS": ("features",),
    "adversary": CONTEST,
}
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


def panels(names: Collection[str], label: str) -> dict[str, list[str]]:
    """The curves that share an axis, by its label; label is that of the first."""
    apart = {name for own in PANELS.values() for name in own}
    found = {label: sorted(name for name in names if name not in apart)}
    found |= {own: [name for name in PANELS[own] if name in names] for own in PANELS}
    return {own: shared for own, shared in found.items() if shared}


def draw(rows: Sequence[Row], target: Path, title: str, label: str = "mean log cost") -> None:
    """Each loss over the steps, thin as it was logged and thick as its running mean.

    Args:
        rows: lines of a log (see `watch.read_log`), at least one.
        target: of the SVG file.
        title: stands over the curves. label: of the losses above; those of PANELS stand below.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "curves need matplotlib: install vcfilter with the extra evaluate"
        ) from error
    found = curves(rows)
    parts = panels(found, label)
    figure = Figure(figsize=(9, 2 + 2.4 * len(parts)), layout="constrained")
    every = figure.subplots(len(parts), sharex=True, squeeze=False)[:, 0]
    for axes, (own, names) in zip(every, parts.items(), strict=True):
        for name in names:
            points = found[name]
            steps, values = zip(*points, strict=True)
            (line,) = axes.plot(steps, values, alpha=0.3, linewidth=1)
            axes.plot(*zip(*smooth(points), strict=True), color=line.get_color(), label=name)
        axes.set_ylabel(own)
        axes.grid(alpha=0.4)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    every[0].set_title(title)
    every[-1].set_xlabel("step")
    figure.savefig(target, format="svg")
