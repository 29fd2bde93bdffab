"""Training of a finish: squared error and texture, then ST-LPIPS (VGG16), then a
discriminator as well.

The codec is frozen; what is learned from are its decoded frames beside their originals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ConfigError
from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.models.hierarchical.conditions import (
    KNOTS,
    context_features,
    quantiser_step,
)
from vcfilter.models.hierarchical.finish import BANDS, FinishNet, bands, without_alternation
from vcfilter.nn.perceptual import StLpips
from vcfilter.train.looks import STAGES, Adversary, as_images, ratio, squared, texture
from vcfilter.train.machine import Processes
from vcfilter.train.pairs import Pairs
from vcfilter.train.phases import FinishPhase, Stage, stage_at
from vcfilter.train.watch import Log, TrainingError, save_state, stopping

GRID_FLOOR = 1e-4  # of squared samples
MARGIN = 16  # samples around a crop that the network sees and no loss does
BINS, BIN = 16, 4  # of qps, by which the usual distance is known
MEMORY = 0.05  # share of a new distance in the usual one
START_GAINS = ((0, 0), (0.4, 0), (0.8, 0), (0.8, 0.3), (1.2, 0.3), (1.2, 0.6), (1.8, 0.6))
START_FRAMES = 8
KNOT_QPS = 8  # between two knots of `context_features`
START_ERROR = 0.3  # weight of the error relative to the decoded frames', in the choice of gains
START_ERROR_MAX = 1.13  # half a decibel
AVERAGE = 0.995  # of the exponential average of the weights, at most
WARM_UP = 50  # steps
LAST_RATE = 0.02  # of the peak learning rate, at the end of the cosine
USUAL_RATE = 10.0  # of the few gains that hang on the frame alone, relative to the others' rate
CLIP = 1.0  # of the gradient's norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Two frames that follow each other of each crop: (2 B, 1, H, W) luma, first ones first."""

    decoded: Tensor
    original: Tensor
    qp: Tensor
    features: Tensor


