"""Captured steps: numbers drawn ahead, flows of the host, weights held, fewer operators."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vcfilter import fused as fusing
from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder, TrainingCoder
from vcfilter.fused import compiled, fused
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.search import dense_flow
from vcfilter.nn import maps
from vcfilter.nn.exact import SUM_BOUND, ExactDepthwise, ExactLinear, project
from vcfilter.nn.warp import kernel_sums, median3
from vcfilter.train import loop
from vcfilter.train.data import Clip, Samples
from vcfilter.train.held import weights_held
from vcfilter.train.phases import Phase
from vcfilter.train.plan import Figures, StepNumbers, StepPlan
from vcfilter.train.precondition import precondition
from vcfilter.train.prefetch import FlowSearch, Prefetcher

TINY = Phase(
    name="tiny", keyframes=2, groups=1, size=64, group_size=64, rate=1e-3, forward=0.5, coded=1.0
)
SMALL = HierarchicalConfig(
    image_width=8, image_hidden=16, motion_width=8, motion_hidden=16, prediction_width=8
)


@pytest.fixture(scope="module")
def material() -> Clip:
    random = np.random.default_rng(4)
    rows = np.kron(random.integers(40, 200, (30, 12)), np.ones((8, 8))).astype(np.uint8)
    noise = random.integers(0, 3, (26, *rows.shape), dtype=np.uint8)
    return Clip(np.stack([np.roll(rows, n, 1) + noise[n] for n in range(26)]), [0])


class Direct:
    """Stands for the graphs where there is no GPU."""

    def __init__(self, learn: Any) -> None:
        self.learn = learn

    def run(self, plan: StepPlan, inputs: StepNumbers) -> Figures:
        figures: Figures = self.learn(plan, inputs)
        return figures


def trainer(material: Clip, monkeypatch: pytest.MonkeyPatch, plans: int = 2) -> loop.Trainer:
    monkeypatch.setattr(loop, "StepGraphs", Direct)
    torch.manual_seed(2)
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    return loop.Trainer(VideoNet(SMALL), samples, stills, TINY, 9, flow_threads=2, plans=plans)


def test_flows_are_those_of_the_search(material: Clip) -> None:
    frames = Samples([material], 64, 5).draw([0, 2, 4], 11)
    pairs = [(1, 0), (1, 2), (2, 0)]
    found = FlowSearch(3)(frames, pairs, torch.device("cpu"))
    assert len(found) == 3 and FlowSearch(1)(frames, [], torch.device("cpu")) == []
    for (frame, reference), flow in zip(pairs, found, strict=True):
        assert torch.equal(flow, dense_flow(frames[frame][0], frames[reference][0]))
    assert (found[0] + found[1]).abs().mean() < 0.3 * found[0].abs().mean()


def test_what_is_drawn_ahead_is_what_would_be_drawn() -> None:
    random = np.random.default_rng(3)
    drawn: list[float] = []

    def draw() -> tuple[Any, Any]:
        drawn.append(random.random())
        return drawn[-1], ()

    prefetcher = Prefetcher(draw, lambda: [dict(random.bit_generator.state)], torch.device("cpu"))
    begin = prefetcher.states()
    assert [prefetcher.take()[0], prefetcher.take()[0]] == list(np.random.default_rng(3).random(2))
    before = prefetcher.states()
    prefetcher.prepare()
    prefetcher.prepare()
    assert len(drawn) == 3 and prefetcher.states() == before != begin
    random.bit_generator.state = begin[0]
    prefetcher.forget()
    assert prefetcher.take()[0] == drawn[0]


@pytest.mark.slow
def test_resuming_draws_again_what_was_ahead(
    material: Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = trainer(material, monkeypatch)
    first, second = (trainer(material, monkeypatch) for _ in range(2))
    for each, steps in ((whole, 3), (first, 2)):
        for _ in range(steps):
            each.run_step()
    first.save(tmp_path / "state")
    second.run_step()  # what it has ahead does not count
    second.resume(tmp_path / "state")
    second.run_step()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name


def test_flows_belong_to_their_references(material: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(material, monkeypatch, plans=4)
    for _ in range(4):
        plan, numbers = t.draw()
        for place, each in zip(plan.inter, numbers.inter, strict=True):
            assert place.mode is MotionMode.CODED
            for reference, flow in zip(place.references, each.flows, strict=True):
                now, past = numbers.frames[place.shown][0], numbers.frames[reference][0]
                assert torch.equal(flow, dense_flow(now, past))


def net_of(seed: int) -> VideoNet:
    torch.manual_seed(seed)
    net = VideoNet(SMALL)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    precondition(net, torch.linspace(20, 1, 96))
    return net


def test_held_weights_have_the_same_gradients(material: Clip) -> None:
    x = Samples([material], 64, 5).draw([0], 2)[0]
    qp = torch.tensor([24, 36])
    bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
    found = []
    for held in (False, True):
        net = net_of(1).train()

        def learn(net: VideoNet = net) -> None:
            for _ in range(2):  # gradients of several passes add up
                coder = TrainingCoder(bits, 2)
                conditions = loop.key_conditions(qp)
                y, _, _ = net.code_keyframe(conditions, x, coder, [RateCoder(bits, 2)]).planes
                (coder.total.sum() + ((y - x[0]) ** 2).sum()).backward()

        if held:
            with weights_held(net):
                learn()
        else:
            learn()
        found.append({name: p.grad for name, p in net.named_parameters()})
    reached = 0
    for name, gradient in found[0].items():
        other = found[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            reached += 1
            assert (gradient - other).norm() <= 1e-5 * gradient.norm(), name
    assert reached > 50


def test_an_error_leaves_no_weights_held() -> None:
    net = net_of(1)
    net.motion.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), weights_held(net):
        assert net.image.coding.steps[0].hidden.held is not None
        assert net.motion.coding.steps[0].hidden.held is None
        raise ZeroDivisionError
    assert net.image.coding.steps[0].hidden.held is None
    weight = net.image.analysis_linear.weight
    assert weight.requires_grad and not weight.is_leaf


def test_gradients_of_positions() -> None:
    given = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    chosen = torch.randn(2, 3, 2, requires_grad=True)
    at = torch.tensor([1, 6, 15])
    taken, lattice = maps.take(given, 1, 3, at), maps.lattice(given, 5, 2)
    assert torch.equal(taken, maps.gather(given[:, 1:3], at))
    assert torch.equal(lattice, given[:, :5, ::2, ::2])
    empty = given * (torch.zeros(16).index_fill(0, at, 1.0) == 0).view(4, 4)
    written = maps.put(empty, 4, chosen, at)
    assert torch.equal(maps.gather(written[:, 4:], at), chosen)
    part = maps.by_position(empty[:, 4:]).index_copy(1, at, chosen).unflatten(1, (4, 4))
    plain = torch.cat([empty[:, :4], part.permute(0, 3, 1, 2)], dim=1)
    assert torch.equal(written, plain)
    weights = [torch.randn_like(t) for t in (taken, lattice, written)]
    for found, usual in zip(
        (taken, lattice, written),
        (maps.gather(given[:, 1:3], at), given[:, :5, ::2, ::2], plain),
        strict=True,
    ):
        weight = weights.pop(0)
        inputs = (given, chosen) if found is written else (given,)
        own, wanted = (
            torch.autograd.grad((t * weight).sum(), inputs, retain_graph=True)
            for t in (found, usual)
        )
        assert all(torch.equal(a, b) for a, b in zip(own, wanted, strict=True))


def test_bounds_of_all_layers_at_once() -> None:
    torch.manual_seed(3)
    net = torch.nn.ModuleList(
        [ExactLinear(300, 7), ExactLinear(16, 5, input_max=32), ExactDepthwise(4, 5)]
    )
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * 300
    before = [p.detach().clone() for p in net.parameters()]
    share = 0.9 * SUM_BOUND
    wanted = [(share / layer.bound().detach()).clamp(max=1.0) for layer in net]
    project(net)
    assert any((factor < 1).any() for factor in wanted)
    for layer, factor in zip(net, wanted, strict=True):
        weight, bias = before.pop(0), before.pop(0)
        torch.testing.assert_close(
            layer.weight, weight * factor.view(-1, *[1] * (weight.dim() - 1))
        )
        torch.testing.assert_close(layer.bias, bias * factor)


def test_sums_by_matrices() -> None:
    maps_ = torch.randn(2, 3, 64, 96)
    for size in (4, 8):
        usual = kernel_sums(maps_, size)
        with compiled():
            torch.testing.assert_close(kernel_sums(maps_, size), usual, rtol=1e-4, atol=1e-4)


def test_medians_of_neighbours() -> None:
    field = torch.randn(2, 3, 5, 7).round(decimals=1)
    padded = torch.nn.functional.pad(field, (1, 1, 1, 1), mode="replicate")
    shifts = [padded[..., i : i + 5, j : j + 7] for i in range(3) for j in range(3)]
    assert torch.equal(median3(field), torch.stack(shifts).median(0).values)


def test_functions_are_compiled_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    made: list[Any] = []

    def compile_(function: Any) -> Any:
        def broken(x: torch.Tensor) -> torch.Tensor:
            if len(made) > 1:
                raise RuntimeError("no compiler\nand more")
            made.append(x)
            return function(x)

        return broken

    monkeypatch.setattr(fusing, "_compile", compile_)
    monkeypatch.setattr(fusing, "_broken", set())
    run, one = fused(twice), torch.ones(1)
    assert run(one) == 2 and not made
    with compiled(False):
        assert run(one) == 2 and not made
    with compiled():
        assert run(one) == run(one) == 2 and len(made) == 2
        assert run(one) == run(one) == 2
    assert run(one) == 2 and len(made) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "twice is not compiled: RuntimeError: no compiler" in said


def test_the_compiler_of_the_oldest_pytorch_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cache_size_limit": 8, "accumulated_cache_size_limit": 2048, "specialize_float": False}
    config = SimpleNamespace(**names)  # of 2.6, which has no other names for them
    monkeypatch.setattr(importlib.import_module("torch._dynamo"), "config", config)
    shapes = importlib.import_module("torch.fx.experimental._config")
    monkeypatch.setattr(shapes, "use_duck_shape", True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert fusing._compile(abs) is abs
    assert (config.cache_size_limit, config.accumulated_cache_size_limit) == (64, 2048)
    assert vars(config).keys() == names.keys() and not shapes.use_duck_shape


@pytest.mark.slow
def test_compiled_coders_estimate_the_same() -> None:
    bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
    found = []
    for on in (False, True):
        torch.manual_seed(1)
        u = (torch.randn(3, 17, 12) * 3).requires_grad_()
        index = (torch.rand(3, 17, 12) * 30).requires_grad_()
        coder = TrainingCoder(bits, 3)
        with compiled(on):
            symbols = coder.code(u * 1, index * 1)
            (coder.total.sum() + (symbols * u).sum()).backward()
        found.append((symbols.detach(), coder.total.detach(), u.grad, index.grad))
    assert not [name for name in fusing._broken if "coder" in name]
    for plain, own in zip(*found, strict=True):
        torch.testing.assert_close(own, plain)


def test_no_step_is_compiled_unless_asked(material: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    t = trainer(material, monkeypatch)
    monkeypatch.setattr(t, "keyframe_step", lambda *_: seen.append(fusing.asked()))
    monkeypatch.setattr(t, "phase", replace(t.phase, groups=0))
    monkeypatch.setattr(loop, "project", lambda net: None)
    monkeypatch.setattr(torch, "stack", lambda tensors: torch.zeros(1))
    for fused_ in (False, True):
        t.fused = fused_
        t.learn(t.plans[0], ())  # type: ignore[arg-type]
    assert seen == [False, True] and not fusing.asked()
