"""Inherited motion, the decoder's refinement and the encoder's fit, where motion is known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical import motion as moving
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.motion import MotionCodec
from vcfilter.models.hierarchical.refine import gauss_newton, linearise, refine, warped_by
from vcfilter.models.hierarchical.search import (
    global_motion,
    remainder,
    texture,
    with_global_motion,
)
from vcfilter.nn.flow import fine_search
from vcfilter.nn.warp import enlarge, warp

NOISE = torch.from_numpy(np.random.default_rng(5).normal(128, 400, (1, 1, 264, 264))).float()
WIDE = F.avg_pool2d(F.avg_pool2d(NOISE, 5, 1), 5, 1)  # structures of a few samples, std about 40


def shifted(dx: float, dy: float) -> Tensor:
    """(1, 1, 128, 160): what a camera sees that has moved by (dx, dy)."""
    rows, columns = WIDE.shape[2:]
    flow = torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, rows, columns)
    return warp(WIDE, flow, "bicubic")[..., 64:192, 48:208]


def constant(*components: float) -> Tensor:
    """(1, 5, 16, 20) field that is the same everywhere."""
    return torch.tensor(components).view(1, 5, 1, 1).expand(1, 5, 16, 20).clone()


def inner(field: Tensor) -> Tensor:
    return field[..., 3:-3, 3:-3]


@pytest.mark.parametrize("side", [0, 1])
def test_inherited_motion_lies_on_the_line_between_the_references(side: int) -> None:
    moves = [torch.zeros(1, 4, 16, 20) for _ in range(2)]
    spans = torch.zeros(1, 2)
    # The scene moves by (1.5, -0.5) samples per frame; the references are 6 frames apart.
    if side:
        moves[1][:, :2] = torch.tensor([-9.0, 3.0]).view(1, 2, 1, 1)
    else:
        moves[0][:, 2:] = torch.tensor([9.0, -3.0]).view(1, 2, 1, 1)
    spans[0, side] = -6 if side else 6
    field = moving.temporal_direct((moves[0], moves[1]), spans, torch.tensor([[-2, 4]]))
    wanted = constant(-3.0, 1.0, 6.0, -2.0, 0.0)
    assert torch.allclose(field, wanted, atol=1e-5)


def test_inherited_motion_is_sampled_where_it_goes() -> None:
    """An object at a place in the right reference is met on the way there, not at that place."""
    moves = torch.zeros(1, 4, 16, 20)
    moves[:, 0, 4:12, 10:16] = -32.0  # 6 x 8 positions have come 32 samples from the left
    spans = torch.tensor([[0.0, -2.0]])
    field = moving.temporal_direct((torch.zeros_like(moves), moves), spans, torch.tensor([[-1, 1]]))
    row = field[0, 0, 8]
    assert row[11] == -16.0 and row[13] == -16.0  # inside the object both before and after
    assert row[4] == 0.0 and row[17] == 0.0


@pytest.mark.parametrize("distances", [(-3, 0), (-3, 3), (-1, 2), (-1, -6), (-5, -12)])
def test_nothing_is_inherited_from_unrelated_references(distances: tuple[int, int]) -> None:
    moves = torch.ones(1, 4, 16, 20)
    spans = torch.tensor([[5.0, -7.0]])
    field = moving.temporal_direct((moves, moves), spans, torch.tensor([distances]))
    assert not field.any()


@pytest.mark.parametrize("distances", [(-1, 1), (-1, 3), (-4, 2), (-1, -4), (-2, -5)])
def test_refinement_recovers_what_coarse_motion_lost(distances: tuple[int, int]) -> None:
    first, second = distances
    velocity = torch.tensor([1.3, -0.7])
    references = [F.avg_pool2d(shifted(*(t * velocity)), 2) for t in (float(first), float(second))]
    true = torch.cat([-first * velocity, -second * velocity, torch.zeros(1)])
    off = torch.tensor([first, -0.5 * first, second, -0.5 * second, 0])
    wrong = true + off / (second - first)
    refined = refine(
        constant(*wrong.tolist()), *references, torch.tensor([distances]), torch.tensor([1.0])
    )
    before = (wrong - true).abs().max()
    after = inner(refined - true.view(1, 5, 1, 1)).abs().mean(dim=(0, 2, 3)).max()
    assert after < 0.6 * before


def test_refinement_trusts_coded_motion_where_references_disagree() -> None:
    a, b = (F.avg_pool2d(luma, 2) for luma in (shifted(0, 0), 255 - shifted(40, 25)))
    field = constant(2.0, 0.0, -2.0, 0.0, 0.3)
    refined = refine(field, a, b, torch.tensor([[-1, 1]]), torch.tensor([0.5]))
    assert (refined - field).abs().mean() < 0.1
    assert torch.equal(refined[:, 4:], field[:, 4:])


def error(x: Tensor, left: Tensor, right: Tensor, field: Tensor) -> float:
    """Squared error of the prediction, away from the border."""
    a, b = (
        warp(left, enlarge(field[:, :2], 8), "bicubic"),
        warp(right, enlarge(field[:, 2:4], 8), "bicubic"),
    )
    alpha = enlarge((field[:, 4:] + 1) / 2, 8)
    return float(((a + alpha * (b - a) - x)[..., 16:-16, 16:-16] ** 2).sum())


def noisy() -> Tensor:
    rng = np.random.default_rng(3)
    return shifted(0, 0) + torch.from_numpy(rng.normal(0, 1, (1, 1, 128, 160))).float()


def test_fit_lowers_the_prediction_error() -> None:
    x, left, right = noisy(), shifted(-2.4, 1.1), shifted(2.0, -1.6)
    field = constant(1.6, -0.6, -1.4, 1.0, 0.0)
    fitted, hessian = gauss_newton(x, left, right, field, 3)
    assert error(x, left, right, fitted) < 0.3 * error(x, left, right, field)
    assert hessian.shape == (1, 16, 20, 5, 5)


def test_fit_of_one_reference_leaves_the_other_alone() -> None:
    x, left = noisy(), shifted(-2.4, 1.1)
    field = constant(1.6, -0.6, 0.0, 0.0, 0.0)
    fitted, _ = gauss_newton(x, left, None, field, 3)
    only = constant(0.0, 0.0, 0.0, 0.0, -1.0)
    only[:, :2] = fitted[:, :2]
    assert error(x, left, left, only) < 0.3 * error(x, left, left, constant(1.6, -0.6, 0, 0, -1.0))
    assert not fitted[:, 2:].any()


def test_the_derivative_tells_what_an_error_costs() -> None:
    x, left, right = noisy(), shifted(-2.4, 1.1), shifted(2.0, -1.6)
    field = constant(2.4, -1.1, -2.0, 1.6, 0.1)
    hessian, wanted = linearise(x, left, right, field)
    hessian, wanted = hessian[:, 2:-2, 2:-2].sum((0, 1, 2)), wanted[:, 2:-2, 2:-2].sum((0, 1, 2))
    change = torch.tensor([0.1, -0.05, 0.05, 0.1, 0.0])
    cost = error(x, left, right, field + change.view(1, 5, 1, 1)) - error(x, left, right, field)
    assert float(change @ hessian @ change - 2 * change @ wanted) == pytest.approx(cost, rel=0.15)


def test_errors_along_the_line_cost_less() -> None:
    codec = MotionCodec(HierarchicalConfig(motion_width=16))
    hessian, _ = linearise(noisy(), shifted(-2, 1), shifted(2, -1), constant(2, -1, -2, 1, 0.0))
    cost = codec.cost(hessian, torch.tensor([[-2, 2]]))
    assert cost.shape == (1, 80, 4, 5) and cost.min() >= 0
    inside = cost[:, :, 1:-1, 1:-1].unflatten(1, (16, 5)).mean((0, 1, 3, 4))
    assert (inside[:2] < 0.5 * inside[2:4]).all()


def test_the_camera_is_what_most_of_a_flow_follows() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 30), indexing="ij")
    true = torch.stack([3 + 0.5 * x - 0.2 * y, -1 + 0.2 * x + 0.5 * y])[None]
    flow = true.clone()
    flow[:, :, 4:12, 5:16] += 6.0  # an object
    weight = torch.full((1, 1, 20, 30), 100.0)
    assert (global_motion(flow, weight) - true).abs().max() < 0.05


def test_the_camera_takes_the_place_of_a_flow_gone_wrong() -> None:
    x, left, right = shifted(0, 0), shifted(-3, 1), shifted(3, -1)
    true = constant(3.0, -1.0, -3.0, 1.0, 0.0)
    field = true.clone()
    wrong = torch.from_numpy(np.random.default_rng(1).normal(0, 4, (1, 4, 4, 6))).float()
    field[:, :4, 6:10, 8:14] += wrong
    base = torch.tensor([16.0])
    mended, warped = with_global_motion(x, left, right, field, base, texture(x))
    wanted = warped_by(mended, left, right)
    assert all(torch.equal(*each) for each in zip(warped, wanted, strict=True))
    assert error(x, left, right, mended) < 0.1 * error(x, left, right, field)
    unread, _ = with_global_motion(x, left, right, field, base, texture(x), waits=False)
    torch.testing.assert_close(unread, mended, rtol=0, atol=1e-3)


def test_a_field_that_fits_is_kept() -> None:
    x, left, right = shifted(0, 0), shifted(-3, 1), shifted(3, -1)
    field = constant(3.0, -1.0, -3.0, 1.0, 0.0)
    kept, warped = with_global_motion(x, left, right, field, torch.tensor([16.0]), texture(x))
    assert torch.equal(kept, field)
    wanted = warped_by(field, left, right)
    assert all(torch.equal(*each) for each in zip(warped, wanted, strict=True))


@pytest.mark.parametrize("distances", [(-2, 3), (-1, 0), (-1, -4), (-3, -1)])
def test_constant_velocity_has_no_part_across_the_line(distances: tuple[int, int]) -> None:
    codec = MotionCodec(HierarchicalConfig(motion_width=16))
    given = torch.tensor([distances])
    velocity = torch.tensor([1.5, -0.5])
    field = constant(*(distances[0] * velocity), *(distances[1] * velocity), 0.25)
    turned = codec.turn(field, given)
    assert turned[:, :2].abs().min() > 0.4
    assert turned[:, 2:4].abs().max() < 1e-5
    assert torch.allclose(codec.turn(turned, given, back=True), field, atol=1e-5)


def test_of_two_past_references_the_farther_one_is_moved_farther() -> None:
    along, across = moving.directions(torch.tensor([[-1, -3]]))
    assert along[0, 1] / along[0, 0] == pytest.approx(3)
    assert float((along * across).sum()) == pytest.approx(0, abs=1e-6)


def test_what_errors_along_the_line_cost_on_one_side() -> None:
    """Both references on one side: an error along the line moves both alike, nothing cancels."""
    x = noisy()
    hessian, _ = linearise(x, shifted(-1, 1), shifted(-2, 2), constant(1, -1, 2, -2, 0.0))
    cost = MotionCodec(HierarchicalConfig(motion_width=16)).cost(hessian, torch.tensor([[-1, -2]]))
    inside = cost[:, :, 1:-1, 1:-1].unflatten(1, (16, 5)).mean((0, 1, 3, 4))
    assert (inside[:2] > 2 * inside[2:4]).all()


@pytest.mark.parametrize("count", [1, 2])
def test_what_motion_leaves_is_told_as_a_share(count: int) -> None:
    x, base = noisy(), torch.ones(1)
    references = [shifted(-1, 1), shifted(2, -1)][:count]
    right, wrong = constant(1, -1, -2, 1, 0.0), constant(0, 0, 0, 0, 0.0)
    if count == 1:  # as it is estimated for one reference
        right[:, 2:4] = 0
    assert remainder(x, references, right, base) < 0.2
    assert remainder(x, references, wrong, base) == pytest.approx(1, abs=1e-3)
    assert remainder(x, references, wrong, 1000 * base) == 0


def test_the_search_does_not_depend_on_threads() -> None:
    before = cv2.getNumThreads()
    random = np.random.default_rng(3)
    plane = cv2.GaussianBlur(random.integers(0, 256, (136, 200), dtype=np.uint8), (9, 9), 2)
    other = np.roll(plane, (3, -5), (0, 1))
    found = []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            with ThreadPoolExecutor(3) as pool:
                found += pool.map(fine_search, [plane] * 3, [other] * 3)
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(each, found[0]) for each in found)
    middle = found[0][40:-40, 40:-40].reshape(-1, 2)
    assert np.abs(np.median(middle, axis=0) - (-5, 3)).max() < 0.2
