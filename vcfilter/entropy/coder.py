"""The three coders of one walk: encoding, decoding and rate-estimating.

The first and the last have `code(u, index, rd_scale)`: u is what is to be quantised, in steps,
index the table of each symbol; the result are the symbols, the same shape. The second has
`symbols(index)`. This module is the only door to constriction, whose words are part of the
bitstream (pinned version, float64 probabilities, perfect=False, 32-bit range coder).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import constriction
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vcfilter.entropy import tables
from vcfilter.errors import BitstreamError
from vcfilter.fused import fused

# Lagrangian of the quantiser in squared steps per bit: 2 ln 2 / 12 is the slope of a fine uniform
# quantiser's rate-distortion curve.
QUANTISER_LAMBDA = 2 * math.log(2) / 12
ESCAPE_BITS = 20
LEVEL_MAX = 2.0 ** (ESCAPE_BITS - 1)

Integers = npt.NDArray[np.int32]


class TableSet:
    """The model's frozen tables, ready for all three coders.

    Args:
        magnitudes: (64 or more, 257) float64 probabilities of magnitudes (see `tables`), at most
            128.
    """

    def __init__(self, magnitudes: tables.Probabilities) -> None:
        self.magnitudes = magnitudes
        self.lengths = [tables.support(magnitudes, k) for k in range(len(magnitudes))]
        self.models = [
            constriction.stream.model.Categorical(tables.alphabet(magnitudes, k), perfect=False)
            for k in range(len(magnitudes))
        ]
        bits = tables.cost_bits(magnitudes)
        self.bits = torch.from_numpy(bits).to(torch.float32)
        self._on: dict[torch.device, Tensor] = {}

    def bits_on(self, device: torch.device) -> Tensor:
        """(tables, 257) float32 bits per magnitude on a device."""
        if device not in self._on:
            self._on[device] = self.bits.to(device)
        return self._on[device]


class Coder(Protocol):
    """What the walk needs of a coder that writes or estimates."""

    @property
    def bits(self) -> Tensor:
        """(tables, 257) float32 bits per table and magnitude."""
        ...

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """Symbols for u under the tables of index, all of one shape."""
        ...


class Reader(Protocol):
    """What the walk needs of a coder that reads."""

    def symbols(self, index: Tensor) -> Tensor:
        """The next symbols, under the tables of index, of its shape and precision."""
        ...


def quantise(u: Tensor, index: Tensor, bits: Tensor, rd_scale: Tensor | float) -> Tensor:
    """Integers near u that are cheapest in squared error (in steps) plus rate.

    Args:
        u: values in steps. index: int64 tables, same shape. bits: (64, 257) cost table.
        rd_scale: factor on the Lagrangian, broadcastable to u.
    """
    magnitude = u.abs()
    high = torch.floor(magnitude + 0.5)
    low = (high - 1).clamp(min=0)
    width = bits.shape[1]
    flat = bits.view(-1)
    row = index * width
    weight = QUANTISER_LAMBDA * rd_scale

    def cost(level: Tensor) -> Tensor:
        rate = flat[row + level.clamp(max=width - 1).long()]
        return (magnitude - level) ** 2 + weight * rate

    cost_low = cost(low)
    level = torch.where(cost(high) < cost_low, high, low)
    best = torch.minimum(cost(level), cost_low)
    level = torch.where(magnitude**2 + weight * flat[row] <= best, torch.zeros_like(level), level)
    level = torch.where(index == tables.SKIP, torch.zeros_like(level), level)
    return level.clamp(max=LEVEL_MAX) * u.sign()


Entry: TypeAlias = "tuple[Tensor, Tensor]"
"""Symbols and their tables, flat integers on the device, as one call of `code` chose them."""


class EncodingCoder:
    """Chooses symbols, which stay where they are; `finish` moves them all at once and encodes."""

    def __init__(self, table_set: TableSet) -> None:
        self._tables = table_set
        self._entries: list[Entry] = []

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """Quantise u (rate-distortion optimally) and keep the symbols for `finish`.

        On a CPU the native quantiser works, elsewhere the same rule in PyTorch.
        """
        whole = torch.floor(index + 0.5)
        if u.device.type == "cpu":
            symbols = self._quantise(u, whole, rd_scale)
        else:
            bits = self._tables.bits_on(u.device)
            symbols = quantise(u, whole.long(), bits, rd_scale)
        self._entries.append((symbols.reshape(-1), whole.reshape(-1)))
        return symbols

    def _quantise(self, u: Tensor, whole: Tensor, rd_scale: Tensor | float) -> Tensor:
        weight: float | npt.NDArray[np.float32]
        if isinstance(rd_scale, Tensor):
            scale = (QUANTISER_LAMBDA * rd_scale).expand(u.shape)
            weight = np.ascontiguousarray(scale.reshape(-1).numpy(), dtype=np.float32)
        else:
            weight = QUANTISER_LAMBDA * rd_scale
        values = np.ascontiguousarray(u.reshape(-1).numpy(), dtype=np.float32)
        tables_ = whole.reshape(-1).numpy().astype(np.uint8)
        from vcfilter._native import symbols as native  # late: training needs none

        chosen = native.quantise(values, tables_, self._tables.bits.numpy(), weight, LEVEL_MAX)
        return torch.from_numpy(chosen).to(u.dtype).view(u.shape)

    @property
    def bits(self) -> Tensor:
        """(tables, 257) float32 bits per magnitude; see `TableSet`."""
        return self._tables.bits

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was chosen so far: another coder takes it with `repeat`."""
        return tuple(self._entries)

    def repeat(self, entries: Sequence[Entry]) -> None:
        """Append what another coder chose."""
        self._entries += entries

    def size(self) -> float:
        """How many bytes `finish` will give, about; escapes count little."""
        if not self._entries:
            return 0.0
        symbols, index = (torch.cat(parts) for parts in zip(*self._entries, strict=True))
        bits = self._tables.bits_on(symbols.device)
        width = bits.shape[1]
        spent = bits.view(-1)[(index * width + symbols.abs().clamp(max=width - 1)).long()]
        return float((spent * (index != tables.SKIP)).sum()) / 8

    def finish(self) -> bytes:
        """The bytes of all symbols; empty when none was coded."""
        if not self._entries:
            return b""
        # Both fit 24 bits and more: one transfer from a device, however many steps there were.
        packed = [(s.to(torch.int32) << 7) + t.to(torch.int32) for s, t in self._entries]
        flat = torch.cat(packed).cpu().numpy()
        encoder = RangeEncoder(self._tables)
        start = 0
        for symbols, _ in self._entries:
            part = flat[start : start + len(symbols)]
            encoder.encode(part >> 7, (part & 127).astype(np.uint8))
            start += len(symbols)
        return encoder.finish()


