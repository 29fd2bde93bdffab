"""Motion from one frame to another: dense search and global motion, the better per position.

Dense inverse search follows repeated texture into any direction; global motion, fitted to all of
the field and from there to the frame, is right in such places. Gauss-Newton steps bring both
nearer to the frame than the search does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.refine import FIT_DAMPING, FIT_PULL, FIT_STEP
from vcfilter.models.hierarchical.search import global_motion
from vcfilter.nn.warp import enlarge, gradients, kernel_sums, neighbour_mean, warp

GRID = 4  # luma samples per position of a flow, each way
DENSE_BONUS = 0.9
"""Other candidates replace the dense search where they leave less than this share of its error."""
NOISE = 0.2  # squared error per sample, in 8-bit units, that no candidate is better by
CHOICE_WINDOW = 9  # positions, each way, whose errors are counted together
AFFINE_RIDGE = 1e-4
AFFINE_STEP = 3.0  # samples, the largest correction of one step
LIGHT_WINDOW = 17  # positions, each way
TEXTURE_FLOOR = 4.0  # squared gradient per sample below which errors say little of motion
CODED_ROUNDS = 1  # Gauss-Newton steps on coded motion
SEARCH_SIDE = 32  # samples: the search needs a pyramid of some levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much the search tries.

    Args:
        dense_rounds: Gauss-Newton steps on the dense search's flow.
        affine_rounds, global_rounds: steps on global motion as a whole, then per position.
        half: search at half the size as a third candidate.
        sides: each frame is moved by its own motion, and the two results averaged; otherwise both
            motions are averaged.
        learned: the learned part corrects what comes out.
    """

    dense_rounds: int
    affine_rounds: int
    global_rounds: int
    half: bool = False
    sides: bool = True
    learned: bool = True


