"""Damaged, cut and crafted streams: never a crash or a hang, never a wrong frame unnoticed."""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from synthetic import clip

from vcfilter.bitstream import (
    FrameHeader,
    Section,
    SequenceHeader,
    packet_size_max,
    read_packet,
    thin,
    write_packet,
)
from vcfilter.codec import Decoder, Encoder
from vcfilter.codec.decoder import _HELD_MAX as HELD_MAX
from vcfilter.codec.decoder import _SKIPPED_MAX as SKIPPED_MAX
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import Frame, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import CodedFrame, Model
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

TINY = VideoFormat(width=16, height=16)


def encode(
    count: int,
    keyint: int,
    model: Model | None = None,
    fmt: VideoFormat = TINY,
    qp: int = 36,
    **more: object,
) -> tuple[bytes, list[Packet]]:
    options = EncoderOptions(keyint=keyint, qp=qp, scenecut=False, preset="ultrafast", **more)
    encoder = Encoder(fmt, options, model=model or FakeModel())
    packets = [p for f in [*clip(count, fmt), None] for p in encoder.encode(f)]
    return encoder.extradata, packets


def decode(packets: list[Packet], decoder: Decoder) -> list[Frame]:
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


def strict() -> Decoder:
    return Decoder(options=DecoderOptions(strict=True), model=FakeModel())


def by_time(frames: list[Frame]) -> dict[int, bytes]:
    return {f.pts: b"".join(p.tobytes() for p in f.planes) for f in frames}


def check_damaged(packets: list[Packet], whole: dict[int, bytes], decoder: Decoder) -> None:
    """What comes out is what was encoded, and what does not is counted."""
    shown = decode(packets, decoder)
    for pts, planes in by_time(shown).items():
        assert planes == whole[pts]
    dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
    assert len(shown) + dropped == len(packets)


def with_data(packet: Packet, data: bytes) -> Packet:
    return Packet(data=data, pts=packet.pts, is_keyframe=packet.is_keyframe)


@pytest.fixture(scope="module")
def stream() -> tuple[list[Packet], dict[int, bytes]]:
    _, packets = encode(9, 4)
    return packets, by_time(decode(packets, Decoder(model=FakeModel())))


def test_every_truncation_point(stream: tuple[list[Packet], dict[int, bytes]]) -> None:
    """The stream ends after any of its bytes, and any one packet is cut anywhere."""
    packets, whole = stream
    for index, packet in enumerate(packets):
        for size in range(len(packet.data)):
            cut = with_data(packet, packet.data[:size])
            check_damaged([*packets[:index], cut], whole, Decoder(model=FakeModel()))
            if size % 5 == 0:
                rest = [*packets[:index], cut, *packets[index + 1 :]]
                check_damaged(rest, whole, Decoder(model=FakeModel()))


