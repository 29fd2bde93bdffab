"""Motion to references by way of the frames between, from luma before coding.

What moves far in several frames moves little from one to the next: a dense search from frame to
frame finds what a search over the whole distance loses, and what it finds is the motion of the
scene. Such chains of flows are those of point trajectories (Sundaram, Brox and Keutzer, Dense point
trajectories by GPU-accelerated large displacement optical flow, ECCV 2010).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt

from vcfilter.frames import Plane
from vcfilter.nn.flow import SMALLEST, Flow, Luma, fine_search, nearer

BLOCK = 8
GRID = 4
"""Luma samples per position of a flow that is kept, each way: as many bits as with 1 or 2."""
INVERSIONS = 3

Map = npt.NDArray[np.float32]
"""(2, ceil(height / 8), ceil(width / 8)) displacements in luma samples."""


KEPT = 8
"""Frames that wait for a search at the border of two segments; with more, what lies behind them is
not known any more."""
LARGE = 1 << 20
"""Samples that are searched at once, at most: a search takes 150 bytes of memory for each."""
ROUGH = 1 << 18
"""The same for what frames inherit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownMotion:
    """What a later segment of the GOP needs.

    Args:
        number: of the frame that flows begin at. lumas: from it to the newest frame, between which
            motion was not asked for so far.
        flows: from it to older frames, by their number, as far as they are known.
    """

    number: int
    lumas: Mapping[int, Luma]
    flows: Mapping[int, Flow]


class Trajectories:
    """Flows between the frames of a segment, each searched when it is first asked for.

    Methods may be called from several threads.

    Args:
        lumas: luma planes by display number, consecutive, of one size.
        earlier: of the segment before, whose newest frame is the one before these.
        rough: of `search_step`, by the later frame's number, where `is_searched_alike`.
        threads: so many steps are searched at a time.
    """

    def __init__(
        self,
        lumas: Mapping[int, Plane],
        bit_depth: int,
        earlier: KnownMotion | None = None,
        *,
        rough: Mapping[int, Flow] | None = None,
        threads: int = 1,
    ) -> None:
        self._lumas = {number: whole_blocks(luma, bit_depth) for number, luma in lumas.items()}
        self._earlier, self._threads, self._rough = earlier, threads, rough or {}
        if earlier is not None:
            self._lumas.update(earlier.lumas)
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
        if self._threads > 1:
            self._search_beside(number, references)
        found = []
        # All are asked for before one is missed: threads must not decide what is known later.
        for flow in [self._flow(number, reference) for reference in references]:
            if flow is None:
                return None
            pooled = _resized(flow, columns // BLOCK, rows // BLOCK)
            found.append(np.ascontiguousarray(pooled.transpose(2, 0, 1)))
        return found

    def known_motion(self, number: int, kept: Iterable[int]) -> KnownMotion:
        """What the next segment needs. Nothing is searched for it.

        Args:
            number: of the newest frame. kept: numbers of references that may be asked for.
        """
        flows, missing = {}, False
        older = {} if self._earlier is None else self._earlier.flows
        for other in (each for each in kept if each < number):
            known = self._flow(number, other, search=False)
            if known is not None:
                flows[other] = known
            missing |= known is None and (other in self._lumas or other in older)
        lumas = {n: luma for n, luma in self._lumas.items() if 0 <= n <= number}
        if missing and len(lumas) <= KEPT:
            return KnownMotion(number=min(lumas), lumas=lumas, flows=older)
        return KnownMotion(number=number, lumas={number: self._lumas[number]}, flows=flows)

    def _search_beside(self, number: int, references: Sequence[int]) -> None:
        """Search the steps to references, several at a time."""
        first, last = min(number, *references), max(number, *references)
        steps = [n for n in range(first + 1, last + 1) if {n, n - 1} <= self._lumas.keys()]
        missing = [n for n in steps if n not in self._steps]
        if len(missing) > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(lambda n: self._step(n, n - 1, True), missing))

    def _flow(self, number: int, other: int, *, search: bool = True) -> Flow | None:
        """(rows, columns, 2) on the grid, from a frame to another one; None: not known."""
        way = 1 if other > number else -1
        border = None if self._earlier is None else self._earlier.number
        flow: Flow | None = None
        while number != other:
            if number == border and way < 0:
                assert self._earlier is not None
                following, number = self._earlier.flows.get(other), other
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
                x, reference = self._lumas[later], self._lumas[earlier]
                rough = self._rough.get(later)
                if rough is None:
                    rough = _rough(x, reference, LARGE)
                future.set_result(nearer(rough, x, reference))  # to the detail of the full size
            except BaseException as error:
                future.set_exception(error)
                raise
        flow = future.result()
        return flow if number == later else _inverse(flow)


def search_step(now: Plane, before: Plane, bit_depth: int) -> Flow | None:
    """The flow between two neighbours, searched at half their size or less: (rows, columns, 2) on
    the grid, in luma samples; None: they are too small.
    """
    x, reference = (whole_blocks(luma, bit_depth) for luma in (now, before))
    if min(x.shape) < SMALLEST * 2:
        return None
    return _rough(x, reference, ROUGH)


def is_searched_alike(luma: Plane) -> bool:
    """Whether frames are small enough for `search_step` to search as `Trajectories` does."""
    rows, columns = (side + -side % BLOCK for side in luma.shape)
    return bool(rows * columns <= 4 * ROUGH)


def _rough(x: Luma, reference: Luma, most: int) -> Flow:
    """The flow between two frames (height, width) on the grid, searched at half the size, or less
    of large frames: at so many samples at most.
    """
    rows, columns = x.shape
    scale = 2 if min(x.shape) >= SMALLEST * 2 else 1
    while x.size > most * scale * scale:
        scale *= 2
    return _resized(fine_search(x, reference, scale), columns // GRID, rows // GRID)


def _resized(flow: Flow, columns: int, rows: int) -> Flow:
    """Means of a flow."""
    return np.asarray(cv2.resize(flow, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _followed(flow: Flow, following: Flow) -> Flow:
    """A flow, and where it ends another one."""
    return np.asarray(flow + _warped(following, flow), np.float32)


def _inverse(flow: Flow) -> Flow:
    """The flow back from where a flow leads."""
    found = -flow
    for _ in range(INVERSIONS):
        found = -_warped(flow, found)
    return found


def _warped(flow: Flow, by: Flow) -> Flow:
    """A flow's values at the places that another one leads to."""
    rows, columns = flow.shape[:2]
    across, down = np.meshgrid(
        np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32)
    )
    at = across + by[..., 0] / GRID, down + by[..., 1] / GRID
    warped = cv2.remap(flow, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.float32)


def whole_blocks(y: Plane, bit_depth: int) -> Luma:
    """Luma in 8 bits, its border repeated up to whole blocks."""
    luma = (y if bit_depth == 8 else y >> (bit_depth - 8)).astype(np.uint8, copy=False)
    luma = np.ascontiguousarray(luma)  # as the search asks for
    rows, columns = (-side % BLOCK for side in luma.shape)
    return np.pad(luma, ((0, rows), (0, columns)), mode="edge") if rows or columns else luma
