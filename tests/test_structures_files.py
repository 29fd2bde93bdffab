"""Reference structures in files and on lines: cuts, joins, seeks, delay, losses, memory."""

from __future__ import annotations

import gc
import io
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_film, planes, video_frame
from fake_model import FakeModel, FakeReference
from synthetic import clip

import vcfilter
from vcfilter import Decoder, Encoder, EncoderOptions
from vcfilter._bridge import BridgeError, Demuxer
from vcfilter.bitstream import PacketReader
from vcfilter.errors import ConfigError
from vcfilter.frames import SLOTS, Frame, FrameStep, VideoFormat
from vcfilter.models import store
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.transcode import decode_file, encode_file

RATE = 25
SMALL = VideoFormat(width=48, height=32)
TINY = VideoFormat(width=16, height=16)
ROOT = Path(__file__).resolve().parent.parent

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
needs_mkvmerge = pytest.mark.skipif(not shutil.which("mkvmerge"), reason="needs mkvmerge")


@dataclass(frozen=True, kw_only=True)
class Film:
    """A coded film, what all of it decodes to, and the steps of its packets."""

    path: Path
    whole: list[bytes]
    steps: list[FrameStep]

    @property
    def keys(self) -> list[int]:
        return [i for i, step in enumerate(self.steps) if not step.references]

    def start(self, number: int) -> int:
        """The keyframe before a frame."""
        return max(key for key in self.keys if key <= number)

    def needed(self, number: int) -> set[int]:
        """All frames that one is decoded from, and itself."""
        found, stack = {number}, [number]
        while stack:
            at = stack.pop()
            for distance in self.steps[at].references:
                if at + distance not in found:
                    found.add(at + distance)
                    stack.append(at + distance)
        return found

    def shown(self, first: int, end: int) -> list[bytes]:
        """What a part of the packets decodes to: frames that need a keyframe behind it are lost."""
        return [self.whole[i] for i in range(first, end) if max(self.needed(i)) < end]


CASES: dict[str, tuple[int, dict[str, object]]] = {
    "random access 250": (280, {"keyint": 250, "bframes": 31, "scenecut": False}),
    "adaptive 250": (280, {"keyint": 250}),
    "random access 12": (30, {"keyint": 12}),
    "low delay 250": (270, {"keyint": 250, "structure": "low-delay", "scenecut": False}),
    "low delay": (30, {"keyint": 12, "structure": "low-delay", "scenecut": False}),
    "intra": (8, {"structure": "intra"}),
}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if count > 100 else name
    for name, (count, _) in CASES.items()
]


@pytest.fixture(scope="module")
def film_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Film]:
    folder = tmp_path_factory.mktemp("structures")
    films: dict[str, Film] = {}

    def made(name: str) -> Film:
        if name not in films:
            count, options = CASES[name]
            source = make_film(folder / f"{count}.mkv", frames=count, rate=RATE)
            path = folder / f"{name.replace(' ', '-')}.mkv"
            encode_file(source, path, EncoderOptions(preset="ultrafast", qp=36, **options))
            films[name] = Film(path=path, whole=decoded(path), steps=steps_of(path))
            assert len(films[name].whole) == count
        return films[name]

    return made


def decoded(path: Path) -> list[bytes]:
    """The frames of a file as bytes; nothing but what is missing at a cut may be dropped."""
    with vcfilter.open(path) as container:
        return [content(frame) for frame in container.decode(video=0)]


def content(frame: object) -> bytes:
    return b"".join(plane.tobytes() for plane in planes(frame))


def steps_of(path: Path) -> list[FrameStep]:
    reader = PacketReader()
    with Demuxer(str(path)) as demuxer:
        return [reader.read(packet.data).header.step for packet in demuxer]


@dataclass
class Counter:
    """How many frames the networks made."""

    frames: int = 0


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the default model's calls of reconstruct."""
    kind = type(store.find(None, Runtime()))
    original, counted = kind.reconstruct, Counter()

    def reconstruct(self: object, *arguments: object) -> object:
        counted.frames += 1
        return original(self, *arguments)

    monkeypatch.setattr(kind, "reconstruct", reconstruct)
    return counted