@pytest.mark.slow
def test_every_bit_flip(stream: tuple[list[Packet], dict[int, bytes]]) -> None:
    packets, whole = stream
    for index, packet in enumerate(packets):
        for bit in range(0, 8 * len(packet.data), 3):
            data = bytearray(packet.data)
            data[bit // 8] ^= 1 << bit % 8
            broken = [*packets[:index], with_data(packet, bytes(data)), *packets[index + 1 :]]
            decoder = Decoder(model=FakeModel())
            check_damaged(broken, whole, decoder)
            assert decoder.dropped_damaged == 1


@pytest.mark.parametrize("seed", range(40))
def test_random_damage(seed: int, stream: tuple[list[Packet], dict[int, bytes]]) -> None:
    """Bytes changed, packets lost, doubled, swapped, joined and replaced by noise."""
    packets, whole = stream
    rng = np.random.default_rng(seed)
    damaged: list[Packet] = []
    for packet in packets:
        data = bytearray(packet.data)
        match int(rng.integers(0, 8)):
            case 0:
                for _ in range(int(rng.integers(1, 9))):
                    data[int(rng.integers(len(data)))] = int(rng.integers(256))
            case 1:
                continue
            case 2:
                damaged.append(packet)
            case 3:
                data = bytearray(rng.bytes(int(rng.integers(0, 200))))
            case 4:
                data += packets[int(rng.integers(len(packets)))].data
        damaged.append(with_data(packet, bytes(data)))
    if seed % 4 == 0:
        i, j = rng.integers(len(damaged), size=2)
        damaged[i], damaged[j] = damaged[j], damaged[i]
    decoder = Decoder(model=FakeModel())
    for pts, planes in by_time(decode(damaged, decoder)).items():
        assert planes == whole[pts]


def test_damaged_keyframe_is_skipped_to_the_next() -> None:
    _, packets = encode(16, 4)
    data = bytearray(packets[4].data)
    data[40] ^= 1
    decoder = Decoder(model=FakeModel())
    shown = decode([*packets[:4], with_data(packets[4], bytes(data)), *packets[5:]], decoder)
    assert [f.pts for f in shown] == [0, *range(8, 16)]
    assert (decoder.dropped_damaged, decoder.dropped_missing_reference) == (1, 6)
    # The same where the container does not tell keyframes: the next frames are of no known GOP.
    packets = [replace(p, is_keyframe=False) for p in packets]
    decoder = Decoder(model=FakeModel())
    shown = decode([*packets[:4], with_data(packets[4], bytes(data)), *packets[5:]], decoder)
    assert [f.pts for f in shown] == [0, *range(8, 16)]
    assert (decoder.dropped_damaged, decoder.dropped_missing_reference) == (4, 3)


def test_strict_makes_each_damage_an_error(stream: tuple[list[Packet], dict[int, bytes]]) -> None:
    packets, _ = stream
    for index, packet in enumerate(packets):
        data = bytearray(packet.data)
        data[-1] ^= 1
        broken = [*packets[:index], with_data(packet, bytes(data)), *packets[index + 1 :]]
        with pytest.raises(BitstreamError):
            decode(broken, strict())


# --- crafted: the checks are right ------------------------------------------------------------


def wide(reorder: int = 255) -> tuple[Packet, Packet]:
    """Two keyframes whose headers promise all that can be."""
    _, packets = encode(2, 1)
    keys = []
    for packet in packets:
        info = read_packet(packet.data)
        assert info.sequence is not None
        sequence = replace(info.sequence, slots=8, reorder=reorder, reach=65535)
        data = write_packet(info.header, info.sections, sequence=sequence)
        keys.append(with_data(packet, data))
    return keys[0], keys[1]


def inter(number: int, *references: int, slot: int | None = 1, layer: int = 1) -> FrameHeader:
    """A frame with nothing coded, from frames by their numbers."""
    return FrameHeader(
        step=FrameStep(
            type=FrameType.INTER,
            qp=0,
            layer=layer,
            number=number,
            references=tuple(reference - number for reference in references),
            slot=slot,
        )
    )


def crafted(headers: list[FrameHeader], key: Packet, following: Packet) -> list[Packet]:
    """A GOP of frames with nothing coded, between two keyframes."""
    identity = read_packet(key.data).identity
    inters = [
        Packet(
            data=write_packet(header, [], key_identity=identity),
            pts=header.step.number,
            is_keyframe=False,
        )
        for header in headers
    ]
    return [replace(key, pts=0), *inters, replace(following, pts=headers[-1].step.number + 1)]


def held(decoder: Decoder) -> tuple[int, int]:
    """Packets and pictures that a decoder holds."""
    gop = decoder._gop
    waiting = 0
    if gop is not None:
        entries = {id(e): e for e in gop.placed.values() if e is not None}
        stack = [*entries.values(), *gop.slots.frames()]
        while stack:
            entry = stack.pop()
            entries[id(entry)] = entry
            stack += [e for e in entry.references if id(e) not in entries]
        waiting = len(gop.waiting) + sum(entry.open for entry in entries.values())
    return waiting, len(decoder._decoded_frames)


def check_crafted(headers: list[FrameHeader], reorder: int = 255, hide: int = 0) -> int:
    """Decode, within bounds of time and memory; frames shown between the keyframes.

    Args:
        hide: one of so many frames is shown; 0: all of them.
    """
    packets = crafted(headers, *wide(reorder))
    decoder = Decoder(model=FakeModel())
    shown: list[Frame] = []
    start = time.perf_counter()
    for packet in [*packets, None]:
        hidden = hide > 0 and packet is not None and packet.pts % hide > 0
        shown += decoder.decode(packet, show=not hidden)
        waiting, pictures = held(decoder)
        assert waiting <= reorder + 1 + (SKIPPED_MAX if hide else 0)
        assert pictures <= HELD_MAX
    assert time.perf_counter() - start < 20
    assert [f.pts for f in shown] == sorted(f.pts for f in shown)
    dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
    if not hide:
        assert len(shown) + dropped == len(packets)
    return len(shown) - 2


def test_circles_end() -> None:
    for circle in (
        [inter(1, 2, 0), inter(2, 1, 0)],
        [inter(1, 0, 3), inter(2, 1), inter(3, 2)],
        [inter(1, 2, 3), inter(2, 3, 1), inter(3, 1, 2)],
    ):
        assert check_crafted(circle) == 0


def test_a_chain_through_the_future_is_bounded() -> None:
    """Frame 1 needs 2, which needs 3, ...: all would have to be held at once."""
    chain = [inter(n, n + 1, slot=n % 8) for n in range(1, 250)]
    shown = check_crafted([*chain, inter(250, 0)])
    assert shown <= HELD_MAX
    assert check_crafted([*chain[:5], inter(6, 0)]) == 6
    # The same with another reference each, and with less reorder promised.
    forks = [inter(n, n + 1, 0, slot=n % 7 + 1) for n in range(1, 250)]
    check_crafted([*forks, inter(250, 0)])
    check_crafted([*forks, inter(250, 0)], reorder=20)


def test_references_beyond_what_the_header_promises_are_damage() -> None:
    _, (key, *_) = encode(9, 8)
    info = read_packet(key.data)
    assert info.sequence is not None
    for header, bound in (
        (inter(8, 0), "8 frames away, at most 7 are stated"),
        (inter(1, 10), "9 frames away, at most 7 are stated"),
        (inter(1, 0, slot=7), "slot 7"),
    ):
        data = write_packet(header, [], key_identity=info.identity)
        decoder = strict()
        decoder.decode(key)
        for number in range(1, header.step.number):
            filler = write_packet(inter(number, number - 1), [], key_identity=info.identity)
            decoder.decode(Packet(data=filler, pts=number, is_keyframe=False))
        with pytest.raises(BitstreamError, match=bound):
            decoder.decode(Packet(data=data, pts=header.step.number, is_keyframe=False))
    sequence = replace(info.sequence, reorder=2)
    key = with_data(key, write_packet(info.header, info.sections, sequence=sequence))
    decoder = strict()
    decoder.decode(key)
    data = write_packet(inter(1, 4), [], key_identity=read_packet(key.data).identity)
    with pytest.raises(BitstreamError, match="3 frames later, at most 2 are stated"):
        decoder.decode(Packet(data=data, pts=1, is_keyframe=False))


def test_many_independent_anchors_are_bounded() -> None:
    """Each frame can be shown at once, and any may be referred to later."""
    headers = [inter(n, 0, slot=n % 7 + 1) for n in range(1, 600)]
    assert check_crafted(headers) == 599


def test_overwritten_slots_are_missing() -> None:
    headers = [inter(1, 0, slot=1), inter(2, 0, slot=1), inter(3, 1, slot=2), inter(4, 2)]
    assert check_crafted(headers) == 3
    headers = [inter(1, 0, slot=0), inter(2, 0), inter(3, 1), inter(4, 3)]
    assert check_crafted(headers) == 3  # the keyframe's slot was taken


def test_long_chains_that_are_not_shown() -> None:
    chain = [inter(n, n - 1, slot=1 - n % 2) for n in range(1, 700)]
    check_crafted(chain, hide=3)
    both = [inter(n, n - 1, max(n - 5, 0), slot=n % 8) for n in range(2, 700)]
    check_crafted([inter(1, 0), *both], hide=3)
    far = [inter(n, n + 1, slot=n % 8) if n % 9 else inter(n, n - 1, slot=0) for n in range(1, 700)]
    check_crafted(far, hide=3)
    for reorder in (3, 255):
        check_crafted(chain, reorder, hide=1000)


def test_more_references_than_the_model_uses_are_damage() -> None:
    class Two(FakeModel):
        @property
        def info(self) -> Any:
            return replace(super().info, references=2)

    key, _ = wide()
    identity = read_packet(key.data).identity
    packets = [key]
    for number, references in ((1, (0,)), (2, (0, 1)), (3, (0, 1, 2))):
        header = replace(inter(number, *references, slot=number), mode=b"\0")
        sections = [Section(level=0, qp=0, data=b"")]
        data = write_packet(header, sections, key_identity=identity)
        packets.append(Packet(data=data, pts=number, is_keyframe=False))
    assert len(decode(packets, strict())) == 4
    decoder = Decoder(model=Two())
    assert len(decode(packets, decoder)) == 3
    assert decoder.dropped_damaged == 1


@pytest.mark.parametrize("seed", range(30))
def test_random_reference_structures_end(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 300))
    reorder = int(rng.choice([3, 20, 255]))
    headers = []
    for number in range(1, length):
        count = int(rng.integers(1, 3))
        near = rng.integers(max(0, number - 12), number + min(reorder, 12) + 1, 9)
        references = [int(r) for r in dict.fromkeys(near) if r != number][:count] or [0]
        slot = int(rng.integers(0, 9))
        headers.append(
            inter(
                number,
                *references,
                slot=None if slot == 8 else slot,
                layer=int(rng.integers(1, 8)),
            )
        )
    check_crafted(headers, reorder)
    check_crafted(headers, reorder, hide=3)


