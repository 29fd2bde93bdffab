"""The buffer of a receiver at a constant rate (VBV): no packet may be larger than its content."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


class Buffer:
    """Fullness of a receiver's buffer, packet by packet.

    Args:
        maxrate: bits per second that arrive. bufsize: bits that fit.
        frame_rate: frames per second.
    """

    _START = 0.9  # initial fullness; x264's default

    def __init__(self, maxrate: int, bufsize: int, frame_rate: Fraction) -> None:
        self._per_frame = float(maxrate / frame_rate)
        self._size = float(bufsize)
        self.fullness = self._START * bufsize

    def overflow(self, sizes: Sequence[int]) -> float:
        """Largest ratio of a packet to the buffer's content at its time: at most 1 if all fit.

        Args:
            sizes: bits of the next packets, in their order.
        """
        fullness, worst = self.fullness, 0.0
        for bits in sizes:
            worst = max(worst, bits / max(fullness, 1.0))
            fullness = min(fullness - bits + self._per_frame, self._size)
        return worst

    def take(self, sizes: Sequence[int]) -> None:
        """Remove sent packets from the buffer."""
        for bits in sizes:
            self.fullness = min(self.fullness - bits + self._per_frame, self._size)
