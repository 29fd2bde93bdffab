"""vcfilter models: which models there are."""

from __future__ import annotations

import argparse
import json

from vcfilter.cli.arguments import add_loudness
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of models to a parser."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out models."""
    with terminal.working("loading"):
        from vcfilter.models import store

        entries = [
            {
                "name": entry.name,
                "id": entry.id.hex(),
                "architecture": entry.architecture,
                "file": entry.path,
            }
            for entry in store.list_models()
        ]
    if args.json:
        terminal.result(json.dumps(entries, indent=2))
        return 0
    names = ("name", "id", "architecture", "file")
    rows = [names, *(tuple(entry[name] for name in names) for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    for row in rows:
        cells = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        terminal.result("  ".join(cells).rstrip())
    return 0


COMMAND = Command(
    name="models",
    help="list the models that --model finds",
    add_arguments=add_arguments,
    run=run,
)
