"""Scene cuts from thumbnails: cuts are found, pans, flashes and fades are none."""

from __future__ import annotations

import numpy as np
import pytest

from vcfilter.codec.scenecut import SceneCutDetector, thumbnail


def scene(seed: int, height: int = 144, width: int = 400) -> np.ndarray:
    """A textured picture, 0 to 255, with large and small structures."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width))
    for size in (4, 16, 48):
        coarse = rng.normal(size=(height // size + 2, width // size + 2))
        picture += size**0.5 * np.kron(coarse, np.ones((size, size)))[:height, :width]
    picture -= picture.min()
    return picture / picture.max() * 255


def noisy(picture: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def cuts(frames: list[np.ndarray]) -> list[int]:
    detector = SceneCutDetector()
    small = [thumbnail(frame, 8) for frame in frames]
    return [
        index
        for index, (current, after) in enumerate(zip(small, [*small[1:], None], strict=True))
        if detector.is_cut(current, after)
    ]


def test_cuts_are_found() -> None:
    frames = [noisy(scene(i // 10)[:, :176], i) for i in range(40)]
    assert cuts(frames) == [10, 20, 30]


def test_cut_at_the_last_frame() -> None:
    frames = [noisy(scene(i // 10)[:, :176], i) for i in range(11)]
    assert cuts(frames) == [10]


@pytest.mark.parametrize("speed", [1, 4, 12])
def test_a_pan_is_no_cut(speed: int) -> None:
    wide = scene(3, 144, 600)
    offsets = [0] * 5 + [speed * i for i in range(30)]
    assert cuts([noisy(wide[:, o : o + 176], i) for i, o in enumerate(offsets)]) == []


def test_a_cut_within_a_pan() -> None:
    a, b = scene(4, 144, 600), scene(5, 144, 600)
    frames = [noisy((a if i < 15 else b)[:, 6 * i : 6 * i + 176], i) for i in range(30)]
    assert cuts(frames) == [15]


def test_flash_fade_and_one_odd_frame_are_no_cuts() -> None:
    base = scene(6)[:, :176]
    frames = [noisy(base, i) for i in range(30)]
    frames[8] = noisy(base * 0.4 + 150, 8)  # a flash
    frames[15] = noisy(scene(7)[:, :176], 15)  # one frame of something else
    frames += [noisy(base * (1 - i / 20), i) for i in range(20)]
    assert cuts(frames) == []


def test_thumbnails() -> None:
    for shape in ((16, 16), (17, 33), (288, 352), (2304, 4096)):
        plane = np.full(shape, 100, np.uint8)
        small = thumbnail(plane, 8)
        assert max(small.shape) <= 64
        assert small.dtype == np.float32
        assert np.all(small == 100)
        assert np.all(thumbnail(plane.astype(np.uint16) * 4, 10) == 100)
