"""Targets: whole or not at all, no other file touched, what is finished survives."""

from __future__ import annotations

import gc
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from clips import make_film, video_frame

import vcfilter
from vcfilter import EncoderOptions, MediaCodec, MediaError, decode_file, encode_file
from vcfilter.stream import target as target_module
from vcfilter.stream.inspect import verify_file
from vcfilter.stream.target import Target
from vcfilter.stream.transcode import Interrupted, Progress

ROOT = Path(__file__).resolve().parent.parent
FAST = EncoderOptions(qp=40, preset="ultrafast", keyint=6)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def written(path: Path, content: bytes = b"new", *, overwrite: bool = True) -> None:
    target = Target(path, overwrite=overwrite)
    target.file.write(content)
    target.complete()


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    target = Target(path, overwrite=False)
    target.file.write(b"all")
    assert names(tmp_path) == ["film.part.mkv"]
    target.complete()
    assert names(tmp_path) == ["film.mkv"]
    assert path.read_bytes() == b"all"
    target.discard()  # nothing is left to discard
    assert path.exists()


def test_what_waits_under_the_name_of_the_part_is_not_touched(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "film.part.mkv").symlink_to(victim)
    (tmp_path / "film.part-2.mkv").write_bytes(b"other")
    written(tmp_path / "film.mkv")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "film.part-2.mkv").read_bytes() == b"other"
    assert (tmp_path / "film.part.mkv").is_symlink()
    assert (tmp_path / "film.mkv").read_bytes() == b"new"


