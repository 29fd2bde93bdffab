"""The bitstream: golden bytes as docs/reference/bitstream.md quotes them, round trips, refusals."""

from __future__ import annotations

import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcfilter.bitstream import (
    FrameHeader,
    Section,
    SequenceHeader,
    StructureKind,
    VersionError,
    packet_size_max,
    read_packet,
    thin,
    write_packet,
)
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import (
    ContentLight,
    FieldOrder,
    FrameStep,
    FrameType,
    MasteringDisplay,
    VideoFormat,
)

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
    levels=2,
    slots=5,
    reorder=12,
    reach=11,
    name="default",
)
BARE = replace(SEQUENCE, name="")
HDR = VideoFormat(
    width=3840,
    height=2160,
    bit_depth=10,
    color_primaries=9,
    color_trc=16,
    colorspace=9,
    color_range=1,
    chroma_location=3,
    rotation=270,
    mirrored=True,
    field_order=FieldOrder.BOTTOM_CODED_TOP_SHOWN,
    mastering=MasteringDisplay(
        primaries=((34000, 16000), (13250, 34500), (7500, 3000)),
        white_point=(15635, 16450),
        luminance=(50, 10_000_000),
    ),
    content_light=ContentLight(max_content=1000, max_average=400),
)
KEY = FrameHeader(step=FrameStep(type=FrameType.KEY, qp=32))
IDENTITY = 0x01020304


def inter(number: int = 6, *references: int, slot: int | None = 1, **fields: Any) -> FrameHeader:
    """An inter frame's header; the defaults are those of the documented one."""
    header = {name: fields.pop(name) for name in ("mode", "next_key") if name in fields}
    step = {"type": FrameType.INTER, "qp": 0, "layer": 1, **fields}
    return FrameHeader(
        step=FrameStep(number=number, references=references or (-6, 6), slot=slot, **step),
        **header,
    )


def base(data: bytes, qp: int = 32) -> list[Section]:
    return [Section(level=0, qp=qp, data=data)]


def documented() -> list[str]:
    """The hex blocks of docs/reference/bitstream.md, one space between bytes."""
    text = (Path(__file__).parents[1] / "docs" / "reference" / "bitstream.md").read_text(
        encoding="utf-8"
    )
    return [" ".join(block.split()) for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]


def examples() -> list[bytes]:
    """The packets that the document shows."""
    key = write_packet(KEY, base(bytes.fromhex("deadbeef")), sequence=BARE)
    following = write_packet(
        FrameHeader(step=FrameStep(type=FrameType.KEY, qp=33)),
        base(bytes.fromhex("cafef00d"), 33),
        sequence=BARE,
    )
    first, second = read_packet(key).identity, read_packet(following).identity
    middle = write_packet(inter(next_key=second & 0xFFFF), [], key_identity=first)
    left = write_packet(inter(1, -1, 2, slot=None, layer=4), [], key_identity=first)
    coded = write_packet(
        inter(3, -3, 3, slot=2, qp=38, layer=2, mode=b"\xa4"),
        [
            Section(level=0, qp=38, data=bytes.fromhex("c0ffee")),
            Section(level=1, qp=32, data=bytes.fromhex("f1ea")),
        ],
        key_identity=first,
    )
    anchor = write_packet(inter(300, -8, -16, slot=0), [], key_identity=first)
    return [key, following, middle, left, coded, anchor]


def test_documented_bytes() -> None:
    written = [SEQUENCE.write(), *examples()]
    assert [data.hex(" ") for data in written] == documented()


def test_documented_packets_read() -> None:
    key, following, middle, left, coded, anchor = (bytes.fromhex(t) for t in documented()[1:])
    info = read_packet(key)
    assert (info.sequence, info.header, info.size) == (BARE, KEY, len(key))
    assert [section.data.hex() for section in info.sections] == ["deadbeef"]
    identity = info.identity
    assert key.endswith(identity.to_bytes(4, "big"))  # the check says the same
    repeated = read_packet(middle, key_identity=identity)
    assert repeated.header.next_key == read_packet(following).identity & 0xFFFF
    assert (repeated.sections, repeated.header.step.references) == ((), (-6, 6))
    assert read_packet(left, key_identity=identity).header.step.slot is None
    assert len(left) == 6
    assert [s.level for s in read_packet(coded, key_identity=identity).sections] == [0, 1]
    long = read_packet(anchor, key_identity=identity, after=299).header.step
    assert (long.number, long.slot, long.reference_numbers) == (300, 0, (292, 284))


