"""What a command of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from vcfilter.cli.terminal import Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: `vcfilter NAME`.

    Args:
        name: as it is typed.
        help: one line for the list of commands, without a full stop.
        add_arguments: adds the command's arguments to an empty parser.
        run: carries the command out and returns the exit status; errors are VcfilterErrors.
        examples: shown below the command's help.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Terminal], int]
    examples: str = ""
