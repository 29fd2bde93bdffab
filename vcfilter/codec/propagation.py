"""How many frames inherit each position of a keyframe or an anchor, from luma before coding.

An error of a reference stays in the frames that are predicted from it, so what many frames inherit
deserves more bits: the idea of x264's mb-tree (Garrett-Glaser, A novel macroblock-tree algorithm
for high-performance optimization of dependent video coding in H.264/AVC, 2009), here per 8x8
samples and along dense motion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2

import cv2
import numpy as np
import numpy.typing as npt

from vcfilter.codec.structure import GopStep
from vcfilter.codec.trajectories import whole_blocks
from vcfilter.frames import Plane
from vcfilter.nn.flow import SMALLEST, ULTRAFAST, Flow, inverse_search

BLOCK = 8
NOISE = 1.0
"""Mean absolute difference, in 8-bit units, that a block has besides what it shows."""
STRENGTH = 0.8
"""Exponent of a position's worth in its Lagrangian. BD-rate of full GOPs of 12 frames at 0.5, 0.8
and 1: -1.6, -1.6, -2.0 % (8 training clips); 0.8: -1.4 % (15). Where only what does not move counts
as inherited: -0.9 and -0.6 % at 0.5 and 1. Inter frames the same way: no more."""
HORIZON = 12
"""Frames behind an anchor that are looked at. BD-rate of 20 training clips of 25 frames with one
keyframe, default structure, preset fast: -0.65 %, the worst +1.0 %. Counted the same way, a
keyframe's positions gain nothing more."""
LEAST, MOST = 0.4, 3.0
"""Bounds of the Lagrangian's factor."""
USUAL = 1.8
"""Mean absolute difference from the frame before, moved, at half the size, in 8-bit units: the
median of 162 training clips."""
STILL = 0.2
"""Added to it: scenes that are stiller than this are alike."""
PER_DOUBLING, OFFSET_MAX = 3.0, 6
"""qps per doubling of that difference, and the most of them: x264's constant rate factor has 2.4 at
its default qcomp of 0.6, before mb-tree adds to it."""

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Map = npt.NDArray[np.float32]
"""(ceil(height / 8), ceil(width / 8)) float32, one value per 8x8 luma samples."""


