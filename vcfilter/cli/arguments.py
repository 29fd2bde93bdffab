"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from fractions import Fraction


def seconds(text: str) -> Fraction:
    """Seconds of "90", "1:30" or "0:01:30.5".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        parts = [Fraction(part) for part in text.split(":")]
        if len(parts) > 3 or any(part < 0 for part in parts):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 90 or 1:30.5") from None
    total = Fraction(0)
    for part in parts:
        total = total * 60 + part
    return total


def add_part(group: argparse._ActionsContainer) -> None:
    """-ss and -t."""
    group.add_argument("-ss", type=seconds, metavar="TIME", help="start there: 90, 1:30, 0:01:30.5")
    group.add_argument("-t", type=seconds, metavar="TIME", help="so much of it")


def add_model(group: argparse._ActionsContainer) -> None:
    """--threads, --device and --weights."""
    group.add_argument("--threads", type=int, default=0, metavar="N", help="0: PyTorch's choice")
    group.add_argument("--device", default="auto", help="PyTorch device: cpu, cuda (%(default)s)")
    group.add_argument("--weights", metavar="FILE", help="another model than the shipped one")
