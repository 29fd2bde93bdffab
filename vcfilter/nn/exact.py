"""Networks in exact integers, so that every machine computes the same table indices.

Activations are integers in [0, 255], weights integers in units of 1/512. All are held in floating
point tensors, but every partial sum stays below 2^24 in magnitude (`check_bound`), so float32
represents each exactly whatever the order of summation, the layout or the number of threads
(docs/reference/determinism.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.fused import fused
from vcfilter.nn.native import linear

ACTIVATION_MAX = 255
WEIGHT_SHIFT = 9  # weights are multiples of 2^-9
# float32 holds every integer up to 2^24; up to three layers' sums are added up.
SUM_BOUND = float((1 << 24) // 3)


def round_through(x: Tensor) -> Tensor:
    """x rounded to integers (half up); the gradient passes as if nothing had been rounded."""
    return x + (torch.floor(x + 0.5) - x).detach()


def floor_through(x: Tensor) -> Tensor:
    """The floor of x; the gradient passes through."""
    return x + (torch.floor(x) - x).detach()


def version_of(parameter: Tensor) -> tuple[Any, ...]:
    """What changes when a parameter is replaced, moved or written to."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


class ExactLayer(nn.Module):
    """A layer whose weight and bias are integers in units of 2^-9."""

    weight: nn.Parameter
    bias: nn.Parameter
    input_max: float = ACTIVATION_MAX
    held: tuple[Tensor, Tensor] | None = None
    """The integers, where training has made them for a whole step."""
    _fixed: tuple[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    def integers(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(weight, bias) as integer-valued tensors; of weights that do not learn computed once."""
        if self.held is not None:
            return self.held[0].to(dtype), self.held[1].to(dtype)
        key = dtype, version_of(self.weight), version_of(self.bias)
        if self._fixed is not None and self._fixed[0] == key and not self.weight.requires_grad:
            return self._fixed[1]
        unit = float(1 << WEIGHT_SHIFT)
        with torch.inference_mode(False):  # gradients of inputs may pass through them
            weight, bias = round_through(self.weight * unit), round_through(self.bias * unit)
            fixed = weight.to(dtype), bias.to(dtype)
        self._fixed = None if self.weight.requires_grad else (key, fixed)
        return fixed

    def bound(self) -> Tensor:
        """(outputs,): the largest magnitude that any partial sum can reach."""
        weight, bias = (t.detach().abs() for t in self.integers())
        return weight.flatten(1).sum(1) * self.input_max + bias


class ExactLinear(ExactLayer):
    """Integer activations to the integer sums of one dense layer.

    `forward` maps (..., inputs) to (..., outputs): sum(weight * x) + bias in units of 2^-9, exact.
    """

    def __init__(
        self, inputs: int, outputs: int, *, zero: bool = False, input_max: float = ACTIVATION_MAX
    ) -> None:
        super().__init__()
        self.input_max = input_max
        scale = 0.0 if zero else (2.0 / inputs) ** 0.5
        weight = torch.empty(outputs, inputs)
        if not weight.is_meta:  # there random numbers import PyTorch's compiler, a second of CPU
            weight.normal_(std=scale)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, *self.integers(x.dtype))


class ExactDepthwise(ExactLayer):
    """Integer maps (B, channels, H, W) to integer activations: one odd-sized filter per channel.

    Only positions with all neighbours have a result: it is size - 1 smaller each way.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.full((channels, 1, size, size), 1.0 / size))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.integers(x.dtype)
        return activate(F.conv2d(x, weight, bias, groups=x.shape[1]))


def activate(sums: Tensor) -> Tensor:
    """Integer sums in units of 2^-9 to integer activations in [0, 255]."""
    if sums.requires_grad and torch.is_grad_enabled():
        return _activate_through(sums)
    return _activate(sums)


@fused
def _activate(sums: Tensor) -> Tensor:
    return (sums * (1.0 / (1 << WEIGHT_SHIFT))).floor_().clamp_(0, ACTIVATION_MAX)


@fused
def _activate_through(sums: Tensor) -> Tensor:
    return floor_through(sums * (1.0 / (1 << WEIGHT_SHIFT))).clamp(0, ACTIVATION_MAX)


def check_bound(module: nn.Module) -> float:
    """The largest partial sum of any exact layer in module, as a share of the bound.

    Sums are exact where it is below 1; NaN where a weight is.
    """
    shares = [
        float(layer.bound().max()) / SUM_BOUND
        for layer in module.modules()
        if isinstance(layer, ExactLayer)
    ]
    # max() would pass over NaN, which compares with nothing.
    return math.nan if any(map(math.isnan, shares)) else max(shares, default=0.0)


def integers_of(parameters: list[Tensor]) -> list[Tensor]:
    """What `ExactLayer.integers` makes of them, without gradients and in few operators."""
    with torch.no_grad():
        found = torch._foreach_mul(parameters, float(1 << WEIGHT_SHIFT))
        torch._foreach_add_(found, 0.5)
        torch._foreach_floor_(found)
    return list(found)


@torch.no_grad()
def project(module: nn.Module, share: float = 0.9) -> None:
    """Shrink the weights of each output whose sums could exceed share of the bound."""
    layers = [layer for layer in module.modules() if isinstance(layer, ExactLayer)]
    if not layers:
        return
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers]
    whole = integers_of(weights + biases)
    torch._foreach_abs_(whole)
    bounds = [weight.flatten(1).sum(1) for weight in whole[: len(layers)]]
    torch._foreach_mul_(bounds, [layer.input_max for layer in layers])
    torch._foreach_add_(bounds, whole[len(layers) :])
    torch._foreach_clamp_min_(bounds, 1.0)
    torch._foreach_reciprocal_(bounds)
    torch._foreach_mul_(bounds, share * SUM_BOUND)
    torch._foreach_clamp_max_(bounds, 1.0)
    torch._foreach_mul_(biases, bounds)
    for weight, factor in zip(weights, bounds, strict=True):
        weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
