"""Quality levels: the same latent coded again with a finer step, given the levels below.

A level goes through the walk of `latent` a second time. The tables that the walk asks for are those
of the whole symbol in the finer step; what the levels below leave open of it is narrower, and
`Below.narrow` says how much. Everything that decides about tables is integer: symbols of this
frame's levels below, and the base levels of the references, rescaled to the finer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import fsum, log2

import numpy as np
import torch
from torch import Tensor

from vcfilter.entropy import tables
from vcfilter.nn.exact import round_through

RATIO_BITS = 8  # ratios of quantiser steps are integers over 2^8
SYMBOL_MAX = 1 << 20  # of a total
# Table indices of what is left of a symbol, by the index of the whole symbol in the finer step, as
# measured on training stills. What the level below left is at most about its step wide, a cap
# that rises by 1 per qp (its tables' scales double every 5.8).
WIDEST = 12
KNEE = 3  # a symbol that is 0 below follows its own index up to so far below the cap
SURE = 27  # other symbols reach the cap here, and below fall by a half per index
SPREAD = (5, 3)  # to so far below the cap, where the symbol is 1 or larger
BETWEEN = 1 / 8  # of the neighbours' prediction tells where in its step a symbol's value lies

# Differences of qps whose levels have tables of their own; the default is 6. What a level below
# left of a symbol is bounded, so its tables have shorter tails than those of whole symbols.
OWN_TABLES = range(5, 8)
OWN = 20  # by index; at most 19 = WIDEST + 7 occurs
# Of 4096: the share of 0, of 1 among what is larger than 0, and of 2 among what is larger than 1,
# for index 1, 2, ... of symbols that are 0 below, and of others. Measured with a step of 6 on
# training stills and clips; the tables of whole symbols count as 60 further symbols each.
SHAPES = (
    (
        (4088, 3718, 2730), (4076, 3921, 2519), (4064, 3907, 3350), (4044, 3964, 3071),
        (4009, 3963, 3675), (3967, 3954, 3967), (3920, 3934, 3919), (3842, 3973, 3599),
        (3756, 3967, 3917), (3639, 3945, 3828), (3514, 3957, 3921), (3378, 3923, 3910),
        (3220, 3924, 3913), (3069, 3915, 4013), (2907, 3893, 3967), (2669, 3877, 4033),
        (2422, 3868, 3969), (2198, 3934, 3968), (2198, 3934, 3968),
    ),
    (
        (4094, 3708, 267), (4083, 3930, 265), (4072, 3946, 1418), (4058, 3933, 1889),
        (4031, 3922, 2352), (3996, 3944, 2798), (3950, 3929, 2781), (3888, 3922, 2884),
        (3806, 3912, 2978), (3709, 3881, 2987), (3594, 3861, 3082), (3462, 3834, 3134),
        (3198, 3837, 3973), (3285, 3966, 3991), (3146, 3967, 3944), (2991, 4002, 4020),
        (2774, 3995, 4038), (2433, 3957, 4008), (2433, 3957, 4008),
    ),
)  # fmt: skip


def with_own_tables(magnitudes: tables.Probabilities) -> tables.Probabilities:
    """(64 + 40, 257): the tables of whole symbols, and behind them those of levels.

    Sums are rounded once, so that every machine finds the same probabilities.
    """
    found = [*magnitudes]
    for shapes in SHAPES:
        found.append(magnitudes[tables.SKIP])
        for index, shape in enumerate(shapes, 1):
            first, second, third = (part / 4096 for part in shape)
            tail = magnitudes[index, 3:] / fsum(magnitudes[index, 3:])
            left = 1 - first
            low = first, left * second, left * (1 - second) * third
            found.append(np.concatenate([low, left * (1 - second) * (1 - third) * tail]))
    return np.stack(found)


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


def rounded(index: Tensor) -> Tensor:
    """Indices rounded half up; in training the gradient passes."""
    return round_through(index) if index.requires_grad else torch.floor(index + 0.5)


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

    def narrow(self, index: Tensor, lower: Tensor, lowest: Tensor) -> Tensor:
        """Table indices of what is left of symbols, among those of `with_own_tables`.

        Args:
            index: (B, N, count) of the whole symbols, before rounding.
            lower: their part below, in its steps. lowest: (B,) see `LatentContext`.
        """
        cap = min(WIDEST + self.delta, tables.TABLES - 1)
        index = rounded(index)
        free = torch.minimum(index, ((index + cap - KNEE) * 0.5).clamp(max=cap))
        tight = (cap + (index - SURE) * 0.5).clamp(max=cap)
        magnitude = lower.abs()
        least = torch.where(magnitude == 1, cap - SPREAD[0], cap - SPREAD[1]).clamp(min=1)
        bound = torch.maximum(tight, least)
        narrowed = torch.where(magnitude == 0, free, bound)
        narrowed = torch.maximum(narrowed, lowest[:, None, None])
        if self.delta not in OWN_TABLES:
            return narrowed
        own = rounded(narrowed) + tables.TABLES + OWN * (magnitude > 0)
        skipped = narrowed < 0.5
        if narrowed.requires_grad:  # what is left out tells training which way it lies
            return own - torch.where(skipped, own - tables.SKIP, 0.0).detach()
        return torch.where(skipped, tables.SKIP, own)

    def centre(self, mean: Tensor, lower: Tensor, value: Tensor, *, lowest: bool) -> Tensor:
        """What is expected of a value, (B, N, count) as all.

        Args:
            mean: as the neighbours in this level predict it. lower: its symbol below.
            value: what that stands for; with symbol 0 as the neighbours below predict it.
            lowest: whether the channels are the lowest ones.
        """
        coded = value if lowest else value + BETWEEN * mean
        return torch.where(lower == 0, (mean + value) / 2, coded)
