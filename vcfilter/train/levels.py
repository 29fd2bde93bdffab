"""The phase `layers`: tables of quality levels, learned from frames that were coded once.

The frozen codec codes groups of frames with 1 to 3 levels above the base, half of the references
without theirs, and the integers are kept. What learns from them is what a level's distance to its
base adds to the sums of the image latent's index networks: one column of each (`REFINED`), whose
feature is 0 in bases. So files of one level, and the bases of files with several, stay as they are.
The loss is the length of each level's code, relative to what it was at the start.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcfilter.codec.structure import GopStep
from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder
from vcfilter.errors import ConfigError
from vcfilter.models import store
from vcfilter.models.hierarchical.conditions import CONTEXT_MAX, REFINED, Conditions
from vcfilter.models.hierarchical.decide import QPS_PER_LEVEL
from vcfilter.models.hierarchical.latent import StepModel
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.model import networks, save
from vcfilter.models.hierarchical.net import LevelCoder, VideoNet
from vcfilter.models.hierarchical.refinement import OWN, Below, with_own_tables
from vcfilter.models.hierarchical.search import estimate_motion
from vcfilter.models.hierarchical.values import FrameContext, Reference, pair
from vcfilter.models.weights import read_weights
from vcfilter.nn.exact import SUM_BOUND, WEIGHT_SHIFT, ExactLinear
from vcfilter.train.data import Clip, Planes, Samples, crop_side, stills_of
from vcfilter.train.loop import share_done, train
from vcfilter.train.machine import Processes
from vcfilter.train.material import gather
from vcfilter.train.phases import (
    LAYERS,
    Group,
    LayersPhase,
    forward_steps,
    group_steps,
    signed_distances,
)
from vcfilter.train.plan import Figures, positions
from vcfilter.train.watch import read_notes, save_state

MOTION_LEVELS = (3, 6)  # precisions of coded motion
FLOOR = 200.0  # bits: levels that are shorter count less than their ratio
BOUND_SHARE = 0.95  # of the exact sums' bound, that a column may fill up
WARM_UP = 20  # steps
LAST_RATE = 0.02  # of the peak, at the end
CLIP = 1.0  # of the gradient's norm
AVERAGE = 0.98  # of the exponential average of the weights
# First and last table of the three kinds, see `with_own_tables`; those of skipped symbols left out.
FIRST = (1, tables.TABLES + 1, tables.TABLES + OWN + 1)
LAST = (tables.TABLES - 1, tables.TABLES + OWN - 1, tables.TABLES + 2 * OWN - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedLevel:
    """What tables of one level of one frame follow from, and the symbols under them.

    Args:
        conditions: of the level. contexts: of the references' bases; None: a keyframe.
        drop: the base's qp less the level's. delta: the same of the level below.
        below: symbols (1, 96, h, w) of the level below, those below it included.
        coded: symbols in coding order, flat int32. bits: what they took at the start.
    """

    conditions: Conditions
    contexts: tuple[FrameContext, FrameContext] | None
    drop: int
    delta: int
    below: Tensor
    coded: Tensor
    bits: float


class Recorder(RateCoder):
    """A rate coder that keeps its symbols."""

    def __init__(self, bits: Tensor) -> None:
        super().__init__(bits, 1)
        self.entries: list[Tensor] = []

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """As the rate coder does."""
        symbols = super().code(u, index, rd_scale)
        self.entries.append(symbols.flatten().to(torch.int32))
        return symbols

    @property
    def coded(self) -> Tensor:
        """All symbols, flat."""
        return torch.cat(self.entries) if self.entries else torch.zeros(0, dtype=torch.int32)


class FreeRecorder(Recorder):
    """The same for levels: symbols are chosen where the tables would leave them out, too.

    Else training would learn from zeros that only the tables of the start made.
    """

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """As the rate coder does, above the first table."""
        return super().code(u, index.clamp(min=tables.SKIP + 1), rd_scale)


class Replay:
    """A reader of symbols that are known; it adds up the bits that the tables ask for them.

    The rate has the gradient of the slope between the tables above and below. What lies under the
    first table counts as if it were coded, so that training learns to avoid it.
    """

    def __init__(self, coded: Tensor, bits: Tensor) -> None:
        self._coded, self._bits, self._at = coded, bits, 0
        self.total = torch.zeros(())

    def symbols(self, index: Tensor) -> Tensor:
        """The next symbols, of the index's shape."""
        part = self._coded[self._at : self._at + index.numel()]
        self._at += index.numel()
        symbols = part.to(index.dtype).view(index.shape)
        magnitude = symbols.abs().clamp(max=self._bits.shape[1] - 1).long()
        table = torch.floor(index.detach() + 0.5).long().clamp(min=tables.SKIP + 1)
        first = sum((table == n).long() for n in FIRST)
        last = sum((table == n).long() for n in LAST)
        low, high = table - 1 + first, table + 1 - last
        slope = (self._bits[high, magnitude] - self._bits[low, magnitude]) / (high - low)
        rate = self._bits[table, magnitude] + slope * (index - index.detach())
        self.total = self.total + rate.sum()
        return symbols


