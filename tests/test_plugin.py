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
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import make_film, planes
from fake_model import FakeModel
from synthetic import clip

import vcfilter
from vcfilter import Encoder, EncoderOptions
from vcfilter._bridge import BridgePacket, Demuxer, Muxer, StreamInfo
from vcfilter.bitstream import SequenceHeader, thin
from vcfilter.cli.main import main
from vcfilter.codec import Decoder
from vcfilter.frames import (
    ContentLight,
    FieldOrder,
    Frame,
    MasteringDisplay,
    Packet,
    VideoFormat,
)
from vcfilter.models import store
from vcfilter.models.base import Model
from vcfilter.models.hierarchical.finish import FinishConfig, FinishNet, save_finish
from vcfilter.options import DecoderOptions
from vcfilter.stream.decoders import neural_frames

pytestmark = pytest.mark.plugin

OPTIONS = EncoderOptions(qp=32, preset="ultrafast", keyint=6)
FLAGS = ["-c:v", "vcfilter", "-qp", "32", "-preset", "ultrafast", "-g", "6"]
FRAMES, RATE = 15, 24
REQUIRED = os.environ.get("VCFILTER_REQUIRE_PLUGIN", "")
BUILD = Path(os.environ.get("VCFILTER_FFMPEG", "~/.cache/vcfilter/ffmpeg")).expanduser()
ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = vcfilter.Runtime(threads=1)  # another number may round a sample otherwise
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


def python_frames(path: Path, model: Model | None = None) -> list[Frame]:
    """A file's picture track as vcfilter's own decoder shows it."""
    with Demuxer(str(path)) as demuxer:
        info = next(info for info in demuxer.streams if info.kind == "video")
        decoder = Decoder(info.extradata, runtime=ONE_THREAD, model=model)
        frames: list[Frame] = []
        for packet in demuxer:
            if packet.stream_index == info.index and packet.data:
                assert packet.pts is not None
                frames += decoder.decode(
                    Packet(data=packet.data, pts=packet.pts, is_keyframe=packet.is_keyframe)
                )
        return frames + decoder.decode(None)


def python_hashes(path: Path, model: Model | None = None) -> list[str]:
    frames = python_frames(path, model)
    return [md5(*(plane.tobytes() for plane in frame.planes)) for frame in frames]


def pictures(path: Path) -> list[bytes]:
    """The packets of a file's picture track."""
    with Demuxer(str(path)) as demuxer:
        index = next(info.index for info in demuxer.streams if info.kind == "video")
        return [packet.data for packet in demuxer if packet.stream_index == index]


# --- decoding ------------------------------------------------------------------------------------


def test_decodes_what_python_decodes(tools: Tools, film: Path, expected: list[str]) -> None:
    assert len(set(expected)) == FRAMES
    assert tools.hashes("-i", film) == expected


