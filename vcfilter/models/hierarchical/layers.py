"""Building blocks shared by the transforms: planes to blocks, the classical bases, conv blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 8  # luma samples per latent position, each way
CHANNELS = 96  # 64 of luma, 16 of each chroma plane
ALIGN = 32  # pictures are padded to multiples of this
KNOTS = 9  # the hat functions over qp stand at 0, 8 ... 64
LAYERS = 4  # deeper temporal layers share the last one
CONTEXT = KNOTS + LAYERS + 3  # all references are past, refinement, their distance
CONTEXT_MAX = 32  # of each feature
FAR = (2, 3, 4, 6, 8, 12, 16, 24)  # distances at which "how far" rises by an eighth
GREY = 128.0
CHROMA_STEP = 0.476  # of luma's, up to qp 24
CHROMA_KNEE = 2.0 ** (20 / 6)  # base step at qp 24
CHROMA_ERROR = 0.47  # its step's square times its error's weight


def dct_matrix(size: int) -> Tensor:
    """(size, size) orthonormal DCT-II; row k is the basis of frequency k."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def zigzag(size: int) -> list[tuple[int, int]]:
    """(row, column) frequencies of a size x size block, lowest first."""
    every = [(r, c) for r in range(size) for c in range(size)]
    return sorted(every, key=lambda p: (p[0] + p[1], max(p), p[0]))


def block_dct(size: int) -> Tensor:
    """(size^2, size^2) 2-D DCT of flattened blocks; rows in zigzag order."""
    one = dct_matrix(size)
    return torch.stack([torch.outer(one[r], one[c]).flatten() for r, c in zigzag(size)])


def latent_order() -> list[int]:
    """Channel order of the latent: frequencies of Y, U and V merged, lowest first."""
    luma = [(r + c, 0, i) for i, (r, c) in enumerate(zigzag(8))]
    chroma = [
        (2.0 * (r + c) + 0.5, p, 64 + 16 * (p - 1) + i)
        for p in (1, 2)
        for i, (r, c) in enumerate(zigzag(4))
    ]
    return [index for _, _, index in sorted([*luma, *chroma])]


def picture_dct() -> Tensor:
    """(96, 96) orthonormal map from the samples of a block (Y 8x8, U 4x4, V 4x4) to its latent."""
    matrix = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    matrix[:64, :64] = block_dct(8)
    matrix[64:80, 64:80] = matrix[80:, 80:] = block_dct(4)
    return matrix[latent_order()].float()


def to_blocks(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Planes (B, 1, H, W) and two (B, 1, H/2, W/2) to (B, 96, H/8, W/8)."""
    return torch.cat(
        [F.pixel_unshuffle(y, 8), F.pixel_unshuffle(u, 4), F.pixel_unshuffle(v, 4)], dim=1
    )


def to_planes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `to_blocks`."""
    return (
        F.pixel_shuffle(blocks[:, :64], 8),
        F.pixel_shuffle(blocks[:, 64:80], 4),
        F.pixel_shuffle(blocks[:, 80:], 4),
    )


def all_past(distances: Tensor) -> Tensor:
    """(B,) whether a frame has references and all of them are past.

    Args:
        distances: (B, 2) signed display distances to the references, 0 = no reference.
    """
    return (distances < 0).any(1) & ~(distances > 0).any(1)


def context(qp: Tensor, layer: Tensor, distances: Tensor, quality: Tensor | None = None) -> Tensor:
    """(B, 16) integer-valued features of a frame, 0 to 32 each.

    Hat functions of the qp, the temporal layer one-hot, whether all references are past, the
    quality layer, and (where all references are past) how far the nearest one is, about 8 log2.
    The last three are 0 for keyframes and for frames between their references.

    Args:
        qp: (B,) 0 to 63. layer: (B,) 0 and up; those from 3 on count as one.
        distances: (B, 2) signed display distances to the references, 0 = no reference.
        quality: (B,) 0 for a picture's base, 1 and up for what refines it; None: 0.
    """
    knots = torch.arange(KNOTS, device=qp.device) * 8
    hats = (8 - (qp[:, None] - knots).abs()).clamp(min=0) * (CONTEXT_MAX // 8)
    layers = F.one_hot(layer.long().clamp(max=LAYERS - 1), LAYERS) * CONTEXT_MAX
    past = all_past(distances)
    nearest = torch.where(distances == 0, FAR[-1], distances.abs()).amin(1)
    far = sum((nearest >= limit).long() for limit in FAR) * (CONTEXT_MAX // len(FAR)) * past
    refined = torch.zeros_like(qp) if quality is None else quality.clamp(max=1) * CONTEXT_MAX
    rest = torch.stack([past * CONTEXT_MAX, refined, far], dim=1)
    return torch.cat([hats, layers, rest], dim=1).float()


def quantiser_step(qp: Tensor) -> Tensor:
    """The base step in 8-bit sample units: 1 at qp 4, doubling every 6, as in H.264."""
    return torch.exp2((qp.float() - 4.0) / 6.0)


def chroma_step(base: Tensor) -> Tensor:
    """Chroma's quantiser steps relative to luma's, from the base steps (B,).

    Coarse steps remove far more of luma's detail than of chroma's; equal gains in 6:1:1 PSNR per
    bit then ask for ever finer chroma (measured on training clips).
    """
    return CHROMA_STEP * (base / CHROMA_KNEE).clamp(min=1) ** -0.25


def chroma_weight(base: Tensor) -> Tensor:
    """What a squared error of a chroma sample counts, in luma's, that fits those steps."""
    return CHROMA_ERROR / chroma_step(base) ** 2


class Block(nn.Module):
    """Residual block: depthwise 3x3, 1x1 to twice the width, leaky ReLU, 1x1 back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.leaky_relu(self.widen(self.spatial(x)), 0.1))


class Branch(nn.Module):
    """A learned correction (B, inputs, H, W) -> (B, outputs, H, W), zero until trained.

    Conditioned on the frame's context by a scale and a shift of its features.
    """

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int, last: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 1)
        self.modulate = nn.Linear(CONTEXT, 2 * width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.last = nn.Conv2d(width, outputs, last, padding=last // 2)
        for parameter in (*self.modulate.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, ctx: Tensor) -> Tensor:
        gain, shift = self.modulate(ctx / 32.0)[:, :, None, None].chunk(2, dim=1)
        return self.last(self.blocks(self.first(x) * (1 + gain) + shift))


def compress(x: Tensor) -> Tensor:
    """Large values drawn in, small ones kept: x / (1 + |x| / 8)."""
    return x / (1 + x.abs() / 8)
