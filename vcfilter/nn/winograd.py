"""3x3 convolutions with a quarter of the multiplications, where weights are known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from vcfilter.nn.native import PackedConv2d

TILE, SIDE = 4, 6
"""Positions of a tile and values that stand for them, each way."""
FILTERS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""What a filter becomes, each way."""


class Winograd:
    """A 3x3 convolution with zeros around its input, on a CPU: Winograd's F(4x4, 3x3).

    Results differ from those of the sum by rounding, by some 1e-6 of the largest.

    Args:
        weight: (outputs, inputs, 3, 3) float32.
    """

    def __init__(self, weight: Tensor) -> None:
        filters = torch.tensor(FILTERS, dtype=torch.float64)
        both = torch.einsum("ak,bl,oikl->aboi", filters, filters, weight.double())
        self._outputs = weight.shape[0]
        self._products = PackedConv2d(both.flatten(0, 2).float()[:, :, None, None], None, SIDE**2)

    def __call__(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """gain * convolution + shift: (1, outputs, h, w) of x (1, inputs, h, w), both (outputs,).

        Channels are the innermost dimension of what comes, and of what is quickly taken.
        """
        from vcfilter._native import winograd  # late: training needs none

        x = x.permute(0, 2, 3, 1).contiguous()
        _, h, w, inputs = x.shape
        tiles = torch.empty(1, -(-h // TILE), -(-w // TILE), SIDE**2 * inputs)
        winograd.tile(x[0].numpy(), tiles[0].numpy())
        maps = self._products(tiles.permute(0, 3, 1, 2))
        tiles, found = maps.permute(0, 2, 3, 1).contiguous(), torch.empty(1, h, w, self._outputs)
        winograd.untile(tiles[0].numpy(), gain.numpy(), shift.numpy(), found[0].numpy())
        return found.permute(0, 3, 1, 2)
