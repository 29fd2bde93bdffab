"""Options: what is allowed, and the one parser of texts."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcfilter.errors import ConfigError
from vcfilter.options import (
    _KINDS,
    BFRAMES,
    PRESETS,
    DecoderOptions,
    EncoderOptions,
    Runtime,
    bitrate,
)


def test_every_option_can_be_a_text() -> None:
    assert {field.name for field in fields(EncoderOptions)} == set(_KINDS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("qp", "32", 32),
        ("qp", " +7 ", 7),
        ("quality", "38.5", 38.5),
        ("quality", "40", 40.0),
        ("bitrate", "800k", 800_000),
        ("bitrate", "800000", 800_000),
        ("bitrate", "1.5M", 1_500_000),
        ("bitrate", "0.002G", 2_000_000),
        ("keyint", "250", 250),
        ("min_keyint", "3", 3),
        ("scenecut", "no", False),
        ("scenecut", "1", True),
        ("scenecut", "On", True),
        ("scenecut", " false ", False),
        ("open_gop", "0", False),
        ("structure", "low-delay", "low-delay"),
        ("bframes", "7", 7),
        ("preset", "slow", "slow"),
        ("frame_rate", "30000/1001", Fraction(30000, 1001)),
        ("frame_rate", "23.976", Fraction("23.976")),
        ("frame_rate", "25", Fraction(25)),
        ("model", "small", "small"),
    ],
)
def test_texts(name: str, text: str, value: object) -> None:
    found = getattr(EncoderOptions.from_mapping({name: text}), name)
    assert found == value
    assert type(found) is type(value)
    assert getattr(EncoderOptions.from_mapping({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qp", "32.5"),
        ("qp", ""),
        ("qp", "thirty"),
        ("qp", "1e1"),
        ("qp", "0x10"),
        ("qp", "1_0"),
        ("qp", "9" * 5000),
        ("quality", "1e2"),
        ("quality", "nan"),
        ("quality", "inf"),
        ("quality", "-40"),
        ("bitrate", "800kk"),
        ("bitrate", "k"),
        ("bitrate", "1e6"),
        ("bitrate", "8e5k"),
        ("bitrate", "-800k"),
        ("bitrate", "800 kbit"),
        ("bitrate", "1/0"),
        ("maxrate", "much"),
        ("bufsize", "1e3"),
        ("keyint", "auto"),
        ("min_keyint", "1.0"),
        ("scenecut", "maybe"),
        ("scenecut", ""),
        ("open_gop", "2"),
        ("bframes", "some"),
        ("frame_rate", "25 fps"),
        ("frame_rate", "1/0"),
        ("frame_rate", "1e999999999"),
        ("frame_rate", "ntsc"),
    ],
)
def test_texts_that_are_no_such_value(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        EncoderOptions.from_mapping({name: text})
    assert str(error.value).startswith(f"{name} {text!r} is not {_KINDS[name][0]}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("qp", 32.0),
        ("qp", True),
        ("qp", b"32"),
        ("quality", True),
        ("quality", [40]),
        ("quality", 40j),
        ("bitrate", 8e5),
        ("bitrate", False),
        ("keyint", None),
        ("keyint", 12.0),
        ("min_keyint", None),
        ("scenecut", 1),
        ("scenecut", None),
        ("open_gop", 0),
        ("structure", 1),
        ("structure", None),
        ("bframes", 3.0),
        ("ltr", None),
        ("preset", 3),
        ("preset", None),
        ("frame_rate", None),
        ("frame_rate", (25, 1)),
        ("frame_rate", True),
        ("model", 7),
    ],
)
def test_values_of_a_wrong_type(name: str, value: Any) -> None:
    for make in (lambda: EncoderOptions(**{name: value}),
                 lambda: EncoderOptions.from_mapping({name: value})):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value).startswith(f"{name} {value!r} is not")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qp": -1}, "qp -1 is outside 0 to 63"),
        ({"qp": 64}, "qp 64"),
        ({"quality": 19.9}, r"quality 19\.9 dB is outside 20 to 60"),
        ({"quality": float("nan")}, "quality nan"),
        ({"bitrate": 999}, "bitrate 999 bit/s is below 1000"),
        ({"qp": 3, "bitrate": 9000}, "qp and bitrate exclude each other"),
        ({"qp": 3, "quality": 30, "bitrate": 9000}, "qp and quality and bitrate exclude"),
        ({"maxrate": 5000}, "maxrate and bufsize belong together"),
        ({"maxrate": 5000, "bufsize": 10}, "bufsize 10 is below 1000"),
        ({"keyint": 0}, "keyint 0 is outside 1 to"),
        ({"keyint": (1 << 30) + 1}, "keyint 1073741825"),
        ({"keyint": 12, "min_keyint": 13}, "min_keyint 13 is outside 1 to keyint 12"),
        ({"min_keyint": 0}, "min_keyint 0"),
        ({"structure": "random"}, "structure 'random' is not one of random-access, low-delay"),
        ({"bframes": 2}, "bframes 2 is not one of"),
        ({"ltr": 6}, "ltr 6"),
        ({"ltr": 8}, "ltr 8 needs structure low-delay, not random-access"),
        ({"bframes": 3, "structure": "low-delay"}, "structure low-delay has no B-frames"),
        ({"bframes": 7, "structure": "intra"}, "structure intra has no B-frames"),
        ({"layer_step": 4}, "layer_step 4 needs layers"),
        ({"layers": 8, "crf": 0, "layer_step": 12}, "8 layers 12 qps apart do not fit into qps"),
        ({"preset": "slowest"}, "preset 'slowest' is not one of ultrafast, veryfast"),
        ({"frame_rate": 0}, "frame rate 0 is not positive"),
        ({"frame_rate": Fraction(-1)}, "frame rate -1"),
        ({"frame_rate": float("nan")}, "frame rate nan"),
        ({"frame_rate": float("inf")}, "frame rate inf"),
        ({"frame_rate": Fraction(1, 10**400)}, r"frame rate 0\.0 is outside"),
        ({"bitrate": 10**400}, "bitrate is above 10{15}"),
        ({"maxrate": 5000, "bufsize": 10**16}, "bufsize is above 10{15}"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderOptions(**options)


def test_what_is_allowed() -> None:
    assert EncoderOptions() == EncoderOptions.from_mapping({})
    for count in BFRAMES:
        EncoderOptions(bframes=count)
    for preset in PRESETS:
        EncoderOptions(preset=preset)
    EncoderOptions(quality=Fraction(81, 2), frame_rate=29.97)  # type: ignore[arg-type]


def test_other_names() -> None:
    found = EncoderOptions.from_mapping(
        {"g": "48", "keyint-min": "4", "bf": "3", "b": "1M", "vbv-maxrate": "2M",
         "vbv-bufsize": "4M", "open-gop": "no"}
    )  # fmt: skip
    assert found == EncoderOptions(
        keyint=48, min_keyint=4, bframes=3, bitrate=1_000_000, maxrate=2_000_000,
        bufsize=4_000_000, open_gop=False,
    )  # fmt: skip
    assert EncoderOptions.from_mapping({"tune": "zerolatency"}).structure == "low-delay"
    assert EncoderOptions.from_mapping({"tune": "psnr"}) == EncoderOptions()
    same = EncoderOptions.from_mapping({"structure": "low-delay", "tune": "zerolatency"})
    assert same.structure == "low-delay"
    for settings_, message in (
        ({"quant": "3"}, "setting 'quant' is not one of crf, qp, quality"),
        ({"tune": "film"}, "tune 'film' is not one of psnr, zerolatency"),
        ({"tune": "zerolatency", "structure": "intra"}, "is structure low-delay: intra excludes"),
        ({"tune": ["psnr"]}, "tune .'psnr'. is not one of"),
        ({1: 2}, "setting 1 is not a name"),
        ({"g": "12", "keyint": "13"}, "'keyint' is given twice"),
        ({"open_gop": True, "open-gop": False}, "'open_gop' is given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            EncoderOptions.from_mapping(settings_)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(_KINDS)), st.text(max_size=12) | st.from_regex(r"[0-9./eEkM-]{1,8}"))
def test_any_text_is_read_or_refused(name: str, text: str) -> None:
    try:
        EncoderOptions.from_mapping({name: text})
    except ConfigError as error:
        assert "\n" not in str(error).replace(repr(text), "")


@given(st.integers(1, 10**9))
@settings(max_examples=50, deadline=None)
def test_bitrates(value: int) -> None:
    assert bitrate(str(value)) == value
    assert bitrate(f"{value}k") == bitrate(f"{value}K") == 1000 * value


def test_runtime_and_decoder_options() -> None:
    for make, message in (
        (lambda: Runtime(threads=-1), "threads -1 is negative"),
        (lambda: Runtime(threads="2"), "threads '2' is not a whole number"),
        (lambda: Runtime(threads=True), "threads True is not a whole number"),
        (lambda: Runtime(device=None), "device None is not a text"),
        (lambda: DecoderOptions(strict="yes"), "strict 'yes' is not yes or no"),
        (lambda: DecoderOptions(strict=1), "strict 1 is not yes or no"),
        (lambda: DecoderOptions(model=b"x"), "model b'x' is not a text"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    assert Runtime(threads=3).threads == 3
    assert DecoderOptions(model="small").model == "small"
