"""The web player: what its server hands out, refuses, shares and stops."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from clips import make_film, video_frame

import vcfilter
from vcfilter._bridge import Demuxer, Muxer
from vcfilter.cli.main import main
from vcfilter.errors import MediaError
from vcfilter.frames import FrameType
from vcfilter.options import DecoderOptions, EncoderOptions
from vcfilter.serve import fragments
from vcfilter.serve.compare import compare, part_of
from vcfilter.serve.library import ForbiddenError, Library, UnknownVideoError
from vcfilter.serve.steps import ThroughputMeter, advise, steps_for
from vcfilter.serve.video import VideoFile
from vcfilter.serve.work import StoppedError, WorkQueue
from vcfilter.stream.decoders import neural_frames
from vcfilter.stream.transcode import encode_file

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from vcfilter.serve.app import make_app
from vcfilter.serve.connection import HEAD_SECONDS
from vcfilter.serve.guard import Guard

FRAMES, RATE = 44, 12
FULL, HALF, FEWER, FEWEST = steps_for((1,))


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/: a video with AAC, one with PCM and odd sides below it, and what is no video."""
    folder = tmp_path_factory.mktemp("serve")
    videos = folder / "videos"
    (videos / "more").mkdir(parents=True)
    options = EncoderOptions(qp=36, preset="ultrafast", keyint=6, scenecut=False)
    source = make_film(folder / "source.mkv", frames=FRAMES, rate=RATE, audio="aac")
    encode_file(str(source), str(videos / "a video.mkv"), options)
    odd = make_film(
        folder / "odd.mkv", frames=8, width=49, height=33, rate=RATE, audio="pcm_s16le",
        time_base=Fraction(1, 1000), ticks=[500 + 83 * i for i in range(8)],
    )  # fmt: skip
    encode_file(str(odd), str(videos / "more" / "odd.mkv"), options)
    encode_file(str(odd), str(videos / "silent.nut"), options, streams="v")
    (videos / "ordinary.mkv").write_bytes(source.read_bytes())
    (videos / "notes.txt").write_text("no video")
    (folder / "secret.mkv").write_bytes((videos / "a video.mkv").read_bytes())
    (videos / "link.mkv").symlink_to(folder / "secret.mkv")
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library(folder / "videos", DecoderOptions(), original=folder)


@pytest.fixture(scope="module")
def video(library: Library) -> VideoFile:
    return library.video("a video.mkv")


def shown_frames(video: VideoFile, step: Any, numbers: list[int]) -> list[tuple[float, np.ndarray]]:
    """(time, luma) of what a browser would decode from these segments."""
    data = fragments.video_init(video, step)
    data += b"".join(fragments.video_segment(video, n, step, never) for n in numbers)
    with av.open(io.BytesIO(data)) as container:
        return [(f.time, f.to_ndarray()[: f.height]) for f in container.decode(video=0)]


# --- which videos ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_list_holds_neural_films_only(library: Library) -> None:
    names = [entry.name for entry in library.entries()]
    assert names == ["a video.mkv", "more/odd.mkv", "silent.nut"]


@pytest.mark.parametrize(
    "name", ["../secret.mkv", "more/../../secret.mkv", "/etc/passwd", "link.mkv", "..\\secret.mkv"]
)
def test_nothing_outside_the_folder_is_opened(library: Library, name: str) -> None:
    with pytest.raises(ForbiddenError, match="outside the folder"):
        library.video(name)


@pytest.mark.parametrize("name", ["nothing.mkv", "ordinary.mkv", "notes.txt", "more", "", "a\0b"])
def test_what_is_no_film_is_not_there(library: Library, name: str) -> None:
    with pytest.raises(UnknownVideoError):
        library.video(name)


def test_a_single_file_serves_nothing_else(folder: Path) -> None:
    single = Library(folder / "videos" / "a video.mkv", DecoderOptions())
    assert [entry.name for entry in single.entries()] == ["a video.mkv"]
    with pytest.raises(ForbiddenError, match="only one video"):
        single.video("more/odd.mkv")


# --- segments ------------------------------------------------------------------------------------


def test_the_index(video: VideoFile) -> None:
    assert len(video.frames) == FRAMES
    assert [segment.first for segment in video.segments] == [0, 6, 18, 30, 42]
    assert [segment.end for segment in video.segments] == [6, 18, 30, 42, 44]
    assert float(video.seconds) == pytest.approx(FRAMES / RATE, abs=0.002)
    assert video.audio is not None
    assert video.audio.codec == "aac"
    assert video.frame_at(1.0) == 12
    assert video.segment_of(12) == 1
    assert video.keyframe_distance == 6


