"""Gauss-Newton steps on motion fields: the encoder's towards the picture, the decoder's without it.

A field lies on the 1/8 grid and is interpolated bilinearly. Each step linearises the moved
references around the field and solves a small damped system per grid position, whose sums are
weighted by that position's interpolation kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.layers import BLOCK

ROUNDS = 2  # of the decoder
DOUBT = 2.0  # how many times the mismatch counts as noise: its errors are not independent
# Damping per sample in squared 8-bit units, for displacement and blend: keeps fields smooth.
FIT_DAMPING = (30.0, 30.0, 30.0, 30.0, 500.0)
# Pull towards the neighbours' mean, likewise: a field that runs smoothly costs fewer bits.
FIT_PULL = (13.0, 13.0, 13.0, 13.0, 832.0)
FIELDS = len(FIT_DAMPING)
FIT_STEP = 1.5  # samples, the largest correction of one step


def sampling_grid(flow: Tensor) -> Tensor:
    """Displacements (B, 2, H, W) in samples to grid_sample's coordinates (B, H, W, 2)."""
    rows, columns = flow.shape[-2:]
    x = torch.arange(columns, device=flow.device, dtype=flow.dtype)
    y = torch.arange(rows, device=flow.device, dtype=flow.dtype)
    gx = (flow[:, 0] + x) * (2.0 / columns) + (1.0 / columns - 1.0)
    gy = (flow[:, 1] + y[:, None]) * (2.0 / rows) + (1.0 / rows - 1.0)
    return torch.stack([gx, gy], dim=-1)


def enlarge(field: Tensor, factor: int) -> Tensor:
    """(B, C, h, w) interpolated bilinearly to factor times the size."""
    return F.interpolate(field, scale_factor=factor, mode="bilinear", align_corners=False)


def moved(plane: Tensor, flow: Tensor, mode: str) -> Tensor:
    """A plane (B, C, H, W) sampled at p + flow(p), flow (B, 2, H, W); its border repeats."""
    return F.grid_sample(plane, sampling_grid(flow), mode, "border", align_corners=False)


def slopes(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y, (B, 1, H, W) each."""
    p = F.pad(plane, (1, 1, 1, 1), mode="replicate")
    dx = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / 2
    return dx, (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / 2


def gather(maps: list[Tensor], size: int) -> Tensor:
    """Maps (B, 1, H, W) to their kernel-weighted sums per grid position: (B, count, h, w)."""
    ramp = (torch.arange(size, dtype=maps[0].dtype, device=maps[0].device) + 0.5) / size
    kernel = torch.cat([ramp, ramp.flip(0)])
    kernel = torch.outer(kernel, kernel)[None, None]
    stacked = torch.stack([m[:, 0] for m in maps], dim=1).flatten(0, 1)[:, None]
    sums = F.conv2d(stacked, kernel, stride=size, padding=size // 2)
    return sums.unflatten(0, (maps[0].shape[0], len(maps)))[:, :, 0]


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
        flow = enlarge(moves, size) / 2
        a, b = moved(left, flow[:, :2], "bilinear"), moved(right, flow[:, 2:], "bilinear")
        (ax, ay), (bx, by), error = slopes(a), slopes(b), a - b
        jx, jy = to_left * ax - to_right * bx, to_left * ay - to_right * by
        products = [jx * jx, jx * jy, jy * jy, jx * error, jy * error, error * error]
        xx, xy, yy, ex, ey, ee = gather(products, size).unbind(1)
        damping = 2.0 * size * size + doubt * ee
        xx, yy = xx + damping, yy + damping
        scale = -2.0 / (xx * yy - xy * xy)  # -1, and from half the size to luma samples
        move = torch.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], dim=1)
        move = move.clamp(-2, 2)
        moves = moves + torch.cat([to_left * move, to_right * move], dim=1)
    return torch.cat([moves, blend], dim=1)


def around(field: Tensor) -> Tensor:
    """Each position's mean of its eight neighbours (nearer ones twice); the border repeats."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]], device=field.device)
    kernel = (kernel / kernel.sum()).expand(field.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(field, (1, 1, 1, 1), mode="replicate"), kernel, groups=field.shape[1])


def linearise(
    x: Tensor, left: Tensor, right: Tensor | None, field: Tensor
) -> tuple[Tensor, Tensor]:
    """The blend of the moved references as a linear function of the field, against the picture.

    Args:
        x, left, right: (B, 1, H, W) luma; right is None where there is one reference only.
        field: (B, 5, h, w).

    Returns:
        For each position the squared error's second half derivative (B, h, w, 5, 5) by the
        field's components, and its negative first half derivative (B, h, w, 5).
    """
    a = moved(left, enlarge(field[:, :2], BLOCK), "bicubic")
    alpha = enlarge((field[:, 4:] + 1) / 2, BLOCK)
    b = a
    if right is None:
        alpha = torch.zeros_like(alpha)
    else:
        b = moved(right, enlarge(field[:, 2:4], BLOCK), "bicubic")
    half = (b - a) / 2
    error = x - a - alpha * 2 * half
    columns = [(1 - alpha) * s for s in slopes(a)] + [alpha * s for s in slopes(b)] + [half]
    pairs = [(i, j) for i in range(FIELDS) for j in range(i, FIELDS)]
    sums = gather([columns[i] * columns[j] for i, j in pairs] + [c * error for c in columns], BLOCK)
    normal = sums.new_zeros(*sums.shape[:1], *sums.shape[2:], FIELDS, FIELDS)
    for k, (i, j) in enumerate(pairs):
        normal[..., i, j] = normal[..., j, i] = sums[:, k]
    return normal, sums[:, len(pairs) :].permute(0, 2, 3, 1)


def fit(
    x: Tensor, left: Tensor, right: Tensor | None, field: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """The field, corrected so that the blend of the moved references fits the picture better.

    Args:
        rounds: at least 1. The rest: see `linearise`.

    Returns:
        The field, and the second half derivatives (B, h, w, 5, 5) before the last correction.
    """
    damping = torch.tensor(FIT_DAMPING, device=x.device) * BLOCK * BLOCK
    pull = torch.tensor(FIT_PULL, device=x.device) * BLOCK * BLOCK
    for _ in range(rounds):
        normal, wanted = linearise(x, left, right, field)
        drawn = pull[:, None, None] * (around(field) - field)
        wanted = wanted + drawn.permute(0, 2, 3, 1)
        change = torch.linalg.solve(normal + torch.diag(damping + pull), wanted[..., None])
        change = change[..., 0].permute(0, 3, 1, 2)
        moves = field[:, :4] + change[:, :4].clamp(-FIT_STEP, FIT_STEP)
        field = torch.cat([moves, (field[:, 4:] + change[:, 4:]).clamp(-1, 1)], dim=1)
    return field, normal
