"""The training loop: the walk that codes, with a rate-estimating coder."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vcfilter.codec.structure import GopStep
from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder, TrainingCoder
from vcfilter.errors import ConfigError
from vcfilter.fused import compiled
from vcfilter.models.hierarchical.blocks import BLOCK, finish
from vcfilter.models.hierarchical.conditions import Conditions, quantiser_step
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.model import save
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.search import fit_field
from vcfilter.models.hierarchical.values import (
    CodedMotion,
    FrameContext,
    MotionField,
    Pair,
    Reference,
    pair,
)
from vcfilter.nn.exact import project
from vcfilter.train.data import Planes, Samples, upload
from vcfilter.train.filtering import Fitted
from vcfilter.train.graph import StepGraphs
from vcfilter.train.held import weights_held
from vcfilter.train.looks import CodecLooks, Remembering, Shown
from vcfilter.train.loss import cost, log_cost
from vcfilter.train.machine import Processes, halve_branches, motion
from vcfilter.train.phases import (
    PHASES,
    Group,
    Phase,
    forward_steps,
    group_steps,
    looks_back,
    signed_distances,
    stage_at,
)
from vcfilter.train.plan import (
    Figures,
    InterNumbers,
    InterPlan,
    StepNumbers,
    StepPlan,
    fits,
    positions,
)
from vcfilter.train.precondition import plain, precondition, spread
from vcfilter.train.prefetch import FlowSearch, Prefetcher
from vcfilter.train.watch import Guard, Log, TrainingError, save_state, stopping

__all__ = ["PHASES", "Phase", "Trainer", "train"]

WARM_UP = 100  # steps, at most a fifth of all
WARM_UP_SHARE = 5.0
CLIP = 1.0  # of the gradient's norm
AVERAGE = 0.997  # of the exponential average of the weights
BETAS = (0.9, 0.995)
LAST_RATE = 0.02  # of the peak learning rate, at the end of the cosine

# Learning rates relative to the phase's, by a part of the parameter's name; the first that fits
# holds. Filters that work on samples or coefficients in natural units (hundreds) need far smaller
# steps than branches on normalised values: at the full rate their noise alone costs more than one
# bit. Exact layers' inputs reach 255: a step moves a table index by that much more.
RATE_SCALES = (
    ("image.analysis_branch", 0.3),
    (".mean.", 0.03),
    ("log_step", 0.1),
    ("linear.parametrizations", 0.05),
    (".coding.", 0.3),
)
QP_USUAL = (14, 49)  # keyframes' qps, drawn uniformly
QP_WHOLE = (2, 57)  # and this share of them over a wider range, so that the ends work as well
QP_WHOLE_SHARE = 0.2
JITTER = 1  # an inter frame's qp is its layer's usual one, up to so much more or less
REFINED_SHARE = 0.6  # of the moved inter frames; most coded ones are
LEVELS = (2, 7)  # precisions of coded motion
FORWARD_FRAMES = 4  # of a longer forward group's inter frames together weigh as so many
FIT_ROUNDS = 2  # of coded motion at its end, as an encoder's
DELAY = 10  # captured steps between two looks at their figures
PASSES_SHARE = 0.5  # of the frames; the analysis learns from the others only
KEY_PASSES, INTER_PASSES = 2, 1  # of those, before the one that counts

Recorded = dict[str, list[Tensor]]
"""Figures of a step, by their names in the log."""


def rate_scale(name: str) -> float:
    """Learning rate of a parameter relative to the phase's."""
    return next((scale for part, scale in RATE_SCALES if part in name), 1.0)


