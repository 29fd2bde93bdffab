"""The training plan's rows: what a step sees, what learns, and how it is weighed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from vcfilter.codec.structure import LAYER_QP_OFFSET, GopStep, chain_step, coding_order
from vcfilter.errors import ConfigError
from vcfilter.models.hierarchical.conditions import signed_pair
from vcfilter.train.data import ALIGNMENT, Augment
from vcfilter.train.loss import Distortion, squared_error

LOW_DELAY_LENGTHS = (4, 8)  # frames after the keyframe, least and most
LOW_DELAY_SHARE = 0.6  # of the forward groups; the others are anchors of random access
SINGLE_SHARE = 0.3  # of the groups of anchors: each has one reference only
ANCHORS = 3  # at most, after the keyframe


class Group(Enum):
    """Which inter frames are coded in one step."""

    TRIPLET = "triplet"  # the middle one between two keyframes
    CHAIN = "chain"  # the middle, the middle of one half, of its half: one per layer
    SEGMENT = "segment"  # all between two keyframes, as an encoder does
    FORWARD = "forward"  # after one keyframe, from the past alone


def signed_distances(step: GopStep) -> tuple[int, int]:
    """Signed display distances to the first two references; 0 = none."""
    return signed_pair([number - step.number for number in step.references])


def looks_back(step: GopStep) -> bool:
    """Whether all references are past."""
    return max(step.references) < step.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of a training for looks: the weights of its losses.

    Errors are relative to the decoded frames' own: of a finish, those it is given; of the codec,
    those that the networks training began from make of the same symbols. So are distances of the
    codec; those of a finish are relative to what is usual at the qp.

    Args:
        until: where it ends, as a share of the training.
        error: squared error, beside the loss of the phase itself.
        texture: local energy of fine bands that is not the original's.
        features: ST-LPIPS with VGG16.
        difference: squared error of the differences between frames that follow each other (of the
            codec, between a frame and the reference moved to it): texture must not boil.
        adversarial: a patch discriminator's opinion of frames that are not too coarse.
        grid: of a finish, what its correction has in common in all blocks: a pattern on its grid.
        rate: factor on the learning rate.
    """

    until: float
    error: float = 1.0
    texture: float = 0.0
    features: float = 0.0
    difference: float = 0.0
    adversarial: float = 0.0
    grid: float = 0.0
    rate: float = 1.0

    def weight(self, name: str) -> float:
        """Of a loss; what is only logged has none."""
        weights = {
            "error": self.error,
            "texture": self.texture,
            "relative": self.features,
            "difference": self.difference,
            "adversarial": self.adversarial,
            "grid": self.grid,
        }
        return weights.get(name, 0.0)


