"""Rate-distortion curves as SVG and PNG; needs matplotlib, which is optional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcfilter.errors import ConfigError
from vcfilter.evaluate.runner import Curve

COLOURS = ("#c8102e", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#7f7f7f", "#8c564b")
MARKERS = "osD^vPX*"

NO_MATPLOTLIB = (
    "curves are left out: matplotlib is not installed (vcfilter's extra evaluate has it)"
)


def ms_ssim_db(value: float) -> float:
    """-10 log10(1 - MS-SSIM), which spreads the values near 1; 60 at most."""
    return 60.0 if value >= 1 - 1e-6 else -10 * math.log10(1 - value)


def have_matplotlib() -> bool:
    """Whether curves can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_curves(curves: Sequence[Curve], title: str, target: Path) -> None:
    """Draw PSNR and MS-SSIM over rate of several codecs into target.svg and target.png.

    Args:
        curves: of one clip and one keyframe interval.
        title: stands over both plots.
        target: path without suffix; its folder exists.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if not have_matplotlib():
        raise ConfigError(NO_MATPLOTLIB)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with matplotlib.rc_context({"svg.hashsalt": "vcfilter", "font.size": 9}):
        figure: Any = Figure(figsize=(9.6, 4.0), layout="constrained")
        figure.suptitle(title)
        left, right = figure.subplots(1, 2)
        for i, curve in enumerate(curves):
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "markersize": 4,
                "linewidth": 2.2 if curve.codec.startswith("vcfilter") else 1.3,
                "label": curve.codec,
            }
            rates = [p.kbps for p in curve.points]
            left.plot(rates, [p.psnr for p in curve.points], **style)
            right.plot(rates, [ms_ssim_db(p.ms_ssim) for p in curve.points], **style)
        left.set_ylabel("PSNR 6:1:1, dB")
        right.set_ylabel("MS-SSIM of luma, dB")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("kbit/s of the video stream")
            axes.grid(True, alpha=0.3)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        left.legend()
        figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(target.with_suffix(".png"), dpi=110)
