"""Motion: one latent that decodes to two displacement fields and a blending map.

The latent begins as a 4x4 DCT of a field on the 1/8 grid with five components per position:
motion along the line through the references, deviation from it (two components each), and the
blending map. A learned branch corrects the decoded field (reference: paper, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.models.hierarchical.blocks import BLOCK, Planes, block_dct
from vcfilter.models.hierarchical.conditions import CONTEXT, CONTEXT_MAX
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.latent import LatentModel, checkerboard, pyramid
from vcfilter.models.hierarchical.values import Pair
from vcfilter.nn.blocks import Branch
from vcfilter.nn.warp import enlarge, warp, warp_field, warp_luma

COMPONENTS = 5
GRID = 4  # field positions per latent position, each way
STEP_SHARE = 0.024  # of the picture's quantiser step, at level 3: see `field_step`
MISSED = 0.3  # share of the cost across the line that errors along it cost besides their own
BLEND_SHARE = 8.0  # samples of displacement that weigh as much as the whole range of blending


def field_step(base: Tensor, level: Tensor) -> Tensor:
    """(B,) quantiser step of the field in luma samples: coarser frames need coarser motion.

    Half a level is a factor of the square root of two; bounded to 1/16 ... 4 samples.
    """
    return (STEP_SHARE * base * torch.exp2((level.float() - 3) / 2)).clamp(1 / 16, 4)


def directions(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors over both displacements: along constant velocity, and across it; (B, 2) each.

    Args:
        distances: (B, 2) signed display distances to the references, 0 = no reference. Both past:
            the line runs through both, and the farther one's displacement is the longer.
    """
    first, second = distances[:, 0].float(), distances[:, 1].float()
    norm = torch.sqrt(first**2 + second**2).clamp(min=1)
    along = torch.stack([first, second], dim=1) / norm[:, None]
    return along, torch.stack([second, -first], dim=1) / norm[:, None]


class MotionCodec(nn.Module):
    """Fields (B, 5, h, w) on the 1/8 grid to a latent (B, 80, h/4, w/4), its coding, and back.

    Field channels: left dx, left dy, right dx, right dy in luma samples, and the blend in -1 (all
    left) ... 1 (all right).
    """

    dct: Tensor

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        channels = config.motion_channels
        self.branch = Branch(
            COMPONENTS,
            config.motion_width,
            COMPONENTS,
            config.motion_blocks,
            last=3,
            context=CONTEXT,
            context_max=CONTEXT_MAX,
        )
        plan = (*pyramid(COMPONENTS), *checkerboard(COMPONENTS, channels))
        self.coding = LatentModel(
            channels, plan, config.motion_hidden, config.mean_radius, config.middle
        )
        self.log_step = nn.Parameter(torch.zeros(channels))
        self.register_buffer("dct", block_dct(GRID).float(), persistent=False)

    def turn(self, field: Tensor, distances: Tensor, back: bool = False) -> Tensor:
        """Displacements to components along and across constant velocity, or back."""
        along, across = directions(distances)
        matrix = torch.stack([along, across], dim=1).to(field.dtype)  # (B, component, reference)
        if back:
            matrix = matrix.transpose(1, 2)
        moves = field[:, :4].unflatten(1, (2, 2))
        turned = torch.einsum("bcr,brxhw->bcxhw", matrix, moves).flatten(1, 2)
        scale = 1 / BLEND_SHARE if back else BLEND_SHARE
        return torch.cat([turned, field[:, 4:] * scale], dim=1)

    def analyse(self, field: Tensor, distances: Tensor) -> Tensor:
        """h: the field to its latent (channel = 5 * frequency + component)."""
        blocks = F.pixel_unshuffle(self.turn(field, distances), GRID)
        blocks = blocks.unflatten(1, (COMPONENTS, GRID * GRID))
        return torch.einsum("fs,bcshw->bfchw", self.dct, blocks).flatten(1, 2)

    def synthesise(
        self, latent: Tensor, distances: Tensor, step: Tensor, features: Tensor
    ) -> Tensor:
        """h': the latent to the field (B, 5, h, w), blend within -1 ... 1."""
        coefficients = latent.unflatten(1, (GRID * GRID, COMPONENTS))
        blocks = torch.einsum("fs,bfchw->bcshw", self.dct, coefficients).flatten(1, 2)
        turned = F.pixel_shuffle(blocks, GRID)
        scale = step[:, None, None, None]
        turned = turned + scale * self.branch((turned / scale).clamp(-64, 64), features)
        field = self.turn(turned, distances, back=True)
        return torch.cat([field[:, :4], field[:, 4:].clamp(-1, 1)], dim=1)

    def cost(self, hessian: Tensor, distances: Tensor) -> Tensor:
        """(B, 80, h/4, w/4): squared error of the prediction per squared error of the latent.

        Errors along the line through both references move both to opposite sides, which to first
        order costs nothing; some of what they cost across it stands for the higher orders.

        Args:
            hessian: (B, h, w, 5, 5), see `linearise`.
        """
        along, across = directions(distances)
        n = hessian.permute(0, 3, 4, 1, 2)

        def turned(vector: Tensor) -> Tensor:
            a, b = vector[:, 0, None, None, None], vector[:, 1, None, None, None]
            sides = [(i, i + 2) for i in (0, 1)]
            left = torch.stack([n[:, i, i] for i, _ in sides], dim=1)
            right = torch.stack([n[:, j, j] for _, j in sides], dim=1)
            both = torch.stack([n[:, i, j] for i, j in sides], dim=1)
            return a * a * left + b * b * right + 2 * a * b * both

        with_line, off_line = turned(along), turned(across)
        parts = [with_line + MISSED * off_line, off_line + MISSED * with_line]
        costs = torch.cat([*parts, n[:, 4, 4, None] / BLEND_SHARE**2], dim=1)
        blocks = F.pixel_unshuffle(costs, GRID).unflatten(1, (COMPONENTS, GRID * GRID))
        return torch.einsum("fs,bcshw->bfchw", self.dct**2, blocks).flatten(1, 2)

    def quantiser_steps(self, step: Tensor) -> Tensor:
        """(B, 80) quantiser steps."""
        return step[:, None] * torch.exp(self.log_step)[None]