def test_segments_show_the_decoded_pictures_at_their_times(video: VideoFile) -> None:
    decoded = [frame.y for frame in neural_frames(str(video.path))]
    shown = shown_frames(video, FULL, [0, 1, 2, 3, 4])
    assert len(shown) == FRAMES
    for index, (time_, luma) in enumerate(shown):
        assert time_ == pytest.approx(index / RATE, abs=0.001)
        error = float(np.mean((luma.astype(float) - decoded[index]) ** 2))
        assert error < 12, f"frame {index}"  # x264 at crf 17: above 37 dB


def test_vp9_where_there_is_no_x264(video: VideoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fragments.video_encoder() == "libx264"
    create = fragments.Codec

    def without_x264(name: str, mode: str) -> Any:
        if name == "libx264":
            raise ValueError(name)  # as PyAV's UnknownCodecError
        return create(name, mode)

    monkeypatch.setattr(fragments, "Codec", without_x264)
    monkeypatch.setattr(fragments, "video_encoder", fragments.video_encoder.__wrapped__)
    assert fragments.video_codec(fragments.video_init(video, FULL)).startswith("vp09.00.")
    decoded = [frame.y for frame in neural_frames(str(video.path))]
    shown = shown_frames(video, FULL, [0, 1, 2])
    assert len(shown) == 30
    for index, (time_, luma) in enumerate(shown):
        assert time_ == pytest.approx(index / RATE, abs=0.001)
        error = float(np.mean((luma.astype(float) - decoded[index]) ** 2))
        assert error < 26, f"frame {index}"  # above 34 dB
    monkeypatch.setattr(fragments, "_ENCODERS", {})
    with pytest.raises(MediaError, match="no encoder for browsers"):
        fragments.video_init(video, FULL)


def test_a_segment_alone_is_the_same_as_among_others(video: VideoFile) -> None:
    alone = shown_frames(video, FULL, [2])
    times = [time_ for time_, _ in alone]
    assert times == pytest.approx([(18 + i) / RATE for i in range(12)], abs=0.001)
    assert np.array_equal(alone[5][1], shown_frames(video, FULL, [0, 1, 2])[23][1])


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["random-access", "low-delay"])
def test_segments_of_one_long_gop(folder: Path, tmp_path: Path, structure: str) -> None:
    """They end inside the GOP, and show the same in order, alone and again."""
    source = make_film(tmp_path / "source.mkv", frames=70, rate=RATE)
    options = EncoderOptions(qp=36, preset="ultrafast", structure=structure, scenecut=False)
    encode_file(source, tmp_path / "long.mkv", options)
    video = Library(tmp_path, DecoderOptions()).video("long.mkv")
    assert [frame.kind for frame in video.frames].count(FrameType.KEY) == 1
    assert len(video.segments) >= 2
    whole = [frame.y for frame in neural_frames(tmp_path / "long.mkv")]
    for numbers in ([0, 1], [1], [0], [1]):
        for number in numbers:
            shown = list(video.decoded(number, FULL, lambda: False))
            segment = video.segments[number]
            assert [index for index, _ in shown] == list(range(segment.first, segment.end))
            for index, frame in shown:
                plane = frame.to_ndarray()[: frame.height]
                assert np.array_equal(plane, whole[index])


def test_steps_show_less(video: VideoFile) -> None:
    assert fragments.display_size(video, HALF) == (32, 24)
    assert shown_frames(video, HALF, [0])[0][1].shape == (24, 32)
    for step, most in ((FEWER, 0.7), (FEWEST, 0.4)):
        kept = video.kept(1, step)
        assert 2 <= len(kept) <= most * 12
        shown = shown_frames(video, step, [1])
        assert [t for t, _ in shown] == pytest.approx([i / RATE for i in kept], abs=0.001)
    full = {round(t, 2): luma for t, luma in shown_frames(video, HALF, [1])}
    for time_, luma in shown_frames(video, FEWEST, [1]):
        # Left out are frames that no other needs: what is shown is decoded as ever.
        assert float(np.mean((luma.astype(float) - full[round(time_, 2)]) ** 2)) < 12


def test_keyframes_alone_are_thinned_out(folder: Path, tmp_path: Path) -> None:
    options = EncoderOptions(qp=40, preset="ultrafast", keyint=1)
    encode_file(str(folder / "odd.mkv"), str(tmp_path / "keys.mkv"), options)
    video = Library(tmp_path, DecoderOptions()).video("keys.mkv")
    assert video.kept(1, FEWER) == [1, 3, 5, 7]
    assert video.kept(1, FEWEST) == [1, 4, 7]


