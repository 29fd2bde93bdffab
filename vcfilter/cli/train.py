"""vcfilter train: from folders of videos to a model. Its code is in vcfilter/train."""

from __future__ import annotations

import argparse

from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of train to a parser; imports PyTorch."""
    from vcfilter.train import cli

    cli.add_arguments(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out train."""
    from vcfilter.train import cli

    return cli.run(args)


COMMAND = Command(
    name="train",
    help="train a model on a folder of videos",
    add_arguments=add_arguments,
    run=run,
)
