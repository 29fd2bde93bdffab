"""Pipes both ways, with the stock tools and with sound, as the README writes them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_film

from vcfilter.stream.inspect import verify_file

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg"),
]

PYTHON = f"{shlex.quote(sys.executable)} -m vcfilter"
FAST = "--preset ultrafast --qp 34"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mkv with 8 pictures and PCM, and neural.mkv coded from it through a pipe."""
    folder = tmp_path_factory.mktemp("pipes")
    make_film(folder / "film.mkv", frames=8, audio="pcm_s16le")
    copy = "ffmpeg -v error -i film.mkv -map 0 -c copy -f nut -"
    shell(f"{copy} | {PYTHON} encode - neural.mkv {FAST}", folder)
    return folder


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line as bash does; a failure of any part of the pipe is one."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )


def sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [f.to_ndarray() for f in container.decode(audio=0)]
    return np.concatenate(frames, axis=1)


def times(path: Path) -> tuple[list[float], float]:
    """Times of the pictures, and the first one of the sound."""
    with av.open(str(path)) as container:
        pictures = [f.time for f in container.decode(video=0)]
        container.seek(0)
        return pictures, next(container.decode(audio=0)).time


def test_ffmpeg_into_encode(folder: Path) -> None:
    verdict = verify_file(str(folder / "neural.mkv"))
    assert verdict.good
    assert verdict.frames == 8
    assert verdict.other_packets["audio"] > 0
    assert np.array_equal(sound(folder / "neural.mkv"), sound(folder / "film.mkv"))


@pytest.mark.slow
def test_decode_into_ffmpeg(folder: Path, tmp_path: Path) -> None:
    target = shlex.quote(str(tmp_path / "back.mkv"))
    code = f"ffmpeg -v error -i - -c:v ffv1 -c:a copy {target}"
    shell(f"{PYTHON} decode neural.mkv - -f nut -q | {code}", folder)
    pictures, first = times(tmp_path / "back.mkv")
    assert pictures == pytest.approx([i / 24 for i in range(8)], abs=0.001)
    assert first == 0
    assert np.array_equal(sound(tmp_path / "back.mkv"), sound(folder / "film.mkv"))


@pytest.mark.slow
def test_through_both_and_back(folder: Path, tmp_path: Path) -> None:
    """A neural film from standard input, and neural to neural through one pipe."""
    target = shlex.quote(str(tmp_path / "again.mkv"))
    line = f"{PYTHON} decode - - -f nut -q < neural.mkv | {PYTHON} encode - {target} {FAST}"
    shell(line, folder)
    assert verify_file(str(tmp_path / "again.mkv")).frames == 8
    assert np.array_equal(sound(tmp_path / "again.mkv"), sound(folder / "film.mkv"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffplay"), reason="needs the stock ffplay")
def test_decode_into_ffplay(folder: Path) -> None:
    line = f"{PYTHON} decode neural.mkv - -f nut -q | ffplay -v error -autoexit -"
    done = shell(line, folder, SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy")
    assert done.stderr == ""
