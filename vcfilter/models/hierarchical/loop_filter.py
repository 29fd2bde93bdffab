"""The loop filter: what quantisation left in a reconstruction, smoothed before others refer to it.

A sample is moved towards its neighbours. Of six pairs of opposite neighbours count the differences
to the sample, cut off at `CLIP`, which smooths and leaves edges; the differences as they are;
in luma these times the activity around the sample, and in chroma the differences of luma. The
encoder finds a coefficient for each by least squares against the original, as for an adaptive loop
filter. They are integers, stand in the base's bytes and are coded as differences to those of a
reference. Only pixels follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.entropy.coder import Reader, TableSet
from vcfilter.errors import BitstreamError
from vcfilter.models.hierarchical.blocks import Planes, Size
from vcfilter.models.hierarchical.mode import LEVELS_ALONE, FilterMode
from vcfilter.nn.native import is_native

PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # down and right; the other lies opposite
REACH = 2
CLIP = 6.0  # samples in 8-bit units, at which a difference is cut off
BUSY = 20.0  # mean magnitude of second differences that is half of the highest activity
EACH = len(PAIRS)
MAIN = 2 * EACH  # coefficients of differences that are cut off, and of whole ones
LUMA, CHROMA = MAIN + EACH, MAIN + 2 * EACH
UNIT, BUSY_UNIT = 32, 8  # coefficients of so much move a sample by the whole difference
LIMIT = 127  # of a coefficient's magnitude
TABLES = (0, 13, 22, 32)  # of the main coefficients' differences; 0: there are none
BUSY_TABLE, CROSS_TABLE = 25, 18
MODE_TABLE = 20  # of the numbers that say how a quality level's filter is coded
MODE_RANGES = (len(TABLES), len(TABLES), 2, 2)  # luma, chroma, busy, cross
SWEEPS = 12  # through the coefficients, at most
STIFF = 1e-5  # of the mean diagonal, keeps least squares away from coefficients that cost much
PRICE = 1.0  # bits that a unit of a difference is taken to cost, until tables tell

Coefficients = tuple[int, ...]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoopFilter:
    """Coefficients, in the order of `PAIRS` each.

    Args:
        luma: (18,) of differences that are cut off and of whole ones, in units of 1/32, and of
            whole ones times activity, in units of 1/8.
        chroma: (24,) of both planes' differences, likewise, and of luma's differences for U and for
            V, in units of 1/32.
    """

    luma: Coefficients = (0,) * LUMA
    chroma: Coefficients = (0,) * CHROMA

    def apply(self, planes: Planes) -> Planes:
        """Filtered planes, which may pass 0 and 255."""
        if not any(self.luma) and not any(self.chroma):
            return planes
        y, u, v = planes
        if any(self.luma):
            y = _filtered(y, None, self.luma, BUSY_UNIT)
        if any(self.chroma):
            main, cross = self.chroma[:MAIN], self.chroma[MAIN:]
            guide = F.avg_pool2d(planes[0], 2)
            u = _filtered(u, guide, main + cross[:EACH], UNIT)
            v = _filtered(v, guide, main + cross[EACH:], UNIT)
        return y, u, v


NO_FILTER = LoopFilter()


def read(mode: FilterMode | None, sources: Sequence[LoopFilter], reader: Reader) -> LoopFilter:
    """A frame's filter, whose differences a reader reads.

    Args:
        sources: of the references, in their order.

    Raises:
        BitstreamError: a coefficient is too large.
    """
    if mode is None or mode.source == LEVELS_ALONE:
        return NO_FILTER
    return _changed(sources[mode.source - 1] if mode.source else NO_FILTER, mode, reader)


def read_level(below: LoopFilter, reader: Reader) -> LoopFilter:
    """A quality level's filter, which begins with how it is coded.

    Args:
        below: of the levels below.

    Raises:
        BitstreamError: it is not one that an encoder writes.
    """
    numbers = reader.symbols(torch.full((4,), float(MODE_TABLE))).to(torch.int64).tolist()
    if min(numbers) < 0 or any(a >= b for a, b in zip(numbers, MODE_RANGES, strict=True)):
        raise BitstreamError("a quality level's loop filter is invalid")
    luma, chroma, busy, cross = numbers
    mode = FilterMode(luma=luma, chroma=chroma, busy=bool(busy), cross=bool(cross))
    return _changed(below, mode, reader)


def _changed(source: LoopFilter, mode: FilterMode, reader: Reader) -> LoopFilter:
    """A filter that differs from another by what a reader reads."""

    def changed(before: Coefficients, table: int) -> Coefficients:
        if not table:
            return before
        symbols = reader.symbols(torch.full((len(before),), float(table)))
        return tuple(a + b for a, b in zip(before, symbols.to(torch.int64).tolist(), strict=True))

    luma = changed(source.luma[:MAIN], TABLES[mode.luma])
    luma += changed(source.luma[MAIN:], BUSY_TABLE * mode.busy)
    chroma = changed(source.chroma[:MAIN], TABLES[mode.chroma])
    chroma += changed(source.chroma[MAIN:], CROSS_TABLE * mode.cross)
    if max(map(abs, luma + chroma)) > LIMIT:
        raise BitstreamError(f"a coefficient of the loop filter passes {LIMIT}")
    return LoopFilter(luma, chroma)


class Filtering(Protocol):
    """What passes over a latent need of a filter's choice."""

    def filtered(self, planes: Planes) -> Planes:
        """What the chosen filter makes of planes; it may pass 0 and 255."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ChosenFilter:
    """What an encoder chose.

    Args:
        mode: how it is coded. filter: what it is.
        changes: (differences, their table), in coding order.
    """

    mode: FilterMode
    filter: LoopFilter
    changes: list[tuple[list[int], int]]


class FilterWorth:
    """What filters of a reconstruction are worth.

    Args:
        x: the original. planes: its reconstruction. size: rows and columns of the picture.
        weight: squared error that a bit is worth. chroma: what an error of chroma counts.
    """

    def __init__(
        self,
        x: Planes,
        planes: Planes,
        size: Size,
        tables: TableSet,
        weight: float,
        chroma: float,
    ) -> None:
        half = (size[0] + 1) // 2, (size[1] + 1) // 2
        guide = F.avg_pool2d(planes[0], 2)
        y = _sums(x[0], planes[0], None, size)
        u, v = (_sums(x[i], planes[i], guide, half) for i in (1, 2))
        self._luma = _LeastSquares(*y, BUSY_UNIT, BUSY_TABLE, tables, weight)
        self._chroma = _LeastSquares(*_both(u, v), UNIT, CROSS_TABLE, tables, weight / chroma)
        self._weight, self._share = weight, chroma

    def choose(self, sources: Sequence[LoopFilter]) -> ChosenFilter | None:
        """The filter that pays most; None: none does.

        Args:
            sources: of the references, in their order.
        """
        best, most = None, 8 * self._weight  # the mode's byte
        for number, source in enumerate((NO_FILTER, *sources)):
            if number and source in (NO_FILTER, *sources[: number - 1]):
                continue
            gain, found = self._from(source, number)
            if gain > most:
                best, most = found, gain
        return best

    def choose_level(self, below: LoopFilter) -> ChosenFilter:
        """A quality level's: that of the levels below, or one that pays more."""
        _, found = self._from(below, 0)
        mode = found.mode
        numbers = [mode.luma, mode.chroma, int(mode.busy), int(mode.cross)]
        return replace(found, changes=[(numbers, MODE_TABLE), *found.changes])

    def _from(self, source: LoopFilter, number: int) -> tuple[float, ChosenFilter]:
        """(squared error saved less what the bits are worth, the filter) from a source."""
        luma, chroma = self._luma.best(source.luma), self._chroma.best(source.chroma)
        mode = FilterMode(
            source=number,
            luma=luma.choice,
            chroma=chroma.choice,
            busy=luma.more,
            cross=chroma.more,
        )
        found = LoopFilter(luma.coefficients, chroma.coefficients)
        gain = luma.gain + self._share * chroma.gain
        return gain, ChosenFilter(mode, found, luma.changes + chroma.changes)


