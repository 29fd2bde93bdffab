"""The networks: classical start, one walk both ways, independence of the parse from floats."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_check import META, DeviceCheck
from synthetic import clip
from torch import Tensor

from vcfilter.entropy import tables
from vcfilter.entropy.coder import DecodingCoder, EncodingCoder, Reader, TableSet
from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameStep, FrameType, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import CodedFrame, Model, ModelInfo
from vcfilter.models.hierarchical.blocks import picture_dct, to_blocks, to_planes
from vcfilter.models.hierarchical.conditions import (
    CONTEXT,
    CONTEXT_MAX,
    REFINED,
    Conditions,
    context_features,
)
from vcfilter.models.hierarchical.config import EFFORTS, Effort
from vcfilter.models.hierarchical.cost import distortion, psnr, rd_weight
from vcfilter.models.hierarchical.decide import (
    ModeDecision,
    Trial,
    choose_inter,
    choose_keyframe,
)
from vcfilter.models.hierarchical.latent import BLACK, EVERY, WHITE, Place, mirror, positions
from vcfilter.models.hierarchical.mode import KEY_MODE, HierarchicalMode, MotionMode
from vcfilter.models.hierarchical.model import HierarchicalModel
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.refinement import with_own_tables
from vcfilter.models.hierarchical.search import estimate_motion
from vcfilter.models.hierarchical.sections import finish_sections
from vcfilter.models.hierarchical.values import MotionField, Picture, Reference, context_pair, pair
from vcfilter.nn.exact import check_bound
from vcfilter.nn.precision import full_precision
from vcfilter.options import Runtime

FORMAT = VideoFormat(width=112, height=80)
CPU = torch.device("cpu")
KEY = FrameStep(type=FrameType.KEY, qp=28)
INTER = FrameStep(type=FrameType.INTER, qp=30, layer=1, number=12, references=(-2, 2))
CODED = HierarchicalMode(motion=MotionMode.CODED, level=3)
GRID = (1, 96, 12, 16)  # of the latent, padded
REFERENCES = {"between": (-2, 2), "alone": (-2,), "past": (-1, -3), "future": (1, 3)}
PIXEL_BOUND = 0.05  # of 255: rounding of float32 through the networks, measured below 0.01


@pytest.fixture(scope="module")
def model() -> HierarchicalModel:
    found = store.find(None, Runtime(device="cpu"))
    assert isinstance(found, HierarchicalModel)
    return found


def _typed_by_the_protocol(model: HierarchicalModel) -> Model:
    return model


@torch.inference_mode()
def code(
    model: HierarchicalModel,
    x: Picture,
    step: FrameStep = KEY,
    mode: HierarchicalMode = KEY_MODE,
    past: Sequence[Reference] = (),
    passes: int = 1,
    foreseen: int = 0,
) -> tuple[bytes, Reference]:
    """One frame in one mode."""
    if step.type is FrameType.KEY:
        effort = Effort(
            motion_levels=(), fit_rounds=1, passes=1, key_passes=passes, foreseen=foreseen
        )
        chosen = choose_keyframe(model.net, model.tables, x, step, effort)
        _, sections, reference = finish_sections(chosen, None, x.size)
        return sections[0], reference
    both, field = pair(past), None
    if mode.motion is MotionMode.CODED:
        conditions = Conditions.of([step], [mode], CPU, x.size)
        field = estimate_motion(conditions, x.planes, both)
    chosen = choose_inter(model.net, model.tables, x, step, mode, both, field, passes, foreseen)
    _, sections, reference = finish_sections(chosen, None, x.size)
    return sections[0], reference


def decode(
    model: HierarchicalModel,
    step: FrameStep,
    mode: HierarchicalMode,
    data: bytes,
    past: Sequence[Reference],
    video_format: VideoFormat = FORMAT,
) -> Reference:
    packed = b"" if step.type is FrameType.KEY else mode.pack()
    sections = [] if mode.repeats else [data]
    contexts = [p.context for p in past]
    symbols = model.parse(step, packed, sections, contexts, video_format)
    return model.reconstruct(step, packed, symbols, past, video_format)


@pytest.fixture(scope="module")
def coded(model: HierarchicalModel) -> tuple[list[bytes], list[Reference]]:
    """Payloads and reconstructions of two keyframes and the inter frame between them."""
    frames = clip(5, FORMAT, noise=2.0)
    payloads, references = [], []
    for number in (0, 4, 2):
        x = model.picture(frames[number], FORMAT)
        step, mode = (KEY, KEY_MODE) if number != 2 else (INTER, CODED)
        data, reference = code(model, x, step, mode, references)
        payloads.append(data)
        references.append(reference)
    return payloads, references


def decode_all(model: HierarchicalModel, payloads: list[bytes]) -> list[Reference]:
    found: list[Reference] = []
    for step, data in zip((KEY, KEY, INTER), payloads, strict=True):
        mode, past = (CODED, found) if step is INTER else (KEY_MODE, [])
        found.append(decode(model, step, mode, data, past))
    return found


def assert_same(found: list[Reference], wanted: list[Reference], bound: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        for name in ("symbols", "activity", "motion_symbols", "motion_activity"):
            mine, others = getattr(a.context, name), getattr(b.context, name)
            assert mine.dtype == torch.uint8 and torch.equal(mine, others)
        for p, q in zip(a.planes, b.planes, strict=True):
            assert float((p.double() - q.double()).abs().max()) <= bound


def test_context_is_as_before_between_references_and_in_keyframes() -> None:
    qp, layer = torch.tensor([0, 12, 63]), torch.tensor([0, 2, 7])
    for distances in ([0, 0], [-1, 1], [-6, 12], [24, -32]):
        found = context_features(qp, layer, torch.tensor([distances] * 3))
        assert found.shape == (3, CONTEXT)
        assert (found[:, :9].sum(1) == CONTEXT_MAX)[1]
        assert (found[:, 9:13].sum(1) == CONTEXT_MAX).all()
        assert not found[:, 13:].any()


def test_context_tells_past_references_and_how_far_they_are() -> None:
    rows = torch.tensor([[-1, 0], [-1, -9], [-9, -1], [-2, 0], [-7, -9], [-24, 0], [-300, -400]])
    qp = torch.full((len(rows),), 30)
    found = context_features(qp, qp * 0 + 1, rows)
    assert (found[:, 13] == CONTEXT_MAX).all()
    assert not found[:, 14].any()
    assert found[:, 15].tolist() == [0, 0, 0, 4, 16, 32, 32]
    for drop, feature in ((6, 6), (40, CONTEXT_MAX)):
        refined = context_features(qp, qp * 0 + 1, rows, drop)
        assert (refined[:, REFINED] == feature).all() and refined.max() <= CONTEXT_MAX
        rest = torch.arange(CONTEXT) != REFINED
        assert torch.equal(refined[:, rest], found[:, rest])


def test_motion_of_past_references_tells_nothing_where_all_are_past(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    """One frame with another motion history behind it: the same bytes."""
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    middle = coded[1][2]
    none = torch.zeros_like(middle.context.motion_symbols)
    still = replace(
        middle, context=replace(middle.context, motion_symbols=none, motion_activity=none)
    )
    assert middle.context.motion_activity.any()
    for references, equal in (((-1, -3), True), ((-1, 2), False)):
        step = replace(INTER, references=references)
        payloads = [code(model, x, step, CODED, [m, coded[1][0]])[0] for m in (middle, still)]
        assert (payloads[0] == payloads[1]) == equal


def test_transform_starts_as_an_orthonormal_dct() -> None:
    matrix = picture_dct().double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(96, dtype=torch.float64), atol=1e-6)
    net = VideoNet()
    planes = (torch.rand(1, 1, 64, 32) * 255, torch.rand(1, 1, 32, 16), torch.rand(1, 1, 32, 16))
    base, features = torch.ones(1), torch.zeros(1, CONTEXT)
    with torch.no_grad():
        blocks = to_blocks(*planes)
        latent = net.image.analyse(blocks, base, features)
        back = to_planes(net.image.synthesise(latent, torch.zeros_like(latent), base, features))
    for a, b in zip(planes, back, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def plain_model(device: torch.device = CPU) -> HierarchicalModel:
    """Every learned branch at zero, table 20 for every symbol: no statistics at all."""
    torch.manual_seed(0)
    net = VideoNet()
    for name, parameter in net.named_parameters():
        if name.endswith("index_context.bias"):
            parameter.data.fill_(80.0)
    info = ModelInfo(
        id=b"classics", name="plain", architecture="hierarchical", numerics=1, config={},
        efforts=EFFORTS,
    )  # fmt: skip
    return HierarchicalModel(
        net, TableSet(with_own_tables(tables.laplace_magnitudes())), info, device
    )


def test_every_learned_branch_at_zero_is_a_working_codec() -> None:
    model = plain_model()
    pictures = [model.picture(f, FORMAT) for f in clip(5, FORMAT, noise=0.3)]
    references, sizes = [], []
    for number in (0, 4):
        data, reference = code(model, pictures[number])
        references.append(reference)
        sizes.append(len(data))
        assert psnr(pictures[number], reference.planes, FORMAT) > 33
    data, middle = code(model, pictures[2], INTER, CODED, references)
    assert psnr(pictures[2], middle.planes, FORMAT) > 32
    assert_same([decode(model, INTER, CODED, data, references)], [middle], PIXEL_BOUND)
    assert len(data) < 0.85 * min(sizes)
    assert sizes[0] < 112 * 80 * 1.5 / 3  # and it compresses


def test_decoder_reconstructs_what_the_encoder_did(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    payloads, references = coded
    assert_same(decode_all(model, payloads), references, PIXEL_BOUND)


@pytest.mark.parametrize("step", [KEY, replace(INTER, qp=34)], ids=["key", "inter"])
def test_a_second_pass_costs_less(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]], step: FrameStep
) -> None:
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    mode, past = (KEY_MODE, []) if step is KEY else (CODED, coded[1][:2])
    costs = []
    for passes in (1, 2, 3):
        data, reference = code(model, x, step, mode, past, passes)
        bits = 8 * len(data) / (FORMAT.width * FORMAT.height)
        costs.append(distortion(x, reference.planes, step.qp) + rd_weight(step.qp) * bits)
        assert_same([decode(model, step, mode, data, past)], [reference], PIXEL_BOUND)
    assert costs[1] < 0.995 * costs[0]
    assert costs[2] < costs[0]


@torch.inference_mode()
def test_costs_of_symbols_to_later_ones(model: HierarchicalModel) -> None:
    """Without the symbols that are said to cost others most those others take as many bits less as
    was said, about; without those that are said to help them, as many more."""
    x = model.picture(clip(1, FORMAT, noise=2.0)[0], FORMAT)
    net, bits = model.net, model.tables.bits
    coding, conditions = net.image.coding, Conditions.of([KEY], [KEY_MODE], CPU, x.size)
    context = net.image_context(conditions, None, GRID)
    base, features = net.features(conditions)
    target = net.image.analyse(to_blocks(*x.planes), base, features)
    nothing, (_, steps) = torch.zeros_like(target), net.quantiser(conditions)
    _, coded = coding.code(target, nothing, steps, context, EncodingCoder(model.tables))
    symbols = context.crop(coded.symbols)
    costs = coding.later_costs(coded.symbols, context, bits)

    def others(changed: torch.Tensor, counted: torch.Tensor) -> float:
        total = 0.0

        def given(place: Place, index: torch.Tensor) -> torch.Tensor:
            nonlocal total
            own, whole = place.take(changed), torch.floor(index + 0.5).long()
            spent = bits[whole, own.abs().long()] * (whole != tables.SKIP)
            total += float((spent * place.take(counted)).sum())
            return own

        coding.walk(context, given)
        return total

    ones = torch.where(symbols.abs() == 1, costs, 0.0).flatten()
    for descending in (True, False):
        chosen = ones.argsort(descending=descending)[:20]
        counted = torch.ones(symbols.numel()).index_fill_(0, chosen, 0).view(symbols.shape)
        without = symbols * counted
        change = others(without, counted) - others(symbols, counted)
        said = -float(ones[chosen].sum() * coding.levels[1])
        assert abs(said) > 20
        assert 0.5 < change / said < 2


def test_a_keyframe_keeps_less_where_its_bits_weigh_more(model: HierarchicalModel) -> None:
    """Odd sizes too: the factors are of the positions inside the picture."""
    fmt = VideoFormat(width=101, height=75)
    frame = clip(1, fmt, noise=2.0)[0]
    x = model.picture(frame, fmt)
    scale = np.ones((10, 13), np.float32)

    def code_key(rd_scale: np.ndarray | None) -> CodedFrame:
        return model.encode(x, KEY, (), fmt, "medium", rd_scale=rd_scale)

    plain = code_key(None)
    assert code_key(scale).sections == plain.sections
    scale[:, 7:] = 3.0
    done = code_key(scale)
    assert len(done.sections[0]) < len(plain.sections[0])
    errors = [
        np.abs(model.planes(coded.reference, fmt)[0].astype(float) - frame.y).mean(axis=0)
        for coded in (plain, done)
    ]
    assert errors[1][64:].mean() > 1.03 * errors[0][64:].mean()
    assert errors[1][:40].mean() < 1.05 * errors[0][:40].mean()


def test_nothing_outside_the_picture_is_coded(model: HierarchicalModel) -> None:
    small, filled = VideoFormat(width=72, height=40), VideoFormat(width=96, height=64)
    sizes = []
    for video_format in (small, filled):
        frames = clip(5, small, noise=2.0)
        if video_format is filled:  # what is beyond the border is now part of the picture
            pads = (((0, 24), (0, 24)), ((0, 12), (0, 12)), ((0, 12), (0, 12)))
            frames = [
                Frame(y=y, u=u, v=v, pts=f.pts)
                for f in frames
                for y, u, v in [
                    [np.pad(p, pad, "edge") for p, pad in zip(f.planes, pads, strict=True)]
                ]
            ]
        references: list[Reference] = []
        payloads = []
        for number in (0, 4, 2):
            x = model.picture(frames[number], video_format)
            step, mode = (KEY, KEY_MODE) if number != 2 else (INTER, CODED)
            data, reference = code(model, x, step, mode, references)
            past = list(references) if number == 2 else []
            again = decode(model, step, mode, data, past, video_format)
            assert_same([again], [reference], PIXEL_BOUND)
            payloads.append(data)
            references.append(reference)
        if video_format is small:  # outside, the border repeats
            y = references[2].planes[0][..., : small.height, small.width - 1 :]
            assert torch.equal(y, y[..., :1].expand_as(y))
        sizes.append([len(data) for data in payloads])
    assert sizes[0][0] < sizes[1][0]
    assert sizes[0][2] < 0.9 * sizes[1][2]


def test_lattices_are_mirrored_at_their_borders() -> None:
    grid = torch.arange(12.0).view(1, 1, 3, 4)
    found = mirror(grid, 1)[0, 0]
    assert found[0].tolist() == [5, 4, 5, 6, 7, 6]
    assert found[:, 0].tolist() == [5, 1, 5, 9, 5]
    thin = mirror(grid[:, :, :1], 1)[0, 0]  # one row has no mirror image
    assert thin.tolist() == [[0] * 6, [1, 0, 1, 2, 3, 2], [0] * 6]


@pytest.mark.parametrize(
    ("motion", "sharp"),
    [*((m, False) for m in MotionMode), (MotionMode.DIRECT, True), (MotionMode.CODED, True)],
)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sides", list(REFERENCES))
def test_every_mode_decodes(
    model: HierarchicalModel,
    coded: tuple[list[bytes], list[Reference]],
    motion: MotionMode,
    sharp: bool,
    residual: bool,
    sides: str,
) -> None:
    step = replace(INTER, references=REFERENCES[sides])
    past = coded[1][: len(step.references)]
    mode = HierarchicalMode(
        motion=motion,
        level=3 if motion is MotionMode.CODED else 0,
        sharp=sharp,
        residual=residual,
    )
    if sides == "alone" and motion in (MotionMode.SECOND, MotionMode.DIRECT):
        with pytest.raises(BitstreamError, match="two references"):
            HierarchicalMode.unpack(mode.pack(), step)
        return
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    data, reference = code(model, x, step, mode, past)
    assert (data == b"") <= (motion is not MotionMode.CODED or not residual)
    assert HierarchicalMode.unpack(mode.pack(), step) == mode
    assert_same([decode(model, step, mode, data, past)], [reference], PIXEL_BOUND)


def test_modes_pack_into_a_byte_and_nothing_else_is_one() -> None:
    found = {}
    for bits in range(256):
        try:
            found[bits] = HierarchicalMode.unpack(bytes((bits,)), INTER)
        except BitstreamError:
            continue
        assert found[bits].pack(levels=True) == bytes((bits,))
    # NONE, FIRST and SECOND with and without residual; DIRECT in 8, CODED in 8 * 8 ways.
    assert len(found) == len(set(found.values())) == 3 * 2 + 8 + 64
    repeats = HierarchicalMode.unpack(b"", INTER)
    assert repeats.repeats and repeats.pack() == b""
    assert HierarchicalMode.unpack(b"", KEY) == KEY_MODE
    alone = replace(INTER, references=(-1,))
    refined = HierarchicalMode(motion=MotionMode.CODED, refine=True).pack()
    with pytest.raises(BitstreamError, match="two references"):
        HierarchicalMode.unpack(refined, alone)


def test_a_frame_with_the_wrong_number_of_sections_is_refused(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    contexts = [r.context for r in coded[1][:2]]
    for step, mode, sections in (
        (KEY, b"", []), (KEY, b"", [b"", b""]), (INTER, CODED.pack(), []), (INTER, b"", [b""])
    ):  # fmt: skip
        with pytest.raises(BitstreamError, match="sections"):
            model.parse(step, mode, sections, contexts, FORMAT)


@pytest.mark.parametrize("sides", ["between", "past", "alone"])
@pytest.mark.parametrize("effort", ["ultrafast", "medium"])
def test_what_the_mode_decision_chose_decodes(
    model: HierarchicalModel,
    coded: tuple[list[bytes], list[Reference]],
    sides: str,
    effort: str,
) -> None:
    step = replace(INTER, references=REFERENCES[sides], layer=2)
    past = coded[1][: len(step.references)]
    frames = clip(5, FORMAT, noise=2.0)
    done = model.encode(model.picture(frames[2], FORMAT), step, past, FORMAT, effort)
    contexts = [r.context for r in past]
    symbols = model.parse(step, done.mode, done.sections, contexts, FORMAT)
    assert len(done.mode) in (1, 2) and len(done.sections) == 1  # with a loop filter two
    again = model.reconstruct(step, done.mode, symbols, past, FORMAT)
    assert_same([again], [done.reference], PIXEL_BOUND)
    assert 28 < done.psnr < 50


def test_a_still_frame_codes_nothing(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    key = coded[1][0]
    y, u, v = model.planes(key, FORMAT)
    x = model.picture(Frame(y=y, u=u, v=v, pts=0), FORMAT)
    step = replace(INTER, references=(-2,), qp=40)
    done = model.encode(x, step, [key], FORMAT, "medium")
    assert (done.mode, done.sections) == (b"", ())
    symbols = model.parse(step, b"", (), [key.context], FORMAT)
    again = model.reconstruct(step, b"", symbols, [key], FORMAT)
    assert all(map(np.array_equal, model.planes(again, FORMAT), (y, u, v)))


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, [4, 4, 6]),
        ({"promising": 0.0}, [4, 6]),
        ({"searched": 1e9}, [4, 6]),
        ({"coarser": 1.0}, [4, 4]),
    ],
)
@torch.inference_mode()
def test_motion_that_promises_little_is_left_out(
    model: HierarchicalModel,
    coded: tuple[list[bytes], list[Reference]],
    changes: dict[str, float],
    levels: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a moving frame, of which nothing is known that helps: what is searched is better."""
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    effort = replace(
        EFFORTS["medium"], **{"promising": 1.0, "searched": 0.0, "coarser": 0.0, **changes}
    )
    modes: list[HierarchicalMode] = []
    usual = ModeDecision._try

    def observed(self: ModeDecision, mode: HierarchicalMode, *rest: MotionField) -> Trial:
        modes.append(mode)
        return usual(self, mode, *rest)

    monkeypatch.setattr(ModeDecision, "_try", observed)
    flow = np.full((2, 10, 14), 5.0, np.float32)
    conditions = Conditions.of([INTER], [KEY_MODE], CPU)
    decision = ModeDecision(
        model.net,
        model.tables,
        x,
        INTER,
        coded[1][:2],
        effort,
        model.net.quantiser(conditions),
        tracked=lambda: [flow, flow],
    )
    decision.best()
    without = [mode for mode in modes if not mode.residual]
    assert [m.level for m in without if m.motion is MotionMode.CODED] == levels


