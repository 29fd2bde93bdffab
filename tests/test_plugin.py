"""FFmpeg's own tools with the plugin: they read and write what Python does, bit for bit.

The tests need a build of ffmpeg_bridge/ffmpeg/build.sh in $VCFILTER_FFMPEG (default
~/.cache/vcfilter/ffmpeg). Without one they are skipped; VCFILTER_REQUIRE_PLUGIN=1 makes that an
error, VCFILTER_REQUIRE_PLUGIN=libraries also that the libraries are missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from clips import make_film, planes

import vcfilter
from vcfilter import PRESETS, Encoder, EncoderOptions
from vcfilter._bridge import Demuxer
from vcfilter.bitstream import SequenceHeader
from vcfilter.codec import Decoder
from vcfilter.frames import Frame, Packet
from vcfilter.stream.raw import RawDemuxer

pytestmark = pytest.mark.plugin

OPTIONS = EncoderOptions(qp=32, preset="ultrafast", keyint=6)
FLAGS = ["-c:v", "vcfilter", "-qp", "32", "-preset", "ultrafast", "-g", "6"]
FRAMES, RATE = 15, 24
REQUIRED = os.environ.get("VCFILTER_REQUIRE_PLUGIN", "")
BUILD = Path(os.environ.get("VCFILTER_FFMPEG", "~/.cache/vcfilter/ffmpeg")).expanduser()
WORKER = f"{shlex.quote(sys.executable)} -m vcfilter worker --threads 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Runs the build's programs against one worker that is kept warm."""

    environment: dict[str, str]

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        """The finished process, whatever its exit status."""
        command = [str(BUILD / "bin" / program), "-v", "warning", *map(str, arguments)]
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )

    def ffmpeg(self, *arguments: str | Path) -> bytes:
        """Standard output of an ffmpeg that succeeds."""
        done = self.run("ffmpeg", "-y", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def probe(self, *arguments: str | Path) -> list[list[str]]:
        """Rows of an ffprobe that succeeds, as CSV without the section's name."""
        done = self.run("ffprobe", "-of", "csv=p=0", *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return [line.rstrip(",").split(",") for line in done.stdout.decode().splitlines() if line]

    def hashes(self, *arguments: str | Path) -> list[str]:
        """MD5 of each frame that ffmpeg decodes, in their order; each frame once."""
        out = self.ffmpeg(*arguments, "-map", "0:v", "-vsync", "passthrough", "-f", "framemd5", "-")
        lines = [line for line in out.decode().splitlines() if line and line[0] != "#"]
        return [line.split(",")[-1].strip() for line in lines]


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    if not (BUILD / "bin" / "ffmpeg").is_file():
        reason = (
            f"no FFmpeg with the plugin in {BUILD}: run sh ffmpeg_bridge/ffmpeg/build.sh, "
            "or let VCFILTER_FFMPEG name its folder"
        )
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        socket = Path(folder) / "worker"
        command = [*shlex.split(WORKER), "--listen", str(socket)]
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 120
            while not socket.exists():
                assert worker.poll() is None, "the worker ended at once"
                assert time.monotonic() < limit, "the worker does not listen"
                time.sleep(0.1)
            names = {"VCFILTER_WORKER": WORKER, "VCFILTER_WORKER_SOCKET": str(socket)}
            yield Tools(environment={**os.environ, **names})
        finally:
            worker.terminate()
            worker.wait(timeout=30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "source.mkv"
    return make_film(path, frames=FRAMES, rate=RATE, audio="flac", width=66, height=50)


@pytest.fixture(scope="module")
def film(source: Path) -> Path:
    """Encoded by Python."""
    path = source.with_name("film.mkv")
    vcfilter.encode_file(str(source), str(path), OPTIONS)
    return path


@pytest.fixture(scope="module")
def expected(film: Path) -> list[str]:
    """MD5 of the film's frames as Python decodes them."""
    return python_hashes(film)


def md5(*parts: bytes) -> str:
    return hashlib.md5(b"".join(parts)).hexdigest()


def python_hashes(path: Path) -> list[str]:
    with vcfilter.open(path) as container:
        return [md5(*(p.tobytes() for p in planes(f))) for f in container.decode(video=0)]


def pictures(path: Path) -> list[bytes]:
    """The packets of a file's picture track."""
    with Demuxer(str(path)) as demuxer:
        index = next(info.index for info in demuxer.streams if info.kind == "video")
        return [packet.data for packet in demuxer if packet.stream_index == index]


# --- decoding ------------------------------------------------------------------------------------


def test_decodes_what_python_decodes(tools: Tools, film: Path, expected: list[str]) -> None:
    assert len(set(expected)) == FRAMES
    assert tools.hashes("-i", film) == expected


def test_ten_bit(tools: Tools, tmp_path: Path) -> None:
    source = make_film(tmp_path / "s.mkv", frames=7, width=33, height=21, pix_fmt="yuv420p10le")
    vcfilter.encode_file(str(source), str(tmp_path / "film.mkv"), OPTIONS)
    got = tools.hashes("-i", tmp_path / "film.mkv")
    assert got == python_hashes(tmp_path / "film.mkv")
    assert len(got) == 7


@pytest.mark.parametrize("container", ["mkv", "nut", "avi", "mov", "vcf"])
def test_containers(
    tools: Tools, film: Path, expected: list[str], tmp_path: Path, container: str
) -> None:
    """Copied to a container and decoded from it; all find the codec by its FourCC."""
    copy = tmp_path / f"copy.{container}"
    tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", copy)
    assert pictures_of(copy) == pictures(film)
    assert tools.hashes("-i", copy) == expected
    entries = "stream=codec_name,codec_tag_string,width,height,pix_fmt"
    row = tools.probe("-show_entries", entries, copy)[0]
    assert row == ["vcfilter", "VCF1", "66", "50", "yuv420p"]


def pictures_of(path: Path) -> list[bytes]:
    if path.suffix != ".vcf":
        return [data for data in pictures(path) if data]  # AVI fills gaps in time with nothing
    with RawDemuxer(path) as demuxer:
        return [packet.data for packet in demuxer]


def test_times_types_and_colours(tools: Tools, film: Path) -> None:
    entries = "frame=key_frame,pts,pkt_dts,pict_type,color_range,color_space"
    rows = tools.probe("-select_streams", "v", "-show_frames", "-show_entries", entries, film)
    # Side data may add lines; a frame's line begins with its key flag.
    rows = [row for row in rows if row[0] in ("0", "1")]
    with vcfilter.open(film) as container:
        pts = [str(frame.pts) for frame in container.decode(video=0)]
    assert [row[1] for row in rows] == pts
    assert [row[2] for row in rows] == pts
    assert [row[0] for row in rows] == ["1" if n % 6 == 0 else "0" for n in range(FRAMES)]
    assert [row[3] for row in rows] == ["I" if n % 6 == 0 else "B" for n in range(FRAMES)]
    assert {tuple(row[4:]) for row in rows} == {("tv", "bt709")}


@pytest.mark.parametrize("first", [0, 4, 6, 9])
def test_seek_before_input(tools: Tools, film: Path, expected: list[str], first: int) -> None:
    start = f"{(first - 0.5) / RATE if first else 0:.6f}"
    assert tools.hashes("-ss", start, "-i", film) == expected[first:]


def test_seek_after_input_and_duration(tools: Tools, film: Path, expected: list[str]) -> None:
    start, span = f"{3.5 / RATE:.6f}", f"{5 / RATE:.6f}"
    assert tools.hashes("-i", film, "-ss", start) == expected[4:]
    assert tools.hashes("-i", film, "-ss", start, "-t", span) == expected[4:9]
    assert tools.hashes("-t", span, "-i", film) == expected[:5]


def test_goes_on_after_the_end(tools: Tools, film: Path, expected: list[str]) -> None:
    """Drained, flushed and used again."""
    assert tools.hashes("-stream_loop", "1", "-i", film) == expected * 2


def test_keyframes_alone(tools: Tools, film: Path, expected: list[str]) -> None:
    assert tools.hashes("-skip_frame", "nokey", "-i", film) == expected[::6]


def test_filters_and_two_inputs(tools: Tools, film: Path, tmp_path: Path) -> None:
    """Scaled, and two decoders beside each other: as from the decoded pictures."""
    plain = tmp_path / "plain.nut"
    tools.ffmpeg("-i", film, "-map", "0:v", "-c:v", "rawvideo", plain)
    scale = ["-vf", "scale=40:30:flags=bitexact"]
    assert tools.hashes("-i", film, *scale) == tools.hashes("-i", plain, *scale)
    stack = ["-filter_complex", "[0:v]hflip[a];[a][1:v]hstack", "-an", "-f", "framemd5", "-"]
    one = tools.ffmpeg("-i", film, "-i", film, *stack)
    two = tools.ffmpeg("-i", plain, "-i", plain, *stack)
    assert one.splitlines()[-FRAMES:] == two.splitlines()[-FRAMES:]


def test_damaged_packet(tools: Tools, film: Path, tmp_path: Path) -> None:
    """The same frames fall out as in Python, the rest is right, and somebody is told."""
    tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", tmp_path / "film.vcf")
    data = bytearray((tmp_path / "film.vcf").read_bytes())
    packets = pictures(film)
    place = data.find(packets[6]) + len(packets[6]) // 2  # a keyframe
    data[place] ^= 0x10
    (tmp_path / "damaged.vcf").write_bytes(data)
    decoder = Decoder()
    with RawDemuxer(tmp_path / "damaged.vcf") as demuxer:
        frames: list[Frame] = []
        for packet in demuxer:
            assert packet.pts is not None
            frames += decoder.decode(
                Packet(data=packet.data, pts=packet.pts, is_keyframe=packet.is_keyframe)
            )
        frames += decoder.decode(None)
    assert 0 < len(frames) < FRAMES
    wanted = [md5(*(plane.tobytes() for plane in frame.planes)) for frame in frames]
    assert tools.hashes("-i", tmp_path / "damaged.vcf") == wanted


# --- encoding ------------------------------------------------------------------------------------


def test_encodes_what_python_encodes(tools: Tools, source: Path, tmp_path: Path) -> None:
    """The same packets as from Python's encoder, so its reconstruction is what is decoded."""
    tools.ffmpeg("-i", source, *FLAGS, "-c:a", "copy", tmp_path / "out.mkv")
    with vcfilter.open(source) as container:
        sent = [planes(frame) for frame in container.decode(video=0)]
    with Demuxer(str(tmp_path / "out.mkv")) as demuxer:
        header = SequenceHeader.read(demuxer.streams[0].extradata)
    fmt = header.video_format
    assert (fmt.width, fmt.height, fmt.bit_depth) == (66, 50, 8)
    assert (fmt.colorspace, fmt.color_range) == (1, 1)
    encoder = Encoder(fmt, OPTIONS)
    packets: list[Packet] = []
    for pts, (y, u, v) in enumerate(sent):
        packets += encoder.encode(Frame(y=y, u=u, v=v, pts=pts))
    packets += encoder.encode(None)
    assert pictures(tmp_path / "out.mkv") == [packet.data for packet in packets]
    # Python's own decoder and FFmpeg's give the same from it.
    assert python_hashes(tmp_path / "out.mkv") == tools.hashes("-i", tmp_path / "out.mkv")
    with Demuxer(str(tmp_path / "out.mkv")) as after, Demuxer(str(source)) as before:
        kinds = [info.kind for info in after.streams]
        assert kinds == ["video", "audio"]
        sound = [p.data for p in after if p.stream_index == 1]
        assert sound == [p.data for p in before if p.stream_index == 1]


def test_encoded_times_are_the_source_s(tools: Tools, source: Path, tmp_path: Path) -> None:
    tools.ffmpeg("-i", source, *FLAGS, "-an", tmp_path / "out.mkv")
    with vcfilter.open(source) as before, vcfilter.open(tmp_path / "out.mkv") as after:
        wanted = [frame.pts * frame.time_base for frame in before.decode(video=0)]
        got = [frame.pts * frame.time_base for frame in after.decode(video=0)]
    assert len(got) == FRAMES
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= Fraction(1, 1000)


def test_options_reach_the_encoder(tools: Tools, source: Path, tmp_path: Path) -> None:
    def size(name: str, *flags: str) -> int:
        path = tmp_path / f"{name}.vcf"
        tools.ffmpeg("-i", source, "-c:v", "vcfilter", "-preset", "ultrafast", *flags, path)
        return sum(map(len, pictures_of(path)))

    fine, coarse = size("fine", "-qp", "20"), size("coarse", "-qp", "44")
    assert coarse < 0.7 * fine
    assert size("bitrate", "-b:v", "20k") < fine
    assert size("quality", "-quality", "24") < fine
    keys = size("keys", "-qp", "44", "-g", "1")
    assert keys > coarse
    assert all(not data[0] & 0x80 for data in pictures_of(tmp_path / "keys.vcf"))


def test_sample_aspect_ratio_passes(tools: Tools, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.vcf"
    tools.ffmpeg("-i", source, "-frames:v", "1", *FLAGS, "-aspect", "2:1", path)
    rows = tools.probe("-show_frames", "-show_entries", "frame=sample_aspect_ratio", path)
    assert rows[0] == ["50:33"]  # 2 * 50 / 66


def test_refused_options_are_told(tools: Tools, source: Path, tmp_path: Path) -> None:
    done = tools.run(
        "ffmpeg", "-y", "-i", source, *FLAGS, "-b:v", "100k", "-an", tmp_path / "out.mkv"
    )
    assert done.returncode != 0
    assert b"qp and bitrate exclude each other" in done.stderr


def test_help_lists_the_presets(tools: Tools) -> None:
    text = tools.run("ffmpeg", "-h", "encoder=vcfilter").stdout.decode()
    for word in ("-qp", "-quality", "-worker", "-worker_timeout", *PRESETS):
        assert word in text.split(), word


# --- raw streams ---------------------------------------------------------------------------------


def test_joined_raw_streams(tools: Tools, film: Path, expected: list[str], tmp_path: Path) -> None:
    """Two parts of other time bases play one after the other: by name, by pipe, after a seek."""
    tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", tmp_path / "a.vcf")
    copy = EncoderOptions(qp=32, preset="ultrafast", keyint=6)
    source = make_film(tmp_path / "s.mkv", frames=FRAMES, rate=30, width=66, height=50)
    vcfilter.encode_file(str(source), str(tmp_path / "b.vcf"), copy)
    joined = tmp_path / "joined.vcf"
    joined.write_bytes((tmp_path / "a.vcf").read_bytes() + (tmp_path / "b.vcf").read_bytes())
    both = expected + python_hashes(tmp_path / "b.vcf")
    assert tools.hashes("-i", joined) == both
    with RawDemuxer(joined) as demuxer:
        packets = list(demuxer)
    wanted = [[str(p.pts), str(p.duration), "K_" if p.is_keyframe else "__"] for p in packets]
    entries = ["-show_entries", "packet=pts,duration,flags"]
    got = tools.probe(*entries, joined)
    assert [[*row[:2], row[2][:2]] for row in got] == wanted
    start = packets[FRAMES + 7].pts
    assert start is not None
    second = f"{start / 1000 - 0.002:.3f}"
    assert tools.hashes("-ss", second, "-i", joined) == both[FRAMES + 7 :]


def test_raw_stream_through_pipes(tools: Tools, film: Path, expected: list[str]) -> None:
    raw = tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", "-f", "vcf", "-")
    command = [str(BUILD / "bin" / "ffmpeg"), "-v", "error", "-i", "-", "-vsync", "passthrough"]
    done = subprocess.run(
        [*command, "-f", "framemd5", "-"],
        env=tools.environment, input=raw, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert [line.split(",")[-1].strip() for line in lines if line[0] != "#"] == expected


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:16], "no keyframe"),
        (lambda data: data[:8] + bytes(8) + data[16:], ""),
        (lambda data: data[:16] + b"\xff" * 4 + data[20:], "no keyframe"),
        (lambda data: data[:60], "no keyframe"),
    ],
)
def test_damaged_raw_streams_are_refused(
    tools: Tools, film: Path, tmp_path: Path, change: object, sentence: str
) -> None:
    raw = tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", "-f", "vcf", "-")
    assert callable(change)
    (tmp_path / "bad.vcf").write_bytes(change(raw))
    done = tools.run("ffprobe", "-f", "vcf", tmp_path / "bad.vcf")
    assert done.returncode != 0
    assert sentence in done.stderr.decode()


def test_muxer_takes_nothing_else(tools: Tools, source: Path, tmp_path: Path) -> None:
    done = tools.run("ffmpeg", "-y", "-i", source, "-c", "copy", "-f", "vcf", tmp_path / "x.vcf")
    assert done.returncode != 0


# --- the worker ----------------------------------------------------------------------------------


def test_probing_starts_no_worker(tools: Tools, film: Path) -> None:
    """Streams are told from their headers; a worker that cannot start does not matter."""
    alone = Tools(environment={**tools.environment, "VCFILTER_WORKER": "exit 3"})
    del alone.environment["VCFILTER_WORKER_SOCKET"]
    entries = "stream=codec_name,width,pix_fmt"
    assert alone.probe("-select_streams", "v", "-show_entries", entries, film) == [
        ["vcfilter", "66", "yuv420p"]
    ]


def test_missing_worker_is_told(tools: Tools, film: Path, source: Path, tmp_path: Path) -> None:
    alone = Tools(environment={**tools.environment, "VCFILTER_WORKER": "/nowhere/vcfilter"})
    del alone.environment["VCFILTER_WORKER_SOCKET"]
    done = alone.run("ffmpeg", "-i", film, "-f", "null", "-")
    assert done.returncode != 0
    text = done.stderr.decode()
    assert text.count("VCFILTER_WORKER") == 1  # once, not for each packet
    done = alone.run("ffmpeg", "-y", "-i", source, *FLAGS, "-an", tmp_path / "out.mkv")
    assert done.returncode != 0
    assert "VCFILTER_WORKER" in done.stderr.decode()


def test_starts_its_own_worker(tools: Tools, film: Path, expected: list[str]) -> None:
    alone = Tools(environment=dict(tools.environment))
    del alone.environment["VCFILTER_WORKER_SOCKET"]
    assert alone.hashes("-worker", WORKER, "-i", film) == expected


@pytest.mark.parametrize("victim", ["worker", "player"])
def test_killed_in_the_middle(tools: Tools, film: Path, victim: str) -> None:
    """A worker that dies is an error with a sentence; a player that dies takes it along."""
    environment = {k: v for k, v in tools.environment.items() if k != "VCFILTER_WORKER_SOCKET"}
    command = [str(BUILD / "bin" / "ffmpeg"), "-v", "warning", "-re", "-stream_loop", "8"]
    player = subprocess.Popen(
        [*command, "-i", str(film), "-map", "0:v", "-f", "framemd5", "-flush_packets", "1", "-"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with player:
        assert player.stdout is not None
        while (line := player.stdout.readline()) and line.startswith(b"#"):
            pass  # then the first frame is there
        children = Path(f"/proc/{player.pid}/task").glob("*/children")
        (worker,) = {int(pid) for file in children for pid in file.read_text().split()}
        os.kill(worker if victim == "worker" else player.pid, signal.SIGKILL)
        _, text = player.communicate(timeout=60)
    # What its exit status makes of frames that were decoded before is ffmpeg's own affair.
    if victim == "worker":
        assert text.count(b"worker was ended") == 1  # for all packets that were still to come
    else:
        assert player.returncode == -signal.SIGKILL
    limit = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and not _is_zombie(worker):
        assert time.monotonic() < limit, "the worker goes on alone"
        time.sleep(0.1)


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
@pytest.mark.slow
def test_valgrind_has_nothing_to_say(tools: Tools, film: Path, tmp_path: Path) -> None:
    """Decoder with a seek, encoder, raw container: no wrong access, nothing lost."""
    command = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full",
               "--errors-for-leak-kinds=definite", str(BUILD / "bin" / "ffmpeg"), "-v", "error",
               "-threads", "1", "-ss", "0.1", "-i", str(film), "-map", "0:v", *FLAGS,
               str(tmp_path / "out.vcf")]  # fmt: skip
    done = subprocess.run(
        command, env=tools.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=240
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert len(pictures_of(tmp_path / "out.vcf")) == FRAMES - 3


def _is_zombie(pid: int) -> bool:
    """Dead, and not yet waited for by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


# --- the libraries -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Libraries:
    """Runs the system's own programs with the libraries that know the codec."""

    wrapper: Path
    environment: dict[str, str]

    def run(self, program: str, *arguments: str | Path) -> str:
        """What a program that succeeds says, on standard output and error."""
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        done = subprocess.run(
            [str(self.wrapper), program, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()


@pytest.fixture(scope="module")
def libraries(tools: Tools) -> Libraries:
    wrapper = BUILD / "bin" / "vcfilter-env"
    if not wrapper.is_file():
        reason = f"no libraries in {BUILD}: run sh ffmpeg_bridge/ffmpeg/build.sh libraries"
        if REQUIRED == "libraries":
            pytest.fail(reason)
        pytest.skip(reason)
    drivers = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    return Libraries(wrapper=wrapper, environment={**tools.environment, **drivers})


def test_installed_ffmpeg(libraries: Libraries, film: Path, expected: list[str]) -> None:
    out = libraries.run(
        "ffmpeg", "-v", "error", "-i", film, "-map", "0:v", "-vsync", "passthrough",
        "-f", "framemd5", "-",
    )  # fmt: skip
    lines = [line for line in out.splitlines() if line[0] != "#"]
    assert [line.split(",")[-1].strip() for line in lines] == expected


def test_installed_ffplay(libraries: Libraries, film: Path) -> None:
    """Plays picture and sound to the end, every picture once."""
    out = libraries.run(
        "ffplay", "-nostats", "-autoexit", "-noframedrop", "-vf", "showinfo", "-af", "ashowinfo",
        film,
    )  # fmt: skip
    assert re.findall(r"_showinfo_.* n: *(\d+) ", out) == [str(n) for n in range(FRAMES)]
    with vcfilter.open(film) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert sum(map(int, re.findall(r"ashowinfo.* nb_samples:(\d+)", out))) == samples > 0


@pytest.mark.parametrize("first", [0, 8])
def test_installed_mpv(libraries: Libraries, film: Path, tmp_path: Path, first: int) -> None:
    """Plays picture and sound to the end, from any place; each picture becomes a file."""
    out = libraries.run(
        "mpv", "--no-config", "--ao=null", "--framedrop=no", "--vo=image",
        f"--vo-image-outdir={tmp_path}", f"--start={max(0, first - 0.5) / RATE:.6f}", film,
    )  # fmt: skip
    assert "Exiting... (End of file)" in out
    assert "AO: [null]" in out
    assert len(list(tmp_path.glob("*.jpg"))) == FRAMES - first
