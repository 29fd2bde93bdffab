"""3x3 convolutions with a quarter of the multiplications, where weights are known beforehand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vcfilter.nn.native import PackedConv2d, in_parts

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
TILES = 128
"""So many are transformed and multiplied at a time per thread, for the cache's sake."""
PART = 48
"""So many are worth a thread's while to transform, at least."""

Floats = npt.NDArray[np.float32]


class Winograd:
    """A 3x3 convolution with zeros around its input, on a CPU: Winograd's F(4x4, 3x3).

    Results differ from those of the sum by rounding, by some 1e-6 of the largest.

    Args:
        weight: (outputs, inputs, 3, 3) float32. bias: (outputs,); None: zeros.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        filters = torch.tensor(FILTERS, dtype=torch.float64)
        both = torch.einsum("ak,bl,oikl->aboi", filters, filters, weight.double())
        outputs = weight.shape[0]
        self._products = PackedConv2d(both.flatten(0, 2).float()[:, :, None, None], None, SIDE**2)
        self._gain = torch.ones(outputs)
        self._shift = torch.zeros(outputs) if bias is None else bias

    def __call__(
        self, x: Tensor, gain: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """(B, outputs, h, w) of x (B, inputs, h, w): the convolution.

        With gain and shift, both (outputs,): gain * convolution without bias + shift. Channels are
        the innermost dimension of what comes, and of what is quickly taken.
        """
        factors = (self._gain if gain is None else gain).numpy()
        offsets = (self._shift if shift is None else shift).numpy()
        maps = x.permute(0, 2, 3, 1).contiguous()
        found = torch.empty(*maps.shape[:3], len(self._gain))
        for one, out in zip(maps.numpy(), found.numpy(), strict=True):
            self._convolve(one, factors, offsets, out)
        return found.permute(0, 3, 1, 2)

    def _convolve(self, maps: Floats, gain: Floats, shift: Floats, out: Floats) -> None:
        """One of a batch: maps (h, w, channels), a few lines of tiles at a time."""
        from vcfilter._native import winograd  # late: training needs none

        rows, columns, inputs = maps.shape
        high, wide = -(-rows // TILE), -(-columns // TILE)
        lines = max(1, round(TILES * torch.get_num_threads() / wide))
        least = max(1, PART // wide)
        for first in range(0, high, lines):
            count = min(lines, high - first)
            tiles = torch.empty(1, count, wide, SIDE**2 * inputs)
            cut = tiles[0].numpy()

            def tile(part: slice, first: int = first, cut: Floats = cut) -> None:
                winograd.tile(maps, first + part.start, cut[part])

            in_parts(tile, count, least)
            products = self._products(tiles.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            found = products[0].contiguous().numpy()

            def untile(part: slice, first: int = first, found: Floats = found) -> None:
                winograd.untile(found[part], first + part.start, gain, shift, out)

            in_parts(untile, count, least)
