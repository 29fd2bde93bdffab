"""The phases `between` and `between-p`: the learned part of interpolation, a small weights file.

Each step draws one interval of a clip, searches its motion as interpolation does, and keeps what
new frames are made of in a pool; the network learns from a batch out of that pool, so that motion,
which costs most, serves several steps. The loss is L1 and a Laplacian pyramid (Enhanced Quadratic
Video Interpolation) and, with half of their weight, the squared error; each of a frame relative to
its own size: hard and easy clips count alike.
`between-p`, for the look sharp, adds ST-LPIPS (VGG16) of some parts, in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.errors import ConfigError, ModelMismatchError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.interpolation import net as between
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.net import BetweenConfig, BetweenNet, Candidates
from vcfilter.models.hierarchical.blocks import Planes
from vcfilter.nn.perceptual import StLpips
from vcfilter.options import Runtime
from vcfilter.train.data import Clip, Samples, crop_side
from vcfilter.train.looks import STAGES, as_images
from vcfilter.train.loop import share_done, train
from vcfilter.train.machine import Processes
from vcfilter.train.material import gather
from vcfilter.train.plan import Figures
from vcfilter.train.watch import save_state

NAME = "between"
SHARP_NAME = "between-p"
NAMES = (NAME, SHARP_NAME)
SIDE = 192  # of crops
BATCH = 8
POOL = 400  # new frames that are kept
STEPS_PER_DRAW = 2
RATE = 2e-3
WARM_UP = 100  # steps
LAST_RATE = 0.02  # of the peak, at the end
CLIP = 1.0  # of the gradient's norm
AVERAGE = 0.998  # of the exponential average of the weights
LEVELS = 4  # of the Laplacian pyramid
L1_SHARE = 2.0
CHROMA_SHARE = 0.25
FLOOR = 0.1  # of a frame's loss, in samples: below, it counts no longer relative to itself
SQUARED_SHARE = 0.5  # of the squared error's logarithm
SQUARED_FLOOR = 0.05
SEEN_SHARE = 1.0  # of ST-LPIPS's logarithm
SEEN = 4  # frames of a batch that it sees, and of each so much:
SEEN_SIDE = 96
SEEN_FLOOR = 0.01  # of ST-LPIPS, as FLOOR
INTERVALS = ((2, (1,)), (4, (1, 2, 3)), (4, (2,)), (6, (3,)), (8, (2, 4, 6)))
"""Frames from a to b, and which of those between are made: times 1/4, 1/2 and 3/4."""
PRESET = "medium"


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A new frame's candidates and what it should be."""

    given: Candidates
    wanted: Planes


def laplacian(x: Tensor) -> list[Tensor]:
    """(B, 1, H, W) as differences of resolutions, finest first, and what is left."""
    parts = []
    for _ in range(LEVELS):
        small = F.avg_pool2d(x, 2)
        parts.append(x - F.interpolate(small, scale_factor=2, mode="bilinear"))
        x = small
    return [*parts, x]


def losses(found: Planes, wanted: Planes) -> Tensor:
    """(B,) mean absolute difference of luma, of its pyramid and of chroma, in samples."""

    def mean(values: Tensor) -> Tensor:
        return values.abs().flatten(1).mean(1)

    total = L1_SHARE * mean(found[0] - wanted[0])
    for part in laplacian(found[0] - wanted[0]):
        total = total + mean(part)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        total = total + CHROMA_SHARE * mean(a - b)
    return total


def relative_losses(found: Planes, wanted: Planes) -> Tensor:
    """(B,) logarithms of `losses` and of luma's squared error."""
    squared = ((found[0] - wanted[0]) ** 2).flatten(1).mean(1)
    both = torch.log(losses(found, wanted) + FLOOR), torch.log(squared + SQUARED_FLOOR)
    return both[0] + SQUARED_SHARE * both[1]


