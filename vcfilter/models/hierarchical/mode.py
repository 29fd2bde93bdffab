"""How a frame is coded, in up to two bytes of its header."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vcfilter.errors import BitstreamError
from vcfilter.frames import FrameStep, FrameType

LEVEL_MAX = 7
LEVELS_ALONE = 3  # source of a filter
_MOTION_BITS, _LEVEL_BITS = 3, 3
_REFINE, _RESIDUAL = 1 << 6, 1 << 7


class MotionMode(IntEnum):
    """Where the prediction of an inter frame comes from."""

    NONE = 0  # the average of the references (a copy of the only one), no motion
    FIRST = 1  # the first reference as it is
    SECOND = 2  # the second reference as it is
    DIRECT = 3  # displacements that follow from the references' own motion, equal blending
    CODED = 4  # coded displacement fields and blending map


SHARP = 2
"""Added to DIRECT and CODED in the mode's byte, where references are moved by the longer filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterMode:
    """How a loop filter is coded, in one byte.

    From its lowest bit: source (2 bits), luma (2), chroma (2), busy (1), cross (1).

    Args:
        source: the reference whose filter it differs from, 1 or 2; 0: from none. 3: the base has
            no filter, only quality levels do.
        luma, chroma: which table codes the differences, see `loop_filter.TABLES`; 0: there are
            none. busy, cross: whether there are any of these.
    """

    source: int = 0
    luma: int = 0
    chroma: int = 0
    busy: bool = False
    cross: bool = False

    def pack(self) -> bytes:
        """The byte."""
        numbers = self.source | self.luma << 2 | self.chroma << 4
        return bytes((numbers | self.busy << 6 | self.cross << 7,))

    @classmethod
    def unpack(cls, data: bytes, step: FrameStep) -> FilterMode | None:
        """A frame's; None where there is no byte.

        Raises:
            BitstreamError: it is not one that `pack` makes, or the frame has no such reference.
        """
        if not data:
            return None
        bits = data[0]
        source, rest = bits & 3, bits >> 2
        known = not rest if source == LEVELS_ALONE else source <= min(2, len(step.references))
        if len(data) > 1 or not bits or not known:
            raise BitstreamError(f"loop filter {data.hex()} is invalid")
        return cls(
            source=source,
            luma=bits >> 2 & 3,
            chroma=bits >> 4 & 3,
            busy=bool(bits & 1 << 6),
            cross=bool(bits & 1 << 7),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalMode:
    """A frame's mode.

    In bytes: one for an inter frame, unless it has neither motion nor residual and no quality
    levels stand behind its base; then one if the frame has a loop filter.
    From its lowest bit: motion and sharp (3 bits), level (3), refine (1), residual (1).

    Args:
        motion: how references are moved.
        level: precision of coded motion, 0 (finest) to 7; 0 where none is coded.
        refine: displacements are corrected by comparing the references.
        sharp: DIRECT, CODED: luma between samples is interpolated from more of them, see
            `warp.with_halves`.
        residual: a latent residual is coded; without it the prediction is the reconstruction.
        filter: how the loop filter is coded; None: there is none.
    """

    motion: MotionMode = MotionMode.NONE
    level: int = 0
    refine: bool = False
    sharp: bool = False
    residual: bool = True
    filter: FilterMode | None = None

    @property
    def repeats(self) -> bool:
        """Whether nothing is coded."""
        return self.motion is MotionMode.NONE and not self.residual

    def pack(self, *, key: bool = False, levels: bool = False) -> bytes:
        """A frame's mode in bytes.

        Args:
            key: it is a keyframe.
            levels: quality levels stand behind the base: an inter frame has a mode even if the
                base is empty.
        """
        last = b"" if self.filter is None else self.filter.pack()
        if key:
            return last
        if self.repeats and not levels:
            return b""
        flags = self.refine * _REFINE | self.residual * _RESIDUAL
        motion = self.motion + self.sharp * SHARP
        first = bytes((motion | self.level << _MOTION_BITS | flags,))
        return first + last

    @classmethod
    def unpack(cls, data: bytes, step: FrameStep) -> HierarchicalMode:
        """The mode of a frame.

        Raises:
            BitstreamError: it is not one that `pack` makes, or the frame has too few references.
        """
        if step.type is FrameType.KEY:
            return cls(filter=FilterMode.unpack(data, step))
        if not data:
            return cls(residual=False)
        bits = data[0]
        motion = bits & (1 << _MOTION_BITS) - 1
        level = bits >> _MOTION_BITS & (1 << _LEVEL_BITS) - 1
        sharp = motion in (MotionMode.DIRECT + SHARP, MotionMode.CODED + SHARP)
        motion -= sharp * SHARP
        if motion > MotionMode.CODED or (level and motion != MotionMode.CODED):
            raise BitstreamError(f"mode {data.hex()} is invalid")
        found = cls(
            motion=MotionMode(motion),
            level=level,
            refine=bool(bits & _REFINE),
            sharp=sharp,
            residual=bool(bits & _RESIDUAL),
            filter=FilterMode.unpack(data[1:], step),
        )
        if found.refine and motion < MotionMode.DIRECT:
            raise BitstreamError(f"mode {data.hex()} is invalid")
        second = found.motion in (MotionMode.SECOND, MotionMode.DIRECT) or found.refine
        if second and len(step.references) < 2:
            raise BitstreamError(f"mode {data.hex()} needs two references, the frame has one")
        return found


KEY_MODE = HierarchicalMode()
"""A keyframe's."""
