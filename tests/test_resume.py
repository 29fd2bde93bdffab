"""encode --resume: a run that was killed goes on, and ends with the undisturbed run's file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import make_film
from fake_model import FakeModel
from synthetic import clip

import vcfilter
from vcfilter import ConfigError, EncoderOptions, MediaError, encode_file
from vcfilter.bitstream import SequenceHeader, read_packet
from vcfilter.cli.main import main
from vcfilter.codec import Encoder
from vcfilter.codec.executor import ThreadExecutor
from vcfilter.frames import Packet, VideoFormat
from vcfilter.stream.target import Target
from vcfilter.stream.transcode import Interrupted, Progress

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = EncoderOptions(qp=40, preset="ultrafast", keyint=6)
SMALL = VideoFormat(width=64, height=48)

KILLED = """
import os, signal, sys, time
from vcfilter.stream import report, transcode
report._PROGRESS_SECONDS = 0.0
def progress(now):
    if now.frames == int(sys.argv[3]):
        time.sleep(1.5)  # what is finished is flushed
        os.kill(os.getpid(), signal.SIGKILL)
options = transcode.EncoderOptions(qp=40, preset="ultrafast", keyint=6)
transcode.encode_file(sys.argv[1], sys.argv[2], options, progress=progress)
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("resume") / "in.mkv", frames=30, audio="pcm_s16le")


