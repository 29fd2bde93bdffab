"""The client of the worker in C, against a worker that sends mostly plausible messages.

Input: the seed that the messages are made from.
"""

from __future__ import annotations

from functools import cache

from fuzz import Program, outcome


@cache
def _program() -> Program:
    return Program("hostile_worker.c", "vcf_*.c", "FOLDER/socket")


def seeds() -> list[bytes]:
    """A few numbers."""
    return [number.to_bytes(8, "big") for number in range(8)]


def run(data: bytes) -> None:
    """Play one conversation."""
    seed = int.from_bytes(data[:8], "big")
    outcome(_program().ask(b"%d\n" % seed))
