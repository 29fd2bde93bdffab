"""Warping by displacement fields, and what belongs to it: interpolation, gradients, sums."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.fused import asked, fused
from vcfilter.nn.native import is_native


@lru_cache(64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, (N,), made once: they are not sent there again, nor waited for."""
    with torch.inference_mode(False):  # training may use them, too
        return torch.tensor(values, dtype=dtype, device=device)


@fused
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
    kernel = constant(tuple(n / 64 for n in HALFWAY), plane.dtype, plane.device)
    down = F.conv2d(F.pad(plane, (0, 0, 3, 4), mode="replicate"), kernel.view(1, 1, 8, 1))
    tall = torch.stack([plane, down], dim=3).flatten(2, 3)
    right = F.conv2d(F.pad(tall, (3, 4, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 8))
    return torch.stack([tall, right], dim=4).flatten(3, 4)


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
    grid = grid - constant((0.5 / columns, 0.5 / rows), grid.dtype, grid.device)
    return F.grid_sample(halves, grid, "bicubic", "border", align_corners=False)


def gradients(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (B, 1, H, W) along x and y; the border repeats."""
    p = F.pad(plane, (1, 1, 1, 1), mode="replicate")
    dx = (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / 2
    return dx, (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / 2


def kernel_sums(maps: Tensor, size: int) -> Tensor:
    """Maps (B, count, H, W) summed per position of a grid 1/size as fine: (B, count, h, w).

    Samples count with the weight that bilinear interpolation gives the position at them.
    """
    if asked():  # as two matrix products, which are many times as fast on a GPU
        down, across = (_interpolation_matrix(n, size, maps.device) for n in maps.shape[2:])
        return down.T @ (maps @ across)
    kernel = _interpolation_kernel(size, maps.dtype, maps.device)
    sums = F.conv2d(maps.flatten(0, 1)[:, None], kernel, stride=size, padding=size // 2)
    return sums.unflatten(0, maps.shape[:2])[:, :, 0]


@lru_cache(8)
def _interpolation_kernel(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, 2 size, 2 size) weights of the samples around a position."""
    with torch.inference_mode(False):
        ramp = (torch.arange(size, dtype=dtype, device=device) + 0.5) / size
        kernel = torch.cat([ramp, ramp.flip(0)])
        return torch.outer(kernel, kernel)[None, None]


@lru_cache(16)
def _interpolation_matrix(count: int, size: int, device: torch.device) -> Tensor:
    """(count, count/size) the same weights along one side, outside of it counts as zero."""
    with torch.inference_mode(False):
        ramp = (torch.arange(size, device=device) + 0.5) / size
        kernel = torch.cat([ramp, ramp.flip(0)])[None, None]
        impulses = torch.eye(count, device=device)[:, None]
        return F.conv1d(impulses, kernel, stride=size, padding=size // 2)[:, 0]


def neighbour_mean(field: Tensor) -> Tensor:
    """(B, C, h, w): the mean of each position's eight neighbours, nearer ones twice."""
    values = tuple((3 - n) / 12 if n else 0.0 for n in (2, 1, 2, 1, 0, 1, 2, 1, 2))
    kernel = constant(values, field.dtype, field.device).view(3, 3).expand(field.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(field, (1, 1, 1, 1), mode="replicate"), kernel, groups=field.shape[1])


@fused
def median3(field: Tensor) -> Tensor:
    """(B, C, h, w): medians over 3x3 positions; the border repeats."""
    rows, columns = field.shape[2:]
    p = F.pad(field, (1, 1, 1, 1), mode="replicate")
    low, middle, high = sorted3(*(p[..., i : i + rows, :] for i in range(3)))

    def across(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return sorted3(*(t[..., j : j + columns] for j in range(3)))

    # The largest of the columns' least, the median of their medians, the least of their largest.
    return sorted3(across(low)[2], across(middle)[1], across(high)[0])[1]


def sorted3(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least, the median and the largest of three."""
    less, more = torch.minimum(a, b), torch.maximum(a, b)
    median = torch.maximum(less, torch.minimum(more, c))
    return torch.minimum(less, c), median, torch.maximum(more, c)