# --- strategies ---------------------------------------------------------------------------------


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@st.composite
def formats(draw: st.DrawFn) -> VideoFormat:
    width = draw(whole(16, 4096))
    chromaticity = st.tuples(whole(0, 50000), whole(0, 50000))
    low = draw(whole(0, (1 << 32) - 2))
    mastering = st.builds(
        MasteringDisplay,
        primaries=st.tuples(chromaticity, chromaticity, chromaticity),
        white_point=chromaticity,
        luminance=st.tuples(st.just(low), whole(low + 1, (1 << 32) - 1)),
    )
    light = st.builds(ContentLight, max_content=whole(0, 65535), max_average=whole(0, 65535))
    return VideoFormat(
        width=width,
        height=draw(whole(16, min(4096, 4096 * 2304 // width))),
        bit_depth=draw(st.sampled_from((8, 10))),
        sample_aspect_ratio=(draw(whole(0, 65535)), draw(whole(1, 65535))),
        color_primaries=draw(whole(0, 255)),
        color_trc=draw(whole(0, 255)),
        colorspace=draw(whole(0, 255)),
        color_range=draw(whole(0, 2)),
        chroma_location=draw(whole(0, 6)),
        rotation=draw(st.sampled_from((0, 90, 180, 270))),
        mirrored=draw(st.booleans()),
        field_order=draw(st.sampled_from(FieldOrder)),
        mastering=draw(st.none() | mastering),
        content_light=draw(st.none() | light),
    )


sequences = st.builds(
    SequenceHeader,
    model_id=st.binary(min_size=8, max_size=8),
    architecture=whole(0, 255),
    numerics=whole(0, 255),
    video_format=formats(),
    structure=st.sampled_from(StructureKind),
    levels=whole(1, 8),
    slots=whole(1, 8),
    reorder=whole(0, 255),
    reach=whole(0, 65535),
    name=st.text(max_size=8),
)


@st.composite
def headers(draw: st.DrawFn) -> FrameHeader:
    """Of inter frames."""
    number = draw(whole(1, 1000) | whole(1, 1 << 40))
    distances = (whole(-50, 50) | whole(-32768, 32768)).filter(lambda d: d and number + d >= 0)
    references = draw(st.lists(distances, min_size=1, max_size=3, unique=True))
    later = max(references) > 0
    return FrameHeader(
        step=FrameStep(
            type=FrameType.INTER,
            qp=draw(whole(0, 63)),
            layer=draw(whole(1, 7)),
            number=number,
            references=tuple(references),
            slot=draw(st.none() | whole(0, 7)),
        ),
        mode=draw(st.binary(max_size=3)),
        next_key=draw(st.none() | whole(0, 65535)) if later else None,
    )


@st.composite
def sections(draw: st.DrawFn, qp: int) -> list[Section]:
    """A base and up to seven levels above it."""
    levels = sorted(draw(st.sets(whole(1, 7))))
    above = [Section(level=n, qp=draw(whole(0, 63)), data=draw(st.binary())) for n in levels]
    return [Section(level=0, qp=qp, data=draw(st.binary(max_size=300))), *above]


# --- round trips --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(sequences, st.binary(max_size=8))
def test_sequence_header_round_trip(header: SequenceHeader, padding: bytes) -> None:
    assert SequenceHeader.read(header.write()) == header
    assert SequenceHeader.read(header.write() + padding) == header  # containers may pad


def test_everything_about_display_is_kept() -> None:
    header = replace(SEQUENCE, video_format=HDR)
    assert SequenceHeader.read(header.write()).video_format == HDR
    data = write_packet(KEY, base(b"x"), sequence=header)
    assert read_packet(data).sequence == replace(header, name="")
    for order in FieldOrder:
        for mirrored in (False, True):
            fmt = VideoFormat(width=64, height=48, field_order=order, mirrored=mirrored)
            assert SequenceHeader.read(replace(BARE, video_format=fmt).write()).video_format == fmt


def test_what_is_unknown_costs_nothing() -> None:
    plain = SequenceHeader(model_id=bytes(8), video_format=VideoFormat(width=64, height=48))
    assert len(plain.write()) == 4 + 23 + 2
    assert len(replace(plain, name="default").write()) == 4 + 23 + 1 + 7 + 2


@settings(max_examples=150, deadline=None)
@given(st.data(), headers(), whole(0, (1 << 32) - 1))
def test_inter_packet_round_trip(data: st.DataObject, header: FrameHeader, identity: int) -> None:
    found = data.draw(sections(header.step.qp))
    packet = write_packet(header, found, key_identity=identity)
    for before in (header.step.number - 1, max(header.step.number - 256, 0)):
        info = read_packet(packet, key_identity=identity, after=before)
        assert (info.header, list(info.sections)) == (header, found)
        assert (info.sequence, info.size, info.lost_levels) == (None, len(packet), False)
    for other, before in ((identity ^ 1, header.step.number - 1), (identity, header.step.number)):
        with pytest.raises(BitstreamError):
            read_packet(packet, key_identity=other, after=before)


@settings(max_examples=100, deadline=None)
@given(headers(), whole(0, (1 << 32) - 1))
def test_repeat_packet_round_trip(header: FrameHeader, identity: int) -> None:
    step = replace(header.step, references=header.step.references[:2])
    later = max(step.references) > 0
    header = FrameHeader(step=step, next_key=header.next_key if later else None)
    packet = write_packet(header, [], key_identity=identity)
    info = read_packet(packet, key_identity=identity, after=step.number - 1)
    assert info.header == replace(header, step=replace(step, qp=0))  # a qp that nothing needs
    assert info.sections == ()
    if all(-64 <= d < 64 for d in step.references) and header.next_key is None:
        assert len(packet) <= 2 + len(step.references) + 2 + (step.slot not in (None, step.layer))


@settings(max_examples=80, deadline=None)
@given(st.data(), sequences, st.binary(max_size=3), whole(0, 63))
def test_key_packet_round_trip(
    data: st.DataObject, sequence: SequenceHeader, mode: bytes, qp: int
) -> None:
    header = FrameHeader(step=FrameStep(type=FrameType.KEY, qp=qp), mode=mode)
    found = data.draw(sections(qp))
    packet = write_packet(header, found, sequence=sequence)
    info = read_packet(packet, key_identity=7, after=9)
    assert (info.header, list(info.sections)) == (header, found)
    assert info.sequence == replace(sequence, name="")
    assert info.identity == zlib.crc32(packet[: info.base_size - 4])


# --- levels -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data(), headers(), st.booleans())
def test_thinning(data: st.DataObject, header: FrameHeader, key: bool) -> None:
    if key:
        header = replace(KEY, mode=header.mode)
    found = data.draw(sections(header.step.qp))
    sequence = BARE if key else None
    packet = write_packet(header, found, sequence=sequence, key_identity=IDENTITY)
    for levels in range(1, 9):
        left = [section for section in found if section.level < levels]
        thinned = thin(packet, levels)
        assert thinned == write_packet(header, left, sequence=sequence, key_identity=IDENTITY)
        assert thin(thinned, levels) == thinned
        assert packet.startswith(thinned)
        assert not read_packet(thinned).lost_levels
    with pytest.raises(BitstreamError, match="levels 0"):
        thin(packet, 0)


def test_thinning_leaves_frames_with_nothing_coded() -> None:
    packet = write_packet(inter(), [], key_identity=IDENTITY)
    assert thin(packet, 1) == packet
    with pytest.raises(BitstreamError):
        thin(packet[:-1], 1)


def test_damaged_levels_are_lost_and_the_frame_lives() -> None:
    found = [Section(level=n, qp=30 - n, data=bytes(range(20 * n, 20 * n + 20))) for n in (0, 1, 4)]
    packet = write_packet(inter(qp=30), found, key_identity=IDENTITY)
    ends = [len(thin(packet, levels)) for levels in (1, 2, 5)]
    assert ends == [len(packet) - 52, len(packet) - 26, len(packet)]
    for size in range(ends[0], len(packet)):
        info = read_packet(packet[:size], key_identity=IDENTITY)
        assert list(info.sections) == found[: 1 + (size >= ends[1])]
        assert info.lost_levels == (size not in ends)
        assert thin(packet[:size], 8) == packet[: ends[0] if size < ends[1] else ends[1]]
    for bit in range(8 * ends[0], 8 * ends[2]):
        broken = flip(packet, bit)
        info = read_packet(broken, key_identity=IDENTITY)
        assert list(info.sections) == found[: 1 + (bit >= 8 * ends[1])]
        assert info.lost_levels
    assert read_packet(packet + b"\0", key_identity=IDENTITY).lost_levels
    # Another frame's levels are not this one's.
    other = write_packet(inter(qp=31), found, key_identity=IDENTITY)
    mixed = packet[: ends[0]] + other[ends[0] :]
    assert read_packet(mixed, key_identity=IDENTITY).lost_levels
    # A reserved bit, with a right check.
    info = read_packet(packet[: ends[0]])
    part = b"\x20\x01\x00"
    body = info.identity.to_bytes(4, "big") + part
    odd = packet[: ends[0]] + part + zlib.crc32(body).to_bytes(4, "big")[1:]
    assert read_packet(odd, key_identity=IDENTITY).lost_levels
    # A level twice, or below one that came.
    for level in (1, 4):
        doubled = packet + packet[ends[0] if level == 1 else ends[1] : ends[1 if level == 1 else 2]]
        info = read_packet(doubled, key_identity=IDENTITY)
        assert (list(info.sections), info.lost_levels) == (found, True)


# --- damage -------------------------------------------------------------------------------------


def flip(data: bytes, bit: int) -> bytes:
    broken = bytearray(data)
    broken[bit // 8] ^= 1 << bit % 8
    return bytes(broken)


def undamaged() -> list[bytes]:
    key = write_packet(KEY, base(b"payload"), sequence=replace(BARE, video_format=HDR))
    inters = [
        write_packet(inter(number, qp=qp), base(bytes(range(100))), key_identity=IDENTITY)
        for number, qp in ((6, 0), (200, 63), (300, 20))
    ]
    repeats = [
        write_packet(inter(n, *refs, slot=slot, next_key=k), [], key_identity=IDENTITY)
        for n, refs, slot, k in (
            (6, (-6, 6), 1, 77),
            (9, (-1,), None, None),
            (70, (-70, 3), 4, None),
            (256, (-200, 300), 0, 0xFFFF),
        )
    ]
    return [key, *inters, *repeats]


@pytest.mark.parametrize("index", range(8))
def test_truncation_and_flips_are_refused(index: int) -> None:
    data = undamaged()[index]
    read_packet(data, key_identity=IDENTITY, after=(0, 0, 199, 299, 0, 0, 69, 255)[index])
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            read_packet(data[:size], key_identity=IDENTITY)
    for bit in range(8 * len(data)):
        for after in (0, 5, 199, 255, 299):
            with pytest.raises(BitstreamError) as error:
                read_packet(flip(data, bit), key_identity=IDENTITY, after=after)
            assert not isinstance(error.value, VersionError)
    info = read_packet(data)
    if info.sections:
        assert read_packet(data + b"\0").lost_levels
    else:
        with pytest.raises(BitstreamError, match="1 bytes follow"):
            read_packet(data + b"\0")


def test_undetected_damage_is_as_rare_as_the_checks_are_long() -> None:
    """Random changes of a repeat frame's packet pass at about 2^-16, of an inter frame's never."""
    rng = np.random.default_rng(3)
    short = write_packet(inter(9, -1, slot=None), [], key_identity=IDENTITY)
    passed = 0
    tries = 30_000
    for _ in range(tries):
        data = bytearray(short)
        for _ in range(3):
            data[int(rng.integers(1, len(data)))] = int(rng.integers(256))
        if bytes(data) == short:
            continue
        try:
            read_packet(bytes(data), key_identity=IDENTITY)
        except BitstreamError:
            continue
        passed += 1
    assert passed <= 8  # 0.5 is expected


def test_keyframes_have_identities_of_32_bits() -> None:
    found = set()
    for index in range(3000):
        data = write_packet(KEY, base(index.to_bytes(2, "big")), sequence=BARE)
        found.add(read_packet(data).identity)
    assert len(found) == 3000
    assert len({identity & 0xFFFF for identity in found}) > 2900  # of 2^16 by chance: 2932


# --- crafted: the checks are right, so that only what is behind them can refuse ---------------


def checked(body: bytes, size: int, number: int = 6) -> bytes:
    """A packet's bytes with a right check."""
    seed = b"" if size == 4 else IDENTITY.to_bytes(4, "big") + number.to_bytes(8, "big")
    return body + zlib.crc32(seed + body).to_bytes(4, "big")[4 - size :]


def sequence_with(offset: int, value: bytes, header: SequenceHeader = SEQUENCE) -> bytes:
    """Extradata with other bytes at an offset, and a right check."""
    body = bytearray(header.write()[:-2])
    body[offset : offset + len(value)] = value
    return bytes(body) + (zlib.crc32(body) & 0xFFFF).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (5, b"\x23", "reserved"),
        (16, b"\x00\x0f", "width 15"),
        (16, b"\xff\xff", "width 65535"),
        (16, b"\x10\x00\x10\x00", "4096x4096"),
        (20, b"\x19", "bit depth 9"),
        (20, b"\x28", "chroma format 2"),
        (21, b"\xc8", "color_range 3"),
        (21, b"\x78", "chroma_location 7"),
        (22, b"\xc0", "6 is not a valid FieldOrder"),
        (22, b"\x18", "3 is not a valid StructureKind"),
        (23, b"\x51", "reserved"),
        (23, b"\x00", "slots 0"),
        (23, b"\x90", "slots 9"),
        (27, b"\x02\x02\x02", "says nothing"),
        (30, b"\x00\x00\x00\x01", "says nothing"),
        (32, b"\x00\x00", "aspect"),
        (34, b"\x00", "0 bytes, 1 to 32"),
        (34, b"\x21", "33 bytes, 1 to 32"),
        (34, b"\x20", "cut short"),
        (35, b"\xff", "utf-8"),
    ],
)
def test_sequence_header_fields_are_checked(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        SequenceHeader.read(sequence_with(offset, value))


def test_hdr_fields_are_checked() -> None:
    header = replace(SEQUENCE, video_format=replace(HDR, sample_aspect_ratio=(1, 1)))
    for offset, value, message in (
        (34, b"\xc3\x51", "chromaticity 50001"),
        (50, b"\xff\xff\xff\xff", "luminance"),
        (54, b"\x00\x00\x00\x32", "luminance"),
    ):
        with pytest.raises(BitstreamError, match=message):
            SequenceHeader.read(sequence_with(offset, value, header))


@pytest.mark.parametrize(
    "fields",
    [
        {"model_id": bytes(7)},
        {"architecture": 256},
        {"numerics": -1},
        {"levels": 0},
        {"levels": 9},
        {"slots": 0},
        {"slots": 9},
        {"reorder": 256},
        {"reach": 65536},
        {"name": "x" * 33},
        {"name": "\ud800"},
    ],
)
def test_sequence_header_checks_itself(fields: dict[str, Any]) -> None:
    with pytest.raises(BitstreamError):
        replace(SEQUENCE, **fields)


def test_versions() -> None:
    first = b"VCF1\x01" + bytes(21)
    first += (zlib.crc32(first) & 0xFFFF).to_bytes(2, "big")
    sentence = r"^the stream has bitstream version {}; this vcfilter reads version 2: .* needed$"
    with pytest.raises(VersionError, match=sentence.format(1)) as error:
        SequenceHeader.read(first)
    assert pickle.loads(pickle.dumps(error.value)).version == 1
    packet = first + b"\x20\x04\xde\xad\xbe\xef"
    packet += zlib.crc32(packet).to_bytes(4, "big")
    with pytest.raises(VersionError, match=sentence.format(1)):
        read_packet(packet)
    with pytest.raises(BitstreamError) as damaged:
        read_packet(packet[:-1], key_identity=IDENTITY)
    assert not isinstance(damaged.value, VersionError)
    for version in (3, 9, 255):
        with pytest.raises(VersionError, match=sentence.format(version)):
            SequenceHeader.read(sequence_with(4, bytes((version,))))
        with pytest.raises(VersionError, match=sentence.format(version)):
            read_packet(bytes((2, 0, version)) + b"whatever that version has")


def test_a_damaged_version_is_damage() -> None:
    for data, offset in ((SEQUENCE.write(), 4), (examples()[0], 2)):
        for version in (0, 1, 3, 255):
            broken = data[:offset] + bytes((version,)) + data[offset + 1 :]
            with pytest.raises(BitstreamError, match="damaged") as error:
                SequenceHeader.read(broken) if offset == 4 else read_packet(broken)
            assert not isinstance(error.value, VersionError)


def test_an_inter_packet_that_looks_like_version_1() -> None:
    header = inter(0x43, 35, -25, slot=5, layer=5, mode=b"m")  # its bytes begin with "VCF1" and 1
    packet = write_packet(header, base(b"z", 0), key_identity=IDENTITY)
    assert packet.startswith(b"VCF1\x01")
    assert read_packet(packet, key_identity=IDENTITY).header == header


@pytest.mark.parametrize(
    ("body", "size", "message"),
    [
        ("", 4, "cut short|unknown code"),
        ("02", 4, ""),
        ("00", 4, "unknown code 0"),
        ("03", 4, "unknown code 0"),
        ("c6", 4, "unknown code 6"),
        ("e6", 4, "unknown code 7"),
        ("22 06 0b 00 00", 3, "layer 0"),
        ("26 06 00 00 00", 3, "0 away"),
        ("26 06 0d 00 00", 3, "frame 6 cannot refer"),
        ("46 06 0b 0b 00 00", 3, "twice"),
        ("26 06 8b 00 00 00", 3, "padded"),
        ("26 06 80 80 80 80 01 00 00", 3, "more than 3 bytes"),
        ("26 06 82 80 04 00 00", 3, "outside -32768 to 32768"),
        ("26 06 0b 00 80 00", 3, "padded"),
        ("26 06 0b 00 ff ff ff ff 01", 3, "more than 4 bytes"),
        ("26 06 0b 00 ff ff ff 7f", 3, "are stated"),
        ("26 06 0b 03", 3, "cut short"),
        ("27 10 06 0b 00 00", 3, "says nothing"),
        ("27 40 06 0b 00 00", 3, ""),
        ("25 00 06 0b 00 00", 3, "says nothing"),
        ("25 10 06 0b 00 00", 3, "not kept"),
        ("27 41 06 0b 00 00", 3, "reserved bit"),
        ("27 a0 00 00 06 0b 00 00", 3, "no reference in the future"),
        ("86 06 0b 00", 2, "1 bytes follow|check"),
    ],
)
def test_crafted_packets_are_refused(body: str, size: int, message: str) -> None:
    data = checked(bytes.fromhex(body), size)
    if message:
        with pytest.raises(BitstreamError, match=message):
            read_packet(data, key_identity=IDENTITY)
    elif size == 3:
        assert read_packet(data, key_identity=IDENTITY).header.step.slot == 4
    else:
        with pytest.raises(BitstreamError):
            read_packet(data)


def test_crafted_keyframes_are_refused() -> None:
    body = b"\x02\x80" + SEQUENCE.write_body("default") + b"\0"
    with pytest.raises(BitstreamError, match="holds a name"):
        read_packet(checked(body, 4))
    with pytest.raises(BitstreamError, match=r"cut short|stated"):
        read_packet(checked(b"\x02\x83" + SEQUENCE.write_body(), 4)[:-4])


def test_a_frame_with_nothing_coded_has_no_mode_and_two_references() -> None:
    for header in (KEY, inter(6, -6, mode=b"\0"), inter(6, -6, -5, -4)):
        sequence = BARE if header is KEY else None
        with pytest.raises(BitstreamError, match="nothing coded"):
            write_packet(header, [], sequence=sequence)
    with pytest.raises(BitstreamError, match="keyframe needs a sequence header"):
        write_packet(KEY, base(b""))
    with pytest.raises(BitstreamError, match="inter frame has none"):
        write_packet(inter(), base(b""), sequence=BARE)


@pytest.mark.parametrize("levels", [[1], [0, 2, 1], [0, 1, 1], [0, 0]])
def test_levels_rise(levels: list[int]) -> None:
    with pytest.raises(BitstreamError, match="do not rise"):
        write_packet(inter(), [Section(level=n, qp=0, data=b"") for n in levels])


@pytest.mark.parametrize("fields", [{"level": -1}, {"level": 8}, {"qp": 64}, {"qp": -1}])
def test_sections_check_themselves(fields: dict[str, int]) -> None:
    with pytest.raises(BitstreamError, match="out of range"):
        replace(Section(level=0, qp=0, data=b""), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"qp": 64},
        {"qp": -1},
        {"layer": 0},
        {"layer": 8},
        {"number": 0},
        {"references": ()},
        {"references": (-1, -2, -3, -4)},
        {"references": (0,)},
        {"references": (-7,)},
        {"references": (-1, -1)},
        {"references": (32769,)},
        {"slot": 8},
        {"slot": -1},
        {"type": FrameType.KEY},
    ],
)
def test_steps_check_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(inter().step, **fields)


@pytest.mark.parametrize(
    "fields", [{"mode": bytes(4)}, {"next_key": -1}, {"next_key": 65536}, {"next_key": 1}]
)
def test_frame_headers_check_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(BitstreamError):
        replace(inter(6, -6), **fields)


# --- arbitrary bytes ----------------------------------------------------------------------------


def rewritten(data: bytes, number: int) -> None:
    """Arbitrary bytes give BitstreamError, or what reads is written back as the same bytes."""
    try:
        info = read_packet(data, key_identity=IDENTITY, after=number - 1)
    except BitstreamError:
        return
    written = write_packet(
        info.header, info.sections, sequence=info.sequence, key_identity=IDENTITY
    )
    assert data.startswith(written) if info.lost_levels else data == written


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60), whole(1, 1 << 39), st.booleans())
def test_arbitrary_bytes(body: bytes, number: int, key: bool) -> None:
    rewritten(body, number)
    if key:
        body = b"\x02" + body[:1] + BARE.write_body()[:23] + body[1:]
        rewritten(checked(body, 4), number)
    elif body:
        # The number that the bytes will be read as is not known before they are read.
        for size in (2, 3):
            rewritten(checked(body, size, number), number)


