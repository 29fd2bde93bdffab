"""Freezing: tables measured, weights written, and the result verified by real coding."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcfilter.codec.structure import LAYER_QP_OFFSET, coding_order
from vcfilter.entropy import tables
from vcfilter.entropy.coder import DecodingCoder, EncodingCoder, Entry, RateCoder, Reader
from vcfilter.errors import BitstreamError
from vcfilter.frames import FrameStep, FrameType
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.mode import KEY_MODE, HierarchicalMode, MotionMode
from vcfilter.models.hierarchical.model import HierarchicalModel, load, save
from vcfilter.models.hierarchical.net import LevelCoder, VideoNet
from vcfilter.models.hierarchical.search import estimate_motion
from vcfilter.models.hierarchical.values import Reference, context_pair, pair
from vcfilter.models.weights import read_weights
from vcfilter.train.data import Planes, Samples
from vcfilter.train.watch import TrainingError

PRIOR = 400.0  # symbols' worth of trust in the Laplace shape, per table
ROUNDS = 60  # batches from which the tables' shapes are measured
BETWEEN_SHARE = 2 / 3  # of the inter frames in them; the others look back
SPANS = (2, 4, 6)  # distance of the outer frames in them
VERIFIED_QPS = (18, 26, 34, 42)
VERIFIED_SPAN = 4  # frames between the keyframes, one coded segment per qp
VERIFIED_DROPS = {34: (6,), 42: (6, 18)}  # of quality levels above the base, by its qp
RATE_TOLERANCE = 0.01
SECTION_END = 4  # bytes that a range coder may add to a frame when it closes: its last word
PIXEL_TOLERANCE = 0.5  # between encoder and decoder: roundings, in 8-bit units

Place = tuple[int, FrameStep, HierarchicalMode, tuple[int, ...]]
"""Number, step and mode of a frame, and the numbers of its references."""


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
        key = Conditions(qp, one * 0, torch.zeros(batch, 2, dtype=torch.int64), one * 0)
        between = random.random() < BETWEEN_SHARE
        # Looking back, the frame before is the first reference and an older one the second.
        outer, at, way = ((0, 2), 1, (-1, 1)) if between else ((1, 0), 2, (-1, -2))
        both = pair([net.code_keyframe(key, frames[i], coder) for i in outer])
        if not spans:  # photographs: tables of inter frames keep their Laplace shape
            continue
        layer = int(random.integers(1, 4))
        distances = torch.tensor([way]).repeat(batch, 1) * (span // 2)
        lower = (qp + layer).clamp(max=63)
        conditions = Conditions(lower, one * layer, distances, one * 3)
        estimate = estimate_motion(conditions, frames[at], both)
        motion = net.code_motion(conditions, estimate, both, coder)
        net.code_inter(MotionMode.CODED, True, conditions, frames[at], both, coder, motion)
    prior = laplace * PRIOR
    # The first table stands for "not coded": its counts are zeros by construction.
    table = counts.double().numpy() + prior
    table[tables.SKIP] = laplace[tables.SKIP]
    return tables.normalise(table / table.sum(1, keepdims=True))


def freeze(
    net: VideoNet,
    samples: Samples,
    path: str,
    name: str,
    card: Mapping[str, str],
    rounds: int = ROUNDS,
    magnitudes: tables.Probabilities | None = None,
) -> dict[str, float]:
    """Write a weights file that was verified; returns what `verify` found.

    Args:
        name: what the model is found by. magnitudes: its tables; None: they are measured.

    Raises:
        TrainingError: verification failed; nothing is left at path.
        ModelMismatchError: the weights are not ones that every machine parses alike.
    """
    net.eval()
    if magnitudes is None:
        magnitudes = measure_tables(net, samples, rounds)
    part = Path(f"{path}.unverified")
    try:
        save(str(part), net, magnitudes, name, card)
        figures = verify(load(read_weights(str(part)), torch.device("cpu")), samples)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return figures


class Recorder:
    """A reader that remembers which symbols it read under which tables."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.entries: list[Entry] = []

    def symbols(self, index: Tensor) -> Tensor:
        """As the reader does."""
        symbols = self._reader.symbols(index)
        self.entries.append((symbols.reshape(-1), torch.floor(index + 0.5).reshape(-1)))
        return symbols


def entries_of(recorders: Sequence[Recorder]) -> list[Entry]:
    """What several readers read, one after the other."""
    return [entry for recorder in recorders for entry in recorder.entries]


def same(one: list[Entry], other: list[Entry]) -> bool:
    """Whether all symbols and tables are equal."""
    if len(one) != len(other):
        return False
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.equal(a.double(), b.double()) for a, b in pairs)


