"""Freezing: tables measured, weights written, and the result proven on a real encode and decode."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcfilter.codec.structure import LAYER_QP_OFFSET, coding_order
from vcfilter.entropy import tables
from vcfilter.entropy.coder import Coder, RateCoder, Reader
from vcfilter.errors import BitstreamError
from vcfilter.frames import FrameType
from vcfilter.models.checkpoint import load_model, save_weights
from vcfilter.models.hierarchical.video import (
    CodingStep,
    Conditions,
    MotionMode,
    Picture,
    Reference,
    VideoModel,
    VideoNet,
    estimate_motion,
    latent_grid,
    pair,
)
from vcfilter.train.data import Planes, Samples
from vcfilter.train.watch import TrainingError

PRIOR = 400.0  # symbols' worth of trust in the Laplace shape, per table
ROUNDS = 60  # batches from which the tables' shapes are measured
BETWEEN_SHARE = 2 / 3  # of the inter frames that they are measured on; the others look back
SPANS = (2, 4, 6)  # distance of the outer frames in them
PROOF_QPS = (18, 26, 34, 42)
PROOF_SPAN = 4  # frames between the proof's keyframes, one coded segment per qp
RATE_TOLERANCE = 0.01
SECTION_END = 4  # bytes that a range coder may add to a frame when it closes: its last word
PIXEL_TOLERANCE = 0.5  # between encoder and decoder: roundings, in 8-bit units


class Histogram(RateCoder):
    """A rate coder that also counts which magnitudes appear under which table."""

    def __init__(self, bits: Tensor, batch: int, counts: Tensor) -> None:
        super().__init__(bits, batch)
        self._counts = counts

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
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
    spans = [span for span in SPANS if span < samples.longest]
    for _ in range(rounds):
        span = int(random.choice(spans)) if spans else 0
        frames: list[Planes] = samples.draw([0, span // 2, span], batch)
        qp = torch.from_numpy(random.integers(12, 52, batch))
        one = torch.ones_like(qp)
        coder = Histogram(bits, batch, counts)
        shape = torch.Size((batch, *latent_grid(samples.size, samples.size)[1:]))
        given = Conditions(qp, one * 0, torch.zeros(batch, 2, dtype=torch.int64), one * 0)
        left, right = (net.keyframe(given, frames[i], shape, coder) for i in (0, 2))
        if not spans:  # photographs: tables of inter frames keep their Laplace shape
            continue
        layer = int(random.integers(1, 4))
        # A third of them with past references: the second frame, and the first one behind it.
        way = (-1, 1) if random.random() < BETWEEN_SHARE else (-1, -2)
        distances = torch.tensor([way]).repeat(batch, 1) * (span // 2)
        given = Conditions((qp + layer).clamp(max=63), one * layer, distances, one * 3)
        x, both = frames[1], (left, right)
        if way == (-1, -2):
            old = Conditions(qp, one * 0, torch.zeros(batch, 2, dtype=torch.int64), one * 0)
            x, both = frames[2], (net.keyframe(old, frames[1], shape, coder), left)
        estimate = estimate_motion(given, x, both)
        net.inter(MotionMode.CODED, True, given, x, both, coder, estimate)
    prior = laplace * PRIOR
    # The first table stands for "not coded": its counts are zeros by construction.
    table = counts.double().numpy() + prior
    table[tables.SKIP] = laplace[tables.SKIP]
    return tables.normalise(table / table.sum(1, keepdims=True))


def freeze(
    net: VideoNet, samples: Samples, path: str, card: dict[str, str], rounds: int = ROUNDS
) -> dict[str, float]:
    """Write a weights file that was proven; what `prove` found.

    Raises:
        TrainingError: the model is refused (see `prove`); nothing is left at path.
        ConfigError: an exact layer's sums could pass the bound.
    """
    magnitudes = measure_tables(net.eval(), samples, rounds)
    part = Path(f"{path}.unproven")
    save_weights(str(part), net, magnitudes, card)
    try:
        load_model.cache_clear()
        figures = prove(load_model(str(part), "cpu"), samples)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        load_model.cache_clear()
    return figures


class Noted:
    """Any coder, remembering which symbols went through under which tables."""

    def __init__(self, coder: Coder | Reader) -> None:
        self.coder = coder
        self.seen: list[Tensor] = []
        self.tables: list[Tensor] = []

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """As the coder does."""
        return self.note(self.coder.code(u, index, rd_scale), index)  # type: ignore[union-attr]

    def symbols(self, index: Tensor) -> Tensor:
        """As the coder does."""
        return self.note(self.coder.symbols(index), index)  # type: ignore[union-attr]

    def note(self, symbols: Tensor, index: Tensor) -> Tensor:
        """Symbols, remembered with their tables."""
        self.seen.append(symbols.double())
        self.tables.append(torch.floor(index.double() + 0.5))
        return symbols

    def same(self, other: Noted) -> bool:
        """Whether all symbols and tables are equal."""
        mine, others = (*self.seen, *self.tables), (*other.seen, *other.tables)
        return len(mine) == len(others) and all(map(torch.equal, mine, others))


@torch.no_grad()
def prove(model: VideoModel, samples: Samples) -> dict[str, float]:
    """Code segments of clips for real, decode them, and compare.

    Returns:
        {"estimated_bytes", "bytes", "frames", "pixel_difference"}.

    Raises:
        TrainingError: a frame decodes to other symbols or pixels than were coded; networks in
            float64 parse it otherwise; or the estimated rate is more than 1 % off.
    """
    span = min(PROOF_SPAN, samples.longest - 1)
    double = copy.deepcopy(model.net).double()
    estimated, real, sections, frames_coded, worst = 0.0, 0, 0, 0, 0.0
    for qp in PROOF_QPS:
        frames = samples.draw(list(range(span + 1)), 1)
        held: dict[int, tuple[Reference, Reference, Reference]] = {}
        for position, step, between in segment(span, qp):
            x = Picture(
                frames[position], (frames[position][0].shape[2], frames[position][0].shape[3])
            )
            past = [held[i] for i in between]
            own = [p[0] for p in past]
            motion = model.estimate_motion(step, x, own) if own else None
            writing = model.encoding_coder()
            coder = Noted(writing)
            reference = model.code(step, x, own, coder, motion)
            data = writing.finish()
            rate = RateCoder(model.tables.bits, 1)
            model.code(step, x, own, rate, motion)
            again, wide = Noted(model.decoding_coder(data)), Noted(model.decoding_coder(data))
            like = x.planes[0].shape
            try:
                decoded = decode_frame(model.net, step, [p[1] for p in past], like, again)
                other = decode_frame(double, step, [p[2] for p in past], like, wide)
            except BitstreamError as error:
                raise TrainingError(f"the model is refused: qp {qp}: {error}") from error
            worst = max(worst, apart(reference, decoded), apart(reference, other))
            if not again.same(coder) or worst > PIXEL_TOLERANCE:
                raise TrainingError(
                    f"the model is refused: at qp {qp} it decodes other than it coded "
                    f"(pixels up to {worst:.2f} apart)"
                )
            if not wide.same(coder):
                raise TrainingError(
                    f"the model is refused: at qp {qp} float64 parses other than float32"
                )
            held[position] = reference, decoded, other
            estimated += float(rate.total) / 8
            real += len(data)
            sections += bool(data)
            frames_coded += 1
    if abs(estimated - real) > RATE_TOLERANCE * real + SECTION_END * sections:
        raise TrainingError(
            f"the model is refused: estimated {estimated:.0f} bytes, coded {real}: over 1 % apart"
        )
    return {
        "estimated_bytes": estimated,
        "bytes": float(real),
        "frames": float(frames_coded),
        "pixel_difference": worst,
    }


def segment(span: int, qp: int) -> list[tuple[int, CodingStep, tuple[int, ...]]]:
    """(position, step, positions of its references) of two keyframes and all frames between."""
    key = CodingStep(kind=FrameType.KEY, qp=qp)
    result: list[tuple[int, CodingStep, tuple[int, ...]]] = [(0, key, ())]
    if span == 0:
        return result
    result.append((span, key, ()))
    for place in coding_order(span, open_gop=True):
        step = CodingStep(
            kind=FrameType.INTER,
            qp=min(63, qp + LAYER_QP_OFFSET[place.layer]),
            layer=place.layer,
            distances=(place.references[0] - place.number, place.references[1] - place.number),
            motion=MotionMode.CODED if place.layer < 2 else MotionMode.DIRECT,
            motion_level=3,
        )
        result.append((place.number, step, place.references))
    return result


def decode_frame(
    net: VideoNet, step: CodingStep, past: list[Reference], like: torch.Size, reader: Reader
) -> Reference:
    """Decode one frame of the size `like` (..., H, W) with networks of any precision."""
    given = Conditions.of([step], torch.device("cpu"))
    grid = latent_grid(like[-2], like[-1])
    if step.kind is FrameType.KEY:
        parsed = net.parse(step.motion, True, given, None, grid, reader)
        return net.keyframe(given, None, grid, parsed)
    both = pair(past)
    parsed = net.parse(step.motion, step.residual, given, both, grid, reader)
    return net.inter(step.motion, step.residual, given, None, both, parsed)[0]


def apart(a: Reference, b: Reference) -> float:
    """The largest difference of two reconstructions' samples."""
    return max(
        float((p.double() - q.double()).abs().max())
        for p, q in zip(a.planes, b.planes, strict=True)
    )
