"""Dense inverse search (OpenCV), the same however many threads a machine has."""

from __future__ import annotations

from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt

MEDIUM = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
ULTRAFAST = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST
SMALLEST = 32
"""Side of what is searched from which on motion can be found."""
FINE_STRIDE, FINE_STEPS, FINE_ROUNDS = 4, 6, 3
"""Samples between the patches of `fine_search`, its steps on each, and rounds of its smoothing.
OpenCV's 3, 25 and 5 take twice the time, for as many bits (twelve training clips)."""

DAMPING, PULL, MOST = 30.0, 13.0, 1.5
"""Of `nearer`, per sample: what keeps flows from changing, and what draws them to their neighbours;
the largest change in samples."""

Luma = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]


class _OneThread:
    """OpenCV works in one thread meanwhile: it searches a frame in as many parts as it has.

    Their number is the whole process's; it is put back when no thread is within.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._before = Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                cv2.setNumThreads(self._before)


_one_thread = _OneThread()


def inverse_search(x: Luma, reference: Luma, preset: int, start: Flow | None = None) -> Flow:
    """Displacements (H, W, 2) from x to reference, both (H, W); Python's lock is free meanwhile.

    Args:
        preset: OpenCV's. start: (H, W, 2) where the search begins, changed.
    """
    search = cv2.DISOpticalFlow.create(preset)
    with _one_thread:
        found = search.calc(x, reference, start)  # type: ignore[arg-type]
    return np.asarray(found, np.float32)


def fine_search(x: Luma, reference: Luma, scale: int = 1) -> Flow:
    """Displacements as of `inverse_search`, as exact as flows that are put together need it: the
    search ends at the size that it is given instead of half of it, for 2.5 times MEDIUM's time.

    Args:
        scale: the frames are searched at 1/scale of their size.

    Returns:
        (H / scale, W / scale, 2), in samples of x.
    """
    if scale > 1:
        size = x.shape[1] // scale, x.shape[0] // scale
        x, reference = (
            np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA), np.uint8)
            for p in (x, reference)
        )
    search = cv2.DISOpticalFlow.create(MEDIUM)
    search.setFinestScale(0)
    search.setPatchStride(FINE_STRIDE)
    search.setGradientDescentIterations(FINE_STEPS)
    search.setVariationalRefinementIterations(FINE_ROUNDS)
    with _one_thread:
        found = search.calc(x, reference, None)  # type: ignore[call-overload]
    return np.asarray(found, np.float32) * scale


def nearer(flow: Flow, x: Luma, reference: Luma) -> Flow:
    """A flow from x to reference after one Gauss-Newton step at their full size.

    What was searched at half the size becomes as exact as what was searched at full size, in a
    tenth of the time.

    Args:
        flow: (H / n, W / n, 2) on a grid of n samples, a multiple of 4.
    """
    from vcfilter._native import motion  # late: training needs none

    side = x.shape[0] // flow.shape[0]
    moved = warp_plane(reference.astype(np.float32), flow.transpose(2, 0, 1))
    wanted = x.astype(np.float32)
    xx, xy, yy, ex, ey, _ = motion.agreement(moved, wanted, 1.0, 0.0, side) / side**2
    drawn = PULL * (_neighbour_mean(flow) - flow)
    ex, ey = drawn[..., 0] - ex, drawn[..., 1] - ey
    xx, yy = xx + (DAMPING + PULL), yy + (DAMPING + PULL)
    scale = 1 / (xx * yy - xy * xy)
    change = np.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], axis=2)
    return np.asarray(flow + change.clip(-MOST, MOST), np.float32)


def warp_plane(plane: Samples, field: Samples, scale: float = 1.0) -> Samples:
    """A plane (H, W) moved bicubically by scale times a field (2, H / n, W / n), n in fours."""
    from vcfilter._native import motion  # late: training needs none

    across, down = (np.ascontiguousarray(each, np.float32) for each in field)
    moved = np.empty(plane.shape, np.float32)
    motion.warp(plane, across, down, scale, True, moved)
    return moved


def _neighbour_mean(flow: Flow) -> Flow:
    """As `warp.neighbour_mean`."""
    p = np.pad(flow, ((1, 1), (1, 1), (0, 0)), mode="edge")
    beside = p[:-2] + 2 * p[1:-1] + p[2:]
    own = p[:-2, 1:-1] + p[2:, 1:-1]
    return np.asarray((beside[:, :-2] + beside[:, 2:] + 2 * own) / 12, np.float32)
