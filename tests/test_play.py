"""The play command: which commands it runs, what the player gets, how it ends."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import stat
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest
from clips import make_film

from vcfilter.cli.main import main
from vcfilter.cli.play import find_player, player_commands

QUICK = ["-q", "--preset", "ultrafast", "--qp", "36"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("play")
    make_film(folder / "film.mkv", frames=12, audio="pcm_s16le")
    target = folder / "-odd name.mkv"  # no option, no protocol
    assert main(["encode", str(folder / "film.mkv"), str(target), *QUICK]) == 0
    return target


def fake(folder: Path, name: str, script: str) -> Path:
    """A player that is a shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_commands() -> None:
    ffplay = player_commands("a film.mkv", "/usr/bin/ffplay", start=Fraction(185, 2))
    shown = str(ffplay)
    assert shown.startswith(
        f"{sys.executable} -m vcfilter decode -f nut -q -ss 92.5 -- 'a film.mkv' - | "
    )
    assert shown.endswith("-autoexit -window_title 'a film.mkv' -f nut -")
    mpv = player_commands("f.mkv", "/usr/bin/mpv", duration=Fraction(3), options=["--fullscreen"])
    assert mpv.player == ("/usr/bin/mpv", "--title=f.mkv", "--really-quiet", "--fullscreen", "-")
    assert mpv.decode[-5:] == ("-t", "3", "--", "f.mkv", "-")


def test_players_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake(tmp_path, "mpv", "")
    assert find_player(None) == str(tmp_path / "mpv")
    fake(tmp_path, "ffplay", "")
    assert find_player(None) == str(tmp_path / "ffplay")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["FILM"], 1, "no player is installed: install ffplay"),
        (["FILM", "--player", "mpv"], 1, "player mpv is not installed"),
        (["FILM", "--player", "vlc"], 2, "'vlc' is not ffplay or mpv"),
        (["FILM", "--player", "mpv '"], 2, "No closing quotation"),
        (["FILM", "-ss", "soon"], 2, "no time like"),
        (["-"], 2, "a pipe plays with"),
        ([], 2, "required: FILE"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    status: int,
    message: str,
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if arguments == ["-"]:
        fake(tmp_path, "ffplay", "")
    try:
        found = main(["play", *(str(film) if a == "FILM" else a for a in arguments)])
    except SystemExit as stop:
        found = int(stop.code or 0)
    error = capfd.readouterr().err
    assert (found, error.count("\n")) == (status, 1)
    assert message in error


def test_an_ordinary_film_is_refused(film: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ordinary = film.with_name("film.mkv")
    player = fake(film.parent / "bin", "ffplay", "exit 0")
    assert main(["play", str(ordinary), "--player", shlex.quote(str(player))]) == 1
    assert "no neural video stream" in capfd.readouterr().err


@pytest.mark.slow
def test_picture_and_sound_start_together(
    film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the player gets, from the start and from a time inside a segment."""
    for options, frames in (([], 12), (["-ss", "0.25"], 6)):
        player = fake(tmp_path, "ffplay", f'cat > "{tmp_path}/got.nut"')
        assert main(["play", str(film), "--player", shlex.quote(str(player)), *options]) == 0
        with av.open(str(tmp_path / "got.nut")) as container:
            pictures = [f.time for f in container.decode(video=0)]
            container.seek(0)
            sounds = list(container.decode(audio=0))
        assert len(pictures) == frames
        assert pictures[0] == 0
        assert 0 <= float(sounds[0].time) <= 1 / 24 + 0.001
        samples = sum(sound.samples for sound in sounds)
        assert samples == pytest.approx(48000 * frames / 24, abs=48000 / 24)
        assert f"vcfilter: {sys.executable} -m vcfilter decode" in capfd.readouterr().err


@pytest.mark.slow
def test_a_player_that_leaves_early_is_no_error(film: Path, tmp_path: Path) -> None:
    player = fake(tmp_path, "mpv", "head -c 100 > /dev/null")
    assert main(["play", str(film), "--player", shlex.quote(str(player))]) == 0
    refusing = fake(tmp_path, "mpv", '[ "$3" = --fullscreen ] && [ "$4" = "a b" ]')
    command = f"{shlex.quote(str(refusing))} --fullscreen 'a b'"
    assert main(["play", str(film), "--player", command]) == 0
    failing = fake(tmp_path, "ffplay", "cat > /dev/null; exit 3")
    assert main(["play", str(film), "--player", shlex.quote(str(failing))]) == 1


def test_a_decoder_that_fails_is_told(
    film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    player = fake(tmp_path, "ffplay", "cat > /dev/null")
    arguments = ["play", str(film), "--player", shlex.quote(str(player)), "--model", "/none"]
    assert main(arguments) == 1
    assert "/none" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_typed_time_starts_it_anew_from_there(film: Path, tmp_path: Path) -> None:
    player = fake(tmp_path, "ffplay", "cat > /dev/null; exec sleep 60")
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "vcfilter",
        "play",
        str(film),
        "--player",
        shlex.quote(str(player)),
    ]
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        first = run.stderr.readline()
        hint = run.stderr.readline()
        os.write(ours, b"nonsense\n")
        told = run.stderr.readline()
        os.write(ours, b"0:00.25\n")
        second = run.stderr.readline()
        os.write(ours, b"q\n")
        began = time.monotonic()
        assert run.wait(60) == 0
        assert time.monotonic() - began < 30
    os.close(ours)
    os.close(theirs)
    assert "-ss" not in first
    assert "a time and Enter go there" in hint
    assert "'nonsense' is no time" in told
    assert " -ss 0.25 -- " in second


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffplay"), reason="needs the stock ffplay")
def test_ffplay_plays_to_the_end(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    assert main(["play", str(film), "--player", "ffplay"]) == 0


@pytest.mark.slow
def test_a_name_like_an_option_is_played(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(film.parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    player = fake(tmp_path, "ffplay", f'cat > "{tmp_path}/got.nut"')
    assert main(["play", "--player", shlex.quote(str(player)), "--", film.name]) == 0
    assert (tmp_path / "got.nut").stat().st_size > 10_000
