"""The image codec: keyframes are coded with it, and inter frames' residuals in its latent space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vcfilter.models.hierarchical.blocks import GREY, picture_dct
from vcfilter.models.hierarchical.conditions import CONTEXT, CONTEXT_MAX
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.latent import LatentModel, checkerboard, pyramid
from vcfilter.nn.blocks import Branch, Conv2d, compress, same_place


class ImageCodec(nn.Module):
    """Blocks of samples (B, 96, h, w) to a latent of the same shape and back, and its coding.

    It begins as an orthonormal DCT (8x8 luma, 4x4 chroma); lapped linear filters and the nonlinear
    branches are learned on top.
    """

    chroma: Tensor

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        channels, width = config.channels, config.image_width
        dct = picture_dct()
        self.analysis_linear = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.synthesis_linear = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.analysis_linear.weight.data = same_place(dct)
        self.synthesis_linear.weight.data = same_place(dct.T)
        self.analysis_branch = Branch(
            channels,
            width,
            channels,
            config.analysis_blocks,
            last=1,
            context=CONTEXT,
            context_max=CONTEXT_MAX,
        )
        self.synthesis_branch = Branch(
            2 * channels,
            width,
            channels,
            config.synthesis_blocks,
            last=3,
            context=CONTEXT,
            context_max=CONTEXT_MAX,
        )
        plan = (
            *pyramid(config.low),
            *checkerboard(config.low, config.middle),
            *checkerboard(config.middle, channels),
        )
        self.coding = LatentModel(
            channels, plan, config.image_hidden, config.mean_radius, config.middle
        )
        self.log_step = nn.Linear(CONTEXT, channels, bias=False)
        nn.init.zeros_(self.log_step.weight)
        chroma = (dct[:, 64:].abs().sum(1) > 0).float()
        self.register_buffer("chroma", chroma, persistent=False)

    def analyse(self, blocks: Tensor, base: Tensor, features: Tensor) -> Tensor:
        """g_a: samples 0 to 255 in blocks (B, 96, h, w) to the latent."""
        centred = blocks - GREY
        scale = base[:, None, None, None]
        linear = self.analysis_linear(centred)
        return linear + scale * self.analysis_branch(compress(linear / scale), features)

    def synthesise(self, latent: Tensor, symbols: Tensor, base: Tensor, features: Tensor) -> Tensor:
        """g_s: the latent, and the symbols that refined it, to samples in blocks."""
        learned = self._learned(latent, symbols, base, features)
        return self.synthesis_linear(latent) + learned + GREY

    def correct(
        self,
        blocks: Tensor,
        expected: Tensor,
        latent: Tensor,
        symbols: Tensor,
        base: Tensor,
        features: Tensor,
    ) -> Tensor:
        """A picture in blocks, changed by the difference of two syntheses.

        Where the latent is as expected, the picture stays as it is: sent through analysis and
        synthesis it would lose a little each time.

        Args:
            blocks: the predicted picture, less what the branch makes of its latent, see
                `without_learned`. expected: its latent. latent, symbols: what was coded.
        """
        learned = self._learned(latent, symbols, base, features)
        return blocks + self.synthesis_linear(latent - expected) + learned

    def without_learned(
        self, blocks: Tensor, latent: Tensor, base: Tensor, features: Tensor
    ) -> Tensor:
        """A picture in blocks less what the synthesis branch would add to it for its latent."""
        return blocks - self._learned(latent, torch.zeros_like(latent), base, features)

    def _learned(self, latent: Tensor, symbols: Tensor, base: Tensor, features: Tensor) -> Tensor:
        """The synthesis branch's part, in samples.

        In training no gradient passes back through the branch: what it learns holds at quantised
        values, its slope there says nothing about values between, and the analysis would follow it.
        """
        scale = base[:, None, None, None]
        inputs = torch.cat([compress(latent / scale), compress(symbols)], dim=1).detach()
        return scale * self.synthesis_branch(inputs, features)