def code_length(net: VideoNet, level: CodedLevel, bits: Tensor) -> Tensor:
    """Bits of a level under a network's tables; differentiable in its weights."""
    reader = Replay(level.coded, bits)
    shape = level.below.shape
    context = net.image_context(level.conditions, level.contexts, shape, level.drop)
    net.image.coding.parse(context, reader, Below.of(level.below, level.delta))
    return reader.total


class Collector:
    """Codes groups of frames with quality levels.

    Args:
        net: the codec. bits: of `with_own_tables`. samples: where groups come from.
        stills: where keyframes alone come from. phase: the row.
    """

    def __init__(
        self, net: VideoNet, bits: Tensor, samples: Samples, stills: Samples, phase: LayersPhase
    ) -> None:
        self.net, self.bits, self.phase = net, bits, phase
        self.samples, self.stills = samples, stills
        self.random = np.random.default_rng(31)

    @torch.no_grad()
    def groups(self) -> Iterator[list[CodedLevel]]:
        """The levels of each group of the row."""
        for _ in range(self.phase.groups):
            yield self._group()

    def _chosen(self, rows: tuple[tuple[int, float], ...]) -> int:
        values, chances = zip(*rows, strict=True)
        return int(self.random.choice(values, p=np.array(chances) / sum(chances)))

    def _drops(self) -> tuple[int, list[int]]:
        """The base's qp, and by how much levels lie below it."""
        count = int(self.random.integers(self.phase.levels[0], self.phase.levels[1] + 1))
        step = self._chosen(self.phase.steps)
        qp = int(self.random.integers(self.phase.qps[0], self.phase.qps[1] + 1))
        count = min(count, (57 - qp) // step)
        return qp + count * step, [step * (n + 1) for n in range(count)]

    def _steps(self) -> tuple[tuple[int, ...], tuple[GopStep, ...]]:
        """Numbers of a group's keyframes, and its inter frames in coding order."""
        longest = self.samples.longest
        spans = tuple(row for row in self.phase.spans if row[0] < longest)
        if longest < 2 or self.random.random() < self.phase.stills:
            return (0,), ()
        if not spans or self.random.random() < self.phase.forward:
            return (0,), forward_steps(self.random, longest)[: self.phase.frames]
        span = self._chosen(spans)
        steps = group_steps(Group.CHAIN, span, near_right=bool(self.random.integers(2)))
        return (0, span), steps[: self.phase.frames]

    def _group(self) -> list[CodedLevel]:
        outer, steps = self._steps()
        qp, drops = self._drops()
        source = self.samples if steps else self.stills
        order = positions(outer, steps)
        size = min(self.phase.group_size, source.size)
        frames = dict(zip(order, source.draw(order, 1, size), strict=True))
        held: dict[int, Reference] = {}
        found: list[CodedLevel] = []
        for number in outer:
            conditions = self._conditions(qp, 0, (0, 0), drops)
            held[number] = self._frame(conditions, frames[number], None, drops, found)
        for step in steps:
            lower, distances = min(63, qp + step.offset), signed_distances(step)
            conditions = self._conditions(lower, step.layer, distances, drops)
            references = pair([held[n] for n in step.references])
            held[step.number] = self._frame(
                conditions, frames[step.number], references, drops, found
            )
        return found

    def _conditions(
        self, qp: int, layer: int, distances: tuple[int, int], drops: list[int]
    ) -> Conditions:
        level = int(self.random.integers(MOTION_LEVELS[0], MOTION_LEVELS[1] + 1))
        level = max(0, level - drops[-1] // QPS_PER_LEVEL)  # as the encoder does
        return Conditions(
            torch.tensor([qp]),
            torch.tensor([layer]),
            torch.tensor([distances]),
            torch.tensor([level]),
        )

    def _frame(
        self,
        conditions: Conditions,
        x: Planes,
        references: tuple[Reference, Reference] | None,
        drops: list[int],
        found: list[CodedLevel],
    ) -> Reference:
        """Code a frame, append its levels; the reference has them, or the base alone."""
        net, mode = self.net, MotionMode.CODED if references else MotionMode.NONE
        base = Recorder(self.bits)
        recorders = [FreeRecorder(self.bits) for _ in drops]
        levels = [LevelCoder(drop=d, passes=[r]) for d, r in zip(drops, recorders, strict=True)]
        contexts = None
        if references is None:
            reference = net.code_keyframe(conditions, x, base, levels=levels)
        else:
            contexts = references[0].context, references[1].context
            estimate = estimate_motion(conditions, x, references)
            finer = drops[-1] // 2
            motion = net.code_motion(conditions, estimate, references, base, finer)
            reference = net.code_inter(
                mode, True, conditions, x, references, base, motion, levels=levels
            )
        pairs = zip(levels, recorders, strict=True)
        coded = [(level.drop, each.coded) for level, each in pairs if level.used]
        shape = net.latent_shape(1, *x[0].shape[2:])
        symbols = net.parse(
            mode,
            True,
            conditions,
            contexts,
            shape,
            Replay(base.coded, self.bits),
            [(drop, Replay(integers, self.bits)) for drop, integers in coded],
        )
        assert symbols.image is not None
        below, lower = symbols.image, 0
        for level, (_, integers) in zip(symbols.levels, coded, strict=True):
            one = CodedLevel(
                conditions=conditions.finer(level.drop),
                contexts=contexts,
                drop=level.drop,
                delta=level.drop - lower,
                below=below,
                coded=integers,
                bits=0.0,
            )
            found.append(replace(one, bits=float(code_length(net, one, self.bits))))
            below, lower = level.symbols, level.drop
        if self.random.random() < self.phase.dropped:
            return net.reconstruct(mode, conditions, replace(symbols, levels=()), references)
        return reference


class LevelsTrainer:
    """Training of the columns, with the loop that trains models; exact resume.

    Args:
        net: a trained model's networks. magnitudes: its tables.
        samples: where groups come from. stills: where keyframes alone come from.
        phase: the row. steps: in all, for the schedule.
        rate: multiplies the learning rate. batch: the levels per step.
    """

    def __init__(
        self,
        net: VideoNet,
        magnitudes: tables.Probabilities,
        samples: Samples,
        stills: Samples,
        phase: LayersPhase,
        steps: int,
        *,
        rate: float = 1.0,
        batch: int = 1,
    ) -> None:
        self.processes = Processes(device=torch.device("cpu"))
        self.phase, self.steps, self.rate, self.batch = phase, steps, rate, phase.batch * batch
        self.magnitudes = magnitudes
        self.net = net.eval().requires_grad_(False)
        bits = tables.cost_bits(with_own_tables(magnitudes))
        self.bits = torch.from_numpy(bits).float()
        collector = Collector(self.net, self.bits, samples, stills, phase)
        self.levels = [level for group in collector.groups() for level in group]
        if not self.levels:
            raise ConfigError("no frame of the material has anything to code in a level")
        self.layers = columns(self.net)
        self.learning = [layer.weight.requires_grad_(True) for layer in self.layers]
        self.optimizer = torch.optim.AdamW(
            self.learning, lr=phase.rate, weight_decay=0, betas=(0.9, 0.99)
        )
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.random = np.random.default_rng(37)
        self.step = 0
        self.share = 0.0

    @property
    def title(self) -> str:
        """Of the phase, for the log."""
        return self.phase.name

    @property
    def delay(self) -> int:
        """Steps whose figures are read at once."""
        return 1

    def run_step(self) -> Figures:
        """One step of the optimiser; the figure is the code's length relative to the start's."""
        count = min(self.batch, len(self.levels))
        chosen = self.random.choice(len(self.levels), count, replace=False)
        warm = min(1.0, (self.step + 1) / WARM_UP)
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * self.share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.rate * self.rate * warm * cosine
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for number in chosen:
            level = self.levels[int(number)]
            length = code_length(self.net, level, self.bits)
            loss = (length + FLOOR) / (level.bits + FLOOR) / count
            loss.backward()
            total += loss.detach()
        for weight in self.learning:
            assert weight.grad is not None
            rest = torch.arange(weight.shape[1]) != REFINED
            weight.grad[:, rest] = 0
        norm = nn.utils.clip_grad_norm_(self.learning, CLIP)
        self.optimizer.step()
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for layer in self.layers:
                keep_bound(layer)
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.share = share_done(self.step, self.steps)
        return Figures(("length",), torch.stack([total, norm]))

    def weights(self) -> VideoNet:
        """The averaged networks."""
        net = VideoNet(self.net.config)
        net.load_state_dict(self.average)
        return net

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """Everything needed to go on exactly from here, complete or not at all; notes beside it.

        The coded levels are not kept: the same arguments code them alike again.
        """
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": self.random.bit_generator.state,
            "notes": notes or {},
        }
        save_state(path, state)

    def save_average(self, path: Path) -> None:
        """The averaged networks as a weights file."""
        save(str(path), self.weights(), self.magnitudes, "average", {})

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns its notes.

        Raises:
            ConfigError: the file is no state of such a training.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
            self.random.bit_generator.state = state["random"]
            notes: dict[str, Any] = state["notes"]
        except Exception as error:  # whatever unpickling foreign bytes may raise
            raise ConfigError(f"{str(path)!r} is no state of this training: {error}") from error
        self.share = share_done(self.step, self.steps)
        return notes


def columns(net: VideoNet) -> list[ExactLinear]:
    """The layers whose column of the distance to the base learns."""
    steps = [step for step in net.image.coding.steps if isinstance(step, StepModel)]
    return [layer for step in steps for layer in (step.hidden_context, step.index_context)]


def keep_bound(layer: ExactLinear) -> None:
    """Shrink what the column holds beyond the bound of exact sums; the rest stays as it is."""
    column = layer.weight[:, REFINED]
    unit = CONTEXT_MAX * float(1 << WEIGHT_SHIFT)
    taken = layer.bound() - column.abs() * unit
    most = ((BOUND_SHARE * SUM_BOUND - taken) / unit).clamp(min=0)
    column.copy_(torch.minimum(torch.maximum(column, -most), most))


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What `run` found: the networks, the tables they began with, the material, steps in all."""

    net: VideoNet
    magnitudes: tables.Probabilities
    clips: list[Clip]
    steps: int


def run(args: argparse.Namespace, steps: int) -> Trained:
    """Code the groups, train on them.

    Raises:
        ConfigError: an option does not fit.
    """
    file = read_weights(store.locate(args.model))
    net, magnitudes = networks(file)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    clips = gather(args.data, args.cache, say)
    material = " ".join(clip.key for clip in clips)
    about = {
        "plan": f"{LAYERS.name}:{steps}",
        "batch": args.batch,
        "model": file.id.hex(),
        "material": hashlib.sha256(material.encode()).hexdigest()[:16],
    }
    state, log = Path(args.state or f"{args.out}.state"), Path(f"{args.out}.jsonl")
    known = state.exists()
    if known:
        read_notes(state, about)
    stills = stills_of(clips)
    size = LAYERS.group_size
    say(f"coding {LAYERS.groups} groups of frames to learn from")
    trainer = LevelsTrainer(
        net,
        magnitudes,
        Samples(clips, crop_side(clips, size), 41),
        Samples(stills, crop_side(stills, size), 42),
        LAYERS,
        steps,
        rate=args.rate,
        batch=args.batch,
    )
    goes_on = None
    if known:
        goes_on = trainer.resume(state)
        say(f"going on from step {trainer.step} of {LAYERS.name} in {str(state)!r}")
    if steps or args.minutes is not None:
        train(
            trainer,
            state,
            log,
            every=args.log_every,
            keep=args.keep,
            notes={"about": about},
            goes_on=goes_on,
            minutes=args.minutes,
            average=Path(f"{args.out}.average"),
        )
    return Trained(trainer.weights(), magnitudes, clips, trainer.step)
