"""Looks measured: what decoded frames lose in squared error and gain for the eye."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import av.error
import cv2
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.frame import VideoFrame

from vcfilter.errors import ConfigError, MediaError
from vcfilter.evaluate.anchors import Anchor
from vcfilter.evaluate.bdrate import bd_rate
from vcfilter.evaluate.clips import Clip, frames_of, planes_of, prepare, write_atomically
from vcfilter.evaluate.comparison import Comparison
from vcfilter.evaluate.judge import LPIPS_FRAMES, as_image, lpips, video_frame
from vcfilter.evaluate.runner import (
    Codec,
    Neural,
    Point,
    cached_point,
    decoded_frames,
    identity,
)
from vcfilter.frames import Frame, Plane
from vcfilter.metrics import frame_psnr, ms_ssim
from vcfilter.models import store
from vcfilter.nn.perceptual import EXTRA, StLpips, available
from vcfilter.options import LOOKS, DecoderOptions, Runtime

PERIODS = (2, 4, 8)  # of a grid, in samples
CRFS = (10, 45)  # between which another codec's is looked for
CROP = 128  # side of what is shown enlarged
ENLARGED = 2
Samples = npt.NDArray[np.float64]
METHOD = """\
PSNR: 6:1:1 in dB. MS-SSIM: luma. ST-LPIPS: shift-tolerant LPIPS with AlexNet, which no finish is
trained on, of RGB, lower is better; {frames} frames of each clip. XPSNR: FFmpeg's, luma, dB.
Of luma, 1 being the source's: gradients: energy of differences of neighbouring samples; grid: the
largest ratio of energy at periods of 2, 4 and 8 samples; flicker: energy of differences of frames
that follow each other. Peak: energy of the error at those periods, relative to that of the
frequencies around; about 1 without a grid. Other codecs: at the crf whose bytes are nearest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookRow:
    """One clip at one setting in one look, or another codec beside it.

    Args:
        shown: natural, sharp, or a codec's label. qp: vcfilter's, of keyframes. bytes: of the file.
        psnr, ms_ssim, xpsnr, lpips: see METHOD; None where they cannot be measured.
        gradients, grid, peak, flicker: see METHOD.
    """

    clip: str
    shown: str
    qp: int
    bytes: int
    psnr: float
    ms_ssim: float
    xpsnr: float | None
    lpips: float | None
    gradients: float
    grid: float
    peak: float
    flicker: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What all points share; looks: that the model has. identities: of the codecs, by label."""

    comparison: Comparison
    looks: tuple[str, ...]
    judge: StLpips | None
    identities: dict[str, dict[str, object]]

    def coded(self, clip: Clip, codec: Codec, setting: float) -> Point:
        """A coded file, measured or from the cache."""
        comparison = self.comparison
        return cached_point(
            clip,
            codec,
            self.identities[codec.label],
            setting,
            comparison.keyint,
            comparison.cache,
            comparison.threads,
        )[0]


def evaluate_looks(comparison: Comparison, progress: Callable[[str], None]) -> str:
    """Code each clip once per qp, decode it in each look, compare; returns the tables.

    The tables are written to the comparison's folder too, as looks.md with looks.json, and crops
    as crops/CLIP-QP.png.

    Args:
        progress: called with one line per row.

    Raises:
        ConfigError: there is no preset, or more than one.
        MediaError: a clip cannot be read, or coding failed.
    """
    if len(comparison.presets) != 1:
        raise ConfigError("looks are compared at one --preset")
    own, *others = comparison.codecs
    assert isinstance(own, Neural)
    judge = StLpips("alex") if available() else None
    bench = _Bench(
        comparison=comparison,
        looks=looks_of(own, Runtime(device=comparison.device, threads=comparison.threads)),
        judge=judge,
        identities={codec.label: identity(codec) for codec in comparison.codecs},
    )
    crops = comparison.out / "crops"
    crops.mkdir(parents=True, exist_ok=True)
    rows: list[LookRow] = []
    for path in comparison.clips:
        clip = prepare(path, comparison.cache, comparison.frames)
        for qp in comparison.qps:
            found, crops_image = _point(clip, own, others, qp, bench)
            rows += found
            for row in found:
                progress(_line(row))
            if not cv2.imwrite(str(crops / f"{clip.name}-{qp}.png"), crops_image):
                raise MediaError(f"{crops} cannot be written")
    text = "\n".join(_tables(rows, bench.looks, [c.label for c in others], judge is not None))
    write_atomically(comparison.out / "looks.json", json.dumps([asdict(row) for row in rows]))
    write_atomically(comparison.out / "looks.md", text + "\n")
    return text


def looks_of(codec: Neural, runtime: Runtime) -> tuple[str, ...]:
    """The looks that a codec's frames can be shown in: natural alone where it has no finish."""
    model_id = store.find(codec.model, runtime).info.id.hex()
    has = any(entry.belongs == model_id for entry in store.list_finishes())
    return LOOKS if has else LOOKS[:1]