class Filters:
    """Chooses filters for reconstructions of a picture.

    Args:
        x: the original. size: rows and columns of the picture.
        sources: filters of the references, in their order.
        weight: squared error that a bit of the base is worth. chroma: what an error of chroma
            counts.
    """

    def __init__(
        self,
        x: Planes,
        size: Size,
        sources: Sequence[LoopFilter],
        tables: TableSet,
        weight: float,
        chroma: float,
    ) -> None:
        self._x, self._size, self._sources, self._tables = x, size, sources, tables
        self._weight, self._chroma = weight, chroma

    def choose(self, planes: Planes) -> ChosenFilter | None:
        """The base's; None: no filter pays."""
        return self._worth(planes, 0).choose(self._sources)

    def choose_level(self, planes: Planes, drop: int, below: LoopFilter) -> ChosenFilter:
        """A quality level's.

        Args:
            drop: the base's qp less the level's. below: of the levels below.
        """
        return self._worth(planes, drop).choose_level(below)

    def filtered(self, planes: Planes) -> Planes:
        """What the base's filter makes of planes."""
        found = self.choose(planes)
        return planes if found is None else found.filter.apply(planes)

    def _worth(self, planes: Planes, drop: int) -> FilterWorth:
        weight = self._weight * 2.0 ** (-drop / 3)
        return FilterWorth(self._x, planes, self._size, self._tables, weight, self._chroma)


