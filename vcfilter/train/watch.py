"""What stands beside the loop: the guard against a broken loss, the log, a wish to stop."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from vcfilter.errors import ConfigError, VcfilterError

MEMORY = 200  # steps that tell what a figure usually is
RECENT = 10  # steps that tell what it is now
ENOUGH = 40  # steps before which no jump is seen: a new phase settles first
JUMP = 1.0  # rise of a mean log cost, at least: 2.7 times the bits and errors
DEVIATIONS = 4.0  # and in multiples of the usual deviation, since single batches differ much
CONTEST = ("adversarial", "discriminator")  # where one gains the other loses: may jump


class TrainingError(VcfilterError, ArithmeticError):
    """Training went wrong and stopped; the last good state is kept."""


class Guard:
    """Sees a loss that is not finite, or that jumps.

    Each figure is compared with its own past: the mean of the last few steps with the median of
    those before.
    """

    def __init__(self) -> None:
        self.past: dict[str, deque[float]] = {}

    def check(self, figures: Mapping[str, float], step: int) -> bool:
        """Take note of a step's losses; returns whether all is calm, so that a state may be kept.

        Raises:
            TrainingError: one of them is not finite, or has jumped.
        """
        calm = True
        for name, value in figures.items():
            if not math.isfinite(value):
                raise TrainingError(f"the loss {name!r} is {value} at step {step}")
            if name in CONTEST:
                continue
            past = self.past.setdefault(name, deque(maxlen=MEMORY))
            past.append(value)
            if len(past) < ENOUGH:
                continue
            values = np.array(past)
            before, now = values[:-RECENT], values[-RECENT:].mean()
            usual = np.median(before)
            deviation = np.median(np.abs(before - usual))
            rise = (now - usual) / max(JUMP, DEVIATIONS * deviation)
            if rise > 1:
                raise TrainingError(
                    f"the loss {name!r} jumped from {usual:.2f} to {now:.2f} at step {step}"
                )
            calm = calm and bool(rise < 0.5)
        return calm

    def state(self) -> dict[str, list[float]]:
        """What it remembers."""
        return {name: list(past) for name, past in self.past.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Remember what `state` gave."""
        self.past = {name: deque(past, maxlen=MEMORY) for name, past in state.items()}


class Log:
    """A JSON object per line and a line on the terminal, every so many steps.

    Args:
        path: of the file; lines from beyond the point where training goes on are dropped.
        phase: name shown in each line. number: of the phase in the plan.
        every: steps averaged in a line. silent: write nothing (all processes but the first).
        step: where training goes on.
    """

    def __init__(
        self, path: Path, phase: str, number: int, every: int, silent: bool, step: int
    ) -> None:
        self.path, self.phase, self.number = path, phase, number
        self.every, self.silent = every, silent
        self.sums: dict[str, list[float]] = {}
        if path.exists() and not silent:
            kept = [r for r in read_log(path) if (r.get("number", 0), r["step"]) <= (number, step)]
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in kept))
            part.replace(path)

    def add(self, figures: Mapping[str, float], step: int, steps: int, seconds: float) -> None:
        """Take a step's figures; writes a line when it is time. steps: 0 = not known."""
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value)
        if (step % self.every and step != steps) or self.silent:
            return
        means = {name: round(float(np.mean(v)), 4) for name, v in self.sums.items()}
        self.sums.clear()
        head = {"phase": self.phase, "number": self.number, "step": step}
        with self.path.open("a") as file:
            file.write(json.dumps(head | means | {"seconds": round(seconds, 1)}) + "\n")
        shown = "  ".join(
            f"{name} {value:.3f}" for name, value in means.items() if not name.endswith("_bpp")
        )
        of = f"/{steps}" if steps else ""
        print(f"{self.phase} {step}{of}  {shown}  {seconds:.0f} s", file=sys.stderr, flush=True)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; a last one that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_notes(state: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a state says of itself.

    Raises:
        ConfigError: it is no state, or one of another training.
    """
    try:
        notes: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)["notes"]
        known = notes["about"]
    except Exception as error:  # whatever unpickling foreign bytes may raise
        raise ConfigError(f"{str(state)!r} is no state of a training: {error}") from error
    for name, value in about.items():
        if known.get(name) != value:
            raise ConfigError(
                f"{str(state)!r} belongs to a training with {name} {known.get(name)!r}, "
                f"not {value!r}: name another --state, or remove it"
            )
    return notes


class Stop:
    """Whether a signal asks to stop."""

    asked: int | None = None

    def interrupt(self, state: Path) -> KeyboardInterrupt:
        """What ends a training that was asked to; `partial` says where its state is kept."""
        stopped: Any = KeyboardInterrupt()
        stopped.partial, stopped.number = str(state), self.asked or 0
        return stopped  # type: ignore[no-any-return]


@contextmanager
def stopping() -> Iterator[Stop]:
    """Inside, the first Ctrl-C or SIGTERM is noted instead of obeyed; the second ends at once.

    A signal that was ignored at the start, as in a shell's background, stays ignored.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.asked = number
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else former[number]
        )

    handlers = [(int(n), signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    former = {number: handler for number, handler in handlers if handler is not signal.SIG_IGN}
    for number in former:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def settle_file(path: Path) -> None:
    """Have a file's bytes on the disk before it takes another's name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a training needs to go on, complete or not at all."""
    part = path.with_name(f"{path.name}.part")
    torch.save(dict(state), part)
    settle_file(part)
    part.replace(path)
