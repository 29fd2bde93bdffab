"""How far a frame is from its source: PSNR per plane and 6:1:1, SSIM and MS-SSIM of luma.

All functions take planes as they are stored (uint8 for 8 bit, uint16 for 10 bit), at their own
size and bit depth; nothing is converted to RGB, so no colour matrix can enter the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, Plane

PSNR_CAP = 100.0
"""What equal planes score, in dB, so that averages over frames stay finite."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang, Simoncelli and Bovik 2003, section 3.2)."""

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePsnr:
    """PSNR of one frame's planes in dB, each at most PSNR_CAP."""

    y: float
    u: float
    v: float

    @property
    def weighted(self) -> float:
        """(6 Y + U + V) / 8: the field's usual single figure for 4:2:0."""
        return (6 * self.y + self.u + self.v) / 8


def _check(a: Plane, b: Plane, bit_depth: int) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ConfigError(f"planes of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype != b.dtype or a.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ConfigError(f"planes of {a.dtype} and {b.dtype} cannot be compared")
    if not 8 <= bit_depth <= 16:
        raise ConfigError(f"bit depth {bit_depth} is outside 8 to 16")


def squared_error(a: Plane, b: Plane) -> int:
    """Sum of squared differences of two planes of equal shape, exact."""
    difference = a.astype(np.int32) - b.astype(np.int32)
    # Row sums stay below 2^63 for any 16-bit frame, and int64 keeps them exact.
    return int(np.einsum("ij,ij->", difference, difference, dtype=np.int64))


def plane_psnr(a: Plane, b: Plane, bit_depth: int = 8) -> float:
    """PSNR of two planes in dB, with peak 2^bit_depth - 1; PSNR_CAP when they are equal.

    Args:
        a, b: (height, width), uint8 or uint16.
        bit_depth: bits per sample, 8 to 16.

    Raises:
        ConfigError: shapes or types differ.
    """
    _check(a, b, bit_depth)
    error = squared_error(a, b)
    if error == 0:
        return PSNR_CAP
    peak = (1 << bit_depth) - 1
    return min(PSNR_CAP, float(10 * np.log10(peak * peak * a.size / error)))


def frame_psnr(a: Frame, b: Frame, bit_depth: int = 8) -> FramePsnr:
    """PSNR of each plane of two frames."""
    y, u, v = (plane_psnr(p, q, bit_depth) for p, q in zip(a.planes, b.planes, strict=True))
    return FramePsnr(y=y, u=u, v=v)


def _gaussian() -> Maps:
    taps = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    normalised: Maps = (taps / taps.sum()).astype(np.float32)
    return normalised


_TAPS = _gaussian()


def _blur(maps: Maps) -> Maps:
    """Gaussian window over the last two axes, without padding: (n, h, w) -> (n, h-10, w-10)."""
    middle = _WINDOW // 2
    for axis in (1, 2):
        length = maps.shape[axis] - _WINDOW + 1
        shifted = [
            maps[:, i : i + length] if axis == 1 else maps[:, :, i : i + length]
            for i in range(_WINDOW)
        ]
        total: Maps = shifted[middle] * _TAPS[middle]
        for i in range(middle):
            pair: Maps = shifted[i] + shifted[_WINDOW - 1 - i]
            pair *= _TAPS[i]
            total += pair
        maps = total
    return maps


def _halve(plane: Maps) -> Maps:
    """Mean of 2x2 samples; an odd last row or column is left out."""
    h, w = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    quads = plane[:h, :w].reshape(h // 2, 2, w // 2, 2)
    halved: Maps = quads.mean(axis=(1, 3), dtype=np.float32)
    return halved


def _similarity(x: Maps, y: Maps, peak: int) -> tuple[Maps, Maps, Maps]:
    """Contrast terms of two planes around zero, and the local means of both."""
    c2 = np.float32((_K2 * peak) ** 2)
    mean_x, mean_y, xx, yy, xy = _blur(np.stack([x, y, x * x, y * y, x * y]))
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (
        xx - mean_x * mean_x + yy - mean_y * mean_y + c2
    )
    return contrast, mean_x, mean_y


def _luminance(mean_x: Maps, mean_y: Maps, peak: int) -> Maps:
    """Luminance terms of local means around zero."""
    c1, middle = np.float32((_K1 * peak) ** 2), np.float32((peak + 1) / 2)
    mean_x, mean_y = mean_x + middle, mean_y + middle
    terms = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return np.asarray(terms, np.float32)


def ssim(a: Plane, b: Plane, bit_depth: int = 8) -> float:
    """Structural similarity of two planes, -1 to 1 (1: equal): one scale of `ms_ssim`.

    Args:
        a, b: (height, width), uint8 or uint16, both sides at least 11.
        bit_depth: bits per sample, 8 to 16.

    Raises:
        ConfigError: shapes or types differ, or a side is below 11.
    """
    _check(a, b, bit_depth)
    if min(a.shape) < _WINDOW:
        raise ConfigError(f"plane of {a.shape} is too small for SSIM: 11 samples at least")
    peak = (1 << bit_depth) - 1
    middle = np.float32((peak + 1) / 2)
    contrast, *means = _similarity(
        a.astype(np.float32) - middle, b.astype(np.float32) - middle, peak
    )
    return float((contrast * _luminance(means[0], means[1], peak)).mean(dtype=np.float64))


def ms_ssim(a: Plane, b: Plane, bit_depth: int = 8) -> float:
    """Multi-scale structural similarity of two planes, 0 to 1 (1: equal).

    Window 11x11, sigma 1.5, no padding, five scales by 2x2 averaging. Planes with a side under
    176 samples have room for fewer scales; the weights of those left are then scaled to sum to
    one. A negative contrast term counts as 0.

    Args:
        a, b: (height, width), uint8 or uint16, both sides at least 11.
        bit_depth: bits per sample, 8 to 16.

    Raises:
        ConfigError: shapes or types differ, or a side is below 11.
    """
    _check(a, b, bit_depth)
    if min(a.shape) < _WINDOW:
        raise ConfigError(f"plane of {a.shape} is too small for MS-SSIM: 11 samples at least")
    peak = (1 << bit_depth) - 1
    # Around zero, so that E[x^2] - E[x]^2 loses little in float32; the mean is added back below.
    middle = np.float32((peak + 1) / 2)
    x, y = a.astype(np.float32) - middle, b.astype(np.float32) - middle
    scales = 1
    while scales < len(MS_SSIM_WEIGHTS) and min(a.shape) >> scales >= _WINDOW:
        scales += 1
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    weights /= weights.sum()
    score = 1.0
    for scale in range(scales):
        contrast, mean_x, mean_y = _similarity(x, y, peak)
        if scale == scales - 1:
            contrast = contrast * _luminance(mean_x, mean_y, peak)
        score *= max(0.0, float(contrast.mean(dtype=np.float64))) ** float(weights[scale])
        if scale < scales - 1:
            x, y = _halve(x), _halve(y)
    return min(1.0, score)
