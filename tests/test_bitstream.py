"""The bitstream: golden bytes as docs/bitstream.md quotes them, round trips, refusals."""

import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcfilter.bitstream import (
    MOTION_CODED,
    MOTION_LEFT,
    MOTION_RIGHT,
    SEQUENCE_HEADER_BYTES,
    FrameHeader,
    PacketInfo,
    SequenceHeader,
    VersionError,
    packet_crc,
    packet_size_max,
    read_packet,
    reference_check,
    write_packet,
)
from vcfilter.errors import BitstreamError
from vcfilter.frames import FrameType, VideoFormat

SEQUENCE = SequenceHeader(
    model_id=bytes.fromhex("0123456789abcdef"),
    video_format=VideoFormat(
        width=352,
        height=288,
        sample_aspect_ratio=(12, 11),
        color_primaries=6,
        color_trc=6,
        colorspace=6,
        color_range=1,
        chroma_location=1,
    ),
)
KEY = FrameHeader(kind=FrameType.KEY, qp=32)
INTER = FrameHeader(
    kind=FrameType.INTER,
    qp=33,
    layer=1,
    position=6,
    segment_length=12,
    distances=(6, 6),
    residual=False,
    reference_check=0x7B92,
)


def documented() -> list[str]:
    """The hex blocks of docs/bitstream.md, one space between bytes."""
    text = (Path(__file__).parents[1] / "docs" / "bitstream.md").read_text(encoding="utf-8")
    return [" ".join(block.split()) for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]


def test_documented_bytes() -> None:
    sequence, first, second, skipped, coded = documented()
    assert SEQUENCE.write().hex(" ") == sequence

    key = write_packet(SEQUENCE, KEY, bytes.fromhex("deadbeef"))
    following = write_packet(SEQUENCE, replace(KEY, qp=33), bytes.fromhex("cafef00d"))
    assert key.hex(" ") == first
    assert following.hex(" ") == second

    check = reference_check(packet_crc(key), packet_crc(following))
    middle = write_packet(None, replace(INTER, reference_check=check), b"")
    assert middle.hex(" ") == skipped
    assert len(middle) == 12

    header = FrameHeader(
        kind=FrameType.INTER,
        qp=34,
        layer=2,
        position=3,
        segment_length=12,
        distances=(3, 3),
        motion=MOTION_CODED,
        motion_level=2,
        reference_check=reference_check(packet_crc(key), packet_crc(middle)),
    )
    assert write_packet(None, header, bytes(200)).hex(" ").startswith(coded.removesuffix(" …"))


def test_documented_packets_read() -> None:
    _, first, _, skipped, _ = documented()
    assert read_packet(bytes.fromhex(first)) == (SEQUENCE, KEY, bytes.fromhex("deadbeef"))
    assert read_packet(bytes.fromhex(skipped)) == (None, INTER, b"")
    info = PacketInfo.read(bytes.fromhex(first))
    assert (info.size, info.payload_size, info.crc) == (38, 4, 0x047F0D46)


@pytest.mark.parametrize("seed", range(20))
def test_sequence_header_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(16, 4097))
    header = SequenceHeader(
        model_id=rng.bytes(8),
        video_format=VideoFormat(
            width=width,
            height=int(rng.integers(16, min(4096, 4096 * 2304 // width) + 1)),
            bit_depth=int(rng.choice([8, 10])),
            sample_aspect_ratio=(int(rng.integers(0, 65536)), int(rng.integers(1, 65536))),
            color_primaries=int(rng.integers(0, 256)),
            color_trc=int(rng.integers(0, 256)),
            colorspace=int(rng.integers(0, 256)),
            color_range=int(rng.integers(0, 3)),
            chroma_location=int(rng.integers(0, 7)),
            rotation=int(rng.choice([0, 90, 180, 270])),
        ),
    )
    assert len(header.write()) == SEQUENCE_HEADER_BYTES
    assert SequenceHeader.read(header.write()) == header
    assert SequenceHeader.read(header.write() + bytes(7)) == header  # containers may pad


@pytest.mark.parametrize("seed", range(30))
def test_packet_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 65))
    position = int(rng.integers(1, length))
    right = int(rng.integers(0, length - position + 1))
    motion = int(rng.integers(0, 4)) if right else int(rng.choice([0, MOTION_LEFT, MOTION_CODED]))
    header = FrameHeader(
        kind=FrameType.INTER,
        qp=int(rng.integers(0, 64)),
        layer=int(rng.integers(1, 8)),
        position=position,
        segment_length=length,
        distances=(int(rng.integers(1, position + 1)), right),
        motion=motion,
        motion_level=int(rng.integers(0, 8)) if motion == MOTION_CODED else 0,
        residual=bool(rng.integers(0, 2)),
        reference_check=int(rng.integers(0, 65536)),
    )
    payload = rng.bytes(int(2 ** rng.uniform(0, 18))) if header.has_payload else b""
    data = write_packet(None, header, payload)
    assert read_packet(data) == (None, header, payload)
    left = position - header.distances[0]
    assert header.references == ((left, position + right) if right else (left,))


def test_truncation_and_flips_are_refused() -> None:
    for data in (
        write_packet(SEQUENCE, KEY, b"payload"),
        write_packet(None, INTER, b""),
        write_packet(None, replace(INTER, residual=True), bytes(range(100))),
    ):
        for size in range(len(data)):
            with pytest.raises(BitstreamError):
                read_packet(data[:size])
        for bit in range(8 * len(data)):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BitstreamError):
                read_packet(bytes(broken))
        with pytest.raises(BitstreamError):
            read_packet(data + b"\0")


