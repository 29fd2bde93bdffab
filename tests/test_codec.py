"""Encoder and decoder: order, times, cuts, joins, losses; mostly on the fake model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import (
    PacketReader,
    SequenceHeader,
    VersionError,
    read_packet,
    thin,
    write_packet,
)
from vcfilter.codec import Decoder, Encoder
from vcfilter.codec import decoder as decoder_module
from vcfilter.errors import BitstreamError, ConfigError, ModelMismatchError
from vcfilter.frames import SLOTS, Frame, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import CodedFrame, Model, ModelInfo
from vcfilter.options import PRESETS, DecoderOptions, EncoderOptions, Runtime

SMALL = VideoFormat(width=48, height=32)


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "ahead"])
def reading_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test holds whether or not symbols are read ahead in a thread."""
    ahead: bool = request.param
    monkeypatch.setattr(decoder_module, "reads_ahead", lambda *_: ahead)
    return ahead


def encode(
    frames: list[Frame],
    video_format: VideoFormat = SMALL,
    model: Model | None = None,
    **options: object,
) -> tuple[Encoder, list[Packet]]:
    model = model or FakeModel(video_format.bit_depth)
    encoder = Encoder(video_format, EncoderOptions(**options), model=model)
    packets = [packet for frame in [*frames, None] for packet in encoder.encode(frame)]
    return encoder, packets


def new_decoder(extradata: bytes | None = None, **options: object) -> Decoder:
    return Decoder(extradata, DecoderOptions(**options), model=FakeModel())


def decode(packets: list[Packet], decoder: Decoder | None = None, **options: object) -> list[Frame]:
    decoder = decoder or new_decoder(**options)
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


def same(a: Frame, b: Frame) -> bool:
    planes = zip(a.planes, b.planes, strict=True)
    return a.pts == b.pts and all(np.array_equal(p, q) for p, q in planes)


def segment_of(packets: list[Packet], number: int) -> list[Packet]:
    """The packets of one segment, without the keyframe that follows it."""
    starts = [i for i, packet in enumerate(packets) if packet.is_keyframe] + [len(packets)]
    return packets[starts[number] : starts[number + 1]]


@pytest.mark.parametrize("scenecut", [True, False])
@pytest.mark.parametrize("keyint", [1, 2, 5, 12, 64])
def test_each_frame_comes_back_in_order(keyint: int, scenecut: bool) -> None:
    frames = clip(30, SMALL, cuts=(8, 21), first_pts=1000, ticks=512)
    encoder, packets = encode(frames, keyint=keyint, scenecut=scenecut)
    assert [p.pts for p in packets] == [f.pts for f in frames]
    assert all(p.duration == 512 for p in packets)
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert max(np.diff([*keys, 30])) <= keyint
    if scenecut:
        assert {0, 8, 21} <= set(keys)

    decoder = new_decoder(encoder.extradata, strict=True)
    assert decoder.video_format == SMALL
    shown = decode(packets, decoder)
    assert [f.pts for f in shown] == [f.pts for f in frames]
    assert [f.duration for f in shown] == [512] * 30
    assert [f.type is FrameType.KEY for f in shown] == [p.is_keyframe for p in packets]
    for frame, record in zip(
        zip(frames, shown, strict=True), encoder.statistics.records, strict=True
    ):
        error = np.mean((frame[0].y.astype(float) - frame[1].y) ** 2)
        assert record.pts == frame[0].pts
        assert error < 1000
        if record.header.step.type is FrameType.KEY:
            assert error < 80


def test_all_but_a_segments_first_frame_are_read_ahead(
    reading_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, packets = encode(clip(25, SMALL), keyint=12, scenecut=False)
    decoder = new_decoder()
    parse, threads = decoder._parse, []

    def noted(*args: object) -> object:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "_parse", noted)
    assert len(decode(packets, decoder)) == 25
    assert len(threads) == 25
    assert threads.count(False) == (20 if reading_ahead else 0)  # 3 keys, and one per segment


def test_frames_that_do_not_need_each_other_are_parsed_together(reading_ahead: bool) -> None:
    """Those around the middle one, while its pixels are made."""
    if not reading_ahead:
        pytest.skip("nothing is read ahead")
    meet = threading.Barrier(3)

    class Meeting(FakeModel):
        def parse(self, step: FrameStep, *args: Any) -> Any:
            if step.number in (1, 3):
                meet.wait(60)
            return super().parse(step, *args)

        def reconstruct(self, step: FrameStep, *args: Any) -> Any:
            if step.number == 2:
                meet.wait(60)
            return super().reconstruct(step, *args)

    frames = clip(5, SMALL)
    _, packets = encode(frames, keyint=4, scenecut=False)
    wanted = decode(packets)
    found = decode(packets, Decoder(options=DecoderOptions(strict=True), model=Meeting()))
    assert len(found) == 5 and all(map(same, found, wanted))
    assert not meet.broken


