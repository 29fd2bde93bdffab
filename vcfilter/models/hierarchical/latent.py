"""The walk through a latent: which symbols are coded in which order, and from what predicted.

It goes in steps, low frequencies first and coarse lattices first, so that later steps have
neighbours on all sides. Two things happen along it, each written once:
- the integer walk (`LatentModel.walk`): the table of each symbol follows from integers already
  decoded, by exact arithmetic. Encoding, decoding and rate estimation differ in where the next
  symbols come from, and in nothing else;
- the value pass (`ValuePass`): symbols become values. Means are predicted in floating point from
  values already reconstructed; they shift the reconstruction and never the parse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.entropy import tables
from vcfilter.entropy.coder import QUANTISER_LAMBDA, Coder, Reader
from vcfilter.fused import fused
from vcfilter.models.hierarchical.conditions import CONTEXT, CONTEXT_MAX
from vcfilter.models.hierarchical.refinement import Below
from vcfilter.models.hierarchical.values import FADED, FADED_SHIFT, LatentSymbols
from vcfilter.nn import maps as positioned
from vcfilter.nn.blocks import Conv2d
from vcfilter.nn.exact import ExactDepthwise, ExactLinear, activate, version_of
from vcfilter.nn.maps import by_position, gather
from vcfilter.nn.native import in_parts, is_native, linear

if TYPE_CHECKING:
    from vcfilter._native.latents import StepTables

Sums = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

INDEX_SHIFT = 11  # sums of the last exact layer per table index
ALL_CODED_QP = 24  # up to here even unlikely symbols are coded: skipping would bound the quality
DENSE_MAX = 32767  # largest weight of a dense layer that the native loops take
KEPT_FRAMES = 64  # features of frames, for which each step keeps what follows from them
KEPT_SIZES = 8  # of latents, whose steps' positions are kept
PART = 1024  # positions that one thread computes the tables of, at least
LATER_LAMBDA = 0.75  # factor on the Lagrangian where rounding counts what symbols cost later ones
LATER_SHARE = 0.5  # of what a pass found in what the next one counts
DECAY = FADED / (1 << FADED_SHIFT)  # of activity (exact in integers below)


@dataclass(frozen=True, slots=True)
class Step:
    """Channels [low, high) at some positions of the lattice that takes every stride-th position.

    sites are (row, column) residues modulo 2 on that lattice; all four mean every position.
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


