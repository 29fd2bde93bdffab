"""Motion to references by way of the frames between, from luma before coding.

What moves far in several frames moves little from one to the next: a dense search from frame to
frame finds what a search over the whole distance loses, and what it finds is the motion of the
scene. Such chains of flows are those of point trajectories (Sundaram, Brox and Keutzer, Dense point
trajectories by GPU-accelerated large displacement optical flow, ECCV 2010).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt

from vcfilter.frames import Plane
from vcfilter.nn.flow import Flow, Luma, fine_search

BLOCK = 8
SCALE = 2
"""Motion is searched at 1/SCALE of the size: as many bits as at full size."""
GRID = 4
"""Luma samples per position of a flow that is kept, each way: as many bits as with 1 or 2."""
SMALLEST = 32 * SCALE
"""Side of a picture from which on motion is searched."""
INVERSIONS = 3

Map = npt.NDArray[np.float32]
"""(2, ceil(height / 8), ceil(width / 8)) displacements in luma samples."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """What a later segment of the GOP needs.

    Args:
        number: of the newest frame. luma: of it.
        flows: from it to older frames, by number.
    """

    number: int
    luma: Luma
    flows: Mapping[int, Flow]


class Trajectories:
    """Flows between the frames of a segment, each found when it is first asked for.

    Methods may be called from several threads.

    Args:
        lumas: luma planes by display number, consecutive, of one size.
        past: of the segment before, whose newest frame is the one before these.
    """

    def __init__(
        self, lumas: Mapping[int, Plane], bit_depth: int, past: Past | None = None
    ) -> None:
        self._lumas = {number: _whole_blocks(luma, bit_depth) for number, luma in lumas.items()}
        self._older: Mapping[int, Flow] = {}
        self._border: int | None = None
        if past is not None:
            self._lumas[past.number] = past.luma
            self._older, self._border = past.flows, past.number
        self._steps: dict[int, Future[Flow]] = {}
        self._lock = Lock()

    def to_references(self, number: int, references: Sequence[int]) -> list[Map] | None:
        """Displacements from a frame to each of its references.

        Args:
            number, references: display numbers.

        Returns:
            None where frames between are not known, or frames are too small.
        """
        rows, columns = self._lumas[number].shape
        if min(rows, columns) < SMALLEST:
            return None
        found = []
        for reference in references:
            flow = self._flow(number, reference)
            if flow is None:
                return None
            pooled = _resized(flow, columns // BLOCK, rows // BLOCK)
            found.append(np.ascontiguousarray(pooled.transpose(2, 0, 1)))
        return found

    def past(self, number: int, kept: Iterable[int]) -> Past:
        """What the next segment needs. Nothing is searched for it.

        Args:
            number: of the newest frame. kept: numbers of references that may be asked for.
        """
        flows = {}
        for other in (each for each in kept if each < number):
            flow = self._flow(number, other, search=False)
            if flow is not None:
                flows[other] = flow
        return Past(number=number, luma=self._lumas[number], flows=flows)

    def _flow(self, number: int, other: int, *, search: bool = True) -> Flow | None:
        """(rows, columns, 2) on the grid, from a frame to another one; None: not known."""
        way = 1 if other > number else -1
        flow: Flow | None = None
        while number != other:
            if number == self._border and way < 0:
                following, number = self._older.get(other), other
            else:
                following, number = self._step(number, number + way, search), number + way
            if following is None:
                return None
            flow = following if flow is None else _followed(flow, following)
        return flow

    def _step(self, number: int, other: int, search: bool) -> Flow | None:
        """The flow from a frame to its neighbour: back to the earlier one it is searched once, to
        the later one it is that flow's inverse.
        """
        later, earlier = max(number, other), min(number, other)
        if earlier not in self._lumas or later not in self._lumas:
            return None
        with self._lock:
            future = self._steps.get(later)
            if future is None and not search:
                return None
            mine = future is None
            if future is None:
                future = self._steps[later] = Future()
        if mine:
            try:
                future.set_result(_searched(self._lumas[later], self._lumas[earlier]))
            except BaseException as error:
                future.set_exception(error)
                raise
        flow = future.result()
        return flow if number == later else _inverse(flow)


def _searched(x: Luma, reference: Luma) -> Flow:
    """The flow between two frames (height, width) on the grid."""
    rows, columns = x.shape
    size = columns // SCALE, rows // SCALE
    x, reference = (
        np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA), np.uint8)
        for p in (x, reference)
    )
    return _resized(fine_search(x, reference), columns // GRID, rows // GRID) * SCALE


def _resized(flow: Flow, columns: int, rows: int) -> Flow:
    """Means of a flow."""
    return np.asarray(cv2.resize(flow, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _followed(flow: Flow, following: Flow) -> Flow:
    """A flow, and where it ends another one."""
    return np.asarray(flow + _moved(following, flow), np.float32)


def _inverse(flow: Flow) -> Flow:
    """The flow back from where a flow leads."""
    found = -flow
    for _ in range(INVERSIONS):
        found = -_moved(flow, found)
    return found


def _moved(flow: Flow, by: Flow) -> Flow:
    """A flow's values at the places that another one leads to."""
    rows, columns = flow.shape[:2]
    across, down = np.meshgrid(
        np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)
    )
    at = across + by[..., 0] / GRID, down + by[..., 1] / GRID
    moved = cv2.remap(flow, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def _whole_blocks(y: Plane, bit_depth: int) -> Luma:
    """Luma in 8 bits, its border repeated up to whole blocks."""
    luma = (y if bit_depth == 8 else y >> (bit_depth - 8)).astype(np.uint8, copy=False)
    rows, columns = (-side % BLOCK for side in luma.shape)
    return np.pad(luma, ((0, rows), (0, columns)), mode="edge") if rows or columns else luma
