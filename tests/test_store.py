"""Models are found by name, id and path; files that could break a promise are refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_model import SMALL, small_net, write_small_model
from synthetic import clip
from torch import Tensor

from vcfilter.codec import Decoder, Encoder
from vcfilter.entropy import tables
from vcfilter.errors import MediaError, ModelMismatchError
from vcfilter.frames import Frame, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.hierarchical.config import EFFORTS
from vcfilter.models.hierarchical.model import HierarchicalModel, save
from vcfilter.models.weights import read_card
from vcfilter.nn.exact import check_bound
from vcfilter.options import DEFAULT_PRESET, PRESETS, EncoderOptions, Runtime

CPU = Runtime(device="cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models, with the small one in it."""
    found = tmp_path / "models"
    found.mkdir()
    write_small_model(found / "any.safetensors")
    monkeypatch.setenv(
        store.FOLDERS_VARIABLE, os.pathsep.join(("", str(tmp_path / "no"), str(found)))
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return found


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata())


def test_a_model_is_found_by_name_id_and_path(folder: Path) -> None:
    path = folder / "any.safetensors"
    by_path = store.find(str(path), CPU)
    assert store.find("small", CPU) is by_path
    assert store.find(by_path.info.id.hex(), CPU) is by_path
    assert store.find_by_id(by_path.info.id, CPU).info.id == by_path.info.id  # of any file
    info = by_path.info
    assert (info.name, info.architecture, info.config["image_width"]) == (
        "small",
        "hierarchical",
        16,
    )
    assert info.card["licence"] == "MIT"
    assert store.find(None, CPU).info.name == store.find("default", CPU).info.name == "default"
    assert [entry.name for entry in store.list_models()] == ["default", "small"]


def test_a_model_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(store.FOLDERS_VARIABLE, raising=False)
    home = tmp_path / ".local" / "share" / "vcfilter" / "models"
    home.mkdir(parents=True)
    model_id = write_small_model(home / "x.safetensors", "mine")
    assert store.find("mine", CPU).info.id == model_id


def test_unknown_names_and_ids_are_one_sentence(folder: Path) -> None:
    with pytest.raises(ModelMismatchError, match=r"'nix': there are default, small in .*models"):
        store.find("nix", CPU)
    missing = bytes(8)
    with pytest.raises(ModelMismatchError, match=f"{missing.hex()} in .*weights, .*models"):
        store.find_by_id(missing, CPU)
    with pytest.raises(MediaError, match="no weights file"):
        store.find(str(folder / "none.safetensors"), CPU)


def test_an_unreadable_file_is_logged_and_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with caplog.at_level(logging.WARNING, logger="vcfilter"):
        assert [entry.name for entry in store.list_models()] == ["default", "small"]
    assert "not a weights file" in caplog.text


def test_two_models_work_side_by_side(folder: Path) -> None:
    """Each decodes its own, while the other is loaded, and neither what the other wrote."""
    fmt = VideoFormat(width=64, height=48)
    frame = clip(1, fmt)[0]
    step = FrameStep(type=FrameType.KEY, qp=24)
    models = [store.find(name, CPU) for name in ("default", "small")]
    coded = [
        m.encode(m.picture(frame, fmt), step, (), fmt, "fast") for m in models for _ in range(2)
    ][::2]
    for model, done in zip(models, coded, strict=True):
        symbols = model.parse(step, done.mode, done.sections, (), fmt)
        again = model.reconstruct(step, done.mode, symbols, (), fmt)
        for a, b in zip(model.planes(done.reference, fmt), model.planes(again, fmt), strict=True):
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
        assert done.psnr > 30
    assert coded[0].sections != coded[1].sections
    assert models[0].info.id != models[1].info.id


def test_the_small_model_and_the_shipped_one_pass_verification(folder: Path) -> None:
    assert store.verify(str(folder / "any.safetensors")).name == "small"
    assert store.verify(store.locate(None)).name == "default"


def test_a_replaced_file_is_loaded_anew(folder: Path) -> None:
    path = folder / "any.safetensors"
    before = store.find("small", CPU)
    assert store.find("small", CPU) is before
    after_id = write_small_model(path, "small", seed=1)
    assert store.find("small", CPU).info.id == after_id != before.info.id


def test_the_id_follows_weights_tables_and_configuration(tmp_path: Path) -> None:
    path = str(tmp_path / "w.safetensors")
    magnitudes = tables.laplace_magnitudes()
    one = save(path, small_net(), magnitudes, "a", {})
    assert save(path, small_net(), magnitudes, "b", {"other": "card"}) == one
    other = magnitudes.copy()
    other[3, :2] += (-1e-6, 1e-6)
    assert save(path, small_net(), other, "a", {}) != one
    changed = small_net()
    with torch.no_grad():
        changed.motion.log_step += 0.5
    assert save(path, changed, magnitudes, "a", {}) != one


Change = Callable[[dict[str, Tensor], dict[str, str]], None]
EXACT = "image.coding.steps.0.hidden.weight"


