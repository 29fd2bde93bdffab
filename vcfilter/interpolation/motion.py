"""Motion from one frame to another: dense search and global motion, the better per position.

Dense inverse search follows repeated texture into any direction; global motion, fitted to all of
the field and from there to the frame, is right in such places. Gauss-Newton steps bring both
nearer to the frame than the search does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.blocks import BLOCK
from vcfilter.models.hierarchical.refine import FIT_DAMPING, FIT_PULL, FIT_STEP
from vcfilter.models.hierarchical.search import (
    estimate_flow,
    global_motion,
    over_window,
    texture,
)
from vcfilter.nn.warp import enlarge, gradients, kernel_sums, neighbour_mean, warp

DENSE_BONUS = 0.9
"""Other candidates replace the dense search where they leave less than this share of its error."""
NOISE = 0.2  # squared error per sample, in 8-bit units, that no candidate is better by
AFFINE_RIDGE = 1e-4
AFFINE_STEP = 3.0  # samples, the largest correction of one step
LIGHT_WINDOW = 9  # positions, each way
TEXTURE_FLOOR = 4.0  # squared gradient per sample below which errors say little of motion


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much the search tries.

    Args:
        dense_rounds: Gauss-Newton steps on the dense search's flow.
        affine_rounds, global_rounds: steps on global motion as a whole, then per position.
        global_scale: 1, or 2: global motion is fitted at half the size.
        half: search at half the size as a third candidate.
        sides: each frame is moved by its own motion, and the two results averaged; otherwise both
            motions are averaged.
    """

    dense_rounds: int
    affine_rounds: int
    global_rounds: int
    global_scale: int = 1
    half: bool = False
    sides: bool = True


