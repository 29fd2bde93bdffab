"""How many frames inherit each position of a keyframe or an anchor."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import texture

from vcfilter.codec.propagation import LEAST, MOST, Inheritance, anchor_scale, key_scales
from vcfilter.codec.structure import between_anchors, coding_order
from vcfilter.codec.trajectories import search_step

HEIGHT, WIDTH = 64, 96


def scene(seed: int, width: int = WIDTH) -> np.ndarray:
    return (texture(seed, HEIGHT, width) * 235).astype(np.uint8)


def half_still(count: int) -> dict[int, np.ndarray]:
    """The left half stays, the right half is another in every frame."""
    left = scene(0)
    frames = {}
    for number in range(count):
        frames[number] = left.copy()
        frames[number][:, WIDTH // 2 :] = scene(number + 1)[:, WIDTH // 2 :]
    return frames


def test_what_stays_is_worth_more_than_what_changes() -> None:
    scales = key_scales(half_still(13), coding_order(12), [0, 12], 8)
    assert list(scales) == [0, 12]
    for scale in scales.values():
        assert scale.shape == (HEIGHT // 8, WIDTH // 8)
        assert scale.dtype == np.float32
        assert LEAST <= scale.min() <= scale.max() <= MOST
        assert scale[:, :5].max() < 1 < scale[:, 7:].min()


def test_a_still_picture_is_worth_the_same_everywhere() -> None:
    scales = key_scales(dict.fromkeys(range(13), scene(0)), coding_order(12), [0, 12], 8)
    for scale in scales.values():
        assert np.abs(scale - 1).max() < 1e-5


def test_motion_is_followed() -> None:
    """Of a pan the part that leaves the picture is inherited least."""
    wide = scene(0, WIDTH + 4 * 8)
    frames = {n: np.ascontiguousarray(wide[:, 4 * n : 4 * n + WIDTH]) for n in range(9)}
    scale = key_scales(frames, between_anchors((0,), 8), [0], 8)[0]
    assert scale[:, :3].mean() > 1.2 * scale[:, 5:].mean()


def test_bit_depth_and_odd_sizes() -> None:
    frames = {n: y[:53, :85] for n, y in half_still(5).items()}
    deep = {n: y.astype(np.uint16) * 4 for n, y in frames.items()}
    scale = key_scales(frames, coding_order(4), [0], 8)[0]
    assert scale.shape == (7, 11)
    assert np.array_equal(scale, key_scales(deep, coding_order(4), [0], 10)[0])


@pytest.mark.parametrize("rows", [16, 31])
def test_pictures_too_small_for_a_search_have_none(rows: int) -> None:
    frames = {n: y[:rows] for n, y in half_still(5).items()}
    assert key_scales(frames, coding_order(4), [0, 4], 8) == {}


def test_keyframes_that_nothing_refers_to_have_none() -> None:
    frames = half_still(9)
    assert key_scales(frames, (), [0], 8) == {}
    assert (
        key_scales({n + 4: y for n, y in frames.items()}, between_anchors((4,), 12), [0], 8) == {}
    )


def inheritances(frames: dict[int, np.ndarray], bit_depth: int = 8) -> list[Inheritance]:
    found = []
    for number in range(1, len(frames)):
        now, before = frames[number], frames[number - 1]
        step = search_step(now, before, bit_depth)
        assert step is not None
        found.append(Inheritance.of(before, now, step, bit_depth))
    return found


def test_what_stays_of_an_anchor_is_worth_more() -> None:
    links = inheritances(half_still(9))
    assert links[0].share.shape == (HEIGHT // 8, WIDTH // 8)
    assert 0 <= links[0].share.min() <= links[0].share.max() <= 1
    scale = anchor_scale(links)
    assert scale.shape == (HEIGHT // 8, WIDTH // 8)
    assert scale.dtype == np.float32
    assert LEAST <= scale.min() <= scale.max() <= MOST
    assert scale[:, :5].max() < 1 < scale[:, 7:].min()


def test_an_anchors_motion_is_followed() -> None:
    """Of a pan the part that leaves the frame is inherited least."""
    wide = scene(0, WIDTH + 4 * 8)
    frames = {n: np.ascontiguousarray(wide[:, 4 * n : 4 * n + WIDTH]) for n in range(9)}
    scale = anchor_scale(inheritances(frames))
    assert scale[:, :3].mean() > 1.2 * scale[:, 5:].mean()


def test_an_anchor_of_deep_samples_and_odd_size() -> None:
    frames = {n: np.ascontiguousarray(y[:, :85]) for n, y in half_still(5).items()}
    deep = {n: y.astype(np.uint16) * 4 for n, y in frames.items()}
    scale = anchor_scale(inheritances(frames))
    assert scale.shape == (8, 11)
    assert np.array_equal(scale, anchor_scale(inheritances(deep, 10)))


def test_frames_too_small_for_a_search() -> None:
    assert search_step(scene(0)[:48], scene(0)[:48], 8) is None
