"""The loop filter in training."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models.hierarchical.loop_filter import EACH, MAIN, features_of
from vcfilter.train import filtering
from vcfilter.train.filtering import Fitted, least_squares

SIDE = 48


def smooth(side: int) -> Tensor:
    """(2, 1, side, side) a smooth plane each."""
    plane = torch.rand(2, 1, side, side) * 255
    for _ in range(2):
        plane = F.avg_pool2d(F.pad(plane, (2,) * 4, mode="reflect"), 5, 1)
    return (plane - plane.mean()) * 6 + 128


@pytest.fixture
def pictures() -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Originals and what noise made of them."""
    torch.manual_seed(0)
    y, u, v = smooth(SIDE), smooth(SIDE // 2), smooth(SIDE // 2)
    noisy = [plane + 5 * torch.randn_like(plane) for plane in (y, u, v)]
    return (y, u, v), (noisy[0], noisy[1], noisy[2])


def least(features: Tensor, error: Tensor) -> Tensor:
    """What least squares in float64 leaves of an error (N,), features (M, N)."""
    matrix = features.double().T
    return error.double() - matrix @ torch.linalg.lstsq(matrix, error.double()).solution


def test_coefficients_are_those_of_least_squares(pictures):
    """Of each frame of a batch its own; both chroma planes share the main ones."""
    x, planes = pictures
    found = Fitted(x).filtered(planes)
    guide = F.avg_pool2d(planes[0], 2)
    for i in range(2):
        luma = features_of(planes[0][i : i + 1], None)[:, 0, 0].flatten(1)
        left = least(luma, (x[0] - planes[0])[i].flatten())
        own = (x[0] - found[0])[i].square().mean()
        assert float(own) == pytest.approx(float(left.square().mean()), rel=2e-3)
        each = [features_of(planes[n][i : i + 1], guide[i : i + 1])[:, 0, 0] for n in (1, 2)]
        u, v = (f.flatten(1) for f in each)
        none = torch.zeros(EACH, u.shape[1])
        both = torch.cat([torch.cat([u, none]), torch.cat([v[:MAIN], none, v[MAIN:]])], dim=1)
        left = least(both, torch.cat([(x[n] - planes[n])[i].flatten() for n in (1, 2)]))
        own = torch.cat([(x[n] - found[n])[i].flatten() for n in (1, 2)]).square().mean()
        assert float(own) == pytest.approx(float(left.square().mean()), rel=2e-3)
        assert float(own) < 0.7 * float((x[1] - planes[1])[i].square().mean())


def test_gradients_pass_through_the_samples(pictures, monkeypatch):
    """And only through them: coefficients count as given."""
    x, planes = pictures
    given = []

    def fitted(*args):
        given.append(least_squares(*args))
        return given[-1]

    monkeypatch.setattr(filtering, "least_squares", fitted)
    y, u, v = (plane.clone().requires_grad_() for plane in planes)
    sum(p.sum() for p in Fitted(x).filtered((y, u, v))).backward()
    assert [weights.requires_grad for weights in given] == [False, False]
    # Smoothing takes from a sample what it gives its neighbours; U and V lean on luma as well.
    assert all(float(p.grad.abs().mean()) > 0.1 for p in (y, u, v))
