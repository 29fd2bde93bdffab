"""From display order to coding steps: recursive halving, segments, scene cuts.

A segment is a keyframe (position 0) and the inter frames up to the next keyframe. Its inter
frames are coded from the middle outwards, each from the two nearest frames already coded
(Djelouah et al., Neural Inter-Frame Compression for Video Coding, ICCV 2019, section 3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vcfilter.errors import ConfigError
from vcfilter.frames import Plane
from vcfilter.options import KEYINT_MAX

Thumbnail = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GopStep:
    """One inter frame's place in the recursion.

    Args:
        position: display position in the segment.
        left: position of the earlier reference.
        right: position of the later reference; None where only the left one is used.
        layer: depth of the recursion, 1 for the frames coded first.
    """

    position: int
    left: int
    right: int | None
    layer: int

    @property
    def references(self) -> tuple[int, ...]:
        """Positions of the references, left first."""
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def distances(self) -> tuple[int, int]:
        """Display distances to the left and the right reference (right 0: none)."""
        return self.position - self.left, 0 if self.right is None else self.right - self.position


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A decision of the segmenter.

    Args:
        length: frames in the segment, its keyframe included, 1 to 64.
        closed: the frame after it is a keyframe that its inter frames may use.
    """

    length: int
    closed: bool


def coding_order(length: int, closed: bool) -> tuple[GopStep, ...]:
    """The steps of a segment's inter frames, in coding order.

    Depth first and left first, so that frames become available in display order while at
    most one reference per layer is held. In an open segment (end of stream, scene cut) the
    last frame is coded first, from the keyframe alone.

    Args:
        length: frames in the segment, the keyframe at position 0 included, 1 to 64.
        closed: whether a keyframe at position `length` serves as right reference.

    Raises:
        ConfigError: length is outside 1 to 64.
    """
    if not 1 <= length <= KEYINT_MAX:
        raise ConfigError(f"segment length {length} is outside 1 to {KEYINT_MAX}")
    if closed:
        return tuple(_halve(0, length, 1))
    last = length - 1
    if last == 0:
        return ()
    anchor = GopStep(position=last, left=0, right=None, layer=1)
    return (anchor, *_halve(0, last, 2))


def _halve(left: int, right: int, layer: int) -> Iterator[GopStep]:
    if right - left < 2:
        return
    middle = (left + right) // 2
    yield GopStep(position=middle, left=left, right=right, layer=layer)
    yield from _halve(left, middle, layer + 1)
    yield from _halve(middle, right, layer + 1)


def last_uses(steps: tuple[GopStep, ...]) -> dict[int, int]:
    """For each position that serves as reference, the index of the last step that uses it."""
    return {position: index for index, step in enumerate(steps) for position in step.references}


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
"""Least difference at a cut, in 8-bit luma. Between unrelated pictures it is 20 to 60; within
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


def picture_difference(a: Thumbnail, b: Thumbnail) -> float:
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
    when the frame after it does not return to the picture before (a flash or a single
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
        difference = picture_difference(before, current)
        scene = self._sum / self._count if self._count else 0.0
        recent = sum(self._recent) / len(self._recent) if self._recent else 0.0
        cut = difference >= max(_CUT_DIFFERENCE, _CUT_RATIO * max(scene, recent))
        if (
            cut
            and after is not None
            and picture_difference(before, after) < _FLASH_RATIO * difference
        ):
            return False  # a flash leaves no trace in the history
        self._before = current
        if cut:
            self._start_scene()
            # Until the new scene is known: it may be as restless as the old one.
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


class Segmenter:
    """Decides where segments end, one frame at a time.

    Args:
        keyint: length of a segment that nothing ends early, 1 to 64.
        scenecut: end segments before scene cuts. Decisions then come one frame late,
            because the frame after it tells a cut from a flash.
    """

    def __init__(self, keyint: int, scenecut: bool) -> None:
        self._keyint = keyint
        self._detector = SceneCutDetector() if scenecut else None
        self._waiting: Thumbnail | None = None
        self._length = 0  # frames decided to be in the current segment

    def push(self, y: Plane, bit_depth: int) -> Segment | None:
        """Take the next frame's luma; return the segment that is now known to have ended."""
        if self._detector is None:
            return self._place(False)
        current, self._waiting = self._waiting, thumbnail(y, bit_depth)
        if current is None:
            return None
        return self._place(self._detector.is_cut(current, self._waiting))

    def finish(self) -> list[Segment]:
        """The segments that the end of the stream ends: none, one or two, the last one open."""
        ended = []
        if self._detector is not None and self._waiting is not None:
            ended.append(self._place(self._detector.is_cut(self._waiting, None)))
            self._waiting = None
        if self._length:
            ended.append(Segment(length=self._length, closed=False))
            self._length = 0
        return [segment for segment in ended if segment is not None]

    def _place(self, cut: bool) -> Segment | None:
        """Put one more frame into the current segment, or start the next one with it."""
        length = self._length
        if length and (cut or length == self._keyint):
            self._length = 1
            return Segment(length=length, closed=not cut)
        self._length += 1
        return None
