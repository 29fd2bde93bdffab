"""The entry: takes signals, then finds the command and carries it out (`cli/commands.py`).

Results go to standard output, everything else to standard error. Exit status: 0 done, 1 failed,
2 wrong usage, 128 and the signal's number where one stopped it (130 after Ctrl-C). `serve` and
`worker --listen`, which end no other way, are done then: 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vcfilter.cli.interrupts import Interrupts

_KEPT_BLOCK, _KEPT = 32 << 20, 64 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    with Interrupts() as interrupts:
        try:
            _open_standard_files()
            _keep_freed_memory()
            from vcfilter.cli.commands import run

            interrupts.check()
            return run(list(sys.argv[1:] if argv is None else argv), interrupts)
        except KeyboardInterrupt as stop:  # before a command could say so itself
            print("vcfilter: stopped", file=sys.stderr)
            return interrupts.status(stop)


def _keep_freed_memory() -> None:
    """Leave freed blocks up to 32 MiB with the process, 64 MiB in all; glibc would return them.

    What a frame frees the next one needs: to map it anew, page by page, takes up to a seventh of
    a decoder's CPU time. Threads share what is left: frames that are coded beside each other take a
    fifth less memory, and no more time. What the environment sets for glibc holds.
    """
    if "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_ARENA_MAX, 1)


def _open_standard_files() -> None:
    """Open those of the first three descriptors that are closed: a file that is written must not
    become the one that libraries report to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
