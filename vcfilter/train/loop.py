"""The training loop: the walk that codes, with a rate-estimating coder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcfilter.codec.rate import LAYER_QP_OFFSET
from vcfilter.entropy import tables
from vcfilter.entropy.coder import QUANTISER_LAMBDA, RateCoder
from vcfilter.entropy.exact import project
from vcfilter.model.layers import CHANNELS, quantiser_step
from vcfilter.model.video import (
    CHROMA_WEIGHT,
    Conditions,
    MotionField,
    MotionMode,
    Reference,
    VideoNet,
    estimate_motion,
)
from vcfilter.train.data import Planes, Samples
from vcfilter.train.precondition import plain, precondition, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One row of the training plan.

    Args:
        name: shown in the log.
        keyframes: crops coded as keyframes only, per step (0: none).
        groups: groups of two keyframes and inter frames between them, per step (0: none).
        size: side of the crops of keyframes; group_size: of those of groups.
        rate: AdamW's peak learning rate, reached after warm-up, falling to a fiftieth by a cosine.
    """

    name: str
    keyframes: int
    groups: int
    size: int
    group_size: int
    rate: float


PHASES = {
    "keyframes": Phase(
        name="keyframes", keyframes=12, groups=0, size=128, group_size=128, rate=1e-3
    ),
    "joint": Phase(name="joint", keyframes=8, groups=1, size=128, group_size=192, rate=5e-4),
}
WARM_UP = 100
CLIP = 1.0
AVERAGE = 0.997  # of the exponential average of the weights
# Distance between keyframes, and its probability.
SPANS = ((12, 0.45), (8, 0.2), (6, 0.1), (4, 0.15), (2, 0.1))


