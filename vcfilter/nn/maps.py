"""Positions of maps (B, C, H, W) read and written so that gradients take few operators.

What PyTorch derives for slices and index operators fills a map with zeros for each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def by_position(maps: Tensor) -> Tensor:
    """(B, C, H, W) as (B, HW, C), channels last in memory; of such maps no copy is made."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def gather(maps: Tensor, where: Tensor) -> Tensor:
    """(B, C, H, W) at (N,) flat positions: (B, N, C)."""
    return by_position(maps).index_select(1, where)


def write(maps: Tensor, low: int, chosen: Tensor, at: Tensor) -> None:
    """Write (B, N, count) at (N,) flat positions and the channels from low on, without gradients.

    Args:
        maps: (B, C, H, W), channels last in memory.
    """
    batch, channels, rows, columns = maps.shape
    every = maps.permute(0, 2, 3, 1).view(batch, rows * columns, channels)
    every[..., low : low + chosen.shape[2]].index_copy_(1, at, chosen)


def take(maps: Tensor, low: int, high: int, at: Tensor) -> Tensor:
    """(B, N, high - low) at (N,) flat positions and some channels."""
    found: Tensor = _Take.apply(  # type: ignore[no-untyped-call]
        maps, low, high, at
    )
    return found


def lattice(maps: Tensor, high: int, stride: int) -> Tensor:
    """The channels up to high, at every stride-th row and column; a view."""
    found: Tensor = _Lattice.apply(  # type: ignore[no-untyped-call]
        maps, high, stride
    )
    return found


def put(maps: Tensor, low: int, chosen: Tensor, at: Tensor) -> Tensor:
    """The maps after `write`.

    Args:
        maps: what stands where it is written is constant: no gradient is taken from it.
    """
    found: Tensor = _Put.apply(  # type: ignore[no-untyped-call]
        maps, low, chosen, at
    )
    return found


def _zeros(shape: torch.Size, like: Tensor) -> Tensor:
    empty = torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
    return empty.zero_()


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, low: int, high: int, at: Tensor) -> Tensor:
        ctx.low, ctx.at, ctx.shape = low, at, maps.shape
        return gather(maps[:, low:high], at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps = _zeros(ctx.shape, gradient)
        write(maps, ctx.low, gradient, ctx.at)
        return maps, None, None, None


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, high: int, stride: int) -> Tensor:
        ctx.high, ctx.stride, ctx.shape = high, stride, maps.shape
        return maps[:, :high, ::stride, ::stride]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps = _zeros(ctx.shape, gradient)
        maps[:, : ctx.high, :: ctx.stride, :: ctx.stride] = gradient
        return maps, None, None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, low: int, chosen: Tensor, at: Tensor) -> Tensor:
        ctx.low, ctx.at, ctx.count = low, at, chosen.shape[2]
        maps = maps.clone()
        write(maps, low, chosen, at)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chosen = gather(gradient[:, ctx.low : ctx.low + ctx.count], ctx.at)
        return gradient, None, chosen, None
