"""vcfilter verify: whether neural video files are whole."""

from __future__ import annotations

import argparse

from vcfilter.cli.arguments import add_decoder, add_loudness, decoder_options, runtime
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal, count_text, time_text

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of verify to a parser."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a neural video file")
    add_decoder(parser)
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out verify."""
    status = 0
    for name in args.files:
        with terminal.working("loading"):
            from vcfilter.stream.inspect import verify_file

            verdict = verify_file(
                name,
                decoder_options(args),
                lambda packets, seconds: terminal.status(
                    f"{count_text(packets, 'packet')}, up to {time_text(seconds)}"
                ),
                runtime=runtime(args),
            )
        others = ", ".join(f"{count} {kind}" for kind, count in verdict.other_packets.items())
        counts = f"{count_text(verdict.packets, 'packet')} "
        counts += f"({count_text(verdict.keyframes, 'keyframe')}), "
        counts += f"{count_text(verdict.frames, 'frame')} decoded"
        counts += f"; copied streams: {others} packets" if others else ""
        if verdict.good:
            terminal.line(f"{name}: good: {counts}")
        else:
            status = EXIT_FAILED
            terminal.error(f"{name}: bad: {'; '.join(verdict.problems)} ({counts})")
    return status


COMMAND = Command(
    name="verify",
    help="check all packets of a neural video file and decode all of it",
    add_arguments=add_arguments,
    run=run,
)
