"""Gauss-Newton steps on motion fields: the encoder's towards the picture, the decoder's without it.

A field lies on the 1/8 grid and is interpolated bilinearly. Each step linearises the moved
references around the field and solves a small damped system per grid position, whose sums are
weighted by that position's interpolation kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vcfilter.fused import fused
from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.nn.native import is_native
from vcfilter.nn.warp import (
    constant,
    enlarge,
    gradients,
    kernel_sums,
    neighbour_mean,
    warp_field,
    warp_luma,
)

ROUNDS = 2  # of the decoder
DOUBT = 2.0  # how many times the mismatch counts as noise: its errors are not independent
# Damping per sample in squared 8-bit units, for displacement and blend: keeps fields smooth.
FIT_DAMPING = (30.0, 30.0, 30.0, 30.0, 500.0)
# Pull towards the neighbours' mean, likewise: a field that runs smoothly costs fewer bits.
FIT_PULL = (13.0, 13.0, 13.0, 13.0, 832.0)
BLOCK_DAMPING, BLOCK_PULL = (
    tuple(BLOCK * BLOCK * each for each in of) for of in (FIT_DAMPING, FIT_PULL)
)
FIELDS = len(FIT_DAMPING)
SQUARE = tuple((i, j) for i in range(FIELDS) for j in range(FIELDS))
PAIRS = tuple((i, j) for i, j in SQUARE if i <= j)  # of components, in the order of their sums
FIT_STEP = 1.5  # samples, the largest correction of one step

Warped = tuple[Tensor, Tensor | None]
"""Luma of both references, moved by a field; None: there is one."""


def refine(field: Tensor, left: Tensor, right: Tensor, distances: Tensor, step: Tensor) -> Tensor:
    """The field, corrected so that both moved references agree better.

    What is at p in the picture moves in a straight line, so one correction vector per position,
    of the motion from one reference to the other, serves both displacements. It is damped by the
    mismatch that is there: where the references disagree for other reasons (noise, occlusion),
    the coded field stays.

    Args:
        field: (B, 5, h, w), see `MotionCodec`. left, right: (B, 1, H/2, W/2) luma of the references
            at half the size.
        distances: (B, 2) signed, neither 0, not equal.
        step: (B,) the field's expected error in luma samples.
    """
    size = BLOCK // 2
    apart = (distances[:, 1:] - distances[:, :1]).to(field.dtype)
    share = (distances.to(field.dtype) / apart)[:, :, None, None]
    doubt = (DOUBT / (step / 2) ** 2)[:, None, None]
    moves, blend = field[:, :4], field[:, 4:]
    for _ in range(ROUNDS):
        a = warp_field(left, moves[:, :2], size, "bilinear", 0.5)
        b = warp_field(right, moves[:, 2:], size, "bilinear", 0.5)
        moves = _agreeing(moves, _agreement(a, b, share, size), share, doubt, 2.0 * size * size)
    return torch.cat([moves, blend], dim=1)


def _agreement(a: Tensor, b: Tensor, share: Tensor, size: int) -> Tensor:
    """Sums of products of what moves a - b and of a - b itself (B, 6, h, w); see `refine`."""
    if is_native(a, b, share):
        from vcfilter._native import motion  # late: training needs none

        sums = []
        for one, other, of in zip(a[:, 0], b[:, 0], share, strict=True):
            left, right = of.flatten().tolist()
            sums.append(motion.agreement(one.numpy(), other.numpy(), left, right, size))
        return torch.from_numpy(np.stack(sums))
    return kernel_sums(_mismatch_products(a, b, share), size)


@fused
def _mismatch_products(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The products (B, 6, H, W) that `_agreement` sums."""
    (ax, ay), (bx, by), error = gradients(a), gradients(b), a - b
    to_left, to_right = share[:, :1], share[:, 1:]
    jx, jy = to_left * ax - to_right * bx, to_left * ay - to_right * by
    return torch.cat([jx * jx, jx * jy, jy * jy, jx * error, jy * error, error * error], dim=1)


@fused
def _agreeing(moves: Tensor, sums: Tensor, share: Tensor, doubt: Tensor, least: float) -> Tensor:
    """Displacements (B, 4, h, w) after a step of `refine`; least: damping where all agrees."""
    xx, xy, yy, ex, ey, ee = sums.unbind(1)
    damping = least + doubt * ee
    xx, yy = xx + damping, yy + damping
    scale = -2.0 / (xx * yy - xy * xy)  # -1, and from half the size to luma samples
    move = torch.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], dim=1)
    move = move.clamp(-2, 2)
    return moves + torch.cat([share[:, :1] * move, share[:, 1:] * move], dim=1)


def linearise(
    x: Tensor, left: Tensor, right: Tensor | None, field: Tensor
) -> tuple[Tensor, Tensor]:
    """The blend of the moved references as a linear function of the field, against the picture.

    Args:
        x, left, right: (B, 1, H, W) luma; right is None where there is one reference only. Both may
            have the samples between, see `warp.with_halves`.
        field: (B, 5, h, w).

    Returns:
        For each position the squared error's second half derivative (B, h, w, 5, 5) by the
        field's components, and its negative first half derivative (B, h, w, 5).
    """
    sums = _products(x, *_warped(field, left, right), field[:, 4:])
    return _hessian(sums), sums[:, len(PAIRS) :].permute(0, 2, 3, 1)


