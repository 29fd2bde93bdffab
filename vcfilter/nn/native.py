"""Where native loops and oneDNN take the place of PyTorch's operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 20480
"""Inputs of a convolution up to here are quicker without oneDNN, as PyTorch has it."""

NARROW = 16
"""Outputs of a dense layer up to which the same holds for it."""

KEPT_SIZES = 8
"""Of inputs, for which a convolution keeps its weights as oneDNN takes them."""


def is_native(*tensors: Tensor) -> bool:
    """Whether native loops can work on tensors: float32 on a CPU, and no gradient passes.

    Training on a machine with nothing but PyTorch does without them.
    """
    learning = torch.is_grad_enabled()
    return _has_loops() and all(
        t.dtype is torch.float32 and t.is_cpu and not (learning and t.requires_grad)
        for t in tensors
    )


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], groups: int
) -> Tensor:
    """F.conv2d of stride 1, by oneDNN also where PyTorch takes a plain matrix product.

    It does so for filters of one sample on one thread, where oneDNN needs half the time.
    """
    if x.numel() > SMALL and has_onednn() and is_native(x, weight):
        return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1), (1, 1), groups)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of (B, N, inputs), by oneDNN where `conv2d` would be."""
    small = x.numel() <= SMALL or len(weight) < NARROW
    if x.dim() != 3 or small or not has_onednn() or not is_native(x, weight):
        return F.linear(x, weight, bias)
    maps = x.contiguous()[:, :, None].permute(0, 3, 1, 2)
    sums = torch.mkldnn_convolution(maps, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return sums.permute(0, 2, 3, 1).flatten(1, 2)


def in_parts(work: Callable[[slice], None], count: int, least: int) -> None:
    """Have work done for all of 0 ... count, in parts beside each other.

    Args:
        work: on a part, by a native loop while Python's lock is free; it must not run networks.
        least: so many make a part, at least. There are at most as many parts as the networks have
            threads here.
    """
    parts = max(1, min(torch.get_num_threads(), count // max(1, least)))
    first, *rest = (slice(count * n // parts, count * (n + 1) // parts) for n in range(parts))
    others = [_pool().submit(work, part) for part in rest]
    try:
        work(first)
    finally:
        for other in others:
            other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "vcfilter-native")


@cache
def _has_loops() -> bool:
    return find_spec("vcfilter._native.latents") is not None


def has_onednn() -> bool:
    """Whether convolutions may go to oneDNN."""
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


class PackedConv2d:
    """A convolution of stride 1 with zeros around its input and weights in oneDNN's own layout.

    What follows it happens in the same pass, as in code of PyTorch's compiler. Inputs are float32
    on a CPU, best with their channels one after the other; so are results.

    Args:
        weight: (outputs, inputs / groups, rows, columns).
        padding: lines of zeros each way; None: as many as keep the size.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        groups: int = 1,
        padding: tuple[int, int] | None = None,
    ) -> None:
        self._zeros = list(padding or (n // 2 for n in weight.shape[2:]))
        self._plain, self._bias, self._groups = weight.contiguous(), bias, groups
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor, leaky: float | None = None) -> Tensor:
        """Convolution of x, after it a leaky ReLU of that slope."""
        convolve = torch.ops.mkldnn._convolution_pointwise
        after = ("none", [], "") if leaky is None else ("leaky_relu", [leaky], "")
        found: Tensor = convolve(x, self._weight_for(x), *self._rest, *after)
        return found

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of x, and `other` added."""
        add = torch.ops.mkldnn._convolution_pointwise.binary
        found: Tensor = add(x, other, self._weight_for(x), *self._rest, "add", None, None, [], None)
        return found

    @property
    def _rest(self) -> tuple[Tensor | None, list[int], list[int], list[int], int]:
        return self._bias, self._zeros, [1, 1], [1, 1], self._groups

    def _weight_for(self, x: Tensor) -> Tensor:
        """The weights as oneDNN wants them for inputs of this size.

        Which layout that is depends on size and threads; given another one it rearranges them at
        each call, at up to a hundred times the cost of a small convolution.
        """
        size = list(x.shape)
        key = torch.get_num_threads(), *size
        found = self._packed.get(key)
        if found is None:
            if len(self._packed) >= KEPT_SIZES:
                self._packed.clear()
            pack = torch.ops.mkldnn._reorder_convolution_weight
            ones = [1, 1]
            found = pack(self._plain, self._zeros, ones, ones, self._groups, size)
            self._packed[key] = found
        return found
