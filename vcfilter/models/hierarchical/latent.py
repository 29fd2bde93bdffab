"""The walk through a latent: which symbols are coded in which order, and from what predicted.

One walk serves encoding, decoding and rate estimation. It goes in steps, low frequencies first and
coarse lattices first, so that later steps have neighbours on all sides. In each step
- the table of each symbol follows from integers already decoded, by exact arithmetic;
- the mean is predicted in floating point from values already reconstructed; it shifts the
  reconstruction and never the parse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.entropy import tables
from vcfilter.entropy.coder import Coder, Reader
from vcfilter.models.hierarchical.layers import CONTEXT, CONTEXT_MAX
from vcfilter.nn.exact import ExactDepthwise, ExactLinear, activate

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


@lru_cache(maxsize=512)
def positions(rows: int, columns: int, sites: tuple[tuple[int, int], ...]) -> Tensor:
    """(N,) flat indices of the sites in a rows x columns grid, in raster order."""
    with torch.inference_mode(False):  # kept for later, perhaps for training
        grid = torch.zeros(rows, columns, dtype=torch.bool)
        for row, column in sites:
            grid[row::2, column::2] = True
        return grid.flatten().nonzero().squeeze(1)


def mirror(grid: Tensor, size: int) -> Tensor:
    """(B, C, H, W) with size more rows and columns on each side, mirrored at the outermost ones.

    What lies beyond the border of a lattice then looks like what lies within: known where its
    mirror image is known. A side that is too short for it is filled with zeros.
    """
    rows, columns = grid.shape[2:]
    if rows > size and columns > size:
        return F.pad(grid, (size, size, size, size), mode="reflect")
    across = "reflect" if columns > size else "constant"
    down = "reflect" if rows > size else "constant"
    return F.pad(F.pad(grid, (size, size, 0, 0), mode=across), (0, 0, size, size), mode=down)


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
        self.radius = radius
        self.mean = nn.Conv2d(self.informing, count, 2 * radius + 1, bias=False)
        nn.init.zeros_(self.mean.weight)
        self.gain = nn.Linear(CONTEXT, count, bias=False)
        nn.init.zeros_(self.gain.weight)

    def indices(self, magnitudes: Tensor, past: Tensor, ctx: Tensor, where: Tensor) -> Tensor:
        """(B, N, count) table indices: integers over 2^11, within [0, 63], before rounding.

        Args:
            magnitudes: (B, high, h, w) of this frame's symbols so far, 0 where unknown.
            past: (B, 2 * count, h, w) of the references' symbols and their activity.
            ctx: (B, 16). where: (N,) positions.
        """
        around = self.spatial(mirror(magnitudes, self.spatial.size // 2))
        before = self.temporal(mirror(past, self.temporal.size // 2))
        parts = [take(around, where), take(before, where)]
        if self.known:
            parts.append(take(magnitudes[:, : self.known], where))
        inputs = torch.cat(parts, dim=2)
        hidden = activate(self.hidden(inputs) + self.hidden_context(ctx)[:, None])
        sums = self.index(hidden) + self.index_linear(inputs) + self.index_context(ctx)[:, None]
        return (sums * (1.0 / (1 << INDEX_SHIFT))).clamp(0, tables.TABLES - 1)

    def means(self, values: Tensor, ctx: Tensor, where: Tensor) -> Tensor:
        """(B, N, count) means from (B, high, h, w) differences to the prediction so far."""
        known = mirror(values[:, : self.informing], self.radius)
        predicted = take(self.mean(known), where)
        return predicted * (1 + self.gain(ctx / 32.0))[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """The integers of one latent, all (B, C, h, w).

    Args:
        symbols: what was coded; 0 at positions outside the picture.
        activity: 0 to 255, the magnitudes seen here and in the references.
    """

    symbols: Tensor
    activity: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A reconstructed latent (B, C, h, w) float, and its integers."""

    value: Tensor
    integers: Symbols


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a latent's tables follow from, besides its own symbols.

    Args:
        ctx: (B, 16) frame context.
        lowest: (B,) the smallest table index in use, 0 or 1 (see `lowest_table`).
        past: the references' symbol activations and activity, (B, C, h, w) integers each.
        inside: rows and columns of the latent that lie in the picture; the rest is not coded.
    """

    ctx: Tensor
    lowest: Tensor
    past: tuple[Tensor, Tensor]
    inside: tuple[int, int]

    def crop(self, grid: Tensor) -> Tensor:
        """The part of a (B, C, h, w) grid that lies in the picture."""
        return grid[:, :, : self.inside[0], : self.inside[1]]

    def fill(self, part: Tensor) -> Tensor:
        """Such a part with zeros around it, of the references' size."""
        rows, columns = self.past[0].shape[2:]
        missing = (0, columns - part.shape[3], 0, rows - part.shape[2])
        return F.pad(part, missing) if any(missing) else part


