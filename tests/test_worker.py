"""The codec worker and its C client: whole streams, and every way in which one of them can end.

Small C programs in tests/c are built with AddressSanitizer and drive the client.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from synthetic import clip

from vcfilter.codec import Decoder, Encoder
from vcfilter.errors import BitstreamError
from vcfilter.frames import (
    ContentLight,
    FieldOrder,
    Frame,
    MasteringDisplay,
    Packet,
    VideoFormat,
)
from vcfilter.options import EncoderOptions, Runtime

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "tests/c/worker_client.c", *(ROOT / "ffmpeg_bridge/ffmpeg").glob("vcf_*.c")]
WORKER = f"{shlex.quote(sys.executable)} -m vcfilter worker --threads 1 --device cpu"
SETTINGS = "qp=30:preset=ultrafast:keyint=5"
OPTIONS = EncoderOptions(qp=30, preset="ultrafast", keyint=5)
RUNTIME = Runtime(device="cpu", threads=1)
SMALL = VideoFormat(
    width=64, height=48, sample_aspect_ratio=(4, 3), color_primaries=6, colorspace=5,
    color_range=1, chroma_location=1, field_order=FieldOrder.TOP_FIRST,
    mastering=MasteringDisplay(
        primaries=((35400, 14600), (8500, 39850), (6550, 2300)), white_point=(15635, 16450),
        luminance=(50, 40_000_000),
    ),
    content_light=ContentLight(max_content=1000, max_average=400),
)  # fmt: skip
LIMIT = 120  # seconds; only a fault of the client or the worker comes near


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A clip in both forms, and what the client must print when it decodes it."""

    folder: Path
    video_format: VideoFormat
    frames: Path
    packets: Path
    extradata: bytes
    coded: list[Packet]
    lines: list[str]

    def with_packets(self, name: str, packets: list[Packet]) -> Path:
        """A file with other packets."""
        path = self.folder / name
        path.write_bytes(packet_file(self.extradata, packets))
        return path


def packet_file(extradata: bytes, packets: list[Packet]) -> bytes:
    parts = [struct.pack("=I", len(extradata)) + extradata]
    for p in packets:
        parts.append(struct.pack("=qqBI", p.pts, p.duration, p.is_keyframe, len(p.data)) + p.data)
    return b"".join(parts)


def format_numbers(f: VideoFormat) -> list[int]:
    hdr = [0] * 12
    if f.mastering:
        points = (*f.mastering.primaries, f.mastering.white_point, f.mastering.luminance)
        hdr[:10] = [value for point in points for value in point]
    if f.content_light:
        hdr[10:] = [f.content_light.max_content, f.content_light.max_average]
    known = bool(f.mastering) + 2 * bool(f.content_light)
    return [f.width, f.height, f.bit_depth, *f.sample_aspect_ratio, f.color_primaries, f.color_trc,
            f.colorspace, f.color_range, f.chroma_location, f.rotation, int(f.mirrored),
            int(f.field_order), known, *hdr]  # fmt: skip


def line(frame: Frame, f: VideoFormat) -> str:
    """What worker_client prints about a decoded frame."""
    value = 14695981039346656037
    for byte in b"".join(plane.tobytes() for plane in frame.planes):
        value = (value ^ byte) * 1099511628211 & (1 << 64) - 1
    key = 1 - int(frame.type)
    text = f"{f.width}x{f.height} {f.bit_depth} {'/'.join(map(str, f.sample_aspect_ratio))}"
    rest = " ".join(map(str, format_numbers(f)[5:]))
    return f"frame {frame.pts} {frame.duration} {key} {text} {rest} {value:016x}"


def decode(extradata: bytes | None, packets: list[Packet]) -> tuple[list[Frame], Decoder]:
    """What vcfilter.Decoder makes of packets, those that it refuses left out."""
    decoder = Decoder(extradata, runtime=RUNTIME)
    frames = []
    for packet in [*packets, None]:
        with contextlib.suppress(BitstreamError):
            frames += decoder.decode(packet)
    return frames, decoder


