"""What a hierarchical model is built with, and how much its encoder may try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vcfilter.errors import ModelMismatchError
from vcfilter.frames import LAYER_MAX
from vcfilter.models.hierarchical.blocks import ALIGN, BLOCK, CHANNELS

MOTION_CHANNELS = 80  # five components of 4x4 positions
LARGEST = 1024  # of a width or a number of blocks: a foreign file must not fill the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchicalConfig:
    """What the networks are built with.

    Args:
        image_width: features of the image transforms' branches.
        analysis_blocks, synthesis_blocks: residual blocks of each.
        image_hidden: hidden units of the image latent's table networks.
        motion_width, motion_blocks: of the branch that corrects decoded motion.
        motion_hidden: hidden units of the motion latent's table networks.
        prediction_width, prediction_blocks: of the branch that corrects predicted latents.
        low, middle: image channels below low are coded coarse to fine, those below middle next.
        mean_radius: reach of the filters that predict means, in latent positions.

    Raises:
        ModelMismatchError: a value is not a whole number within its bounds.
    """

    image_width: int = 96
    analysis_blocks: int = 2
    synthesis_blocks: int = 4
    image_hidden: int = 192
    motion_width: int = 48
    motion_blocks: int = 1
    motion_hidden: int = 128
    prediction_width: int = 96
    prediction_blocks: int = 4
    low: int = 12
    middle: int = 33
    mean_radius: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ModelMismatchError(
                    f"{field.name} {value!r} of a model is not a whole number of 1 to {LARGEST}"
                )
        if not self.low < self.middle < self.channels:
            raise ModelMismatchError(
                f"low {self.low} and middle {self.middle} of a model do not rise below "
                f"{self.channels}"
            )

    @property
    def block(self) -> int:
        """Luma samples per latent position, each way."""
        return BLOCK

    @property
    def align(self) -> int:
        """Frames are padded to multiples of so many luma samples."""
        return ALIGN

    @property
    def channels(self) -> int:
        """Channels of the image latent: 64 of luma, 16 of each chroma plane."""
        return CHANNELS

    @property
    def motion_channels(self) -> int:
        """Channels of the motion latent."""
        return MOTION_CHANNELS

    def latent_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the image latent of so many luma samples."""
        return rows // self.block, columns // self.block

    def padded_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of luma that a frame is padded to."""
        return -(-rows // self.align) * self.align, -(-columns // self.align) * self.align

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> HierarchicalConfig:
        """The configuration of a weights file.

        Raises:
            ModelMismatchError: a name is unknown here, missing, or a value is not allowed.
        """
        wanted = {field.name for field in fields(cls)}
        if set(values) != wanted:
            wrong = sorted(set(values) ^ wanted)
            raise ModelMismatchError(f"configuration of a model: {', '.join(wrong)} unexpected")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much an encoder tries per inter frame.

    Args:
        motion_levels: precisions of coded motion that are tried (0 finest to 7 coarsest).
        coarser: those after the finest are tried where its bits are more than this share of the
            cost, by an estimate.
        free_modes: whether single references without motion are tried.
        settled: no motion is searched for frames of deep layers whose prediction without coded
            motion leaves a residual less than this share of the cost to save, by an estimate.
        searched: references are searched themselves as well where motion through the frames between
            leaves more than this share of what no motion leaves; what codes best is taken.
        promising: what such a search finds is fitted and coded where before that it costs less than
            so many times the other, in error and bits of the field.
        fit_rounds: Gauss-Newton steps after the search, at least 1.
        plain_motion: whether coded motion is tried without the decoder's refinement, where there
            can be one.
        residuals: for how many motions, of those with the least estimated cost, the residual
            is tried.
        least_gain: share of the cost that a residual must save by the estimate to be tried;
            deep_gain: the same of deep layers.
        passes: how often a residual's latent is coded, at least 1, each time aimed at what the
            pass before left; those of deep layers once less. key_passes: of keyframes.
        foreseen: after how many passes it is measured what symbols cost later ones, through the
            tables, for the following passes to count.
        filtered: frames of layers below have a loop filter where one pays.
    """

    motion_levels: tuple[int, ...]
    coarser: float = 0.0
    free_modes: bool = True
    settled: float = 0.0
    searched: float = 0.0
    promising: float = math.inf
    fit_rounds: int
    plain_motion: bool = True
    residuals: int = 1
    least_gain: float = 0.0
    deep_gain: float = 0.0
    passes: int
    key_passes: int
    foreseen: int = 0
    filtered: int = LAYER_MAX + 1

    def passes_of(self, layer: int) -> int:
        """Passes of a frame of a temporal layer."""
        return self.key_passes if layer == 0 else max(1, self.passes - (layer >= DEEP_LAYER))


DEEP_LAYER = 3
"""From here on a pass more gained 0.14 % of the bits, before 0.89 % (ten training clips)."""

EFFORTS: dict[str, Effort] = {
    "ultrafast": Effort(
        motion_levels=(4,),
        free_modes=False,
        settled=0.3,
        searched=math.inf,
        fit_rounds=1,
        plain_motion=False,
        deep_gain=0.55,
        passes=1,
        key_passes=3,
        foreseen=1,
        filtered=2,
    ),
    "veryfast": Effort(
        motion_levels=(5,),
        free_modes=False,
        settled=0.3,
        searched=math.inf,
        fit_rounds=1,
        plain_motion=False,
        deep_gain=0.25,
        passes=1,
        key_passes=3,
        foreseen=1,
        filtered=DEEP_LAYER,
    ),
    "fast": Effort(
        motion_levels=(5,),
        free_modes=False,
        settled=0.3,
        searched=math.inf,
        fit_rounds=1,
        plain_motion=False,
        deep_gain=0.25,
        passes=2,
        key_passes=4,
        foreseen=1,
        filtered=DEEP_LAYER,
    ),
    "medium": Effort(
        motion_levels=(4, 6),
        coarser=0.02,
        settled=0.25,
        searched=0.05,
        promising=1.0,
        fit_rounds=2,
        plain_motion=False,
        passes=2,
        key_passes=7,
        foreseen=5,
    ),
    "slow": Effort(motion_levels=(3, 4, 5, 6), fit_rounds=4, passes=3, key_passes=8, foreseen=7),
    "veryslow": Effort(
        motion_levels=(1, 2, 3, 4, 5, 6, 7),
        fit_rounds=4,
        residuals=4,
        passes=3,
        key_passes=8,
        foreseen=7,
    ),
}

TRIALS = {"veryslow": "veryfast"}
"""Efforts of trials of anchors, see ModelInfo."""
