"""What decoding may cost: limits are refused at first or stop it; frames come one by one."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import SequenceHeader, read_packet, thin
from vcfilter.cli.arguments import MEMORY_MAX
from vcfilter.codec import Decoder, Encoder, decoder
from vcfilter.errors import BitstreamError, ConfigError, LimitError
from vcfilter.frames import MAX_PIXELS, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.options import DecoderOptions, EncoderOptions, Limits, Runtime

SMALL = VideoFormat(width=48, height=32)
LEVELS = 3


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "ahead"])
def reading_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    ahead: bool = request.param
    monkeypatch.setattr(decoder, "reads_ahead", lambda *_: ahead)
    return ahead


@cache
def stream(levels: int = 1, **options: Any) -> tuple[bytes, list[Packet]]:
    """Extradata and packets of 25 frames."""
    options = {"keyint": 12, "scenecut": False, "layers": levels, **options}
    encoder = Encoder(SMALL, EncoderOptions(**options), model=FakeModel(levels=levels))
    packets = [p for frame in [*clip(25, SMALL), None] for p in encoder.encode(frame)]
    return encoder.extradata, packets


def limited(
    model: FakeModel | None = None, extradata: bytes | None = None, **limits: Any
) -> Decoder:
    options = DecoderOptions(limits=Limits(**limits))
    return Decoder(extradata, options, model=model or FakeModel())


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"pixels": 0}, "limit of pixels 0 is not positive"),
        ({"frames": -1}, "limit of frames -1 is not positive"),
        ({"memory": 1.5}, "limit of memory 1.5 is not a whole number"),
        ({"pixels": True}, "limit of pixels True is not a whole number"),
        ({"seconds": "1"}, "limit of seconds '1' is not a number"),
        ({"seconds": float("nan")}, "limit of seconds nan is not positive and finite"),
        ({"seconds": float("inf")}, "limit of seconds inf is not positive and finite"),
    ],
)
def test_limits_check_themselves(limits: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Limits(**limits)


def test_options_check_limits_and_levels() -> None:
    with pytest.raises(ConfigError, match="limits 5 is not of the type Limits"):
        DecoderOptions(limits=5)  # type: ignore[arg-type]
    for levels in (0, 9):
        with pytest.raises(ConfigError, match=f"levels {levels} is outside 1 to 8"):
            DecoderOptions(levels=levels)


def test_pixels_are_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(decoder, "find_model", never)
    monkeypatch.setattr(decoder, "load_model", never)
    extradata, packets = stream()
    options = DecoderOptions(limits=Limits(pixels=48 * 32 - 1))
    with pytest.raises(LimitError, match=r"^pixels 1536 is above the limit of 1535$") as caught:
        Decoder(extradata, options)
    assert pickle.loads(pickle.dumps(caught.value)).limit == 1535
    with pytest.raises(LimitError, match="pixels 1536"):
        Decoder(None, options).decode(packets[0])
    with pytest.raises(LimitError, match="pixels 1536"):
        Decoder(extradata, replace(options, model="another"))
    with pytest.raises(AssertionError, match="a model was loaded"):
        Decoder(extradata, DecoderOptions(limits=Limits(pixels=48 * 32)))


def test_memory_is_refused_before_a_frame_is_decoded() -> None:
    extradata, packets = stream()
    model = FakeModel()
    held = decoder._HELD_MAX * model.picture_bytes(SMALL)
    with pytest.raises(LimitError, match=rf"^memory {held} is above the limit of {held - 1}$"):
        limited(model, extradata, memory=held - 1)
    with pytest.raises(LimitError, match=f"memory {held}"):
        limited(model, memory=held - 1).decode(packets[0])
    assert not model.calls
    assert len(limited(model, extradata, memory=held).decode(packets[0])) == 1


def test_a_claimed_size_costs_nothing() -> None:
    """The 34 bytes of a keyframe that claims the largest size are refused in little memory."""
    extradata, _ = stream()
    header = SequenceHeader.read(extradata)
    large = replace(header, video_format=VideoFormat(width=4096, height=2304, bit_depth=10))
    tracemalloc.start()
    with pytest.raises(LimitError):
        limited(extradata=large.write(), pixels=1920 * 1080)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("limit", [1, 12, 24])
def test_frames_end_at_the_limit(limit: int) -> None:
    _, packets = stream()
    found = limited(frames=limit)
    shown = 0
    with pytest.raises(LimitError, match=f"^frames {limit + 1} is above the limit of {limit}$"):
        for packet in [*packets, None]:
            for _ in found.frames(packet):
                shown += 1
    assert shown == limit
    with pytest.raises(LimitError):
        found.decode(packets[0])


class Costly(FakeModel):
    """Uses CPU time, as a clock of the test counts it."""

    now = 0.0

    def parse(self, *args: Any) -> Any:
        Costly.now += 1.0
        return super().parse(*args)

    def reconstruct(self, *args: Any) -> Any:
        Costly.now += 2.0
        return super().reconstruct(*args)


def test_seconds_end_decoding(reading_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if reading_ahead:
        pytest.skip("the clock is shared by both threads")
    monkeypatch.setattr("time.thread_time", lambda: Costly.now)
    _, packets = stream()
    found = limited(Costly(), seconds=30)
    shown = 0
    with pytest.raises(LimitError, match=r"^seconds 33 is above the limit of 30$"):
        for packet in packets:
            for _ in found.frames(packet):
                shown += 1
                Costly.now += 100  # what is done with a frame does not count
    assert 1 <= shown <= 11
    enough = limited(Costly(), seconds=75)
    assert sum(len(enough.decode(packet)) for packet in [*packets, None]) == 25


def test_seconds_of_the_thread_that_reads_ahead_count(reading_ahead: bool) -> None:
    if not reading_ahead:
        pytest.skip("there is none")

    class Slow(FakeModel):
        def parse(self, *args: Any) -> Any:
            sum(range(300_000))
            return super().parse(*args)

    _, packets = stream()
    found = Decoder(None, model=Slow())
    assert sum(len(found.decode(p)) for p in [*packets, None]) == 25
    began = _thread_seconds(lambda: sum(range(300_000)))
    assert found._budget._seconds > 15 * began  # 25 frames, 20 of them read ahead


def _thread_seconds(work: Any) -> float:
    import time

    began = time.thread_time()
    work()
    return time.thread_time() - began


def test_a_segment_is_handed_out_frame_by_frame() -> None:
    """Of the frames behind the first, none is decoded before it is asked for."""
    _, packets = stream()
    model = FakeModel()
    found = Decoder(None, model=model)
    ready: list[Iterator[Any]] = [found.frames(packet) for packet in packets[:13]]
    assert not model.calls
    frames = ready[-1]
    shown = [next(frames)]
    assert len(model.calls) == 1
    while len(shown) < 3:
        shown.append(next(frames))
    assert len(model.calls) < 13
    shown += found.decode(packets[13])  # what was not asked for comes first
    for packet in [*packets[14:], None]:
        shown += found.decode(packet)
    assert [f.pts for f in shown] == [p.pts for p in packets]
    assert next(frames, None) is None
    plain = Decoder(None, model=FakeModel())
    expected = [f for p in [*packets, None] for f in plain.decode(p)]
    assert all(np.array_equal(a.y, b.y) for a, b in zip(shown, expected, strict=True))


def test_threads_hold_while_frames_are_decoded_only() -> None:
    threads: set[int] = set()

    class Noting(FakeModel):
        def reconstruct(self, *args: Any) -> Any:
            threads.add(torch.get_num_threads())
            return super().reconstruct(*args)

    before = torch.get_num_threads()
    wanted = before + 1
    _, packets = stream()
    found = Decoder(None, runtime=Runtime(threads=wanted), model=Noting())
    for packet in [*packets, None]:
        for _ in found.frames(packet):
            assert torch.get_num_threads() == before
    assert threads == {wanted}


def test_reset_forgets_what_was_not_asked_for() -> None:
    _, packets = stream()
    found = Decoder(None, model=FakeModel())
    for packet in packets[:12]:
        found.decode(packet)
    frames = found.frames(packets[12])
    next(frames)
    found.reset()
    assert next(frames, None) is None
    assert [f.pts for f in found.decode(packets[12])] == [packets[12].pts]
    assert found.decode(packets[13]) == []


def test_frames_before_an_error_are_not_lost() -> None:
    _, packets = stream()
    damaged = replace(packets[12], data=packets[12].data[:-1] + b"?")
    found = Decoder(None, DecoderOptions(strict=True), model=FakeModel())
    shown = [f for p in packets[:12] for f in found.decode(p)]
    with pytest.raises(BitstreamError):
        found.decode(damaged)
    shown += found.decode(None)
    count = len(shown)
    assert [f.pts for f in shown] == [p.pts for p in packets[:count]]
    assert count >= 1


@pytest.mark.parametrize("levels", range(1, LEVELS + 1))
def test_an_operating_point_is_that_of_thinned_packets(levels: int) -> None:
    extradata, packets = stream(LEVELS)
    found = Decoder(extradata, DecoderOptions(levels=levels, strict=True), model=FakeModel())
    thinned = Decoder(extradata, DecoderOptions(strict=True), model=FakeModel())
    whole = Decoder(extradata, DecoderOptions(strict=True), model=FakeModel())
    differ = 0
    for packet in [*packets, None]:
        thin_packet = packet and replace(packet, data=thin(packet.data, levels))
        sets = [found.decode(packet), thinned.decode(thin_packet), whole.decode(packet)]
        for ours, expected, best in zip(*sets, strict=True):
            assert np.array_equal(ours.y, expected.y)
            differ += not np.array_equal(ours.y, best.y)
    assert (differ > 0) == (levels < LEVELS)
    assert found.lost_levels == 0


def test_damage_above_an_operating_point_is_not_counted() -> None:
    extradata, packets = stream(LEVELS)
    key = packets[0]
    size = len(thin(key.data, 2))
    damaged = replace(key, data=key.data[:size] + b"?" * 20)
    for levels, lost in ((1, 0), (2, 0), (3, 1), (None, 1)):
        found = Decoder(extradata, DecoderOptions(levels=levels), model=FakeModel())
        assert len(found.decode(damaged)) == 1
        assert found.lost_levels == lost
    assert read_packet(damaged.data).lost_levels


@pytest.mark.parametrize("depth", [8, 10])
def test_the_models_figure_covers_what_a_reference_holds(depth: int) -> None:
    model = store.find(None, Runtime(device="cpu"))
    fmt = VideoFormat(width=112, height=70, bit_depth=depth)
    frames = clip(2, fmt)
    key = FrameStep(type=FrameType.KEY, qp=28)
    first = model.encode(model.picture(frames[0], fmt), key, (), fmt, "fast").reference
    inter = FrameStep(type=FrameType.INTER, qp=20, number=1, layer=1, references=(-1,))
    coded = model.encode(model.picture(frames[1], fmt), inter, [first], fmt, "fast")
    second = model.parse(inter, coded.mode, coded.sections, [first.context], fmt)
    found = model.reconstruct(inter, coded.mode, second, [first], fmt)
    stated = model.picture_bytes(fmt)
    assert _storage_bytes(found) == stated
    for reference in (first, coded.reference):
        assert 0.9 * stated < _storage_bytes(reference) <= stated


def _storage_bytes(reference: Any) -> int:
    """Bytes of all tensors of a reference, shared ones once."""
    storages: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    reference.each(count)
    return sum(storages.values())


def test_the_default_of_serve_and_worker_refuses_no_size() -> None:
    model = store.find(None, Runtime(device="cpu"))
    for width, height in ((4096, 2304), (2304, 4096), (4095, 2303)):
        largest = VideoFormat(width=width, height=height, bit_depth=10)
        assert width * height <= MAX_PIXELS
        assert decoder._HELD_MAX * model.picture_bytes(largest) <= MEMORY_MAX
