"""The frozen probability tables: 64 symmetric distributions of rising scale."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TABLES = 64
SKIP = 0  # symbols under this table are not coded: they are zero
MAGNITUDE_MAX = 255  # larger magnitudes escape
SCALE_MIN = 0.0658  # Laplace scale at which one symbol in 2000 is not zero
SCALE_MAX = 128.0
LEAST = 2.0**-27  # of a probability: `normalise` raises to twice that, and divides by the sum
SUM_TOLERANCE = 1e-9

Probabilities = npt.NDArray[np.float64]


def scales() -> Probabilities:
    """(64,) Laplace scales in quantiser steps, evenly spaced in their logarithm."""
    return np.asarray(np.geomspace(SCALE_MIN, SCALE_MAX, TABLES), dtype=np.float64)


def laplace_magnitudes() -> Probabilities:
    """(64, 257) probabilities of |symbol| = 0 ... 255 and, last, of a larger one."""
    b = scales()[:, None]
    n = np.arange(1, MAGNITUDE_MAX + 1)[None, :]
    table = np.empty((TABLES, MAGNITUDE_MAX + 2))
    table[:, :1] = 1.0 - np.exp(-0.5 / b)
    table[:, 1:-1] = np.exp(-(n - 0.5) / b) * (1.0 - np.exp(-1.0 / b))
    table[:, -1:] = np.exp(-(MAGNITUDE_MAX + 0.5) / b)
    return normalise(table)


def normalise(table: Probabilities) -> Probabilities:
    """Rows made to sum to one, no entry below 2^-26 (so that every symbol has a cost)."""
    table = np.maximum(table, 2.0**-26)
    return np.asarray(table / table.sum(1, keepdims=True))


def cost_bits(magnitudes: Probabilities) -> Probabilities:
    """(64, 257) bits of a symbol by its magnitude, sign included; escapes without their suffix."""
    bits = -np.log2(magnitudes)
    bits[:, 1:] += 1.0
    return bits


def support(magnitudes: Probabilities, table: int) -> int:
    """The largest magnitude coded without escape: beyond it less than 2^-14 is left."""
    tail = np.cumsum(magnitudes[table, ::-1])[::-1]  # tail[n] = P(|s| >= n)
    return int(np.clip(np.searchsorted(-tail, -(2.0**-14)), 2, MAGNITUDE_MAX))


def alphabet(magnitudes: Probabilities, table: int) -> Probabilities:
    """Probabilities of the coded symbols of one table: -L ... L, then the escape."""
    length = support(magnitudes, table)
    half = magnitudes[table, 1 : length + 1] / 2
    escape = magnitudes[table, length + 1 :].sum()
    full = np.concatenate([half[::-1], magnitudes[table, :1], half, [escape]])
    full = np.maximum(full, 2.0**-20)
    return np.asarray(full / full.sum())


def fault(magnitudes: Probabilities) -> str | None:
    """What makes an array no set of tables; None: it is one."""
    wanted = (TABLES, MAGNITUDE_MAX + 2)
    if magnitudes.shape != wanted or magnitudes.dtype != np.float64:
        return f"tables are {magnitudes.dtype} {magnitudes.shape}, not float64 {wanted}"
    if not np.isfinite(magnitudes).all() or magnitudes.min() < LEAST:
        return f"a table has a probability that is not at least {LEAST:.3g}"
    if np.abs(magnitudes.sum(1) - 1).max() > SUM_TOLERANCE:
        return "the probabilities of a table do not sum to 1"
    return None
