"""Training: the classical start, every phase, a falling loss, exact resume, a verified file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from device_check import META, DeviceCheck
from synthetic import clip
from torch.utils._python_dispatch import TorchDispatchMode

from vcfilter.codec.structure import LAYER_QP_OFFSET
from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder, TrainingCoder
from vcfilter.errors import ConfigError
from vcfilter.frames import VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical import latent, refine, search
from vcfilter.models.hierarchical.blocks import to_blocks
from vcfilter.models.hierarchical.conditions import Conditions, quantiser_step
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.latent import StepModel
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.model import HierarchicalModel, load
from vcfilter.models.hierarchical.refine import gauss_newton, solve
from vcfilter.models.hierarchical.values import MotionField
from vcfilter.models.weights import WeightsFile, read_weights
from vcfilter.nn import native, perceptual, warp
from vcfilter.nn.exact import ExactLayer, project
from vcfilter.options import Runtime
from vcfilter.train import freeze as freezing
from vcfilter.train import loop, plot
from vcfilter.train.data import Clip, Samples
from vcfilter.train.freeze import freeze, verify
from vcfilter.train.graph import cloned, tensors
from vcfilter.train.loss import cost, log_cost, squared_error
from vcfilter.train.machine import Processes, halve_branches, motion
from vcfilter.train.phases import (
    PHASES,
    Group,
    Phase,
    anchor_steps,
    forward_steps,
    group_steps,
    looks_back,
    low_delay_steps,
    signed_distances,
)
from vcfilter.train.plan import Figures, StepNumbers, StepPlan
from vcfilter.train.precondition import precondition, spread, spread_of
from vcfilter.train.start import classical, grow
from vcfilter.train.watch import TrainingError

TINY = Phase(name="tiny", keyframes=2, groups=1, size=64, group_size=64, rate=1e-3)


@pytest.fixture(scope="module")
def material() -> Clip:
    video_format = VideoFormat(width=96, height=64)
    frames = clip(26, video_format, noise=1.0)
    rows = [
        np.concatenate([f.y.reshape(-1), f.u.reshape(-1), f.v.reshape(-1)]).reshape(96, 96)
        for f in frames
    ]
    return Clip(np.stack(rows), [0])


@pytest.fixture(scope="module")
def start(material: Clip) -> dict[str, torch.Tensor]:
    return classical(Samples([material], 64, 1)).state_dict()


def trainer(
    material: Clip,
    start: dict[str, torch.Tensor],
    steps: int = 20,
    phase: Phase = TINY,
    half: bool = False,
) -> loop.Trainer:
    net = loop.VideoNet()
    net.load_state_dict(start)
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    return loop.Trainer(net, samples, stills, phase, steps, half=half)


@pytest.mark.slow
def test_loss_falls(material: Clip, start: dict[str, torch.Tensor]) -> None:
    t = trainer(material, start, steps=6)
    x = t.stills.draw([0], 4)[0]
    qp = torch.tensor([20, 26, 32, 38])

    def loss() -> float:
        with torch.no_grad():
            return float(t.keyframes(x, qp, passes=1)[0])

    before = loss()
    for _ in range(6):
        figures = t.run_step().read(0)
        assert all(np.isfinite(v) for v in figures.values())
    assert loss() < before - 0.005


@pytest.mark.slow
def test_resume_is_exact(material: Clip, start: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole = trainer(material, start)
    for _ in range(4):
        whole.run_step()
    first = trainer(material, start)
    for _ in range(2):
        first.run_step()
    first.save(tmp_path / "state", {"said": 1})
    second = trainer(material, start)
    assert second.resume(tmp_path / "state") == {"said": 1}
    for _ in range(2):
        second.run_step()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name
    mine, others = whole.weights().state_dict(), second.weights().state_dict()
    assert all(torch.equal(mine[k], others[k]) for k in mine)


@pytest.mark.slow
def test_a_foreign_state_is_one_sentence(
    material: Clip, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"net": {}}, tmp_path / "state")
    with pytest.raises(ConfigError, match="no state of this training"):
        trainer(material, start).resume(tmp_path / "state")


@pytest.mark.parametrize("name", list(PHASES))
def test_each_phase_moves_what_it_should(
    name: str, material: Clip, start: dict[str, torch.Tensor]
) -> None:
    row = PHASES[name]
    if any(stage.features for stage in row.stages) and not perceptual.available():
        pytest.skip("needs the extra train-perceptual")
    small = replace(
        row, keyframes=min(2, row.keyframes), groups=min(1, row.groups), size=64, group_size=64
    )
    t = trainer(material, start, phase=small)
    figures = [t.run_step().read(0) for _ in range(2)][-1]
    assert all(np.isfinite(v) for v in figures.values())
    after = t.weights().state_dict()
    moved = {k.split(".")[0] for k, v in start.items() if not torch.equal(v.float(), after[k])}
    expected = {
        "interpolation": {"motion"},
        "image": {"image", "prediction"},
        "keyframes": {"image"},
        "perceptual": {"image", "prediction"},
    }.get(name, {"image", "motion", "prediction"})
    assert moved and moved <= expected
    names = {k.removesuffix("_bpp") for k in figures}
    if row.stages:
        assert {"error", "difference"} <= names
        names -= {own for panel in plot.PANELS.values() for own in panel}
    assert names <= {"key", "group_key"} | {
        f"{way}{n}" for way in ("inter", "forward") for n in (1, 2, 3, 4)
    }
    assert ("key" in names) == bool(row.keyframes)
    assert ("group_key" in names) == bool(row.groups and not row.originals)


def test_a_gradient_passes_through_references_only_where_the_row_says(
    material: Clip, start: dict[str, torch.Tensor]
) -> None:
    """A keyframe's own loss switched off: what it still learns came through later frames."""
    gradients = {}
    for through in (False, True):
        phase = replace(
            TINY, keyframes=0, through=through, keyframe_share=0.0, spans=((4, 1.0),), coded=0.0
        )
        t = trainer(material, start, phase=phase)
        t.run_step()
        weight = t.net.image.analysis_linear.parametrizations.weight.original
        gradients[through] = weight.grad.clone()
    assert gradients[True].abs().sum() > 0
    assert not torch.allclose(gradients[True], gradients[False], rtol=1e-3)


