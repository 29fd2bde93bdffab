"""Reference structures as data: references and coding order of the frames of a GOP.

A GOP is a keyframe (number 0) and the inter frames up to the next keyframe.

- Random access: anchors some frames apart, each coded from the one or two anchors before it, and
  hierarchical B-frames between them, from the middle outwards, each from the two nearest frames
  already coded (Djelouah et al., Neural Inter-Frame Compression for Video Coding, ICCV 2019,
  section 3). A GOP no longer than the distance of two anchors is one hierarchy.
- Low delay: every frame from the one before it and from a better coded, older one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vcfilter.bitstream import StructureKind
from vcfilter.codec.lookahead import FOLLOWERS
from vcfilter.errors import ConfigError
from vcfilter.frames import DISTANCE_MAX, LAYER_MAX, QP_MAX, FrameStep, FrameType
from vcfilter.options import EncoderOptions

LAYER_QP_OFFSET = (0, 3, 6, 8, 9, 9, 9, 9)
"""Added to the GOP's qp per temporal layer (0 keyframes to 7). Errors of a frame propagate to
frames of higher layers and to none of lower ones, so the lower ones get more bits. BD-rate on
training clips against (0, 3, 4, 5, 6): -1.4 %; a first layer of 4 saves more on most clips, and
costs up to 10 % where prediction fails."""
INTERVAL_MAX = 32
"""Largest distance between anchors, and the longest GOP that is one hierarchy of B-frames."""
HIERARCHY_MAX = 64
CHAIN_PATTERN = ((1, 3), (3, 6), (2, 5), (3, 6))
"""(layer, qp offset) of a low-delay frame by its number modulo 4: every fourth is coded best, and
later frames refer to it."""
CHAIN_LONG, CHAIN_COARSER = 24, 2
"""Interval of keyframes from which on low-delay frames are so many qps coarser: many inherit the
keyframe. BD-rate of 25 frames of twelve training clips with one keyframe -1.7 %; at interval 12
it would be +1.3 %."""

RESTART_SLOT = 5
FILTER_REACH = 4
"""Frames on either side that the temporal filter looks at, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GopStep:
    """One inter frame's place in a structure; with a qp it becomes a FrameStep.

    Args:
        number: display number since the keyframe.
        references: display numbers of the references.
        layer: temporal layer, 1 to 7.
        slot: where it is kept, None where no frame refers to it.
        offset: added to the GOP's qp.
    """

    number: int
    references: tuple[int, ...]
    layer: int
    slot: int | None
    offset: int

    def step(self, qp: int) -> FrameStep:
        """The frame's step, at the qp of its GOP plus the offset."""
        return FrameStep(
            type=FrameType.INTER,
            qp=min(qp + self.offset, QP_MAX),
            layer=self.layer,
            number=self.number,
            references=tuple(number - self.number for number in self.references),
            slot=self.slot,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GopStructure:
    """The reference structure of an encoder.

    Args:
        kind: for the sequence header.
        keyint: most frames from a keyframe to the next.
        min_keyint: fewest of them before a scene cut makes a keyframe.
        scenecut: a GOP ends before a scene cut.
        open_gop: the last frames of a GOP may refer to the next keyframe.
        interval: largest distance between anchors, a power of two, 1 to 32; a GOP of
            open_gop that is no longer is one hierarchy.
        adaptive: the distance is chosen by content (codec.lookahead).
        trial: of anchors by coding (codec.trial): the encoder gets spans twice as long as the
            lookahead's distance, and may divide them.
        ltr: low delay: interval of long-term references, each coded from the one before it alone.
        temporal_filter: frames that others inherit are filtered (codec.temporal_filter).
        by_motion: what moves more is coded at a coarser qp (codec.propagation.motion_offset).
    """

    kind: StructureKind
    keyint: int
    min_keyint: int
    scenecut: bool
    open_gop: bool
    interval: int
    adaptive: bool
    ltr: int = 0
    trial: bool = False
    temporal_filter: bool = True
    by_motion: bool = False

    @classmethod
    def of(cls, options: EncoderOptions) -> GopStructure:
        """The structure that the options ask for."""
        kind = StructureKind[options.structure.replace("-", "_").upper()]
        if kind is StructureKind.INTRA or options.keyint == 1:
            kind = StructureKind.INTRA
        interval = 1
        if kind is StructureKind.RANDOM_ACCESS:
            interval = INTERVAL_MAX if options.bframes is None else options.bframes + 1
        return cls(
            kind=kind,
            keyint=1 if kind is StructureKind.INTRA else options.keyint,
            min_keyint=options.min_keyint,
            scenecut=options.scenecut and kind is not StructureKind.INTRA,
            open_gop=options.open_gop and kind is StructureKind.RANDOM_ACCESS,
            interval=interval,
            adaptive=options.bframes is None,
            ltr=options.ltr if kind is StructureKind.LOW_DELAY else 0,
            temporal_filter=options.temporal_filter,
            by_motion=kind is StructureKind.RANDOM_ACCESS
            and options.qp is None
            and options.is_constant_qp,
        )

    @property
    def one_hierarchy(self) -> bool:
        """Whether a GOP is one hierarchy between its keyframe and the next."""
        longest = HIERARCHY_MAX if self.adaptive else self.interval
        return self.kind is StructureKind.RANDOM_ACCESS and self.keyint <= longest

    @property
    def reorder(self) -> int:
        """Most frames that a decoder holds before it can show one."""
        if self.kind is not StructureKind.RANDOM_ACCESS:
            return 0
        return self.keyint if self.one_hierarchy else self.interval

    @property
    def delay(self) -> int:
        """Most frames that an encoder holds before a packet comes."""
        if self.kind is not StructureKind.RANDOM_ACCESS:
            return 0
        # The hierarchy, the keyframe behind it and what tells its worth, and the frame that shows
        # whether that is a cut.
        return self.reorder + 1 + self.followers + self.scenecut

    @property
    def chain_offset(self) -> int:
        """Added to the qp of low-delay frames, beside CHAIN_PATTERN's."""
        return CHAIN_COARSER if self.keyint >= CHAIN_LONG else 0

    @property
    def followers(self) -> int:
        """Frames behind a keyframe that are awaited before those that refer to it are coded."""
        if not self.open_gop:
            return 0
        most = self.keyint if self.one_hierarchy else self.interval
        return min(FOLLOWERS, most - 1)

    @property
    def filter_reach(self) -> int:
        """Frames on either side that the temporal filter may look at: those that are awaited."""
        if self.kind is not StructureKind.RANDOM_ACCESS or not self.temporal_filter:
            return 0
        return min(FILTER_REACH, max(self.followers - 1, 0)) if self.open_gop else FILTER_REACH

    @property
    def reach(self) -> int:
        """Largest display distance to a reference."""
        if self.kind is StructureKind.INTRA:
            return 0
        if self.kind is StructureKind.LOW_DELAY:
            return min(self.keyint, DISTANCE_MAX)
        return max(self.keyint - 1, 1) if self.one_hierarchy else 2 * self.interval

    @property
    def slots(self) -> int:
        """Places for references."""
        if self.kind is StructureKind.INTRA:
            return 1
        if self.kind is StructureKind.LOW_DELAY:
            return RESTART_SLOT + 1
        length = self.keyint if self.one_hierarchy else self.interval + 1
        return min(2 + length.bit_length(), LAYER_MAX + 1)


def coding_order(length: int) -> tuple[GopStep, ...]:
    """The steps of a GOP that is one hierarchy up to the next keyframe, in coding order.

    Depth first and left first, so that frames become available in display order while at most
    one reference per layer is held: a frame's slot is its layer.

    Args:
        length: frames in the GOP, the keyframe included, 1 to 64; number `length` is the next
            keyframe.

    Raises:
        ConfigError: length is outside 1 to 64.
    """
    if not 1 <= length <= HIERARCHY_MAX:
        raise ConfigError(f"GOP length {length} is outside 1 to {HIERARCHY_MAX}")
    return drop_slots(tuple(halve(0, length, 1)))


def between_anchors(anchors: Sequence[int], last: int, slot: int = 1) -> tuple[GopStep, ...]:
    """An anchor and the B-frames before it, in coding order.

    Args:
        anchors: numbers of the one or two anchors before it, the newest first.
        last: number of the anchor.
        slot: the anchor's; anchors take turns in 0, where the keyframe is at first, and 1.
    """
    anchor = GopStep(
        number=last, references=tuple(anchors), layer=1, slot=slot, offset=LAYER_QP_OFFSET[1]
    )
    return (anchor, *drop_slots(tuple(halve(anchors[0], last, 2))))


def halve(left: int, right: int, layer: int) -> Iterator[GopStep]:
    """The frames between two coded ones, each from the nearest coded frames on both sides."""
    if right - left < 2:
        return
    middle = (left + right) // 2
    depth = min(layer, LAYER_MAX)
    yield GopStep(
        number=middle,
        references=(left, right),
        layer=depth,
        slot=depth,
        offset=LAYER_QP_OFFSET[depth],
    )
    yield from halve(left, middle, layer + 1)
    yield from halve(middle, right, layer + 1)


def drop_slots(steps: Sequence[GopStep]) -> tuple[GopStep, ...]:
    """The steps, with no slot for frames that none of them refers to."""
    used = {number for step in steps for number in step.references}
    return tuple(step if step.number in used else replace(step, slot=None) for step in steps)


def chain_step(number: int, base: int = 0) -> GopStep:
    """A low-delay frame: from the one before it, and the newest good one older than that.

    Args:
        number: the frame's, at least 1.
        base: no reference is older than this one, which is kept.
    """
    layer, offset = CHAIN_PATTERN[number % 4]
    good = max((number - 2) // 4 * 4, base)  # a multiple of 4, the keyframe among them
    references = (number - 1,) if good >= number - 1 else (number - 1, good)
    slot = layer
    if layer == 1:  # two of them are needed at a time
        slot = 1 if number % 8 == 4 else 4
    return GopStep(number=number, references=references, layer=layer, slot=slot, offset=offset)


def restart_step(number: int, reference: int) -> GopStep:
    """A low-delay frame from which a chain goes on: from one frame that is known to be there."""
    return GopStep(
        number=number,
        references=(reference,),
        layer=1,
        slot=RESTART_SLOT,
        offset=CHAIN_PATTERN[0][1],
    )
