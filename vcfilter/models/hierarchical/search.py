"""The encoder's search for motion: flow, the blend that suits it, and a field from the best parts.

Dense search follows texture that repeats or noise into any direction; global motion,
fitted to all of the field, is right in such places and costs next to nothing. Both are brought
as near to the picture as they come, and each position takes what is cheaper there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.models.hierarchical.blocks import BLOCK, Planes
from vcfilter.models.hierarchical.conditions import Conditions, quantiser_step
from vcfilter.models.hierarchical.motion import BLEND_SHARE, field_step
from vcfilter.models.hierarchical.refine import gauss_newton
from vcfilter.models.hierarchical.values import MotionField, Pair
from vcfilter.nn.warp import enlarge, median3, warp_luma

LEVEL = 3  # of motion, for which fields are compared
WINDOW = 5  # positions, each way, whose errors are counted together
GAIN = 0.97  # a field of two parts has to cost less than this share
COARSE_SIZES = (8, 4, 2, 1)  # parts of the size, of which those are used that divide it
COARSE_ROUNDS = 6  # Gauss-Newton steps at each, half as many at the last
COARSE_STIFFNESS = 0.05  # of the fit, per halving of the size, which weakens gradients
GLOBAL_ROUNDS = 6  # of the robust fit
GLOBAL_FITS = 2
CHOICE_ROUNDS = 3


def estimate_motion(
    conditions: Conditions, x: Planes, references: Pair, scale: int = 1, rounds: int = 2
) -> MotionField:
    """Dense motion from x to its references, see `estimate_field`.

    Outside the picture (conditions.size), motion goes on as at the border.
    """
    first, second = (reference.planes[0] for reference in references)
    finer = [r.planes[0] if r.halves is None else r.halves for r in references]
    alone = not bool(conditions.distances[0, 1])
    base = quantiser_step(conditions.qp)
    found = estimate_field(x[0], first, None if alone else second, base, scale, rounds, finer)
    return MotionField(*found).within(conditions.size)


def estimate_field(
    x: Tensor,
    left: Tensor,
    right: Tensor | None,
    base: Tensor,
    scale: int,
    rounds: int,
    finer: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Motion from a picture to its references, and the blend that fits them best.

    Args:
        x, left, right: (B, 1, H, W) luma, 0 to 255; right is None where there is one reference.
        base: (B,) quantiser step of the picture. scale: the search works at 1/scale of the size.
        rounds: Gauss-Newton steps at the end; above 1, global motion is tried as well.
        finer: what takes the references' place after the search, see `linearise`.

    Returns:
        The field (B, 5, H/8, W/8), see `MotionCodec`, and what its errors cost, see `linearise`.
    """
    flow = estimate_flow(x, left, scale)
    if right is None:
        field = torch.cat([flow, torch.zeros_like(flow), torch.zeros_like(flow[:, :1])], dim=1)
        return gauss_newton(x, finer[0] if finer else left, None, field, rounds)
    flow_right = estimate_flow(x, right, scale)
    if finer:
        left, right = finer
    weight = estimate_blend(x, warp_luma(left, flow, BLOCK), warp_luma(right, flow_right, BLOCK))
    field = torch.cat([flow, flow_right, weight], dim=1)
    if rounds > 1:
        field, _ = gauss_newton(x, left, right, field, 1)
        field = with_global_motion(x, left, right, field, base)
    return gauss_newton(x, left, right, field, rounds)


