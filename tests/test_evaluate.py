"""The evaluation: BD-rates with known answers, clips, anchors, cache, report."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from vcfilter.cli.evaluate import COMMAND
from vcfilter.cli.parser import command_parser
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError, MediaError
from vcfilter.evaluate import interpolation, runner
from vcfilter.evaluate.anchors import encode, parse_anchor
from vcfilter.evaluate.bdrate import bd_rate
from vcfilter.evaluate.clips import Clip, frames_of, planes_of, prepare
from vcfilter.evaluate.interpolation import compare_interpolation, compare_reds, reds_clips
from vcfilter.evaluate.judge import lpips
from vcfilter.evaluate.report import to_png
from vcfilter.evaluate.runner import Neural, cached_point, identity, track_packets
from vcfilter.frames import Frame
from vcfilter.nn.perceptual import StLpips, available

RATES = [100.0, 210.0, 430.0, 900.0]
QUALITIES = [30.0, 33.1, 36.4, 39.2]


def write_clip(
    path: Path, *, frames: int = 9, size: tuple[int, int] = (96, 64), pix_fmt: str = "yuv420p"
) -> Path:
    """A panning pattern with a moving square, losslessly stored."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for n in range(frames):
            wave = 110 + 60 * np.sin((x + 1.5 * n) / 7) + 40 * np.cos(y / 5)
            rgb = np.stack([wave, wave[::-1], 255 - wave], axis=2)
            rgb[20:40, 10 + 3 * n : 30 + 3 * n] = (220, 60, 40)
            picture = VideoFrame.from_ndarray(np.clip(rgb, 0, 255).astype(np.uint8), "rgb24")
            picture = picture.reformat(format=pix_fmt)
            picture.pts = n
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    return prepare(write_clip(folder / "pan.mkv"), folder / "cache")


@pytest.mark.parametrize("factor", [0.9, 0.5, 1.0, 1.25])
def test_bd_rate_of_scaled_rates_is_the_factor(factor: float) -> None:
    result = bd_rate(RATES, QUALITIES, [r * factor for r in RATES], QUALITIES)
    assert result.percent == pytest.approx(100 * (factor - 1))
    assert (result.low, result.high, result.overlap, result.note) == (30, 39.2, 1, "")


def test_bd_rate_of_straight_lines_by_hand() -> None:
    """log10 rate = q / 20 against q / 20 - 0.1: ten to the power of -0.1 everywhere."""
    q = np.array([30.0, 32, 35, 40])
    shifted = np.array([31.0, 33, 36, 41])
    result = bd_rate(10 ** (q / 20), q, 10 ** (shifted / 20 - 0.1), shifted)
    assert result.percent == pytest.approx(100 * (10**-0.1 - 1))
    assert (result.low, result.high) == (31, 40)


def test_bd_rate_does_not_care_about_order_and_turns_around() -> None:
    better = [q + 0.7 for q in QUALITIES]
    one = bd_rate(RATES, QUALITIES, RATES, better)
    two = bd_rate(RATES[::-1], QUALITIES[::-1], RATES[::-1], better[::-1])
    back = bd_rate(RATES, better, RATES, QUALITIES)
    assert one == two
    assert one.percent is not None
    assert back.percent is not None
    assert one.percent < 0
    assert (1 + one.percent / 100) * (1 + back.percent / 100) == pytest.approx(1)


def test_bd_rate_says_when_curves_share_little_or_nothing() -> None:
    little = bd_rate(RATES, QUALITIES, RATES, [q + 7 for q in QUALITIES])
    assert little.percent is not None
    assert little.overlap == pytest.approx(2.2 / 9.2)
    assert "share only 37.0 to 39.2 dB" in little.note
    nothing = bd_rate(RATES, QUALITIES, RATES, [q + 20 for q in QUALITIES])
    assert nothing.percent is None
    assert "share no quality" in nothing.note


def test_bd_rate_leaves_out_points_that_cost_more_for_less() -> None:
    result = bd_rate(RATES, QUALITIES, [*RATES, 1000], [*QUALITIES, 38.0])
    assert result.percent == pytest.approx(0)
    assert "1 points left out" in result.note
    assert "fewer than two" in bd_rate(RATES, QUALITIES, [1, 2], [30, 29]).note


@pytest.mark.parametrize(
    ("rates", "qualities"), [([1.0, 2], [30.0]), ([0.0, 2], [30.0, 31]), ([1.0, 2], [30, math.nan])]
)
def test_bd_rate_refuses_nonsense(rates: list[float], qualities: list[float]) -> None:
    with pytest.raises(ConfigError):
        bd_rate(RATES, QUALITIES, rates, qualities)