def test_a_frame_whose_next_key_number_is_taken() -> None:
    """A crafted frame names the next keyframe by the number of a frame of its GOP."""
    key, following = wide()
    identities = [read_packet(p.data).identity for p in (key, following)]
    odd = replace(inter(1, 0, 2, slot=None), next_key=identities[1] & 0xFFFF)
    packets = crafted([odd, inter(2, 0), inter(3, 2, 0)], key, following)
    outs = []
    for ahead in (False, True):
        decoder = Decoder(model=FakeModel())
        decoder._use(read_packet(key.data).sequence)  # type: ignore[arg-type]
        if not ahead:
            decoder._parser = None
        outs.append(by_time(decode(packets, decoder)))
        assert sorted(outs[-1]) == [0, 2, 3, 4]  # what it names is not there when 2 has come
    assert outs[0] == outs[1]


class Still(FakeModel):
    """Repeats the first reference, quickly."""

    def encode(self, picture: Any, step: FrameStep, references: Any, *rest: Any) -> CodedFrame:
        if not references:
            return super().encode(picture, step, references, *rest)
        return CodedFrame(mode=b"", sections=(), reference=references[0], psnr=40.0)


@pytest.mark.slow
def test_numbers_past_65536() -> None:
    """One GOP longer than 16 bits count: numbers are transmitted modulo 256."""
    still = clip(1, TINY, still=True)[0]
    options = EncoderOptions(structure="low-delay", keyint=1 << 20, scenecut=False)
    encoder = Encoder(TINY, options, model=Still())
    decoder = Decoder(encoder.extradata, DecoderOptions(strict=True), model=Still())
    for pts in range(66_000):
        (packet,) = encoder.encode(replace(still, pts=pts))
        assert len(packet.data) <= 7 or pts == 0
        assert len(decoder.decode(packet)) == 1
    assert encoder.statistics.records[-1].header.step.number == 65_999