def test_odd_sides_late_start_and_sound_without_loss(library: Library, folder: Path) -> None:
    video = library.video("more/odd.mkv")
    assert fragments.display_size(video, FULL) == (50, 34)
    shown = shown_frames(video, FULL, [0, 1])
    assert len(shown) == 8
    assert shown[0][0] == 0  # the page's clock begins with the first picture
    parts = [fragments.audio_segment(video, number, never) for number in (0, 1)]
    with av.open(io.BytesIO(fragments.audio_init(video) + b"".join(parts))) as container:
        assert container.streams.audio[0].codec_context.name == "flac"
        audio = [f.to_ndarray() for f in container.decode(audio=0)]
    with av.open(str(folder / "odd.mkv")) as container:
        original = list(container.decode(audio=0))
    samples = np.concatenate(audio, axis=1).reshape(-1, 2)
    whole = np.concatenate([f.to_ndarray() for f in original], axis=1).reshape(-1, 2)
    # Sound begins at 0, frames at 0.5 s: what is left is what sounds with them.
    assert np.array_equal(samples, whole[24000 : 24000 + len(samples)])
    assert len(samples) == len(whole) - 24000


def test_copied_sound_is_whole_and_in_its_place(video: VideoFile) -> None:
    parts = [fragments.audio_segment(video, n, never) for n in range(5)]
    with av.open(io.BytesIO(fragments.audio_init(video) + b"".join(parts))) as container:
        packets = [(p.pts, bytes(p)) for p in container.demux(audio=0) if p.size]
    with av.open(str(video.path)) as container:
        stream = container.streams.audio[0]
        found = [(p.pts, bytes(p)) for p in container.demux(stream) if p.size]
        source = [(round(pts * stream.time_base * 48000), data) for pts, data in found]
    source = [each for each in source if each[0] >= 0]
    assert [data for _, data in packets] == [data for _, data in source]
    assert all(abs(a[0] - b[0]) <= 48 for a, b in zip(packets, source, strict=True))
    steps = {b[0] - a[0] for a, b in pairwise(packets)}
    assert steps == {1024}  # not the milliseconds that Matroska rounds to


def test_a_segment_that_nobody_wants_is_given_up(video: VideoFile) -> None:
    with pytest.raises(StoppedError):
        fragments.video_segment(video, 1, FULL, lambda: True)


# --- speed ---------------------------------------------------------------------------------------


def test_the_step_follows_the_speed() -> None:
    speeds: dict[str, float | None] = {"full": 0.5, "half": 0.9, "fewer": 1.3, "fewest": 2.0}
    assert advise(speeds, "full") == "fewer"
    assert advise(speeds, "fewest") == "fewest"  # 1.3 is too little to rise
    assert advise(speeds | {"full": 1.2}, "full") == "full"
    assert advise(speeds | {"full": 1.2}, "half") == "fewer"
    assert advise(speeds | {"full": 9.0}, "fewest") == "full"
    assert advise(speeds | {"full": 3.0}, "full", share=0.3) == "fewest"
    assert advise(dict.fromkeys(speeds), "half") == "half"


def test_the_speedometer() -> None:
    meter = ThroughputMeter()
    assert meter.speed(FULL, 25) is None
    meter.add(FULL, 10, decode_seconds=0.2, code_seconds=0.2)
    assert meter.speed(FULL, 25) == pytest.approx(1.0)
    assert meter.speed(HALF, 25) == pytest.approx(1.6)
    assert meter.speed(FEWER, 12.5) == pytest.approx(3.2)


def test_levels_are_left_out_first() -> None:
    steps = steps_for((1, 2, 4))
    names = ["full", "levels-2", "levels-1", "half", "fewer", "fewest"]
    assert [step.name for step in steps] == names
    assert [step.levels for step in steps[1:]] == [2, 1, 1, 1, 1]
    assert steps[0].levels >= 4
    assert [step.scale for step in steps] == [1, 1, 1, 2, 2, 2]
    speeds: dict[str, float | None] = dict(zip(names, (0.8, 1.0, 1.2, 1.5, 2, 3), strict=True))
    assert advise(speeds, "full") == "levels-1"
    assert advise(speeds | {"levels-2": 1.3}, "levels-1") == "levels-1"
    assert advise(speeds | {"levels-2": 1.5}, "levels-1") == "levels-2"