class RangeEncoder:
    """Encodes symbols under given tables; the mirror of `DecodingCoder`."""

    def __init__(self, table_set: TableSet) -> None:
        self._tables = table_set
        self._encoder = constriction.stream.queue.RangeEncoder()
        self._used = False

    def encode(self, symbols: Integers, index: npt.NDArray[np.uint8]) -> None:
        """Append symbols, grouped by table in rising order, each group in its own order."""
        escapes: list[int] = []
        for table, chosen in groups(index):
            values = symbols[chosen]
            length = self._tables.lengths[table]
            codes = values + length
            outside = np.abs(values) > length
            if outside.any():
                escapes.extend(int(v) for v in values[outside])
                codes[outside] = 2 * length + 1
            self._encoder.encode(np.ascontiguousarray(codes), self._tables.models[table])
            self._used = True
        for value in escapes:
            self._encode_escape(value)

    def _encode_escape(self, value: int) -> None:
        uniform = constriction.stream.model.Uniform
        size = abs(value).bit_length()
        self._encoder.encode(size, uniform(ESCAPE_BITS + 1))
        self._encoder.encode(int(value < 0), uniform(2))
        self._encoder.encode(abs(value) - (1 << (size - 1)), uniform(max(2, 1 << (size - 1))))

    def finish(self) -> bytes:
        """The bytes of all symbols; empty when none was encoded."""
        if not self._used:
            return b""
        return bytes(self._encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class DecodingCoder:
    """Decodes the symbols that a `RangeEncoder` encoded.

    Raises:
        BitstreamError: the bytes cannot be a range coder's output.
    """

    def __init__(self, table_set: TableSet, data: bytes) -> None:
        self._tables = table_set
        words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype="<u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def symbols(self, index: Tensor) -> Tensor:
        """Read the symbols of the given tables."""
        # None is negative: what the conversion cuts off is the fraction.
        tables_ = (index.cpu().numpy().reshape(-1) + np.float32(0.5)).astype(np.uint8)
        symbols = torch.from_numpy(self.decode(tables_).astype(np.float32))
        return symbols.to(index.device, index.dtype).view(index.shape)

    def decode(self, index: npt.NDArray[np.uint8]) -> Integers:
        """(N,) int32 symbols for (N,) tables."""
        symbols = np.zeros(index.shape, dtype=np.int32)
        found = groups(index)
        if not found:
            return symbols
        try:
            parts = [
                self._decoder.decode(self._tables.models[table], len(chosen))
                for table, chosen in found
            ]
            positions = np.concatenate([chosen for _, chosen in found])
            length = np.repeat(
                [self._tables.lengths[table] for table, _ in found], [len(p) for p in parts]
            )
            values = np.concatenate(parts) - length
            symbols[positions] = values
            for position in positions[values > length]:
                symbols[position] = self._decode_escape()
        except (AssertionError, ValueError) as error:
            raise BitstreamError(f"coded symbols are damaged: {error}") from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise BitstreamError("coded symbols are damaged") from None
        return symbols

    def _decode_escape(self) -> int:
        uniform = constriction.stream.model.Uniform
        size = int(self._decoder.decode(uniform(ESCAPE_BITS + 1)))
        negative = int(self._decoder.decode(uniform(2)))
        low = int(self._decoder.decode(uniform(max(2, 1 << max(0, size - 1)))))
        if size == 0 or low >= 1 << (size - 1):
            raise BitstreamError("coded symbols are damaged: an escape is out of range")
        magnitude = (1 << (size - 1)) + low
        return -magnitude if negative else magnitude


class RateCoder:
    """Chooses symbols and counts their bits.

    Args:
        bits: (64, 257) bits per table and magnitude.
        batch: how many frames go through at once; rates are kept apart.
    """

    def __init__(self, bits: Tensor, batch: int) -> None:
        self.bits = bits
        self.total = torch.zeros(batch, device=bits.device)

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """Quantise u as an `EncodingCoder` does; adds the symbols' bits to `total`."""
        symbols, spent = _estimate(*_by_frame(u, index, rd_scale), self.bits)
        self.total = self.total + spent
        return symbols.view(u.shape)


class TrainingCoder(RateCoder):
    """The same symbols, and a differentiable rate."""

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """Symbols (rounded, the gradient passing through); adds their bits to `total`.

        The cost between two tables is interpolated, so that the index has a gradient; u has the
        slope of the cost over the magnitude and passes through the rounding, by half where the
        symbol is zero (whole, the wide dead zone inflates the latent, and not at all, it
        shrinks); and what is left out under the first table counts as if it were coded, so that
        training learns to avoid it.
        """
        symbols, spent = _estimate_through(*_by_frame(u, index, rd_scale), self.bits)
        self.total = self.total + spent
        return symbols.view(u.shape)


def _by_frame(
    u: Tensor, index: Tensor, rd_scale: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """What is coded of each frame in one row: compiled functions see one kind of shape."""
    if isinstance(rd_scale, Tensor):
        rd_scale = rd_scale.expand(u.shape).flatten(1)
    return u.flatten(1), index.flatten(1), rd_scale


@fused
def _estimate(
    u: Tensor, index: Tensor, rd_scale: Tensor | float, bits: Tensor
) -> tuple[Tensor, Tensor]:
    """Symbols of (B, count), and (B,) their bits; see `RateCoder`."""
    width = bits.shape[1]
    whole = torch.floor(index + 0.5).long()
    symbols = quantise(u, whole, bits, rd_scale)
    level = symbols.abs().clamp(max=width - 1).long()
    spent = bits.view(-1)[whole * width + level] * (whole != tables.SKIP)
    return symbols, spent.sum(1)


@fused
def _estimate_through(
    u: Tensor, index: Tensor, rd_scale: Tensor | float, bits: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with gradients; see `TrainingCoder`."""
    width = bits.shape[1]
    flat = bits.view(-1)
    with torch.no_grad():
        whole = torch.floor(index + 0.5).long()
        coded = quantise(u, whole.clamp(min=tables.SKIP + 1), bits, rd_scale)
        symbols = coded * (whole != tables.SKIP)
        level = coded.abs().clamp(max=width - 3).long()  # the last column is the escape
        low = index.floor().clamp(0, tables.TABLES - 2).long()
        base = low * width + level
        below, above = flat[base], flat[base + width]
        passing = 0.5 + 0.5 * (symbols != 0)
        slope = passing * (flat[base + 1] - flat[base - (level > 0).long()]) / 2 * u.sign()
    rate = below + (index - low) * (above - below)
    through = u - u.detach()
    return symbols + passing * through, (rate + slope * through).sum(1)


def groups(index: npt.NDArray[np.uint8]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """(table, positions) for each table in use above SKIP, rising; positions rise within each."""
    order = np.argsort(index, kind="stable")
    counts = np.bincount(index)
    ends = np.cumsum(counts)
    return [
        (k, order[ends[k] - counts[k] : ends[k]])
        for k in range(tables.SKIP + 1, len(counts))
        if counts[k]
    ]
