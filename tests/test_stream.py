"""Whole files through the streaming layer: pictures, times, other streams, cuts, pipes."""

from __future__ import annotations

import ast
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.filter import Graph
from av.video.frame import VideoFrame
from clips import luma_psnr, make_film, planes, times, video_frame

import vcfilter
from vcfilter import EncoderOptions
from vcfilter._bridge import DISPOSITION_ATTACHED_PICTURE, Chapter, Demuxer, StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.stream import pipeline
from vcfilter.stream.copy import plan_copies
from vcfilter.stream.encoders import MediaCodec
from vcfilter.stream.inspect import inspect_file, verify_file
from vcfilter.stream.pipeline import BackgroundWriter, Prefetcher
from vcfilter.stream.pixels import FrameReader, frame_of, to_video_frame
from vcfilter.stream.remux import copy_file
from vcfilter.stream.report import RunLog
from vcfilter.stream.source import Source, _Pipe
from vcfilter.stream.streams import StreamSelection
from vcfilter.stream.tags import cut_chapters
from vcfilter.stream.timestamps import Cut, seconds_of
from vcfilter.stream.transcode import Interrupted, Progress, decode_file, encode_file

FAST = EncoderOptions(qp=24, preset="ultrafast", keyint=6)
MILLISECOND = Fraction(1, 1000)


def packets_of(path: Path, kind: str) -> list[tuple[Fraction | None, bytes]]:
    """(time, bytes) of the packets of a file's first stream of a kind."""
    with Demuxer(str(path)) as demuxer:
        index = next(info.index for info in demuxer.streams if info.kind == kind)
        return [
            (None if p.pts is None else p.pts * p.time_base, p.data)
            for p in demuxer
            if p.stream_index == index
        ]


def decoded(path: Path) -> list[VideoFrame]:
    with vcfilter.open(path) as container:
        return list(container.decode(video=0))


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 48), (33, 21), (17, 64)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_native_planes_pass_unchanged(width: int, height: int, pix_fmt: str) -> None:
    rng = np.random.default_rng(0)
    top, dtype = (256, np.uint8) if pix_fmt == "yuv420p" else (1024, np.uint16)
    source = VideoFrame(width, height, pix_fmt)
    sent = []
    for plane in source.planes:
        samples = rng.integers(0, top, (plane.height, plane.width)).astype(dtype)
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        rows[:, : plane.width] = samples
        sent.append(samples)
    frame, fmt = frame_of(source)
    assert (fmt.width, fmt.height, fmt.bit_depth) == (width, height, 8 if top == 256 else 10)
    for got, expected in zip(frame.planes, sent, strict=True):
        np.testing.assert_array_equal(got, expected)
    back = to_video_frame(frame, fmt, Fraction(1, 25))
    assert back.format.name == pix_fmt
    for got, expected in zip(planes(back), sent, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "gray"])
def test_frames_that_lie_bottom_up_are_read_from_the_top(pix_fmt: str) -> None:
    """FFmpeg's vflip turns no samples: it makes the size of a line negative."""
    source = video_frame(3, 64, 48, pix_fmt)
    source.pts, source.time_base = 0, Fraction(1, 25)
    graph = Graph()
    buffer = f"video_size=64x48:pix_fmt={pix_fmt}:time_base=1/25"
    graph.link_nodes(graph.add("buffer", buffer), graph.add("vflip"), graph.add("buffersink"))
    graph.configure()
    graph.vpush(source)
    turned: VideoFrame = graph.vpull()
    assert turned.planes[0].line_size < 0
    upright = frame_of(source)[0]
    assert not np.array_equal(upright.y, upright.y[::-1])
    for got, plane in zip(frame_of(turned)[0].planes, upright.planes, strict=True):
        np.testing.assert_array_equal(got, plane[::-1])


@pytest.mark.parametrize(
    ("pix_fmt", "values", "expected"),
    [
        ("nv12", (90, 60, 200), (90, 60, 200)),
        ("yuv422p", (250, 33, 220), (250, 33, 220)),
        ("yuv444p", (250, 33, 220), (250, 33, 220)),
        ("yuvj422p", (250, 33, 220), (250, 33, 220)),
        ("gray", (77,), (77, 128, 128)),
    ],
)
@pytest.mark.parametrize("span", [0, 1, 2])
def test_conversion_keeps_matrix_and_range(
    pix_fmt: str, values: tuple[int, ...], expected: tuple[int, ...], span: int
) -> None:
    source = VideoFrame(32, 16, pix_fmt)
    for plane, value in zip(source.planes, values, strict=False):
        np.frombuffer(memoryview(plane), np.uint8)[:] = value
    if pix_fmt == "nv12":
        np.frombuffer(memoryview(source.planes[1]), np.uint8)[1::2] = values[2]
    source.color_range, source.colorspace = span, 6
    frame, fmt = frame_of(source)
    assert tuple(int(plane[3, 3]) for plane in frame.planes) == expected
    assert fmt.colorspace == 6
    full = pix_fmt.startswith("yuvj") or (pix_fmt == "gray" and span == 0)
    assert fmt.color_range == (2 if full else span)


