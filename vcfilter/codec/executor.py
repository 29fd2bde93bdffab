"""Executors: GOPs coded in parallel, in threads or in processes.

GOPs are coded independently, so the bytes equal those of sequential coding.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from typing import Protocol, Self

from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.runtime import threads_of
from vcfilter.codec.segment import Coding, FrameRecord, SegmentResult
from vcfilter.codec.trial import encode_tried
from vcfilter.errors import ConfigError, VcfilterError
from vcfilter.models.base import Model
from vcfilter.options import Runtime

_JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GopTask:
    """A GOP's jobs and all parameters of coding them. Can be pickled.

    Args:
        runtime: of the encoder; its threads hold where the task is coded, its device does not.
    """

    jobs: tuple[SegmentJob, ...]
    coding: Coding
    qp: int
    runtime: Runtime = field(default_factory=Runtime)


class Executor(Protocol):
    """Codes tasks; results may be waited for in any order."""

    @property
    def workers(self) -> int:
        """Tasks that are coded at a time."""

    def submit(
        self, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
    ) -> Future[list[SegmentResult]]:
        """Start coding a task, now or when a worker is free.

        Args:
            coded_frame: called when a frame of the result is coded, in any thread; executors that
                learn of whole tasks only never call it.
        """


def pass_on(
    done: Future[list[SegmentResult]],
    result: Future[list[SegmentResult]],
    told: Callable[[BaseException], BaseException],
) -> None:
    """Give what a task came to to another future.

    Args:
        told: the error that is raised instead of one.
    """
    if done.cancelled():
        result.cancel()
        return
    error = done.exception()
    if error is None:
        result.set_result(done.result())
    else:
        result.set_exception(told(error))


def run_task(
    model: Model, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
) -> list[SegmentResult]:
    """Code a task alone.

    Args:
        coded_frame: see encode_segment.
    """
    results, state = [], None
    with threads_of(task.runtime):
        for job in task.jobs:
            coded, state = encode_tried(
                model, job, task.coding, task.qp, state, coded_frame=coded_frame
            )
            results += coded
    return results


class ThreadExecutor:
    """Threads of this process, which share one model.

    Args:
        model: its methods are called from all threads.
        workers: at least 1.
    """

    def __init__(self, model: Model, workers: int) -> None:
        self.workers = _checked(workers)
        self._model = model
        self._pool = ThreadPoolExecutor(workers, "vcfilter-segment")

    def submit(
        self, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
    ) -> Future[list[SegmentResult]]:
        """See `Executor`."""
        return self._pool.submit(run_task, self._model, task, coded_frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class ProcessExecutor:
    """Processes of this machine, each with a model of its own.

    A process starts when a task comes for which none is free, or before, by `start`. Ctrl-C reaches
    this process alone; the others end with the executor, at once where they are coding, and with
    this process, however it ends. A task's result is a VcfilterError where one was killed.

    Args:
        load: makes the model in each process; importable, since it is pickled.
        workers: at least 1.
    """

    def __init__(self, load: Callable[[], Model], workers: int) -> None:
        self.workers = _checked(workers)
        context = multiprocessing.get_context("spawn")
        # Through one pipe records come; the other is never written to: its end is ours.
        self._records, self._sender = context.Pipe(duplex=False)
        self._end, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            workers, context, _start_process, (load, self._sender, context.Lock(), self._end)
        )
        self._numbers = itertools.count()
        self._unfinished: dict[int, Callable[[FrameRecord], None] | None] = {}
        self._listener = threading.Thread(target=self._listen, name="vcfilter-records", daemon=True)
        self._listener.start()

    def start(self) -> None:
        """Start all processes before there are tasks for them."""
        with _interrupts_held():
            for _ in range(self.workers):
                self._pool.submit(os.getpid)

    def submit(
        self, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
    ) -> Future[list[SegmentResult]]:
        """See `Executor`."""
        number = next(self._numbers)
        result: Future[list[SegmentResult]] = Future()
        self._unfinished[number] = coded_frame
        try:
            with _interrupts_held():
                coded = self._pool.submit(_run_in_process, number, task)
        except BrokenProcessPool as error:
            raise _lost() from error
        coded.add_done_callback(lambda done: self._finish(number, done, result))
        return result

    def _finish(
        self,
        number: int,
        done: Future[list[SegmentResult]],
        result: Future[list[SegmentResult]],
    ) -> None:
        self._unfinished.pop(number)
        pass_on(done, result, lambda e: _lost() if isinstance(e, BrokenProcessPool) else e)

    def _listen(self) -> None:
        """Pass records on until no process is left that could send one."""
        with suppress(EOFError, OSError):
            while True:
                number, record = self._records.recv()
                coded_frame = self._unfinished.get(number)
                if coded_frame is not None:
                    coded_frame(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unfinished:  # their results are not wanted any more
            self._alive.close()
        self._pool.shutdown(cancel_futures=True)
        self._alive.close()
        self._end.close()
        self._sender.close()
        self._listener.join(_JOIN_SECONDS)
        self._records.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start within the block do not see Ctrl-C; here it comes after the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lost() -> VcfilterError:
    return VcfilterError(
        "a worker process was killed, perhaps for want of memory: fewer workers or a smaller "
        "keyint need less"
    )


class _Process:
    """What a process of `ProcessExecutor` keeps between tasks."""

    model: Model
    sender: Connection[tuple[int, FrameRecord], None]
    lock: Lock
    failure: VcfilterError | None = None  # of loading the model


def _start_process(
    load: Callable[[], Model],
    sender: Connection[tuple[int, FrameRecord], None],
    lock: Lock,
    end: Connection[None, None],
) -> None:
    threading.Thread(target=_end_with, args=(end,), name="vcfilter-end", daemon=True).start()
    _Process.sender, _Process.lock = sender, lock
    try:
        _Process.model = load()
    except VcfilterError as error:  # raised by the first task, not printed here
        _Process.failure = error


def _end_with(end: Connection[None, None]) -> None:
    """End this process when the other side of a pipe is closed, as it is when its owner ends."""
    with suppress(EOFError, OSError):
        end.recv()
    os._exit(0)


def _run_in_process(number: int, task: GopTask) -> list[SegmentResult]:
    if _Process.failure is not None:
        raise _Process.failure

    def send(record: FrameRecord) -> None:
        with _Process.lock:
            _Process.sender.send((number, record))

    return run_task(_Process.model, task, send)


def _checked(workers: int) -> int:
    if workers < 1:
        raise ConfigError(f"workers {workers} is below 1")
    return workers