@pytest.mark.slow
def test_layer_weights_change_the_loss_of_their_layer_alone(
    material: Clip, start: dict[str, torch.Tensor]
) -> None:
    plain = trainer(material, start).run_step().read(0)
    heavy = (
        trainer(material, start, phase=replace(TINY, layer_weights=(1.0, 3.0, 1.0)))
        .run_step()
        .read(0)
    )
    assert heavy["inter1"] > plain["inter1"] + 0.1
    for name in ("key", "group_key", "inter2"):
        if name in plain:
            assert heavy[name] == plain[name]


@pytest.mark.parametrize("span", [2, 4, 6, 8, 12])
@pytest.mark.parametrize("near_right", [False, True])
def test_a_chain_halves_towards_one_side(span: int, near_right: bool) -> None:
    steps = group_steps(Group.CHAIN, span, near_right)
    known = {0, span}
    for number, step in enumerate(steps):
        assert set(step.references) <= known and step.layer == number + 1
        first, second = signed_distances(step)
        assert first < 0 < second
        assert step.offset == LAYER_QP_OFFSET[step.layer]
        known.add(step.number)
    distances = [span - s.number if near_right else s.number for s in steps]
    assert distances == {2: [1], 4: [2, 1], 6: [3, 1], 8: [4, 2, 1], 12: [6, 3, 1]}[span]


def test_a_segment_holds_every_frame() -> None:
    steps = group_steps(Group.SEGMENT, 12, False)
    assert sorted(s.number for s in steps) == list(range(1, 12))


