"""A second, small model for tests: other widths, weights drawn at random, a working codec."""

from __future__ import annotations

from pathlib import Path

import torch

from vcfilter.entropy import tables
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.model import save
from vcfilter.models.hierarchical.net import VideoNet

SMALL = HierarchicalConfig(
    image_width=16,
    analysis_blocks=1,
    synthesis_blocks=1,
    image_hidden=32,
    motion_width=8,
    motion_hidden=32,
    prediction_width=16,
    prediction_blocks=1,
)


def small_net(seed: int = 0) -> VideoNet:
    """Networks that code with tables that fit nothing well, and corrections that are small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = VideoNet(SMALL)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith("index_context.bias"):
                    parameter.fill_(80.0)  # table 20
                elif name.endswith((".index.weight", ".index_linear.weight")):
                    parameter.normal_(0, 0.01)
                elif name.endswith("last.weight"):
                    parameter.normal_(0, 0.003)
    return net


def write_small_model(path: Path, name: str = "small", seed: int = 0) -> bytes:
    """Write its weights file; returns the model's id."""
    card = {"data": "none, random weights", "licence": "MIT"}
    return save(str(path), small_net(seed), tables.laplace_magnitudes(), name, card)