def recoded(packets: list[Packet], index: int, base: bytes) -> Packet:
    """A packet with another base and a right check."""
    key = max(i for i in range(index + 1) if packets[i].is_keyframe)
    info = read_packet(packets[index].data)
    sections = [Section(level=0, qp=info.header.step.qp, data=base)]
    header = info.header if info.sections else replace(info.header, mode=b"\1")
    identity = read_packet(packets[key].data).identity
    data = write_packet(header, sections, sequence=info.sequence, key_identity=identity)
    return with_data(packets[index], data)


def test_nonsense_payloads_are_damage() -> None:
    _, packets = encode(8, 4)
    for index in (0, 2, 4):
        for payload in (
            b"",
            b"\0",
            b"garbage" * 9,
            zlib.compress(b"x"),
            zlib.compress(bytes(9999)),
        ):
            broken = [*packets[:index], recoded(packets, index, payload), *packets[index + 1 :]]
            decoder = Decoder(model=FakeModel())
            decode(broken, decoder)
            assert decoder.dropped_damaged >= (payload != b"")
            if payload:
                with pytest.raises(BitstreamError):
                    decode(broken, strict())


class PanicException(BaseException):
    """By the name of pyo3's."""


@pytest.mark.parametrize(
    "error",
    [
        PanicException("index out of bounds"),
        ValueError("x"),
        IndexError("x"),
        AssertionError("x"),
        OverflowError("x"),
        BitstreamError("x"),
    ],
)
def test_exceptions_of_the_model_are_damage(error: BaseException) -> None:
    _, packets = encode(8, 4)
    model = FakeModel()
    decoder = Decoder(model=model)
    assert len(decoder.decode(packets[0])) == 1
    model.explode = error
    rest = decode(packets[1:], decoder)
    assert decoder.dropped_damaged == 1
    assert len(rest) + decoder.dropped_damaged + decoder.dropped_missing_reference == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("device lost")])
