"""Times of a constant frame rate that a container rounded, put back onto their grid."""

from __future__ import annotations

from fractions import Fraction
from math import lcm


class Grid:
    """Puts back the times of a constant frame rate that a container rounded to milliseconds.

    A time that lies on the grid of the frame rate, counted from the first frame, within the
    rounding, is moved onto it; others stay as they are.

    Attributes:
        time_base: seconds per tick of the times that come out.
    """

    _FINEST = 1_000_000

    def __init__(self, coarse: Fraction, frame_rate: Fraction) -> None:
        self._coarse = coarse
        self._rate = frame_rate
        self._first: Fraction | None = None
        self.time_base = Fraction(1, lcm(coarse.denominator, frame_rate.numerator))

    @classmethod
    def over(cls, time_base: Fraction, frame_rate: Fraction | None) -> Grid | None:
        """None where times are exact already, or the rate is odd."""
        if frame_rate is None or (1 / frame_rate / time_base).denominator == 1:
            return None
        grid = cls(time_base, frame_rate)
        return grid if grid.time_base.denominator <= cls._FINEST else None

    def place(self, pts: int, duration: int) -> tuple[int, int]:
        """A frame's time and duration, in ticks of the container, in ticks of the grid."""
        time = pts * self._coarse
        if self._first is None:
            self._first = time
        regular = self._first + round((time - self._first) * self._rate) / self._rate
        if abs(regular - time) <= self._coarse:
            time = regular
        length = Fraction(duration * self._coarse)
        if abs(length - 1 / self._rate) <= self._coarse:
            length = 1 / self._rate
        return round(time / self.time_base), round(length / self.time_base)
