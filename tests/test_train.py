"""Training: the classical start, a falling loss, exact resume, a proven file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import clip

from vcfilter.errors import MediaError
from vcfilter.frames import VideoFormat
from vcfilter.model.checkpoint import load_model
from vcfilter.train import loop
from vcfilter.train.data import Clip, Samples, video_files
from vcfilter.train.freeze import freeze
from vcfilter.train.start import classical

TINY = loop.Phase(name="tiny", keyframes=2, groups=1, size=64, group_size=64, rate=1e-3)


@pytest.fixture(scope="module")
def material() -> Clip:
    video_format = VideoFormat(width=96, height=64)
    frames = clip(20, video_format, noise=1.0)
    rows = [
        np.concatenate([f.y.reshape(-1), f.u.reshape(-1), f.v.reshape(-1)]).reshape(96, 96)
        for f in frames
    ]
    return Clip(np.stack(rows), [0])


@pytest.fixture(scope="module")
def start(material: Clip) -> dict[str, torch.Tensor]:
    return classical(Samples([material], 64, 1)).state_dict()


def trainer(material: Clip, start: dict[str, torch.Tensor], steps: int = 20) -> loop.Trainer:
    net = loop.VideoNet()
    net.load_state_dict(start)
    samples, stills = Samples([material], 64, 1), Samples([material], 64, 2)
    return loop.Trainer(net, samples, stills, TINY, steps)


def test_loss_falls(
    material: Clip, start: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "WARM_UP", 5)
    t = trainer(material, start)
    x = t.stills.draw([0], 4)[0]
    qp = torch.tensor([20, 26, 32, 38])

    def loss() -> float:
        with torch.no_grad():
            return float(torch.log(t.keyframes(x, qp)[0]).mean())

    before = loss()
    for _ in range(20):
        figures = t.run_step()
        assert all(np.isfinite(v) for v in figures.values())
    assert loss() < before - 0.005


def test_resume_is_exact(material: Clip, start: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole = trainer(material, start)
    for _ in range(4):
        whole.run_step()
    first = trainer(material, start)
    for _ in range(2):
        first.run_step()
    first.save(tmp_path / "state")
    second = trainer(material, start)
    second.resume(tmp_path / "state")
    for _ in range(2):
        second.run_step()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), name


def test_freezing_writes_a_proven_file(
    material: Clip, start: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    net = loop.VideoNet()
    net.load_state_dict(start)
    target = tmp_path / "w.safetensors"
    figures = freeze(net, Samples([material], 64, 1), str(target), {"data": "made"}, rounds=2)
    assert figures["bytes"] > 100
    assert abs(figures["estimated_bytes"] / figures["bytes"] - 1) < 0.05
    assert load_model(str(target), "cpu").model_id != load_model(None, "cpu").model_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors"]


def test_a_folder_without_videos_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video files"):
        video_files(tmp_path)
