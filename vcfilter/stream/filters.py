"""The stage between source and coder: functions from frames to frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from vcfilter.frames import Frame

FrameFilter: TypeAlias = Callable[[Iterable[Frame]], Iterator[Frame]]
"""Frames in display order in and out, all of one VideoFormat. A filter may drop, add or change
frames; times that come out rise strictly. It runs in the thread that reads the source."""


def apply(filters: Sequence[FrameFilter], frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames behind all filters, the first filter first."""
    for each in filters:
        frames = each(frames)
    return iter(frames)
