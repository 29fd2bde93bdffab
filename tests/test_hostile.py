"""Damaged, cut and crafted streams: never a crash or a hang, never a wrong frame unnoticed."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import (
    FrameHeader,
    SequenceHeader,
    packet_crc,
    packet_size_max,
    read_packet,
    reference_check,
    write_packet,
)
from vcfilter.codec import Decoder, Encoder
from vcfilter.codec.decoder import REFERENCES_MAX
from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameType, Packet, VideoFormat
from vcfilter.models.hierarchical.video import VideoModel
from vcfilter.options import EncoderOptions

TINY = VideoFormat(width=16, height=16)
Model = FakeModel | VideoModel


def encode(
    count: int, keyint: int, model: Model | None = None, fmt: VideoFormat = TINY, qp: int = 36
) -> tuple[bytes, list[Packet]]:
    options = EncoderOptions(keyint=keyint, qp=qp, scenecut=False, preset="ultrafast")
    encoder = Encoder(fmt, options, model=model or FakeModel())
    packets = [p for f in [*clip(count, fmt), None] for p in encoder.encode(f)]
    return encoder.extradata, packets


def decode(packets: list[Packet], decoder: Decoder) -> list[Frame]:
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


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


def test_strict_makes_each_damage_an_error(stream: tuple[list[Packet], dict[int, bytes]]) -> None:
    packets, _ = stream
    for index, packet in enumerate(packets):
        data = bytearray(packet.data)
        data[-1] ^= 1
        broken = [*packets[:index], with_data(packet, bytes(data)), *packets[index + 1 :]]
        with pytest.raises(BitstreamError):
            decode(broken, Decoder(strict=True, model=FakeModel()))


# --- crafted: the CRC is right ----------------------------------------------------------------


def crafted(headers: list[FrameHeader], key: Packet, following: Packet) -> list[Packet]:
    """A segment of payload-free inter frames with right reference checks where possible."""
    crcs = {0: packet_crc(key.data), headers[0].segment_length: packet_crc(following.data)}
    packets: dict[int, Packet] = {}
    waiting = list(headers)
    for _ in range(len(headers) + 1):
        for header in list(waiting):
            if all(reference in crcs for reference in header.references):
                check = reference_check(*(crcs[reference] for reference in header.references))
                data = write_packet(None, replace(header, reference_check=check), b"")
                crcs[header.position] = packet_crc(data)
                packets[header.position] = Packet(data=data, pts=header.position, is_keyframe=False)
                waiting.remove(header)
    for header in waiting:
        data = write_packet(None, header, b"")
        packets[header.position] = Packet(data=data, pts=header.position, is_keyframe=False)
    inters = [packets[position] for position in sorted(packets)]
    return [key, *inters, replace(following, pts=headers[0].segment_length)]


def inter(position: int, left: int, right: int, length: int, layer: int) -> FrameHeader:
    return FrameHeader(
        kind=FrameType.INTER,
        qp=30,
        layer=layer,
        position=position,
        segment_length=length,
        distances=(position - left, right - position if right else 0),
        residual=False,
    )


def test_circles_end() -> None:
    _, (key, following, *_) = encode(2, 1)
    for circle in (
        [inter(1, 0, 2, 3, 1), inter(2, 1, 3, 3, 1)],
        [inter(1, 0, 3, 4, 2), inter(2, 1, 4, 4, 1), inter(3, 2, 4, 4, 3)],
    ):
        decoder = Decoder(model=FakeModel())
        shown = decode(crafted(circle, key, following), decoder)
        assert [f.type for f in shown] == [FrameType.KEY] * 2
        assert decoder.dropped_damaged + decoder.dropped_missing_reference == len(circle)


def test_a_chain_through_the_whole_segment_is_bounded() -> None:
    """Frame 1 needs 63, which needs 62, ...: all would have to be held at once."""
    _, (key, following, *_) = encode(2, 1)
    headers = [inter(1, 0, 63, 64, 7)]
    headers += [inter(2, 0, 0, 64, 1)]
    headers += [inter(p, p - 1, 0, 64, min(p - 1, 7)) for p in range(3, 64)]
    decoder = Decoder(model=FakeModel())
    held = 0
    for packet in [*crafted(headers, key, following), None]:
        decoder.decode(packet)
        held = max(held, len(decoder._decoded))
    assert held <= REFERENCES_MAX


def test_many_independent_anchors_are_bounded() -> None:
    """Low-delay order: each frame can be shown at once, and any may be referred to later."""
    _, (key, following, *_) = encode(2, 1)
    decoder = Decoder(model=FakeModel())
    held = shown = 0
    for packet in crafted([inter(p, 0, 0, 64, 1) for p in range(1, 64)], key, following):
        shown += len(decoder.decode(packet))
        held = max(held, len(decoder._decoded))
    assert shown == 65
    assert held <= REFERENCES_MAX


@pytest.mark.parametrize("seed", range(30))
def test_random_reference_structures_end(seed: int) -> None:
    _, (key, following, *_) = encode(2, 1)
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 65))
    headers = []
    for position in range(1, length):
        right = int(rng.integers(position, length + 1))
        headers.append(
            inter(
                position,
                int(rng.integers(0, position)),
                right if right > position else 0,
                length,
                int(rng.integers(1, 8)),
            )
        )
    decoder = Decoder(model=FakeModel())
    start = time.perf_counter()
    packets = crafted(headers, key, following)
    shown = decode(packets, decoder)
    assert time.perf_counter() - start < 5
    assert [f.pts for f in shown] == sorted(f.pts for f in shown)
    dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
    assert len(shown) + dropped == len(packets)


def recoded(packet: Packet, payload: bytes) -> Packet:
    sequence, header, _ = read_packet(packet.data)
    return with_data(packet, write_packet(sequence, header, payload))


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
            broken = [*packets[:index], recoded(packets[index], payload), *packets[index + 1 :]]
            decoder = Decoder(model=FakeModel())
            decode(broken, decoder)
            assert decoder.dropped_damaged >= (payload != b"")
            if payload:
                with pytest.raises(BitstreamError):
                    decode(broken, Decoder(strict=True, model=FakeModel()))


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
    large = recoded(packets[0], bytes(packet_size_max(TINY)))
    assert decoder.decode(large) == []
    assert (decoder.dropped_damaged, len(model.calls)) == (1, calls)


def test_absurd_sizes_are_refused() -> None:
    _, packets = encode(1, 1)
    sequence, _, _ = read_packet(packets[0].data)
    assert sequence is not None
    body = bytearray(sequence.write()[:-2])
    body[13:17] = b"\xff\xff\xff\xff"
    body += (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")
    with pytest.raises(BitstreamError, match="65535"):
        SequenceHeader.read(bytes(body))
    data = bytes(body) + packets[0].data[28:-4]
    data += zlib.crc32(data).to_bytes(4, "big")
    decoder = Decoder(model=FakeModel())
    assert decoder.decode(with_data(packets[0], data)) == []
    assert decoder.dropped_damaged == 1


# --- the real model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return VideoModel.load(None, "cpu")


@pytest.fixture(scope="module")
def real(model: VideoModel) -> tuple[list[Packet], dict[int, bytes]]:
    _, packets = encode(4, 3, model, VideoFormat(width=32, height=32))
    return packets, by_time(decode(packets, Decoder(model=model)))


def test_real_stream_cut_and_flipped(
    real: tuple[list[Packet], dict[int, bytes]], model: VideoModel
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
    real: tuple[list[Packet], dict[int, bytes]], model: VideoModel
) -> None:
    """With a right CRC whatever decodes is a picture; the rest is damage. No crash, no hang."""
    packets, _ = real
    rng = np.random.default_rng(1)
    for trial in range(20):
        index = int(rng.integers(len(packets)))
        _, header, payload = read_packet(packets[index].data)
        if not header.has_payload:
            continue
        broken = bytearray(payload or b"\0")
        match trial % 3:
            case 0:
                broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
            case 1:
                broken = bytearray(rng.bytes(int(rng.integers(0, 200))))
            case 2:
                broken = broken[: int(rng.integers(len(broken)))]
        changed = recoded(packets[index], bytes(broken))
        decoder = Decoder(model=model)
        shown = decode([*packets[:index], changed, *packets[index + 1 :]], decoder)
        dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
        assert len(shown) + dropped == len(packets)