def make(
    folder: Path, video_format: VideoFormat, count: int, forced: tuple[int, ...] = ()
) -> Material:
    frames = clip(count, video_format, first_pts=-700, ticks=512)
    encoder = Encoder(video_format, OPTIONS, runtime=RUNTIME)
    coded = []
    for n, frame in enumerate(frames):
        coded += encoder.encode(frame, force_key=n in forced)
    coded += encoder.encode(None)
    decoded, _ = decode(encoder.extradata, coded)
    folder.mkdir(exist_ok=True)
    data = struct.pack("=26I", *format_numbers(video_format))
    for n, f in enumerate(frames):
        planes = b"".join(plane.tobytes() for plane in f.planes)
        data += struct.pack("=qqB", f.pts, f.duration, n in forced) + planes
    (folder / "frames").write_bytes(data)
    (folder / "packets").write_bytes(packet_file(encoder.extradata, coded))
    return Material(
        folder=folder,
        video_format=video_format,
        frames=folder / "frames",
        packets=folder / "packets",
        extradata=encoder.extradata,
        coded=coded,
        lines=[line(frame, video_format) for frame in decoded],
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make(tmp_path_factory.mktemp("material"), SMALL, 14)


def build(target: Path, *flags: str) -> Path:
    words = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1", *flags]
    words += [f"-I{SOURCES[1].parent}", *map(str, SOURCES), "-o", str(target), "-pthread"]
    subprocess.run(words, check=True)
    return target


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """worker_client with sanitizers: any fault of memory, or a leak, fails the test."""
    folder = tmp_path_factory.mktemp("client")
    return build(folder / "client", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def plain_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plain") / "client")


def environment(mark: str, command: str, path: str | Path = "") -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VCFILTER_WORKER": command,
        "VCFILTER_WORKER_SOCKET": str(path),
        "VCFILTER_TEST_MARK": mark,  # by it all processes of a test are found
    }


def marked(mark: str) -> list[int]:
    """Processes that a test has left."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"VCFILTER_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


def wait_until(condition: object, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def shared_names() -> set[str]:
    """Names of shared memory, less those that Python's multiprocessing gives, whoever runs it."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


@pytest.fixture
def mark() -> Iterator[str]:
    """A name for the test's processes; none of them may be left, nor shared memory with a name."""
    before = shared_names()
    name = uuid.uuid4().hex
    yield name
    assert wait_until(lambda: not marked(name), 5), "processes are left"
    assert shared_names() <= before


def maps_of(folder: Path) -> int:
    """Maps of shared memory of a worker, from its folder under /proc."""
    return (folder / "maps").read_text().count("memfd:vcfilter")


def run(
    program: Path, *words: object, mark: str = "", command: str = "/no/worker", path: object = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, words)],
        env=environment(mark, command, str(path)),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A worker that listens."""

    process: subprocess.Popen[bytes]
    path: Path

    def counts(self) -> tuple[int, int, int]:
        """Descriptors, maps of shared memory, resident KiB."""
        folder = Path(f"/proc/{self.process.pid}")
        resident = int((folder / "statm").read_text().split()[1]) * 4
        return len(os.listdir(folder / "fd")), maps_of(folder), resident


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    path = tmp_path_factory.mktemp("warm") / "socket"
    log = path.with_name("log")
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*shlex.split(WORKER), "--listen", str(path)],
            env=environment("warm", ""),
            cwd="/",
            stderr=said,
        )
    assert wait_until(lambda: "vcfilter: listens on" in log.read_text(), LIMIT)
    yield Warm(process=process, path=path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not path.exists()
    assert log.read_text().endswith("vcfilter: stopped\n")


# --- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-x"]], ids=["extradata", "keyframes alone"])
def test_decodes_as_python_does(
    client: Path, warm: Warm, material: Material, words: list[str]
) -> None:
    done = run(client, *words, "decode", material.packets, path=warm.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == material.lines


def test_encodes_as_python_does(
    plain_client: Path, client: Path, warm: Warm, material: Material
) -> None:
    for program in (plain_client, client):
        done = subprocess.run(
            [str(program), "encode", str(material.frames), SETTINGS],
            env=environment("", "/no/worker", warm.path), capture_output=True, timeout=LIMIT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == material.packets.read_bytes()


@pytest.mark.parametrize("depth", [8, 10])
def test_odd_sizes_and_ten_bit(client: Path, warm: Warm, tmp_path: Path, depth: int) -> None:
    odd = make(tmp_path, VideoFormat(width=51, height=37, bit_depth=depth, rotation=90), 4)
    done = run(client, "decode", odd.packets, path=warm.path)
    assert done.stdout.splitlines() == odd.lines
    coded = subprocess.run(
        [str(client), "encode", str(odd.frames), SETTINGS],
        env=environment("", "/no/worker", warm.path), capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    assert coded.stdout == odd.packets.read_bytes()


@pytest.mark.parametrize("count", [1, 7, 13])
def test_flush_forgets_what_was_sent(
    client: Path, warm: Warm, material: Material, count: int
) -> None:
    done = run(client, "seek", material.packets, count, path=warm.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == 2 * material.lines


@pytest.mark.slow
def test_valgrind_has_nothing_to_say(plain_client: Path, warm: Warm, material: Material) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    words = ["valgrind", "-q", "--leak-check=full", "--error-exitcode=9", str(plain_client)]
    for command in (
        ["seek", str(material.packets), "9"],
        ["encode", str(material.frames), SETTINGS],
    ):
        done = subprocess.run(
            [*words, *command], env=environment("", "/no/worker", warm.path),
            capture_output=True, timeout=LIMIT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_one_worker_serves_all_streams_of_a_process(
    client: Path, material: Material, tmp_path: Path, mark: str
) -> None:
    log = tmp_path / "starts"
    command = f"sh -c 'echo start >>{log}; exec {WORKER}'"
    done = run(client, "threads", material.packets, 3, command=command, mark=mark)
    assert (done.returncode, done.stderr) == (0, "")
    streams = done.stdout.split("thread ")[1:]
    assert [text.splitlines()[1:] for text in streams] == [material.lines] * 3
    assert log.read_text() == "start\n"


@pytest.mark.slow
def test_a_socket_where_nobody_listens_is_no_obstacle(
    client: Path, material: Material, tmp_path: Path, mark: str
) -> None:
    done = run(
        client, "decode", material.packets, command=WORKER, path=tmp_path / "none", mark=mark
    )
    assert done.stdout.splitlines() == material.lines


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [2, 5, 13], ids=["inter", "key", "last"])
def test_damage_is_told_and_left_out_as_in_python(
    client: Path, warm: Warm, material: Material, damaged: int
) -> None:
    packets = list(material.coded)
    data = bytearray(packets[damaged].data)
    data[len(data) // 2] ^= 0x20
    packets[damaged] = replace(packets[damaged], data=bytes(data))
    frames, decoder = decode(material.extradata, packets)
    path = material.with_packets("damaged", packets)
    done = run(client, "decode", path, path=warm.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [x for x in lines if x.startswith("frame")] == [line(f, SMALL) for f in frames]
    errors = [x for x in lines if not x.startswith("frame")]
    assert len(frames) < 14
    assert decoder.dropped_damaged == 1
    assert errors[0].startswith("error -5 ")
    assert sum("damaged" in x for x in errors) == 1
    assert any("without a reference" in x for x in errors) is (
        decoder.dropped_missing_reference > 0
    )


def test_nothing_but_damage(client: Path, warm: Warm, material: Material) -> None:
    rubbish = [replace(p, data=bytes(40), pts=n) for n, p in enumerate(material.coded * 20)]
    path = material.with_packets("rubbish", rubbish)
    done = run(client, "decode", path, path=warm.path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(rubbish)
    assert set(done.stdout.splitlines()) == {
        "error -5 1 packet is damaged: left out, decoding goes on"
    }


def test_another_model_is_refused_when_opening(
    client: Path, warm: Warm, material: Material
) -> None:
    header = bytearray(material.extradata[:-2])
    header[8] ^= 1
    header += (zlib.crc32(bytes(header)) & 0xFFFF).to_bytes(2, "big")
    path = material.folder / "foreign"
    path.write_bytes(packet_file(bytes(header), material.coded))
    done = run(client, "decode", path, path=warm.path)
    assert done.returncode == 1
    assert done.stdout.startswith("error -5 ")
    assert header[6:14].hex() in done.stdout


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("qp=77", "qp 77 is outside 0 to 63"),
        ("speed=3", "setting 'speed' is not one of crf, qp,"),
        ("qp", "setting 'qp' has no value: write qp=VALUE"),
        ("frame_rate=1/0", "frame_rate '1/0' is not a number"),
        ("frame_rate=1e30000000", "frame_rate '1e30000000' is not a number"),
        ("scenecut=2", "scenecut '2' is not yes or no"),
        ("model=/etc/passwd", "the model is chosen by the worker's command"),
        ("qp=30:bitrate=100000", "qp and bitrate exclude each other"),
    ],
)
def test_settings_are_checked(
    client: Path, warm: Warm, material: Material, settings: str, reason: str
) -> None:
    done = run(client, "encode", material.frames, settings, path=warm.path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error -6 {reason}")


def test_formats_are_checked(client: Path, warm: Warm, tmp_path: Path) -> None:
    for numbers in ([15, 48, 8], [64, 48, 12], [4096, 4096, 8]):
        path = tmp_path / "frames"
        path.write_bytes(struct.pack("=26i", *numbers, 1, 1, 2, 2, 2, *[0] * 18))
        done = run(client, "encode", path, "", path=warm.path)
        assert done.stderr.startswith("error -6 ")


def test_a_frame_out_of_order_is_refused_and_the_rest_goes_on(
    client: Path, warm: Warm, material: Material, tmp_path: Path
) -> None:
    data = material.frames.read_bytes()
    head, size = 104, 17 + 64 * 48 * 3 // 2
    path = tmp_path / "frames"
    third = head + 3 * size
    path.write_bytes(data[:third] + data[head : head + size] + data[third:])
    done = subprocess.run(
        [str(client), "encode", str(path), SETTINGS],
        env=environment("", "/no/worker", warm.path), capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == b"error -6 frame with pts -700 comes after one with 324\n"
    assert done.stdout == material.packets.read_bytes()


# --- faults --------------------------------------------------------------------------------------


def started(client: Path, material: Material, mark: str, *words: str) -> subprocess.Popen[str]:
    """A client that has had its first frame from a worker of its own."""
    process = subprocess.Popen(
        [str(client), *words, "hold", str(material.packets)],
        env=environment(mark, WORKER), cwd="/", text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def worker_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def test_a_worker_that_is_killed(client: Path, material: Material, mark: str) -> None:
    process = started(client, material, mark)
    os.kill(worker_of(process), signal.SIGKILL)
    out, errors = process.communicate("go on\n", timeout=LIMIT)
    assert process.returncode == 1
    assert out.splitlines()[-1].startswith("error -2 the codec worker was ended by signal 9")
    assert errors == ""


@pytest.mark.slow
def test_a_worker_that_hangs(client: Path, material: Material, mark: str) -> None:
    process = started(client, material, mark, "-t", "8000")
    worker = worker_of(process)
    os.kill(worker, signal.SIGSTOP)
    out, _ = process.communicate("go on\n", timeout=LIMIT)
    assert process.returncode == 1
    assert out.splitlines()[-1].startswith("error -3 the codec worker gave no sign of life")
    assert not Path(f"/proc/{worker}").exists()


def fake(tmp_path: Path, body: str) -> str:
    """The command of a worker that greets, and then does what the body says."""
    script = tmp_path / "fake.py"
    script.write_text(
        "import os, socket, struct, sys, time\n"
        "sys.excepthook = lambda *error: os._exit(0)\n"  # the client has left
        "s = socket.socket(fileno=0)\n"
        "def say(kind, stream=0, body=b''):\n"
        "    s.sendall(struct.pack('<III', len(body), kind, stream) + body)\n"
        "def hear():\n"
        "    size, kind, stream = struct.unpack('<III', s.recv(12, socket.MSG_WAITALL))\n"
        "    return kind, stream, s.recv(size, socket.MSG_WAITALL) if size else b''\n"
        "def greet(version=2):\n"
        "    hear(); say(16, 0, b'VCFW' + struct.pack('<I', version) + b'fake 7')\n" + body
    )
    return f"{shlex.quote(sys.executable)} -S {script}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("greet(3)\nhear()\n", "error -4 the codec worker (fake 7) speaks version 3 of the"),
        ("s.sendall(b'Python 3.11.2 (main)\\n' * 9)\nhear()\n", "error -4 the codec worker sent a"),
        ("greet()\nhear()\nsay(99, 1)\nhear()\n", "error -4 the codec worker broke the"),
        ("greet()\nsay(19, 1, bytes(32))\nhear()\nhear()\n", "error -4 the codec worker broke the"),
        ("greet()\nhear()\nsay(20, 1, bytes(25))\nhear()\n", "error -4 the codec worker broke the"),
        ("greet()\ns.sendall(b'\\xff' * 12)\nhear()\n", "error -4 the codec worker sent a"),
        ("sys.exit(3)\n", "error -1 the codec worker ({}) ended with status 3 before it answ"),
        ("greet()\nhear()\nos.kill(os.getpid(), 9)\n", "error -2 the codec worker was ended by"),
        ("time.sleep(99)\n", "error -3 the codec worker gave no sign of life for 700 ms"),
        ("greet()\ntime.sleep(99)\n", "error -3 the codec worker gave no sign of life for 700"),
        ("greet()\nhear()\ns.send(b'\\x04')\ntime.sleep(99)\n", "error -3 the codec worker gave"),
        ("greet()\nhear()\nfor i in range(15):\n    say(26)\n    time.sleep(0.3)\n"
         "say(25, 1, struct.pack('<i', -8) + b'so be it')\nhear()\n", "error -8 so be it"),
    ],
    ids=["version", "text", "kind", "memory", "frame", "length", "exit", "kill", "silent",
         "late", "half", "alive"],
)  # fmt: skip
def test_workers_that_are_none(
    client: Path, material: Material, tmp_path: Path, mark: str, body: str, expected: str
) -> None:
    command = fake(tmp_path, body)
    # Short where the limit must pass; where it must not, long enough for a busy machine.
    limit = {"error -3": 700, "error -8": 2500}.get(expected[:8], 20000)
    done = run(client, "-t", limit, "decode", material.packets, command=command, mark=mark)
    assert done.returncode == 1
    assert done.stdout.startswith(expected.format(command))
    assert "Sanitizer" not in done.stderr


HOSTILE = """
def shared(size):
    import fcntl
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd
def memory(count, size, fd, *places):
    body = struct.pack('<8I', count, size, *(places or (0, 64, 4096, 64, 6144, 64)))
    socket.send_fds(s, [struct.pack('<III', len(body), 19, 1) + body], [fd])
