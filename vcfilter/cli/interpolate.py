"""vcfilter interpolate: more frames per second, or slow motion."""

from __future__ import annotations

import argparse
import os

from vcfilter.cli import coding
from vcfilter.cli.arguments import (
    add_codec,
    add_decoder,
    add_filter,
    add_image_rate,
    add_look,
    add_loudness,
    add_output,
    add_rate,
    add_streams,
    frame_rate,
    is_rate_given,
)
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError
from vcfilter.interpolation.options import CUTS, DUPLICATES, FACTORS, InterpolationOptions

_EXAMPLES = """\
The frames of the source stay as they are, new ones stand between them at exact fractions of time;
audio, subtitles and chapters are copied. The target is coded as by transcode: neurally in mkv, nut,
avi and mov unless -c:v names another encoder (-c:v ffv1 keeps originals in 4:2:0 bit by bit).

A source may be a folder or pattern of image files, a target a folder or pattern of PNG files.
Originals among PNG files are copied byte for byte, with --factor or --slow and --dup keep.

examples:
  vcfilter interpolate in.mp4 out.mp4 --factor 2               25 to 50 frames/s
  vcfilter interpolate in.mkv out.mkv --fps 60 -c:v libx264    24 to 60
  vcfilter interpolate in.mp4 slow.mp4 --slow 4                four times as long, without audio
  vcfilter interpolate frames/ more/ --factor 4                image files
  vcfilter interpolate frames/ more/ --factor 4 --resume       after Ctrl-C
  vcfilter interpolate 'frames/%05d.png' out.mp4 --factor 2 --rate 15
  vcfilter interpolate in.mkv - --factor 2 -f nut | ffplay -
"""
_PRESETS = {
    **dict.fromkeys(("ultrafast", "veryfast", "fast"), "fast"),
    "medium": "medium",
    **dict.fromkeys(("slow", "veryslow"), "slow"),
}
"""Of the search for motion, by the one of coding: --preset means both."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of interpolate to a parser."""
    parser.add_argument(
        "source", metavar="SOURCE",
        help='any video file, neural or not, or image files; "-" is standard input',
    )  # fmt: skip
    parser.add_argument(
        "target", metavar="TARGET",
        help='file to write; a folder or a pattern gets PNG files; "-" is standard output',
    )  # fmt: skip
    group = parser.add_argument_group("which frames")
    rate = group.add_mutually_exclusive_group(required=True)
    low, high = FACTORS
    rate.add_argument("--factor", type=int, metavar="N", help=f"frames per frame, {low} to {high}")
    rate.add_argument(
        "--fps", type=frame_rate, metavar="RATE", help="frames per second: 60, 60000/1001"
    )
    rate.add_argument(
        "--slow", type=int, metavar="N",
        help=f"slow motion, {low} to {high} times as long; other streams are left out",
    )  # fmt: skip
    group.add_argument(
        "--dup", choices=DUPLICATES, default="keep",
        help="repeated frames stay (keep) or are replaced by even motion (fill) (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--cut", choices=CUTS, default="nearest",
        help="at a scene cut the nearer frame is repeated, or each side is carried on by its own "
        "motion (%(default)s)",
    )  # fmt: skip
    add_image_rate(group)
    group.add_argument(
        "--names", choices=("numbers", "eqvi"), default="numbers",
        help="of PNG files: 000000.png, ..., or as EQVI: those of the source, and 001_0.png, "
        "001_1.png, ... for the frames behind 001.png (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="FILE",
        help="of the learned part, as train --phase between, or between-p for --look sharp, writes "
        "them (the package's own, if it brings any)",
    )  # fmt: skip
    add_look(group)
    group.add_argument(
        "--resume", action="store_true",
        help="PNG files that an earlier run left in the target stay, the others are made",
    )  # fmt: skip
    add_codec(parser, crf=False)
    add_rate(parser)
    add_streams(parser)
    add_filter(parser)
    add_output(parser)
    add_loudness(parser)
    add_decoder(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out interpolate."""
    preset = args.preset or "medium"
    if preset not in _PRESETS:
        raise ConfigError(f"preset {preset!r} is not one of {', '.join(_PRESETS)}")
    args.interpolation = InterpolationOptions(
        factor=args.factor,
        fps=args.fps,
        slow=args.slow,
        preset=_PRESETS[preset],
        duplicates=args.dup,
        cut=args.cut,
        weights=args.weights,
        look=args.look,
    )
    if args.codec == "copy":
        raise ConfigError("-c:v copy codes nothing: new frames have to be coded")
    with terminal.working("loading"):
        _carry_out(args, terminal)
    return 0


def _carry_out(args: argparse.Namespace, terminal: Terminal) -> None:
    from vcfilter.stream.containers import NEURAL_CONTAINERS, container_of
    from vcfilter.stream.images import folder_pattern, is_image_target

    source: str = args.source
    if os.path.isdir(source):
        source = folder_pattern(source)
    if is_image_target(args.target):
        if is_rate_given(args, but=("preset",)):
            raise ConfigError("PNG files take no options of neural coding")
        coding.decode(args, terminal, source, args.target)
        return
    if args.resume:
        raise ConfigError("--resume goes on with a folder of PNG files: give one as target")
    if args.names == "eqvi":
        raise ConfigError("--names eqvi are names of PNG files: give a folder as target")
    default = "matroska" if args.codec == "vcfilter" else "yuv4mpegpipe"
    container = container_of(args.target, args.format, default)
    neural = args.codec is None and container in NEURAL_CONTAINERS
    if neural and args.target == "-":
        neural = is_rate_given(args, but=("preset",))
    if args.codec == "vcfilter" or neural:
        coding.encode(args, terminal, source, args.target)
        return
    coding.check_no_rate(args, but=("preset",))
    coding.decode(args, terminal, source, args.target)


COMMAND = Command(
    name="interpolate",
    help="more frames per second, or slow motion",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
