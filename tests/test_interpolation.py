"""Frame interpolation: frames between frames, times, files, image files, mistakes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from clips import luma_psnr, make_film, planes, times, video_frame
from synthetic import clip, texture

import vcfilter
from vcfilter.cli.main import main
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.interpolation import interpolator, sequence
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.motion import EFFORTS, estimate_motion
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.interpolation.sequence import FrameInterpolation, repeats
from vcfilter.stream.images import files_of, folder_pattern
from vcfilter.stream.transcode import decode_file, encode_file

SMALL = VideoFormat(width=96, height=64)
BASE = Fraction(1, 25)
WIDE = texture(3, 400, 500) * 200 + 20


def shot(x: float, y: float = 20.0, size: tuple[int, int] = (64, 96), pts: int = 0) -> Frame:
    """A window onto texture, its corner at (x, y)."""
    rows, columns = size
    shift = np.array([[1, 0, -x], [0, 1, -y]])
    luma = cv2.warpAffine(WIDE, shift, (columns, rows), flags=cv2.INTER_CUBIC).round()
    chroma = cv2.resize(luma, ((columns + 1) // 2, (rows + 1) // 2), interpolation=cv2.INTER_AREA)
    u, v = np.clip(0.5 * chroma + 60, 0, 255), np.clip(200 - 0.6 * chroma, 0, 255)
    y_plane, u_plane, v_plane = (p.astype(np.uint8) for p in (luma, u, v))
    return Frame(y=y_plane, u=u_plane, v=v_plane, pts=pts, duration=1)


def deep(frame: Frame) -> Frame:
    y, u, v = ((p.astype(np.uint16) << 2) for p in frame.planes)
    return replace(frame, y=y, u=u, v=v)


def more(frames: list[Frame], base: Fraction = BASE, **options: Any) -> list[Frame]:
    return list(FrameInterpolation(InterpolationOptions(preset="fast", **options), base)(frames))


def origin(frame: Frame, frames: list[Frame]) -> int | None:
    """Index of the frame whose samples it shares."""
    return next((i for i, each in enumerate(frames) if each.y is frame.y), None)


def test_motion_of_a_pan_is_found() -> None:
    x, reference = (torch.from_numpy(f.y).float()[None, None] for f in (shot(40), shot(43.5, 18)))
    for effort in EFFORTS.values():
        motion = estimate_motion(x, reference, effort)
        inner = motion.flow[0, :, 1:-1, 1:-1]
        assert float((inner - torch.tensor([-3.5, 2.0])[:, None, None]).abs().max()) < 0.3
        assert float(motion.error[..., 2:-2, 2:-2].mean()) < 4


@pytest.mark.parametrize("preset", ["fast", "medium", "slow"])
def test_frames_between_lie_where_motion_is_accelerated(preset: str) -> None:
    where = [20 + 2 * n + 1.5 * n * n for n in (-1, 0, 1, 2)]
    before, a, b, after = (shot(x, pts=4 * n) for n, x in enumerate(where))
    middle = shot(20 + 2 * 0.5 + 1.5 * 0.25)
    tool = Interpolator(SMALL, preset)
    (quadratic,) = tool.between(before, a, b, after, [0.5])
    (linear,) = tool.between(None, a, b, None, [0.5])
    inner = np.s_[8:-8, 8:-8]
    assert quadratic.pts == 6
    gain = luma_psnr(quadratic.y[inner], middle.y[inner]) - luma_psnr(
        linear.y[inner], middle.y[inner]
    )
    assert gain > 3
    assert luma_psnr(quadratic.y[inner], middle.y[inner]) > 36
    assert luma_psnr(quadratic.u, middle.u) > 34


def test_times_are_exact_fractions_and_unequal_intervals_count() -> None:
    where = {0: 20.0, 8: 28.0, 12: 32.0, 20: 40.0}  # a steady pan, frames missing
    before, a, b, after = (shot(x, pts=n) for n, x in where.items())
    found = list(Interpolator(SMALL, "fast").between(before, a, b, after, [0.25, Fraction(3, 4)]))
    assert [f.pts for f in found] == [9, 11]
    for frame in found:
        wanted = shot(20 + frame.pts).y
        assert luma_psnr(frame.y[8:-8, 8:-8], wanted[8:-8, 8:-8]) > 36


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (64, 97)])
def test_odd_and_small_sizes_in_8_and_10_bit(size: tuple[int, int]) -> None:
    fmt = VideoFormat(width=size[1], height=size[0])
    a, b = shot(20, size=size, pts=0), shot(22, size=size, pts=2)
    (eight,) = Interpolator(fmt).between(None, a, b, None, [0.5])
    eight.check(fmt)
    fine = replace(fmt, bit_depth=10)
    (ten,) = Interpolator(fine).between(None, deep(a), deep(b), None, [0.5])
    ten.check(fine)
    assert np.abs(ten.y / 4 - eight.y).max() <= 0.75  # one is rounded to whole, one to quarters
    assert int(ten.y.max()) <= 1023


def test_a_still_overlay_stays_still() -> None:
    frames = []
    for n in range(4):
        frame = shot(20 + 5 * n, pts=n)
        frame.y[10:24, 30:60] = 235
        frame.y[14:20, 34:56] = 16
        frames.append(frame)
    (new,) = Interpolator(SMALL).between(*frames, [0.5])
    inside = np.s_[11:23, 31:59]
    assert np.abs(new.y[inside].astype(int) - frames[1].y[inside]).max() == 0


def test_a_frame_is_carried_on_by_its_own_motion() -> None:
    before, last = shot(20, pts=0), shot(23, pts=2)
    found = Interpolator(SMALL).carried(last, before, 0.5)
    wanted = shot(24.5)
    inner = np.s_[8:-8, 8:-12]
    assert luma_psnr(found.y[inner], wanted.y[inner]) > 36
    assert luma_psnr(last.y[inner], wanted.y[inner]) < 35


def test_new_frames_are_as_sharp_as_those_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grain that differs from frame to frame is weaker in a blend, and brought back."""
    random = np.random.default_rng(2)
    frames = []
    for n in range(4):
        frame = shot(20 + n, pts=n)
        grain = random.normal(0, 1.2, frame.y.shape)
        frames.append(replace(frame, y=(frame.y + grain).clip(0, 255).round().astype(np.uint8)))

    def share() -> float:
        def energy(frame: Frame) -> float:
            y = frame.y.astype(float)
            return float(sum((np.diff(y, axis=axis) ** 2).mean() for axis in (0, 1)))

        (new,) = Interpolator(SMALL).between(*frames, [0.5])
        return 2 * energy(new) / (energy(frames[1]) + energy(frames[2]))

    assert share() > 0.92
    monkeypatch.setattr(interpolator, "SHARPEN_MAX", 0.0)
    assert share() < 0.9