def temporal_direct(moves: tuple[Tensor, Tensor], spans: Tensor, distances: Tensor) -> Tensor:
    """Motion that follows from what is coded: one reference was often coded from the other.

    A frame between them is taken to lie on the straight lines of that motion.

    Args:
        moves: (B, 4, h, w) displacements of the left and the right reference to their own ones.
        spans: (B, 2) signed: distance of the left reference to its second one, and of the right
            reference to its first one; 0 = there is none.
        distances: (B, 2) signed, of the frame to its references.

    Returns:
        (B, 5, h, w) field (see `MotionCodec`); zero where neither was coded from the other, or
        where the frame does not lie between them.
    """
    left, right = distances[:, :1].float(), distances[:, 1:].float()
    apart = (right - left).clamp(min=1)
    between = (left < 0) & (right > 0)
    fits = (spans == torch.cat([apart, -apart], dim=1)) & between
    # Motion over the whole distance from left to right, at the reference that knows it.
    from_left = moves[0][:, 2:] * fits[:, :1, None, None]
    from_right = -moves[1][:, :2] * fits[:, 1:, None, None]
    known = torch.where(fits[:, 1:, None, None], from_right, from_left)
    share = torch.where(fits[:, 1:], right / apart, left / apart)  # from the frame to there
    over = known
    for _ in range(2):
        over = warp(known, over * (share / BLOCK)[:, :, None, None], "bilinear")
    parts = [over * (left / apart)[:, :, None, None], over * (right / apart)[:, :, None, None]]
    return torch.cat([*parts, torch.zeros_like(over[:, :1])], dim=1)


def direct_motion(references: Pair, distances: Tensor) -> Tensor:
    """(B, 5, h, w) field that the references' own motion implies, see `temporal_direct`."""
    first, second = references
    spans = torch.stack([first.distances[:, 1], second.distances[:, 0]], dim=1)
    return temporal_direct((first.moves, second.moves), spans, distances)


def warp_planes(planes: Planes, flow: Tensor) -> Planes:
    """Planes moved by a field (B, 2, h, w) on the 1/8 grid: bicubic luma, bilinear chroma.

    A sample at p takes the reference at p + flow(p); outside the picture its border repeats.

    Args:
        planes: luma as it is, or with the samples between, see `with_halves`.
    """
    y, u, v = planes
    luma = warp_luma(y, flow, BLOCK)
    chroma = warp_field(torch.cat([u, v], dim=1), flow, BLOCK // 2, "bilinear", 0.5)
    return luma, chroma[:, :1], chroma[:, 1:]


def blend(first: Planes, second: Planes, weight: Tensor) -> Planes:
    """first + alpha * (second - first), alpha = (1 + weight) / 2, weight (B, 1, h, w) smooth."""
    alpha = (weight + 1) / 2
    full, half = enlarge(alpha, BLOCK), enlarge(alpha, BLOCK // 2)
    y, u, v = (a + w * (b - a) for a, b, w in zip(first, second, (full, half, half), strict=True))
    return y, u, v
