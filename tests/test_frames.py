"""The value classes that cross the codec's doors: what they allow, and what they say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vcfilter.errors import ConfigError
from vcfilter.frames import (
    ContentLight,
    FieldOrder,
    Frame,
    FrameStep,
    FrameType,
    MasteringDisplay,
    VideoFormat,
)

FORMAT = VideoFormat(width=64, height=48)
MASTERING = MasteringDisplay(
    primaries=((34000, 16000), (13250, 34500), (7500, 3000)),
    white_point=(15635, 16450),
    luminance=(50, 10_000_000),
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 15}, "width 15 is outside 16 to 4096"),
        ({"height": 4097}, "height 4097 is outside 16 to 4096"),
        ({"width": 4096, "height": 2305}, "4096x2305 has more than"),
        ({"bit_depth": 9}, "bit depth 9 is not 8 or 10"),
        ({"sample_aspect_ratio": (1, 0)}, "sample aspect ratio 1:0"),
        ({"sample_aspect_ratio": (65536, 1)}, "sample aspect ratio 65536:1"),
        ({"color_primaries": 256}, "color_primaries 256 is outside 0 to 255"),
        ({"color_trc": -1}, "color_trc -1"),
        ({"colorspace": 300}, "colorspace 300"),
        ({"color_range": 3}, "color_range 3 is outside 0 to 2"),
        ({"chroma_location": 7}, "chroma_location 7 is outside 0 to 6"),
        ({"rotation": 45}, "rotation 45 is not 0, 90, 180 or 270"),
        ({"field_order": 6}, "field_order 6 is outside 0 to 5"),
        ({"width": "64"}, "width '64'"),
        ({"height": 48.0}, r"height 48\.0"),
        ({"bit_depth": None}, "bit_depth None"),
        ({"rotation": True}, "rotation True"),
        ({"mirrored": 1}, "mirrored 1"),
        ({"sample_aspect_ratio": 1.5}, r"sample_aspect_ratio 1\.5"),
        ({"sample_aspect_ratio": (1, 2, 3)}, "sample_aspect_ratio"),
        ({"color_range": "tv"}, "color_range 'tv'"),
        ({"mastering": "bright"}, "mastering 'bright'"),
        ({"content_light": (1000, 400)}, "content_light"),
    ],
)
def test_video_formats_check_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FORMAT, **fields)


def test_numbers_of_numpy_do_not_overflow() -> None:
    found = VideoFormat(width=np.int16(1920), height=np.int16(1080))  # type: ignore[arg-type]
    assert found == VideoFormat(width=1920, height=1080)
    assert type(found.width) is int


def test_numbers_of_numpy_are_numbers() -> None:
    fmt = VideoFormat(width=np.int64(64), height=np.uint16(48))  # type: ignore[arg-type]
    assert fmt == FORMAT


def test_chroma_is_rounded_up() -> None:
    assert VideoFormat(width=17, height=33).chroma_size == (9, 17)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"white_point": (15635, 50001)}, "chromaticity 50001"),
        ({"primaries": ((0, 0), (-1, 0), (0, 0))}, "chromaticity -1"),
        ({"luminance": (50, 50)}, "luminance 50 to 50"),
        ({"luminance": (0, 1 << 32)}, "luminance 0 to 4294967296"),
    ],
)
def test_mastering_displays_check_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MASTERING, **fields)


@pytest.mark.parametrize("value", [-1, 65536])
def test_content_light_checks_itself(value: int) -> None:
    with pytest.raises(ConfigError, match=f"content light level {value}"):
        ContentLight(max_content=value, max_average=0)
    with pytest.raises(ConfigError, match=f"content light level {value}"):
        ContentLight(max_content=0, max_average=value)


def test_field_orders_are_ffmpegs() -> None:
    assert [int(order) for order in FieldOrder] == list(range(6))
    assert FieldOrder.PROGRESSIVE == 1


def test_steps() -> None:
    step = FrameStep(type=FrameType.INTER, qp=30, layer=1, number=300, references=(-8, 4), slot=0)
    assert step.reference_numbers == (292, 304)
    assert FrameStep(type=FrameType.KEY, qp=0).slot == 0
    for fields in ({"layer": 1}, {"number": 1}, {"references": (1,)}, {"slot": None}, {"slot": 1}):
        with pytest.raises(ConfigError, match="keyframe"):
            replace(FrameStep(type=FrameType.KEY, qp=30), **fields)
    for fields, message in (
        ({"qp": 64}, "qp 64 is outside 0 to 63"),
        ({"layer": 8}, "layer 8 is outside 1 to 7"),
        ({"number": 0}, "frame number 0"),
        ({"number": 7}, "frame 7 cannot refer to a frame -8 away"),
        ({"references": (-1, -1)}, "frame 300 refers to one frame twice"),
        ({"references": (40000,)}, "reference distance 40000"),
        ({"slot": 8}, "slot 8 is outside 0 to 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(step, **fields)


def test_frames_are_checked_against_a_format() -> None:
    def plane(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
        return np.zeros((height, width), dtype)

    frame = Frame(y=plane(48, 64), u=plane(24, 32), v=plane(24, 32), pts=0)
    frame.check(FORMAT)
    for fields, message in (
        ({"y": plane(48, 63)}, r"plane y is uint8 \(48, 63\)"),
        ({"u": plane(24, 31)}, "plane u"),
        ({"v": plane(24, 32, np.uint16)}, "plane v is uint16"),
        ({"y": [[1]]}, "plane y is a list, not a NumPy array"),
        ({"pts": None}, "pts None is not a whole number of 64 bits"),
        ({"pts": 0.5}, r"pts 0\.5 is not"),
        ({"pts": 1 << 63}, "pts 9223372036854775808 is not"),
        ({"duration": "1"}, "duration '1' is not"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(frame, **fields).check(FORMAT)
    deep = replace(FORMAT, bit_depth=10)
    with pytest.raises(ConfigError, match="plane y is uint8"):
        frame.check(deep)
    y, u, v = (plane.astype(np.uint16) for plane in frame.planes)
    u[3, 5] = 1023
    Frame(y=y, u=u, v=v, pts=0).check(deep)
    u[3, 5] = 1024
    with pytest.raises(ConfigError, match="plane u has a sample of 1024: more than 1023"):
        Frame(y=y, u=u, v=v, pts=0).check(deep)