def test_wrong_arguments_are_refused() -> None:
    a, b = shot(20, pts=0), shot(21, pts=1)
    tool = Interpolator(SMALL)
    for faulty in (
        lambda: Interpolator(SMALL, "best"),
        lambda: list(tool.between(None, b, a, None, [0.5])),
        lambda: list(tool.between(None, a, b, None, [1.0])),
        lambda: list(tool.between(None, a, deep(b), None, [0.5])),
        lambda: InterpolationOptions(),
        lambda: InterpolationOptions(factor=2, slow=2),
        lambda: InterpolationOptions(factor=9),
        lambda: InterpolationOptions(factor=2.0),  # type: ignore[arg-type]
        lambda: InterpolationOptions(fps=Fraction(0)),
        lambda: InterpolationOptions(factor=2, cut="mix"),
    ):
        with pytest.raises(ConfigError):
            faulty()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_factor_keeps_times_length_and_originals(count: int) -> None:
    frames = clip(count, SMALL, first_pts=7, ticks=2)
    found = more(frames, factor=4)
    assert [f.pts for f in found] == [28 + 2 * n for n in range(4 * count)]
    assert {f.duration for f in found} == {2}
    for n, frame in enumerate(frames):
        assert found[4 * n].planes == frame.planes
    assert [origin(f, frames) for f in found[-4:]] == [count - 1] * 4  # its duration is kept
    assert all(origin(f, frames) is None for n, f in enumerate(found[:-4]) if n % 4)


