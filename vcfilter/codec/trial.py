"""Distances between anchors by trial: spans of frames are coded with one anchor and with two.

A span ends on the same frame either way, so the frames behind it have a reference there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.rate import ConstantQp
from vcfilter.codec.segment import Coding, FrameRecord, GopState, SegmentResult, encode_segment
from vcfilter.codec.structure import between_anchors
from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.models.base import Model

COARSER = (2, 10)
"""Bounds of the Lagrangian: that of so many qps above the GOP's. Between them it is what squared
error and bits of the span say where their product stays the same along the rate-distortion curve;
measured along those of 19 training clips: 2 to 11 qps."""
SHORTEST = 4
"""Frames of a span from which on an anchor in its middle is tried."""
ANCHOR_SLOTS = 2
"""Anchors take turns in the first two slots."""


def encode_tried(
    model: Model,
    job: SegmentJob,
    coding: Coding,
    qp: int,
    state: GopState | None = None,
    *,
    coded_frame: Callable[[FrameRecord], None] | None = None,
    threads: int = 1,
) -> tuple[list[SegmentResult], GopState | None]:
    """Code a job at a constant qp, with the anchors within it that cost least by trial.

    A pure function, as `encode_segment`: what it chooses depends on its arguments alone.

    Args:
        qp: of the GOP; rate control that varies it would have to undo what it learned from trials.
        job, state, coded_frame, threads: see `encode_segment`.

    Returns:
        The segments that the job became, one per anchor, and what the next job continues from.
        One segment where coding.trial is None or the job is not divisible.
    """
    rate = ConstantQp(qp)
    if coding.trial is None or not job.divisible:
        result, state = encode_segment(
            model, job, coding, rate, state, coded_frame=coded_frame, threads=threads
        )
        return [result], state
    if job.first == 0 and (state is None or state.slots is not None):
        alone = replace(job.part(0, 0, ()), continues=True)
        _, state = encode_segment(model, alone, coding, rate, coded_frame=coded_frame)
        assert state is not None
        state = GopState(key=state.key)
    assert state is not None
    trial = _Trial(model, job, replace(coding, effort=coding.trial), rate, threads)
    last = job.first + len(job.frames) - 1
    results = []
    for end in trial.best(state, last)[0]:
        part = _part(job, state, end)
        result, after = encode_segment(
            model, part, coding, rate, state, coded_frame=coded_frame, threads=threads
        )
        results.append(result)
        state = after if after is not None else state
    return results, after


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tried:
    """Frames coded by way of trial, and the state after them.

    Args:
        error: sum of the inter frames' squared errors per sample, 8-bit units. bits: theirs.
    """

    error: float
    bits: int
    state: GopState

    def cost(self, weight: float) -> float:
        """Rate and distortion; weight: the Lagrangian per bit."""
        return self.error + weight * self.bits


class _Trial:
    """Codes parts of a job in a cheap way."""

    def __init__(
        self, model: Model, job: SegmentJob, coding: Coding, rate: ConstantQp, threads: int
    ) -> None:
        self._model, self._job, self._coding, self._rate = model, job, coding, rate
        self._threads = threads

    def best(
        self, state: GopState, end: int, whole: _Tried | None = None
    ) -> tuple[list[int], _Tried]:
        """Numbers of the anchors up to one at `end`, and the frames coded with them.

        Args:
            whole: the frames coded with no other anchor, where that was tried before.
        """
        begin = _anchors(state)[0]
        whole = whole or self._code(state, end)
        if end - begin < SHORTEST:
            return [end], whole
        middle = (begin + end) // 2
        weight = self._weight(whole)
        first = self._code(state, middle)
        if first.cost(weight) >= whole.cost(weight):
            return [end], whole
        second = self._code(first.state, end)
        if first.cost(weight) + second.cost(weight) >= whole.cost(weight):
            return [end], whole
        ends, left = self.best(state, middle, first)
        more, right = self.best(left.state, end, second if left is first else None)
        return [*ends, *more], _Tried(
            error=left.error + right.error, bits=left.bits + right.bits, state=right.state
        )

    def _code(self, state: GopState, end: int) -> _Tried:
        """The frames up to an anchor, with no other before it."""
        part = replace(_part(self._job, state, end), continues=True, anchor_scale=None)
        result, after = encode_segment(
            self._model, part, self._coding, self._rate, state, threads=self._threads
        )
        assert after is not None
        assert after.slots is not None
        after = replace(after, slots=after.slots.copy(ANCHOR_SLOTS))  # less memory
        inters = [record for record in result.records if record.header.step.references]
        error = sum(255**2 * 10 ** (-record.psnr / 10) for record in inters)
        return _Tried(error=error, bits=sum(8 * record.size for record in inters), state=after)

    def _weight(self, tried: _Tried) -> float:
        """The Lagrangian per bit of a frame."""
        pixels = self._job.video_format.width * self._job.video_format.height
        qp = self._rate.qp + self._job.qp_offset
        least, most = (
            QUANTISER_LAMBDA * 2 ** ((qp + coarser - 4) / 3) / pixels for coarser in COARSER
        )
        return min(max(tried.error / tried.bits, least), most)


def _anchors(state: GopState) -> tuple[int, ...]:
    """Numbers of the one or two anchors that are kept, the newest first."""
    if state.slots is None:
        return (0,)
    kept = map(state.slots.number, range(ANCHOR_SLOTS))
    return tuple(sorted((number for number in kept if number is not None), reverse=True))


def _part(job: SegmentJob, state: GopState, end: int) -> SegmentJob:
    """The job of the frames from the newest anchor to one at `end`."""
    anchors = _anchors(state)
    first = anchors[0] + 1 if anchors[0] else 0
    slot = 0 if state.slots and state.slots.number(1) == anchors[0] else 1
    return job.part(first, end, between_anchors(anchors, end, slot))
