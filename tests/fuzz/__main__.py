"""Run fuzz targets, each in a process of its own, and tell how many inputs they took.

With Atheris mutations are led by the coverage of vcfilter's Python code; without it they are
random. An input that fails is kept in the corpus folder as crash-*, and given back with --input.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fuzz import MARKS, TARGETS, mutated

INSTRUMENTED = ["vcfilter"]
TIMEOUT_SECONDS = 20  # of one input
MEMORY_MB = 2048
OUTCOMES = 4096  # that are told apart


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target (no limit)")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"), metavar="FOLDER")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run one target on it, once")
    parser.add_argument("--seed", type=int, default=1, help="of mutations (%(default)s)")
    parser.add_argument("--random", action="store_true", help="do without Atheris")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = sorted(set(args.targets) - set(TARGETS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: the targets are {', '.join(TARGETS)}")
    if args.input:
        import_module(f"fuzz.{args.targets[0]}").run(args.input.read_bytes())
        return 0
    if args.alone:
        return _alone(args)
    failed = 0
    for target in args.targets:
        done = subprocess.run(
            [sys.executable, "-m", "fuzz", target, "--alone", *_passed_on(args)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        counts = re.findall(r"Done (\d+) (?:runs )?in (\d+) second", done.stdout)
        engine = "Atheris" if _with_atheris(args) else "random"
        if done.returncode or not counts:
            failed += 1
            print(done.stdout[-6000:], flush=True)
        runs, seconds = counts[-1] if counts else ("?", "?")
        verdict = "FAILED" if done.returncode or not counts else "good"
        print(f"{target:10} {runs:>9} inputs in {seconds:>4} s ({engine}): {verdict}", flush=True)
    return 1 if failed else 0


def _passed_on(args: argparse.Namespace) -> list[str]:
    words = ["--seconds", str(args.seconds), "--runs", str(args.runs), "--seed", str(args.seed)]
    return [*words, "--corpus", str(args.corpus), *(["--random"] if args.random else [])]


def _with_atheris(args: argparse.Namespace) -> bool:
    return not args.random and find_spec("atheris") is not None


def _alone(args: argparse.Namespace) -> int:
    name = args.targets[0]
    folder: Path = args.corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    if not _with_atheris(args):
        return _random(import_module(f"fuzz.{name}"), args, folder)
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = import_module(f"fuzz.{name}")
    # Each is code of its own, so that each call is a place that is reached.
    MARKS[:] = [atheris.instrument_func(eval("lambda: None")) for _ in range(OUTCOMES)]
    for seed in target.seeds():
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [
        f"-max_total_time={args.seconds}", f"-runs={args.runs}", f"-seed={args.seed}",
        f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", "-max_len=65536",
        # Whole seeds from the start, those too that reach no new Python line (containers).
        "-len_control=0", "-keep_seed=1",
        f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder)], target.run)
    atheris.Fuzz()
    return 0


def _random(target: Any, args: argparse.Namespace, folder: Path) -> int:
    source, seeds = random.Random(args.seed), target.seeds()
    began, runs = time.monotonic(), 0
    while time.monotonic() < began + args.seconds and runs != args.runs:
        data = seeds[runs] if runs < len(seeds) else mutated(source.choice(seeds), source, seeds)
        try:
            target.run(data)
        except BaseException:
            (folder / f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise
        runs += 1
    print(f"Done {runs} runs in {round(time.monotonic() - began)} second(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
