"""Scene cuts, from luma thumbnails; used when coding and when training clips are cut."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from vcfilter.frames import Plane

Thumbnail = npt.NDArray[np.float32]


def thumbnail(y: Plane, bit_depth: int) -> Thumbnail:
    """Luma as means over a grid of at most 32x32 cells, 0 to 255, float32.

    Args:
        y: (height, width) luma plane of at least 16x16 samples.
        bit_depth: 8 or 10.
    """
    rows, columns = (max(side // _THUMBNAIL_SIDE, 1) for side in y.shape)
    height, width = y.shape[0] // rows * rows, y.shape[1] // columns * columns
    # Every second row and column of large cells is enough for a mean.
    skip_y, skip_x = max(rows // 8, 1), max(columns // 8, 1)
    cells = y[:height, :width].reshape(height // rows, rows, width // columns, columns)
    means = cells[:, ::skip_y, :, ::skip_x].mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(means / np.float32(1 << (bit_depth - 8)), dtype=np.float32)


_THUMBNAIL_SIDE = 32

_CUT_DIFFERENCE = 12.0
"""Least difference at a cut, in 8-bit luma. Between unrelated frames it is 20 to 60; within
the development clips it is 11 at most."""
_CUT_RATIO = 2.5
"""A cut differs this many times more than the frames before it did (a pan or a shake
keeps a high level; it is not a cut)."""
_CUT_RECENT = 4
"""Frames that count as recent history: a pan that starts within a scene is learned fast."""
_FLASH_RATIO = 0.6
"""After a flash the next frame is this much nearer to the one before it than a cut's is."""
_PAN_CELLS = (2, 4)
"""Largest shift looked for, down and across, in thumbnail cells: an eighth of the width."""


def frame_difference(a: Thumbnail, b: Thumbnail) -> float:
    """Mean absolute difference of two thumbnails, 0 to 255.

    Their means are made equal first, so a change of brightness alone (flash, fade) is small.
    If what is left is enough for a cut, the least difference over whole-cell shifts of up to
    _PAN_CELLS is taken, so a pan is smaller than a cut.
    """
    plain = _centred_difference(a, b)
    if plain < _CUT_DIFFERENCE:
        return plain
    height, width = a.shape
    down, across = min(_PAN_CELLS[0], height // 4), min(_PAN_CELLS[1], width // 4)
    inner = a[down : height - down, across : width - across]
    return min(
        _centred_difference(inner, b[y : y + inner.shape[0], x : x + inner.shape[1]])
        for y in range(2 * down + 1)
        for x in range(2 * across + 1)
    )


def _centred_difference(a: Thumbnail, b: Thumbnail) -> float:
    difference = a - b
    return float(np.abs(difference - difference.mean()).mean())


class SceneCutDetector:
    """Finds the first frames of new scenes, from luma thumbnails.

    A frame is a cut when its difference to the frame before is at least _CUT_DIFFERENCE, and
    _CUT_RATIO times both the mean of the scene so far and the mean of the last frames, and
    when the frame after it does not return to the frame before (a flash or a single
    damaged frame).
    """

    def __init__(self) -> None:
        self._before: Thumbnail | None = None
        self._start_scene()

    def is_cut(self, current: Thumbnail, after: Thumbnail | None) -> bool:
        """Whether a new scene starts with `current`. Call once per frame, in display order.

        Args:
            current: thumbnail of the frame in question.
            after: thumbnail of the next frame; None at the end of the stream.
        """
        before = self._before
        if before is None:
            self._before = current
            return False
        difference = frame_difference(before, current)
        scene = self._sum / self._count if self._count else 0.0
        recent = sum(self._recent) / len(self._recent) if self._recent else 0.0
        cut = difference >= max(_CUT_DIFFERENCE, _CUT_RATIO * max(scene, recent))
        if (
            cut
            and after is not None
            and frame_difference(before, after) < _FLASH_RATIO * difference
        ):
            return False  # a flash leaves no trace in the history
        self._before = current
        if cut:
            self._start_scene()
            # A start until the new scene has a history.
            self._recent.append(difference / 2)
        else:
            self._recent.append(difference)
            self._sum += difference
            self._count += 1
        return cut

    def _start_scene(self) -> None:
        self._recent: deque[float] = deque(maxlen=_CUT_RECENT)
        self._sum = 0.0
        self._count = 0