def test_other_exceptions_pass(error: BaseException) -> None:
    _, packets = encode(2, 4)
    model = FakeModel()
    model.explode = error
    with pytest.raises(type(error)):
        Decoder(model=model).decode(packets[0])


def test_oversized_packets_are_refused_before_decoding() -> None:
    _, packets = encode(4, 4)
    model = FakeModel()
    decoder = Decoder(model=model)
    decoder.decode(packets[0])
    calls = len(model.calls)
    large = recoded(packets, 1, bytes(packet_size_max(TINY)))
    assert decoder.decode(large) == []
    assert (decoder.dropped_damaged, len(model.calls)) == (1, calls)
    assert decoder.decode(recoded(packets, 0, bytes(packet_size_max(TINY)))) == []
    assert (decoder.dropped_damaged, len(model.calls)) == (2, calls)


def test_absurd_sizes_are_refused() -> None:
    _, packets = encode(1, 1)
    info = read_packet(packets[0].data)
    assert info.sequence is not None
    body = bytearray(info.sequence.write()[:-2])
    body[16:20] = b"\xff\xff\xff\xff"
    body += (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")
    with pytest.raises(BitstreamError, match="65535"):
        SequenceHeader.read(bytes(body))
    data = bytearray(packets[0].data[: info.base_size - 4])
    data[14:18] = b"\xff\xff\xff\xff"
    data += zlib.crc32(data).to_bytes(4, "big")
    decoder = Decoder(model=FakeModel())
    assert decoder.decode(with_data(packets[0], bytes(data))) == []
    assert decoder.dropped_damaged == 1


def test_what_is_no_packet() -> None:
    decoder = Decoder(model=FakeModel())
    with pytest.raises(ConfigError, match="a bytes is no Packet"):
        decoder.decode(b"VCF1")  # type: ignore[arg-type]


# --- a decoder in all states ------------------------------------------------------------------


class Damaging(RuleBasedStateMachine):
    """Packets come lost, doubled, swapped, cut, flipped, hidden; what comes out is right."""

    extradata: bytes
    packets: list[Packet]
    whole: dict[int, bytes]
    base: dict[int, bytes]

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(self.extradata, model=FakeModel(levels=2))
        self.next = self.given = self.hidden = self.shown = self.forgotten = 0
        self.coarser = self.thinned = 0

    def give(self, packet: Packet, show: bool = True) -> None:
        self.given += 1
        self.hidden += not show
        self.take(self.decoder.decode(packet, show=show))

    def take(self, frames: list[Frame]) -> None:
        self.shown += len(frames)
        for pts, planes in by_time(frames).items():
            if planes != self.whole[pts]:
                assert planes == self.base[pts]
                self.coarser += 1
        assert self.coarser <= self.decoder.lost_levels + self.thinned

    @property
    def packet(self) -> Packet:
        return self.packets[self.next % len(self.packets)]

    @rule(count=st.integers(1, 9), show=st.booleans())
    def some(self, count: int, show: bool) -> None:
        for _ in range(count):
            self.give(self.packet, show)
            self.next += 1

    @rule(count=st.integers(1, 5))
    def lose(self, count: int) -> None:
        self.next += count

    @rule()
    def double(self) -> None:
        self.give(self.packet)
        self.give(self.packet)
        self.next += 1

    @rule()
    def swap(self) -> None:
        first, self.next = self.packet, self.next + 1
        self.give(self.packet)
        self.give(first)
        self.next += 1

    @rule(share=st.floats(0, 1, exclude_max=True))
    def cut(self, share: float) -> None:
        packet = self.packet
        data = packet.data[: int(share * len(packet.data))]
        self.thinned += data == thin(packet.data, 1)  # cut where a level ends: nothing is damaged
        self.give(with_data(packet, data))
        self.next += 1

    @rule(share=st.floats(0, 1, exclude_max=True))
    def flip(self, share: float) -> None:
        data = bytearray(self.packet.data)
        bit = int(share * 8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        self.give(with_data(self.packet, bytes(data)))
        self.next += 1

    @rule(data=st.binary(max_size=40), key=st.booleans())
    def noise(self, data: bytes, key: bool) -> None:
        self.give(replace(with_data(self.packet, data), is_keyframe=key))

    @rule()
    def seek(self) -> None:
        """Frames that waited are forgotten."""
        gop = self.decoder._gop
        if gop is not None:
            self.forgotten += len(gop.waiting) + len(gop.placed)
        self.decoder.reset()

    @rule()
    def end(self) -> None:
        self.take(self.decoder.decode(None))

    @invariant()
    def bounded(self) -> None:
        waiting, pictures = held(self.decoder)
        assert waiting <= 33 + SKIPPED_MAX
        assert pictures <= HELD_MAX

    def teardown(self) -> None:
        self.take(self.decoder.decode(None))
        dropped = self.decoder.dropped_damaged + self.decoder.dropped_missing_reference
        assert self.given - self.hidden <= self.shown + dropped + self.forgotten
        assert self.shown + dropped <= self.given


@pytest.mark.parametrize(
    "options",
    [
        {"keyint": 12},
        {"keyint": 90, "bframes": 3},
        {"keyint": 40, "structure": "low-delay"},
        {"keyint": 9, "open_gop": False},
    ],
    ids=["hierarchy", "anchors", "low delay", "closed"],
)
def test_a_decoder_in_all_states(options: dict[str, Any]) -> None:
    extradata, packets = encode(100, model=FakeModel(levels=2), layers=2, **options)

    class Machine(Damaging):
        pass

    Machine.extradata, Machine.packets = extradata, packets
    Machine.whole = by_time(decode(packets, Decoder(model=FakeModel(levels=2))))
    thinned = [with_data(packet, thin(packet.data, 1)) for packet in packets]
    Machine.base = by_time(decode(thinned, Decoder(model=FakeModel(levels=2))))
    Machine.TestCase.settings = settings(
        max_examples=int(os.environ.get("VCFILTER_EXAMPLES", "25")),
        stateful_step_count=25,
        deadline=None,
    )
    Machine.TestCase("runTest").runTest()


# --- the real model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return store.find(None, Runtime(device="cpu"))


@pytest.fixture(scope="module")
def real(model: Model) -> tuple[list[Packet], dict[int, bytes]]:
    _, packets = encode(4, 3, model, VideoFormat(width=32, height=32))
    return packets, by_time(decode(packets, Decoder(model=model)))


def test_real_stream_cut_and_flipped(
    real: tuple[list[Packet], dict[int, bytes]], model: Model
) -> None:
    packets, whole = real
    assert len(whole) == 4
    rng = np.random.default_rng(0)
    for _ in range(20):
        index = int(rng.integers(len(packets)))
        data = bytearray(packets[index].data)
        if rng.integers(2):
            data = data[: int(rng.integers(len(data)))]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        broken = [*packets[:index], with_data(packets[index], bytes(data)), *packets[index + 1 :]]
        check_damaged(broken, whole, Decoder(model=model))


def test_real_model_survives_crafted_payloads(
    real: tuple[list[Packet], dict[int, bytes]], model: Model
) -> None:
    """With a right check whatever decodes is a picture; the rest is damage. No crash, no hang."""
    packets, _ = real
    rng = np.random.default_rng(1)
    for trial in range(20):
        index = int(rng.integers(len(packets)))
        info = read_packet(packets[index].data)
        if not info.sections:
            continue
        broken = bytearray(info.sections[0].data or b"\0")
        match trial % 3:
            case 0:
                broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
            case 1:
                broken = bytearray(rng.bytes(int(rng.integers(0, 200))))
            case 2:
                broken = broken[: int(rng.integers(len(broken)))]
        changed = recoded(packets, index, bytes(broken))
        decoder = Decoder(model=model)
        shown = decode([*packets[:index], changed, *packets[index + 1 :]], decoder)
        dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
        assert len(shown) + dropped == len(packets)