# --- cuts and joins -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.tools
@needs_ffmpeg
@pytest.mark.parametrize("name", NAMES)
def test_cut_with_ffmpeg(name: str, film_of: Callable[[str], Film], tmp_path: Path) -> None:
    film = film_of(name)
    key = film.keys[1]
    command = ["ffmpeg", "-v", "error", "-ss", f"{(key + 0.5) / RATE}", "-i", str(film.path)]
    subprocess.run([*command, "-c", "copy", str(tmp_path / "rest.mkv")], check=True)
    assert decoded(tmp_path / "rest.mkv") == film.whole[key:]
    command = ["ffmpeg", "-v", "error", "-i", str(film.path), "-frames:v", str(key)]
    subprocess.run([*command, "-c", "copy", str(tmp_path / "first.mkv")], check=True)
    assert decoded(tmp_path / "first.mkv") == film.shown(0, key)


@pytest.mark.slow
@pytest.mark.tools
@needs_mkvmerge
@pytest.mark.parametrize("name", NAMES)
def test_split_and_joined_with_mkvmerge(
    name: str, film_of: Callable[[str], Film], tmp_path: Path
) -> None:
    film = film_of(name)
    key = film.keys[1]
    split = ["mkvmerge", "-q", "--split", f"frames:{key + 1}", "-o", str(tmp_path / "part.mkv")]
    subprocess.run([*split, str(film.path)], check=True)
    parts = sorted(tmp_path.glob("part-*.mkv"))
    places = [0]
    for part in parts:
        count = len(steps_of(part))
        assert decoded(part) == film.shown(places[-1], places[-1] + count)
        places.append(places[-1] + count)
    assert len(parts) > 1
    assert set(places[:-1]) <= set(film.keys)
    assert places[-1] == len(film.whole)
    joined = tmp_path / "joined.mkv"
    names = [word for part in parts for word in ("+", str(part))][1:]
    subprocess.run(["mkvmerge", "-q", "-o", str(joined), *names], check=True)
    assert decoded(joined) == film.whole
    # Another GOP behind the first: frames that needed the keyframe there are lost, none is wrong.
    swapped = tmp_path / "swapped.mkv"
    names = [str(parts[1]), "+", str(parts[0])]
    subprocess.run(["mkvmerge", "-q", "-o", str(swapped), *names], check=True)
    assert decoded(swapped) == film.shown(*places[1:3]) + film.shown(*places[:2])


# --- seeks --------------------------------------------------------------------------------------


