"""How many operators a decoded inter frame takes: what small pictures and GPUs wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from synthetic import clip
from torch.utils._python_dispatch import TorchDispatchMode

from vcfilter.bitstream import read_packet
from vcfilter.codec import Encoder
from vcfilter.frames import FrameType, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import Model
from vcfilter.options import EncoderOptions, Runtime

FORMAT = VideoFormat(width=96, height=64)
CPU = Runtime(device="cpu", threads=1)
VIEWS = {
    "alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "resolve_conj",
    "resolve_neg", "select", "slice", "split", "squeeze", "t", "to", "transpose", "unbind",
    "unsqueeze", "unfold", "view", "_unsafe_view",
}  # fmt: skip
"""Operators that compute nothing."""


class Operators(TorchDispatchMode):
    """Counts operators that compute, and copies between devices, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS and not name.startswith("empty"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> Model:
    return store.find(None, CPU)


@pytest.fixture
def no_inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators are seen as they are computed: inference mode shows composed ones instead."""
    monkeypatch.setattr(torch, "inference_mode", lambda *mode: torch.no_grad())
    yield


def test_operators_of_a_decoded_inter_frame(model: Model, no_inference: None) -> None:
    frames = clip(5, FORMAT, noise=3.0)
    options = EncoderOptions(qp=26, keyint=4, preset="fast", scenecut=False)
    encoder = Encoder(FORMAT, options, runtime=CPU, model=model)
    packets = [p for frame in [*frames, None] for p in encoder.encode(frame)]
    infos = [read_packet(packets[0].data)]
    infos += [read_packet(p.data, key_identity=infos[0].identity) for p in packets[1:]]
    symbols, references, most = {}, {}, Counter[str]()
    order = sorted(range(5), key=lambda n: (infos[n].header.step.layer, n))
    for number in order:
        step, mode = infos[number].header.step, infos[number].header.mode
        past = [references[n] for n in (step.reference_numbers if step.references else ())]
        sections = [section.data for section in infos[number].sections]
        with Operators() as counted:
            contexts = [each.context for each in past]
            symbols[number] = model.parse(step, mode, sections, contexts, FORMAT)
            found = model.reconstruct(step, mode, symbols[number], past, FORMAT)
        references[number] = found
        if step.type is FrameType.INTER and counted.counts.total() > most.total():
            most = counted.counts
    assert sum(count for name, count in most.items() if "convolution" in name) > 20
    assert most.total() <= 520  # 450 where what follows from the frames' features is kept
