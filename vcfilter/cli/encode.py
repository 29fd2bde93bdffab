"""vcfilter encode: any video file to a neural one."""

from __future__ import annotations

import argparse

from vcfilter.cli import coding
from vcfilter.cli.arguments import (
    add_depth,
    add_files,
    add_image_rate,
    add_parallel,
    add_rate,
    encoder_options,
)
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal

_EXAMPLES = """\
One of --crf, --qp, --quality and --bitrate sets the rate; the default is --crf 32.

examples:
  vcfilter encode in.mp4 out.mkv                           crf 32
  vcfilter encode in.mp4 out.mkv --quality 38              about 38 dB in every segment
  vcfilter encode in.mp4 out.mkv --bitrate 800k --two-pass
  vcfilter encode in.mp4 out.mkv --workers auto            on all cores: several GOPs at a time
  vcfilter encode in.mp4 out.mkv --qp 26 --layers 3        three qualities in one file, see thin
  vcfilter encode in.mp4 out.mkv -ss 1:30 -to 1:50 -map v -map a:0
  vcfilter encode *.mp4 folder/                            all of them, in one process
  vcfilter encode videos/ coded/                            the videos of a folder likewise
  ffmpeg -i in.avi -f nut -c copy - | vcfilter encode - out.mkv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of encode to a parser."""
    add_files(parser, "any video that FFmpeg reads, or a folder of images")
    group = add_rate(parser)
    add_parallel(group)
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a run that was stopped left beside TARGET, NAME.part.EXT or "
        "NAME.partial.EXT, from its last keyframe (mkv and nut, --crf or --qp; same settings)",
    )
    add_depth(parser)
    add_image_rate(parser)
    coding.add_arguments(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out encode."""
    encoder_options(args)  # a wrong option should not wait for the networks
    return coding.each_source(args, terminal, coding.encode, ".mkv")


COMMAND = Command(
    name="encode",
    help="code the video of a file neurally; all other streams are copied",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