EFFORTS = {
    "fast": Effort(dense_rounds=1, affine_rounds=1, global_rounds=3, sides=False, learned=False),
    "medium": Effort(dense_rounds=2, affine_rounds=4, global_rounds=4),
    "slow": Effort(dense_rounds=3, affine_rounds=4, global_rounds=8, half=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Motion from a frame x to a reference.

    Args:
        flow: (1, 2, H/4, W/4) displacements in luma samples.
        error: (1, 1, H/4, W/4) what the reference moved onto x differs by, see `difference`.
    """

    flow: Tensor
    error: Tensor


def estimate_motion(x: Tensor, reference: Tensor, effort: Effort) -> Motion:
    """Motion from luma x to a reference, both (1, 1, H, W), 0 to 255, multiples of 16."""
    found = search(x, reference, 1)
    steady = fit_affine(x, reference, global_motion(found, _texture(x)), effort.affine_rounds)
    flows = [
        fit_local(x, reference, found, effort.dense_rounds),
        fit_local(x, reference, steady, effort.global_rounds),
    ]
    if effort.half:
        flows.append(fit_local(x, reference, search(x, reference, 2), effort.dense_rounds))
    errors = [(x - warp(reference, enlarge(flow, GRID), "bilinear")) ** 2 for flow in flows]
    costs = [box_mean(F.avg_pool2d(error, GRID) + NOISE, CHOICE_WINDOW) for error in errors]
    costs[0] = costs[0] * DENSE_BONUS
    best = torch.stack(costs).argmin(0)  # (1, 1, h, w)
    flow = flows[0]
    for index, other in enumerate(flows[1:], 1):
        flow = torch.where(best == index, other, flow)
    return Motion(flow, difference(x, warp(reference, enlarge(flow, GRID), "bilinear")))


def fitted_motion(x: Tensor, reference: Tensor, flow: Tensor) -> Motion:
    """A flow (1, 2, H/4, W/4) from luma x to a reference that is known but for its last detail."""
    flow = fit_local(x, reference, flow, CODED_ROUNDS)
    return Motion(flow, difference(x, warp(reference, enlarge(flow, GRID), "bilinear")))


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared differences of lumas (1, 1, H, W) per position (1, 1, H/4, W/4), in 8-bit units,
    without what changes the light of a whole neighbourhood: a fade is no occlusion.
    """
    apart = a - b
    mean = box_mean(F.avg_pool2d(apart, GRID), LIGHT_WINDOW)
    return F.avg_pool2d((apart - enlarge(mean, GRID)) ** 2, GRID)


def energy(luma: Tensor) -> Tensor:
    """Gradient energy of (1, 1, H, W): mean squared differences of neighbours, a scalar."""
    down, across = luma[..., 1:, :] - luma[..., :-1, :], luma[..., 1:] - luma[..., :-1]
    return (down * down).mean() + (across * across).mean()


def gradient(luma: Tensor) -> Tensor:
    """Mean squared differences of neighbours in (1, 1, H, W), per position (1, 1, H/4, W/4)."""
    down, across = luma.diff(dim=2) ** 2, luma.diff(dim=3) ** 2
    return F.avg_pool2d(F.pad(down, (0, 0, 0, 1)) + F.pad(across, (0, 1, 0, 0)), GRID)


def box_mean(values: Tensor, side: int) -> Tensor:
    """Means of (1, 1, H, W) over side x side places; the border repeats."""
    return F.avg_pool2d(F.pad(values, (side // 2,) * 4, mode="replicate"), side, 1)


def search(x: Tensor, reference: Tensor, scale: int) -> Tensor:
    """(1, 2, H/4, W/4): dense inverse search (OpenCV, medium) at 1/scale of the size, averaged."""
    rows, columns = (side // GRID for side in x.shape[2:])
    now, other = (
        p[0, 0].clamp(0, 255).round().to(torch.uint8).cpu().numpy() for p in (x, reference)
    )
    if scale > 1:
        size = (now.shape[1] // scale, now.shape[0] // scale)
        now = cv2.resize(now, size, interpolation=cv2.INTER_AREA)
        other = cv2.resize(other, size, interpolation=cv2.INTER_AREA)
    if min(now.shape) < SEARCH_SIDE:
        return x.new_zeros(1, 2, rows, columns)
    tool: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = tool.calc(now, other, None) * scale  # a start of zeros would hold it back
    pooled = np.asarray(cv2.resize(flow, (columns, rows), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.ascontiguousarray(pooled.transpose(2, 0, 1)))[None].to(x.device)


def fit_local(x: Tensor, reference: Tensor, flow: Tensor, rounds: int) -> Tensor:
    """The flow, corrected per position so that the moved reference fits x better.

    As `refine.gauss_newton`, with one reference and no blend.
    """
    size = GRID * GRID
    for _ in range(rounds):
        xx, xy, yy, ex, ey, _ = _sums(x, reference, flow)
        drawn = FIT_PULL[0] * size * (neighbour_mean(flow) - flow)
        ex, ey = ex + drawn[:, 0], ey + drawn[:, 1]
        damping = (FIT_DAMPING[0] + FIT_PULL[0]) * size
        xx, yy = xx + damping, yy + damping
        scale = 1 / (xx * yy - xy * xy)
        step = torch.stack([(yy * ex - xy * ey) * scale, (xx * ey - xy * ex) * scale], dim=1)
        flow = flow + step.clamp(-FIT_STEP, FIT_STEP)
    return flow


def fit_affine(x: Tensor, reference: Tensor, flow: Tensor, rounds: int) -> Tensor:
    """An affine flow, corrected as a whole; positions that disagree lose their weight."""
    rows, columns = flow.shape[2:]
    down = torch.linspace(-1, 1, rows, device=x.device)[:, None].expand(rows, columns)
    across = torch.linspace(-1, 1, columns, device=x.device).expand(rows, columns)
    terms = torch.stack([torch.ones_like(down), across, down], dim=-1).flatten(0, 1)  # (hw, 3)
    for _ in range(rounds):
        xx, xy, yy, ex, ey, ee = (each[0].flatten() for each in _sums(x, reference, flow))
        off = ee / (xx + yy + GRID * GRID * TEXTURE_FLOOR)  # about squared displacement
        trust = 1 / (1 + (off / (2 * off.median() + 1e-6)) ** 2)
        corner, mixed, other = (
            terms.T @ ((values * trust)[:, None] * terms) for values in (xx, xy, yy)
        )
        hessian = torch.cat([torch.cat([corner, mixed], 1), torch.cat([mixed, other], 1)])
        wanted = torch.cat([terms.T @ (ex * trust), terms.T @ (ey * trust)])
        ridge = AFFINE_RIDGE * hessian.diagonal().mean() + 1e-3
        change = torch.linalg.solve(hessian + ridge * torch.eye(6, device=x.device), wanted)
        step = (terms @ change.view(2, 3).T).T.reshape(1, 2, rows, columns)
        flow = flow + step.clamp(-AFFINE_STEP, AFFINE_STEP)
    return flow


def _sums(x: Tensor, reference: Tensor, flow: Tensor) -> tuple[Tensor, ...]:
    """Sums per position of the moved reference's gradients and its error: six of (1, h, w)."""
    near = warp(reference, enlarge(flow, GRID), "bicubic")
    (gx, gy), error = gradients(near), x - near
    products = [gx * gx, gx * gy, gy * gy, gx * error, gy * error, error * error]
    return kernel_sums(torch.cat(products, dim=1), GRID).unbind(1)


def _texture(x: Tensor) -> Tensor:
    """(1, 1, H/4, W/4) mean squared gradient of luma per position."""
    dx, dy = gradients(x)
    return F.avg_pool2d(dx**2 + dy**2, GRID)
