"""The learned part of interpolation: its network, its weights file, phase between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import make_film
from synthetic import clip
from torch import Tensor

from vcfilter.cli.main import main
from vcfilter.errors import ConfigError, ModelMismatchError
from vcfilter.evaluate.interpolation import compare_interpolation
from vcfilter.frames import Frame, VideoFormat
from vcfilter.interpolation import net as between
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.net import BetweenConfig, BetweenNet
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.models.store import DEFAULT_NAME, list_models
from vcfilter.models.weights import write_weights
from vcfilter.nn.perceptual import StLpips, available
from vcfilter.train.between import BetweenTrainer, config_of, laplacian, losses
from vcfilter.train.data import Clip, Samples

SMALL = BetweenConfig(half=4, quarter=6, eighth=8)
FORMAT = VideoFormat(width=100, height=70)


def frames() -> list[Frame]:
    return clip(4, FORMAT)


def written(path: Path, net: BetweenNet) -> str:
    between.save(str(path), net, "trial", {"data": "none"})
    return str(path)


def moved(net: BetweenNet) -> BetweenNet:
    """Weights that change something."""
    torch.manual_seed(3)
    for parameter in net.last.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_it_changes_nothing_before_it_is_trained(tmp_path: Path) -> None:
    path = written(tmp_path / "zero.safetensors", BetweenNet(SMALL))
    plain, zero = Interpolator(FORMAT, weights=""), Interpolator(FORMAT, weights=path)
    assert (plain.is_trained, zero.is_trained) == (False, True)
    before, a, b, after = frames()
    for given in ((before, a, b, after), (None, a, b, None)):
        (one,) = plain.between(*given, [0.25])
        (two,) = zero.between(*given, [0.25])
        assert all(np.array_equal(*pair) for pair in zip(one.planes, two.planes, strict=True))


def test_it_is_small_and_fast_does_without(tmp_path: Path) -> None:
    assert BetweenNet().complexity() < 6
    path = written(tmp_path / "b.safetensors", BetweenNet())
    assert Path(path).stat().st_size < 2_000_000
    assert not Interpolator(FORMAT, "fast", weights=path).is_trained
    net = moved(BetweenNet(SMALL))
    path = written(tmp_path / "m.safetensors", net)
    (one,) = Interpolator(FORMAT, weights="").between(*frames(), [0.5])
    (two,) = Interpolator(FORMAT, weights=path).between(*frames(), [0.5])
    assert not np.array_equal(one.y, two.y)
    two.check(FORMAT)


def test_weights_files_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path / "b.safetensors", moved(BetweenNet(SMALL)))
    assert between.load(path).config == SMALL
    with pytest.raises(ModelMismatchError, match="not the network of frame interpolation"):
        between.load(str(Path(between.__file__).parents[1] / "weights" / "default.safetensors"))
    state = BetweenNet(SMALL).state_dict()
    for config in (
        {"half": 5, "quarter": 6, "eighth": 8},
        {"half": 4},
        {"half": 4, "quarter": 6, "eighth": 10**9},
    ):
        write_weights(
            path, name="x", architecture="between", numerics=between.NUMERICS, config=config,
            card={}, tensors=state,
        )  # fmt: skip
        with pytest.raises(ModelMismatchError):
            between.load(path)
    with pytest.raises(ConfigError, match="no path"):
        InterpolationOptions(factor=2, weights=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes no weights"):
        InterpolationOptions(factor=2, preset="fast", weights=path)


def test_evaluation_shows_it(tmp_path: Path) -> None:
    film = make_film(tmp_path / "pan.mkv", frames=7, width=96, height=64)
    path = written(tmp_path / "zero.safetensors", BetweenNet(SMALL))
    compare_interpolation([film], tmp_path / "cache", tmp_path / "out", weights=path)
    data = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    found = {score["method"]: score for score in data["scores"]}
    assert found["trained"]["psnr"] == found["quadratic"]["psnr"] > 25
    assert found["trained"]["gradient"] > 0.9


def test_it_is_no_model_of_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "b.safetensors", BetweenNet(SMALL))
    monkeypatch.setenv("VCFILTER_MODELS", str(tmp_path))
    names = [entry.name for entry in list_models()]
    assert DEFAULT_NAME in names
    assert "trial" not in names


def test_the_loss_is_zero_for_equal_frames_only() -> None:
    planes = tuple(torch.rand(2, 1, side, side) * 255 for side in (64, 32, 32))
    other = (planes[0] + 1, planes[1], planes[2])
    assert losses(planes, planes).tolist() == [0, 0]  # type: ignore[arg-type]
    assert float(losses(planes, other).min()) > 1  # type: ignore[arg-type]
    parts = laplacian(planes[0])
    whole: Tensor = parts[-1]
    for part in parts[-2::-1]:
        whole = part + torch.nn.functional.interpolate(whole, scale_factor=2, mode="bilinear")
    assert float((whole - planes[0]).abs().max()) < 1e-3


def material(count: int = 13, side: int = 64) -> Clip:
    """A pan over texture, its luma brighter where a network may see it."""
    found = clip(count, VideoFormat(width=side, height=side))
    stacked = [np.concatenate([f.y, f.u.reshape(-1, side), f.v.reshape(-1, side)]) for f in found]
    return Clip(np.stack(stacked), [0], "pan")


def trainer(steps: int, lpips: StLpips | None = None) -> BetweenTrainer:
    torch.manual_seed(1)
    return BetweenTrainer(BetweenNet(SMALL), Samples([material()], 64, 3), steps, lpips=lpips)


@pytest.mark.slow
def test_it_learns_and_goes_on_from_its_state(tmp_path: Path) -> None:
    one = trainer(20)
    changes = [one.run_step().read(n)["change"] for n in range(20)]
    assert changes[0] == pytest.approx(0, abs=1e-6)
    assert np.mean(changes[-8:]) < -5e-4
    one.save(tmp_path / "state", {"about": 1})
    two = trainer(30)
    assert two.resume(tmp_path / "state") == {"about": 1}
    assert two.step == 20
    for name, value in two.net.state_dict().items():
        assert torch.equal(value, one.net.state_dict()[name])
    (tmp_path / "broken").write_bytes(b"none")
    with pytest.raises(ConfigError, match="no state"):
        two.resume(tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="the weights of ST-LPIPS are not installed")
def test_the_look_sharp_learns_from_st_lpips() -> None:
    one = trainer(6, StLpips("vgg"))
    assert one.title == "between-p"
    figures = [one.run_step().read(n) for n in range(6)]
    assert set(figures[0]) == {"loss", "change", "ST-LPIPS", "its change"}
    assert figures[0]["its change"] == pytest.approx(0, abs=1e-5)
    assert figures[-1]["its change"] != figures[0]["its change"]
    assert one.weights().last.weight.abs().max() > 0


def test_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for options in ({"look": "other"}, {"look": "sharp", "preset": "fast"}):
        with pytest.raises(ConfigError, match="look"):
            InterpolationOptions(factor=2, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs weights"):
        InterpolationOptions(factor=2, look="sharp")
    assert InterpolationOptions(factor=2, look="sharp", weights="w").look == "sharp"
    with pytest.raises(ConfigError, match="natural, sharp"):
        Interpolator(FORMAT, look="other")
    nets = {"natural": BetweenNet(SMALL), "sharp": moved(BetweenNet(SMALL))}
    monkeypatch.setattr("vcfilter.interpolation.interpolator.load_shipped", nets.get)
    made = {
        look: next(iter(Interpolator(FORMAT, look=look).between(*frames(), [0.5]))) for look in nets
    }
    assert not np.array_equal(made["natural"].y, made["sharp"].y)


def test_settings() -> None:
    assert config_of(["half=5", "eighth=2"]) == BetweenConfig(half=5, eighth=2)
    for settings in (["depth=3"], ["half=x"], ["half=0"]):
        with pytest.raises(ConfigError):
            config_of(settings)
    with pytest.raises(ConfigError, match="3 frames"):
        BetweenTrainer(BetweenNet(SMALL), Samples([material(2)], 64, 3), 5)


def test_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    make_film(tmp_path / "data" / "a.mkv", frames=9, width=96, height=64)
    out = tmp_path / "b.safetensors"
    command = ["train", "--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache")]
    command += ["--phase", "between", "--config", "half=4", "quarter=6"]
    command += ["eighth=8", "--log-every", "1"]
    assert main([*command, "--out", str(out), "--steps", "2"]) == 0
    assert between.load(str(out)).config == SMALL
    assert not Path(f"{out}.average").exists()
    timed = tmp_path / "timed.safetensors"
    assert main([*command, "--out", str(timed), "--minutes", "0.01"]) == 0
    assert between.load(str(timed)).config == SMALL
    assert "change" in Path(f"{out}.jsonl").read_text()
    capfd.readouterr()
    for words, text in (
        (["--phase", "between", "joint"], "give it alone"),
        (["--config", "image_width=8"], "half=N, quarter=N or eighth=N"),
        (["--steps", "-1"], "below 0"),
        (["--model", "none.safetensors"], "none.safetensors"),
    ):
        assert main([*command, "--out", str(tmp_path / "c.safetensors"), *words]) != 0
        assert text in capfd.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()
