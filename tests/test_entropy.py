"""Range coding with the frozen tables, exact layers, native quantiser."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest
import torch

from vcfilter._native import symbols as native_symbols
from vcfilter.entropy import tables
from vcfilter.entropy.coder import (
    LEVEL_MAX,
    QUANTISER_LAMBDA,
    DecodingCoder,
    EncodingCoder,
    RangeEncoder,
    RateCoder,
    TableSet,
    quantise,
)
from vcfilter.errors import BitstreamError
from vcfilter.nn.exact import (
    SUM_BOUND,
    ExactDepthwise,
    ExactLinear,
    activate,
    check_bound,
    project,
)

SET = TableSet(tables.laplace_magnitudes())
# Words of constriction 0.5.0 (float64 probabilities, perfect=False): they are part of the format.
GOLDEN = (256, "221b3cf95541fb71")


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, tables.TABLES, count).astype(np.uint8)
    scale = tables.scales()[index]
    symbols = np.round(rng.laplace(0, scale)).astype(np.int32)
    symbols[index == tables.SKIP] = 0
    return symbols, index


@pytest.mark.parametrize("count", [1, 2, 97, 5000])
def test_round_trip(count: int) -> None:
    symbols, index = draw(count, count)
    if count > 90:
        symbols[np.flatnonzero(index > 0)[:4]] = [400_000, -300, 257, -256]
    coder = RangeEncoder(SET)
    coder.encode(symbols, index)
    assert np.array_equal(DecodingCoder(SET, coder.finish()).decode(index), symbols)


def test_what_one_coder_wrote_another_repeats() -> None:
    rng = np.random.default_rng(2)
    first = EncodingCoder(SET)
    for _ in range(3):
        u = torch.from_numpy(rng.laplace(0, 3, 400)).float()
        first.code(u, torch.from_numpy(rng.integers(0, 64, 400)).float())
    second = EncodingCoder(SET)
    second.repeat(first.entries)
    assert second.finish() == first.finish() != b""


def test_nothing_written_is_no_bytes() -> None:
    coder = RangeEncoder(SET)
    coder.encode(np.zeros(50, np.int32), np.zeros(50, np.uint8))
    assert coder.finish() == b""
    assert not DecodingCoder(SET, b"").decode(np.zeros(50, np.uint8)).any()


def test_golden_words() -> None:
    # Integers only, so that no random generator's version can change the input.
    number = np.arange(600)
    index = (number * 7 % 64).astype(np.uint8)
    symbols = ((number * 31 % 17) - 8).astype(np.int32) * (index > 20) * (number % 3 == 0)
    coder = RangeEncoder(SET)
    coder.encode(symbols.astype(np.int32), index)
    data = coder.finish()
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == GOLDEN


def test_estimated_rate_is_the_coded_rate() -> None:
    symbols, index = draw(40_000, 3)
    symbols = np.clip(symbols, -255, 255)
    coder = RangeEncoder(SET)
    coder.encode(symbols, index)
    rate = RateCoder(SET.bits, 1)
    u = torch.from_numpy(symbols).float()[None]
    with torch.no_grad():
        rate.code(u, torch.from_numpy(index).float()[None], 0.0)
    # Escapes carry a suffix that the estimate leaves out; there are hardly any in real latents.
    assert float(rate.total) / 8 == pytest.approx(len(coder.finish()), rel=0.01)


def test_damage_is_an_error_or_numbers_but_never_a_crash() -> None:
    symbols, index = draw(3000, 5)
    coder = RangeEncoder(SET)
    coder.encode(symbols, index)
    data = coder.finish()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        cut = bytes(damaged[: rng.integers(len(data) + 1)])
        with contextlib.suppress(BitstreamError):
            assert DecodingCoder(SET, cut).decode(index).shape == symbols.shape


def test_tables_are_distributions() -> None:
    magnitudes = tables.laplace_magnitudes()
    assert np.allclose(magnitudes.sum(1), 1)
    assert (magnitudes > 0).all()
    zero = magnitudes[:, 0]
    assert (np.diff(zero) < 0).all()  # rising scale: ever fewer zeros
    assert zero[0] == pytest.approx(1 - 1 / 2000, rel=1e-4)
    for table in range(tables.TABLES):
        assert tables.alphabet(magnitudes, table).sum() == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1, 63, 4097])
@pytest.mark.parametrize("per_symbol", [False, True])
def test_native_quantiser_equals_plain(count: int, per_symbol: bool) -> None:
    rng = np.random.default_rng(count)
    u = (rng.laplace(0, 3, count)).astype(np.float32)
    index = rng.integers(0, 64, count).astype(np.uint8)
    if count > 60:
        u[:4] = [1e7, -1e7, 0.5, -0.5]
    scale = rng.uniform(0.3, 30, count).astype(np.float32) if per_symbol else 1.0
    plain = quantise(
        torch.from_numpy(u),
        torch.from_numpy(index).long(),
        SET.bits,
        torch.from_numpy(scale) if per_symbol else 1.0,
    )
    weight = QUANTISER_LAMBDA * scale
    native = native_symbols.quantise(u, index, SET.bits.numpy(), weight, LEVEL_MAX)
    # A tie between two levels may fall either way: the plain one adds in another order.
    assert np.mean(native != plain.numpy().astype(np.int32)) <= 0.001 if count else len(native) == 0
    assert not native[index == tables.SKIP].any()


def test_symbols_chosen_on_a_device_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of other devices, taken on the CPU: PyTorch quantises, one move at the end."""
    rng = np.random.default_rng(4)
    parts = [
        (torch.from_numpy(rng.laplace(0, 3, n)).float(), torch.from_numpy(rng.uniform(0, 63, n)))
        for n in (700, 1, 1300)
    ]
    moves: list[torch.Size] = []

    def code() -> bytes:
        coder = EncodingCoder(SET)
        for u, index in parts:
            coder.code(u, index.float())
        return coder.finish()

    native = code()
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(
        EncodingCoder, "_quantise", lambda _, u, t, s: quantise(u, t.long(), SET.bits, s)
    )
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: moves.append(t.shape) or cpu(t))
    assert code() == native
    assert moves == [torch.Size((2001,))]


