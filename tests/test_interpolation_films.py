"""Interpolation of real films: HDR10, rotation, fields, subtitles; resumed folders, progress."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import make_film, planes, times, video_frame

from vcfilter import MediaCodec
from vcfilter._bridge import Demuxer, Muxer
from vcfilter.cli.main import main
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import ContentLight, FieldOrder, MasteringDisplay
from vcfilter.interpolation import interpolator
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import EncoderOptions
from vcfilter.stream.hdr import read_hdr
from vcfilter.stream.report import Progress
from vcfilter.stream.transcode import decode_file, encode_file

TWICE = InterpolationOptions(factor=2, preset="fast")
LOSSLESS = MediaCodec(name="ffv1")
HDR10 = (
    MasteringDisplay(
        primaries=((34000, 16000), (13250, 34500), (7500, 3000)),
        white_point=(15635, 16450),
        luminance=(50, 10_000_000),
    ),
    ContentLight(max_content=1000, max_average=400),
)
SUBTITLES = """1
00:00:00,050 --> 00:00:00,150
Where is it?

2
00:00:00,160 --> 00:00:00,200
Über hier.
"""


def frames_of(path: Path) -> list[list[np.ndarray]]:
    with av.open(str(path)) as container:
        return [planes(frame) for frame in container.decode(video=0)]


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (p.pts * p.time_base, p.duration * p.time_base, bytes(p))
            for p in container.demux(stream)
            if p.size and p.pts is not None
        ]


def coded_film(path: Path, codec: str, pix_fmt: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.options = options
        for index in range(4):
            frame = video_frame(index, 64, 48, pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same_originals(source: Path, target: Path, turns: int = 0) -> None:
    """Every other frame is the source's, turned by quarters anticlockwise."""
    old, new = frames_of(source), frames_of(target)
    assert len(new) == 2 * len(old)
    for n, frame in enumerate(old):
        for a, b in zip(frame, new[2 * n], strict=True):
            np.testing.assert_array_equal(np.rot90(a, turns), b)


def test_hdr10_keeps_depth_colours_and_side_data(tmp_path: Path) -> None:
    params = (
        "log-level=error:master-display=G(13250,34500)B(7500,3000)R(34000,16000)"
        "WP(15635,16450)L(10000000,50):max-cll=1000,400:colorprim=9:transfer=16:colormatrix=9"
    )
    source = coded_film(tmp_path / "in.mp4", "libx265", "yuv420p10le", {"x265-params": params})
    for codec in ("libx265", "ffv1"):
        target = tmp_path / f"{codec}.mkv"
        decode_file(source, target, codec=MediaCodec.named(codec), interpolation=TWICE)
        with Demuxer(source) as old, Demuxer(target) as new:
            a, b = old.streams[0], new.streams[0]
            assert (a.color_primaries, a.color_trc, a.colorspace) == (9, 16, 9)
            assert (b.color_primaries, b.color_trc, b.colorspace) == (9, 16, 9)
            if codec == "libx265":
                assert read_hdr(b.side_data) == HDR10
    same_originals(source, tmp_path / "ffv1.mkv")
    encode_file(source, tmp_path / "n.mkv", EncoderOptions(preset="ultrafast"), interpolation=TWICE)
    with Demuxer(tmp_path / "n.mkv") as demuxer:
        assert read_hdr(demuxer.streams[0].side_data) == HDR10
        assert sum(1 for _ in demuxer) == 8


