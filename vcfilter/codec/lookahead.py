"""The lookahead: the distance between anchors, and what keyframes are worth, from luma."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import log2

import numpy as np
import numpy.typing as npt

from vcfilter.frames import Frame, Plane

TOLERANCES = {32: 0.03, 16: 0.05, 8: 0.2, 4: 0.42}
"""Largest share of the variation within blocks that motion compensation may leave at a distance
of anchors; shorter ones between have that of the next. Those of 4 and 8 are fitted to 32 training
clips coded with each distance (8 instead of 4 frames apart: -7 to +60 %, at most +1 % up to this
share in the mean of a clip) and three parts of the demo clip. Those of 16 and 32 are set low by
hand: they pay by up to 5 % more, and cost up to 80 % where anything changes."""
SHORTEST = 2
SMALL, USUAL = 4, 288
"""Luma is analysed in means of 4x4 samples, and in larger ones as well where frames are larger than
so many rows or columns: in proportion, so that motion is found as far as in small frames."""
LARGE_MOST, LARGE_TOLERANCE = 8, 0.28
"""Largest distance that larger means alone allow, and their share at it: further apart too much of
what they do not show has changed. 1024x750, global motion, anchors 8 instead of 2 and 4 apart: 8 to
19 % fewer bytes; one distance of 16 among them: more bytes than before."""
REACH = 8
"""Search range in such means: 32 samples, in the larger ones in proportion."""
BLOCK = 8
FADE = 0.05
"""Largest share that the mean of two frames may leave of the one between, where it counts as a
fade. Moving scenes leave more than a third, fades and dissolves less than a fiftieth."""
NOISE = 1.0
"""Mean absolute difference, in 8-bit units, that counts as none."""

FOLLOWERS = 8
"""Frames of its GOP behind a keyframe from which on it gets the qp of a long GOP's."""
WORTH = 3.0
"""qps per doubling of the frames that inherit a keyframe: the Lagrangian doubles every three."""
STILL, MOVING = 0.06, 0.15
"""The remainder since the last keyframe up to which a scene is still, from which on it moves."""
MOVING_SHARE = 1 / 3
"""Of that offset in a moving scene: the frames before the keyframe, which refer to it as well, have
no other good reference. BD-rate of 13 frames of training clips that end on a keyframe, 3, 6 and 9
qps coarser: three still ones -7, -14, -21 %, twelve others -1.3, +0.5, +2.4 %."""
OFFSET_MAX = 6
"""More shows: the last frame of a stream may stay on the screen."""

Means = npt.NDArray[np.float32]


def anchor_distance(anchor: Frame, frames: Sequence[Frame], bit_depth: int) -> int:
    """The distance from an anchor to the next one, in frames.

    The largest distance at which block motion compensation from the anchor leaves little of the
    frame: long in still scenes, short in fast motion. Or at which the frames between are means of
    the two: fades and dissolves, where no frame is predicted from the past alone, and each from
    both sides.

    Args:
        frames: those after the anchor, in display order; at least 1.

    Returns:
        1 to len(frames), at most 32.
    """
    most = min(len(frames), max(TOLERANCES))
    if most <= SHORTEST:
        return most
    known: dict[tuple[int, int], Means] = {}
    large = SMALL * max(1, round(min(anchor.y.shape) / USUAL))

    def at(distance: int, side: int = SMALL) -> Means:
        if (distance, side) not in known:
            known[distance, side] = means((anchor, *frames)[distance].y, bit_depth, side)
        return known[distance, side]

    def left(distance: int, side: int) -> float:
        return remainder(at(0, side), at(distance, side))

    def near(distance: int) -> bool:
        tolerances = {SMALL: TOLERANCES[min(d for d in TOLERANCES if d >= distance)]}
        if distance <= LARGE_MOST:
            tolerances = {large: max(LARGE_TOLERANCE, tolerances[SMALL])} | tolerances
        return any(left(distance, side) <= share for side, share in tolerances.items())

    distances = sorted(d for d in {most, *TOLERANCES} if d <= most)
    # What is left grows with the distance: most anchors are found by the first two.
    found = [SHORTEST, *takewhile(near, distances)][-1]
    for distance in reversed(distances):
        if distance > found and _fades([at(distance * n // 4) for n in range(5)]):
            return distance
    return found


def _fades(five: Sequence[Means]) -> bool:
    """Whether each inner one of five frames at equal distances is the mean of its neighbours in a
    hierarchy."""
    first, early, middle, late, last = five
    return all(
        _share(np.abs(frame - (a + b) / 2), frame) <= FADE
        for a, frame, b in ((first, middle, last), (first, early, middle), (middle, late, last))
    )


def key_offset(before: Frame, key: Frame, followers: int, keyint: int, bit_depth: int) -> int:
    """By how many qps a keyframe is coarser for the few frames that will inherit it.

    Args:
        before: an earlier frame, to tell a still scene: all frames before the keyframe can
            inherit that one as well.
        followers: frames of the keyframe's GOP behind it; FOLLOWERS stand for any more.
        keyint: most frames of a GOP.

    Returns:
        0, where there are as many followers as a long GOP has, to 6.
    """
    usual = min(FOLLOWERS, keyint - 1)
    if followers >= usual:
        return 0
    left = remainder(means(before.y, bit_depth), means(key.y, bit_depth))
    still = min(max((MOVING - left) / (MOVING - STILL), 0.0), 1.0)
    share = MOVING_SHARE + (1 - MOVING_SHARE) * still
    return round(min(share * WORTH * log2((1 + usual) / (1 + followers)), OFFSET_MAX))


def remainder(before: Means, after: Means) -> float:
    """Residual of block motion compensation, as a share of the variation within blocks."""
    rows, columns = (side // BLOCK * BLOCK for side in after.shape)
    if not rows or not columns:
        return 0.0
    inner = after[:rows, :columns]
    padded = np.pad(before, REACH, mode="edge")
    best = np.full((rows // BLOCK, columns // BLOCK), np.inf, np.float32)
    for down in range(2 * REACH + 1):
        for across in range(2 * REACH + 1):
            moved = padded[down : down + rows, across : across + columns]
            np.minimum(best, _block_sums(np.abs(inner - moved)), out=best)
    return _left_of(best, inner)


def _share(error: Means, frame: Means) -> float:
    """Of absolute errors that nothing moves, as `remainder`."""
    rows, columns = (side // BLOCK * BLOCK for side in frame.shape)
    if not rows or not columns:
        return 0.0
    return _left_of(_block_sums(error[:rows, :columns]), frame[:rows, :columns])


def _left_of(errors: Means, frame: Means) -> float:
    """Sums of errors of blocks as a share of the frame's variation within blocks."""
    rows, columns = frame.shape
    blocks = frame.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    alone = np.abs(blocks - blocks.mean(axis=(1, 3), keepdims=True)).sum(axis=(1, 3))
    free = NOISE * BLOCK * BLOCK
    inter = np.minimum(np.maximum(errors - free, 0), alone)
    return float(inter.sum() / max(alone.sum(), free * alone.size))


def means(y: Plane, bit_depth: int, side: int = SMALL) -> Means:
    """Luma in means of samples, in 8-bit units; side: of a mean's square."""
    rows, columns = (length // side for length in y.shape)
    cells = y[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(cells.mean(axis=(1, 3), dtype=np.float32) / (1 << (bit_depth - 8)))


def _block_sums(values: Means) -> Means:
    rows, columns = values.shape
    blocks = values.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return np.asarray(blocks.sum(axis=(1, 3)))