def test_what_a_damaged_frame_was_read_ahead_for_is_dropped() -> None:
    """Its symbols fail in a thread, and so do those of frames that refer to it."""

    class Failing(FakeModel):
        def parse(self, step: FrameStep, *args: Any) -> Any:
            if step.number == 2:
                raise BitstreamError("no")
            return super().parse(step, *args)

    _, packets = encode(clip(13, SMALL), keyint=4, scenecut=False)
    decoder = Decoder(model=Failing())
    assert [f.pts for f in decode(packets, decoder)] == [0, 4, 8, 12]
    assert decoder.dropped_damaged == 3 and decoder.dropped_missing_reference == 6


@pytest.mark.parametrize("count", [1, 2, 3, 11, 12, 13, 14])
def test_short_clips(count: int) -> None:
    encoder, packets = encode(clip(count, SMALL))
    assert len(packets) == len(decode(packets, strict=True)) == count
    assert encoder.statistics.frames == count
    assert encoder.statistics.bytes == sum(len(p.data) for p in packets)


def test_no_frames() -> None:
    assert encode([])[1] == []
    assert decode([]) == []


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (50, 21)])
@pytest.mark.parametrize("depth", [8, 10])
def test_sizes_and_depths(size: tuple[int, int], depth: int) -> None:
    fmt = VideoFormat(width=size[0], height=size[1], bit_depth=depth)
    frames = clip(7, fmt)
    _, packets = encode(frames, fmt, keyint=4, qp=12)
    shown = decode(packets, Decoder(options=DecoderOptions(strict=True), model=FakeModel(depth)))
    for frame, result in zip(frames, shown, strict=True):
        result.check(fmt)
        assert np.abs(frame.y.astype(int) - result.y).mean() < 8 * (depth - 7)


def test_variable_frame_rate_and_any_first_time() -> None:
    frames = clip(9, SMALL)
    times = [-500, -499, -100, 0, 1, 70, 71, 72, 10_000_000_000]
    frames = [Frame(y=f.y, u=f.u, v=f.v, pts=t) for f, t in zip(frames, times, strict=True)]
    _, packets = encode(frames, keyint=4)
    assert [f.pts for f in decode(packets, strict=True)] == times


def test_frames_are_checked() -> None:
    encoder = Encoder(SMALL, EncoderOptions(), model=FakeModel())
    first, second = clip(2, SMALL)
    with pytest.raises(ConfigError, match="plane y"):
        encoder.encode(clip(1, VideoFormat(width=64, height=32))[0])
    encoder.encode(second)
    with pytest.raises(ConfigError, match="pts 0 comes after"):
        encoder.encode(first)


def test_arguments_of_another_type_are_one_sentence() -> None:
    for call, message in (
        (lambda: Encoder("x"), "video_format 'x' is not a VideoFormat"),
        (lambda: Encoder(SMALL, {"qp": 3}), "options .'qp': 3. is not EncoderOptions"),
        (lambda: Encoder(SMALL, runtime="cpu"), "runtime 'cpu' is not a Runtime"),
        (lambda: Decoder(b"x", {}), "options {} is not DecoderOptions"),
        (lambda: Decoder(runtime="cpu"), "runtime 'cpu' is not a Runtime"),
        (
            lambda: new_decoder().decode(Packet(data=None, pts=0, is_keyframe=True)),
            "a packet's data are NoneType, not bytes",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"keyint": 12},
        {"structure": "low-delay"},
        {"quality": 36.0, "keyint": 6},
        {"bitrate": 60_000, "keyint": 6},
        {"bitrate": 60_000, "maxrate": 80_000, "bufsize": 30_000, "keyint": 6},
    ],
    ids=["crf", "low delay", "quality", "bitrate", "maxrate"],
)
def test_an_encoder_can_be_used_again_after_the_end(options: dict[str, object]) -> None:
    """Nothing is left of the stream before: no scene, no debt of bits."""
    frames = clip(14, SMALL, cuts=(1, 7))
    encoder, packets = encode(frames, **options)
    other = [p for f in [*clip(9, SMALL, seed=7), None] for p in encoder.encode(f)]
    assert len(other) == 9
    again = [p for f in [*frames, None] for p in encoder.encode(f)]
    assert [p.data for p in again] == [p.data for p in packets]


def test_encoder_and_decoder_hold_one_segment_and_the_lookahead() -> None:
    encoder = Encoder(SMALL, EncoderOptions(keyint=6, scenecut=False), model=FakeModel())
    decoder = new_decoder()
    inside = behind = 0
    for frame in clip(40, SMALL):
        inside += 1
        for packet in encoder.encode(frame):
            inside -= 1
            behind += 1
            behind -= len(decoder.decode(packet))
            assert behind <= 5
        assert inside <= 6 + 5  # a GOP, and the followers of the next keyframe


