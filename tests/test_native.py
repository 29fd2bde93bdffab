"""Native loops against the plain operators that they stand for, at odd sizes and at borders."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter._native import cost as native_cost
from vcfilter._native import finish, latents, loop, motion, winograd
from vcfilter.interpolation import motion as interpolation
from vcfilter.models.hierarchical import cost, latent, refine, search
from vcfilter.models.hierarchical.blocks import dct_matrix
from vcfilter.models.hierarchical.conditions import context_features
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.finish import (
    FinishConfig,
    FinishNet,
    HierarchicalFinish,
    without_alternation,
)
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.values import Picture
from vcfilter.nn import flow, native, warp
from vcfilter.nn.blocks import Block, Conv2d
from vcfilter.nn.native import PackedConv2d
from vcfilter.nn.winograd import Winograd

SIZES = [(8, 8), (16, 40), (72, 24)]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def smooth(rows: int, columns: int, seed: int = 0) -> Tensor:
    """(2, 1, rows, columns) luma whose gradients say something."""
    noise = torch.rand(2, 1, rows + 4, columns + 4, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise * 255, 5, 1)


def field(rows: int, columns: int, reach: float = 4.0) -> Tensor:
    """(2, 5, rows, columns) with some displacements far outside, the blend within -1 to 1."""
    found = torch.randn(2, 5, rows, columns, generator=torch.Generator().manual_seed(1)) * reach
    found[:, :4, 0, 0] = torch.tensor([1e9, -1e9, -3000.0, 500.0])
    found[:, 4:] = (found[:, 4:] / reach).clamp(-1, 1)
    return found


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_warp(size: tuple[int, int], mode: str, factor: int) -> None:
    rows, columns = size
    plane = torch.cat([smooth(rows, columns), smooth(rows, columns, 3)], dim=1)
    moves = field(rows // factor, columns // factor)[:, :2].clamp(-60, 60)
    found = warp.warp_field(plane, moves, factor, mode, 0.5)
    plain = warp.warp(plane, warp.enlarge(moves, factor) * 0.5, mode)
    # grid_sample holds places, whose rounding grows with them, as shares of the size.
    assert float((found - plain).abs().max()) < 0.01


def test_samples_between(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = torch.rand(2, 1, 24, 40) * 255
    halves = warp.with_halves(plane)
    assert torch.equal(halves[..., ::2, ::2], plane)
    ramp = torch.arange(40.0).expand(1, 1, 24, 40)
    between = warp.with_halves(ramp)[0, 0]
    assert torch.allclose(between[:, 7:-8], torch.arange(80.0)[7:-8] / 2)  # away from its ends
    field = torch.randn(2, 2, 3, 5) * 9
    moved = warp.warp_halves(halves, field, 8)
    monkeypatch.setattr(warp, "is_native", lambda *_: False)
    assert torch.allclose(halves, warp.with_halves(plane), atol=1e-4)
    assert torch.allclose(moved, warp.warp_halves(halves, field, 8), atol=2e-2)
    still = warp.warp_halves(halves, torch.zeros(2, 2, 3, 5), 8)
    assert torch.allclose(still, plane, atol=1e-3)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_samples_between_of_narrow_planes(columns: int) -> None:
    plane = torch.full((1, 1, 3, columns), 9.0)
    assert torch.allclose(warp.with_halves(plane), torch.full((1, 1, 6, 2 * columns), 9.0))
    with pytest.raises(ValueError, match="not twice"):
        motion.enlarge(plane[0, 0].numpy(), np.zeros((6, 2 * columns + 1), np.float32))


def test_warp_far_outside_repeats_the_border() -> None:
    plane = smooth(16, 24)[:1, 0].numpy()[0]
    out = np.empty_like(plane)
    for far, corner in ((np.float32(1e30), plane[-1, -1]), (-np.float32(np.inf), plane[0, 0])):
        moves = np.full((2, 3), far, np.float32)
        for cubic in (True, False):
            motion.warp(plane, moves, moves, 1.0, cubic, out)
            assert np.allclose(out, corner, atol=1e-3)
    moves[:] = np.nan  # what a damaged stream may give: any result, but within memory
    motion.warp(plane, moves, moves, 1.0, True, out)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sums_of_the_fit(
    size: tuple[int, int], alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = size
    x, a, b = (smooth(rows, columns, seed) for seed in range(3))
    blend = field(rows // 8, columns // 8)[:, 4:]
    found = refine._products(x, a, None if alone else b, blend)
    monkeypatch.setattr(refine, "is_native", lambda *tensors: False)
    plain = refine._products(x, a, None if alone else b, blend)
    assert found.shape == plain.shape == (2, 20, rows // 8, columns // 8)
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("size", SIZES)
def test_step_of_the_fit(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = size
    x, a, b = (smooth(rows, columns, seed) for seed in range(3))
    before = field(rows // 8, columns // 8).clamp(-50, 50)
    sums = refine._products(x, a, b, before[:, 4:])
    found = refine._fitted(before, sums)
    monkeypatch.setattr(refine, "is_native", lambda *tensors: False)
    plain = refine._fitted(before, sums)
    assert found.shape == before.shape and not torch.equal(found, before)
    assert torch.allclose(found, plain, atol=1e-3)


def test_step_of_the_fit_refuses_what_does_not_fit() -> None:
    five, twenty = np.zeros((5, 2, 3), np.float32), np.zeros((20, 2, 3), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        motion.fitted(five, twenty[:19].copy(), (1.0,) * 5, (1.0,) * 5, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        motion.fitted(five, twenty, (1.0,) * 4, (1.0,) * 5, 1.0)


@pytest.mark.parametrize("factor", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(32, 32), (64, 224)])
def test_sums_of_other_grids(size: tuple[int, int], factor: int) -> None:
    a, b = smooth(*size)[:1], smooth(*size, 1)[:1]
    found = motion.agreement(a[0, 0].numpy(), b[0, 0].numpy(), -0.25, 0.75, factor)
    share = torch.tensor([[-0.25, 0.75]])[:, :, None, None]
    plain = warp.kernel_sums(refine._mismatch_products(a, b, share), factor)[0]
    off = np.abs(found - plain.numpy()).max()
    assert off < 1e-4 * float(plain.abs().max())


def test_sums_of_too_large_a_grid_are_refused() -> None:
    plane = np.zeros((80, 80), np.float32)
    with pytest.raises(ValueError, match="more than 32"):
        motion.agreement(plane, plane, 0.5, 0.5, 40)


@pytest.mark.parametrize("grid", [4, 8])
def test_step_of_a_flow(grid: int) -> None:
    """`nearer` against the sums and the step of interpolation's search."""
    x, reference = (smooth(64, 96, seed)[:1].round() for seed in (0, 1))
    moves = field(64 // grid, 96 // grid, 2.0)[:1, :2].clamp(-40, 40)
    found = flow.nearer(
        moves[0].permute(1, 2, 0).numpy(),
        *(plane[0, 0].numpy().astype(np.uint8) for plane in (x, reference)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpolation, "GRID", grid)
        plain = interpolation.fit_local(x, reference, moves, 1)
    assert np.allclose(found.transpose(2, 0, 1), plain[0].numpy(), atol=0.02)
    assert np.abs(found - moves[0].permute(1, 2, 0).numpy()).max() > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_errors_of_blocks(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = size
    x, a, b = (smooth(rows, columns, seed) for seed in range(3))
    moves = field(rows // 8, columns // 8)
    found = search.block_sse(x, (a, b), moves)
    monkeypatch.setattr(search, "is_native", lambda *tensors: False)
    assert torch.allclose(found, search.block_sse(x, (a, b), moves), rtol=1e-4)


@pytest.mark.parametrize("inside", [(64, 96), (61, 75), (33, 2)])
def test_cost_of_a_residual(inside: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    y, u, v = (torch.rand(1, 1, 64 // n, 96 // n) * 255 for n in (1, 2, 2))
    predicted = y + 20 * torch.randn_like(y), u + 9 * torch.randn_like(u), v + 3
    coding = cost.ResidualCost(torch.tensor([12.0]), 5 + 30 * torch.rand(1, 96))
    found = coding.of(Picture((y, u, v), inside), predicted)
    monkeypatch.setattr(cost, "is_native", lambda *tensors: False)
    assert found == pytest.approx(coding.of(Picture((y, u, v), inside), predicted), rel=1e-5)


def test_cost_of_a_residual_refuses_what_does_not_fit() -> None:
    plane, basis = np.zeros((16, 24), np.float32), np.eye(8, dtype=np.float32)
    for rows, columns, first in ((17, 24, plane), (16, 25, plane), (8, 8, plane[:9].copy())):
        with pytest.raises(ValueError, match="in blocks"):
            native_cost.block_cost(first, plane, rows, columns, basis, basis, 0.7, 0.4)
    with pytest.raises(ValueError, match="8x8"):
        native_cost.block_cost(plane, plane, 16, 24, basis[:4].copy(), basis, 0.7, 0.4)


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_the_decoders_refinement(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = smooth(*size), smooth(*size, 1)
    share = torch.tensor([[-0.25, 0.75], [0.5, -0.5]])[:, :, None, None]
    found = refine._agreement(a, b, share, 4)
    monkeypatch.setattr(refine, "is_native", lambda *tensors: False)
    plain = refine._agreement(a, b, share, 4)
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.fixture(scope="module")
def net() -> VideoNet:
    """A network whose filters see every neighbour differently."""
    torch.manual_seed(0)
    net = VideoNet(HierarchicalConfig()).requires_grad_(False).eval()
    for coding in (net.image.coding, net.motion.coding):
        for step in coding.steps:
            for layer in (step.spatial, step.temporal):
                layer.weight.data = torch.randn(layer.weight.shape).clamp(-3, 3) * 0.5
                layer.bias.data = torch.randn(layer.bias.shape)
            for layer in (step.hidden_context, step.index, step.index_linear, step.index_context):
                layer.weight.data = torch.randn(layer.weight.shape) * 0.2
                layer.bias.data = torch.randn(layer.bias.shape) * 30
            step.mean.weight.data = torch.randn(step.mean.weight.shape) * 0.1
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (16, 12)])
@pytest.mark.parametrize("name", ["image", "motion"])
def test_what_a_step_sees(
    net: VideoNet, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    coding = getattr(net, name).coding
    maps = [
        torch.randint(0, 256, (2, coding.channels, *size)).float().to(
            memory_format=torch.channels_last
        )
        for _ in range(3)
    ]  # fmt: skip
    features, lowest = torch.randint(0, 33, (2, 16)).float(), torch.tensor([0.0, 1.0])

    def all_steps() -> list[tuple[Tensor, Tensor]]:
        found = []
        for place in coding.places(maps[0]):
            step, low = place.model, place.model.step.low
            seen, *past = (place.lattice(each) for each in maps)
            past = [each[:, low:] for each in past]
            index = step.indices(seen, past, features, lowest, place.where)
            found.append((index, step.means(seen - 100, features, place.where)))
        return found

    fast = all_steps()
    for parameter in net.parameters():
        parameter.requires_grad_(True)  # of weights that learn all is plain
    learning = all_steps()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for step in coding.steps:
        step.spatial.bias.add_(0.5)
        step.index.bias.add_(3.0)
    changed = all_steps()
    for step in coding.steps:
        step.spatial.bias.sub_(0.5)
        step.index.bias.sub_(3.0)
    assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(fast, changed, strict=True)) or (
        size == (1, 1)
    )
    monkeypatch.setattr(latent, "is_native", lambda *tensors: False)
    monkeypatch.setattr(native, "SMALL", 1 << 40)
    for (index, mean), (same, expected), (third, _) in zip(
        fast, all_steps(), learning, strict=True
    ):
        assert torch.equal(index, same) and torch.equal(index, third)  # integers: exactly
        assert index.numel() < 100 or index.unique().numel() > 10
        assert torch.allclose(mean, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (16, 12)])
@pytest.mark.parametrize("name", ["image", "motion"])
def test_how_indices_change_with_what_a_step_sees(
    net: VideoNet, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    coding = getattr(net, name).coding
    shape = 2, coding.channels, *size
    layout = {"memory_format": torch.channels_last}
    maps = [torch.randint(0, 256, shape).float().to(**layout) for _ in range(3)]
    known = torch.randint(0, 2, shape).float().to(**layout)
    features, lowest = torch.randint(0, 33, (2, 16)).float(), torch.tensor([0.0, 1.0])

    def all_steps() -> list[Tensor]:
        found = []
        for place in coding.places(maps[0]):
            seen, *past = (place.lattice(each) for each in maps)
            past = [each[:, place.model.step.low :] for each in past]
            costs = torch.ones(shape).to(**layout)
            args = seen, past, features, lowest, place.where, torch.sqrt
            place.model.add_costs(*args, place.lattice(known), place.lattice(costs))
            found.append(costs)
        return found

    fast = all_steps()
    monkeypatch.setattr(latent, "is_native", lambda *tensors: False)
    for costs, plain in zip(fast, all_steps(), strict=True):
        assert torch.allclose(costs, plain, rtol=1e-3, atol=1e-5)
        assert (costs[known == 0] == 1).all()
    assert any((costs != 1).any() for costs in fast)


def test_convolutions_by_onednn_are_those_of_pytorch() -> None:
    x = torch.randn(1, 96, 20, 24).to(memory_format=torch.channels_last)
    for outputs, groups, side in ((192, 1, 1), (96, 96, 3), (96, 1, 3)):
        weight, bias = torch.randn(outputs, 96 // groups, side, side), torch.randn(outputs)
        padding = (side // 2, side // 2)
        found = native.conv2d(x, weight, bias, padding, groups)
        assert torch.allclose(found, F.conv2d(x, weight, bias, padding=padding, groups=groups),
                              atol=1e-3)  # fmt: skip
    rows = torch.randint(0, 256, (2, 300, 100)).float()
    weight, bias = torch.randint(-9, 10, (50, 100)).float(), torch.randint(-9, 10, (50,)).float()
    assert torch.equal(native.linear(rows, weight, bias), F.linear(rows, weight, bias))


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 8), (13, 6)])
@pytest.mark.parametrize("channels", [(1, 1), (20, 17), (64, 68)])
def test_winograd(size: tuple[int, int], channels: tuple[int, int]) -> None:
    inputs, outputs = channels
    x, weight = torch.randn(1, inputs, *size), torch.randn(outputs, inputs, 3, 3)
    gain, shift = torch.randn(outputs), torch.randn(outputs)
    found = Winograd(weight)(x, gain, shift)
    plain = F.conv2d(x.double(), weight.double(), padding=1)
    plain = plain * gain[:, None, None] + shift[:, None, None]
    assert found.shape == plain.shape
    # Sums of values up to eight times as large, which cancel each other.
    assert float((found - plain).abs().max()) < 1e-5 * float(plain.abs().max().clamp(min=10))


@pytest.mark.parametrize("batch", [1, 3])
def test_winograd_of_lines_and_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(batch, 8, 21, 10), torch.randn(9, 8, 3, 3), torch.randn(9)
    monkeypatch.setattr("vcfilter.nn.winograd.TILES", 7)
    found = Winograd(weight, bias)(x)
    plain = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert float((found - plain).abs().max()) < 1e-4


def test_no_size_makes_onednn_rearrange_the_weights_at_each_call() -> None:
    weights = PackedConv2d(torch.randn(36 * 96, 96, 1, 1), None, 36)

    def seconds(positions: int) -> float:
        x = torch.randn(1, 1, positions, 36 * 96).permute(0, 3, 1, 2)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            weights(x)
            times.append(time.perf_counter() - began)
        return min(times)

    # 4 positions took 200 times as long as 5 where weights lay as for any other size.
    each = {positions: seconds(positions) for positions in (*range(1, 19), 172, 184)}
    for positions, found in each.items():
        assert found < 10 * each[18] * max(1, positions / 18), positions


def test_tiles_that_do_not_fit_are_refused() -> None:
    maps = np.zeros((9, 8, 3), np.float32)
    for first, lines, wide in ((0, 4, 2), (2, 2, 2), (-1, 1, 2), (0, 3, 3)):
        tiles = np.zeros((lines, wide, 108), np.float32)
        with pytest.raises(ValueError, match="no tiles of"):
            winograd.tile(maps, first, tiles)
        with pytest.raises(ValueError, match="no tiles of"):
            winograd.untile(tiles, first, maps[0, 0], maps[0, 0], maps)
    tiles, four = np.zeros((3, 2, 108), np.float32), np.zeros(4, np.float32)
    winograd.tile(maps, 0, tiles)
    with pytest.raises(ValueError, match="3 gains and 4 shifts of 3 channels"):
        winograd.untile(tiles, 0, four[:3], four, maps)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 24)])
def test_kept_weights(size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 24, *size).to(memory_format=torch.channels_last)
    block, wide = Block(24), Conv2d(24, 24, 3, padding=1)
    for layer in (block, wide):
        plain, before = layer(x).detach(), x.clone()
        layer.requires_grad_(False)
        assert torch.allclose(layer(x), plain, atol=1e-5)
        assert torch.equal(x, before)
        assert not torch.allclose(plain, x, atol=1e-2)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(2)
        assert not torch.allclose(layer(x), plain, atol=1e-2)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
        assert torch.equal(deepcopy(layer)(x), layer(x))
        with torch.enable_grad():
            layer.requires_grad_(True)
            assert layer(x).requires_grad


def test_wide_3x3_convolutions_go_by_winograd() -> None:
    x = torch.randn(1, 64, 9, 13)
    for kind, layer in (
        (Winograd, Conv2d(64, 70, 3, padding=1)),
        (PackedConv2d, Conv2d(64, 64, 3, padding=1, groups=64)),
        (PackedConv2d, Conv2d(64, 5, 3, padding=1)),
        (PackedConv2d, Conv2d(64, 70, 1)),
    ):
        plain = layer(x).detach()
        layer.requires_grad_(False)
        assert isinstance(layer.kept(x), kind)
        assert torch.allclose(layer(x), plain, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (72, 16), (96, 120)])
@pytest.mark.parametrize("qp", [4, 37])
def test_finish(size: tuple[int, int], qp: int) -> None:
    torch.manual_seed(size[0])
    net = FinishNet(FinishConfig(width=24, blocks=2))
    for parameter in (*net.modulate.parameters(), *net.usual.parameters()):
        parameter.data = torch.randn(parameter.shape) * 0.3
    net.last.weight.data = torch.randn(net.last.weight.shape) * 0.1
    net.last.bias.data = torch.randn(68) * 0.2  # type: ignore[union-attr]
    net.log_faint.data += torch.randn(4)
    luma = F.interpolate(torch.rand(1, 1, size[0] // 8 + 1, size[1] // 8 + 1), size) * 300 - 20
    luma = (luma + torch.randn(luma.shape) * 5).clamp(0, 255)
    features = context_features(torch.tensor([qp]), torch.tensor([1]), torch.tensor([[-1, 2]]))
    correction = net(luma, torch.tensor([qp]), features)
    assert 0.3 < float(correction.abs().mean()) < 100
    loaded = HierarchicalFinish(net, bytes(8), torch.device("cpu"))
    assert loaded._loops is not None
    found = loaded._loops.apply(luma, qp, 1, (-1, 2))
    # The same sums in another order, Winograd's of larger values: both miss those in float64.
    limit = 1e-4 + 2e-5 * float(correction.abs().max())
    assert float((found - (luma + correction).clamp(0, 255)).abs().max()) < limit


def test_a_finish_adds_nothing_that_alternates_from_sample_to_sample() -> None:
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    smooth = torch.cos(columns / 3) * 5.0
    for alternating in (columns, rows, rows + columns):
        both = (smooth + 4.0 * (1 - 2.0 * (alternating % 2)))[None, None]
        left = without_alternation(both)[0, 0, 4:-4, 4:-4]
        assert float((left - smooth[4:-4, 4:-4]).abs().max()) < 0.06


def test_input_is_checked() -> None:
    plane, moves = np.zeros((16, 16), np.float32), np.zeros((2, 2), np.float32)
    for shape in ((3, 2), (0, 2), (8, 8)):
        with pytest.raises(ValueError, match="does not fit"):
            motion.warp(plane, np.zeros(shape, np.float32), moves, 1.0, True, plane.copy())
    with pytest.raises(ValueError, match=r"fit|differ"):
        motion.warp(plane, moves, moves, 1.0, True, np.zeros((16, 8), np.float32))
    with pytest.raises(ValueError, match="differ"):
        motion.normal(plane, np.zeros((8, 16), np.float32), None, moves)
    with pytest.raises(ValueError, match="no blocks"):
        motion.agreement(plane, plane, 1.0, 1.0, 12)
    maps, out = np.zeros((4, 4, 3), np.float32), np.zeros((2, 3), np.float32)
    inside = np.array([0, 15])
    with pytest.raises(ValueError, match="no place"):
        latents.neighbours(maps, 3, inside, out, 0)


def step_tables(known: int = 3) -> latents.StepTables:
    """Of a step of 2 channels after `known` others, 5 units."""
    filters = np.zeros((known + 2, 5, 5), np.float32), np.zeros(known + 2, np.float32)
    past = np.zeros((4, 3, 3), np.float32), np.zeros(4, np.float32)
    inputs = 2 * known + 6
    dense = (np.ones((n, m), np.float32) for n, m in ((5, inputs), (2, inputs), (2, 5)))
    return latents.StepTables(*filters, *past, *dense, known)


def test_input_of_a_step_is_checked() -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        step_tables(0).__init__(*[np.zeros((2, 2, 2), np.float32)] * 7, 0)  # type: ignore[misc]
    step, maps = step_tables(), np.zeros((4, 4, 5), np.float32)
    two, out = maps[..., :2], np.zeros((2, 2), np.float32)
    places = np.array([0, 15])
    sums = np.zeros(16, np.int32), np.zeros(16, np.int32), np.zeros(2, np.float32)
    step.indices(maps, two, two, places, *sums, 1.0, 63.0, out)
    assert (out == 1).all()
    for wrong, text in (
        ((maps, two, two, np.array([0, 16]), *sums), "position 16"),
        ((maps, two, two, np.array([-1, 2]), *sums), "position -1"),
        ((two, two, two, places, *sums), "channels of maps"),
        ((maps, maps, two, places, *sums), "channels of maps"),
        ((maps.transpose(2, 1, 0), two, two, places, *sums), "one after the other"),
        ((maps, two, two, places, sums[0][:15], *sums[1:]), "sums do not fit"),
        ((maps, two, two, places, *sums[:2], np.zeros(3, np.float32)), "sums do not fit"),
        ((maps, two, two, places[:1], *sums), "no place"),
    ):
        with pytest.raises(ValueError, match=text):
            step.indices(*wrong, 1.0, 63.0, out)
    known, costs = maps + 1, maps.copy()
    step.costs(maps, two, two, places, *sums, out, known, costs)
    assert costs[0, 0].any() and not costs[1, 1].any()
    for given, text in (
        ((maps, two, two, np.array([0, 16]), *sums, out, known, costs), "position 16"),
        ((maps, two, two, places, *sums, out[:1], known, costs), "slopes do not fit"),
        ((maps, two, two, places, *sums, out, known[:3], costs), "different sizes"),
        ((maps, two, two, places, *sums, out, known, two), "different sizes"),
        ((maps, two, two, places, *sums, out, known, costs[::-1]), "lie differently"),
    ):
        with pytest.raises(ValueError, match=text):
            step.costs(*given)
    for odd in (40000, np.nan):
        check_weight(odd)


def check_weight(odd: float) -> None:
    large = np.full((2, 5), odd, np.float32)
    filters = np.zeros((2, 5, 5), np.float32), np.zeros(2, np.float32)
    past = np.zeros((4, 3, 3), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="16 bits"):
        latents.StepTables(*filters, *past, np.ones((5, 6), np.float32), large[:, :1] * np.ones(
            (2, 6), np.float32), np.ones((2, 5), np.float32), 0)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("size", [(1, 1), (17, 7), (63, 192), (255, 96)])
def test_dense_layers_of_integers(size: tuple[int, int], rows: int) -> None:
    outputs, inputs = size
    random = np.random.default_rng(inputs)
    weight = random.integers(-900, 900, (outputs, inputs)).astype(np.float32)
    weight[0, 0] = -32767
    x = np.zeros((rows, (inputs + 1) // 2 * 2), np.int16)
    x[:, :inputs] = random.integers(0, 256, (rows, inputs))
    start = latents.padded(random.integers(-(2**24), 2**24, outputs))
    plain = x[:, :inputs].astype(np.int64) @ weight.T.astype(np.int64) + start[:outputs]
    for way in range(latents.dense_ways()):
        assert np.array_equal(latents.dense(weight, x, start, way)[:, :outputs], plain)
    for wrong in ((weight, x, start, 3), (weight, x[:, 1:].copy(), start, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            latents.dense(*wrong)


def test_symbols_and_values_are_written_to_their_places() -> None:
    symbols = np.array([[3, -300], [0, 256]], np.float32)
    levels, at = np.arange(257, dtype=np.float32) / 2, np.array([5, 1])
    maps, seen = np.full((6, 4), 9, np.float32), np.full((6, 4), 9, np.float32)
    latents.store(symbols, levels, at, 1, maps, seen)
    assert np.array_equal(maps[at, 1:3], symbols)
    assert seen[at, 1:3].tolist() == [[1.5, 128], [0, 128]]
    assert (maps[:, [0, 3]] == 9).all() and (maps[[0, 2, 3, 4]] == 9).all()
    steps = np.array([2, 0.5], np.float32)
    latents.values(symbols + 1, symbols, steps, at, 2, maps)
    assert maps[at, 2:].tolist() == [[10, -449], [1, 385]]
    for wrong, text in (
        ((symbols, levels, np.array([0, 6]), 1, maps, seen), "position 6"),
        ((symbols, levels, at, 3, maps, seen), "do not fit the maps"),
        ((symbols, levels, at, -1, maps, seen), "do not fit the maps"),
        ((symbols, levels[:-1], at, 1, maps, seen), "levels or maps"),
        ((symbols, levels, at, 1, maps, seen[:5]), "levels or maps"),
    ):
        with pytest.raises(ValueError, match=text):
            latents.store(*wrong)
    with pytest.raises(ValueError, match="means or steps"):
        latents.values(symbols, symbols, steps[:1], at, 2, maps)


def test_input_of_the_finish_is_checked() -> None:
    plane, basis = np.zeros((16, 24), np.float32), dct_matrix(8).float().numpy()
    blocks, change = np.zeros((2, 3, 64), np.float32), np.zeros((2, 3, 68), np.float32)
    four = np.zeros(4, np.float32)
    for arguments in (
        (plane[:15], basis, 1.0, blocks),
        (plane, basis[:7], 1.0, blocks),
        (plane, basis, 1.0, blocks[:1]),
        (plane, basis, 1.0, change),
        (plane[:0], basis, 1.0, blocks[:0]),
    ):
        with pytest.raises(ValueError, match=r"does not fit|coefficients"):
            finish.coefficients(*arguments)
    for wrong in (
        (plane, blocks, 1.0, four, four, plane.copy()),
        (plane, change[:1], 1.0, four, four, plane.copy()),
        (plane, change, 1.0, four[:3], four, plane.copy()),
        (plane, change, 1.0, four, np.zeros(5, np.float32), plane.copy()),
        (plane, change, 1.0, four, four, plane[:8].copy()),
    ):
        with pytest.raises(ValueError, match=r"does not fit|values|differ"):
            finish.add_bands(*wrong)


def test_the_descent_finds_what_least_squares_finds() -> None:
    random = np.random.default_rng(5)
    features = random.standard_normal((200, 6))
    products, wanted = features.T @ features, np.array([3, -7, 0, 12, 1, -200.0])
    errors, zeros = products @ wanted, np.zeros(6)
    for first in (6, 3):
        found = loop.descend(products, errors, zeros, zeros, first, 0.0, 127, 100)
        assert (found[first:] == 0).all() and np.abs(found).max() <= 127
        rest = errors - products @ found
        for i in range(first):  # no single step is better
            for step in (-1, 1):
                gain = 2 * step * rest[i] - products[i, i]
                assert gain <= 1e-6 or abs(found[i] + step) > 127
    dear = loop.descend(products, errors, zeros, np.ones(6), 6, 1e9, 127, 100)
    assert (dear == 1).all()  # nothing is worth a difference to the source
    for wrong in ((products[:5], errors, zeros, zeros, 6), (products, errors, zeros, zeros, 7)):
        with pytest.raises(ValueError, match="do not fit"):
            loop.descend(*wrong, 0.0, 127, 1)
