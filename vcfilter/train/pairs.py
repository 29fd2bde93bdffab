"""Decoded frames beside their originals: what a finish learns from, coded once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vcfilter.bitstream import read_packet
from vcfilter.codec.decoder import Decoder
from vcfilter.codec.encoder import Encoder
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, FrameStep, VideoFormat
from vcfilter.models.base import Model
from vcfilter.models.hierarchical.conditions import signed_pair
from vcfilter.options import EncoderOptions
from vcfilter.train.data import Clip

Luma = npt.NDArray[np.uint8]
FRAMES = 6  # of a shot, at most
QPS = (26, 40)  # of keyframes, drawn uniformly; inter frames lie above
SIDE = 256  # of what is cut from a frame, at most
PRESET = "veryfast"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Luma of decoded shots.

    Args:
        decoded, original: (N, rows, columns) uint8 each, of equal size.
        steps: (N, 4) int32: qp, temporal layer, two signed distances to references.
        starts: where shots begin, 0 first. shots: which of the material's, in its order.
    """

    decoded: Luma
    original: Luma
    steps: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    shots: npt.NDArray[np.int64]


def make_pairs(
    clips: list[Clip],
    model: Model,
    count: int,
    cache: str | Path,
    say: Callable[[str], None],
    offset: float = 0.5,
) -> Pairs:
    """Shots spread evenly over the material, coded and decoded; found again in the cache.

    Args:
        count: shots, at most as many as there are with two frames or more.
        say: told how far it is. offset: 0 to 1, of the first within its share of the material.

    Raises:
        ConfigError: no shot has two frames of 64x64.
    """
    shots = [
        (clip, first, end)
        for clip in clips
        for first, end in zip(clip.shots, [*clip.shots[1:], len(clip.frames)], strict=True)
        if end - first > 1 and min(clip.rows, clip.columns) >= 64
    ]
    if not shots:
        raise ConfigError("no shot has two frames of at least 64x64")
    chosen = np.unique(((np.arange(count) + offset) * len(shots) / count).astype(np.int64))
    sizes = [_size(shots[n][0]) for n in chosen]
    side = min(min(size) for size in sizes)
    about = f"3 {model.info.id.hex()} {' '.join(c.key for c in clips)} {chosen.tolist()} {side}"
    path = Path(cache) / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.pairs.npz"
    if path.exists():
        with np.load(path) as file:
            return Pairs(**{name: file[name] for name in file.files})
    random = np.random.default_rng(5)
    decoded: list[Luma] = []
    original: list[Luma] = []
    steps: list[list[int]] = []
    starts: list[int] = []
    for done, number in enumerate(chosen):
        clip, first, end = shots[number]
        end = min(end, first + FRAMES)
        qp = int(random.integers(QPS[0], QPS[1] + 1))
        starts.append(len(decoded))
        for frame, shown, step in decode_shot(clip, first, end, side, qp, model):
            decoded.append(shown)
            original.append(frame.y.astype(np.uint8, copy=False))
            steps.append([step.qp, step.layer, *signed_pair(step.references)])
        if done % 20 == 0:
            say(f"coding shots to learn from: {done + 1} of {len(chosen)}")
    pairs = Pairs(
        decoded=np.stack(decoded),
        original=np.stack(original),
        steps=np.array(steps, np.int32),
        starts=np.array(starts, np.int64),
        shots=chosen,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as target:
        np.savez(
            target,
            decoded=pairs.decoded,
            original=pairs.original,
            steps=pairs.steps,
            starts=pairs.starts,
            shots=pairs.shots,
        )
    part.replace(path)
    return pairs


def _size(clip: Clip) -> tuple[int, int]:
    return min(SIDE, clip.rows // 32 * 32), min(SIDE, clip.columns // 32 * 32)


def decode_shot(
    clip: Clip, first: int, end: int, side: int, qp: int, model: Model
) -> list[tuple[Frame, Luma, FrameStep]]:
    """(original, decoded luma, how it was coded) of frames first to end of a clip."""
    top, left = (clip.rows - side) // 4 * 2, (clip.columns - side) // 4 * 2
    luma, chroma = clip.crop(list(range(first, end)), top, left, side)
    originals = [
        Frame(y=y[0].numpy(), u=c[0].numpy(), v=c[1].numpy(), pts=n)
        for n, (y, c) in enumerate(zip(luma, chroma, strict=True))
    ]
    video_format = VideoFormat(width=side, height=side)
    options = EncoderOptions(qp=qp, preset=PRESET)
    encoder = Encoder(video_format, options, model=model)
    packets = [p for frame in [*originals, None] for p in encoder.encode(frame)]
    steps: dict[int, FrameStep] = {}
    coarse: dict[int, int] = {}  # qps of the GOP's frames
    key_identity = None
    newest = 0
    decoder = Decoder(encoder.extradata, model=model)
    shown: dict[int, Luma] = {}
    for packet in [*packets, None]:
        if packet is not None:
            info = read_packet(packet.data, key_identity=key_identity, after=newest)
            newest = info.header.step.number
            if packet.is_keyframe:
                key_identity = info.identity
            step = info.header.step
            if packet.is_keyframe:
                coarse.clear()
            if not info.sections:  # it repeats others, with their errors
                step = replace(step, qp=max(coarse.get(n, qp) for n in step.reference_numbers))
            coarse[step.number] = step.qp
            steps[packet.pts] = step
        for frame in decoder.decode(packet):
            shown[frame.pts] = frame.y.astype(np.uint8, copy=False)
    return [(frame, shown[frame.pts], steps[frame.pts]) for frame in originals]
