"""vcfilter evaluate: compare with other codecs. Its code is in vcfilter/evaluate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vcfilter.cli.arguments import add_model, runtime
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import QP_MAX
from vcfilter.options import DEFAULT_PRESET, PRESETS

DEFAULT_AGAINST = "libx264:medium,libx265:medium,libsvtav1:8"
_EXAMPLES = """\
examples:
  vcfilter evaluate clips/*.mp4 --out report
  vcfilter evaluate clips/*.mp4 --keyint default
  vcfilter evaluate clips/*.mp4 --preset fast:tune=zerolatency --keyint 250 \\
      --against libx264:medium:tune=zerolatency
  vcfilter evaluate clips/*.mp4 --layers 3 --qp 26
  vcfilter evaluate clips/*.mp4 --looks --qp 32,38 --against libx264:medium,libx265:medium
  vcfilter evaluate clips/*.mp4 --intra --against libx264:medium,libx265:slow:tune=psnr
  vcfilter evaluate --interpolate clips/*.mp4 --factor 4
"""


def default_cache() -> Path:
    """$XDG_CACHE_HOME/vcfilter/evaluate, or under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vcfilter" / "evaluate"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers joined by ','") from None
    if any(not 0 <= number <= QP_MAX for number in numbers):
        raise argparse.ArgumentTypeError(f"a qp in {text!r} is outside 0 to {QP_MAX}")
    return numbers


def _interval(text: str) -> int:
    if text == "default":
        return 0
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of frames nor 'default'")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of evaluate to a parser."""
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="video files to code")
    parser.add_argument(
        "--out", default="evaluation", metavar="DIR", help="where the report goes (%(default)s)"
    )
    parser.add_argument(
        "--qp", type=_numbers, default=(20, 26, 32, 38), metavar="N,...",
        help="vcfilter's points, at least four (20,26,32,38)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, metavar="NAME,...",
        help=f"vcfilter's presets, out of {', '.join(PRESETS)}. Settings may follow: "
        "medium:structure=low-delay; crf=20/26/32/38 takes the place of --qp (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keyint", type=_interval, default=12, metavar="N",
        help="largest keyframe interval of every codec, in frames, or 'default': each codec's own "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--intra", action="store_true", help="compare keyframes alone (interval 1) as well"
    )
    parser.add_argument(
        "--layers", type=int, metavar="N",
        help="compare N quality levels of one file with files of one level instead; the best has "
        "the lowest --qp",
    )  # fmt: skip
    parser.add_argument(
        "--layer-step", type=int, default=6, metavar="N",
        help="distance of quality levels in qps (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--looks", action="store_true",
        help="compare the looks of decoded frames, and the codecs of --against at equal bytes",
    )  # fmt: skip
    parser.add_argument(
        "--against", default=DEFAULT_AGAINST, metavar="CODEC:PRESET,...",
        help="codecs to compare with; the first is the anchor of the BD-rates. "
        "Options may follow: libx264:slow:tune=psnr:crf=20/26/32/38 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--anchors-only", action="store_true", help="leave vcfilter out, fill the cache"
    )
    group = parser.add_argument_group("frame interpolation instead of coding")
    group.add_argument(
        "--interpolate", action="store_true",
        help="leave frames out, make them again, compare; --preset fast, medium or slow",
    )  # fmt: skip
    group.add_argument(
        "--factor", type=int, default=2, metavar="N",
        help="every Nth frame is given, 2 to 8 (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="FILE",
        help="of the learned part of interpolation, for the row trained (the package's own)",
    )  # fmt: skip
    group.add_argument(
        "--rife", metavar="PROGRAM",
        help="compare with RIFE as well: rife-ncnn-vulkan, or a program with its arguments",
    )  # fmt: skip
    group.add_argument(
        "--reds", metavar="DIR",
        help="EQVI's table on REDS_VTSR's validation set: DIR/val_15fps and DIR/val_30fps "
        "(--factor 4: val_60fps)",
    )  # fmt: skip
    add_model(parser)
    parser.set_defaults(threads=1)  # of every codec: what is compared is work, not cores
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames")
    parser.add_argument(
        "--cache", metavar="DIR", help=f"where results are kept ({default_cache()})"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no line per point")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out evaluate."""
    if args.interpolate or args.reds:
        return _interpolate(args, terminal)
    if not args.clips:
        raise ConfigError("no clip is named")
    with terminal.working("loading"):
        try:
            from vcfilter.evaluate.comparison import Comparison, compare_codecs
        except ImportError as error:
            raise MediaError(
                f"evaluate needs the package {error.name}: install vcfilter with the extra evaluate"
            ) from error

        comparison = Comparison(
            clips=tuple(map(Path, args.clips)),
            out=Path(args.out),
            cache=Path(args.cache).expanduser() if args.cache else default_cache(),
            presets=() if args.anchors_only else tuple(args.preset.split(",")),
            qps=args.qp,
            against=tuple(text for text in args.against.split(",") if text),
            keyint=args.keyint,
            intra=args.intra,
            frames=args.frames,
            model=args.model,
            device=args.device,
            threads=args.threads,
        )
        if args.layers is not None:
            from vcfilter.evaluate.layers import evaluate_layers

            text = evaluate_layers(comparison, args.layers, args.layer_step, terminal.line)
        elif args.looks:
            from vcfilter.evaluate.looks import evaluate_looks

            text = evaluate_looks(comparison, terminal.line)
        else:
            text = compare_codecs(comparison, terminal.line)
    terminal.result(text)
    return 0


def _interpolate(args: argparse.Namespace, terminal: Terminal) -> int:
    """Compare ways to make frames between frames."""
    if not args.clips and not args.reds:
        raise ConfigError("no clip is named")
    with terminal.working("loading"):
        from vcfilter.evaluate.interpolation import compare_interpolation, compare_reds

        options = {
            "factor": args.factor,
            "preset": args.preset,
            "weights": args.weights,
            "runtime": runtime(args),
            "report": terminal.line,
        }
        texts = []
        if args.clips:
            cache = Path(args.cache).expanduser() if args.cache else default_cache()
            clips = [Path(each) for each in args.clips]
            texts.append(
                compare_interpolation(
                    clips, cache, Path(args.out), frames=args.frames, rife=args.rife, **options
                )
            )
        if args.reds:
            texts.append(compare_reds(Path(args.reds), **options))
    terminal.result("\n\n".join(texts))
    return 0


COMMAND = Command(
    name="evaluate",
    help="compare with x264, x265 and SVT-AV1: one report",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
