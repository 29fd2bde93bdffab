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
GRID = 4
"""Luma samples per position of a flow that is kept, each way. As many bits as with 1 or 2."""
SMALLEST = 32
"""Side of what is searched from which on motion can be found."""

Map = npt.NDArray[np.float32]
"""(2, ceil(height / 8), ceil(width / 8)) displacements in luma samples."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """What a later segment of the GOP needs.

    Args:
        number: of the newest frame. luma: of it.
        flows: from it to older frames, by number and scale.
    """

    number: int
    luma: Luma
    flows: Mapping[tuple[int, int], Flow]


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
        self._older: Mapping[tuple[int, int], Flow] = {}
        self._border: int | None = None
        if past is not None:
            self._lumas[past.number] = past.luma
            self._older, self._border = past.flows, past.number
        self._steps: dict[tuple[int, int, int], Future[Flow]] = {}
        self._lock = Lock()

    def to_references(self, number: int, references: Sequence[int], scale: int) -> list[Map] | None:
        """Displacements from a frame to each of its references.

        Args:
            number, references: display numbers.
            scale: motion is searched at 1/scale of the size (1 or 2).

        Returns:
            None where frames between are not known, or frames are too small.
        """
        if min(self._lumas[number].shape) < SMALLEST * scale:
            return None
        found = []
        for reference in references:
            flow = self._flow(number, reference, scale)
            if flow is None:
                return None
            rows, columns = (side // BLOCK for side in self._lumas[number].shape)
            pooled = cv2.resize(flow, (columns, rows), interpolation=cv2.INTER_AREA)
            found.append(np.ascontiguousarray(np.asarray(pooled, np.float32).transpose(2, 0, 1)))
        return found

    def past(self, number: int, kept: Iterable[int]) -> Past:
        """What the next segment needs.

        Args:
            number: of the newest frame. kept: numbers of references that may be asked for.
        """
        flows = {}
        for scale in {scale for _, _, scale in self._steps}:
            for other in (each for each in kept if each < number):
                flow = self._flow(number, other, scale, search=False)
                if flow is not None:
                    flows[other, scale] = flow
        return Past(number=number, luma=self._lumas[number], flows=flows)

    def _flow(self, number: int, other: int, scale: int, search: bool = True) -> Flow | None:
        """(rows, columns, 2) on the grid, from a frame to another one; None: not known."""
        step = 1 if other > number else -1
        flow: Flow | None = None
        while number != other:
            if number == self._border and step < 0:
                following = self._older.get((other, scale))
                reached = other
            else:
                reached = number + step
                known = (number, reached, scale) in self._steps
                following = None
                if reached in self._lumas and (search or known):
                    following = self._step(number, reached, scale)
            if following is None:
                return None
            flow = following if flow is None else _followed(flow, following)
            number = reached
        return flow

    def _step(self, number: int, other: int, scale: int) -> Flow:
        """The flow from a frame to its neighbour, searched once."""
        key = number, other, scale
        with self._lock:
            future = self._steps.get(key)
            mine = future is None
            if future is None:
                future = self._steps[key] = Future()
        if mine:
            try:
                future.set_result(_searched(self._lumas[number], self._lumas[other], scale))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()


def _searched(x: Luma, reference: Luma, scale: int) -> Flow:
    rows, columns = x.shape
    if scale > 1:
        size = (columns // scale, rows // scale)
        x, reference = (
            np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA), np.uint8)
            for p in (x, reference)
        )
    flow = fine_search(x, reference)
    grid = columns // GRID, rows // GRID
    return np.asarray(cv2.resize(flow, grid, interpolation=cv2.INTER_AREA) * scale, np.float32)


def _followed(flow: Flow, following: Flow) -> Flow:
    """A flow, and where it ends another one."""
    rows, columns = flow.shape[:2]
    across, down = np.meshgrid(
        np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)
    )
    at = across + flow[..., 0] / GRID, down + flow[..., 1] / GRID
    there = cv2.remap(following, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(flow + there, np.float32)


def _whole_blocks(y: Plane, bit_depth: int) -> Luma:
    """Luma in 8 bits, its border repeated up to whole blocks."""
    rows, columns = (-side % BLOCK for side in y.shape)
    return np.pad((y >> (bit_depth - 8)).astype(np.uint8), ((0, rows), (0, columns)), mode="edge")
