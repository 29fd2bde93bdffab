"""Models on an accelerator: parsed on the host, pixels in few operators, few copies between them.

The device "meta" stands for one: it has shapes alone, so that frames of any size cost nothing.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_check import META, DeviceCheck
from small_model import SMALL
from synthetic import clip
from test_operations import VIEWS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vcfilter.bitstream import read_packet
from vcfilter.codec import Decoder, Encoder
from vcfilter.codec import decoder as decoder_module
from vcfilter.frames import Frame, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical import latent as latent_module
from vcfilter.models.hierarchical import model as model_module
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.device import DevicePixels
from vcfilter.models.hierarchical.device_numbers import DirectMotion, MeanStep
from vcfilter.models.hierarchical.latent import LatentExtent
from vcfilter.models.hierarchical.loop_filter import NO_FILTER, LoopFilter
from vcfilter.models.hierarchical.mode import HierarchicalMode, MotionMode
from vcfilter.models.hierarchical.model import HierarchicalModel
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.values import FrameContext, FrameSymbols, Reference, pair
from vcfilter.nn import native as native_module
from vcfilter.nn.packed import packed_to
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

CPU = torch.device("cpu")
RUNTIME = Runtime(device="cpu", threads=1)
KEY = FrameStep(type=FrameType.KEY, qp=28)
INTER = FrameStep(type=FrameType.INTER, qp=30, layer=1, number=12, references=(-2, 2))
FULL = HierarchicalMode(motion=MotionMode.CODED, level=3, refine=True, sharp=True)
FILTER = LoopFilter(tuple(range(-9, 9)), tuple(range(-12, 12)))
OPERATORS, COPIES = 250, 4  # of an inter frame, at most
SAME = 0.005  # of 255: sums in another order, measured below 0.001


@pytest.fixture(scope="module")
def model() -> HierarchicalModel:
    found = store.find(None, RUNTIME)
    assert isinstance(found, HierarchicalModel)
    return found


@pytest.fixture
def on_host(model: HierarchicalModel, monkeypatch: pytest.MonkeyPatch) -> HierarchicalModel:
    """The model as it is on an accelerator, with values: its device is the CPU."""
    monkeypatch.setattr(model_module, "parses_on_host", lambda device: True)
    return HierarchicalModel(copy.deepcopy(model.net), model.tables, model.info, CPU)


class Stream:
    """Packets of a clip, and what the CPU makes of them."""

    def __init__(self, model: HierarchicalModel, video_format: VideoFormat, **options: Any) -> None:
        self.model, self.format = model, video_format
        given = EncoderOptions(preset="fast", scenecut=False, **options)
        encoder = Encoder(video_format, given, runtime=RUNTIME, model=model)
        frames = [*clip(5, video_format, noise=3.0), None]
        self.packets = [packet for frame in frames for packet in encoder.encode(frame)]
        first = read_packet(self.packets[0].data)
        self.infos = [first]
        for packet in self.packets[1:]:
            self.infos.append(read_packet(packet.data, key_identity=first.identity))
        self.order = sorted(range(5), key=lambda n: (self.infos[n].header.step.layer, n))
        self.symbols: dict[int, FrameSymbols] = {}
        self.references: dict[int, Reference] = {}
        for number in self.order:
            self.symbols[number] = self.parse(model, number, self.symbols)
            header, past = self.infos[number].header, self.past(number, self.references)
            self.references[number] = model.reconstruct(
                header.step, header.mode, self.symbols[number], past, video_format
            )

    def past(self, number: int, known: dict[int, Any]) -> list[Any]:
        step = self.infos[number].header.step
        return [known[n] for n in (step.reference_numbers if step.references else ())]

    def parse(
        self, model: HierarchicalModel, number: int, known: dict[int, FrameSymbols]
    ) -> FrameSymbols:
        info = self.infos[number]
        contexts = [symbols.context for symbols in self.past(number, known)]
        sections = [section.data for section in info.sections]
        levels = [section.qp for section in info.sections[1:]]
        return model.parse(
            info.header.step, info.header.mode, sections, contexts, self.format, levels
        )


@pytest.fixture(scope="module")
def stream(model: HierarchicalModel) -> Stream:
    return Stream(model, VideoFormat(width=101, height=75), qp=26, keyint=4)


@pytest.fixture(scope="module")
def levels(model: HierarchicalModel) -> Stream:
    return Stream(model, VideoFormat(width=48, height=32), qp=34, keyint=4, layers=3)


def same_symbols(a: FrameSymbols, b: FrameSymbols) -> bool:
    parts = [
        (s.image, s.motion, *(level.symbols for level in s.levels), s.context.symbols,
         s.context.activity, s.context.motion_symbols, s.context.motion_activity)
        for s in (a, b)
    ]  # fmt: skip
    equal = all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(*parts, strict=True)
    )
    filters = [(s.context.loop_filter, *(level.loop_filter for level in s.levels)) for s in (a, b)]
    return equal and filters[0] == filters[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "levels"])
def test_a_model_on_a_device_parses_on_the_host(
    model: HierarchicalModel, name: str, request: pytest.FixtureRequest
) -> None:
    """The same integers, on the CPU; they go to the device in one copy."""
    coded: Stream = request.getfixturevalue(name)
    away = HierarchicalModel(copy.deepcopy(model.net), model.tables, model.info, META)
    found: dict[int, FrameSymbols] = {}
    references: dict[int, Reference] = {}
    for number in coded.order:
        with DeviceCheck():
            found[number] = coded.parse(away, number, found)
            past = coded.past(number, references)
            header, symbols = coded.infos[number].header, found[number]
            references[number] = away.reconstruct(
                header.step, header.mode, symbols, past, coded.format
            )
        assert same_symbols(found[number], coded.symbols[number])
        assert references[number].planes[0].device == META
        assert references[number].context.symbols.device == CPU
        moved = symbols.to(META)
        parts = [moved.image, moved.motion, *(level.symbols for level in moved.levels)]
        # A frame that repeats its references has nothing to send.
        assert (moved.packed is None) == all(part is None for part in parts)
        for part in parts:
            assert part is None or part._base is moved.packed or part._base is moved.packed._base
    assert any(symbols.motion is not None for symbols in found.values())
    assert (name == "levels") == any(symbols.levels for symbols in found.values())


def test_threads_share_a_frames_positions(
    on_host: HierarchicalModel, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same integers; native loops work in other threads as well."""
    monkeypatch.setattr(latent_module, "PART", 8)
    seen, plain = set(), native_module.in_parts

    def noted(work: Callable[[slice], None], count: int, least: int) -> None:
        def each(part: slice) -> None:
            seen.add(threading.current_thread())
            work(part)

        plain(each, count, least)

    monkeypatch.setattr(latent_module, "in_parts", noted)
    found: dict[int, FrameSymbols] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for number in stream.order:
            found[number] = stream.parse(on_host, number, found)
            assert same_symbols(found[number], stream.symbols[number])
    finally:
        torch.set_num_threads(before)
    assert len(seen) > 1