@torch.inference_mode()
def test_motion_of_finer_pictures_costs_more_and_errs_less(model: HierarchicalModel) -> None:
    """Motion that serves quality levels is weighed as their qps ask."""
    frames = [model.picture(f, FORMAT) for f in clip(5, FORMAT, noise=2.0)]
    step = replace(INTER, qp=46)
    references = pair([code(model, frames[n], replace(KEY, qp=26))[1] for n in (0, 4)])
    conditions = Conditions.of([step], [replace(CODED, level=0)], CPU, frames[2].size)
    estimate = estimate_motion(conditions, frames[2].planes, references)
    sizes, errors = [], []
    for finer in (0, 10, 20):
        coder = EncodingCoder(model.tables)
        coded = model.net.code_motion(conditions, estimate, references, coder, finer)
        sizes.append(coder.size())
        predicted = model.net.predict(CODED.motion, conditions, references, coded.field)
        errors.append(distortion(frames[2], predicted.planes, 26))
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > errors[2]


@contextmanager
def settings(threads: int, mkldnn: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mkldnn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parse_is_the_same_everywhere(
    model: HierarchicalModel,
    coded: tuple[list[bytes], list[Reference]],
    threads: int,
    channels_last: bool,
    mkldnn: bool,
    dtype: torch.dtype,
) -> None:
    payloads, references = coded
    net = copy.deepcopy(model.net).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=layout)
    with settings(threads, mkldnn), torch.inference_mode():
        found: list[Reference] = []
        for step, data in zip((KEY, KEY, INTER), payloads, strict=True):
            mode = CODED if step is INTER else KEY_MODE
            size = FORMAT.height, FORMAT.width
            conditions = Conditions.of([step], [mode], CPU, size)
            both = pair(found) if step is INTER else None
            contexts = context_pair([f.context for f in found]) if step is INTER else None
            reader = DecodingCoder(model.tables, data)
            symbols = net.parse(mode.motion, True, conditions, contexts, GRID, reader)
            found.append(net.reconstruct(mode.motion, conditions, symbols, both))
    assert_same(found, references, PIXEL_BOUND)


