"""What a training step consists of: what the host decides, and the numbers that enter it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from vcfilter.codec.structure import GopStep
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.train.data import Planes
from vcfilter.train.phases import looks_back
from vcfilter.train.watch import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class InterPlan:
    """What is the same for all frames of a batch at one place of a group.

    Args:
        shown: which of the group's frames, in display order. references: those it is coded from.
        layer: its temporal layer. back: all references are past.
        mode, refine: see `HierarchicalMode`. passes: before the one that counts.
    """

    shown: int
    references: tuple[int, ...]
    layer: int
    back: bool
    mode: MotionMode
    refine: bool
    passes: int

    @property
    def name(self) -> str:
        """Of the figures in the log."""
        return f"{'forward' if self.back else 'inter'}{self.layer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """All that the host decides about a step; the rest are numbers in tensors.

    Args:
        passes: of keyframes alone, before the one that counts.
        outer: which of a group's frames are its keyframes. outer_passes: likewise, of them.
        inter: a group's other frames, in coding order.
    """

    passes: int
    outer: tuple[int, ...]
    outer_passes: int
    inter: tuple[InterPlan, ...]


class InterNumbers(NamedTuple):
    """Numbers of a batch of inter frames.

    Args:
        qp, level: (B,). distances: (B, 2), signed.
        flows: (B, 2, h, w) to each reference, see `search.dense_flow`; none where motion is not
            coded or is searched for in the step.
    """

    qp: Tensor
    level: Tensor
    distances: Tensor
    flows: tuple[Tensor, ...] = ()


class StepNumbers(NamedTuple):
    """All tensors that enter a step.

    Args:
        alone, alone_qp: keyframes alone; empty without them.
        frames: of the groups, in display order. qp: of their keyframes. inter: as planned.
    """

    alone: tuple[Tensor, ...]
    alone_qp: Tensor
    frames: tuple[Planes, ...]
    qp: Tensor
    inter: tuple[InterNumbers, ...]


class Figures(NamedTuple):
    """Figures of a step for the log; the last value is the gradient's norm."""

    names: tuple[str, ...]
    values: Tensor

    def read(self, step: int) -> dict[str, float]:
        """As numbers.

        Raises:
            TrainingError: one is not finite.
        """
        values = self.values.tolist()
        if not math.isfinite(sum(values)):
            raise TrainingError(f"the loss or its gradient is not finite at step {step}")
        return dict(zip(self.names, values, strict=False))


def positions(outer: tuple[int, ...], steps: tuple[GopStep, ...]) -> list[int]:
    """Numbers of a group's frames, rising."""
    return sorted({*outer, *(step.number for step in steps)})


def fits(plan: StepPlan, outer: tuple[int, ...], steps: tuple[GopStep, ...]) -> bool:
    """Whether a group differs from a plan's in its distances only."""
    order = positions(outer, steps)

    def kind(step: GopStep) -> tuple[Any, ...]:
        at = order.index(step.number)
        return at, tuple(order.index(n) for n in step.references[:2]), step.layer, looks_back(step)

    planned = [(p.shown, p.references, p.layer, p.back) for p in plan.inter]
    return tuple(map(order.index, outer)) == plan.outer and [*map(kind, steps)] == planned
