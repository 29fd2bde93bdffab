"""Quality steps, and which one a machine is fast enough for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vcfilter.frames import LEVELS_MAX
from vcfilter.options import LOOKS

ENOUGH = 1.15
"""Seconds of video per second of work that a step needs: a little more than playing takes."""

ENOUGH_TO_RISE = 1.4
"""The same for a better step than the present one, so that it does not go up and down."""

_NEW_SHARE = 0.4  # weight of the newest measurement
_LONGEST_RATIO = 50.0


LEVEL_SHARE = 0.4
"""What decoding a quality level costs of what the base costs, before it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One quality step.

    Args:
        rung: its name without what follows.
        scale: the frame's sides are divided by it.
        share: of the frames that is decoded at most.
        levels: quality levels that are decoded, as DecoderOptions.levels.
        look: see DecoderOptions.
        smooth: new frames are shown between them.
    """

    rung: str
    scale: int
    share: float
    levels: int = LEVELS_MAX
    look: str = LOOKS[0]
    smooth: bool = False

    @property
    def name(self) -> str:
        """In addresses: the rung, another look than the natural one, whether it is smooth."""
        look = "" if self.look == LOOKS[0] else f"-{self.look}"
        return f"{self.rung}{look}{'-smooth' if self.smooth else ''}"

    def variants(self) -> tuple[Step, ...]:
        """The same step in all ways in which it can be shown."""
        return tuple(
            replace(self, look=look, smooth=smooth) for look in LOOKS for smooth in (False, True)
        )


FULL = Step(rung="full", scale=1, share=1.0)


def steps_for(levels: Sequence[int]) -> tuple[Step, ...]:
    """The steps of a video, from the best to the quickest.

    First quality levels are left out, then it is half the size, then there are fewer frames. What
    the networks cost hangs on levels and frames alone; a smaller frame is coded, sent and shown
    more quickly.

    Args:
        levels: operating points of the file, rising; 1 is the base.
    """
    base = levels[0] if len(levels) > 1 else LEVELS_MAX
    return (
        FULL,
        *(replace(FULL, rung=f"levels-{each}", levels=each) for each in levels[-2::-1]),
        Step(rung="half", scale=2, share=1.0, levels=base),
        Step(rung="fewer", scale=2, share=0.7, levels=base),
        Step(rung="fewest", scale=2, share=0.4, levels=base),
    )


class ThroughputMeter:
    """What decoding a video and coding it anew cost on this machine.

    The first measurement after a change of levels tells what they cost beside each other; those
    that follow with the same levels tell the machine's load, which all costs follow.

    Args:
        levels: operating points of the file, rising.
    """

    def __init__(self, levels: Sequence[int] = (1,)) -> None:
        self._levels = tuple(levels)
        self._decode: dict[int, float] = {}  # seconds of a frame, by the number of levels
        self._latest = 0  # the number of levels that was measured last
        self._code: float | None = None  # seconds of a frame of full size, scaled, coded and muxed
        self._lock = threading.Lock()

    def add(self, step: Step, frames: int, decode_seconds: float, code_seconds: float) -> None:
        """Take in the cost of one segment."""
        if frames < 1:
            return
        count = self._count(step)
        with self._lock:
            expected, found = self._expected(count), decode_seconds / frames
            measured = found if expected is None else _mixed(expected, found)
            if expected and count == self._latest:
                self._decode = {k: v * measured / expected for k, v in self._decode.items()}
            self._decode[count], self._latest = measured, count
            self._code = _mixed(self._code, code_seconds / frames * step.scale**2)

    def speed(self, step: Step, frames_per_second: float) -> float | None:
        """Seconds of video per second of work; None before anything was measured.

        Args:
            frames_per_second: of the video in this step.
        """
        with self._lock:
            decode = self._expected(self._count(step))
            if decode is None or self._code is None or frames_per_second <= 0:
                return None
            cost = decode + self._code / step.scale**2
            return min(_LONGEST_RATIO, 1 / max(1e-9, cost * frames_per_second))

    def _count(self, step: Step) -> int:
        """How many of the file's levels a step decodes."""
        return max(1, sum(each <= step.levels for each in self._levels))

    def _expected(self, count: int) -> float | None:
        """Seconds of decoding a frame with so many levels, from the nearest number of them."""
        if not self._decode:
            return None
        nearest = min(self._decode, key=lambda each: abs(each - count))
        ratio = (1 + LEVEL_SHARE * (count - 1)) / (1 + LEVEL_SHARE * (nearest - 1))
        return self._decode[nearest] * ratio


def advise(speeds: Mapping[str, float | None], current: str, share: float = 1.0) -> str:
    """The step to go on with: the best that keeps up.

    Args:
        speeds: of each step, the best first, as ThroughputMeter.speed returns.
        current: the present step's name.
        share: of the machine that this viewer gets, 0 to 1.
    """
    names = list(speeds)
    for name, speed in speeds.items():
        if speed is None:
            return current
        better = names.index(name) < names.index(current)
        if speed * share >= (ENOUGH_TO_RISE if better else ENOUGH):
            return name
    return names[-1]


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW_SHARE * (new - old)
