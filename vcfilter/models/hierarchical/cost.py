"""What a frame costs: squared error, PSNR, and estimates of what coding it will take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.frames import VideoFormat
from vcfilter.models.hierarchical.blocks import Planes, Size, cropped, to_blocks, within
from vcfilter.models.hierarchical.conditions import chroma_weight, quantiser_step
from vcfilter.models.hierarchical.values import Picture
from vcfilter.nn.native import conv2d

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


def residual_cost(x: Picture, predicted: Planes, dct: Tensor, steps: Tensor, base: Tensor) -> float:
    """What coding the error of a prediction will cost, distortion plus weighted bits.

    An estimate in units of `distortion`: each DCT coefficient of the error, in steps, is
    dropped or costs its rounding error and bits that grow with its logarithm.

    Args:
        dct: (96, 96, 1, 1) of blocks. steps: (1, 96) quantiser steps. base: (1,) base step.
    """
    inside = within(x.planes, predicted, x.size)
    y, u, v = (a - b for a, b in zip(inside, predicted, strict=True))
    error = conv2d(to_blocks(y, u, v), dct, None, (0, 0), 1)
    u = error / steps[:, :, None, None]
    cost = torch.minimum(u * u, CODED_COST + BITS_COST * torch.log2(u.abs().clamp(min=1)))
    return float(cost.sum() * base**2) / (x.size[0] * x.size[1])


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
