"""The prediction of an inter frame in the latent space of the image codec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vcfilter.models.hierarchical.layers import CHANNELS, Branch, compress


class Prediction(nn.Module):
    """Corrects y_interp = g_a(x_interp) from the two moved references; zero until trained."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.branch = Branch(2 * CHANNELS, width, CHANNELS, blocks, last=1)

    def forward(self, y_interp: Tensor, apart: Tensor, base: Tensor, ctx: Tensor) -> Tensor:
        """The predicted latent (B, 96, h, w).

        Args:
            y_interp: latent of the blended picture. apart: linear latent of right minus left.
            base: (B,) quantiser step. ctx: (B, 16).
        """
        scale = base[:, None, None, None]
        inputs = torch.cat([compress(y_interp / scale), compress(apart / scale)], dim=1)
        return y_interp + scale * self.branch(inputs, ctx)
