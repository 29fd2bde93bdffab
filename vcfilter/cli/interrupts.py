"""Ctrl-C and SIGTERM: both interrupt, and leave a note of it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from math import inf
from types import FrameType

EXIT_SIGNAL = 128
_Handler = Callable[[int, FrameType | None], object] | int | None
_IMPORT = "<frozen importlib"
_AGAIN_SECONDS = 0.05
_ONCE_SECONDS = 0.1


class Interrupts:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt in the main thread.

    A library that is being imported may swallow the exception, or turn it into one of its own: it
    is raised when the import is done (by SIGALRM), and `seen` shows it. A signal that comes twice
    at once, as timeout and a shell may send it, counts once. A handler that is not Python's own
    stays, as does a signal that was ignored at the start (nohup, a shell's background jobs), and
    outside the main thread nothing is changed.

    Attributes:
        seen: the first signal that came, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._time = -inf
        self._outside: FrameType | None = None
        self._former: dict[int, _Handler] = {}

    def __enter__(self) -> Interrupts:
        self._outside = sys._getframe(1)
        usual = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGALRM: signal.SIG_DFL,
        }
        if threading.current_thread() is threading.main_thread():
            for number, handler in usual.items():
                if signal.getsignal(number) == handler:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.SIGALRM in self._former:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
        self._outside = None

    def check(self) -> None:
        """Raise KeyboardInterrupt now where a signal waits for the end of an import."""
        if self.seen:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    def status(self, stop: KeyboardInterrupt) -> int:
        """The exit status after an interrupt, whose `number`, if any, is the signal."""
        number: int = getattr(stop, "number", 0)
        return EXIT_SIGNAL + (number or self.seen or signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            now = time.monotonic()
            if now - self._time < _ONCE_SECONDS:
                return
            self.seen, self._time = self.seen or number, now
        if signal.SIGALRM in self._former:
            waits = self._is_importing(frame)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS if waits else 0)
            if waits:
                return
        raise KeyboardInterrupt

    def _is_importing(self, frame: FrameType | None) -> bool:
        """Whether an import is under way that began since this was entered."""
        while frame is not None and frame is not self._outside:
            if frame.f_code.co_filename.startswith(_IMPORT):
                return True
            frame = frame.f_back
        return False