def key_scales(
    lumas: Mapping[int, Plane], steps: Sequence[GopStep], keys: Sequence[int], bit_depth: int
) -> dict[int, Map]:
    """Factors on the Lagrangian of keyframes' positions: small where many frames inherit them.

    Args:
        lumas: luma planes by display number, of one size.
        steps: how frames among them are coded, in coding order.
        keys: numbers of the keyframes.

    Returns:
        By keyframe, 0.4 to 3; nothing where no step refers to one, or the picture is too small.
    """
    used = {number for step in steps for number in step.references}
    keys = [number for number in keys if number in used]
    if not keys or min(lumas[keys[0]].shape) < SMALLEST:
        return {}
    worth = _worth(lumas, steps, bit_depth)
    return {number: _scale(worth[number]) for number in keys}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inheritance:
    """What a frame takes over from the one before it, per position.

    Args:
        share: 0 to 1. flow: displacements in luma samples to where it was, (rows, columns, 2) with
            the rows and columns of share.
        left: what it does not take over: mean absolute difference at half the size, 8-bit units.
    """

    share: Map
    flow: Flow
    left: float

    @classmethod
    def of(cls, before: Plane, now: Plane, step: Flow, bit_depth: int) -> Inheritance:
        """Of two luma planes, at half their size.

        Args:
            step: from `now` to `before`, on the grid of `trajectories.search_step`.
        """
        planes = [whole_blocks(luma, bit_depth) for luma in (before, now)]
        height, width = (side // 2 for side in planes[0].shape)
        earlier, later = (
            np.asarray(cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA), np.float32)
            for p in planes
        )
        fine = cv2.resize(step, (width, height), interpolation=cv2.INTER_LINEAR) / 2
        across, down = np.meshgrid(
            np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        )
        at = across + fine[..., 0], down + fine[..., 1]
        moved = cv2.remap(earlier, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        side = BLOCK // 2
        alone = _alone(later, side)
        left = _block_means(np.abs(moved - later), side)
        flow = cv2.resize(step, alone.shape[::-1], interpolation=cv2.INTER_AREA)
        share = np.asarray(1 - np.minimum(left, alone) / alone, np.float32)
        return cls(share=share, flow=np.asarray(flow, np.float32), left=float(left.mean()))


def motion_offset(frames: Sequence[Inheritance]) -> int:
    """By how many qps frames are coded coarser than a scene that moves as usual; negative: finer.

    A bit buys more quality where little moves, and motion hides errors: so quality is shared out as
    x264's and x265's constant rate factor does.

    Args:
        frames: each from the one before; none: nothing is known.

    Returns:
        -6 to 6.
    """
    if not frames:
        return 0
    left = sum(each.left for each in frames) / len(frames)
    offset = PER_DOUBLING * log2((left + STILL) / (USUAL + STILL))
    return round(min(max(offset, -OFFSET_MAX), OFFSET_MAX))


def anchor_scale(following: Sequence[Inheritance]) -> Map:
    """Factors on the Lagrangian of an anchor's positions, as `key_scales`.

    Args:
        following: of the frames behind it, in display order, each from the one before; at least 1.
    """
    worth = np.ones_like(following[-1].share)
    for each in reversed(following):
        gain = np.asarray(each.share * worth, np.float32)
        worth = np.ones_like(gain)
        _spread(worth, gain, each.flow)
    return _scale(worth)


def _scale(worth: Map) -> Map:
    """Factors on the Lagrangian of positions that so many frames show."""
    logs = np.log(worth)
    factor = np.exp(STRENGTH * (logs.mean() - logs))
    return np.asarray(np.clip(factor, LEAST, MOST), np.float32)


def _worth(lumas: Mapping[int, Plane], steps: Sequence[GopStep], bit_depth: int) -> dict[int, Map]:
    """Of each frame's positions, how many frames show them, itself included."""
    planes = {number: whole_blocks(y, bit_depth) for number, y in lumas.items()}
    height, width = next(iter(planes.values())).shape
    across, down = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    worth = {n: np.ones((height // BLOCK, width // BLOCK), np.float32) for n in planes}
    still = np.zeros((height, width, 2), np.float32)
    for step in reversed(steps):
        now = planes[step.number]
        alone = _alone(now)
        for number in step.references:
            if number not in planes:  # it was coded with an earlier segment
                continue
            flow = inverse_search(now, planes[number], ULTRAFAST, still.copy())
            moved = cv2.remap(
                planes[number],
                across + flow[..., 0],
                down + flow[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            left = _block_means(np.abs(moved.astype(np.float32) - now))
            share = 1 - np.minimum(left, alone) / alone
            blocks = np.stack([_block_means(each) for each in np.moveaxis(flow, 2, 0)], axis=2)
            gain = np.asarray(share * worth[step.number] / len(step.references), np.float32)
            _spread(worth[number], gain, blocks)
    return worth


def _spread(worth: Map, gain: Map, flow: Flow) -> None:
    """Add what the blocks of a frame inherit to the positions of the reference they come from.

    Args:
        flow: (rows, columns, 2), one displacement per block.
    """
    rows, columns = worth.shape
    at = np.mgrid[0:rows, 0:columns]
    y = np.clip(at[0] + flow[..., 1] / BLOCK, 0, rows - 1)
    x = np.clip(at[1] + flow[..., 0] / BLOCK, 0, columns - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, rows - 1), np.minimum(left + 1, columns - 1)
    for row, share_y in ((top, top + 1 - y), (bottom, y - top)):
        for column, share_x in ((left, left + 1 - x), (right, x - left)):
            np.add.at(worth, (row, column), (gain * share_y * share_x).astype(np.float32))


def _alone(luma: Samples, side: int = BLOCK) -> Map:
    """What is left of blocks without a reference: differences from their means, and NOISE."""
    mean = _block_means(luma, side).repeat(side, 0).repeat(side, 1)
    return _block_means(np.abs(luma - mean), side) + NOISE


def _block_means(values: Samples, side: int = BLOCK) -> Map:
    rows, columns = values.shape
    blocks = values.reshape(rows // side, side, columns // side, side)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))
