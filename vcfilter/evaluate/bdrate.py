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
from scipy.interpolate import PchipInterpolator

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
        note: what a reader has to know about the figure; "" when it holds.
    """

    percent: float | None
    low: float
    high: float
    overlap: float
    note: str


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
    integrals = (
        float(PchipInterpolator(quality, log).integrate(low, high))
        for quality, log in ((quality_b, log_b), (quality_a, log_a))
    )
    tested, anchor = integrals
    percent = 100 * float(np.expm1((tested - anchor) / (high - low)))
    return BdRate(percent=percent, low=low, high=high, overlap=overlap, note="; ".join(notes))