@torch.no_grad()
def verify(model: HierarchicalModel, samples: Samples) -> dict[str, float]:
    """Code segments of clips for real, some with quality levels, decode them, and compare.

    Returns:
        {"estimated_bytes", "bytes", "frames", "pixel_difference"}.

    Raises:
        TrainingError: a frame decodes to other symbols or pixels than were coded; networks in
            float64 parse it otherwise; or the estimated rate is more than 1 % off.
    """
    span = min(VERIFIED_SPAN, samples.longest - 1)
    net, double = model.net, copy.deepcopy(model.net).double()
    estimated, real, sections, frames_coded, worst = 0.0, 0, 0, 0, 0.0
    for qp in VERIFIED_QPS:
        frames = samples.draw(list(range(span + 1)), 1)
        held: dict[int, tuple[Reference, Reference, Reference]] = {}
        for number, step, mode, between in segment(span, qp):
            past = [held[i] for i in between]
            x = frames[number]
            drops = VERIFIED_DROPS.get(qp, ())
            coders = [EncodingCoder(model.tables) for _ in (0, *drops)]
            rates = [RateCoder(model.tables.bits, 1) for _ in (0, *drops)]
            reference, used = encode(net, step, mode, [p[0] for p in past], x, coders, drops)
            encode(net, step, mode, [p[0] for p in past], x, rates, drops)
            coders, rates = [coders[n] for n in (0, *used)], [rates[n] for n in (0, *used)]
            data = [coder.finish() for coder in coders]
            again, wide = (
                [Recorder(DecodingCoder(model.tables, each)) for each in data] for _ in range(2)
            )
            size = x[0].shape[2:]
            left = [drops[n - 1] for n in used]
            try:
                decoded = decode(net, step, mode, [p[1] for p in past], size, again, left)
                other = decode(double, step, mode, [p[2] for p in past], size, wide, left)
            except BitstreamError as error:
                raise TrainingError(f"verification failed: qp {qp}: {error}") from error
            difference = max(largest_error(reference, r) for r in (decoded, other))
            worst = max(worst, difference)
            coded = [entry for coder in coders for entry in coder.entries]
            if not same(entries_of(again), coded) or worst > PIXEL_TOLERANCE:
                raise TrainingError(
                    f"verification failed: at qp {qp} it decodes other than it coded "
                    f"(pixels differ by up to {worst:.2f})"
                )
            if not same(entries_of(wide), coded):
                raise TrainingError(
                    f"verification failed: at qp {qp} float64 parses other than float32"
                )
            held[number] = reference, decoded, other
            estimated += sum(float(rate.total) for rate in rates) / 8
            real += sum(map(len, data))
            sections += sum(map(bool, data))
            frames_coded += 1
    if abs(estimated - real) > RATE_TOLERANCE * real + SECTION_END * sections:
        raise TrainingError(
            f"verification failed: estimated {estimated:.0f} bytes, coded {real}: "
            "more than 1 % apart"
        )
    return {
        "estimated_bytes": estimated,
        "bytes": float(real),
        "frames": float(frames_coded),
        "pixel_difference": worst,
    }


def segment(span: int, qp: int) -> list[Place]:
    """Some frames in coding order.

    Two keyframes and all frames between, and a frame from the past in place of the second
    keyframe where there is room.
    """
    key = FrameStep(type=FrameType.KEY, qp=qp)
    result: list[Place] = [(0, key, KEY_MODE, ())]
    if span == 0:
        return result
    result.append((span, key, KEY_MODE, ()))
    for place in coding_order(span):
        coded = place.layer < 2
        mode = HierarchicalMode(
            motion=MotionMode.CODED if coded else MotionMode.DIRECT, level=3 if coded else 0
        )
        result.append((place.number, place.step(qp), mode, place.references))
    if span > 1:
        references = (span - 1, 0)
        step = FrameStep(
            type=FrameType.INTER,
            qp=min(63, qp + LAYER_QP_OFFSET[1]),
            layer=1,
            number=span,
            references=tuple(r - span for r in references),
        )
        mode = HierarchicalMode(motion=MotionMode.CODED, level=4)
        result.append((span, step, mode, references))
    return result


def encode(
    net: VideoNet,
    step: FrameStep,
    mode: HierarchicalMode,
    references: list[Reference],
    x: Planes,
    coders: Sequence[EncodingCoder | RateCoder],
    drops: Sequence[int] = (),
) -> tuple[Reference, list[int]]:
    """Code one frame with coders that write or estimate: of the base, and of each level above it.

    Returns:
        The reconstruction, and the numbers of the levels that hold something, 1 and up.
    """
    conditions = Conditions.of([step], [mode], torch.device("cpu"))
    levels = [LevelCoder(drop=d, passes=[c]) for d, c in zip(drops, coders[1:], strict=True)]
    if step.type is FrameType.KEY:
        reference = net.code_keyframe(conditions, x, coders[0], levels=levels)
    else:
        both, motion = pair(references), None
        if mode.motion is MotionMode.CODED:
            estimate = estimate_motion(conditions, x, both)
            motion = net.code_motion(conditions, estimate, both, coders[0])
        reference = net.code_inter(
            mode.motion,
            mode.residual,
            conditions,
            x,
            both,
            coders[0],
            motion,
            levels=levels,
        )
    return reference, [number for number, level in enumerate(levels, 1) if level.used]


def decode(
    net: VideoNet,
    step: FrameStep,
    mode: HierarchicalMode,
    references: list[Reference],
    size: torch.Size,
    readers: Sequence[Reader],
    drops: Sequence[int] = (),
) -> Reference:
    """Decode one frame of so many rows and columns with networks of any precision.

    Args:
        readers: of the base, and of each level above it. drops: the base's qp less each level's.
    """
    conditions = Conditions.of([step], [mode], torch.device("cpu"))
    key = step.type is FrameType.KEY
    contexts = None if key else context_pair([p.context for p in references])
    shape = net.latent_shape(1, size[0], size[1])
    symbols = net.parse(
        mode.motion,
        mode.residual,
        conditions,
        contexts,
        shape,
        readers[0],
        list(zip(drops, readers[1:], strict=True)),
    )
    return net.reconstruct(mode.motion, conditions, symbols, None if key else pair(references))


def largest_error(a: Reference, b: Reference) -> float:
    """The largest difference of two reconstructions' samples."""
    return max(
        float((p.double() - q.double()).abs().max())
        for p, q in zip(a.planes, b.planes, strict=True)
    )
