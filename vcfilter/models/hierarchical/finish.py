"""The finish: a correction of shown frames for looks, outside the coding loop.

Frames that others are predicted from stay as they are, so a stream decodes alike with any look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.errors import ModelMismatchError
from vcfilter.frames import FrameStep, VideoFormat
from vcfilter.models.hierarchical.blocks import BLOCK, GREY, block_dct, dct_matrix, zigzag
from vcfilter.models.hierarchical.conditions import (
    CONTEXT,
    CONTEXT_MAX,
    context_features,
    quantiser_step,
    signed_pair,
)
from vcfilter.models.hierarchical.values import Reference
from vcfilter.models.weights import BELONGS, FINISH, read_weights, write_weights
from vcfilter.nn.blocks import Block, compress
from vcfilter.nn.native import has_onednn, is_native
from vcfilter.nn.precision import full_precision
from vcfilter.nn.winograd import Winograd

NUMERICS = 2  # generation of the arithmetic
LUMA = BLOCK * BLOCK  # coefficients of a block
BANDS = 4  # two octaves, each across and down
FAINT = 0.003  # of a squared quantiser step: energy that halves the usual gains, at the start
NEW = 0.25  # of a quantiser step: a unit of the coefficients that are added


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
    the nine around it. A network on that grid gives gains of the finest bands, which are
    spread bilinearly and so know no grid, and the coefficients of what else is changed. Nothing is
    added that alternates from one sample to the next.
    """

    dct: Tensor

    def __init__(self, config: FinishConfig | None = None) -> None:
        super().__init__()
        self.config = config or FinishConfig()
        width = self.config.width
        self.first = nn.Conv2d(LUMA, width, 3, padding=1)
        self.modulate = nn.Linear(CONTEXT, 2 * width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(self.config.blocks)])
        self.last = nn.Conv2d(width, LUMA + BANDS, 3, padding=1)
        self.usual = nn.Linear(CONTEXT, BANDS)  # gains of what is faint, that hang on the frame
        self.log_faint = nn.Parameter(torch.full((BANDS,), math.log(FAINT)))
        for layer in (self.modulate, self.last, self.usual):
            for parameter in layer.parameters():
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
        latent = torch.cat([mean - _mean_of_nine(mean), latent[:, 1:]], dim=1)
        x = self.first(compress(latent / scale))
        gain, shift, usual = self.conditions(features)
        change = self.last(self.blocks(x * (1 + gain) + shift))  # (B, 68, h, w)
        new = F.conv2d(change[:, :LUMA] * (NEW * scale), self.dct.transpose(0, 1))
        fine = bands(luma)
        gains = change[:, LUMA:] + usual * self.faint(fine, scale)
        gains = F.interpolate(gains, scale_factor=BLOCK, mode="bilinear")
        return without_alternation(
            F.pixel_shuffle(new, BLOCK) + (gains * fine).sum(1, keepdim=True)
        )

    def conditions(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What hangs on the frame: gain and shift of features, usual gains; (B, C, 1, 1) each."""
        context = features / CONTEXT_MAX
        gain, shift = self.modulate(context)[:, :, None, None].chunk(2, dim=1)
        return gain, shift, self.usual(context)[:, :, None, None]

    def faint(self, fine: Tensor, scale: Tensor) -> Tensor:
        """(B, 4, h, w) 1 where a band has little energy, towards 0 where it was coded well.

        Args:
            fine: (B, 4, H, W) bands. scale: (B, 1, 1, 1) quantiser steps.
        """
        energy = _mean_of_nine(F.avg_pool2d(fine.square(), BLOCK))
        usual = self.faint_energy(scale)
        return usual / (usual + energy)

    def faint_energy(self, scale: Tensor) -> Tensor:
        """(B, 4, 1, 1) mean squares of bands that halve the usual gains."""
        return self.log_faint.exp()[:, None, None] * scale.square()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _FrameValues:
    """What hangs on the frame alone, see `FinishNet`; all but scale (C,)."""

    scale: float
    gain: Tensor
    shift: Tensor
    usual: Tensor
    faint: Tensor


class _FinishLoops:
    """What `FinishNet` does to luma on a CPU, by native loops and oneDNN.

    The same rule in fewer passes: the bands, their gains and all sums in one loop, the DCT in
    another; the inverse DCT is a part of the last layer.
    """

    def __init__(self, net: FinishNet) -> None:
        self._net = net
        first_bias, last_bias = net.first.bias, net.last.bias
        assert first_bias is not None and last_bias is not None
        natural = [row * BLOCK + column for row, column in zigzag(BLOCK)]
        first = torch.empty_like(net.first.weight)
        first[:, natural] = net.first.weight
        basis = net.dct[:, :, 0, 0].T
        last, bias = net.last.weight.clone(), last_bias.clone()
        last[:LUMA] = torch.einsum("sf,fikl->sikl", basis, last[:LUMA])
        bias[:LUMA] = basis @ bias[:LUMA]
        self._first, self._last = Winograd(first), Winograd(last, bias)
        self._first_bias = first_bias
        self._basis = dct_matrix(BLOCK).float().numpy()
        self._values = lru_cache(maxsize=256)(self._values_of)

    def apply(self, luma: Tensor, qp: int, layer: int, pair: tuple[int, int]) -> Tensor:
        """Luma (1, 1, H, W) corrected, within 0 to 255."""
        from vcfilter._native import finish  # late: training needs none

        frame = self._values(qp, layer, pair)
        plane, found = luma[0, 0].contiguous().numpy(), torch.empty(luma.shape)
        x = torch.empty(1, plane.shape[0] // BLOCK, plane.shape[1] // BLOCK, LUMA)
        finish.coefficients(plane, self._basis, 1 / frame.scale, x[0].numpy())
        x = self._first(x.permute(0, 3, 1, 2), frame.gain, frame.shift)
        change = self._last(self._net.blocks(x))  # (1, 68, h, w), 64 in samples
        finish.add_bands(
            plane,
            change[0].permute(1, 2, 0).numpy(),
            NEW * frame.scale,
            frame.usual.numpy(),
            frame.faint.numpy(),
            found[0, 0].numpy(),
        )
        return found

    def _values_of(self, qp: int, layer: int, pair: tuple[int, int]) -> _FrameValues:
        net, qps = self._net, torch.tensor([qp])
        features = context_features(qps, torch.tensor([layer]), torch.tensor([pair]))
        gain, shift, usual = (x.flatten() for x in net.conditions(features))
        scale = quantiser_step(qps)
        return _FrameValues(
            scale=float(scale),
            gain=1 + gain,
            shift=self._first_bias * (1 + gain) + shift,
            usual=usual,
            faint=net.faint_energy(scale).flatten(),
        )


class HierarchicalFinish:
    """One loaded finish on one device; see `models.base.Finish`."""

    def __init__(self, net: FinishNet, finish_id: bytes, device: torch.device) -> None:
        net = net.to(device).eval().requires_grad_(False)
        self.net: FinishNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.id = finish_id
        self._device = device
        with torch.inference_mode():
            self._loops = _FinishLoops(net) if is_native(net.dct) and has_onednn() else None

    def apply(self, reference: Any, step: FrameStep, video_format: VideoFormat) -> Reference:
        """What is shown of a reconstruction: its luma corrected, everything else as it was."""
        with torch.inference_mode(), full_precision(self._device):
            y, u, v = reference.planes
            pair = signed_pair(step.references)
            if self._loops is not None and has_onednn():
                y = self._loops.apply(y, step.qp, step.layer, pair)
            else:
                qp = torch.tensor([step.qp], device=y.device)
                layer = torch.tensor([step.layer], device=y.device)
                features = context_features(qp, layer, torch.tensor([pair], device=y.device))
                y = (y + self.net(y, qp, features)).clamp(0, 255)
        changed: Reference = replace(reference, planes=(y, u, v))
        return changed


def save_finish(
    path: str, net: FinishNet, model_id: bytes, name: str, card: Mapping[str, str]
) -> bytes:
    """Write a finish's weights file, complete or not at all; returns its id.

    Raises:
        ModelMismatchError: it would not be read again.
    """
    return write_weights(
        path,
        name=name,
        architecture=FINISH,
        numerics=NUMERICS,
        config=asdict(net.config),
        card={**card, BELONGS: model_id.hex()},
        tensors=net.state_dict(),
    )


def load_finish(path: str, device: torch.device) -> HierarchicalFinish:
    """The finish of a weights file on a device.

    Raises:
        MediaError, ModelMismatchError: the file cannot be used.
    """
    file = read_weights(path)
    if file.architecture != FINISH or file.numerics != NUMERICS:
        raise ModelMismatchError(
            f"{path!r} holds {file.architecture!r} of generation {file.numerics}; this version "
            f"knows {FINISH!r} of generation {NUMERICS}"
        )
    unknown = sorted(set(file.config) - {field.name for field in fields(FinishConfig)})
    if unknown:
        raise ModelMismatchError(f"{path!r} has a configuration with {', '.join(unknown)}")
    net = FinishNet(FinishConfig(**file.config))
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in file.tensors.items()}
    if wanted != found or any(t.dtype != torch.float32 for t in file.tensors.values()):
        raise ModelMismatchError(f"{path!r} does not fit its configuration")
    net.load_state_dict(dict(file.tensors))
    return HierarchicalFinish(net, file.id, device)


def bands(luma: Tensor) -> Tensor:
    """(B, 4, H, W) what binomial filters of 5 taps, and of 5 taps 2 apart, take from luma."""
    found = []
    for distance in (1, 2):
        across, down = smooth(luma, distance, 3), smooth(luma, distance, 2)
        found += [luma - across, luma - down]
        luma = smooth(across, distance, 2)
    return torch.cat(found, dim=1)


def _mean_of_nine(x: Tensor) -> Tensor:
    """Means of each value and those around it inside."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def smooth(x: Tensor, distance: int, dimension: int) -> Tensor:
    """x (B, 1, H, W) after a low-pass of 1 4 6 4 1 along a dimension; the border repeats."""
    return _filtered(x, (1.0, 4.0, 6.0, 4.0, 1.0), distance, dimension)


def without_alternation(x: Tensor) -> Tensor:
    """x (B, 1, H, W) without what alternates from one sample to the next, both ways."""
    for dimension in (3, 2):
        x = _filtered(x, (-1.0, 4.0, 10.0, 4.0, -1.0), 1, dimension)
    return x


def _filtered(x: Tensor, sixteenths: Sequence[float], distance: int, dimension: int) -> Tensor:
    """x (B, 1, H, W) after five taps along a dimension; the border repeats."""
    reach, across = 2 * distance, dimension == 3
    pad = (reach, reach, 0, 0) if across else (0, 0, reach, reach)
    weight = (x.new_tensor(sixteenths) / 16).view((1, 1, 1, 5) if across else (1, 1, 5, 1))
    return F.conv2d(F.pad(x, pad, mode="replicate"), weight, dilation=distance)