def cost(
    reference: Reference, x: Planes, base: Tensor, bits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(J, bits per luma sample, squared error per luma sample), (B,) each; J in bits."""
    samples = x[0][0].numel()
    error = torch.zeros_like(bits)
    for a, b, weight in zip(x, reference.planes, (1.0, CHROMA_WEIGHT, CHROMA_WEIGHT), strict=True):
        error = error + weight * ((a - b) ** 2).flatten(1).sum(1)
    error, bpp = error / samples, bits / samples
    return bpp + error / (QUANTISER_LAMBDA * base**2), bpp, error


def detach(reference: Reference) -> Reference:
    """The same reconstruction without its history."""
    return each(reference, Tensor.detach)


def rate_scale(name: str) -> float:
    """Learning rate of a parameter relative to the phase's.

    Filters that work on samples or coefficients in natural units (hundreds) need far smaller steps
    than branches on normalised ones: at the full rate their noise alone costs more than one bit.
    """
    if "linear.parametrizations" in name and "coding" not in name:
        return 0.05
    if ".mean." in name or "log_step" in name:
        return 0.1
    if ".coding." in name:  # inputs up to 255: a step moves a table index by that much more
        return 0.3
    return 1.0


class Trainer:
    """Straight-line training with exact resume.

    Args:
        net: the networks. samples: where crops come from. stills: keyframe crops.
        phase: a row of PHASES. steps: how many in all, for the schedule.
    """

    def __init__(
        self, net: VideoNet, samples: Samples, stills: Samples, phase: Phase, steps: int
    ) -> None:
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        precondition(net, spread(stills))
        self.samples, self.stills, self.phase, self.steps = samples, stills, phase, steps
        scales: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            scales.setdefault(rate_scale(name), []).append(parameter)
        groups = [{"params": chosen, "scale": scale} for scale, chosen in scales.items()]
        self.optimizer = torch.optim.AdamW(
            groups, lr=phase.rate, weight_decay=0, betas=(0.9, 0.995)
        )
        self.average = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
        self.step = 0
        self.random = np.random.default_rng(1)

    def draw_qp(self, batch: int) -> Tensor:
        """(B,) keyframe qps."""
        return torch.from_numpy(self.random.integers(2, 58, batch))

    def keyframes(self, x: Planes, qp: Tensor) -> tuple[Tensor, Reference, Tensor]:
        """(J, reconstruction, bits per sample) of keyframes."""
        batch = len(qp)
        shape = torch.Size((batch, CHANNELS, x[0].shape[2] // 8, x[0].shape[3] // 8))
        zero = torch.zeros_like(qp)
        given = Conditions(qp, zero, torch.stack([zero, zero], 1), zero)
        coder = RateCoder(self.bits, batch)
        reference = self.net.keyframe(given, x, shape, coder)
        j, bpp, _ = cost(reference, x, quantiser_step(qp), coder.total)
        return j, reference, bpp

    def inter(
        self,
        x: Planes,
        pair: tuple[Reference, Reference],
        qp: Tensor,
        layer: int,
        distances: tuple[int, int],
    ) -> tuple[Tensor, Reference, Tensor]:
        """(J, reconstruction, bits per sample) of inter frames of one layer."""
        batch = len(qp)
        one = torch.ones_like(qp)
        level = torch.from_numpy(self.random.integers(2, 8, batch))
        given = Conditions(qp, one * layer, torch.tensor([distances]).repeat(batch, 1), level)
        uniform = self.random.random()
        mode = MotionMode.CODED if uniform < 0.88 else MotionMode.NONE
        if uniform > 0.94 and layer > 1:
            mode = MotionMode.DIRECT
        estimate: MotionField | None = None
        if mode is MotionMode.CODED:
            with torch.no_grad():
                estimate = estimate_motion(x, pair, given.distances, 1)
        coder = RateCoder(self.bits, batch)
        reference, _ = self.net.inter(mode, True, given, x, pair, coder, estimate)
        j, bpp, _ = cost(reference, x, quantiser_step(qp), coder.total)
        return j, reference, bpp

    def run_step(self) -> dict[str, float]:
        """One step of the optimiser; returns the figures of the log."""
        phase = self.phase
        warm = min(1.0, (self.step + 1) / WARM_UP)
        share = min(1.0, self.step / self.steps)
        rate = phase.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"step": self.step}
        if phase.keyframes:
            half = phase.keyframes // 2
            a, b = (
                self.stills.draw([0], half, phase.size)[0],
                self.samples.draw([0], phase.keyframes - half, phase.size)[0],
            )
            x = tuple(torch.cat([p, q]) for p, q in zip(a, b, strict=True))
            j, _, bpp = self.keyframes(x, self.draw_qp(phase.keyframes))  # type: ignore[arg-type]
            loss = torch.log(j + 0.01).mean()
            loss.backward()
            figures |= {"key": float(loss.detach()), "key_bpp": float(bpp.detach().mean())}
        if phase.groups:
            figures |= self.group_step(phase.groups)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(f"the gradient is not finite at step {self.step}")
        self.optimizer.step()
        project(self.net)
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for k, v in self.net.state_dict().items():
                self.average[k].lerp_(v, 1 - decay) if v.is_floating_point() else None
        self.step += 1
        return figures

    def group_step(self, batch: int) -> dict[str, float]:
        """Two keyframes and a chain of inter frames, each nearer to the same one of them."""
        spans, chances = zip(*SPANS, strict=True)
        span = int(self.random.choice(spans, p=chances))
        near = self.random.integers(2)  # 0: the left one
        times = [span // 2]
        while len(times) < 3 and times[-1] > 1:
            times.append(times[-1] // 2)
        times = [span - t if near else t for t in times]
        shown = sorted([0, span, *times])
        frames = dict(
            zip(shown, self.samples.draw(shown, batch, self.phase.group_size), strict=True)
        )
        qp = self.draw_qp(batch)
        both = tuple(torch.cat([p, q]) for p, q in zip(frames[0], frames[span], strict=True))
        j, keys, _ = self.keyframes(both, torch.cat([qp, qp]))  # type: ignore[arg-type]
        loss = torch.log(j + 0.01).mean()
        loss.backward()
        figures = {"group_key": float(loss.detach())}
        left, right = (split(detach(keys), i * batch, batch) for i in (0, 1))
        start, end = 0, span
        for layer, time_ in enumerate(times, 1):
            jitter = torch.from_numpy(self.random.integers(-1, 2, batch))
            lower = (qp + LAYER_QP_OFFSET[layer] + jitter).clamp(max=63)
            distances = time_ - start, end - time_
            j, new, bpp = self.inter(frames[time_], (left, right), lower, layer, distances)
            loss = torch.log(j + 0.01).mean() * 0.7
            loss.backward()
            figures |= {
                f"inter{layer}": float(loss.detach()) / 0.7,
                f"inter{layer}_bpp": float(bpp.detach().mean()),
            }
            if near:
                left, start = detach(new), time_
            else:
                right, end = detach(new), time_
        return figures

    def weights(self) -> VideoNet:
        """The averaged networks, in ordinary weights."""
        current = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(self.average)
        result = plain(self.net)
        self.net.load_state_dict(current)
        return result

    def save(self, path: Path) -> None:
        """Everything needed to go on exactly from here."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": [
                g.bit_generator.state
                for g in (self.random, self.samples.random, self.stills.random)
            ],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        for g, s in zip(
            (self.random, self.samples.random, self.stills.random), state["random"], strict=True
        ):
            g.bit_generator.state = s


def split(reference: Reference, start: int, count: int) -> Reference:
    """Some pictures of a batch."""
    return each(reference, lambda t: t[start : start + count])


def each(reference: Reference, change: Callable[[Tensor], Tensor]) -> Reference:
    """A reference with all its tensors changed alike."""
    y, u, v = (change(p) for p in reference.planes)
    rest = {f.name: change(getattr(reference, f.name)) for f in fields(reference)[1:]}
    return Reference((y, u, v), **rest)


def train(trainer: Trainer, state: Path, log: Path, every: int = 50, keep: float = 120.0) -> None:
    """Run to the last step; figures every few steps, the state kept every keep seconds."""
    sums: dict[str, list[float]] = {}
    saved = begun = time.monotonic()
    while trainer.step < trainer.steps:
        for name, value in trainer.run_step().items():
            sums.setdefault(name, []).append(value)
        if trainer.step % every == 0:
            line = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
            line |= {"step": trainer.step, "seconds": round(time.monotonic() - begun, 1)}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums.clear()
        if time.monotonic() - saved > keep:
            trainer.save(state)
            saved = time.monotonic()
    trainer.save(state)
