"""What the networks know of a frame besides pixels and symbols: qp, place and quantiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from vcfilter.frames import FrameStep
from vcfilter.fused import fused
from vcfilter.models.hierarchical.blocks import Size
from vcfilter.models.hierarchical.mode import HierarchicalMode

KNOTS = 9  # the hat functions over qp stand at 0, 8 ... 64
LAYERS = 4  # deeper temporal layers share the last one
CONTEXT = KNOTS + LAYERS + 3  # all references are past, refinement, their distance
REFINED = KNOTS + LAYERS + 1  # which feature says how much finer than the base a level is
CONTEXT_MAX = 32  # of each feature
FAR = (2, 3, 4, 6, 8, 12, 16, 24)  # distances at which "how far" rises by an eighth
KEPT = 64  # conditions that are made once
CHROMA_STEP = 0.476  # of luma's, up to qp 24
CHROMA_KNEE = 2.0 ** (20 / 6)  # base step at qp 24
CHROMA_ERROR = 0.47  # its step's square times its error's weight


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """Steps and modes of a batch of frames as tensors.

    Args:
        qp: (B,) 0 to 63. layer: (B,) temporal layer.
        distances: (B, 2) signed display distances to the references, 0 = no reference.
        level: (B,) precision of coded motion.
        refine, sharp: see `HierarchicalMode`, the same for the whole batch.
        size: rows and columns of luma inside the picture; None: all of it.
        drop: of a quality level, the base's qp less its own; 0: the base.
    """

    qp: Tensor
    layer: Tensor
    distances: Tensor
    level: Tensor
    refine: bool = False
    sharp: bool = False
    size: Size | None = None
    drop: int = 0
    _features: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def features(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(base steps (B,), `context_features` (B, 16)) in a precision, computed once."""
        found = self._features.get(dtype)
        if found is None:
            with torch.inference_mode(False):  # training may use them, too
                features = context_features(self.qp, self.layer, self.distances, self.drop)
                found = quantiser_step(self.qp).to(dtype), features.to(dtype)
            self._features[dtype] = found
        return found

    @classmethod
    def of(
        cls,
        steps: Sequence[FrameStep],
        modes: Sequence[HierarchicalMode],
        device: torch.device,
        size: Size | None = None,
    ) -> Conditions:
        """Tensors on a device; modes refine alike, and are sharp alike."""
        assert len({(mode.refine, mode.sharp) for mode in modes}) == 1, "one kind of motion"
        rows = tuple(
            (step.qp, step.layer, *signed_pair(step.references), mode.level)
            for step, mode in zip(steps, modes, strict=True)
        )
        return _of_rows(rows, modes[0].refine, modes[0].sharp, device, size)

    def finer(self, drop: int) -> Conditions:
        """Those of a quality level: the qp is smaller."""
        return replace(self, qp=self.qp - drop, drop=self.drop + drop, _features={})


@lru_cache(KEPT)
def _of_rows(
    rows: tuple[tuple[int, ...], ...],
    refine: bool,
    sharp: bool,
    device: torch.device,
    size: Size | None,
) -> Conditions:
    """Conditions by (qp, layer, two distances, level) of each frame."""
    with torch.inference_mode(False):  # training may use them, too
        table = torch.tensor(rows, device=device)
    return Conditions(table[:, 0], table[:, 1], table[:, 2:4], table[:, 4], refine, sharp, size)


def signed_pair(distances: Sequence[int]) -> tuple[int, int]:
    """The first two distances, 0 where there is none."""
    first, second, *_ = (*distances, 0, 0)
    return first, second


def all_past(distances: Tensor) -> Tensor:
    """(B,) whether a frame has references and all of them are past.

    Args:
        distances: (B, 2) signed display distances to the references, 0 = no reference.
    """
    return (distances < 0).any(1) & ~(distances > 0).any(1)


@fused
def context_features(qp: Tensor, layer: Tensor, distances: Tensor, drop: int = 0) -> Tensor:
    """(B, 16) integer-valued features of a frame, 0 to 32 each.

    Hat functions of the qp, the temporal layer one-hot, whether all references are past, how much
    finer than its base a quality level is, and (where all references are past) how far the nearest
    one is, about 8 log2. The last three are 0 for bases of keyframes and of frames between their
    references.

    Args:
        qp: (B,) 0 to 63. layer: (B,) 0 and up; those from 3 on count as one.
        distances: (B, 2) signed display distances to the references, 0 = no reference.
        drop: of a quality level, the base's qp less its own; 0: the base.
    """
    knots = torch.arange(KNOTS, device=qp.device) * 8
    hats = (8 - (qp[:, None] - knots).abs()).clamp(min=0) * (CONTEXT_MAX // 8)
    ranks = torch.arange(LAYERS, device=qp.device)
    layers = (layer.clamp(max=LAYERS - 1)[:, None] == ranks) * CONTEXT_MAX
    past = all_past(distances)
    nearest = torch.where(distances == 0, FAR[-1], distances.abs()).amin(1)
    far = sum((nearest >= limit).long() for limit in FAR) * (CONTEXT_MAX // len(FAR)) * past
    refined = torch.full_like(qp, min(drop, CONTEXT_MAX))
    rest = torch.stack([past * CONTEXT_MAX, refined, far], dim=1)
    return torch.cat([hats, layers, rest], dim=1).float()


def quantiser_step(qp: Tensor) -> Tensor:
    """The base step in 8-bit sample units: 1 at qp 4, doubling every 6, as in H.264."""
    return torch.exp2((qp.float() - 4.0) / 6.0)


def chroma_step(base: Tensor) -> Tensor:
    """Chroma's quantiser steps relative to luma's, from the base steps (B,).

    Coarse steps remove far more of luma's detail than of chroma's; equal gains in 6:1:1 PSNR per
    bit then ask for ever finer chroma (measured on training clips).
    """
    return CHROMA_STEP * (base / CHROMA_KNEE).clamp(min=1) ** -0.25


def chroma_weight(base: Tensor) -> Tensor:
    """What a squared error of a chroma sample counts, in luma's, that fits those steps."""
    return CHROMA_ERROR / chroma_step(base) ** 2
