"""vcfilter transcode: any direction, neural to neural too."""

from __future__ import annotations

import argparse

from vcfilter.cli import coding
from vcfilter.cli.arguments import add_codec, add_files, add_parallel, add_rate, is_rate_given
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError

_EXAMPLES = """\
-c:v vcfilter codes neurally, -c:v copy copies a neural stream as it is, any other -c:v codes with
that encoder, whatever the source. Without -c:v the target is neural where its container can hold a
neural stream (mkv, nut, avi, mov), and otherwise coded as decode does. Frames are 4:2:0 of 8 or 10
bit on the way; where both sides are ordinary, ffmpeg keeps other formats.

examples:
  vcfilter transcode in.mkv smaller.mkv --qp 40          neural to neural
  vcfilter transcode in.mkv out.mp4                      as decode
  vcfilter transcode in.mp4 out.mkv                      as encode
  vcfilter transcode in.mp4 out.mkv -c:v libx265 --crf 24  with another encoder
  vcfilter transcode in.mkv out.nut -c:v copy            the coded packets in another container
  vcfilter transcode in.mkv out.mkv -c:v copy --layers 1  their base alone, as thin does
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of transcode to a parser."""
    add_files(parser, "any video file, neural or not")
    add_codec(parser, crf=False)
    add_parallel(add_rate(parser))
    coding.add_arguments(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out transcode."""
    return coding.each_source(args, terminal, _one, ".mkv")


def _one(args: argparse.Namespace, terminal: Terminal, source: str, target: str) -> None:
    from vcfilter.stream.containers import NEURAL_CONTAINERS, container_of
    from vcfilter.stream.images import is_image_target

    if args.codec == "copy":
        _check_copy(args)
        coding.copy(args, terminal, source, target)
        return
    container = None
    if not is_image_target(target):
        container = container_of(target, args.format, "matroska")
    if args.codec == "vcfilter" or (args.codec is None and container in NEURAL_CONTAINERS):
        coding.encode(args, terminal, source, target)
        return
    if args.workers is not None or args.cluster is not None:
        raise ConfigError("workers and a cluster code neurally: give -c:v vcfilter, or TARGET.mkv")
    coding.check_no_rate(args, but=("crf",))
    args.format = container or args.format
    coding.decode(args, terminal, source, target, any_source=True)


def _check_copy(args: argparse.Namespace) -> None:
    """Raise ConfigError where an option asks for what copying cannot do."""
    if args.ss is not None or args.t is not None or args.to is not None:
        raise ConfigError("-c:v copy takes whole files; ffmpeg -ss TIME -c copy cuts at keyframes")
    if args.metadata:
        raise ConfigError(
            "-c:v copy keeps the tags; ffmpeg -c copy -metadata KEY=VALUE sets others"
        )
    asked = args.crf is not None or args.pix_fmt or args.set or args.video_filter
    asked = asked or args.workers is not None or args.cluster is not None
    if is_rate_given(args) or asked:
        raise ConfigError("-c:v copy codes nothing: it takes no options of coding")


COMMAND = Command(
    name="transcode",
    help="code in any direction, also from neural to neural",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
