"""What layers make of their weights alone, made once for a step instead of at each use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vcfilter.nn.exact import WEIGHT_SHIFT, ExactLayer, integers_of
from vcfilter.train.precondition import natural_units


@contextmanager
def weights_held(net: nn.Module) -> Iterator[None]:
    """Within the block, exact layers' integers and filters in natural units stay as they are.

    Only of weights that learn. Gradients of all backward passes in the block reach the weights at
    its end; an error leaves them without.
    """
    layers = [
        layer
        for layer in net.modules()
        if isinstance(layer, ExactLayer) and layer.weight.requires_grad and layer.bias.requires_grad
    ]
    filters = [(v, scaled) for v, scaled in natural_units(net) if v.requires_grad]
    parameters: list[Tensor] = [p for layer in layers for p in (layer.weight, layer.bias)]
    integers = integers_of(parameters) if parameters else []
    made = [scaled(v) for v, scaled in filters]
    leaves = [weight.detach().requires_grad_() for weight in made]
    for layer, weight, bias in zip(layers, integers[::2], integers[1::2], strict=True):
        layer.held = weight.requires_grad_(), bias.requires_grad_()
    for (_, scaled), leaf in zip(filters, leaves, strict=True):
        scaled.held = leaf
    try:
        yield
    finally:
        for layer in layers:
            layer.held = None
        for _, scaled in filters:
            scaled.held = None
    for parameter, integer in zip(parameters, integers, strict=True):
        parameter.grad = integer.grad
    reached = [p.grad for p in parameters if p.grad is not None]
    if reached:
        torch._foreach_mul_(reached, float(1 << WEIGHT_SHIFT))
    used = [(weight, leaf.grad) for weight, leaf in zip(made, leaves, strict=True)]
    used = [(weight, grad) for weight, grad in used if grad is not None]
    if used:
        torch.autograd.backward([w for w, _ in used], [g for _, g in used])
