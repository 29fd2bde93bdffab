"""vcfilter models: which models there are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vcfilter.cli.arguments import add_loudness
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.models.base import ModelInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of models to a parser."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_loudness(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out models."""
    with terminal.working("loading"):
        found = available()
    if args.json:
        terminal.result(json.dumps([_values(path, info) for path, info in found], indent=2))
        return 0
    rows = [("name", "id", "architecture", "presets", "file")]
    rows += [
        (info.name, info.id.hex(), info.architecture, " ".join(info.efforts), str(path))
        for path, info in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        terminal.result("  ".join(cells).rstrip())
    return 0


def available() -> Sequence[tuple[Path, ModelInfo]]:
    """(path, what it is) of each model that `--model` finds by name."""
    from vcfilter.models.checkpoint import load_weights, read_card, shipped_weights
    from vcfilter.options import PRESETS

    path = shipped_weights()
    card = read_card(path)
    info = ModelInfo(
        id=load_weights(path)[2],
        name=Path(path).stem,
        architecture=card.get("architecture", ""),
        numerics=1,
        config={},
        efforts=PRESETS,
        card=card,
    )
    return [(Path(path), info)]


def _values(path: Path, info: ModelInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "id": info.id.hex(),
        "architecture": info.architecture,
        "presets": list(info.efforts),
        "file": str(path),
        "card": dict(info.card),
    }


COMMAND = Command(
    name="models",
    help="list the models that --model finds",
    add_arguments=add_arguments,
    run=run,
)