def stage_at(stages: tuple[Stage, ...], share: float) -> Stage:
    """The one at a share of the training; the last one at its end."""
    return next((stage for stage in stages if share < stage.until), stages[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One row of the training plan.

    Args:
        name: shown in the log.
        keyframes: crops coded as keyframes only, per step (0: none); even.
        groups: groups of two outer frames and inter frames between them, per step (0: none).
        size: side of the crops of keyframes; group_size: of those of groups.
        rate: AdamW's peak learning rate, reached after warm-up, falling to a fiftieth by a cosine.
        group: which inter frames a group holds.
        forward: probability that a group is FORWARD instead.
        spans: (distance between the outer frames, probability).
        originals: the outer frames and all references are originals; else reconstructions.
        through: the loss of a frame also teaches the references it was coded from.
        residual: whether the prediction's error is coded; without it the prediction is the frame.
        coded: probability of coded motion; the rest is no motion, or inherited motion.
        learns: beginnings of the names of the parameters that learn; empty: all.
        keyframe_share, inter_share: weight of the mean log cost of keyframes and of each inter
            frame in the loss.
        layer_weights: weight of the distortion per temporal layer; the last holds for deeper ones.
        distortion: how reconstruction and original are compared.
        augment: how crops are changed.
        stages: losses for looks beside it, of all frames but a group's keyframes; in order, the
            last until 1. A row with stages begins at the default model.

    Raises:
        ConfigError: a value is outside what is allowed.
    """

    name: str
    keyframes: int
    groups: int
    size: int
    group_size: int
    rate: float
    group: Group = Group.CHAIN
    forward: float = 0.0
    spans: tuple[tuple[int, float], ...] = ((12, 0.45), (8, 0.2), (6, 0.1), (4, 0.15), (2, 0.1))
    originals: bool = False
    through: bool = False
    residual: bool = True
    coded: float = 0.88
    learns: tuple[str, ...] = ()
    keyframe_share: float = 1.0
    inter_share: float = 0.7
    layer_weights: tuple[float, ...] = (1.0,)
    distortion: Distortion = field(default=squared_error)
    augment: Augment = field(default_factory=Augment)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if self.keyframes < 0 or self.groups < 0 or self.keyframes + self.groups == 0:
            raise ConfigError(f"phase {self.name!r}: a step without keyframes and groups")
        if self.keyframes % 2:
            raise ConfigError(f"phase {self.name!r}: keyframes {self.keyframes} is odd")
        if self.size % ALIGNMENT or self.group_size % ALIGNMENT:
            raise ConfigError(f"phase {self.name!r}: a size is no multiple of {ALIGNMENT}")
        if abs(sum(p for _, p in self.spans) - 1) > 1e-9 or min(s for s, _ in self.spans) < 2:
            raise ConfigError(f"phase {self.name!r}: spans {self.spans}")
        if not 0 <= self.forward <= 1:
            raise ConfigError(f"phase {self.name!r}: forward {self.forward} is no probability")
        if not self.layer_weights or min(self.layer_weights) <= 0:
            raise ConfigError(f"phase {self.name!r}: layer weights {self.layer_weights}")
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(ends) or ends[-1] != 1):
            raise ConfigError(f"phase {self.name!r}: stages until {ends}")

    def layer_weight(self, layer: int) -> float:
        """Weight of the distortion of a layer's frames."""
        return self.layer_weights[min(layer, len(self.layer_weights) - 1)]


MILD = Augment(strides=((1, 0.9), (2, 0.1)), scales=((1.0, 0.9), (1.5, 0.1)), brightness=0.1)
# Triplets at intervals of 1 to 6, 8 and 12 frames.
TRIPLETS = tuple((2 * interval, 0.125) for interval in (1, 2, 3, 4, 5, 6, 8, 12))

PHASES = {
    phase.name: phase
    for phase in (
        # The paper's first step: motion and blending alone, between originals.
        Phase(
            name="interpolation",
            keyframes=0,
            groups=4,
            size=128,
            group_size=192,
            rate=1e-3,
            group=Group.TRIPLET,
            spans=TRIPLETS,
            originals=True,
            residual=False,
            coded=1.0,
            learns=("motion.",),
            augment=MILD,
        ),
        # Its second step: the image codec and the latent residual on top, motion as it is.
        Phase(
            name="image",
            keyframes=8,
            groups=2,
            size=128,
            group_size=192,
            rate=1e-3,
            group=Group.TRIPLET,
            spans=TRIPLETS,
            originals=True,
            learns=("image.", "prediction."),
            augment=MILD,
        ),
        Phase(name="keyframes", keyframes=12, groups=0, size=128, group_size=128, rate=7e-4),
        # Frames between references and frames with past ones alone: one model for all structures.
        Phase(
            name="joint", keyframes=8, groups=1, size=128, group_size=192, rate=6e-4, forward=0.4
        ),
        # Whole segments: errors travel, so the frames that others are coded from count for more.
        Phase(
            name="segments",
            keyframes=4,
            groups=1,
            size=128,
            group_size=192,
            rate=1e-4,
            group=Group.SEGMENT,
            spans=((12, 0.5), (8, 0.2), (6, 0.15), (4, 0.15)),
            through=True,
            inter_share=0.2,
        ),
        # A model for looks: what pixels are made with learns, what is coded stays as it is, and
        # with it what a qp stands for.
        Phase(
            name="perceptual",
            keyframes=2,
            groups=1,
            size=128,
            group_size=128,
            rate=3e-4,
            forward=0.4,
            learns=("image.synthesis_branch.", "prediction."),
            stages=(
                Stage(until=0.1, error=0.0, difference=0.15),
                Stage(until=0.6, error=0.0, features=0.7, difference=0.15),
                Stage(
                    until=1.0,
                    error=0.0,
                    features=0.7,
                    difference=0.15,
                    adversarial=0.02,
                    rate=0.5,
                ),
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishPhase:
    """A row for the finish, which is trained on decoded frames with the codec frozen.

    Args:
        name: shown in the log. crops: of two frames each, per step. size: side of the crops.
        rate: AdamW's peak learning rate. stages: in order, the last until 1.
    """

    name: str
    crops: int
    size: int
    rate: float
    stages: tuple[Stage, ...]


FINISH = FinishPhase(
    name="finish",
    crops=1,
    size=96,
    rate=4e-4,
    stages=(
        # Energy is cheap to compare: it finds how much contrast is missing, and where.
        Stage(until=0.3, error=0.6, texture=0.4, difference=0.4, grid=0.3),
        Stage(
            until=0.85,
            error=0.6,
            texture=0.2,
            features=1.6,
            difference=0.4,
            grid=0.3,
            rate=0.5,
        ),
        Stage(
            until=1.0,
            error=0.6,
            texture=0.2,
            features=1.6,
            difference=0.4,
            adversarial=0.02,
            grid=0.3,
            rate=0.5,
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersPhase:
    """A row for quality levels, whose tables learn from frames that the frozen codec coded once.

    Args:
        name: shown in the log. groups: coded before the first step. group_size: side of the crops.
        stills: share of the groups that are one keyframe. forward: of the rest, see `Phase`.
        spans: see `Phase`. frames: inter frames of a group, at most.
        levels: above the base, least and most. steps: (distance of two levels, probability).
        qps: of the best level, drawn uniformly.
        dropped: probability that a reference is the base alone.
        batch: levels of frames that a step learns from.
        rate: AdamW's peak learning rate, falling to a fiftieth by a cosine.
    """

    name: str
    groups: int
    group_size: int
    stills: float
    forward: float
    spans: tuple[tuple[int, float], ...]
    frames: int
    levels: tuple[int, int]
    steps: tuple[tuple[int, float], ...]
    qps: tuple[int, int]
    dropped: float
    batch: int
    rate: float


LAYERS = LayersPhase(
    name="layers",
    groups=48,
    group_size=128,
    stills=0.3,
    forward=0.3,
    spans=((12, 0.5), (8, 0.2), (6, 0.1), (4, 0.2)),
    frames=3,
    levels=(1, 3),
    steps=((6, 0.7), (4, 0.1), (8, 0.1), (12, 0.1)),
    qps=(14, 36),
    dropped=0.5,
    batch=8,
    rate=3e-2,
)


def group_steps(group: Group, span: int, near_right: bool) -> tuple[GopStep, ...]:
    """The inter frames of a group, in coding order, between outer frames at 0 and span.

    Args:
        near_right: a chain's frames lie nearer and nearer to the right outer frame.
    """
    if group is Group.SEGMENT:
        return coding_order(span)
    if group is Group.TRIPLET:
        return (_step(span // 2, (0, span), 1 if span >= 8 else 2 if span >= 4 else 3),)
    steps: list[GopStep] = []
    far, distance = span, span // 2
    while len(steps) < 3 and distance >= 1 and distance < far:
        references = (span - far, span) if near_right else (0, far)
        number = span - distance if near_right else distance
        steps.append(_step(number, references, len(steps) + 1))
        far, distance = distance, distance // 2
    return tuple(steps)


def low_delay_steps(count: int) -> tuple[GopStep, ...]:
    """Frames 1 to count of a low-delay GOP."""
    return tuple(map(chain_step, range(1, count + 1)))


def anchor_steps(distance: int, count: int, single: bool) -> tuple[GopStep, ...]:
    """Anchors of random access, each from one or two before it, and a frame between the last two.

    Args:
        distance: between anchors. count: of them, the keyframe not counted.
        single: the anchors have one reference only, and nothing is coded between.
    """
    steps = []
    for n in range(1, count + 1):
        before = (n - 1,) if single or n < 2 else (n - 1, n - 2)
        steps.append(_step(n * distance, tuple(b * distance for b in before), 1))
    if not single and distance > 1:
        right = count * distance
        steps.append(_step(right - distance // 2, (right - distance, right), 2))
    return tuple(steps)


def _step(number: int, references: tuple[int, ...], layer: int) -> GopStep:
    offset = LAYER_QP_OFFSET[layer]
    return GopStep(number=number, references=references, layer=layer, slot=None, offset=offset)


def forward_steps(random: np.random.Generator, longest: int) -> tuple[GopStep, ...]:
    """Inter frames after a keyframe, drawn: a low-delay GOP's, or anchors of random access.

    Args:
        longest: frames that a shot has at most, at least 2.
    """
    if random.random() < LOW_DELAY_SHARE:
        least, most = LOW_DELAY_LENGTHS
        return low_delay_steps(min(int(random.integers(least, most + 1)), longest - 1))
    single = bool(random.random() < SINGLE_SHARE)
    # Near distances are the likelier ones, as in a search for the nearest usable frame.
    farthest = longest - 1 if single else max(1, (longest - 1) // 2)
    distance = min(int(2 ** random.uniform(0 if single else 1, np.log2(32))), farthest)
    count = min(ANCHORS, (longest - 1) // distance)
    return anchor_steps(distance, 1 if single and distance > 4 else count, single)
