"""Packets of an earlier run over the same frames, which are output instead of coding them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vcfilter.codec.plan import SegmentJob
from vcfilter.errors import ConfigError
from vcfilter.frames import Packet


class FinishedPackets:
    """Gives the packets of jobs that an earlier run coded, up to its last keyframe.

    That keyframe is coded again, and must come out as the same bytes: then source, settings and
    model are those of the earlier run.

    Args:
        packets: of the earlier run from its first frame, a keyframe, on, one per frame, in display
            order. Their times are not used.

    Attributes:
        frames: how many are not coded again: those before the last keyframe.
    """

    def __init__(self, packets: Sequence[Packet]) -> None:
        self._packets = packets
        self.frames = max(n for n, packet in enumerate(packets) if packet.is_keyframe)
        self._count = 0  # frames of all jobs so far
        self._key_sent = False

    def take(self, job: SegmentJob) -> list[Packet] | None:
        """The packets of the next job; None where it is to be coded.

        Raises:
            ConfigError: the earlier run placed its keyframes otherwise.
        """
        first, self._count = self._count, self._count + len(job.frames)
        if first >= self.frames:
            if first > self.frames or job.first != 0:
                raise _differs(self.frames)
            return None
        packets = []
        frames = [*job.frames, *([job.next_key] if job.next_key else [])]
        for number, frame in enumerate(frames, first):
            is_key = (number == first and job.first == 0) or frame is job.next_key
            stored = self._packets[number] if number <= self.frames else None
            if stored is None or stored.is_keyframe != is_key:
                raise _differs(number)
            packets.append(replace(stored, pts=frame.pts, duration=frame.duration))
        return packets[1:] if job.key_sent else packets

    def first_coded(self, job: SegmentJob) -> SegmentJob:
        """The first job that is coded, changed so that its packets begin with its keyframe's."""
        self._key_sent = job.key_sent
        return replace(job, key_sent=False)

    def join(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """The packets of `first_coded`'s job that are not output yet.

        Raises:
            ConfigError: the keyframe is not that of the earlier run.
        """
        if packets[0].data != self._packets[self.frames].data:
            raise _differs(self.frames)
        return packets[1:] if self._key_sent else packets

    def too_short(self) -> ConfigError:
        """The error where the source ends before the last keyframe."""
        return ConfigError(
            f"the source ends after {self._count} frames, the earlier run has more: it was of "
            "another source"
        )


def _differs(number: int) -> ConfigError:
    return ConfigError(
        f"frame {number} is coded otherwise than in the earlier run: the source, the settings, the "
        "device or the number of threads is another"
    )
