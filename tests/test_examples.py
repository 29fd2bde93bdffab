"""The examples run, as a user would run them."""

from __future__ import annotations

import contextlib
import io
import runpy
import shutil
import sys
from pathlib import Path

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
