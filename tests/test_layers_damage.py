"""Damaged and crafted quality levels: each frame lives with the levels below, and is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from synthetic import clip

from vcfilter.bitstream import PacketInfo, Section, level_sizes, read_packet, thin, write_packet
from vcfilter.codec import Decoder, Encoder
from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import Model
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

FORMAT = VideoFormat(width=40, height=32)
FRAMES, LEVELS = 7, 3
CPU = Runtime(device="cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return store.find(None, CPU)


@pytest.fixture(scope="module")
def coded(model: Model) -> list[Packet]:
    options = EncoderOptions(
        qp=16, layers=LEVELS, keyint=FRAMES, preset="ultrafast", scenecut=False
    )
    encoder = Encoder(FORMAT, options, model=model, runtime=CPU)
    frames = [*clip(FRAMES, FORMAT, noise=4.0), None]
    packets = [packet for frame in frames for packet in encoder.encode(frame)]
    assert sum(len(read_packet(packet.data).sections) > 1 for packet in packets) > FRAMES // 2
    return packets


def decode(packets: Sequence[Packet], decoder: Decoder) -> list[Frame]:
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


def same(mine: Sequence[Frame], others: Sequence[Frame]) -> bool:
    pairs = zip(mine, others, strict=True)
    return all(
        np.array_equal(p, q) for a, b in pairs for p, q in zip(a.planes, b.planes, strict=True)
    )


def with_data(packet: Packet, data: bytes) -> Packet:
    return replace(packet, data=data)


# --- bytes that arrive as others ----------------------------------------------------------------


def flipped(data: bytes, base: int, rng: np.random.Generator) -> bytes:
    bits = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        bits[int(rng.integers(base, len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(bits)


def cut(data: bytes, base: int, rng: np.random.Generator) -> bytes:
    ends = {size for size in level_sizes(read_packet(data)) if size <= len(data)}
    inside = [size for size in range(base + 1, len(data)) if size not in ends]
    return data[: int(rng.choice(inside))]


def overwritten(data: bytes, base: int, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(base, len(data)))
    count = int(rng.integers(1, len(data) - start + 1))
    return data[:start] + rng.bytes(count) + data[start + count :]


def grown(data: bytes, base: int, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(base, len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def shrunk(data: bytes, base: int, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(base, len(data) - 1))
    return data[:at] + data[at + 1 :]


DAMAGES = (flipped, cut, overwritten, grown, shrunk)


def damage(
    packets: Sequence[Packet], rng: np.random.Generator, kinds: Counter[str]
) -> tuple[list[Packet], list[Packet], int]:
    """Each packet with levels damaged; the same with what is left whole; how many there are."""
    damaged, left, count = [], [], 0
    for packet in packets:
        data = packet.data
        base = read_packet(data).base_size
        changed: Callable[..., bytes] = DAMAGES[int(rng.integers(len(DAMAGES)))]
        found = changed(data, base, rng) if base < len(data) else data
        whole = data if found == data else thin(data, levels_left(found, data))
        count += found != data
        kinds[changed.__name__] += found != data
        damaged.append(with_data(packet, found))
        left.append(with_data(packet, whole))
    return damaged, left, count


def levels_left(damaged: bytes, data: bytes) -> int:
    """How many levels stand whole before the first difference."""
    pairs = enumerate(zip(damaged, data, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(damaged), len(data)))
    info = read_packet(data)
    sizes = level_sizes(info)
    return 1 + max(s.level for s in info.sections if sizes[s.level] <= first)


def check_damage(packets: Sequence[Packet], model: Model, least: int, seed: int) -> Counter[str]:
    """Damage packets again and again, at least so many; counts of what was seen.

    A damaged level is counted and its frame shown; in a tenth of the rounds it is compared sample
    by sample with the one of the levels below the damage.
    """
    rng = np.random.default_rng(seed)
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    while kinds.total() < least:
        damaged, left, count = damage(packets, rng, kinds)
        decoder = Decoder(model=model, runtime=CPU)
        shown = decode(damaged, decoder)
        assert len(shown) == len(packets)
        dropped = decoder.dropped_damaged + decoder.dropped_missing_reference
        assert (decoder.lost_levels, dropped) == (count, 0)
        with pytest.raises(BitstreamError, match="quality levels of a packet"):
            decode(damaged, Decoder(options=DecoderOptions(strict=True), model=model))
        if seen["rounds"] % 10 == 0:
            assert same(shown, decode(left, Decoder(model=model, runtime=CPU)))
            seen["compared"] += len(shown)
        seen.update(rounds=1, frames=len(shown), lost=decoder.lost_levels, strict=1)
    return seen + kinds


@pytest.mark.slow
def test_damaged_levels(coded: list[Packet], model: Model) -> None:
    seen = check_damage(coded, model, 41, 0)
    assert all(seen[kind.__name__] for kind in DAMAGES) and seen["lost"] > 40


@pytest.mark.slow
def test_many_damaged_levels(coded: list[Packet], model: Model) -> None:
    """VCFILTER_DAMAGES in the environment says how many; -s shows the counts."""
    seen = check_damage(coded, model, int(os.environ.get("VCFILTER_DAMAGES", "1000")), 1)
    print(dict(seen))
    assert seen["lost"] == sum(seen[kind.__name__] for kind in DAMAGES)


# --- levels that were made so -------------------------------------------------------------------


def crafted(packet: Packet, sections: Sequence[Section], identity: int) -> Packet:
    """A packet whose levels are others, and whose checks all match."""
    info = read_packet(packet.data)
    sections = [info.sections[0], *sections]
    data = write_packet(
        info.header,
        sections,
        sequence=info.sequence,
        key_identity=identity,
    )
    assert data[: info.base_size] == packet.data[: info.base_size]
    return with_data(packet, data)


def with_levels(info: PacketInfo) -> list[tuple[str, int, list[Section]]]:
    """What, how many of its levels are valid, and levels."""
    level, qp = info.sections[1].level, info.header.step.qp
    good = info.sections[1]
    return [
        ("the base's qp", 0, [replace(good, qp=qp)]),
        ("a larger qp", 0, [replace(good, qp=qp + 5)]),
        ("a qp that rises again", 1, [good, replace(good, level=level + 1, qp=good.qp + 1)]),
        ("a level that is not stated", 1, [good, replace(good, level=7, qp=good.qp - 1)]),
        ("a second level cut short", 1, [good, Section(level=2, qp=1, data=b"\x9f")]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_crafted_level_costs_only_itself(coded: list[Packet], model: Model, index: int) -> None:
    identity = read_packet(coded[0].data).identity
    place = [i for i, p in enumerate(coded) if len(read_packet(p.data).sections) > 1][index]
    info = read_packet(coded[place].data)
    invalid = 0
    for text, valid, levels in with_levels(info):
        changed = crafted(coded[place], levels, identity)
        packets = [*coded[:place], changed, *coded[place + 1 :]]
        decoder = Decoder(model=model, runtime=CPU)
        shown = decode(packets, decoder)
        assert len(shown) == FRAMES, text
        assert decoder.dropped_damaged == decoder.dropped_missing_reference == 0
        if decoder.lost_levels == 0:
            continue  # bytes that are symbols
        invalid += 1
        left = thin(coded[place].data, 1 if not valid else info.sections[1].level + 1)
        wanted = [*coded[:place], with_data(coded[place], left), *coded[place + 1 :]]
        assert decoder.lost_levels == 1
        assert same(shown, decode(wanted, Decoder(model=model, runtime=CPU))), text
        with pytest.raises(BitstreamError):
            decode(packets, Decoder(options=DecoderOptions(strict=True), model=model))
    assert invalid >= 4


@pytest.mark.slow
def test_random_bytes_with_valid_checks(coded: list[Packet], model: Model) -> None:
    identity = read_packet(coded[0].data).identity
    rng = np.random.default_rng(2)
    for _ in range(10):
        packets = []
        for packet in coded:
            info = read_packet(packet.data)
            levels = [
                Section(level=level, qp=int(rng.integers(64)), data=rng.bytes(rng.integers(1, 60)))
                for level in range(1, 8)
                if rng.random() < 0.5 and info.header.mode + bytes(not info.header.step.references)
            ]
            packets.append(crafted(packet, levels, identity) if levels else packet)
        decoder = Decoder(model=model, runtime=CPU)
        assert len(decode(packets, decoder)) == FRAMES
        assert decoder.dropped_damaged == decoder.dropped_missing_reference == 0
        assert decoder.lost_levels > 0
