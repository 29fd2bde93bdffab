"""The walk through a latent: which symbols are coded in which order, and from what predicted.

One walk serves encoding, decoding and rate estimation. It goes in steps, low frequencies first and
coarse lattices first, so that later steps have neighbours on all sides. In each step
- the table of each symbol follows from integers already decoded, by exact arithmetic;
- the mean is predicted in floating point from values already reconstructed; it shifts the
  reconstruction and never the parse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from vcfilter.entropy import tables
from vcfilter.entropy.coder import Coder
from vcfilter.entropy.exact import ExactDepthwise, ExactLinear, activate
from vcfilter.model.layers import CONTEXT, CONTEXT_MAX

INDEX_SHIFT = 11  # sums of the last exact layer per table index
ALL_CODED_QP = 24  # up to here even unlikely symbols are coded: skipping would bound the quality
MEAN_CHANNELS = 33  # means are predicted from the lowest frequencies only
DECAY = 7 / 8  # how activity fades from reference to reference (exact in integers below)


@dataclass(frozen=True, slots=True)
class Step:
    """Channels [low, high) at some positions of the sub-grid that takes every stride-th position.

    sites are (row, column) residues modulo 2 on that sub-grid; all four mean every position.
    """

    low: int
    high: int
    stride: int
    sites: tuple[tuple[int, int], ...]


EVERY = ((0, 0), (0, 1), (1, 0), (1, 1))
WHITE = ((0, 0), (1, 1))
BLACK = ((0, 1), (1, 0))


def pyramid(count: int) -> tuple[Step, ...]:
    """The first count channels: every fourth position, then each lattice between."""
    return (
        Step(0, count, 4, EVERY),
        Step(0, count, 2, ((1, 1),)),
        Step(0, count, 2, BLACK),
        Step(0, count, 1, ((1, 1),)),
        Step(0, count, 1, BLACK),
    )


def checkerboard(low: int, high: int) -> tuple[Step, ...]:
    """Channels [low, high) in two halves."""
    return Step(low, high, 1, WHITE), Step(low, high, 1, BLACK)


@lru_cache(maxsize=256)
def positions(rows: int, columns: int, sites: tuple[tuple[int, int], ...]) -> Tensor:
    """(N,) flat indices of the sites in a rows x columns grid, in raster order."""
    with torch.inference_mode(False):  # kept for later, perhaps for training
        grid = torch.zeros(rows, columns, dtype=torch.bool)
        for row, column in sites:
            grid[row::2, column::2] = True
        return grid.flatten().nonzero().squeeze(1)


def take(grid: Tensor, where: Tensor) -> Tensor:
    """(B, C, H, W) at (N,) flat positions: (B, N, C)."""
    return grid.flatten(2)[:, :, where].transpose(1, 2)


class StepModel(nn.Module):
    """Table indices (exact) and means (float) of one step."""

    def __init__(self, step: Step, hidden: int, radius: int) -> None:
        super().__init__()
        self.step = step
        count = step.high - step.low
        self.known = known = step.low  # channels that earlier steps have completed everywhere
        self.spatial = ExactDepthwise(step.high, 5)
        self.temporal = ExactDepthwise(2 * count, 3)
        inputs = step.high + known + 2 * count
        self.hidden = ExactLinear(inputs, hidden)
        self.hidden_context = ExactLinear(CONTEXT, hidden, zero=True, input_max=CONTEXT_MAX)
        self.index = ExactLinear(hidden, count, zero=True)
        self.index_linear = ExactLinear(inputs, count, zero=True)
        self.index_context = ExactLinear(CONTEXT, count, zero=True, input_max=CONTEXT_MAX)
        # The mean is linear in what is known, times a gain learned per qp and layer.
        self.informing = min(step.high, MEAN_CHANNELS)
        self.mean = nn.Conv2d(self.informing, count, 2 * radius + 1, padding=radius, bias=False)
        nn.init.zeros_(self.mean.weight)
        self.gain = nn.Linear(CONTEXT, count, bias=False)
        nn.init.zeros_(self.gain.weight)

    def indices(self, magnitudes: Tensor, past: Tensor, ctx: Tensor, where: Tensor) -> Tensor:
        """(B, N, count) table indices: integers over 2^11, within [0, 63], before rounding.

        Args:
            magnitudes: (B, high, h, w) of this frame's symbols so far, 0 where unknown.
            past: (B, 2 * count, h, w) of the references' symbols and their activity.
            ctx: (B, 13). where: (N,) positions.
        """
        around = self.spatial(magnitudes)
        parts = [take(around, where), take(self.temporal(past), where)]
        if self.known:
            parts.append(take(magnitudes[:, : self.known], where))
        inputs = torch.cat(parts, dim=2)
        hidden = activate(self.hidden(inputs) + self.hidden_context(ctx)[:, None])
        sums = self.index(hidden) + self.index_linear(inputs) + self.index_context(ctx)[:, None]
        return (sums * (1.0 / (1 << INDEX_SHIFT))).clamp(0, tables.TABLES - 1)

    def means(self, values: Tensor, ctx: Tensor, where: Tensor) -> Tensor:
        """(B, N, count) means from (B, high, h, w) differences to the prediction so far."""
        predicted = take(self.mean(values[:, : self.informing]), where)
        return predicted * (1 + self.gain(ctx / 32.0))[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """What one walk gives back.

    Args:
        value: (B, C, h, w) reconstructed latent.
        symbols: (B, C, h, w) integers.
        activity: (B, C, h, w) integers 0 to 255, the magnitudes seen here and in the references.
    """

    value: Tensor
    symbols: Tensor
    activity: Tensor


class LatentModel(nn.Module):
    """Codes one latent (B, channels, h, w); h and w are multiples of the coarsest lattice."""

    def __init__(self, channels: int, plan: tuple[Step, ...], hidden: int, radius: int) -> None:
        super().__init__()
        self.channels = channels
        self.plan = plan
        self.steps = nn.ModuleList()
        for step in plan:
            wide = hidden if step.high - step.low > 16 else max(32, hidden // 2)
            self.steps.append(StepModel(step, wide, radius))
        # |symbol| to an activation: about 32 log2(1 + |symbol|), stored so that it is exact.
        lut = torch.floor(32 * torch.log2(1 + torch.arange(257, dtype=torch.float64)) + 0.5)
        self.register_buffer("levels", lut.clamp(max=255).float())
        self.levels: Tensor

    def activation(self, symbols: Tensor) -> Tensor:
        """Integer symbols to their activations in 0 ... 255."""
        return self.levels[symbols.detach().abs().clamp(max=256).long()]

    def code(
        self,
        target: Tensor | None,
        prediction: Tensor,
        quantum: Tensor,
        ctx: Tensor,
        lowest: Tensor,
        past: tuple[Tensor, Tensor],
        coder: Coder,
        rd_scale: Tensor | float = 1.0,
    ) -> Coded:
        """Walk through the latent with a coder.

        Args:
            target: (B, C, h, w) latent to code; None when decoding.
            prediction: (B, C, h, w) float, what is expected; the coded part is the difference.
            quantum: (B, C) quantiser steps.
            ctx: (B, 13) frame context.
            lowest: (B,) the smallest table index in use, 0 or 1 (see `lowest_table`).
            past: the references' symbol activations and activity, (B, C, h, w) integers each.
            coder: any of the three coders.
            rd_scale: factor on the quantiser's Lagrangian, (B, C, h, w) or a number.

        Returns:
            The reconstruction (prediction + mean + symbol * step) and the integers for later.
        """
        batch, channels, rows, columns = prediction.shape
        difference = None if target is None else target - prediction
        values = prediction.new_zeros(batch, channels, rows, columns)
        symbols = prediction.new_zeros(batch, channels, rows, columns)
        # In float32 CUDA may pick algorithms that are not plain sums of products.
        exact = torch.float64 if prediction.is_cuda else torch.float32
        magnitudes = torch.zeros_like(symbols, dtype=exact)
        ctx_exact = ctx.to(exact)
        past_exact = tuple(p.to(exact) for p in past)
        for step, model in zip(self.plan, self.steps, strict=True):
            assert isinstance(model, StepModel)
            s = step.stride
            low, high = step.low, step.high
            where = positions(-(-rows // s), -(-columns // s), step.sites).to(prediction.device)
            index = model.indices(
                magnitudes[:, :high, ::s, ::s],
                torch.cat([p[:, low:high, ::s, ::s] for p in past_exact], dim=1),
                ctx_exact,
                where,
            )
            index = torch.maximum(index, lowest[:, None, None]).to(ctx.dtype)
            mean = model.means(values[:, :high, ::s, ::s], ctx, where)
            steps = quantum[:, None, low:high]
            if difference is None:
                coded = coder.code(None, index)
            else:
                wanted = take(difference[:, low:high, ::s, ::s], where)
                scale = rd_scale
                if isinstance(scale, Tensor):
                    scale = take(scale[:, low:high, ::s, ::s], where)
                coded = coder.code((wanted - mean) / steps, index, scale)
            values = put(values, mean + coded * steps, step, where)
            symbols = put(symbols, coded, step, where)
            magnitudes = put(magnitudes, self.activation(coded).to(exact), step, where)
        faded = torch.floor(past_exact[1] * DECAY)
        activity = torch.maximum(magnitudes, faded).to(ctx.dtype)
        return Coded(value=prediction + values, symbols=symbols, activity=activity)


def lowest_table(qp: Tensor) -> Tensor:
    """(B,) 1 where the picture is so fine that no symbol may be left out, else 0."""
    return (qp <= ALL_CODED_QP).to(torch.float32)


def put(grid: Tensor, chosen: Tensor, step: Step, where: Tensor) -> Tensor:
    """grid (B, C, H, W) with (B, N, count) written at a step's positions; differentiable."""
    s = step.stride
    part = grid[:, step.low : step.high, ::s, ::s]
    flat = part.flatten(2).index_copy(2, where, chosen.transpose(1, 2).to(grid.dtype))
    if torch.is_grad_enabled():
        grid = grid.clone()
    grid[:, step.low : step.high, ::s, ::s] = flat.view(part.shape)
    return grid