def test_the_speedometer_knows_levels() -> None:
    full, some, base = steps_for((1, 2, 4))[:3]
    meter = ThroughputMeter((1, 2, 4))

    def costs() -> list[float]:
        return [25 / speed for s in (full, some, base) if (speed := meter.speed(s, 1))]

    meter.add(full, 10, decode_seconds=1.5, code_seconds=0)
    assert np.allclose(
        costs(), [25 * c for c in (0.15, 0.15 * 1.4 / 1.8, 0.15 / 1.8)]
    )  # before it is measured
    for _ in range(20):
        meter.add(base, 10, decode_seconds=0.5, code_seconds=0)
        meter.add(full, 10, decode_seconds=1.5, code_seconds=0)
    assert costs()[::2] == pytest.approx([25 * 0.15, 25 * 0.05], rel=1e-2)
    meter.add(base, 10, decode_seconds=0.5, code_seconds=0)
    for _ in range(20):  # a machine that another program slows down
        meter.add(base, 10, decode_seconds=1.0, code_seconds=0)
    assert costs()[::2] == pytest.approx([25 * 0.3, 25 * 0.1], rel=1e-2)


# --- shared work ---------------------------------------------------------------------------------


def test_work_is_shared_kept_and_dropped() -> None:
    work_queue = WorkQueue(10, "test")
    gate, began, runs = threading.Event(), threading.Event(), []

    def make(name: str) -> Callable[[Callable[[], bool]], bytes]:
        def run(stopped: Callable[[], bool]) -> bytes:
            runs.append(name)
            began.set()
            gate.wait(10)
            if stopped():
                raise StoppedError
            return name.encode()

        return run

    first, second = work_queue.ask("a", make("a")), work_queue.ask("a", make("again"))
    assert began.wait(10)
    late = work_queue.ask("b", make("b"))
    work_queue.leave(late)  # gone before it began
    work_queue.leave(second)
    gate.set()
    assert first.future.result(10) == b"a"
    kept = work_queue.ask("a", make("never"))
    assert (kept.cached, kept.future.result(10)) == (True, b"a")
    assert work_queue.has("a")
    assert not work_queue.has("b")
    gate.clear()
    began.clear()
    alone = work_queue.ask("c", make("c"))
    assert began.wait(10)
    work_queue.leave(alone)
    anew = work_queue.ask("c", make("c anew"))  # not the one that is being given up
    gate.set()
    assert anew.future.result(10) == b"c anew"
    assert alone.future.cancelled()
    big = work_queue.ask("big", lambda stopped: bytes(8))
    assert big.future.result(10) == bytes(8)
    work_queue.leave(big)
    assert not work_queue.ask("a", make("a once more")).cached  # pushed out: 10 bytes are kept
    assert runs[:4] == ["a", "c", "c anew", "a once more"][: len(runs[:4])]


def test_both_sides_have_the_same_colours(folder: Path, tmp_path: Path) -> None:
    """At a high rate nothing but another matrix could make them differ."""
    options = EncoderOptions(qp=6, preset="ultrafast", keyint=4)
    encode_file(str(folder / "odd.mkv"), str(tmp_path / "fine.mkv"), options)
    found = json.loads(compare(Library(tmp_path, DecoderOptions()).video("fine.mkv"), 2, never))
    ours, theirs = (picture_of(found[name]["image"]) for name in ("vcfilter", "x264"))
    assert ours.shape == theirs.shape == (33, 49, 3)
    assert np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))).max() < 1.5


def picture_of(address: str) -> np.ndarray:
    """(height, width, 3) of a PNG in a data address."""
    data = base64.b64decode(address.split(",", 1)[1])
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)


# --- comparison ----------------------------------------------------------------------------------


def test_comparison_with_x264_at_the_same_size(folder: Path, video: VideoFile) -> None:
    found = json.loads(compare(video, 15, never))
    assert found["frames"] == 12
    assert found["vcfilter"]["bytes"] == video.segments[1].size
    assert found["x264"]["bytes"] == pytest.approx(video.segments[1].size, rel=0.1)
    for name in ("vcfilter", "x264"):
        assert found[name]["image"].startswith("data:image/png;base64,iVBOR")
    assert found["original"] is None
    with_original = Library(video.path, DecoderOptions(), original=folder / "source.mkv")
    told = json.loads(compare(with_original.video(video.path.name), 15, never))
    assert told["original"] == "source.mkv"
    assert all(15 < told[name]["psnr"] < 60 for name in ("vcfilter", "x264"))


# --- the server ----------------------------------------------------------------------------------