def nan(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[EXACT][0, 0] = float("nan")


def infinite(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["image.log_step.weight"][0, 0] = float("inf")


def large(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[EXACT].fill_(1e4)


def bfloat16(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[EXACT] = tensors[EXACT].bfloat16()


def double(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[EXACT] = tensors[EXACT].double()


def levels(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["image.coding.levels"] = torch.full((257,), 1e30)


def missing(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors[EXACT]


def no_tables(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors["tables"]


def zero_table(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tables"][5, 7] = 0


def negative_table(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tables"][5, 7] = -0.25


def nan_table(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tables"][5, 7] = float("nan")


def unsummed_table(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tables"][5] *= 2


def single_tables(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tables"] = tensors["tables"].float()


def config(**values: object) -> Change:
    def change(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | values)

    return change


def metadata(name: str, value: str | None) -> Change:
    def change(_: dict[str, Tensor], found: dict[str, str]) -> None:
        found.pop(name)
        if value is not None:
            found[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "not finite"),
        (infinite, "not finite"),
        (large, "2.24"),
        (bfloat16, "bfloat16"),
        (double, "is torch.float64"),
        (levels, "levels is torch.float32 .257., not missing"),
        (missing, "is missing, not"),
        (no_tables, "tables are"),
        (zero_table, "probability"),
        (negative_table, "probability"),
        (nan_table, "not finite"),
        (unsummed_table, "sum to 1"),
        (single_tables, "tables are float32"),
        (config(image_width=32), "does not fit"),
        (config(image_width=1024, synthesis_blocks=1024), "does not fit"),
        (config(image_width=1 << 30), "1 to 1024"),
        (config(image_width=0), "1 to 1024"),
        (config(image_width="96"), "1 to 1024"),
        (config(image_width=True), "1 to 1024"),
        (config(other=1), "other"),
        (config(low=50), "rise"),
        (metadata("config", "[1]"), "configuration"),
        (metadata("config", "{"), "metadata"),
        (metadata("config", None), "config"),
        (metadata("numerics", "2"), "generation 2"),
        (metadata("numerics", "x"), "metadata"),
        (metadata("architecture", "other"), "architecture 'other'"),
        (metadata("name", "x" * 33), "32 bytes"),
        (metadata("name", "\x1b[2J"), "printable"),
        (metadata("name", None), "name"),
    ],
)
def test_files_that_are_refused(folder: Path, change: Change, message: str) -> None:
    path = folder / "any.safetensors"
    tensors, found = contents(path)
    change(tensors, found)
    save_file(tensors, str(path), metadata=found)
    with pytest.raises(ModelMismatchError, match=message):
        store.load(str(path), CPU)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    net, magnitudes = small_net(), tables.laplace_magnitudes()
    with torch.no_grad():
        net.image.coding.steps[0].hidden.weight[0, 0] = float("nan")
    assert not check_bound(net) < 1
    for name, broken in (("a", net), ("x" * 33, small_net())):
        with pytest.raises(ModelMismatchError):
            save(str(tmp_path / "w.safetensors"), broken, magnitudes, name, {})
    assert not list(tmp_path.iterdir())


def test_a_rebuilt_network_computes_its_own_activations(folder: Path) -> None:
    """The file holds no activation levels: what follows from nothing learned is not loaded."""
    tensors, _ = contents(folder / "any.safetensors")
    assert not [n for n in tensors if n.endswith(("levels", "dct", "chroma"))]
    model = store.find("small", CPU)
    assert isinstance(model, HierarchicalModel)
    levels = model.net.image.coding.levels
    assert levels.shape == (257,) and levels.max() == 255 and levels[1] == 32


def test_shipped_weights_are_small_documented_and_exact() -> None:
    path = store.locate(None)
    assert Path(path).name == "default.safetensors" and Path(path).stat().st_size <= 16 << 20
    card = read_card(path)
    for entry in ("data", "licence", "steps", "results"):
        assert card.get(entry), f"the card does not tell {entry}"


def test_efforts_are_the_presets_that_options_name() -> None:
    assert list(EFFORTS) == list(PRESETS) and DEFAULT_PRESET in EFFORTS
    assert SMALL.latent_size(64, 96) == (8, 12) and SMALL.padded_size(33, 96) == (64, 96)


def test_streams_of_two_models_are_decoded_side_by_side(folder: Path) -> None:
    """Two encoders and two decoders in one process; each decoder finds the stream's own model."""
    fmt = VideoFormat(width=64, height=48)
    frames = clip(5, fmt)
    encoders = [
        Encoder(fmt, EncoderOptions(qp=28, keyint=4, preset="ultrafast", model=name), runtime=CPU)
        for name in ("default", "small")
    ]
    packets: list[list[Packet]] = [[], []]
    for frame in (*frames, None):
        for found, encoder in zip(packets, encoders, strict=True):
            found += encoder.encode(frame)
    decoders = [Decoder(encoder.extradata, runtime=CPU) for encoder in encoders]
    shown: list[list[Frame]] = [[], []]
    for pair in (*zip(*packets, strict=True), (None, None)):
        for found, decoder, packet in zip(shown, decoders, pair, strict=True):
            found += decoder.decode(packet)
    for found, decoder in zip(shown, decoders, strict=True):
        assert [f.pts for f in found] == [f.pts for f in frames] and not decoder.dropped_damaged
        errors = [np.abs(a.y.astype(int) - b.y).mean() for a, b in zip(found, frames, strict=True)]
        assert max(errors) < 5
    assert [p.data for p in packets[0]] != [p.data for p in packets[1]]


def test_a_stream_of_a_model_that_is_gone_is_one_sentence(folder: Path) -> None:
    fmt = VideoFormat(width=64, height=48)
    encoder = Encoder(fmt, EncoderOptions(qp=28, model="small"), runtime=CPU)
    packets = encoder.encode(clip(1, fmt)[0]) + encoder.encode(None)
    write_small_model(folder / "any.safetensors", "small", seed=2)
    wanted = encoder.extradata
    store._models.clear()
    with pytest.raises(ModelMismatchError, match=r"no file with the model .*models"):
        Decoder(wanted, runtime=CPU).decode(packets[0])
