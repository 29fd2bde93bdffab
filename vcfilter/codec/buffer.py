"""The buffer of a receiver at a constant rate (VBV): no packet may ask for more than it holds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


class Buffer:
    """Bits that a receiver has and still needs, in the order of packets.

    Args:
        maxrate: bits per second that arrive. bufsize: bits that fit.
        frame_rate: frames per second.
    """

    _START = 0.9  # how full it is at first; x264's default

    def __init__(self, maxrate: int, bufsize: int, frame_rate: Fraction) -> None:
        self._per_frame = float(maxrate / frame_rate)
        self._size = float(bufsize)
        self.fullness = self._START * bufsize

    def overflow(self, sizes: Sequence[int]) -> float:
        """By what factor packets are too large: at most 1 if all of them fit.

        Args:
            sizes: bits of the next packets, in their order.
        """
        fullness, worst = self.fullness, 0.0
        for bits in sizes:
            worst = max(worst, bits / max(fullness, 1.0))
            fullness = min(fullness - bits + self._per_frame, self._size)
        return worst

    def take(self, sizes: Sequence[int]) -> None:
        """The packets are sent."""
        for bits in sizes:
            self.fullness = min(self.fullness - bits + self._per_frame, self._size)
