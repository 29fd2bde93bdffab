"""Motion by way of the frames between."""

import threading

import numpy as np
import pytest

from vcfilter.codec import trajectories
from vcfilter.codec.trajectories import Trajectories

HEIGHT, WIDTH = 96, 136
STEP = (3, -2)  # samples per frame, across and down


def scene(number: int) -> np.ndarray:
    """Luma of smooth noise that moves by STEP per frame."""
    size = HEIGHT + 200, WIDTH + 200
    noise = np.random.default_rng(3).normal(size=size)
    spectrum = np.fft.rfft2(noise)
    falling = np.exp(
        -((np.fft.fftfreq(size[0])[:, None] * 12) ** 2) - (np.fft.rfftfreq(size[1]) * 12) ** 2
    )
    smooth = np.fft.irfft2(spectrum * falling, s=size)
    luma = 128 + 40 * smooth / smooth.std()
    top, left = 100 - number * STEP[1], 100 - number * STEP[0]
    return np.clip(np.rint(luma[top : top + HEIGHT, left : left + WIDTH]), 0, 255).astype(np.uint8)


def lumas(first: int, last: int) -> dict[int, np.ndarray]:
    return {number: scene(number) for number in range(first, last + 1)}


def inner(flow: np.ndarray) -> np.ndarray:
    """Means over what is far from the border."""
    return flow[:, 4:-4, 4:-4].mean((1, 2))


def test_motion_adds_up_over_frames() -> None:
    tool = Trajectories(lumas(0, 8), 8)
    back, ahead = tool.to_references(6, (0, 8))
    assert back.shape == ahead.shape == (2, HEIGHT // 8, WIDTH // 8)
    assert back.dtype == np.float32
    assert inner(back) == pytest.approx([-6 * STEP[0], -6 * STEP[1]], abs=0.5)
    assert inner(ahead) == pytest.approx([2 * STEP[0], 2 * STEP[1]], abs=0.1)


def test_motion_goes_on_from_the_segment_before() -> None:
    whole = Trajectories(lumas(0, 8), 8)
    wanted = whole.to_references(8, (4, 0))
    first = Trajectories(lumas(0, 4), 8)
    assert first.to_references(4, (0,)) is not None
    second = Trajectories(lumas(5, 8), 8, first.known_motion(4, [0, 2]))
    found = second.to_references(8, (4, 0))
    for one, other in zip(found, wanted, strict=True):
        # Flows are put together in another order, which tells where they leave the picture.
        assert np.abs(one - other)[:, 2:-2, 2:-2].max() < 0.05
    third = Trajectories(lumas(9, 10), 8, second.known_motion(8, [4, 0]))
    flow = third.to_references(10, (0,))[0]
    assert inner(flow) == pytest.approx([-10 * STEP[0], -10 * STEP[1]], abs=1)


def test_what_was_not_asked_for_waits_for_a_search() -> None:
    """As where a frame repeats another: later ones go through it all the same."""
    first = Trajectories(lumas(0, 4), 8)
    first.to_references(2, (0,))  # never between 2 and 4
    motion = first.known_motion(4, [0])
    assert sorted(motion.lumas) == [0, 1, 2, 3, 4]
    second = Trajectories(lumas(5, 6), 8, motion)
    wanted = Trajectories(lumas(0, 6), 8).to_references(6, (4, 0))
    for one, other in zip(second.to_references(6, (4, 0)), wanted, strict=True):
        assert np.abs(one - other).max() < 0.05
    assert sorted(second.known_motion(6, [4, 0]).lumas) == [6]
    alone = Trajectories(lumas(5, 6), 8)
    assert alone.to_references(6, (4,)) is None


def test_frames_that_wait_are_few() -> None:
    first = Trajectories(lumas(0, 9), 8)
    first.to_references(5, (4,))
    motion = first.known_motion(9, [0])
    assert sorted(motion.lumas) == [9]
    second = Trajectories(lumas(10, 10), 8, motion)
    assert second.to_references(10, (0,)) is None
    assert second.to_references(10, (9,)) is not None
    assert sorted(second.known_motion(10, [0, 9]).lumas) == [10]  # 0 is out of reach


def test_threads_change_nothing() -> None:
    found = [Trajectories(lumas(0, 8), 8, threads=n).to_references(6, (0, 8)) for n in (1, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_large_frames_are_searched_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[int] = []
    usual = trajectories.fine_search

    def search(x: np.ndarray, reference: np.ndarray, scale: int) -> np.ndarray:
        scales.append(scale)
        return usual(x, reference, scale)

    monkeypatch.setattr(trajectories, "fine_search", search)
    monkeypatch.setattr(trajectories, "LARGE", HEIGHT * WIDTH // 4)
    monkeypatch.setattr(trajectories, "ROUGH", HEIGHT * WIDTH // 16)
    frames = lumas(0, 1)
    assert Trajectories(frames, 8).to_references(1, (0,)) is not None
    step = trajectories.search_step(frames[1], frames[0], 8)
    assert scales == [2, 4]
    assert step.shape == (HEIGHT // 4, WIDTH // 4, 2)


def test_each_step_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    usual = trajectories.fine_search

    def search(x: np.ndarray, reference: np.ndarray, scale: int) -> np.ndarray:
        calls.append(1)
        return usual(x, reference, scale)

    monkeypatch.setattr(trajectories, "fine_search", search)
    tool = Trajectories(lumas(0, 4), 8)
    found: list[list[np.ndarray] | None] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(tool.to_references(n, (0,))))
        for n in (4, 3, 2, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert len(calls) == 4
    tool.to_references(0, (4,))  # back along what is known
    assert len(calls) == 4


def test_a_search_that_fails_fails_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(x: np.ndarray, reference: np.ndarray, scale: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(trajectories, "fine_search", search)
    tool = Trajectories(lumas(0, 1), 8)
    for _ in range(2):
        with pytest.raises(MemoryError):
            tool.to_references(1, (0,))


def test_deep_samples_and_sides_that_are_no_multiples_of_8() -> None:
    deep = {n: luma[:-3, :-5].astype(np.uint16) << 2 for n, luma in lumas(0, 2).items()}
    flow = Trajectories(deep, 10).to_references(2, (0,))[0]
    assert flow.shape == (2, HEIGHT // 8, WIDTH // 8)
    assert inner(flow) == pytest.approx([-2 * STEP[0], -2 * STEP[1]], abs=0.3)


@pytest.mark.parametrize(("side", "known"), [(64, True), (32, True), (24, False)])
def test_small_frames_are_not_searched(side: int, known: bool) -> None:
    small = {n: luma[:side, :side] for n, luma in lumas(0, 1).items()}
    assert (Trajectories(small, 8).to_references(1, (0,)) is not None) == known
