"""How many processes code a film: cores, memory, and films that need one alone."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from clips import make_film

from vcfilter.bitstream import FrameHeader
from vcfilter.cli.main import main
from vcfilter.codec import FrameRecord, capacity, fitting_processes
from vcfilter.codec.capacity import available_memory, usable_cores
from vcfilter.errors import ConfigError
from vcfilter.frames import FrameStep, FrameType, VideoFormat
from vcfilter.options import EncoderOptions
from vcfilter.stream import transcode
from vcfilter.stream.report import Progress, ProgressMeter
from vcfilter.stream.transcode import encode_file

GIB = 1 << 30
CIF = VideoFormat(width=352, height=288)
HD = VideoFormat(width=1920, height=1080)
FAST = EncoderOptions(qp=30, preset="ultrafast", keyint=5)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """16 cores and 64 GiB."""
    monkeypatch.setattr(capacity, "usable_cores", lambda: 16)
    monkeypatch.setattr(capacity, "available_memory", lambda: 64 * GIB)
    return monkeypatch


def test_processes_are_as_many_as_cores_where_memory_allows(machine: pytest.MonkeyPatch) -> None:
    assert fitting_processes(CIF, 250) == 16
    assert fitting_processes(HD, 24) == 16
    assert fitting_processes(HD, 250) == 9  # (32 - 2.2) / (0.4 + 1.2 + 1.4)
    ten_bits = VideoFormat(width=1920, height=1080, bit_depth=10)
    assert fitting_processes(ten_bits, 250) == 6
    machine.setattr(capacity, "available_memory", lambda: 2 * GIB)
    assert fitting_processes(CIF, 250) == 1
    machine.setattr(capacity, "available_memory", lambda: 0)
    assert fitting_processes(HD, 250) == 1


def test_the_machine_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= physical
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(capacity, "_MEMORY_LIMITS", (str(limit), str(tmp_path / "none")))
    free = available_memory()
    limit.write_text("max\n")
    assert available_memory() == pytest.approx(free, rel=0.2)
    limit.write_text("1048576\n")
    assert available_memory() == 1048576


def processes_of(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    frames: int,
    **options: object,
) -> tuple[list[int], list[str]]:
    """(numbers of processes that an executor was made for, what the log says of them)."""
    made: list[int] = []

    class Noting(transcode.ProcessExecutor):
        def __init__(self, load: object, workers: int) -> None:
            made.append(workers)
            raise ConfigError("far enough")

    monkeypatch.setattr(transcode, "ProcessExecutor", Noting)
    source = make_film(tmp_path / "film.mkv", frames=frames)
    caplog.clear()
    with caplog.at_level(logging.INFO, "vcfilter"):
        try:
            encode_file(
                source, tmp_path / "out.mkv", FAST, overwrite=True, workers="auto", **options
            )
        except ConfigError as error:
            assert str(error) == "far enough"
    return made, [text for text in caplog.messages if "process" in text]


def test_auto_takes_as_many_processes_as_fit(
    machine: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    alone = ["all GOPs are coded in this process"]
    found = processes_of(caplog, machine, tmp_path, 6)
    assert found == ([16], ["GOPs are coded in 16 processes"])
    assert processes_of(caplog, machine, tmp_path, 5) == ([], alone)  # one GOP
    machine.setattr(capacity, "usable_cores", lambda: 1)
    assert processes_of(caplog, machine, tmp_path, 6) == ([], alone)


def test_workers_are_a_number_or_auto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(make_film(tmp_path / "film.mkv", frames=1)), str(tmp_path / "out.mkv")
    with pytest.raises(SystemExit):
        main(["encode", source, target, "--workers", "none"])
    said = capsys.readouterr().err
    assert said == (
        "vcfilter encode: argument --workers: 'none' is no whole number, and not auto (see "
        "vcfilter encode --help)\n"
    )
    assert main(["encode", source, target, "--workers", "auto", "--bitrate", "100k"]) == 2
    assert "workers code at a constant qp or crf only: give no bitrate" in capsys.readouterr().err
    assert main(["transcode", source, str(tmp_path / "out.mp4"), "--workers", "2"]) == 2
    assert "workers and a cluster code neurally" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="workers 'all' is not a whole number or 'auto'"):
        encode_file(source, target, workers="all")  # type: ignore[arg-type]
    assert not Path(target).exists()


def test_frames_of_several_gops_are_counted_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcfilter.stream.report._PROGRESS_SECONDS", 0.0)
    seen: list[Progress] = []
    written = 0
    meter = ProgressMeter(seen.append, 0.0)
    meter.begin("", lambda: written)

    def record(pts: int, key: bool) -> FrameRecord:
        step = FrameStep(type=FrameType.KEY, qp=30)
        if not key:
            step = FrameStep(type=FrameType.INTER, qp=30, layer=1, number=1, references=(-1,))
        return FrameRecord(pts=pts, header=FrameHeader(step=step), size=100, psnr=40.0)

    for n in range(6):
        meter.read((n + 1) / 10)
    for pts, key in ((-3, True), (0, True), (-2, False), (1, False), (2, False)):
        meter.coded(record(pts, key))
    written = 600
    meter.coded(record(-1, False))
    meter.end()
    assert [each.frames for each in seen] == [1, 2, 3, 4, 5, 6, 6]
    assert [each.video_bytes for each in seen] == [100, 200, 300, 400, 500, 600, 600]
    assert [each.gop for each in seen] == [1, 2, 1, 2, 2, 1, 1]
    assert seen[2].seconds == pytest.approx(0.3)
    assert seen[2].bitrate == pytest.approx(8000)


@pytest.mark.slow
def test_progress_moves_while_gops_are_coded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames are told one by one, of both workers, and a film of one GOP needs one process."""
    source = make_film(tmp_path / "film.mkv", frames=24, width=176, height=144)
    seen: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vcfilter.stream.report._PROGRESS_SECONDS", 0.0)
        options = EncoderOptions(qp=30, preset="veryslow", keyint=12, scenecut=False)
        encode_file(source, tmp_path / "o.mkv", options, workers=2, progress=seen.append)
    frames = [each.frames for each in seen]
    assert frames == [*range(1, 25), 24]
    moments = {each.elapsed_seconds for each in seen}
    assert len({round(moment, 2) for moment in moments}) > 4  # two GOPs alone would be two or three
    sizes = [each.video_bytes for each in seen]
    assert sizes == sorted(sizes)