def test_tables_that_are_none_are_found() -> None:
    good = tables.laplace_magnitudes()
    assert tables.fault(good) is None
    assert (
        tables.fault(tables.normalise(np.abs(np.random.default_rng(0).normal(size=good.shape))))
        is None
    )
    for place, value in (((3, 4), np.nan), ((3, 4), 0.0), ((3, 4), -1.0), ((0, 0), 0.5)):
        bad = good.copy()
        bad[place] = value
        assert tables.fault(bad)
    assert tables.fault(good[:, :-1]) and tables.fault(good.astype(np.float32))


def test_native_quantiser_checks_its_input() -> None:
    u, bits = np.zeros(3, np.float32), SET.bits.numpy()
    with pytest.raises(ValueError, match="3 values, 2 tables"):
        native_symbols.quantise(u, np.zeros(2, np.uint8), bits, 1.0, LEVEL_MAX)
    with pytest.raises(ValueError, match="table 64"):
        native_symbols.quantise(u, np.full(3, 64, np.uint8), bits, 1.0, LEVEL_MAX)


def test_exact_layers_are_the_same_at_every_precision_and_order() -> None:
    torch.manual_seed(0)
    linear, spatial = ExactLinear(300, 70), ExactDepthwise(24, 5)
    project(linear)
    project(spatial)
    assert check_bound(linear) < 1
    x = torch.randint(0, 256, (2, 50, 300)).double()
    grid = torch.randint(0, 256, (2, 24, 13, 9)).double()
    with torch.no_grad():
        order = torch.randperm(300)
        shuffled = torch.nn.functional.linear(
            x[..., order].float(), linear.integers()[0][:, order], linear.integers()[1]
        )
        assert torch.equal(linear(x), linear(x.float()).double())
        assert torch.equal(linear(x.float()), shuffled)
        assert torch.equal(spatial(grid), spatial(grid.float()).double())
        channels_last = grid.float().to(memory_format=torch.channels_last)
        assert torch.equal(spatial(grid.float()), spatial(channels_last))
        assert torch.equal(activate(linear(x)), activate(linear(x)).round().clamp(0, 255))


def test_weights_that_could_pass_the_bound_are_noticed_and_shrunk() -> None:
    linear = ExactLinear(400, 3)
    with torch.no_grad():
        linear.weight.fill_(100.0)
    assert check_bound(linear) > 1
    project(linear, share=0.3)
    assert 0.29 < check_bound(linear) < 0.31
    assert float(linear.bound().max()) < SUM_BOUND