class Noting(FakeModel):
    """Notes the efforts it is asked for, and the threads PyTorch would use."""

    def __init__(self) -> None:
        super().__init__()
        self.efforts: set[str] = set()
        self.threads: set[int] = set()
        self.meet: threading.Barrier | None = None

    def encode(self, *args: Any) -> CodedFrame:
        self.efforts.add(args[4])
        self.threads.add(torch.get_num_threads())
        if self.meet is not None and len(self.threads) == 1:
            self.meet.wait(60)
            self.meet = None
            self.threads.add(torch.get_num_threads())
        return super().encode(*args)

    def parse(self, *args: Any) -> Any:
        self.threads.add(torch.get_num_threads())
        return super().parse(*args)


def test_the_preset_is_the_models_effort() -> None:
    for preset in PRESETS:
        model = Noting()
        _, packets = encode(clip(6, SMALL), model=model, preset=preset)
        assert model.efforts == {preset}
        assert len(decode(packets, strict=True)) == 6


def test_a_preset_that_the_model_does_not_have() -> None:
    class Plain(FakeModel):
        @property
        def info(self) -> ModelInfo:
            return replace(super().info, efforts={"fast": None})

    with pytest.raises(ConfigError, match="'medium' is not one of fast of the model 'fake'"):
        Encoder(SMALL, EncoderOptions(), model=Plain())


def test_layers_get_coarser() -> None:
    encoder, _ = encode(clip(12, SMALL), qp=20)
    by_layer = {r.header.step.layer: r.header.step.qp for r in encoder.statistics.records}
    qps = [by_layer[layer] for layer in sorted(by_layer)]
    assert qps[0] == 20
    assert qps == sorted(qps)
    assert qps[-1] > 21
    encoder, _ = encode(clip(12, SMALL), qp=63)
    assert {r.header.step.qp for r in encoder.statistics.records} == {63}


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("qp", [10, 32, 50])
def test_a_still_picture_costs_six_bytes_a_frame(preset: str, qp: int) -> None:
    """Eight where the next keyframe is a reference."""
    _, packets = encode(clip(26, SMALL, still=True), preset=preset, qp=qp)
    for packet in packets:
        if not packet.is_keyframe:
            header = read_packet(packet.data).header
            assert len(packet.data) <= (6 if header.next_key is None else 9)
    _, packets = encode(clip(26, SMALL, still=True), preset=preset, qp=qp, keyint=60)
    assert max(len(p.data) for p in packets if not p.is_keyframe) <= 6


@pytest.mark.parametrize(("depth", "qp"), [(8, 24), (8, 4), (10, 12)])
def test_real_model_round_trip(depth: int, qp: int) -> None:
    """The decoder's pictures are the encoder's: it tells their very PSNR."""
    model = store.find(None, Runtime(device="cpu"))
    fmt = VideoFormat(width=62, height=46, bit_depth=depth)
    frames = clip(6, fmt, noise=0)
    encoder = Encoder(fmt, EncoderOptions(keyint=4, qp=qp, preset="fast"), model=model)
    packets = [p for f in [*frames, None] for p in encoder.encode(f)]
    shown = decode(packets, Decoder(encoder.extradata, DecoderOptions(strict=True), model=model))
    assert len(shown) == 6
    for frame, result, record in zip(frames, shown, encoder.statistics.records, strict=True):
        result.check(fmt)
        error = sum(
            weight * 10 * np.log10(((1 << depth) - 1) ** 2 / np.mean((a.astype(float) - b) ** 2))
            for a, b, weight in zip(frame.planes, result.planes, (6, 1, 1), strict=True)
        )
        assert abs(error / 8 - record.psnr) < 0.01  # means in float32


def test_real_model_goes_on_from_repeated_frames() -> None:
    """What is decoded from a frame with nothing coded does not depend on its qp."""
    model = store.find(None, Runtime(device="cpu"))
    fmt = VideoFormat(width=48, height=32)
    moving = clip(9, fmt, noise=0)
    frames = [replace(moving[max(i - 4, 0)], pts=i) for i in range(9)]
    for options in ({"bframes": 0}, {"structure": "low-delay"}, {"bframes": 3}):
        chosen = EncoderOptions(keyint=50, qp=30, preset="ultrafast", scenecut=False, **options)
        encoder = Encoder(fmt, chosen, model=model)
        packets = [p for f in [*frames, None] for p in encoder.encode(f)]
        shown = decode(
            packets, Decoder(encoder.extradata, DecoderOptions(strict=True), model=model)
        )
        for frame, result, record in zip(frames, shown, encoder.statistics.records, strict=True):
            error = np.mean((frame.y.astype(float) - result.y) ** 2)
            chroma = [np.mean((a.astype(float) - b) ** 2) for a, b in
                      zip(frame.planes[1:], result.planes[1:], strict=True)]  # fmt: skip
            psnr = [10 * np.log10(255**2 / value) for value in (error, *chroma)]
            assert abs((6 * psnr[0] + psnr[1] + psnr[2]) / 8 - record.psnr) < 0.01