def coarse_to_fine(
    x: Tensor, left: Tensor, right: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Motion and blend by Gauss-Newton steps from an eighth of the size to all of it.

    No value is read by the host: on a GPU this replaces the dense search.

    Args:
        start: (B, 5, H/8, W/8), where the steps begin. The rest, and what is returned: see
            `estimate_field`.
    """
    rows, columns = x.shape[2:]
    fits = [n for n in COARSE_SIZES if not (rows % (BLOCK * n) or columns % (BLOCK * n))]
    before = fits[0]
    field = scaled(F.avg_pool2d(start, before), 1 / before)
    for size in fits:
        if size < before:
            field = scaled(enlarge(field, before // size), before / size)
        now, first = (F.avg_pool2d(plane, size) for plane in (x, left))
        second = None if right is None else F.avg_pool2d(right, size)
        rounds = COARSE_ROUNDS if size > 1 else COARSE_ROUNDS // 2
        stiffness = COARSE_STIFFNESS ** math.log2(size)
        field, hessian = gauss_newton(now, first, second, field, rounds, stiffness)
        before = size
    return field, hessian


def scaled(field: Tensor, factor: float) -> Tensor:
    """A field (B, 5, h, w) whose displacements count in other units."""
    return torch.cat([field[:, :4] * factor, field[:, 4:]], dim=1)


def with_global_motion(
    x: Tensor, left: Tensor, right: Tensor, field: Tensor, base: Tensor
) -> Tensor:
    """A field (B, 5, h, w), replaced by global motion where that is cheaper.

    Cost is the squared error of the prediction plus, weighted as the picture's step asks, bits
    that grow with the distance from the median of the neighbours.
    """
    step = field_step(base, torch.full_like(base, LEVEL))[:, None, None, None]
    unit = torch.tensor([1.0, 1.0, 1.0, 1.0, BLEND_SHARE], device=x.device)[:, None, None] / step
    price = QUANTISER_LAMBDA * base[:, None, None, None] ** 2

    def bits(field: Tensor, neighbours: Tensor) -> Tensor:
        return price * torch.log2(1 + (field - neighbours).abs() * unit).sum(1, keepdim=True)

    def gains(cost: Tensor, total: Tensor) -> Tensor:
        return cost.mean((1, 2, 3)) < GAIN * total.mean((1, 2, 3))

    weight = texture(x)
    moves = [global_motion(field[:, :2], weight), global_motion(field[:, 2:4], weight)]
    steady = torch.cat([*moves, torch.zeros_like(weight)], dim=1)
    error = block_sse(x, left, right, field)
    total = error + bits(field, median3(field))
    least = torch.minimum(over_window(total), over_window(block_sse(x, left, right, steady)))
    if not bool(gains(least, total).any()):
        return field
    steady, _ = gauss_newton(x, left, right, steady, GLOBAL_FITS)
    errors = over_window(error), over_window(block_sse(x, left, right, steady))
    parts = torch.where(
        errors[1].mean((1, 2, 3), True) < errors[0].mean((1, 2, 3), True), steady, field
    )
    for _ in range(CHOICE_ROUNDS):
        neighbours = median3(parts)
        costs = [e + bits(f, neighbours) for e, f in zip(errors, (field, steady), strict=True)]
        parts = torch.where(costs[1] < costs[0], steady, field)
    better = gains(block_sse(x, left, right, parts) + bits(parts, median3(parts)), total)
    return torch.where(better[:, None, None, None], parts, field)


def block_sse(x: Tensor, left: Tensor, right: Tensor, field: Tensor) -> Tensor:
    """(B, 1, h, w): sum of the prediction's squared errors over each position's 8x8 samples."""
    a, b = warp_luma(left, field[:, :2], BLOCK), warp_luma(right, field[:, 2:4], BLOCK)
    alpha = enlarge((field[:, 4:] + 1) / 2, BLOCK)
    return F.avg_pool2d((x - a - alpha * (b - a)) ** 2, BLOCK) * BLOCK * BLOCK


def over_window(error: Tensor) -> Tensor:
    """Means over WINDOW x WINDOW positions; the border repeats."""
    return F.avg_pool2d(F.pad(error, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, 1)


def global_motion(flow: Tensor, weight: Tensor) -> Tensor:
    """The affine motion that most of a flow (B, 2, h, w) follows, at every position.

    A robust fit: positions that disagree lose their weight, more so from round to round.

    Args:
        weight: (B, 1, h, w) texture, see `texture`.
    """
    rows, columns = flow.shape[2:]
    y = torch.linspace(-1, 1, rows, device=flow.device)[:, None].expand(rows, columns)
    x = torch.linspace(-1, 1, columns, device=flow.device).expand(rows, columns)
    terms = torch.stack([torch.ones_like(x), x, y], dim=-1).flatten(0, 1)  # (hw, 3)
    wanted = flow.flatten(2).transpose(1, 2)  # (B, hw, 2)
    trust = (weight / (weight + 20)).flatten(1)[..., None] + 1e-4
    own, scale = trust, 8.0
    ridge = 1e-3 * torch.eye(3, device=flow.device)
    for _ in range(GLOBAL_ROUNDS):
        hessian = terms.T @ (own * terms) + ridge
        affine = torch.linalg.solve(hessian, terms.T @ (own * wanted))
        off = wanted - terms @ affine
        own = trust / (1 + (off**2).sum(-1, keepdim=True) / scale**2) ** 2
        scale = max(0.25, scale / 2)
    return (terms @ affine).transpose(1, 2).unflatten(2, (rows, columns))


def estimate_flow(x: Tensor, reference: Tensor, scale: int) -> Tensor:
    """Dense inverse search (OpenCV, medium) from x to reference, pooled to the 1/8 grid.

    Args:
        x, reference: (B, 1, H, W) luma, 0 to 255. scale: 1, or 2 to search at half the size.

    Returns:
        (B, 2, H/8, W/8): displacements in luma samples, smoothed where the picture is flat.
    """
    fields = []
    for a, b in zip(x[:, 0], reference[:, 0], strict=True):
        now, past = (p.detach().clamp(0, 255).round().to(torch.uint8).cpu().numpy() for p in (a, b))
        if scale > 1:
            size = (now.shape[1] // scale, now.shape[0] // scale)
            now = cv2.resize(now, size, interpolation=cv2.INTER_AREA)
            past = cv2.resize(past, size, interpolation=cv2.INTER_AREA)
        if min(now.shape) < 32:  # the search needs a pyramid of some levels
            fields.append(np.zeros((2, a.shape[0] // BLOCK, a.shape[1] // BLOCK), np.float32))
            continue
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = search.calc(now, past, None) * scale  # type: ignore[call-overload]
        flow = cv2.resize(
            flow, (a.shape[1] // BLOCK, a.shape[0] // BLOCK), interpolation=cv2.INTER_AREA
        )
        fields.append(np.ascontiguousarray(flow.transpose(2, 0, 1)))
    flow_tensor = torch.from_numpy(np.stack(fields)).to(x.device)
    return smooth(flow_tensor, texture(x))


def texture(x: Tensor) -> Tensor:
    """(B, 1, H/8, W/8) mean squared gradient of luma (B, 1, H, W) per block."""
    dx = F.pad((x[..., 2:] - x[..., :-2]) / 2, (1, 1, 0, 0))
    dy = F.pad((x[..., 2:, :] - x[..., :-2, :]) / 2, (0, 0, 1, 1))
    return F.avg_pool2d(dx**2 + dy**2, BLOCK)


def smooth(flow: Tensor, weight: Tensor) -> Tensor:
    """Each position's flow pulled towards its neighbours' where they have more texture."""
    kernel = torch.tensor([1.0, 2.0, 1.0], device=flow.device)
    kernel = torch.outer(kernel, kernel) / 16
    kernel[1, 1] = 0

    def spread(t: Tensor) -> Tensor:
        weights = kernel.expand(t.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(t, (1, 1, 1, 1), mode="replicate"), weights, groups=t.shape[1])

    own = weight + 1.0
    for _ in range(2):
        neighbours = spread(own)
        flow = (flow * own + 0.5 * spread(flow * own)) / (own + 0.5 * neighbours)
    return flow


def estimate_blend(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Blend in -1 ... 1 per block by least squares, drawn to 0 where unsure.

    Args:
        x, left, right: (B, 1, H, W) luma of the picture and the two moved references.

    Returns:
        (B, 1, H/8, W/8).
    """
    apart = (right - left) / 2
    gain = F.avg_pool2d(apart * (x - (right + left) / 2), BLOCK)
    return (gain / (F.avg_pool2d(apart**2, BLOCK) + 4.0)).clamp(-1, 1)
