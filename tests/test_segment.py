"""encode_segment: a pure function of job, model and state."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import SequenceHeader, read_packet
from vcfilter.codec.plan import Planner, SegmentJob
from vcfilter.codec.rate import ConstantQp
from vcfilter.codec.segment import Coding, SegmentResult, encode_segment
from vcfilter.codec.structure import GopStructure
from vcfilter.errors import ConfigError
from vcfilter.frames import FrameStep, VideoFormat
from vcfilter.models.base import CodedFrame
from vcfilter.options import EncoderOptions

SMALL = VideoFormat(width=48, height=32)
SEQUENCE = SequenceHeader(model_id=b"fakemodl", video_format=SMALL, reorder=255, reach=65535)
CODING = Coding(sequence=SEQUENCE, effort="fast", key_length=12)


def jobs_of(count: int, **options: object) -> list[SegmentJob]:
    planner = Planner(SMALL, GopStructure.of(EncoderOptions(**options)))
    jobs = [job for frame in clip(count, SMALL) for job in planner.push(frame)]
    return jobs + planner.finish()


def data_of(result: SegmentResult) -> list[bytes]:
    return [packet.data for packet in result.packets]


def test_a_keyframe_that_is_coded_already_changes_nothing() -> None:
    first, second, *_ = jobs_of(24, keyint=8)
    _, state = encode_segment(FakeModel(), first, CODING, ConstantQp(30))
    assert state is not None
    model, alone = FakeModel(), FakeModel()
    after, _ = encode_segment(model, second, CODING, ConstantQp(30), state)
    fresh, _ = encode_segment(alone, second, CODING, ConstantQp(30))
    assert data_of(after) == data_of(fresh)
    assert len(alone.calls) == len(model.calls) + 1


@pytest.mark.parametrize("options", [{"keyint": 50, "bframes": 3}, {"structure": "low-delay"}])
def test_a_state_may_be_used_twice(options: dict[str, object]) -> None:
    jobs = jobs_of(24, **options)
    assert len(jobs) > 3
    state = None
    for job in jobs:
        once, _ = encode_segment(FakeModel(), job, CODING, ConstantQp(30), state)
        again, state = encode_segment(FakeModel(), job, CODING, ConstantQp(30), state)
        assert data_of(once) == data_of(again)


def test_a_part_of_a_gop_needs_what_came_before() -> None:
    _, second, *_ = jobs_of(20, keyint=50, bframes=3)
    assert second.first > 0
    with pytest.raises(ConfigError, match=f"a segment from frame {second.first} of a GOP on"):
        encode_segment(FakeModel(), second, CODING, ConstantQp(30))


def test_records_and_summary() -> None:
    first, *_ = jobs_of(24, keyint=8)
    result, _ = encode_segment(FakeModel(), first, CODING, ConstantQp(30))
    # Of an open GOP the next keyframe comes too: without it the last frames could not be decoded.
    assert [r.pts for r in result.records] == [p.pts for p in result.packets] == list(range(9))
    assert [r.size for r in result.records] == [len(p.data) for p in result.packets]
    key = read_packet(result.packets[0].data)
    for packet, record in zip(result.packets[1:8], result.records[1:8], strict=True):
        info = read_packet(packet.data, key_identity=key.identity, after=packet.pts - 1)
        assert info.header.step.number == record.header.step.number == packet.pts
    summary = result.summary
    assert (summary.length, summary.key_qp, summary.inter_qp) == (8, 30, 30)
    assert summary.key_bits == 8 * result.records[0].size
    assert summary.inter_bits == 8 * sum(r.size for r in result.records[1:8])


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("options", [{"keyint": 8}, {"keyint": 50, "bframes": 7}, {"keyint": 40}])
def test_frames_beside_each_other(options: dict[str, object], threads: int) -> None:
    state = other = None
    for job in jobs_of(40, scenecut=False, **options):
        order: list[list[int]] = [[], []]
        one, state = encode_segment(
            FakeModel(), job, CODING, ConstantQp(30), state,
            coded_frame=lambda record: order[0].append(record.pts),  # noqa: B023
        )  # fmt: skip
        two, other = encode_segment(
            FakeModel(), job, CODING, ConstantQp(30), other,
            coded_frame=lambda record: order[1].append(record.pts), threads=threads,  # noqa: B023
        )  # fmt: skip
        assert one == two
        assert order[0] == order[1] and sorted(order[0]) == [r.pts for r in one.records]


class Together(FakeModel):
    """Waits at frames of one layer until so many are being coded; then all go on."""

    def __init__(self, layer: int, count: int) -> None:
        super().__init__()
        self.layer, self.barrier = layer, Barrier(count, timeout=20)

    def encode(self, picture: Any, step: FrameStep, *rest: Any) -> CodedFrame:
        if step.layer == self.layer:
            self.barrier.wait()
        return super().encode(picture, step, *rest)


def test_frames_are_coded_when_their_references_are_there() -> None:
    first, *_ = jobs_of(17, keyint=16, bframes=15, scenecut=False)
    layers = Counter(step.layer for step in first.steps)
    layer = max(layers)
    assert layers[layer] % 4 == 0
    model = Together(layer, 4)
    found, _ = encode_segment(model, first, CODING, ConstantQp(30), threads=4)
    plain, _ = encode_segment(FakeModel(), first, CODING, ConstantQp(30))
    assert data_of(found) == data_of(plain)


def test_an_error_in_a_thread_ends_the_segment() -> None:
    class Failing(FakeModel):
        def encode(self, picture: Any, step: FrameStep, *rest: Any) -> CodedFrame:
            if step.layer == 3:
                raise MemoryError("no room")
            return super().encode(picture, step, *rest)

    first, *_ = jobs_of(17, keyint=16, scenecut=False)
    with pytest.raises(MemoryError, match="no room"):
        encode_segment(Failing(), first, CODING, ConstantQp(30), threads=3)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_reference_that_is_not_kept(threads: int) -> None:
    first, *_ = jobs_of(17, keyint=16, scenecut=False)
    odd = replace(first, steps=first.steps[1:])
    with pytest.raises(ConfigError, match="which is not kept"):
        encode_segment(FakeModel(), odd, CODING, ConstantQp(30), threads=threads)


def test_results_can_be_pickled() -> None:
    first, *_ = jobs_of(24, keyint=8)
    result, _ = encode_segment(FakeModel(), first, CODING, ConstantQp(30))
    assert pickle.loads(pickle.dumps(result)) == result
    assert pickle.loads(pickle.dumps(CODING)) == CODING