def _both(u: tuple[Array, Array], v: tuple[Array, Array]) -> tuple[Array, Array]:
    """Sums of both chroma planes, the last coefficients of each apart."""
    products, errors = np.zeros((CHROMA, CHROMA)), np.zeros(CHROMA)
    for number, (own, seen) in enumerate((u, v)):
        at = [*range(MAIN), *range(MAIN + number * EACH, MAIN + (number + 1) * EACH)]
        products[np.ix_(at, at)] += own
        errors[at] += seen
    return products, errors


@dataclass(frozen=True, slots=True)
class _Found:
    """Coefficients that were fitted.

    Args:
        gain: squared error saved, less what the bits are worth.
        choice: of TABLES, for the main ones. more: whether others differ as well.
        changes: see ChosenFilter.
    """

    gain: float
    coefficients: Coefficients
    choice: int
    more: bool
    changes: list[tuple[list[int], int]]


class _LeastSquares:
    """Least squares over coefficients that are coded.

    Args:
        products: (N, N) of features. errors: (N,) of features and errors.
        unit: of the coefficients after the main ones. table: of their differences.
        weight: squared error that a bit is worth.
    """

    def __init__(
        self,
        products: Array,
        errors: Array,
        unit: int,
        table: int,
        tables: TableSet,
        weight: float,
    ) -> None:
        count = len(errors)
        scale = np.full(count, 1.0 / unit)
        scale[:MAIN] = 1.0 / UNIT
        self._products, self._errors = products * np.outer(scale, scale), errors * scale
        self._weight, self._table = weight, table
        bits = tables.bits.numpy()
        self._bits, self._more_bits = bits[list(TABLES[1:])], bits[table]
        stiff = STIFF * np.trace(self._products) / count + 1e-9
        exact = np.linalg.solve(self._products + stiff * np.eye(count), self._errors)
        self._start = np.clip(np.rint(exact), -LIMIT, LIMIT)

    def best(self, source: Coefficients) -> _Found:
        """What pays most where the source's coefficients cost nothing."""
        begin = np.array(source, dtype=np.float64)
        found = [_Found(self._gain(begin), source, 0, False, [])]
        for free in (MAIN, len(begin)):
            for start in (begin, np.concatenate([self._start[:free], begin[free:]])):
                found.append(self._coded(self._descend(start, begin, free), begin))
        return max(found, key=lambda each: each.gain)

    def _coded(self, coefficients: Array, source: Array) -> _Found:
        changes = (coefficients - source).astype(np.int64)
        main, more = changes[:MAIN], changes[MAIN:]
        choice, bits, coded = 0, 0.0, []
        if main.any():
            each = self._bits[:, np.abs(main)].sum(axis=1)
            choice = 1 + int(each.argmin())
            bits += float(each.min())
            coded.append((main.tolist(), TABLES[choice]))
        if more.any():
            bits += float(self._more_bits[np.abs(more)].sum())
            coded.append((more.tolist(), self._table))
        return _Found(
            self._gain(coefficients) - self._weight * bits,
            tuple(int(c) for c in coefficients),
            choice,
            bool(more.any()),
            coded,
        )

    def _gain(self, coefficients: Array) -> float:
        """Squared error that a filter saves."""
        products = self._products @ coefficients
        return float(2 * coefficients @ self._errors - coefficients @ products)

    def _descend(self, start: Array, source: Array, free: int) -> Array:
        """The first ones, one after the other, put where they are best, their bits counted in."""
        from vcfilter._native import loop  # late: training needs none

        price = PRICE * self._weight
        return loop.descend(self._products, self._errors, start, source, free, price, LIMIT, SWEEPS)


