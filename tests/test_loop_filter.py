"""The loop filter: what it does to planes, what an encoder chooses, and how it is coded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import clip
from torch import Tensor
from torch.nn import functional as F

from vcfilter._native import loop
from vcfilter.codec import Decoder, Encoder
from vcfilter.entropy.coder import DecodingCoder, EncodingCoder, TableSet
from vcfilter.entropy.tables import laplace_magnitudes
from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameStep, FrameType, VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical import loop_filter
from vcfilter.models.hierarchical.blocks import Planes, finish
from vcfilter.models.hierarchical.loop_filter import (
    BUSY,
    CHROMA,
    CLIP,
    LIMIT,
    LUMA,
    NO_FILTER,
    PAIRS,
    TABLES,
    FilterWorth,
    LoopFilter,
)
from vcfilter.models.hierarchical.mode import FilterMode, HierarchicalMode
from vcfilter.models.hierarchical.values import Reference
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

KEY = FrameStep(type=FrameType.KEY, qp=28)
INTER = FrameStep(type=FrameType.INTER, qp=30, layer=1, number=12, references=(-2, 2))
SIZE = (45, 70)  # inside planes of 64x96
TABLE_SET = TableSet(laplace_magnitudes())


def planes(seed: int = 3) -> Planes:
    random = np.random.default_rng(seed)
    sides = ((64, 96), (32, 48), (32, 48))
    y, u, v = (
        torch.from_numpy(random.uniform(0, 255, (1, 1, *side)).astype(np.float32)) for side in sides
    )
    return finish((y, u, v), SIZE)


def shifted(plane: Tensor, down: int, right: int) -> Tensor:
    rows, columns = plane.shape[2:]
    p = F.pad(plane, (2, 2, 2, 2), mode="replicate")
    return p[..., 2 + down : 2 + down + rows, 2 + right : 2 + right + columns]


def by_hand(plane: Tensor, main: tuple[int, ...], third: Tensor) -> Tensor:
    """The definition, pair by pair; third: (6, B, 1, H, W) what the last coefficients added."""
    p, found = plane.double(), plane.double() + third.double().sum(0)
    for n, (down, right) in enumerate(PAIRS):
        for sign in (1, -1):
            away = shifted(p, sign * down, sign * right) - p
            found += away.clamp(-CLIP, CLIP) * main[n] / 32 + away * main[n + 6] / 32
    return found.float()


def sums_of_pairs(plane: Tensor) -> Tensor:
    sides = [(shifted(plane, *p), shifted(plane, -p[0], -p[1])) for p in PAIRS]
    return torch.stack([a + b - 2 * plane for a, b in sides])


@pytest.mark.parametrize("native", [True, False])
def test_planes_are_filtered_by_the_definition(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_filter, "is_native", lambda *_: native)
    luma = (7, -3, 2, 1, 0, -1, 4, 2, -1, 0, 3, -2, -5, 0, 2, 1, 0, 3)
    chroma = (0, 0, 5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, -3, 0, 0, 4)
    before = planes()
    y, u, v = before
    pairs = sums_of_pairs(y)
    sharp = F.pad(pairs[:2].abs().sum(0), (2, 2, 2, 2), mode="replicate")
    mean = F.avg_pool2d(sharp, 5, stride=1)
    busy = pairs * (mean / (mean + BUSY)) * torch.tensor(luma[12:]).view(6, 1, 1, 1, 1) / 8
    guide = sums_of_pairs(F.avg_pool2d(y, 2)) / 32
    cross = [guide * torch.tensor(chroma[k : k + 6]).view(6, 1, 1, 1, 1) for k in (12, 18)]
    wanted = finish(
        (
            by_hand(y, luma[:12], busy),
            by_hand(u, chroma[:12], cross[0]),
            by_hand(v, chroma[:12], cross[1]),
        ),
        SIZE,
    )
    for found, plane in zip(
        finish(LoopFilter(luma, chroma).apply(before), SIZE), wanted, strict=True
    ):
        assert float((found - plane).abs().max()) < 2e-3
    assert NO_FILTER.apply(before) is before


@pytest.mark.parametrize("guided", [True, False])
def test_sums_by_the_native_loop_are_those_of_pytorch(
    guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, plane = planes(4)[0], planes()[0]
    guide = planes(5)[0] if guided else None
    products, errors = loop_filter._sums(x, plane, guide, SIZE)
    monkeypatch.setattr(loop_filter, "is_native", lambda *_: False)
    wanted, others = loop_filter._sums(x, plane, guide, SIZE)
    np.testing.assert_allclose(products, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(errors, others, rtol=1e-4, atol=1e-4 * np.abs(others).max())
    assert np.array_equal(products, products.T)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_narrow_planes(columns: int) -> None:
    plane = np.arange(4 * columns, dtype=np.float32).reshape(4, columns)
    out = np.full_like(plane, np.nan)
    loop.loop_filter(plane, None, CLIP, BUSY, np.full(LUMA, 0.1, np.float32), out)
    one = torch.from_numpy(plane)[None, None]
    wanted = one + 0.1 * loop_filter.features_of(one, None).sum(0)
    np.testing.assert_allclose(out, wanted[0, 0], rtol=1e-5, atol=1e-4)
    assert np.isfinite(loop.loop_sums(plane, plane, plane, 4, columns, CLIP, BUSY)).all()


def test_native_input_is_checked() -> None:
    plane, weights = np.zeros((8, 8), np.float32), np.zeros(LUMA, np.float32)
    wide = np.zeros((8, 9), np.float32)
    for guide, wrong, out in ((None, weights, wide), (None, weights[:11], plane.copy()),
                              (wide, weights, plane.copy())):  # fmt: skip
        with pytest.raises(ValueError, match=r"differ|weights"):
            loop.loop_filter(plane, guide, 1.0, 1.0, wrong, out)
    for rows, columns in ((9, 8), (8, 0)):
        with pytest.raises(ValueError, match="no part"):
            loop.loop_sums(plane, None, plane, rows, columns, 1.0, 1.0)


def noisy(weight: float) -> tuple[Planes, Planes, loop_filter.ChosenFilter | None]:
    """(original, reconstruction with noise, what is chosen for it)."""
    y, u, v = (torch.from_numpy(p.astype(np.float32))[None, None] for p in frame().planes)
    x = finish(_padded((y, u, v)), SIZE)
    random = torch.Generator().manual_seed(5)
    seen = finish(tuple(p + 4 * torch.randn(p.shape, generator=random) for p in x), SIZE)  # type: ignore[arg-type]
    chosen = FilterWorth(x, seen, SIZE, TABLE_SET, weight, 1.0).choose(())
    return x, seen, chosen


def frame() -> Frame:
    return clip(1, VideoFormat(width=70, height=45))[0]


def _padded(found: Planes) -> Planes:
    sides = ((64, 96), (32, 48), (32, 48))
    y, u, v = (
        F.pad(p, (0, c - p.shape[3], 0, r - p.shape[2]), mode="replicate")
        for p, (r, c) in zip(found, sides, strict=True)
    )
    return y, u, v


def error(x: Planes, seen: Planes) -> float:
    return float(((x[0] - seen[0])[..., : SIZE[0], : SIZE[1]] ** 2).sum())


def test_a_filter_is_chosen_that_takes_noise_away_and_pays() -> None:
    x, seen, chosen = noisy(1.0)
    assert chosen is not None and chosen.mode.luma and chosen.mode.source == 0
    assert error(x, chosen.filter.apply(seen)) < 0.7 * error(x, seen)
    assert noisy(1e9)[2] is None  # bits that dear pay for nothing


def test_a_filter_that_a_reference_has_costs_nothing() -> None:
    x, seen, first = noisy(1.0)
    assert first is not None
    sources = (NO_FILTER, first.filter)
    again = FilterWorth(x, seen, SIZE, TABLE_SET, 30.0, 1.0).choose(sources)
    assert again is not None and again.mode == FilterMode(source=2)
    assert again.filter == first.filter and not again.changes


def coded(chosen: loop_filter.ChosenFilter) -> bytes:
    coder = EncodingCoder(TABLE_SET)
    for changes, table in chosen.changes:
        symbols = torch.tensor(changes)
        coder.repeat([(symbols, torch.full_like(symbols, table))])
    return coder.finish()


def test_what_was_chosen_is_read_again() -> None:
    chosen = noisy(1.0)[2]
    assert chosen is not None and len(chosen.changes) >= 2
    reader = DecodingCoder(TABLE_SET, coded(chosen))
    mode = FilterMode.unpack(chosen.mode.pack(), KEY)
    assert mode == chosen.mode and loop_filter.read(mode, (), reader) == chosen.filter
    source = LoopFilter((1,) * LUMA, (-2,) * CHROMA)
    moved = loop_filter.read(
        replace(chosen.mode, source=1), (source,), DecodingCoder(TABLE_SET, coded(chosen))
    )
    assert moved.luma == tuple(a + 1 for a in chosen.filter.luma)
    assert loop_filter.read(None, (source,), reader) == NO_FILTER


def test_a_levels_filter_differs_from_the_one_below() -> None:
    x, seen, base = noisy(1.0)
    assert base is not None
    worth = FilterWorth(x, finish(base.filter.apply(seen), SIZE), SIZE, TABLE_SET, 0.2, 1.0)
    level = worth.choose_level(base.filter)
    reader = DecodingCoder(TABLE_SET, coded(level))
    assert loop_filter.read_level(base.filter, reader) == level.filter != base.filter
    same = FilterWorth(x, seen, SIZE, TABLE_SET, 1e9, 1.0).choose_level(base.filter)
    assert same.filter == base.filter
    assert loop_filter.read_level(base.filter, DecodingCoder(TABLE_SET, coded(same))) == base.filter


@pytest.mark.parametrize("numbers", [[4, 0, 0, 0], [0, 0, 2, 0], [0, -1, 0, 0]])
def test_a_levels_filter_that_no_encoder_writes_is_refused(numbers: list[int]) -> None:
    coder = EncodingCoder(TABLE_SET)
    symbols = torch.tensor(numbers)
    coder.repeat([(symbols, torch.full_like(symbols, loop_filter.MODE_TABLE))])
    with pytest.raises(BitstreamError, match="invalid"):
        loop_filter.read_level(NO_FILTER, DecodingCoder(TABLE_SET, coder.finish()))


def test_every_kind_of_coefficient_is_read() -> None:
    numbers = [list(range(k, k + n)) for k, n in ((1, 12), (20, 6), (-20, 12), (3, 12))]
    tables = (TABLES[3], loop_filter.BUSY_TABLE, TABLES[1], loop_filter.CROSS_TABLE)
    mode = FilterMode(luma=3, busy=True, chroma=1, cross=True)
    chosen = loop_filter.ChosenFilter(mode, NO_FILTER, list(zip(numbers, tables, strict=True)))
    found = loop_filter.read(mode, (), DecodingCoder(TABLE_SET, coded(chosen)))
    assert found == LoopFilter((*numbers[0], *numbers[1]), (*numbers[2], *numbers[3]))


def test_a_coefficient_that_is_too_large_is_refused() -> None:
    coder = EncodingCoder(TABLE_SET)
    symbols = torch.tensor([LIMIT + 1] + [0] * 11)
    coder.repeat([(symbols, torch.full_like(symbols, TABLES[3]))])
    with pytest.raises(BitstreamError, match="passes 127"):
        loop_filter.read(FilterMode(luma=3), (), DecodingCoder(TABLE_SET, coder.finish()))


def test_modes_of_filters_pack_into_a_byte_and_nothing_else_is_one() -> None:
    for step, sources in ((KEY, 1), (replace(INTER, references=(-1,)), 2), (INTER, 3)):
        found = set()
        for bits in range(256):
            try:
                mode = FilterMode.unpack(bytes((bits,)), step)
            except BitstreamError:
                continue
            assert mode is not None and mode.pack() == bytes((bits,))
            found.add(mode)
        # Without the one that says nothing, and with that of levels alone.
        assert len(found) == 64 * sources
    assert FilterMode.unpack(b"", KEY) is None
    for data, step in ((b"\x04\x04", KEY), (b"\x80\x04\x04", INTER), (b"\x80\x07", INTER)):
        with pytest.raises(BitstreamError, match="invalid"):
            HierarchicalMode.unpack(data, step)
    mode = HierarchicalMode(filter=FilterMode(source=2, chroma=3))
    assert HierarchicalMode.unpack(mode.pack(), INTER) == mode
    key = HierarchicalMode(filter=FilterMode(luma=1))
    assert HierarchicalMode.unpack(key.pack(key=True), KEY) == key


@pytest.mark.parametrize("structure", ["random-access", "low-delay"])
def test_filtered_streams_decode_to_what_the_encoder_saw(structure: str) -> None:
    video_format = VideoFormat(width=112, height=80)
    frames = clip(9, video_format, noise=3.0)
    runtime = Runtime(threads=1)
    options = EncoderOptions(qp=24, keyint=4, preset="fast", structure=structure)
    encoder = Encoder(video_format, options, runtime=runtime)
    packets = [p for f in frames for p in encoder.encode(f)] + encoder.encode(None)
    modes = [record.header.mode for record in encoder.statistics.records]
    assert any(len(mode) == 2 for mode in modes), "no inter frame has a filter"
    assert any(
        len(r.header.mode) == 1 for r in encoder.statistics.records if not r.header.step.number
    )
    decoder = Decoder(options=DecoderOptions(), runtime=runtime)
    shown = [f for p in packets for f in decoder.decode(p)] + decoder.decode(None)
    for found, wanted, record in zip(shown, frames, encoder.statistics.records, strict=True):
        mse = [
            ((a.astype(float) - b) ** 2).mean()
            for a, b in zip(found.planes, wanted.planes, strict=True)
        ]
        psnr = sum(w * 10 * np.log10(255**2 / m) for w, m in zip((6, 1, 1), mse, strict=True)) / 8
        assert abs(psnr - record.psnr) < 0.01


def test_a_reference_carries_its_filter() -> None:
    model = store.find(None, Runtime(device="cpu"))
    frame_ = clip(1, VideoFormat(width=112, height=80), noise=3.0)[0]
    own = VideoFormat(width=112, height=80)
    done = model.encode(model.picture(frame_, own), replace(KEY, qp=20), (), own, "fast")
    reference = done.reference
    assert isinstance(reference, Reference) and reference.context.loop_filter != NO_FILTER
    same = reference.each(lambda tensor: tensor + 0)
    assert same.context.loop_filter == reference.context.loop_filter