class Server:
    """`vcfilter serve` as a process."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "vcfilter", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("vcfilter: http://127.0.0.1:"), line
        self.url = line.split()[1].rstrip("/")
        self.port = int(self.url.rsplit(":", 1)[1])

    def get(
        self, path: str, host: str | None = None, more: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers) of a path that is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        connection.request("GET", path, headers=({"Host": host} if host else {}) | (more or {}))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}

    def stop(self) -> str:
        """End it as Ctrl-C does; what it said."""
        self.process.send_signal(2)
        try:
            said = self.process.communicate(timeout=30)[1]
            assert self.process.returncode == 0
            assert said.endswith("vcfilter: stopped\n")
            return said
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "videos", "--original", folder)
    try:
        yield server
    finally:
        said = server.stop()
        assert "Traceback" not in said, said


@pytest.mark.slow
def test_paths_outside_get_403(server: Server) -> None:
    for path in (
        "/../../etc/passwd",
        "/media/../../../etc/passwd",
        "/media/%2e%2e/secret.mkv/info.json",
        "/media/%2E%2E%2Fsecret.mkv/master.m3u8",
        "/media/..%5csecret.mkv/info.json",
        "/media//etc/passwd/info.json",
        "/media/link.mkv/info.json",
        "/watch/../secret.mkv",
        "/page/../app.py",
    ):
        status, body, _ = server.get(path)
        assert status == 403, path
        assert body == b"paths outside the folder are refused\n"
    for path in ("/media/nothing.mkv/info.json", "/media/a%20video.mkv/x", "/page/app.py", "/x"):
        assert server.get(path)[0] == 404, path
    for path in ("/media/a%20video.mkv/video/full/99.m4s", "/media/a%20video.mkv/video/best/0.m4s"):
        assert server.get(path)[0] == 404, path


@pytest.mark.slow
def test_an_interrupt_that_is_ignored_at_the_start_stays_ignored(folder: Path) -> None:
    """As a shell's background jobs start it."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = Server(folder / "videos")
    finally:
        signal.signal(signal.SIGINT, former)
    try:
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.get("/")[0] == 200
        server.process.terminate()
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()


def test_other_names_of_this_machine_are_refused(server: Server) -> None:
    """A page from elsewhere may have its own name point here."""
    assert server.get("/", host=f"videos.example:{server.port}")[0] == 403
    assert server.get("/", host=f"localhost:{server.port}")[0] == 200
    assert server.get("/", host=f"127.0.0.1:{server.port}")[0] == 200


