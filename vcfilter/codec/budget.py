"""Time, frames and memory of a decoder, compared with its limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vcfilter.errors import LimitError
from vcfilter.frames import VideoFormat
from vcfilter.models.base import Model
from vcfilter.options import Limits


class Budget:
    """Counts frames and CPU seconds of one decoder.

    Args:
        limits: upper bounds.
        held_max: most decoded frames that it holds.
    """

    def __init__(self, limits: Limits, held_max: int) -> None:
        self._limits, self._held_max = limits, held_max
        self._frames = 0
        self._seconds = 0.0
        self._began: float | None = None  # of the work in progress, in the decoder's thread

    def check_size(self, video_format: VideoFormat) -> None:
        """Raise LimitError where frames of a format are too large."""
        _check("pixels", video_format.width * video_format.height, self._limits.pixels)

    def check_memory(self, video_format: VideoFormat, model: Model) -> None:
        """Raise LimitError where the frames that may be held would take too much memory."""
        if self._limits.memory is not None:
            needed = self._held_max * model.picture_bytes(video_format)
            _check("memory", needed, self._limits.memory)

    def check_seconds(self) -> None:
        """Raise LimitError where the CPU time is used up."""
        running = 0.0 if self._began is None else time.thread_time() - self._began
        _check("seconds", self._seconds + running, self._limits.seconds)

    def count_frame(self) -> None:
        """Raise LimitError where one more frame may not come out."""
        _check("frames", self._frames + 1, self._limits.frames)
        self._frames += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """CPU time of the calling thread within the block counts; blocks do not nest."""
        self._began = time.thread_time()
        try:
            yield
        finally:
            self._seconds += time.thread_time() - self._began
            self._began = None

    def add_seconds(self, seconds: float) -> None:
        """Count CPU time of another thread; called from the decoder's own."""
        self._seconds += seconds


def _check(name: str, value: float, limit: float | None) -> None:
    if limit is not None and value > limit:
        raise LimitError(name, value, limit)