def test_real_model_skips_a_still_picture() -> None:
    fmt = VideoFormat(width=64, height=48)
    encoder = Encoder(fmt, EncoderOptions(keyint=4), model=store.find(None, Runtime(device="cpu")))
    packets = [p for f in [*clip(8, fmt, still=True), None] for p in encoder.encode(f)]
    assert max(len(p.data) for p in packets if not p.is_keyframe) <= 9


def test_encoding_is_repeatable() -> None:
    frames = clip(14, SMALL)
    assert [p.data for p in encode(frames)[1]] == [p.data for p in encode(frames)[1]]


# --- cutting and joining -----------------------------------------------------------------------


def test_cut_at_keyframes() -> None:
    """A piece decodes to the same frames; what needs a keyframe behind the cut is dropped."""
    _, packets = encode(clip(40, SMALL), keyint=10, scenecut=False)
    whole = decode(packets)
    decoder = new_decoder()
    piece = decode(packets[10:30], decoder)
    assert all(same(a, b) for a, b in zip(piece, whole[10:21], strict=True))
    assert decoder.dropped_missing_reference == 9
    assert decoder.dropped_damaged == 0


def test_cut_anywhere() -> None:
    _, packets = encode(clip(24, SMALL), keyint=8, scenecut=False)
    whole = {f.pts: f for f in decode(packets)}
    for start in range(24):
        for end in range(start, 25):
            decoder = new_decoder()
            piece = decode(packets[start:end], decoder)
            assert all(same(frame, whole[frame.pts]) for frame in piece)
            assert len(piece) + decoder.dropped_missing_reference == end - start
            assert decoder.dropped_damaged == 0


def test_joined_pieces() -> None:
    """Pieces of two streams: frames across the join are dropped, never decoded wrongly."""
    _, a = encode(clip(24, SMALL, seed=1), keyint=8, scenecut=False)
    _, b = encode(clip(24, SMALL, seed=2), keyint=8, scenecut=False)
    wholes = [decode(a), decode(b)]
    joined = [*a[:16], *b[8:16], *a[8:]]
    decoder = new_decoder()
    shown = decode(joined, decoder)
    assert decoder.dropped_missing_reference == 14
    assert len(shown) + 14 == len(joined)
    for frame in shown:
        assert any(same(frame, other) for whole in wholes for other in whole)


def test_lost_packets_cost_only_their_dependents() -> None:
    _, packets = encode(clip(25, SMALL), keyint=12, scenecut=False)
    whole = {f.pts: f for f in decode(packets)}
    for lost in range(25):
        decoder = new_decoder()
        shown = decode(packets[:lost] + packets[lost + 1 :], decoder)
        assert all(same(frame, whole[frame.pts]) for frame in shown)
        missing, damaged = decoder.dropped_missing_reference, decoder.dropped_damaged
        assert len(shown) + missing + damaged == 24
        # Packets behind a lost keyframe do not belong to the GOP before it: as if damaged.
        assert damaged == {12: 11}.get(lost, 0)
    # A frame of the last layer takes none with it; the middle one takes its segment's.
    assert len(decode(packets[:2] + packets[3:])) == 24
    assert len(decode(packets[:6] + packets[7:])) == 14


