"""The phase perceptual: losses for looks of a codec, its stages, and its resumption."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_film
from safetensors.torch import load_file
from small_model import SMALL, small_net, write_small_model
from synthetic import clip
from test_train_run import start, wait_for_step

from vcfilter.cli.main import main
from vcfilter.errors import ConfigError
from vcfilter.frames import VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.nn import perceptual
from vcfilter.options import Runtime
from vcfilter.train import plot
from vcfilter.train.data import Clip, Samples
from vcfilter.train.filtering import Fitted
from vcfilter.train.looks import (
    ADVERSARIAL_QP,
    Adversary,
    CodecLooks,
    Remembering,
    Shown,
    mean,
    ratio,
)
from vcfilter.train.loop import Trainer, filtered, inter_conditions, key_conditions
from vcfilter.train.machine import Processes
from vcfilter.train.phases import PHASES, Phase, Stage, stage_at
from vcfilter.train.plan import InterNumbers, InterPlan
from vcfilter.train.watch import Guard, TrainingError, read_log

ROW = PHASES["perceptual"]
CHEAP = replace(
    ROW,
    size=64,
    group_size=64,
    rate=2e-3,
    spans=((4, 1.0),),
    stages=(
        Stage(until=0.5, error=0.0, difference=0.2),
        Stage(until=1.0, error=0.0, difference=0.2, adversarial=0.1, rate=0.5),
    ),
)
needs_weights = pytest.mark.skipif(
    not perceptual.available(), reason="needs the extra train-perceptual"
)


@pytest.fixture(scope="module")
def material() -> Clip:
    frames = clip(12, VideoFormat(width=96, height=64), noise=1.0)
    rows = [
        np.concatenate([f.y.reshape(-1), f.u.reshape(-1), f.v.reshape(-1)]).reshape(96, 96)
        for f in frames
    ]
    return Clip(np.stack(rows), [0])


def trainer(material: Clip, phase: Phase = CHEAP, steps: int = 4) -> Trainer:
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    return Trainer(small_net(), samples, stills, phase, steps)


def test_the_row_goes_from_errors_to_features_to_a_discriminator() -> None:
    first, second, third = ROW.stages
    assert not first.features and not first.adversarial
    assert second.features and not second.adversarial
    assert third.features and third.adversarial and third.until == 1
    assert all(stage.difference for stage in ROW.stages)
    assert stage_at(ROW.stages, 0.6) is stage_at(ROW.stages, 1.0) is third
    for wrong in ((third, second), (first, second)):
        with pytest.raises(ConfigError, match="stages until"):
            replace(ROW, stages=wrong)


@pytest.mark.slow
def test_before_a_step_frames_are_what_the_first_networks_make(material: Clip) -> None:
    """Of the same symbols, keyframes and all frames of groups of every kind."""
    t = trainer(material, replace(CHEAP, rate=0.0), steps=8)
    for _ in range(8):
        figures = t.run_step().read(0)
        # Weights that do not learn are kept, and sums with them rounded otherwise.
        assert figures["error"] == pytest.approx(1, abs=1e-5)
        assert figures["difference"] == pytest.approx(1, abs=1e-5)
    assert t.looks is not None
    with torch.no_grad():
        t.net.image.synthesis_branch.last.weight.add_(0.02)
    assert t.run_step().read(0)["error"] != 1


def test_what_is_coded_stays_as_it_was(material: Clip) -> None:
    t = trainer(material)
    before = {name: value.clone() for name, value in t.net.state_dict().items()}
    for _ in range(4):
        t.run_step()
    after = t.weights().state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {".".join(name.split(".")[:2]) for name in moved} == {
        "image.synthesis_branch",
        "prediction.branch",
    }


def test_each_stage_has_its_losses_and_rate(material: Clip) -> None:
    t = trainer(material, steps=40)
    t.step = 38  # warmed up, and at the end of the cosine
    names = []
    for share in (0.0, 0.49, 0.51, 0.99):
        t.share = share
        names.append(set(t.run_step().read(0)))
    assert all({"key", "error", "difference"} <= found for found in names)
    assert not any("adversarial" in found for found in names[:2])
    assert any({"adversarial", "discriminator"} <= found for found in names[2:])
    rates = []
    for phase in (CHEAP, replace(CHEAP, stages=(replace(CHEAP.stages[1], rate=1.0),))):
        t.phase, t.share = phase, 0.75
        t.set_rate()
        rates.append(t.optimizer.param_groups[0]["lr"])
    assert rates[1] == pytest.approx(2 * rates[0])


@pytest.mark.slow
def test_a_resumed_training_goes_on_exactly(material: Clip, tmp_path: Path) -> None:
    whole, first, second = (trainer(material, steps=6) for _ in range(3))
    for _ in range(6):
        last = whole.run_step().read(0)
    for _ in range(4):  # the discriminator has learned once
        first.run_step()
    first.save(tmp_path / "state")
    with torch.no_grad():  # what a training begins from is that of the state
        for parameter in second.net.parameters():
            parameter.add_(0.1)
    second.resume(tmp_path / "state")
    for _ in range(2):
        assert second.share < 1
        again = second.run_step().read(0)
    assert again == last
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name


def test_a_state_without_looks_is_refused(material: Clip, tmp_path: Path) -> None:
    plain = trainer(material, replace(CHEAP, stages=()))
    plain.save(tmp_path / "state")
    with pytest.raises(ConfigError, match="is no state of this training"):
        trainer(material).resume(tmp_path / "state")


# --- losses --------------------------------------------------------------------------------------


def luma(batch: int = 2, seed: int = 0, side: int = 64) -> torch.Tensor:
    return torch.rand(batch, 1, side, side, generator=torch.manual_seed(seed)) * 200


def test_the_discriminator_sees_no_coarse_frames() -> None:
    torch.manual_seed(0)
    adversary = Adversary(1e-3, Processes())
    before = {k: v.clone() for k, v in adversary.discriminator.state_dict().items()}
    fake = luma(2, 1).requires_grad_(True)
    coarse = torch.full((2,), ADVERSARIAL_QP + 1)
    assert adversary.judge(luma(), luma(), fake, coarse) == {}
    after = adversary.discriminator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    mixed = torch.tensor([ADVERSARIAL_QP, ADVERSARIAL_QP + 1])
    found = adversary.judge(luma(), luma(), fake, mixed)
    found["adversarial"].backward()
    assert fake.grad is not None and fake.grad[0].any() and not fake.grad[1].any()


def test_the_discriminator_learns_what_is_missing() -> None:
    """Frames without texture; the better it knows them, the higher their loss."""
    torch.manual_seed(0)
    adversary = Adversary(8e-3, Processes())
    decoded = torch.full((2, 1, 64, 64), 100.0)
    qp = torch.tensor([30, 30])
    found = []
    for seed in range(60):
        real = decoded + 20 * torch.randn(decoded.shape, generator=torch.manual_seed(seed))
        found.append(adversary.judge(decoded, real, decoded.clone(), qp))
    assert float(found[0]["discriminator"]) == pytest.approx(2, abs=0.3)
    assert float(found[-1]["discriminator"]) < 1
    assert float(found[-1]["adversarial"]) > float(found[0]["adversarial"]) + 0.3


def shown_of(error: torch.Tensor, carried: torch.Tensor, moves: torch.Tensor) -> Any:
    """Frames with an error, coded from references with another, moved."""
    original, before = luma(1), luma(1, 5)
    planes = (before + carried, None, None)
    return SimpleNamespace(
        new=SimpleNamespace(planes=(original + error, None, None), moves=moves),
        original=original,
        before=before,
        references=(SimpleNamespace(planes=planes),) * 2,
        conditions=SimpleNamespace(qp=torch.tensor([30])),
    )


def test_errors_that_move_with_the_picture_do_not_boil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of equal energy: as the reference's at its new place, and of the other sign there."""
    looks = CodecLooks(small_net(), 1e-3, Processes(), features=False, half=False)
    usual = 8 * torch.randn(1, 1, 64, 64, generator=torch.manual_seed(9))
    monkeypatch.setattr(looks, "decoded", lambda shown: shown.original + usual)
    carried = 8 * torch.randn(1, 1, 64, 64, generator=torch.manual_seed(8))
    moves = torch.zeros(1, 4, 8, 8)
    moves[:, 0] = 2.0  # a sample at p takes the reference's at p + 2
    moved = torch.roll(carried, -2, 3)
    stage = Stage(until=1.0)
    calm, boiling, still = (
        float(looks.measure(stage, shown_of(sign * moved, carried, at), (0, 0))["difference"])
        for sign, at in ((1, moves), (-1, moves), (1, torch.zeros_like(moves)))
    )
    assert calm < 0.1 < 0.8 < still < 1.2 < boiling


