"""Planes as blocks of samples, the classical bases, and what lies inside a padded picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8  # luma samples per latent position, each way
CHANNELS = 96  # 64 of luma, 16 of each chroma plane
ALIGN = 32  # frames are padded to multiples of this
GREY = 128.0

Planes = tuple[Tensor, Tensor, Tensor]
"""y (B, 1, H, W), u and v (B, 1, H/2, W/2), samples in 8-bit units."""
Size = tuple[int, int]
"""Rows and columns of luma."""


def dct_matrix(size: int) -> Tensor:
    """(size, size) orthonormal DCT-II; row k is the basis of frequency k. On the CPU."""
    # Not on the device "meta" either: arithmetic there imports PyTorch's compiler, a second of CPU.
    n = torch.arange(size, dtype=torch.float64, device="cpu")
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
    matrix = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64, device="cpu")
    matrix[:64, :64] = block_dct(8)
    matrix[64:80, 64:80] = matrix[80:, 80:] = block_dct(4)
    return matrix[latent_order()].float()


SIDES = (8, 4, 4)
"""Samples of y, u and v per latent position, each way."""


def to_blocks(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Planes (B, 1, H, W) and two (B, 1, H/2, W/2) to (B, 96, H/8, W/8), channels last."""
    parts = []
    for plane, side in zip((y, u, v), SIDES, strict=True):
        batch, _, rows, columns = plane.shape
        blocks = plane.reshape(batch, rows // side, side, columns // side, side)
        parts.append(blocks.transpose(2, 3).flatten(3))
    return torch.cat(parts, dim=3).permute(0, 3, 1, 2)


def to_planes(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `to_blocks`."""
    planes = []
    parts = blocks.permute(0, 2, 3, 1).split([side * side for side in SIDES], dim=3)
    for part, side in zip(parts, SIDES, strict=True):
        batch, h, w, _ = part.shape
        rows = part.unflatten(3, (side, side)).transpose(2, 3)
        planes.append(rows.reshape(batch, 1, h * side, w * side))
    return planes[0], planes[1], planes[2]


def cropped(planes: Planes, size: Size | None) -> Planes:
    """The part of planes inside the picture; None: all of it."""
    if size is None:
        return planes
    y, u, v = planes
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    return y[..., : size[0], : size[1]], u[..., : half[0], : half[1]], v[..., : half[0], : half[1]]


def finish(planes: Planes, size: Size | None) -> Planes:
    """Planes within 0 to 255; outside the picture its border repeats."""
    results = []
    for whole, part in zip(planes, cropped(planes, size), strict=True):
        missing = (0, whole.shape[3] - part.shape[3], 0, whole.shape[2] - part.shape[2])
        part = part.clamp(0, 255)
        results.append(F.pad(part, missing, mode="replicate") if any(missing) else part)
    return results[0], results[1], results[2]


def within(x: Planes, others: Planes, size: Size | None) -> Planes:
    """x inside the picture and others outside."""
    if size is None:
        return x
    results = []
    for mine, other, part in zip(x, others, cropped(x, size), strict=True):
        filled = mine
        if part.shape != mine.shape:
            filled = other.clone()
            filled[..., : part.shape[2], : part.shape[3]] = part
        results.append(filled)
    return results[0], results[1], results[2]