def test_bd_rate_is_the_one_of_the_hand_written_interpolation() -> None:
    """Figures of the Fritsch-Carlson code that was here before SciPy's took over."""
    rates, qualities = [90.0, 260, 410, 1000], [30.5, 33.9, 36.1, 40.0]
    result = bd_rate(RATES, QUALITIES, rates, qualities)
    assert result.percent == pytest.approx(-2.4583289497991623, abs=1e-9)
    two = bd_rate(RATES[:2], QUALITIES[:2], rates[:3], qualities[:3])
    assert two.percent == pytest.approx(-8.523843432102561, abs=1e-9)


def test_anchor_texts() -> None:
    anchor = parse_anchor("libx264:slow:tune=psnr:crf=20/26.5")
    assert (anchor.label, anchor.crf) == ("libx264 slow tune=psnr", (20, 26.5))
    assert parse_anchor("libsvtav1").label == "libsvtav1 8"
    for text in ("libx266", "libx264:99", "libx264:slow:tune", "libx264:crf=a/b"):
        with pytest.raises(ConfigError):
            parse_anchor(text)


def test_prepare_keeps_planes_and_counts_frames(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", size=(97, 65))
    clip = prepare(source, tmp_path / "cache", frames=4)
    assert (clip.width, clip.height, clip.frames, clip.bit_depth) == (97, 65, 4, 8)
    assert clip == prepare(source, tmp_path / "cache", frames=4)
    assert clip.key != prepare(source, tmp_path / "cache").key
    card = tmp_path / "cache" / "clips" / f"{clip.key}.json"
    for damage in ("", "[]", "{}", card.read_text()[:-9]):
        card.write_text(damage)
        assert clip == prepare(source, tmp_path / "cache", frames=4)
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    for a, b in zip(frames_of(source, limit=4), frames_of(clip.path), strict=True):
        for p, q in zip(planes_of(a).planes, planes_of(b).planes, strict=True):
            assert np.array_equal(p, q)
    assert planes_of(a).u.shape == (33, 49)


@pytest.mark.parametrize(
    ("pix_fmt", "depth", "converted"),
    [("yuv420p10le", 10, ""), ("yuv444p", 8, "yuv444p"), ("yuv422p10le", 10, "yuv422p10le")],
)
def test_prepare_other_formats(tmp_path: Path, pix_fmt: str, depth: int, converted: str) -> None:
    source = write_clip(tmp_path / "a.mkv", frames=2, pix_fmt=pix_fmt)
    clip = prepare(source, tmp_path / "cache")
    assert (clip.bit_depth, clip.converted_from) == (depth, converted)
    planes = planes_of(next(frames_of(clip.path)))
    assert planes.y.dtype == (np.uint16 if depth == 10 else np.uint8)
    assert planes.y.max() < 1 << depth


def test_prepare_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(MediaError, match="cannot be read"):
        prepare(tmp_path / "missing.mkv", tmp_path)
    with pytest.raises(MediaError):
        prepare(tmp_path / "text.mkv", tmp_path)


@pytest.mark.parametrize("name", ["libx264:ultrafast", "libx265:ultrafast", "libsvtav1:12"])
@pytest.mark.parametrize("keyint", [1, 4])
def test_anchors_write_real_files_at_the_interval(
    clip: Clip, tmp_path: Path, name: str, keyint: int
) -> None:
    target = tmp_path / "out.mkv"
    seconds = encode(clip, parse_anchor(name), 30, keyint, target)
    size, packets, keys = track_packets(target)
    assert seconds > 0
    assert packets == clip.frames
    assert keys == clip.frames if keyint == 1 else 3 <= keys <= 4  # 0, 4, 8, and scene cuts
    assert 0 < size < target.stat().st_size
    assert b"x264 - core" not in target.read_bytes()


def test_cache_measures_once_and_survives_damage(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor = parse_anchor("libx264:ultrafast:crf=30")
    known = identity(anchor)
    first, hit = cached_point(clip, anchor, known, 30, 4, tmp_path)
    assert not hit
    assert 25 < first.psnr < 60
    assert 0.5 < first.ms_ssim <= 1
    assert first.bytes == track_packets(Path(first.stream))[0]
    assert first.kbps == pytest.approx(first.bytes * 8 / (9 / 25) / 1000)
    again, hit = cached_point(clip, anchor, known, 30, 4, tmp_path)
    assert hit
    assert again == first
    assert not cached_point(clip, anchor, known, 31, 4, tmp_path)[1]
    assert not cached_point(clip, anchor, known | {"av": "0"}, 30, 4, tmp_path)[1]
    for record in tmp_path.glob("points/*.json"):
        record.write_text("{")
    assert not cached_point(clip, anchor, known, 30, 4, tmp_path)[1]
    assert not list(tmp_path.glob("points/*.part*"))


def test_vcfilter_itself_is_measured_alike(clip: Clip, tmp_path: Path) -> None:
    neural = Neural(preset="ultrafast", qps=(26, 44))
    known = identity(neural)
    fine, hit = cached_point(clip, neural, known, 26, 4, tmp_path)
    coarse = cached_point(clip, neural, known, 44, 4, tmp_path)[0]
    assert not hit
    assert fine.bytes > coarse.bytes > 12 * clip.frames
    assert fine.psnr > coarse.psnr > 15
    assert 3 <= fine.keyframes <= 4  # 0, 4, 8, and scene cuts
    assert cached_point(clip, neural, known, 26, 4, tmp_path) == (fine, True)
    alone = cached_point(clip, neural, known, 26, 1, tmp_path)[0]
    assert alone.keyframes == clip.frames


def test_lost_frames_are_noticed(clip: Clip) -> None:
    frames = [planes_of(p) for p in frames_of(clip.path)]
    assert runner.compare(clip, iter(frames))[:4] == (100, 100, 100, 100)
    with pytest.raises(MediaError, match="another number"):
        runner.compare(clip, iter(frames[:-1]))


def test_png_keeps_the_picture() -> None:
    grey = Frame(
        y=np.full((33, 35), 126, np.uint8),
        u=np.full((17, 18), 128, np.uint8),
        v=np.full((17, 18), 128, np.uint8),
        pts=0,
    )
    data = to_png(grey, VideoFrame(35, 33, "yuv420p"))
    assert data.startswith(b"\x89PNG")
    context = av.CodecContext.create("png", "r")
    (picture,) = context.decode(av.Packet(data))
    assert picture.to_ndarray(format="rgb24").shape == (33, 35, 3)
    assert np.ptp(picture.to_ndarray(format="rgb24")) <= 1


def evaluate(*args: str) -> int:
    quiet = "--quiet" in args
    return COMMAND.run(command_parser(COMMAND).parse(args), Terminal(quiet=quiet))


@pytest.mark.slow
def test_report_of_two_anchors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_clip(tmp_path / "pan.mkv", size=(192, 176)))
    against = "libx264:ultrafast:crf=20/26/32/38,libx264:medium:crf=20/26/32/38"
    arguments = [source, "--anchors-only", "--intra", "--keyint", "6", "--against", against]
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert evaluate(*arguments, *folders) == 0
    shown = capsys.readouterr()
    assert "keyframe interval 6, PSNR 6:1:1, against libx264 ultrafast" in shown.out
    assert shown.err.count("\n") == 16
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results["curves"]) == 4
    assert results["bd_rates"][0]["rows"][0][1][0]["percent"] < 0  # medium beats ultrafast
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    if list((tmp_path / "out/curves").iterdir()):
        assert (tmp_path / "out/curves/pan_keyint6.svg").read_text().startswith("<?xml")

    monkeypatch.setattr("vcfilter.evaluate.report.have_matplotlib", lambda: False)
    assert evaluate(*arguments, *folders, "--quiet") == 0
    shown = capsys.readouterr()
    assert "matplotlib is not installed" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keyint", "0"],
        ["--frames", "0"],
        ["--threads", "-1"],
        ["--preset", "warp"],
        ["--against", "mpeg2"],
        ["--anchors-only", "--against", ""],
    ],
)
def test_options_out_of_range_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises((ConfigError, SystemExit)):
        evaluate("clip.mkv", "--cache", str(tmp_path), *arguments)


