"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from clips import make_film

from vcfilter.cli.main import main
from vcfilter.cli.terminal import Terminal, size_text, time_text

ROOT = Path(__file__).resolve().parent.parent
FAST = ["--preset", "ultrafast", "--qp", "30"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("cli") / "film.mkv", frames=8, audio="aac")


@pytest.fixture(scope="module")
def neural(film: Path) -> Path:
    assert main(["encode", str(film), str(film.with_name("neural.mkv")), "-q", *FAST]) == 0
    return film.with_name("neural.mkv")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vcfilter", *map(str, arguments)]


def test_info_tells_of_the_model(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model"]) == 0
    out, _ = capfd.readouterr()
    assert "licence: MIT" in out
    assert "inter" in out
    assert main(["info", "--model", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["card"]["licence"] == "MIT"
    assert 0 < found["kmac_per_pixel"]["inter"]["total"] <= 20


def test_encode_info_verify_decode(
    film: Path, neural: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", str(film), str(tmp_path / "n.mkv"), "-t", "0.2", *FAST]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "5 frames" in err
    assert "PSNR" in err

    assert main(["info", str(neural)]) == 0
    out, _ = capfd.readouterr()
    assert "64x48, 4:2:0 8 bit, BT.709, limited range, 24 frames/s; 8 packets" in out
    assert "audio aac, 48000 Hz, 2 channels" in out

    assert main(["info", "--json", "--frames", str(neural)]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["streams"][0]["segments"] == [8]
    assert [frame["kind"] for frame in found["streams"][0]["frames"]] == ["key"] + ["inter"] * 7

    assert main(["verify", str(neural)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "good: 8 packets (1 keyframes), 8 frames decoded" in err

    target = tmp_path / "back.mp4"
    assert main(["decode", str(neural), str(target), "-q", "-c:v", "libx264", "--crf", "20"]) == 0
    assert capfd.readouterr() == ("", "")
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == 1
        assert len(list(container.decode(video=0))) == 8


def test_transcode_chooses_by_the_target(neural: Path, tmp_path: Path) -> None:
    assert main(["transcode", str(neural), str(tmp_path / "a.mp4"), "-q", "-map", "v"]) == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert main(["transcode", str(neural), str(tmp_path / "b.mkv"), "-q", *FAST]) == 0
    assert main(["verify", "-q", str(tmp_path / "b.mkv")]) == 0


@pytest.mark.slow
def test_pipes(neural: Path, film: Path, tmp_path: Path) -> None:
    y4m = subprocess.run(command("decode", neural, "-"), capture_output=True, check=True).stdout
    assert y4m.startswith(b"YUV4MPEG2 W64 H48 F24:1 ")
    assert len(y4m) == y4m.index(b"\n") + 1 + 8 * (6 + 64 * 48 * 3 // 2)
    nut = subprocess.run(
        command("decode", neural, "-", "-f", "nut"), capture_output=True, check=True
    ).stdout
    (tmp_path / "a.nut").write_bytes(nut)
    with av.open(str(tmp_path / "a.nut")) as container:
        assert container.streams.video[0].codec_context.name == "rawvideo"
        assert len(container.streams.audio) == 1
        assert len(list(container.decode(video=0))) == 8
    coded = subprocess.run(
        command("encode", "-", "-", *FAST), input=film.read_bytes(), capture_output=True, check=True
    ).stdout
    (tmp_path / "piped.mkv").write_bytes(coded)
    assert main(["verify", "-q", str(tmp_path / "piped.mkv")]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["encode", "FILM", "OUT", "--qp", "99"], 2, "qp 99 is outside 0 to 63"),
        (["encode", "FILM", "OUT", "--qp", "9", "--bitrate", "1M"], 2, "exclude each other"),
        (["encode", "FILM", "OUT", "--bitrate", "fast"], 2, "no bitrate like"),
        (["encode", "FILM", "OUT", "--two-pass"], 2, "need a bitrate"),
        (["encode", "FILM", "OUT", "-map", "z"], 2, "not understood"),
        (["encode", "FILM", "OUT", "-ss", "x"], 2, "no time like"),
        (["encode", "FILM", "OUT", "-ss", "100"], 1, "is over before 100 s"),
        (["encode", "FILM", "OUT", "--weights", "/none"], 1, "/none"),
        (["encode", "FILM", "OUT.mp4"], 2, "cannot hold a neural stream"),
        (["encode", "FILM", "OUT.what"], 2, "no container that is known"),
        (["encode", "/none.mp4", "OUT"], 1, "No such file"),
        (["encode", "FILM", "/none/out.mkv"], 1, "no folder"),
        (["encode", "FILM", "NEURAL"], 1, "exists already: give -y"),
        (["encode", "FILM", "FILM", "-y"], 1, "is the source"),
        (["encode", "FILM"], 2, "required: TARGET"),
        (["decode", "FILM", "OUT"], 1, "no neural video stream"),
        (["decode", "NEURAL", "OUT", "-c:v", "nocodec"], 2, "encoder 'nocodec' is unknown"),
        (["decode", "NEURAL", "OUT", "-c:v", "aac"], 2, "codes audio"),
        (["decode", "NEURAL", "OUT", "-c:v", "libx264", "--pix-fmt", "no"], 2, "libx264 refuses"),
        (["decode", "NEURAL", "OUT", "--crf", "20"], 2, "give -c:v too"),
        (["verify", "FILM"], 1, "no neural video stream"),
        (["info"], 2, "needs a FILE"),
        (["frobnicate"], 2, "invalid choice"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    status: int,
    message: str,
    film: Path,
    neural: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = {"FILM": str(film), "NEURAL": str(neural), "OUT": str(tmp_path / "out.mkv")}
    names |= {f"OUT{ext}": str(tmp_path / f"out{ext}") for ext in (".mp4", ".what")}
    before = neural.read_bytes()
    try:
        got = main([names.get(each, each) for each in arguments])
    except SystemExit as stop:
        got = int(stop.code or 0)
    out, err = capfd.readouterr()
    assert got == status
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert neural.read_bytes() == before


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("encode", "decode", "transcode", "info", "verify", "evaluate", "demo"):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: vcfilter {name}" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_leaves_nothing_hidden(tmp_path: Path, number: int) -> None:
    film = make_film(tmp_path / "long.mkv", frames=600, width=96, height=64)
    target = tmp_path / "out.mkv"
    run = subprocess.Popen(
        command("encode", film, target, "--preset", "veryslow"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    os.kill(run.pid, number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("vcfilter: stopped")
    assert {path.name for path in tmp_path.iterdir()} <= {"long.mkv", "out.partial.mkv"}


def test_ctrl_c_that_a_library_takes_for_a_fault_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("initialisation failed") from None

    monkeypatch.setattr("vcfilter.cli.main._parser", load)
    assert main(["info", "film.mkv"]) == 130
    assert capsys.readouterr().err.strip() == "vcfilter: stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_reader_that_leaves_is_no_error_text(neural: Path) -> None:
    run = subprocess.Popen(
        command("decode", neural, "-", "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert b"Traceback" not in run.stderr.read()
    assert run.wait(60) == 1


def test_texts() -> None:
    assert [size_text(n) for n in (12, 1234, 123_456, 12_345_678, 3e9)] == [
        "12 B",
        "1.2 kB",
        "123 kB",
        "12.3 MB",
        "3.00 GB",
    ]
    assert [time_text(n) for n in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
    Terminal(quiet=True).line("not shown")


def test_an_option_that_the_encoder_lacks_is_an_error(
    neural: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mkv"
    chosen = ["-c:v", "ffv1", "--set", "level=3", "--set", "colour=blue"]
    assert main(["decode", str(neural), str(target), *chosen]) == 2
    assert "encoder ffv1 has no option colour" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