def test_a_low_delay_chain_refers_to_the_last_frame_and_the_golden_one() -> None:
    steps = low_delay_steps(9)
    assert [s.references for s in steps] == [
        (0,), (1, 0), (2, 0), (3, 0), (4, 0), (5, 4), (6, 4), (7, 4), (8, 4)
    ]  # fmt: skip
    assert [s.layer for s in steps] == [3, 2, 3, 1, 3, 2, 3, 1, 3]
    assert [s.offset for s in steps] == [6, 5, 6, 3, 6, 5, 6, 3, 6]
    assert signed_distances(steps[0]) == (-1, 0) and signed_distances(steps[5]) == (-1, -2)
    assert all(map(looks_back, steps))


def test_anchors_refer_to_those_before_them() -> None:
    steps = anchor_steps(6, 3, single=False)
    assert [s.references for s in steps] == [(0,), (6, 0), (12, 6), (12, 18)]
    assert [s.number for s in steps] == [6, 12, 18, 15]
    assert [looks_back(s) for s in steps] == [True, True, True, False]
    assert [s.references for s in anchor_steps(4, 2, single=True)] == [(0,), (4,)]


@pytest.mark.parametrize("longest", [2, 3, 5, 13, 25])
def test_forward_groups_fit_their_shots(longest: int) -> None:
    random = np.random.default_rng(1)
    distances = set()
    for _ in range(300):
        steps = forward_steps(random, longest)
        known = {0}
        for step in steps:
            assert set(step.references) <= known and 0 < step.number < longest
            known.add(step.number)
        distances.add(-signed_distances(steps[0])[0])
    assert min(distances) == 1 and max(distances) <= longest - 1
    if longest == 25:
        assert len(distances) > 12


@pytest.mark.parametrize("group", [Group.CHAIN, Group.FORWARD])
def test_forward_groups_are_drawn_where_the_row_says(
    group: Group, material: Clip, start: dict[str, torch.Tensor]
) -> None:
    phase = replace(TINY, group=group, forward=0.4)
    t = trainer(material, start, phase=phase)
    found = [t.draw_group(t.random.random()) for _ in range(200)]
    forward = [looks_back(steps[0]) for _, steps in found]
    assert [outer == (0,) for outer, _ in found] == forward
    if group is Group.FORWARD:
        assert all(forward)
    else:
        assert np.mean(forward) == pytest.approx(0.4, abs=0.1)


def test_rates_and_qps() -> None:
    assert loop.rate_scale("image.analysis_branch.first.weight") == 0.3
    assert loop.rate_scale("image.coding.steps.0.mean.parametrizations.weight.original") == 0.03
    assert loop.rate_scale("image.log_step.weight") == 0.1
    assert loop.rate_scale("image.analysis_linear.parametrizations.weight.original") == 0.05
    assert loop.rate_scale("motion.coding.steps.0.hidden.weight") == 0.3
    assert loop.rate_scale("prediction.branch.first.weight") == 1.0


def test_qps_are_drawn_as_stated(material: Clip, start: dict[str, torch.Tensor]) -> None:
    qp = trainer(material, start).draw_qp(20000)
    assert qp.min() == 2 and qp.max() == 57
    outside = np.mean((qp < 14) | (qp > 49))
    assert outside == pytest.approx(0.2 * 20 / 56, abs=0.01)


def test_half_precision_stays_outside_the_exact_path(
    material: Clip, start: dict[str, torch.Tensor]
) -> None:
    """In bfloat16 branches, exact layers see and give integers in float32, and the loss holds."""
    t = trainer(material, start)
    for parameter in t.net.image.parameters():  # branches that do something
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=torch.manual_seed(0))
    x, qp = t.stills.draw([0], 4)[0], torch.tensor([16, 24, 32, 40])
    whole, _, bits = t.keyframes(x, qp)
    halve_branches(t.net, torch.device("cpu"))
    inside: list[torch.dtype] = []
    exact: list[torch.Tensor] = []
    for module in t.net.modules():
        if isinstance(module, ExactLayer):
            module.register_forward_hook(lambda _m, _i, out: exact.append(out.detach()))
        elif module is t.net.image.analysis_branch.first:
            module.register_forward_hook(lambda _m, _i, out: inside.append(out.dtype))
    loss, reference, half_bits = t.keyframes(x, qp)
    assert inside == [torch.bfloat16]
    assert exact and all(o.dtype == torch.float32 for o in exact)
    assert all(torch.equal(o, torch.floor(o)) for o in exact)
    assert reference.planes[0].dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), abs=0.02)
    assert float(half_bits) == pytest.approx(float(bits), rel=0.02)
    figures = trainer(material, start, half=True).run_step().read(0)
    assert all(np.isfinite(v) for v in figures.values())


