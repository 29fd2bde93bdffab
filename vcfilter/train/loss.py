"""What training minimises: rate plus distortion, each frame relative to its own cost.

Another measure of distortion is another function here and a field in a phase's row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.models.hierarchical.conditions import chroma_weight
from vcfilter.train.data import Planes

# (reconstruction, original, quantiser steps (B,)) to distortion per luma sample (B,), in squared
# 8-bit units.
Distortion = Callable[[Planes, Planes, Tensor], Tensor]
FLOOR = 0.01  # bits per sample: below, a frame's cost no longer counts relative to itself


def squared_error(reconstruction: Planes, x: Planes, base: Tensor) -> Tensor:
    """(B,) squared error per luma sample, chroma weighted as its steps are."""
    samples = x[0][0].numel()
    parts = [((a - b) ** 2).flatten(1).sum(1) for a, b in zip(reconstruction, x, strict=True)]
    return (parts[0] + chroma_weight(base) * (parts[1] + parts[2])) / samples


def cost(distortion: Tensor, base: Tensor, bits: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """(J, bits per luma sample), (B,) each; J is rate plus distortion in bits per luma sample.

    Args:
        distortion: (B,) per luma sample. base: (B,) quantiser steps, which set the Lagrangian.
        bits: (B,). samples: luma samples of a frame.
    """
    bpp = bits / samples
    return bpp + distortion / (QUANTISER_LAMBDA * base**2), bpp


def log_cost(j: Tensor) -> Tensor:
    """The mean logarithm of J: a percent saved counts the same at every rate, as in BD-rate."""
    return torch.log(j + FLOOR).mean()
