"""The examples run, as a user would run them."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import av
import pytest
from clips import make_film

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, *arguments: object) -> str:
    """What an example prints to standard output."""
    output = io.StringIO()
    command = [name, *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", command)
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    return output.getvalue()


@pytest.fixture(scope="module")
def neural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    film = make_film(folder / "film.mkv", frames=10, audio="aac")
    assert "10 frames" in run("encode_file.py", film, folder / "neural.mkv", 30)
    return folder / "neural.mkv"


def test_decode_frames(neural: Path) -> None:
    lines = run("decode_frames.py", neural, 0.21).splitlines()
    assert lines[0] == "64x48 yuv420p, 24 frames/s"
    assert len(lines) == 12
    assert lines[-1].endswith("frame 0.208 s is shown")


def test_write_frames(tmp_path: Path) -> None:
    assert run("write_frames.py", tmp_path / "out.mkv", 6).startswith("6 frames")
    assert (tmp_path / "out.mkv").stat().st_size > 500


def test_interpolate(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mkv", frames=4)
    assert run("interpolate.py", film, tmp_path / "out.mkv", 3) == "12 frames\n"
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [f.pts for f in container.decode(video=0)][:4] == [0, 14, 28, 42]


def test_torch_loader(neural: Path) -> None:
    lines = run("torch_loader.py", neural).splitlines()
    assert [line.split(" mean")[0] for line in lines] == [
        "(4, 3, 48, 64)",
        "(4, 3, 48, 64)",
        "(2, 3, 48, 64)",
    ]


def test_encoder_decoder() -> None:
    lines = run("encoder_decoder.py", 5).splitlines()
    assert len(lines) == 5
    assert " key " in lines[0]


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
def test_cut_with_ffmpeg(neural: Path, tmp_path: Path) -> None:
    text = run("cut_with_ffmpeg.py", neural, tmp_path / "piece.mkv", 0, 10)
    assert text.endswith("10 frames, 0 dropped at the end\n")


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffplay"), reason="needs the stock ffplay")
def test_stream_to_ffplay(neural: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    text = run("stream_to_ffplay.py", neural)
    assert text == "10 frames shown, the player ended with status 0\n"


def test_stream_to_another_player(neural: Path, tmp_path: Path) -> None:
    got = tmp_path / "got.nut"
    run("stream_to_ffplay.py", neural, "sh", "-c", f"cat > {got}")
    with av.open(str(got)) as container:
        assert [len(container.streams.video), len(container.streams.audio)] == [1, 1]
        times = [frame.time for frame in container.decode(video=0)]
    # NUT holds no negative times: all is moved by what AAC begins before zero.
    late = times[0]
    assert 0 <= late < 0.03
    assert [t - late for t in times] == pytest.approx([i / 24 for i in range(10)], abs=0.001)


@pytest.mark.parametrize("line", ["pipe", pytest.param("udp", marks=pytest.mark.slow)])
def test_live(line: str) -> None:
    text = run("live.py", "--seconds", 1, "--rate", 5, "--size", "96x32", "--line", line)
    found = re.fullmatch(
        rf"{line}: (\d+) of 5 frames seen; delay median [\d.]+ frames, \d+ ms; "
        r"maximum \d+ frames, \d+ ms\n",
        text,
    )
    assert found, text
    assert int(found[1]) == 5 or line == "udp"


@pytest.mark.slow
def test_live_ends_with_ctrl_c() -> None:
    command = [sys.executable, str(ROOT / "examples" / "live.py")]
    command += ["--seconds", "600", "--rate", "5", "--size", "96x32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(8)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"frames seen" in output or b"none of them seen" in output
    assert errors == b""


@pytest.mark.slow
def test_web_player(neural: Path) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "examples" / "web_player.py"),
        str(neural),
        str(port),
        "8",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}/watch/neural.mkv"
        with urllib.request.urlopen(address) as page:
            assert b'data-media="/media/neural.mkv"' in page.read()
        segment = address.replace("/watch/", "/media/") + "/video/full/0.m4s"
        with urllib.request.urlopen(segment) as answer:
            assert answer.read()[4:8] == b"moof"
    assert process.returncode == 0