@pytest.mark.slow
def test_a_look_is_the_decoders_option(
    tools: Tools,
    film: Path,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Natural is what there was before; sharp is what Python shows, with the same finish."""
    net = FinishNet(FinishConfig(width=8, blocks=1))
    with torch.no_grad():
        net.usual.bias.fill_(0.5)
    model = store.find(None, ONE_THREAD).info.id
    save_finish(str(tmp_path / "finish.safetensors"), net, model, "finish", {})
    monkeypatch.setenv(store.FOLDERS_VARIABLE, str(tmp_path))
    environment = {**tools.environment, store.FOLDERS_VARIABLE: str(tmp_path)}
    del environment["VCFILTER_WORKER_SOCKET"]  # that worker has another environment
    own = Tools(environment=environment)
    assert own.hashes("-look", "natural", "-i", film) == expected
    options = DecoderOptions(look="sharp")
    frames = neural_frames(film, options, runtime=ONE_THREAD)
    sharp = [md5(*(plane.tobytes() for plane in frame.planes)) for frame in frames]
    assert own.hashes("-look", "sharp", "-i", film) == sharp
    assert not set(sharp) & set(expected)


def test_ten_bit(tools: Tools, tmp_path: Path) -> None:
    source = make_film(tmp_path / "s.mkv", frames=7, width=33, height=21, pix_fmt="yuv420p10le")
    vcfilter.encode_file(str(source), str(tmp_path / "film.mkv"), OPTIONS)
    got = tools.hashes("-i", tmp_path / "film.mkv")
    assert got == python_hashes(tmp_path / "film.mkv")
    assert len(got) == 7


@pytest.mark.parametrize("container", ["mkv", "nut", "avi", "mov"])
def test_containers(
    tools: Tools, film: Path, expected: list[str], tmp_path: Path, container: str
) -> None:
    """Copied to a container and decoded from it; all find the codec by its FourCC."""
    copy = tmp_path / f"copy.{container}"
    tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", copy)
    # AVI fills gaps in time with nothing.
    assert [data for data in pictures(copy) if data] == pictures(film)
    assert tools.hashes("-i", copy) == expected
    entries = "stream=codec_name,codec_tag_string,width,height,pix_fmt"
    row = tools.probe("-show_entries", entries, copy)[0]
    assert row == ["vcfilter", "VCF1", "66", "50", "yuv420p"]


HDR = VideoFormat(
    width=66, height=50, bit_depth=10, sample_aspect_ratio=(4, 3), color_primaries=9, color_trc=16,
    colorspace=9, color_range=1, chroma_location=3, field_order=FieldOrder.TOP_FIRST,
    mastering=MasteringDisplay(
        primaries=((35400, 14600), (8500, 39850), (6550, 2300)), white_point=(15635, 16450),
        luminance=(50, 40_000_000),
    ),
    content_light=ContentLight(max_content=1000, max_average=400),
)  # fmt: skip


def write(path: Path, fmt: VideoFormat, extradata: bytes | None = None) -> Path:
    """Some frames of a format, with the right extradata or with others."""
    encoder = Encoder(fmt, OPTIONS, runtime=ONE_THREAD)
    packets = [p for frame in [*clip(3, fmt, ticks=40), None] for p in encoder.encode(frame)]
    info = StreamInfo(
        kind="video", codec="", codec_tag="VCF1", extradata=extradata or encoder.extradata,
        time_base=Fraction(1, 1000), width=fmt.width, height=fmt.height,
    )  # fmt: skip
    with Muxer(str(path)) as muxer:
        index = muxer.add_stream(info)
        muxer.write_header()
        for p in packets:
            packet = BridgePacket(
                stream_index=index, data=p.data, pts=p.pts, dts=p.pts, duration=p.duration,
                is_keyframe=p.is_keyframe, time_base=Fraction(1, 1000),
            )  # fmt: skip
            muxer.write_packet(packet)
    return path


def test_everything_in_the_sequence_header_is_told(tools: Tools, tmp_path: Path) -> None:
    path = write(tmp_path / "hdr.mkv", HDR)
    done = tools.run("ffprobe", "-of", "flat", "-show_frames", "-show_streams", path)
    lines = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    stream = {k.removeprefix("streams.stream.0."): v.strip('"') for k, v in lines.items()}
    wanted = {
        "pix_fmt": "yuv420p10le", "color_primaries": "bt2020", "color_transfer": "smpte2084",
        "color_space": "bt2020nc", "color_range": "tv", "chroma_location": "topleft",
        "sample_aspect_ratio": "4:3", "field_order": "tt", "has_b_frames": "0",
    }  # fmt: skip
    assert {key: stream[key] for key in wanted} == wanted
    for n in range(3):
        frame = f"frames.frame.{n}."
        assert lines[frame + "interlaced_frame"] == lines[frame + "top_field_first"] == "1"
        values = {
            k.split(".")[-1]: v.strip('"')
            for k, v in lines.items() if k.startswith(frame + "side_data_list")
        }  # fmt: skip
        assert Fraction(values["red_x"]) == Fraction(35400, 50000)
        assert Fraction(values["green_y"]) == Fraction(39850, 50000)
        assert Fraction(values["white_point_x"]) == Fraction(15635, 50000)
        assert Fraction(values["min_luminance"]) == Fraction(50, 10000)
        assert Fraction(values["max_luminance"]) == 4000
        assert (values["max_content"], values["max_average"]) == ("1000", "400")


def test_static_metadata_reach_the_encoder(tools: Tools, tmp_path: Path) -> None:
    source, path = write(tmp_path / "hdr.mkv", HDR), tmp_path / "out.mkv"
    version = tools.run("ffmpeg", "-version").stdout.decode().split()[2]
    tools.ffmpeg("-i", source, *FLAGS, path)
    with Demuxer(str(path)) as demuxer:
        coded = SequenceHeader.read(demuxer.streams[0].extradata).video_format
    assert (coded.color_trc, coded.color_range, coded.chroma_location) == (16, 1, 3)
    if int(version.split(".")[0]) < 7:
        pytest.skip(f"FFmpeg {version} does not tell encoders of it")
    assert (coded.mastering, coded.content_light) == (HDR.mastering, HDR.content_light)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_and_mirrored(tools: Tools, tmp_path: Path, rotation: int, mirrored: bool) -> None:
    """FFmpeg shows what comes of the coded picture: mirrored first, then turned clockwise."""
    fmt = VideoFormat(width=66, height=50, rotation=rotation, mirrored=mirrored)
    path = write(tmp_path / "turned.mkv", fmt)
    flags = ["-i", path, "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"]
    shown = np.frombuffer(tools.ffmpeg(*flags), np.uint8)
    y = python_frames(path)[0].y
    y = np.rot90(y[:, ::-1] if mirrored else y, -rotation // 90)
    assert (shown[: y.size].reshape(y.shape) == y).all()


def test_other_bitstream_versions_are_refused(tools: Tools, tmp_path: Path) -> None:
    data = b"VCF1\x01" + bytes(21)
    first = data + (zlib.crc32(data) & 0xFFFF).to_bytes(2, "big")
    path = write(tmp_path / "old.mkv", VideoFormat(width=66, height=50), first)
    done = tools.run("ffmpeg", "-i", path, "-f", "null", "-")
    assert done.returncode != 0
    assert b"bitstream version 1, this decoder reads version 2: another release" in done.stderr


def test_damaged_extradata_wait_for_a_keyframe(tools: Tools, tmp_path: Path) -> None:
    fmt = VideoFormat(width=66, height=50)
    whole = write(tmp_path / "whole.mkv", fmt)
    damaged = write(tmp_path / "damaged.mkv", fmt, b"VCF1\x02" + bytes(30))
    assert tools.hashes("-i", damaged) == tools.hashes("-i", whole)


def test_times_types_and_colours(tools: Tools, film: Path) -> None:
    entries = "frame=key_frame,pts,pkt_dts,pict_type,color_range,color_space"
    rows = tools.probe("-select_streams", "v", "-show_frames", "-show_entries", entries, film)
    # Side data may add lines; a frame's line begins with its key flag.
    rows = [row for row in rows if row[0] in ("0", "1")]
    pts = [str(frame.pts) for frame in python_frames(film)]
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
    """The same frames fall out as in Python, the rest is right, and the log tells."""
    packets = pictures(film)
    nut = tools.ffmpeg("-i", film, "-map", "0:v", "-c", "copy", "-f", "nut", "-")
    data = bytearray(nut)
    data[data.find(packets[6]) + len(packets[6]) // 2] ^= 0x10  # a keyframe
    (tmp_path / "damaged.nut").write_bytes(data)
    wanted = python_hashes(tmp_path / "damaged.nut")
    assert 0 < len(wanted) < FRAMES
    assert tools.hashes("-i", tmp_path / "damaged.nut") == wanted


# --- encoding ------------------------------------------------------------------------------------


def test_encodes_what_python_encodes(tools: Tools, source: Path, tmp_path: Path) -> None:
    """The same packets as from Python's encoder, so its reconstruction is what is decoded."""
    tools.ffmpeg("-i", source, *FLAGS, "-c:a", "copy", tmp_path / "out.mkv")
    with av.open(str(source)) as container:
        sent = [planes(frame) for frame in container.decode(video=0)]
    with Demuxer(str(tmp_path / "out.mkv")) as demuxer:
        header = SequenceHeader.read(demuxer.streams[0].extradata)
    fmt = header.video_format
    assert (fmt.width, fmt.height, fmt.bit_depth) == (66, 50, 8)
    assert (fmt.colorspace, fmt.color_range) == (1, 1)
    encoder = Encoder(fmt, OPTIONS, runtime=ONE_THREAD)
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
    with av.open(str(source)) as before:
        wanted = [frame.pts * frame.time_base for frame in before.decode(video=0)]
    got = [frame.pts * Fraction(1, 1000) for frame in python_frames(tmp_path / "out.mkv")]
    assert len(got) == FRAMES
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= Fraction(1, 1000)


@pytest.mark.slow
def test_options_reach_the_encoder(tools: Tools, source: Path, tmp_path: Path) -> None:
    def size(name: str, *flags: str) -> int:
        path = tmp_path / f"{name}.nut"
        tools.ffmpeg("-i", source, "-c:v", "vcfilter", "-preset", "ultrafast", "-an", *flags, path)
        return sum(map(len, pictures(path)))

    fine, coarse = size("fine", "-qp", "20"), size("coarse", "-qp", "44")
    assert coarse < 0.7 * fine
    assert size("worse", "-crf", "44") < size("better", "-crf", "20")
    assert size("bitrate", "-b:v", "20k") < fine
    assert size("quality", "-quality", "24") < fine
    keys = size("keys", "-qp", "44", "-g", "1")
    assert keys > coarse
    assert all(data[0] == 2 for data in pictures(tmp_path / "keys.nut"))


@pytest.fixture(scope="module")
def layered(source: Path) -> Path:
    """Three quality levels, encoded by Python."""
    path = source.with_name("layered.mkv")
    vcfilter.encode_file(str(source), str(path), replace(OPTIONS, qp=24, layers=3))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_decodes_some_quality_levels(tools: Tools, layered: Path, layers: int) -> None:
    options = DecoderOptions(levels=layers)
    frames = neural_frames(layered, options, runtime=ONE_THREAD)
    wanted = [md5(*(plane.tobytes() for plane in f.planes)) for f in frames]
    assert tools.hashes("-layers", str(layers), "-i", layered) == wanted
    assert layers < 3 or tools.hashes("-i", layered) == wanted


@pytest.mark.parametrize("container", ["mkv", "nut", "avi"])
def test_thins_with_a_bitstream_filter(
    tools: Tools, layered: Path, tmp_path: Path, container: str
) -> None:
    target, wanted = tmp_path / f"thinned.{container}", tmp_path / "wanted.mkv"
    words = ["-map", "0", "-c", "copy", "-bsf:v", "vcfilter_thin=layers=2", target]
    tools.ffmpeg("-i", layered, *words)
    assert main(["thin", str(layered), str(wanted), "-q", "--layers", "2"]) == 0
    assert pictures(target) == pictures(wanted) != pictures(layered)
    assert python_hashes(target) == python_hashes(wanted)
    streams = tools.probe("-show_entries", "stream=codec_name", target)
    assert streams == tools.probe("-show_entries", "stream=codec_name", layered)
    again = tmp_path / "again.mkv"
    tools.ffmpeg("-i", target, "-map", "0", "-c", "copy", "-bsf:v", "vcfilter_thin", again)
    assert pictures(again) == [thin(data, 1) for data in pictures(layered)]


def test_levels_out_of_range_are_refused(tools: Tools, layered: Path, film: Path) -> None:
    for words in (
        ["-layers", "0", "-i", layered, "-f", "null", "-"],
        ["-i", layered, "-map", "0:v", "-c", "copy", "-bsf:v", "vcfilter_thin=layers=9",
         "-f", "null", "-"],
    ):  # fmt: skip
        done = tools.run("ffmpeg", *words)
        assert done.returncode != 0
        assert b"layers" in done.stderr
    assert len(tools.hashes("-layers", "1", "-i", film)) == FRAMES  # a file of one level


def test_sample_aspect_ratio_passes(tools: Tools, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.nut"
    tools.ffmpeg("-i", source, "-frames:v", "1", *FLAGS, "-an", "-aspect", "2:1", path)
    rows = tools.probe("-show_frames", "-show_entries", "frame=sample_aspect_ratio", path)
    assert rows[0] == ["50:33"]  # 2 * 50 / 66


def keyframes(tools: Tools, path: Path) -> list[int]:
    rows = tools.probe("-show_entries", "packet=flags", "-select_streams", "v", path)
    return [n for n, (flags,) in enumerate(rows) if "K" in flags]


def test_forced_keyframes(tools: Tools, source: Path, tmp_path: Path) -> None:
    """Where -force_key_frames says, and the encoder goes on from there."""
    path = tmp_path / "forced.nut"
    times = f"{3.75 / RATE:.6f},{4.75 / RATE:.6f}"  # versions round differently
    tools.ffmpeg("-i", source, *FLAGS, "-an", "-force_key_frames", times, path)
    assert keyframes(tools, path) == [0, 4, 5, 11]
    assert tools.hashes("-i", path) == python_hashes(path)


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        pytest.param(
            ["-vcfilter-params", "keyint=4:scenecut=0"], [0, 4, 8, 12], marks=pytest.mark.slow
        ),
        (["-g", "9", "-vcfilter-params", "keyint=5"], [0, 5, 10]),
        pytest.param(["-g", "0"], list(range(FRAMES)), marks=pytest.mark.slow),
        pytest.param(["-structure", "intra"], list(range(FRAMES)), marks=pytest.mark.slow),
        pytest.param(["-flags", "+low_delay", "-g", "8"], [0, 8], marks=pytest.mark.slow),
        pytest.param(["-g", "8", "-bf", "3", "-flags", "+cgop"], [0, 8], marks=pytest.mark.slow),
    ],
)
def test_settings_of_structure(
    tools: Tools, source: Path, tmp_path: Path, flags: list[str], keys: list[int]
) -> None:
    """With a model that codes every structure, however the real one does."""
    worker = f"{shlex.quote(sys.executable)} {ROOT / 'tests' / 'fake_worker.py'}"
    environment = {**tools.environment, "PYTHONPATH": str(ROOT), "VCFILTER_WORKER": worker}
    del environment["VCFILTER_WORKER_SOCKET"]
    tools = Tools(environment=environment)
    path = tmp_path / "out.mkv"
    fast = ["-c:v", "vcfilter", "-qp", "40", "-preset", "ultrafast", "-an"]
    tools.ffmpeg("-i", source, *fast, *flags, path)
    assert keyframes(tools, path) == keys
    assert tools.hashes("-i", path) == python_hashes(path, FakeModel())
    types = tools.probe("-show_entries", "frame=pict_type", "-select_streams", "v", path)
    inter = "P" if "+low_delay" in flags else "B"
    assert [row[0] for row in types] == ["I" if n in keys else inter for n in range(FRAMES)]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-vcfilter-params", "speed=3"], b"setting 'speed' is not one of crf, qp,"),
        (["-vcfilter-params", "model=/etc/passwd"], b"the model is chosen by the worker's command"),
        (["-preset", "placebo"], b"preset 'placebo' is not one of"),
        (["-maxrate", "100k"], b"maxrate and bufsize belong together"),
    ],
)
def test_settings_are_checked(
    tools: Tools, source: Path, tmp_path: Path, flags: list[str], sentence: bytes
) -> None:
    path = tmp_path / "out.mkv"
    done = tools.run("ffmpeg", "-y", "-i", source, "-c:v", "vcfilter", *flags, "-an", path)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_refused_options_are_told(tools: Tools, source: Path, tmp_path: Path) -> None:
    done = tools.run(
        "ffmpeg", "-y", "-i", source, *FLAGS, "-b:v", "100k", "-an", tmp_path / "out.mkv"
    )
    assert done.returncode != 0
    assert b"qp and bitrate exclude each other" in done.stderr