class Tape:
    """Notes the tables of each step and gives back given symbols: a decoder for batches."""

    def __init__(self, tapes: list[list[Tensor]] | None, inner: Reader | None = None) -> None:
        self.tapes, self.inner = tapes, inner
        self.indices: list[Tensor] = []
        self.read: list[Tensor] = []

    def symbols(self, index: Tensor) -> Tensor:
        self.indices.append(torch.floor(index + 0.5))
        if self.tapes is None:
            assert self.inner is not None
            found = self.inner.symbols(index)
        else:
            found = torch.cat([tape[len(self.read)] for tape in self.tapes])
        self.read.append(found)
        return found


def test_the_tables_do_not_depend_on_the_batch(
    model: HierarchicalModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    singles = []
    size = (FORMAT.height, FORMAT.width)
    one = Conditions.of([KEY], [KEY_MODE], CPU, size)
    with torch.inference_mode():
        for data in coded[0][:2]:
            tape = Tape(None, DecodingCoder(model.tables, data))
            model.net.parse(MotionMode.NONE, True, one, None, GRID, tape)
            singles.append(tape)
        both = Tape([t.read for t in singles])
        two = Conditions.of([KEY, KEY], [KEY_MODE, KEY_MODE], CPU, size)
        model.net.parse(MotionMode.NONE, True, two, None, (2, *GRID[1:]), both)
    for step, index in enumerate(both.indices):
        wanted = torch.cat([t.indices[step] for t in singles])
        assert torch.equal(index, wanted)
        assert float(index.max()) > 0


def test_a_batch_refines_as_a_whole_or_not_at_all() -> None:
    modes = [CODED, replace(CODED, refine=True)]
    with pytest.raises(AssertionError, match="one kind of motion"):
        Conditions.of([INTER, INTER], modes, CPU)


def test_exact_layers_see_new_weights_and_no_mode_of_gradients(model: HierarchicalModel) -> None:
    layer = copy.deepcopy(model.net.image.coding.steps[0].hidden)
    with torch.inference_mode():
        before = layer.integers()[0].clone()
    assert torch.equal(layer.integers()[0], before)
    assert layer.integers()[0] is layer.integers()[0]  # computed once, with gradients on as well
    with torch.no_grad():
        layer.weight += 1.0
    assert torch.equal(layer.integers()[0], before + 512)


@pytest.mark.parametrize("size", [(16, 16), (17, 19), (96, 33)])
@pytest.mark.parametrize("depth", [8, 10])
def test_odd_sizes_and_depths(model: HierarchicalModel, size: tuple[int, int], depth: int) -> None:
    video_format = VideoFormat(width=size[0], height=size[1], bit_depth=depth)
    frame = clip(1, video_format)[0]
    x = model.picture(frame, video_format)
    _, reference = code(model, x, replace(KEY, qp=8))
    planes = model.planes(reference, video_format)
    for plane, original in zip(planes, frame.planes, strict=True):
        assert plane.shape == original.shape
        assert plane.dtype == original.dtype
        unit = 1 if depth == 8 else 4
        error = np.abs(plane.astype(int) - original.astype(int)).mean() / unit
        assert error < 2.0


@pytest.mark.slow
def test_cost_stays_in_the_envelope(model: HierarchicalModel) -> None:
    figures = model.complexity()
    assert figures["keyframe"]["total"] == pytest.approx(7.88, abs=0.1)
    assert figures["inter"]["total"] == pytest.approx(19.02, abs=0.1)
    assert figures["inter"]["motion"] > 0
    assert check_bound(model.net) < 1


class Zeros:
    """A reader of zeros."""

    def symbols(self, index: Tensor) -> Tensor:
        return torch.zeros_like(index)


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["between", "past", "alone"])
@pytest.mark.parametrize("motion", list(MotionMode))
def test_coding_and_decoding_mix_no_devices(sides: str, motion: MotionMode) -> None:
    """The encoder's and the decoder's way, up to the range coder, with shapes alone."""
    model = plain_model(META)
    step = replace(INTER, references=REFERENCES[sides])
    mode = HierarchicalMode(
        motion=motion, level=3 if motion is MotionMode.CODED else 0, refine=sides == "between"
    )
    x = model.picture(clip(1, FORMAT)[0], FORMAT)
    with DeviceCheck(), torch.inference_mode():
        conditions = Conditions.of([KEY], [KEY_MODE], META, x.size)
        coder = EncodingCoder(model.tables)
        key = model.net.code_keyframe(conditions, x.planes, coder, [EncodingCoder(model.tables)])
        shape = model.net.latent_shape(1, 96, 128)
        symbols = model.net.parse(MotionMode.NONE, True, conditions, None, shape, Zeros())
        again = model.net.reconstruct(MotionMode.NONE, conditions, symbols, None)
        given = Conditions.of([step], [mode], META, x.size)
        both, contexts, coded = (key, again), (key.context, again.context), None
        if motion is MotionMode.CODED:
            field = MotionField(
                torch.zeros(1, 5, *shape[2:], device=META),
                torch.zeros(1, *shape[2:], 5, 5, device=META),
            )
            coded = model.net.code_motion(given, field, both, coder)
        new = model.net.code_inter(motion, True, given, x.planes, both, coder, coded)
        parsed = model.net.parse(motion, True, given, contexts, shape, Zeros())
        decoded = model.net.reconstruct(motion, given, parsed, both)
    for a, b in zip(new.planes, decoded.planes, strict=True):
        assert a.device == b.device == META and a.shape == b.shape
    assert len(coder.entries) == (9 + 9) + (7 if motion is MotionMode.CODED else 0)


