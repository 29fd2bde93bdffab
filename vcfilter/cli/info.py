"""vcfilter info: what a file holds, and what a model is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from vcfilter.cli.arguments import add_loudness
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError

if TYPE_CHECKING:
    from vcfilter.stream.inspect import FileSummary

_DEFAULT = ""
_EXAMPLES = """\
examples:
  vcfilter info in.mkv --frames
  vcfilter info --json *.mkv
  vcfilter info --model                  the default model; --model NAME another one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of info to a parser."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help='a media file; "-" is standard input'
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--frames", action="store_true", help="one line per coded frame")
    parser.add_argument(
        "--model", nargs="?", const=_DEFAULT, metavar="NAME",
        help="a model's card and its operations per pixel, by name, id or file",
    )  # fmt: skip
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out info."""
    from vcfilter.cli.summary import model_lines, model_values, summary_lines

    if not args.files and args.model is None:
        raise ConfigError("info needs a FILE, or --model")
    if args.model is not None:
        name = args.model or None
        if args.json:
            terminal.result(_json(model_values(name)))
        else:
            terminal.result("\n".join(model_lines(name)))
    summaries = _summaries(args.files)
    if args.json and summaries:
        found = [summary.to_dict(args.frames) for summary in summaries]
        terminal.result(_json(found[0] if len(found) == 1 else found))
        return 0
    for summary in summaries:
        terminal.result("\n".join(summary_lines(summary, args.frames)))
        for warning in summary.warnings:
            terminal.warning(f"{summary.name}: {warning}")
    return 0


def _summaries(names: list[str]) -> list[FileSummary]:
    from vcfilter.stream.inspect import inspect_file

    return [inspect_file(name) for name in names]


def _json(values: object) -> str:
    return json.dumps(values, indent=2)


COMMAND = Command(
    name="info",
    help="show streams, GOPs, frame types and sizes; or a model",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
