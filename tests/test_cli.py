"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import wave
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from clips import make_film

from vcfilter.cli import play
from vcfilter.cli.arguments import MEMORY_MAX, limits
from vcfilter.cli.commands import COMMANDS
from vcfilter.cli.interrupts import Interrupts
from vcfilter.cli.main import main
from vcfilter.cli.parser import command_parser
from vcfilter.cli.terminal import Terminal, clean, count_text, logging_to, size_text, time_text
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import Limits
from vcfilter.stream.sinks import Y4mSink
from vcfilter.stream.transcode import Progress

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
    assert [frame["type"] for frame in found["streams"][0]["frames"]] == ["key"] + ["inter"] * 7

    assert main(["verify", str(neural)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "good: 8 packets (1 keyframe), 8 frames decoded" in err

    target = tmp_path / "back.mp4"
    assert main(["decode", str(neural), str(target), "-q", "-c:v", "libx264", "--crf", "20"]) == 0
    assert capfd.readouterr() == ("", "")
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == 1
        assert len(list(container.decode(video=0))) == 8


def test_transcode_chooses_by_the_target(film: Path, neural: Path, tmp_path: Path) -> None:
    assert main(["transcode", str(neural), str(tmp_path / "a.mp4"), "-q", "-map", "v"]) == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert main(["transcode", str(neural), str(tmp_path / "b.mkv"), "-q", *FAST]) == 0
    assert main(["verify", "-q", str(tmp_path / "b.mkv")]) == 0
    chosen = ["-c:v", "libx264", "--crf", "30"]
    assert main(["transcode", str(film), str(tmp_path / "c.mkv"), "-q", *chosen]) == 0
    with av.open(str(tmp_path / "c.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert len(list(container.decode(video=0))) == 8
    assert main(["transcode", str(film), str(tmp_path / "%03d.png"), "-q"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 8


def test_transcode_codes_10_bit_where_asked(
    film: Path, neural: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (film, neural):
        target = tmp_path / f"{source.stem}-10.mkv"
        chosen = [*FAST, "--pix-fmt", "yuv420p10le", "-t", "0.1"]
        assert main(["transcode", str(source), str(target), "-q", *chosen]) == 0
        assert main(["info", str(target)]) == 0
        assert "4:2:0 10 bit" in capsys.readouterr().out


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
        (["encode", "FILM", "OUT", "--bitrate", "fast"], 2, "is not a bitrate like"),
        (["encode", "FILM", "OUT", "--two-pass"], 2, "need a bitrate"),
        (["encode", "FILM", "OUT", "-map", "z"], 2, "not understood"),
        (["encode", "FILM", "OUT", "-ss", "x"], 2, "no time like"),
        (["encode", "FILM", "OUT", "-ss", "100"], 1, "is over before 100 s"),
        (["encode", "FILM", "OUT", "--model", "/none"], 1, "/none"),
        (["encode", "FILM", "OUT.mp4"], 2, "cannot hold a neural stream"),
        (["encode", "FILM", "OUT.what"], 2, "no container that is known"),
        (["encode", "/none.mp4", "OUT"], 1, "No such file"),
        (["encode", "FILM", "/none/out.mkv"], 1, "no folder"),
        (["encode", "FILM", "NEURAL"], 1, "exists already: -y replaces it"),
        (["encode", "FILM", "FILM", "-y"], 1, "is the source"),
        (["encode", "FILM"], 2, "required: TARGET"),
        (["decode", "FILM", "OUT"], 1, "no neural video stream"),
        (["decode", "NEURAL", "OUT", "-c:v", "nocodec"], 2, "encoder 'nocodec' is unknown"),
        (["decode", "NEURAL", "OUT", "-c:v", "aac"], 2, "codes audio"),
        (["decode", "NEURAL", "OUT", "-c:v", "libx264", "--pix-fmt", "no"], 2, "libx264 refuses"),
        (["decode", "NEURAL", "OUT", "--crf", "20"], 2, "give -c:v too"),
        (["verify", "FILM"], 1, "no neural video stream"),
        (["info"], 2, "needs a FILE"),
        (["encode", "SOUND.wav", "OUT"], 1, "SOUND.wav"),
        (["encode", "RAW.yuv", "OUT"], 1, "raw video, which states no size"),
        (["encode", "FILM", "OUT", "--threads", "-1"], 2, "threads -1 is negative"),
        (["encode", "FILM", "OUT", "--keyint", "many"], 2, "keyint 'many' is not a whole number"),
        (["encode", "FILM", "OUT", "-ss", "2", "-to", "1"], 2, "is not after the start"),
        (["encode", "FILM", "OUT", "-t", "1", "-to", "2"], 2, "not allowed with"),
        (["encode", "FILM", "OUT", "OUT"], 2, "2 sources need a folder"),
        (["transcode", "NEURAL", "OUT", "-c:v", "copy", "--qp", "3"], 2, "no options of coding"),
        *(
            (["transcode", "FILM", *target, *given], 2, "need a neural target")
            for target in (["OUT.mp4"], ["OUT", "-c:v", "libx264"])
            for given in (["--qp", "20"], ["--two-pass"], ["--preset", "none"], ["--layers", "3"])
        ),
        (["transcode", "FILM", "OUT", "--set", "a=b"], 2, "neural coding takes none"),
        (["transcode", "FILM", "OUT", "--pix-fmt", "yuv444p"], 2, "yuv444p is not coded neurally"),
        (["encode", "FILM", "OUT", "--rate", "10"], 2, "is no pattern of images"),
        (["encode", "FOLDER", "OUT"], 1, "holds no image file"),
        *(
            ([word, "NEURAL", "OUT.mp4", "-ss", "0.33"], 1, "no frame in the part")
            for word in ("decode", "transcode")
        ),
        (["evaluate", "FILM", "--qp", "30", "--out", "OUT"], 2, "curves need 4"),
        (["decode", "NEURAL", "OUT", "--layers", "9"], 2, "levels 9 is outside 1 to 8"),
        (["frobnicate"], 2, "there is no command frobnicate (see vcfilter --help)"),
        (["encoder"], 2, "did you mean encode?"),
        (["--loud"], 2, "there is no option --loud"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    status: int,
    message: str,
    film: Path,
    neural: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("other")
    names = {"FILM": str(film), "NEURAL": str(neural), "OUT": str(tmp_path / "out.mkv")}
    names |= {f"OUT{ext}": str(tmp_path / f"out{ext}") for ext in (".mp4", ".what")}
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    (folder / "raw.yuv").write_bytes(bytes(6144))
    names |= {"SOUND.wav": str(folder / "sound.wav"), "RAW.yuv": str(folder / "raw.yuv")}
    names["FOLDER"] = str(folder)
    message = names.get(message, message)
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
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: vcfilter {name}" in capsys.readouterr().out


def test_maps_may_begin_with_a_minus() -> None:
    parser = command_parser(COMMANDS["encode"])
    found = parser.parse(["-map", "0", "-map", "-0:s", "a", "-map", "-a:1", "b", "-t", "3"])
    assert (found.streams, found.sources, found.target) == (["0", "-0:s", "-a:1"], ["a"], "b")
    assert found.t == 3
    found = parser.parse(["-y", "--", "-a", "-b"])
    assert (found.sources, found.target) == (["./-a"], "./-b")
    found = parser.parse(["-map", "-0:s?", "-map", "-a:m:language:eng", "a", "b", "-ss", "250ms"])
    assert (found.streams, found.ss) == (["-0:s?", "-a:m:language:eng"], Fraction(1, 4))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
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
    while not list(tmp_path.glob("out.part*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    os.kill(run.pid, number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("vcfilter: stopped")
    assert {path.name for path in tmp_path.iterdir()} <= {"long.mkv", "out.partial.mkv"}


@pytest.mark.slow
def test_an_interrupt_that_is_ignored_at_the_start_stays_ignored(
    film: Path, tmp_path: Path
) -> None:
    """As nohup and a shell's background jobs start it."""
    target = tmp_path / "out.mkv"
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = subprocess.Popen(command("encode", film, target, *FAST), cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, former)
    while run.poll() is None:
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert run.returncode == 0
    assert target.exists()


def test_ctrl_c_that_a_library_takes_for_a_fault_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("initialisation failed") from None

    monkeypatch.setattr("vcfilter.cli.commands.command_parser", load)
    assert main(["info", "film.mkv"]) == 130
    assert capsys.readouterr().err.strip() == "vcfilter: stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_library_is_imported_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.01)\n"
        "except BaseException:\n"
        "    pass\n"
    )
    code = (
        "import sys, time\n"
        "from vcfilter.cli.interrupts import Interrupts\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "with Interrupts() as interrupts:\n"
        "    try:\n"
        "        import swallows\n"
        "        time.sleep(5)\n"
        "    except KeyboardInterrupt as stop:\n"
        "        sys.exit(interrupts.status(stop))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 130


def test_ctrl_c_in_a_program_that_runs_in_an_import(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal, time\n"
        "from vcfilter.cli.interrupts import Interrupts\n"
        "with Interrupts():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(1)\n"
        "    print('lost')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); import program"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout == ""
    assert "KeyboardInterrupt" in run.stderr


def test_ctrl_c_while_the_command_line_starts_is_one_line() -> None:
    """A hook stands for the time that the commands' imports take."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from vcfilter.cli.main import main\n"
        "sys.exit(main(['--version']))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "vcfilter: stopped\n")


def test_a_signal_that_is_sent_twice_at_once_counts_once() -> None:
    """As timeout sends it: what is done after the first one is not interrupted."""
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.12)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert interrupts.seen == signal.SIGTERM


def test_raw_frames_for_a_reader_that_left_are_given_up_in_silence() -> None:
    class Gone(io.RawIOBase):
        started = False

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            if self.started:
                raise BrokenPipeError
            return len(data)  # type: ignore[arg-type]

    target = SimpleNamespace(file=(pipe := Gone()), discard=lambda: None, title="a pipe", path="-")
    sink = Y4mSink(target)  # type: ignore[arg-type]
    fmt = VideoFormat(width=64, height=48)
    y, u, v = (np.zeros(size, np.uint8) for size in ((48, 64), (24, 32), (24, 32)))
    frame = Frame(y=y, u=u, v=v, pts=0)
    with pytest.raises(BrokenPipeError):
        sink.start(fmt, Fraction(25))
        sink.write(frame)
        pipe.started = True
        for _ in range(20):
            sink.write(frame)
    assert sink.abandon(keep=False) is None


def test_streams_that_a_target_has_no_place_for_are_named(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = tmp_path / "two.mkv"
    with av.open(str(film)) as source, av.open(str(two), "w") as container:
        for stream in (*source.streams, source.streams.audio[0]):
            container.add_stream_from_template(stream)
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = container.streams[packet.stream.index]
                container.mux(packet)
    for name, text in (
        ("a.y4m", "yuv4mpegpipe holds one video stream alone: 2 other streams are left out"),
        ("%03d.png", "a sequence of images holds one video stream alone: 2 other streams"),
        ("a.flv", "stream 2 (audio aac) is left out: flv holds one audio stream"),
    ):
        assert main(["transcode", str(two), str(tmp_path / name)]) == 0
        assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error_text(neural: Path) -> None:
    run = subprocess.Popen(
        command("decode", neural, "-", "-q"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == b""
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
    assert [count_text(n, "frame") for n in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    Terminal(quiet=True).line("not shown")


def test_an_option_that_the_encoder_lacks_is_an_error(
    neural: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mkv"
    chosen = ["-c:v", "ffv1", "--set", "level=3", "--set", "colour=blue"]
    assert main(["decode", str(neural), str(target), *chosen]) == 2
    assert "encoder ffv1 has no option colour" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what FFmpeg's users type -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("encode a b -crf 23", "there is no option -crf: it is --crf here"),
        ("encode a b -q:v 23", "there is no option -q:v: --crf N or --quality DB"),
        ("decode a b -c:v libx264 -crf 23", "there is no option -crf: it is --crf here"),
        ("encode -i a b", "there is no option -i: the source stands without it"),
        ("encode a b -r 25", "there is no option -r"),
        ("encode a b -s 640x480", "there is no option -s"),
        ("encode a b -b:v 800k", "there is no option -b:v: --bitrate RATE"),
        ("encode a b -preset slow", "there is no option -preset: it is --preset here"),
        ("decode a b -pix_fmt yuv420p", "there is no option -pix_fmt: it is --pix-fmt here"),
        ("encode a b --weights w", "there is no option --weights: --model"),
        ("encode a b -c:v libx265", "there is no option -c:v: the video is coded neurally"),
        ("encode a b --input-res 64x64", "there is no option --input-res: raw video"),
        ("encode a -o b", "there is no option -o: the target stands without it"),
        ("encode a b -fnut", "there is no option -fnut"),
        ("encode a b --keyintt 5", "there is no option --keyintt; did you mean --keyint?"),
        ("verify", "required: FILE"),
    ],
)
def test_an_unknown_option_leads_to_the_right_one(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments.split()
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"vcfilter {words[0]}: ")
    assert message in error
    assert error.endswith(f"(see vcfilter {words[0]} --help)\n")
    assert error.count("\n") == 1


def test_without_arguments_the_help_comes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == shown
    for name, command in COMMANDS.items():
        assert f"  {name:<12}{command.help}\n" in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vcfilter ")


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys\nfrom vcfilter.cli.main import main\nmain(['--help'])\n"
        "try: main(['encode', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'av', 'cv2', 'starlette'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_part_ends_at_its_end(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "part.mkv"
    part = ["-ss", "0.1", "-to", "0.2", "-map", "v"]
    assert main(["encode", str(film), "-q", *part, *FAST, str(target)]) == 0
    with av.open(str(target)) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) == 3


def test_tags_are_set_and_removed(film: Path, tmp_path: Path) -> None:
    target, again = tmp_path / "a.mkv", tmp_path / "b.mkv"
    part = ["-q", "-t", "0.05", "-map", "v", *FAST]
    tags = ["-metadata", "title=A = B", "-metadata", "artist=C"]
    assert main(["encode", str(film), *part, *tags, str(target)]) == 0
    changed = ["-metadata", "artist=", "-metadata", "TITLE=D"]
    assert main(["transcode", str(target), *part, *changed, str(again)]) == 0
    found = []
    for path in (target, again):
        with av.open(str(path)) as container:
            found.append({k.lower(): v for k, v in container.metadata.items()})
    assert (found[0]["title"], found[0]["artist"]) == ("A = B", "C")
    assert found[1]["title"] == "D"
    assert "artist" not in found[1]


# --- several files ------------------------------------------------------------------------------


def test_several_sources_go_into_a_folder(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [tmp_path / f"{name}.mp4" for name in ("one", "two")]
    for name in names:
        name.symlink_to(film)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_text("no video")
    folder = tmp_path / "coded"
    sources = [str(names[0]), str(damaged), str(names[1])]
    part = ["-t", "0.1", "-map", "v"]
    assert main(["encode", *sources[:2], *FAST, *part, sources[2], f"{folder}/"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert {path.name for path in folder.iterdir()} == {"one.mkv", "two.mkv"}
    assert error[-2].startswith("vcfilter: ")
    assert str(damaged) in error[-2]
    assert error[-1] == "vcfilter: 1 of 3 files failed"
    assert main(["verify", "-q", *(str(folder / f"{n}.mkv") for n in ("one", "two"))]) == 0
    coded = [str(folder / "one.mkv"), str(folder / "two.mkv")]
    assert main(["decode", "-q", *coded, "-f", "nut", str(folder)]) == 0
    assert {path.name for path in folder.glob("*.nut")} == {"one.nut", "two.nut"}


def test_images_of_a_folder_become_a_file(film: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert main(["transcode", str(film), str(pictures / "%03d.png"), "-q", "-t", "0.2"]) == 0
    assert len(list(pictures.iterdir())) == 5
    target = tmp_path / "out.mkv"
    assert main(["encode", str(pictures), str(target), "-q", "--rate", "10", *FAST]) == 0
    with av.open(str(target)) as container:
        assert container.duration == 500_000


def test_videos_of_a_folder_go_into_a_folder(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = tmp_path / "films", tmp_path / "coded"
    folder.mkdir()
    assert main(["encode", str(folder), str(target)]) == 2
    assert capsys.readouterr().err == f"vcfilter: {folder} holds no video files\n"
    for name in ("two.mp4", "one.mp4", ".hidden.mp4", "notes.txt"):
        (folder / name).symlink_to(film)
    assert main(["encode", str(folder), str(target), *FAST, "-t", "0.1", "-map", "v"]) == 0
    assert {path.name for path in target.iterdir()} == {"one.mkv", "two.mkv"}


def test_sources_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "a/x.mp4", "b/x.mkv", f"{tmp_path}/"]) == 2
    assert "a/x.mp4 and b/x.mkv would both become" in capsys.readouterr().err


# --- what is shown ------------------------------------------------------------------------------


def test_progress_as_json(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["encode", str(film), str(tmp_path / "out.mkv"), *FAST, "--progress", "json"]
    assert main(arguments) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {each["event"] for each in events} <= {"progress", "warning", "info", "done"}
    assert [each["frames"] for each in events if each["event"] == "progress"][-1] == 8
    assert events[-1]["event"] == "done"
    assert events[-1]["file_bytes"] == (tmp_path / "out.mkv").stat().st_size
    assert events[-1]["psnr"] > 20
    assert main(arguments) == 1
    told = json.loads(capsys.readouterr().err)
    assert told["event"] == "error"
    assert "exists already" in told["text"]


def test_a_copy_ends_with_done(
    neural: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy.nut"
    words = ["transcode", str(neural), str(target), "-c:v", "copy"]
    assert main([*words, "--progress", "json"]) == 0
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["source"], told["packets"]) == ("done", str(neural), 8)
    assert told["file_bytes"] == target.stat().st_size
    assert main([*words, "-y"]) == 0
    assert f"{target}: 8 packets, " in capsys.readouterr().err


def test_errors_for_programs_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["encode", "a", "b", "--frob", "--progress=json"])
    told = json.loads(capsys.readouterr().err)
    assert told["event"] == "error" and "there is no option --frob" in told["text"]
    bad = [str(tmp_path / "bad.mkv"), str(tmp_path / "none.mkv")]
    Path(bad[0]).write_bytes(b"bad")
    assert main(["encode", *bad, f"{tmp_path}/out/", "--progress", "json"]) == 1
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [each.get("source") for each in told] == [*bad, None]


class Screen(io.StringIO):
    """A terminal's standard error."""

    def isatty(self) -> bool:
        return True


def test_the_bar_moves_while_nothing_is_finished() -> None:
    screen = Screen()
    terminal = Terminal(output=screen)
    with terminal.working("loading"):
        time.sleep(2.2)
    lines = [line.strip() for line in screen.getvalue().split("\r") if line.strip()]
    assert lines[0].startswith("loading  0:0")
    assert len(set(lines)) >= 2


def progress(frames: int, seconds: float) -> Progress:
    return Progress(
        stage="", frames=frames, total_frames=100, seconds=frames / 25, total_seconds=4.0,
        video_bytes=1000 * frames, elapsed_seconds=seconds,
    )  # fmt: skip


def test_the_remaining_time_leaves_out_the_start() -> None:
    """20 s of loading and 10 frames a second: 5 s remain at frame 50, not 25."""
    screen = Screen()
    terminal = Terminal(output=screen)
    terminal.progress(progress(1, 20.0))
    time.sleep(0.15)
    terminal.progress(progress(2, 20.1))
    assert "ETA" not in screen.getvalue()
    time.sleep(0.15)
    terminal.progress(progress(50, 24.9))
    assert "ETA 0:05" in screen.getvalue()


def test_control_characters_do_not_reach_the_terminal(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean("a\x1b[2Jb\x9b1m\u202ec\udcff") == "a\ufffd[2Jb\ufffd1mc?"
    name = tmp_path / "x\x1b[2J.mkv"
    name.symlink_to(film)
    assert main(["info", str(name)]) == 0
    assert main(["verify", str(name)]) == 1
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "x\ufffd[2J.mkv" in shown.out


def test_the_log_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vcfilter.stream.anything")
    for terminal, shown in (
        (Terminal(), "vcfilter: warning: one two\n"),
        (Terminal(verbose=True), "vcfilter: warning: one two\ninformation\n"),
        (Terminal(quiet=True), ""),
    ):
        with logging_to(terminal):
            logger.warning("one\ntwo")
            logger.info("information")
        assert capsys.readouterr().err == shown
    logger.info("not shown")
    assert capsys.readouterr().err == ""


def test_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert len(bytes.fromhex(found["id"])) == 8
    assert found["architecture"]
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert found["id"] in shown
    assert found["file"] in shown


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vcfilter", "dec"], "decode"),
        (["vcfilter", "encode", "--keyi"], "--keyint"),
        (["vcfilter", "encode", "--progress", "j"], "json"),
        (["vcfilter", "info", "pyproj"], "pyproject.toml"),
    ],
)
def test_bash_completes(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    script += f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n_vcfilter\n"
    script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == expected
    assert main(["completion", "fish"]) == 0
    assert "-l keyint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (["--max-frames", "3"], "frames 4 is above the limit of 3"),
        (["--max-pixels", "100"], " is above the limit of 100"),
        (["--max-memory", "1k"], " is above the limit of 1000"),
        (["--max-seconds", "0.001"], " is above the limit of 0.001"),
    ],
)
def test_limits_of_decoding(
    limit: list[str], text: str, neural: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mkv"
    for line in (["decode", neural, target], ["transcode", neural, target], ["verify", neural]):
        assert main([*map(str, line), *limit]) == 1
        assert text in capfd.readouterr().err
        assert not target.exists()


def test_limits_are_checked(neural: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for limit, text in (
        (["--max-frames", "0"], "limit of frames 0 is not positive"),
        (["--max-memory", "much"], "'much' is no number like 800000, 512M or 4G"),
        (["--max-seconds", "nan"], "'nan' is no number of seconds"),
    ):
        try:
            status = main(["verify", str(neural), *limit])
        except SystemExit as stop:  # what a parser refuses
            status = int(stop.code or 0)
        assert status == 2
        assert text in capfd.readouterr().err


def test_limits_of_commands() -> None:
    def parsed(name: str, *words: str) -> argparse.Namespace:
        return command_parser(COMMANDS[name]).parse(words)

    assert limits(parsed("verify", "x.mkv")) == limits(parsed("play", "x.mkv")) == Limits()
    found = limits(parsed("serve", "x.mkv"))
    assert found == Limits(frames=216_000, seconds=3600, memory=MEMORY_MAX)
    assert limits(parsed("worker")) == Limits(memory=MEMORY_MAX)
    args = parsed("play", "x.mkv", "--layers", "2", "--max-pixels", "9M", "--max-seconds", "60")
    words = play._decoder_options(args)
    assert words == ("--layers", "2", "--max-pixels", "9000000", "--max-seconds", "60.0")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_used_again(kept: bool) -> None:
    """Without it each of the blocks comes anew from the kernel, 500 pages of it."""
    code = (
        "import contextlib, io, resource, numpy as np\n"
        "from vcfilter.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['models'])\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use(): blocks = [np.full(1 << 18, n, np.float64) for n in range(6)]\n"
        "use(); before = faults()\n"
        "for _ in range(5): use()\n"
        "print(faults() - before)\n"
    )
    settings = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    if not kept:
        settings["MALLOC_TRIM_THRESHOLD_"] = "131072"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=settings, check=True, capture_output=True
    )
    assert (int(run.stdout) < 500) == kept
