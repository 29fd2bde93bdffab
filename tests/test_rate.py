"""Rate control on the fake model: quality, one pass, two passes."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from fake_model import FakeModel
from synthetic import clip

from vcfilter.codec import Encoder, PassLog, first_pass_options, is_far
from vcfilter.codec.buffer import Buffer
from vcfilter.codec.rate import (
    DEFAULT_QP,
    AverageBitrate,
    Coarser,
    ConstantQp,
    ConstantQuality,
    KeyTrial,
    TwoPass,
    make_rate_control,
)
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, Frame, VideoFormat
from vcfilter.options import EncoderOptions

SMALL = VideoFormat(width=48, height=32)


def film(count: int = 120, seed: int = 0) -> list[Frame]:
    """Scenes of unlike complexity: busy, still, noisy, busy."""
    parts = [
        clip(count // 4, SMALL, seed=seed),
        clip(count // 4, SMALL, seed=seed + 1, noise=0.2),
        clip(count // 4, SMALL, seed=seed + 2, noise=6),
        clip(count - 3 * (count // 4), SMALL, seed=seed + 3, noise=2),
    ]
    frames = [frame for part in parts for frame in part]
    return [Frame(y=f.y, u=f.u, v=f.v, pts=i) for i, f in enumerate(frames)]


def encode(
    frames: list[Frame], options: EncoderOptions, pass_log: PassLog | None = None
) -> Encoder:
    encoder = Encoder(SMALL, options, pass_log=pass_log, model=FakeModel())
    for frame in [*frames, None]:
        encoder.encode(frame)
    return encoder


def bits_per_second(encoder: Encoder, options: EncoderOptions) -> float:
    statistics = encoder.statistics
    return float(8 * statistics.bytes * options.frame_rate / statistics.frames)


def test_the_options_choose() -> None:
    def control(**options: object) -> object:
        return make_rate_control(SMALL, EncoderOptions(**options))

    assert isinstance(control(), ConstantQp)
    assert control().key_qp([], 12) == DEFAULT_QP
    assert control(qp=0).key_qp([], 12) == 0
    assert isinstance(control(quality=35), ConstantQuality)
    assert isinstance(control(bitrate=10000), AverageBitrate)


def test_a_keyframe_is_coarser_at_a_constant_qp_alone() -> None:
    """What aims at a size or at a quality finds the qp by itself; inter frames keep theirs."""
    control = ConstantQp(30)
    assert [control.key_qp([], 12, offset) for offset in (0, 7)] == [30, 37]
    assert ConstantQp(60).key_qp([], 12, 10) == QP_MAX
    key = KeyTrial(qp=37, bits=1000, psnr=40.0)
    assert control.inter_qp(key, [1], 12) == 30
    assert Coarser(control, 2).key_qp([], 12, 7) == 39
    assert Coarser(control, 2).inter_qp(key, [1], 12) == 32
    for other in (ConstantQuality(35.0), AverageBitrate(1000.0, 64 * 48, 12)):
        assert other.key_qp([], 12, 7) == other.key_qp([], 12, 0)


@pytest.mark.parametrize("quality", [26, 32, 38, 44])
def test_constant_quality(quality: float) -> None:
    frames = film()
    encoder = encode(frames, EncoderOptions(quality=quality))
    records = encoder.statistics.records
    mean = sum(record.psnr for record in records) / len(records)
    assert abs(mean - quality) < 1.25  # scenes change every second or third segment
    assert len({record.header.step.qp for record in records if record.header.step.layer == 0}) > 1


@pytest.mark.parametrize("aim", [25.0, 40.0, 55.0])
@pytest.mark.parametrize("slope", [0.4, 0.8, 1.2])
def test_quality_search_is_short_and_ends(aim: float, slope: float) -> None:
    control = ConstantQuality(aim)
    for _ in range(3):
        trials: list[KeyTrial] = []
        while True:
            qp = control.key_qp(trials, 12)
            if any(trial.qp == qp for trial in trials):
                break
            trials.append(KeyTrial(qp=qp, bits=1000, psnr=60 - slope * qp))
        assert len(trials) <= 5
        best = min(range(64), key=lambda q: abs(60 - slope * q - aim - 1.6))
        assert abs(qp - best) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("bitrate", [15000, 40000, 120000])
@pytest.mark.parametrize("keyint", [6, 12])
def test_one_pass_bitrate(bitrate: int, keyint: int) -> None:
    options = EncoderOptions(bitrate=bitrate, keyint=keyint)
    encoder = encode(film(), options)
    assert abs(bits_per_second(encoder, options) / bitrate - 1) < 0.10


@pytest.mark.parametrize("bitrate", [1000, 50_000_000])
def test_bitrates_out_of_reach_end_at_the_limits(bitrate: int) -> None:
    encoder = encode(film(24), EncoderOptions(bitrate=bitrate, keyint=6))
    qps = [record.header.step.qp for record in encoder.statistics.records[7:]]
    assert min(qps) >= 55 if bitrate == 1000 else max(qps) <= 10


@pytest.mark.parametrize(
    ("bitrate", "frame_rate"),
    [
        (15000, Fraction(12)),
        *(
            pytest.param(bitrate, frame_rate, marks=pytest.mark.slow)
            for bitrate in (15000, 40000, 120000)
            for frame_rate in (Fraction(12), Fraction(30000, 1001))
            if (bitrate, frame_rate) != (15000, Fraction(12))
        ),
    ],
)
def test_two_pass_bitrate(bitrate: int, frame_rate: Fraction) -> None:
    frames = film(int(10 * frame_rate))
    options = EncoderOptions(bitrate=bitrate, frame_rate=frame_rate)
    first = encode(frames, first_pass_options(SMALL, options))
    log = PassLog.from_json(first.pass_log.to_json())
    assert log == first.pass_log
    second = encode(frames, options, log)
    assert abs(bits_per_second(second, options) / bitrate - 1) < 0.03


@pytest.mark.slow
def test_two_passes_even_out_the_quality() -> None:
    """Complex scenes get more bits than one pass gives them: qps vary less."""
    frames = film(240)
    options = EncoderOptions(bitrate=40000)
    log = encode(frames, first_pass_options(SMALL, options)).pass_log

    def spread(encoder: Encoder) -> int:
        qps = [r.header.step.qp for r in encoder.statistics.records if r.header.step.layer == 0][1:]
        return max(qps) - min(qps)

    assert spread(encode(frames, options, log)) <= spread(encode(frames, options))
    assert spread(encode(frames, options, log)) <= 8


def test_pass_log_must_fit() -> None:
    frames = film(48)
    options = EncoderOptions(bitrate=30000)
    log = encode(frames, first_pass_options(SMALL, options)).pass_log
    with pytest.raises(ConfigError, match="without a bitrate"):
        make_rate_control(SMALL, EncoderOptions(), log)
    with pytest.raises(ConfigError, match="does not fit"):
        make_rate_control(SMALL, EncoderOptions(bitrate=30000, keyint=7), log)
    with pytest.raises(ConfigError, match="does not fit"):
        make_rate_control(VideoFormat(width=64, height=32), options, log)
    with pytest.raises(ConfigError, match="does not fit"):
        encode(film(96), options, log)
    assert isinstance(make_rate_control(SMALL, options, log), TwoPass)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"width": 1, "height": 1, "keyint": 1, "segments": [{}]}',
        '{"width": 1, "height": 1, "keyint": 1, "segments": [{"length": 1, "key_qp": 1,'
        ' "inter_qp": 1, "key_bits": 0, "inter_bits": 0}]}',
    ],
)
def test_no_pass_log(text: str) -> None:
    with pytest.raises(ConfigError, match="not a pass log"):
        PassLog.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_qp": 10**6}, {"key_qp": None}, {"inter_qp": -(10**6)}, {"inter_qp": 30.5},
        {"key_bits": float("inf")}, {"inter_bits": 10**400}, {"length": 10**400},
        {"key_psnr": float("nan")}, {"begins": 1},
    ],
)  # fmt: skip
def test_what_a_pass_log_says_of_a_segment_can_be(wrong: dict[str, Any]) -> None:
    segment = {"length": 3, "key_qp": 30, "inter_qp": 30, "key_bits": 800, "inter_bits": 900}
    log = {"width": 64, "height": 48, "keyint": 9, "segments": [segment]}
    assert PassLog.from_json(json.dumps(log)).segments[0].length == 3
    segment.update(wrong)
    with pytest.raises(ConfigError, match="cannot be"):
        PassLog.from_json(json.dumps(log))


def test_a_first_pass_far_from_what_is_needed_is_repeated() -> None:
    """Frames that cost next to nothing at the first guess."""
    frames = [replace(f, pts=n) for n, f in enumerate([film(1)[0]] * 60)]
    options = EncoderOptions(bitrate=60_000, keyint=250, frame_rate=Fraction(25))
    first = first_pass_options(SMALL, options)
    log = encode(frames, first).pass_log
    assert log is not None and is_far(log, options)
    nearer = first_pass_options(SMALL, options, log)
    assert nearer.qp is not None and first.qp is not None and nearer.qp < first.qp - 6
    again = encode(frames, nearer).pass_log
    assert again is not None and not is_far(again, options)


def test_first_pass_options() -> None:
    options = EncoderOptions(bitrate=100_000, preset="slow", keyint=20)
    first = first_pass_options(VideoFormat(width=352, height=288), options)
    assert (first.bitrate, first.keyint, first.preset) == (None, 20, "fast")
    assert first.qp is not None
    more = first_pass_options(VideoFormat(width=352, height=288), EncoderOptions(bitrate=1_000_000))
    assert more.qp is not None
    assert more.qp < first.qp
    with pytest.raises(ConfigError, match="bitrate"):
        first_pass_options(SMALL, EncoderOptions())


# --- maxrate and bufsize ----------------------------------------------------------------------


def test_a_buffer() -> None:
    buffer = Buffer(25_000, 10_000, Fraction(25))  # 1000 bits a frame
    assert buffer.fullness == 9000
    assert buffer.overflow([9000]) == 1
    assert buffer.overflow([4500, 11_000]) == 2  # 5500 bits are there
    assert buffer.overflow([0, 0, 20_000]) == 2  # no more than 10000 fit
    buffer.take([9000, 500])
    assert buffer.fullness == 1500
    assert buffer.overflow([]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"keyint": 12},
        {"keyint": 12, "bframes": 3, "bitrate": 50_000},
        {"structure": "low-delay", "keyint": 60},
        {"structure": "intra"},
        {"quality": 38},
    ],
    ids=str,
)
def test_no_packet_asks_for_more_than_has_arrived(options: dict[str, object]) -> None:
    chosen = EncoderOptions(maxrate=60_000, bufsize=30_000, **options)
    encoder = encode(film(60), chosen)
    free = encode(film(60), EncoderOptions(**options))
    buffer = Buffer(60_000, 30_000, Fraction(25))
    for record in encoder.statistics.records:
        assert 8 * record.size <= buffer.fullness
        buffer.take([8 * record.size])
    assert encoder.statistics.bytes <= free.statistics.bytes


def test_a_maxrate_that_cannot_be_kept_is_said(caplog: pytest.LogCaptureFixture) -> None:
    encode(film(12), EncoderOptions(maxrate=1000, bufsize=1000))
    assert "maxrate and bufsize cannot be kept" in caplog.text