@pytest.mark.parametrize(
    ("color", "expected"),
    # BT.709, limited range: Y = 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B), and so on.
    [
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((255, 255, 255), (235, 128, 128)),
    ],
)
def test_rgb_becomes_bt709_limited(
    color: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    rgb = np.empty((21, 33, 3), np.uint8)
    rgb[:] = color
    frame, fmt = frame_of(VideoFrame.from_ndarray(rgb, "rgb24"))
    got = tuple(int(plane[5, 5]) for plane in frame.planes)
    assert got == pytest.approx(expected, abs=1)  # swscale's fixed point
    assert (fmt.colorspace, fmt.color_range) == (1, 1)
    assert frame.u.shape == (11, 17)


def test_deep_grey_and_12_bit_are_rounded_to_10() -> None:
    for pix_fmt in ("gray12le", "yuv420p12le"):
        source = VideoFrame(32, 16, pix_fmt)
        for plane in source.planes:
            np.frombuffer(memoryview(plane), np.uint16)[:] = 4 * 300 + 2
        frame, fmt = frame_of(source)
        assert fmt.bit_depth == 10
        assert int(frame.y[0, 0]) == 301


@pytest.mark.parametrize("pix_fmt", ["rgba", "bgra", "yuva420p", "yuva444p10le", "gbrap"])
def test_alpha_is_told_where_it_hides_something(
    pix_fmt: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.full((48, 64, 4), 255, np.uint8)
    for hidden in (False, True):
        samples[5, 7, 3] = 100 if hidden else 255
        frame = VideoFrame.from_ndarray(samples, "rgba").reformat(format=pix_fmt)
        FrameReader().read(frame, 0)
        assert ("the alpha channel is not coded" in caplog.text) == hidden


def test_a_change_of_size_is_scaled_with_a_warning() -> None:
    log = RunLog(logging.getLogger("vcfilter.stream"))
    reader = FrameReader(log=log)
    reader.read(VideoFrame(64, 48, "yuv420p"), 0)
    frame = reader.read(VideoFrame(96, 80, "yuv420p"), 1)
    reader.read(VideoFrame(96, 80, "yuv420p"), 2)
    assert frame.y.shape == (48, 64)
    assert len(log.warnings) == 1
    assert "96x80" in log.warnings[0]


# --- pipeline ------------------------------------------------------------------------------------


def test_ahead_hands_over_items_and_errors_and_stops() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    with Prefetcher(items(), 2) as ahead:
        assert next(iter(ahead)) == 0
    assert closed.wait(5)

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("here")

    with Prefetcher(broken(), 4) as ahead:
        taken = iter(ahead)
        assert next(taken) == 1
        with pytest.raises(ValueError, match="here"):
            next(taken)


def test_behind_reports_errors_of_its_thread() -> None:
    seen: list[int] = []

    def write(item: int) -> None:
        if item == 3:
            raise OSError("full")
        seen.append(item)

    behind = BackgroundWriter(write, 1)
    with pytest.raises(OSError, match="full"):
        for item in range(100):
            behind.put(item)
            time.sleep(0.001)
    behind.abandon()
    assert seen == [0, 1, 2]


def test_what_is_written_without_a_pause_is_flushed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_BUSY_SECONDS", 0.05)
    events: list[str] = []
    writer = BackgroundWriter(events.append, 8, idle=lambda: events.append("flush"))
    for index in range(40):
        writer.put(str(index))
        time.sleep(0.01)
    writer.finish()
    assert 2 <= events.count("flush") <= 10
    assert [each for each in events if each != "flush"] == [str(index) for index in range(40)]


# --- encode and decode ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 frames of 64x48 with AAC, in MP4: sound begins below zero."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return make_film(path, codec="libx264", audio="aac")


@pytest.fixture(scope="module")
def neural(film: Path) -> Path:
    path = film.with_name("neural.mkv")
    report = encode_file(str(film), str(path), FAST)
    assert report.frames == 14
    assert report.warnings == ()
    assert report.psnr is not None
    assert report.psnr > 25
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two neural frames, nothing else."""
    folder = tmp_path_factory.mktemp("two")
    film = make_film(folder / "film.mkv", frames=2)
    encode_file(film, folder / "n.mkv", FAST)
    return folder / "n.mkv"


def test_every_time_and_audio_packet_arrives(film: Path, neural: Path) -> None:
    got = [frame.pts * frame.time_base for frame in decoded(neural)]
    expected = times(film)
    assert len(got) == len(expected)
    # Matroska counts in milliseconds: half of one is its rounding.
    assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) <= MILLISECOND / 2
    sent, arrived = packets_of(film, "audio"), packets_of(neural, "audio")
    assert [data for _, data in arrived] == [data for _, data in sent]
    assert max(abs(a[0] - b[0]) for a, b in zip(arrived, sent, strict=True)) <= MILLISECOND


def test_pictures_look_like_the_source(film: Path, neural: Path) -> None:
    with av.open(str(film)) as container:
        for source, frame in zip(container.decode(video=0), decoded(neural), strict=True):
            assert (frame.width, frame.height, frame.format.name) == (64, 48, "yuv420p")
            assert (frame.colorspace, frame.color_range) == (1, 1)
            assert luma_psnr(planes(source)[0], planes(frame)[0]) > 24


def test_tags_and_languages_arrive(neural: Path) -> None:
    summary = inspect_file(str(neural))
    assert summary.metadata["title"] == "tiny film"
    assert summary.streams[1].info.metadata["language"] == "nob"
    assert summary.streams[0].segments == [6, 6, 2]
    assert summary.neural[0].sequence is not None
    verdict = verify_file(str(neural))
    assert verdict.good
    assert (verdict.packets, verdict.frames, verdict.keyframes) == (14, 14, 3)


def test_a_file_that_is_cut_short_is_not_good(tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mkv", frames=30, audio="aac")
    whole, half = tmp_path / "whole.mkv", tmp_path / "half.mkv"
    encode_file(source, whole, EncoderOptions(structure="intra", qp=45, preset="ultrafast"))
    assert verify_file(whole).good
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    verdict = verify_file(half)
    assert 5 < verdict.frames < 25 and not verdict.damaged + verdict.missing_reference
    assert any("cut short after" in problem for problem in verdict.problems)


def test_a_copy_keeps_the_tags_of_coding(neural: Path, tmp_path: Path) -> None:
    copy_file(neural, tmp_path / "copy.mkv")
    before, after = (
        inspect_file(p).neural[0].info.metadata for p in (neural, tmp_path / "copy.mkv")
    )
    for tag in ("ENCODER", "ENCODER_SETTINGS"):
        assert before[tag] == after[tag]


def test_other_rate_control_takes_the_place_of_the_default_crf() -> None:
    named = MediaCodec.named
    assert named("libx264").options == {"crf": "18"}
    assert named("libx264", options={"qp": "0"}).options == {"qp": "0"}
    assert named("libvpx-vp9", options={"b": "90k"}).options == {"b": "90k"}
    assert named("libvpx-vp9", 30).options == {"crf": "30", "b": "0"}
    with pytest.raises(ConfigError, match="a crf and qp=0 exclude each other"):
        named("libx264", 30, options={"qp": "0"})


@pytest.mark.parametrize(("pix_fmt", "size"), [("yuv420p10le", (66, 50)), ("yuv444p", (33, 21))])
def test_other_formats_and_odd_sizes(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    source = make_film(
        tmp_path / "in.mkv", frames=3, width=size[0], height=size[1], pix_fmt=pix_fmt
    )
    encode_file(str(source), str(tmp_path / "out.mkv"), FAST)
    frames = decoded(tmp_path / "out.mkv")
    assert [(f.width, f.height) for f in frames] == [size] * 3
    assert frames[0].format.name == ("yuv420p10le" if pix_fmt.endswith("10le") else "yuv420p")


def test_variable_rate_and_late_start_keep_each_time(tmp_path: Path) -> None:
    ticks = [500, 533, 600, 610, 800, 1000, 1001]
    source = make_film(tmp_path / "vfr.mkv", frames=7, ticks=ticks, time_base=MILLISECOND, rate=24)
    encode_file(str(source), str(tmp_path / "out.mkv"), FAST)
    assert [frame.pts for frame in decoded(tmp_path / "out.mkv")] == ticks


def test_cut_starts_at_zero_and_holds_the_part(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "part.mkv"
    encode_file(str(film), str(target), FAST, start=Fraction(5, 24), duration=Fraction(4, 24))
    got = [frame.pts * frame.time_base for frame in decoded(target)]
    assert len(got) == 4
    assert max(abs(a - Fraction(n, 24)) for n, a in enumerate(got)) <= MILLISECOND
    sound = [pts for pts, _ in packets_of(target, "audio")]
    assert sound
    assert all(pts is not None and 0 <= pts < Fraction(4, 24) + MILLISECOND for pts in sound)


def test_a_float_stands_for_the_decimal_that_it_is_written_as(tmp_path: Path) -> None:
    """Its binary value is a little more than 0.28: the frame at that time would be left out."""
    source = make_film(tmp_path / "in.mkv", frames=10, rate=25)
    report = encode_file(source, tmp_path / "out.mkv", FAST, start=0.28, duration=0.08)
    assert report.frames == 2
    assert seconds_of("start", np.float64(0.1)) == Fraction(1, 10)
    assert seconds_of("start", 1e300) == 10**300
    assert seconds_of("start", Fraction(1, 3)) == Fraction(1, 3)
    for value in (float("nan"), float("-inf"), "1", True, [1]):
        with pytest.raises(ConfigError, match=r"start .* is not a number of seconds"):
            encode_file(source, tmp_path / "out.mkv", FAST, start=value)  # type: ignore[arg-type]


def test_map_leaves_streams_out(film: Path, tmp_path: Path) -> None:
    encode_file(str(film), str(tmp_path / "v.mkv"), FAST, streams=["v"], duration=0.1)
    assert len(inspect_file(str(tmp_path / "v.mkv")).streams) == 1
    with pytest.raises(MediaError, match=r"-map leaves .*mp4 no video"):
        encode_file(str(film), str(tmp_path / "a.mkv"), FAST, streams="a")
    assert not (tmp_path / "a.mkv").exists()


def test_stream_selection() -> None:
    for text in ("0", "v", "0:a", "a:1", "0:3", "2", "0:V", "0:a?", "m:language", "a:m:title:x y"):
        StreamSelection(specifiers=(text,))
    for text in ("", "x", "a:b", "0:a:1:2", "-", "--1", "-x", "a:", "?", "0:m:", "a??"):
        with pytest.raises(ConfigError, match="-map"):
            StreamSelection(specifiers=(text,))


def test_streams_are_left_out_by_a_minus() -> None:
    kinds = ("video", "audio", "audio", "subtitle")
    streams = [StreamInfo(kind=kind, index=index) for index, kind in enumerate(kinds)]
    for words, wanted in (
        ("0 -0:s", [0, 1, 2]),
        ("-s", [0, 1, 2]),
        ("-a:0 -3", [0, 2]),
        ("a -a:1", [1]),
        ("v -s a:1", [0, 2]),
        ("-t", [0, 1, 2, 3]),
    ):
        assert StreamSelection.of(words.split()).indices(streams) == wanted, words


def test_cover_art_goes_where_players_find_it() -> None:
    cover = StreamInfo(
        kind="video", index=1, codec="mjpeg", width=8, height=8, attached_picture=b"x",
        disposition=DISPOSITION_ATTACHED_PICTURE,
    )  # fmt: skip
    for container, copied in (("matroska", True), ("mp4", True), ("mov", False), ("avi", False),
                              ("nut", False), ("mpegts", False)):  # fmt: skip
        log = RunLog(logging.getLogger("cover"))
        streams = [StreamInfo(kind="video", index=0), cover]
        plan = plan_copies(streams, [0, 1], 0, container, log, copy_videos=False)
        assert len(plan) == copied and len(log.warnings) == (not copied), container


def test_streams_are_named_by_tags_and_may_be_missing() -> None:
    streams = [
        StreamInfo(kind="video", index=0),
        StreamInfo(kind="audio", index=1, metadata={"language": "eng"}),
        StreamInfo(kind="audio", index=2, metadata={"language": "nob"}),
        StreamInfo(kind="video", index=3, disposition=DISPOSITION_ATTACHED_PICTURE),
    ]
    for words, wanted in (
        ("v", [0, 3]),
        ("0:V a:m:language:nob", [0, 2]),
        ("m:language", [1, 2]),
        ("0:v:0 0:a:0? 0:s? 0:7?", [0, 1]),
        ("0 -0:s? -m:language:eng", [0, 2, 3]),
    ):
        assert StreamSelection.of(words.split()).indices(streams) == wanted, words
    with pytest.raises(ConfigError, match="no such stream"):
        StreamSelection.of("0:s").indices(streams)


def test_decode_to_mp4_restores_the_frame_rate(tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mp4", codec="libx264", rate=Fraction(30000, 1001))
    encode_file(str(source), str(tmp_path / "n.mkv"), FAST)
    report = decode_file(str(tmp_path / "n.mkv"), str(tmp_path / "out.mp4"))
    assert report.frames == 14
    assert times(tmp_path / "out.mp4") == [Fraction(1001 * n, 30000) for n in range(14)]


@pytest.mark.parametrize("name", ["out.mpg", "out.gif"])
def test_containers_of_a_constant_rate(name: str, tmp_path: Path) -> None:
    source = make_film(tmp_path / "in.mkv", codec="libx264", rate=25)
    encode_file(source, tmp_path / "n.mkv", FAST)
    assert decode_file(tmp_path / "n.mkv", tmp_path / name).frames == 14
    found = times(tmp_path / name)
    assert [each - found[0] for each in found] == [Fraction(n, 25) for n in range(14)]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="no such classes here")
def test_encoders_leave_the_scheduling_class_alone(neural: Path, tmp_path: Path) -> None:
    """SVT-AV1 of PyAV 18 makes root's threads real-time ones, which starve all others."""
    codec = vcfilter.MediaCodec(name="libsvtav1", options={"preset": "12"})
    before = os.sched_getscheduler(0)
    decode_file(neural, tmp_path / "out.mkv", codec=codec)
    assert os.sched_getscheduler(0) == before
    found = {os.sched_getscheduler(int(name)) for name in os.listdir("/proc/self/task")}
    assert found == {before}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("100%.mp4", "h264"),
        ("o%d.mkv", "h264"),
        ("o.3gp", "h264"),
        ("o.hevc", "hevc"),
        ("o.mjpeg", "mjpeg"),
        ("o.m2v", "mpeg2video"),
        ("o.ivf", "vp9"),
        ("o.vob", "mpeg2video"),
    ],
)
def test_names_lead_to_containers(
    name: str, codec: str, two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decode_file(two, tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].codec.name == codec
        assert len(list(container.decode(video=0))) == 2
    assert not caplog.records


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg2video"])
def test_encoders_of_full_range_and_of_fixed_rates(codec: str, two: Path, tmp_path: Path) -> None:
    decode_file(two, tmp_path / "o.mkv", codec=vcfilter.MediaCodec(name=codec))
    decode_file(two, tmp_path / "plain.mkv", codec=vcfilter.MediaCodec(name="ffv1"))
    levels: list[list[np.ndarray]] = []
    shown: list[list[float]] = []
    for name in ("o.mkv", "plain.mkv"):
        with av.open(str(tmp_path / name)) as container:
            frames = list(container.decode(video=0))
        levels.append([frame.to_ndarray(format="rgb24").std((0, 1)) for frame in frames])
        shown.append([frame.time for frame in frames])
    assert shown[0] == shown[1]
    for got, wanted in zip(*levels, strict=True):
        # limited range taken for full lowers all by 14 %, a wrong matrix green by 8 %
        np.testing.assert_allclose(got, wanted, rtol=0.06)


def test_one_image_is_no_container(neural: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names one image"):
        decode_file(neural, tmp_path / "out.png")


def test_decode_lossless_equals_decoded_frames(neural: Path, tmp_path: Path) -> None:
    codec = vcfilter.MediaCodec(name="ffv1")
    decode_file(str(neural), str(tmp_path / "out.mkv"), codec=codec)
    with av.open(str(tmp_path / "out.mkv")) as container:
        for got, expected in zip(container.decode(video=0), decoded(neural), strict=True):
            np.testing.assert_array_equal(planes(got)[0], planes(expected)[0])
            assert got.pts * got.time_base == expected.pts * expected.time_base
    sent, arrived = packets_of(neural, "audio"), packets_of(tmp_path / "out.mkv", "audio")
    assert sent == arrived


def test_neural_to_neural(neural: Path, tmp_path: Path) -> None:
    options = EncoderOptions(qp=45, preset="ultrafast")
    report = encode_file(str(neural), str(tmp_path / "small.mkv"), options)
    assert report.frames == 14
    assert report.video_bytes < inspect_file(str(neural)).streams[0].size


@pytest.mark.slow
def test_two_passes(film: Path, tmp_path: Path) -> None:
    stages: set[str] = set()

    def note(progress: Progress) -> None:
        stages.add(progress.stage)

    options = EncoderOptions(bitrate=60_000, preset="ultrafast")
    target = tmp_path / "out.mkv"
    report = encode_file(str(film), str(target), options, two_pass=True, progress=note)
    assert report.frames == 14
    assert "" in stages
    with pytest.raises(ConfigError, match="bitrate"):
        encode_file(str(film), str(tmp_path / "x.mkv"), FAST, two_pass=True)


def test_nut_mov_and_avi_hold_the_track(film: Path, tmp_path: Path) -> None:
    for name in ("out.nut", "out.mov", "out.avi"):
        report = encode_file(str(film), str(tmp_path / name), FAST, streams="v", duration=0.2)
        assert len(decoded(tmp_path / name)) == report.frames == 5
    with pytest.raises(ConfigError, match="mp4 cannot hold"):
        encode_file(str(film), str(tmp_path / "out.mp4"), FAST)


def test_a_pipe_is_read_once(film: Path, tmp_path: Path) -> None:
    import os

    source = make_film(tmp_path / "in.nut", codec="ffv1", frames=4, audio="pcm_s16le")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(source.read_bytes()), daemon=True)
    feeder.start()
    report = encode_file(str(fifo), str(tmp_path / "out.mkv"), FAST)
    feeder.join(5)
    assert report.frames == 4
    sent, arrived = packets_of(source, "audio"), packets_of(tmp_path / "out.mkv", "audio")
    assert b"".join(data for _, data in arrived) == b"".join(data for _, data in sent)


def test_subtitles_and_cover_of_a_real_container(film: Path, tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the stock ffmpeg")
    text = tmp_path / "s.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,400\nHello\n")
    rich = tmp_path / "rich.mp4"
    command = ["ffmpeg", "-v", "error", "-i", film, "-i", text, "-c", "copy", "-c:s", "mov_text"]
    subprocess.run([*map(str, command), str(rich)], check=True)
    report = encode_file(str(rich), str(tmp_path / "out.mkv"), FAST)
    assert report.warnings == ()
    found = packets_of(tmp_path / "out.mkv", "subtitle")
    assert [(data, pts) for pts, data in found] == [(b"Hello", Fraction(1, 10))]


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
def test_chapters_dispositions_attachments_rotation_aspect(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mkv", audio="libopus", codec="libx264")
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "chapters.txt").write_text(
        ";FFMETADATA1\nartist=Me\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=250\ntitle=One\n"
    )
    rich = tmp_path / "rich.mkv"
    command = ["ffmpeg", "-v", "error", "-i", str(film), "-i", str(tmp_path / "chapters.txt")]
    command += ["-map_metadata", "1", "-map", "0", "-c", "copy", "-aspect", "2:1"]
    command += ["-disposition:a:0", "hearing_impaired", "-metadata:s:a:0", "title=Left"]
    command += ["-attach", str(tmp_path / "note.txt"), "-metadata:s:t", "mimetype=text/plain"]
    subprocess.run([*command, str(rich)], check=True)
    report = encode_file(str(rich), str(tmp_path / "out.mkv"), FAST)
    assert report.warnings == ()
    with Demuxer(str(rich)) as source, Demuxer(str(tmp_path / "out.mkv")) as target:
        assert [info.kind for info in target.streams] == ["video", "audio", "attachment"]
        for sent, arrived in zip(source.streams, target.streams, strict=True):
            assert arrived.disposition == sent.disposition
            assert arrived.sample_aspect_ratio == sent.sample_aspect_ratio
        assert target.streams[1].metadata["title"] == "Left"
        assert target.streams[2].extradata == b"a note"
        assert [dict(chapter.metadata) for chapter in target.chapters] == [{"title": "One"}]
        assert target.metadata["ARTIST"] == "Me"
    codec = vcfilter.MediaCodec(name="ffv1")
    decode_file(str(tmp_path / "out.mkv"), str(tmp_path / "back.mkv"), codec=codec)
    with Demuxer(str(tmp_path / "back.mkv")) as back:
        assert [info.kind for info in back.streams] == ["video", "audio", "attachment"]
        assert len(back.chapters) == 1


def test_rotation_goes_through(tmp_path: Path) -> None:
    with vcfilter.open(tmp_path / "n.mkv", "w") as output:
        stream = output.add_stream("vcfilter", options={"qp": 30, "preset": "ultrafast"})
        stream.rotation = 90
        output.mux(stream.encode(VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode())
    with vcfilter.open(tmp_path / "n.mkv") as container:
        assert container.streams.video[0].rotation == 90
    decode_file(str(tmp_path / "n.mkv"), str(tmp_path / "out.mp4"))
    with Demuxer(str(tmp_path / "out.mp4")) as demuxer:
        assert demuxer.streams[0].rotation == 90
    encode_file(str(tmp_path / "out.mp4"), str(tmp_path / "again.mkv"), FAST)
    with vcfilter.open(tmp_path / "again.mkv") as container:
        assert container.streams.video[0].rotation == 90


# --- nothing half done ---------------------------------------------------------------------------


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no film at all\n" * 50, "no media file"),
        (None, "No such file"),
    ],
)
def test_bad_sources(content: bytes | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(MediaError, match=message):
        encode_file(str(source), str(tmp_path / "out.mkv"), FAST)
    assert left_over(tmp_path) == (["in.mp4"] if content is not None else [])


def test_bad_targets(film: Path, tmp_path: Path) -> None:
    existing = tmp_path / "there.mkv"
    existing.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        encode_file(str(film), str(existing), FAST)
    assert existing.read_bytes() == b"precious"
    with pytest.raises(MediaError, match="no folder"):
        encode_file(str(film), str(tmp_path / "no" / "out.mkv"), FAST)
    with pytest.raises(MediaError, match="No space left"):
        encode_file(str(film), "/dev/full", FAST, container="matroska")
    copy = tmp_path / "copy.mkv"
    shutil.copy(film, copy)
    with pytest.raises(MediaError, match="is the source"):
        encode_file(str(copy), str(copy), FAST, overwrite=True)


def test_errors_and_interrupts_leave_no_half_file(film: Path, tmp_path: Path) -> None:
    def fail(error: BaseException) -> Callable[[Progress], None]:
        def progress(now: Progress) -> None:
            if now.frames >= 13:
                raise error

        return progress

    target = str(tmp_path / "out.mkv")
    with pytest.raises(RuntimeError, match="boom"):
        _with_each_frame(film, target, fail(RuntimeError("boom")))
    assert left_over(tmp_path) == []
    with pytest.raises(Interrupted) as stop:
        _with_each_frame(film, target, fail(KeyboardInterrupt()))
    assert left_over(tmp_path) == ["out.partial.mkv"]
    assert stop.value.partial == str(tmp_path / "out.partial.mkv")
    assert len(decoded(tmp_path / "out.partial.mkv")) >= 6


def _with_each_frame(film: Path, target: str, progress: Callable[[Progress], None]) -> None:
    from vcfilter.stream import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_PROGRESS_SECONDS", 0.0)
        encode_file(str(film), target, FAST, progress=progress)


def test_the_total_is_that_of_the_video(tmp_path: Path) -> None:
    """Audio or subtitles may outlast it."""
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        video = container.add_stream("mpeg4", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=48000)
        for index in range(6):
            frame = video_frame(index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for index in range(20):
            silence = AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 48000, 4800 * index
            container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    totals: list[int | None] = []
    encode_file(
        source, tmp_path / "o.mkv", FAST, progress=lambda now: totals.append(now.total_frames)
    )
    assert set(totals) == {6}


def test_progress_moves_with_every_coded_frame(film: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int | None]] = []
    _with_each_frame(
        film, str(tmp_path / "o.mkv"), lambda p: seen.append((p.frames, p.gop, p.total_frames))
    )
    *coded, last = seen
    assert [frames for frames, _, _ in coded] == list(range(1, 15))
    assert [gop for _, gop, _ in coded] == [1] + [2] + [1] * 5 + [3] + [2] * 5 + [3]
    assert last == (14, 3, 14)


def test_a_source_that_breaks_off_gives_what_is_there(film: Path, tmp_path: Path) -> None:
    whole = make_film(tmp_path / "whole.mkv", frames=12)
    (tmp_path / "half.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = encode_file(str(tmp_path / "half.mkv"), str(tmp_path / "out.mkv"), FAST)
    assert 1 <= report.frames < 12
    assert len(decoded(tmp_path / "out.mkv")) == report.frames


def test_damage_is_dropped_and_counted(neural: Path, tmp_path: Path) -> None:
    data = bytearray(neural.read_bytes())
    packet = packets_of(neural, "video")[6][1]  # the second keyframe
    data[data.index(packet) + len(packet) // 2] ^= 0x10
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data)
    verdict = verify_file(str(broken))
    assert not verdict.good
    assert verdict.damaged == 1
    assert verdict.missing_reference >= 1
    assert verdict.frames + verdict.damaged + verdict.missing_reference == 14
    report = decode_file(str(broken), str(tmp_path / "out.mkv"))
    assert report.frames == verdict.frames
    assert any("damaged" in text for text in report.warnings)
    strict = vcfilter.DecoderOptions(strict=True)
    with pytest.raises(vcfilter.BitstreamError):
        decode_file(str(broken), str(tmp_path / "no.mkv"), decoder=strict)
    assert not (tmp_path / "no.mkv").exists()


# --- stock tools ---------------------------------------------------------------------------------


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")
def test_a_piece_cut_by_ffmpeg_decodes_to_the_same_frames(neural: Path, tmp_path: Path) -> None:
    whole = decoded(neural)
    piece = tmp_path / "piece.mkv"
    start = float(whole[6].pts * whole[6].time_base)
    command = ["ffmpeg", "-v", "error", "-ss", f"{start + 0.05}", "-i", str(neural)]
    subprocess.run([*command, "-c", "copy", "-map", "0:v", str(piece)], check=True)
    part = decoded(piece)
    assert len(part) == len(whole) - 6
    for got, expected in zip(part, whole[6:], strict=True):
        for a, b in zip(planes(got), planes(expected), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.tools
@pytest.mark.skipif(not shutil.which("mkvmerge"), reason="needs mkvmerge")
def test_parts_split_by_mkvmerge_decode_to_the_same_frames(neural: Path, tmp_path: Path) -> None:
    whole = decoded(neural)
    output = tmp_path / "part.mkv"
    command = ["mkvmerge", "-q", "--split", "parts:00:00:00-00:00:00.25,00:00:00.25-"]
    subprocess.run([*command, "-o", str(output), str(neural)], check=True)
    parts = [frame for path in sorted(tmp_path.glob("part-*.mkv")) for frame in decoded(path)]
    shown = [planes(frame)[0].tobytes() for frame in whole]
    # The last inter frames of the first part may miss the keyframe that was cut away.
    assert len(parts) >= len(whole) - 5
    assert all(planes(frame)[0].tobytes() in shown for frame in parts)


def test_a_pipe_is_opened_once(tmp_path: Path) -> None:
    film = make_film(tmp_path / "x.nut", frames=1)
    source = Source(film)
    assert not source.is_pipe
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(film.read_bytes()), daemon=True)
    feeder.start()
    source = Source(fifo)
    with source.demuxer() as demuxer:
        assert demuxer.read_packet() is not None
    with pytest.raises(MediaError, match="only once"):
        source.demuxer()
    source.close()


def test_a_silent_pipe_can_be_given_up() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as file, open(writing, "wb") as pipe:
        source = _Pipe(file, "pipe")
        pipe.write(b"begin")
        pipe.flush()
        assert source.read() == b"begin"
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(source.read()))
        thread.start()
        time.sleep(0.3)
        assert got == []
        source.ended = True
        thread.join(5)
        assert got == [b""]


def test_long_names_and_odd_chapters_are_written(film: Path, tmp_path: Path) -> None:
    name = "\u6620" * 80 + ".mkv"  # 244 bytes, 255 are allowed
    encode_file(str(film), str(tmp_path / name), FAST, duration=0.2)
    assert left_over(tmp_path) == [name]
    chapter = Chapter(id=1, start=500, end=100, time_base=MILLISECOND, metadata={})
    (kept,) = cut_chapters([chapter], Cut())
    assert kept.end == kept.start == 500_000_000


def test_modules_of_the_layer_import_each_other_without_circles() -> None:
    folder = Path(vcfilter.stream.__file__).parent
    imports: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        imports[path.stem] = set()
        nodes = [ast.parse(path.read_text(encoding="utf-8"))]
        while nodes:
            for node in ast.iter_child_nodes(nodes.pop()):
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                    continue
                nodes.append(node)
                module = getattr(node, "module", None) or ""
                if isinstance(node, ast.ImportFrom) and module.startswith("vcfilter.stream."):
                    imports[path.stem].add(module.split(".")[2])
    while imports:
        ground = {name for name, others in imports.items() if not others & imports.keys()}
        assert ground, f"a circle among {sorted(imports)}"
        for name in ground:
            del imports[name]