class LatentModel(nn.Module):
    """Codes one latent (B, channels, h, w); h and w are multiples of the coarsest lattice.

    `parse` reads all symbols from integers alone, and `restore` turns them into the latent that
    `code` gave: the two can run in different threads.
    """

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
        target: Tensor,
        prediction: Tensor,
        quantum: Tensor,
        known: Known,
        coder: Coder,
        rd_scale: Tensor | float = 1.0,
    ) -> Coded:
        """Walk through the latent with a coder that writes or estimates.

        Args:
            target: (B, C, h, w) latent to code.
            prediction: (B, C, h, w) float, what is expected; the coded part is the difference.
            quantum: (B, C) quantiser steps.
            rd_scale: factor on the quantiser's Lagrangian, (B, C, h, w) or a number.

        Returns:
            The reconstruction (prediction + mean + symbol * step) and the integers for later.
        """
        difference = known.crop(target - prediction)
        values = torch.zeros_like(difference, memory_format=torch.contiguous_format)
        symbols = torch.zeros_like(values)
        if isinstance(rd_scale, Tensor):
            rd_scale = known.crop(rd_scale)
        walk = _IndexWalk(self, known)
        for step, model, where in self._places(values):
            s, low, high = step.stride, step.low, step.high
            index = walk.index(step, model, where)
            mean = model.means(values[:, :high, ::s, ::s], known.ctx, where)
            steps = quantum[:, None, low:high]
            wanted = take(difference[:, low:high, ::s, ::s], where)
            scale = rd_scale
            if isinstance(scale, Tensor):
                scale = take(scale[:, low:high, ::s, ::s], where)
            coded = coder.code((wanted - mean) / steps, index, scale)
            values = put(values, mean + coded * steps, step, where)
            symbols = put(symbols, coded, step, where)
            walk.learn(coded, step, where)
        integers = Symbols(symbols=known.fill(symbols), activity=walk.activity())
        return Coded(value=prediction + known.fill(values), integers=integers)

    def parse(self, known: Known, reader: Reader) -> Symbols:
        """Read the symbols; exact on every machine, no float decides about anything."""
        walk = _IndexWalk(self, known)
        symbols = torch.zeros_like(known.crop(known.past[0]), memory_format=torch.contiguous_format)
        for step, model, where in self._places(symbols):
            coded = reader.symbols(walk.index(step, model, where))
            symbols = put(symbols, coded, step, where)
            walk.learn(coded, step, where)
        return Symbols(symbols=known.fill(symbols), activity=walk.activity())

    def restore(
        self, integers: Symbols, prediction: Tensor, quantum: Tensor, known: Known
    ) -> Coded:
        """What `code` gave with these symbols, prediction and quantiser steps."""
        symbols = known.crop(integers.symbols)
        values = torch.zeros_like(symbols, dtype=prediction.dtype)
        for step, model, where in self._places(values):
            s, low, high = step.stride, step.low, step.high
            mean = model.means(values[:, :high, ::s, ::s], known.ctx, where)
            coded = take(symbols[:, low:high, ::s, ::s], where)
            values = put(values, mean + coded * quantum[:, None, low:high], step, where)
        return Coded(value=prediction + known.fill(values), integers=integers)

    def _places(self, grid: Tensor) -> Iterator[tuple[Step, StepModel, Tensor]]:
        """Each step, its model, and its (N,) positions on its lattice."""
        rows, columns = grid.shape[2:]
        for step, model in zip(self.plan, self.steps, strict=True):
            assert isinstance(model, StepModel)
            s = step.stride
            where = positions(-(-rows // s), -(-columns // s), step.sites)
            yield step, model, where.to(grid.device)


class _IndexWalk:
    """Table indices along a walk, from the integers that it has seen."""

    def __init__(self, latent: LatentModel, known: Known) -> None:
        self._latent, self._known = latent, known
        # In float32 CUDA may pick algorithms that are not plain sums of products.
        exact = torch.float64 if known.ctx.is_cuda else torch.float32
        self._ctx = known.ctx.to(exact)
        self._past = tuple(known.crop(p).to(exact) for p in known.past)
        shape = self._past[0].shape
        self._magnitudes = torch.zeros(shape, dtype=exact, device=known.ctx.device)

    def index(self, step: Step, model: StepModel, where: Tensor) -> Tensor:
        """(B, N, count) indices of a step's tables, before rounding."""
        s, low, high = step.stride, step.low, step.high
        index = model.indices(
            self._magnitudes[:, :high, ::s, ::s],
            torch.cat([p[:, low:high, ::s, ::s] for p in self._past], dim=1),
            self._ctx,
            where,
        )
        return torch.maximum(index, self._known.lowest[:, None, None]).to(self._known.ctx.dtype)

    def learn(self, coded: Tensor, step: Step, where: Tensor) -> None:
        """Take in the symbols (B, N, count) of a step."""
        seen = self._latent.activation(coded).to(self._ctx.dtype)
        self._magnitudes = put(self._magnitudes, seen, step, where)

    def activity(self) -> Tensor:
        """(B, C, h, w) integers, for the frames that refer to this one."""
        faded = torch.floor(self._past[1] * DECAY)
        activity = torch.maximum(self._magnitudes, faded).to(self._known.ctx.dtype)
        return self._known.fill(activity)


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
