"""Thinned files among stock tools: probed, copied, split, cut and joined like any other."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from clips import make_film

from vcfilter.bitstream import read_packet, thin
from vcfilter.cli.main import main
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.stream.decoders import neural_frames

RATE, FRAMES, KEYINT = 24, 17, 8
CPU = Runtime(device="cpu")

tools = pytest.mark.tools
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs the stock ffmpeg"
)
needs_mkvmerge = pytest.mark.skipif(not shutil.which("mkvmerge"), reason="needs mkvmerge")


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    film = make_film(folder / "film.mkv", frames=FRAMES, rate=RATE, audio="aac")
    target = folder / "layered.mkv"
    options = ["--layers", "3", "--qp", "24", "--keyint", str(KEYINT), "--preset", "ultrafast"]
    assert main(["encode", str(film), str(target), "-q", "--bframes", "7", *options]) == 0
    return target


@pytest.fixture(scope="module")
def thinned(layered: Path) -> Path:
    target = layered.with_name("thinned.mkv")
    assert main(["thin", str(layered), str(target), "-q", "--layers", "1"]) == 0
    return target


def test_damaged_levels_are_told(
    layered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, packet = bytearray(layered.read_bytes()), video_packets(layered)[3]
    assert len(read_packet(thin(packet, 1)).sections) == 1 < len(read_packet(packet).sections)
    data[data.index(packet) + len(packet) - 3] ^= 0x10
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data)
    assert main(["verify", str(broken)]) == 1
    assert "bad: quality levels of 1 frames are damaged" in capsys.readouterr().err
    assert main(["info", str(broken), "--frames"]) == 0
    text = capsys.readouterr().out
    assert "1 packet with damaged quality levels" in text and text.count("LEVELS DAMAGED") == 1
    assert main(["info", str(broken), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["streams"][0]["damaged"] == 1
    assert main(["decode", str(broken), str(tmp_path / "o.mkv"), "-c:v", "ffv1"]) == 0
    assert "1 frames have less quality: levels of them are damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def base(layered: Path) -> list[bytes]:
    return decoded(layered, levels=1)


def decoded(path: Path, levels: int | None = None) -> list[bytes]:
    options = DecoderOptions(strict=True, levels=levels)
    frames = neural_frames(path, options, runtime=CPU)
    return [b"".join(plane.tobytes() for plane in frame.planes) for frame in frames]


def video_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]


def probed(path: Path, *words: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", *words, str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not found.stderr
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL)


def cut(source: Path, target: Path, option: str, seconds: float) -> None:
    """One side of a keyframe; what is sought counts from the first packet of audio."""
    seconds += 0.5 / RATE + 0.01 if option == "-ss" else -0.01
    command = ["ffmpeg", "-v", "error", option, seconds, "-i", source]
    run(*command, "-map", "0", "-c", "copy", target)


def join(target: Path, *parts: Path) -> Path:
    run("mkvmerge", "-q", "-o", target, parts[0], *(w for part in parts[1:] for w in ("+", part)))
    return target


# --- quality levels -----------------------------------------------------------------------------


def test_thinned_is_the_base(layered: Path, thinned: Path, base: list[bytes]) -> None:
    assert video_packets(thinned) == [thin(data, 1) for data in video_packets(layered)]
    assert decoded(thinned) == base


@tools
@needs_ffmpeg
def test_probed(layered: Path, thinned: Path) -> None:
    whole, left = (
        probed(path, "-show_streams", "-show_packets", "-show_data_hash", "crc32")
        for path in (layered, thinned)
    )
    for found, wanted in zip(left["streams"], whole["streams"], strict=True):
        assert found["codec_type"] == wanted["codec_type"]
        for name in ("width", "height", "avg_frame_rate", "extradata_hash", "sample_rate"):
            assert found.get(name) == wanted.get(name)
    for found, wanted in zip(left["packets"], whole["packets"], strict=True):
        for name in ("stream_index", "pts_time", "dts_time", "duration_time", "flags"):
            assert found[name] == wanted[name]
        audio = found["codec_type"] == "audio"
        assert int(found["size"]) <= int(wanted["size"])
        assert (found["data_hash"] == wanted["data_hash"]) or not audio


@tools
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mkv", "nut", "avi"])
def test_copied_by_ffmpeg(thinned: Path, base: list[bytes], tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"copy.{suffix}"
    run("ffmpeg", "-v", "error", "-i", thinned, "-map", "0", "-c", "copy", target)
    assert video_packets(target) == video_packets(thinned)
    assert decoded(target) == base


@tools
@needs_ffmpeg
@needs_mkvmerge
def test_cut_and_joined(thinned: Path, base: list[bytes], tmp_path: Path) -> None:
    cut(thinned, tmp_path / "a.mkv", "-t", KEYINT / RATE)
    cut(thinned, tmp_path / "b.mkv", "-ss", KEYINT / RATE)
    assert decoded(tmp_path / "b.mkv") == base[KEYINT:]
    joined = join(tmp_path / "joined.mkv", tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert video_packets(joined) == video_packets(thinned)
    assert decoded(joined) == base


@pytest.mark.slow
@tools
@needs_ffmpeg
@needs_mkvmerge
def test_levels_joined_with_others(
    layered: Path, thinned: Path, base: list[bytes], tmp_path: Path
) -> None:
    """The base of one part behind all levels of another: one stream that changes its quality."""
    cut(layered, tmp_path / "a.mkv", "-t", KEYINT / RATE)
    cut(thinned, tmp_path / "b.mkv", "-ss", KEYINT / RATE)
    joined = join(tmp_path / "joined.mkv", tmp_path / "a.mkv", tmp_path / "b.mkv")
    found = decoded(joined)
    assert len(found) == FRAMES
    assert found[0] == decoded(layered)[0] != base[0]
    assert found[KEYINT:] == base[KEYINT:]


@tools
@needs_mkvmerge
def test_split_and_joined_by_mkvmerge(thinned: Path, base: list[bytes], tmp_path: Path) -> None:
    run("mkvmerge", "-q", "--split", f"frames:{KEYINT + 1}", "-o", tmp_path / "part.mkv", thinned)
    parts = sorted(tmp_path.glob("part-*.mkv"))
    assert len(parts) > 1
    joined = join(tmp_path / "joined.mkv", *parts)
    assert video_packets(joined) == video_packets(thinned)
    assert decoded(joined) == base


# --- temporal layers ----------------------------------------------------------------------------


def frame_rate(path: Path) -> Fraction | None:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return Fraction(rate) if rate else None


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        packets = [p for p in container.demux(stream) if p.size and p.pts is not None]
        first = packets[0].pts
        return [round(float((p.pts - first) * stream.time_base) * RATE, 1) for p in packets]


@pytest.mark.parametrize("suffix", ["mkv", "nut", "avi"])
def test_temporal_layers_and_the_frame_rate(layered: Path, tmp_path: Path, suffix: str) -> None:
    layers = [read_packet(data).header.step.layer for data in video_packets(layered)]
    assert set(layers) == {0, 1, 2, 3}
    for count in (1, 2, 3, 4):
        kept = [float(i) for i, layer in enumerate(layers) if layer < count]
        target = tmp_path / f"{count}.{suffix}"
        assert main(["thin", str(layered), str(target), "-q", "--temporal", str(count)]) == 0
        # AVI numbers frames: it keeps the source's rate, and rounds what starts half a frame later.
        late = float(suffix == "avi")
        assert times(target) in (kept, [0.0, *(time + late for time in kept[1:])])
        gaps = {b - a for a, b in pairwise(kept)}
        assert len(gaps) == 1
        assert late or frame_rate(target) == Fraction(RATE, int(gaps.pop()))
        assert count != 2 or main(["verify", "-q", str(target)]) == 0


@pytest.mark.slow
def test_a_rate_that_varies_is_not_stated(layered: Path, tmp_path: Path) -> None:
    film, target = tmp_path / "film.mkv", tmp_path / "out.mkv"
    options = ["--keyint", "7", "--preset", "ultrafast", "--qp", "40", "--bframes", "3"]
    assert main(["encode", str(layered), str(film), "-q", *options]) == 0
    layers = [read_packet(data).header.step.layer for data in video_packets(film)]
    kept = [float(i) for i, layer in enumerate(layers) if layer < 2]
    assert len({b - a for a, b in pairwise(kept)}) > 1
    assert main(["thin", str(film), str(target), "-q", "--temporal", "2"]) == 0
    assert times(target) == kept
    assert frame_rate(target) != RATE