def test_parts_are_all_of_it_and_errors_come_through() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for count, least, parts in ((0, 8, 1), (7, 8, 1), (16, 8, 2), (103, 8, 4), (3, 0, 3)):
            done: list[slice] = []
            native_module.in_parts(done.append, count, least)
            assert len(done) == parts
            assert sorted(n for part in done for n in range(count)[part]) == [*range(count)]

        def broken(part: slice) -> None:
            if part.start:
                raise MemoryError

        with pytest.raises(MemoryError):
            native_module.in_parts(broken, 100, 10)
    finally:
        torch.set_num_threads(before)


def test_contexts_of_encoded_frames_do_as_well(on_host: HierarchicalModel, stream: Stream) -> None:
    """They are on the model's device."""
    number = stream.order[-1]
    contexts = {n: symbols for n, symbols in stream.symbols.items() if n != number}
    assert same_symbols(stream.parse(on_host, number, contexts), stream.symbols[number])


REFERENCES = {
    "between": ((-2, 2), (0, 4)),
    "direct from the right": ((-1, 1), (0, 2)),
    "direct from the left": ((-1, 1), (2, 4)),
    "alone": ((-2,), (0,)),
    "past": ((-1, -3), (2, 0)),
    "future": ((1, 3), (0, 4)),
}