def test_a_ratio_has_a_floor() -> None:
    assert float(ratio(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]))) == 1.5
    assert float(ratio(torch.tensor([0.1]), torch.tensor([0.0]), 0.1)) == pytest.approx(2)
    assert float(mean(torch.zeros(0))) == 0


@needs_weights
def test_features_fall_where_the_first_networks_blurred(material: Clip) -> None:
    """The distance is relative to theirs, and its gradient reaches what is shown."""
    looks = CodecLooks(small_net(), 1e-3, Processes(), features=True, half=False)
    net, qp, x = looks.begin, torch.tensor([40, 40]), Samples([material], 64, 1).draw([0], 2)[0]
    bits = trainer(material).bits
    coder = Remembering(bits, 2)
    new = filtered(net.code_keyframe(key_conditions(qp), x, coder), Fitted(x))
    original = x[0]
    stage = Stage(until=1.0, features=1.0)
    seen = []
    for share in (0.0, 0.9):
        y = (new.planes[0] + share * (original - new.planes[0])).detach().requires_grad_(True)
        given = replace(new, planes=(y, *new.planes[1:]))
        shown = Shown(new=given, original=original, conditions=key_conditions(qp), coder=coder)
        found = looks.measure(stage, shown, (3, 5))
        found["relative"].backward()
        assert y.grad is not None and y.grad.any()
        assert not y.grad[..., :3, :].any() and not y.grad[..., :5].any()
        seen.append((float(found["relative"].detach()), float(found["features"])))
    assert seen[0][0] == pytest.approx(1, abs=1e-4)
    assert seen[1][0] < 0.8 and seen[1][1] < seen[0][1]