def test_a_symbolic_link_is_written_through_and_the_mode_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "t.mkv"
    real.write_bytes(b"old")
    real.chmod(0o664)
    link = tmp_path / "link.mkv"
    link.symlink_to("real/t.mkv")
    written(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o664
    assert names(tmp_path / "real") == ["t.mkv"]
    dangling = tmp_path / "dangling.mkv"
    dangling.symlink_to("real/later.mkv")
    written(dangling, overwrite=False)
    assert (tmp_path / "real" / "later.mkv").read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    target = Target(path, overwrite=False)
    target.file.write(b"coded")
    path.write_bytes(b"precious")
    with pytest.raises(MediaError, match=r"exists already.*film\.partial\.mkv"):
        target.complete()
    assert path.read_bytes() == b"precious"
    assert (tmp_path / "film.partial.mkv").read_bytes() == b"coded"


@pytest.mark.parametrize("links", [True, False])
def test_what_is_kept_gets_a_free_name(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(target_module.os, "link", refuse)
    (tmp_path / "film.partial.mkv").write_bytes(b"precious")
    (tmp_path / "film.partial-2.mkv").write_bytes(b"precious")
    target = Target(tmp_path / "film.mkv", overwrite=False)
    target.file.write(b"coded")
    assert target.keep_partial() == str(tmp_path / "film.partial-3.mkv")
    assert (tmp_path / "film.partial-3.mkv").read_bytes() == b"coded"
    assert (tmp_path / "film.partial.mkv").read_bytes() == b"precious"
    assert "film.mkv" not in names(tmp_path)


def test_names_of_parts_fit(tmp_path: Path) -> None:
    for stem in ("x" * 251, "\u6620" * 83):
        path = tmp_path / f"{stem}.mkv"
        target = Target(path, overwrite=False)
        assert len(os.fsencode(Path(target.path).name)) <= 255
        target.complete()
        assert path.exists()


def test_a_target_that_nobody_closes_leaves_nothing(tmp_path: Path) -> None:
    target = Target(tmp_path / "film.mkv", overwrite=False)
    target.file.write(b"x")
    del target
    gc.collect()
    assert names(tmp_path) == []
    output = vcfilter.open(tmp_path / "left.mkv", "w")
    stream = output.add_stream("vcfilter", options={"preset": "ultrafast"})
    output.mux(stream.encode(video_frame(0, 64, 48)))
    del output, stream
    gc.collect()
    assert names(tmp_path) == []


def test_an_interrupt_touches_no_other_file(tmp_path: Path) -> None:
    source = make_film(tmp_path / "film.partial.mkv", frames=20)
    content = source.read_bytes()

    def stop(now: Progress) -> None:
        if now.frames >= 14:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vcfilter.stream.report, "_PROGRESS_SECONDS", 0.0)
        with pytest.raises(Interrupted) as stopped:
            encode_file(source, tmp_path / "film.mkv", FAST, progress=stop)
    assert source.read_bytes() == content
    assert stopped.value.partial == str(tmp_path / "film.partial-2.mkv")
    assert names(tmp_path) == ["film.partial-2.mkv", "film.partial.mkv"]


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["mkv", "nut"])
def test_finished_segments_survive_sigkill(extension: str, tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=40, audio="pcm_s16le")
    code = f"""
import os, signal, time
from vcfilter.stream import report, transcode
report._PROGRESS_SECONDS = 0.0
def progress(now):
    if now.frames == 38:
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
options = transcode.EncoderOptions(qp=40, preset="ultrafast", keyint=6)
names = {str(film)!r}, {str(tmp_path / f"o.{extension}")!r}
transcode.encode_file(*names, options, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    part = tmp_path / f"o.part.{extension}"
    assert names(tmp_path) == ["in.mkv", part.name]
    assert verify_file(part).frames >= 24


def test_a_file_without_frames_is_not_published(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=3)
    with pytest.raises(MediaError, match="no frame"):
        encode_file(film, tmp_path / "o.mkv", FAST, streams="v", start=0.11, duration=0.001)
    assert names(tmp_path) == ["in.mkv"]


@pytest.mark.parametrize("name", ["o.y4m", "o.mkv", "frames/%d.png"])
def test_a_disk_that_fills_up_in_the_middle_of_a_write(name: str, tmp_path: Path) -> None:
    """The first write comes back short, the second fails."""
    encode_file(make_film(tmp_path / "film.mkv", frames=2), tmp_path / "n.mkv", FAST)
    before = set(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    codec = None if name.endswith(("y4m", "png")) else MediaCodec(name="rawvideo")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with pytest.raises(MediaError, match="cannot be written: File too large"):
            decode_file(tmp_path / "n.mkv", tmp_path / name, codec=codec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before


@pytest.mark.slow
def test_what_a_link_leads_to_may_be_a_pipe(tmp_path: Path) -> None:
    """As /dev/stdout is."""
    film = make_film(tmp_path / "film.mkv", frames=2)
    code = f"""
import sys
from vcfilter.cli.main import main
sys.exit(main(["encode", {str(film)!r}, "/dev/stdout", "-f", "nut", "-q", "--qp", "40",
               "--preset", "ultrafast"]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.startswith(b"nut/multimedia container")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "source", "target", "message"),
    [
        (0, "-", "o.mkv", "vcfilter: standard input is closed"),
        (1, "film.mkv", "-", "vcfilter: standard output is closed"),
        (2, "film.mkv", "o.mkv", ""),
    ],
)
def test_standard_files_that_are_closed(
    closed: int, source: str, target: str, message: str, tmp_path: Path
) -> None:
    make_film(tmp_path / "film.mkv", frames=2)
    words = ["encode", source, target, "-f", "matroska", "--qp", "40", "--preset", "ultrafast"]
    code = f"import sys\nfrom vcfilter.cli.main import main\nsys.exit(main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.close(closed),
    )
    assert done.returncode == (0 if closed == 2 else 1)
    assert done.stderr.strip() == message
    assert (tmp_path / "o.mkv").exists() == (closed == 2)


def test_a_name_beyond_the_locale(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom vcfilter.stream.target import Target\n"
        "target = Target(sys.argv[1], overwrite=False)\ntarget.file.write(b'x')\n"
        "target.complete()"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    place = tmp_path / "\u00e9.mkv"
    subprocess.run([sys.executable, "-c", code, str(place)], env=env, check=True)
    assert place.read_bytes() == b"x"
