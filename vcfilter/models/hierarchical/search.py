"""The encoder's search for motion: flow, the blend that suits it, and a field from the best parts.

Dense search follows texture that repeats or noise into any direction; global motion,
fitted to all of the field, is right in such places and costs next to nothing. Both are brought
as near to the picture as they come, and each position takes what is cheaper there.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.entropy.coder import QUANTISER_LAMBDA
from vcfilter.fused import fused
from vcfilter.models.hierarchical.blocks import BLOCK, Planes
from vcfilter.models.hierarchical.conditions import Conditions, quantiser_step
from vcfilter.models.hierarchical.motion import BLEND_SHARE, field_step
from vcfilter.models.hierarchical.refine import Warped, gauss_newton, solve, warped_by
from vcfilter.models.hierarchical.values import MotionField, Pair
from vcfilter.nn.flow import SMALLEST, fine_search
from vcfilter.nn.native import is_native
from vcfilter.nn.warp import constant, enlarge, median3, warp_luma

LEVEL = 3  # of motion, for which fields are compared
SEARCH_SCALE = 2  # the references are searched at half the size: fewer bits than at full size
WINDOW = 5  # positions, each way, whose errors are counted together
LITTLE = 0.04  # of the quantiser's squared error
GAIN = 0.97  # a field of two parts has to cost less than this share
GLOBAL_ROUNDS = 6  # of the robust fit
GLOBAL_FITS = 2
CHOICE_ROUNDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a fit begins.

    Args:
        field: (B, 5, h, w), see `MotionCodec`. warped: the references moved by it, the second None
            where there is one. texture: of the picture, see `texture`.
    """

    field: Tensor
    warped: Warped
    texture: Tensor


class MotionSearch:
    """Motion from a picture to its references, as `MotionField`s.

    Args:
        x: the picture. references: the second one counts where conditions know it.
    """

    def __init__(self, conditions: Conditions, x: Planes, references: Pair) -> None:
        used = references[: 1 + bool(conditions.distances[0, 1])]
        self._x, self._size = x[0], conditions.size
        self._lumas = [reference.planes[0] for reference in used]
        self._finer = [r.planes[0] if r.halves is None else r.halves for r in used]
        self._base = quantiser_step(conditions.qp)

    def start(self, flows: Sequence[Tensor] = ()) -> Start:
        """Where the fit of dense flows begins.

        Args:
            flows: (B, 2, H/8, W/8) to each reference; none: those of a search.
        """
        flows = flows or dense_flows(self._x, self._lumas)
        return start_field(self._x, flows, self._finer)

    def cost(self, start: Start) -> float:
        """What a field's prediction and bits cost before it is fitted, for comparisons."""
        a, b = start.warped
        error = block_sse(self._x, (a, a if b is None else b), start.field)
        unit, price = _prices(self._base)
        return float((error + _field_bits(start.field, median3(start.field), unit, price)).mean())

    def fitted(self, start: Start, rounds: int) -> MotionField:
        """The field that fits best, see `fit_start`; outside the picture it is as at the border."""
        found = fit_start(self._x, start, self._finer, self._base, rounds)
        return MotionField(*found).within(self._size)

    def remainder(self, motion: MotionField) -> float:
        """See `remainder`."""
        return remainder(self._x, self._lumas, motion.field, self._base)


def estimate_motion(
    conditions: Conditions, x: Planes, references: Pair, rounds: int = 2
) -> MotionField:
    """Dense motion from x to its references, see `fit_start`."""
    search = MotionSearch(conditions, x, references)
    return search.fitted(search.start(), rounds)


def fit_field(
    x: Tensor,
    flows: Sequence[Tensor],
    references: Sequence[Tensor],
    base: Tensor,
    rounds: int,
    *,
    waits: bool = True,
) -> tuple[Tensor, Tensor]:
    """The field that begins with dense flows to one or two references, see `fit_start`."""
    start = start_field(x, flows, references)
    return fit_start(x, start, references, base, rounds, waits=waits)


def start_field(x: Tensor, flows: Sequence[Tensor], references: Sequence[Tensor]) -> Start:
    """Dense flows, smoothed, and the blend that suits them.

    Args:
        x: (B, 1, H, W) luma, 0 to 255. references: one or two, see `linearise`.
        flows: (B, 2, H/8, W/8) to each, see `dense_flow`.
    """
    weight = texture(x)
    field = smooth(torch.cat([*flows], dim=1), weight)
    if len(flows) == 1:
        moved: Warped = warp_luma(references[0], field, BLOCK), None
        field = torch.cat([field, torch.zeros_like(field), torch.zeros_like(field[:, :1])], dim=1)
    else:
        both = moved = warped_by(field, *references)
        field = torch.cat([field, estimate_blend(x, *both)], dim=1)
    return Start(field, moved, weight)