def positions(
    rows: int, columns: int, sites: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    """(N,) flat indices of the sites in a rows x columns grid, in raster order."""
    parts = []
    for row, column in sites:
        starts = torch.arange(row, rows, 2, device=device)[:, None] * columns
        parts.append((starts + torch.arange(column, columns, 2, device=device)).flatten())
    return torch.cat(parts).sort().values


def mirror(lattice: Tensor, size: int) -> Tensor:
    """(B, C, H, W) with size more rows and columns on each side, mirrored at the outermost ones.

    What lies beyond the border of a lattice then looks like what lies within: known where its
    mirror image is known. A side that is too short for it is filled with zeros.
    """
    rows, columns = lattice.shape[2:]
    if rows > size and columns > size:
        return F.pad(lattice, (size, size, size, size), mode="reflect")
    across = "reflect" if columns > size else "constant"
    down = "reflect" if rows > size else "constant"
    return F.pad(F.pad(lattice, (size, size, 0, 0), mode=across), (0, 0, size, size), mode=down)


def by_channel(maps: Tensor) -> bool:
    """Whether the channels of (B, C, H, W) lie one after the other in memory."""
    return maps.stride(1) == 1


class FrameParts:
    """What a frame's features add to a step, each made when it is asked for.

    Args:
        model: the step's. features: (B, 16).
    """

    def __init__(self, model: StepModel, features: Tensor) -> None:
        self._model, self._features = model, features

    @cached_property
    def hidden(self) -> Tensor:
        """(B, 1, units) of the index network's sums; integers."""
        return self._model.hidden_context(self._features)[:, None]

    @cached_property
    def index(self) -> Tensor:
        """(B, 1, count) of its last sums; integers."""
        return self._model.index_context(self._features)[:, None]

    @cached_property
    def sums(self) -> list[tuple[Sums, Sums, Floats]]:
        """What the native loops begin with and add at the end, of each frame."""
        from vcfilter._native import latents  # late: training needs none

        model = self._model
        biases = [layer.integers()[1] for layer in (model.hidden, model.index_linear, model.index)]
        hidden, linear, index = (bias.detach().numpy() for bias in biases)
        frames = zip(self.hidden[:, 0].numpy(), self.index[:, 0].numpy(), strict=True)
        return [
            (
                latents.padded(np.concatenate([hidden + frame_hidden, linear])),
                latents.padded(index),
                np.ascontiguousarray(last),
            )
            for frame_hidden, last in frames
        ]

    @cached_property
    def gain(self) -> Tensor | None:
        """(B, 1, count) factors of means; None where features are of another precision."""
        if self._features.dtype != self._model.gain.weight.dtype:  # of indices on CUDA
            return None
        return (1 + self._model.gain(self._features / CONTEXT_MAX))[:, None]


class StepModel(nn.Module):
    """Table indices (exact) and means (float) of one step.

    Args:
        hidden: units of the index network. radius: reach of the filters that predict means.
        informing: means are predicted from so many of the lowest channels, at most.
    """

    def __init__(self, step: Step, hidden: int, radius: int, informing: int) -> None:
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
        # The mean is linear in what is known, times a gain learned per frame context.
        self.informing = min(step.high, informing)
        self.radius = radius
        self.mean = Conv2d(self.informing, count, 2 * radius + 1, bias=False)
        nn.init.zeros_(self.mean.weight)
        self.gain = nn.Linear(CONTEXT, count, bias=False)
        nn.init.zeros_(self.gain.weight)
        # Asked for at each step of a frame, so they are not looked up by name.
        sums = self.hidden, self.index_linear, self.index
        filters, context = (self.spatial, self.temporal), (self.hidden_context, self.index_context)
        self._of_symbols = tuple(p for e in (*filters, *sums) for p in e.parameters())
        self._of_features = tuple(p for e in (*context, self.gain, *sums) for p in e.parameters())
        self.shared = False  # whether threads share the positions of a frame
        self._frames: dict[tuple[Any, ...], tuple[Tensor, FrameParts]] = {}
        self._made: tuple[tuple[Any, ...], StepTables | None] | None = None

    def indices(
        self,
        magnitudes: Tensor,
        temporal: Sequence[Tensor],
        features: Tensor,
        lowest: Tensor,
        where: Tensor,
    ) -> Tensor:
        """(B, N, count) table indices: integers over 2^11, from lowest to 63, before rounding.

        On a CPU the native loop works where the weights do not learn, at the positions alone.

        Args:
            magnitudes: (B, high, h, w) of this frame's symbols so far, 0 where unknown.
            temporal: (B, count, h, w) of the references' symbols, and of their activity.
            features: (B, 16). lowest: (B,) smallest index. where: (N,) positions.
        """
        frame, maps = self._of_frame(features), (magnitudes, *temporal)
        loops = self._loops_for(*maps, features)
        if loops is None:
            inputs = self._inputs(magnitudes, temporal, where)
            hidden = activate(self.hidden(inputs) + frame.hidden)
            index = _index(self.index(hidden), self.index_linear(inputs), frame.index)
            return torch.maximum(index, lowest[:, None, None])
        found = torch.empty(len(magnitudes), len(where), self.step.high - self.step.low)
        seen, symbols, activity = (m.permute(0, 2, 3, 1).numpy() for m in maps)
        places, highest = where.numpy(), float(tables.TABLES - 1)
        each = zip(seen, symbols, activity, frame.sums, lowest.tolist(), found.numpy(), strict=True)
        for frame_args in each:

            def compute(part: slice, args: Any = frame_args) -> None:
                now, coded, active, (first, second, last), least, out = args
                at, to = places[part], out[part]
                loops.indices(now, coded, active, at, first, second, last, least, highest, to)

            in_parts(compute, len(places), PART if self.shared else len(places))
        return found

    def add_costs(
        self,
        magnitudes: Tensor,
        temporal: Sequence[Tensor],
        features: Tensor,
        lowest: Tensor,
        where: Tensor,
        weigh: Callable[[Tensor], Tensor],
        passed: Tensor,
        costs: Tensor,
    ) -> None:
        """Add to costs how the sum of all indices times their slopes changes with magnitudes.

        Args:
            magnitudes to where: as of `indices`.
            weigh: gives the slopes of indices, (B, N, count) both.
            passed, costs: (B, high, h, w), only where passed is 1 something is added.
        """
        maps = magnitudes, *temporal
        loops = self._loops_for(*maps, features, passed, costs)
        if loops is None:
            with torch.enable_grad():
                near = magnitudes.clone().requires_grad_()
                index = self.indices(near, temporal, features, lowest, where)
                (found,) = torch.autograd.grad((index * weigh(index.detach())).sum(), near)
            costs += found * passed
            return
        index = self.indices(magnitudes, temporal, features, lowest, where)
        free = (index > lowest[:, None, None]) & (index < tables.TABLES - 1)
        slopes = (weigh(index) * free).numpy()
        every = (m.permute(0, 2, 3, 1).numpy() for m in (*maps, passed, costs))
        frames = zip(*every, slopes, self._of_frame(features).sums, strict=True)
        for seen, symbols, activity, own, out, slope, (first, second, last) in frames:
            at = where.numpy()
            loops.costs(seen, symbols, activity, at, first, second, last, slope, own, out)

    def _loops_for(self, *tensors: Tensor) -> StepTables | None:
        """The native loops where they take these maps; None where they do not."""
        maps = [t for t in tensors if t.ndim == 4]
        return self._loops() if is_native(*tensors) and all(map(by_channel, maps)) else None

    def _loops(self) -> StepTables | None:
        """The native loops with these weights; None where they learn or do not fit."""
        if any(weight.requires_grad for weight in (*self._of_symbols, *self._of_features)):
            return None
        key = tuple(map(version_of, self._of_symbols))
        if self._made is None or self._made[0] != key:
            from vcfilter._native import latents  # late: training needs none

            layers = self.spatial, self.temporal, self.hidden, self.index_linear, self.index
            (near, near_bias), (past, past_bias), (hidden, _), (linear, _), (index, _) = (
                [t.detach().numpy() for t in layer.integers()] for layer in layers
            )
            made = None
            if max(float(np.abs(weight).max()) for weight in (hidden, linear, index)) <= DENSE_MAX:
                near, past = near[:, 0], past[:, 0]
                made = latents.StepTables(
                    near, near_bias, past, past_bias, hidden, linear, index, self.known
                )
            self._made = key, made
        return self._made[1]

    def _of_frame(self, features: Tensor) -> FrameParts:
        """What follows from the features alone; of weights that do not learn computed once."""
        if any(weight.requires_grad for weight in self._of_features):
            return FrameParts(self, features)
        # The features are kept as well, so that no other tensor gets their id.
        key = id(features), *map(version_of, self._of_features)
        found = self._frames.get(key)
        if found is None:
            if len(self._frames) >= KEPT_FRAMES:
                self._frames.clear()
            with torch.inference_mode(False):  # training may use them, too
                made = FrameParts(self, features.clone())
                _ = made.hidden, made.index, made.gain
            found = self._frames[key] = features, made
        return found[1]

    def _inputs(self, magnitudes: Tensor, temporal: Sequence[Tensor], where: Tensor) -> Tensor:
        """(B, N, inputs) what the index network sees: filtered neighbours, and what is known."""
        around = self.spatial(mirror(magnitudes, self.spatial.size // 2))
        before = self.temporal(mirror(torch.cat([*temporal], dim=1), self.temporal.size // 2))
        parts = [gather(around, where), gather(before, where)]
        if self.known:
            parts.append(gather(magnitudes[:, : self.known], where))
        return torch.cat(parts, dim=2)

    def means(self, values: Tensor, features: Tensor, where: Tensor) -> Tensor:
        """(B, N, count) means from (B, high, h, w) differences to the prediction so far."""
        known, gain = values[:, : self.informing], self._of_frame(features).gain
        assert gain is not None
        if not is_native(known, self.mean.weight) or not by_channel(known):
            return gather(self.mean(mirror(known, self.radius)), where) * gain
        from vcfilter._native import latents  # late: training needs none

        side = 2 * self.radius + 1
        near = torch.empty(len(known), len(where), side * side * self.informing)
        maps = known.permute(0, 2, 3, 1).numpy()
        for out, each in zip(near.numpy(), maps, strict=True):
            latents.neighbours(each, side, where.numpy(), out, 0)
        weight = self.mean.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(near, weight, None) * gain


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One step of a walk.

    Args:
        model: the step's. where: (N,) its positions on its lattice. at: the same in the maps.
    """

    model: StepModel
    where: Tensor
    at: Tensor

    def lattice(self, maps: Tensor) -> Tensor:
        """The channels up to this step's highest, at its lattice's positions."""
        step = self.model.step
        if maps.requires_grad:
            return positioned.lattice(maps, step.high, step.stride)
        return maps[:, : step.high, :: step.stride, :: step.stride]

    def take(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) at this step's channels and positions: (B, N, count)."""
        step = self.model.step
        if maps.requires_grad:
            return positioned.take(maps, step.low, step.high, self.at)
        return gather(maps[:, step.low : step.high], self.at)

    def put(self, maps: Tensor, chosen: Tensor) -> Tensor:
        """The maps with (B, N, count) written at this step's place; differentiable.

        In place, unless a gradient passes through the maps or what is written.

        Args:
            maps: (B, C, H, W), channels last in memory; nothing is at the place yet.
        """
        step, chosen = self.model.step, chosen.to(maps.dtype)
        if maps.requires_grad or chosen.requires_grad:
            return positioned.put(maps, step.low, chosen, self.at)
        positioned.write(maps, step.low, chosen, self.at)
        return maps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentExtent:
    """What values of a latent follow from, besides its symbols.

    Args:
        features: (B, 16) of the frame.
        size: rows and columns of the latent.
        inside: those of them that lie in the picture; the rest is not coded.
    """

    features: Tensor
    size: tuple[int, int]
    inside: tuple[int, int]

    def crop(self, maps: Tensor) -> Tensor:
        """The part of (B, C, h, w) maps that lies in the picture."""
        return maps[:, :, : self.inside[0], : self.inside[1]]

    def fill(self, part: Tensor) -> Tensor:
        """Such a part with zeros around it, of the latent's size."""
        missing = (0, self.size[1] - part.shape[3], 0, self.size[0] - part.shape[2])
        return F.pad(part, missing) if any(missing) else part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentContext(LatentExtent):
    """What a latent's tables follow from, besides its own symbols.

    Args:
        lowest: (B,) the smallest table index in use, 0 or 1 (see `lowest_table`).
        temporal: the references' symbol activations and activity, (B, C, h, w) integers each.
    """

    lowest: Tensor
    temporal: tuple[Tensor, Tensor]

    def zeros(self) -> Tensor:
        """Zeros for the part in the picture."""
        part = self.crop(self.temporal[0])
        return torch.zeros(part.shape, dtype=part.dtype, device=part.device).to(
            memory_format=torch.channels_last
        )

    def untouched(self) -> LatentSymbols:
        """The integers of a frame whose latent is not coded."""
        activity = torch.floor(self.temporal[1] * DECAY)
        none = torch.zeros_like(activity)
        return LatentSymbols(symbols=none, activations=none, activity=activity)


@fused
def _index(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Table indices (B, N, count) of the parts of their sums."""
    sums = first + second + third
    return (sums * (1.0 / (1 << INDEX_SHIFT))).clamp(0, tables.TABLES - 1)


@fused
def _activation(symbols: Tensor, levels: Tensor) -> Tensor:
    """(257,) levels of symbols' magnitudes."""
    return levels[symbols.abs().clamp(max=256).long()]


def _foreseeing(u: Tensor, costs: Tensor, lower: Tensor | float) -> Tensor:
    """Values in steps, moved so that rounding them down or up counts what that costs later symbols.

    Args:
        u: (B, N, count). costs: the same, squared steps per unit of activation.
        lower: what is added to their symbols: those of the levels below.
    """
    sign, magnitude = u.sign(), u.abs()
    high = torch.floor(magnitude + 0.5)
    least = (high - 1).clamp(min=0)
    upper, under = (1 + (lower + sign * each).abs() for each in (high, least))
    moved = (magnitude - costs * (16 * torch.log2(upper / under))).clamp(min=0)
    return torch.minimum(moved, high + 0.499) * sign


NextSymbols = Callable[[Place, Tensor], Tensor]
"""Where a walk's symbols come from: of a step and its table indices, (B, N, count) both."""


def reading(reader: Reader) -> NextSymbols:
    """Symbols that a reader decodes."""
    return lambda place, index: reader.symbols(index)


class LatentModel(nn.Module):
    """Codes one latent (B, channels, h, w); h and w are multiples of the coarsest lattice.

    Args:
        hidden: units of wide steps' index networks. radius, informing: see StepModel.
    """

    levels: Tensor

    def __init__(
        self, channels: int, plan: tuple[Step, ...], hidden: int, radius: int, informing: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.plan = plan
        self._kept: dict[tuple[int, int, torch.device], tuple[tuple[Tensor, Tensor], ...]] = {}
        self.steps = nn.ModuleList()
        for step in plan:
            wide = hidden if step.high - step.low > 16 else max(32, hidden // 2)
            self.steps.append(StepModel(step, wide, radius, informing))
        # |symbol| to an activation: about 32 log2(1 + |symbol|), stored so that it is exact.
        lut = torch.floor(
            32 * torch.log2(1 + torch.arange(257, dtype=torch.float64, device="cpu")) + 0.5
        )
        self.register_buffer("levels", lut.clamp(max=255).float(), persistent=False)

    def share(self) -> None:
        """Have threads share the positions of each step of large frames, where native loops work.

        Decoding on a CPU goes without: its threads have pixels to make.
        """
        for step in self.steps:
            assert isinstance(step, StepModel)
            step.shared = True

    def activation(self, symbols: Tensor) -> Tensor:
        """Integer symbols to their activations in 0 ... 255."""
        with torch.no_grad():
            return _activation(symbols, self.levels)

    def places(self, maps: Tensor) -> Iterator[Place]:
        """The steps over maps (B, C, h, w), in coding order."""
        for model, (where, at) in zip(self.steps, self._where(maps), strict=True):
            assert isinstance(model, StepModel)
            yield Place(model, where, at)

    def _where(self, maps: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Positions of all steps, on the lattice and in the maps.

        They follow from size and device, and are kept for some sizes.
        """
        rows, columns = maps.shape[2:]
        key = rows, columns, maps.device
        found = self._kept.get(key)
        if found is None:
            with torch.inference_mode(False):  # training may use them, too
                found = tuple(self._positions(rows, columns, s, maps.device) for s in self.plan)
            if len(self._kept) >= KEPT_SIZES:
                self._kept.clear()
            self._kept[key] = found
        return found

    @staticmethod
    def _positions(
        rows: int, columns: int, step: Step, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        few = -(-columns // step.stride)
        where = positions(-(-rows // step.stride), few, step.sites, device)
        row, column = where.div(few, rounding_mode="floor"), where % few
        return where, (row * columns + column) * step.stride

    def walk(
        self, context: LatentContext, next_symbols: NextSymbols, below: Below | None = None
    ) -> LatentSymbols:
        """The integer walk; exact on every machine, no float decides which table comes next.

        Args:
            below: the levels below, of a quality level: what is coded is added to their symbols.
        """
        indices = _Indices(self, context)
        symbols = context.zeros()
        for place in self.places(symbols):
            index = indices.of(place)
            if below is None:
                coded = next_symbols(place, index)
            else:
                index = below.narrow(index, place.take(below.symbols), context.lowest)
                coded = next_symbols(place, index) + place.take(below.scaled)
            symbols = indices.learn(coded, place, symbols)
        activations, activity = indices.seen()
        return LatentSymbols(
            symbols=context.fill(symbols), activations=activations, activity=activity
        )

    def parse(
        self, context: LatentContext, reader: Reader, below: Below | None = None
    ) -> LatentSymbols:
        """The walk with symbols that a reader decodes."""
        return self.walk(context, reading(reader), below)

    def code(
        self,
        target: Tensor,
        prediction: Tensor,
        steps: Tensor,
        context: LatentContext,
        coder: Coder,
        rd_scale: Tensor | float = 1.0,
        below: Below | None = None,
        later: Tensor | None = None,
    ) -> tuple[Tensor, LatentSymbols]:
        """The walk with symbols that a coder chooses near a target.

        Args:
            target: (B, C, h, w) latent to code.
            prediction: (B, C, h, w) float, what is expected; the coded part is the difference.
            steps: (B, C) quantiser steps.
            rd_scale: factor on the quantiser's Lagrangian, (B, C, h, w), of which the part outside
                the picture may be missing, or a number.
            below: see `walk`.
            later: what symbols cost later ones, to be counted; see `later_costs`.

        Returns:
            The reconstruction, as `values` gives it of the symbols, and the integers.
        """
        difference = context.crop(target - prediction)
        scales = context.crop(rd_scale) if isinstance(rd_scale, Tensor) else None
        values = ValuePass(context, steps, torch.zeros_like(difference), below)

        def choose(place: Place, index: Tensor) -> Tensor:
            wanted = (place.take(difference) - values.mean(place)) / values.steps(place)
            scale = rd_scale if scales is None else place.take(scales)
            if later is not None:
                scale = scale * LATER_LAMBDA
                lower = 0.0 if below is None else place.take(below.scaled)
                costs = place.take(later) * (scale * QUANTISER_LAMBDA)
                wanted = _foreseeing(wanted, costs, lower)
            coded = coder.code(wanted, index, scale)
            values.add(place, coded)
            return coded

        symbols = self.walk(context, choose, below)
        return prediction + context.fill(values.maps), symbols

    def later_costs(
        self,
        symbols: Tensor,
        context: LatentContext,
        bits: Tensor,
        before: Tensor | None = None,
        below: Below | None = None,
    ) -> Tensor:
        """What symbols cost those after them in a frame, whose tables follow from them.

        (B, C, h, w) of the part in the picture: bits per unit of a symbol's activation, by the
        gradient of the table indices at symbols that a pass chose. An estimate, for rounding alone.

        Args:
            bits: (tables, 257) per table and magnitude.
            before: what was found after an earlier pass; a part of it goes on.
            below: see `walk`.
        """
        with torch.inference_mode(False), torch.no_grad():
            coded, features = context.crop(symbols).clone(), context.features.clone()
            lowest, past = context.lowest.clone(), [context.crop(p) for p in context.temporal]
            past = [p.clone(memory_format=torch.channels_last) for p in past]
            flat, width = bits.to(coded.device).view(-1), bits.shape[1]
            seen, passed, costs = (
                torch.zeros_like(coded, memory_format=torch.channels_last) for _ in range(3)
            )

            def weigh(index: Tensor, place: Place) -> Tensor:
                """What each index costs more a table further."""
                level, narrowed = place.take(coded), index
                if below is not None:
                    level = level - place.take(below.scaled)
                    with torch.enable_grad():
                        index.requires_grad_()
                        narrowed = below.narrow(index, place.take(below.symbols), lowest)
                table = narrowed.detach().floor().clamp(0, len(bits) - 2).long()
                at = table * width + level.abs().clamp(max=width - 3).long()
                slope = flat[at + width] - flat[at]
                if narrowed is index:
                    return slope
                with torch.enable_grad():
                    (found,) = torch.autograd.grad((narrowed * slope).sum(), index)
                return found

            for number, place in enumerate(self.places(coded)):
                step, own = place.model.step, place.take(coded)
                if number:  # before the first step nothing is known
                    place.model.add_costs(
                        place.lattice(seen),
                        [place.lattice(p)[:, step.low :] for p in past],
                        features,
                        lowest,
                        place.where,
                        partial(weigh, place=place),
                        place.lattice(passed),
                        place.lattice(costs),
                    )
                positioned.write(seen, step.low, self.activation(own), place.at)
                positioned.write(passed, step.low, torch.ones_like(own), place.at)
            return costs * LATER_SHARE if before is None else before.lerp(costs, LATER_SHARE)

    def values(
        self, symbols: Tensor, prediction: Tensor, steps: Tensor, extent: LatentExtent
    ) -> Tensor:
        """The latent (B, C, h, w) that symbols stand for: prediction + mean + symbol * step."""
        return prediction + extent.fill(self.differences(symbols, steps, extent))

    def differences(
        self, symbols: Tensor, steps: Tensor, extent: LatentExtent, below: Below | None = None
    ) -> Tensor:
        """What `values` adds to the prediction, in the picture.

        Args:
            symbols: (B, C, h, w); of a quality level those of the levels below are part of them.
            below: see `walk`.
        """
        inside = extent.crop(symbols)
        values = ValuePass(extent, steps, torch.zeros_like(inside, dtype=steps.dtype), below)
        for place in self.places(inside):
            coded = place.take(inside)
            values.add(place, coded if below is None else coded - place.take(below.scaled))
        return values.maps


class ValuePass:
    """From symbols to values, step by step.

    Args:
        steps: (B, C) quantiser steps. maps: zeros (B, C, h, w), filled along the way.
        below: of a quality level, see `LatentModel.walk`.
    """

    def __init__(
        self, extent: LatentExtent, steps: Tensor, maps: Tensor, below: Below | None = None
    ) -> None:
        self._features, self._steps, self._below = extent.features, steps[:, None], below
        self.maps = maps.contiguous(memory_format=torch.channels_last)
        self._mean: tuple[Place, Tensor] | None = None
        self._parts: dict[tuple[int, int], Tensor] = {}

    def steps(self, place: Place) -> Tensor:
        """(B, 1, count) quantiser steps; places of the same channels share them."""
        channels = place.model.step.low, place.model.step.high
        if channels not in self._parts:
            self._parts[channels] = self._steps[..., slice(*channels)]
        return self._parts[channels]

    def mean(self, place: Place) -> Tensor:
        """(B, N, count) what is expected at a place from the values before it."""
        if self._mean is None or self._mean[0] is not place:
            found = place.model.means(place.lattice(self.maps), self._features, place.where)
            if self._below is not None:
                lower, value = (place.take(m) for m in (self._below.symbols, self._below.values))
                lowest = not place.model.known
                found = self._below.centre(found, lower, value, lowest=lowest)
            self._mean = place, found
        return self._mean[1]

    def add(self, place: Place, symbols: Tensor) -> None:
        """Take in the symbols (B, N, count) of a place."""
        mean, steps = self.mean(place), self.steps(place)
        if not is_native(mean, symbols, steps, self.maps):
            self.maps = place.put(self.maps, torch.addcmul(mean, symbols, steps))
            return
        from vcfilter._native import latents  # late: training needs none

        means, coded, sizes = (t.contiguous().numpy() for t in (mean, symbols, steps[:, 0]))
        at, low, maps = place.at.numpy(), place.model.step.low, by_position(self.maps).numpy()
        for expected, one, size, out in zip(means, coded, sizes, maps, strict=True):
            latents.values(expected, one, size, at, low, out)


class _Indices:
    """Table indices along a walk, from the integers that it has seen."""

    def __init__(self, latent: LatentModel, context: LatentContext) -> None:
        self._latent, self._context = latent, context
        # In float32 CUDA may pick algorithms that are not plain sums of products.
        careful = context.features.is_cuda and not latent.training
        exact = torch.float64 if careful else torch.float32
        self._features = context.features.to(exact)
        self._past = tuple(
            context.crop(p).to(exact, memory_format=torch.channels_last) for p in context.temporal
        )
        self._magnitudes = torch.zeros_like(self._past[0])

    def of(self, place: Place) -> Tensor:
        """(B, N, count) indices of a step's tables, before rounding."""
        low = place.model.step.low
        index = place.model.indices(
            place.lattice(self._magnitudes),
            [place.lattice(p)[:, low:] for p in self._past],
            self._features,
            self._context.lowest,
            place.where,
        )
        return index.to(self._context.features.dtype)

    def learn(self, coded: Tensor, place: Place, symbols: Tensor) -> Tensor:
        """Take in the symbols (B, N, count) of a step; the maps `symbols` with them."""
        maps = self._magnitudes, symbols
        if is_native(coded, *maps) and all(map(by_channel, maps)):
            from vcfilter._native import latents  # late: training needs none

            at, low, levels = place.at.numpy(), place.model.step.low, self._latent.levels.numpy()
            magnitudes, all_symbols = (by_position(each).numpy() for each in maps)
            each_coded = coded.contiguous().numpy()
            for one, seen, out in zip(each_coded, magnitudes, all_symbols, strict=True):
                latents.store(one, levels, at, low, out, seen)
            return symbols
        seen = self._latent.activation(coded).to(self._features.dtype)
        self._magnitudes = place.put(self._magnitudes, seen)
        return place.put(symbols, coded)

    def seen(self) -> tuple[Tensor, Tensor]:
        """(activations, activity) (B, C, h, w), for the frames that refer to this one."""
        faded = torch.floor(self._past[1] * DECAY)
        activity = torch.maximum(self._magnitudes, faded)
        dtype, fill = self._context.features.dtype, self._context.fill
        return fill(self._magnitudes.to(dtype)), fill(activity.to(dtype))


def lowest_table(qp: Tensor) -> Tensor:
    """(B,) 1 where the picture is so fine that no symbol may be left out, else 0."""
    return (qp <= ALL_CODED_QP).to(torch.float32)
