"""The networks: classical start, one walk both ways, independence of the parse from floats."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import clip
from torch import Tensor
from vcfilter.models.checkpoint import (
    load_model,
    load_weights,
    read_card,
    save_weights,
    shipped_weights,
)
from vcfilter.models.hierarchical.layers import (
    CHANNELS,
    CONTEXT,
    CONTEXT_MAX,
    context,
    picture_dct,
    to_blocks,
    to_planes,
)
from vcfilter.models.hierarchical.video import (
    CodingStep,
    Conditions,
    MotionMode,
    Reference,
    VideoModel,
    VideoNet,
)

from vcfilter.entropy import tables
from vcfilter.entropy.coder import Reader, TableSet
from vcfilter.errors import MediaError, ModelMismatchError
from vcfilter.frames import Frame, FrameType, VideoFormat
from vcfilter.models.hierarchical.complexity import complexity
from vcfilter.models.hierarchical.latent import mirror
from vcfilter.nn.exact import check_bound

FORMAT = VideoFormat(width=112, height=80)
KEY = CodingStep(kind=FrameType.KEY, qp=28)
INTER = CodingStep(
    kind=FrameType.INTER, qp=30, layer=1, distances=(-2, 2), motion=MotionMode.CODED, motion_level=3
)
GRID = torch.Size((1, CHANNELS, 12, 16))  # of the latent, padded
DISTANCES = {"between": (-2, 2), "alone": (-2, 0), "past": (-1, -3)}
PIXEL_BOUND = 0.05  # of 255: rounding of float32 through the networks, measured below 0.01


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return VideoModel.load(device="cpu")


@pytest.fixture(scope="module")
def coded(model: VideoModel) -> tuple[list[bytes], list[Reference]]:
    """Payloads and reconstructions of two keyframes and the inter frame between them."""
    frames = clip(5, FORMAT, noise=2.0)
    payloads, references = [], []
    for number in (0, 4, 2):
        x = model.picture(frames[number], FORMAT)
        step, past = (KEY, []) if number != 2 else (INTER, list(references))
        motion = model.estimate_motion(step, x, past) if past else None
        coder = model.encoding_coder()
        references.append(model.code(step, x, past, coder, motion))
        payloads.append(coder.finish())
    return payloads, references


def decode(model: VideoModel, payloads: list[bytes]) -> list[Reference]:
    found: list[Reference] = []
    for step, data in zip((KEY, KEY, INTER), payloads, strict=True):
        past = found if step is INTER else []
        found.append(model.restore(step, model.parse(step, past, data, FORMAT), past, FORMAT))
    return found


def assert_same(found: list[Reference], wanted: list[Reference], bound: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.symbols.float(), b.symbols.float())
        assert torch.equal(a.motion_symbols.float(), b.motion_symbols.float())
        for p, q in zip(a.planes, b.planes, strict=True):
            assert float((p.double() - q.double()).abs().max()) <= bound


def test_context_is_as_before_between_references_and_in_keyframes() -> None:
    qp, layer = torch.tensor([0, 12, 63]), torch.tensor([0, 2, 7])
    for distances in ([0, 0], [-1, 1], [-6, 12], [24, -32]):
        found = context(qp, layer, torch.tensor([distances] * 3))
        assert found.shape == (3, CONTEXT)
        assert (found[:, :9].sum(1) == CONTEXT_MAX)[1]
        assert (found[:, 9:13].sum(1) == CONTEXT_MAX).all()
        assert not found[:, 13:].any()


def test_context_tells_past_references_and_how_far_they_are() -> None:
    rows = torch.tensor([[-1, 0], [-1, -9], [-9, -1], [-2, 0], [-7, -9], [-24, 0], [-300, -400]])
    qp = torch.full((len(rows),), 30)
    found = context(qp, qp * 0 + 1, rows)
    assert (found[:, 13] == CONTEXT_MAX).all()
    assert not found[:, 14].any()
    assert found[:, 15].tolist() == [0, 0, 0, 4, 16, 32, 32]
    refined = context(qp, qp * 0 + 1, rows, torch.ones_like(qp))
    assert (refined[:, 14] == CONTEXT_MAX).all() and refined.max() <= CONTEXT_MAX


def test_motion_of_past_references_tells_nothing_where_all_are_past(
    model: VideoModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    """One frame of the chain with another motion history: the same bytes."""
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    middle = coded[1][2]
    still = replace(
        middle,
        motion_symbols=torch.zeros_like(middle.motion_symbols),
        motion_activity=torch.zeros_like(middle.motion_activity),
    )
    assert middle.motion_activity.any()
    for distances, equal in (((-1, -3), True), ((-1, 2), False)):
        step = replace(INTER, distances=distances)
        payloads = []
        for first in (middle, still):
            past = [first, coded[1][0]]
            coder = model.encoding_coder()
            model.code(step, x, past, coder, model.estimate_motion(step, x, past))
            payloads.append(coder.finish())
        assert (payloads[0] == payloads[1]) == equal


def test_transform_starts_as_an_orthonormal_dct() -> None:
    matrix = picture_dct().double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(CHANNELS, dtype=torch.float64), atol=1e-6)
    net = VideoNet()
    planes = (torch.rand(1, 1, 64, 32) * 255, torch.rand(1, 1, 32, 16), torch.rand(1, 1, 32, 16))
    base, ctx = torch.ones(1), torch.zeros(1, CONTEXT)
    with torch.no_grad():
        blocks = to_blocks(*planes)
        latent = net.image.analyse(blocks, base, ctx)
        back = to_planes(net.image.synthesise(latent, torch.zeros_like(latent), base, ctx))
    for a, b in zip(planes, back, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_every_learned_branch_at_zero_is_a_working_codec() -> None:
    torch.manual_seed(0)
    net = VideoNet()
    for name, parameter in net.named_parameters():
        if name.endswith("coding.steps.0.index_context.bias") or name.endswith(
            "index_context.bias"
        ):
            parameter.data.fill_(80.0)  # table 20 for every symbol: no statistics at all
    model = VideoModel(net, TableSet(tables.laplace_magnitudes()), b"classics", torch.device("cpu"))
    frames = clip(5, FORMAT, noise=0.3)
    pictures = [model.picture(f, FORMAT) for f in frames]
    references = []
    sizes = []
    for number in (0, 4):
        coder = model.encoding_coder()
        references.append(model.code(KEY, pictures[number], [], coder))
        sizes.append(len(coder.finish()))
        assert model.psnr(pictures[number], references[-1], FORMAT) > 33
    motion = model.estimate_motion(INTER, pictures[2], references)
    coder = model.encoding_coder()
    middle = model.code(INTER, pictures[2], references, coder, motion)
    data = coder.finish()
    assert model.psnr(pictures[2], middle, FORMAT) > 32
    again = model.restore(INTER, model.parse(INTER, references, data, FORMAT), references, FORMAT)
    assert_same([again], [middle], PIXEL_BOUND)
    assert len(data) < 0.85 * min(sizes)
    assert sizes[0] < 112 * 80 * 1.5 / 3  # and it compresses


def test_decoder_reconstructs_what_the_encoder_did(
    model: VideoModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    payloads, references = coded
    assert_same(decode(model, payloads), references, PIXEL_BOUND)


@pytest.mark.parametrize("step", [KEY, replace(INTER, qp=34)], ids=["key", "inter"])
def test_a_second_pass_costs_less(
    model: VideoModel, coded: tuple[list[bytes], list[Reference]], step: CodingStep
) -> None:
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    past = [] if step is KEY else coded[1][:2]
    motion = model.estimate_motion(step, x, past) if past else None
    costs = []
    for passes in (1, 2, 3):
        coder = model.encoding_coder()
        reference = model.code(step, x, past, coder, motion, passes)
        data = coder.finish()
        bits = 8 * len(data) / (FORMAT.width * FORMAT.height)
        distortion = model.distortion(x, reference, step.qp)
        costs.append(distortion + model.rd_weight(step.qp) * bits)
        parsed = model.parse(step, past, data, FORMAT)
        assert_same([model.restore(step, parsed, past, FORMAT)], [reference], PIXEL_BOUND)
    assert costs[1] < 0.995 * costs[0]
    assert costs[2] < costs[0]


def test_nothing_outside_the_picture_is_coded(model: VideoModel) -> None:
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
        references, payloads = [], []
        for number in (0, 4, 2):
            x = model.picture(frames[number], video_format)
            step, past = (KEY, []) if number != 2 else (INTER, list(references))
            motion = model.estimate_motion(step, x, past) if past else None
            coder = model.encoding_coder()
            references.append(model.code(step, x, past, coder, motion))
            payloads.append(coder.finish())
        for step, past, data, wanted in zip(
            (KEY, KEY, INTER), ([], [], references[:2]), payloads, references, strict=True
        ):
            parsed = model.parse(step, past, data, video_format)
            assert_same([model.restore(step, parsed, past, video_format)], [wanted], PIXEL_BOUND)
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


@pytest.mark.parametrize("motion", list(MotionMode))
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sides", list(DISTANCES))
def test_every_mode_decodes(
    model: VideoModel,
    coded: tuple[list[bytes], list[Reference]],
    motion: MotionMode,
    residual: bool,
    sides: str,
) -> None:
    if sides != "between" and motion is MotionMode.DIRECT:
        pytest.skip("inherited motion needs a reference on each side")
    past = coded[1][:1] if sides == "alone" else coded[1][:2]
    step = replace(INTER, motion=motion, residual=residual, distances=DISTANCES[sides])
    x = model.picture(clip(5, FORMAT, noise=2.0)[2], FORMAT)
    coder = model.encoding_coder()
    field = model.estimate_motion(step, x, past) if motion is MotionMode.CODED else None
    reference = model.code(step, x, past, coder, field)
    data = coder.finish()
    assert (data == b"") <= (motion is not MotionMode.CODED or not residual)
    again = model.restore(step, model.parse(step, past, data, FORMAT), past, FORMAT)
    assert_same([again], [reference], PIXEL_BOUND)


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
    model: VideoModel,
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
            given = Conditions.of([step], torch.device("cpu"), (FORMAT.height, FORMAT.width))
            coder = model.decoding_coder(data)
            if step is KEY:
                parsed = net.parse(step.motion, True, given, None, GRID, coder)
                found.append(net.keyframe(given, None, GRID, parsed))
            else:
                pair = (found[0], found[1])
                parsed = net.parse(step.motion, True, given, pair, GRID, coder)
                found.append(net.inter(step.motion, True, given, None, pair, parsed)[0])
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
    model: VideoModel, coded: tuple[list[bytes], list[Reference]]
) -> None:
    singles = []
    size = (FORMAT.height, FORMAT.width)
    one = Conditions.of([KEY], torch.device("cpu"), size)
    with torch.inference_mode():
        for data in coded[0][:2]:
            tape = Tape(None, model.decoding_coder(data))
            model.net.parse(KEY.motion, True, one, None, GRID, tape)
            singles.append(tape)
        both = Tape([t.read for t in singles])
        two = Conditions.of([KEY, KEY], torch.device("cpu"), size)
        model.net.parse(KEY.motion, True, two, None, torch.Size((2, *GRID[1:])), both)
    for step, index in enumerate(both.indices):
        wanted = torch.cat([t.indices[step] for t in singles])
        assert torch.equal(index, wanted)
        assert float(index.max()) > 0


@pytest.mark.parametrize("size", [(16, 16), (17, 19), (96, 33)])
@pytest.mark.parametrize("depth", [8, 10])
def test_odd_sizes_and_depths(model: VideoModel, size: tuple[int, int], depth: int) -> None:
    video_format = VideoFormat(width=size[0], height=size[1], bit_depth=depth)
    frame = clip(1, video_format)[0]
    x = model.picture(frame, video_format)
    coder = model.encoding_coder()
    reference = model.code(replace(KEY, qp=8), x, [], coder)
    planes = model.frame_planes(reference, video_format)
    for plane, original in zip(planes, frame.planes, strict=True):
        assert plane.shape == original.shape
        assert plane.dtype == original.dtype
        unit = 1 if depth == 8 else 4
        error = np.abs(plane.astype(int) - original.astype(int)).mean() / unit
        assert error < 2.0


def test_shipped_weights_are_small_documented_and_exact() -> None:
    assert Path(shipped_weights()).stat().st_size <= 16 << 20
    card = read_card()
    for entry in ("data", "licence", "steps", "results"):
        assert card.get(entry), f"the card does not tell {entry}"
    assert check_bound(load_weights(shipped_weights())[0]) < 1


def test_cost_stays_in_the_envelope(model: VideoModel) -> None:
    figures = complexity(model)
    assert 1 < figures["keyframe"]["total"] < figures["inter"]["total"] <= 20
    assert figures["inter"]["motion"] > 0


def test_weights_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no weights file"):
        load_model(str(tmp_path / "missing"), "cpu")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ModelMismatchError, match="not a weights file"):
        load_model(str(wrong), "cpu")


def test_new_weights_under_an_old_name_are_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    net, magnitudes, shipped = load_weights(shipped_weights())
    assert save_weights(path, net, magnitudes, {}) == load_model(path, "cpu").model_id == shipped
    with torch.no_grad():
        net.motion.log_step += 0.5
    assert save_weights(path, net, magnitudes, {}) == load_model(path, "cpu").model_id != shipped
    assert load_weights(shipped_weights())[2] == shipped
    untouched = load_weights(shipped_weights())[0]
    assert not torch.equal(untouched.motion.log_step, net.motion.log_step)


@pytest.mark.gpu
def test_cuda_parses_as_the_cpu_does(
    coded: tuple[list[bytes], list[Reference]],
) -> None:
    found = decode(VideoModel.load(device="cuda"), coded[0])
    for a, b in zip(found, coded[1], strict=True):
        assert torch.equal(a.symbols.cpu(), b.symbols)
        for p, q in zip(a.planes, b.planes, strict=True):
            assert float((p.cpu() - q).abs().max()) <= 0.5
