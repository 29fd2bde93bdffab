"""A decoder's state of one GOP: packets, and frames in coding order."""

from __future__ import annotations

from dataclasses import dataclass, field

from vcfilter.bitstream import FrameHeader, PacketInfo
from vcfilter.codec.references import Slots
from vcfilter.frames import FrameStep
from vcfilter.models.base import Reference


@dataclass(slots=True, kw_only=True, eq=False)
class Coded:
    """A packet that is not decoded yet.

    Attributes:
        info: what was read; quality levels that turn out to be invalid are taken out of it.
    """

    info: PacketInfo
    pts: int
    duration: int
    shown: bool

    @property
    def header(self) -> FrameHeader:
        return self.info.header

    @property
    def step(self) -> FrameStep:
        return self.info.header.step

    @property
    def sections(self) -> tuple[bytes, ...]:
        return tuple(section.data for section in self.info.sections)


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Entry:
    """A frame in its place in coding order: its references are known, its pixels not yet needed.

    Args:
        coded: its packet.
        place: in coding order.
        references: until it is decoded.
        reference_pts: theirs, in the same order.
        reference: its reconstruction; None: it is not decoded yet, or cannot be.
        failed: it cannot be decoded.
        qp: of its finest level; where nothing is coded, that of what it repeats.
    """

    coded: Coded
    place: int = 0
    references: tuple[Entry, ...] = ()
    reference_pts: tuple[int, ...] = ()
    reference: Reference | None = None
    failed: bool = False
    qp: int = field(init=False)

    def __post_init__(self) -> None:
        qps = [section.qp for section in self.coded.info.sections]
        self.qp = min(qps, default=max((e.qp for e in self.references), default=0))

    @property
    def open(self) -> bool:
        """Whether it may still be decoded."""
        return self.reference is None and not self.failed

    def needed(self) -> list[Entry]:
        """What is still to be decoded for it, in coding order, itself last."""
        found, stack = {self}, [self]
        while stack:
            deeper = [e for e in stack.pop().references if e.open and e not in found]
            found.update(deeper)
            stack += deeper
        return sorted(found, key=lambda entry: entry.place)


class Gop:
    """What is held of one GOP.

    Args:
        key: its keyframe, decoded.
    """

    def __init__(self, key: Entry) -> None:
        self.identity = key.coded.info.identity
        self.slots: Slots[Entry] = Slots(key)
        self.next_key: Entry | None = None
        self.newest = 0  # number of the newest packet
        self.next = 1  # number of the next frame to show
        self.waiting: dict[int, Coded] = {}  # packets, by number
        # Taken from `waiting`, not output yet; None where a reference is missing.
        self.placed: dict[int, Entry | None] = {}
        self.places = 0  # frames that were placed
        self.skipped = 0  # frames that were not shown since all slots were decoded