def _hessian(sums: Tensor) -> Tensor:
    """(B, h, w, 5, 5) of the sums (B, 20, h, w) of `_products`."""
    order = constant(tuple(map(_pair, *zip(*SQUARE, strict=True))), torch.int64, sums.device)
    return sums.index_select(1, order).unflatten(1, (FIELDS, FIELDS)).permute(0, 3, 4, 1, 2)


def _pair(i: int, j: int) -> int:
    """Which of the sums is that of two components' products."""
    return PAIRS.index((min(i, j), max(i, j)))


def warped_by(field: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both references moved by the displacements (B, 4 or more, h, w) of a field."""
    return warp_luma(left, field[:, :2], BLOCK), warp_luma(right, field[:, 2:4], BLOCK)


def _warped(field: Tensor, left: Tensor, right: Tensor | None) -> Warped:
    """The same of one or two references, see `linearise`."""
    if right is None:
        return warp_luma(left, field[:, :2], BLOCK), None
    return warped_by(field, left, right)


def _products(x: Tensor, a: Tensor, b: Tensor | None, weight: Tensor) -> Tensor:
    """Sums (B, 20, h, w) of products of the blend's derivatives by the field, and with the error.

    Args:
        x, a, b: (B, 1, H, W) luma of the picture and the moved references. weight: (B, 1, h, w).
    """
    if is_native(x, a, weight):
        from vcfilter._native import motion  # late: training needs none

        seconds = [None] * len(x) if b is None else b[:, 0].numpy()
        planes = (t[:, 0].contiguous().numpy() for t in (x, a, weight))
        parts = zip(*planes, seconds, strict=True)
        return torch.from_numpy(np.stack([motion.normal(p, q, r, w) for p, q, w, r in parts]))
    alpha = torch.zeros_like(x) if b is None else enlarge((weight + 1) / 2, BLOCK)
    return kernel_sums(_blend_products(x, a, a if b is None else b, alpha), BLOCK)


@fused
def _blend_products(x: Tensor, a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """The products (B, 20, H, W) that `_products` sums."""
    half = (b - a) / 2
    error = x - a - alpha * 2 * half
    columns = [(1 - alpha) * s for s in gradients(a)] + [alpha * s for s in gradients(b)] + [half]
    products = [columns[i] * columns[j] for i, j in PAIRS] + [c * error for c in columns]
    return torch.cat(products, dim=1)


def solve(normal: list[list[Tensor]], target: list[Tensor]) -> list[Tensor]:
    """The solutions of many small symmetric, positive definite systems at once, by elimination.

    Args:
        normal: rows of the matrices' entries; those below the diagonal are not read.
        target: right sides.
    """
    size = len(target)
    upper, wanted = [list(row) for row in normal], list(target)
    for i in range(size):
        inverse = 1 / upper[i][i]
        for k in range(i + 1, size):
            share = upper[i][k] * inverse
            for j in range(k, size):
                upper[k][j] = upper[k][j] - share * upper[i][j]
            wanted[k] = wanted[k] - share * wanted[i]
    found = list(wanted)
    for i in reversed(range(size)):
        for j in range(i + 1, size):
            found[i] = found[i] - upper[i][j] * found[j]
        found[i] = found[i] / upper[i][i]
    return found


def gauss_newton(
    x: Tensor,
    left: Tensor,
    right: Tensor | None,
    field: Tensor,
    rounds: int,
    warped: Warped | None = None,
) -> tuple[Tensor, Tensor]:
    """The field, corrected so that the blend of the moved references fits the picture better.

    Args:
        rounds: at least 1. warped: the references, warped by the field, where that is known. The
            rest: see `linearise`.

    Returns:
        The field, and the second half derivatives (B, h, w, 5, 5) before the last correction.
    """
    for _ in range(rounds):
        sums = _products(x, *(warped or _warped(field, left, right)), field[:, 4:])
        field, warped = _fitted(field, sums), None
    return field, _hessian(sums)


def _fitted(field: Tensor, sums: Tensor) -> Tensor:
    """The field (B, 5, h, w) after a step; sums: of `_products`."""
    if is_native(field, sums):
        from vcfilter._native import motion  # late: training needs none

        each = zip(field.contiguous().numpy(), sums.contiguous().numpy(), strict=True)
        found = [motion.fitted(f, s, BLOCK_DAMPING, BLOCK_PULL, FIT_STEP) for f, s in each]
        return torch.from_numpy(np.stack(found))
    return _corrected(field, sums, neighbour_mean(field))


@fused
def _corrected(field: Tensor, sums: Tensor, near: Tensor) -> Tensor:
    """What `_fitted` gives; near: see `neighbour_mean`."""
    drawn = near - field
    normal = [[sums[:, _pair(i, j)] for j in range(FIELDS)] for i in range(FIELDS)]
    target = [sums[:, len(PAIRS) + i] for i in range(FIELDS)]
    for i, (damping, pull) in enumerate(zip(BLOCK_DAMPING, BLOCK_PULL, strict=True)):
        normal[i][i] = normal[i][i] + (damping + pull)
        target[i] = target[i] + pull * drawn[:, i]
    change = torch.stack(solve(normal, target), dim=1)
    moves = field[:, :4] + change[:, :4].clamp(-FIT_STEP, FIT_STEP)
    return torch.cat([moves, (field[:, 4:] + change[:, 4:]).clamp(-1, 1)], dim=1)