@pytest.mark.parametrize("sides", list(REFERENCES))
def test_pixels_in_few_operators_are_those_of_the_plain_pass(
    model: HierarchicalModel, stream: Stream, sides: str
) -> None:
    """Every mode, with symbols of coded frames."""
    coded = next(s for s in stream.symbols.values() if s.motion is not None and s.image is not None)
    pixels = DevicePixels(model.net, CPU)
    distances, numbers = REFERENCES[sides]
    step, both = replace(INTER, references=distances), pair([stream.references[n] for n in numbers])
    if "direct" in sides:  # one was coded from the other
        side = sides.endswith("right")
        spans = torch.tensor([[-2, 2]])
        own = [replace(each, distances=spans * (side == n)) for n, each in enumerate(both)]
        both = own[0], own[1]
        direct = DirectMotion.of(both, *distances)
        assert direct is not None and direct.moves.any()
    tried, size = 0, (stream.format.height, stream.format.width)
    flags = itertools.product(MotionMode, *[(False, True)] * 4)
    for motion, sharp, refine, residual, filtered in flags:
        plain = motion < MotionMode.DIRECT
        second = motion in (MotionMode.SECOND, MotionMode.DIRECT) or refine
        if (plain and (sharp or refine)) or (second and sides == "alone"):
            continue
        moved = motion is MotionMode.CODED
        mode = HierarchicalMode(motion=motion, level=3 * moved, refine=refine, sharp=sharp)
        conditions = Conditions.of([step], [mode], CPU, size)
        symbols = FrameSymbols(
            image=coded.image if residual else None,
            motion=coded.motion if moved else None,
            context=replace(coded.context, loop_filter=FILTER if filtered else NO_FILTER),
        )
        with torch.inference_mode():
            a = model.net.reconstruct(motion, conditions, symbols, both)
            b = pixels.reconstruct(motion, conditions, symbols, both)
        for p, q in zip(a.planes, b.planes, strict=True):
            assert p.shape == q.shape and float((p - q).abs().max()) <= SAME
        assert float((a.moves - b.moves).abs().max()) <= SAME
        assert torch.equal(a.distances, b.distances)
        tried += 1
    assert tried == (16 if sides == "alone" else 44)


@pytest.mark.parametrize("size", [(16, 16), (101, 75), (96, 33)])
@pytest.mark.parametrize("loop_filter", [NO_FILTER, replace(FILTER, chroma=(0,) * 24), FILTER])
def test_keyframes_as_well(
    model: HierarchicalModel, size: tuple[int, int], loop_filter: LoopFilter
) -> None:
    fmt = VideoFormat(width=size[0], height=size[1])
    coded = model.encode(model.picture(clip(1, fmt)[0], fmt), KEY, (), fmt, "fast")
    symbols = model.parse(KEY, coded.mode, coded.sections, (), fmt)
    symbols = replace(symbols, context=replace(symbols.context, loop_filter=loop_filter))
    conditions = Conditions.of([KEY], [HierarchicalMode()], CPU, (fmt.height, fmt.width))
    with torch.inference_mode():
        a = model.net.reconstruct(MotionMode.NONE, conditions, symbols, None)
        b = DevicePixels(model.net, CPU).reconstruct(MotionMode.NONE, conditions, symbols, None)
    for p, q in zip(a.planes, b.planes, strict=True):
        assert p.shape == q.shape and float((p - q).abs().max()) <= SAME


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (4, 12), (20, 16)])
def test_means_step_by_step(radius: int, size: tuple[int, int]) -> None:
    """Other reaches, lattices that are too small to be mirrored."""
    torch.manual_seed(0)
    net = VideoNet(replace(SMALL, mean_radius=radius)).eval().requires_grad_(False)
    for latent in (net.image.coding, net.motion.coding):
        for step in latent.steps:
            step.mean.weight.normal_(0, 0.05)  # type: ignore[union-attr, operator]
            step.gain.weight.normal_(0, 0.1)  # type: ignore[union-attr, operator]
        features = torch.randint(0, 33, (1, 16)).float()
        symbols, steps = torch.randn(1, latent.channels, *size).mul(3).round(), torch.rand(1, 1)
        steps = steps.expand(1, latent.channels) + 1
        extent = LatentExtent(features=features, size=size, inside=size)
        with torch.inference_mode():
            wanted = latent.differences(symbols, steps, extent)
            found = symbols * steps[:, :, None, None]
            assert not torch.allclose(found, wanted, atol=0.1)
            for each in MeanStep.of(latent):
                each.add(found, each.weights(features / 32))
        assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["stream", "levels"])
