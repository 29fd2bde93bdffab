"""Quality levels: the same latent coded again with a finer step, given the levels below.

A level goes through the walk of `latent` a second time. The tables that the walk asks for are those
of the whole symbol in the finer step; what the levels below leave open of it is narrower, and
`Below.narrow` says how much. Everything that decides about tables is integer: symbols of this
frame's levels below, and the base levels of the references, rescaled to the finer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log2

import torch
from torch import Tensor

from vcfilter.entropy import tables

RATIO_BITS = 8  # ratios of quantiser steps are integers over 2^8
SYMBOL_MAX = 1 << 20  # of a total
# Table indices of what is left of a symbol, by the index of the whole symbol in the finer step, as
# measured on training stills. What the level below left is at most about its step wide, a cap
# that rises by 1 per qp (its tables' scales double every 5.8).
WIDEST = 12
KNEE = 3  # a symbol that is 0 below follows its own index up to so far below the cap
SURE = 27  # other symbols reach the cap here, and below fall by a half per index
SPREAD = (5, 3)  # to so far below the cap, where the symbol is 1 or larger


def ratio(delta: int) -> int:
    """How many finer steps a step has, over 2^8, for a difference of qps."""
    return round(2.0 ** (RATIO_BITS + delta / 6))


def rescaled(symbols: Tensor, delta: int) -> Tensor:
    """Integer symbols in steps that are finer by a difference of qps, rounded half away from 0."""
    whole = symbols.detach().abs().long() * ratio(delta) + (1 << (RATIO_BITS - 1))
    scaled = (whole >> RATIO_BITS).clamp(max=SYMBOL_MAX)
    return scaled.to(symbols.dtype) * symbols.sign()


@cache
def _activations(delta: int, device: torch.device) -> Tensor:
    """(256,) by an activation: that of a symbol as large in finer steps."""
    finer = 2.0 ** (delta / 6)
    values = [32 * log2(1 + (2 ** (a / 32) - 1) * finer) for a in range(256)]
    return torch.tensor([min(255.0, float(int(v + 0.5))) for v in values], device=device)


def rescaled_activations(activations: Tensor, delta: int) -> Tensor:
    """Activations, 0 to 255, of symbols as they would be in finer steps."""
    return _activations(delta, activations.device)[activations.long()].to(activations.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Below:
    """What a level refines, in the picture.

    Args:
        symbols: (B, C, h, w) integers in steps of the finest level below.
        delta: qp of that level less the qp of this one, at least 1.
        values: (B, C, h, w) what they stand for, as differences to the prediction; for values
            only.
        scaled: the symbols in this level's steps.
    """

    symbols: Tensor
    delta: int
    values: Tensor
    scaled: Tensor

    @classmethod
    def of(cls, symbols: Tensor, delta: int, values: Tensor | None = None) -> Below:
        """Symbols and their values."""
        scaled = rescaled(symbols, delta)
        return cls(symbols, delta, symbols if values is None else values, scaled)

    def narrow(self, index: Tensor, known: Tensor, lowest: Tensor) -> Tensor:
        """Table indices of what is left of symbols.

        Args:
            index: (B, N, count) of the whole symbols, before rounding.
            known: their part below, in its steps. lowest: (B,) see `LatentContext`.
        """
        cap = min(WIDEST + self.delta, tables.TABLES - 1)
        index = torch.floor(index + 0.5)
        free = torch.minimum(index, ((index + cap - KNEE) * 0.5).clamp(max=cap))
        tight = (cap + (index - SURE) * 0.5).clamp(max=cap)
        magnitude = known.abs()
        least = torch.where(magnitude == 1, cap - SPREAD[0], cap - SPREAD[1]).clamp(min=1)
        bound = torch.maximum(tight, least)
        narrowed = torch.where(magnitude == 0, free, bound)
        return torch.maximum(narrowed, lowest[:, None, None])

    def centre(self, mean: Tensor, known: Tensor, value: Tensor, steps: Tensor) -> Tensor:
        """What is expected of a value, (B, N, count) as all but the steps (B, 1, count).

        Args:
            mean: as the neighbours in this level predict it. known: its symbol below.
            value: what that stands for.
        """
        return torch.where(known == 0, mean, value)
