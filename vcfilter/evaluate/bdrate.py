"""BD-rate: the average difference in bits of two codecs at equal quality.

The logarithm of the rate is interpolated over quality by a monotone piecewise cubic (PCHIP) and
the difference is averaged over the quality range that both curves cover (Bjontegaard, VCEG-M33,
with the piecewise interpolation that JCT-VC adopted afterwards).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vcfilter.errors import ConfigError

LITTLE_OVERLAP = 0.5
"""Below this share of the narrower curve's range a BD-rate carries a warning."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BdRate:
    """Result of bd_rate.

    Args:
        percent: average difference in rate; negative: the tested codec needs fewer bits.
            None when the curves share no quality.
        low, high: the quality range that was compared.
        overlap: its length as a share of the narrower curve's range, 0 to 1.
        note: what a reader has to know about the figure; "" when it is sound.
    """

    percent: float | None
    low: float
    high: float
    overlap: float
    note: str


def pchip_slopes(x: Vector, y: Vector) -> Vector:
    """Slopes at the knots of the monotone piecewise cubic (Fritsch and Butland 1984).

    Args:
        x: (n,) strictly increasing, n >= 2.
        y: (n,) values.
    """
    step = np.diff(x)
    secant = np.diff(y) / step
    if len(x) == 2:
        return np.array([secant[0], secant[0]])
    slopes = np.zeros_like(y)
    for i in range(1, len(x) - 1):
        before, after = float(secant[i - 1]), float(secant[i])
        if before * after > 0:
            w1 = 2 * step[i] + step[i - 1]
            w2 = step[i] + 2 * step[i - 1]
            slopes[i] = (w1 + w2) / (w1 / before + w2 / after)
    slopes[0] = _end_slope(step[0], step[1], secant[0], secant[1])
    slopes[-1] = _end_slope(step[-1], step[-2], secant[-1], secant[-2])
    return slopes


def _end_slope(h0: float, h1: float, s0: float, s1: float) -> float:
    """Three-point slope at an end, kept to the sign and three times the secant beside it."""
    slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if slope * s0 <= 0:
        return 0.0
    if s0 * s1 <= 0 and abs(slope) > 3 * abs(s0):
        return 3 * s0
    return slope


def pchip_integral(x: Vector, y: Vector, low: float, high: float) -> float:
    """Exact integral of the piecewise cubic through (x, y) from low to high, within the knots."""
    slopes = pchip_slopes(x, y)
    total = 0.0
    for i in range(len(x) - 1):
        a, b = max(low, float(x[i])), min(high, float(x[i + 1]))
        if b <= a:
            continue
        h = float(x[i + 1] - x[i])
        d0, d1 = float(slopes[i]) * h, float(slopes[i + 1]) * h
        y0, y1 = float(y[i]), float(y[i + 1])
        # Hermite cubic in t = (x - x[i]) / h, highest power first.
        cubic = np.array([2 * y0 - 2 * y1 + d0 + d1, -3 * y0 + 3 * y1 - 2 * d0 - d1, d0, y0])
        primitive = np.polyint(cubic)
        ends = (np.array([a, b]) - float(x[i])) / h
        value_a, value_b = np.polyval(primitive, ends)
        total += h * float(value_b - value_a)
    return total


def _curve(rates: Sequence[float], qualities: Sequence[float]) -> tuple[Vector, Vector, int]:
    """(qualities, log rates) sorted by rate, without points that cost more and give no more."""
    if len(rates) != len(qualities):
        raise ConfigError(f"{len(rates)} rates for {len(qualities)} qualities")
    if any(not rate > 0 for rate in rates) or not all(np.isfinite([*rates, *qualities])):
        raise ConfigError("a curve's rates must be positive and its points finite")
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(zip(rates, qualities, strict=True)):
        if not kept or quality > kept[-1][1]:
            kept.append((rate, quality))
    points = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return points[:, 1], np.log(points[:, 0]), len(rates) - len(kept)


def bd_rate(
    anchor_rates: Sequence[float],
    anchor_qualities: Sequence[float],
    rates: Sequence[float],
    qualities: Sequence[float],
) -> BdRate:
    """Average difference in rate of the tested codec against the anchor, in percent.

    Args:
        anchor_rates, anchor_qualities: the anchor's points in any order; rates in any unit
            (bytes, kbit/s), qualities in dB.
        rates, qualities: the tested codec's points, in the same units.

    Raises:
        ConfigError: lists of different lengths, a rate that is not positive, a value not finite.
    """
    quality_a, log_a, dropped_a = _curve(anchor_rates, anchor_qualities)
    quality_b, log_b, dropped_b = _curve(rates, qualities)
    notes: list[str] = []
    if dropped_a or dropped_b:
        notes.append(f"{dropped_a + dropped_b} points left out that cost more and gave no more")
    if len(quality_a) < 2 or len(quality_b) < 2:
        notes.append("fewer than two usable points on a curve")
        return BdRate(percent=None, low=0, high=0, overlap=0, note="; ".join(notes))
    if min(len(quality_a), len(quality_b)) < 4:
        notes.append("fewer than four points on a curve")
    low = float(max(quality_a[0], quality_b[0]))
    high = float(min(quality_a[-1], quality_b[-1]))
    narrower = float(min(np.ptp(quality_a), np.ptp(quality_b)))
    overlap = max(0.0, high - low) / narrower
    if high <= low:
        notes.append("the curves share no quality: choose points closer together")
        return BdRate(percent=None, low=low, high=high, overlap=0, note="; ".join(notes))
    if overlap < LITTLE_OVERLAP:
        notes.append(f"the curves share only {low:.1f} to {high:.1f} dB ({overlap:.0%})")
    mean_a = pchip_integral(quality_a, log_a, low, high) / (high - low)
    mean_b = pchip_integral(quality_b, log_b, low, high) / (high - low)
    percent = 100 * float(np.expm1(mean_b - mean_a))
    return BdRate(percent=percent, low=low, high=high, overlap=overlap, note="; ".join(notes))
