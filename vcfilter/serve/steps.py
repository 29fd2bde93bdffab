"""Quality steps, and which one a machine is fast enough for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from vcfilter.options import LOOKS

ENOUGH = 1.15
"""Seconds of video per second of work that a step needs: a little more than playing takes."""

ENOUGH_TO_RISE = 1.4
"""The same for a better step than the present one, so that it does not go up and down."""

_NEW_SHARE = 0.4  # weight of the newest measurement
_LONGEST_RATIO = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One quality step.

    Args:
        name: in addresses.
        scale: the frame's sides are divided by it.
        share: of the frames that is decoded at most.
        look: see DecoderOptions; those that are not natural stand in the name behind a dash.
    """

    name: str
    scale: int
    share: float
    look: str = LOOKS[0]

    @property
    def rung(self) -> str:
        """The name of the same step in the natural look."""
        return self.name.removesuffix(f"-{self.look}")

    def looking(self, look: str) -> Step:
        """The same step in another look."""
        name = self.rung if look == LOOKS[0] else f"{self.rung}-{look}"
        return replace(self, name=name, look=look)


STEPS = (
    Step(name="full", scale=1, share=1.0),
    Step(name="half", scale=2, share=1.0),
    Step(name="fewer", scale=2, share=0.7),
    Step(name="fewest", scale=2, share=0.4),
)
"""From the best to the quickest: half the size, then fewer frames. What the networks cost hangs on
the frames alone; a smaller frame is coded, sent and shown more quickly."""


@dataclass(slots=True)
class ThroughputMeter:
    """What decoding a video and coding it anew cost on this machine.

    Attributes:
        decode_seconds: per frame that the networks decode; None before the first.
        code_seconds: per frame and full-size pixel share that is scaled, coded and muxed.
    """

    decode_seconds: float | None = None
    code_seconds: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, step: Step, frames: int, decode_seconds: float, code_seconds: float) -> None:
        """Take in the cost of one segment."""
        if frames < 1:
            return
        area = step.scale**2
        with self._lock:
            self.decode_seconds = _mixed(self.decode_seconds, decode_seconds / frames)
            self.code_seconds = _mixed(self.code_seconds, code_seconds / frames * area)

    def speed(self, step: Step, frames_per_second: float) -> float | None:
        """Seconds of video per second of work; None before anything was measured.

        Args:
            frames_per_second: of the video in this step.
        """
        with self._lock:
            if self.decode_seconds is None or self.code_seconds is None or frames_per_second <= 0:
                return None
            cost = self.decode_seconds + self.code_seconds / step.scale**2
            return min(_LONGEST_RATIO, 1 / max(1e-9, cost * frames_per_second))


def advise(speeds: dict[str, float | None], current: str, share: float = 1.0) -> str:
    """The step to go on with: the best that keeps up.

    Args:
        speeds: of each step, as ThroughputMeter.speed returns.
        current: the present step's name.
        share: of the machine that this viewer gets, 0 to 1.
    """
    names = [step.name for step in STEPS]
    for name in names:
        speed = speeds.get(name)
        if speed is None:
            return current
        better = names.index(name) < names.index(current)
        if speed * share >= (ENOUGH_TO_RISE if better else ENOUGH):
            return name
    return names[-1]


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW_SHARE * (new - old)