def test_names_are_escaped_in_the_report(tmp_path: Path) -> None:
    source = str(write_clip(tmp_path / "a<b>&'\".mkv", size=(192, 176), frames=3))
    arguments = ["--anchors-only", "--against", "libx264:ultrafast:crf=26/32", "--quiet"]
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert evaluate(source, *arguments, *folders) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "a&lt;b&gt;&amp;&#39;&#34;" in page
    assert "<b>" not in page


def test_interpolation_is_measured_on_frames_that_are_left_out(tmp_path: Path) -> None:
    clips = [
        write_clip(tmp_path / "pan.mkv", frames=13),
        write_clip(tmp_path / "few.mkv", frames=3),
    ]
    lines: list[str] = []
    text = compare_interpolation(
        clips, tmp_path / "cache", tmp_path / "out", preset="fast", report=lines.append
    )
    assert text.splitlines()[0].split() == [
        "PSNR", "Y", "/", "SSIM", "linear", "quadratic", "trained", "minterpolate",
    ]  # fmt: skip
    assert [line.split(":")[0] for line in lines] == ["pan", "few"]
    found = json.loads((tmp_path / "out" / "interpolation.json").read_text())["scores"]
    scores = {(s["clip"], s["method"]): s for s in found}
    assert scores["pan", "quadratic"]["frames"] == 4  # of five intervals the inner ones
    assert scores["pan", "quadratic"]["psnr"] > 32
    assert scores["pan", "minterpolate"]["psnr"] > 20
    assert scores["pan", "trained"]["psnr"] is None  # "fast" does without
    assert 0.8 < scores["pan", "quadratic"]["gradient"] < 1.1
    assert scores["few", "quadratic"]["psnr"] == scores["few", "linear"]["psnr"]
    with pytest.raises(MediaError, match="too few"):
        compare_interpolation([clips[1]], tmp_path / "cache", tmp_path / "out", factor=8)


