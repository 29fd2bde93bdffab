"""What a device needs of a frame besides its maps: made on the host, moved in one copy.

See `device`, which says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.models.hierarchical.blocks import Size
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.latent import LatentModel, Step, StepModel, mirror
from vcfilter.models.hierarchical.motion import COMPONENTS, GRID, field_step
from vcfilter.models.hierarchical.net import REFINE_LEVEL, VideoNet
from vcfilter.models.hierarchical.refine import DOUBT
from vcfilter.models.hierarchical.values import Pair
from vcfilter.nn.blocks import Branch
from vcfilter.nn.packed import packed_to
from vcfilter.nn.warp import constant, enlarge

RATIO = 8.0  # compress(x / s) = 8 x / (8 s + |x|)

Weights = tuple[Tensor, Tensor]
"""Of a convolution, and its bias."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanStep:
    """How the means of one step of a latent are computed; see `StepModel.means`.

    Args:
        step: channels and positions. reach: they follow from so many of the lowest channels.
        weight: (count, reach, n, n), zero where nothing is known. gain: of a frame's features.
    """

    step: Step
    reach: int
    weight: Tensor
    gain: nn.Linear
    radius: int

    @classmethod
    def of(cls, latent: LatentModel) -> list[MeanStep]:
        """Those of all steps but the ones before which nothing is known."""
        found = []
        for number, model in enumerate(latent.steps):
            assert isinstance(model, StepModel)
            step, radius = model.step, model.radius
            own = _taps(latent.plan, number, radius)
            reach = min(model.informing, step.high if own.any() else step.low)
            weight = model.mean.weight.detach()[:, :reach].clone()
            weight[:, step.low :] *= own
            if reach:
                each = cls(step=step, reach=reach, weight=weight, gain=model.gain, radius=radius)
                found.append(each)
        return found

    def weights(self, context: Tensor) -> Tensor:
        """Those of a frame, context (1, 16): its gains are part of them."""
        return self.weight * (1 + self.gain(context))[0, :, None, None, None]

    def add(self, maps: Tensor, weight: Tensor) -> None:
        """Add the means to maps (1, C, h, w) that hold symbol times step where they belong."""
        step, stride = self.step, self.step.stride
        lattice = maps[:, : self.reach, ::stride, ::stride]
        around = mirror(lattice, self.radius)
        own = maps[:, step.low : step.high]
        if len(step.sites) == 1:
            ((row, column),) = step.sites
            target = own[..., row * stride :: 2 * stride, column * stride :: 2 * stride]
            if target.numel():
                target.add_(F.conv2d(around[..., row:, column:], weight, stride=2))
            return
        rows, columns = lattice.shape[2], lattice.shape[3]
        mask = _mask(step.sites, rows, columns, maps.device)
        own[..., ::stride, ::stride].addcmul_(F.conv2d(around, weight), mask)


