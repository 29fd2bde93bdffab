"""Many small tensors moved to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64
"""Values; parts begin at multiples of so many."""


def packed_to(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Float32 tensors on the host moved to a device in one copy."""
    ends = np.cumsum([-(-part.numel() // ALIGNED) * ALIGNED for part in parts]).tolist()
    whole = torch.zeros(ends[-1])
    for part, start in zip(parts, [0, *ends], strict=False):
        whole[start : start + part.numel()] = part.reshape(-1)
    moved = whole.to(device)
    return [
        moved[start : start + part.numel()].view(part.shape)
        for part, start in zip(parts, [0, *ends], strict=False)
    ]
