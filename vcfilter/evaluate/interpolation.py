"""Frame interpolation measured: frames are left out of clips, made again and compared."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import cv2
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

from vcfilter.errors import ConfigError, MediaError
from vcfilter.evaluate.clips import Clip, frames_of, planes_of, prepare, write_atomically
from vcfilter.evaluate.judge import LPIPS_FRAMES, as_image, lpips, video_frame
from vcfilter.frames import Frame, Plane, VideoFormat
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.options import FACTORS, shipped
from vcfilter.metrics import PSNR_CAP, plane_psnr, squared_error, ssim
from vcfilter.nn.perceptual import EXTRA, StLpips, available
from vcfilter.options import LOOKS, Runtime

REDS_CLIPS = ("002", "005", "010", "017", "025")
"""The five clips of EQVI's second column."""
_REDS_GIVEN = "val_15fps"
_REDS_WANTED = {2: "val_30fps", 4: "val_60fps"}
METHOD = """\
Of each clip one frame in {factor} is given, the others are made and compared with those that were
left out: mean PSNR of luma in dB and mean SSIM, over the intervals with a frame on both sides (all
intervals of a clip without such). "linear" knows the two frames around the interval alone;
"trained" is quadratic with the learned part, where there are weights for it and the preset uses it,
"sharp" with that of the look sharp; minterpolate is FFmpeg's filter with its defaults and without
detection of scene changes; RIFE is the program that --rife names, given frames as PNG files in RGB.
ST-LPIPS: with AlexNet, of RGB, of {frames} frames, lower is better. Gradients: the made frames'
gradient energy (luma) relative to that of the given frames beside them."""
SHARP = LOOKS[1]
UNJUDGED = f"ST-LPIPS is not measured: install vcfilter with the extra {EXTRA}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One method on one clip.

    Args:
        frames: that were compared.
        psnr, ssim: means over them; None where the method made none.
        gradient: their gradient energy relative to the given frames'.
        lpips: ST-LPIPS; None where it cannot be measured.
    """

    clip: str
    method: str
    frames: int
    psnr: float | None
    ssim: float | None
    gradient: float | None = None
    lpips: float | None = None


def compare_interpolation(
    clips: Sequence[Path],
    cache: Path,
    out: Path,
    *,
    factor: int = 2,
    preset: str = "medium",
    frames: int | None = None,
    runtime: Runtime | None = None,
    weights: str | None = None,
    rife: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> str:
    """Measure linear, quadratic and trained interpolation, minterpolate and RIFE on clips.

    Args:
        clips: video files.
        cache: of `evaluate`.
        out: folder for interpolation.json.
        factor: every factor-th frame is given.
        preset: of the interpolation.
        frames: take only so many from the start of each clip.
        weights: of the learned part, see Interpolator.
        rife: a program with the arguments of rife-ncnn-vulkan; without it there is no such column.
        report: called with a line per clip.

    Returns:
        Tables.

    Raises:
        ConfigError: the factor is out of range.
        MediaError: a clip cannot be read or is too short, out cannot be written, the program fails.
    """
    if not FACTORS[0] <= factor <= FACTORS[1]:
        raise ConfigError(f"factor {factor} is outside {FACTORS[0]} to {FACTORS[1]}")
    scores: list[Score] = []
    judge = StLpips("alex") if available() else None
    for path in clips:
        clip = prepare(path, cache, frames)
        originals = list(frames_of(clip.path))
        if len(originals) <= factor:
            raise MediaError(
                f"{clip.name} has {len(originals)} frames: too few for a factor of {factor}"
            )
        found = [replace(planes_of(each), pts=index) for index, each in enumerate(originals)]
        height, width = found[0].y.shape
        fmt = VideoFormat(width=width, height=height, bit_depth=clip.bit_depth)
        plain = Interpolator(fmt, preset, runtime, weights="")
        trained = Interpolator(fmt, preset, runtime, weights=weights)
        starts = _starts(len(found), factor)
        made = {
            "linear": _between(plain, found, starts, factor, outer=False),
            "quadratic": _between(plain, found, starts, factor, outer=True),
            "trained": _between(trained, found, starts, factor, outer=True)
            if trained.is_trained
            else {},
        }
        if trained.is_trained and shipped(SHARP) is not None:
            sharp = Interpolator(fmt, preset, runtime, look=SHARP)
            made[SHARP] = _between(sharp, found, starts, factor, outer=True)
        made["minterpolate"] = _minterpolate(found, clip.bit_depth, factor)
        if rife is not None:
            made["RIFE"] = _rife(rife, originals, starts, factor)
        own = _scores(clip, factor, originals, made, judge)
        scores += own
        report(f"{clip.name}: " + ", ".join(f"{s.method} {_cell(s)}" for s in own))
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = {
            "method": METHOD.format(factor=factor, frames=LPIPS_FRAMES),
            "factor": factor,
            "preset": preset,
            "scores": [asdict(score) for score in scores],
        }
        write_atomically(out / "interpolation.json", json.dumps(data, indent=1))
    except OSError as error:
        raise MediaError(f"{out} cannot be written: {error.strerror}") from error
    texts = [_table("PSNR Y / SSIM", scores, _cell)]
    if judge is not None:
        texts.append(_table("ST-LPIPS", scores, lambda score: _decimals(score.lpips, 4)))
    texts.append(_table("gradients", scores, lambda score: _decimals(score.gradient, 3)))
    texts.append(METHOD.format(factor=factor, frames=LPIPS_FRAMES))
    return "\n\n".join(texts if judge is not None else [*texts, UNJUDGED])


def _starts(count: int, factor: int) -> list[int]:
    """Where the intervals begin that are compared, of count frames."""
    last = (count - 1) // factor * factor
    return list(range(factor, last - factor, factor)) or list(range(0, last, factor))


def _scores(
    clip: Clip,
    factor: int,
    originals: Sequence[VideoFrame],
    made: Mapping[str, Mapping[int, Frame]],
    judge: StLpips | None,
) -> list[Score]:
    """What each method's frames, by index, are like."""
    frames = [planes_of(each) for each in originals]
    wanted = [s + part for s in _starts(len(frames), factor) for part in range(1, factor)]
    scores = []
    for method, new in made.items():
        score = Score(clip=clip.name, method=method, frames=0, psnr=None, ssim=None)
        if all(index in new for index in wanted):
            pairs = [(frames[index].y, new[index].y) for index in wanted]
            found = lpips(judge, [originals[i] for i in wanted], [[new[i] for i in wanted]])
            score = replace(
                score,
                frames=len(pairs),
                psnr=_mean([plane_psnr(*pair, clip.bit_depth) for pair in pairs]),
                ssim=_mean([ssim(*pair, clip.bit_depth) for pair in pairs]),
                gradient=_gradient(frames, new, wanted, factor),
                lpips=found[0],
            )
        scores.append(score)
    return scores


