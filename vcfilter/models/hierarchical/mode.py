"""How an inter frame is coded, in one byte of its header."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from vcfilter.errors import BitstreamError
from vcfilter.frames import FrameStep, FrameType

LEVEL_MAX = 7
_MOTION_BITS, _LEVEL_BITS = 3, 3
_REFINE, _RESIDUAL = 1 << 6, 1 << 7


class MotionMode(IntEnum):
    """Where the prediction of an inter frame comes from."""

    NONE = 0  # the average of the references (a copy of the only one), no motion
    FIRST = 1  # the first reference as it is
    SECOND = 2  # the second reference as it is
    DIRECT = 3  # displacements that follow from the references' own motion, equal blending
    CODED = 4  # coded displacement fields and blending map


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalMode:
    """A frame's mode.

    In bytes: none for a keyframe, and for an inter frame without motion and residual, unless
    quality levels stand behind its base; else one.
    From its lowest bit: motion (3 bits), level (3), refine (1), residual (1).

    Args:
        motion: how references are moved.
        level: precision of coded motion, 0 (finest) to 7; 0 where none is coded.
        refine: displacements are corrected by comparing the references.
        residual: a latent residual is coded; without it the prediction is the reconstruction.
    """

    motion: MotionMode = MotionMode.NONE
    level: int = 0
    refine: bool = False
    residual: bool = True

    @property
    def repeats(self) -> bool:
        """Whether nothing is coded."""
        return self.motion is MotionMode.NONE and not self.residual

    def pack(self, levels: bool = False) -> bytes:
        """The bytes of an inter frame's mode.

        Args:
            levels: quality levels stand behind the base: the frame has a mode even if the base
                is empty.
        """
        if self.repeats and not levels:
            return b""
        flags = self.refine * _REFINE | self.residual * _RESIDUAL
        return bytes((self.motion | self.level << _MOTION_BITS | flags,))

    @classmethod
    def unpack(cls, data: bytes, step: FrameStep) -> HierarchicalMode:
        """The mode of a frame.

        Raises:
            BitstreamError: it is not one that `pack` makes, or the frame has too few references.
        """
        if step.type is FrameType.KEY:
            if data:
                raise BitstreamError(f"a keyframe has the mode {data.hex()}: it must have none")
            return cls()
        if not data:
            return cls(residual=False)
        if len(data) != 1:
            raise BitstreamError(f"mode {data.hex()} has {len(data)} bytes: it must have one")
        bits = data[0]
        motion = bits & (1 << _MOTION_BITS) - 1
        level = bits >> _MOTION_BITS & (1 << _LEVEL_BITS) - 1
        if motion > MotionMode.CODED or (level and motion != MotionMode.CODED):
            raise BitstreamError(f"mode {data.hex()} is invalid")
        found = cls(
            motion=MotionMode(motion),
            level=level,
            refine=bool(bits & _REFINE),
            residual=bool(bits & _RESIDUAL),
        )
        if found.refine and motion < MotionMode.DIRECT:
            raise BitstreamError(f"mode {data.hex()} is invalid")
        second = found.motion in (MotionMode.SECOND, MotionMode.DIRECT) or found.refine
        if second and len(step.references) < 2:
            raise BitstreamError(f"mode {data.hex()} needs two references, the frame has one")
        return found


KEY_MODE = HierarchicalMode()
"""A keyframe's."""