@pytest.mark.gpu
def test_a_step_on_a_gpu(material: Clip, start: dict[str, torch.Tensor]) -> None:
    """Clips in its memory, branches in bfloat16, exact layers in float64, figures as on a CPU."""
    processes = Processes(device=torch.device("cuda"))
    net = loop.VideoNet()
    net.load_state_dict(start)
    there = material.to(processes.device)
    samples, stills = (Samples([there], 64, seed, None, processes.device) for seed in (1, 2))
    t = loop.Trainer(net, samples, stills, TINY, 20, processes=processes, half=True, flow_threads=2)
    exact: list[torch.Tensor] = []
    for module in t.net.modules():
        if isinstance(module, ExactLayer):
            module.register_forward_hook(lambda _m, _i, out: exact.append(out.detach()))
    found, expected = (each.run_step().read(0) for each in (t, trainer(material, start)))
    assert exact and all(o.dtype == torch.float64 and torch.equal(o, o.floor()) for o in exact)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("distances", [(-2, 2), (-1, -3), (-4, 0)])
def test_a_step_mixes_no_devices(
    distances: tuple[int, int], material: Clip, start: dict[str, torch.Tensor]
) -> None:
    """All of a step but the flow search, on tensors that have shapes and a device only."""
    device = META
    net = loop.VideoNet()
    net.load_state_dict(start)
    samples = Samples([material], 64, 1)
    x = tuple(p.to(device) for p in samples.draw([0], 2)[0])
    precondition(net, torch.ones(96))
    net = net.to(device)
    with DeviceCheck():
        blocks = to_blocks(*x)
        assert spread_of(blocks).device == device
        bits = torch.ones(tables.TABLES, tables.MAGNITUDE_MAX + 2, device=device)
        qp = torch.full((2,), 30, device=device)
        key = Conditions(qp, qp * 0, torch.stack([qp * 0, qp * 0], 1), qp * 0)
        reference = net.code_keyframe(key, x, TrainingCoder(bits, 2), [RateCoder(bits, 2)])
        reference = reference.each(torch.Tensor.detach)
        apart = torch.tensor([distances] * 2, device=device)
        given = Conditions(qp, qp * 0 + 1, apart, qp * 0 + 3, refine=distances[1] > 0)
        coder, pair = TrainingCoder(bits, 2), (reference, reference)
        estimate = MotionField(
            torch.zeros(2, 5, 8, 8, device=device), torch.zeros(2, 8, 8, 5, 5, device=device)
        )
        gauss_newton(x[0], x[0], x[0], estimate.field, 1)
        coded = net.code_motion(given, estimate, pair, coder)
        new = net.code_inter(MotionMode.CODED, True, given, x, pair, coder, coded)
        base = quantiser_step(qp)
        found, _ = cost(squared_error(new.planes, x, base), base, coder.total, 64 * 64)
        log_cost(found).backward()
        project(net)
    assert net.image.log_step.weight.grad.device == device


@pytest.mark.gpu
def test_natural_units_on_a_gpu(material: Clip) -> None:
    there = material.to(torch.device("cuda"))
    found = spread(Samples([there], 64, 1, None, torch.device("cuda"))).cpu()
    assert torch.allclose(found, spread(Samples([material], 64, 1)), rtol=1e-3)


