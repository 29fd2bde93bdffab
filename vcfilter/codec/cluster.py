"""GOPs coded on the workers of a Dask cluster, on this machine or on others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from vcfilter.codec.executor import GopTask, pass_on, run_task
from vcfilter.codec.runtime import find_model
from vcfilter.codec.segment import FrameRecord, SegmentResult
from vcfilter.errors import ConfigError, MediaError, VcfilterError
from vcfilter.options import Runtime

CONNECT_SECONDS = 10
"""How long a scheduler, and its first worker, are waited for."""
LARGE_TASK = "4GiB"
"""From here on Dask warns of the size of a task; frames go along by value."""


class ClusterExecutor:
    """The workers of a Dask cluster; see `Executor`.

    A worker that is lost costs the GOPs that it was coding: others code them again. Workers may
    join and leave at any time. Frames go to them by value, through the scheduler.

    Args:
        address: of the scheduler, as Dask takes it ("tcp://host:8786"), or a path to its
            scheduler file (.json).
        model_id: of the model that codes; each worker finds it in its own folders.

    Raises:
        ConfigError: Dask is not installed, or a worker has another version or lacks the model.
        MediaError: no scheduler or no worker answers within `CONNECT_SECONDS`.
    """

    def __init__(self, address: str, model_id: bytes) -> None:
        try:
            import dask
            from distributed import Client
        except ImportError as error:
            raise ConfigError(
                "a cluster needs Dask: pip install distributed, here and on each worker"
            ) from error
        self._model_id = model_id
        self._wanted = describe(model_id)
        self._quiet = dask.config.set(
            {"distributed.admin.large-graph-warning-threshold": LARGE_TASK}
        )
        file = address if address.endswith(".json") else None
        try:
            self._client: Any = Client(
                None if file else address,
                scheduler_file=file,
                timeout=CONNECT_SECONDS,
                set_as_default=False,
            )
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            raise MediaError(f"no Dask scheduler answers at {address}: {_first(error)}") from error
        try:
            self._check(address)
        except BaseException:
            self._client.close()
            raise
        self._pool: Any = self._client.get_executor(pure=False)

    def _check(self, address: str) -> None:
        """Raise unless there are workers that can code for this process."""
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise MediaError(
                f"the scheduler at {address} has no worker: {_first(error)}"
            ) from error
        answers = self._client.run(describe, self._model_id, on_error="return")
        for worker, found in answers.items():
            if isinstance(found, OSError) and not isinstance(found, VcfilterError):
                continue  # it has just left
            if isinstance(found, BaseException):
                raise ConfigError(f"the worker {worker} cannot code: {_first(found)}")
            if found != self._wanted:
                raise ConfigError(f"the worker {worker} has {found}, here is {self._wanted}")

    @property
    def workers(self) -> int:
        """Threads of all workers: so many GOPs are coded at a time."""
        return max(1, int(sum(self._client.nthreads().values())))

    def submit(
        self, task: GopTask, coded_frame: Callable[[FrameRecord], None] | None = None
    ) -> Future[list[SegmentResult]]:
        """See `Executor`; results come without records of single frames before."""
        result: Future[list[SegmentResult]] = Future()
        coded = self._pool.submit(code, self._model_id, self._wanted, task)
        coded.add_done_callback(lambda done: pass_on(done, result, _told))
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)
        self._client.close()


def describe(model_id: bytes) -> str:
    """What has to be equal in a cluster: version, model, arithmetic.

    Raises:
        ModelMismatchError: the model is not here.
    """
    own = sys.modules["vcfilter"].__version__  # the package's own: it stands above this module
    info = find_model(model_id, Runtime(threads=1)).info
    return f"vcfilter {own}, model {info.id.hex()}, arithmetic {info.numerics}"


def code(model_id: bytes, wanted: str, task: GopTask) -> list[SegmentResult]:
    """Code a task on a worker.

    Raises:
        ConfigError: the worker, which may have come late, is not what is wanted.
    """
    found = describe(model_id)
    if found != wanted:
        raise ConfigError(f"a worker has {found}, wanted is {wanted}")
    return run_task(find_model(model_id, task.runtime), task)


def _told(error: BaseException) -> BaseException:
    """The error that is raised for one of a worker."""
    if isinstance(error, VcfilterError):
        return error
    return MediaError(f"the cluster could not code a GOP: {_first(error)}")


def _first(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error) or type(error).__name__).splitlines()[0]
