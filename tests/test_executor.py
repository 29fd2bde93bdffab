"""Executors: GOPs coded beside each other give the bytes of one after the other."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_model import FakeModel
from synthetic import clip

from vcfilter.bitstream import read_packet
from vcfilter.codec import (
    Decoder,
    Encoder,
    Executor,
    FrameRecord,
    ProcessExecutor,
    ThreadExecutor,
)
from vcfilter.codec.executor import GopTask, run_task
from vcfilter.codec.segment import SegmentResult
from vcfilter.errors import BitstreamError, ConfigError, ModelMismatchError, VcfilterError
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


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_qps_that_follow_motion_do_not_depend_on_who_codes(options: dict[str, object]) -> None:
    wide = VideoFormat(width=96, height=64)
    calm, wild = clip(20, wide, still=True), clip(25, wide, seed=3, noise=20.0, first_pts=20)

    def coded(executor: Executor | None) -> Encoder:
        encoder = Encoder(wide, EncoderOptions(**options), model=FakeModel(), executor=executor)
        encoder.packets = [p for f in [*calm, *wild, None] for p in encoder.encode(f)]  # type: ignore[attr-defined]
        return encoder

    expected = coded(None)
    with ThreadExecutor(FakeModel(), 3) as executor:
        assert data_of(coded(executor)) == data_of(expected)
    qps = [record.header.step.qp for record in expected.statistics.records]
    assert qps[0] == 26
    assert sum(qps[20:]) / 25 > sum(qps[:20]) / 20 + 8


@pytest.mark.slow
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


class SlowModel(FakeModel):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def encode(self, *args: Any) -> CodedFrame:
        time.sleep(self._seconds)
        return super().encode(*args)


class Stuck(SlowModel):
    """Takes for ever from its fourth frame on, after it has told its process in a file."""

    def __init__(self, told: Path) -> None:
        super().__init__(0.0)
        self._told, self._frames = told, 0

    def encode(self, *args: Any) -> CodedFrame:
        self._frames += 1
        if self._frames == 4:
            (self._told / str(os.getpid())).touch()
            time.sleep(3600)
        return super().encode(*args)


def processes_in(told: Path, count: int) -> list[int]:
    """Wait until so many processes are stuck."""
    end = time.monotonic() + 30
    while len(found := [int(path.name) for path in told.iterdir()]) < count:
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0]


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds."""
    end = time.monotonic() + 10
    while running := is_running(process):
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    return not running


