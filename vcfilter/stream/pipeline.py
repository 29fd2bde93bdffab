"""The two ends of a bounded pipeline: a prefetcher of items and a background writer of them.

One thread reads and decodes, another writes what is coded, and the networks run between them. Both
queues are short, so memory does not grow with the length of a video.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 5.0
_IDLE_SECONDS = 0.5
_BUSY_SECONDS = 5.0


class Prefetcher(Generic[T]):
    """Iterates over `items` in a thread of its own, at most `depth` of them ahead.

    What the iterator raises is raised where its items are taken. Closing it stops the thread,
    and closes the iterator there if it is a generator.

    Args:
        items: taken from in the other thread only.
        depth: items that wait at most.
        name: the thread's name.
    """

    def __init__(self, items: Iterable[T], depth: int, name: str = "prefetcher") -> None:
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name=name, daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                self._put((item,))
                if self._stop.is_set():
                    break
            self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[T]:
        while not self._stop.is_set():
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    def close(self) -> None:
        """Stop the thread; what waits in the queue is lost."""
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class BackgroundWriter(Generic[T]):
    """Calls `write` for each item in a thread of its own; at most `depth` items wait.

    What `write` raises is raised by the next put() or by finish(); items after it are dropped.

    Args:
        write: called in the other thread only.
        depth: items that wait at most.
        name: the thread's name.
        idle: called there when nothing came for half a second after something was written, and at
            least every five seconds while something is.
    """

    def __init__(
        self,
        write: Callable[[T], None],
        depth: int,
        name: str = "writer",
        *,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._write = write
        self._idle = idle
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(max(1, depth))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due: float | None = None  # time of the next call of idle; None: all is flushed
        while True:
            try:
                item = self._queue.get(timeout=None if due is None else _IDLE_SECONDS)
            except queue.Empty:
                due = None
                self._call(self._idle)
                continue
            if item is None:
                return
            self._call(self._write, item[0])
            now = time.monotonic()
            if due is not None and now >= due:
                due = None
                self._call(self._idle)
            elif due is None:
                due = now + _BUSY_SECONDS

    def _call(self, function: Callable[..., None], *items: T) -> None:
        if self._error is None:
            try:
                function(*items)
            except BaseException as error:
                self._error = error

    def put(self, item: T) -> None:
        """Hand over one item; waits while the queue is full."""
        self._check()
        self._queue.put((item,))

    def finish(self) -> None:
        """Wait until all is written; raises what went wrong."""
        self._end(None)
        self._check()

    def abandon(self) -> None:
        """Drop what waits and stop, silently; what is being written is waited for."""
        self._error = self._error or RuntimeError("abandoned")
        self._end(_JOIN_SECONDS)

    def _end(self, timeout: float | None) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