@pytest.fixture(scope="module")
def killed(film: Path) -> bytes:
    """What a killed run left: keyframes 0, 6, 12 and 18."""
    target = film.with_name("killed.mkv")
    done = subprocess.run([sys.executable, "-c", KILLED, film, target, "20"], timeout=60, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    return film.with_name("killed.part.mkv").read_bytes()


def packets(path: Path) -> dict[int, list[tuple[bytes, Any, Any, bool]]]:
    """Of each stream; how those of several are mixed depends on the threads' speed."""
    found: dict[int, list[tuple[bytes, Any, Any, bool]]] = {}
    with vcfilter.open(path) as video:
        for p in video.demux():
            if p.size:
                found.setdefault(p.stream.index, []).append((bytes(p), p.pts, p.dts, p.is_keyframe))
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_run_goes_on_to_the_same_file(
    film: Path, killed: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = encode_file(film, tmp_path / "whole.mkv", OPTIONS)
    target = tmp_path / "o.mkv"
    (tmp_path / "o.part.mkv").write_bytes(killed)
    options = ["--qp", "40", "--preset", "ultrafast", "--keyint", "6", "--progress", "json"]
    assert main(["encode", str(film), str(target), "--resume", *options]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["resumed_frames"] == 18
    assert events[-1]["frames"] == whole.frames == 30
    assert events[-1]["psnr"] is None
    assert names(tmp_path) == ["o.mkv", "whole.mkv"]
    assert packets(target) == packets(tmp_path / "whole.mkv")


@pytest.mark.slow
def test_a_run_that_ctrl_c_stopped_goes_on(film: Path, tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.frames >= 14:
            raise KeyboardInterrupt

    target = tmp_path / "o.nut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vcfilter.stream.report, "_PROGRESS_SECONDS", 0.0)
        with pytest.raises(Interrupted):
            encode_file(film, target, OPTIONS, progress=stop)
        assert names(tmp_path) == ["o.partial.nut"]
        seen: list[Progress] = []
        report = encode_file(film, target, OPTIONS, resume=True, progress=seen.append)
    assert report.resumed > 0
    frames = [now.frames for now in seen]
    assert sorted({*frames}) == [*range(1, 31)]
    assert frames == sorted(frames)
    sizes = [now.video_bytes for now in seen]
    assert sizes == sorted(sizes)
    assert sizes[-1] == report.video_bytes
    assert names(tmp_path) == ["o.nut"]
    encode_file(film, tmp_path / "whole.nut", OPTIONS)
    assert packets(target) == packets(tmp_path / "whole.nut")


def test_a_header_that_matroska_filled_up_is_the_same(film: Path, tmp_path: Path) -> None:
    """It writes an even number of bytes; a header without colours has an odd one."""
    target, left = tmp_path / "o.mkv", tmp_path / "o.part.mkv"
    plain = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"
    encode_file(film, target, OPTIONS, video_filter=plain, duration=0.4)
    whole = packets(target)
    target.rename(left)
    with vcfilter.open(left) as video:
        extradata = video.streams.video[0].info.extradata
    assert len(SequenceHeader.read(extradata).write()) == len(extradata) - 1
    report = encode_file(film, target, OPTIONS, video_filter=plain, duration=0.4, resume=True)
    assert report.resumed == 6
    assert packets(target) == whole


def test_with_nothing_left_it_begins_anew(film: Path, tmp_path: Path) -> None:
    (tmp_path / "o.part.mkv").write_bytes(b"")
    report = encode_file(film, tmp_path / "o.mkv", OPTIONS, resume=True, duration=0.2)
    assert (report.resumed, report.frames) == (0, 5)
    assert not report.warnings  # of a leftover that --resume would go on with
    assert names(tmp_path) == ["o.mkv", "o.part.mkv"]


def test_what_differs_is_said(film: Path, killed: bytes, tmp_path: Path) -> None:
    left, target = tmp_path / "o.part.mkv", tmp_path / "o.mkv"
    left.write_bytes(killed)

    def refused(source: Path, options: EncoderOptions = OPTIONS, **more: Any) -> str:
        with pytest.raises((ConfigError, MediaError)) as error:
            encode_file(source, target, options, resume=True, **more)
        assert names(tmp_path) == ["o.part.mkv"]
        assert left.read_bytes() == killed
        return str(error.value)

    finer = EncoderOptions(qp=30, preset="ultrafast", keyint=6)
    assert "o.part.mkv was coded with qp=40 keyint=6 preset=ultrafast, not with qp=30" in refused(
        film, finer
    )
    assert "start=1/4" in refused(film, start=0.25)
    other = make_film(film.with_name("other.mkv"), frames=30, cut_at=9)
    assert "the source, the settings" in refused(other)
    short = make_film(film.with_name("short.mkv"), frames=10)
    assert "the source ends after 10 frames" in refused(short)
    wide = make_film(film.with_name("wide.mkv"), frames=30, width=80)
    assert "frames of another format" in refused(wide)
    quality = EncoderOptions(quality=35)
    assert "constant qp" in refused(film, quality)
    with pytest.raises(ConfigError, match="not mov"):
        encode_file(film, tmp_path / "o.mov", OPTIONS, resume=True)
    with pytest.raises(ConfigError, match="only a file can be resumed, not standard output"):
        encode_file(film, "-", OPTIONS, resume=True)


def test_a_run_that_goes_on_is_left_alone(film: Path, killed: bytes, tmp_path: Path) -> None:
    running = Target(tmp_path / "o.mkv", overwrite=False)
    running.file.write(killed)
    with pytest.raises(MediaError, match=r"another run is writing .*o\.part\.mkv"):
        encode_file(film, tmp_path / "o.mkv", OPTIONS, resume=True)
    running.discard()


def test_a_run_without_resume_tells_of_it(film: Path, killed: bytes, tmp_path: Path) -> None:
    (tmp_path / "o.part.mkv").write_bytes(killed)
    report = encode_file(film, tmp_path / "o.mkv", OPTIONS, duration=0.2)
    assert any("o.part.mkv is of a run that was stopped" in text for text in report.warnings)
    assert (tmp_path / "o.part.mkv").read_bytes() == killed


@pytest.mark.slow
def test_a_damaged_quality_level_is_coded_again(film: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, layers=2)
    whole = tmp_path / "whole.nut"
    encode_file(film, whole, options)
    data = bytearray(whole.read_bytes())
    video = [packet for packet, *_ in packets(whole)[0]]
    level = read_packet(video[14]).base_size + 3  # within the level of an inter frame
    broken, cut = tmp_path / "broken.nut", tmp_path / "cut.nut"
    key = data.index(video[18]) + read_packet(video[18]).base_size + 3
    cut.with_suffix(".part.nut").write_bytes(data[:key])
    data[data.index(video[14]) + level] ^= 0x10
    broken.with_suffix(".part.nut").write_bytes(data[: len(data) * 9 // 10])
    for target in (broken, cut):
        encode_file(film, target, options, resume=True)
        assert [packet for packet, *_ in packets(target)[0]] == video


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["random-access", "low-delay", "intra"])
@pytest.mark.parametrize("open_gop", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_prefix_gives_the_same_packets(structure: str, open_gop: bool, workers: int) -> None:
    frames = clip(40, SMALL)
    bframes = 3 if structure == "random-access" else None
    options = EncoderOptions(structure=structure, keyint=13, open_gop=open_gop, bframes=bframes)
    model = FakeModel()

    def encode(finished: list[Packet]) -> list[Packet]:
        if not workers:
            encoder = Encoder(SMALL, options, model=model, finished=finished)
            return [p for frame in (*frames, None) for p in encoder.encode(frame)]
        with ThreadExecutor(model, workers) as executor:
            encoder = Encoder(SMALL, options, model=model, finished=finished, executor=executor)
            return [p for frame in (*frames, None) for p in encoder.encode(frame)]

    whole = encode([])
    assert len(whole) == 40
    for count in (1, 5, 13, 14, 15, 30, 39, 40):
        assert encode(whole[:count]) == whole
    broken = [*whole[:26], Packet(data=b"x", pts=whole[26].pts, is_keyframe=True)]
    with pytest.raises(ConfigError, match="frame 26 is coded otherwise"):
        encode(broken)
