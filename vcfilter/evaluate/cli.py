"""The evaluate command."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vcfilter.errors import ConfigError
from vcfilter.evaluate.anchors import parse_anchor
from vcfilter.evaluate.clips import prepare
from vcfilter.evaluate.report import Evaluation, write_report
from vcfilter.evaluate.runner import Codec, Neural, run_curves
from vcfilter.frames import QP_MAX
from vcfilter.options import DEFAULT_PRESET, KEYINT_MAX, PRESETS

DEFAULT_AGAINST = "libx264:medium,libx265:medium,libsvtav1:8"


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of evaluate to a parser."""
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="video files to code")
    parser.add_argument(
        "--out", default="evaluation", metavar="DIR", help="where the report goes (%(default)s)"
    )
    parser.add_argument(
        "--qp", type=_numbers, default=(20, 26, 32, 38), metavar="N,...",
        help="vcfilter's points, at least four (20,26,32,38)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, metavar="NAME,...",
        help=f"vcfilter's presets, out of {', '.join(PRESETS)} (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keyint", type=int, default=12, metavar="N",
        help="largest keyframe interval of every codec, in frames (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--intra", action="store_true", help="compare keyframes alone (interval 1) as well"
    )
    parser.add_argument(
        "--against", default=DEFAULT_AGAINST, metavar="CODEC:PRESET,...",
        help="codecs to compare with; the first is the anchor of the BD-rates. "
        "Options may follow: libx264:slow:tune=psnr:crf=20/26/32/38 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--anchors-only", action="store_true", help="leave vcfilter out, fill the cache"
    )
    parser.add_argument("--weights", metavar="FILE", help="another model than the shipped one")
    parser.add_argument("--device", default="auto", help="PyTorch device of vcfilter (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N",
        help="threads of every codec; 0 leaves it to each (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames")
    parser.add_argument(
        "--cache", metavar="DIR", help=f"where results are kept ({default_cache()})"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no line per point")


def run(args: argparse.Namespace) -> int:
    """Carry out evaluate; errors are raised as VcfilterError."""
    if not 1 <= args.keyint <= KEYINT_MAX:
        raise ConfigError(f"keyint {args.keyint} is outside 1 to {KEYINT_MAX}")
    if args.frames is not None and args.frames < 1:
        raise ConfigError(f"frames {args.frames} is less than 1")
    if args.threads < 0:
        raise ConfigError(f"threads {args.threads} is negative")
    anchors = [parse_anchor(text) for text in args.against.split(",") if text]
    codecs: list[Codec] = []
    if not args.anchors_only:
        for preset in args.preset.split(","):
            if preset not in PRESETS:
                raise ConfigError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
            codecs.append(
                Neural(preset=preset, qps=args.qp, weights=args.weights, device=args.device)
            )
    codecs += anchors
    if not codecs:
        raise ConfigError("nothing to run: --anchors-only without --against")
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    keyints = sorted({args.keyint, 1} if args.intra else {args.keyint}, reverse=True)
    clips = [prepare(path, cache, args.frames) for path in args.clips]
    names = [clip.name for clip in clips]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"two clips are called {', '.join(sorted(twice))}: rename one")

    def show(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    curves = run_curves(clips, codecs, keyints, cache, args.threads, show)
    anchor = anchors[0].label if anchors else codecs[0].label
    evaluation = Evaluation(
        clips=tuple(clips),
        tested=tuple(codecs),
        curves=tuple(curves),
        anchor=anchor,
        threads=args.threads,
    )
    print(write_report(evaluation, Path(args.out)))
    return 0
