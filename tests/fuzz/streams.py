"""Headers, packets and short streams that fuzz targets begin with."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import (
    FrameHeader,
    Section,
    SequenceHeader,
    StructureKind,
    headers,
    packet,
    write_packet,
)
from vcfilter.codec import Encoder
from vcfilter.frames import (
    ContentLight,
    FieldOrder,
    FrameStep,
    FrameType,
    MasteringDisplay,
    Packet,
    VideoFormat,
)
from vcfilter.options import EncoderOptions

KEY_IDENTITY = 0x12345678
TINY = VideoFormat(width=16, height=16)
FULL = VideoFormat(
    width=64, height=48, bit_depth=10, sample_aspect_ratio=(4, 3), color_primaries=9, color_trc=16,
    colorspace=9, color_range=1, chroma_location=3, rotation=270, mirrored=True,
    field_order=FieldOrder.BOTTOM_FIRST,
    mastering=MasteringDisplay(
        primaries=((35400, 14600), (8500, 39850), (6550, 2300)), white_point=(15635, 16450),
        luminance=(1, 1 << 24),
    ),
    content_light=ContentLight(max_content=1000, max_average=400),
)  # fmt: skip


_CHECKS = (headers, headers._check), (packet, packet._check)


def set_checks(on: bool) -> None:
    """Compute the checks of headers and packets, or have them all be zero: a changed byte then
    passes, and what lies behind the checks is reached."""
    modules: list[tuple[Any, Any]] = list(_CHECKS)
    (first, of_headers), (second, of_packets) = modules
    first._check = of_headers if on else lambda data: bytes(2)
    second._check = of_packets if on else lambda data, size: bytes(size)


def sequence_headers() -> list[bytes]:
    """Extradata with no optional block, and with all of them."""
    plain = SequenceHeader(model_id=b"fakemodl", video_format=TINY)
    full = replace(
        plain, video_format=FULL, structure=StructureKind.LOW_DELAY, levels=3, slots=2, reorder=7,
        reach=64, name="a model",
    )  # fmt: skip
    return [plain.write(), full.write()]


def single_packets() -> list[bytes]:
    """A packet of every kind, inter frames bound to KEY_IDENTITY."""
    sections = [Section(level=level, qp=20, data=b"data" * level) for level in (0, 1, 3)]
    found = []
    for fmt in (TINY, FULL):
        key = FrameHeader(step=FrameStep(type=FrameType.KEY, qp=30), mode=b"m")
        sequence = SequenceHeader(model_id=b"fakemodl", video_format=fmt, levels=4)
        found += [write_packet(key, sections[:n], sequence=sequence) for n in (1, 3)]
    for references, slot, next_key in product(
        ((-1,), (-2, 3), (-1, -2, -3)), (None, 1, 5), (None, 7)
    ):
        if next_key is not None and max(references) < 0:
            continue
        step = FrameStep(
            type=FrameType.INTER, qp=30, layer=1, number=9, references=references, slot=slot
        )
        header = FrameHeader(step=step, next_key=next_key)
        counts = (0, 1, 3) if len(references) < 3 else (1, 3)
        for count in counts:
            bare = replace(header, step=replace(step, qp=30 if count else 0))
            found.append(write_packet(bare, sections[:count], key_identity=KEY_IDENTITY))
    return found


def coded_streams() -> list[tuple[bytes, list[Packet]]]:
    """(extradata, packets) of short streams of every structure, with one and more levels."""
    found = []
    for levels, options in (
        (1, {"keyint": 6}),
        (1, {"keyint": 8, "bframes": 3, "open_gop": False}),
        (3, {"keyint": 5, "bframes": 1}),
        (1, {"keyint": 9, "structure": "low-delay"}),
        (1, {"structure": "intra"}),
    ):
        settings = EncoderOptions(scenecut=False, **options)
        encoder = Encoder(TINY, settings, model=FakeModel(levels=levels))
        frames = clip(11 if options != {"structure": "intra"} else 3, TINY)
        packets = [p for frame in [*frames, None] for p in encoder.encode(frame)]
        found.append((encoder.extradata, packets))
    return found