def test_symbols_are_replayed_for_coded_motion(material: Clip) -> None:
    """Motion's symbols come before the residual's, as in a packet."""
    t = trainer(material)
    frames = t.samples.draw([0, 1, 2], 2)
    qp = torch.tensor([30, 36])
    held = [t.keyframes(frames[n], qp)[1].each(torch.Tensor.detach) for n in (0, 2)]
    plan = InterPlan(
        shown=1,
        references=(0, 2),
        layer=1,
        back=False,
        mode=MotionMode.CODED,
        refine=True,
        passes=0,
    )
    distances = torch.tensor([[-1, 1]] * 2)
    numbers = InterNumbers(qp + 3, torch.tensor([3, 4]), distances)
    coder = t.coder(2)
    _, new, _ = t.inter(frames[1], held, plan, numbers, coder)
    assert t.looks is not None and isinstance(coder, Remembering)
    shown = Shown(
        new=new,
        original=frames[1][0],
        conditions=inter_conditions(plan, numbers),
        coder=coder,
        mode=plan.mode,
        references=(held[0], held[1]),
        before=frames[0][0],
    )
    assert (t.looks.decoded(shown) - new.planes[0]).abs().max() < 1e-3


# --- beside it -----------------------------------------------------------------------------------


def test_the_guard_lets_a_contest_swing() -> None:
    guard = Guard()
    for step in range(120):
        assert guard.check({"adversarial": 0.0 if step < 60 else 9.0, "key": 0.0}, step)
    with pytest.raises(TrainingError, match="'adversarial' is nan"):
        guard.check({"adversarial": float("nan")}, 121)