def test_help_lists_the_presets(tools: Tools) -> None:
    text = tools.run("ffmpeg", "-h", "encoder=vcfilter").stdout.decode()
    presets = ("ultrafast", "fast", "medium", "slow", "veryslow")
    for word in (
        "-crf",
        "-qp",
        "-quality",
        "-vcfilter-params",
        "-worker",
        "-worker_timeout",
        *presets,
    ):
        assert word in text.split(), word


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


@pytest.mark.slow
def test_starts_its_own_worker(tools: Tools, film: Path, expected: list[str]) -> None:
    alone = Tools(environment=dict(tools.environment))
    del alone.environment["VCFILTER_WORKER_SOCKET"]
    assert alone.hashes("-worker", WORKER, "-i", film) == expected


@pytest.mark.slow
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
    """Decoder with a seek and encoder: no wrong access, nothing lost."""
    command = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full",
               "--errors-for-leak-kinds=definite", str(BUILD / "bin" / "ffmpeg"), "-v", "error",
               "-threads", "1", "-ss", "0.1", "-i", str(film), "-map", "0:v", *FLAGS,
               str(tmp_path / "out.nut")]  # fmt: skip
    done = subprocess.run(
        command, env=tools.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=240
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert len(pictures(tmp_path / "out.nut")) == FRAMES - 3


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
    with av.open(str(film)) as container:
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