def bound(film: Film, number: int) -> int:
    """Most frames that a seek may make: what the target needs (in random access the keyframe, the
    anchors up to the one behind it and its B-references), the rest of its interval (31), what
    else lies within 32 frames of the keyframe, and the slots once per 64 frames passed."""
    passed = number - film.start(number)
    return len(film.needed(number)) + 31 + min(passed, 32) * (passed <= 32) + 8 * (passed // 64)


@pytest.mark.parametrize("name", NAMES)
def test_frame_at(name: str, film_of: Callable[[str], Film], counter: Counter) -> None:
    film = film_of(name)
    count = len(film.whole)
    for number in sorted({1, 5, count // 3, count // 2, count - 32, count - 2} - {-24, -2}):
        if not 0 <= number < count:
            continue
        with vcfilter.open(film.path) as container:
            counter.frames = 0
            frame = container.frame_at(Fraction(2 * number + 1, 2 * RATE))
            assert content(frame) == film.whole[number]
            assert counter.frames <= bound(film, number), number
            # What came with it costs nothing; decoding goes on behind it.
            made = counter.frames
            assert content(container.frame_at(Fraction(number, RATE))) == film.whole[number]
            assert counter.frames == made
            following = islice(container.decode(video=0), 3)
            places = [film.whole.index(content(each)) for each in following]
            assert places == list(range(count))[places[0] :][:3] if places else number > count - 34
            assert not places or number < places[0] <= max(film.needed(number)) + 33


@pytest.mark.slow
def test_a_seek_in_a_gop_of_250_makes_anchors_and_one_interval(
    film_of: Callable[[str], Film], counter: Counter
) -> None:
    film = film_of("random access 250")
    with vcfilter.open(film.path) as container:
        container.frame_at(Fraction(2 * 201 + 1, 2 * RATE))  # an odd one: deepest layer
        # Keyframe, 7 anchors up to 224, at most 31 B-frames, 3 times at most 8 slots.
        assert counter.frames <= 1 + 7 + 31 + 24
        made = counter.frames
        for number in range(201, 224):  # the rest of the interval is there
            assert content(container.frame_at(Fraction(number, RATE))) == film.whole[number]
        assert counter.frames == made


@pytest.mark.parametrize("name", NAMES)
def test_seek_with_any_frame(name: str, film_of: Callable[[str], Film], counter: Counter) -> None:
    film = film_of(name)
    count = len(film.whole)
    number = count * 2 // 3
    with vcfilter.open(film.path) as container:
        stream = container.streams.video[0]
        ticks = round(Fraction(number, RATE) / stream.time_base)
        container.seek(ticks, stream=stream)
        first = next(container.decode(stream))
        assert first.time == pytest.approx(film.start(number) / RATE, abs=1e-3)
        container.seek(ticks, stream=stream, any_frame=True)
        counter.frames = 0
        frame = next(container.decode(stream))
        assert content(frame) == film.whole[number]
        assert counter.frames <= bound(film, number)
        container.seek(ticks, stream=stream, any_frame=True)
        frames = [content(each) for each in container.decode(stream)]
        assert frames == film.whole[number:]
        container.seek(0)
        assert content(next(container.decode(stream))) == film.whole[0]


@pytest.mark.parametrize("name", NAMES)
def test_decode_a_part(
    name: str, film_of: Callable[[str], Film], tmp_path: Path, counter: Counter
) -> None:
    film = film_of(name)
    number = len(film.whole) * 2 // 3
    part = tmp_path / "part.nut"
    decode_file(film.path, part, start=Fraction(number, RATE), duration=Fraction(3, RATE))
    assert counter.frames <= bound(film, number) + 2 * 32
    with av.open(str(part)) as container:
        frames = [content(frame) for frame in container.decode(video=0)]
    assert frames == film.whole[number : number + 3]


def test_frame_at_goes_round_damage(film_of: Callable[[str], Film], tmp_path: Path) -> None:
    """Where the frame cannot be decoded, the one before it is shown."""
    film = film_of("low delay")
    with Demuxer(str(film.path)) as demuxer:
        packets = [packet.data for packet in demuxer]
    data = film.path.read_bytes()
    place = data.index(packets[20])
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data[: place + 8] + bytes([data[place + 8] ^ 255]) + data[place + 9 :])
    with vcfilter.open(broken) as container:
        for number, shown in ((19, 19), (20, 19), (22, 19), (25, 25)):
            frame = container.frame_at(Fraction(2 * number + 1, 2 * RATE))
            assert content(frame) == film.whole[shown]


# --- delay --------------------------------------------------------------------------------------

LIVE = {"tune": "zerolatency", "preset": "ultrafast", "keyint": 9}


class Collected:
    """A pipe that keeps what is written; it cannot seek."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def seekable(self) -> bool:
        return False


def packets_in(data: bytes) -> list[bytes]:
    """The whole packets of a file that is still being written."""
    try:
        with Demuxer(io.BytesIO(data)) as demuxer:
            return [packet.data for packet in demuxer]
    except BridgeError:
        return []


@pytest.mark.parametrize("container", ["nut", "matroska"])
def test_each_packet_is_written_before_the_next_frame_comes(container: str) -> None:
    pipe = Collected()
    with vcfilter.open(pipe, "w", format=container) as output:
        stream = output.add_stream("vcfilter", rate=RATE, options=LIVE)
        for number in range(12):
            packets = stream.encode(video_frame(number, 64, 48))
            assert len(packets) == 1
            output.mux(packets)
            assert packets_in(bytes(pipe.data))[number:] == [bytes(packets[0])]
    assert len(packets_in(bytes(pipe.data))) == 12


def test_a_file_of_nut_grows_with_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "live.nut"
    with vcfilter.open(path, "w") as output:
        stream = output.add_stream("vcfilter", rate=RATE, options=LIVE)
        for number in range(5):
            output.mux(stream.encode(video_frame(number, 64, 48)))
            (part,) = tmp_path.glob("live.part*.nut")
            assert len(packets_in(part.read_bytes())) == number + 1


def test_each_frame_comes_with_its_packet(film_of: Callable[[str], Film]) -> None:
    film = film_of("low delay")
    with vcfilter.open(film.path) as container:
        stream = container.streams.video[0]
        assert stream.delay == 0
        for number, packet in enumerate(container.demux(stream)):
            frames = [content(frame) for frame in stream.decode(packet)]
            assert frames == film.whole[number : number + 1]
    with vcfilter.open(film_of("random access 12").path) as container:
        assert container.streams.video[0].delay == 12


@pytest.mark.slow
def test_the_command_line_encodes_without_delay() -> None:
    """Each packet is on standard output before the next frame is on standard input; so is each
    decoded frame at a decoder behind it."""
    command = [sys.executable, "-m", "vcfilter"]
    flags = ["--tune", "zerolatency", "--preset", "ultrafast", "--threads", "1", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    size = 64 * 48 * 3 // 2
    with (
        subprocess.Popen(
            [*command, "encode", *flags, "-", "-", "-f", "nut"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        ) as encoder,
        subprocess.Popen(
            [*command, "decode", "--threads", "1", "-q", "-", "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        ) as viewer,
    ):  # fmt: skip
        assert encoder.stdin and encoder.stdout and viewer.stdin and viewer.stdout
        coded, seen = bytearray(), bytearray()

        def pass_on() -> None:
            while data := os.read(encoder.stdout.fileno(), 1 << 16):
                coded.extend(data)
                viewer.stdin.write(data)
                viewer.stdin.flush()
            viewer.stdin.close()

        def see() -> None:
            while data := os.read(viewer.stdout.fileno(), 1 << 16):
                seen.extend(data)

        threads = [threading.Thread(target=each, daemon=True) for each in (pass_on, see)]
        for thread in threads:
            thread.start()
        encoder.stdin.write(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n")
        for number in range(8):
            encoder.stdin.write(b"FRAME\n" + content(video_frame(number, 64, 48)))
            encoder.stdin.flush()
            limit = time.monotonic() + 90
            while len(packets_in(bytes(coded))) <= number:
                assert time.monotonic() < limit, f"packet {number} does not come"
                time.sleep(0.01)
            while len(seen) < (number + 1) * (size + 6):
                assert time.monotonic() < limit, f"frame {number} is not shown"
                time.sleep(0.01)
        encoder.stdin.close()
        for thread in threads:
            thread.join(30)
    assert encoder.returncode == viewer.returncode == 0
    assert len(packets_in(bytes(coded))) == 8


FFMPEG = Path(os.environ.get("VCFILTER_FFMPEG", "~/.cache/vcfilter/ffmpeg")).expanduser()


@pytest.mark.slow
@pytest.mark.plugin
@pytest.mark.skipif(not (FFMPEG / "bin" / "ffmpeg").is_file(), reason="no FFmpeg with the plugin")
def test_the_plugin_is_at_most_two_frames_late() -> None:
    worker = f"{shlex.quote(sys.executable)} -m vcfilter worker --threads 1"
    command = [str(FFMPEG / "bin" / "ffmpeg"), "-v", "error", "-probesize", "32"]
    command += ["-f", "yuv4mpegpipe", "-i", "-", "-c:v", "vcfilter", "-preset", "ultrafast"]
    command += ["-tune", "zerolatency", "-flush_packets", "1", "-f", "nut", "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VCFILTER_WORKER": worker}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin and process.stdout
        coded = bytearray()

        def collect() -> None:
            while data := os.read(process.stdout.fileno(), 1 << 16):
                coded.extend(data)

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        process.stdin.write(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420jpeg\n")
        for number in range(10):
            process.stdin.write(b"FRAME\n" + content(video_frame(number, 64, 48)))
            process.stdin.flush()
            limit = time.monotonic() + 90
            while len(packets_in(bytes(coded))) < number - 1:
                assert time.monotonic() < limit, f"packet {number - 2} does not come"
                time.sleep(0.02)
        process.stdin.close()
        thread.join(30)
    assert process.returncode == 0
    assert len(packets_in(bytes(coded))) == 10


# --- losses -------------------------------------------------------------------------------------


def lossy(
    rate: float, frames: list[Frame], delay: int | None, **options: object
) -> tuple[list[bool], list[bool], Encoder]:
    """Send frames over a line; what is shown is the encoder's picture.

    Args:
        rate: share of packets that are lost. delay: frames until the sender hears of a packet,
            None: never, and restart frames are not lost.

    Returns:
        Which packets arrived, which frames were shown, and the encoder.
    """
    rng = np.random.default_rng(1)
    options = {"structure": "low-delay", "keyint": 100_000, "scenecut": False, **options}
    encoder = Encoder(SMALL, EncoderOptions(**options), model=FakeModel())
    sender = Decoder(encoder.extradata, DecoderOptions(strict=True), model=FakeModel())
    receiver = Decoder(encoder.extradata, model=FakeModel())
    ltr = encoder._options.ltr
    arrived: list[bool] = []
    shown: list[bool] = []
    for frame in frames:
        heard = len(arrived) - delay if delay is not None else -1
        if heard >= 0:
            if shown[heard]:
                encoder.acknowledge(heard)
            elif not arrived[heard]:
                encoder.lost(heard)
        (packet,) = encoder.encode(frame)
        (expected,) = sender.decode(packet)
        spared = frame.pts == 0 or (delay is None and ltr and frame.pts % ltr == 0)
        arrived.append(bool(rng.random() >= rate) or bool(spared))
        found = receiver.decode(packet) if arrived[-1] else []
        shown.append(bool(found))
        for each in found:
            assert each.pts == expected.pts
            for plane, other in zip(each.planes, expected.planes, strict=True):
                np.testing.assert_array_equal(plane, other)
    return arrived, shown, encoder


def longest(arrived: list[bool], shown: list[bool]) -> int:
    """Most packets in a row that arrived and could not be shown."""
    most = run = 0
    for here, seen in zip(arrived, shown, strict=True):
        run = 0 if seen else run + here
        most = max(most, run)
    return most


@pytest.fixture(scope="module")
def scene() -> list[Frame]:
    return clip(300, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_losses_with_feedback_after_three_frames(rate: float, scene: list[Frame]) -> None:
    arrived, shown, encoder = lossy(rate, scene, 3)
    assert arrived.count(False) >= 200 * rate
    assert longest(arrived, shown) <= 5
    keys = [r for r in encoder.statistics.records if not r.header.step.references]
    assert len(keys) == 1


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_losses_with_restarts_every_eight_frames(rate: float, scene: list[Frame]) -> None:
    arrived, shown, _ = lossy(rate, scene, None, ltr=8)
    assert arrived.count(False) >= 200 * rate * 7 / 8
    assert longest(arrived, shown) < 8
    assert all(shown[::8])


def test_losses_without_either_wait_for_a_keyframe(scene: list[Frame]) -> None:
    arrived, shown, _ = lossy(0.05, scene[:100], None, keyint=30)
    first = arrived.index(False)
    assert not any(shown[first : first // 30 * 30 + 30])
    assert shown[60] or not arrived[60]


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"structure": "low-delay", "keyint": 1 << 30},
    {"structure": "low-delay", "keyint": 1 << 30, "ltr": 8},
    {"keyint": 1 << 30, "bframes": 3},
    {"keyint": 250, "bframes": 7},
])  # fmt: skip
def test_memory_is_flat_over_10_000_frames(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_model.search", lambda luma, reference: (0, 0))  # most of its time
    base = clip(32, TINY)
    sender, receiver = FakeModel(), FakeModel()
    encoder = Encoder(TINY, EncoderOptions(**options), model=sender)
    decoder = Decoder(encoder.extradata, DecoderOptions(strict=True), model=receiver)
    held: list[int] = []
    pictures: list[int] = []
    shown = 0
    for number in range(10_000):
        source = base[number % 32]
        frame = Frame(y=source.y, u=source.u, v=source.v, pts=number)
        for packet in encoder.encode(frame):
            shown += len(decoder.decode(packet))
        sender.calls.clear()
        receiver.calls.clear()
        encoder.statistics.clear()
        if number % 1000 == 999:
            gc.collect()
            held.append(len(gc.get_objects()))
            pictures.append(sum(isinstance(each, FakeReference) for each in gc.get_objects()))
    assert shown >= 9_900
    assert max(held[2:]) <= held[1] + 300, held
    assert max(pictures) <= 2 * (SLOTS + 2) + 3 * SLOTS, pictures


# --- workers -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = make_film(tmp_path / "film.mkv", frames=20, rate=RATE, cut_at=9)
    options = EncoderOptions(preset="ultrafast", keyint=6)
    coded = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.mkv"
        encode_file(source, path, options, workers=workers)
        with Demuxer(str(path)) as demuxer:
            coded.append([packet.data for packet in demuxer])
    assert len(coded[0]) == 20
    assert coded[0] == coded[1]
    alone = tmp_path / "alone.mkv"
    encode_file(source, alone, options, runtime=Runtime(threads=1))
    with Demuxer(str(alone)) as demuxer:
        assert [packet.data for packet in demuxer] == coded[0]


@pytest.mark.parametrize(
    "options",
    [{"bitrate": 100_000}, {"quality": 40}, {"qp": 30, "maxrate": 100_000, "bufsize": 100_000}],
)
def test_workers_need_a_constant_qp(options: dict[str, object], tmp_path: Path) -> None:
    source = make_film(tmp_path / "film.mkv", frames=1)
    message = r"^workers code at a constant qp or crf only: give no \w+$"
    with pytest.raises(ConfigError, match=message):
        encode_file(source, tmp_path / "out.mkv", EncoderOptions(**options), workers=2)
    with pytest.raises(ConfigError, match="workers 0 is below 1"):
        encode_file(source, tmp_path / "out.mkv", workers=0)
