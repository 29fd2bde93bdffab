"""The command line: finds the command, carries it out, and says how it ended.

Results go to standard output, everything else to standard error. Exit status: 0 done, 1 failed,
2 wrong usage, 128 and the signal's number where one stopped it (130 after Ctrl-C).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from vcfilter import __version__
from vcfilter.cli import (
    completion,
    decode,
    demo,
    encode,
    evaluate,
    info,
    interpolate,
    models,
    play,
    serve,
    thin,
    train,
    transcode,
    verify,
    worker,
)
from vcfilter.cli.command import Command
from vcfilter.cli.interrupts import Interrupts
from vcfilter.cli.parser import EXIT_USAGE, command_parser, top_help, top_problem
from vcfilter.cli.terminal import Terminal, logging_to
from vcfilter.errors import ConfigError, VcfilterError

EXIT_FAILED, EXIT_SIGNAL = 1, 128
_KEPT_BLOCK, _KEPT = 32 << 20, 64 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        encode, decode, transcode, interpolate, thin, info, verify, models, play, serve, evaluate,
        train, demo, worker, completion,
    )
}  # fmt: skip
"""In the order in which the help lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    _open_standard_files()
    _keep_freed_memory()
    with Interrupts() as interrupts:
        return _run(list(sys.argv[1:] if argv is None else argv), interrupts)


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


def _run(arguments: list[str], interrupts: Interrupts) -> int:
    terminal = Terminal()
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            terminal.result(top_help(COMMANDS.values()).rstrip())
            return 0
        if arguments[0] == "--version":
            terminal.result(f"vcfilter {__version__}")
            return 0
        command = COMMANDS.get(arguments[0])
        if command is None:
            terminal.error(top_problem(arguments, COMMANDS.values()))
            return EXIT_USAGE
        args = command_parser(command).parse(arguments[1:])
        terminal = Terminal(
            quiet=getattr(args, "quiet", False),
            verbose=getattr(args, "verbose", False),
            json_lines=getattr(args, "progress", "auto") == "json",
        )
        if command.own_sigterm:
            interrupts.release(signal.SIGTERM)
        with logging_to(terminal):
            return command.run(args, terminal)
    except KeyboardInterrupt as stop:
        partial = getattr(stop, "partial", None)
        kept = f"; what was done is in {partial}" if partial else ""
        terminal.error(f"stopped{kept}")
        return EXIT_SIGNAL + (interrupts.seen or signal.SIGINT)
    except BrokenPipeError:
        # The reader closed the pipe; Python's own message at exit is suppressed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ConfigError as error:
        terminal.error(str(error))
        return EXIT_USAGE
    except (VcfilterError, OSError) as error:
        terminal.error(str(error))
        return EXIT_FAILED
    except MemoryError:
        terminal.error("out of memory")
        return EXIT_FAILED
    except Exception as error:
        if interrupts.seen:  # a library that was being loaded turned it into an error of its own
            terminal.error("stopped")
            return EXIT_SIGNAL + interrupts.seen
        if terminal.verbose:
            raise
        text = str(error).strip().splitlines()
        terminal.error(f"{type(error).__name__}: {text[0] if text else 'no reason given'}")
        return EXIT_FAILED
