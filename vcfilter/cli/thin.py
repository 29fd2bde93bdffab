"""vcfilter thin: a neural file with fewer quality levels or frames; nothing is coded again."""

from __future__ import annotations

import argparse

from vcfilter.cli import coding
from vcfilter.cli.arguments import (
    add_container,
    add_files,
    add_loudness,
    add_map,
    add_thinning,
)
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal

_EXAMPLES = """\
Files that were coded with encode --layers N hold N qualities. A frame's higher levels are cut off
its packet; audio, subtitles, chapters and tags stay.

examples:
  vcfilter thin in.mkv small.mkv --layers 1             the base alone
  vcfilter thin in.mkv out.mkv --bitrate 400k           as many levels as fit, chosen for each GOP
  vcfilter thin in.mkv out.mkv --temporal 4             without the frames of higher layers
  vcfilter thin *.mkv folder/ --layers 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of thin to a parser."""
    add_files(parser, "a neural video file")
    add_thinning(parser)
    add_map(parser)
    add_container(parser)
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out thin."""
    return coding.each_source(args, terminal, coding.thin, ".mkv")


COMMAND = Command(
    name="thin",
    help="leave out quality levels or frames of a neural file, without coding",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
