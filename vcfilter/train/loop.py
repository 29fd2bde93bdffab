"""The training loop: the walk that codes, with a rate-estimating coder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcfilter.codec.structure import GopStep
from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder, TrainingCoder
from vcfilter.errors import ConfigError
from vcfilter.models.hierarchical.conditions import Conditions, quantiser_step
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.values import CodedMotion, FrameContext, Reference
from vcfilter.nn.exact import project
from vcfilter.train.data import Planes, Samples
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
)
from vcfilter.train.precondition import plain, precondition, spread
from vcfilter.train.watch import Guard, Log, TrainingError, settle_file, stopping

__all__ = ["PHASES", "Phase", "Trainer", "train"]

WARM_UP = 100  # steps, at most a fifth of all
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
TWO_PASS_SHARE = 0.5  # of the frames; the analysis learns from the others only


def rate_scale(name: str) -> float:
    """Learning rate of a parameter relative to the phase's."""
    return next((scale for part, scale in RATE_SCALES if part in name), 1.0)


class Trainer:
    """Straight-line training of one phase, with exact resume.

    Args:
        net: the networks, in ordinary weights.
        samples: where groups and half of the keyframes come from. stills: the other half.
        phase: a row of PHASES. steps: how many in all, for the schedule.
        processes: this process among those that train together.
        batch: multiplies the row's crops and groups per process.
        rate: multiplies the row's learning rate.
        half: nonlinear branches in bfloat16.
        flow_threads: of the flow search.
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
    ) -> None:
        self.processes = processes or Processes()
        self.samples, self.stills, self.phase, self.steps = samples, stills, phase, steps
        self.rate, self.flow_threads = rate, flow_threads
        self.batch = batch * self.processes.count  # of all processes, in rows of the table
        if not phase.learns or any(part.startswith("image.") for part in phase.learns):
            precondition(net, spread(stills).cpu())
        device = self.processes.device
        self.net: VideoNet = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.processes.spread(self.net)
        scales: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(not phase.learns or name.startswith(phase.learns))
            if parameter.requires_grad:
                scales.setdefault(rate_scale(name), []).append(parameter)
        groups = [{"params": chosen, "scale": scale} for scale, chosen in scales.items()]
        self.learning = [parameter for chosen in scales.values() for parameter in chosen]
        self.optimizer = torch.optim.AdamW(groups, lr=phase.rate, weight_decay=0, betas=BETAS)
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        if half:
            halve_branches(self.net, device)
        bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
        self.bits = bits.to(device)
        self.step = 0
        self.random = np.random.default_rng(1)

    def part(self, values: np.ndarray[Any, Any]) -> Tensor:
        """This process's part of numbers drawn for the whole batch."""
        return torch.from_numpy(values[self.processes.own]).to(self.processes.device)

    def draw_qp(self, batch: int) -> Tensor:
        """(own part of B,) keyframe qps."""
        usual = self.random.integers(QP_USUAL[0], QP_USUAL[1] + 1, batch)
        whole = self.random.integers(QP_WHOLE[0], QP_WHOLE[1] + 1, batch)
        return self.part(np.where(self.random.random(batch) < QP_WHOLE_SHARE, whole, usual))

    def earlier_passes(self, batch: int) -> list[RateCoder]:
        """Coders of passes before the one that counts: one, as in the default preset, or none."""
        drawn = self.random.random() < TWO_PASS_SHARE
        return [RateCoder(self.bits, batch)] if drawn else []

    def judge(
        self, planes: Planes, x: Planes, qp: Tensor, layer: int, bits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean log cost, mean bits per sample) of frames of one layer."""
        base = quantiser_step(qp)
        distortion = self.phase.distortion(planes, x, base) * self.phase.layer_weight(layer)
        j, bpp = cost(distortion, base, bits, x[0][0].numel())
        return log_cost(j), bpp.detach().mean()

    def keyframes(self, x: Planes, qp: Tensor) -> tuple[Tensor, Reference, Tensor]:
        """(mean log cost, reconstruction, bits per sample) of keyframes."""
        batch = len(qp)
        zero = torch.zeros_like(qp)
        conditions = Conditions(qp, zero, torch.stack([zero, zero], 1), zero)
        coder = TrainingCoder(self.bits, batch)
        reference = self.net.code_keyframe(conditions, x, coder, self.earlier_passes(batch))
        loss, bpp = self.judge(reference.planes, x, qp, 0, coder.total)
        return loss, reference, bpp

    def inter(
        self,
        x: Planes,
        pair: tuple[Reference, Reference],
        qp: Tensor,
        step: GopStep,
    ) -> tuple[Tensor, Reference, Tensor]:
        """(mean log cost, reconstruction, bits per sample) of inter frames of one place."""
        batch = len(qp)
        one = torch.ones_like(qp)
        drawn = self.random.integers(LEVELS[0], LEVELS[1] + 1, batch * self.processes.count)
        distances = torch.tensor([signed_distances(step)], device=qp.device).repeat(batch, 1)
        back = looks_back(step)
        refined = bool(self.random.random() < REFINED_SHARE) and not back
        conditions = Conditions(qp, one * step.layer, distances, self.part(drawn), refined)
        uniform = self.random.random()
        mode = MotionMode.CODED if uniform < self.phase.coded else MotionMode.NONE
        if uniform > (1 + self.phase.coded) / 2 and step.layer > 1 and not back:
            mode = MotionMode.DIRECT
        coded: CodedMotion | None = None
        coder = TrainingCoder(self.bits, batch)
        if mode is MotionMode.CODED:
            estimate = motion(conditions, x, pair, self.flow_threads)
            coded = self.net.code_motion(conditions, estimate, pair, coder)
        reference = self.net.code_inter(
            mode, self.phase.residual, conditions, x, pair, coder, coded, self.earlier_passes(batch)
        )
        loss, bpp = self.judge(reference.planes, x, qp, step.layer, coder.total)
        return loss, reference, bpp

    def run_step(self) -> dict[str, float]:
        """One step of the optimiser; returns the figures of the log, of the whole batch.

        Raises:
            TrainingError: a figure or the gradient is not finite; the weights are as before.
        """
        warm = min(1.0, (self.step + 1) / max(1, min(WARM_UP, self.steps // 5)))
        share = min(1.0, self.step / self.steps)
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.rate * self.rate * warm * cosine * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        found: dict[str, Tensor] = {}
        if self.phase.keyframes:
            found |= self.keyframe_step()
        if self.phase.groups:
            found |= self.group_step()
        self.processes.average_gradients(self.learning)
        norm = torch.nn.utils.clip_grad_norm_(self.learning, CLIP)
        means = self.processes.average(torch.stack([v.detach() for v in found.values()])).tolist()
        if not math.isfinite(sum(means) + float(norm)):
            raise TrainingError(f"the loss or its gradient is not finite at step {self.step}")
        self.optimizer.step()
        project(self.net)
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for k, v in self.net.state_dict().items():
                if v.is_floating_point():
                    self.average[k].lerp_(v, 1 - decay)
        self.step += 1
        return dict(zip(found, means, strict=True))

    def keyframe_step(self) -> dict[str, Tensor]:
        """Keyframes alone: half from photographs, half from clips."""
        half = self.phase.keyframes // 2 * self.batch
        own, size = self.processes.own, min(self.phase.size, self.stills.size, self.samples.size)
        a = self.stills.draw([0], half, size, own)[0]
        b = self.samples.draw([0], half, size, own)[0]
        qp = torch.cat([self.draw_qp(half), self.draw_qp(half)])
        y, u, v = (torch.cat([p, q]) for p, q in zip(a, b, strict=True))
        loss, _, bpp = self.keyframes((y, u, v), qp)
        (loss * self.phase.keyframe_share).backward()
        return {"key": loss, "key_bpp": bpp}

    def draw_group(self) -> tuple[tuple[int, ...], tuple[GopStep, ...]]:
        """Positions of a group's keyframes, and its inter frames in coding order.

        Raises:
            ConfigError: no shot is long enough.
        """
        phase, longest = self.phase, self.samples.longest
        fitting = [(s, p) for s, p in phase.spans if s < longest]
        if not fitting:
            raise ConfigError(f"no shot is long enough for phase {phase.name!r}")
        forward = phase.group is Group.FORWARD or (
            phase.forward > 0 and self.random.random() < phase.forward
        )
        if forward:
            return (0,), forward_steps(self.random, longest)
        spans, chances = (np.array(column) for column in zip(*fitting, strict=True))
        span = int(self.random.choice(spans, p=chances / chances.sum()))
        return (0, span), group_steps(phase.group, span, near_right=bool(self.random.integers(2)))

    def group_step(self) -> dict[str, Tensor]:
        """Keyframes, and inter frames between or after them in coding order."""
        phase, batch = self.phase, self.phase.groups * self.batch
        outer, steps = self.draw_group()
        shown = sorted({*outer, *(step.number for step in steps)})
        size = min(phase.group_size, self.samples.size)
        drawn = self.samples.draw(shown, batch, size, self.processes.own)
        frames = dict(zip(shown, drawn, strict=True))
        qp = self.draw_qp(batch)
        losses: list[Tensor] = []
        figures: dict[str, list[Tensor]] = {}

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
            loss, keys, _ = self.keyframes((y, u, v), qp.repeat(len(outer)))
            # One keyframe and long chains after it, or two keyframes and few frames between.
            keys = learn(loss, phase.keyframe_share * len(outer) / 2, keys)
            own = len(qp)
            held = {at: keys.rows(slice(i * own, (i + 1) * own)) for i, at in enumerate(outer)}
            figures["group_key"] = [loss]
        share = phase.inter_share
        if looks_back(steps[0]):
            share *= min(1.0, FORWARD_FRAMES / len(steps))
        for step in steps:
            pair = held[step.references[0]], held[step.references[-1]]
            jitter = self.part(self.random.integers(-JITTER, JITTER + 1, batch))
            lower = (qp + step.offset + jitter).clamp(max=63)
            x = frames[step.number]
            loss, new, bpp = self.inter(x, pair, lower, step)
            new = learn(loss, share, new)
            held[step.number] = original(x, self.net.config) if phase.originals else new
            name = f"{'forward' if looks_back(step) else 'inter'}{step.layer}"
            figures.setdefault(name, []).append(loss)
            figures.setdefault(f"{name}_bpp", []).append(bpp)
        if losses:
            torch.stack(losses).sum().backward()
        return {name: torch.stack(found).mean() for name, found in figures.items()}

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
            "random": [
                g.bit_generator.state
                for g in (self.random, self.samples.random, self.stills.random)
            ],
            "notes": notes or {},
        }
        part = path.with_name(f"{path.name}.part")
        torch.save(state, part)
        settle_file(part)
        part.replace(path)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns its notes.

        Raises:
            ConfigError: the file is no state of such a training.
        """
        try:
            state = torch.load(path, map_location=self.processes.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{str(path)!r} is no state of this training: {error}") from error
        self.average = state["average"]
        self.step = state["step"]
        for g, s in zip(
            (self.random, self.samples.random, self.stills.random), state["random"], strict=True
        ):
            g.bit_generator.state = s
        notes: dict[str, Any] = state["notes"]
        return notes


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


def train(
    trainer: Trainer,
    state: Path,
    log: Path,
    every: int = 50,
    keep: float = 120.0,
    number: int = 0,
    notes: dict[str, Any] | None = None,
    goes_on: dict[str, Any] | None = None,
) -> None:
    """Run to the last step.

    Args:
        state: where the state is kept every keep seconds, and at the end.
        log: where a line of figures goes every so many steps; it also goes to standard error.
        number: of the phase in the plan. notes: kept in the state.
        goes_on: the notes of the state that the trainer resumed.

    Raises:
        TrainingError: a loss broke; the last good state is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is kept, its attribute `partial` says where.
    """
    first, past = trainer.processes.first, goes_on or {}
    guard = Guard()
    guard.restore(past.get("guard", {}))
    book = Log(log, trainer.phase.name, number, every, not first, trainer.step)
    book.sums = past.get("sums", {})
    begun = time.monotonic() - past.get("seconds", 0.0)

    def save() -> int:
        seconds = time.monotonic() - begun
        beside = {"guard": guard.state(), "sums": book.sums, "seconds": seconds}
        if first:
            trainer.save(state, {**(notes or {}), **beside})
        return trainer.step

    kept, saved = save(), time.monotonic()
    with stopping() as stop:
        while trainer.step < trainer.steps:
            try:
                figures = trainer.run_step()
                losses = {k: v for k, v in figures.items() if not k.endswith("_bpp")}
                calm = guard.check(losses, trainer.step)
            except TrainingError as error:
                raise TrainingError(
                    f"{error}; the last good state, of step {kept}, is in {str(state)!r}: "
                    "go on from it with a lower --rate"
                ) from error
            book.add(figures, trainer.step, trainer.steps, time.monotonic() - begun)
            halt = trainer.processes.any(stop.asked is not None)
            if calm and (halt or time.monotonic() - saved >= keep):
                kept, saved = save(), time.monotonic()
            if halt:
                stopped = KeyboardInterrupt()
                stopped.partial = str(state)  # type: ignore[attr-defined]
                raise stopped
    save()
