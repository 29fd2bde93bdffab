"""Executors: GOPs coded beside each other give the bytes of one after the other."""

from __future__ import annotations

import pickle
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import read_packet
from vcfilter.codec import Decoder, Encoder, Executor, ProcessExecutor, ThreadExecutor
from vcfilter.codec.executor import GopTask, run_task
from vcfilter.codec.segment import SegmentResult
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import CodedFrame
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

SMALL = VideoFormat(width=48, height=32)
OPTIONS: list[dict[str, object]] = [
    {"keyint": 6},
    {"keyint": 20, "bframes": 3},
    {"keyint": 9, "open_gop": False},
    {"keyint": 7, "structure": "low-delay"},
    {"structure": "intra"},
]


def encode(executor: Executor | None, model: Any = None, **options: Any) -> Encoder:
    encoder = Encoder(
        SMALL, EncoderOptions(**options), model=model or FakeModel(), executor=executor
    )
    packets: list[Packet] = []
    for frame in clip(45, SMALL, cuts=(17,)):
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    encoder.packets = packets  # type: ignore[attr-defined]
    return encoder


def data_of(encoder: Encoder) -> list[bytes]:
    packets: list[Packet] = encoder.packets  # type: ignore[attr-defined]
    assert [p.pts for p in packets] == [r.pts for r in encoder.statistics.records]
    return [p.data for p in packets]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_threads_give_equal_bytes(options: dict[str, object]) -> None:
    expected = encode(None, **options)
    with ThreadExecutor(FakeModel(), 3) as executor:
        found = encode(executor, **options)
    assert data_of(found) == data_of(expected)
    assert found.statistics == expected.statistics
    decoder = Decoder(found.extradata, DecoderOptions(strict=True), model=FakeModel())
    packets: list[Packet] = found.packets  # type: ignore[attr-defined]
    assert sum(len(decoder.decode(packet)) for packet in [*packets, None]) == 45


def test_processes_give_equal_bytes() -> None:
    with ProcessExecutor(partial(FakeModel, levels=2), 2) as executor:
        for options in OPTIONS[:2]:
            model = FakeModel(levels=2)
            assert data_of(encode(executor, model, layers=2, **options)) == data_of(
                encode(None, model, layers=2, **options)
            )


@pytest.mark.slow
def test_processes_give_equal_bytes_with_the_real_model() -> None:
    runtime = Runtime(device="cpu", threads=1)
    load = partial(store.find, None, runtime)
    model = load()
    options = {"keyint": 9, "preset": "ultrafast", "scenecut": False}

    def coded(executor: Executor | None) -> list[bytes]:
        encoder = Encoder(
            SMALL, EncoderOptions(**options), runtime=runtime, model=model, executor=executor
        )
        return [p.data for f in [*clip(20, SMALL), None] for p in encoder.encode(f)]

    with ProcessExecutor(load, 2) as executor:
        assert coded(executor) == coded(None)


class Broken(FakeModel):
    def encode(self, picture: Any, step: Any, *rest: Any) -> CodedFrame:
        if step.number == 3:
            raise BitstreamError("a fault of the model")
        return super().encode(picture, step, *rest)


def test_a_fault_in_a_worker_is_raised() -> None:
    with (
        ThreadExecutor(Broken(), 2) as executor,
        pytest.raises(BitstreamError, match="a fault of the model"),
    ):
        encode(executor, keyint=6)


def test_only_a_constant_qp_can_be_coded_beside_each_other() -> None:
    with ThreadExecutor(FakeModel(), 1) as executor:
        for options in ({"bitrate": 50_000}, {"quality": 35.0}):
            with pytest.raises(ConfigError, match="at a constant qp only"):
                encode(executor, **options)
        with pytest.raises(ConfigError, match="cannot keep a maxrate"):
            encode(executor, qp=30, maxrate=100_000, bufsize=100_000)


def test_workers_are_checked() -> None:
    with pytest.raises(ConfigError, match="workers 0 is below 1"):
        ThreadExecutor(FakeModel(), 0)
    with pytest.raises(ConfigError, match="workers -1 is below 1"):
        ProcessExecutor(FakeModel, -1)


def test_tasks_can_be_pickled() -> None:
    tasks: list[GopTask] = []

    class Noting:
        workers = 2

        def submit(self, task: GopTask) -> Future[list[SegmentResult]]:
            tasks.append(pickle.loads(pickle.dumps(task)))
            future: Future[list[SegmentResult]] = Future()
            future.set_result(run_task(FakeModel(), tasks[-1]))
            return future

    for options in OPTIONS[:4]:
        assert data_of(encode(Noting(), **options)) == data_of(encode(None, **options))
    assert tasks
    assert all(task.jobs[0].first == 0 for task in tasks)


def test_few_gops_are_held() -> None:
    class Slow:
        workers = 2

        def __init__(self) -> None:
            self.given: list[tuple[GopTask, Future[list[SegmentResult]]]] = []

        def submit(self, task: GopTask) -> Future[list[SegmentResult]]:
            future: Future[list[SegmentResult]] = Lazy(task)
            self.given.append((task, future))
            assert sum(not f.done() for _, f in self.given) <= self.workers + 1
            return future

    class Lazy(Future[list[SegmentResult]]):
        """Codes when it is waited for."""

        def __init__(self, task: GopTask) -> None:
            super().__init__()
            self.task = task

        def result(self, timeout: float | None = None) -> list[SegmentResult]:
            if not self.done():
                self.set_result(run_task(FakeModel(), self.task))
            return super().result(timeout)

    assert data_of(encode(Slow(), keyint=4)) == data_of(encode(None, keyint=4))


class Noting(FakeModel):
    """Its level tells how many threads PyTorch would use: sections carry it out of a process."""

    def encode(self, *args: Any) -> CodedFrame:
        coded = super().encode(*args)
        return replace(coded, mode=bytes((4,)), sections=(bytes((torch.get_num_threads(),)),))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_encoders_threads_hold_in_the_workers(kind: str) -> None:
    wanted = torch.get_num_threads() + 1
    executor = ThreadExecutor(Noting(), 2) if kind == "threads" else ProcessExecutor(Noting, 2)
    with executor:
        encoder = Encoder(
            SMALL,
            EncoderOptions(keyint=3, scenecut=False),
            runtime=Runtime(threads=wanted),
            model=Noting(),
            executor=executor,
        )
        packets = [p for frame in [*clip(6, SMALL), None] for p in encoder.encode(frame)]
    assert {read_packet(p.data).sections[0].data for p in packets} == {bytes((wanted,))}
