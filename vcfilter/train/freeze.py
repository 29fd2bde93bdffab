"""Freezing: tables measured, weights written, and the result proven on a real encode and decode."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vcfilter.entropy import tables
from vcfilter.entropy.coder import RateCoder
from vcfilter.errors import ConfigError
from vcfilter.frames import FrameKind
from vcfilter.model.checkpoint import load_model, save_weights
from vcfilter.model.layers import CHANNELS
from vcfilter.model.video import (
    CodingStep,
    Conditions,
    MotionMode,
    Picture,
    Reference,
    VideoModel,
    VideoNet,
    estimate_motion,
)
from vcfilter.train.data import Planes, Samples

PRIOR = 400.0  # symbols' worth of trust in the Laplace shape, per table


class Histogram(RateCoder):
    """A rate coder that also counts which magnitudes appear under which table."""

    def __init__(self, bits: Tensor, batch: int, counts: Tensor) -> None:
        super().__init__(bits, batch)
        self._counts = counts

    def code(self, u: Tensor | None, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """As the rate coder; counts."""
        symbols = super().code(u, index, rd_scale)
        table = torch.floor(index + 0.5).long()
        level = symbols.abs().round().long().clamp(max=self._counts.shape[1] - 1)
        flat = (table * self._counts.shape[1] + level).flatten()
        self._counts += torch.bincount(flat, minlength=self._counts.numel()).view_as(self._counts)
        return symbols


@torch.no_grad()
def measure_tables(net: VideoNet, samples: Samples, rounds: int) -> tables.Probabilities:
    """(64, 257) probabilities of magnitudes: counts on training crops, drawn to Laplace."""
    laplace = tables.laplace_magnitudes()
    bits = torch.from_numpy(tables.cost_bits(laplace)).float()
    counts = torch.zeros(tables.TABLES, tables.MAGNITUDE_MAX + 2, dtype=torch.int64)
    random = np.random.default_rng(7)
    batch = 4
    for _ in range(rounds):
        span = int(random.choice([2, 4, 6]))
        frames: list[Planes] = samples.draw([0, span // 2, span], batch)
        qp = torch.from_numpy(random.integers(12, 52, batch))
        one = torch.ones_like(qp)
        coder = Histogram(bits, batch, counts)
        shape = torch.Size((batch, CHANNELS, samples.size // 8, samples.size // 8))
        given = Conditions(qp, one * 0, torch.zeros(batch, 2, dtype=torch.int64), one * 0)
        left, right = (net.keyframe(given, frames[i], shape, coder) for i in (0, 2))
        layer = int(random.integers(1, 4))
        distances = torch.full((batch, 2), span // 2)
        given = Conditions((qp + layer).clamp(max=63), one * layer, distances, one * 3)
        estimate = estimate_motion(frames[1], (left, right), given.distances, 1)
        net.inter(MotionMode.CODED, True, given, frames[1], (left, right), coder, estimate)
    prior = laplace * PRIOR
    # The first table stands for "not coded": its counts are zeros by construction.
    table = counts.double().numpy() + prior
    table[tables.SKIP] = laplace[tables.SKIP]
    return tables.normalise(table / table.sum(1, keepdims=True))


def freeze(
    net: VideoNet, samples: Samples, path: str, card: dict[str, str], rounds: int = 60
) -> dict[str, float]:
    """Write a weights file that was proven: {"estimated_bytes", "bytes", "parse_checked"}.

    Raises:
        ConfigError: the file's model does not decode what it coded, or the estimate is off by
            more than 1 % and 200 bytes; nothing is left at path.
    """
    import os

    magnitudes = measure_tables(net.eval(), samples, rounds)
    part = f"{path}.unproven"
    save_weights(part, net, magnitudes, card)
    try:
        figures = prove(part, samples)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return figures


@torch.no_grad()
def prove(path: str, samples: Samples) -> dict[str, float]:
    """Code a few crops for real with a weights file, decode and compare."""
    load_model.cache_clear()
    model = load_model(path, "cpu")
    estimated = real = 0.0
    frames = samples.draw([0, 2, 4], 3)
    for number in range(3):
        crops = [Picture(_one(f, number)) for f in frames]
        references: list[Reference] = []
        decoded: list[Reference] = []
        for picture, layer in ((crops[0], 0), (crops[2], 0), (crops[1], 1)):
            step = CodingStep(
                kind=FrameKind.INTER if layer else FrameKind.KEY,
                qp=(18, 30, 42)[number],
                layer=layer,
                distances=(2, 2) if layer else (0, 0),
                motion=MotionMode.CODED if layer else MotionMode.NONE,
                motion_level=3 if layer else 0,
            )
            past = references if layer else []
            motion = model.estimate_motion(step, picture, past) if layer else None
            coder = model.encoding_coder()
            reference = model.code(step, picture, past, coder, motion)
            data = coder.finish()
            rate = RateCoder(model.tables.bits, 1)
            model.code(step, picture, past, rate, motion)
            estimated += float(rate.total) / 8
            real += len(data)
            again = decode_crop(model.net, step, decoded if layer else [], data, picture, model)
            worst = max(
                float((a - b).abs().max())
                for a, b in zip(reference.planes, again.planes, strict=True)
            )
            if worst > 0.5 or not torch.equal(reference.symbols, again.symbols):
                raise ConfigError(f"the model decodes other than it coded (by up to {worst:.2f})")
            references.append(reference)
            decoded.append(again)
    if abs(estimated / real - 1) > 0.01 and abs(estimated - real) > 200:
        raise ConfigError(f"estimated {estimated:.0f} bytes, coded {real:.0f}: over 1 % apart")
    return {"estimated_bytes": estimated, "bytes": real}


def decode_crop(
    net: VideoNet,
    step: CodingStep,
    references: list[Reference],
    data: bytes,
    like: Picture,
    model: VideoModel,
) -> Reference:
    """Decode one crop with the plain networks."""
    coder = model.decoding_coder(data)
    given = Conditions.of([step], torch.device("cpu"))
    if step.kind is FrameKind.KEY:
        rows, columns = like.planes[0].shape[2:]
        return net.keyframe(given, None, torch.Size((1, CHANNELS, rows // 8, columns // 8)), coder)
    pair = (references[0], references[-1])
    return net.inter(step.motion, step.residual, given, None, pair, coder)[0]


def _one(planes: Planes, number: int) -> Planes:
    y, u, v = (p[number : number + 1] for p in planes)
    return y, u, v