def _point(
    clip: Clip,
    own: Neural,
    others: Sequence[Codec],
    qp: int,
    bench: _Bench,
) -> tuple[list[LookRow], Plane]:
    """(rows of all looks and other codecs, what is shown of them side by side in BGR)."""
    comparison = bench.comparison
    point = bench.coded(clip, own, qp)
    shown: list[tuple[str, int, list[Frame]]] = []
    for look in bench.looks:
        options = DecoderOptions(strict=True, model=own.model, look=look)
        frames = _neural(Path(point.stream), options, comparison)
        shown.append((look, point.bytes, frames))
    for codec in others:
        assert isinstance(codec, Anchor)
        near = nearest(point.bytes, partial(bench.coded, clip, codec))
        frames = list(decoded_frames(Path(near.stream), codec, comparison.threads))
        shown.append((codec.label, near.bytes, frames))
    originals = list(frames_of(clip.path))
    sources = [planes_of(frame) for frame in originals]
    for _, _, frames in shown:
        if len(frames) != len(sources):
            raise MediaError(f"{clip.name}: {len(frames)} frames came out of {len(sources)}")
    distances = lpips(bench.judge, originals, [frames for _, _, frames in shown])
    rows = [
        _row(clip, name, qp, size, sources, frames, distance)
        for (name, size, frames), distance in zip(shown, distances, strict=True)
    ]
    middle = len(sources) // 2
    images = [_bgr(originals[middle], each[middle]) for _, _, each in shown]
    return rows, _side_by_side([_bgr(originals[middle], sources[middle]), *images], sources[middle])


def _neural(stream: Path, options: DecoderOptions, comparison: Comparison) -> list[Frame]:
    from vcfilter.stream.decoders import neural_frames

    runtime = Runtime(device=comparison.device, threads=comparison.threads)
    return list(neural_frames(stream, options, runtime=runtime))


def nearest(size: int, code: Callable[[int], Point]) -> Point:
    """The point of another codec whose bytes are nearest, over whole crfs."""
    low, high = CRFS
    best: Point | None = None
    while low <= high:
        crf = (low + high) // 2
        point = code(crf)
        if best is None or abs(point.bytes - size) < abs(best.bytes - size):
            best = point
        if point.bytes > size:
            low = crf + 1
        else:
            high = crf - 1
    assert best is not None
    return best


def _row(
    clip: Clip,
    name: str,
    qp: int,
    size: int,
    sources: Sequence[Frame],
    frames: Sequence[Frame],
    lpips: float | None,
) -> LookRow:
    depth = clip.bit_depth
    pairs = list(zip(sources, frames, strict=True))
    whole = [a.y.astype(np.float64) for a in sources]
    seen = [b.y.astype(np.float64) for b in frames]
    ratios = [
        _total(grid_energy(b, p) for b in seen) / _total(grid_energy(a, p) for a in whole)
        for p in PERIODS
    ]
    errors = [b - a for a, b in zip(whole, seen, strict=True)]
    return LookRow(
        clip=clip.name,
        shown=name,
        qp=qp,
        bytes=size,
        psnr=_mean([frame_psnr(a, b, depth).weighted for a, b in pairs]),
        ms_ssim=_mean([ms_ssim(a.y, b.y, depth) for a, b in pairs]),
        xpsnr=xpsnr(sources, frames, depth),
        lpips=lpips,
        gradients=_total(map(gradient_energy, seen)) / _total(map(gradient_energy, whole)),
        grid=max(ratios),
        peak=max(_mean([grid_peak(e, p) for e in errors]) for p in PERIODS),
        flicker=flicker(seen) / flicker(whole) if len(whole) > 1 and flicker(whole) else 1.0,
    )


