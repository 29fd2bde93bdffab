"""Losses for looks: a learned distance, texture, a discriminator; and all of them for a codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from vcfilter.entropy.coder import TrainingCoder
from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.values import Pair, Reference
from vcfilter.nn.perceptual import StLpips
from vcfilter.nn.warp import warp_field
from vcfilter.train.filtering import filtered_luma
from vcfilter.train.machine import Processes
from vcfilter.train.phases import Stage
from vcfilter.train.precondition import plain

FLOOR = 1.0  # of squared errors: below, they do not count by their ratio
FLOOR_DISTANCE = 0.02  # the same of ST-LPIPS
STAGES = 4  # of VGG16 that are used: the fifth brings a seventh of the distance for much time
OCTAVES = 3
UNSEEN = 2.0  # mean square of differences below which texture is not seen
ADVERSARIAL_QP = 34  # the coarsest qp of frames that the discriminator sees
ADVERSARY_RATE = 0.25  # of its learning rate, relative to the phase's
ADVERSARY_BETAS = (0.5, 0.99)


class Discriminator(nn.Module):
    """Tells patches of originals from others; both are seen beside what was decoded."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for factor in (1, 2, 4):
            layers += [
                spectral_norm(nn.Conv2d(before, width * factor, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
            before = width * factor
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(before, 1, 3, padding=1)))

    def forward(self, decoded: Tensor, luma: Tensor) -> Tensor:
        """(B, 1, H/8, W/8), high where luma looks like an original; both (B, 1, H, W)."""
        result: Tensor = self.layers(torch.cat([decoded / 128 - 1, (luma - decoded) / 16], dim=1))
        return result


class Adversary:
    """A discriminator and its optimiser.

    Args:
        rate: the phase's learning rate. processes: this one among those that train together.
    """

    def __init__(self, rate: float, processes: Processes) -> None:
        self.processes = processes
        self.discriminator = Discriminator().to(processes.device)
        processes.spread(self.discriminator)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=ADVERSARY_RATE * rate,
            weight_decay=0,
            betas=ADVERSARY_BETAS,
        )

    def judge(self, decoded: Tensor, real: Tensor, fake: Tensor, qp: Tensor) -> dict[str, Tensor]:
        """Let the discriminator learn from frames, then ask it; nothing of frames too coarse.

        Args:
            decoded, real, fake: (B, 1, H, W) luma; a gradient passes to fake alone. qp: (B,).

        Returns:
            {"adversarial": low where fake passes for real, "discriminator": its own loss}.
        """
        fine = qp <= ADVERSARIAL_QP
        if not self.processes.any(bool(fine.any())):
            return {}
        decoded, real, fake = decoded[fine], real[fine], fake[fine]
        self.discriminator.requires_grad_(True)
        own = self.discriminator(decoded, fake.detach())
        loss = mean(F.relu(1 - self.discriminator(decoded, real))) + mean(F.relu(1 + own))
        self.optimizer.zero_grad()
        loss.backward()
        self.processes.average_gradients(self.discriminator.parameters())
        self.optimizer.step()
        self.discriminator.requires_grad_(False)
        opinion = self.discriminator(decoded, fake)
        return {"adversarial": -mean(opinion), "discriminator": loss.detach()}


class Remembering(TrainingCoder):
    """A training coder that keeps the symbols it chose, in order."""

    def __init__(self, bits: Tensor, batch: int) -> None:
        super().__init__(bits, batch)
        self.chosen: list[Tensor] = []

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """As the training coder does."""
        symbols = super().code(u, index, rd_scale)
        self.chosen.append(symbols.detach())
        return symbols


