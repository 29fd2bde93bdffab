"""vcfilter worker: codes for programs without Python. Its code is in vcfilter/worker."""

from __future__ import annotations

import argparse

from vcfilter.cli.arguments import MEMORY_MAX, add_limits, add_model, limits, runtime
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of worker to a parser."""
    from vcfilter.worker.server import CLIENTS_MAX

    parser.add_argument(
        "--listen", metavar="SOCKET",
        help="serve many clients of the same user on a Unix socket of this name, with the model "
        "loaded; without it, serve one client whose socket is standard input",
    )  # fmt: skip
    parser.add_argument(
        "--max-clients", type=int, default=CLIENTS_MAX, metavar="N",
        help="with --listen: most connections at a time (%(default)s)",
    )  # fmt: skip
    add_model(parser)
    # A stream may go on for days, so frames and seconds have no default.
    add_limits(parser, memory=MEMORY_MAX)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out worker."""
    from vcfilter.worker.server import serve

    serve(
        path=args.listen,
        clients_max=args.max_clients,
        runtime=runtime(args),
        model=args.model,
        limits=limits(args),
        ready=lambda path: terminal.line(f"vcfilter: listens on {path} (Ctrl-C ends it)"),
        stopped=lambda: terminal.line("vcfilter: stopped"),
    )


COMMAND = Command(
    name="worker",
    help="the codec as a process, for programs without Python (FFmpeg's plugin)",
    add_arguments=add_arguments,
    run=run,
)