def test_positions_are_those_of_the_sites() -> None:
    for rows, columns in ((1, 1), (3, 4), (5, 2)):
        seen: list[int] = []
        for sites in (WHITE, BLACK):
            found = positions(rows, columns, sites, CPU).tolist()
            assert found == sorted(found)
            assert {(i // columns % 2, i % columns % 2) for i in found} <= set(sites)
            seen += found
        assert sorted(seen) == positions(rows, columns, EVERY, CPU).tolist()
        assert len(seen) == rows * columns


def test_tf32_is_off_until_the_last_thread_leaves() -> None:
    cuda, cudnn = torch.device("cuda"), torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, True
    try:
        first, second = full_precision(cuda), full_precision(cuda)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not cudnn.allow_tf32
        second.__exit__(None, None, None)
        assert cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = before


def test_a_model_changes_no_settings_of_the_process(model: HierarchicalModel) -> None:
    def state() -> list[Any]:
        matmul = torch.backends.cuda.matmul
        return [torch.get_num_threads(), torch.backends.cudnn.allow_tf32, matmul.allow_tf32]

    torch.backends.cudnn.allow_tf32 = True
    before = state()
    code(model, model.picture(clip(1, FORMAT)[0], FORMAT))
    assert state() == before


@pytest.mark.gpu
def test_cuda_parses_as_the_cpu_does(coded: tuple[list[bytes], list[Reference]]) -> None:
    model = store.find(None, Runtime(device="cuda"))
    assert isinstance(model, HierarchicalModel)
    found = decode_all(model, coded[0])
    for a, b in zip(found, coded[1], strict=True):
        assert torch.equal(a.context.symbols.cpu(), b.context.symbols)
        for p, q in zip(a.planes, b.planes, strict=True):
            assert float((p.cpu() - q).abs().max()) <= 0.5