def test_a_stream_decodes_as_on_the_cpu(
    model: HierarchicalModel,
    on_host: HierarchicalModel,
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a decoder that reads symbols ahead: at most a level where a value lies at a half."""
    stream: Stream = request.getfixturevalue(name)

    def decoded(own: HierarchicalModel, packets: Sequence[Packet]) -> list[Frame]:
        decoder = Decoder(options=DecoderOptions(strict=True), runtime=RUNTIME, model=own)
        return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]

    plain = decoded(model, stream.packets)
    monkeypatch.setattr(decoder_module, "reads_ahead", lambda own: True)
    for wanted, found in zip(plain, decoded(on_host, stream.packets), strict=True):
        assert wanted.pts == found.pts
        for a, b in zip(wanted.planes, found.planes, strict=True):
            apart = np.abs(a.astype(int) - b)
            assert a.shape == b.shape and apart.max() <= 1 and apart.mean() < 0.001


@pytest.mark.parametrize("depth", [8, 10])
def test_planes_come_as_they_do_on_the_cpu(
    model: HierarchicalModel, on_host: HierarchicalModel, stream: Stream, depth: int
) -> None:
    fmt = replace(stream.format, bit_depth=depth)
    for reference in stream.references.values():
        pairs = zip(model.planes(reference, fmt), on_host.planes(reference, fmt), strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype and np.array_equal(a, b)


def test_tensors_are_packed_in_one() -> None:
    parts = [torch.rand(3, 5), torch.rand(70), torch.rand(1), torch.rand(2, 2, 2)]
    with Work(CPU) as work:
        found = packed_to(parts, META)
    assert [f.shape for f in found] == [p.shape for p in parts] and work.copies.total() == 1
    assert all(torch.equal(a, b) for a, b in zip(parts, packed_to(parts, CPU), strict=True))
    assert all(not part.storage_offset() % 64 for part in found)


class Work(TorchDispatchMode):
    """Counts operators that compute on a device, and copies from and to it, by name."""

    def __init__(self, device: torch.device = META) -> None:
        super().__init__()
        self._device = device.type
        self.operators: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        before = self._devices(args, kwargs)
        if name == "_to_copy" and "meta" in before and kwargs.get("device") == CPU:
            self.copies["to the host"] += 1  # which has no values for it
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        found = func(*args, **kwargs)
        both = before | self._devices(found)
        if len(both) > 1 or (name == "_local_scalar_dense" and "meta" in both):
            self.copies[name] += 1
        elif self._device in both and name not in VIEWS and not name.startswith("empty"):
            self.operators[name] += 1
        return found

    @staticmethod
    def _devices(*values: Any) -> set[str]:
        return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


@pytest.fixture
def no_inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators are seen as they are computed: inference mode shows composed ones instead."""
    monkeypatch.setattr(torch, "inference_mode", lambda *mode: torch.no_grad())
    yield


def work_of(
    model: HierarchicalModel, size: tuple[int, int], loop_filter: LoopFilter
) -> tuple[list[Work], list[Work]]:
    """(of keyframes, of inter frames whose motion is refined and whose references imply some)."""
    fmt = VideoFormat(width=size[0], height=size[1])
    away = HierarchicalModel(copy.deepcopy(model.net), model.tables, model.info, META)
    rows, columns = away.net.config.padded_size(fmt.height, fmt.width)
    image = torch.zeros(away.net.latent_shape(1, rows, columns))
    motion = torch.zeros(1, away.net.config.motion_channels, rows // 32, columns // 32)
    bytes_of = [t.to(torch.uint8) for t in (image, image, motion, motion)]
    context = FrameContext(
        symbols=bytes_of[0],
        activity=bytes_of[1],
        motion_symbols=bytes_of[2],
        motion_activity=bytes_of[3],
        loop_filter=loop_filter,
    )

    def decoded(step: FrameStep, past: Sequence[Reference]) -> tuple[Work, Reference]:
        key = step.type is FrameType.KEY
        symbols = FrameSymbols(image=image, motion=None if key else motion, context=context)
        symbols = symbols.together(False)
        with Work() as work:
            found = away.reconstruct(step, b"" if key else FULL.pack(), symbols, past, fmt)
            away.planes(found, fmt)
        return work, found

    keys = [decoded(KEY, ()) for _ in range(2)]
    key = keys[-1][1]
    inter = [decoded(INTER, [key, key])]
    for qp in (33, 34, 34):  # constants are there; the last one's conditions are, too
        step = replace(INTER, qp=qp, layer=2, references=(-1, 3))
        own = replace(key, moves=inter[0][1].moves, distances=torch.tensor([[-4, 0]]))
        inter.append(decoded(step, [key, own]))
    return [work for work, _ in keys], [work for work, _ in inter]


def test_a_frame_of_1080_lines_takes_few_operators_and_copies(
    model: HierarchicalModel, no_inference: None
) -> None:
    keys, frames = work_of(model, (1920, 1080), FILTER)
    convolutions = {name: n for name, n in frames[-1].operators.items() if "convolution" in name}
    assert sum(convolutions.values()) > 40  # they are counted
    for work in (*keys, *frames):
        assert work.operators.total() <= OPERATORS, work.operators
    for work in frames[2:]:
        assert work.copies.total() <= COPIES and work.copies["to the host"] == 1, work.copies
    assert frames[-1].copies.total() == 3  # symbols, the filter, and planes back
    assert frames[-2].copies.total() == 4  # and what follows from the qp
    assert keys[-1].operators.total() < 100


@pytest.mark.slow
def test_operators_do_not_depend_on_the_size(model: HierarchicalModel, no_inference: None) -> None:
    """Sizes that are padded alike."""
    counts = []
    for size in ((1920, 1080), (320, 184), (640, 376)):
        _, frames = work_of(model, size, NO_FILTER)
        counts.append(frames[-1].operators)
    assert counts[0] == counts[1] == counts[2]
