"""vcfilter.metrics against values computed by hand and by other routes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vcfilter.errors import ConfigError
from vcfilter.frames import Frame
from vcfilter.metrics import (
    MS_SSIM_WEIGHTS,
    PSNR_CAP,
    FramePsnr,
    frame_psnr,
    ms_ssim,
    plane_psnr,
    squared_error,
    ssim,
)


def noise_pair(shape: tuple[int, int], sigma: float, peak: int = 255) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(7)
    dtype = np.uint8 if peak == 255 else np.uint16
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 160 / 160 * peak * 0.8
    other = ramp + rng.normal(0, sigma * peak / 255, shape)
    return ramp.astype(dtype), np.clip(np.rint(other), 0, peak).astype(dtype)


def test_psnr_by_hand() -> None:
    a = np.full((4, 5), 100, np.uint8)
    assert plane_psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    b = a.copy()
    b[0, 0] = 110  # squared error 100 over 20 samples: 5
    assert squared_error(a, b) == 100
    assert plane_psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 5))
    assert plane_psnr(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8)) == 0


def test_psnr_of_10_bit_uses_its_own_peak() -> None:
    a = np.full((4, 4), 500, np.uint16)
    assert plane_psnr(a, a + 4, 10) == pytest.approx(20 * math.log10(1023 / 4))


def test_equal_planes_score_the_cap() -> None:
    a = np.zeros((4, 4), np.uint8)
    assert plane_psnr(a, a) == PSNR_CAP


def test_squared_error_does_not_wrap() -> None:
    a, b = np.zeros((1000, 1000), np.uint16), np.full((1000, 1000), 65535, np.uint16)
    assert squared_error(a, b) == 65535**2 * 10**6


def test_weighted_is_6_1_1() -> None:
    assert FramePsnr(y=40, u=44, v=36).weighted == pytest.approx((240 + 44 + 36) / 8)
    luma, chroma = np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8)
    one = Frame(y=luma, u=chroma, v=chroma, pts=0)
    other = Frame(y=luma + 1, u=chroma + 2, v=chroma, pts=0)
    got = frame_psnr(one, other)
    assert (got.y, got.u, got.v) == pytest.approx((48.1308, 42.1102, PSNR_CAP), abs=1e-4)


@pytest.mark.parametrize(("peak", "depth"), [(255, 8), (1023, 10)])
@pytest.mark.parametrize("shape", [(192, 208), (201, 187), (60, 90)])
def test_ms_ssim_equals_a_plain_float64_computation(
    shape: tuple[int, int], peak: int, depth: int
) -> None:
    signal = pytest.importorskip("scipy.signal")
    a, b = noise_pair(shape, 12, peak)
    axis = np.arange(11) - 5
    window = np.exp(-np.add.outer(axis**2, axis**2) / 4.5)
    window /= window.sum()
    x, y = a.astype(float), b.astype(float)
    scales = 5 if min(shape) >= 176 else 3
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    expected = 1.0
    for scale in range(scales):
        filtered = [signal.convolve2d(m, window, "valid") for m in (x, y, x * x, y * y, x * y)]
        mx, my, xx, yy, xy = filtered
        c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        cs = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
        if scale == scales - 1:
            cs = cs * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        expected *= cs.mean() ** weights[scale]
        x, y = (
            (m[0 : h - 1 : 2, 0 : w - 1 : 2] + m[1:h:2, 0 : w - 1 : 2]
             + m[0 : h - 1 : 2, 1:w:2] + m[1:h:2, 1:w:2]) / 4
            for m in (x, y)
            for h, w in [(m.shape[0] // 2 * 2, m.shape[1] // 2 * 2)]
        )  # fmt: skip
    # float32 against float64: sums of 121 products, then a mean over the plane.
    assert ms_ssim(a, b, depth) == pytest.approx(expected, abs=2e-5)


def test_ms_ssim_orders_and_bounds() -> None:
    scores = [ms_ssim(*noise_pair((192, 192), sigma)) for sigma in (0.6, 5, 20, 60)]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] < scores[0] <= 1
    a, _ = noise_pair((192, 192), 1)
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(a, 255 - a) < 0.05


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)),
    ],
)
def test_planes_that_do_not_match_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        plane_psnr(a, b)


def test_ssim_is_one_scale_of_ms_ssim_and_right_for_flat_planes() -> None:
    a, b = noise_pair((16, 21), 20)  # no room for a second scale
    assert ssim(a, b) == pytest.approx(ms_ssim(a, b), abs=1e-6)
    assert 0 < ssim(a, b) < 1
    flat, other = np.full((12, 12), 100, np.uint8), np.full((12, 12), 140, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, other) == pytest.approx((28000 + c1) / (29600 + c1), abs=1e-5)
    with pytest.raises(ConfigError):
        ssim(flat[:10], other[:10])


def test_too_small_for_ms_ssim() -> None:
    with pytest.raises(ConfigError, match="too small"):
        ms_ssim(np.zeros((10, 99), np.uint8), np.zeros((10, 99), np.uint8))
