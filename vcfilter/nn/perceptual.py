"""ST-LPIPS: the distance between two images as a network that knows objects sees it.

Shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022): the features of a classification network whose
strides are preceded by low-pass filters, normalised per position, their squared differences weighed
per channel. Architecture and weighing follow the paper; the weights are read from the package
`stlpips_pytorch`, of which no code is run: it needs other packages that it does not name, and parts
of it are licensed for non-commercial use only. Its weights are BSD-2-Clause.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ConfigError

PACKAGE = "stlpips_pytorch"
EXTRA = "train-perceptual"


class StLpips(nn.Module):
    """Distance of images (B, 3, H, W), samples -1 to 1, sides at least 32.

    Args:
        network: "vgg" (VGG16, to train with) or "alex" (AlexNet, to judge with).

    Raises:
        ConfigError: its weights are not installed.
    """

    def __init__(self, network: str) -> None:
        super().__init__()
        if network not in ("vgg", "alex"):
            raise ConfigError(f"network {network!r} of ST-LPIPS is not vgg or alex")
        self.network = network
        path = weights_path(network)
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.convolutions = nn.ModuleList()
        for stage in _stages(state):
            layers = nn.ModuleList()
            for weight, bias in stage:
                outputs, inputs, side, _ = weight.shape
                # The first layer of AlexNet pads less than half of its filters' side.
                padding = 2 if side == 11 else side // 2
                layer = nn.Conv2d(inputs, outputs, side, padding=padding)
                layer.weight.data, layer.bias.data = weight, bias  # type: ignore[union-attr]
                layers.append(layer)
            self.convolutions.append(layers)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        for number in range(len(self.convolutions)):
            self.register_buffer(f"share{number}", state[f"lin{number}.model.1.weight"])
        self.eval().requires_grad_(False)

    def features(self, images: Tensor, stages: int = 5) -> list[Tensor]:
        """Normalised features of the first stages, (B, C, h, w) each."""
        x = (images - self.shift) / self.scale
        found = []
        for number, stage in enumerate(self.convolutions[:stages]):
            if self.network == "vgg":
                if number:
                    x = blur(F.max_pool2d(x, 2, stride=1))
                for layer in stage:  # type: ignore[attr-defined]
                    x = F.relu(layer(x))
            else:
                if number in (1, 2):
                    x = blur(F.max_pool2d(x, 3, stride=1))
                x = stage[0](x)  # type: ignore[index]
                x = F.relu(blur(x) if number == 0 else x)
            whole = x.float()
            found.append(whole / (whole.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """(B,) distance of what `features` gave of two images."""
        total = torch.zeros(len(first[0]), device=first[0].device)
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            share = getattr(self, f"share{number}")
            total = total + F.conv2d((a - b).square(), share).mean((1, 2, 3))
        return total

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B,) distances, 0 for equal images."""
        return self.distance(self.features(images), self.features(others))


def weights_path(network: str) -> Path:
    """Where the weights lie.

    Raises:
        ConfigError: they are not installed.
    """
    spec = util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        path = Path(place) / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
        if path.is_file():
            return path
    raise ConfigError(
        f"ST-LPIPS needs the weights of {PACKAGE}: install vcfilter with the extra {EXTRA}"
    )


def available() -> bool:
    """Whether the weights are installed."""
    try:
        weights_path("alex")
    except ConfigError:
        return False
    return True


def blur(x: Tensor) -> Tensor:
    """Every second sample of x each way, after a low-pass of 1 2 1; the border is mirrored."""
    kernel = x.new_tensor([1.0, 2.0, 1.0]) / 4
    weight = torch.outer(kernel, kernel).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), weight, stride=2, groups=x.shape[1])


def _stages(state: dict[str, Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(weight, bias) of the convolutions of each stage."""
    for number in range(1, 6):
        head = f"net.slice{number}."
        places = sorted(
            int(name[len(head) :].split(".")[0])
            for name in state
            if name.startswith(head) and name.endswith(".bias")
        )
        yield [(state[f"{head}{p}.weight"], state[f"{head}{p}.bias"]) for p in places]
