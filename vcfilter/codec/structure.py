"""Reference structures as data: which frame refers to which, in which order they are coded.

A GOP is a keyframe (number 0) and the inter frames up to the next keyframe. Hierarchical
B-frames are coded from the middle outwards, each from the two nearest frames already coded
(Djelouah et al., Neural Inter-Frame Compression for Video Coding, ICCV 2019, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vcfilter.bitstream import StructureKind
from vcfilter.errors import ConfigError
from vcfilter.frames import LAYER_MAX, QP_MAX, FrameStep, FrameType
from vcfilter.options import KEYINT_MAX, EncoderOptions

LAYER_QP_OFFSET = (0, 3, 6, 8, 9, 9, 9, 9)
"""Added to the GOP's qp per temporal layer (0 keyframes to 7). Errors of a frame pass on to
all frames of higher layers and to none of lower ones, so the lower are worth more bits. BD-rate on
training clips against (0, 3, 4, 5, 6): -1.4 %; a first layer of 4 saves more on most clips, and
costs up to 10 % where nothing can be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GopStep:
    """One inter frame's place in a structure; with a qp it becomes a FrameStep.

    Args:
        number: display number since the keyframe.
        references: display numbers of the references.
        layer: temporal layer, 1 to 7.
        slot: where it is kept, None where no frame refers to it.
    """

    number: int
    references: tuple[int, ...]
    layer: int
    slot: int | None

    def step(self, qp: int) -> FrameStep:
        """The frame's step, at the qp of its GOP plus the layer's offset."""
        return FrameStep(
            type=FrameType.INTER,
            qp=min(qp + LAYER_QP_OFFSET[self.layer], QP_MAX),
            layer=self.layer,
            number=self.number,
            references=tuple(number - self.number for number in self.references),
            slot=self.slot,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GopStructure:
    """How an encoder places references; changes bytes, and nothing of how one frame is coded.

    Args:
        kind: in one word, for the sequence header.
        keyint: most frames from a keyframe to the next, 1 to 64.
        scenecut: a GOP ends before a scene cut.
    """

    kind: StructureKind
    keyint: int
    scenecut: bool

    @classmethod
    def of(cls, options: EncoderOptions) -> GopStructure:
        """The structure that the options ask for."""
        kind = StructureKind.INTRA if options.keyint == 1 else StructureKind.RANDOM_ACCESS
        return cls(kind=kind, keyint=options.keyint, scenecut=options.scenecut)

    @property
    def reorder(self) -> int:
        """Most frames that a decoder holds before it can show one."""
        return self.keyint - 1 and self.keyint

    @property
    def delay(self) -> int:
        """Most frames that an encoder holds before a packet comes: a GOP, the next keyframe, and
        the frame that tells whether that is a cut."""
        return self.keyint + 1 + self.scenecut

    @property
    def reach(self) -> int:
        """Largest display distance to a reference."""
        return self.keyint - 1

    @property
    def slots(self) -> int:
        """Places for references."""
        steps = coding_order(self.keyint, False) + coding_order(self.keyint, True)
        return 1 + max((step.slot or 0 for step in steps), default=0)


def coding_order(length: int, open_gop: bool) -> tuple[GopStep, ...]:
    """The steps of a hierarchical GOP's inter frames, in coding order.

    Depth first and left first, so that frames become available in display order while at most
    one reference per layer is held: a frame's slot is its layer. In a closed GOP (end of the
    stream, scene cut) the last frame is coded first, from the keyframe alone.

    Args:
        length: frames in the GOP, the keyframe included, 1 to 64.
        open_gop: whether the next keyframe, number `length`, serves as a reference.

    Raises:
        ConfigError: length is outside 1 to 64.
    """
    if not 1 <= length <= KEYINT_MAX:
        raise ConfigError(f"GOP length {length} is outside 1 to {KEYINT_MAX}")
    last = length if open_gop else length - 1
    steps: list[GopStep] = []
    if not open_gop and last:
        steps.append(GopStep(number=last, references=(0,), layer=1, slot=1))
    steps += halve(0, last, 1 if open_gop else 2)
    return drop_slots(steps)


def halve(left: int, right: int, layer: int) -> Iterator[GopStep]:
    """The frames between two coded ones, each from the nearest coded frames on both sides."""
    if right - left < 2:
        return
    middle = (left + right) // 2
    slot = min(layer, LAYER_MAX)
    yield GopStep(number=middle, references=(left, right), layer=slot, slot=slot)
    yield from halve(left, middle, layer + 1)
    yield from halve(middle, right, layer + 1)


def drop_slots(steps: Sequence[GopStep]) -> tuple[GopStep, ...]:
    """The steps, with no slot for frames that none of them refers to."""
    used = {number for step in steps for number in step.references}
    return tuple(step if step.number in used else replace(step, slot=None) for step in steps)
