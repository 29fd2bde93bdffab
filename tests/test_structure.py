"""Segments: coding order, memory of the order, scene cuts."""

import numpy as np
import pytest

from vcfilter.codec.structure import (
    GopStep,
    SceneCutDetector,
    Segment,
    Segmenter,
    coding_order,
    last_uses,
    thumbnail,
)
from vcfilter.errors import ConfigError

LENGTHS = range(1, 65)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_frame_once_after_its_references(length: int, closed: bool) -> None:
    steps = coding_order(length, closed)
    layers = {0: 0}
    if closed:
        layers[length] = 0
    for step in steps:
        assert step.position not in layers
        assert all(reference in layers for reference in step.references)
        assert all(layers[reference] < step.layer for reference in step.references)
        layers[step.position] = step.layer
    assert sorted(layers) == list(range(length + closed))
    assert max(layers.values()) <= 7


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_frames_come_in_display_order_from_few_references(length: int, closed: bool) -> None:
    steps = coding_order(length, closed)
    uses = last_uses(steps)
    held = {0, length} if closed else {0}
    shown = 1
    for index, step in enumerate(steps):
        held.add(step.position)
        while shown in held and shown < length:
            shown += 1
        held = {p for p in held if uses.get(p, -1) > index or p >= shown}
        assert len(held) <= length.bit_length() + 2
    assert shown == length


def test_twelve_frames() -> None:
    closed = coding_order(12, True)
    assert [s.position for s in closed] == [6, 3, 1, 2, 4, 5, 9, 7, 8, 10, 11]
    assert closed[0] == GopStep(position=6, left=0, right=12, layer=1)
    assert closed[0].distances == (6, 6)
    assert [s.layer for s in closed] == [1, 2, 3, 4, 3, 4, 2, 3, 4, 3, 4]

    tail = coding_order(12, False)
    assert tail[0] == GopStep(position=11, left=0, right=None, layer=1)
    assert tail[0].distances == (11, 0)
    assert tail[1] == GopStep(position=5, left=0, right=11, layer=2)
    assert coding_order(1, False) == () == coding_order(1, True)


@pytest.mark.parametrize("length", [0, 65, -1])
def test_lengths_out_of_range(length: int) -> None:
    with pytest.raises(ConfigError, match=str(length)):
        coding_order(length, True)


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


def segments(frames: list[np.ndarray], keyint: int, scenecut: bool) -> list[Segment]:
    segmenter = Segmenter(keyint, scenecut)
    found = [segmenter.push(frame, 8) for frame in frames]
    return [segment for segment in found if segment is not None] + segmenter.finish()


@pytest.mark.parametrize("scenecut", [True, False])
@pytest.mark.parametrize("keyint", [1, 2, 12, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 12, 13, 24, 25, 66])
def test_segmenter_covers_all_frames(keyint: int, count: int, scenecut: bool) -> None:
    still = np.full((32, 32), 90, np.uint8)
    found = segments([still] * count, keyint, scenecut)
    assert sum(segment.length for segment in found) == count
    assert all(segment == Segment(length=keyint, closed=True) for segment in found[:-1])
    if found:
        assert not found[-1].closed
        assert 1 <= found[-1].length <= keyint


@pytest.mark.parametrize("cut", [5, 12, 13])
def test_segments_end_before_a_cut(cut: int) -> None:
    frames = [noisy(scene(int(i >= cut))[:, :176], i) for i in range(20)]
    closed = cut > 12
    expected = [Segment(length=12, closed=True)] if closed else []
    expected += [Segment(length=cut - 12 * closed, closed=False)]
    found = segments(frames, 12, True)
    assert found[: len(expected)] == expected
    assert sum(segment.length for segment in found) == 20


def test_a_new_stream_after_finish() -> None:
    segmenter = Segmenter(4, True)
    still = np.full((32, 32), 90, np.uint8)
    for _ in range(2):
        assert [segmenter.push(still, 8) for _ in range(4)] == [None] * 4
        assert segmenter.finish() == [Segment(length=4, closed=False)]
