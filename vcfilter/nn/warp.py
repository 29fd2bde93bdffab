"""Warping by displacement fields, and what belongs to it: interpolation, gradients, sums."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.nn.native import is_native


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


def warp(plane: Tensor, flow: Tensor, mode: str) -> Tensor:
    """A plane (B, C, H, W) sampled at p + flow(p), flow (B, 2, H, W); its border repeats.

    Args:
        mode: "bilinear" or "bicubic".
    """
    return F.grid_sample(plane, sampling_grid(flow), mode, "border", align_corners=False)


def warp_field(planes: Tensor, field: Tensor, factor: int, mode: str, scale: float = 1.0) -> Tensor:
    """Planes (B, C, H, W) moved by a field (B, 2, H/factor, W/factor) times scale, see `warp`.

    The field is interpolated bilinearly. On a CPU the native loop works, the same rule.
    """
    if factor % 4 or not is_native(planes, field):
        return warp(planes, enlarge(field, factor) * scale, mode)
    from vcfilter._native import motion  # late: training needs none

    moved = torch.empty(planes.shape)
    sources, targets, fields = planes.contiguous().numpy(), moved.numpy(), field.contiguous()
    for one, source, target in zip(fields.numpy(), sources, targets, strict=True):
        for plane, out in zip(source, target, strict=True):
            motion.warp(plane, one[0], one[1], scale, mode == "bicubic", out)
    return moved


HALFWAY = (-1, 4, -11, 40, 40, -11, 4, -1)
"""Weights over 64 of the samples around a place halfway between two, as HEVC's."""


def with_halves(plane: Tensor) -> Tensor:
    """A plane (B, 1, H, W) with the samples halfway between its own, (B, 1, 2 H, 2 W).

    Its own stand at even rows and columns; its border repeats. On a CPU the native loop works, the
    same rule.
    """
    batch, _, rows, columns = plane.shape
    if is_native(plane):
        from vcfilter._native import motion  # late: training needs none

        found = torch.empty(batch, 1, 2 * rows, 2 * columns)
        for source, out in zip(plane.contiguous().numpy(), found.numpy(), strict=True):
            motion.enlarge(source[0], out[0])
        return found
    kernel = _halfway(plane.device, plane.dtype)
    down = F.conv2d(F.pad(plane, (0, 0, 3, 4), mode="replicate"), kernel.view(1, 1, 8, 1))
    tall = torch.stack([plane, down], dim=3).flatten(2, 3)
    right = F.conv2d(F.pad(tall, (3, 4, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 8))
    return torch.stack([tall, right], dim=4).flatten(3, 4)


@cache
def _halfway(device: torch.device, dtype: torch.dtype) -> Tensor:
    """HALFWAY on a device; kept, since a captured step may not bring numbers from the host."""
    with torch.inference_mode(False):  # training may use it, too
        return torch.tensor(HALFWAY, device=device, dtype=dtype) / 64


def warp_luma(plane: Tensor, field: Tensor, factor: int) -> Tensor:
    """A plane, or one of `with_halves`, moved bicubically by a field (B, 2, H/factor, W/factor)."""
    if plane.shape[2] == factor * field.shape[2]:
        return warp_field(plane, field, factor, "bicubic")
    return warp_halves(plane, field, factor)


def warp_halves(halves: Tensor, field: Tensor, factor: int) -> Tensor:
    """A plane of `with_halves` (B, 1, 2 H, 2 W) moved bicubically by a field, (B, 1, H, W).

    Args:
        field: (B, 2, H/factor, W/factor) in the plane's own samples, see `warp_field`.
    """
    rows, columns = halves.shape[2] // 2, halves.shape[3] // 2
    if is_native(halves, field):
        from vcfilter._native import motion  # late: training needs none

        moved = torch.empty(len(halves), 1, rows, columns)
        each = halves.contiguous().numpy(), field.contiguous().numpy(), moved.numpy()
        for source, one, out in zip(*each, strict=True):
            motion.warp(source[0], one[0], one[1], 1.0, True, out[0])
        return moved
    # Of the coordinates of the plane's own samples; those of the halves begin half a step later.
    grid = sampling_grid(enlarge(field, factor))
    shift = torch.stack([torch.full_like(grid[0, 0, 0, 0], 0.5 / n) for n in (columns, rows)])
    grid = grid - shift
    return F.grid_sample(halves, grid, "bicubic", "border", align_corners=False)


def gradients(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (B, 1, H, W) along x and y; the border repeats."""
    p = F.pad(plane, (1, 1, 1, 1), mode="replicate")
    dx = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / 2
    return dx, (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / 2


def kernel_sums(maps: list[Tensor], size: int) -> Tensor:
    """Maps (B, 1, H, W) summed per position of a grid 1/size as fine: (B, count, h, w).

    Samples count with the weight that bilinear interpolation gives the position at them.
    """
    ramp = (torch.arange(size, dtype=maps[0].dtype, device=maps[0].device) + 0.5) / size
    kernel = torch.cat([ramp, ramp.flip(0)])
    kernel = torch.outer(kernel, kernel)[None, None]
    stacked = torch.stack([m[:, 0] for m in maps], dim=1).flatten(0, 1)[:, None]
    sums = F.conv2d(stacked, kernel, stride=size, padding=size // 2)
    return sums.unflatten(0, (maps[0].shape[0], len(maps)))[:, :, 0]


def neighbour_mean(field: Tensor) -> Tensor:
    """(B, C, h, w): the mean of each position's eight neighbours, nearer ones twice."""
    off = (torch.arange(3, device=field.device, dtype=field.dtype) - 1).abs()
    apart = off[:, None] + off
    kernel = ((3 - apart) * (apart > 0) / 12).expand(field.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(field, (1, 1, 1, 1), mode="replicate"), kernel, groups=field.shape[1])


def median3(field: Tensor) -> Tensor:
    """(B, C, h, w): medians over 3x3 positions; the border repeats."""
    rows, columns = field.shape[2:]
    p = F.pad(field, (1, 1, 1, 1), mode="replicate")
    shifts = [p[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return torch.stack(shifts).median(0).values
