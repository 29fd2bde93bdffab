"""The plugin's reader of sequence headers: golden bytes, Python's reader, and damage.

It is built with AddressSanitizer; each header lies in memory of exactly its size.
"""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from vcfilter.bitstream import SequenceHeader
from vcfilter.errors import BitstreamError
from vcfilter.frames import ContentLight, FieldOrder, MasteringDisplay, VideoFormat

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "tests/c/sequence.c", ROOT / "ffmpeg_bridge/ffmpeg/vcf_sequence.c"]

PLAIN = bytes.fromhex(
    "56434631 02 00 0011223344556677 01 01"  # VCF1, version, no blocks, model, kind
    "0160 0120 18 00 00 10 00 0000"  # 352x288, 4:2:0 8 bit, random access, a slot
    "fe51"
)
FULL = bytes.fromhex(
    "56434631 02 1f 0011223344556677 01 01"
    "0780 0438 1a 4b 4b 80 0c 000b"  # 10 bit; tv, left, 90 degrees, mirrored; TT, low delay, 4
    "09 10 09"  # BT.2020, PQ
    "0004 0003"
    "8a48 3908 2134 9baa 1996 08fc 3d13 4042 00000032 02625a00"
    "03e8 0190"
    "05 736d616c6c"  # small
    "ff45"
)
PLAIN_LINE = "ok 352 288 8 0 1 2 2 2 0 0 0 0 0 0" + 12 * " 0" + " 0011223344556677 1 1 0 1 1 0 0 "
FULL_LINE = (
    "ok 1920 1080 10 4 3 9 16 9 1 1 90 1 2 3 35400 14600 8500 39850 6550 2300 15635 16450 50 "
    "40000000 1000 400 0011223344556677 1 1 1 4 8 12 11 small"
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sequence") / "reader"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
    words = ["gcc", *flags, f"-I{SOURCES[1].parent}", *map(str, SOURCES), "-o", str(target)]
    subprocess.run(words, check=True)
    return target


def read(reader: Path, *headers: bytes) -> list[str]:
    """A line for each header."""
    data = b"".join(struct.pack("=I", len(header)) + header for header in headers)
    done = subprocess.run([str(reader)], input=data, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode(errors="replace").split("\n")
    assert len(lines) == len(headers) + 1
    return lines[:-1]


def checked(data: bytes) -> bytes:
    """With a right check behind it."""
    return data + (zlib.crc32(data) & 0xFFFF).to_bytes(2, "big")


def line(header: SequenceHeader) -> str:
    """What the reader prints of a header."""
    f, m, c = header.video_format, header.video_format.mastering, header.video_format.content_light
    hdr = [0] * 12
    if m:
        hdr[:10] = [v for xy in (*m.primaries, m.white_point, m.luminance) for v in xy]
    if c:
        hdr[10:] = c.max_content, c.max_average
    numbers = [
        f.width, f.height, f.bit_depth, *f.sample_aspect_ratio, f.color_primaries, f.color_trc,
        f.colorspace, f.color_range, f.chroma_location, f.rotation, int(f.mirrored),
        int(f.field_order), bool(m) + 2 * bool(c), *hdr,
    ]  # fmt: skip
    rest = (header.architecture, header.numerics, int(header.structure), header.levels,
            header.slots, header.reorder, header.reach, header.name)  # fmt: skip
    return " ".join(map(str, ["ok", *numbers, header.model_id.hex(), *rest]))


def test_golden_bytes(reader: Path) -> None:
    assert read(reader, PLAIN, FULL) == [PLAIN_LINE, FULL_LINE]
    assert [line(SequenceHeader.read(data)) for data in (PLAIN, FULL)] == [PLAIN_LINE, FULL_LINE]


def test_bytes_behind_the_header_are_ignored(reader: Path) -> None:
    """Matroska and AVI pad extradata to an even length."""
    assert len(PLAIN) % 2 == 1
    assert read(reader, PLAIN + b"\0", FULL + b"VCF1") == [PLAIN_LINE, FULL_LINE]


def test_other_versions_are_told_from_damage(reader: Path) -> None:
    first = checked(b"VCF1\x01" + bytes(21))
    assert read(reader, first, first + b"\0", first[:-1] + b"\xff") == [
        "version 1", "version 1", "damaged",
    ]  # fmt: skip
    assert read(reader, checked(b"VCF1\x03")) == ["damaged"]  # too short to be any
    assert read(reader, checked(b"VCF1\x03more")) == ["version 3"]


def test_whatever_python_writes_is_read(reader: Path) -> None:
    chance = random.Random(5)
    headers = []
    for _ in range(300):
        some = chance.random
        fmt = VideoFormat(
            width=chance.randrange(16, 4097), height=chance.randrange(16, 2305),
            bit_depth=chance.choice((8, 10)),
            sample_aspect_ratio=(chance.randrange(65536), chance.randrange(1, 65536)),
            color_primaries=chance.choice((2, chance.randrange(256))), color_trc=2,
            colorspace=chance.choice((2, chance.randrange(256))),
            color_range=chance.randrange(3), chroma_location=chance.randrange(7),
            rotation=chance.randrange(4) * 90, mirrored=some() < 0.5,
            field_order=FieldOrder(chance.randrange(6)),
            mastering=None if some() < 0.5 else MasteringDisplay(
                primaries=((1, 2), (50000, 4), (5, 6)), white_point=(7, 8),
                luminance=(chance.randrange(1 << 31), (1 << 31) + chance.randrange(1 << 31)),
            ),
            content_light=None if some() < 0.5 else ContentLight(
                max_content=chance.randrange(65536), max_average=chance.randrange(65536)
            ),
        )  # fmt: skip
        headers.append(
            SequenceHeader(
                model_id=chance.randbytes(8),
                architecture=chance.randrange(256),
                video_format=fmt,
                levels=chance.randrange(1, 9),
                slots=chance.randrange(1, 9),
                reorder=chance.randrange(256),
                reach=chance.randrange(65536),
                name=chance.choice(("", "x", "a" * 32, "netz-ä")),
            )
        )
    found = read(reader, *(header.write() for header in headers))
    assert found == [line(header) for header in headers]


def test_every_cut_and_every_flipped_bit_is_damage(reader: Path) -> None:
    for header in (PLAIN, FULL):
        cut = [header[:size] for size in range(len(header))]
        assert set(read(reader, *cut)) == {"damaged"}
        flipped = []
        for bit in range(8 * len(header)):
            data = bytearray(header)
            data[bit // 8] ^= 1 << bit % 8
            flipped.append(bytes(data))
        assert set(read(reader, *flipped)) == {"damaged"}


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (5, b"\x20"), (16, b"\x00\x0f"), (16, b"\x10\x01"), (16, b"\x10\x00\x10\x00"),
        (20, b"\x19"), (20, b"\x28"), (21, b"\xc0"), (21, b"\x38"), (22, b"\xc0"), (22, b"\x18"),
        (23, b"\x00"), (23, b"\x90"), (23, b"\x11"),
    ],
)  # fmt: skip
def test_values_beyond_their_bounds_are_refused(reader: Path, offset: int, value: bytes) -> None:
    data = PLAIN[:offset] + value + PLAIN[offset + len(value) : -2]
    assert read(reader, checked(data)) == ["damaged"]
    with pytest.raises(BitstreamError):
        SequenceHeader.read(checked(data))


def test_the_two_readers_agree_on_random_headers(reader: Path) -> None:
    """Bytes changed at random under a right check: one verdict, and the same fields."""
    chance = random.Random(9)
    values = (0, 1, 2, 16, 255)
    headers = []
    for _ in range(4000):
        data = bytearray(chance.choice((PLAIN, FULL))[:-2])
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(5, len(data))] = chance.choice((*values, chance.randrange(256)))
        headers.append(checked(bytes(data)))
    agreed = 0
    for header, found in zip(headers, read(reader, *headers), strict=True):
        try:
            wanted = line(SequenceHeader.read(header))
        except BitstreamError:
            wanted = "damaged"
        if header[5] & 16 and wanted == "damaged" and found != "damaged":
            continue  # the name is no UTF-8, which does not matter to the plugin
        assert found == wanted or "\0" in wanted, header.hex()
        agreed += wanted != "damaged"
    assert agreed > 500
