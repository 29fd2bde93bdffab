"""Executors: GOPs coded in parallel, in threads or in processes.

GOPs are coded independently, so the bytes equal those of sequential coding.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, Self

from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.runtime import threads_of
from vcfilter.codec.segment import Coding, SegmentResult
from vcfilter.codec.trial import encode_tried
from vcfilter.errors import ConfigError
from vcfilter.models.base import Model
from vcfilter.options import Runtime


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

    def submit(self, task: GopTask) -> Future[list[SegmentResult]]:
        """Start coding a task, now or when a worker is free."""


def run_task(model: Model, task: GopTask) -> list[SegmentResult]:
    """Code a task alone."""
    results, state = [], None
    with threads_of(task.runtime):
        for job in task.jobs:
            coded, state = encode_tried(model, job, task.coding, task.qp, state)
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

    def submit(self, task: GopTask) -> Future[list[SegmentResult]]:
        """See `Executor`."""
        return self._pool.submit(run_task, self._model, task)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class ProcessExecutor:
    """Processes of this machine, each with a model of its own.

    Args:
        load: makes the model in each process; importable, since it is pickled.
        workers: at least 1.
    """

    def __init__(self, load: Callable[[], Model], workers: int) -> None:
        self.workers = _checked(workers)
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start_process, (load,)
        )

    def submit(self, task: GopTask) -> Future[list[SegmentResult]]:
        """See `Executor`."""
        return self._pool.submit(_run_in_process, task)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


_model_of_process: Model | None = None


def _start_process(load: Callable[[], Model]) -> None:
    global _model_of_process
    _model_of_process = load()


def _run_in_process(task: GopTask) -> list[SegmentResult]:
    assert _model_of_process is not None
    return run_task(_model_of_process, task)


def _checked(workers: int) -> int:
    if workers < 1:
        raise ConfigError(f"workers {workers} is below 1")
    return workers