def _pairs(plane: Tensor) -> Tensor:
    """(2, 6, B, C, H, W): both differences of each pair to the sample."""
    rows, columns = plane.shape[2:]
    padded = F.pad(plane, (REACH, REACH, REACH, REACH), mode="replicate")

    def shifted(down: int, right: int) -> Tensor:
        top, left = REACH + down, REACH + right
        return padded[..., top : top + rows, left : left + columns]

    sides = [shifted(*p) for p in PAIRS], [shifted(-down, -right) for down, right in PAIRS]
    return torch.stack([torch.stack(side) for side in sides]) - plane


def features_of(plane: Tensor, guide: Tensor | None) -> Tensor:
    """(18, B, C, H, W) features, see native/filters.h."""
    pairs = _pairs(plane)
    whole = pairs.sum(0)
    if guide is not None:
        third = _pairs(guide).sum(0)
    else:
        # Second differences across and down: of the first two pairs.
        sharp = F.pad(whole[:2].abs().sum(0), (REACH,) * 4, mode="replicate")
        mean = F.avg_pool2d(sharp, 2 * REACH + 1, stride=1)
        third = whole * (mean / (mean + BUSY))
    return torch.cat([pairs.clamp(-CLIP, CLIP).sum(0), whole, third])


def _filtered(plane: Tensor, guide: Tensor | None, coefficients: Coefficients, unit: int) -> Tensor:
    """plane plus its weighted features; on a CPU the native loop works, the same rule.

    Args:
        unit: of the last six coefficients.
    """
    weights = np.array(coefficients, dtype=np.float32) / np.float32(UNIT)
    weights[MAIN:] *= np.float32(UNIT / unit)
    if is_native(plane):
        from vcfilter._native import loop  # late: training needs none

        found = torch.empty(plane.shape)
        sources = plane.contiguous().numpy()[:, 0]
        guides = [None] * len(sources) if guide is None else guide.contiguous().numpy()[:, 0]
        for one, other, out in zip(sources, guides, found.numpy()[:, 0], strict=True):
            loop.loop_filter(one, other, CLIP, BUSY, weights, out)
        return found
    parts = features_of(plane, guide) * torch.from_numpy(weights).to(plane).view(-1, 1, 1, 1, 1)
    return plane + parts.sum(0)


def _sums(x: Tensor, plane: Tensor, guide: Tensor | None, size: Size) -> tuple[Array, Array]:
    """((18, 18) products of features, (18,) products of features and errors) in the picture.

    Args:
        x, plane, guide: (1, 1, H, W).
    """
    rows, columns = size
    if is_native(x, plane):
        from vcfilter._native import loop  # late: training needs none

        one, target = plane[0, 0].contiguous().numpy(), x[0, 0].contiguous().numpy()
        other = None if guide is None else guide[0, 0].contiguous().numpy()
        sums = loop.loop_sums(one, other, target, rows, columns, CLIP, BUSY)
        products = np.empty((LUMA, LUMA))
        high = np.triu_indices(LUMA)
        products[high] = products.T[high] = sums[:-LUMA]
        return products, sums[-LUMA:]
    inside = features_of(plane, guide)[:, 0, 0, :rows, :columns].flatten(1)
    error = (x - plane)[0, 0, :rows, :columns].flatten()
    found = (inside @ torch.cat([inside, error[None]]).T).double().cpu().numpy()  # (18, 19)
    return found[:, :LUMA], found[:, LUMA]