def test_losses_of_each_kind_have_their_axis(tmp_path: Path) -> None:
    found = plot.panels(["relative", "key", "features", "discriminator", "inter1"], "cost")
    assert found == {
        "cost": ["inter1", "key"],
        "for looks": ["relative"],
        "ST-LPIPS": ["features"],
        "adversary": ["discriminator"],
    }
    assert plot.panels(["error"], "loss") == {"for looks": ["error"]}
    rows = [
        {"number": 0, "step": s, "key": 1.0 / s, "error": 1.0, "features": 0.1, "seconds": 1.0}
        for s in range(1, 20)
    ]
    plot.draw(rows, tmp_path / "c.svg", "three")
    assert (tmp_path / "c.svg").read_text().count('<g id="axes_') == 3


def test_without_the_weights_nothing_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package")
    command = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "p.safetensors")]
    assert main([*command, "--phase", "perceptual"]) == 2
    told = capfd.readouterr().err
    assert "install vcfilter with the extra train-perceptual" in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_weights
def test_all_stages_run_and_a_kill_changes_nothing(tmp_path: Path) -> None:
    """From films to a verified model that encodes and decodes, its log whole and drawn."""
    films = tmp_path / "films"
    films.mkdir()
    make_film(films / "a.mkv", frames=14, width=96, height=64)
    make_film(films / "b.mkv", frames=14, width=96, height=64, cut_at=6)
    begin = write_small_model(tmp_path / "small.safetensors")

    def command(out: Path, *more: str) -> list[str]:
        given = ["--data", str(films), "--out", str(out), "--cache", str(tmp_path / "cache")]
        own = ["--model", str(tmp_path / "small.safetensors"), "--device", "cpu", "--threads", "1"]
        own += ["--phase", "perceptual", "--steps", "8", "--log-every", "1"]
        return ["train", *given, *own, *more]

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert main(command(whole)) == 0
    process = start(command(broken, "--keep", "0"))
    wait_for_step(Path(f"{broken}.jsonl"), process, 5)
    process.kill()
    process.communicate()
    assert not broken.exists()
    done = torch.load(f"{broken}.state", weights_only=True)["step"]
    assert 4 <= done < 8, "killed too late for this test to tell anything"
    again = start(command(broken))
    text, _ = again.communicate(timeout=600)
    assert again.returncode == 0, text
    assert f"going on from step {done} of perceptual" in text
    one, two = load_file(whole), load_file(broken)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    logs = [read_log(Path(f"{out}.jsonl")) for out in (whole, broken)]
    for rows in logs:
        for row in rows:
            row.pop("seconds")
    assert logs[0] == logs[1] and len(logs[0]) == 8
    assert "relative" not in logs[0][0] and "relative" in logs[0][1]
    assert not any("adversarial" in row for row in logs[0][:5])
    assert any("adversarial" in row for row in logs[0][5:])
    assert Path(f"{whole}.svg").read_text().count('<g id="axes_') == 4
    model = store.find(str(whole), Runtime(device="cpu")).info
    assert model.id != begin and model.card["steps"] == "perceptual:8"
    assert model.config == asdict(SMALL)
    coded, back = tmp_path / "coded.mkv", tmp_path / "back.mkv"
    own = ["-q", "--model", str(whole)]
    encode = ["encode", str(films / "a.mkv"), str(coded), "--preset", "ultrafast", *own]
    assert main(encode) == 0
    assert main(["decode", str(coded), str(back), *own]) == 0
    assert back.stat().st_size > 0