def cut(planes: Tensor) -> Tensor:
    """Without the margin."""
    return planes[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


class FinishTrainer:
    """Straight-line training of a finish, with exact resume.

    Args:
        pairs: what is learned from. phase: a row of the table.
        steps: how many in all, for the schedule; 0: time decides, see `share`.
        net: where training begins; a new one by default.
        half: ST-LPIPS in bfloat16.
    """

    def __init__(
        self,
        pairs: Pairs,
        phase: FinishPhase,
        steps: int,
        net: FinishNet | None = None,
        *,
        rate: float = 1.0,
        batch: int = 1,
        half: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.pairs, self.phase, self.steps, self.half = pairs, phase, steps, half
        self.rate, self.crops = rate, phase.crops * batch
        rows, columns = pairs.decoded.shape[1:]
        self.side = min(phase.size + 2 * MARGIN, rows // 32 * 32, columns // 32 * 32)
        torch.manual_seed(7)
        self.net = (net or FinishNet()).to(self.device)
        self.adversary = Adversary(phase.rate, Processes(device=self.device))
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        usual = list(self.net.usual.parameters())
        rest = [p for n, p in self.net.named_parameters() if not n.startswith("usual.")]
        groups = [{"params": rest, "scale": 1.0}, {"params": usual, "scale": USUAL_RATE}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0, betas=(0.9, 0.99))
        self.lpips: StLpips | None = None
        if any(stage.features for stage in phase.stages):
            lpips = StLpips("vgg").to(self.device)
            self.lpips = lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.usual = torch.zeros(BINS)  # running mean of the distance, by qp
        self.random = np.random.default_rng(17)
        self.step = 0
        self.share = 0.0
        # Frames that another of the same shot follows.
        last = np.append(pairs.starts[1:], len(pairs.decoded)) - 1
        self.firsts = np.setdiff1d(np.arange(len(pairs.decoded)), last)
        if not len(self.firsts):
            raise ConfigError("no shot has two frames to learn from")

    def draw(self) -> Batch:
        """Crops at any place, on the codec's grid or off it: nothing may be learned of the grid."""
        decoded: list[np.ndarray[Any, Any]] = []
        original: list[np.ndarray[Any, Any]] = []
        numbers: list[int] = []
        rows, columns = self.pairs.decoded.shape[1:]
        for _ in range(self.crops):
            frame = int(self.random.choice(self.firsts))
            places = [
                tuple(int(self.random.integers(0, end - self.side + 1)) for end in (rows, columns))
                for _ in range(2)
            ]
            both = [
                self.pairs.original[frame, t : t + self.side, c : c + self.side] for t, c in places
            ]
            # Of two crops the livelier one: there is little to learn where nothing is seen.
            top, left = places[int(both[1].std() > both[0].std())]
            flip, turn, back = (bool(v) for v in self.random.random(3) < 0.5)
            order = (frame + 1, frame) if back else (frame, frame + 1)
            for found, source in ((decoded, self.pairs.decoded), (original, self.pairs.original)):
                for number in order:
                    crop = source[number, top : top + self.side, left : left + self.side]
                    crop = crop[:, ::-1] if flip else crop
                    found.append(crop.T if turn else crop)
            numbers += order
        # All first frames, then all second ones.
        split = [*range(0, 2 * self.crops, 2), *range(1, 2 * self.crops, 2)]
        steps = torch.from_numpy(self.pairs.steps[numbers]).long()[split]

        def batch(crops: list[np.ndarray[Any, Any]]) -> Tensor:
            return torch.from_numpy(np.stack(crops)[split]).float()[:, None].to(self.device)

        features = context_features(steps[:, 0], steps[:, 1], steps[:, 2:])
        return Batch(
            decoded=batch(decoded),
            original=batch(original),
            qp=steps[:, 0].to(self.device),
            features=features.to(self.device),
        )

    def measure(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        """The losses: errors relative to the decoded frames', the distance as it is."""
        change = self.net(batch.decoded, batch.qp, batch.features)
        decoded, original = cut(batch.decoded), cut(batch.original)
        finished = decoded + cut(change)
        found = {
            "error": ratio(squared(finished - original), squared(decoded - original)),
            "difference": ratio(
                squared(steps(finished) - steps(original)),
                squared(steps(decoded) - steps(original)),
            ),
        }
        if stage.texture:
            found["texture"] = texture(finished, original).mean()
        if stage.grid:
            found["grid"] = torch.log1p(pattern(cut(change), self.net.dct)).mean()
        if stage.features and self.lpips is not None:
            # Of two frames that follow each other one: the other tells little more.
            own = slice(0, len(batch.qp) // 2)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                with torch.no_grad():
                    wanted = self.lpips.features(as_images(original[own]), STAGES)
                seen = self.lpips.features(as_images(finished[own]), STAGES)
                distance = self.lpips.distance(seen, wanted)
            found["relative"] = (distance / self.usual_of(batch.qp[own], distance)).mean()
            found["features"] = distance.detach().mean()
        if stage.adversarial:
            found |= self.adversary.judge(decoded, original, finished, batch.qp)
        return found

    def usual_of(self, qp: Tensor, distances: Tensor) -> Tensor:
        """(B,) distance that is usual at each frame's qp, these counted in."""
        bins = (qp // BIN).tolist()
        for place, value in zip(bins, distances.tolist(), strict=True):
            share = MEMORY if self.usual[place] else 1.0
            self.usual[place] += share * (value - self.usual[place])
        return self.usual[bins].to(self.device)

    def run_step(self) -> dict[str, float]:
        """One optimiser step; returns its figures."""
        stage = stage_at(self.phase.stages, self.share)
        warm = min(1.0, (self.step + 1) / WARM_UP)
        cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * self.share)) / 2
        for group in self.optimizer.param_groups:
            rate = self.rate * self.phase.rate * stage.rate * group["scale"]
            group["lr"] = rate * warm * cosine
        found = self.measure(stage, self.draw())
        loss = torch.stack([stage.weight(name) * value for name, value in found.items()]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.step += 1
        keep = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        if self.steps:
            self.share = self.step / self.steps
        return {name: float(value.detach()) for name, value in found.items()}

    def weights(self) -> FinishNet:
        """The averaged network."""
        net = FinishNet(self.net.config)
        net.load_state_dict({name: value.cpu() for name, value in self.average.items()})
        return net.eval().requires_grad_(False)

    def save(self, path: Path, notes: Mapping[str, Any]) -> None:
        """Everything needed to go on exactly from here, complete or not at all; notes beside it."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "discriminator": self.adversary.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "other": self.adversary.optimizer.state_dict(),
            "step": self.step,
            "share": self.share,
            "usual": self.usual,
            "random": self.random.bit_generator.state,
            "notes": dict(notes),
        }
        save_state(path, state)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from what `save` wrote; returns its notes.

        Raises:
            ConfigError: the file is no state of such a training.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.adversary.discriminator.load_state_dict(state["discriminator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.adversary.optimizer.load_state_dict(state["other"])
            self.average, self.step, self.share = state["average"], state["step"], state["share"]
            self.usual = state["usual"].cpu()
            self.random.bit_generator.state = state["random"]
            notes: dict[str, Any] = state["notes"]
        except Exception as error:  # whatever unpickling foreign bytes may raise
            raise ConfigError(f"{str(path)!r} is no state of this training: {error}") from error
        return notes


def measure_start(net: FinishNet, pairs: Pairs, half: bool = True, size: int = 128) -> None:
    """Give a network the usual gains that serve the distance best, by qp; the rest stays zero.

    At each knot of the qp a few frames, one of a shot, are tried with each of START_GAINS.

    Args:
        pairs: what is learned from. half: ST-LPIPS in bfloat16. size: side of the crops.
    """
    lpips = StLpips("vgg").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    random = np.random.default_rng(23)
    rows, columns = pairs.decoded.shape[1:]
    side = min(size, rows // BLOCK * BLOCK, columns // BLOCK * BLOCK)
    shots = np.searchsorted(pairs.starts, np.arange(len(pairs.decoded)), side="right")
    gains = torch.zeros(KNOTS, BANDS)
    for knot in range(KNOTS):
        near = np.flatnonzero(np.abs(pairs.steps[:, 0] - KNOT_QPS * knot) <= KNOT_QPS // 2)
        random.shuffle(near)
        chosen = near[np.unique(shots[near], return_index=True)[1]][:START_FRAMES]
        if not len(chosen):
            gains[knot] = gains[knot - 1] if knot else 0.0
            continue
        crops = []
        for number in chosen:
            top, left = (int(random.integers(0, end - side + 1)) for end in (rows, columns))
            both = (pairs.decoded[number], pairs.original[number])
            crops.append(np.stack([x[top : top + side, left : left + side] for x in both]))
        decoded, original = torch.from_numpy(np.stack(crops)).float().split(1, dim=1)
        scale = quantiser_step(torch.from_numpy(pairs.steps[chosen, 0]))[:, None, None, None]
        fine = bands(decoded)
        faint = net.faint(fine, scale)
        best = float("inf")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            wanted = lpips.features(as_images(original), STAGES)
            usual = 0.0
            for pair in START_GAINS:
                own = torch.tensor([pair[0], pair[0], pair[1], pair[1]])[:, None, None] * faint
                spread = F.interpolate(own, scale_factor=BLOCK, mode="bilinear")
                finished = decoded + without_alternation((spread * fine).sum(1, keepdim=True))
                seen = lpips.features(as_images(finished), STAGES)
                distance = float(lpips.distance(seen, wanted).sum())
                usual = usual or distance  # the first pair changes nothing
                error = float(ratio(squared(finished - original), squared(decoded - original)))
                value = distance / usual + START_ERROR * error
                if error <= START_ERROR_MAX and value < best:
                    best = value
                    gains[knot] = own.new_tensor([pair[0], pair[0], pair[1], pair[1]])
    with torch.no_grad():
        net.usual.weight[:, :KNOTS] = gains.T


def pattern(change: Tensor, dct: Tensor) -> Tensor:
    """(B,) how much of the energy of changes (B, 1, H, W) all blocks of 8x8 samples have in common,
    times the blocks: 1 is what independent blocks have. Means of blocks do not count.
    """
    blocks = F.conv2d(F.pixel_unshuffle(change, BLOCK), dct)[:, 1:]
    common = blocks.mean((2, 3)).square().sum(1)
    return common / (blocks.square().mean((2, 3)).sum(1) / blocks[0, 0].numel() + GRID_FLOOR)


def steps(luma: Tensor) -> Tensor:
    """(B, 1, H, W) differences between frames that follow each other, of (2 B, 1, H, W)."""
    first, second = luma.chunk(2)
    return second - first


def train_finish(
    trainer: FinishTrainer,
    state: Path,
    log: Path,
    *,
    every: int,
    keep: float,
    about: Mapping[str, Any],
    minutes: float | None = None,
) -> None:
    """Run to the last step, or for so many minutes; goes on from a state that is there.

    Args:
        state, log: as of `loop.train`. every: steps per line. keep: seconds between two states.
        about: of the training; a state of another one is refused.

    Raises:
        ConfigError: the state is of another training.
        TrainingError: a loss broke; the last good state is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is kept, its attribute `partial` says where.
    """
    past: dict[str, Any] = {}
    if state.exists():
        past = trainer.resume(state)
        for name, value in about.items():
            if past["about"].get(name) != value:
                raise ConfigError(
                    f"{str(state)!r} belongs to a training with {name} "
                    f"{past['about'].get(name)!r}, not {value!r}: name another --state, or "
                    "remove it"
                )
    book = Log(log, trainer.phase.name, 0, every, False, trainer.step)
    book.sums = past.get("sums", {})
    begun = time.monotonic() - past.get("seconds", 0.0)
    if minutes is not None and past:  # more than before, or fewer
        trainer.share = min(1.0, past["seconds"] / (60 * minutes))

    def save() -> None:
        seconds = time.monotonic() - begun
        trainer.save(
            state,
            {"about": dict(about), "sums": book.sums, "seconds": seconds},
        )

    save()
    saved = time.monotonic()
    with stopping() as stop:
        while trainer.share < 1:
            figures = trainer.run_step()
            seconds = time.monotonic() - begun
            if minutes is not None:
                trainer.share = min(1.0, seconds / (60 * minutes))
            if not math.isfinite(sum(figures.values())):
                raise TrainingError(
                    f"a loss is not finite at step {trainer.step}; the last good state is in "
                    f"{str(state)!r}: go on from it with a lower --rate"
                )
            book.add(figures, trainer.step, trainer.steps, seconds)
            halt = stop.asked is not None
            if halt or time.monotonic() - saved >= keep:
                save()
                saved = time.monotonic()
            if halt:
                raise stop.interrupt(state)
    save()
