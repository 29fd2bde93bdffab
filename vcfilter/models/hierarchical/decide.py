"""The encoder's mode decision: which way to code a frame is cheapest in rate and distortion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vcfilter.entropy.coder import EncodingCoder, Entry, TableSet
from vcfilter.frames import FrameStep
from vcfilter.models.base import Tracked
from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.models.hierarchical.conditions import Conditions, chroma_weight, quantiser_step
from vcfilter.models.hierarchical.config import DEEP_LAYER, Effort
from vcfilter.models.hierarchical.cost import ResidualCost, distortion, rd_weight
from vcfilter.models.hierarchical.loop_filter import Filters
from vcfilter.models.hierarchical.mode import (
    KEY_MODE,
    HierarchicalMode,
    MotionMode,
)
from vcfilter.models.hierarchical.net import LevelCoder, VideoNet
from vcfilter.models.hierarchical.search import MotionSearch
from vcfilter.models.hierarchical.sections import Chosen
from vcfilter.models.hierarchical.values import (
    CodedMotion,
    MotionField,
    Pair,
    Picture,
    Reference,
    pair,
)

HEADER_BYTES = 9  # of an inter packet besides mode and payload
REPEAT_BYTES = 6  # of a packet with nothing coded
QPS_PER_LEVEL = 3  # of the motion's precision: as many qps as change its step by as much
SMALLEST_BITS = 16 * 8  # an inter packet with one word of payload has about so many


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """One way to code an inter frame.

    Args:
        cost: distortion plus weighted bits.
        estimate: what the cost will be with a residual, where none was coded.
        rate: weighted bits of what was coded.
    """

    cost: float
    estimate: float
    rate: float
    mode: HierarchicalMode
    reference: Reference
    coder: EncodingCoder


def choose_keyframe(
    net: VideoNet,
    tables: TableSet,
    x: Picture,
    step: FrameStep,
    effort: Effort,
    levels: Sequence[int] = (),
    rd_scale: npt.NDArray[np.float32] | None = None,
) -> Chosen:
    """A keyframe's symbols, of the base and of each level's qp, and its reconstruction.

    Args:
        rd_scale: see models.base.Model.encode.
    """
    scale = _on_latent(rd_scale, x)
    conditions = Conditions.of([step], [KEY_MODE], x.planes[0].device, x.size)
    passes = effort.passes_of(0)
    coder, above = EncodingCoder(tables), _level_coders(tables, step, levels, passes)
    earlier = [EncodingCoder(tables) for _ in range(passes - 1)]
    filters = filters_of(tables, x, step.qp, ())
    reference = net.code_keyframe(
        conditions, x.planes, coder, earlier, above, scale, filters, effort.foreseen
    )
    return coder, above, reference


def _on_latent(rd_scale: npt.NDArray[np.float32] | None, x: Picture) -> Tensor | float:
    """Factors on the Lagrangian as `VideoNet` takes them."""
    return 1.0 if rd_scale is None else torch.from_numpy(rd_scale).to(x.planes[0])[None, None]


def filters_of(tables: TableSet, x: Picture, qp: int, references: Sequence[Reference]) -> Filters:
    """What chooses a picture's loop filters.

    Args:
        qp: of the base. references: in their order; none of a keyframe.
    """
    sources = [each.context.loop_filter for each in references[:2]]
    chroma = float(chroma_weight(quantiser_step(torch.tensor(qp))))
    return Filters(x.planes, x.size, sources, tables, rd_weight(qp), chroma)


def _level_coders(
    tables: TableSet, step: FrameStep, levels: Sequence[int], passes: int
) -> list[LevelCoder]:
    """What codes each level."""
    return [
        LevelCoder(drop=step.qp - qp, passes=[EncodingCoder(tables) for _ in range(passes)])
        for qp in levels
    ]


def choose_inter(
    net: VideoNet,
    tables: TableSet,
    x: Picture,
    step: FrameStep,
    mode: HierarchicalMode,
    references: Pair,
    field: MotionField | None,
    passes: int,
    foreseen: int,
    coded: dict[int, tuple[CodedMotion, tuple[Entry, ...]]] | None = None,
    levels: Sequence[int] = (),
    finer: int = 0,
    rd_scale: Tensor | float = 1.0,
) -> Chosen:
    """An inter frame's symbols, not yet in bytes, and its reconstruction in one mode.

    Args:
        field: estimated motion, for CODED.
        passes, foreseen: see `Effort`.
        coded: motion by its level, as it was coded of this field before; added to.
        finer: see `VideoNet.code_motion`. rd_scale: see `VideoNet.code_inter`.
    """
    conditions = Conditions.of([step], [mode], x.planes[0].device, x.size)
    coder = EncodingCoder(tables)
    motion = None
    if mode.motion is MotionMode.CODED:
        assert field is not None
        known = coded if coded is not None else {}
        if mode.level not in known:
            motion = net.code_motion(conditions, field, references, coder, finer)
            known[mode.level] = motion, coder.entries
        else:
            motion, entries = known[mode.level]
            coder.repeat(entries)
    earlier = [EncodingCoder(tables) for _ in range(passes - 1)]
    above = _level_coders(tables, step, levels, passes)
    filters = filters_of(tables, x, step.qp, references)
    reference = net.code_inter(
        mode.motion,
        mode.residual,
        conditions,
        x.planes,
        references,
        coder,
        motion,
        earlier,
        above,
        rd_scale,
        filters,
        foreseen,
    )
    return coder, above, reference


class ModeDecision:
    """The cheapest way to code an inter frame's base, among those that the effort tries.

    Every motion is tried without a residual first; the residual, which costs most of the time, is
    coded only for the motions with the least estimated cost.

    Args:
        quantiser: the frame's base step (1,) and quantiser steps (1, 96), see `VideoNet.quantiser`.
        rd_scale, tracked: see models.base.Model.encode.
    """

    def __init__(
        self,
        net: VideoNet,
        tables: TableSet,
        x: Picture,
        step: FrameStep,
        references: Sequence[Reference],
        effort: Effort,
        quantiser: tuple[Tensor, Tensor],
        levels: Sequence[int] = (),
        rd_scale: npt.NDArray[np.float32] | None = None,
        tracked: Tracked | None = None,
    ) -> None:
        self._net, self._tables, self._x, self._step = net, tables, x, step
        self._effort, self._tracked = effort, tracked
        self._rd_scale = _on_latent(rd_scale, x)
        self._pair = pair(references)
        self._two = len(references) > 1
        self._between = self._two and min(step.references[:2]) < 0 < max(step.references[:2])
        self._coded: dict[int, tuple[CodedMotion, tuple[Entry, ...]]] = {}
        self._field: MotionField | None = None
        # Every level is predicted by the same motion: it is searched, coded and chosen for a qp in
        # the middle, and as precise as the best level needs it.
        drop = step.qp - levels[-1] if levels else 0
        self._finer = drop // 2
        self._weight = rd_weight(step.qp - self._finer) * 8 / (x.size[0] * x.size[1])  # of a byte
        self._precise = {max(0, level - drop // QPS_PER_LEVEL) for level in effort.motion_levels}
        self._base = quantiser[0]
        self._residual = ResidualCost(*quantiser)

    def best(self) -> Trial:
        """The trial with the least cost."""
        best = self._try(HierarchicalMode(residual=False))
        if best.cost <= self._weight * SMALLEST_BITS / 8:
            return best  # a still picture: nothing else can be cheaper
        left, right = self._pair
        first = left.with_sizes()
        self._pair = first, first if right is left else right.with_sizes()
        trials = [best, *(self._try(mode) for mode in self._free())]
        if not self._settled(trials):
            step = replace(self._step, qp=self._step.qp - self._finer)
            conditions = Conditions.of([step], [KEY_MODE], self._base.device, self._x.size)
            trials += self._with_motion(self._search(conditions))
        best = min(trials, key=lambda trial: trial.cost)
        trials.sort(key=lambda trial: trial.estimate)
        effort, deep = self._effort, self._step.layer >= DEEP_LAYER
        least_gain = effort.deep_gain if deep else effort.least_gain
        for trial in trials[: effort.residuals]:
            if trial.estimate >= best.cost * (1 - least_gain):
                break
            whole = self._try(replace(trial.mode, residual=True), self._field)
            best = min(best, whole, key=lambda trial: trial.cost)
        return best

    def _search(self, conditions: Conditions) -> list[MotionField]:
        """One or two ways of motion to the references, before they are coded.

        That through the frames between is the scene's. Where it explains little, as on water, a
        search of the references themselves may find motion that takes less to code.
        """
        effort, x, device = self._effort, self._x.planes, self._base.device
        rows, columns = (side // BLOCK for side in x[0].shape[2:])
        flows = []
        known = None if self._tracked is None else self._tracked()
        for flow in known or ():
            missing = ((0, 0), (0, rows - flow.shape[1]), (0, columns - flow.shape[2]))
            flows.append(torch.from_numpy(np.pad(flow, missing, mode="edge"))[None].to(device))
        search = MotionSearch(conditions, x, self._pair)
        start = search.start(flows)
        found = [search.fitted(start, effort.fit_rounds)]
        if flows and search.remainder(found[0]) > effort.searched:
            own = search.start()
            if search.cost(own) < effort.promising * search.cost(start):
                found.append(search.fitted(own, effort.fit_rounds))
        return found

    def _settled(self, trials: Sequence[Trial]) -> bool:
        """Whether no motion is searched, as what is known fits well enough for the effort."""
        best = min(trials, key=lambda trial: trial.estimate)
        gain = best.cost - best.estimate
        return self._step.layer >= DEEP_LAYER and gain < self._effort.settled * best.cost

    def _with_motion(self, fields: Sequence[MotionField]) -> list[Trial]:
        """Trials with coded motion, without a residual; of the best of some fields."""
        effort = self._effort
        refine = self._between and not effort.plain_motion
        lowest, *others = (
            HierarchicalMode(
                motion=MotionMode.CODED, level=level, refine=refine, sharp=True, residual=False
            )
            for level in sorted(self._precise)
        )
        tried = []
        for field in fields:
            self._coded = {}
            tried.append((self._try(lowest, field), field, self._coded))
        trial, field, self._coded = min(tried, key=lambda each: each[0].estimate)
        self._field = field
        trials = [trial]
        if trial.rate > effort.coarser * trial.estimate:
            trials += [self._try(mode, field) for mode in others]
        if self._between and effort.plain_motion:
            first = min(trials, key=lambda trial: trial.estimate)
            trials.append(self._try(replace(first.mode, refine=True), field))
        return trials

    def with_levels(self, mode: HierarchicalMode, levels: Sequence[int]) -> Chosen:
        """The symbols and the reconstruction in a mode that was tried, with quality levels."""
        passes = self._effort.passes_of(self._step.layer)
        return choose_inter(
            self._net,
            self._tables,
            self._x,
            self._step,
            mode,
            self._pair,
            self._field,
            passes,
            self._effort.foreseen,
            self._coded,
            levels,
            self._finer,
            self._rd_scale,
        )

    def _free(self) -> list[HierarchicalMode]:
        """Modes without coded motion and without a residual that are tried besides none."""
        modes = []
        if self._effort.free_modes and self._two:
            modes += [
                HierarchicalMode(motion=MotionMode.FIRST, residual=False),
                HierarchicalMode(motion=MotionMode.SECOND, residual=False),
            ]
        if self._between and self._step.layer > 1:
            modes.append(
                HierarchicalMode(motion=MotionMode.DIRECT, refine=True, sharp=True, residual=False)
            )
        return modes

    def _try(self, mode: HierarchicalMode, field: MotionField | None = None) -> Trial:
        passes = self._effort.passes_of(self._step.layer)
        coder, _, reference = choose_inter(
            self._net,
            self._tables,
            self._x,
            self._step,
            mode,
            self._pair,
            field,
            passes,
            self._effort.foreseen,
            self._coded,
            finer=self._finer,
            rd_scale=self._rd_scale,
        )
        coded = coder.size()
        size = len(mode.pack()) + coded + HEADER_BYTES
        rate_cost = self._weight * (REPEAT_BYTES if mode.repeats else size)
        error = estimate = distortion(self._x, reference.planes, self._step.qp)
        if not mode.residual:
            estimate = self._residual.of(self._x, reference.planes)
        return Trial(
            cost=error + rate_cost,
            estimate=estimate + rate_cost,
            rate=self._weight * coded,
            mode=mode,
            reference=reference,
            coder=coder,
        )
