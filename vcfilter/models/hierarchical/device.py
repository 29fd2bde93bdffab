"""The pixel pass in few operators, for devices that wait for their start.

`DevicePixels.reconstruct` follows the rule of `VideoNet.reconstruct`, which states it and which
tests compare it with; sums are in another order. It works on one frame at a time:
- what follows from a frame's conditions (steps, gains, matrices of motion) is folded into weights
  on the host and moved in one copy, which is kept for frames alike;
- displacements are in units of grid_sample's coordinates, equal at every size of plane;
- values of a latent begin as symbol times step everywhere, and means are added step by step; taps
  of their filters that would read what is not known yet are zero;
- the prediction's branch and the synthesis of what is predicted work side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.blocks import BLOCK, GREY, Size
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.device_filter import filtered
from vcfilter.models.hierarchical.device_numbers import (
    RATIO,
    DirectMotion,
    MeanStep,
    Numbers,
    Weights,
    sampled,
    unit_of,
)
from vcfilter.models.hierarchical.loop_filter import NO_FILTER
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.motion import COMPONENTS, GRID
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.refine import ROUNDS
from vcfilter.models.hierarchical.values import FrameSymbols, Pair, Reference
from vcfilter.nn.blocks import SLOPE, Block, Branch, Conv2d
from vcfilter.nn.warp import constant, enlarge, with_halves

CLAMP = 64.0  # of a decoded field in its steps, before its branch
HALF = BLOCK // 2  # luma samples per position of chroma's and the refinement's grid, each way
KEPT = 64  # conditions whose numbers are kept on the device


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


class DevicePixels:
    """Reconstructs frames without quality levels, one at a time.

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
        self,
        mode: MotionMode,
        conditions: Conditions,
        symbols: FrameSymbols,
        references: Pair | None,
    ) -> Reference:
        """Pixels of a parsed frame.

        Args:
            conditions: on the host. symbols: on the device; without quality levels.
            references: None: a keyframe. Planes and displacements are on the device, distances on
                the host.
        """
        assert not symbols.levels
        if references is None:
            return self._keyframe(conditions, symbols)
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
        return _reference(conditions, symbols, y, uv, moves)

    def _keyframe(self, conditions: Conditions, symbols: FrameSymbols) -> Reference:
        assert symbols.image is not None
        _, _, h, w = symbols.image.shape
        rows, columns = h * BLOCK, w * BLOCK
        size = conditions.size or (rows, columns)
        numbers = self._of(conditions, None, rows, columns)
        latent = self._values(numbers, symbols.image, size)
        samples = F.conv2d(latent, self._linear[1], padding=1).add_(GREY)
        blocks = self._corrected(numbers, samples, latent, symbols.image)
        y, uv = _finished(*_to_planes(blocks.clamp_(0, 255)), size)
        moves = blocks.new_zeros(1, 4, h, w)
        return _reference(conditions, symbols, y, uv, moves)

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
            size, means = (rows, columns), (self._image, self._motion)
            found = Numbers.of(self._net, means, conditions, shares, size, self._device)
            self._numbers[key] = found
        return found

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
            luma = sampled(with_halves(luma), both, BLOCK, "bicubic", offset=-0.25)
        else:
            luma = sampled(luma, both, BLOCK, "bicubic")
        chroma = sampled(chroma, both, HALF, "bilinear")
        shares = [None if weight is None else enlarge(weight, side) for side in (BLOCK, HALF)]
        luma, chroma = _blended(luma, shares[0]), _blended(chroma, shares[1])
        columns, rows = (1 / unit for unit in unit_of(luma.shape[2], luma.shape[3]))
        samples = constant((columns, rows) * 2, moves.dtype, moves.device)
        return luma, chroma, moves * samples.view(1, 4, 1, 1)

    def _refined(self, numbers: Numbers, luma: Tensor, moves: Tensor) -> Tensor:
        """`refine` of displacements (1, 4, h, w), luma (2, 1, H, W) of both references."""
        luma = F.avg_pool2d(luma, 2)
        kernel, bias = _sums_kernel(HALF, luma.device)
        for _ in range(ROUNDS):
            both = moves.reshape(2, 2, *moves.shape[2:])
            pair = sampled(luma, both, HALF, "bilinear").transpose(0, 1)
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
        latent = self._values(numbers, symbols, size).add_(expected)
        bare += F.conv2d(latent - y, synthesis, padding=1)
        return self._corrected(numbers, bare, latent, symbols)

    def _values(self, numbers: Numbers, symbols: Tensor, size: Size) -> Tensor:
        """(1, 96, h, w) what symbols stand for, as differences to what is expected."""
        values = symbols * numbers.image_steps
        rows, columns = (-(-side // BLOCK) for side in size)
        inside = values[:, :, :rows, :columns]
        for each, weight in zip(self._image, numbers.image_means, strict=True):
            each.add(inside, weight)
        return values

    def _corrected(
        self, numbers: Numbers, samples: Tensor, latent: Tensor, symbols: Tensor
    ) -> Tensor:
        """Samples in blocks, changed by what the synthesis learned."""
        x = _squeezed(torch.cat([latent, symbols], dim=1), numbers.limits)
        x = self._synthesis(F.conv2d(x, *numbers.synthesis))
        learned = F.conv2d(x, *self._lasts[2], padding=1)
        return samples.add_(learned, alpha=numbers.base)


def _reference(
    conditions: Conditions, symbols: FrameSymbols, y: Tensor, uv: Tensor, moves: Tensor
) -> Reference:
    """What finished luma and chroma come to, filtered."""
    shown = symbols.context.loop_filter
    if shown != NO_FILTER:
        size = conditions.size or (y.shape[2], y.shape[3])
        y, uv = filtered(shown, y, uv)
        y, uv = _finished(y.clamp_(0, 255), uv.clamp_(0, 255), size)
    return Reference(
        planes=(y, uv[:, :1], uv[:, 1:]),
        context=symbols.context,
        moves=moves,
        distances=conditions.distances,
    )


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