EFFORTS = {
    "fast": Effort(dense_rounds=1, affine_rounds=1, global_rounds=3, global_scale=1, sides=False),
    "medium": Effort(dense_rounds=2, affine_rounds=4, global_rounds=4),
    "slow": Effort(dense_rounds=3, affine_rounds=4, global_rounds=8, half=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Motion from a frame x to a reference.

    Args:
        flow: (1, 2, H/8, W/8) displacements in luma samples.
        error: (1, 1, H, W) what the reference moved onto x differs by, see `difference`.
    """

    flow: Tensor
    error: Tensor


def estimate_motion(x: Tensor, reference: Tensor, effort: Effort) -> Motion:
    """Motion from luma x to a reference, both (1, 1, H, W), 0 to 255, multiples of 16."""
    start = x.new_zeros(1, 2, x.shape[2] // BLOCK, x.shape[3] // BLOCK)
    found = estimate_flow(x, reference, 1, start)
    flows = [fit_local(x, reference, found, effort.dense_rounds)]
    flows.append(_global_flow(x, reference, found, effort))
    if effort.half:
        flow = estimate_flow(x, reference, 2, start)
        flows.append(fit_local(x, reference, flow, effort.dense_rounds))
    errors = [(x - warp(reference, enlarge(flow, BLOCK), "bilinear")) ** 2 for flow in flows]
    costs = [over_window(F.avg_pool2d(error, BLOCK) + NOISE) for error in errors]
    costs[0] = costs[0] * DENSE_BONUS
    best = torch.stack(costs).argmin(0)  # (1, 1, h, w)
    flow = flows[0]
    for index, other in enumerate(flows[1:], 1):
        flow = torch.where(best == index, other, flow)
    return Motion(flow, difference(x, warp(reference, enlarge(flow, BLOCK), "bilinear")))


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Squared differences of lumas (1, 1, H, W), in 8-bit units, without what changes the light of
    a whole neighbourhood: a fade is no occlusion.
    """
    apart = a - b
    mean = box_mean(F.avg_pool2d(apart, BLOCK), LIGHT_WINDOW)
    return (apart - enlarge(mean, BLOCK)) ** 2


def box_mean(values: Tensor, side: int) -> Tensor:
    """Means of (1, 1, H, W) over side x side places; the border repeats."""
    return F.avg_pool2d(F.pad(values, (side // 2,) * 4, mode="replicate"), side, 1)


def _global_flow(x: Tensor, reference: Tensor, flow: Tensor, effort: Effort) -> Tensor:
    """Global motion of a flow, brought nearer to the frame."""
    steady = global_motion(flow, texture(x))
    scale = effort.global_scale
    if scale > 1:
        x, reference = F.avg_pool2d(x, scale), F.avg_pool2d(reference, scale)
    block = BLOCK // scale
    steady = fit_affine(x, reference, steady / scale, effort.affine_rounds, block)
    return fit_local(x, reference, steady, effort.global_rounds, block) * scale


def fit_local(
    x: Tensor, reference: Tensor, flow: Tensor, rounds: int, block: int = BLOCK
) -> Tensor:
    """The flow, corrected per position so that the moved reference fits x better.

    As `refine.gauss_newton`, with one reference and no blend.

    Args:
        block: samples of x per position of the flow, each way; the flow is in samples of x.
    """
    size = block * block
    for _ in range(rounds):
        xx, xy, yy, ex, ey, _ = _sums(x, reference, flow, block)
        drawn = FIT_PULL[0] * size * (neighbour_mean(flow) - flow)
        ex, ey = ex + drawn[:, 0], ey + drawn[:, 1]
        damping = (FIT_DAMPING[0] + FIT_PULL[0]) * size
        xx, yy = xx + damping, yy + damping
        scale = 1 / (xx * yy - xy * xy)
        step = torch.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], dim=1)
        flow = flow + step.clamp(-FIT_STEP, FIT_STEP)
    return flow


def fit_affine(
    x: Tensor, reference: Tensor, flow: Tensor, rounds: int, block: int = BLOCK
) -> Tensor:
    """An affine flow, corrected as a whole; positions that disagree lose their weight."""
    rows, columns = flow.shape[2:]
    down = torch.linspace(-1, 1, rows, device=x.device)[:, None].expand(rows, columns)
    across = torch.linspace(-1, 1, columns, device=x.device).expand(rows, columns)
    terms = torch.stack([torch.ones_like(down), across, down], dim=-1).flatten(0, 1)  # (hw, 3)
    for _ in range(rounds):
        sums = [each[0].flatten() for each in _sums(x, reference, flow, block)]
        xx, xy, yy, ex, ey, ee = sums
        off = ee / (xx + yy + block * block * TEXTURE_FLOOR)  # about squared displacement
        trust = 1 / (1 + (off / (2 * off.median() + 1e-6)) ** 2)

        def product(values: Tensor, trust: Tensor = trust) -> Tensor:
            return terms.T @ ((values * trust)[:, None] * terms)

        mixed = product(xy)
        upper = torch.cat([product(xx), mixed], dim=1)
        hessian = torch.cat([upper, torch.cat([mixed, product(yy)], dim=1)])
        wanted = torch.cat([terms.T @ (ex * trust), terms.T @ (ey * trust)])
        ridge = AFFINE_RIDGE * hessian.diagonal().mean() + 1e-3
        change = torch.linalg.solve(hessian + ridge * torch.eye(6, device=x.device), wanted)
        step = (terms @ change.view(2, 3).T).T.reshape(1, 2, rows, columns)
        flow = flow + step.clamp(-AFFINE_STEP, AFFINE_STEP)
    return flow


def _sums(x: Tensor, reference: Tensor, flow: Tensor, block: int) -> tuple[Tensor, ...]:
    """Sums per position of the moved reference's gradients and its error: six of (1, h, w)."""
    near = warp(reference, enlarge(flow, block), "bicubic")
    (gx, gy), error = gradients(near), x - near
    products = [gx * gx, gx * gy, gy * gy, gx * error, gy * error, error * error]
    return kernel_sums(products, block).unbind(1)