def test_rotation_and_subtitles_go_along(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mkv", frames=5, audio="flac")
    words = tmp_path / "words.srt"
    words.write_text(SUBTITLES, encoding="utf-8")
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    with Demuxer(film) as pictures, Demuxer(words) as text, Muxer(source) as muxer:
        muxer.add_stream(replace(pictures.streams[0], rotation=90))
        muxer.add_stream(pictures.streams[1])
        index = muxer.add_stream(text.streams[0])
        muxer.write_header()
        coming = [*pictures, *(replace(p, stream_index=index) for p in text)]
        for packet in sorted(coming, key=lambda p: (p.dts or 0) * p.time_base):
            muxer.write_packet(packet)
    report = decode_file(source, target, codec=LOSSLESS, interpolation=TWICE)
    assert report.warnings == ()
    with Demuxer(target) as demuxer:
        assert [s.kind for s in demuxer.streams] == ["video", "audio", "subtitle"]
        shown = demuxer.streams[0]
        assert (shown.rotation, shown.width, shown.height) == (0, 48, 64)
    assert len(packets_of(target, "subtitles")) == 2
    for kind in ("audio", "subtitles"):
        assert packets_of(source, kind) == packets_of(target, kind)
    same_originals(source, target, turns=-1)
    last = times(target)[-1]
    assert last == pytest.approx(9 / 48, abs=1e-3)
    assert report.seconds == pytest.approx(5 / 24, abs=2e-3)


def test_fields_are_told_and_can_be_removed_before(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    source = coded_film(tmp_path / "in.mp4", "libx264", "yuv420p", options)
    report = decode_file(source, tmp_path / "a.nut", codec=LOSSLESS, interpolation=TWICE)
    assert report.video_format.field_order is FieldOrder.TOP_FIRST
    assert any("interlaced and interpolated as whole ones" in text for text in report.warnings)
    report = decode_file(
        source, tmp_path / "b.nut", codec=LOSSLESS, interpolation=TWICE, video_filter="bwdif=0"
    )
    assert report.video_format.field_order <= FieldOrder.PROGRESSIVE
    assert report.warnings == ()
    for name in ("a.nut", "b.nut"):
        assert times(tmp_path / name) == [Fraction(n, 50) for n in range(8)]


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for n in range(count):
        image = np.asarray(video_frame(n, 64, 48).to_rgb().to_ndarray())
        cv2.imwrite(str(folder / f"{n:03}.png"), image)
    return folder


def test_a_folder_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pictures(tmp_path / "in", 5), tmp_path / "out"
    command = ["interpolate", str(source), f"{target}/", "--factor", "2", "--preset", "fast", "-q"]
    assert main(command) == 0
    whole = {path.name: path.read_bytes() for path in target.iterdir()}
    assert len(whole) == 9
    for name in ("000007.png", "000008.png"):
        (target / name).unlink()
    cut = target / "000005.png"
    cut.write_bytes(whole[cut.name][:-9])
    kept = (target / "000003.png").stat().st_mtime_ns
    made: list[Fraction] = []
    between = interpolator.Interpolator.between

    def counted(self: interpolator.Interpolator, *args: object) -> object:
        made.extend(args[4])  # type: ignore[call-overload]
        return between(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(interpolator.Interpolator, "between", counted)
    assert main([*command, "--resume"]) == 0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == whole
    assert made == [Fraction(1, 2)] * 2
    assert (target / "000003.png").stat().st_mtime_ns == kept
    assert main(command) == 1  # without --resume nothing is overwritten


def test_another_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = pictures(tmp_path / "in", 3), tmp_path / "out"
    command = ["interpolate", str(source), f"{target}/", "--preset", "fast", "-q", "--factor"]
    assert main([*command, "2"]) == 0
    assert main([*command, "3", "--resume"]) == 1
    error = capsys.readouterr().err
    assert "another source or factor" in error
    assert error.count("\n") == 1
    film = make_film(tmp_path / "in.mkv", frames=2)
    assert main(["interpolate", str(film), str(tmp_path / "o.mkv"), "--factor", "2", "--resume"])
    assert "a folder of PNG files" in capsys.readouterr().err
    assert not (tmp_path / "o.mkv").exists()
    with pytest.raises(ConfigError, match="no folder of image files"):
        decode_file(film, tmp_path / "o.mp4", interpolation=TWICE, resume=True)
    with pytest.raises(MediaError, match="exists already"):
        decode_file(str(source / "%03d.png"), f"{target}{os.sep}", interpolation=TWICE)


def test_progress_ends_at_the_number_of_frames(tmp_path: Path) -> None:
    """A variable rate: the average that the file states is of no use for the first frames."""
    ticks = [0, 10, 20, 30, 700, 1400, 2100]
    base = Fraction(1, 1000)
    source = make_film(tmp_path / "in.mkv", frames=7, ticks=ticks, time_base=base, rate=1000)
    found: list[Progress] = []
    report = decode_file(
        source, tmp_path / "o.nut", codec=LOSSLESS, interpolation=TWICE, progress=found.append
    )
    assert found[-1].frames == found[-1].total_frames == report.frames
    slow = InterpolationOptions(slow=2, preset="fast")
    found.clear()
    decode_file(source, tmp_path / "s.nut", interpolation=slow, progress=found.append)
    assert all(p.seconds <= (p.total_seconds or 0) + 0.1 for p in found)