def with_crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "big")


def sequence_with(offset: int, value: bytes) -> bytes:
    body = bytearray(SEQUENCE.write()[:-2])
    body[offset : offset + len(value)] = value
    return bytes(body) + (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (13, b"\x00\x0f", "width 15"),
        (13, b"\xff\xff", "width 65535"),
        (13, b"\x10\x00\x10\x00", "4096x4096"),
        (17, b"\x19", "bit depth 9"),
        (17, b"\x28", "chroma format 2"),
        (21, b"\xc0", "color_range 3"),
        (21, b"\x38", "chroma_location 7"),
        (21, b"\x01", "reserved"),
        (24, b"\x00\x00", "aspect"),
    ],
)
def test_sequence_header_fields_are_checked(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        SequenceHeader.read(sequence_with(offset, value))


def test_unknown_version_is_told_from_damage() -> None:
    with pytest.raises(VersionError, match="version 2"):
        SequenceHeader.read(sequence_with(4, b"\x02"))
    with pytest.raises(VersionError, match="version 9"):
        read_packet(with_crc(sequence_with(4, b"\x09") + b"whatever version 9 has"))
    damaged = bytearray(SEQUENCE.write())
    damaged[4] = 2
    with pytest.raises(BitstreamError, match="damaged"):
        SequenceHeader.read(bytes(damaged))


def test_crafted_packets_are_refused() -> None:
    """With a right CRC, so that only the checks behind it can refuse."""
    inter = replace(INTER, residual=True).write()
    sequence = SEQUENCE.write()
    for body, message in (
        (b"", "too short"),
        (b"\x20\x00", "starts with"),
        (sequence, "frame header is missing"),
        (sequence + b"\x40\x01x", "qp 64"),
        (sequence + inter + b"\x01x", "sequence header"),
        (inter[:5], "frame header has 5"),
        (inter, "payload length"),
        (inter + b"\x80", "payload length"),
        (inter + b"\x81\x00x", "padded"),
        (inter + b"\xff\xff\xff\xff\x01x", "too long"),
        (inter + b"\xff\xff\xff\x7fx", "is stated"),
        (INTER.write() + b"\x01x", "contradicts"),
    ):
        with pytest.raises(BitstreamError, match=message):
            read_packet(with_crc(body) if body else b"\0\0\0\0")


@pytest.mark.parametrize(
    "fields",
    [
        {"qp": 64},
        {"layer": 0},
        {"layer": 8},
        {"position": 0},
        {"position": 12},
        {"segment_length": 1},
        {"segment_length": 65},
        {"distances": (0, 6)},
        {"distances": (7, 6)},
        {"distances": (6, 7)},
        {"distances": (6, 0), "motion": MOTION_RIGHT},
        {"motion": 5},
        {"motion_level": 1},
        {"motion": MOTION_CODED, "motion_level": 8},
        {"reference_check": 65536},
        {"kind": FrameType.KEY},
    ],
)
def test_frame_header_fields_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(BitstreamError):
        replace(INTER, **fields)


def test_random_bytes_never_crash_the_parser() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        body = rng.bytes(int(rng.integers(0, 60)))
        if rng.integers(2):
            body = SEQUENCE.write() + body
        try:
            sequence, header, payload = read_packet(with_crc(body))
        except BitstreamError:
            continue
        assert write_packet(sequence, header, payload) == with_crc(body)  # one form only


def test_packet_size_bound() -> None:
    assert packet_size_max(SEQUENCE.video_format) == 8 * 352 * 288 + 4096