@pytest.mark.slow
def test_a_smaller_configuration_trains_and_is_verified(material: Clip, tmp_path: Path) -> None:
    config = HierarchicalConfig(
        image_width=16, image_hidden=32, motion_width=8, motion_hidden=32, prediction_width=16
    )
    samples = Samples([material], 64, 1)
    net = classical(samples, config)
    t = loop.Trainer(net, samples, Samples([material], 64, 2), TINY, 2)
    t.run_step()
    target = tmp_path / "small.safetensors"
    freeze(t.weights(), samples, str(target), "small", {}, rounds=1)
    again = store.find(str(target), Runtime(device="cpu"))
    assert again.info.config["image_width"] == 16
    assert target.stat().st_size < Path(store.locate(None)).stat().st_size / 2


def test_the_flow_search_is_the_same_in_threads(
    material: Clip, start: dict[str, torch.Tensor]
) -> None:
    left, x, right = Samples([material], 64, 5).draw([0, 2, 4], 3)
    config = HierarchicalConfig()
    pair = loop.original(left, config), loop.original(right, config)
    qp, layer, level = (torch.tensor(t) for t in ([20, 28, 36], [1, 2, 3], [4, 5, 6]))
    given = Conditions(qp, layer, torch.tensor([[-2, 2]] * 3), level)
    alone, shared = (motion(given, x, pair, n) for n in (1, 2))
    assert torch.equal(alone.field, shared.field)
    assert torch.equal(alone.hessian, shared.hessian)


def test_a_process_alone_needs_no_others() -> None:
    processes = Processes()
    assert processes.first and processes.own == slice(0, None, 1) and not processes.any(False)


def frozen(start: dict[str, torch.Tensor], material: Clip, target: Path) -> dict[str, float]:
    net = loop.VideoNet()
    net.load_state_dict(start)
    samples = Samples([material], 64, 1)
    return freeze(net, samples, str(target), "made", {"data": "made"}, rounds=2)


@pytest.mark.slow
def test_freezing_writes_a_verified_file(
    material: Clip, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    target = tmp_path / "w.safetensors"
    figures = frozen(start, material, target)
    assert figures["bytes"] > 1000 and figures["frames"] == 24
    assert abs(figures["estimated_bytes"] / figures["bytes"] - 1) < 0.02
    made = store.find(str(target), Runtime(device="cpu")).info
    assert made.name == "made" and made.card == {"data": "made"}
    assert made.id != store.find(None, Runtime(device="cpu")).info.id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["pixels", "parse", "rate"])