def test_a_variable_rate_stays_variable() -> None:
    ticks = [0, 40, 80, 160, 200, 280]
    frames = [replace(f, pts=t, duration=0) for f, t in zip(clip(6, SMALL), ticks, strict=True)]
    stage = FrameInterpolation(InterpolationOptions(factor=2, preset="fast"), Fraction(1, 1000))
    found = list(stage(frames))
    assert stage.time_base == Fraction(1, 2000)
    assert [f.pts for f in found][::2] == [2 * t for t in ticks]
    assert [f.pts for f in found][1::2] == [40, 120, 240, 360, 480, 640]
    assert stage.frame_rate(Fraction(24)) == 48


def test_a_rate_gives_a_regular_row_that_takes_originals_nearby() -> None:
    frames = clip(5, SMALL)
    stage = FrameInterpolation(InterpolationOptions(fps=Fraction(60), preset="fast"), BASE)
    found = list(stage(frames))
    at = [f.pts * stage.time_base for f in found]
    assert at == [Fraction(n, 60) for n in range(12)]  # 5 frames of 40 ms
    own = [origin(f, frames) for f in found]
    assert own == [0, None, None, None, None, 2, None, 3, None, None, 4, 4]
    assert stage.frame_rate(None) == 60


def test_a_rate_far_above_the_sources_repeats_no_original() -> None:
    frames = clip(4, SMALL)
    stage = FrameInterpolation(InterpolationOptions(fps=Fraction(200), preset="fast"), BASE)
    own = [origin(f, frames) for f in stage(frames)]
    assert own[:24] == [0, *[None] * 7, 1, *[None] * 7, 2, *[None] * 7]


def test_slow_motion_stretches_times() -> None:
    frames = clip(3, SMALL)
    stage = FrameInterpolation(InterpolationOptions(slow=3, preset="fast"), BASE)
    found = list(stage(frames))
    assert stage.time_base == BASE
    assert [f.pts for f in found] == list(range(9))
    assert stage.frame_rate(Fraction(25)) == 25


def test_nothing_is_blended_across_a_cut() -> None:
    frames = clip(8, SMALL, cuts=(4,))
    found = more(frames, factor=4)
    assert [origin(f, frames) for f in found[13:16]] == [3, 3, 4]
    assert origin(found[11], frames) is None
    carried = more(frames, factor=4, cut="extrapolate")[13:16]
    assert all(origin(f, frames) is None for f in carried)
    near = [luma_psnr(f.y, frames[3 if n < 2 else 4].y) for n, f in enumerate(carried)]
    far = [luma_psnr(f.y, frames[4 if n < 2 else 3].y) for n, f in enumerate(carried)]
    assert min(near) > max(far) + 6


def test_repeated_frames_stay_or_are_filled() -> None:
    frames = [shot(20 + 3 * max(0, n - (n > 2)), pts=n) for n in range(7)]  # frame 2 is shown twice
    assert not repeats(frames[1], frames[2])
    assert repeats(frames[2], frames[3])
    kept = [origin(f, frames) for f in more(frames, factor=2)]
    assert kept == [0, None, 1, None, 2, 2, 3, None, 4, None, 5, None, 6, 6]
    filled = more(frames, factor=2, duplicates="fill")
    assert [f.pts for f in filled] == list(range(14))
    assert [origin(f, frames) for f in filled][4:9] == [2, None, None, None, 4]


def test_a_long_still_stays_still() -> None:
    """Motion begins after the last repetition."""
    for repetitions in (4, 5, 9, 10):
        frames = [shot(20 + 3 * max(0, n - repetitions), pts=n) for n in range(repetitions + 3)]
        found = more(frames, factor=2, duplicates="fill")
        still = [luma_psnr(f.y, frames[0].y) > 60 for f in found]
        assert still.index(False) == (1 if repetitions == 4 else 2 * repetitions + 1)