def fit_start(
    x: Tensor,
    start: Start,
    references: Sequence[Tensor],
    base: Tensor,
    rounds: int,
    *,
    waits: bool = True,
) -> tuple[Tensor, Tensor]:
    """Motion from a picture to one or two references, and the blend that fits them best.

    Args:
        x, references: as of `start_field`. base: (B,) quantiser step of the picture.
        rounds: Gauss-Newton steps at the end; above 1, global motion is tried as well.
        waits: whether the host may read values, see `with_global_motion`.

    Returns:
        The field (B, 5, H/8, W/8), see `MotionCodec`, and what its errors cost, see `linearise`.
    """
    field, moved = start.field, start.warped
    if len(references) == 1:
        return gauss_newton(x, references[0], None, field, rounds, moved)
    left, right = references
    if rounds > 1:
        field, _ = gauss_newton(x, left, right, field, 1, moved)
        field, moved = with_global_motion(x, left, right, field, base, start.texture, waits=waits)
    return gauss_newton(x, left, right, field, rounds, moved)


def remainder(x: Tensor, references: Sequence[Tensor], field: Tensor, base: Tensor) -> float:
    """Squared error that a field (1, 5, H/8, W/8) leaves, as a share of what no motion leaves; 0
    where it is little beside the quantiser's.

    Args:
        x: (1, 1, H, W) luma. references: one or two of the same. base: (1,) quantiser step of x.
    """
    left, right = references[0], references[-1]
    if len(references) == 1:
        field = torch.cat([field[:, :2], field[:, :2], field[:, 4:]], dim=1)
    still = ((x - (left + right) / 2) ** 2).mean()
    moved = block_sse(x, warped_by(field, left, right), field).mean() / BLOCK**2
    return float(torch.where(moved > LITTLE * base[0] ** 2 / 12, moved / still, 0.0))


