"""Gauss-Newton steps on motion fields: the encoder's towards the picture, the decoder's without it.

A field lies on the 1/8 grid and is interpolated bilinearly. Each step linearises the moved
references around the field and solves a small damped system per grid position, whose sums are
weighted by that position's interpolation kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.nn.native import is_native
from vcfilter.nn.warp import enlarge, gradients, kernel_sums, neighbour_mean, warp_field, warp_luma

ROUNDS = 2  # of the decoder
DOUBT = 2.0  # how many times the mismatch counts as noise: its errors are not independent
# Damping per sample in squared 8-bit units, for displacement and blend: keeps fields smooth.
FIT_DAMPING = (30.0, 30.0, 30.0, 30.0, 500.0)
# Pull towards the neighbours' mean, likewise: a field that runs smoothly costs fewer bits.
FIT_PULL = (13.0, 13.0, 13.0, 13.0, 832.0)
FIELDS = len(FIT_DAMPING)
FIT_STEP = 1.5  # samples, the largest correction of one step


def refine(field: Tensor, left: Tensor, right: Tensor, distances: Tensor, step: Tensor) -> Tensor:
    """The field, corrected so that both moved references agree better.

    What is at p in the picture moves in a straight line, so one correction vector per position,
    of the motion from one reference to the other, serves both displacements. It is damped by the
    mismatch that is there: where the references disagree for other reasons (noise, occlusion),
    the coded field stays. Works at half the size.

    Args:
        field: (B, 5, h, w), see `MotionCodec`. left, right: (B, 1, H, W) luma of the references.
        distances: (B, 2) signed, neither 0, not equal.
        step: (B,) the field's expected error in luma samples.
    """
    left, right = F.avg_pool2d(left, 2), F.avg_pool2d(right, 2)
    size = BLOCK // 2
    apart = (distances[:, 1:] - distances[:, :1]).to(field.dtype)
    share = (distances.to(field.dtype) / apart)[:, :, None, None]
    to_left, to_right = share[:, :1], share[:, 1:]
    doubt = (DOUBT / (step / 2) ** 2)[:, None, None]
    moves, blend = field[:, :4], field[:, 4:]
    for _ in range(ROUNDS):
        a = warp_field(left, moves[:, :2], size, "bilinear", 0.5)
        b = warp_field(right, moves[:, 2:], size, "bilinear", 0.5)
        xx, xy, yy, ex, ey, ee = _agreement(a, b, share, size).unbind(1)
        damping = 2.0 * size * size + doubt * ee
        xx, yy = xx + damping, yy + damping
        scale = -2.0 / (xx * yy - xy * xy)  # -1, and from half the size to luma samples
        move = torch.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], dim=1)
        move = move.clamp(-2, 2)
        moves = moves + torch.cat([to_left * move, to_right * move], dim=1)
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
    (ax, ay), (bx, by), error = gradients(a), gradients(b), a - b
    to_left, to_right = share[:, :1], share[:, 1:]
    jx, jy = to_left * ax - to_right * bx, to_left * ay - to_right * by
    return kernel_sums([jx * jx, jx * jy, jy * jy, jx * error, jy * error, error * error], size)


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
    a = warp_luma(left, field[:, :2], BLOCK)
    b = None if right is None else warp_luma(right, field[:, 2:4], BLOCK)
    pairs = [(i, j) for i in range(FIELDS) for j in range(i, FIELDS)]
    sums = _products(x, a, b, field[:, 4:])
    hessian = sums.new_zeros(*sums.shape[:1], *sums.shape[2:], FIELDS, FIELDS)
    for k, (i, j) in enumerate(pairs):
        hessian[..., i, j] = hessian[..., j, i] = sums[:, k]
    return hessian, sums[:, len(pairs) :].permute(0, 2, 3, 1)


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
    b = a if b is None else b
    half = (b - a) / 2
    error = x - a - alpha * 2 * half
    columns = [(1 - alpha) * s for s in gradients(a)] + [alpha * s for s in gradients(b)] + [half]
    pairs = [(i, j) for i in range(FIELDS) for j in range(i, FIELDS)]
    products = [columns[i] * columns[j] for i, j in pairs] + [c * error for c in columns]
    return kernel_sums(products, BLOCK)


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
    stiffness: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The field, corrected so that the blend of the moved references fits the picture better.

    Args:
        rounds: at least 1. stiffness: factor on what holds the field back.
        The rest: see `linearise`.

    Returns:
        The field, and the second half derivatives (B, h, w, 5, 5) before the last correction.
    """
    area = BLOCK * BLOCK * stiffness
    for _ in range(rounds):
        hessian, wanted = linearise(x, left, right, field)
        drawn = neighbour_mean(field) - field
        normal = [list(row.unbind(-1)) for row in hessian.unbind(-2)]
        target = list(wanted.unbind(-1))
        for i, (damping, pull) in enumerate(zip(FIT_DAMPING, FIT_PULL, strict=True)):
            normal[i][i] = normal[i][i] + (damping + pull) * area
            target[i] = target[i] + pull * area * drawn[:, i]
        change = torch.stack(solve(normal, target), dim=1)
        moves = field[:, :4] + change[:, :4].clamp(-FIT_STEP, FIT_STEP)
        field = torch.cat([moves, (field[:, 4:] + change[:, 4:]).clamp(-1, 1)], dim=1)
    return field, hessian
