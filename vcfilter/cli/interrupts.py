"""Ctrl-C and SIGTERM: both interrupt, and leave a note of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupts:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt in the main thread.

    A library that is being loaded may turn the exception into one of its own; `seen` shows it. A
    handler that is not Python's own stays, as does a signal that was ignored at the start (nohup, a
    shell's background jobs), and outside the main thread nothing is changed.

    Attributes:
        seen: the first signal that came, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._former: dict[int, _Handler] = {}

    def __enter__(self) -> Interrupts:
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        if threading.current_thread() is threading.main_thread():
            for number, handler in usual.items():
                if signal.getsignal(number) == handler:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._former):
            self.release(number)

    def release(self, number: int) -> None:
        """Leave a signal to whoever has it otherwise."""
        if number in self._former:
            signal.signal(number, self._former.pop(number))

    def _note(self, number: int, _: FrameType | None) -> None:
        self.seen = self.seen or number
        raise KeyboardInterrupt
