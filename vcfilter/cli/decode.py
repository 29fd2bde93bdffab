"""vcfilter decode: a neural video file to any other."""

from __future__ import annotations

import argparse

from vcfilter.cli import coding
from vcfilter.cli.arguments import (
    add_codec,
    add_files,
    add_levels,
    add_look,
    add_smooth,
    smooth,
)
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal

_EXAMPLES = """\
Without -c:v the frames are coded with x264 at crf 18 (webm: VP9, nut: raw video, avi: MPEG-4
part 2, mpg: MPEG-2); the other streams are copied where the container can hold them. Standard
output gets y4m, frames only; -f nut writes raw frames together with the audio.

examples:
  vcfilter decode in.mkv out.mp4
  vcfilter decode in.mkv out.265.mkv -c:v libx265 --crf 20 --set preset=slow
  vcfilter decode in.mkv lossless.mkv -c:v ffv1
  vcfilter decode in.mkv sharp.mp4 --look sharp
  vcfilter decode *.mkv folder/
  vcfilter decode in.mkv smooth.mp4 --fps 50
  vcfilter decode in.mkv - | x264 --demuxer y4m -o out.264 -
  vcfilter decode in.mkv - -f nut | ffplay -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of decode to a parser."""
    add_files(parser, "a neural video file")
    add_codec(parser)
    add_levels(parser)
    add_smooth(parser)
    add_look(parser)
    coding.add_arguments(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out decode."""
    args.interpolation = smooth(args)
    return coding.each_source(args, terminal, coding.decode, ".mp4")


COMMAND = Command(
    name="decode",
    help="code the frames of a neural video file with another encoder",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
