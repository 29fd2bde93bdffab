"""Building blocks of networks: a residual block and a conditioned correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.fused import fused
from vcfilter.nn.exact import version_of
from vcfilter.nn.native import PackedConv2d, conv2d, has_onednn, is_native
from vcfilter.nn.winograd import Winograd

SLOPE = 0.1
"""Of the leaky ReLU."""
WIDE = 64
"""Channels from which on 3x3 convolutions go by `Winograd`."""


class Conv2d(nn.Conv2d):
    """A convolution of stride 1 with zeros around its input.

    Where weights do not learn, on a CPU, they are kept as oneDNN or `Winograd` take them: sums
    differ from the plain convolution's by rounding.
    """

    _kept: tuple[tuple[Any, ...], PackedConv2d | Winograd] | None = None

    def forward(self, input: Tensor) -> Tensor:
        kept = self.kept(input)
        if kept is not None:
            return kept(input)
        return conv2d(input, self.weight, self.bias, self._zeros, self.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    @property
    def _zeros(self) -> tuple[int, int]:
        """Lines of zeros around the input, each way."""
        assert not isinstance(self.padding, str)
        return self.padding[0], self.padding[1]

    def kept(self, input: Tensor) -> PackedConv2d | Winograd | None:
        """What convolves this input with weights that are known; None: they are not."""
        bias = self.bias
        learns = self.weight.requires_grad or (bias is not None and bias.requires_grad)
        if learns or not has_onednn() or not is_native(input, self.weight):
            return None
        key = version_of(self.weight), None if bias is None else version_of(bias)
        if self._kept is None or self._kept[0] != key:
            wide = min(self.in_channels, self.out_channels) >= WIDE and self.groups == 1
            if wide and self.kernel_size == (3, 3) and self._zeros == (1, 1):
                made: PackedConv2d | Winograd = Winograd(self.weight, bias)
            else:
                made = PackedConv2d(self.weight, bias, self.groups, self._zeros)
            self._kept = key, made
        return self._kept[1]


class Block(nn.Module):
    """Residual block: depthwise 3x3, 1x1 to twice the width, leaky ReLU, 1x1 back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = Conv2d(width, width, 3, padding=1, groups=width)
        self.widen = Conv2d(width, 2 * width, 1)
        self.narrow = Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.spatial(x)
        widen, narrow = self.widen.kept(x), self.narrow.kept(x)
        if isinstance(widen, PackedConv2d) and isinstance(narrow, PackedConv2d):
            return narrow.plus(widen(spatial, leaky=SLOPE), x)
        wide: Tensor = self.widen(spatial)
        changed: Tensor = self.narrow(F.leaky_relu_(wide, SLOPE))
        return changed.add_(x)


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
        return self.last(self.blocks(torch.addcmul(shift, self.first(x), 1 + gain)))


@fused
def compress(x: Tensor) -> Tensor:
    """x / (1 + |x| / 8): near x where it is small, within 8 everywhere."""
    return x / (1 + x.abs() / 8)


def same_place(matrix: Tensor) -> Tensor:
    """A (out, in) matrix as the centre of a 3x3 convolution's weights."""
    weight = torch.zeros(*matrix.shape, 3, 3)
    weight[:, :, 1, 1] = matrix
    return weight
