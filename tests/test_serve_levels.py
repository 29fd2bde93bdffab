"""Quality levels in the browser: a machine that is too slow for all of them leaves some out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from clips import make_film

from vcfilter.cli.main import main
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime
from vcfilter.serve.video import VideoFile
from vcfilter.stream.decoders import neural_frames
from vcfilter.stream.transcode import encode_file

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

RATE, KEYINT, SECONDS = 2, 2, 14
CPU = Runtime(device="cpu")

SLOW_SERVER = """
import sys, time
from vcfilter.serve.video import VideoFile
decoded = VideoFile.decoded
def slowly(self, number, step, stopped):
    for item in decoded(self, number, step, stopped):
        time.sleep(0.05 + 0.15 * sum(each <= step.levels for each in self.levels))
        yield item
VideoFile.decoded = slowly
from vcfilter.cli.main import main
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""
"""Serves a file. A frame with all levels takes as long as it is shown, the base 0.4 of that."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    film = make_film(folder / "film.mkv", frames=RATE * SECONDS, rate=RATE, width=32, height=32)
    options = EncoderOptions(qp=20, layers=3, preset="ultrafast", keyint=KEYINT, scenecut=False)
    encode_file(str(film), str(folder / "layered.mkv"), options)
    return folder / "layered.mkv"


def luma(path: Path, levels: int) -> list[np.ndarray]:
    return [f.y for f in neural_frames(path, DecoderOptions(levels=levels), runtime=CPU)]


@pytest.mark.slow
def test_steps_of_a_layered_file(path: Path, tmp_path: Path) -> None:
    video = VideoFile(path, DecoderOptions(), runtime=CPU)
    assert video.levels == (1, 2, 3)
    assert [step.name for step in video.steps[:3]] == ["full", "levels-2", "levels-1"]
    thinned = tmp_path / "thinned.mkv"
    assert main(["thin", str(path), str(thinned), "-q", "--layers", "2"]) == 0
    assert VideoFile(thinned, DecoderOptions(), runtime=CPU).levels == (1, 2)
    assert main(["thin", str(path), str(thinned), "-q", "-y", "--layers", "1"]) == 0
    assert [s.name for s in VideoFile(thinned, DecoderOptions(), runtime=CPU).steps] == [
        "full", "half", "fewer", "fewest",
    ]  # fmt: skip


def test_segments_follow_each_other_with_other_levels(path: Path) -> None:
    video = VideoFile(path, DecoderOptions(), runtime=CPU)
    full, _, base = video.steps[:3]
    whole, least = luma(path, 3), luma(path, 1)
    for number, step, wanted in ((1, full, whole), (2, base, least), (3, full, whole)):
        frames = dict(video.decoded(number, step, lambda: False))
        first = video.segments[number].first
        assert np.array_equal(frames[first].to_ndarray()[:32, :32], wanted[first])
        assert sorted(frames) == list(range(first, video.segments[number].end))


@pytest.fixture
def url(path: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SLOW_SERVER, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.split()[1]
    finally:
        process.send_signal(2)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()


@pytest.mark.tools
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_slow_machine_plays_fewer_levels_without_stalls(url: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.go(url)
        browser.wait_for("window.video && video.buffered.length && video.buffered.end(0) > 2")
        browser.run(
            "window.stalls = 0; video.addEventListener('waiting', () => window.stalls++);"
            "video.play(); window.began = performance.now(); 1"
        )
        status = "document.getElementById('status').textContent"
        assert "of 3 quality levels" in browser.run(status)
        browser.wait_for("video.currentTime > 10")
        assert browser.run("window.stalls") == 0
        assert browser.run("(performance.now() - window.began) / 1000") < 11
        taken = browser.run("[...tracks[0].done.values()].join()").split(",")
        assert taken[0] == "video/full"
        assert {"video/levels-1", "video/levels-2"} & {*taken}
        assert "3 of 3 quality levels" not in browser.run(status)
        browser.screenshot(tmp_path / "page.png")
