"""Anchors by trial: equal bytes wherever it happens, and never dearer than without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from fake_model import FakeModel
from synthetic import clip

from vcfilter.codec import Decoder, Encoder, Executor, ProcessExecutor, ThreadExecutor, trial
from vcfilter.codec.segment import SegmentResult
from vcfilter.codec.trial import COARSER, encode_tried
from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.models.hierarchical.config import EFFORTS, TRIALS
from vcfilter.options import DecoderOptions, EncoderOptions

SMALL = VideoFormat(width=64, height=48)
TRYING = partial(FakeModel, trials={"veryslow": "ultrafast"})
MOVING = clip(50, SMALL, noise=3.0, cuts=(41,))


def mixed() -> list[Frame]:
    """Still at first, then moving."""
    still = clip(24, SMALL, still=True)
    moving = clip(26, SMALL, first_pts=len(still))
    return [*still, *moving]


def encode(
    frames: list[Frame],
    model: FakeModel | None = None,
    executor: Executor | None = None,
    finished: tuple[Packet, ...] = (),
    **options: Any,
) -> tuple[Encoder, list[Packet]]:
    settings = EncoderOptions(**{"preset": "veryslow", "keyint": 250} | options)
    encoder = Encoder(
        SMALL, settings, model=model or TRYING(), executor=executor, finished=finished
    )
    return encoder, [p for frame in [*frames, None] for p in encoder.encode(frame)]


def data_of(packets: list[Packet]) -> list[bytes]:
    return [packet.data for packet in packets]


def anchors_of(encoder: Encoder) -> list[int]:
    return [r.pts for r in encoder.statistics.records if r.header.step.layer == 1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"keyint": 70}, {"open_gop": False, "scenecut": False}])
def test_the_stream_can_be_decoded(options: dict[str, Any]) -> None:
    encoder, packets = encode(MOVING, **options)
    assert anchors_of(encoder) != anchors_of(encode(MOVING, FakeModel(), **options)[0])
    assert [p.pts for p in packets] == [r.pts for r in encoder.statistics.records]
    decoder = Decoder(encoder.extradata, DecoderOptions(strict=True), model=FakeModel())
    shown = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    assert [frame.pts for frame in shown] == list(range(len(MOVING)))


def error_and_bits(results: list[SegmentResult]) -> tuple[float, int]:
    records = [r for result in results for r in result.records if r.header.step.references]
    errors = [255**2 * 10 ** (-r.psnr / 10) for r in records]
    return sum(errors), sum(8 * r.size for r in records)


@pytest.mark.slow
def test_anchors_are_added_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of FakeModel's efforts code alike: the costs of the trial are those of the stream."""
    qp = 24
    encoder = Encoder(SMALL, EncoderOptions(qp=qp, preset="veryslow"), model=TRYING())
    jobs = [job for frame in mixed() for job in encoder._planner.push(frame)]
    jobs += encoder._planner.finish()
    state, counts = None, set()
    for job in jobs:
        with monkeypatch.context() as patch:
            patch.setattr(trial, "SHORTEST", 99)
            alone, _ = encode_tried(TRYING(), job, encoder._coding, qp, state)
        again, _ = encode_tried(TRYING(), job, encoder._coding, qp, state)
        tried, state = encode_tried(TRYING(), job, encoder._coding, qp, state)
        assert [r.packets for r in tried] == [r.packets for r in again]
        assert len(alone) == 1
        (error, bits), (error_alone, bits_alone) = map(error_and_bits, (tried, alone))
        assert len(tried) == 1 or error < error_alone or bits < bits_alone
        if len(tried) == 2:
            unit = QUANTISER_LAMBDA * 2 ** ((qp - 4) / 3) / (SMALL.width * SMALL.height)
            least, most = (unit * 2 ** (coarser / 3) for coarser in COARSER)
            weight = min(max(error_alone / bits_alone, least), most)
            assert error + weight * bits < error_alone + weight * bits_alone
        elif len(tried) == 1:
            assert tried[0].packets == alone[0].packets
        if len(job.frames) > 4:
            counts.add(len(tried))
    assert 1 in counts
    assert max(counts) > 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"keyint": 70}, {"keyint": 70, "open_gop": False}])
def test_workers_give_equal_bytes(options: dict[str, Any]) -> None:
    _, expected = encode(MOVING, **options)
    with ThreadExecutor(TRYING(), 3) as executor:
        assert data_of(encode(MOVING, executor=executor, **options)[1]) == data_of(expected)


@pytest.mark.slow
def test_processes_give_equal_bytes() -> None:
    with ProcessExecutor(TRYING, 2) as executor:
        assert data_of(encode(MOVING, executor=executor)[1]) == data_of(encode(MOVING)[1])


@pytest.mark.slow
def test_an_earlier_run_is_gone_on_from() -> None:
    full = TRYING()
    _, expected = encode(MOVING, full)
    assert any(p.is_keyframe for p in expected[1:40])
    model = TRYING()
    _, packets = encode(MOVING, model, finished=tuple(expected[:40]))
    assert data_of(packets) == data_of(expected)
    assert len(model.calls) < 0.7 * len(full.calls)


def test_every_frame_is_told_once() -> None:
    told: list[int] = []
    encoder = Encoder(
        SMALL,
        EncoderOptions(preset="veryslow"),
        model=TRYING(),
        coded_frame=lambda record: told.append(record.pts),
    )
    for frame in [*MOVING, None]:
        encoder.encode(frame)
    assert sorted(told) == list(range(len(MOVING)))


@pytest.mark.slow
def test_no_more_frames_are_held() -> None:
    encoder = Encoder(SMALL, EncoderOptions(preset="veryslow"), model=TRYING())
    plain = Encoder(SMALL, EncoderOptions(preset="veryslow"), model=FakeModel())
    assert encoder.delay == plain.delay
    held = 0
    for frame in MOVING:
        held += 1 - len(encoder.encode(frame))
        assert held <= encoder.delay


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "medium"},
        {"structure": "low-delay"},
        {"bframes": 3},
        {"bitrate": 200_000},
        {"quality": 35.0},
        {"maxrate": 2_000_000, "bufsize": 2_000_000},
    ],
    ids=str,
)
def test_nothing_is_tried(options: dict[str, Any]) -> None:
    model = TRYING()
    _, packets = encode(MOVING, model, **options)
    assert data_of(packets) == data_of(encode(MOVING, FakeModel(), **options)[1])


def test_trials_are_cheaper() -> None:
    names = list(EFFORTS)
    assert TRIALS
    for effort, cheaper in TRIALS.items():
        assert names.index(cheaper) < names.index(effort)