RIFE = """#!{python}
import sys
import cv2
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
time = float(words.get("-s", 0.5))
a, b = (cv2.imread(words[name]) for name in ("-0", "-1"))
cv2.imwrite(words["-o"], cv2.addWeighted(a, 1 - time, b, time, 0))
"""


def test_interpolation_beside_a_program_like_rife(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "pan.mkv", frames=13)
    program = tmp_path / "rife"
    program.write_text(RIFE.format(python=sys.executable))
    program.chmod(0o755)
    text = compare_interpolation(
        [clip], tmp_path / "cache", tmp_path / "out", factor=4, preset="fast", rife=str(program)
    )
    assert text.splitlines()[0].split()[-1] == "RIFE"
    found = json.loads((tmp_path / "out" / "interpolation.json").read_text())["scores"]
    scores = {s["method"]: s for s in found}
    assert scores["RIFE"]["frames"] == 3
    # A frame of a still pair comes back as it was, but for RGB in between.
    frames = list(frames_of(prepare(clip, tmp_path / "cache").path))
    made = interpolation._rife(str(program), frames[:1] * 3, [0], 2)
    assert np.abs(made[1].y.astype(int) - planes_of(frames[0]).y).max() <= 3
    if available():
        assert all(0 < scores[method]["lpips"] < 1 for method in ("quadratic", "RIFE"))
        assert lpips(StLpips("alex"), frames[:1], [[planes_of(frames[0])]]) == [0]
    else:
        assert scores["RIFE"]["lpips"] is None
        assert "extra train-perceptual" in text


def test_a_program_like_rife_that_fails(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "pan.mkv", frames=9)
    folders = tmp_path / "cache", tmp_path / "out"
    with pytest.raises(MediaError, match="cannot be started: No such file"):
        compare_interpolation([clip], *folders, preset="fast", rife=str(tmp_path / "none"))
    program = tmp_path / "rife"
    program.write_text("#!/bin/sh\necho no model >&2\n")
    program.chmod(0o755)
    with pytest.raises(MediaError, match="made no image: no model"):
        compare_interpolation([clip], *folders, preset="fast", rife=str(program))


def test_reds_in_its_own_layout(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not laid out as REDS_VTSR"):
        compare_reds(tmp_path)
    y, x = np.mgrid[0:48, 0:64]
    for clip in ("002", "003"):
        for folder, step in (("val_15fps", 8), ("val_30fps", 4)):
            place = tmp_path / folder / clip
            place.mkdir(parents=True)
            for number in range(0, 25, step):
                wave = 120 + 50 * np.sin((x + number / 2) / 5) + 30 * np.cos(y / 4)
                rgb = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
                frame = VideoFrame.from_ndarray(rgb, "rgb24")
                codec = av.CodecContext.create("png", "w")
                codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "rgb24", 1
                data = b"".join(bytes(p) for p in [*codec.encode(frame), *codec.encode(None)])
                (place / f"{number:08}.png").write_bytes(data)
    assert reds_clips(tmp_path, 2) == ["002", "003"]
    text = compare_reds(tmp_path, preset="fast")
    head, row = text.splitlines()
    assert "(2 clips)" in head
    assert "(1 clips)" in head
    psnr, similarity = map(float, row.split()[-1].split("/"))
    assert psnr > 28
    assert 0.9 < similarity <= 1
    (tmp_path / "val_30fps" / "002" / "00000004.png").unlink()
    with pytest.raises(MediaError, match="00000004"):
        compare_reds(tmp_path, preset="fast")