def test_a_pause_is_not_filled_with_motion() -> None:
    frames = [replace(f, pts=f.pts + (30 if f.pts > 2 else 0)) for f in clip(6, SMALL)]
    found = more(frames, factor=2)
    assert [f.pts for f in found][4:7] == [4, 66, 67]
    assert found[4].duration == 62


def test_frames_are_held_while_they_are_needed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def source() -> Any:
        nonlocal given
        for frame in clip(12, SMALL, still=True):
            given += 1
            yield replace(frame, y=np.roll(frame.y, given, axis=1))

    monkeypatch.setattr(sequence, "Interpolator", lambda *a, **k: Interpolator(SMALL, "fast"))
    late = [
        given - n // 2 for n, _ in enumerate(
            FrameInterpolation(InterpolationOptions(factor=2), BASE)(source())
        )
    ]  # fmt: skip
    assert max(late) <= 5


def test_generator_over_video_frames() -> None:
    frames = []
    for n in range(4):
        frame = video_frame(n, 64, 48)
        frame.pts, frame.time_base, frame.duration = n, Fraction(1, 24), 1
        frames.append(frame)
    found = list(vcfilter.interpolate(frames, factor=2, preset="fast"))
    assert [f.pts * f.time_base for f in found] == [Fraction(n, 48) for n in range(8)]
    for n, frame in enumerate(frames):
        assert all(
            np.array_equal(*p) for p in zip(planes(frame), planes(found[2 * n]), strict=True)
        )
    frames[2].pts, frames[2].time_base, frames[2].duration = 200, Fraction(1, 2400), 100
    found = list(vcfilter.interpolate(frames, factor=2, preset="fast"))
    assert [f.pts * f.time_base for f in found] == [Fraction(n, 48) for n in range(8)]
    assert list(vcfilter.interpolate([], factor=2)) == []
    for call, message in (
        (lambda: vcfilter.interpolate(5, factor=2), "frames 5 is not"),
        (lambda: list(vcfilter.interpolate([1], factor=2)), "frame 1 is not an av.VideoFrame"),
        (lambda: vcfilter.interpolate(frames, fps=float("nan")), "rate nan is not a number"),
        (lambda: vcfilter.interpolate(frames, fps="x"), "rate 'x' is not a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(ConfigError, match="not after"):
        list(vcfilter.interpolate([frames[1], frames[0]], factor=2))
    with pytest.raises(ConfigError, match="none is given"):
        vcfilter.interpolate(frames)


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def decoded(path: Path) -> list[list[np.ndarray]]:
    with av.open(str(path)) as container:
        return [planes(f) for f in container.decode(video=0)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_a_file_keeps_audio_length_and_originals(tmp_path: Path, pix_fmt: str) -> None:
    source = make_film(tmp_path / "in.mkv", audio="flac", frames=8, width=66, pix_fmt=pix_fmt)
    target = tmp_path / "out.nut"
    options = InterpolationOptions(factor=2, preset="fast")
    codec = vcfilter.MediaCodec(name="ffv1")
    report = decode_file(source, target, codec=codec, interpolation=options)
    assert (report.frames, report.warnings) == (16, ())
    assert report.seconds == pytest.approx(8 / 24)
    assert times(target) == [Fraction(n, 48) for n in range(16)]
    assert packets(source, "audio") == packets(target, "audio")
    old, new = decoded(source), decoded(target)
    for n, frame in enumerate(old):
        assert all(np.array_equal(*pair) for pair in zip(frame, new[2 * n], strict=True))


def test_slow_motion_leaves_audio_out_and_says_so(tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mkv", audio="flac", frames=4)
    options = InterpolationOptions(slow=2, preset="fast")
    report = decode_file(source, tmp_path / "out.mp4", interpolation=options)
    assert "1 other streams are left out" in report.warnings[0]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [s.type for s in container.streams] == ["video"]
    assert times(tmp_path / "out.mp4") == [Fraction(n, 24) for n in range(8)]


def test_interpolated_frames_are_coded_neurally_in_one_pass(tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mkv", frames=4)
    options = vcfilter.EncoderOptions(preset="ultrafast")
    encode_file(source, tmp_path / "out.mkv", options, interpolation=InterpolationOptions(factor=2))
    with vcfilter.open(tmp_path / "out.mkv") as video:
        assert len(list(video.decode(video=0))) == 8
    with pytest.raises(MediaError, match="nothing to decode"):
        decode_file(source, tmp_path / "b.mp4")


def images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for n in range(count):
        cv2.imwrite(
            str(folder / f"{n + 1:03}.png"),
            np.asarray(video_frame(n, 64, 48).to_rgb().to_ndarray()),
        )
    return sorted(folder.iterdir())


def test_image_files_in_and_out(tmp_path: Path) -> None:
    originals = images(tmp_path / "in [1]", 3)
    pattern = folder_pattern(tmp_path / "in [1]")
    assert files_of(pattern) == originals
    assert files_of(str(tmp_path / "in [1]" / "%03d.png")) == originals
    options = InterpolationOptions(factor=3, preset="fast")
    decode_file(pattern, f"{tmp_path}/out/", interpolation=options, eqvi_names=True)
    names = ["001", "001_0", "001_1", "002", "002_0", "002_1", "003"]
    assert [p.stem for p in sorted((tmp_path / "out").iterdir())] == names
    for each in originals:
        assert (tmp_path / "out" / each.name).read_bytes() == each.read_bytes()
    with pytest.raises(MediaError, match="exists already"):
        decode_file(pattern, tmp_path / "out", interpolation=options, eqvi_names=True)
    with pytest.raises(MediaError, match="source's folder"):
        decode_file(pattern, tmp_path / "in [1]", interpolation=options)
    decode_file(
        pattern, tmp_path / "film.mkv", codec=vcfilter.MediaCodec(name="ffv1"),
        interpolation=options, image_rate=Fraction(15),
    )  # fmt: skip
    assert len(times(tmp_path / "film.mkv")) == 9
    assert times(tmp_path / "film.mkv")[3] == Fraction(67, 1000)


def test_files_of_a_pattern_end_at_a_gap(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "a4.png", "a02.png", "b1.png"):
        (tmp_path / name).touch()
    assert [p.name for p in files_of(str(tmp_path / "a%d.png"))] == ["a1.png", "a2.png"]
    assert [p.name for p in files_of(str(tmp_path / "b*"))] == ["b1.png"]
    (tmp_path / "c.jpg").touch()
    with pytest.raises(MediaError, match="several kinds"):
        folder_pattern(tmp_path)


def run(*arguments: object) -> int:
    return main(["interpolate", *map(str, arguments), "-q"])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_film(tmp_path / "in.mkv", frames=3)
    target = tmp_path / "out.mp4"
    assert run(source, target, "--fps", "48", "--preset", "fast") == 0
    assert len(times(target)) == 6
    assert run(source, tmp_path / "n.mkv", "--factor", "2", "--preset", "ultrafast") == 0
    assert run(tmp_path / "n.mkv", f"{tmp_path}/p/", "--factor", "2", "--preset", "fast") == 0
    assert len(list((tmp_path / "p").iterdir())) == 11
    capsys.readouterr()
    for words, text in (
        (("--factor", 2), "exists already"),
        (("--factor", 9, "-y"), "factor 9 is outside 2 to 8"),
        (("--factor", 2, "-y", "--qp", 30), "need a neural target"),
        (("--factor", 2, "-y", "-c:v", "copy"), "codes nothing"),
        (("--factor", 2, "-y", "--rate", 5), "no pattern of images"),
        (("--factor", 2, "-y", "--names", "eqvi"), "give a folder"),
    ):
        assert run(source, target, *words) != 0
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert run(tmp_path / "none", tmp_path / "x.mp4", "--factor", 2) == 1
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.slow
def test_pipes(tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mkv", frames=5, audio="flac")
    command = [sys.executable, "-m", "vcfilter", "interpolate", "-", "-", "--factor", "2", "-q"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*command, "-f", "nut"],
        input=source.read_bytes(),
        capture_output=True,
        cwd=root,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "out.nut").write_bytes(done.stdout)
    assert len(times(tmp_path / "out.nut")) == 10
    assert len(packets(tmp_path / "out.nut", "audio")) == len(packets(source, "audio"))
