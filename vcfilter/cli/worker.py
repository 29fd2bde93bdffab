"""vcfilter worker: codes for programs without Python. Its code is in vcfilter/worker."""

from __future__ import annotations

import argparse

from vcfilter.cli.arguments import MEMORY_MAX, add_limits, limits
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of worker to a parser."""
    from vcfilter.worker import server

    server.add_arguments(parser)
    # A stream may go on for days, so frames and seconds have no default.
    add_limits(parser, memory=MEMORY_MAX)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out worker."""
    from vcfilter.worker import server

    server.run(args, limits(args))


COMMAND = Command(
    name="worker",
    help="the codec as a process, for programs without Python (FFmpeg's plugin)",
    add_arguments=add_arguments,
    run=run,
    own_sigterm=True,
)
