"""The fuzz targets hold on their own seeds and a few random mutations; `make fuzz` runs more."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fuzz import TARGETS, mutated
from fuzz.__main__ import _random

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"bitstream": 1500, "decoder": 400, "bridge": 400, "worker": 150, "sequence": 3000,
        "client": 200}  # fmt: skip


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: targets change checks for all of a process."""
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}, timeout=280,
    )  # fmt: skip


def test_every_target_has_its_file() -> None:
    inside = {path.stem for path in (ROOT / "tests" / "fuzz").glob("*.py")}
    assert inside == {*TARGETS, "streams", "__init__", "__main__"}
    assert set(RUNS) == set(TARGETS)
    done = fuzz("nothing")
    assert (done.returncode, "the targets are bitstream" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_seeds_and_mutations(target: str, tmp_path: Path) -> None:
    words = [target, "--random", "--runs", str(RUNS[target]), "--seconds", "120"]
    done = fuzz(*words, "--corpus", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert f"{RUNS[target]} inputs" in done.stdout


def test_an_input_that_fails_is_kept(tmp_path: Path) -> None:
    def run(data: bytes) -> None:
        assert b"ok" in data

    target = SimpleNamespace(seeds=lambda: [b"ok" * 9], run=run)
    args = argparse.Namespace(seed=1, seconds=20, runs=-1)
    with pytest.raises(AssertionError):
        _random(target, args, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("crash-")
    assert b"ok" not in kept.read_bytes()


def test_mutations_are_repeatable_and_differ() -> None:
    seeds = [bytes(range(100)), b"x" * 50]
    ways = [[mutated(seeds[0], random.Random(n), seeds) for n in range(200)] for _ in range(2)]
    assert ways[0] == ways[1]
    assert len(set(ways[0])) > 190
