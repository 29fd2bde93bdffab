"""Building blocks of networks: a residual block and a conditioned correction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.fused import fused
from vcfilter.nn.native import PackedConv2d, conv2d


class Conv2d(nn.Conv2d):
    """A convolution of stride 1 with zeros around its input, see `native.conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        assert not isinstance(padding, str)
        return conv2d(input, self.weight, self.bias, (padding[0], padding[1]), self.groups)


class Block(nn.Module):
    """Residual block: depthwise 3x3, 1x1 to twice the width, leaky ReLU, 1x1 back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = Conv2d(width, width, 3, padding=1, groups=width)
        self.widen = Conv2d(width, 2 * width, 1)
        self.narrow = Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.widen(self.spatial(x))
        narrow: Tensor = self.narrow(F.leaky_relu_(wide, 0.1))
        return narrow.add_(x)


class PackedBlock:
    """A residual block whose weights are known beforehand, on a CPU; it changes its input."""

    def __init__(self, block: Block) -> None:
        self._spatial, self._widen, self._narrow = (
            PackedConv2d(layer.weight, layer.bias, layer.groups)
            for layer in (block.spatial, block.widen, block.narrow)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._narrow.add_to(x, self._widen(self._spatial(x), leaky=0.1))


class Branch(nn.Module):
    """A learned correction (B, inputs, H, W) -> (B, outputs, H, W), zero until trained.

    A context vector scales and shifts its features.

    Args:
        width: features. blocks: residual blocks. last: side of the last layer's filters.
        context: length of the context vector. context_max: largest value in it.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        blocks: int,
        *,
        last: int,
        context: int,
        context_max: float,
    ) -> None:
        super().__init__()
        self.first = Conv2d(inputs, width, 1)
        self.context_max = context_max
        self.modulate = nn.Linear(context, 2 * width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.last = Conv2d(width, outputs, last, padding=last // 2)
        for parameter in (*self.modulate.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """The correction; context is (B, length)."""
        gain, shift = self.modulate(context / self.context_max)[:, :, None, None].chunk(2, dim=1)
        return self.last(self.blocks(self.first(x) * (1 + gain) + shift))


@fused
def compress(x: Tensor) -> Tensor:
    """x / (1 + |x| / 8): near x where it is small, within 8 everywhere."""
    return x / (1 + x.abs() / 8)


def same_place(matrix: Tensor) -> Tensor:
    """A (out, in) matrix as the centre of a 3x3 convolution's weights."""
    weight = torch.zeros(*matrix.shape, 3, 3)
    weight[:, :, 1, 1] = matrix
    return weight