def test_pages_and_segments(server: Server) -> None:
    status, body, headers = server.get("/")
    assert status == 200
    assert b'href="/watch/a%20video.mkv"' in body
    assert b"ordinary" not in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert b'data-media="/media/a%20video.mkv"' in server.get("/watch/a%20video.mkv")[1]
    info = json.loads(server.get("/media/a%20video.mkv/info.json")[1])
    assert (info["width"], info["height"], info["frames"]) == (64, 48, FRAMES)
    assert [step["name"] for step in info["steps"]] == ["full", "half", "fewer", "fewest"]
    frames = json.loads(server.get("/media/a%20video.mkv/frames/1.json")[1])
    assert frames["first"] == 6
    assert [row[2] == 0 for row in frames["frames"]] == [i % 6 == 0 for i in range(12)]
    base = "/media/a%20video.mkv/video/full"
    init, segment = server.get(f"{base}/init.mp4")[1], server.get(f"{base}/3.m4s?viewer=x")
    assert segment[2]["content-type"] == "video/mp4"
    assert segment[2]["vcfilter-advice"] in [step["name"] for step in info["steps"]]
    with av.open(io.BytesIO(init + segment[1])) as container:
        assert len(list(container.decode(video=0))) == 12
    assert server.get(f"{base}/3.m4s")[2]["vcfilter-cached"] == "1"
    told = json.loads(server.get("/media/more/odd.mkv/compare/3.json")[1])
    assert told["original"] == "odd.mkv"


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
def test_hls_plays_in_ffmpeg(server: Server) -> None:
    url = f"{server.url}/media/a%20video.mkv/master.m3u8"
    command = ["ffmpeg", "-v", "error", "-i", url, "-map", "0:v:0", "-map", "0:a:0"]
    done = subprocess.run([*command, "-f", "framecrc", "-"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("0,") for line in done.stdout.splitlines()) == FRAMES


def test_a_viewer_who_leaves_stops_the_decoding(server: Server) -> None:
    """The work of a closed connection is dropped; another viewer is served at once."""
    path = "/media/a%20video.mkv/video/fewest"
    for number in (0, 1, 2):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", f"{path}/{number}.m4s")
        connection.close()
    results: list[tuple[int, bytes, dict[str, str]]] = []
    viewers = [
        threading.Thread(target=lambda: results.append(server.get(f"{path}/3.m4s"))) for _ in "abc"
    ]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    assert [status for status, _, _ in results] == [200] * 3
    assert len({body for _, body, _ in results}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_server_that_nobody_watches_does_nothing(server: Server) -> None:
    time.sleep(1)
    before = _cpu_seconds(server.process.pid)
    time.sleep(2)
    assert _cpu_seconds(server.process.pid) - before < 0.5


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_errors_are_one_sentence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taken = Server(folder / "videos" / "silent.nut")
    try:
        assert b"silent.nut" in taken.get("/")[1]
        for arguments, status, message in (
            ([folder / "none"], 1, "no such file or folder"),
            ([folder / "source.mkv"], 1, "no neural video stream"),
            ([folder, "--port", "70000"], 2, "port 70000 is outside"),
            ([folder, "--port", taken.port], 1, "Address already in use"),
            ([folder, "--original", folder / "none"], 1, "no such file or folder"),
        ):
            assert main(["serve", *map(str, arguments)]) == status
            error = capfd.readouterr().err
            assert message in error
            assert error.count("\n") == 1
    finally:
        taken.stop()


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.tools
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_plays_seeks_and_compares(server: Server, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.go(f"{server.url}/watch/a%20video.mkv")
        browser.wait_for("window.video && video.readyState >= 2")
        browser.run("video.playbackRate = 0.5; video.play(); 1")
        browser.wait_for("video.currentTime > 0.3")
        assert browser.run("document.getElementById('trouble').textContent") == ""
        assert browser.run("video.webkitAudioDecodedByteCount > 0")
        browser.run("video.pause(); video.currentTime = 3.2; 1")
        browser.wait_for("!video.seeking && video.readyState >= 2")
        assert browser.run("video.currentTime") == pytest.approx(3.2)
        status = browser.run("document.getElementById('status').textContent")
        assert "frames/s; decoding at" in status
        browser.run("document.getElementById('smooth').click()")
        browser.wait_for("tracks[0].head.endsWith('-smooth') && !tracks[0].busy")
        browser.wait_for("video.readyState >= 2")
        assert browser.run("document.getElementById('trouble').textContent") == ""
        browser.run("document.getElementById('compare').click()")
        browser.wait_for("document.getElementById('beside').dataset.frame")
        assert browser.run("document.getElementById('beside').dataset.frame") == "38"
        assert (
            browser.run(
                "['ours', 'theirs'].map(id => document.getElementById(id).naturalWidth).join()"
            )
            == "64,64"
        )
        text = browser.run("document.getElementById('theirs-text').textContent")
        assert text.startswith("x264 medium, crf ")
        canvas = "document.getElementById('strip')"
        data = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, 60).data"
        assert browser.run(f"{data}.some(value => value)")
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_missing_framework_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(folder / "videos")]) == 1
    assert "install vcfilter with the extra serve" in capfd.readouterr().err


# --- other frames ------------------------------------------------------------------------------


def test_ten_bit_and_turned_pictures_are_shown_upright(tmp_path: Path) -> None:
    """8 bit for the browser, turned clockwise, the sample aspect ratio turned with it."""
    with vcfilter.open(tmp_path / "turned.mkv", "w") as output:
        stream = output.add_stream("vcfilter", rate=10, options={"qp": 12, "preset": "ultrafast"})
        stream.rotation, stream.sample_aspect_ratio = 90, Fraction(4, 3)
        for index in range(3):
            frame = video_frame(index, 64, 48, "yuv420p10le")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    video = Library(tmp_path, DecoderOptions()).video("turned.mkv")
    assert fragments.display_size(video, FULL) == (48, 64)
    data = fragments.video_init(video, FULL) + fragments.video_segment(video, 0, FULL, never)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
        shown = [f.to_ndarray()[:64].astype(float) for f in container.decode(video=0)]
    decoded = [np.rot90(f.y / 4, -1) for f in neural_frames(str(video.path))]
    assert len(shown) == 3
    for ours, expected in zip(shown, decoded, strict=True):
        assert float(np.mean((ours - expected) ** 2)) < 12
    picture = picture_of(json.loads(compare(video, 1, never))["vcfilter"]["image"])
    assert picture.shape == (64, 48, 3)


