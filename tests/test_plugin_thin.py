"""The plugin's thinning of packets: as Python's, packet by packet, and damage.

It is built with AddressSanitizer; each packet lies in memory of exactly its size.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vcfilter.bitstream import (
    FrameHeader,
    Section,
    SequenceHeader,
    StructureKind,
    read_packet,
    thin,
    write_packet,
)
from vcfilter.errors import BitstreamError
from vcfilter.frames import ContentLight, FrameStep, FrameType, MasteringDisplay, VideoFormat

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "ffmpeg_bridge/ffmpeg"
SOURCES = [ROOT / "tests/c/thin.c", PLUGIN / "vcf_thin.c", PLUGIN / "vcf_sequence.c"]
HDR = VideoFormat(
    width=64,
    height=48,
    bit_depth=10,
    color_primaries=9,
    color_trc=16,
    colorspace=9,
    sample_aspect_ratio=(4, 3),
    mastering=MasteringDisplay(
        primaries=((35400, 14600), (8500, 39850), (6550, 2300)),
        white_point=(15635, 16450),
        luminance=(50, 40000000),
    ),
    content_light=ContentLight(max_content=1000, max_average=400),
)
PLAIN = VideoFormat(width=64, height=48)


@pytest.fixture(scope="module")
def thinner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("thin") / "thin"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
    words = ["gcc", *flags, f"-I{PLUGIN}", *map(str, SOURCES), "-o", str(target)]
    subprocess.run(words, check=True)
    return target


def sizes(thinner: Path, packets: Sequence[tuple[bytes, int]]) -> list[int]:
    """What stays of each packet with so many levels."""
    data = b"".join(struct.pack("=II", levels, len(p)) + p for p, levels in packets)
    done = subprocess.run([str(thinner)], input=data, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    return [int(line) for line in done.stdout.split()]


def wanted(data: bytes, levels: int) -> int:
    try:
        return len(thin(data, levels))
    except BitstreamError:
        return len(data)


def made(chance: random.Random) -> bytes:
    """A packet of some kind."""
    sections = [
        Section(level=level, qp=chance.randrange(64), data=chance.randbytes(chance.choice(LENGTHS)))
        for level in range(8)
        if not level or chance.random() < 0.4
    ]
    kind = chance.choice(["key", "inter", "repeat"])
    if kind == "key":
        step = FrameStep(type=FrameType.KEY, qp=sections[0].qp)
        sequence = SequenceHeader(
            video_format=chance.choice([PLAIN, HDR]), model_id=bytes(8), levels=8,
            structure=StructureKind.RANDOM_ACCESS,
        )  # fmt: skip
        return write_packet(FrameHeader(step=step), sections, sequence=sequence)
    number = chance.randrange(1, 1000)
    count = chance.randrange(1, 4 if kind == "inter" else 3)
    future = chance.random() < 0.5
    references = chance.sample(range(1, min(number, 400) + 1), min(count, min(number, 400)))
    distances = [-distance for distance in references]
    if future:
        distances[-1] = chance.choice([1, 31, 200])
    step = FrameStep(
        type=FrameType.INTER, qp=sections[0].qp, layer=chance.randrange(1, 8), number=number,
        references=tuple(distances), slot=chance.choice([None, 1, 7]),
    )  # fmt: skip
    header = FrameHeader(
        step=step,
        mode=chance.randbytes(chance.randrange(1, 4)) if kind == "inter" else b"",
        next_key=chance.randrange(0x10000) if future and chance.random() < 0.5 else None,
    )
    return write_packet(header, sections if kind == "inter" else [], key_identity=number)


LENGTHS = (0, 1, 5, 127, 128, 700, 20000)


def test_as_python_does(thinner: Path) -> None:
    chance = random.Random(1)
    packets = [(made(chance), chance.randrange(1, 9)) for _ in range(600)]
    found = sizes(thinner, packets)
    assert found == [len(thin(data, levels)) for data, levels in packets]
    cut = sum(size < len(data) for size, (data, _) in zip(found, packets, strict=True))
    assert 100 < cut < 500


def test_damaged_levels(thinner: Path) -> None:
    chance = random.Random(2)
    packets = []
    while len(packets) < 1500:
        data = bytearray(made(chance))
        base = read_packet(bytes(data)).base_size
        if base + 8 > len(data):
            continue
        at = chance.randrange(base, len(data))
        if chance.random() < 0.5:
            data[at] ^= 1 << chance.randrange(8)
        elif chance.random() < 0.5:
            del data[at:]
        else:
            data[at:at] = chance.randbytes(3)
        packets.append((bytes(data), chance.randrange(1, 9)))
    assert sizes(thinner, packets) == [wanted(data, levels) for data, levels in packets]


def test_damaged_keyframes_stay_as_they_are(thinner: Path) -> None:
    chance = random.Random(3)
    packets = []
    while len(packets) < 400:
        data = bytearray(made(chance))
        if data[0] == 2:
            base = read_packet(bytes(data)).base_size
            data[chance.randrange(1, base)] ^= 1 << chance.randrange(8)
            packets.append((bytes(data), 1))
    assert sizes(thinner, packets) == [len(data) for data, _ in packets]


def test_any_bytes(thinner: Path) -> None:
    chance = random.Random(4)
    packets = [(b"", 1), (b"\x02", 1), (b"\x20", 1)]
    for _ in range(1500):
        data = bytearray(made(chance))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(min(len(data), 60))] = chance.randrange(256)
        packets.append((bytes(data[: chance.randrange(len(data) + 1)]), chance.randrange(1, 9)))
        packets.append((chance.randbytes(chance.randrange(80)), 1))
    found = sizes(thinner, packets)
    assert all(size <= len(data) for size, (data, _) in zip(found, packets, strict=True))
