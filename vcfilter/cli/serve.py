"""vcfilter serve: a web page that plays neural video files. Its code is in vcfilter/serve."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vcfilter.cli.arguments import (
    MEMORY_MAX,
    add_limits,
    add_loudness,
    add_model,
    decoder_options,
    runtime,
)
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal

_EXAMPLES = """\
examples:
  vcfilter serve in.mkv
  vcfilter serve folder/ --port 9000
  vcfilter serve in.mkv --original in.mp4     compare with x264 coded from the original
  vcfilter serve folder/ --host 0.0.0.0       for the whole network: there is no password
"""

FRAMES_MAX = 216_000
SECONDS_MAX = 3600.0
"""What one segment may cost: a request has a decoder of its own. A video file of one GOP is one
segment: an hour of it at 60 frames/s still plays. No viewer waits an hour for a segment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of serve to a parser."""
    parser.add_argument("source", metavar="FILE_OR_FOLDER", help="a neural video file, or a folder")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=8350, metavar="N", help="port; 0: any free one (%(default)s)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="also answer requests under this host name; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--original", metavar="FILE_OR_FOLDER",
        help="what the files were coded from (in a folder, files of the same name): "
        "the comparison then codes it with x264",
    )  # fmt: skip
    add_model(parser)
    add_limits(parser, frames=FRAMES_MAX, seconds=SECONDS_MAX, memory=MEMORY_MAX)
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out serve until it is stopped."""
    with terminal.working("loading"):
        from vcfilter.serve.server import serve

    ended = serve(
        Path(args.source),
        decoder_options(args),
        runtime=runtime(args),
        host=args.host,
        port=args.port,
        names=tuple(args.allow_host),
        original=Path(args.original) if args.original else None,
        ready=lambda address: terminal.line(f"vcfilter: {address} (Ctrl-C ends it)"),
    )
    terminal.line("vcfilter: stopped")
    if not ended:
        os._exit(0)  # the interpreter's end would wait for, or abort in, the thread that computes
    return 0


COMMAND = Command(
    name="serve",
    help="a web page that plays neural video files in any browser",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
