"""The learned part: which moved frame counts where, and what all of them lack.

A small network of three resolutions, a half, a quarter and an eighth of the size, looks at the new
frame made without it and at what the frames moved to its time differ from it by. For each sample it
weighs these against each other and adds a correction. It changes nothing until trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ModelMismatchError
from vcfilter.interpolation.options import shipped
from vcfilter.models.hierarchical.blocks import BLOCK, GREY, Planes
from vcfilter.models.weights import read_weights, write_weights
from vcfilter.nn.blocks import SLOPE, Conv2d

ARCHITECTURE = "between"
NUMERICS = 2  # generation of the arithmetic
MAPS = 4
TIMES = 3  # features of the time
BLUR = 7  # samples, each way, of the mean that a hidden place may be closest to
CANDIDATES = 4  # what a sample is moved towards: far, linear, outer and blurred
HALF = 2  # samples of luma per position of the finest resolution, each way
UNIT, GREY_UNIT = 4.0, 64.0  # of differences and of luma, in samples
ADDED = 4.0  # of corrections of luma, in samples
FEATURES = 256  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class BetweenConfig:
    """Size of the network.

    Args:
        half, quarter, eighth: features at these shares of the size.

    Raises:
        ModelMismatchError: a value is out of range.
    """

    half: int = 16
    quarter: int = 32
    eighth: int = 48

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= FEATURES:
                raise ModelMismatchError(f"{name} {value!r} is outside 1 to {FEATURES}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """What a new frame can be made of; all planes are (B, 1, H, W) and twice (B, 1, H/2, W/2).

    Args:
        blended: the new frame without the network.
        near, far: the frames before and after it, moved to it.
        linear: the new frame with linear motion.
        outer: lumas of the frames before and after these two, moved to it; `blended`'s where there
            is none.
        maps: (B, MAPS, H/8, W/8) squared errors in 8-bit units: between the moved frames, between
            frames before and after the two and these (0 where there is none), and between the
            new frame with quadratic and with linear motion.
        time: (B,) of the new frame, 0 to 1.
    """

    blended: Planes
    near: Planes
    far: Planes
    linear: Planes
    outer: tuple[Tensor, Tensor]
    maps: Tensor
    time: Tensor


class _Residual(nn.Module):
    """Two 3x3 convolutions whose result is added; nothing until trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(F.leaky_relu(self.first(x), SLOPE))
        return x + changed


class BetweenNet(nn.Module):
    """Corrects a new frame; see the module."""

    def __init__(self, config: BetweenConfig | None = None) -> None:
        super().__init__()
        self.config = config or BetweenConfig()
        half, quarter, eighth = self.config.half, self.config.quarter, self.config.eighth
        luma = HALF * HALF
        self.first = Conv2d(luma * 6 + 2 + MAPS, half, 3, padding=1)
        self.time = nn.Linear(TIMES, half, bias=False)
        self.to_quarter = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.before = _Residual(quarter)
        self.to_eighth = nn.Conv2d(quarter, eighth, 3, stride=2, padding=1)
        self.lowest = _Residual(eighth)
        self.from_eighth = Conv2d(eighth, quarter, 1)
        self.after = _Residual(quarter)
        self.from_quarter = Conv2d(quarter, half, 1)
        self.mixed = Conv2d(half, half, 3, padding=1)
        self.last = Conv2d(half, luma * (CANDIDATES + 1) + 2, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, candidates: Candidates) -> Planes:
        """The new frame, not yet within 0 to 255."""
        y, u, v = candidates.blended
        before, after = candidates.outer
        blurred = F.avg_pool2d(F.pad(y, (BLUR // 2,) * 4, mode="replicate"), BLUR, 1)
        far, *chroma = (q - p for p, q in zip(candidates.near, candidates.far, strict=True))
        linear, blurred = candidates.linear[0] - y, blurred - y
        before, after = before - y, after - y
        found = self._network(candidates, (far, linear, before, after, blurred), chroma)
        luma, extra = found[:, :-2], found[:, -2:]
        gates = F.pixel_shuffle(luma, HALF)  # (B, CANDIDATES + 1, H, W), the last a correction
        towards = torch.cat([far, linear, (before + after) / 2, blurred], dim=1)
        added = (gates[:, :CANDIDATES] * towards).sum(1, keepdim=True) + ADDED * gates[:, -1:]
        share = luma[:, : HALF * HALF].mean(1, keepdim=True)
        u, v = (
            plane + share * other + extra[:, n : n + 1]
            for n, (plane, other) in enumerate(zip((u, v), chroma, strict=True))
        )
        return y + added, u, v

    def _network(
        self, candidates: Candidates, apart: Sequence[Tensor], chroma: Sequence[Tensor]
    ) -> Tensor:
        """(B, outputs, H/2, W/2) of differences of luma and of chroma."""
        grey = (candidates.blended[0] - GREY) / GREY_UNIT
        parts = [_squeezed(F.pixel_unshuffle(each / UNIT, HALF)) for each in apart]
        parts += [F.pixel_unshuffle(grey, HALF), *(_squeezed(each / UNIT) for each in chroma)]
        maps = torch.log1p(candidates.maps) / 2
        parts.append(F.interpolate(maps, scale_factor=BLOCK // HALF, mode="bilinear"))
        t = candidates.time.to(grey.dtype)
        time = self.time(torch.stack([t, 1 - t, 4 * t * (1 - t)], dim=1))[:, :, None, None]
        half = F.leaky_relu(self.first(torch.cat(parts, dim=1)) + time, SLOPE)
        quarter = self.before(F.leaky_relu(self.to_quarter(half), SLOPE))
        eighth = self.lowest(F.leaky_relu(self.to_eighth(quarter), SLOPE))
        quarter = self.after(quarter + _doubled(self.from_eighth(eighth)))
        half = half + _doubled(self.from_quarter(quarter))
        half = half + F.leaky_relu(self.mixed(half), SLOPE)
        found: Tensor = self.last(half)
        return found

    def complexity(self) -> float:
        """Thousands of multiply-accumulates per luma sample of a new frame."""
        eighth = {self.to_eighth, self.lowest.first, self.lowest.second, self.from_eighth}
        half = {self.first, self.mixed, self.last}
        found = 0.0
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                side = 8 if layer in eighth else 2 if layer in half else 4
                found += layer.weight.numel() / side**2
        return found / 1000


def _squeezed(x: Tensor) -> Tensor:
    """Near x where it is small; grows as its logarithm."""
    return x.sign() * torch.log1p(x.abs())


def _doubled(x: Tensor) -> Tensor:
    """(B, C, h, w) at twice the size."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")


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