class BetweenTrainer:
    """Training of the network, with the loop that trains models.

    Args:
        net: to train. samples: where clips come from. steps: in all, for the schedule.
        device: of the network. rate: multiplies the learning rate. batch: the new frames per step.
        lpips: ST-LPIPS, for `between-p`.
    """

    def __init__(
        self,
        net: BetweenNet,
        samples: Samples,
        steps: int,
        *,
        device: torch.device | None = None,
        rate: float = 1.0,
        batch: int = 1,
        lpips: StLpips | None = None,
    ) -> None:
        self.processes = Processes(device=device or torch.device("cpu"))
        self.samples, self.steps, self.rate = samples, steps, rate
        self.batch = BATCH * batch
        self.lpips = None if lpips is None else lpips.to(self.processes.device)
        self.net = net.to(self.processes.device).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=RATE, weight_decay=0, betas=(0.9, 0.99)
        )
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.pool: deque[Example] = deque(maxlen=POOL * batch)
        self.random = np.random.default_rng(5)
        self.step = 0
        self.share = 0.0
        fmt = VideoFormat(width=samples.size, height=samples.size)
        runtime = Runtime(device=str(self.processes.device), threads=torch.get_num_threads())
        self._tool = Interpolator(fmt, PRESET, runtime, weights="")
        self._fitting = [each for each in INTERVALS if each[0] + 1 <= samples.longest]
        if not self._fitting:
            raise ConfigError(f"no shot is long enough for phase {NAME!r}: 3 frames")

    @property
    def title(self) -> str:
        """Of the phase, for the log."""
        return NAME if self.lpips is None else SHARP_NAME

    @property
    def delay(self) -> int:
        """Steps whose figures are read at once."""
        return 1

    def draw(self) -> list[Example]:
        """The new frames of one interval, drawn at random."""
        length, shown = self._fitting[int(self.random.integers(len(self._fitting)))]
        outer = 3 * length < self.samples.longest and self.random.random() < OUTER_SHARE
        first = length if outer else 0
        ends = [0, length, 2 * length, 3 * length] if outer else [0, length]
        numbers = sorted({*ends, *(first + n for n in shown)})
        planes = dict(zip(numbers, self.samples.draw(numbers, 1), strict=True))
        a, b = (_frame(planes[first + n], first + n) for n in (0, length))
        before = _frame(planes[0], 0) if outer else None
        after = _frame(planes[3 * length], 3 * length) if outer else None
        times = [Fraction(n, length) for n in shown]
        found = self._tool.candidates(before, a, b, after, times)
        return [Example(given, planes[first + n]) for given, n in zip(found, shown, strict=True)]

    def run_step(self) -> Figures:
        """One step of the optimiser; the figures are the loss, a logarithm, and what the network
        changed of it; the same of ST-LPIPS, where it counts.
        """
        while len(self.pool) < self.batch:
            self.pool.extend(self.draw())
        if self.step % STEPS_PER_DRAW == 0:
            self.pool.extend(self.draw())
        chosen = self.random.choice(len(self.pool), self.batch, replace=False)
        example = self._turned(_joined([self.pool[int(n)] for n in chosen]))
        self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        made = self.net(example.given)
        loss = relative_losses(made, example.wanted).mean()
        seen = None if self.lpips is None else self._seen(made, example)
        (loss if seen is None else loss + SEEN_SHARE * seen[0]).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            plain = relative_losses(example.given.blended, example.wanted).mean()
            decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.share = share_done(self.step, self.steps)
        values = [loss.detach(), loss.detach() - plain, norm]
        if seen is None:
            return Figures(("loss", "change"), torch.stack(values))
        values[2:2] = [seen[0].detach(), seen[0].detach() - seen[1]]
        return Figures(("loss", "change", "ST-LPIPS", "its change"), torch.stack(values))

    def _seen(self, made: Planes, example: Example) -> tuple[Tensor, Tensor]:
        """Mean logarithm of ST-LPIPS of parts of new frames, with the network and without."""
        assert self.lpips is not None
        height, width = made[0].shape[2:]
        rows, columns = (min(SEEN_SIDE, side) for side in (height, width))
        parts: list[list[Tensor]] = [[], [], []]
        for n in self.random.choice(len(made[0]), min(SEEN, len(made[0])), replace=False):
            top = int(self.random.integers(height - rows + 1))
            left = int(self.random.integers(width - columns + 1))
            for part, planes in zip(
                parts, (made, example.wanted, example.given.blended), strict=True
            ):
                part.append(planes[0][n, :, top : top + rows, left : left + columns])
        features = [self.lpips.features(as_images(torch.stack(part)), STAGES) for part in parts]
        with_it, without = (
            torch.log(self.lpips.distance(each, features[1]) + SEEN_FLOOR).mean()
            for each in (features[0], features[2])
        )
        return with_it, without

    def _set_rate(self) -> None:
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * self.share))
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * self.rate * min(1.0, (self.step + 1) / WARM_UP) * cosine

    def _turned(self, example: Example) -> Example:
        """A batch, flipped and turned at random."""
        sides = [side for side in (2, 3) if self.random.random() < 0.5]
        swap = bool(self.random.random() < 0.5)

        def turn(x: Tensor) -> Tensor:
            x = x.flip(sides) if sides else x
            return x.transpose(2, 3).contiguous() if swap else x

        return _mapped(example, turn)

    def weights(self) -> BetweenNet:
        """The averaged network on the CPU."""
        net = BetweenNet(self.net.config)
        net.load_state_dict({k: v.cpu() for k, v in self.average.items()})
        return net

    def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
        """What is needed to go on with other draws, complete or not at all; notes beside it."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": [g.bit_generator.state for g in (self.random, self.samples.random)],
            "notes": notes or {},
        }
        save_state(path, state)

    def save_average(self, path: Path) -> None:
        """The averaged network as a weights file."""
        between.save(str(path), self.weights(), "average", {})

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote, with an empty pool; returns its notes.

        Raises:
            ConfigError: the file is no state of such a training.
        """
        try:
            state = torch.load(path, map_location=self.processes.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
            for g, s in zip((self.random, self.samples.random), state["random"], strict=True):
                g.bit_generator.state = s
            notes: dict[str, Any] = state["notes"]
        except Exception as error:  # whatever unpickling foreign bytes may raise
            raise ConfigError(f"{str(path)!r} is no state of this training: {error}") from error
        self.share = share_done(self.step, self.steps)
        return notes


OUTER_SHARE = 0.85  # of the intervals: the frames before and after are known


def _frame(planes: Planes, pts: int) -> Frame:
    y, u, v = (plane[0, 0].cpu().numpy().astype(np.uint8) for plane in planes)
    return Frame(y=y, u=u, v=v, pts=pts)


def _mapped(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    given = example.given

    def planes(x: Planes) -> Planes:
        y, u, v = (change(plane) for plane in x)
        return y, u, v

    changed = Candidates(
        blended=planes(given.blended),
        near=planes(given.near),
        far=planes(given.far),
        linear=planes(given.linear),
        outer=(change(given.outer[0]), change(given.outer[1])),
        maps=change(given.maps),
        time=given.time,
    )
    return Example(changed, planes(example.wanted))


def _joined(examples: list[Example]) -> Example:
    """Examples as one batch."""
    first = examples[0].given
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(first)):
        parts = [getattr(each.given, name) for each in examples]
        if isinstance(parts[0], Tensor):
            values[name] = torch.cat(parts)
        else:
            values[name] = tuple(torch.cat(same) for same in zip(*parts, strict=True))
    y, u, v = (torch.cat(same) for same in zip(*(e.wanted for e in examples), strict=True))
    return Example(Candidates(**values), (y, u, v))


def config_of(settings: list[str], usual: BetweenConfig | None = None) -> BetweenConfig:
    """The network's size with some values changed.

    Raises:
        ConfigError: a setting is not NAME=VALUE, or not one that is allowed.
    """
    usual = usual or BetweenConfig()
    values = asdict(usual)
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in values or not value.isdecimal():
            raise ConfigError(
                f"setting {setting!r} of phase {NAME!r} is not half=N, quarter=N or eighth=N"
            )
        values[name] = int(value)
    try:
        return BetweenConfig(**values)
    except ModelMismatchError as error:
        raise ConfigError(str(error)) from error


def start(model: str | None, settings: list[str]) -> BetweenNet:
    """The network that training begins from.

    Args:
        model: path of a weights file. settings: as of `--config`.

    Raises:
        ConfigError, MediaError, ModelMismatchError: they cannot be used.
    """
    if model is None:
        return BetweenNet(config_of(settings))
    if settings:
        raise ConfigError(f"phase {NAME!r} goes on with the size that {model} has: no --config")
    return between.load(model)


def run(args: argparse.Namespace, steps: int, processes: Processes) -> None:
    """Train and write the file, as `train` does with models."""
    if processes.count > 1:
        raise ConfigError(f"phase {NAME!r} trains in one process")
    (name,) = args.phase
    lpips = StLpips("vgg") if name == SHARP_NAME else None
    net = start(args.model, args.config)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    clips = gather(args.data, args.cache, say)
    moving: list[Clip] = [clip for clip in clips if len(clip.shots) < len(clip.frames)]
    if not moving:
        raise ConfigError(f"phase {name!r} learns from videos, and there are only photographs")
    state, log = Path(args.state or f"{args.out}.state"), Path(f"{args.out}.jsonl")
    samples = Samples(moving, crop_side(moving, SIDE), 11)
    trainer = BetweenTrainer(
        net,
        samples,
        steps,
        device=processes.device,
        rate=args.rate,
        batch=args.batch,
        lpips=lpips,
    )
    material = " ".join(clip.key for clip in moving)
    about = {"plan": name, "material": hashlib.sha256(material.encode()).hexdigest()[:16]}
    goes_on = None
    if state.exists():
        goes_on = trainer.resume(state)
        if goes_on.get("about") != about:
            raise ConfigError(
                f"{str(state)!r} belongs to another training: name another --state, or remove it"
            )
        say(f"going on from step {trainer.step} of {name} in {str(state)!r}")
    average = Path(f"{args.out}.average")
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
            average=average,
        )
    card = {
        "data": f"{len(moving)} arrays of videos given by the user",
        "licence": "that of its training data and of vcfilter (MIT)",
        "steps": f"{name}:{trainer.step}",
        "results": "not evaluated; run vcfilter evaluate --interpolate --weights FILE",
    }
    found = between.save(args.out, trainer.weights(), args.name or Path(args.out).stem, card)
    average.unlink(missing_ok=True)
    say(f"{args.out}: {trainer.weights().complexity():.2f} kMAC per pixel, hash {found.hex()}")
