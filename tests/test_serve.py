"""The web player: what its server hands out, refuses, shares and stops."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
from vcfilter.cli.main import main
from vcfilter.errors import MediaError
from vcfilter.options import DecoderOptions, EncoderOptions
from vcfilter.serve import fragments
from vcfilter.serve.compare import compare
from vcfilter.serve.film import Film
from vcfilter.serve.library import ForbiddenError, Library, UnknownFilmError
from vcfilter.serve.steps import STEPS, Speedometer, advise
from vcfilter.serve.work import StoppedError, WorkQueue
from vcfilter.stream.decoders import neural_frames
from vcfilter.stream.transcode import encode_file

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

FRAMES, RATE = 44, 12
FULL, HALF, FEWER, FEWEST = STEPS


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """films/: a film with AAC, one with PCM and odd sides below it, and what is no film."""
    folder = tmp_path_factory.mktemp("serve")
    films = folder / "films"
    (films / "more").mkdir(parents=True)
    options = EncoderOptions(qp=36, preset="ultrafast", keyint=6, scenecut=False)
    source = make_film(folder / "source.mkv", frames=FRAMES, rate=RATE, audio="aac")
    encode_file(str(source), str(films / "a film.mkv"), options)
    odd = make_film(
        folder / "odd.mkv", frames=8, width=49, height=33, rate=RATE, audio="pcm_s16le",
        time_base=Fraction(1, 1000), ticks=[500 + 83 * i for i in range(8)],
    )  # fmt: skip
    encode_file(str(odd), str(films / "more" / "odd.mkv"), options)
    encode_file(str(odd), str(films / "silent.vcf"), options)
    (films / "ordinary.mkv").write_bytes(source.read_bytes())
    (films / "notes.txt").write_text("no film")
    (folder / "secret.mkv").write_bytes((films / "a film.mkv").read_bytes())
    (films / "link.mkv").symlink_to(folder / "secret.mkv")
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library(folder / "films", DecoderOptions(), original=folder)


@pytest.fixture(scope="module")
def film(library: Library) -> Film:
    return library.film("a film.mkv")


def pictures(film: Film, step: Any, numbers: list[int]) -> list[tuple[float, np.ndarray]]:
    """(time, luma) of what a browser would decode from these segments."""
    data = fragments.video_init(film, step)
    data += b"".join(fragments.video_segment(film, n, step, never) for n in numbers)
    with av.open(io.BytesIO(data)) as container:
        return [(f.time, f.to_ndarray()[: f.height]) for f in container.decode(video=0)]


# --- which films ---------------------------------------------------------------------------------


def test_the_list_holds_neural_films_only(library: Library) -> None:
    names = [entry.name for entry in library.entries()]
    assert names == ["a film.mkv", "more/odd.mkv", "silent.vcf"]


@pytest.mark.parametrize(
    "name", ["../secret.mkv", "more/../../secret.mkv", "/etc/passwd", "link.mkv", "..\\secret.mkv"]
)
def test_nothing_outside_the_folder_is_opened(library: Library, name: str) -> None:
    with pytest.raises(ForbiddenError, match="outside the folder"):
        library.film(name)


@pytest.mark.parametrize("name", ["nothing.mkv", "ordinary.mkv", "notes.txt", "more", "", "a\0b"])
def test_what_is_no_film_is_not_there(library: Library, name: str) -> None:
    with pytest.raises(UnknownFilmError):
        library.film(name)


def test_a_single_file_serves_nothing_else(folder: Path) -> None:
    single = Library(folder / "films" / "a film.mkv", DecoderOptions())
    assert [entry.name for entry in single.entries()] == ["a film.mkv"]
    with pytest.raises(ForbiddenError, match="only one film"):
        single.film("more/odd.mkv")


# --- segments ------------------------------------------------------------------------------------


def test_the_index(film: Film) -> None:
    assert len(film.frames) == FRAMES
    assert [segment.first for segment in film.segments] == [0, 6, 18, 30, 42]
    assert [segment.end for segment in film.segments] == [6, 18, 30, 42, 44]
    assert float(film.seconds) == pytest.approx(FRAMES / RATE, abs=0.002)
    assert film.sound is not None
    assert film.sound.codec == "aac"
    assert film.frame_at(1.0) == 12
    assert film.segment_of(12) == 1
    assert film.keyframe_distance == 6


def test_segments_show_the_decoded_pictures_at_their_times(film: Film) -> None:
    decoded = [frame.y for frame in neural_frames(str(film.path))]
    shown = pictures(film, FULL, [0, 1, 2, 3, 4])
    assert len(shown) == FRAMES
    for index, (time_, luma) in enumerate(shown):
        assert time_ == pytest.approx(index / RATE, abs=0.001)
        error = float(np.mean((luma.astype(float) - decoded[index]) ** 2))
        assert error < 12, f"frame {index}"  # x264 at crf 17: above 37 dB


def test_vp9_where_there_is_no_x264(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fragments.picture_encoder() == "libx264"
    create = fragments.Codec

    def without_x264(name: str, mode: str) -> Any:
        if name == "libx264":
            raise ValueError(name)  # as PyAV's UnknownCodecError
        return create(name, mode)

    monkeypatch.setattr(fragments, "Codec", without_x264)
    monkeypatch.setattr(fragments, "picture_encoder", fragments.picture_encoder.__wrapped__)
    assert fragments.video_codec(fragments.video_init(film, FULL)).startswith("vp09.00.")
    decoded = [frame.y for frame in neural_frames(str(film.path))]
    shown = pictures(film, FULL, [0, 1, 2])
    assert len(shown) == 30
    for index, (time_, luma) in enumerate(shown):
        assert time_ == pytest.approx(index / RATE, abs=0.001)
        error = float(np.mean((luma.astype(float) - decoded[index]) ** 2))
        assert error < 26, f"frame {index}"  # above 34 dB
    monkeypatch.setattr(fragments, "_ENCODERS", {})
    with pytest.raises(MediaError, match="no encoder for browsers"):
        fragments.video_init(film, FULL)


def test_a_segment_alone_is_the_same_as_among_others(film: Film) -> None:
    alone = pictures(film, FULL, [2])
    times = [time_ for time_, _ in alone]
    assert times == pytest.approx([(18 + i) / RATE for i in range(12)], abs=0.001)
    assert np.array_equal(alone[5][1], pictures(film, FULL, [0, 1, 2])[23][1])


def test_steps_show_less(film: Film) -> None:
    assert fragments.display_size(film, HALF) == (32, 24)
    assert pictures(film, HALF, [0])[0][1].shape == (24, 32)
    for step, most in ((FEWER, 0.7), (FEWEST, 0.4)):
        kept = film.kept(1, step)
        assert 2 <= len(kept) <= most * 12
        shown = pictures(film, step, [1])
        assert [t for t, _ in shown] == pytest.approx([i / RATE for i in kept], abs=0.001)
    full = {round(t, 2): luma for t, luma in pictures(film, HALF, [1])}
    for time_, luma in pictures(film, FEWEST, [1]):
        # Left out are frames that no other needs: what is shown is decoded as ever.
        assert float(np.mean((luma.astype(float) - full[round(time_, 2)]) ** 2)) < 12


def test_keyframes_alone_are_thinned_out(folder: Path, tmp_path: Path) -> None:
    options = EncoderOptions(qp=40, preset="ultrafast", keyint=1)
    encode_file(str(folder / "odd.mkv"), str(tmp_path / "keys.mkv"), options)
    film = Library(tmp_path, DecoderOptions()).film("keys.mkv")
    assert film.kept(1, FEWER) == [1, 3, 5, 7]
    assert film.kept(1, FEWEST) == [1, 4, 7]


def test_odd_sides_late_start_and_sound_without_loss(library: Library, folder: Path) -> None:
    film = library.film("more/odd.mkv")
    assert fragments.display_size(film, FULL) == (50, 34)
    shown = pictures(film, FULL, [0, 1])
    assert len(shown) == 8
    assert shown[0][0] == 0  # the page's clock begins with the first picture
    parts = [fragments.sound_segment(film, number, never) for number in (0, 1)]
    with av.open(io.BytesIO(fragments.sound_init(film) + b"".join(parts))) as container:
        assert container.streams.audio[0].codec_context.name == "flac"
        sound = [f.to_ndarray() for f in container.decode(audio=0)]
    with av.open(str(folder / "odd.mkv")) as container:
        original = list(container.decode(audio=0))
    samples = np.concatenate(sound, axis=1).reshape(-1, 2)
    whole = np.concatenate([f.to_ndarray() for f in original], axis=1).reshape(-1, 2)
    # Sound begins at 0, pictures at 0.5 s: what is left is what sounds with them.
    assert np.array_equal(samples, whole[24000 : 24000 + len(samples)])
    assert len(samples) == len(whole) - 24000


def test_copied_sound_is_whole_and_in_its_place(film: Film) -> None:
    parts = [fragments.sound_segment(film, n, never) for n in range(5)]
    with av.open(io.BytesIO(fragments.sound_init(film) + b"".join(parts))) as container:
        packets = [(p.pts, bytes(p)) for p in container.demux(audio=0) if p.size]
    with av.open(str(film.path)) as container:
        stream = container.streams.audio[0]
        found = [(p.pts, bytes(p)) for p in container.demux(stream) if p.size]
        source = [(round(pts * stream.time_base * 48000), data) for pts, data in found]
    source = [each for each in source if each[0] >= 0]
    assert [data for _, data in packets] == [data for _, data in source]
    assert all(abs(a[0] - b[0]) <= 48 for a, b in zip(packets, source, strict=True))
    steps = {b[0] - a[0] for a, b in pairwise(packets)}
    assert steps == {1024}  # not the milliseconds that Matroska rounds to


def test_a_segment_that_nobody_wants_is_given_up(film: Film) -> None:
    with pytest.raises(StoppedError):
        fragments.video_segment(film, 1, FULL, lambda: True)


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
    meter = Speedometer()
    assert meter.speed(FULL, 25) is None
    meter.add(FULL, 10, decode_seconds=0.2, code_seconds=0.2)
    assert meter.speed(FULL, 25) == pytest.approx(1.0)
    assert meter.speed(HALF, 25) == pytest.approx(1.6)
    assert meter.speed(FEWER, 12.5) == pytest.approx(3.2)


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
    found = json.loads(compare(Library(tmp_path, DecoderOptions()).film("fine.mkv"), 2, never))
    ours, theirs = (picture_of(found[name]["picture"]) for name in ("vcfilter", "x264"))
    assert ours.shape == theirs.shape == (33, 49, 3)
    assert np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))).max() < 1.5


def picture_of(address: str) -> np.ndarray:
    """(height, width, 3) of a PNG in a data address."""
    data = base64.b64decode(address.split(",", 1)[1])
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)


# --- comparison ----------------------------------------------------------------------------------


def test_comparison_with_x264_at_the_same_size(folder: Path, film: Film) -> None:
    found = json.loads(compare(film, 15, never))
    assert found["frames"] == 12
    assert found["vcfilter"]["bytes"] == film.segments[1].size
    assert found["x264"]["bytes"] == pytest.approx(film.segments[1].size, rel=0.1)
    for name in ("vcfilter", "x264"):
        assert found[name]["picture"].startswith("data:image/png;base64,iVBOR")
    assert found["original"] is None
    with_original = Library(film.path, DecoderOptions(), original=folder / "source.mkv")
    told = json.loads(compare(with_original.film(film.path.name), 15, never))
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

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers) of a path that is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        connection.request("GET", path, headers={"Host": host} if host else {})
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
            return said
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "films", "--original", folder)
    try:
        yield server
    finally:
        said = server.stop()
        assert "Traceback" not in said, said


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
    for path in ("/media/nothing.mkv/info.json", "/media/a%20film.mkv/x", "/page/app.py", "/x"):
        assert server.get(path)[0] == 404, path
    for path in ("/media/a%20film.mkv/video/full/99.m4s", "/media/a%20film.mkv/video/best/0.m4s"):
        assert server.get(path)[0] == 404, path


def test_other_names_of_this_machine_are_refused(server: Server) -> None:
    """A page from elsewhere may have its own name point here."""
    assert server.get("/", host=f"films.example:{server.port}")[0] == 403
    assert server.get("/", host=f"localhost:{server.port}")[0] == 200
    assert server.get("/", host=f"127.0.0.1:{server.port}")[0] == 200


def test_pages_and_segments(server: Server) -> None:
    status, body, headers = server.get("/")
    assert status == 200
    assert b'href="/watch/a%20film.mkv"' in body
    assert b"ordinary" not in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert b'data-media="/media/a%20film.mkv"' in server.get("/watch/a%20film.mkv")[1]
    info = json.loads(server.get("/media/a%20film.mkv/info.json")[1])
    assert (info["width"], info["height"], info["frames"]) == (64, 48, FRAMES)
    assert [step["name"] for step in info["steps"]] == ["full", "half", "fewer", "fewest"]
    frames = json.loads(server.get("/media/a%20film.mkv/frames/1.json")[1])
    assert frames["first"] == 6
    assert [row[2] == 0 for row in frames["frames"]] == [i % 6 == 0 for i in range(12)]
    base = "/media/a%20film.mkv/video/full"
    init, segment = server.get(f"{base}/init.mp4")[1], server.get(f"{base}/3.m4s?viewer=x")
    assert segment[2]["content-type"] == "video/mp4"
    assert segment[2]["vcfilter-advice"] in [step["name"] for step in info["steps"]]
    with av.open(io.BytesIO(init + segment[1])) as container:
        assert len(list(container.decode(video=0))) == 12
    assert server.get(f"{base}/3.m4s")[2]["vcfilter-cached"] == "1"
    told = json.loads(server.get("/media/more/odd.mkv/compare/3.json")[1])
    assert told["original"] == "odd.mkv"


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
def test_hls_plays_in_ffmpeg(server: Server) -> None:
    url = f"{server.url}/media/a%20film.mkv/master.m3u8"
    command = ["ffmpeg", "-v", "error", "-i", url, "-map", "0:v:0", "-map", "0:a:0"]
    done = subprocess.run([*command, "-f", "framecrc", "-"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("0,") for line in done.stdout.splitlines()) == FRAMES


def test_a_viewer_who_leaves_stops_the_decoding(server: Server) -> None:
    """The work of a closed connection is dropped; another viewer is served at once."""
    path = "/media/a%20film.mkv/video/fewest"
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_server_that_nobody_watches_does_nothing(server: Server) -> None:
    time.sleep(1)
    before = _cpu_seconds(server.process.pid)
    time.sleep(2)
    assert _cpu_seconds(server.process.pid) - before < 0.5


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_errors_are_one_sentence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taken = Server(folder / "films" / "silent.vcf")
    try:
        assert b"silent.vcf" in taken.get("/")[1]
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
        browser.go(f"{server.url}/watch/a%20film.mkv")
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
    assert main(["serve", str(folder / "films")]) == 1
    assert "pip install 'vcfilter[serve]'" in capfd.readouterr().err


# --- other pictures ------------------------------------------------------------------------------


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
    film = Library(tmp_path, DecoderOptions()).film("turned.mkv")
    assert fragments.display_size(film, FULL) == (48, 64)
    data = fragments.video_init(film, FULL) + fragments.video_segment(film, 0, FULL, never)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
        shown = [f.to_ndarray()[:64].astype(float) for f in container.decode(video=0)]
    decoded = [np.rot90(f.y / 4, -1) for f in neural_frames(str(film.path))]
    assert len(shown) == 3
    for ours, expected in zip(shown, decoded, strict=True):
        assert float(np.mean((ours - expected) ** 2)) < 12
    picture = picture_of(json.loads(compare(film, 1, never))["vcfilter"]["picture"])
    assert picture.shape == (64, 48, 3)


def test_a_raw_stream_is_served(library: Library) -> None:
    film = library.film("silent.vcf")
    assert film.sound is None
    times = [time_ for time_, _ in pictures(film, FULL, [0, 1])]
    assert times == pytest.approx([i / RATE for i in range(8)], abs=0.003)
