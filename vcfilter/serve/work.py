"""Work that runs while a request waits for it, once for all that wait, and is dropped otherwise."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

CLOSE_SECONDS = 10.0
"""How long closing waits for the work at hand, which ends between two frames."""

_LAST = 1 << 30  # urgency of the end: behind all work, which is then dropped

Run = Callable[[Callable[[], bool]], bytes]
"""Makes a result; calls its argument between frames, and raises StoppedError where that is True:
no request waits any longer."""


class StoppedError(Exception):
    """The work was stopped because no request waits for it."""


@dataclass(slots=True, eq=False)
class Work:
    """One piece of work.

    Attributes:
        key: of the result; equal keys share one piece of work.
        future: the result, once it is there.
        waiting: number of requests that wait for it.
        cached: the result was there before the request.
    """

    key: Hashable
    run: Run
    future: Future[bytes] = field(default_factory=Future)
    waiting: int = 0
    cached: bool = False

    def is_unwanted(self) -> bool:
        """Whether no request waits any longer."""
        return self.waiting == 0


class WorkQueue:
    """Does one piece of work at a time in a thread of its own, and keeps the latest results.

    The networks use all cores already: two at a time would only make both slower.

    Args:
        cache_bytes: of results that are kept.
        name: the thread's name.
    """

    def __init__(self, cache_bytes: int, name: str) -> None:
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[Hashable, bytes] = OrderedDict()
        self._size = 0
        self._open: dict[Hashable, Work] = {}
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._queue: queue.PriorityQueue[tuple[int, int, Work | None]] = queue.PriorityQueue()
        self.done = 0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def ask(self, key: Hashable, run: Run, urgency: int = 0) -> Work:
        """Ask for a result; leave() must follow, whether it was waited for or not.

        Args:
            urgency: lower comes first.
        """
        with self._lock:
            kept = self._cache.get(key)
            if kept is not None:
                self._cache.move_to_end(key)
                work = Work(key, run, waiting=1, cached=True)
                work.future.set_result(kept)
                return work
            found = self._open.get(key)
            if found is not None:
                found.waiting += 1
                return found
            work = Work(key, run, waiting=1)
            if self._closed:
                work.future.cancel()
                return work
            self._open[key] = work
            self._queue.put((urgency, next(self._order), work))
            return work

    def has(self, key: Hashable) -> bool:
        """Whether a result is there already."""
        with self._lock:
            return key in self._cache

    def leave(self, work: Work) -> None:
        """Wait no longer; work that no request waits for is stopped, or not begun."""
        with self._lock:
            work.waiting -= 1
            if work.is_unwanted() and self._open.get(work.key) is work:
                del self._open[work.key]

    def stop(self) -> None:
        """Drop all work, that at hand between two frames. Takes no lock: a signal may call it."""
        self._closed = True

    def close(self) -> bool:
        """Drop all work; returns whether the thread has ended within CLOSE_SECONDS.

        A thread that still computes when the interpreter ends brings the process down.
        """
        self.stop()
        self._queue.put((_LAST, next(self._order), None))
        self._thread.join(CLOSE_SECONDS)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (work := self._queue.get()[2]) is not None:
            if self._is_dropped(work):
                work.future.cancel()
                continue
            try:
                result = work.run(partial(self._is_dropped, work))
            except StoppedError:
                self._close(work, None)
                work.future.cancel()
                continue
            except BaseException as error:
                self._close(work, None)
                work.future.set_exception(error)
                continue
            self._close(work, result)
            work.future.set_result(result)

    def _is_dropped(self, work: Work) -> bool:
        return self._closed or work.is_unwanted()

    def _close(self, work: Work, result: bytes | None) -> None:
        with self._lock:
            self.done += 1
            if self._open.get(work.key) is work:
                del self._open[work.key]
            if result is None or len(result) > self._cache_bytes:
                return
            self._cache[work.key] = result
            self._size += len(result)
            while self._size > self._cache_bytes:
                self._size -= len(self._cache.popitem(last=False)[1])
