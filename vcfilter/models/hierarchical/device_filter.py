"""The loop filter in few operators, for devices that wait for their start; see `loop_filter`.

Differences to neighbours, and all that is linear in them, are results of one convolution, whose
filters are made on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical import loop_filter as rule
from vcfilter.models.hierarchical.loop_filter import MAIN, LoopFilter
from vcfilter.nn.packed import packed_to


def filtered(loop_filter: LoopFilter, y: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """`LoopFilter.apply` of luma (1, 1, H, W) and chroma (1, 2, H/2, W/2)."""
    luma, chroma = loop_filter.luma, loop_filter.chroma
    parts = packed_to([*_luma_filters(luma), *_chroma_filters(chroma)], y.device)
    changed = y
    if any(luma):
        found = _near(y, parts[0])
        clipped = F.conv2d(found[:, :MAIN].clamp(-rule.CLIP, rule.CLIP), parts[1])
        sharp = torch.linalg.vector_norm(found[:, MAIN + 2 :], 1, dim=1, keepdim=True)
        sharp = F.pad(sharp, (rule.REACH,) * 4, mode="replicate")
        mean = F.avg_pool2d(sharp, 2 * rule.REACH + 1, stride=1)
        busy = mean / (mean + rule.BUSY)
        changed = (found[:, MAIN : MAIN + 1] + clipped).addcmul_(
            busy, found[:, MAIN + 1 : MAIN + 2]
        )
    if any(chroma):
        found = _near(torch.cat([uv, F.avg_pool2d(y, 2)], dim=1), parts[2])
        clipped = found[:, : 2 * MAIN].clamp(-rule.CLIP, rule.CLIP)
        uv = found[:, 2 * MAIN :] + F.conv2d(clipped, parts[3], groups=2)
    return changed, uv


def _near(planes: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(F.pad(planes, (rule.REACH,) * 4, mode="replicate"), kernels)


@lru_cache(1)
def _sides() -> Tensor:
    """(12, 5, 5): the difference of each neighbour to the sample, of pairs and their opposites."""
    side, middle = 2 * rule.REACH + 1, rule.REACH
    kernels = torch.zeros(MAIN, side, side)
    for number, (down, right) in enumerate(rule.PAIRS):
        for sign, at in ((1, number), (-1, number + rule.EACH)):
            kernels[at, middle + sign * down, middle + sign * right] = 1
            kernels[at, middle, middle] = -1
    return kernels


def _weighted(coefficients: Sequence[int], unit: int) -> Tensor:
    """(5, 5) kernel of pairs' whole differences, each times its coefficient."""
    weights = torch.tensor(coefficients, dtype=torch.float32) / unit
    return (_sides() * weights.repeat(2)[:, None, None]).sum(0)


def _luma_filters(coefficients: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Kernels (16, 1, 5, 5) of differences, of the sample with whole ones, of those that count by
    activity, and of what activity is made of; and weights (1, 12, 1, 1) of what is cut off."""
    clipped, whole, busy = (coefficients[i : i + rule.EACH] for i in (0, rule.EACH, MAIN))
    sides = _sides()
    linear = _weighted(whole, rule.UNIT)
    linear[rule.REACH, rule.REACH] += 1
    second = sides[:2] + sides[rule.EACH : rule.EACH + 2]
    rest = torch.stack([linear, _weighted(busy, rule.BUSY_UNIT)])
    weights = torch.tensor(clipped, dtype=torch.float32) / rule.UNIT
    return torch.cat([sides, rest, second])[:, None], weights.repeat(2).view(1, -1, 1, 1)


def _chroma_filters(coefficients: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Kernels (26, 3, 5, 5) of U, V and luma at their size: both planes' differences, and each with
    whole ones of itself and of luma; and weights (2, 12, 1, 1) of what is cut off."""
    clipped, whole, *cross = (
        coefficients[i : i + rule.EACH] for i in range(0, len(coefficients), rule.EACH)
    )
    kernels = torch.zeros(2 * MAIN + 2, 3, *_sides().shape[1:])
    for plane in range(2):
        kernels[plane * MAIN : (plane + 1) * MAIN, plane] = _sides()
        kernels[2 * MAIN + plane, plane] = _weighted(whole, rule.UNIT)
        kernels[2 * MAIN + plane, plane, rule.REACH, rule.REACH] += 1
        kernels[2 * MAIN + plane, 2] = _weighted(cross[plane], rule.UNIT)
    weights = torch.tensor(clipped, dtype=torch.float32) / rule.UNIT
    return kernels, weights.repeat(2).view(1, -1, 1, 1).repeat(2, 1, 1, 1)
