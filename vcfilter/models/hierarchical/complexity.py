"""What a frame costs to decode: multiply-accumulates per luma sample, by part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vcfilter.frames import FrameType
from vcfilter.models.hierarchical.layers import CHANNELS
from vcfilter.models.hierarchical.video import (
    CodingStep,
    Conditions,
    MotionMode,
    Reference,
    VideoModel,
)
from vcfilter.nn.exact import ExactLayer

SIDE = 256
# Interpolation is not a layer: 20 MACs per bicubic and 4 per bilinear sample, two
# references; the fields' upsampling and the blend add about 14 more per luma sample.
WARP_MACS = 2 * (20 + 2 * 4 / 4) + 14
COUNTED = (nn.Conv2d, nn.Linear, ExactLayer)
PARTS = {
    "image.analysis_linear": "analysis",
    "image.analysis_branch": "analysis",
    "image.synthesis_linear": "synthesis",
    "image.synthesis_branch": "synthesis",
    "image.coding": "entropy and means",
    "motion.coding": "motion",
    "motion.branch": "motion",
    "prediction": "prediction",
}


class _Zeros:
    """A coder that reads only zeros."""

    def symbols(self, index: Tensor) -> Tensor:
        return torch.zeros_like(index)


def complexity(model: VideoModel) -> dict[str, dict[str, float]]:
    """kMAC per luma sample to decode, {"keyframe" | "inter": {part: figure, ..., "total": sum}}."""
    return {"keyframe": _count(model, FrameType.KEY), "inter": _count(model, FrameType.INTER)}


@torch.inference_mode()
def _count(model: VideoModel, kind: FrameType) -> dict[str, float]:
    net, device = model.net, model.device
    shape = torch.Size((1, CHANNELS, SIDE // 8, SIDE // 8))
    key = Conditions.of([CodingStep(kind=FrameType.KEY, qp=30)], device)

    def keyframe() -> Reference:
        parsed = net.parse(MotionMode.NONE, True, key, None, shape, _Zeros())
        return net.keyframe(key, None, shape, parsed)

    reference = keyframe()
    found = dict.fromkeys(PARTS.values(), 0.0)

    def count(part: str, module: nn.Module, out: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        found[part] += out.numel() * weight[0].numel() / SIDE**2 / 1000

    hooks = [
        module.register_forward_hook(lambda m, _, out, part=part: count(part, m, out))
        for prefix, part in PARTS.items()
        for name, module in net.named_modules()
        if name.startswith(prefix) and isinstance(module, COUNTED)
    ]
    try:
        if kind is FrameType.KEY:
            keyframe()
        else:
            step = CodingStep(kind=kind, qp=32, layer=1, distances=(-1, 1), motion=MotionMode.CODED)
            given = Conditions.of([step], device)
            pair = (reference, reference)
            parsed = net.parse(step.motion, True, given, pair, shape, _Zeros())
            net.inter(step.motion, True, given, None, pair, parsed)
            found["warping"] = WARP_MACS / 1000
    finally:
        for hook in hooks:
            hook.remove()
    found["total"] = sum(found.values())
    return {k: round(v, 3) for k, v in found.items()}