class Trainer:
    """Straight-line training of one phase, with exact resume.

    On one CUDA device whole steps are captured as graphs, one for each of some plans drawn at the
    start. While the device works on a step the host draws the next one and searches for its motion,
    between originals.

    Args:
        net: the networks, in ordinary weights.
        samples: where groups and half of the keyframes come from. stills: the other half.
        phase: a row of PHASES. steps: how many in all, for the schedule.
        processes: this process among those that train together.
        batch: multiplies the row's crops and groups per process.
        rate: multiplies the row's learning rate.
        half: nonlinear branches in bfloat16.
        flow_threads: of the flow search on the host.
        fused: elementwise functions are compiled, see `vcfilter.fused`.
        plans: of captured steps; 0 means that no step is captured, as none of a row with stages
            is: their losses read values.

    Raises:
        ConfigError: the row needs the weights of ST-LPIPS, which are not installed.
    """

    def __init__(
        self,
        net: VideoNet,
        samples: Samples,
        stills: Samples,
        phase: Phase,
        steps: int,
        *,
        processes: Processes | None = None,
        batch: int = 1,
        rate: float = 1.0,
        half: bool = False,
        flow_threads: int = 1,
        fused: bool = False,
        plans: int = 0,
    ) -> None:
        self.processes = processes or Processes()
        self.samples, self.stills, self.phase, self.steps = samples, stills, phase, steps
        self.rate, self.flow_threads, self.fused = rate, flow_threads, fused
        self.batch = batch * self.processes.count  # of all processes, in rows of the table
        if not phase.learns or "image." in phase.learns:  # linear filters learn
            precondition(net, spread(samples).cpu())
        device = self.processes.device
        self.net = net.to(device).train()
        self.processes.spread(self.net)
        scales: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(not phase.learns or name.startswith(phase.learns))
            if parameter.requires_grad:
                scales.setdefault(rate_scale(name), []).append(parameter)
        groups = [{"params": chosen, "scale": scale} for scale, chosen in scales.items()]
        self.learning = [parameter for chosen in scales.values() for parameter in chosen]
        cuda = device.type == "cuda"
        start: Tensor | float = torch.tensor(phase.rate, device=device) if cuda else phase.rate
        self.optimizer = torch.optim.AdamW(
            groups, lr=start, weight_decay=0, betas=BETAS, capturable=cuda, fused=cuda or None
        )
        if cuda:  # each group its own: they are written to in place
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(phase.rate, device=device)
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.looks: CodecLooks | None = None
        if phase.stages:
            features = any(stage.features for stage in phase.stages)
            self.looks = CodecLooks(
                self.net, phase.rate, self.processes, features=features, half=half
            )
        if half:
            halve_branches(self.net, device)
        bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
        self.bits = bits.to(device)
        self.step = 0
        self.share = 0.0  # of the training that is done, for the schedule
        self.random = np.random.default_rng(1)
        self.graphs: StepGraphs | None = None
        self.prefetcher: Prefetcher | None = None
        self.plans: list[StepPlan] = []
        if plans and not phase.stages:
            self.graphs = StepGraphs(self.learn)
            self.prefetcher = Prefetcher(self.draw, self.random_states, device)
            self.search = FlowSearch(flow_threads)
            self.plans = [self.draw_plan(n / plans) for n in range(plans)]

    @property
    def title(self) -> str:
        """Of the phase, for the log."""
        return self.phase.name

    @property
    def delay(self) -> int:
        """Steps whose figures are read at once: reading makes the host wait for the device."""
        return DELAY if self.graphs else 1

    @property
    def generators(self) -> tuple[np.random.Generator, ...]:
        """All that a step is drawn from."""
        return self.random, self.samples.random, self.stills.random

    def random_states(self) -> list[dict[str, Any]]:
        """Of the generators, now."""
        return [dict(g.bit_generator.state) for g in self.generators]

    def part(self, values: np.ndarray[Any, Any]) -> Tensor:
        """This process's part of numbers drawn for the whole batch."""
        return upload(values[self.processes.own], self.processes.device)

    def draw_qp(self, batch: int) -> np.ndarray[Any, Any]:
        """(B,) keyframe qps."""
        usual = self.random.integers(QP_USUAL[0], QP_USUAL[1] + 1, batch)
        whole = self.random.integers(QP_WHOLE[0], QP_WHOLE[1] + 1, batch)
        return np.where(self.random.random(batch) < QP_WHOLE_SHARE, whole, usual)

    def draw_passes(self, passes: int) -> int:
        """So many passes before the one that counts, or none."""
        return passes * int(self.random.random() < PASSES_SHARE)

    def draw_mode(self, step: GopStep) -> MotionMode:
        """How the frames of one place are moved."""
        uniform = self.random.random()
        if uniform < self.phase.coded:
            return MotionMode.CODED
        inherits = uniform > (1 + self.phase.coded) / 2 and step.layer > 1 and not looks_back(step)
        return MotionMode.DIRECT if inherits else MotionMode.NONE

    def draw_group(self, forward: float) -> tuple[tuple[int, ...], tuple[GopStep, ...]]:
        """Positions of a group's keyframes, and its inter frames in coding order.

        Args:
            forward: 0 to 1; below the phase's share the group looks back.

        Raises:
            ConfigError: no shot is long enough.
        """
        phase, longest = self.phase, self.samples.longest
        if phase.group is Group.FORWARD or forward < phase.forward:
            if longest < 2:
                raise ConfigError(f"no shot is long enough for phase {phase.name!r}")
            return (0,), forward_steps(self.random, longest)
        fitting = [(s, p) for s, p in phase.spans if s < longest]
        if not fitting:
            raise ConfigError(f"no shot is long enough for phase {phase.name!r}")
        spans, chances = (np.array(column) for column in zip(*fitting, strict=True))
        span = int(self.random.choice(spans, p=chances / chances.sum()))
        return (0, span), group_steps(phase.group, span, near_right=bool(self.random.integers(2)))

    def plan_of(self, outer: tuple[int, ...], steps: tuple[GopStep, ...]) -> StepPlan:
        """A plan for a group, with what else the host decides drawn."""
        order = positions(outer, steps)
        inter = []
        for step in steps:
            back = looks_back(step)
            inter.append(
                InterPlan(
                    shown=order.index(step.number),
                    references=tuple(order.index(n) for n in step.references[:2]),
                    layer=step.layer,
                    back=back,
                    mode=self.draw_mode(step),
                    refine=bool(self.random.random() < REFINED_SHARE) and not back,
                    passes=self.draw_passes(INTER_PASSES),
                )
            )
        return StepPlan(
            passes=self.draw_passes(KEY_PASSES),
            outer=tuple(order.index(n) for n in outer),
            outer_passes=self.draw_passes(KEY_PASSES),
            inter=tuple(inter),
        )

    def draw_plan(self, forward: float) -> StepPlan:
        """A plan for the graphs, see `draw_group`."""
        return self.plan_of(*(self.draw_group(forward) if self.phase.groups else ((), ())))

    def draw(self) -> tuple[StepPlan, StepNumbers]:
        """A step's plan and its numbers; of captured plans one, and a group of its kind."""
        outer: tuple[int, ...] = ()
        steps: tuple[GopStep, ...] = ()
        if self.plans:
            plan = self.plans[int(self.random.integers(len(self.plans)))]
            forward = 0.0 if plan.inter and plan.inter[0].back else 1.0
            while self.phase.groups:
                outer, steps = self.draw_group(forward)
                if fits(plan, outer, steps):
                    break
        else:
            if self.phase.groups:
                outer, steps = self.draw_group(self.random.random())
            plan = self.plan_of(outer, steps)
        alone: tuple[Tensor, ...] = ()
        alone_qp = np.zeros(0, np.int64)
        own, phase = self.processes.own, self.phase
        if phase.keyframes:
            half = phase.keyframes // 2 * self.batch
            size = min(phase.size, self.stills.size, self.samples.size)
            both = [s.draw([0], half, size, own)[0] for s in (self.stills, self.samples)]
            alone = tuple(torch.cat(same) for same in zip(*both, strict=True))
            alone_qp = np.concatenate([self.draw_qp(half)[own] for _ in both])
        batch = phase.groups * self.batch
        frames: list[Planes] = []
        if batch:
            size = min(phase.group_size, self.samples.size)
            frames = self.samples.draw(positions(outer, steps), batch, size, own)
        qp = self.draw_qp(batch)
        flows = self.flows(plan, frames)
        inter = []
        for step, found in zip(steps, flows, strict=True):
            jitter = self.random.integers(-JITTER, JITTER + 1, batch)
            level = self.random.integers(LEVELS[0], LEVELS[1] + 1, batch)
            distances = np.tile(np.array([signed_distances(step)]), (batch, 1))
            lower = (qp + step.offset + jitter).clip(max=63)
            part = self.part
            inter.append(InterNumbers(part(lower), part(level), part(distances), found))
        device = self.processes.device
        return plan, StepNumbers(
            alone=alone,
            alone_qp=upload(alone_qp, device),
            frames=tuple(frames),
            qp=self.part(qp),
            inter=tuple(inter),
        )

    def flows(self, plan: StepPlan, frames: Sequence[Planes]) -> list[tuple[Tensor, ...]]:
        """Dense flows of a captured step's inter frames, between originals."""
        found: list[tuple[Tensor, ...]] = [()] * len(plan.inter)
        if self.graphs is None:
            return found
        coded = [n for n, each in enumerate(plan.inter) if each.mode is MotionMode.CODED]
        pairs = [(plan.inter[n].shown, r) for n in coded for r in plan.inter[n].references]
        each = iter(self.search(frames, pairs, self.processes.device))
        for n in coded:
            found[n] = tuple(next(each) for _ in plan.inter[n].references)
        return found

    def earlier(self, passes: int, batch: int) -> list[RateCoder]:
        """Coders of passes before the one that counts."""
        return [RateCoder(self.bits, batch) for _ in range(passes)]

    def judge(
        self, planes: Planes, x: Planes, qp: Tensor, layer: int, bits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean log cost, mean bits per sample) of frames of one layer."""
        base = quantiser_step(qp)
        distortion = self.phase.distortion(planes, x, base) * self.phase.layer_weight(layer)
        j, bpp = cost(distortion, base, bits, x[0][0].numel())
        return log_cost(j), bpp.detach().mean()

    def coder(self, batch: int) -> TrainingCoder:
        """A coder for frames whose symbols count."""
        return (Remembering if self.looks else TrainingCoder)(self.bits, batch)

    def keyframes(
        self, x: Planes, qp: Tensor, passes: int = 0, coder: TrainingCoder | None = None
    ) -> tuple[Tensor, Reference, Tensor]:
        """(mean log cost, reconstruction, bits per sample) of keyframes."""
        batch = len(qp)
        coder = coder or self.coder(batch)
        conditions, fitted = key_conditions(qp), Fitted(x)
        reference = self.net.code_keyframe(
            conditions, x, coder, self.earlier(passes, batch), filters=fitted
        )
        reference = filtered(reference, fitted)
        loss, bpp = self.judge(reference.planes, x, qp, 0, coder.total)
        return loss, reference, bpp

    def inter(
        self,
        x: Planes,
        held: Sequence[Reference],
        plan: InterPlan,
        inputs: InterNumbers,
        coder: TrainingCoder | None = None,
    ) -> tuple[Tensor, Reference, Tensor]:
        """(mean log cost, reconstruction, bits per sample) of inter frames of one place."""
        batch = len(inputs.qp)
        conditions = inter_conditions(plan, inputs)
        references = pair(held)
        fitted = Fitted(x)
        coded: CodedMotion | None = None
        coder = coder or self.coder(batch)
        if plan.mode is MotionMode.CODED:
            references = pair([reference.with_sizes() for reference in held])
            estimate = self.estimate(conditions, x, references, inputs.flows)
            coded = self.net.code_motion(conditions, estimate, references, coder)
        reference = self.net.code_inter(
            plan.mode,
            self.phase.residual,
            conditions,
            x,
            references,
            coder,
            coded,
            self.earlier(plan.passes, batch),
            filters=fitted,
        )
        reference = filtered(reference, fitted)
        loss, bpp = self.judge(reference.planes, x, inputs.qp, plan.layer, coder.total)
        return loss, reference, bpp

    def estimate(
        self, conditions: Conditions, x: Planes, references: Pair, flows: Sequence[Tensor]
    ) -> MotionField:
        """Motion to reconstructions; flows: to their originals, where the step is captured."""
        if not flows:
            return motion(conditions, x, references, self.flow_threads)
        base = quantiser_step(conditions.qp)
        with torch.no_grad():
            finer = [reference.finest() for reference in references[: len(flows)]]
            return MotionField(*fit_field(x[0], flows, finer, base, FIT_ROUNDS, waits=False))

    def look(self, looks: CodecLooks, loss: Tensor, shown: Shown, recorded: Recorded) -> Tensor:
        """The loss of frames with those of the row's stage."""
        stage = stage_at(self.phase.stages, self.share)
        top, left = (int(n) for n in self.random.integers(0, BLOCK, 2))
        found = looks.measure(stage, shown, (top, left))
        record(recorded, **found)
        return loss + torch.stack([stage.weight(n) * value for n, value in found.items()]).sum()

    def set_rate(self) -> None:
        """The learning rate of the step to come."""
        warm = min(1.0, max((self.step + 1) / WARM_UP, WARM_UP_SHARE * self.share))
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * self.share))
        peak = self.phase.rate * self.rate
        if self.phase.stages:
            peak *= stage_at(self.phase.stages, self.share).rate
        for group in self.optimizer.param_groups:
            rate = peak * warm * cosine * group["scale"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def run_step(self) -> Figures:
        """One step of the optimiser; returns the figures of the log, of the whole batch.

        Raises:
            TrainingError: a figure or the gradient is not finite; the weights are as before.
                Of a captured step only `Figures.read` tells.
        """
        plan, inputs = self.prefetcher.take() if self.prefetcher else self.draw()
        self.set_rate()
        figures = self.graphs.run(plan, inputs) if self.graphs else self.learn(plan, inputs)
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = [(k, v) for k, v in self.net.state_dict().items() if v.is_floating_point()]
            averages = [self.average[k] for k, _ in state]
            torch._foreach_lerp_(averages, [v for _, v in state], 1 - decay)
        self.step += 1
        self.share = share_done(self.step, self.steps)
        if self.prefetcher:
            self.prefetcher.prepare()
        return figures

    def learn(self, plan: StepPlan, inputs: StepNumbers) -> Figures:
        """The device's part of a step; the host reads nothing of a captured one."""
        self.optimizer.zero_grad(set_to_none=True)
        recorded: Recorded = {}
        with compiled(self.fused), weights_held(self.net):
            if self.phase.keyframes:
                self.keyframe_step(plan, inputs, recorded)
            if self.phase.groups:
                self.group_step(plan, inputs, recorded)
        found = {name: torch.stack(values).mean() for name, values in recorded.items()}
        self.processes.average_gradients(self.learning)
        norm = torch.nn.utils.clip_grad_norm_(self.learning, CLIP)
        values = torch.stack([*(v.detach() for v in found.values()), norm])
        figures = Figures(tuple(found), self.processes.average(values))
        if not self.graphs:
            figures.read(self.step)
        self.optimizer.step()
        project(self.net)
        return figures

    def keyframe_step(self, plan: StepPlan, inputs: StepNumbers, recorded: Recorded) -> None:
        """Keyframes alone: half from photographs, half from clips."""
        y, u, v = inputs.alone
        coder = self.coder(len(y))
        loss, new, bpp = self.keyframes((y, u, v), inputs.alone_qp, plan.passes, coder)
        record(recorded, key=loss, key_bpp=bpp)
        if self.looks:
            conditions = key_conditions(inputs.alone_qp)
            shown = Shown(new=new, original=y, conditions=conditions, coder=coder)
            loss = self.look(self.looks, loss, shown, recorded)
        (loss * self.phase.keyframe_share).backward()

    def group_step(self, plan: StepPlan, inputs: StepNumbers, recorded: Recorded) -> None:
        """Keyframes, and inter frames between or after them in coding order."""
        phase, frames, qp, outer = self.phase, inputs.frames, inputs.qp, plan.outer
        losses: list[Tensor] = []

        def learn(loss: Tensor, share: float, reference: Reference) -> Reference:
            """Without gradients through references, each frame's history ends here."""
            if phase.through:
                losses.append(loss * share)
                return reference
            (loss * share).backward()
            return reference.each(Tensor.detach)

        if phase.originals:
            held = {at: original(frames[at], self.net.config) for at in outer}
        else:
            planes = zip(*(frames[at] for at in outer), strict=True)
            y, u, v = (torch.cat(same) for same in planes)
            loss, keys, _ = self.keyframes((y, u, v), qp.repeat(len(outer)), plan.outer_passes)
            # One keyframe and long chains after it, or two keyframes and few frames between.
            keys = learn(loss, phase.keyframe_share * len(outer) / 2, keys)
            own = len(qp)
            held = {at: keys.rows(slice(i * own, (i + 1) * own)) for i, at in enumerate(outer)}
            record(recorded, group_key=loss)
        share = phase.inter_share
        if plan.inter[0].back:
            share *= min(1.0, FORWARD_FRAMES / len(plan.inter))
        for place, numbers in zip(plan.inter, inputs.inter, strict=True):
            x = frames[place.shown]
            references = [held[n] for n in place.references]
            coder = self.coder(len(qp))
            loss, new, bpp = self.inter(x, references, place, numbers, coder)
            record(recorded, **{place.name: loss, f"{place.name}_bpp": bpp})
            if self.looks:
                shown = Shown(
                    new=new,
                    original=x[0],
                    mode=place.mode,
                    residual=phase.residual,
                    conditions=inter_conditions(place, numbers),
                    references=pair(references),
                    coder=coder,
                    before=frames[place.references[0]][0],
                )
                loss = self.look(self.looks, loss, shown, recorded)
            new = learn(loss, share, new)
            held[place.shown] = original(x, self.net.config) if phase.originals else new
        if losses:
            torch.stack(losses).sum().backward()

    def weights(self) -> VideoNet:
        """The averaged networks, in ordinary weights, on the CPU."""
        current = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(self.average)
        result = plain(self.net)
        self.net.load_state_dict(current)
        return result

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Everything needed to go on exactly from here, complete or not at all; notes beside it."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": self.prefetcher.states() if self.prefetcher else self.random_states(),
            "looks": self.looks.state() if self.looks else None,
            "notes": notes or {},
        }
        save_state(path, state)

    def save_average(self, path: Path) -> None:
        """The averaged networks as a weights file, with the classical tables."""
        save(str(path), self.weights(), tables.laplace_magnitudes(), "average", {})

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns its notes.

        Raises:
            ConfigError: the file is no state of such a training.
        """
        try:
            state = torch.load(path, map_location=self.processes.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.looks:
                self.looks.restore(state["looks"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{str(path)!r} is no state of this training: {error}") from error
        self.average = state["average"]
        self.step = state["step"]
        self.share = share_done(self.step, self.steps)
        for g, s in zip(self.generators, state["random"], strict=True):
            g.bit_generator.state = s
        if self.prefetcher:
            self.prefetcher.forget()
        notes: dict[str, Any] = state["notes"]
        return notes


def record(recorded: Recorded, **figures: Tensor) -> None:
    """Add figures, without their gradients."""
    for name, value in figures.items():
        recorded.setdefault(name, []).append(value.detach())


def key_conditions(qp: Tensor) -> Conditions:
    """Of keyframes."""
    zero = torch.zeros_like(qp)
    return Conditions(qp, zero, torch.stack([zero, zero], 1), zero)


def inter_conditions(plan: InterPlan, inputs: InterNumbers) -> Conditions:
    """Of inter frames of one place."""
    layer = torch.full_like(inputs.qp, plan.layer)
    sharp = plan.mode is MotionMode.CODED
    return Conditions(inputs.qp, layer, inputs.distances, inputs.level, plan.refine, sharp)


def filtered(reference: Reference, fitted: Fitted) -> Reference:
    """A reconstruction after the loop filter."""
    return replace(reference, planes=finish(fitted.filtered(reference.planes), None))


def original(x: Planes, config: HierarchicalConfig) -> Reference:
    """An original as a reference: it brings no symbols and no motion."""
    batch, _, rows, columns = x[0].shape
    height, width = config.latent_size(rows, columns)
    none = torch.zeros(batch, config.channels, height, width, dtype=torch.uint8, device=x[0].device)
    still = none.new_zeros(batch, config.motion_channels, height // 4, width // 4)
    context = FrameContext(symbols=none, activity=none, motion_symbols=still, motion_activity=still)
    return Reference(
        planes=x,
        context=context,
        moves=x[0].new_zeros(batch, 4, height, width),
        distances=torch.zeros(batch, 2, dtype=torch.int64, device=none.device),
    )


def share_done(step: int, steps: int) -> float:
    """The part of a training that is done; steps 0: none are set, the loop counts minutes."""
    return min(1.0, step / steps) if steps else 0.0


class Trains(Protocol):
    """What the loop asks of a trainer; see `Trainer`.

    Attributes:
        share: of the training that is done, which the loop sets where minutes are given.
    """

    step: int
    share: float

    @property
    def steps(self) -> int: ...
    @property
    def title(self) -> str:
        """Of the phase, for the log."""

    @property
    def processes(self) -> Processes: ...
    @property
    def delay(self) -> int: ...
    def run_step(self) -> Figures: ...
    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None: ...
    def save_average(self, path: Path) -> None: ...


def train(
    trainer: Trains,
    state: Path,
    log: Path,
    every: int = 50,
    keep: float = 60.0,
    number: int = 0,
    notes: dict[str, Any] | None = None,
    goes_on: dict[str, Any] | None = None,
    minutes: float | None = None,
    average: Path | None = None,
) -> None:
    """Run to the last step, or for so many minutes.

    Args:
        state: where the state is kept every keep seconds, and at the end.
        log: where a line of figures goes every so many steps; it also goes to standard error.
        number: of the phase in the plan. notes: kept in the state.
        goes_on: the notes of the state that the trainer resumed.
        minutes: how long training takes in all, instead of the trainer's steps.
        average: where the averaged weights are kept beside the state, as a weights file whose
            tables are not measured.

    Raises:
        TrainingError: a loss broke; the last good state is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is kept, its attribute `partial` says where.
    """
    first, past = trainer.processes.first, goes_on or {}
    guard = Guard()
    guard.restore(past.get("guard", {}))
    book = Log(log, trainer.title, number, every, not first, trainer.step)
    book.sums = past.get("sums", {})
    begun = time.monotonic() - past.get("seconds", 0.0)

    def save() -> int:
        seconds = time.monotonic() - begun
        beside = {"guard": guard.state(), "sums": book.sums, "seconds": seconds}
        if first:
            trainer.save(state, {**(notes or {}), **beside})
            if average is not None:
                trainer.save_average(average)
        return trainer.step

    def set_share() -> None:
        if minutes is not None:  # clocks differ: all processes take the mean
            own = torch.tensor(seconds / (60 * minutes), device=trainer.processes.device)
            trainer.share = min(1.0, float(trainer.processes.average(own)))

    seconds = time.monotonic() - begun
    set_share()
    kept, saved = save(), time.monotonic()
    pending: list[Figures] = []
    with stopping() as stop:
        while trainer.share < 1:
            pending.append(trainer.run_step())
            seconds = time.monotonic() - begun
            set_share()
            halt = trainer.processes.any(stop.asked is not None)
            if len(pending) < trainer.delay and trainer.share < 1 and not halt:
                continue
            calm = True
            try:
                for number, figures in enumerate(pending, trainer.step - len(pending) + 1):
                    found = figures.read(number)
                    losses = {k: v for k, v in found.items() if not k.endswith("_bpp")}
                    calm = guard.check(losses, number) and calm
                    book.add(found, number, trainer.steps if minutes is None else 0, seconds)
            except TrainingError as error:
                raise TrainingError(
                    f"{error}; the last good state, of step {kept}, is in {str(state)!r}: "
                    "go on from it with a lower --rate"
                ) from error
            pending.clear()
            if calm and (halt or time.monotonic() - saved >= keep):
                kept, saved = save(), time.monotonic()
            if halt:
                raise stop.interrupt(state)
    save()
