"""Rounding over long chains of references: the parse is the same, pixels hardly move."""

from __future__ import annotations

import copy

import pytest
import torch
from synthetic import clip
from torch import Tensor

from vcfilter.codec import Decoder, Encoder
from vcfilter.frames import Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import Model, Reference
from vcfilter.models.hierarchical import model as model_module
from vcfilter.models.hierarchical.model import HierarchicalModel
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

FORMAT = VideoFormat(width=64, height=48)
RUNTIME = Runtime(device="cpu", threads=1)
FRAMES = 250
LEVELS, MEAN = 2, 0.01  # of what is shown; measured: 1 at worst, mean 0.0008


def reconstructions(model: Model, extradata: bytes, packets: list[bytes]) -> list[list[Tensor]]:
    """The planes of every frame in float64, before they are rounded."""
    found: list[list[Tensor]] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def planes(self, reference: Reference, video_format: VideoFormat) -> object:
            found.append([plane.double().clone() for plane in reference.planes])  # type: ignore[attr-defined]
            return model.planes(reference, video_format)

    decoder = Decoder(extradata, DecoderOptions(strict=True), runtime=RUNTIME, model=Watched())  # type: ignore[arg-type]
    for index, data in enumerate(packets):
        decoder.decode(Packet(data=data, pts=index, is_keyframe=index == 0))
    decoder.decode(None)
    assert len(found) == len(packets)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["low-delay", "random-access"])
def test_drift_of_a_gop_of_250(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels, another precision, an accelerator's operators: at most 2 levels, on average a
    hundredth."""
    model = store.find(None, RUNTIME)
    options = EncoderOptions(structure=structure, scenecut=False, qp=30, preset="ultrafast")
    encoder = Encoder(FORMAT, options, runtime=RUNTIME, model=model)
    packets = [p.data for f in [*clip(FRAMES, FORMAT), None] for p in encoder.encode(f)]
    assert sum(not r.header.step.references for r in encoder.statistics.records) == 1

    plain = reconstructions(model, encoder.extradata, packets)
    with torch.backends.mkldnn.flags(enabled=False):
        without = reconstructions(model, encoder.extradata, packets)
    double = copy.copy(model)
    double.net = copy.deepcopy(model.net).double()  # type: ignore[attr-defined]
    exact = reconstructions(double, encoder.extradata, packets)
    monkeypatch.setattr(model_module, "parses_on_host", lambda device: True)
    net = copy.deepcopy(model.net)  # type: ignore[attr-defined]
    away = HierarchicalModel(net, model.tables, model.info, torch.device("cpu"))  # type: ignore[attr-defined]
    few = reconstructions(away, encoder.extradata, packets)
    for others in (without, exact, few):
        for mine, theirs in zip(plain, others, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                shown = (torch.floor(a + 0.5) - torch.floor(b + 0.5)).abs()
                assert float(shown.max()) <= LEVELS
                assert float(shown.mean()) <= MEAN
        last = max(float((a - b).abs().max()) for a, b in zip(plain[-1], others[-1], strict=True))
        assert last < 0.05  # it does not grow along the chain