def test_duplicated_and_shuffled_packets_do_no_harm() -> None:
    _, packets = encode(clip(25, SMALL), keyint=6, scenecut=False)
    whole = {f.pts: f for f in decode(packets)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(25)
        shown = decode([packets[i] for i in order])
        assert all(same(frame, whole[frame.pts]) for frame in shown)
    doubled = [p for packet in packets for p in (packet, packet)]
    assert all(same(frame, whole[frame.pts]) for frame in decode(doubled))


def test_strict_raises_and_goes_on() -> None:
    _, packets = encode(clip(24, SMALL), keyint=8, scenecut=False)
    decoder = new_decoder(strict=True)
    with pytest.raises(BitstreamError, match="keyframe before it is missing"):
        decoder.decode(packets[3])
    for packet in packets[:4]:
        decoder.decode(packet)
    with pytest.raises(BitstreamError, match="reference is missing"):
        decoder.decode(packets[16])
    broken = Packet(data=packets[17].data[:-1], pts=17, is_keyframe=False)
    with pytest.raises(BitstreamError, match="damaged"):
        decoder.decode(broken)
    assert [f.pts for f in decoder.decode(None)] == [16]  # what was ready is not lost
    assert len(decode(packets, decoder)) == 24


def test_reset_after_a_seek() -> None:
    _, packets = encode(clip(30, SMALL), keyint=6, scenecut=False)
    whole = decode(packets)
    decoder = new_decoder()
    for packet in packets[:4]:
        decoder.decode(packet)
    decoder.reset()
    shown = decode(packets[12:], decoder)
    assert decoder.dropped_missing_reference == 0
    assert all(same(a, b) for a, b in zip(shown, whole[12:], strict=True))


# --- headers -----------------------------------------------------------------------------------


def test_extradata_is_optional_and_may_be_damaged() -> None:
    encoder, packets = encode(clip(5, SMALL))
    for extradata in (None, b"", b"junk", encoder.extradata[:-1], bytes(28)):
        decoder = new_decoder(extradata)
        assert decoder.video_format is None
        assert len(decode(packets, decoder)) == 5
        assert decoder.video_format == SMALL
    with pytest.raises(BitstreamError):
        new_decoder(b"junk", strict=True)


def test_another_model_is_named() -> None:
    encoder, packets = encode(clip(5, SMALL))
    other = FakeModel()
    other.id = b"othermdl"
    with pytest.raises(ModelMismatchError, match=b"fakemodl".hex()):
        Decoder(encoder.extradata, model=other)
    decoder = Decoder(model=other)
    with pytest.raises(ModelMismatchError, match=b"fakemodl".hex()):
        decoder.decode(packets[0])
    assert decoder.decode(packets[1]) == []
    with pytest.raises(ModelMismatchError, match=r"with arithmetic 1, in use is .* with 2"):
        Decoder(encoder.extradata, model=FakeModel(numerics=2))


def test_color_may_change_at_a_join_but_size_may_not() -> None:
    tagged = VideoFormat(width=48, height=32, colorspace=1, sample_aspect_ratio=(4, 3))
    _, a = encode(clip(8, SMALL), keyint=4, scenecut=False)
    _, b = encode(clip(8, tagged), tagged, keyint=4, scenecut=False)
    decoder = new_decoder()
    assert len(decode([*a, *b], decoder)) == 16
    assert decoder.video_format == tagged

    wide = VideoFormat(width=64, height=32)
    _, c = encode(clip(8, wide), wide, keyint=4)
    decoder = new_decoder()
    shown = [frame for packet in a for frame in decoder.decode(packet)]
    assert len(shown) == 8
    with pytest.raises(BitstreamError, match="48x32 at 8 bit to 64x32"):
        decoder.decode(c[0])
    assert decoder.decode(c[1]) == []
    assert decoder.dropped_missing_reference == 1


def test_keyframes_hold_the_sequence_header() -> None:
    encoder, packets = encode(clip(9, SMALL), keyint=4)
    for packet in packets:
        info = read_packet(packet.data)
        assert (info.sequence is not None) == packet.is_keyframe
        assert info.header.step.type is (FrameType.KEY if packet.is_keyframe else FrameType.INTER)
        if packet.is_keyframe:
            assert replace(info.sequence, name="fake") == SequenceHeader.read(encoder.extradata)
    header = SequenceHeader.read(encoder.extradata)
    assert (header.model_id, header.name, header.architecture) == (b"fakemodl", "fake", 0)
    assert (header.video_format, header.levels, header.slots) == (SMALL, 1, 5)


def test_bounds_cover_the_longest_hierarchy() -> None:
    _, packets = encode(clip(64, SMALL), keyint=64, scenecut=False)
    decoder = new_decoder(strict=True)
    held = 0
    shown = []
    for packet in [*packets, None]:
        shown += decoder.decode(packet)
        held = max(held, len(decoder._decoded_frames))
    assert len(shown) == 64
    assert held <= 8


def test_bitrate_uses_the_frame_rate() -> None:
    frames = clip(48, SMALL)
    slow = encode(frames, bitrate=20000, frame_rate=Fraction(10), keyint=6)[0]
    fast = encode(frames, bitrate=20000, frame_rate=Fraction(50), keyint=6)[0]
    assert slow.statistics.bytes > 1.5 * fast.statistics.bytes


def test_another_version_is_refused_in_one_sentence() -> None:
    _, packets = encode(clip(9, SMALL), keyint=4)
    body = b"VCF1\x01" + bytes(40)
    first = Packet(data=body + zlib.crc32(body).to_bytes(4, "big"), pts=0, is_keyframe=True)
    with pytest.raises(VersionError, match=r"^the stream has bitstream version 1; this .* needed$"):
        new_decoder().decode(first)
    later = Packet(data=b"\x02\x80\x03" + bytes(40), pts=0, is_keyframe=True)
    decoder = new_decoder()
    with pytest.raises(VersionError, match="version 3"):
        decoder.decode(later)
    assert decoder.dropped_damaged == 0
    # Within a stream of this version one wrong byte is damage.
    assert len(decode([packets[0], later, *packets[4:]], decoder)) == 6
    assert decoder.dropped_damaged == 1


# --- structures --------------------------------------------------------------------------------

STRUCTURES: dict[str, dict[str, object]] = {
    "hierarchy": {"keyint": 12},
    "closed": {"keyint": 12, "open_gop": False},
    "anchors": {"keyint": 400, "bframes": 3},
    "adaptive anchors": {"keyint": 400},
    "anchors alone": {"keyint": 400, "bframes": 0},
    "closed anchors": {"keyint": 30, "bframes": 7, "open_gop": False},
    "low delay": {"keyint": 400, "structure": "low-delay"},
    "intra": {"structure": "intra"},
}


@cache
def stream_of(name: str, count: int) -> tuple[list[Packet], list[Frame]]:
    """A stream of one structure, and its frames."""
    _, packets = encode(clip(count, SMALL), **STRUCTURES[name])
    return packets, decode(packets, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_keep_what_their_headers_promise(name: str) -> None:
    frames = clip(70, SMALL, cuts=(33,))
    encoder = Encoder(SMALL, EncoderOptions(**STRUCTURES[name]), model=FakeModel())
    sequence = SequenceHeader.read(encoder.extradata)
    decoder = new_decoder(encoder.extradata, strict=True)
    shown: list[Frame] = []
    inside = behind = largest = pictures = 0
    for frame in [*frames, None]:
        inside += frame is not None
        for packet in encoder.encode(frame):
            inside -= 1
            behind += 1
            ready = decoder.decode(packet)
            behind -= len(ready)
            shown += ready
            largest = max(largest, behind)
            pictures = max(pictures, len(decoder._decoded_frames))
        assert inside <= encoder.delay
    shown += decoder.decode(None)
    assert [f.pts for f in shown] == list(range(70))
    assert largest <= sequence.reorder
    assert pictures <= 2 * SLOTS
    assert encoder.statistics.frames == 70
    for frame, result, record in zip(frames, shown, encoder.statistics.records, strict=True):
        assert record.pts == frame.pts
        psnr = FakeModel().psnr(*([p.astype(int) for p in f.planes] for f in (frame, result)))
        assert abs(psnr - record.psnr) < 1e-9


@pytest.mark.parametrize("name", STRUCTURES)
def test_frames_come_out_as_early_as_they_can(name: str) -> None:
    """As soon as what they and the frames before them need, directly or not, is there."""
    packets, _ = stream_of(name, 100)
    reader, start = PacketReader(), 0
    references: list[list[int]] = []
    for index, packet in enumerate(packets):
        header = reader.read(packet.data).header
        start = index if packet.is_keyframe else start
        references.append([start + number for number in header.step.reference_numbers])
    needs = list(range(100))
    for _ in range(12):
        needs = [max([needs[i], *(needs[r] for r in references[i])]) for i in range(100)]
    decoder = new_decoder(strict=True)
    shown = 0
    for index, packet in enumerate(packets):
        shown += len(decoder.decode(packet))
        first = next((i for i in range(100) if needs[i] > index), 100)
        # What waits at the end of a GOP is known to be complete when the next keyframe comes.
        assert shown == min(first, index + 1)
    assert decoder.decode(None) == []


def test_the_last_keyframe_of_a_still_scene_is_coarser() -> None:
    def qps(**options: object) -> list[int]:
        encoder, _ = encode(clip(25, SMALL, still=True), keyint=12, qp=30, **options)
        return [r.header.step.qp for r in encoder.statistics.records if r.header.step.number == 0]

    assert qps() == [30, 30, 36]
    assert qps(structure="intra") == [30] * 25
    assert qps(open_gop=False) == [30, 30, 30]


def test_low_delay_has_none() -> None:
    encoder = Encoder(SMALL, EncoderOptions(structure="low-delay", keyint=9), model=FakeModel())
    decoder = new_decoder(encoder.extradata, strict=True)
    for frame in clip(30, SMALL, cuts=(13,)):
        (packet,) = encoder.encode(frame)
        assert [f.pts for f in decoder.decode(packet)] == [frame.pts]
    assert encoder.encode(None) == decoder.decode(None) == []


@pytest.mark.parametrize("seed", range(4))
def test_low_delay_over_a_lossy_line(seed: int) -> None:
    """A frame that is reported lost costs itself and nothing after the report."""
    rng = np.random.default_rng(seed)
    options = EncoderOptions(structure="low-delay", keyint=1000, scenecut=False)
    encoder = Encoder(SMALL, options, model=FakeModel())
    sender, receiver = new_decoder(encoder.extradata, strict=True), new_decoder(encoder.extradata)
    lost = 0
    for frame in clip(60, SMALL):
        (packet,) = encoder.encode(frame)
        (expected,) = sender.decode(packet)
        if frame.pts and rng.random() < 0.2:
            lost += 1
            encoder.lost(frame.pts)
            continue
        (found,) = receiver.decode(packet)
        assert same(found, expected)
        encoder.acknowledge(frame.pts)
    assert lost > 3
    assert receiver.dropped_missing_reference == receiver.dropped_damaged == 0
    keys = [r for r in encoder.statistics.records if r.header.step.type is FrameType.KEY]
    assert len(keys) == 1  # the chain goes on from what was acknowledged


def test_low_delay_heals_at_restarts() -> None:
    _, packets = encode(clip(40, SMALL), structure="low-delay", keyint=1000, scenecut=False, ltr=8)
    whole = decode(packets, strict=True)
    decoder = new_decoder()
    shown = decode([*packets[:10], *packets[11:]], decoder)
    assert [f.pts for f in shown] == [*range(10), *range(16, 40)]
    assert decoder.dropped_missing_reference == 5
    assert all(same(frame, whole[frame.pts]) for frame in shown)
    # Without acknowledgements a loss is answered with a keyframe.
    encoder = Encoder(SMALL, EncoderOptions(structure="low-delay", keyint=99), model=FakeModel())
    kinds = []
    for frame in clip(8, SMALL):
        if frame.pts == 5:
            encoder.lost(4)
        kinds += [p.is_keyframe for p in encoder.encode(frame)]
    assert kinds == [True, False, False, False, False, True, False, False]


@pytest.mark.slow
def test_numbers_past_256() -> None:
    _, packets = encode(clip(600, VideoFormat(width=16, height=16)), VideoFormat(width=16,
        height=16), keyint=1000, bframes=7, scenecut=False)  # fmt: skip
    assert sum(p.is_keyframe for p in packets) == 1
    whole = decode(packets, strict=True)
    assert [f.pts for f in whole] == list(range(600))
    # Up to 255 packets may be lost in a row; frames that do not need them come.
    decoder = new_decoder()
    shown = decode([*packets[:9], *packets[264:]], decoder)
    assert all(same(frame, whole[frame.pts]) for frame in shown)
    assert len(shown) + decoder.dropped_missing_reference == 345
    assert decoder.dropped_damaged == 0
    decoder = new_decoder()
    shown = decode([*packets[:9], *packets[266:]], decoder)  # 257: numbers are off by 256
    assert [f.pts for f in shown] == list(range(9))
    assert decoder.dropped_damaged == 334


def test_a_forced_keyframe() -> None:
    for name, options in STRUCTURES.items():
        encoder = Encoder(SMALL, EncoderOptions(**options), model=FakeModel())
        packets = []
        for frame in clip(40, SMALL):
            packets += encoder.encode(frame, force_key=frame.pts in (0, 7, 8, 29))
        packets += encoder.encode(None)
        assert [p.pts for p in packets] == list(range(40))
        assert {0, 7, 8, 29} <= {p.pts for p in packets if p.is_keyframe}, name
        whole = decode(packets, strict=True)
        assert len(whole) == 40
        assert all(same(a, b) for a, b in zip(decode(packets[29:]), whole[29:], strict=True))


# --- frames that are not shown ----------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("target", [1, 11, 29, 69])
def test_a_seek_decodes_only_what_its_target_needs(name: str, target: int) -> None:
    packets, whole = stream_of(name, 100)
    start = max(i for i in range(target + 1) if packets[i].is_keyframe)
    model = FakeModel()
    decoder = Decoder(None, DecoderOptions(strict=True), model=model)
    shown = []
    for index, packet in enumerate(packets[start:], start):
        shown += decoder.decode(packet, show=index >= target)
        if shown:
            break
    else:
        shown += decoder.decode(None)
    assert same(shown[0], whole[target])
    needed, names = {target}, {}
    number = start
    for packet in packets[start:]:
        info = read_packet(packet.data, after=max(number - start - 1, 0))
        names[number] = [number + d for d in info.header.step.references]
        number += 1
    stack = [target]
    while stack:
        for reference in names[stack.pop()]:
            if reference not in needed:
                needed.add(reference)
                stack.append(reference)
    # Also what was shown with it, read ahead, or decoded so that packets do not pile up.
    spare = 1 + (2 * SLOTS if target - start > 64 else 0)
    assert len(model.calls) <= len(needed | {start}) + len(shown) - 1 + spare


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_frames_may_be_hidden(name: str) -> None:
    packets, whole = stream_of(name, 100)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shown = rng.random(100) < (0.1, 0.5, 0.9)[seed % 3]
        decoder = new_decoder(strict=True)
        out = []
        for packet, wanted in zip([*packets, None], [*shown, True], strict=True):
            out += decoder.decode(packet, show=bool(wanted))
            assert len(decoder._decoded_frames) <= 2 * SLOTS
        assert [f.pts for f in out] == list(np.flatnonzero(shown))
        assert all(same(frame, whole[frame.pts]) for frame in out)


# --- quality levels ----------------------------------------------------------------------------


def test_levels_are_coded_thinned_and_lost() -> None:
    frames = clip(14, SMALL)
    encoder, packets = encode(frames, model=FakeModel(levels=3), keyint=6, qp=28, layers=3)
    assert SequenceHeader.read(encoder.extradata).levels == 3

    def shown(packets: list[Packet]) -> list[Frame]:
        decoder = Decoder(None, DecoderOptions(strict=True), model=FakeModel(levels=3))
        out = decode(packets, decoder)
        assert (len(out), decoder.lost_levels) == (14, 0)
        return out

    def error(out: list[Frame]) -> float:
        pairs = zip(frames, out, strict=True)
        return float(np.mean([np.abs(a.y.astype(int) - b.y).mean() for a, b in pairs]))

    errors = [error(shown([replace(p, data=thin(p.data, n)) for p in packets])) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert error(shown(packets)) == errors[2]

    whole, base = shown(packets), shown([replace(p, data=thin(p.data, 1)) for p in packets])
    for index, packet in enumerate(packets):
        if len(read_packet(packet.data).sections) < 3:
            continue
        data = packet.data[:-1] + bytes((packet.data[-1] ^ 1,))
        broken = thin(packet.data, 1) + data[len(thin(packet.data, 1)) :]
        decoder = Decoder(model=FakeModel(levels=3))
        changed = [*packets[:index], replace(packet, data=broken), *packets[index + 1 :]]
        out = decode(changed, decoder)
        assert (decoder.lost_levels, decoder.dropped_damaged) == (1, 0)
        assert len(out) == 14
        assert not same(out[index], whole[index])
        others = [i for i in range(14) if i != index]
        assert all(same(out[i], whole[i]) for i in others)  # references are made of the base
    assert not same(base[0], whole[0])


def test_more_levels_than_promised_are_damage() -> None:
    _, packets = encode(clip(5, SMALL), model=FakeModel(levels=2), keyint=5, layers=2)
    one, _ = encode(clip(5, SMALL), keyint=5)
    decoder = new_decoder(one.extradata)
    decoder.decode(packets[0])
    assert decoder.dropped_damaged == 0  # the keyframe's header promises two
    with pytest.raises(BitstreamError):
        decode([replace_levels(packets[0])], new_decoder(strict=True))


def replace_levels(packet: Packet) -> Packet:
    """The keyframe with a header that promises one level."""
    info = read_packet(packet.data)
    assert info.sequence is not None
    sequence = replace(info.sequence, levels=1)
    return replace(packet, data=write_packet(info.header, info.sections, sequence=sequence))


# --- threads -----------------------------------------------------------------------------------


def test_each_encoder_and_decoder_has_its_own_threads() -> None:
    frames = clip(8, SMALL)
    meet = threading.Barrier(2)
    seen: dict[int, tuple[set[int], set[int], int, int]] = {}

    def work(count: int) -> None:
        before = torch.get_num_threads()
        model, other = Noting(), Noting()
        model.meet = meet
        runtime = Runtime(threads=count)
        encoder = Encoder(SMALL, EncoderOptions(keyint=4), runtime=runtime, model=model)
        packets = [p for f in [*frames, None] for p in encoder.encode(f)]
        decoder = Decoder(encoder.extradata, runtime=runtime, model=other)
        assert len(decode(packets, decoder)) == 8
        seen[count] = model.threads, other.threads, before, torch.get_num_threads()

    before = torch.get_num_threads()
    workers = [threading.Thread(target=work, args=(count,)) for count in (1, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for count in (1, 3):
        encoding, decoding, start, end = seen[count]
        # Inter frames are coded beside each other, with one thread each.
        assert (encoding, decoding, end) == ({1, count}, {count}, start)
    work_here = Noting()
    encoder = Encoder(SMALL, runtime=Runtime(threads=1), model=work_here)
    for frame in [*frames, None]:
        encoder.encode(frame)
    assert work_here.threads == {1}
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_works_or_says_why_not(threads: int) -> None:
    """After networks ran in several threads, a fork has none of them; PyTorch would wait."""
    script = f"""
import os, sys
from vcfilter.codec import Encoder
from vcfilter.errors import ConfigError
from vcfilter.frames import VideoFormat
from vcfilter.options import EncoderOptions, Runtime
from synthetic import clip

fmt = VideoFormat(width=64, height=48)
options = EncoderOptions(preset="ultrafast")

def encode(threads):
    runtime = Runtime(device="cpu", threads=threads)
    encoder = Encoder(fmt, options, runtime=runtime)
    return sum(len(encoder.encode(frame)) for frame in [*clip(2, fmt), None])

assert encode(2) == 2
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
try:
    print(encode({threads}), flush=True)
except ConfigError as error:
    print(error, flush=True)
os._exit(0)
"""
    root = Path(__file__).resolve().parent
    path = os.pathsep.join([str(root), str(root.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("forked" in done.stdout) == (threads > 1)
    assert (done.stdout == "2\n") == (threads == 1)
