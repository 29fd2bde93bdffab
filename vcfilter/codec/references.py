"""The reference buffer: encoder and decoder keep the same frames."""

from __future__ import annotations

from typing import Generic, TypeVar

from vcfilter.frames import SLOTS, FrameStep

T = TypeVar("T")


class Slots(Generic[T]):
    """Decoded frames of one GOP by slot, the keyframe in slot 0 at first.

    Args:
        key: the keyframe, number 0.
    """

    def __init__(self, key: T) -> None:
        self._kept: list[tuple[int, T] | None] = [(0, key)] + [None] * (SLOTS - 1)

    def store(self, step: FrameStep, frame: T) -> None:
        """Keep a frame as its step says, in place of what its slot held."""
        if step.slot is not None:
            self._kept[step.slot] = step.number, frame

    def get(self, number: int) -> T | None:
        """The frame of a display number; None if it is not kept."""
        for entry in self._kept:
            if entry is not None and entry[0] == number:
                return entry[1]
        return None

    def number(self, slot: int) -> int | None:
        """The display number of what a slot holds; None: nothing."""
        entry = self._kept[slot]
        return None if entry is None else entry[0]

    def numbers(self) -> list[int]:
        """The display numbers of all frames that are kept."""
        return [entry[0] for entry in self._kept if entry is not None]

    def frames(self) -> list[T]:
        """All frames that are kept."""
        return [entry[1] for entry in self._kept if entry is not None]

    def copy(self, slots: int = SLOTS) -> Slots[T]:
        """Slots that hold the same frames, and change by themselves.

        Args:
            slots: so many are copied, those behind them hold nothing.
        """
        other: Slots[T] = Slots.__new__(Slots)
        other._kept = [*self._kept[:slots], *[None] * (SLOTS - slots)]
        return other