def _gradient(
    frames: Sequence[Frame], made: Mapping[int, Frame], wanted: Sequence[int], factor: int
) -> float:
    """Gradient energy of made frames relative to the mean of the two given ones around each."""
    new = sum(_energy(made[index].y) for index in wanted)
    starts = [index // factor * factor for index in wanted]
    old = sum(_energy(frames[s].y) + _energy(frames[s + factor].y) for s in starts) / 2
    return new / old if old else 1.0


def _energy(plane: Plane) -> float:
    values = plane.astype(np.float64)
    return float(sum((np.diff(values, axis=axis) ** 2).mean() for axis in (0, 1)))


def _between(
    tool: Interpolator, frames: Sequence[Frame], starts: Sequence[int], factor: int, *, outer: bool
) -> dict[int, Frame]:
    """The frames that were left out, by index."""
    times = [Fraction(part, factor) for part in range(1, factor)]

    def at(index: int) -> Frame | None:
        return frames[index] if outer and 0 <= index < len(frames) else None

    return {
        new.pts: new
        for start in starts
        for new in tool.between(
            at(start - factor),
            frames[start],
            frames[start + factor],
            at(start + 2 * factor),
            times,
        )
    }


def _minterpolate(frames: Sequence[Frame], bit_depth: int, factor: int) -> dict[int, Frame]:
    """What FFmpeg's filter makes, by index; nothing for 10 bit, which it does not take."""
    if bit_depth != 8:
        return {}
    height, width = frames[0].y.shape
    graph = Graph()
    source = f"video_size={width}x{height}:pix_fmt=yuv420p:time_base=1/25:frame_rate=25/1"
    try:
        nodes = [
            graph.add("buffer", f"{source}:pixel_aspect=1/1"),
            graph.add("minterpolate", f"fps={25 * factor}:scd=none"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"FFmpeg's minterpolate cannot be used: {error}") from error
    found: dict[int, Frame] = {}
    given: list[Frame | None] = [*frames[::factor], None]
    for index, frame in enumerate(given):
        graph.vpush(None if frame is None else video_frame(frame, "yuv420p", index))
        while True:
            try:
                new: Any = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            found[round(new.pts * new.time_base * 25 * factor)] = planes_of(new)
    return found


def _rife(
    program: str, originals: Sequence[VideoFrame], starts: Sequence[int], factor: int
) -> dict[int, Frame]:
    """What a program makes, by index: PROGRAM -0 A.png -1 B.png -o NEW.png [-s TIME].

    The time, which older models of RIFE do not take, is left out where it is 0.5.

    Raises:
        MediaError: it cannot be started, fails or makes no image.
    """
    found: dict[int, Frame] = {}
    with tempfile.TemporaryDirectory() as name:
        one, two, new = (Path(name) / f"{each}.png" for each in ("before", "after", "new"))
        for start in starts:
            for path, index in ((one, start), (two, start + factor)):
                image = as_image(originals[index], planes_of(originals[index]), "bgr24")
                if not cv2.imwrite(str(path), image):
                    raise MediaError(f"{path} cannot be written")
            for part in range(1, factor):
                new.unlink(missing_ok=True)
                command = [program, "-0", str(one), "-1", str(two), "-o", str(new)]
                if 2 * part != factor:
                    command += ["-s", f"{part / factor:.6f}"]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                except OSError as error:
                    raise MediaError(f"{program} cannot be started: {error.strerror}") from error
                if done.returncode or not new.is_file():
                    said = (done.stderr or done.stdout).strip().splitlines()
                    raise MediaError(f"{program} made no image: {said[-1] if said else 'silent'}")
                found[start + part] = _as_planes(new, originals[start])
    return found


def _as_planes(image: Path, like: VideoFrame) -> Frame:
    """An image file in the format and the colours of a clip's frames.

    Raises:
        MediaError: it cannot be read, or has another size.
    """
    made = next(frames_of(image))
    if (made.width, made.height) != (like.width, like.height):
        raise MediaError(
            f"{image.name} has {made.width}x{made.height} samples, not {like.width}x{like.height}"
        )
    return planes_of(
        made.reformat(
            format=like.format.name,
            dst_colorspace=_MATRICES.get(like.colorspace, like.colorspace),
            dst_color_range=like.color_range or _LIMITED,
        )
    )


def compare_reds(
    folder: Path,
    *,
    factor: int = 2,
    preset: str = "medium",
    runtime: Runtime | None = None,
    weights: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> str:
    """EQVI's table on REDS_VTSR's validation set: PSNR and SSIM of RGB over all and five clips.

    Frames are interpolated in 4:2:0, which the originals in RGB are not.

    Args:
        folder: holds val_15fps/CLIP/NUMBER.png, and the frames between in val_30fps (factor 2) or
            val_60fps (factor 4), numbered on the same scale.
        factor: 2 or 4.

    Raises:
        ConfigError: another factor.
        MediaError: the folder has another layout, or a file cannot be read.
    """
    if factor not in _REDS_WANTED:
        raise ConfigError(f"factor {factor} is not 2 or 4, for which REDS_VTSR has frames")
    rows: list[list[str]] = []
    names = reds_clips(folder, factor)
    for method, path in (("quadratic", ""), ("trained", weights)):
        small = VideoFormat(width=64, height=64)
        if (
            method == "trained"
            and not Interpolator(small, preset, runtime, weights=path).is_trained
        ):
            continue
        scores = []
        for name in names:
            pairs = list(_reds_pairs(folder, name, factor, preset, runtime, path))
            psnr = _mean([_rgb_psnr(a, b) for a, b in pairs])
            similar = _mean([_rgb_ssim(a, b) for a, b in pairs])
            scores.append(
                Score(clip=name, method=method, frames=len(pairs), psnr=psnr, ssim=similar)
            )
            report(f"{name}: {method} {_cell(scores[-1])}")
        five = [score for score in scores if score.clip in REDS_CLIPS]
        if not rows:
            counts = (f"REDS_VTSR val ({len(scores)} clips)", f"REDS_VTSR5 ({len(five)} clips)")
            rows.append(["model", *counts])
        rows.append([f"vcfilter {preset}, {method}", _overall(scores), _overall(five)])
    return _aligned(rows)


def reds_clips(folder: Path, factor: int) -> list[str]:
    """Names of the clips that have given and wanted frames.

    Raises:
        MediaError: there are none.
    """
    given, wanted = folder / _REDS_GIVEN, folder / _REDS_WANTED[factor]
    for each in (given, wanted):
        if not each.is_dir():
            raise MediaError(f"{folder} is not laid out as REDS_VTSR: there is no folder {each}")
    names = sorted(p.name for p in given.iterdir() if (wanted / p.name).is_dir())
    if not names:
        raise MediaError(f"{given} and {wanted} have no clip in common")
    return names


def _reds_pairs(
    folder: Path, name: str, factor: int, preset: str, runtime: Runtime | None, weights: str | None
) -> Iterator[tuple[VideoFrame, VideoFrame]]:
    """(wanted, made) in RGB."""
    given = {int(p.stem): p for p in sorted((folder / _REDS_GIVEN / name).glob("*.png"))}
    place = folder / _REDS_WANTED[factor] / name
    numbers = list(given)
    frames = {n: replace(_image_planes(path), pts=n) for n, path in given.items()}
    if len(numbers) < 2:
        raise MediaError(f"{folder / _REDS_GIVEN / name} has fewer than two PNG files")
    height, width = frames[numbers[0]].y.shape
    fmt = VideoFormat(width=width, height=height)
    tool = Interpolator(fmt, preset, runtime, weights=weights)
    times = [Fraction(part, factor) for part in range(1, factor)]
    for index in range(len(numbers) - 1):
        before, a, b, after = (
            frames[numbers[i]] if 0 <= i < len(numbers) else None
            for i in range(index - 1, index + 3)
        )
        assert a is not None
        assert b is not None
        for new in tool.between(before, a, b, after, times):
            image = place / f"{new.pts:08}.png"
            rgb = next(frames_of(image)).reformat(format="rgb24")
            made = video_frame(new, "yuv420p", 0)
            made.colorspace, made.color_range = _BT709, _LIMITED
            yield rgb, made.reformat(format="rgb24")


_BT709, _LIMITED = 1, 1
_MATRICES = {2: 5}  # not stated: swscale's default, BT.601


def _image_planes(path: Path) -> Frame:
    image = next(frames_of(path))
    return planes_of(
        image.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    )


def _channels(image: VideoFrame) -> Plane:
    return np.asarray(image.to_ndarray(), np.uint8)


def _rgb_psnr(a: VideoFrame, b: VideoFrame) -> float:
    p, q = (_channels(each).reshape(each.height, -1) for each in (a, b))
    error = squared_error(p, q) / p.size
    return PSNR_CAP if not error else min(PSNR_CAP, float(10 * np.log10(255**2 / error)))


def _rgb_ssim(a: VideoFrame, b: VideoFrame) -> float:
    p, q = _channels(a), _channels(b)
    return _mean([ssim(p[..., channel], q[..., channel]) for channel in range(3)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(score: Score) -> str:
    if score.psnr is None or score.ssim is None:
        return "none"
    return f"{score.psnr:.2f} / {score.ssim:.4f}"


def _overall(scores: Sequence[Score]) -> str:
    known = [(s.psnr, s.ssim) for s in scores if s.psnr is not None and s.ssim is not None]
    if not known:
        return "none"
    return f"{_mean([p for p, _ in known]):.4f}/{_mean([s for _, s in known]):.4f}"


def _decimals(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _table(head: str, scores: Sequence[Score], cell: Callable[[Score], str]) -> str:
    """A row per clip and one of means, a column per method."""
    methods = list(dict.fromkeys(score.method for score in scores))
    rows = [[head, *methods]]
    for clip in dict.fromkeys(score.clip for score in scores):
        rows.append([clip, *(cell(score) for score in scores if score.clip == clip)])
    means = [_mean_score([score for score in scores if score.method == m]) for m in methods]
    return _aligned([*rows, ["mean", *map(cell, means)]])


def _mean_score(scores: Sequence[Score]) -> Score:
    """Of one method; what it lacks on one clip it lacks here."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return _mean(known) if len(known) == len(values) else None

    return Score(
        clip="mean",
        method=scores[0].method,
        frames=sum(score.frames for score in scores),
        psnr=mean([score.psnr for score in scores]),
        ssim=mean([score.ssim for score in scores]),
        gradient=mean([score.gradient for score in scores]),
        lpips=mean([score.lpips for score in scores]),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
