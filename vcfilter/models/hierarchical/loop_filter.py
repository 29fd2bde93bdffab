"""The loop filter: what quantisation left in a reconstruction, smoothed before others refer to it.

A sample is moved towards its neighbours by twelve coefficients per kind of plane: of six pairs of
opposite neighbours, the differences to the sample cut off at a few steps, which smooths and leaves
edges, and the differences as they are. The encoder finds the coefficients by least squares against
the original, as those of an adaptive loop filter; they are integers, stand in the base's bytes and
are coded as differences to those of a reference. Only pixels follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.entropy.coder import Reader, TableSet
from vcfilter.errors import BitstreamError
from vcfilter.models.hierarchical.blocks import Planes, Size, finish
from vcfilter.models.hierarchical.mode import FilterMode
from vcfilter.nn.native import is_native

PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # down and right; the other lies opposite
REACH = 2
COUNT = 2 * len(PAIRS)
CLIP = 6.0  # samples in 8-bit units, at which a difference is cut off
UNIT = 32  # a coefficient of so much moves a sample by the whole difference
LIMIT = 127  # of a coefficient's magnitude
TABLES = (0, 13, 18, 23, 28, 33, 38, 43)  # of the coefficients' differences; 0: there are none
SWEEPS = 12  # through the coefficients, at most
STIFF = 1e-5  # of the mean diagonal, keeps least squares away from coefficients that cost much
PRICE = 1.0  # bits that a unit of a difference is taken to cost, until tables tell

Coefficients = tuple[int, ...]
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoopFilter:
    """Coefficients in units of 1/32, twelve of luma and twelve of both chroma planes.

    Of each the first six are of differences that are cut off, see `PAIRS`.
    """

    luma: Coefficients = (0,) * COUNT
    chroma: Coefficients = (0,) * COUNT

    def apply(self, planes: Planes, size: Size | None) -> Planes:
        """Filtered planes within 0 to 255; outside the picture its border repeats."""
        kinds = self.luma, self.chroma, self.chroma
        if not any(map(any, kinds)):
            return planes
        y, u, v = (_filtered(p, k) if any(k) else p for p, k in zip(planes, kinds, strict=True))
        return finish((y, u, v), size)


NO_FILTER = LoopFilter()


def read(mode: FilterMode | None, sources: Sequence[LoopFilter], reader: Reader) -> LoopFilter:
    """A frame's filter, whose differences a reader reads.

    Args:
        sources: of the references, in their order.

    Raises:
        BitstreamError: a coefficient is too large.
    """
    if mode is None:
        return NO_FILTER
    source = sources[mode.source - 1] if mode.source else NO_FILTER
    found = []
    for known, choice in ((source.luma, mode.luma), (source.chroma, mode.chroma)):
        if choice:
            index = torch.full((COUNT,), float(TABLES[choice]))
            changes = reader.symbols(index).to(torch.int64).tolist()
            known = tuple(a + b for a, b in zip(known, changes, strict=True))
            if max(map(abs, known)) > LIMIT:
                raise BitstreamError(f"a coefficient of the loop filter passes {LIMIT}")
        found.append(known)
    return LoopFilter(*found)


@dataclass(frozen=True, slots=True, eq=False)
class ChosenFilter:
    """What an encoder chose.

    Args:
        mode: how it is coded. filter: what it is.
        changes: (differences, their table) of each kind of planes that has any, in coding order.
    """

    mode: FilterMode
    filter: LoopFilter
    changes: list[tuple[list[int], int]]


def choose(
    x: Planes,
    planes: Planes,
    size: Size,
    sources: Sequence[LoopFilter],
    tables: TableSet,
    weight: float,
    chroma: float,
) -> ChosenFilter | None:
    """The filter that pays most; None: none does.

    Args:
        x: the original. planes: its reconstruction. size: rows and columns of the picture.
        sources: of the references, in their order.
        weight: squared error that a bit is worth. chroma: what an error of chroma counts.
    """
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    y, u, v = (_sums(a, b, s) for a, b, s in zip(x, planes, (size, half, half), strict=True))
    fits = (
        _Fit(y[0], y[1], tables, weight),
        _Fit(chroma * (u[0] + v[0]), chroma * (u[1] + v[1]), tables, weight),
    )
    best: ChosenFilter | None = None
    most = 8 * weight  # the mode's byte
    for number, source in enumerate((NO_FILTER, *sources)):
        if number and source in (NO_FILTER, *sources[: number - 1]):
            continue
        known = source.luma, source.chroma
        own = [fit.best(each) for fit, each in zip(fits, known, strict=True)]
        gain = sum(found.gain for found in own)
        if gain <= most:
            continue
        most = gain
        changes = [
            ([a - b for a, b in zip(found.coefficients, each, strict=True)], TABLES[found.choice])
            for found, each in zip(own, known, strict=True)
            if found.choice
        ]
        best = ChosenFilter(
            FilterMode(source=number, luma=own[0].choice, chroma=own[1].choice),
            LoopFilter(own[0].coefficients, own[1].coefficients),
            changes,
        )
    return best


@dataclass(frozen=True, slots=True)
class _Found:
    gain: float  # squared error saved, less what the bits are worth
    coefficients: Coefficients
    choice: int  # of TABLES


class _Fit:
    """Least squares over coefficients that are coded.

    Args:
        products: (12, 12) of features. errors: (12,) of features and errors.
        weight: squared error that a bit is worth.
    """

    def __init__(self, products: Sums, errors: Sums, tables: TableSet, weight: float) -> None:
        self._products, self._errors = products / UNIT**2, errors / UNIT
        self._weight = weight
        self._bits = tables.bits.numpy()[list(TABLES)]
        stiff = STIFF * np.trace(self._products) / COUNT + 1e-9
        exact = np.linalg.solve(self._products + stiff * np.eye(COUNT), self._errors)
        self._start = np.clip(np.rint(exact), -LIMIT, LIMIT)

    def best(self, known: Coefficients) -> _Found:
        """What pays most where `known` costs nothing."""
        source = np.array(known, dtype=np.float64)
        found = [_Found(self._gain(source), known, 0)]
        for start in (source, self._start):
            coefficients = self._descend(start, source)
            changes = np.abs(coefficients - source).astype(np.int64)
            if changes.any():
                bits = self._bits[1:, changes].sum(axis=1)
                choice = int(bits.argmin())
                gain = self._gain(coefficients) - self._weight * float(bits[choice])
                whole = tuple(int(c) for c in coefficients)
                found.append(_Found(gain, whole, 1 + choice))
        return max(found, key=lambda each: each.gain)

    def _gain(self, coefficients: Sums) -> float:
        """Squared error that a filter saves."""
        products = self._products @ coefficients
        return float(2 * coefficients @ self._errors - coefficients @ products)

    def _descend(self, start: Sums, source: Sums) -> Sums:
        """One coefficient after the other put where it is best, its bits counted in."""
        found = start.copy()
        rest = self._errors - self._products @ found
        diagonal = np.maximum(np.diag(self._products), 1e-9)
        dead = PRICE * self._weight / (2 * diagonal)
        for _ in range(SWEEPS):
            changed = False
            for i in range(COUNT):
                away = found[i] + rest[i] / diagonal[i] - source[i]
                near = source[i] + np.sign(away) * max(0.0, abs(away) - dead[i])
                new = min(max(round(float(near)), -LIMIT), LIMIT)
                if new != found[i]:
                    rest -= self._products[i] * (new - found[i])
                    found[i] = new
                    changed = True
            if not changed:
                break
        return found


def _pairs(plane: Tensor) -> Tensor:
    """(2, 6, B, C, H, W): both differences of each pair to the sample."""
    rows, columns = plane.shape[2:]
    padded = F.pad(plane, (REACH, REACH, REACH, REACH), mode="replicate")

    def moved(down: int, right: int) -> Tensor:
        top, left = REACH + down, REACH + right
        return padded[..., top : top + rows, left : left + columns]

    sides = [moved(*p) for p in PAIRS], [moved(-down, -right) for down, right in PAIRS]
    return torch.stack([torch.stack(side) for side in sides]) - plane


def _filtered(plane: Tensor, coefficients: Coefficients) -> Tensor:
    """plane plus its weighted features; on a CPU the native loop works, the same rule."""
    if is_native(plane):
        from vcfilter._native import loop  # late: training needs none

        weights = np.array(coefficients, dtype=np.float32) / np.float32(UNIT)
        found = torch.empty(plane.shape)
        for source, target in zip(plane.contiguous().numpy(), found.numpy(), strict=True):
            for one, out in zip(source, target, strict=True):
                loop.loop_filter(one, CLIP, weights, out)
        return found
    pairs = _pairs(plane)
    cut, whole = (plane.new_tensor(c) / UNIT for c in (coefficients[:6], coefficients[6:]))
    parts = pairs.clamp(-CLIP, CLIP) * cut.view(6, 1, 1, 1, 1) + pairs * whole.view(6, 1, 1, 1, 1)
    return plane + parts.sum((0, 1))


def _sums(x: Tensor, plane: Tensor, size: Size) -> tuple[Sums, Sums]:
    """((12, 12) products of features, (12,) products of features and errors) in the picture.

    Args:
        x, plane: (1, 1, H, W).
    """
    rows, columns = size
    if is_native(x, plane):
        from vcfilter._native import loop  # late: training needs none

        sums = loop.loop_sums(
            plane[0, 0].contiguous().numpy(), x[0, 0].contiguous().numpy(), rows, columns, CLIP
        )
        products = np.empty((COUNT, COUNT))
        high = np.triu_indices(COUNT)
        products[high] = products.T[high] = sums[:-COUNT]
        return products, sums[-COUNT:]
    pairs = _pairs(plane)
    features = torch.cat([pairs.clamp(-CLIP, CLIP).sum(0), pairs.sum(0)])
    inside = features[:, 0, 0, :rows, :columns].flatten(1)
    error = (x - plane)[0, 0, :rows, :columns].flatten()
    both = inside @ torch.cat([inside, error[None]]).T  # (12, 13)
    found = both.double().cpu().numpy()
    return found[:, :COUNT], found[:, COUNT]
