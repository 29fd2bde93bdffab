"""SECURITY.md: the tests that it names are there, and its figures are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from vcfilter.bitstream import packet_size_max
from vcfilter.cli.arguments import MEMORY_MAX
from vcfilter.cli.serve import FRAMES_MAX, SECONDS_MAX
from vcfilter.codec import decoder
from vcfilter.frames import VideoFormat

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT)))


def test_each_promise_names_a_test() -> None:
    section = TEXT.split("## What holds now")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12
    assert [row for row in rows if "::test_" not in row] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}


def test_figures() -> None:
    assert f"at most {decoder._HELD_MAX} decoded frames" in TEXT
    assert f"{FRAMES_MAX:,} | {SECONDS_MAX:.0f} | {MEMORY_MAX >> 30} GiB".replace(",", " ") in TEXT
    sides = VideoFormat(width=4096, height=2304)
    assert packet_size_max(sides) // (4096 * 2304) == 8