@settings(max_examples=200, deadline=None)
@given(st.data(), headers(), st.lists(st.tuples(whole(0, 400), whole(0, 255)), max_size=4))
def test_changed_bytes_with_right_checks(
    data: st.DataObject, header: FrameHeader, changes: list[tuple[int, int]]
) -> None:
    repeat = data.draw(st.booleans()) and len(header.step.references) < 3
    if repeat:
        header = replace(header, mode=b"")
    packet = write_packet(header, [] if repeat else base(b"data", header.step.qp))
    size = 2 if repeat else 3
    body = bytearray(packet[:-size])
    for offset, value in changes:
        body[offset % len(body)] = value
    number = header.step.number
    rewritten(checked(bytes(body), size, number), number)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=90), st.booleans())
def test_arbitrary_extradata(body: bytes, plausible: bool) -> None:
    data = b"VCF1\x02" + body if plausible else body
    for size in (len(data), 27, 30, 34):
        whole_data = data[:size]
        whole_data += (zlib.crc32(whole_data) & 0xFFFF).to_bytes(2, "big")
        try:
            header = SequenceHeader.read(whole_data)
        except BitstreamError:
            continue
        assert whole_data.startswith(header.write())


def test_packet_size_bound() -> None:
    assert packet_size_max(SEQUENCE.video_format) == 8 * 352 * 288 + 4096
