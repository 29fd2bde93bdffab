"""The commands: finds the one that is asked for, carries it out, and says how it ended."""

from __future__ import annotations

import os
import sys

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
from vcfilter.cli.interrupts import EXIT_SIGNAL, Interrupts
from vcfilter.cli.parser import EXIT_USAGE, command_parser, top_help, top_problem
from vcfilter.cli.terminal import Terminal, logging_to, reason
from vcfilter.errors import ConfigError, VcfilterError

EXIT_FAILED = 1

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        encode, decode, transcode, interpolate, thin, info, verify, models, play, serve, evaluate,
        train, demo, worker, completion,
    )
}  # fmt: skip
"""In the order in which the help lists them."""


def run(arguments: list[str], interrupts: Interrupts) -> int:
    """Run a command; returns the exit status that `cli/main.py` states."""
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
        with logging_to(terminal):
            return command.run(args, terminal)
    except KeyboardInterrupt as stop:
        partial = getattr(stop, "partial", None)
        kept = f"; what was done is in {partial}" if partial else ""
        terminal.error(f"stopped{kept}")
        return interrupts.status(stop)
    except BrokenPipeError:
        # The reader closed the pipe; Python's own message at exit is suppressed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ConfigError as error:
        terminal.error(str(error))
        return EXIT_USAGE
    except (VcfilterError, OSError) as error:
        terminal.error(reason(error))
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