def gradient_energy(luma: Samples) -> float:
    """Mean square of differences of neighbouring samples, across and down."""
    return float(np.square(np.diff(luma, axis=0)).mean() + np.square(np.diff(luma, axis=1)).mean())


def flicker(luma: Sequence[Samples]) -> float:
    """Mean square of differences of frames that follow each other."""
    return _mean([float(np.square(b - a).mean()) for a, b in itertools.pairwise(luma)])


def _spectrum(plane: Samples, axis: int) -> Samples:
    """Mean energy by frequency along an axis, of a length that is a multiple of 8."""
    lines = plane if axis == 1 else plane.T
    lines = lines[:, : lines.shape[1] // 8 * 8]
    lines = (lines - lines.mean(axis=1, keepdims=True)) * np.hanning(lines.shape[1])
    energy: Samples = np.square(np.abs(np.fft.rfft(lines, axis=1))).mean(axis=0)
    return energy


def grid_energy(plane: Samples, period: int) -> float:
    """Energy of a plane at a period in samples, across and down."""
    total = 0.0
    for axis in (0, 1):
        energy = _spectrum(plane, axis)
        place = round((len(energy) - 1) * 2 / period)
        total += float(energy[max(0, place - 1) : place + 2].sum())
    return total


def grid_peak(error: Samples, period: int) -> float:
    """Energy of an error at a period, relative to the mean of the frequencies around it."""
    at = around = 0.0
    for axis in (0, 1):
        energy = _spectrum(error, axis)
        place = round((len(energy) - 1) * 2 / period)
        near = [*range(place - 7, place - 2), *range(place + 3, place + 8)]
        near = [n for n in near if 0 < n < len(energy)]
        at += float(energy[place - 1 : place + 2].mean())
        around += float(energy[near].mean())
    return at / around if around else 1.0


def xpsnr(sources: Sequence[Frame], frames: Sequence[Frame], bit_depth: int) -> float | None:
    """Mean XPSNR of luma in dB, by FFmpeg's filter; None where it is missing."""
    height, width = sources[0].y.shape
    pixels = "yuv420p" if bit_depth == 8 else "yuv420p10le"
    text = f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/25:frame_rate=25/1"
    try:
        graph = Graph()
        inputs = [graph.add("buffer", f"{text}:pixel_aspect=1/1") for _ in range(2)]
        measure, sink = graph.add("xpsnr"), graph.add("buffersink")
        for place, node in enumerate(inputs):
            node.link_to(measure, 0, place)
        measure.link_to(sink)
        graph.configure()
    except (av.error.FFmpegError, ValueError):
        return None
    found: list[float] = []
    for number, pair in enumerate([*zip(sources, frames, strict=True), None]):
        for place, node in enumerate(inputs):
            node.push(None if pair is None else video_frame(pair[place], pixels, number))
        while True:
            try:
                result: Any = sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            value = float(result.metadata["lavfi.xpsnr.xpsnr.y"])
            found.append(100.0 if value == inf else value)
    return _mean(found) if found else None


def _bgr(like: VideoFrame, frame: Frame) -> Plane:
    """A frame as (height, width, 3) BGR of 8 bit, with the colours of the original."""
    return as_image(like, frame, "bgr24")


def _side_by_side(images: Sequence[Plane], source: Frame) -> Plane:
    """The liveliest part of a frame from each image, enlarged without smoothing."""
    luma = source.y.astype(np.float32)
    side = min(CROP, *luma.shape)
    energy = cv2.boxFilter(
        np.square(cv2.Laplacian(luma, cv2.CV_32F)), -1, (side, side), borderType=cv2.BORDER_CONSTANT
    )
    half = side // 2
    inner = energy[half : luma.shape[0] - half + 1, half : luma.shape[1] - half + 1]
    top, left = np.unravel_index(int(inner.argmax()), inner.shape)
    parts = [image[top : top + side, left : left + side] for image in images]
    row = np.concatenate(parts, axis=1)
    return np.asarray(row.repeat(ENLARGED, 0).repeat(ENLARGED, 1), np.uint8)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _total(values: Any) -> float:
    return float(sum(values)) or 1e-9


def _line(row: LookRow) -> str:
    lpips = "" if row.lpips is None else f"  ST-LPIPS {row.lpips:.4f}"
    return f"{row.clip:<20} qp {row.qp:>2}  {row.shown:<16} {row.psnr:6.2f} dB{lpips}"


def _tables(
    rows: Sequence[LookRow], looks: Sequence[str], others: Sequence[str], judged: bool
) -> list[str]:
    """Markdown: every row, then what the look sharp changes, by qp."""
    names = ["bytes", "PSNR", "MS-SSIM", "XPSNR", "ST-LPIPS"]
    names += ["gradients", "grid", "peak", "flicker"]
    lines = [METHOD.format(frames=LPIPS_FRAMES), ""]
    if not judged:
        lines += [f"ST-LPIPS is not measured: install vcfilter with the extra {EXTRA}.", ""]
    lines += [
        "Crops: the source, " + ", ".join([*looks, *others]) + ".",
        "",
        "| clip | qp | shown | " + " | ".join(names) + " |",
        "|" + "---|" * (3 + len(names)),
    ]
    for row in rows:
        optional = [
            "-" if value is None else f"{value:.{digits}f}"
            for value, digits in ((row.xpsnr, 2), (row.lpips, 4))
        ]
        lines.append(
            f"| {row.clip} | {row.qp} | {row.shown} | {row.bytes} | {row.psnr:.2f} | "
            f"{row.ms_ssim:.4f} | {' | '.join(optional)} | {row.gradients:.3f} | {row.grid:.3f} | "
            f"{row.peak:.2f} | {row.flicker:.3f} |"
        )
    sharp = len(looks) > 1
    if sharp:
        lines += ["", "Sharp against natural:", ""]
        lines += ["| qp | PSNR | ST-LPIPS | gradients | flicker |", "|---|---|---|---|---|"]
    else:
        lines += ["", "The model has no finish: its frames are shown as they were coded."]
    for qp in dict.fromkeys(row.qp for row in rows) if sharp else ():
        pairs = _pairs([row for row in rows if row.qp == qp])
        lpips = [100 * (b.lpips / a.lpips - 1) for a, b in pairs if a.lpips and b.lpips is not None]
        lines.append(
            f"| {qp} | {_mean([b.psnr - a.psnr for a, b in pairs]):+.2f} dB | "
            f"{f'{_mean(lpips):+.1f} %' if lpips else '-'} | "
            f"{_percent([b.gradients / a.gradients for a, b in pairs])} | "
            f"{_percent([b.flicker / a.flicker for a, b in pairs])} |"
        )
    for clip in dict.fromkeys(row.clip for row in rows):
        lines += ["", f"{clip}:"]
        of = dict.fromkeys(row.qp for row in rows if row.clip == clip)
        lines += [f"![{clip} at qp {qp}](crops/{clip}-{qp}.png)" for qp in of]
        if sharp:
            lines += _bd_line([row for row in rows if row.clip == clip])
    return [*lines, ""]


def _pairs(rows: Sequence[LookRow]) -> list[tuple[LookRow, LookRow]]:
    """(natural, sharp) of each clip and qp."""
    by = {(row.clip, row.qp, row.shown): row for row in rows}
    natural, sharp = LOOKS
    return [(by[c, q, natural], by[c, q, sharp]) for c, q, shown in by if shown == natural]


def _percent(ratios: Sequence[float]) -> str:
    return f"{100 * (_mean(ratios) - 1):+.1f} %"


def _bd_line(rows: Sequence[LookRow]) -> list[str]:
    """BD-rate over ST-LPIPS of sharp against natural, where there are points enough."""
    pairs = [(a, b) for a, b in _pairs(rows) if a.lpips is not None and b.lpips is not None]
    if len(pairs) < 4:
        return []
    curves: list[list[float]] = [[], []]
    for pair in pairs:
        for curve, row in zip(curves, pair, strict=True):
            curve.append(-(row.lpips or 0.0))
    sizes = [float(a.bytes) for a, _ in pairs]
    found = bd_rate(sizes, curves[0], sizes, curves[1])
    if found.percent is None:
        return []
    return [f"BD-rate over ST-LPIPS, sharp against natural: {found.percent:+.1f} %"]