def test_mirrored_frames_are_shown_so(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mp4", frames=1, codec="libx264")
    with Demuxer(film) as demuxer, Muxer(tmp_path / "turned.mp4", "mp4") as muxer:
        muxer.add_stream(replace(demuxer.streams[0], rotation=270, mirrored=True))
        muxer.write_header()
        for each in demuxer:
            muxer.write_packet(each)
    options = EncoderOptions(qp=12, preset="ultrafast")
    encode_file(tmp_path / "turned.mp4", tmp_path / "films.mkv", options)
    video = Library(tmp_path, DecoderOptions()).video("films.mkv")
    data = fragments.video_init(video, FULL) + fragments.video_segment(video, 0, FULL, never)
    with av.open(io.BytesIO(data)) as container:
        shown = next(container.decode(video=0)).to_ndarray()[:64].astype(float)
    (decoded,) = neural_frames(str(video.path))
    assert float(np.mean((shown - np.rot90(decoded.y[:, ::-1], 1)) ** 2)) < 12


def test_a_nut_file_is_served(library: Library) -> None:
    video = library.video("silent.nut")
    assert video.audio is None
    times = [time_ for time_, _ in shown_frames(video, FULL, [0, 1])]
    assert times == pytest.approx([i / RATE for i in range(8)], abs=0.003)


# --- who may ask, and what goes wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "own", "foreign"),
    [
        (
            ("127.0.0.1",),
            (
                "127.0.0.1",
                "127.0.0.1:8350",
                "localhost:80",
                "LOCALHOST.",
                "[::1]:8350",
                "127.1.2.3",
            ),
            (
                "127.0.0.1.evil.example",
                "evil.example",
                "10.0.0.7",
                "",
                "[::1",
                "localhost.evil",
                "[",
            ),
        ),
        (
            ("0.0.0.0", "media.example"),
            ("10.0.0.7:8350", "[fe80::1]", "media.example:8350", "localhost"),
            ("evil.example", "10.0.0.7.evil.example", "media.example.evil"),
        ),
        (("::1",), ("[::1]:1", "127.0.0.1"), ("10.0.0.7", "[fe80::1]")),
    ],
)
def test_host_names(hosts: tuple[str, ...], own: tuple[str, ...], foreign: tuple[str, ...]) -> None:
    guard = Guard(lambda *_: None, hosts)  # type: ignore[arg-type]
    assert [name for name in own if not guard.is_own(name)] == []
    assert [name for name in foreign if guard.is_own(name)] == []


def test_other_sites_are_refused(server: Server) -> None:
    """A name that begins like this machine's, and a page elsewhere that asks by the right name."""
    status, body, headers = server.get("/", host="127.0.0.1.evil.example")
    assert status == 403
    assert body.count(b"\n") == 1
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert server.get("/media/a%20video.mkv/info.json", more=foreign)[0] == 403
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    status, _, headers = server.get("/", more=followed)
    assert status == 200
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.slow
def test_names_that_are_no_utf8_and_hidden_files(folder: Path, tmp_path: Path) -> None:
    content = (folder / "videos" / "a video.mkv").read_bytes()
    for name in (b"x\xff.mkv", b"**.mkv", b".hidden.mkv", b"notes.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    (tmp_path / ".secret").mkdir()
    (tmp_path / ".secret" / "a.mkv").write_bytes(content)
    server = Server(tmp_path, "--original", folder)
    try:
        status, body, _ = server.get("/")
        assert status == 200
        assert b"/watch/x%FF.mkv" in body
        info = json.loads(server.get("/media/x%FF.mkv/info.json")[1])
        assert (info["name"], info["frames"]) == ("x?.mkv", FRAMES)
        assert server.get("/media/x%FF.mkv/video/full/0.m4s")[0] == 200
        assert server.get("/watch/x%FF.mkv")[0] == 200
        assert json.loads(server.get("/media/**.mkv/info.json")[1])["original"] is None
        for path in ("/media/.hidden.mkv", "/media/.secret/a.mkv", "/media/notes.txt"):
            assert server.get(f"{path}/info.json")[0] == 404, path
        for path in (f"/media/{'9' * 3000}", f"/media/x%FF.mkv/compare/{'9' * 1900}.json"):
            status, body, _ = server.get(path)
            assert 400 <= status < 500
            assert body.count(b"\n") == 1
    finally:
        assert "Traceback" not in server.stop()


def test_a_fault_of_the_server_is_a_sentence(library: Library) -> None:
    async def ask(path: str) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "headers": [(b"host", b"localhost")],
        }  # fmt: skip
        await app(scope, receive, send)
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])

    def fail(name: str) -> Any:
        raise ZeroDivisionError(f"Fraction(1, 0) in {name}")

    app = make_app(library)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "video", fail)
            status, body = asyncio.run(ask("/media/a.mkv/info.json"))
    finally:
        assert app.state.site.close()
    assert (status, body) == (500, b"the server failed: ZeroDivisionError\n")


