"""The configuration of a hierarchical model, as its weights file holds it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from vcfilter.errors import ModelMismatchError

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
    image_hidden: int = 96
    motion_width: int = 48
    motion_blocks: int = 1
    motion_hidden: int = 64
    prediction_width: int = 96
    prediction_blocks: int = 2
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
        return 8

    @property
    def align(self) -> int:
        """Pictures are padded to multiples of so many luma samples."""
        return 32

    @property
    def channels(self) -> int:
        """Channels of the image latent: 64 of luma, 16 of each chroma plane."""
        return 96

    def latent_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the image latent of so many luma samples."""
        return rows // self.block, columns // self.block

    def to_json(self) -> str:
        """As a weights file holds it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HierarchicalConfig:
        """What `to_json` gave.

        Raises:
            ModelMismatchError: it is no such text, or a name or value in it is unknown here.
        """
        try:
            values = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ModelMismatchError(f"invalid configuration of a model: {error}") from error
