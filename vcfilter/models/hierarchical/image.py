"""The image codec: keyframes are coded with it, and inter frames' residuals in its latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vcfilter.models.hierarchical.latent import LatentModel, checkerboard, pyramid
from vcfilter.models.hierarchical.layers import (
    CHANNELS,
    CONTEXT,
    GREY,
    Branch,
    chroma_step,
    compress,
    picture_dct,
)

LOW = 12  # lowest frequencies of Y, U and V: coded coarse to fine
MIDDLE = 33
PLAN = (*pyramid(LOW), *checkerboard(LOW, MIDDLE), *checkerboard(MIDDLE, CHANNELS))


def same_place(matrix: Tensor) -> Tensor:
    """A (out, in) matrix as the centre of a 3x3 convolution's weights."""
    weight = torch.zeros(*matrix.shape, 3, 3)
    weight[:, :, 1, 1] = matrix
    return weight


class ImageCodec(nn.Module):
    """Blocks of samples (B, 96, h, w) to a latent of the same shape and back, and its coding.

    It begins as an orthonormal DCT (8x8 luma, 4x4 chroma); lapped linear filters and the nonlinear
    branches are learned on top.
    """

    def __init__(self, width: int, analysis_blocks: int, synthesis_blocks: int) -> None:
        super().__init__()
        dct = picture_dct()
        self.analysis_linear = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.synthesis_linear = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.analysis_linear.weight.data = same_place(dct)
        self.synthesis_linear.weight.data = same_place(dct.T)
        self.analysis_branch = Branch(CHANNELS, width, CHANNELS, analysis_blocks, last=1)
        self.synthesis_branch = Branch(2 * CHANNELS, width, CHANNELS, synthesis_blocks, last=3)
        self.coding = LatentModel(CHANNELS, PLAN, hidden=96, radius=1)
        self.log_step = nn.Linear(CONTEXT, CHANNELS, bias=False)
        nn.init.zeros_(self.log_step.weight)
        self.register_buffer("chroma", (dct[:, 64:].abs().sum(1) > 0).float())
        self.chroma: Tensor

    def quantum(self, base: Tensor, ctx: Tensor) -> Tensor:
        """(B, 96) quantiser steps from the base steps (B,) and the context (B, 16)."""
        shape = 1 + (chroma_step(base)[:, None] - 1) * self.chroma
        return base[:, None] * shape * torch.exp(self.log_step(ctx / 32.0))

    def analyse(self, blocks: Tensor, base: Tensor, ctx: Tensor) -> Tensor:
        """g_a: samples 0 to 255 in blocks (B, 96, h, w) to the latent."""
        centred = blocks - GREY
        scale = base[:, None, None, None]
        linear = self.analysis_linear(centred)
        return linear + scale * self.analysis_branch(compress(linear / scale), ctx)

    def synthesise(self, latent: Tensor, symbols: Tensor, base: Tensor, ctx: Tensor) -> Tensor:
        """g_s: the latent, and the symbols that refined it, to samples in blocks."""
        return self.synthesis_linear(latent) + self._learned(latent, symbols, base, ctx) + GREY

    def correct(
        self,
        blocks: Tensor,
        expected: Tensor,
        latent: Tensor,
        symbols: Tensor,
        base: Tensor,
        ctx: Tensor,
    ) -> Tensor:
        """A picture in blocks, changed by the difference of two syntheses.

        Where the latent is as expected, the picture stays as it is: sent through analysis and
        synthesis it would lose a little each time.

        Args:
            blocks: the predicted picture, less what the branch makes of its latent, see
                `without_learned`. expected: its latent. latent, symbols: what was coded.
        """
        learned = self._learned(latent, symbols, base, ctx)
        return blocks + self.synthesis_linear(latent - expected) + learned

    def without_learned(self, blocks: Tensor, latent: Tensor, base: Tensor, ctx: Tensor) -> Tensor:
        """A picture in blocks less what the synthesis branch would add to it for its latent."""
        return blocks - self._learned(latent, torch.zeros_like(latent), base, ctx)

    def _learned(self, latent: Tensor, symbols: Tensor, base: Tensor, ctx: Tensor) -> Tensor:
        """The synthesis branch's part, in samples.

        In training no gradient passes back through the branch: what it learns holds at quantised
        values, its slope there says nothing about values between, and the analysis would follow it.
        """
        scale = base[:, None, None, None]
        inputs = torch.cat([compress(latent / scale), compress(symbols)], dim=1).detach()
        return scale * self.synthesis_branch(inputs, ctx)