@pytest.mark.slow
def test_half_a_request_is_closed(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        connection.settimeout(HEAD_SECONDS + 10)
        began = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - began > 0.5 * HEAD_SECONDS


def test_one_slow_index_does_not_hold_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, gate = threading.Event(), threading.Event()

    def index(path: Path, options: Any, *, runtime: Any, original: Any) -> VideoFile:
        if path.name == "silent.nut":
            began.set()
            assert gate.wait(30)
        return VideoFile(path, options, runtime=runtime, original=original)

    monkeypatch.setattr("vcfilter.serve.library.VideoFile", index)
    library = Library(folder / "videos", DecoderOptions())
    found: list[VideoFile] = []
    slow = [
        threading.Thread(target=lambda: found.append(library.video("silent.nut"))) for _ in "ab"
    ]
    for thread in slow:
        thread.start()
    assert began.wait(30)
    assert len(library.video("a video.mkv").frames) == FRAMES
    gate.set()
    for thread in slow:
        thread.join()
    assert found[0] is found[1]


def test_the_list_is_not_made_for_each_request(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = library.entries()
    monkeypatch.setattr(library, "_walk", lambda: pytest.fail("the folder was walked again"))
    assert library.entries() == names


@pytest.mark.slow
def test_ctrl_c_while_decoding_ends_cleanly(tmp_path: Path) -> None:
    source = make_film(tmp_path / "source.mkv", frames=48, width=320, height=240)
    options = EncoderOptions(qp=40, preset="ultrafast", keyint=24, scenecut=False)
    (tmp_path / "videos").mkdir()
    encode_file(str(source), str(tmp_path / "videos" / "long.mkv"), options)
    server = Server(tmp_path / "videos")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/media/long.mkv/video/full/1.m4s")
    time.sleep(3.0)  # networks are loaded and decode now
    said = server.stop()
    connection.close()
    assert "terminate" not in said
    assert "Traceback" not in said


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_audio_waits_for_its_frames() -> None:
    """The page's script asks for no audio of a segment whose frames are not there."""
    page = Path(__file__).resolve().parent.parent / "vcfilter" / "serve" / "page" / "player.js"
    script = """
        const vm = require("vm"), fs = require("fs");
        const anything = new Proxy(function () {}, {
            get: (_, name) => (name === Symbol.toPrimitive ? () => "" : anything),
            apply: () => anything, set: () => true, construct: () => anything,
        });
        const video = { currentTime: 0, paused: false, addEventListener() {} };
        const context = vm.createContext({
            document: {
                getElementById: (id) => (id === "video" ? video : anything),
                querySelector: () => anything, hidden: false,
            },
            fetch: () => Promise.reject(new Error("none")), window: {}, console, setTimeout,
        });
        vm.runInContext(fs.readFileSync(process.argv[1], "utf8"), context);
        const result = vm.runInContext(`
            info = { segments: [[0, 1], [1, 2], [2, 3]], name: "x" };
            const buffered = (count) => ({ addSourceBuffer: () => ({
                buffered: { length: count.n ? 1 : 0, start: () => 0, end: () => count.n },
            }) });
            const there = { video: { n: 0 }, audio: { n: 0 } };
            tracks = ["video", "audio"].map((kind) => new Track(buffered(there[kind]), kind, ""));
            const fill = (n) => {
                there.video.n = n;
                for (let i = 0; i < n; i++) tracks[0].done.set(i, "video/full");
                tracks[0].buffer.buffered.length = n ? 1 : 0;
                return [tracks[0].next(), tracks[1].next()];
            };
            const found = [fill(0), fill(1)];
            tracks[1].done.set(0, "audio");
            tracks[1].buffer.buffered.length = 1;
            there.audio.n = 1;
            found.push([tracks[0].next(), tracks[1].next()]);
            found;
        `, context);
        console.log(JSON.stringify(result));
    """
    done = subprocess.run(["node", "-e", script, str(page)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0, None], [1, 0], [1, None]]


def test_a_comparison_holds_few_frames(video: VideoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_of(video, 15) == video.segments[1]
    monkeypatch.setattr("vcfilter.serve.compare.MOST_FRAMES", 5)
    part = part_of(video, 15)  # the keyframe before it is frame 12
    assert (part.first, part.end) == (12, 17)
    assert part.size == sum(frame.size for frame in video.frames[12:17])
    assert (part.start, part.stop) == (video.time_of(12), video.time_of(17))
    part = part_of(video, 17)
    assert (part.first, part.end) == (15, 18)  # where its segment ends
    assert json.loads(compare(video, 17, never))["frames"] == 3