def with_global_motion(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    field: Tensor,
    base: Tensor,
    weight: Tensor,
    *,
    waits: bool = True,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A field (B, 5, h, w), replaced by global motion where that is cheaper.

    Cost is the squared error of the prediction plus, weighted as the picture's step asks, bits
    that grow with the distance from the median of the neighbours.

    Args:
        weight: (B, 1, h, w) texture of x, see `texture`.
        waits: whether the host may read values: it then ends where global motion cannot pay.
            Without, no operator makes the host wait for a GPU.

    Returns:
        The field, and the references moved by it.
    """
    unit, price = _prices(base)

    def bits(field: Tensor, neighbours: Tensor) -> Tensor:
        return _field_bits(field, neighbours, unit, price)

    def gains(cost: Tensor, total: Tensor) -> Tensor:
        return cost.mean((1, 2, 3)) < GAIN * total.mean((1, 2, 3))

    both = torch.cat([field[:, :2], field[:, 2:4]])
    steady = global_motion(both, torch.cat([weight, weight]), waits=waits)
    steady = torch.cat([*steady.chunk(2), torch.zeros_like(weight)], dim=1)
    usual, moved = warped_by(field, left, right), warped_by(steady, left, right)
    error = block_sse(x, usual, field)
    total = error + bits(field, median3(field))
    least = torch.minimum(over_window(total), over_window(block_sse(x, moved, steady)))
    if waits and not bool(gains(least, total).any()):
        return field, usual
    steady, _ = gauss_newton(x, left, right, steady, GLOBAL_FITS, moved)
    moved = warped_by(steady, left, right)
    errors = over_window(error), over_window(block_sse(x, moved, steady))
    parts = torch.where(
        errors[1].mean((1, 2, 3), True) < errors[0].mean((1, 2, 3), True), steady, field
    )
    for _ in range(CHOICE_ROUNDS):
        neighbours = median3(parts)
        costs = [e + bits(f, neighbours) for e, f in zip(errors, (field, steady), strict=True)]
        parts = torch.where(costs[1] < costs[0], steady, field)
    moved = warped_by(parts, left, right)
    better = gains(block_sse(x, moved, parts) + bits(parts, median3(parts)), total)
    better = better[:, None, None, None]
    a, b = (torch.where(better, *each) for each in zip(moved, usual, strict=True))
    return torch.where(better, parts, field), (a, b)


def _prices(base: Tensor) -> tuple[Tensor, Tensor]:
    """What `_field_bits` takes: inverted steps of components, and what a bit is worth."""
    step = field_step(base, torch.full_like(base, LEVEL))[:, None, None, None]
    scales = constant((1.0, 1.0, 1.0, 1.0, BLEND_SHARE), step.dtype, step.device)
    return scales[:, None, None] / step, QUANTISER_LAMBDA * base[:, None, None, None] ** 2


@fused
def _field_bits(field: Tensor, neighbours: Tensor, unit: Tensor, price: Tensor) -> Tensor:
    """(B, 1, h, w) about what bits of differences from the neighbours are worth."""
    return price * torch.log2(1 + (field - neighbours).abs() * unit).sum(1, keepdim=True)


def block_sse(x: Tensor, warped: tuple[Tensor, Tensor], field: Tensor) -> Tensor:
    """(B, 1, h, w): sum of the prediction's squared errors over each position's 8x8 samples.

    Args:
        warped: both references, moved by the field.
    """
    a, b = warped
    blend = field[:, 4:]
    if is_native(x, a, b, blend):
        from vcfilter._native import motion  # late: training needs none

        planes = (t[:, 0].contiguous().numpy() for t in (x, a, b, blend))
        found = [motion.errors(*each) for each in zip(*planes, strict=True)]
        return torch.from_numpy(np.stack(found))[:, None]
    alpha = enlarge((blend + 1) / 2, BLOCK)
    return F.avg_pool2d((x - a - alpha * (b - a)) ** 2, BLOCK) * BLOCK * BLOCK


def over_window(error: Tensor) -> Tensor:
    """Means over WINDOW x WINDOW positions; the border repeats."""
    return F.avg_pool2d(F.pad(error, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, 1)


def global_motion(flow: Tensor, weight: Tensor, *, waits: bool = True) -> Tensor:
    """The affine motion that most of a flow (B, 2, h, w) follows, at every position.

    A robust fit: positions that disagree lose their weight, more so from round to round.

    Args:
        weight: (B, 1, h, w) texture, see `texture`.
        waits: the systems are solved by LAPACK, whose errors the host reads; else by elimination.
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
        target = terms.T @ (own * wanted)
        affine = torch.linalg.solve(hessian, target) if waits else _eliminated(hessian, target)
        unit = constant((scale,), flow.dtype, flow.device)
        own = _trust(trust, wanted, terms @ affine, unit)
        scale = max(0.25, scale / 2)
    return (terms @ affine).transpose(1, 2).unflatten(2, (rows, columns))


@fused
def _eliminated(normal: Tensor, target: Tensor) -> Tensor:
    """(B, 3, n) solutions of small systems (B, 3, 3) with right sides (B, 3, n)."""
    rows = [list(row.unbind(1)) for row in normal[..., None].unbind(1)]
    return torch.stack(solve(rows, list(target.unbind(1))), dim=1)


@fused
def _trust(trust: Tensor, wanted: Tensor, fitted: Tensor, scale: Tensor) -> Tensor:
    """(B, hw, 1) trust in positions, less where the fit is off by more than a scale (1,)."""
    off = wanted - fitted
    return trust / (1 + (off**2).sum(-1, keepdim=True) / scale**2) ** 2


def dense_flow(x: Tensor, reference: Tensor) -> Tensor:
    """Dense inverse search (OpenCV) from x to reference, pooled to the 1/8 grid.

    Args:
        x, reference: (B, 1, H, W) luma, 0 to 255.

    Returns:
        (B, 2, H/8, W/8): displacements in luma samples.
    """
    return dense_flows(x, [reference])[0]


def dense_flows(x: Tensor, references: Sequence[Tensor]) -> list[Tensor]:
    """The same to some references; beside each other where the networks have several threads."""
    now, *past = (
        t[:, 0].detach().clamp(0, 255).round().to(torch.uint8).cpu().numpy()
        for t in (x, *references)
    )
    pairs = [(one, other) for each in past for one, other in zip(now, each, strict=True)]
    if len(pairs) > 1 and torch.get_num_threads() > 1:
        with ThreadPoolExecutor(len(references)) as pool:  # none of them runs networks
            fields = list(pool.map(lambda pair: pooled_flow(*pair), pairs))
    else:
        fields = [pooled_flow(*pair) for pair in pairs]
    found = torch.from_numpy(np.stack(fields)).to(x.device)
    return list(found.split(len(now)))


def pooled_flow(x: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The same of one frame, uint8 (H, W) to (2, H/8, W/8); Python's lock is free meanwhile."""
    pooled = x.shape[1] // BLOCK, x.shape[0] // BLOCK
    scale = SEARCH_SCALE if min(x.shape) >= SMALLEST * SEARCH_SCALE else 1
    if min(x.shape) < SMALLEST:
        return np.zeros((2, *reversed(pooled)), np.float32)
    flow = fine_search(x, reference, scale)
    found = np.asarray(cv2.resize(flow, pooled, interpolation=cv2.INTER_AREA), np.float32)
    return np.ascontiguousarray(found.transpose(2, 0, 1))


def texture(x: Tensor) -> Tensor:
    """(B, 1, H/8, W/8) mean squared gradient of luma (B, 1, H, W) per block."""
    dx = F.pad((x[..., 2:] - x[..., :-2]) / 2, (1, 1, 0, 0))
    dy = F.pad((x[..., 2:, :] - x[..., :-2, :]) / 2, (0, 0, 1, 1))
    return F.avg_pool2d(dx**2 + dy**2, BLOCK)


def smooth(flow: Tensor, weight: Tensor) -> Tensor:
    """Each position's flow pulled towards its neighbours' where they have more texture."""
    # Twice as much from those beside it as from those across the corner.
    values = (1 / 16, 1 / 8, 1 / 16, 1 / 8, 0.0, 1 / 8, 1 / 16, 1 / 8, 1 / 16)
    kernel = constant(values, flow.dtype, flow.device).view(3, 3)

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