def test_a_killed_worker_is_an_error_and_stops_the_others(tmp_path: Path) -> None:
    def kill() -> None:
        os.kill(processes_in(tmp_path, 2)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    reported: list[FrameRecord] = []
    with ProcessExecutor(partial(Stuck, tmp_path), 2) as executor:
        encoder = Encoder(
            SMALL, EncoderOptions(keyint=6), model=FakeModel(), executor=executor,
            coded_frame=reported.append,
        )  # fmt: skip
        with pytest.raises(VcfilterError, match="a worker process was killed"):
            for frame in [*clip(45, SMALL), None]:
                encoder.encode(frame)
    killer.join()
    assert all(gone(process) for process in processes_in(tmp_path, 2))
    assert len(reported) >= 5  # three of each; the first keyframe of the second is the first GOP's


@pytest.mark.slow
def test_closing_does_not_wait_for_what_is_coded(tmp_path: Path) -> None:
    with ProcessExecutor(partial(Stuck, tmp_path), 2) as executor:
        executor.start()
        encoder = Encoder(SMALL, EncoderOptions(keyint=6), model=FakeModel(), executor=executor)
        for frame in clip(14, SMALL):
            encoder.encode(frame)
        processes = processes_in(tmp_path, 2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert all(gone(process) for process in processes)


OWNER = """
import sys
from functools import partial
from pathlib import Path
from synthetic import clip
from test_executor import SMALL, FakeModel, Stuck
from vcfilter.codec import Encoder, ProcessExecutor
from vcfilter.options import EncoderOptions

if __name__ == "__main__":
    with ProcessExecutor(partial(Stuck, Path(sys.argv[1])), 2) as executor:
        encoder = Encoder(SMALL, EncoderOptions(keyint=6), model=FakeModel(), executor=executor)
        for frame in [*clip(45, SMALL), None]:
            encoder.encode(frame)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_processes_end_with_their_owner(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal; they say nothing of their own."""
    script, told = tmp_path / "owner.py", tmp_path / "told"
    script.write_text(OWNER)
    told.mkdir()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    owner = subprocess.Popen(
        [sys.executable, str(script), str(told)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        },
    )
    processes = processes_in(told, 2)
    if number == signal.SIGINT:
        os.killpg(owner.pid, number)
    else:
        owner.kill()
    _, said = owner.communicate(timeout=20)
    assert owner.returncode == -number
    assert all(gone(process) for process in processes)
    assert said.count("Traceback") == (number == signal.SIGINT)  # the owner's


def test_only_a_constant_qp_can_be_coded_beside_each_other() -> None:
    with ThreadExecutor(FakeModel(), 1) as executor:
        for options in ({"bitrate": 50_000}, {"quality": 35.0}):
            with pytest.raises(ConfigError, match="at a constant qp or crf only"):
                encode(executor, **options)
        with pytest.raises(ConfigError, match="cannot keep a maxrate"):
            encode(executor, qp=30, maxrate=100_000, bufsize=100_000)


def test_workers_are_checked() -> None:
    with pytest.raises(ConfigError, match="workers 0 is below 1"):
        ThreadExecutor(FakeModel(), 0)
    with pytest.raises(ConfigError, match="workers -1 is below 1"):
        ProcessExecutor(FakeModel, -1)


@pytest.mark.slow
def test_tasks_can_be_pickled() -> None:
    tasks: list[GopTask] = []

    class Noting:
        workers = 2

        def submit(self, task: GopTask, _: Any = None) -> Future[list[SegmentResult]]:
            tasks.append(pickle.loads(pickle.dumps(task)))
            future: Future[list[SegmentResult]] = Future()
            future.set_result(run_task(FakeModel(), tasks[-1]))
            return future

    for options in OPTIONS[:4]:
        assert data_of(encode(Noting(), **options)) == data_of(encode(None, **options))
    assert tasks
    assert all(task.jobs[0].first == 0 for task in tasks)


class Uneven(ThreadExecutor):
    """Its first task takes until the others are coded."""

    def __init__(self, workers: int) -> None:
        super().__init__(FakeModel(), workers)
        self.held: list[int] = []
        self.coded = 0
        self._later = threading.Event()
        self._given: list[Future[list[SegmentResult]]] = []

    def submit(
        self, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
    ) -> Future[list[SegmentResult]]:
        self.held.append(sum(not future.done() for future in self._given) + 1)
        first = not self._given
        self._given.append(self._pool.submit(self._run, task, first))
        return self._given[-1]

    def _run(self, task: GopTask, first: bool) -> list[SegmentResult]:
        if first:
            assert self._later.wait(20)
        self.coded += 1
        if self.coded == 6:
            self._later.set()
        return run_task(FakeModel(), task)


def test_few_gops_are_held_and_no_worker_waits_for_the_slowest() -> None:
    with Uneven(2) as executor:
        assert data_of(encode(executor, keyint=4)) == data_of(encode(None, keyint=4))
    assert max(executor.held) == 3
    assert executor.coded == len(executor.held) > 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("processes", OPTIONS[0]), *(("threads", each) for each in OPTIONS)],
    ids=str,
)
def test_each_coded_frame_is_reported_once(kind: str, options: dict[str, object]) -> None:
    reported: list[int] = []
    waiting: list[int] = []
    make = partial(SlowModel, 0.01 if kind == "processes" else 0.002)
    executor = ThreadExecutor(make(), 2) if kind == "threads" else ProcessExecutor(make, 2)
    with executor:
        encoder = Encoder(
            SMALL, EncoderOptions(**options), model=FakeModel(), executor=executor,
            coded_frame=lambda record: reported.append(record.pts),
        )  # fmt: skip
        packets: list[Packet] = []
        for frame in [*clip(45, SMALL, cuts=(17,)), None]:
            packets += encoder.encode(frame)
            waiting.append(len(reported) - len(packets))
    assert sorted(reported) == [packet.pts for packet in packets]
    assert waiting[-1] == 0
    if options in OPTIONS[:3]:
        assert max(waiting) > 0  # frames are reported before their GOP is finished


class Noting(FakeModel):
    """Its level tells how many threads PyTorch would use: sections carry it out of a process."""

    def encode(self, *args: Any) -> CodedFrame:
        coded = super().encode(*args)
        return replace(coded, mode=bytes((4,)), sections=(bytes((torch.get_num_threads(),)),))


@pytest.mark.slow
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


def test_weights_are_loaded_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def found(*_: object) -> FakeModel:
        seen.append(torch.get_num_threads())
        return FakeModel()

    monkeypatch.setattr("vcfilter.models.store.find", found)
    monkeypatch.setattr("vcfilter.models.store.find_by_id", found)
    before = torch.get_num_threads()
    encoder = Encoder(SMALL, runtime=Runtime(threads=2))
    packets = [p for frame in [*clip(2, SMALL), None] for p in encoder.encode(frame)]
    decoder = Decoder(runtime=Runtime(threads=2))
    assert sum(len(decoder.decode(packet)) for packet in [*packets, None]) == 2
    assert seen == [1, 1] and torch.get_num_threads() == before


def no_model() -> FakeModel:
    raise ModelMismatchError("no such model")


def test_a_model_that_a_process_lacks(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        ProcessExecutor(no_model, 1) as executor,
        pytest.raises(ModelMismatchError, match="no such"),
    ):
        encode(executor, keyint=6)
    assert capfd.readouterr().err == ""


def test_threads_that_begin_later_have_what_they_had() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(2):
            encode(None, keyint=12)
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
