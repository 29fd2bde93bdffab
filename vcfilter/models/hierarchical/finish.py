"""The finish: a correction of shown frames for looks, outside the coding loop.

Frames that others are predicted from stay as they are, so a stream decodes alike with any look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ModelMismatchError
from vcfilter.models.hierarchical.blocks import BLOCK, GREY, Planes, Size, block_dct
from vcfilter.models.hierarchical.blocks import finish as within_picture
from vcfilter.models.hierarchical.conditions import (
    CONTEXT,
    CONTEXT_MAX,
    Conditions,
    context_features,
    quantiser_step,
)
from vcfilter.models.hierarchical.values import Reference
from vcfilter.nn.blocks import Block, compress

LUMA = BLOCK * BLOCK  # coefficients of a block


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishConfig:
    """Size of the network.

    Args:
        width: features, 8 to 128. blocks: residual blocks, 1 to 6.

    Raises:
        ModelMismatchError: a value is outside these bounds.
    """

    width: int = 96
    blocks: int = 4

    def __post_init__(self) -> None:
        for name, low, high in (("width", 8, 128), ("blocks", 1, 6)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ModelMismatchError(f"{name} {value!r} of a finish is not {low} to {high}")


class FinishNet(nn.Module):
    """Luma (B, 1, H, W) to luma, changed on a grid of an eighth; nothing is changed until trained.

    Blocks of 8x8 samples become DCT coefficients in quantiser steps, the mean of each less that of
    its surroundings; a network on that grid gives the coefficients of a correction.
    """

    dct: Tensor

    def __init__(self, config: FinishConfig | None = None) -> None:
        super().__init__()
        self.config = config or FinishConfig()
        width = self.config.width
        self.first = nn.Conv2d(LUMA, width, 3, padding=1)
        self.modulate = nn.Linear(CONTEXT, 2 * width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(self.config.blocks)])
        self.last = nn.Conv2d(width, LUMA, 3, padding=1)
        for parameter in (*self.modulate.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)
        self.register_buffer("dct", block_dct(BLOCK).float()[:, :, None, None], persistent=False)

    def forward(self, luma: Tensor, qp: Tensor, features: Tensor) -> Tensor:
        """The correction (B, 1, H, W), in samples.

        Args:
            luma: 0 to 255, H and W multiples of 8. qp: (B,). features: (B, 16), see
                `context_features`.
        """
        scale = quantiser_step(qp).to(luma.dtype)[:, None, None, None]
        latent = F.conv2d(F.pixel_unshuffle(luma - GREY, BLOCK), self.dct)  # (B, 64, h, w)
        mean = latent[:, :1]
        around = F.avg_pool2d(mean, 3, stride=1, padding=1, count_include_pad=False)
        latent = torch.cat([mean - around, latent[:, 1:]], dim=1)
        x = self.first(compress(latent / scale))
        gain, shift = self.modulate(features / CONTEXT_MAX)[:, :, None, None].chunk(2, dim=1)
        change = self.last(self.blocks(x * (1 + gain) + shift))
        return F.pixel_shuffle(F.conv2d(change * scale, self.dct.transpose(0, 1)), BLOCK)

    def finish(self, reference: Reference, conditions: Conditions) -> Reference:
        """A reconstruction with its luma corrected, everything else as it was."""
        features = context_features(conditions.qp, conditions.layer, conditions.distances)
        y, u, v = reference.planes
        y = y + self(y, conditions.qp, features.to(y.dtype))
        return replace(reference, planes=within_picture((y, u, v), conditions.size))


def finished(planes: Planes, size: Size | None) -> Planes:
    """Planes within 0 to 255."""
    return within_picture(planes, size)
