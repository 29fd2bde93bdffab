"""What a frame costs: squared error, PSNR, and estimates of what coding it will take."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.frames import VideoFormat
from vcfilter.models.hierarchical.blocks import (
    CHANNELS,
    SIDES,
    Planes,
    Size,
    cropped,
    dct_matrix,
    latent_order,
    picture_dct,
    to_blocks,
    within,
    zigzag,
)
from vcfilter.models.hierarchical.conditions import chroma_weight, quantiser_step
from vcfilter.models.hierarchical.values import Picture
from vcfilter.nn.native import conv2d, is_native

# Of a coefficient u in steps that is coded rather than dropped: its cost at 1, and per doubling.
CODED_COST, BITS_COST = 0.7, 0.46  # 0.4 to 1 and 0.46 to 0.6 choose alike on training clips


def rd_weight(qp: int) -> float:
    """Lagrangian: squared error per luma sample that one bit per luma sample is worth."""
    return float(QUANTISER_LAMBDA * 2.0 ** ((qp - 4) / 3))


def distortion(x: Picture, planes: Planes, qp: int) -> float:
    """Squared error per luma sample of the picture, chroma weighted (8-bit units)."""
    pairs = zip(cropped(x.planes, x.size), cropped(planes, x.size), strict=True)
    y, u, v = torch.stack([((a - b) ** 2).sum() for a, b in pairs]).tolist()
    weight = float(chroma_weight(quantiser_step(torch.tensor(qp))))
    return float((y + weight * (u + v)) / (x.size[0] * x.size[1]))


class ResidualCost:
    """What coding the error of a prediction will cost, distortion plus weighted bits.

    An estimate in units of `distortion`: each DCT coefficient of the error, in steps, is
    dropped or costs its rounding error and bits that grow with its logarithm.

    Args:
        base: (1,) base step. steps: (1, 96) quantiser steps; see `VideoNet.quantiser`.
    """

    def __init__(self, base: Tensor, steps: Tensor) -> None:
        self._steps, self._square = steps, float(base**2)
        self._weights: list[npt.NDArray[np.float32]] | None = None

    def of(self, x: Picture, predicted: Planes) -> float:
        """The estimate for a prediction. On a CPU the native loop works, the same rule."""
        if is_native(self._steps, *x.planes, *predicted):
            cost = self._natively(x, predicted)
        else:
            inside = within(x.planes, predicted, x.size)
            y, u, v = (a - b for a, b in zip(inside, predicted, strict=True))
            error = conv2d(to_blocks(y, u, v), _dct_on(y.device), None, (0, 0), 1)
            u = error / self._steps[:, :, None, None]
            high = CODED_COST + BITS_COST * torch.log2(u.abs().clamp(min=1))
            cost = float(torch.minimum(u * u, high).sum())
        return cost * self._square / (x.size[0] * x.size[1])

    def _natively(self, x: Picture, predicted: Planes) -> float:
        from vcfilter._native import cost  # late: training needs none

        self._weights = self._weights or _weights(self._steps)
        half = (x.size[0] + 1) // 2, (x.size[1] + 1) // 2
        total = 0.0
        for plane, other, size, basis, weights in zip(
            x.planes, predicted, (x.size, half, half), _bases(), self._weights, strict=True
        ):
            a, b = (t[0, 0].contiguous().numpy() for t in (plane, other))
            total += cost.block_cost(a, b, *size, basis, weights, CODED_COST, BITS_COST)
        return total


@lru_cache(4)
def _dct_on(device: torch.device) -> Tensor:
    """(96, 96, 1, 1) of `picture_dct` on a device."""
    with torch.inference_mode(False):
        return picture_dct()[:, :, None, None].to(device)


@lru_cache(1)
def _bases() -> tuple[npt.NDArray[np.float32], ...]:
    """(8, 8) of y, u and v: a DCT of 8, and two of 4 beside each other."""
    twice = np.kron(np.eye(2), dct_matrix(4).numpy()).astype(np.float32)
    return dct_matrix(8).float().numpy(), twice, twice


def _weights(steps: Tensor) -> list[npt.NDArray[np.float32]]:
    """(8, 8) inverse steps of y, u and v by frequency, as of `_bases`."""
    by_plane = np.empty(CHANNELS, np.float32)
    by_plane[latent_order()] = 1 / steps[0].numpy()
    found = []
    for part, side in zip(np.split(by_plane, (64, 80)), SIDES, strict=True):
        grid = np.empty((side, side), np.float32)
        grid[tuple(zip(*zigzag(side), strict=True))] = part
        found.append(np.tile(grid, (8 // side, 8 // side)))
    return found


def psnr(x: Picture, planes: Planes, video_format: VideoFormat) -> float:
    """PSNR in dB, planes weighted 6:1:1, over the cropped frame as decoded; 100 at most."""
    scale, peak = (4.0, 1023 / 4) if video_format.bit_depth == 10 else (1.0, 255.0)
    errors = []
    for a, b, (rows, columns) in zip(x.planes, planes, plane_sizes(video_format), strict=True):
        shown = torch.floor(b[..., :rows, :columns] * scale + 0.5) / scale
        errors.append(((a[..., :rows, :columns] - shown) ** 2).mean())
    total = 0.0
    for mse, weight in zip(torch.stack(errors).tolist(), (6, 1, 1), strict=True):
        total += weight * min(100.0, 10 * np.log10(peak**2 / max(mse, 1e-12)))
    return float(total / 8)


def plane_sizes(video_format: VideoFormat) -> tuple[Size, Size, Size]:
    """Rows and columns of y, u and v as they are shown."""
    columns, rows = video_format.chroma_size
    return (video_format.height, video_format.width), (rows, columns), (rows, columns)
