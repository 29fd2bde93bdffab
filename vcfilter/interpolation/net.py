"""The learned part: which moved frame counts where, and what all of them lack.

One small network on the 1/8 grid looks at the new frame made without it, at what the two moved
frames differ by, and at how far motion is sure. It weighs the moved frames against each other and
adds a correction in the frequencies of 8x8 blocks (4x4 of chroma). It is zero until trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ModelMismatchError
from vcfilter.interpolation.options import shipped
from vcfilter.models.hierarchical.blocks import (
    BLOCK,
    CHANNELS,
    GREY,
    Planes,
    picture_dct,
    to_blocks,
    to_planes,
)
from vcfilter.models.weights import read_weights, write_weights
from vcfilter.nn.blocks import Branch, compress
from vcfilter.nn.warp import enlarge

ARCHITECTURE = "between"
NUMERICS = 1
MAPS = 4
GATES = 3
UNIT = 8.0  # of coefficients, in samples
CONTEXT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BetweenConfig:
    """Size of the network.

    Args:
        width: features. blocks: residual blocks.

    Raises:
        ModelMismatchError: a value is out of range.
    """

    width: int = 64
    blocks: int = 4

    def __post_init__(self) -> None:
        for name, most in (("width", 256), ("blocks", 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ModelMismatchError(f"{name} {value!r} is outside 1 to {most}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """What a new frame can be made of; all planes are (B, 1, H, W) and twice (B, 1, H/2, W/2).

    Args:
        blended: the new frame without the network.
        near, far: the frames before and after it, moved to it.
        linear: the new frame with linear motion.
        maps: (B, MAPS, H/8, W/8) squared errors in 8-bit units: between the moved frames, between
            frames before and after the two and these (0 where there is none), and between the
            new frame with quadratic and with linear motion.
        time: (B,) of the new frame, 0 to 1.
    """

    blended: Planes
    near: Planes
    far: Planes
    linear: Planes
    maps: Tensor
    time: Tensor


class BetweenNet(nn.Module):
    """Corrects a new frame; see the module."""

    dct: Tensor

    def __init__(self, config: BetweenConfig | None = None) -> None:
        super().__init__()
        self.config = config or BetweenConfig()
        self.branch = Branch(
            2 * CHANNELS + MAPS,
            self.config.width,
            CHANNELS + GATES,
            self.config.blocks,
            last=1,
            context=CONTEXT,
            context_max=1.0,
        )
        self.register_buffer("dct", picture_dct(), persistent=False)

    def forward(self, candidates: Candidates) -> Planes:
        """The new frame, not yet within 0 to 255."""
        base = self._latent([plane - GREY for plane in candidates.blended])
        apart = self._latent([q - p for p, q in zip(candidates.near, candidates.far, strict=True)])
        inputs = torch.cat(
            [compress(base / UNIT), compress(apart / UNIT), torch.log1p(candidates.maps)], dim=1
        )
        time = candidates.time.to(base.dtype)
        found = self.branch(inputs, torch.stack([time, 1 - time, 4 * time * (1 - time)], dim=1))
        added = F.conv2d(found[:, :CHANNELS] * UNIT, self.dct.T[:, :, None, None].contiguous())
        gates = found[:, CHANNELS:]
        fine = (enlarge(gates, BLOCK), *(enlarge(gates, BLOCK // 2),) * 2)
        y, u, v = (
            p
            + extra
            + sum(gate[:, n : n + 1] * (other - p) for n, other in enumerate((near, far, linear)))
            for p, near, far, linear, gate, extra in zip(
                candidates.blended,
                candidates.near,
                candidates.far,
                candidates.linear,
                fine,
                to_planes(added),
                strict=True,
            )
        )
        return y, u, v

    def _latent(self, planes: list[Tensor]) -> Tensor:
        """(B, 96, H/8, W/8) frequencies."""
        return F.conv2d(to_blocks(*planes), self.dct[:, :, None, None])

    def complexity(self) -> float:
        """Thousands of multiply-accumulates per luma sample of a new frame."""
        position = 3 * CHANNELS * CHANNELS
        for layer in self.branch.modules():
            if isinstance(layer, nn.Conv2d):
                position += layer.weight.numel()
        return position / BLOCK**2 / 1000


def save(path: str, net: BetweenNet, name: str, card: Mapping[str, str]) -> bytes:
    """Write a weights file, complete or not at all; returns its hash.

    Raises:
        ModelMismatchError: it would not be read again.
    """
    return write_weights(
        path,
        name=name,
        architecture=ARCHITECTURE,
        numerics=NUMERICS,
        config=asdict(net.config),
        card=card,
        tensors=net.state_dict(),
    )


def load(path: str) -> BetweenNet:
    """The network of a weights file, on the CPU.

    Raises:
        MediaError: there is no such file.
        ModelMismatchError: it holds no such network.
    """
    file = read_weights(path)
    if (file.architecture, file.numerics) != (ARCHITECTURE, NUMERICS):
        raise ModelMismatchError(
            f"{path!r} holds {file.architecture!r} {file.numerics}, not the network of frame "
            f"interpolation {NUMERICS}: train one with --phase between"
        )
    values: Mapping[str, Any] = file.config
    if set(values) != set(asdict(BetweenConfig())):
        raise ModelMismatchError(f"{path!r} has the configuration {dict(values)}")
    net = BetweenNet(BetweenConfig(**values))
    try:
        net.load_state_dict(dict(file.tensors))
    except RuntimeError:
        raise ModelMismatchError(f"{path!r} does not fit its configuration") from None
    return net.eval().requires_grad_(False)


@cache
def load_shipped(look: str) -> BetweenNet | None:
    """The network of the package's own weights for a look, kept; None: there are none."""
    path = shipped(look)
    return None if path is None else load(path)