class Replay:
    """A reader of symbols that were chosen."""

    def __init__(self, chosen: list[Tensor]) -> None:
        self._chosen = iter(chosen)

    def symbols(self, index: Tensor) -> Tensor:
        """The next ones, whatever their tables."""
        return next(self._chosen).to(index.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """Frames as a codec in training shows them, and how it came to them.

    Args:
        new: the reconstruction. original: (B, 1, H, W) luma.
        conditions, mode, residual, references: what they were coded with; without references
            they are keyframes. coder: which chose their symbols, a `Remembering`.
        before: (B, 1, H, W) original luma of the first reference.
    """

    new: Reference
    original: Tensor
    conditions: Conditions
    coder: TrainingCoder
    mode: MotionMode = MotionMode.NONE
    residual: bool = True
    references: Pair | None = None
    before: Tensor | None = None


class CodecLooks:
    """Losses for looks of a codec's frames, beside rate and squared error.

    They are ratios to what the networks that training began from make of the same symbols and
    references; the discriminator, too, sees that beside. So what costs bits is judged by rate and
    squared error alone, and these judge what is made of the bits.

    Args:
        net: where training begins. rate: the phase's learning rate.
        features: whether ST-LPIPS is needed. half: ST-LPIPS in bfloat16.

    Raises:
        ConfigError: the weights of ST-LPIPS are not installed.
    """

    def __init__(
        self, net: VideoNet, rate: float, processes: Processes, *, features: bool, half: bool
    ) -> None:
        self.half, self.device = half, processes.device
        self.begin = plain(net).to(self.device).eval().requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.adversary = Adversary(rate, processes)
        self.lpips: StLpips | None = None
        if features:
            lpips = StLpips("vgg").to(self.device)
            self.lpips = lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def decoded(self, shown: Shown) -> Tensor:
        """(B, 1, H, W) luma that the first networks make of the same symbols, filtered."""
        references, conditions = shown.references, shown.conditions
        contexts = None
        if references is not None:
            contexts = references[0].context, references[1].context
        batch, _, rows, columns = shown.original.shape
        assert isinstance(shown.coder, Remembering)
        symbols = self.begin.parse(
            shown.mode,
            shown.residual,
            conditions,
            contexts,
            self.begin.latent_shape(batch, rows, columns),
            Replay(shown.coder.chosen),
        )
        luma = self.begin.reconstruct(shown.mode, conditions, symbols, references).planes[0]
        return filtered_luma(shown.original, luma).clamp(0, 255)

    def measure(self, stage: Stage, shown: Shown, at: tuple[int, int]) -> dict[str, Tensor]:
        """The losses of a stage, and figures for the log.

        Args:
            at: rows and columns, 0 to 7, by which what is compared lies off the codec's grid:
                nothing may be learned of the grid.
        """
        decoded, whole = self.decoded(shown), shown.new.planes[0]
        error, usual_error = whole - shown.original, decoded - shown.original
        found = {"error": ratio(squared(error), squared(usual_error))}
        if shown.before is not None and shown.references is not None:
            # Errors that move along with what is shown are not seen to boil.
            first = shown.references[0].planes[0].detach() - shown.before
            moves = shown.new.moves[:, :2].detach()
            carried = warp_field(first, moves, BLOCK, "bilinear")
            found["difference"] = ratio(squared(error - carried), squared(usual_error - carried))
        top, left = at
        rows, columns = (side - BLOCK for side in whole.shape[2:])
        seen, plainly, original = (
            frame[..., top : top + rows, left : left + columns]
            for frame in (whole, decoded, shown.original)
        )
        if stage.texture:
            found["texture"] = texture(seen, original).mean()
        if stage.features and self.lpips is not None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                with torch.no_grad():
                    wanted = self.lpips.features(as_images(original), STAGES)
                    usual = self.lpips.distance(
                        self.lpips.features(as_images(plainly), STAGES), wanted
                    )
                distance = self.lpips.distance(self.lpips.features(as_images(seen), STAGES), wanted)
            found["relative"] = ratio(distance, usual, FLOOR_DISTANCE)
            found["features"] = distance.detach().mean()
        if stage.adversarial:
            found |= self.adversary.judge(plainly, original, seen, shown.conditions.qp)
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {
            "begin": self.begin.state_dict(),
            "discriminator": self.adversary.discriminator.state_dict(),
            "optimizer": self.adversary.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.begin.load_state_dict(state["begin"])
        self.adversary.discriminator.load_state_dict(state["discriminator"])
        self.adversary.optimizer.load_state_dict(state["optimizer"])


def as_images(luma: Tensor) -> Tensor:
    """Luma of limited range (B, 1, H, W) as grey images (B, 3, H, W), -1 to 1."""
    return ((luma - 16) * (2 / 219) - 1).expand(-1, 3, -1, -1)


def squared(errors: Tensor) -> Tensor:
    """(B,) mean square."""
    return errors.square().mean((1, 2, 3))


def ratio(now: Tensor, before: Tensor, floor: float = FLOOR) -> Tensor:
    """Mean ratio of errors or distances (B,) to what they were."""
    return ((now + floor) / (before + floor)).mean()


def mean(values: Tensor) -> Tensor:
    """The mean; of nothing 0."""
    return values.sum() / max(1, values.numel())


def texture(luma: Tensor, original: Tensor) -> Tensor:
    """(B,) mean square of the difference of local energy's logarithms, in octaves each way."""
    total = luma.new_zeros(len(luma))
    for _ in range(OCTAVES):
        for axis in (2, 3):
            own, wanted = (energy(x.diff(dim=axis)) for x in (luma, original))
            total = total + squared(own - wanted)
        luma, original = (F.avg_pool2d(x, 2) for x in (luma, original))
    return total


def energy(differences: Tensor) -> Tensor:
    """Logarithm of the mean square of differences in windows of 8x8, half overlapping."""
    return torch.log(F.avg_pool2d(differences.square(), 8, stride=4) + UNSEEN)