def format(**other):
    numbers = dict(width=64, height=48, depth=8, num=0, den=1, p=2, t=2, m=2, r=0, c=0, rot=0,
                   mir=0, order=0, known=0)
    numbers.update(other)
    say(18, 1, struct.pack('<26i', *numbers.values(), *[0] * 12))
def done(ahead=1):
    say(22, 1, struct.pack('<IIIi', 0, 0, ahead, 0))
"""
DECODER = (
    HOSTILE
    + """
greet(); hear()
format(); memory(2, 8192, shared(16384)); say(17, 1, struct.pack('<I', 1))
hear()
def frame(slot, flags=1):
    say(20, 1, struct.pack('<IIqqB', 0, slot, 0, 0, flags))
"""
)
ENCODER = (
    HOSTILE
    + """
greet(); hear()
memory(2, 8192, shared(16384)); say(17, 1, struct.pack('<I', 1) + b'extradata')
"""
)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("frame(1); done(); memory(2, 0x7fff0000, shared(16384))", 1),
        ("frame(1); done(); memory(1 << 10, 0xffffffff, shared(16384), 4096, 64, 0, 64, 0, 64)", 1),
        ("frame(1); done(); format(width=128)", 1),
        ("frame(1); done(); format(order=6)", 1),
        ("frame(1); done(); format(den=0)", 1),
        ("frame(1); done(); format(width=4096, height=4096)", 1),
        ("frame(2)", 0),
        ("frame(0, 4)", 0),
        ("s.sendall(2 * struct.pack('<IIIIIqqB', 25, 20, 1, 0, 1, 0, 0, 1))", 1),
        ("s.sendall(2 * struct.pack('<IIIIIIi', 16, 22, 1, 0, 0, 1, 0))", 0),
        ("done(4096)", 0),
        ("say(21, 1, bytes(40))", 0),
    ],
)  # fmt: skip
def test_hostile_workers_of_a_decoder(
    client: Path, material: Material, tmp_path: Path, mark: str, body: str, lines: int
) -> None:
    """What the worker sends may end the stream; it never makes the client touch foreign memory."""
    command = fake(tmp_path, DECODER + body + "\nhear()\nhear()\n")
    done = run(client, "-t", 20000, "decode", material.packets, command=command, mark=mark)
    assert (done.returncode, done.stderr) == (1, "")
    *frames, last = done.stdout.splitlines()
    assert len(frames) <= lines  # one that came before may be shown, whole
    assert all(line.startswith("frame 0 0 1 64x48 8 0/1") for line in frames)
    assert last.startswith("error -4 the codec worker broke the protocol")


@pytest.mark.parametrize(
    "body",
    [
        "memory(2, 0x7fff0000, shared(16384))",
        "hear(); say(24, 1, bytes(4)); done(); memory(2, 0x7fff0000, shared(16384))",
        "hear(); say(24, 1, struct.pack('<I', 2))",
        "[say(24, 1, bytes(4)) for _ in range(64)]",  # more often than there are frames
        "hear(); say(20, 1, bytes(25))",
        "hear(); say(21, 1, bytes(16))",
    ],
)
def test_hostile_workers_of_an_encoder(
    client: Path, material: Material, tmp_path: Path, mark: str, body: str
) -> None:
    command = fake(tmp_path, ENCODER + body + "\nhear()\nhear()\nhear()\n")
    done = run(client, "-t", 20000, "encode", material.frames, "", command=command, mark=mark)
    assert done.returncode == 1
    assert done.stderr.startswith("error -4 the codec worker broke the protocol")
    assert "Sanitizer" not in done.stderr


@pytest.mark.parametrize(
    "memory",
    [
        "memory(3, 8192, shared(16384))",
        "memory(2, 8191, shared(16384), 0, 64, 4096, 64, 6657, 64)",
        "memory(2, 8192, shared(16384), 0, 63, 4096, 64, 6144, 64)",
        "memory(2, 8192, shared(16384), 0, 0x80000000, 4096, 64, 6144, 64)",
        "memory(2, 8192, shared(16384), 0xffffffff, 64, 4096, 64, 6144, 64)",
        "memory(2, 8192, os.memfd_create('unsealed'))",
        "memory(2, 8192, os.open('/dev/null', 0))",
        "memory(0, 8192, shared(16384))",
        "memory(1025, 1, shared(16384))",
    ],
)
def test_memory_that_does_not_hold_what_it_should(
    client: Path, material: Material, tmp_path: Path, mark: str, memory: str
) -> None:
    body = HOSTILE + f"greet(); hear()\nformat()\n{memory}\nhear()\n"
    command = fake(tmp_path, body)
    done = run(client, "-t", 20000, "decode", material.packets, command=command, mark=mark)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("error -4 the codec worker broke the protocol (message 19 of 32")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hostile") / "hostile_worker"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
    sources = [ROOT / "tests/c/hostile_worker.c", *SOURCES[1:]]
    words = ["gcc", *flags, f"-I{SOURCES[1].parent}", *map(str, sources), "-o", str(target)]
    subprocess.run([*words, "-pthread"], check=True)
    return target


@pytest.mark.parametrize(
    ("rounds", "seed"), [(600, 1), (600, 2), pytest.param(8000, 3, marks=pytest.mark.slow)]
)
def test_workers_that_send_random_messages(
    hostile: Path, tmp_path: Path, rounds: int, seed: int
) -> None:
    words = [str(hostile), str(tmp_path / "socket"), str(rounds), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3 * LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split("received ")[1]) > rounds // 3  # much of it was plausible


def test_a_keyframe_can_be_asked_for(client: Path, warm: Warm, tmp_path: Path) -> None:
    forced = make(tmp_path, SMALL, 8, forced=(2, 6))
    assert [n for n, packet in enumerate(forced.coded) if packet.is_keyframe] == [0, 2, 6]
    coded = subprocess.run(
        [str(client), "encode", str(forced.frames), SETTINGS],
        env=environment("", "/no/worker", warm.path), capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    assert (coded.returncode, coded.stderr) == (0, b"")
    assert coded.stdout == forced.packets.read_bytes()


def test_no_worker_at_all(client: Path, material: Material, mark: str) -> None:
    done = run(client, "decode", material.packets, command="/no/such/command", mark=mark)
    assert done.stdout.startswith(
        "error -1 the codec worker (/no/such/command) ended with status 127"
    )
    assert "VCFILTER_WORKER" in done.stdout


def test_after_a_failure_the_next_open_starts_another(
    client: Path, material: Material, tmp_path: Path, mark: str
) -> None:
    flag = tmp_path / "flag"
    command = f"sh -c 'if [ -e {flag} ]; then exec {WORKER}; fi; touch {flag}'"
    done = run(client, "next", material.packets, command=command, mark=mark)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error -1 ")
    assert lines[1:] == material.lines


@pytest.mark.slow
def test_a_client_that_is_killed_takes_its_worker_along(
    client: Path, material: Material, mark: str
) -> None:
    process = started(client, material, mark)
    worker = worker_of(process)
    process.kill()
    process.communicate()
    assert wait_until(lambda: not Path(f"/proc/{worker}").exists(), 5)


def test_a_client_that_is_killed_leaves_nothing_in_a_warm_worker(
    plain_client: Path, warm: Warm, material: Material
) -> None:
    before = warm.counts()
    for _ in range(3):
        process = subprocess.Popen(
            [str(plain_client), "hold", str(material.packets)],
            env=environment("", "/no/worker", warm.path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert warm.counts()[:2] != before[:2]
        process.kill()
        process.communicate()
    assert wait_until(lambda: warm.counts()[:2] == before[:2], 5)


@pytest.mark.slow
def test_a_hundred_opens_leave_nothing(plain_client: Path, material: Material, mark: str) -> None:
    """In one client and one worker: no descriptor, no shared memory, no growth."""
    process = subprocess.Popen(
        [str(plain_client), "-k", "opens", str(material.packets), "100"],
        env=environment(mark, WORKER), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    seen: list[tuple[int, ...]] = []
    for _ in range(2):
        _, opened, descriptors, resident = process.stdout.readline().split()
        folder = Path(f"/proc/{worker_of(process)}")
        # What was closed last is taken down by its own thread; then one stream's memory is left.
        assert wait_until(lambda folder=folder: maps_of(folder) == 1, 5)
        most = seen[0][6] if seen else 16
        assert wait_until(lambda f=folder, n=most: len(os.listdir(f / "task")) <= n, 5)
        time.sleep(1)
        memory = int((folder / "statm").read_text().split()[1]) * 4
        maps = maps_of(folder)
        seen.append(
            (int(opened), int(descriptors), len(os.listdir(folder / "fd")), maps,
             int(resident), memory, len(os.listdir(folder / "task")))
        )  # fmt: skip
        process.stdin.write("\n")
        process.stdin.flush()
    process.stdin.close()
    assert process.wait(LIMIT) == 0
    early, late = seen
    assert (early[0], late[0]) == (11, 100)
    assert early[1:4] == late[1:4]
    assert late[4] - early[4] < 1024  # KiB; a leaked frame a time would be 600
    assert late[5] - early[5] < 16 * 1024  # the allocator's unrest, not 90 of anything


@pytest.mark.slow
def test_a_hundred_starts_leave_nothing(
    plain_client: Path, material: Material, tmp_path: Path, mark: str
) -> None:
    """Each open starts a worker, here one without networks, and each close ends it."""
    script = tmp_path / "light.py"
    script.write_text(
        "from types import SimpleNamespace\n"
        "from vcfilter.worker import server\n"
        "codec = SimpleNamespace(video_format=None)\n"
        "codecs = SimpleNamespace(decoder=lambda extradata, look: codec, encoder=None)\n"
        "server.serve_standard_input(codecs)\n"
    )
    command = f"{shlex.quote(sys.executable)} {script}"
    done = run(plain_client, "-n", "opens", material.packets, 100, command=command, mark=mark)
    assert (done.returncode, done.stderr) == (0, "")
    early, late = (text.split() for text in done.stdout.splitlines())
    assert (early[1], late[1]) == ("11", "100")
    assert early[2] == late[2]
    assert int(late[3]) - int(early[3]) < 1024


# --- listening -----------------------------------------------------------------------------------


def test_the_socket_is_the_owners_alone(warm: Warm) -> None:
    mode = warm.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_another_user_is_turned_away(warm: Warm) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "print(s.recv(1))\n"
    )
    words = [sys.executable, "-S", "-c", code, str(warm.path)]
    folders = [parent for parent in warm.path.parents if parent != Path("/")]
    modes = [folder.stat().st_mode for folder in folders]
    try:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode | 0o111)  # the way to the socket is not what is tested
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
        assert "PermissionError" in done.stderr
        warm.path.chmod(0o666)
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
        assert done.stdout == "b''\n", done.stderr  # closed before a word was said
    finally:
        warm.path.chmod(0o600)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """A worker that listens and has no networks: its encoders and decoders code nothing."""

    process: subprocess.Popen[bytes]
    path: Path
    log: Path

    def connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.settimeout(20)
        found.connect(str(self.path))
        return found

    def greet(self) -> socket.socket:
        """A client that was welcomed."""
        found = self.connect()
        found.sendall(struct.pack("<III", 8, 1, 0) + b"VCFW" + struct.pack("<I", 2))
        size, kind, _ = struct.unpack("<III", found.recv(12, socket.MSG_WAITALL))
        assert (kind, found.recv(size, socket.MSG_WAITALL)[:4]) == (16, b"VCFW")
        return found


@pytest.fixture
def light(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Light]:
    """The parameter is Python code that is run before, with the module `server` at hand."""
    path, log = tmp_path / "socket", tmp_path / "log"
    code = (
        "import logging, resource, sys\n"
        "from types import SimpleNamespace\n"
        "from vcfilter.worker import connection, server\n"
        "clients = 64\n"
        "logging.basicConfig(format='%(message)s')\n"
        f"{request.param}\n"
        "codec = SimpleNamespace(video_format=None)\n"
        "codecs = SimpleNamespace(\n"
        "    load=lambda: None, decoder=lambda extradata, look: codec, encoder=None)\n"
        "server.listen(sys.argv[1], codecs, clients)\n"
    )
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=environment("light", ""), stderr=errors
        )
    assert wait_until(path.exists, LIMIT)
    yield Light(process=process, path=path, log=log)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(10)


FEW = "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))"


@pytest.mark.slow
@pytest.mark.parametrize("light", [FEW], indirect=True)
def test_a_worker_out_of_descriptors_serves_on(light: Light) -> None:
    first = light.greet()
    silent = [light.connect() for _ in range(40)]  # more than it can take
    assert wait_until(lambda: b"no client can be accepted" in light.log.read_bytes())
    first.sendall(struct.pack("<III", 0, 2, 1))  # OPEN_DECODER
    assert struct.unpack("<III", first.recv(12, socket.MSG_WAITALL))[1] == 17  # OPENED
    for each in silent:
        each.close()
    light.greet().close()
    first.close()
    assert light.process.poll() is None


@pytest.mark.parametrize("light", ["connection.HELLO_SECONDS = 0.5"], indirect=True)
@pytest.mark.parametrize("words", [b"", b"\x08\0\0\0\x01\0\0\0\0\0\0\0VC"])
def test_a_client_has_to_greet_in_time(light: Light, words: bytes) -> None:
    greeted = light.greet()
    with light.connect() as slow:
        slow.sendall(words)
        began = time.monotonic()
        assert slow.recv(1) == b""
        assert 0.3 < time.monotonic() - began < 10
    time.sleep(0.7)  # what was welcomed may be silent for longer
    greeted.sendall(struct.pack("<III", 0, 2, 1))
    assert struct.unpack("<III", greeted.recv(12, socket.MSG_WAITALL))[1] == 17
    greeted.close()


@pytest.mark.parametrize("light", ["clients = 2"], indirect=True)
def test_clients_beyond_the_limit_are_told(light: Light, client: Path, material: Material) -> None:
    inside = [light.greet(), light.greet()]
    done = run(client, "decode", material.packets, path=light.path)
    assert done.returncode == 1
    assert done.stdout.startswith("error -1 the codec worker at ")
    assert done.stdout.endswith(" has 2 clients: try again later\n")
    inside.pop().close()
    assert wait_until(lambda: _welcome(light))
    inside.pop().close()


def _welcome(light: Light) -> bool:
    try:
        light.greet().close()
    except (AssertionError, OSError):
        return False
    return True


@pytest.mark.parametrize("light", [""], indirect=True)
def test_a_client_opens_only_so_many_streams(
    light: Light, client: Path, material: Material
) -> None:
    done = run(client, "-x", "streams", material.packets, 70, path=light.path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "error -6 as many streams are open as a worker serves: close one, or name another worker",
        "streams 64",
    ]


@pytest.mark.parametrize("light", ["server.CHECK_SECONDS = 0.2"], indirect=True)
def test_a_worker_whose_socket_is_gone_ends_once_idle(light: Light) -> None:
    inside = light.greet()
    light.path.unlink()
    time.sleep(0.8)
    assert light.process.poll() is None
    inside.close()
    assert light.process.wait(10) == 0
    assert b"was removed or is another worker's" in light.log.read_bytes()


def test_a_warm_worker_that_hangs_is_given_up(
    client: Path, material: Material, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "socket"))
        hung.listen(8)
        done = run(client, "-t", 700, "decode", material.packets, path=tmp_path / "socket")
    assert done.stdout.startswith("error -3 the codec worker gave no sign of life for 700 ms")


@pytest.mark.slow
def test_a_second_worker_does_not_take_a_socket(warm: Warm) -> None:
    done = subprocess.run(
        [*shlex.split(WORKER), "--listen", str(warm.path)],
        env=environment("", ""), capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "another worker listens on" in done.stderr


def test_a_dead_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    from vcfilter.errors import ConfigError
    from vcfilter.worker.server import bind

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bind(str(path)).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        bind(str(path))
    assert path.read_text() == "mine"


def test_standard_input_must_be_a_socket() -> None:
    done = subprocess.run(
        shlex.split(WORKER), env=environment("", ""), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("vcfilter: standard input is no socket")
    assert done.stderr.count("\n") == 1
