"""Threads stay in the scheduling class that they were in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TASKS = "/proc/self/task"


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Undo a change of this process's scheduling class that the block makes.

    SVT-AV1 2 puts the thread that opens it, and so all that this one starts later, into the
    real-time class where it may: for root. Other threads then starve, the machine's own included.
    """
    if not hasattr(os, "sched_getscheduler") or not os.path.isdir(_TASKS):
        yield
        return
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before:
            raised = (os.SCHED_FIFO, os.SCHED_RR)
            for thread in (int(name) for name in os.listdir(_TASKS)):
                with suppress(OSError):  # it has ended
                    if os.sched_getscheduler(thread) in raised:
                        os.sched_setscheduler(thread, before, parameters)