def test_a_model_that_fails_is_refused(
    fault: str,
    material: Clip,
    start: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault == "pixels":  # the synthesis answers otherwise each time

        def shaky(self: object, latent: torch.Tensor, *_: object) -> torch.Tensor:
            shaky.calls += 1
            return torch.zeros_like(latent) + 100 + shaky.calls % 7

        shaky.calls = 0
        monkeypatch.setattr("vcfilter.models.hierarchical.image.ImageCodec.synthesise", shaky)
        message = "decodes other than it coded"
    elif fault == "parse":  # tables that follow from floating point
        exact = StepModel.indices

        def loose(self: StepModel, *given: torch.Tensor) -> torch.Tensor:
            return (exact(self, *given) + (self.mean.weight.dtype == torch.float64)).clamp(max=63)

        monkeypatch.setattr(StepModel, "indices", loose)
        message = "verification failed"
    else:

        def wrong(file: WeightsFile, device: torch.device) -> HierarchicalModel:
            model = load(file, device)
            model.tables.bits *= 1.1
            return model

        monkeypatch.setattr(freezing, "load", wrong)
        message = "more than 1 % apart"
    with pytest.raises(TrainingError, match=message):
        frozen(start, material, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_shipped_model_is_verified(material: Clip) -> None:
    model = load(read_weights(store.locate(None)), torch.device("cpu"))
    figures = verify(model, Samples([material], 64, 1))
    assert figures["pixel_difference"] < 0.01


class Reads(TorchDispatchMode):
    """Notes operations that make the host wait for a device, or that a CUDA graph cannot hold."""

    found: ClassVar[list[str]] = []
    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(name in str(func) for name in self.WAITS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Direct:
    """Stands for the graphs where there is no GPU: runs the step twice, and watches the second."""

    def __init__(self, learn: Any) -> None:
        self.learn = learn

    def run(self, plan: StepPlan, inputs: StepNumbers) -> Figures:
        self.learn(plan, inputs)  # what is made once is made here, as before a capture
        with Reads():
            figures: Figures = self.learn(plan, inputs)
        return figures


@pytest.mark.slow
def test_a_captured_step_reads_nothing(
    material: Clip, start: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (latent, native, refine, search, warp):  # on a GPU there are no native loops
        monkeypatch.setattr(module, "is_native", lambda *tensors: False)
    monkeypatch.setattr(loop, "StepGraphs", Direct)
    net = loop.VideoNet()
    net.load_state_dict(start)
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    t = loop.Trainer(net, samples, stills, replace(TINY, forward=0.5), 9, plans=2)
    t.optimizer.step = lambda: None  # type: ignore[method-assign]  # AdamW's own counts its steps
    warp.with_halves(torch.zeros(1, 1, 8, 8))  # its weights are kept from the first time on
    Reads.found.clear()
    kinds = set()
    assert t.prefetcher is not None
    for _ in range(2):
        plan, numbers = t.prefetcher.take()
        assert plan in t.plans
        kinds.add(plan.inter[0].back)
        for place, each in zip(plan.inter, numbers.inter, strict=True):
            coded = place.mode is MotionMode.CODED
            assert len(each.flows) == (len(place.references) if coded else 0)
            assert all(flow.shape == (1, 2, 8, 8) for flow in each.flows)
        assert np.isfinite(list(t.run_step().read(0).values())).all()
    assert not Reads.found
    assert {p.inter[0].back for p in t.plans} == {True, False} >= kinds
    with Reads():
        torch.tensor([1.0]).item()
    assert Reads.found


def test_tuples_of_tensors_are_copied() -> None:
    numbers = StepNumbers(
        alone=(), alone_qp=torch.ones(2), frames=((torch.ones(1),) * 3,), qp=torch.ones(1), inter=()
    )
    copied = cloned(numbers)
    assert isinstance(copied, StepNumbers)
    assert len(list(tensors(copied))) == len(list(tensors(numbers))) == 5
    assert copied.qp is not numbers.qp


def test_larger_networks_compute_the_same(start: dict[str, torch.Tensor]) -> None:
    net = loop.VideoNet()
    net.load_state_dict(start)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    own = net.config
    wanted = replace(
        own,
        image_hidden=own.image_hidden + 16,
        motion_hidden=own.motion_hidden + 8,
        image_width=own.image_width + 8,
        prediction_blocks=own.prediction_blocks + 1,
    )
    larger = grow(net, wanted)
    assert larger.config == wanted
    x = tuple(torch.rand(1, 1, n, n) * 255 for n in (64, 32, 32))
    qp = torch.tensor([30])
    key = Conditions(qp, qp * 0, torch.zeros(1, 2, dtype=torch.int64), qp * 0)
    given = Conditions(qp, qp * 0 + 1, torch.tensor([[-1, 1]]), qp * 0 + 3)
    bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
    found = []
    for each in (net, larger):
        coder = RateCoder(bits, 1)
        with torch.no_grad():
            first = each.code_keyframe(key, x, coder)
            both = first, first
            second = each.code_inter(MotionMode.NONE, True, given, x, both, coder)
        found.append((float(coder.total), second.planes[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)
    assert (found[0][1] - found[1][1]).abs().mean() < 0.05
    with pytest.raises(ConfigError, match="larger than"):
        grow(larger, net.config)


def test_many_small_systems() -> None:
    roots = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    normal = roots @ roots.mT + torch.eye(5)
    target = torch.randn(3, 4, 5, dtype=torch.float64)
    rows = [list(row.unbind(-1)) for row in normal.unbind(-2)]
    found = torch.stack(solve(rows, list(target.unbind(-1))), -1)
    assert torch.allclose(found, torch.linalg.solve(normal, target[..., None])[..., 0])
