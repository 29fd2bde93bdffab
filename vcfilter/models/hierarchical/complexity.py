"""What a frame costs to decode: multiply-accumulates per luma sample, by part."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vcfilter.frames import FrameStep, FrameType
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.loop_filter import EACH
from vcfilter.models.hierarchical.mode import KEY_MODE, HierarchicalMode, MotionMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.values import Reference

SIDE = 256
# Interpolation is not counted: 24 MACs per sample for those halfway between, 20 per bicubic and 4
# per bilinear sample, two references; the fields' upsampling and the blend add about 14 more.
WARP_MACS = 2 * (24 + 20 + 2 * 4 / 4) + 14
# Of luma 12 differences cut off, 6 sums and their 6 weights; of chroma as many, at half the size.
FILTER_MACS = 4 * EACH * (1 + 2 / 4)
PARTS = {
    "image.analysis_linear": "analysis",
    "image.analysis_branch": "analysis",
    "image.synthesis_linear": "synthesis",
    "image.synthesis_branch": "synthesis",
    "image.coding": "entropy and means",
    "motion.coding": "motion",
    "motion.branch": "motion",
    "prediction.branch": "prediction",
}
KEY = FrameStep(type=FrameType.KEY, qp=30)
INTER = FrameStep(type=FrameType.INTER, qp=32, layer=1, number=1, references=(-1, 1))


class _Zeros:
    """A coder that reads only zeros."""

    def symbols(self, index: Tensor) -> Tensor:
        return torch.zeros_like(index)


def complexity(net: VideoNet) -> dict[str, dict[str, float]]:
    """kMAC per luma sample to decode, {"keyframe" | "inter": {part: figure, ..., "total": sum}}."""
    return {"keyframe": _count(net, False), "inter": _count(net, True)}


class _Decode(nn.Module):
    """Decodes a frame as a module's forward pass: the counter names layers from there on."""

    def __init__(self, net: VideoNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, mode: HierarchicalMode, conditions: Conditions, reference: Reference | None
    ) -> Reference:
        shape = self.net.latent_shape(1, SIDE, SIDE)
        pair = None if reference is None else (reference, reference)
        contexts = None if reference is None else (reference.context, reference.context)
        symbols = self.net.parse(mode.motion, True, conditions, contexts, shape, _Zeros())
        return self.net.reconstruct(mode.motion, conditions, symbols, pair)


@torch.enable_grad()
def _count(net: VideoNet, inter: bool) -> dict[str, float]:
    # Where gradients pass no native loop works, which would not be counted.
    net = copy.deepcopy(net).requires_grad_(True)
    coded = HierarchicalMode(motion=MotionMode.CODED, level=3)
    device = net.image.analysis_linear.weight.device
    decode, key = _Decode(net), Conditions.of([KEY], [KEY_MODE], device)
    reference = decode(KEY_MODE, key, None)
    with FlopCounterMode(display=False) as counter:
        if inter:
            decode(coded, Conditions.of([INTER], [coded], device), reference)
        else:
            decode(KEY_MODE, key, None)
    counts = counter.get_flop_counts()
    found = dict.fromkeys(PARTS.values(), 0.0)
    for name, module in net.named_modules():
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), None)
        if part is not None and not list(module.children()):
            flops = sum(counts.get(f"_Decode.net.{name}", {}).values())
            found[part] += flops / 2 / SIDE**2 / 1000
    found["loop filter"] = FILTER_MACS / 1000
    if inter:
        found["warping"] = WARP_MACS / 1000
    found["total"] = sum(found.values())
    return {k: round(v, 3) for k, v in found.items()}