def _taps(plan: Sequence[Step], number: int, radius: int) -> Tensor:
    """(n, n) 1 where earlier steps decode a step's own channels around its positions, else 0."""
    step = plan[number]
    earlier = [e for e in plan[:number] if (e.low, e.high) == (step.low, step.high)]

    def decoded(row: int, column: int) -> bool:
        at = row * step.stride, column * step.stride
        return any(
            not at[0] % e.stride
            and not at[1] % e.stride
            and (at[0] // e.stride % 2, at[1] // e.stride % 2) in e.sites
            for e in earlier
        )

    near = range(-radius, radius + 1)
    period = range(4 * radius, 4 * radius + 8, 2)  # of even numbers; lattices repeat within
    patterns = {
        tuple(decoded(top + row + i, left + column + j) for i in near for j in near)
        for row, column in step.sites
        for top in period
        for left in period
    }
    assert len(patterns) == 1, "around all positions of a step the same is decoded"
    side = len(near)
    return torch.tensor(patterns.pop(), dtype=torch.float32).view(side, side)


@lru_cache(64)
def _mask(
    sites: tuple[tuple[int, int], ...], rows: int, columns: int, device: torch.device
) -> Tensor:
    """(1, 1, rows, columns) 1 at the sites."""
    with torch.inference_mode(False):
        mask = torch.zeros(1, 1, rows, columns)
        for row, column in sites:
            mask[..., row::2, column::2] = 1
        return mask.to(device)


@lru_cache(12)
def _coordinates(rows: int, columns: int, offset: float, device: torch.device) -> Tensor:
    """(1, rows, columns, 2): grid_sample's coordinates of all samples, moved by so much of one."""
    with torch.inference_mode(False):
        x = (2 * torch.arange(columns, dtype=torch.float64) + 1 + 2 * offset) / columns - 1
        y = (2 * torch.arange(rows, dtype=torch.float64) + 1 + 2 * offset) / rows - 1
        both = [x.expand(rows, -1), y[:, None].expand(-1, columns)]
        return torch.stack(both, dim=-1)[None].float().to(device)


def unit_of(rows: int, columns: int) -> tuple[float, float]:
    """What a luma sample is in grid_sample's coordinates, across and down."""
    return 2.0 / columns, 2.0 / rows


def sampled(
    planes: Tensor,
    moves: Tensor,
    factor: int,
    mode: str,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Planes (B, C, H, W) moved by a field (B, 2, h, w) times scale, in grid_sample's units.

    Args:
        factor: how much larger than the field what comes is, each way. mode: of grid_sample.
        offset: see `_coordinates`.
    """
    field = enlarge(moves, factor) if factor > 1 else moves
    at = _coordinates(field.shape[2], field.shape[3], offset, field.device)
    at = torch.add(at, field.permute(0, 2, 3, 1), alpha=scale)
    return F.grid_sample(planes, at, mode, "border", align_corners=False)


def _first(branch: Branch, features: Tensor, factor: float) -> Weights:
    """A branch's first layer in a frame, whose features (1, 16) scale and shift what it gives.

    Args:
        factor: what its inputs are to be multiplied by.
    """
    assert branch.first.bias is not None
    gain, shift = branch.modulate(features / branch.context_max)[0].chunk(2)
    weight = branch.first.weight * ((1 + gain) * factor)[:, None, None, None]
    return weight, branch.first.bias * (1 + gain) + shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectMotion:
    """Where motion that references imply comes from; see `temporal_direct`.

    Args:
        moves: (1, 2, h, w) displacements, in luma samples, over the whole distance.
        shares: of them to each reference. there: to the reference that they belong to.
    """

    moves: Tensor
    shares: tuple[float, float]
    there: float

    @classmethod
    def of(cls, references: Pair, left: int, right: int) -> DirectMotion | None:
        """None: neither reference was coded from the other, or the frame is not between them."""
        if not left < 0 < right:
            return None
        apart = right - left
        from_left, from_right = (int(r.distances[0, 1 - n]) for n, r in enumerate(references))
        if from_right == -apart:
            moves, sign, there = references[1].moves[:, :2], -1 / apart, right
        elif from_left == apart:
            moves, sign, there = references[0].moves[:, 2:], 1 / apart, left
        else:
            return None
        return cls(moves=moves, shares=(sign * left, sign * right), there=sign * there)

    def over(self, rows: int, columns: int) -> Tensor:
        """(1, 2, h, w) displacements at the frame's positions, in grid_sample's units."""
        unit = constant(unit_of(rows, columns), torch.float32, self.moves.device)
        moves = self.moves * unit.view(1, 2, 1, 1)
        found = moves
        for _ in range(2):
            found = sampled(moves, found, 1, "bilinear", scale=self.there)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """What a frame's conditions come to.

    Args:
        base: quantiser step. step: of the field. doubt: see `refine`.
        analysis, both, synthesis, motion: first layers of branches; both: of the prediction and,
            where symbols are zero, the synthesis, beside each other.
        limits: (1, 192, 1, 1) of `_squeezed`, of a latent and its symbols.
        image_steps, motion_steps: (1, C, 1, 1).
        direct: (80, 32, 1, 1) the motion latent of `DirectMotion.over` in 4x4 positions.
        back: components of a field to displacements in grid_sample's units and the second
            reference's share.
        slopes: (6, 2, 3, 3) of the moved references, see `_agreed`.
        shares: (1, 2, 2, 1, 1) of a correction, for each reference across and down.
        image_means, motion_means: see `MeanStep.weights`.
    """

    base: float
    step: float
    doubt: float
    analysis: Weights
    both: Weights
    synthesis: Weights
    motion: Weights
    limits: Tensor
    image_steps: Tensor
    motion_steps: Tensor
    direct: Tensor
    back: Weights
    slopes: Tensor
    shares: Tensor
    image_means: tuple[Tensor, ...]
    motion_means: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        net: VideoNet,
        means: tuple[Sequence[MeanStep], Sequence[MeanStep]],
        conditions: Conditions,
        direct: tuple[float, float] | None,
        size: Size,
        device: torch.device,
    ) -> Numbers:
        """Made on the host and moved in one copy.

        Args:
            net, conditions: on the host. means: steps of the image's and the motion's latent.
            direct: shares of `DirectMotion`. size: rows and columns of padded luma.
        """
        across = unit_of(*size)
        base, features = net.features(conditions)
        context = features / net.image.synthesis_branch.context_max
        _, steps = net.quantiser(conditions)
        base_step = float(base[0])
        step = field_step(base, conditions.level)
        coarse = field_step(base, torch.full_like(conditions.level, REFINE_LEVEL))
        prediction, bare = (
            _first(branch, features, RATIO)
            for branch in (net.prediction.branch, net.image.synthesis_branch)
        )
        alone = bare[0].clone()
        alone[:, alone.shape[1] // 2 :] = 0  # no symbols: the other half are zeros
        unit = torch.tensor([*across, *across])
        eye = torch.eye(COMPONENTS)[None, :, None]
        turn = net.motion.turn(eye, conditions.distances)[0, :, 0]
        back = net.motion.turn(eye, conditions.distances, back=True)[0, :, 0]
        back = back * torch.cat([unit, torch.tensor([0.5])])[:, None]
        implied = torch.zeros(COMPONENTS, 2)  # field of displacements over both references
        for reference, share in enumerate(direct or ()):
            for i in range(2):
                implied[2 * reference + i, i] = share / across[i]
        latent = torch.einsum("fs,cx->fcxs", net.motion.dct, turn @ implied)
        left, right = conditions.distances[0].tolist()
        apart = float(right - left) or 1.0
        slope = torch.zeros(2, 3, 3)
        slope[0, 2, 1], slope[0, 0, 1] = 0.5, -0.5  # down
        slope[1, 1, 2], slope[1, 1, 0] = 0.5, -0.5  # across
        middle = torch.zeros(3, 3)
        middle[1, 1] = 1
        to_left, to_right = left / apart, right / apart
        down, along = (torch.stack([to_left * s, -to_right * s]) for s in slope)
        error = torch.stack([middle, -middle])
        shares = torch.tensor([[-2 * s * u for u in across] for s in (to_left, to_right)])
        field_branch = _first(net.motion.branch, features, 1.0 / float(step[0]))
        limits = torch.full((2, len(steps[0])), RATIO)
        limits[0] *= base_step
        parts: list[Tensor] = [
            *_first(net.image.analysis_branch, features, RATIO),
            torch.cat([prediction[0], alone]),
            torch.cat([prediction[1], bare[1]]),
            *bare,
            *field_branch,
            limits.view(1, -1, 1, 1),
            steps[:, :, None, None],
            net.motion.quantiser_steps(step)[:, :, None, None],
            latent.reshape(-1, 2 * GRID * GRID, 1, 1),
            back[:, :, None, None],
            torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5]),
            torch.stack([down, along, error, along, down, error]),
            shares.view(1, 2, 2, 1, 1),
            *(each.weights(context) for each in means[0]),
            *(each.weights(context) for each in means[1]),
        ]
        p: Iterator[Tensor] = iter(packed_to(parts, device))
        return cls(
            base=base_step,
            step=float(step[0]),
            doubt=float(DOUBT / (coarse[0] / 2) ** 2),
            analysis=(next(p), next(p)),
            both=(next(p), next(p)),
            synthesis=(next(p), next(p)),
            motion=(next(p), next(p)),
            limits=next(p),
            image_steps=next(p),
            motion_steps=next(p),
            direct=next(p),
            back=(next(p), next(p)),
            slopes=next(p),
            shares=next(p),
            image_means=tuple(next(p) for _ in means[0]),
            motion_means=tuple(next(p) for _ in means[1]),
        )
