"""The phase `layers`: what learns, what stays, and that a run ends with a verified model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import make_film
from small_model import small_net, write_small_model
from synthetic import clip

from vcfilter.cli.main import main
from vcfilter.codec import Encoder
from vcfilter.entropy import tables
from vcfilter.errors import ConfigError
from vcfilter.frames import VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical.conditions import CONTEXT, REFINED
from vcfilter.nn.exact import SUM_BOUND
from vcfilter.options import EncoderOptions, Runtime
from vcfilter.train.data import Clip, Samples
from vcfilter.train.levels import LevelsTrainer, Replay, code_length, columns, keep_bound
from vcfilter.train.phases import LAYERS

TINY = replace(LAYERS, groups=3, group_size=64, batch=4)
FORMAT = VideoFormat(width=96, height=64)


@pytest.fixture(scope="module")
def material() -> Clip:
    rows = [
        np.concatenate([f.y.reshape(-1), f.u.reshape(-1), f.v.reshape(-1)]).reshape(96, 96)
        for f in clip(14, FORMAT, noise=3.0)
    ]
    return Clip(np.stack(rows), [0])


def trainer(material: Clip, steps: int = 20) -> LevelsTrainer:
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    return LevelsTrainer(
        small_net(), tables.laplace_magnitudes(), samples, stills, TINY, steps, rate=10
    )


@pytest.fixture(scope="module")
def trained(material: Clip) -> LevelsTrainer:
    found = trainer(material, 12)
    for _ in range(12):
        figures = found.run_step().read(0)
        assert all(np.isfinite(v) for v in figures.values())
    return found


@pytest.mark.slow
def test_groups_hold_what_the_row_says(trained: LevelsTrainer) -> None:
    drops = {level.drop // level.delta for level in trained.levels}
    assert drops <= {1, 2, 3} and len(drops) > 1
    assert {level.contexts is None for level in trained.levels} == {True, False}
    for level in trained.levels:
        assert level.conditions.drop == level.drop >= level.delta >= 1
        assert len(level.coded) == level.below.numel() and level.coded.any()


def test_codes_become_shorter(trained: LevelsTrainer) -> None:
    begun = sum(level.bits for level in trained.levels)
    with torch.no_grad():
        lengths = [code_length(trained.net, level, trained.bits) for level in trained.levels]
    assert float(sum(lengths)) < 0.99 * begun


def test_only_the_distance_to_the_base_learns(trained: LevelsTrainer) -> None:
    before, after = small_net().state_dict(), trained.weights().state_dict()
    names = {id(layer.weight) for layer in columns(trained.net)}
    learning = {name for name, p in trained.net.named_parameters() if id(p) in names}
    rest = torch.arange(CONTEXT) != REFINED
    for name, value in before.items():
        if name in learning:
            assert torch.equal(value[:, rest], after[name][:, rest]), name
        else:
            assert torch.equal(value, after[name]), name
    assert any(bool(after[name][:, REFINED].any()) for name in learning)


@pytest.mark.slow
def test_resume_is_exact(material: Clip, tmp_path: Path) -> None:
    whole = trainer(material)
    for _ in range(3):
        whole.run_step()
    first = trainer(material)
    first.run_step()
    first.save(tmp_path / "state", {"said": 1})
    second = trainer(material)
    assert second.resume(tmp_path / "state") == {"said": 1}
    for _ in range(2):
        second.run_step()
    mine, others = whole.weights().state_dict(), second.weights().state_dict()
    assert all(torch.equal(mine[k], others[k]) for k in mine)
    torch.save({"net": {}}, tmp_path / "foreign")
    with pytest.raises(ConfigError, match="no state of this training"):
        second.resume(tmp_path / "foreign")


def test_a_replay_costs_what_its_tables_say() -> None:
    bits = torch.arange(104.0)[:, None] * torch.ones(1, 257)
    index = torch.tensor([[[0.0, 5.2, 65.0, 83.0]]], requires_grad=True)
    reader = Replay(torch.tensor([0, -3, 1, 0], dtype=torch.int32), bits)
    assert reader.symbols(index).flatten().tolist() == [0, -3, 1, 0]
    assert float(reader.total.detach()) == pytest.approx(1 + 5 + 65 + 83)
    reader.total.backward()
    assert index.grad is not None and index.grad.flatten().tolist() == [1, 1, 1, 1]


def test_the_sums_stay_exact() -> None:
    layer = columns(small_net())[1]
    with torch.no_grad():
        before = layer.weight[:, 0].clone()
        layer.weight[0, REFINED] = -1e6
        keep_bound(layer)
        assert torch.equal(layer.weight[:, 0], before)
        assert layer.weight[0, REFINED] < -1
    assert float(layer.bound().max()) < SUM_BOUND


@pytest.mark.slow
def test_the_command_goes_on_and_writes_a_verified_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcfilter.train.levels.LAYERS", TINY)
    (tmp_path / "films").mkdir()
    make_film(tmp_path / "films" / "film.mkv", frames=14, width=96, height=64)
    write_small_model(tmp_path / "small.safetensors")
    out, small = tmp_path / "out.safetensors", str(tmp_path / "small.safetensors")
    words = ["train", "--phase", "layers", "--data", str(tmp_path / "films"), "--out", str(out)]
    words = [*words, "--cache", str(tmp_path / "cache"), "--log-every", "2", "--rate", "40"]
    timed = [*words, "--minutes", "0.01", "--state", str(tmp_path / "timed.state")]
    assert main([*timed, "--model", small]) == 0
    out.unlink()
    Path(f"{out}.jsonl").unlink()
    words += ["--steps", "4"]
    assert main([*words, "--model", small]) == 0
    assert "verified on" in capfd.readouterr().err
    rows = [json.loads(row) for row in Path(f"{out}.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and rows[-1]["length"] < 1.01
    assert main([*words, "--model", small]) == 0
    assert "going on from step 4" in capfd.readouterr().err
    assert main([*words]) == 2  # the state is of another model
    assert "belongs to a training with model" in capfd.readouterr().err
    assert main([*words, "--config", "image_width=8"]) == 2
    assert "keeps the sizes" in capfd.readouterr().err
    found, begun = (store.find(str(p), Runtime(device="cpu")) for p in (out, small))
    assert found.info.id != begun.info.id and found.info.card["steps"] == "layers:4"
    for layers, same in ((1, True), (2, False)):
        coded = []
        for model in (found, begun):
            options = EncoderOptions(qp=24, layers=layers, preset="ultrafast")
            encoder = Encoder(FORMAT, options, model=model)
            frames = [*clip(3, FORMAT, noise=3.0), None]
            packets = [p.data for frame in frames for p in encoder.encode(frame)]
            # Keyframes hold the model's id, and checks cover it.
            coded.append([len(data) for data in packets])
        assert (coded[0] == coded[1]) == same, (layers, coded)
