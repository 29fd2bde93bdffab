"""The loop filter in training: fitted to each reconstruction of a batch, no bit counted."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.fused import fused
from vcfilter.models.hierarchical.loop_filter import (
    BUSY_UNIT,
    CHROMA,
    EACH,
    LIMIT,
    MAIN,
    UNIT,
    features_of,
)
from vcfilter.train.data import Planes

STIFF = 1e-4  # beside features of unit size; keeps coefficients small that say the same


class Fitted:
    """What a loop filter makes of reconstructions of a batch, as an encoder's `Filters` does.

    Coefficients come from least squares and have no gradient; samples have one through them.

    Args:
        x: the originals, (B, 1, H, W) luma and two (B, 1, H/2, W/2).
    """

    def __init__(self, x: Planes) -> None:
        self._x = x

    def filtered(self, planes: Planes) -> Planes:
        """Filtered planes, which may pass 0 and 255."""
        guide = F.avg_pool2d(planes[0], 2)
        both = torch.cat([planes[1], planes[2]])
        chroma = features_of(both, torch.cat([guide, guide]))[:, :, 0]  # (18, 2 B, h, w)
        errors = [(self._x[i] - planes[i]).detach()[:, 0] for i in (1, 2)]
        batch = len(planes[0])
        products, wanted = sums(chroma.detach(), torch.cat(errors))
        limit = chroma.new_full((CHROMA,), LIMIT / UNIT)
        shared = least_squares(*both_planes(products, wanted, batch), limit)
        main, cross = shared[:, :MAIN], shared[:, MAIN:]
        own = [torch.cat([main, each], 1) for each in cross.chunk(2, 1)]
        moved = weighted(chroma, torch.cat(own))
        return (
            filtered_luma(self._x[0], planes[0]),
            planes[1] + moved[:batch, None],
            planes[2] + moved[batch:, None],
        )


def filtered_luma(x: Tensor, luma: Tensor) -> Tensor:
    """(B, 1, H, W) what `Fitted` makes of luma, whose original is x."""
    features = features_of(luma, None)[:, :, 0]
    units = zip((MAIN, EACH), (UNIT, BUSY_UNIT), strict=True)
    limit = torch.cat([luma.new_full((count,), LIMIT / unit) for count, unit in units])
    weights = least_squares(*sums(features.detach(), (x - luma).detach()[:, 0]), limit)
    return luma + weighted(features, weights)[:, None]


def weighted(features: Tensor, weights: Tensor) -> Tensor:
    """(B, H, W) sums of features (N, B, H, W) times weights (B, N)."""
    return (features * weights.T[:, :, None, None]).sum(0)


def sums(features: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """((B, N, N) products of features (N, B, H, W), (B, N) with the error (B, H, W))."""
    flat = features.flatten(2).transpose(0, 1)  # (B, N, HW)
    return flat @ flat.transpose(1, 2), (flat @ error.flatten(1)[:, :, None])[..., 0]


def both_planes(products: Tensor, wanted: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sums of both chroma planes, (2 B, ...) U first, the last coefficients of each apart."""
    put_u, put_v = places(products.device)
    (u, v), (seen_u, seen_v) = products.split(batch), wanted.split(batch)
    found = put_u.T @ u @ put_u + put_v.T @ v @ put_v
    return found, seen_u @ put_u + seen_v @ put_v


@cache
def places(device: torch.device) -> tuple[Tensor, Tensor]:
    """(18, 24) each: where the coefficients of U and of V stand among those of both.

    Kept, since a captured step may not bring numbers from the host.
    """
    every = torch.eye(CHROMA)
    main, u, v = every.split([MAIN, EACH, EACH])
    return torch.cat([main, u]).to(device), torch.cat([main, v]).to(device)


def least_squares(products: Tensor, wanted: Tensor, limit: Tensor) -> Tensor:
    """(B, N) coefficients by least squares.

    Args:
        products: (B, N, N). wanted: (B, N). limit: (N,) of their magnitudes.
    """
    count = wanted.shape[1]
    size = products.diagonal(dim1=1, dim2=2).clamp(min=1e-3).sqrt()  # (B, N)
    system = products / (size[:, :, None] * size[:, None])
    unit = torch.eye(count, device=system.device)
    system = system + STIFF * unit
    # Positive definite: elimination needs no pivots, and a captured step no library.
    rows = torch.cat([system, (wanted / size)[:, :, None]], dim=2)
    for i in range(count):
        rows = _eliminate(rows, rows[:, i : i + 1], unit[:, i])
    return torch.maximum(torch.minimum(rows[:, :, count] / size, limit), -limit)


@fused
def _eliminate(rows: Tensor, row: Tensor, own: Tensor) -> Tensor:
    """One step of elimination: (B, N, N + 1) with a row (B, 1, N + 1) and which one it is (N,)."""
    own = own[:, None]
    pivot = (row[:, :, :-1] * own.T).sum(2, keepdim=True)
    column = (rows[:, :, :-1] * own.T).sum(2, keepdim=True)
    return rows - (column - own) * (row / pivot)  # that row becomes row / pivot
