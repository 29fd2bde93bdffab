"""The pixel pass of an inter frame in few operators, for devices that wait for their start.

`DevicePixels.reconstruct` follows the rule of `VideoNet.reconstruct`, which states it and which
tests compare it with; sums are in another order. It works on one frame at a time, and what a frame
does besides its maps is done on the host:
- what follows from its conditions (steps, gains, matrices of motion) is folded into weights and
  moved in one copy, which is kept for frames alike;
- displacements are in units of grid_sample's coordinates, equal at every size of plane;
- values of a latent begin as symbol times step everywhere, and means are added step by step; taps
  of their filters that would read what is not known yet are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.models.hierarchical import loop_filter as rule
from vcfilter.models.hierarchical.blocks import BLOCK, GREY, Size
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.latent import LatentModel, Step, StepModel, mirror
from vcfilter.models.hierarchical.loop_filter import NO_FILTER, LoopFilter
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.motion import COMPONENTS, GRID, field_step
from vcfilter.models.hierarchical.net import REFINE_LEVEL, VideoNet
from vcfilter.models.hierarchical.refine import DOUBT, ROUNDS
from vcfilter.models.hierarchical.values import FrameSymbols, Pair, Reference
from vcfilter.nn.blocks import SLOPE, Block, Branch, Conv2d
from vcfilter.nn.warp import constant, enlarge, with_halves

CLAMP = 64.0  # of a decoded field in its steps, before its branch
HALF = BLOCK // 2  # luma samples per position of chroma's and the refinement's grid, each way
KEPT = 64  # conditions whose numbers are kept on the device
ALIGNED = 64  # values; parts of a packed copy begin at multiples
MAIN = rule.MAIN
RATIO = 8.0  # compress(x / s) = 8 x / (8 s + |x|)

Weights = tuple[Tensor, Tensor]
"""Of a convolution, and its bias."""


def packed_to(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Float32 tensors on the host moved to a device in one copy."""
    ends = np.cumsum([-(-part.numel() // ALIGNED) * ALIGNED for part in parts]).tolist()
    whole = torch.zeros(ends[-1])
    for part, start in zip(parts, [0, *ends], strict=False):
        whole[start : start + part.numel()] = part.reshape(-1)
    moved = whole.to(device)
    return [
        moved[start : start + part.numel()].view(part.shape)
        for part, start in zip(parts, [0, *ends], strict=False)
    ]


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
            own = _known(latent.plan, number, radius)
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


def _known(plan: Sequence[Step], number: int, radius: int) -> Tensor:
    """(n, n) 1 where a step's own channels are known around its positions, else 0."""
    step = plan[number]
    earlier = [e for e in plan[:number] if (e.low, e.high) == (step.low, step.high)]

    def known(row: int, column: int) -> bool:
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
        tuple(known(top + row + i, left + column + j) for i in near for j in near)
        for row, column in step.sites
        for top in period
        for left in period
    }
    assert len(patterns) == 1, "around all positions of a step the same is known"
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


@lru_cache(32)
def _grid(rows: int, columns: int, offset: float, device: torch.device) -> Tensor:
    """(1, rows, columns, 2): grid_sample's coordinates of all samples, moved by so much of one."""
    with torch.inference_mode(False):
        x = (2 * torch.arange(columns, dtype=torch.float64) + 1 + 2 * offset) / columns - 1
        y = (2 * torch.arange(rows, dtype=torch.float64) + 1 + 2 * offset) / rows - 1
        both = [x.expand(rows, -1), y[:, None].expand(-1, columns)]
        return torch.stack(both, dim=-1)[None].float().to(device)


def _unit(rows: int, columns: int) -> tuple[float, float]:
    """What a luma sample is in grid_sample's coordinates, across and down."""
    return 2.0 / columns, 2.0 / rows


def _sampled(
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
        offset: see `_grid`.
    """
    field = enlarge(moves, factor) if factor > 1 else moves
    grid = _grid(field.shape[2], field.shape[3], offset, field.device)
    grid = torch.add(grid, field.permute(0, 2, 3, 1), alpha=scale)
    return F.grid_sample(planes, grid, mode, "border", align_corners=False)


def _squeezed(x: Tensor, limit: Tensor | float) -> Tensor:
    """x / (limit + |x|): an eighth of `compress` of x in units of limit / 8."""
    return x / x.abs().add_(limit)


class Trunk:
    """The residual blocks of one or more branches, side by side in the channels."""

    def __init__(self, branches: Sequence[Branch], device: torch.device) -> None:
        self._count = len(branches)
        self._blocks = []
        for blocks in zip(*(branch.blocks for branch in branches), strict=True):
            each = [block for block in blocks if isinstance(block, Block)]
            layers = ([b.spatial for b in each], [b.widen for b in each], [b.narrow for b in each])
            spatial, widen, narrow = (_beside(convolutions, device) for convolutions in layers)
            self._blocks.append((spatial, widen, narrow))

    def __call__(self, x: Tensor) -> Tensor:
        for spatial, widen, narrow in self._blocks:
            near = F.conv2d(x, *spatial, padding=1, groups=x.shape[1])
            wide = F.leaky_relu_(F.conv2d(near, *widen, groups=self._count), SLOPE)
            x = F.conv2d(wide, *narrow, groups=self._count).add_(x)
        return x


def _beside(layers: Sequence[Conv2d], device: torch.device) -> Weights:
    """Weights of convolutions that work on one group of channels each."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat(biases)
    return weight.detach().to(device), bias.detach().to(device)


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
        known: (1, 2, h, w) displacements, in luma samples, over the whole distance.
        shares: of what is known at a position, to each reference. there: to where it is known.
    """

    known: Tensor
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
            known, sign, there = references[1].moves[:, :2], -1 / apart, right
        elif from_left == apart:
            known, sign, there = references[0].moves[:, 2:], 1 / apart, left
        else:
            return None
        return cls(known=known, shares=(sign * left, sign * right), there=sign * there)

    def over(self, rows: int, columns: int) -> Tensor:
        """(1, 2, h, w) displacements at the frame's positions, in grid_sample's units."""
        known = self.known * constant(_unit(rows, columns), torch.float32, self.known.device).view(
            1, 2, 1, 1
        )
        found = known
        for _ in range(2):
            found = _sampled(known, found, 1, "bilinear", scale=self.there)
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


class DevicePixels:
    """Reconstructs inter frames without quality levels, one at a time.

    Args:
        net: on the host, float32, weights that do not learn; of a `fitting` configuration.
    """

    def __init__(self, net: VideoNet, device: torch.device) -> None:
        self._net, self._device = net, device
        image, motion = net.image, net.motion
        self._image, self._motion = MeanStep.of(image.coding), MeanStep.of(motion.coding)
        self._analysis = Trunk([image.analysis_branch], device)
        self._both = Trunk([net.prediction.branch, image.synthesis_branch], device)
        self._synthesis = Trunk([image.synthesis_branch], device)
        self._field = Trunk([motion.branch], device)
        lasts = image.analysis_branch, net.prediction.branch, image.synthesis_branch, motion.branch
        self._lasts = [_beside([branch.last], device) for branch in lasts]
        self._linear = [
            layer.weight.detach().to(device)
            for layer in (image.analysis_linear, image.synthesis_linear)
        ]
        # Frequency x component to component x position within 4x4.
        dct, eye = motion.dct, torch.eye(COMPONENTS)
        frequencies = torch.einsum("fs,cd->csfd", dct, eye).reshape(len(dct) * COMPONENTS, -1)
        self._blocks = frequencies[:, :, None, None].to(device)
        self._numbers: dict[tuple[object, ...], Numbers] = {}

    @staticmethod
    def fitting(config: HierarchicalConfig) -> bool:
        """Whether branches that work side by side are alike."""
        return (config.prediction_width, config.prediction_blocks) == (
            config.image_width,
            config.synthesis_blocks,
        )

    def reconstruct(
        self, mode: MotionMode, conditions: Conditions, symbols: FrameSymbols, references: Pair
    ) -> Reference:
        """Pixels of a parsed frame.

        Args:
            conditions: on the host. symbols: on the device. references: theirs planes and
                displacements on the device, their distances on the host.
        """
        assert not symbols.levels
        rows, columns = references[0].planes[0].shape[2:]
        left, right = conditions.distances[0].tolist()
        direct = DirectMotion.of(references, left, right)
        numbers = self._of(conditions, direct, rows, columns)
        field: tuple[Tensor, Tensor | None] | None = None
        if symbols.motion is not None:
            over = None if direct is None else direct.over(rows, columns)
            field = self._coded_field(numbers, symbols.motion, over)
        elif mode is MotionMode.DIRECT:
            field = _direct_field(direct, references, rows, columns)
        luma, chroma, moves = self._predicted(mode, conditions, numbers, references, field)
        size = conditions.size or (rows, columns)
        if symbols.image is None:
            y, uv = _finished(luma[:1].clamp(0, 255), chroma[:1].clamp(0, 255), size)
        else:
            blocks = self._decoded(numbers, symbols.image, luma, chroma, size)
            y, uv = _finished(*_to_planes(blocks.clamp_(0, 255)), size)
        shown = symbols.context.loop_filter
        if shown != NO_FILTER:
            y, uv = _filtered(shown, y, uv)
            y, uv = _finished(y.clamp_(0, 255), uv.clamp_(0, 255), size)
        return Reference(
            planes=(y, uv[:, :1], uv[:, 1:]),
            context=symbols.context,
            moves=moves,
            distances=conditions.distances,
        )

    def _of(
        self, conditions: Conditions, direct: DirectMotion | None, rows: int, columns: int
    ) -> Numbers:
        """The numbers of conditions, made and moved once."""
        ints = [conditions.qp, conditions.layer, *conditions.distances.T, conditions.level]
        shares = None if direct is None else direct.shares
        key = (*(int(each) for each in ints), conditions.drop, shares, rows, columns)
        found = self._numbers.get(key)
        if found is None:
            if len(self._numbers) >= KEPT:
                self._numbers.clear()
            found = self._numbers[key] = self._made(conditions, shares, rows, columns)
        return found

    def _made(
        self,
        conditions: Conditions,
        direct: tuple[float, float] | None,
        rows: int,
        columns: int,
    ) -> Numbers:
        net, across = self._net, _unit(rows, columns)
        base, features = net.features(conditions)
        context = features / net.image.synthesis_branch.context_max
        _, steps = net.quantiser(conditions)
        quantum = float(base[0])
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
        limits[0] *= quantum
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
            *(each.weights(context) for each in self._image),
            *(each.weights(context) for each in self._motion),
        ]
        p: Iterator[Tensor] = iter(packed_to(parts, self._device))
        return Numbers(
            base=quantum,
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
            image_means=tuple(next(p) for _ in self._image),
            motion_means=tuple(next(p) for _ in self._motion),
        )

    def _coded_field(
        self, numbers: Numbers, symbols: Tensor, over: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(displacements (1, 4, h, w) in grid_sample's units, the second reference's share).

        Args:
            over: of `DirectMotion`; None: what is expected is zero.
        """
        latent = symbols * numbers.motion_steps
        for each, weight in zip(self._motion, numbers.motion_means, strict=True):
            each.add(latent, weight)
        if over is not None:
            latent = latent + F.conv2d(F.pixel_unshuffle(over, GRID), numbers.direct)
        turned = F.pixel_shuffle(F.conv2d(latent, self._blocks), GRID)
        most = CLAMP * numbers.step
        x = F.conv2d(turned.clamp(-most, most), *numbers.motion)
        weight, bias = self._lasts[3]
        learned = F.conv2d(self._field(x), weight, bias, padding=weight.shape[2] // 2)
        turned = torch.add(turned, learned, alpha=numbers.step)
        field = F.conv2d(turned, *numbers.back)
        return field[:, :4], field[:, 4:].clamp(0, 1)

    def _predicted(
        self,
        mode: MotionMode,
        conditions: Conditions,
        numbers: Numbers,
        references: Pair,
        field: tuple[Tensor, Tensor | None] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """((2, 1, H, W) luma: predicted, and second less first moved reference; (2, 2, H/2, W/2)
        chroma likewise; (1, 4, h, w) displacements in luma samples).

        Args:
            field: see `_coded_field`; share None: a half. None: there is no motion.
        """
        first, second = (reference.planes for reference in references)
        if mode in (MotionMode.FIRST, MotionMode.SECOND):
            first = second = first if mode is MotionMode.FIRST else second
        luma = torch.cat([first[0], second[0]])
        chroma = torch.cat([*first[1:], *second[1:]], dim=1)
        chroma = chroma.view(2, 2, *chroma.shape[2:])
        if field is None:
            moves = torch.zeros_like(references[0].moves)
            return _blended(luma), _blended(chroma), moves
        moves, weight = field
        if conditions.refine:
            moves = self._refined(numbers, luma, moves)
        both = moves.reshape(2, 2, *moves.shape[2:])
        if not int(conditions.distances[0, 1]):  # the only reference: it stands for both
            both = torch.cat([both[:1], both[:1]])
        if conditions.sharp:
            luma = _sampled(with_halves(luma), both, BLOCK, "bicubic", offset=-0.25)
        else:
            luma = _sampled(luma, both, BLOCK, "bicubic")
        chroma = _sampled(chroma, both, HALF, "bilinear")
        shares = [None if weight is None else enlarge(weight, side) for side in (BLOCK, HALF)]
        luma, chroma = _blended(luma, shares[0]), _blended(chroma, shares[1])
        columns, rows = (1 / unit for unit in _unit(luma.shape[2], luma.shape[3]))
        samples = constant((columns, rows) * 2, moves.dtype, moves.device)
        return luma, chroma, moves * samples.view(1, 4, 1, 1)

    def _refined(self, numbers: Numbers, luma: Tensor, moves: Tensor) -> Tensor:
        """`refine` of displacements (1, 4, h, w), luma (2, 1, H, W) of both references."""
        luma = F.avg_pool2d(luma, 2)
        kernel, bias = _sums_kernel(HALF, luma.device)
        for _ in range(ROUNDS):
            both = moves.reshape(2, 2, *moves.shape[2:])
            pair = _sampled(luma, both, HALF, "bilinear").transpose(0, 1)
            # Down, across and error, then across, down and error.
            parts = F.conv2d(F.pad(pair, (1, 1, 1, 1), mode="replicate"), numbers.slopes)
            products = (parts[:, :3, None] * parts[:, None, 3:]).flatten(1, 2)
            sums = F.conv2d(products, kernel, bias, stride=HALF, padding=HALF // 2, groups=9)
            cross, ours, theirs, error = sums[:, :1], sums[:, 2:6:3], sums[:, 6:8], sums[:, 8:]
            squares = torch.add(sums[:, 1:4:2], error, alpha=numbers.doubt)
            wanted = (squares * theirs).addcmul_(cross, ours, value=-1)
            scale = (squares[:, :1] * squares[:, 1:]).addcmul_(cross, cross, value=-1)
            move = (wanted / scale).clamp_(-1, 1)
            moves = torch.addcmul(both[None], move[:, None], numbers.shares).flatten(1, 2)
        return moves

    def _decoded(
        self, numbers: Numbers, symbols: Tensor, luma: Tensor, chroma: Tensor, size: Size
    ) -> Tensor:
        """Samples in blocks (1, 96, h, w) of a prediction and a residual; see `VideoNet.expect`."""
        base, whole = numbers.base, RATIO * numbers.base
        analysis, synthesis = self._linear
        branch, prediction, correction, _ = self._lasts
        blocks = _to_blocks(luma, chroma)
        grey = constant((GREY, 0.0), blocks.dtype, blocks.device).view(2, 1, 1, 1)
        linear = F.conv2d(blocks - grey, analysis, padding=1)
        x = F.conv2d(_squeezed(linear[:1], whole), *numbers.analysis)
        y = torch.add(linear[:1], F.conv2d(self._analysis(x), *branch), alpha=base)
        x = _squeezed(torch.cat([y, linear[1:]], dim=1), whole)
        x = self._both(F.conv2d(x, *numbers.both))
        width = x.shape[1] // 2
        expected = torch.add(y, F.conv2d(x[:, :width], *prediction), alpha=base)
        learned = F.conv2d(x[:, width:], *correction, padding=1)
        bare = torch.add(blocks[:1], learned, alpha=-base)
        values = symbols * numbers.image_steps
        rows, columns = (-(-side // BLOCK) for side in size)
        inside = values[:, :, :rows, :columns]
        for each, weight in zip(self._image, numbers.image_means, strict=True):
            each.add(inside, weight)
        latent = values.add_(expected)
        x = _squeezed(torch.cat([latent, symbols], dim=1), numbers.limits)
        x = self._synthesis(F.conv2d(x, *numbers.synthesis))
        bare += F.conv2d(latent - y, synthesis, padding=1)
        return bare.add_(F.conv2d(x, *correction, padding=1), alpha=base)


def _direct_field(
    direct: DirectMotion | None, references: Pair, rows: int, columns: int
) -> tuple[Tensor, None]:
    """Displacements that references imply, see `DevicePixels._coded_field`; equal blending."""
    if direct is None:
        return torch.zeros_like(references[0].moves), None
    over = direct.over(rows, columns)
    return torch.cat([over * share for share in direct.shares], dim=1), None


def _blended(planes: Tensor, share: Tensor | None = None) -> Tensor:
    """(2, C, H, W) of two planes: the first plus a share of the difference, and the difference.

    Args:
        share: (1, 1, H, W); None: a half.
    """
    found = torch.empty_like(planes)
    first, apart = planes[:1], found[1:]
    torch.sub(planes[1:], first, out=apart)
    if share is None:
        torch.add(first, apart, alpha=0.5, out=found[:1])
    else:
        torch.addcmul(first, apart, share, out=found[:1])
    return found


@lru_cache(8)
def _sums_kernel(size: int, device: torch.device) -> Weights:
    """What sums nine maps as `kernel_sums` does, and adds `refine`'s damping to both squares."""
    with torch.inference_mode(False):
        ramp = (torch.arange(size, dtype=torch.float32) + 0.5) / size
        side = torch.cat([ramp, ramp.flip(0)])
        bias = torch.zeros(9)
        bias[1:4:2] = 2.0 * size * size
        return torch.outer(side, side).expand(9, 1, -1, -1).to(device), bias.to(device)


def _to_blocks(luma: Tensor, chroma: Tensor) -> Tensor:
    """`to_blocks` of planes (B, 1, H, W) and (B, 2, H/2, W/2)."""
    batch, _, rows, columns = luma.shape
    h, w = rows // BLOCK, columns // BLOCK
    y = luma.reshape(batch, h, BLOCK, w, BLOCK).transpose(2, 3).flatten(3)
    uv = chroma.reshape(batch, 2, h, HALF, w, HALF).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return torch.cat([y, uv], dim=3).permute(0, 3, 1, 2)


def _to_planes(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `_to_blocks`."""
    batch, _, h, w = blocks.shape
    every = blocks.permute(0, 2, 3, 1)
    y = every[..., : BLOCK * BLOCK].unflatten(3, (BLOCK, BLOCK)).transpose(2, 3)
    uv = every[..., BLOCK * BLOCK :].unflatten(3, (2, HALF, HALF)).permute(0, 3, 1, 4, 2, 5)
    luma = y.reshape(batch, 1, h * BLOCK, w * BLOCK)
    return luma, uv.reshape(batch, 2, h * HALF, w * HALF)


def _finished(y: Tensor, uv: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """`finish` of luma and chroma within 0 to 255."""
    found = []
    for whole, (rows, columns) in ((y, size), (uv, ((size[0] + 1) // 2, (size[1] + 1) // 2))):
        missing = (0, whole.shape[3] - columns, 0, whole.shape[2] - rows)
        part = whole[..., :rows, :columns]
        found.append(F.pad(part, missing, mode="replicate") if any(missing) else whole)
    return found[0], found[1]


def _filtered(loop_filter: LoopFilter, y: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """`LoopFilter.apply` of luma (1, 1, H, W) and chroma (1, 2, H/2, W/2).

    Differences to neighbours, and all that is linear in them, are one convolution's results.
    """
    luma, chroma = loop_filter.luma, loop_filter.chroma
    parts = packed_to([*_luma_filters(luma), *_chroma_filters(chroma)], y.device)
    changed = y
    if any(luma):
        found = _near(y, parts[0])
        clipped = F.conv2d(found[:, :MAIN].clamp(-rule.CLIP, rule.CLIP), parts[1])
        sharp = torch.linalg.vector_norm(found[:, MAIN + 2 :], 1, dim=1, keepdim=True)
        sharp = F.pad(sharp, (rule.REACH,) * 4, mode="replicate")
        mean = F.avg_pool2d(sharp, 2 * rule.REACH + 1, stride=1)
        busy = mean / (mean + rule.BUSY)
        changed = (found[:, MAIN : MAIN + 1] + clipped).addcmul_(
            busy, found[:, MAIN + 1 : MAIN + 2]
        )
    if any(chroma):
        found = _near(torch.cat([uv, F.avg_pool2d(y, 2)], dim=1), parts[2])
        clipped = found[:, : 2 * MAIN].clamp(-rule.CLIP, rule.CLIP)
        uv = found[:, 2 * MAIN :] + F.conv2d(clipped, parts[3], groups=2)
    return changed, uv


def _near(planes: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(F.pad(planes, (rule.REACH,) * 4, mode="replicate"), kernels)


@lru_cache(1)
def _sides() -> Tensor:
    """(12, 5, 5): the difference of each neighbour to the sample, of pairs and their opposites."""
    side, middle = 2 * rule.REACH + 1, rule.REACH
    kernels = torch.zeros(MAIN, side, side)
    for number, (down, right) in enumerate(rule.PAIRS):
        for sign, at in ((1, number), (-1, number + rule.EACH)):
            kernels[at, middle + sign * down, middle + sign * right] = 1
            kernels[at, middle, middle] = -1
    return kernels


def _weighted(coefficients: Sequence[int], unit: int) -> Tensor:
    """(5, 5) kernel of pairs' whole differences, each times its coefficient."""
    weights = torch.tensor(coefficients, dtype=torch.float32) / unit
    return (_sides() * weights.repeat(2)[:, None, None]).sum(0)


def _luma_filters(coefficients: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Kernels (16, 1, 5, 5) of differences, of the sample with whole ones, of those that count by
    activity, and of what activity is made of; and weights (1, 12, 1, 1) of what is cut off."""
    clipped, whole, busy = (coefficients[i : i + rule.EACH] for i in (0, rule.EACH, MAIN))
    sides = _sides()
    linear = _weighted(whole, rule.UNIT)
    linear[rule.REACH, rule.REACH] += 1
    second = sides[:2] + sides[rule.EACH : rule.EACH + 2]
    rest = torch.stack([linear, _weighted(busy, rule.BUSY_UNIT)])
    weights = torch.tensor(clipped, dtype=torch.float32) / rule.UNIT
    return torch.cat([sides, rest, second])[:, None], weights.repeat(2).view(1, -1, 1, 1)


def _chroma_filters(coefficients: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Kernels (26, 3, 5, 5) of U, V and luma at their size: both planes' differences, and each with
    whole ones of itself and of luma; and weights (2, 12, 1, 1) of what is cut off."""
    clipped, whole, *cross = (
        coefficients[i : i + rule.EACH] for i in range(0, len(coefficients), rule.EACH)
    )
    kernels = torch.zeros(2 * MAIN + 2, 3, *_sides().shape[1:])
    for plane in range(2):
        kernels[plane * MAIN : (plane + 1) * MAIN, plane] = _sides()
        kernels[2 * MAIN + plane, plane] = _weighted(whole, rule.UNIT)
        kernels[2 * MAIN + plane, plane, rule.REACH, rule.REACH] += 1
        kernels[2 * MAIN + plane, 2] = _weighted(cross[plane], rule.UNIT)
    weights = torch.tensor(clipped, dtype=torch.float32) / rule.UNIT
    return kernels, weights.repeat(2).view(1, -1, 1, 1).repeat(2, 1, 1, 1)
