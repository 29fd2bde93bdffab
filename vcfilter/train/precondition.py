"""Natural units for the linear filters while they train.

Coefficients of low frequencies are a hundred times larger than those of high ones. A step of the
optimiser that is right for the latter's weights ruins the former's, and at fine qp a relative error
of 1/1000 costs more than everything that is to be gained. While training, each linear filter
therefore stands as a matrix over frequencies, each input divided by its typical size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vcfilter.models.hierarchical.blocks import GREY, picture_dct, to_blocks
from vcfilter.models.hierarchical.image import ImageCodec
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.train.data import Samples


class Scaled(nn.Module):
    """weight = V * scale, and with a basis weight = (V * scale) @ basis over the input channels.

    Args:
        scale: broadcastable to (outputs, inputs, rows, columns).
        basis: (inputs, inputs) orthonormal map from the filter's inputs to frequencies.
    """

    def __init__(self, scale: Tensor, basis: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=True)
        self.register_buffer("basis", basis, persistent=True)
        self.scale: Tensor
        self.basis: Tensor | None
        self.held: Tensor | None = None  # the weight, where it is made for a whole step

    def forward(self, v: Tensor) -> Tensor:
        """V to the weight."""
        if self.held is not None:
            return self.held
        weight = v * self.scale
        return weight if self.basis is None else torch.einsum("ofrc,fi->oirc", weight, self.basis)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight to V."""
        if self.basis is not None:
            weight = torch.einsum("oirc,fi->ofrc", weight, self.basis)
        return weight / self.scale


def spread(samples: Samples, count: int = 16) -> Tensor:
    """(96,) root mean square of the DCT coefficients of some crops, at least 1."""
    return spread_of(to_blocks(*samples.draw([0], count)[0]))


def spread_of(blocks: Tensor) -> Tensor:
    """The same of samples in blocks (B, 96, h, w), on their device."""
    latent = torch.einsum("fi,bihw->bfhw", picture_dct().to(blocks), blocks - GREY)
    return latent.square().mean(dim=(0, 2, 3)).sqrt().clamp(min=1)


def precondition(net: VideoNet, size: Tensor) -> None:
    """Put the image codec's linear filters into natural units; size is what `spread` gives."""
    image: ImageCodec = net.image
    inputs = (1 / size).view(1, -1, 1, 1)
    register(image.analysis_linear, Scaled(inputs, picture_dct()))
    register(image.synthesis_linear, Scaled(inputs))
    for step, model in zip(image.coding.plan, image.coding.steps, strict=True):
        outputs = size[step.low : step.high].view(-1, 1, 1, 1)
        mean = model.mean
        assert isinstance(mean, nn.Conv2d)
        register(mean, Scaled(outputs * inputs[:, : mean.in_channels]))


def register(layer: nn.Module, scaled: Scaled) -> None:
    """Hold a layer's weight as V from now on."""
    parametrize.register_parametrization(layer, "weight", scaled)


def natural_units(net: nn.Module) -> list[tuple[nn.Parameter, Scaled]]:
    """V of each filter that `register` was called for, and what makes its weight."""
    found = []
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            held = module.get_submodule("parametrizations.weight")
            assert isinstance(held, parametrize.ParametrizationList)
            scaled, v = held[0], held.original
            assert isinstance(scaled, Scaled) and isinstance(v, nn.Parameter)
            found.append((v, scaled))
    return found


@torch.no_grad()
def plain(net: VideoNet) -> VideoNet:
    """A copy of the networks with ordinary weights."""
    state = {k: v.clone() for k, v in net.state_dict().items() if ".parametrizations." not in k}
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight.clone()
    copied = VideoNet(net.config)
    copied.load_state_dict(state)
    return copied
