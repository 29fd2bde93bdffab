"""Situations of real files: odd times, clocks that jump, display, HDR10, playlists, odd sizes."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from clips import make_film, planes, video_frame

import vcfilter
from vcfilter import EncoderOptions, MediaCodec, MediaError, decode_file, encode_file
from vcfilter._bridge import BridgePacket, Demuxer, InvalidDataError, Muxer, StreamInfo
from vcfilter.bitstream import SequenceHeader
from vcfilter.cli.main import main
from vcfilter.errors import ConfigError
from vcfilter.frames import ContentLight, FieldOrder, Frame, MasteringDisplay, VideoFormat
from vcfilter.stream.containers import open_demuxer
from vcfilter.stream.copy import Copy, StreamCopier, plan_copies
from vcfilter.stream.decoders import MediaDecoder, MediaFrames
from vcfilter.stream.graph import FilteredFrames, parse_chain
from vcfilter.stream.hdr import read_hdr, write_hdr
from vcfilter.stream.reader import PacketReader
from vcfilter.stream.remux import copy_file
from vcfilter.stream.source import open_av
from vcfilter.stream.subtitles import mov_text_to_subrip, subrip_to_mov_text
from vcfilter.stream.timestamps import (
    ClockMender,
    Cut,
    FrameClock,
    Rising,
    TimestampSnapper,
    constant_rate,
    frame_rate,
    rate_of_gaps,
    rational,
    shifted,
)
from vcfilter.stream.upright import UprightFrames

FAST = EncoderOptions(qp=30, preset="ultrafast", keyint=6)
MILLISECOND = Fraction(1, 1000)

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the stock ffmpeg")


def packet(index: int, ticks: int, base: Fraction = MILLISECOND, length: int = 20) -> BridgePacket:
    return BridgePacket(
        stream_index=index, data=b"x" * 8, pts=ticks, dts=ticks, duration=length, time_base=base
    )


def packet_times(path: Path, kind: str = "video") -> list[Fraction]:
    """Presentation times of a file's first stream of a kind, in their order."""
    with Demuxer(path) as demuxer:
        index = next(info.index for info in demuxer.streams if info.kind == kind)
        return sorted(
            (p.pts if p.pts is not None else p.dts or 0) * p.time_base
            for p in demuxer
            if p.stream_index == index and p.data
        )


# --- one demuxer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("b.mp4", "libx264", "yuv420p"),
        ("b.ts", "mpeg2video", "yuv420p"),
        ("b.avi", "mpeg4", "yuv420p"),
        ("raw.avi", "rawvideo", "bgr24"),
        ("raw.nut", "rawvideo", "yuv422p"),
        ("jpeg.mov", "mjpeg", "yuvj420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("deep.mov", "prores_ks", "yuv422p10le"),
    ],
)
def test_decoders_fed_with_packets_give_pyavs_frames(
    name: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        if codec in ("libx264", "mpeg2video", "mpeg4"):
            stream.codec_context.max_b_frames = 2
        for index in range(10):
            frame = video_frame(index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        expected = list(container.decode(video=0))
    with open_demuxer(path) as demuxer:
        info = demuxer.streams[0]
        source = MediaFrames(PacketReader(demuxer, info), info, Cut(), seekable=True)
        got = list(source.frames())
    assert len(got) == len(expected) == 10
    reader = vcfilter.stream.pixels.FrameReader(info=info)
    for frame, picture in zip(got, expected, strict=True):
        assert frame.pts * source.time_base == picture.pts * picture.time_base
        for a, b in zip(frame.planes, reader.read(picture, 0).planes, strict=True):
            np.testing.assert_array_equal(a, b)


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path: Path) -> None:
    with open_demuxer(make_film(tmp_path / "in.mkv", frames=4)) as demuxer:
        info = demuxer.streams[0]
        packets = list(demuxer)
    decoder = MediaDecoder(info)
    packets[2] = replace(packets[2], discard=True)
    shown = [f.pts for p in [*packets, None] for f in decoder.decode(p)]
    assert shown == [packets[i].pts for i in (0, 1, 3)]


# --- times ---------------------------------------------------------------------------------------


def test_rationals_of_pyav_18_and_19() -> None:
    undefined = type("R", (), {"numerator": 0, "denominator": 0, "__bool__": lambda _: False})()
    assert rational(None) is rational(undefined) is rational(Fraction(0)) is None
    assert rational(av.AVRational(30000, 1001)) == Fraction(30000, 1001)
    assert rational(25) == 25


def test_times_that_collide_in_a_coarse_clock_rise() -> None:
    rising = Rising(Fraction(1, 2000), MILLISECOND)
    placed = [rising.place(pts) for pts in (0, 1, 2, 3, 3, 8)]
    milliseconds = [int(pts / 2 + 0.5) for pts in placed]
    assert milliseconds == sorted(set(milliseconds))
    assert rising.moved_count == 4  # the last one stays where it is
    assert placed[-1] == 10 or placed[-1] == 8 or milliseconds[-1] == max(milliseconds)
    exact = Rising(Fraction(1, 24), None)
    assert [exact.place(pts) for pts in (0, 1, 1, 1, 5)] == [0, 1, 2, 3, 5]


def test_a_clock_is_no_frame_rate() -> None:
    def info(rate: int | None, base: int | None) -> StreamInfo:
        return StreamInfo(
            kind="video",
            frame_rate=None if rate is None else Fraction(rate),
            base_rate=None if base is None else Fraction(base),
        )

    assert frame_rate(info(None, 60000)) is None
    assert frame_rate(info(None, 50)) == 50
    assert constant_rate(info(None, 60000)) is None
    assert constant_rate(info(20, 60)) == 60  # a variable rate on a grid of 60
    assert constant_rate(info(20, 1000)) == 20


def test_a_gap_does_not_lower_the_rate_that_numbers_frames(tmp_path: Path) -> None:
    def rate(*times: int, average: Fraction = Fraction(17)) -> Fraction:
        return rate_of_gaps(average, [time * MILLISECOND for time in times], MILLISECOND)

    assert rate(0, 40, 80, 700, 740) == 25
    assert rate(0, 33, 67, 700, 733) == 30
    assert rate(0, 59, 118, 176, 700) == 17
    assert rate(0, 5, 700) == 200
    assert rate(0) == 17
    ticks = [0, 40, 80, 120, 700, 740, 780]
    film = make_film(tmp_path / "in.mkv", frames=7, rate=25, ticks=ticks, time_base=MILLISECOND)
    encode_file(film, tmp_path / "n.mkv", FAST)
    assert not decode_file(tmp_path / "n.mkv", tmp_path / "o.avi").warnings
    found = packet_times(tmp_path / "o.avi")
    assert max(abs(a - b * MILLISECOND) for a, b in zip(found, ticks, strict=True)) <= 0.02


def test_two_frames_do_not_share_a_place_of_the_grid() -> None:
    grid = TimestampSnapper.over(MILLISECOND, Fraction(30))
    assert grid is not None
    placed = [grid.place(pts, 33)[0] * grid.time_base for pts in (0, 33, 34, 67)]
    assert placed == [0, Fraction(1, 30), Fraction(34, 1000), Fraction(2, 30)]


def test_a_frame_clock_counts_from_its_offset() -> None:
    frame, _ = vcfilter.frame_of(video_frame(0, 32, 16))
    clock = FrameClock(MILLISECOND, Fraction(24), offset=Fraction(1), exact=True)
    times = [f.pts for f in clock.frames(replace(frame, pts=pts) for pts in (1000, 1042, 1042))]
    assert times == [0, 42, 43]
    assert clock.moved_count == 1
    numbered = FrameClock(MILLISECOND, Fraction(24), constant_rate=True)
    assert [f.pts for f in numbered.frames(replace(frame, pts=p) for p in (0, 42, 83))] == [0, 1, 2]


def test_a_clock_that_jumps_goes_on_from_where_it_was() -> None:
    mender = ClockMender()
    times = [0, 20, 40, 95_000_000, 95_000_020, 3, 23]
    got = [mender.mend(packet(0, t)).pts for t in times]
    assert got == [0, 20, 40, 60, 80, 100, 120]
    assert mender.jumps == 2
    assert ClockMender().mend(packet(0, 7)).pts == 7
    still = ClockMender()  # a subtitle that pauses is no jump
    still.mend(packet(0, 0))
    assert still.mend(packet(1, 60_000), watched=False).pts == 60_000
    assert still.jumps == 0


def _transport_stream(path: Path, frames: int = 10) -> bytes:
    make_film(path, frames=frames, codec="mpeg2video", audio="mp2", rate=25)
    return path.read_bytes()


@pytest.mark.parametrize("overlap", [False, True])
def test_joined_transport_streams(overlap: bool, tmp_path: Path) -> None:
    """Two recordings joined by cat: the clock restarts, or steps back a little."""
    part = _transport_stream(tmp_path / "a.ts")
    joined = tmp_path / "joined.ts"
    if overlap:
        later = [n + 9 for n in range(10)]  # begins a tick before the first has ended
        make_film(tmp_path / "b.ts", frames=10, codec="mpeg2video", rate=25, ticks=later)
        joined.write_bytes(part + (tmp_path / "b.ts").read_bytes())
    else:
        joined.write_bytes(part + part)
    totals: list[int | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vcfilter.stream.report._PROGRESS_SECONDS", 0.0)
        report = encode_file(
            joined, tmp_path / "o.mkv", FAST, progress=lambda now: totals.append(now.total_frames)
        )
    if not overlap:
        assert totals[-2:] == [None, report.frames]  # what the source states means nothing
    assert report.frames >= 18
    assert 0.5 < report.seconds < 1.5
    times = packet_times(tmp_path / "o.mkv")
    assert times == sorted(set(times))
    assert times[0] < 0.1
    assert times[-1] < 2


def test_copied_audio_that_steps_back_is_mended(tmp_path: Path) -> None:
    info = StreamInfo(kind="audio", codec="pcm_s16le", time_base=MILLISECOND, sample_rate=8000,
                      channels=1, channel_layout=4, sample_format="s16", block_align=2,
                      bits_per_coded_sample=16)  # fmt: skip
    queue = deque(packet(3, ticks) for ticks in (0, 20, 40, 10, 30, 50, 50, 90))
    copier = StreamCopier(queue, [Copy(index=3, info=info)], Cut())
    with Muxer(tmp_path / "a.mov", "mov") as muxer:
        copier.add_streams(muxer)
        muxer.write_header()
        copier.begin(muxer)
        copier.copy_until(muxer, None)
    got = packet_times(tmp_path / "a.mov", "audio")
    assert len(got) >= 1
    assert got == sorted(got)


def test_mended_and_missing_audio_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = StreamInfo(kind="audio", codec="pcm_s16le", time_base=MILLISECOND, sample_rate=8000,
                      channels=1, channel_layout=4, sample_format="s16", block_align=2,
                      bits_per_coded_sample=16, duration=2000, index=3)  # fmt: skip
    copier = StreamCopier(
        deque(packet(3, t) for t in (0, 20, 10, 40)), [Copy(index=3, info=info)], Cut()
    )
    with Muxer(tmp_path / "a.mkv") as muxer:
        copier.add_streams(muxer)
        muxer.write_header()
        copier.begin(muxer)
        copier.copy_until(muxer, None)
    copier.finish()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "1 packets of stream 3 (audio pcm_s16le)" in said[0]
    assert "cut short" in said[1]
    assert "2.00 s" in said[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["film.mkv", "film.flv"])
def test_a_film_that_is_cut_short_is_told(name: str, tmp_path: Path) -> None:
    """Matroska states lengths in tags, FLV for the whole file alone."""
    codec = "ffv1" if name.endswith("mkv") else "flv"
    audio = "pcm_s16le" if name.endswith("mkv") else None
    film = make_film(tmp_path / name, frames=100, codec=codec, audio=audio)
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) // 2])
    report = encode_file(film, tmp_path / "out.mkv", FAST)
    assert 20 <= report.frames <= 80
    told = [text for text in report.warnings if "seems to be cut short" in text]
    assert len(told) == (2 if audio else 1)
    film.write_bytes(whole)
    assert not encode_file(film, tmp_path / "all.mkv", FAST).warnings


@pytest.mark.parametrize("late", [{1}, {0, 1}])
def test_a_stream_that_begins_late_is_not_cut_short(late: set[int], tmp_path: Path) -> None:
    """Matroska's header and its tag DURATION state ends, which are no lengths."""
    film = make_film(tmp_path / "film.mkv", audio="pcm_s16le")
    with Demuxer(film) as source, Muxer(tmp_path / "late.mkv", "matroska") as muxer:
        for info in source.streams:
            muxer.add_stream(info)
        muxer.write_header()
        for each in source:
            offset = -30000 if each.stream_index in late else 0
            muxer.write_packet(shifted(each, Fraction(offset)))
    assert not encode_file(tmp_path / "late.mkv", tmp_path / "n.mkv", FAST).warnings
    assert not decode_file(tmp_path / "n.mkv", tmp_path / "o.mkv").warnings
    if len(late) == 2:  # AVI would number frames from zero on
        assert not decode_file(tmp_path / "n.mkv", tmp_path / "o.avi").warnings
        assert packet_times(tmp_path / "o.avi")[0] == 0


def test_audio_too_far_before_the_frames_is_left_out(tmp_path: Path) -> None:
    """As an edit list hides it: Matroska states at most 32 seconds before zero."""
    film = make_film(tmp_path / "film.mkv", audio="pcm_s16le")
    with Demuxer(film) as source, Muxer(tmp_path / "in.mov", "mov") as muxer:
        for info in source.streams:
            muxer.add_stream(info)
        muxer.write_header()
        for each in source:
            muxer.write_packet(shifted(each, Fraction(40)) if each.stream_index else each)
    report = encode_file(tmp_path / "in.mov", tmp_path / "n.mkv", FAST)
    assert report.frames == 14
    (said,) = report.warnings
    assert "stream 1 (audio pcm_s16le) are left out: they lie too far before" in said


def test_adpcm_reaches_avi(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.avi", frames=6, codec="mpeg4", audio="adpcm_ms")
    encode_file(film, tmp_path / "n.mkv", FAST)
    decode_file(tmp_path / "n.mkv", tmp_path / "o.avi")
    with av.open(str(film)) as a, av.open(str(tmp_path / "o.avi")) as b:
        sent = [bytes(p) for p in a.demux(audio=0) if p.size]
        arrived = [bytes(p) for p in b.demux(audio=0) if p.size]
    assert arrived == sent


@pytest.mark.parametrize("late", [0, 1])
def test_avi_keeps_the_distance_of_frames(late: int, tmp_path: Path) -> None:
    """Audio begins before the frames, as AAC of MP4 does, or long after them."""
    film = make_film(tmp_path / "film.mkv", rate=25, audio="pcm_s16le")
    with Demuxer(film) as source, Muxer(tmp_path / "in.mkv", "matroska") as muxer:
        for info in source.streams:
            muxer.add_stream(info)
        muxer.write_header()
        offset = Fraction(-late, 2) if late else Fraction(3, 100)
        for each in source:
            muxer.write_packet(shifted(each, offset) if each.stream_index else each)
    report = encode_file(tmp_path / "in.mkv", tmp_path / "n.avi", FAST)
    assert len(report.warnings) == late
    assert not late or "0.50 s late" in report.warnings[0]
    times = packet_times(tmp_path / "n.avi")
    assert len(times) == 14
    assert {b - a for a, b in pairwise(times)} == {Fraction(1, 25)}
    assert times[0] == (0 if late else Fraction(1, 25))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames, two of whose times occur twice."""
    folder = tmp_path_factory.mktemp("repeated")
    ticks = [0, 33, 33, 67, 100, 100, 133, 167, 200, 233]
    make_film(folder / "in.mkv", frames=10, rate=30, ticks=ticks, time_base=MILLISECOND)
    report = encode_file(folder / "in.mkv", folder / "n.mkv", FAST)
    assert report.frames == 10
    assert any("moved" in text for text in report.warnings)
    return folder / "n.mkv"


@pytest.mark.parametrize("extension", ["mkv", "mp4", "mov", "avi", "ts", "nut", "flv"])
def test_repeated_times_become_rising_ones(repeated: Path, extension: str, tmp_path: Path) -> None:
    target = tmp_path / f"o.{extension}"
    decode_file(repeated, target)
    times = packet_times(target)
    assert len(times) == 10
    assert times == sorted(set(times))
    assert times[-1] - times[0] < 0.5


def test_repeated_times_survive_a_copy(repeated: Path, tmp_path: Path) -> None:
    for name in ("c.nut", "c.avi", "c.mov", "c.mkv"):
        copy_file(repeated, tmp_path / name)
        times = packet_times(tmp_path / name)
        assert len(times) == 10
        assert times == sorted(set(times))


@pytest.mark.parametrize("start", [1, Fraction(5, 2)])
def test_a_start_without_an_index_is_found_further_back(
    start: Fraction | int, tmp_path: Path
) -> None:
    path = tmp_path / "long.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 75
        for index in range(100):
            frame = video_frame(0 if index % 25 else index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = encode_file(path, tmp_path / "o.mkv", FAST, start=start, duration=Fraction(2, 5))
    assert report.frames == 10
    assert packet_times(tmp_path / "o.mkv")[0] < Fraction(1, 25)


def test_a_sequence_of_pictures(tmp_path: Path) -> None:
    for index in range(3):
        video_frame(index, 64, 48, "rgb24").to_image().save(tmp_path / f"img{index + 1:03}.png")
    for name in ("img%03d.png", "img*.png"):
        report = encode_file(tmp_path / name, tmp_path / "o.mkv", FAST, overwrite=True)
        assert report.frames == 3
        assert report.seconds == pytest.approx(3 / 25)
    with pytest.raises(MediaError, match=r"no\*\.png matches no file"):
        encode_file(tmp_path / "no*.png", tmp_path / "o.mkv", FAST, overwrite=True)
    words = ["--qp", "40", "--preset", "ultrafast", "-y", "-q", "--rate", "10"]
    assert main(["encode", str(tmp_path / "img%03d.png"), str(tmp_path / "o.mkv"), *words]) == 0
    assert packet_times(tmp_path / "o.mkv") == [0, Fraction(1, 10), Fraction(1, 5)]


@pytest.mark.parametrize("extension", ["mkv", "mov"])
def test_timecode_and_chapter_tracks_are_written_anew(extension: str, tmp_path: Path) -> None:
    """QuickTime has tracks of data for them; a tag and the chapters say the same."""
    with av.open(str(tmp_path / "in.mov"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["timecode"] = "01:00:00:00"
        chapter = {"start": 0, "end": 80, "time_base": MILLISECOND, "metadata": {"title": "One"}}
        container.set_chapters([{"id": 1, **chapter}])
        for index in range(2):
            frame = video_frame(index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Demuxer(tmp_path / "in.mov") as demuxer:
        assert {info.codec_tag for info in demuxer.streams[1:]} == {"tmcd", "text"}
    coded = tmp_path / f"n.{extension}"
    assert not encode_file(tmp_path / "in.mov", coded, FAST).warnings
    assert not decode_file(coded, tmp_path / "o.mov").warnings
    with Demuxer(tmp_path / "o.mov") as demuxer:
        assert [info.codec_tag for info in demuxer.streams].count("tmcd") == 1
        assert demuxer.streams[0].metadata["timecode"] == "01:00:00:00"
        assert [each.metadata["title"] for each in demuxer.chapters] == ["One"]


def test_damage_that_a_decoder_conceals_is_told(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mp4", frames=8, codec="libx264", width=128, height=96)
    assert not encode_file(film, tmp_path / "o.mkv", FAST).warnings
    data = bytearray(film.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, 90):
        data[place] ^= 0x55
    film.write_bytes(data)
    report = encode_file(film, tmp_path / "o.mkv", FAST, overwrite=True)
    assert any("frames of the source are damaged" in text for text in report.warnings)


def test_damaged_audio_is_left_out(tmp_path: Path) -> None:
    """An AAC packet whose header is no header cannot get into Matroska."""
    film = make_film(tmp_path / "in.ts", frames=12, codec="mpeg2video", rate=25, audio="aac")
    data = bytearray(film.read_bytes())
    heads = [
        place + 3
        for at in range(0, len(data), 188)
        if (data[at + 1] & 31, data[at + 2]) == (1, 1)  # the second stream's packets
        and (place := data.find(b"\xff\xf1", at, at + 188)) >= 0
    ]
    for place in heads[2::3]:
        data[place] ^= 0x7F
    film.write_bytes(data)
    report = encode_file(film, tmp_path / "o.mkv", FAST)
    assert any("(audio aac) are left out: they are damaged" in text for text in report.warnings)
    assert report.frames == 12
    with av.open(str(tmp_path / "o.mkv")) as container:
        assert sum(1 for each in container.demux(audio=0) if each.size) > 3


def test_an_mp4_that_is_cut_short_is_called_so(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mp4", codec="libx264")
    film.write_bytes(film.read_bytes()[:2000])  # the index stands at the end
    with pytest.raises(MediaError, match=r"in\.mp4 lacks its index"):
        encode_file(film, tmp_path / "o.mkv", FAST)


# --- what is shown -------------------------------------------------------------------------------


def _turned(image: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    return np.rot90(image[:, ::-1] if mirrored else image, -rotation // 90)


@pytest.mark.tools
@needs_ffmpeg
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_all_eight_display_matrices(rotation: int, mirrored: bool, tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mp4", frames=1, codec="libx264", width=64, height=48)
    turned = tmp_path / "turned.mp4"
    with Demuxer(film) as demuxer, Muxer(turned, "mp4") as muxer:
        muxer.add_stream(replace(demuxer.streams[0], rotation=rotation, mirrored=mirrored))
        muxer.write_header()
        for each in demuxer:
            muxer.write_packet(each)
    with Demuxer(turned) as demuxer:
        info = demuxer.streams[0]
        assert (info.rotation, info.mirrored) == (rotation, mirrored)

    def shown(path: Path) -> np.ndarray:
        command = ["ffmpeg", "-v", "error", "-i", str(path), "-pix_fmt", "gray", "-f", "rawvideo"]
        raw = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
        width = 64 if rotation % 180 == 0 else 48
        return np.frombuffer(raw, np.uint8).reshape(-1, width).astype(int)

    plain = shown_plain = None
    with av.open(str(film)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="gray").astype(int)
    shown_plain = _turned(plain, rotation, mirrored)
    assert np.abs(shown(turned) - shown_plain).mean() < 3  # FFmpeg builds convert range alike
    if mirrored and not _header_keeps(mirrored=True):
        pytest.skip("the bitstream does not state mirroring")
    encode_file(turned, tmp_path / "n.mkv", EncoderOptions(qp=8, preset="ultrafast"))
    for name in ("out.mp4", "out.mkv", "out.y4m"):
        assert not decode_file(tmp_path / "n.mkv", tmp_path / name).warnings
        assert np.abs(shown(tmp_path / name) - shown_plain).mean() < 6


def test_files_of_frames_are_upright(tmp_path: Path) -> None:
    fmt = VideoFormat(
        width=64, height=48, rotation=90, mirrored=True, sample_aspect_ratio=(4, 3), bit_depth=8
    )
    y = np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)
    flat = np.full((24, 32), 128, np.uint8)
    source = _Source(fmt, Frame(y=y, u=flat, v=flat, pts=0))
    frames = UprightFrames(source)
    (frame,) = frames.frames()
    shown = frames.video_format
    assert shown is not None
    frame.check(shown)
    assert (shown.width, shown.height, shown.sample_aspect_ratio) == (48, 64, (3, 4))
    assert (shown.rotation, shown.mirrored) == (0, False)
    np.testing.assert_array_equal(frame.y, _turned(y, 90, mirrored=True))


@dataclass
class _Source:
    """One frame as a source of frames."""

    video_format: VideoFormat
    frame: Frame
    time_base: Fraction = MILLISECOND
    frame_rate: Fraction | None = None
    delay: int | None = None

    def frames(self) -> Iterator[Frame]:
        yield self.frame


def _header_keeps(**fields: object) -> bool:
    """Whether the sequence header states these fields of a format."""
    fmt = VideoFormat(width=64, height=48, **fields)  # type: ignore[arg-type]
    extradata = vcfilter.Encoder(fmt, FAST).extradata
    read = SequenceHeader.read(extradata).video_format
    return all(getattr(read, name) == value for name, value in fields.items())


def test_grey_without_a_stated_range_keeps_its_levels(tmp_path: Path) -> None:
    ramp = np.tile((np.arange(64) * 4).astype(np.uint8), (48, 1))
    with vcfilter.open(tmp_path / "o.mkv", "w") as output:
        stream = output.add_stream("vcfilter", options={"qp": 8, "preset": "ultrafast"})
        output.mux(stream.encode(VideoFrame.from_ndarray(ramp, format="gray")))
    with vcfilter.open(tmp_path / "o.mkv") as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(shown[20, :, 0].astype(int) - ramp[20]).max() < 6


def test_a_change_of_range_is_converted_to_the_first(tmp_path: Path) -> None:
    luma = np.full((48, 64), 120, np.uint8)
    parts = []
    for span, level, pix_fmt in ((1, 120, "yuv420p"), (2, 121, "yuvj420p")):
        with av.open(str(tmp_path / f"{span}.h264"), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            stream.codec_context.color_range = span
            for index in range(3):
                frame = VideoFrame(64, 48, pix_fmt)
                for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
                    np.frombuffer(memoryview(plane), np.uint8)[:] = value
                frame.color_range, frame.pts, frame.time_base = span, index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{span}.h264").read_bytes())
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    options = EncoderOptions(qp=4, preset="ultrafast", keyint=3)
    report = encode_file(tmp_path / "both.h264", tmp_path / "o.mkv", options)
    assert [text for text in report.warnings if "limited range" in text] != []
    with vcfilter.open(tmp_path / "o.mkv") as container:
        means = [planes(frame)[0].mean() for frame in container.decode(video=0)]
    assert len(means) == 6
    assert luma.mean() == 120
    assert means[:3] == pytest.approx([120] * 3, abs=1.5)
    assert means[3:] == pytest.approx([16 + 121 * 219 / 255] * 3, abs=1.5)


def test_a_change_of_aspect_is_told_once(tmp_path: Path) -> None:
    parts = []
    for number, aspect in enumerate((Fraction(1), Fraction(4, 3), Fraction(1))):
        name = tmp_path / f"{number}.h264"
        with av.open(str(name), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for index in range(3):
                frame = video_frame(index, 64, 48)
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(name.read_bytes())
    for count, wanted in ((1, 0), (3, 1)):
        source = tmp_path / "joined.h264"
        source.write_bytes(b"".join(parts[:count]))
        report = encode_file(source, tmp_path / "o.mkv", FAST, overwrite=True)
        assert report.frames == 3 * count
        said = [text for text in report.warnings if "display aspect ratio" in text]
        assert len(said) == wanted


def encrypted_film(path: Path) -> Path:
    """Video and audio with Common Encryption, and no key."""
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
        "encryption_kid": "00112233445566778899aabbccddeeff",
    }
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(4):
            frame = video_frame(index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_an_encrypted_stream_is_called_so(tmp_path: Path) -> None:
    film = encrypted_film(tmp_path / "in.mp4")
    with pytest.raises(MediaError, match=r"stream 0 \(video h264\) is encrypted"):
        encode_file(film, tmp_path / "o.mkv", FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_encrypted_audio_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = StreamInfo(kind="audio", codec="aac", codec_tag="enca", index=1)
    assert plan_copies([info], [1], 0, "matroska", copy_videos=False) == []
    assert "stream 1 (audio aac) is left out: it is encrypted" in caplog.text
    caplog.clear()
    pcm = StreamInfo(kind="audio", codec="pcm_s16le", time_base=MILLISECOND, sample_rate=8000,
                     channels=1, channel_layout=4, sample_format="s16", block_align=2,
                     bits_per_coded_sample=16, duration=2000, index=3)  # fmt: skip
    hidden = [replace(packet(3, t), side_data=(("Encryption info", b"x"),)) for t in (20, 40)]
    queue = deque([packet(3, 0), *hidden])
    copier = StreamCopier(queue, [Copy(index=3, info=pcm)], Cut())
    with Muxer(tmp_path / "a.mkv") as muxer:
        copier.add_streams(muxer)
        muxer.write_header()
        copier.begin(muxer)
        copier.copy_until(muxer, None)
    copier.finish()
    assert [record.getMessage() for record in caplog.records] == [
        "2 packets of stream 3 (audio pcm_s16le) are left out: they are encrypted"
    ]
    assert packet_times(tmp_path / "a.mkv", "audio") == [0]


MASTERING = MasteringDisplay(
    primaries=((34000, 16000), (13250, 34500), (7500, 3000)),
    white_point=(15635, 16450),
    luminance=(50, 10_000_000),
)
LIGHT = ContentLight(max_content=1000, max_average=400)


def test_hdr10_side_data_by_value() -> None:
    fmt = VideoFormat(width=64, height=48, mastering=MASTERING, content_light=LIGHT)
    assert read_hdr(write_hdr(fmt)) == (MASTERING, LIGHT)
    assert read_hdr(()) == (None, None)
    assert read_hdr([("Mastering display metadata", b"short")]) == (None, None)
    assert read_hdr([("Mastering display metadata", bytes(88))])[0] is None


def _hdr_film(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.options = {
            "x265-params": "log-level=error:master-display=G(13250,34500)B(7500,3000)"
            "R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
        }
        for index in range(4):
            frame = video_frame(index, 64, 48, "yuv420p10le")
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_hdr10_goes_through(tmp_path: Path) -> None:
    _hdr_film(tmp_path / "in.mp4")
    encode_file(tmp_path / "in.mp4", tmp_path / "n.mkv", FAST)
    with Demuxer(tmp_path / "n.mkv") as demuxer:
        assert read_hdr(demuxer.streams[0].side_data) == (MASTERING, LIGHT)
    decode_file(tmp_path / "n.mkv", tmp_path / "o.mkv", codec=MediaCodec.named("libx265"))
    with Demuxer(tmp_path / "o.mkv") as demuxer:
        assert read_hdr(demuxer.streams[0].side_data) == (MASTERING, LIGHT)
    report = decode_file(tmp_path / "n.mkv", tmp_path / "x.mkv", codec=MediaCodec(name="ffv1"))
    assert any("HDR10" in text for text in report.warnings)


def test_field_order_goes_through(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
        for index in range(5):
            frame = video_frame(index, 64, 64)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = encode_file(tmp_path / "in.mp4", tmp_path / "n.mkv", FAST)
    assert report.video_format.field_order is FieldOrder.TOP_FIRST
    decode_file(tmp_path / "n.mkv", tmp_path / "o.mp4")
    for name in ("n.mkv", "o.mp4"):
        with Demuxer(tmp_path / name) as demuxer:
            assert demuxer.streams[0].field_order == FieldOrder.TOP_FIRST
    report = decode_file(tmp_path / "n.mkv", tmp_path / "o.mkv", codec=MediaCodec(name="ffv1"))
    assert any("interlaced" in text for text in report.warnings)


def test_field_order_that_the_decoder_alone_knows(tmp_path: Path) -> None:
    """AVI does not say that DV is interlaced."""
    film = make_film(tmp_path / "dv.avi", frames=1, width=720, height=576, rate=25, codec="dvvideo")
    with open_demuxer(film) as demuxer:
        info = demuxer.streams[0]
        assert info.field_order == FieldOrder.UNKNOWN
        source = MediaFrames(PacketReader(demuxer, info), info, Cut(), seekable=True)
        next(source.frames())
    assert source.video_format is not None
    assert source.video_format.field_order is FieldOrder.BOTTOM_FIRST


@pytest.mark.parametrize(("depth", "pix_fmt"), [(8, "yuv444p"), (10, "yuv444p10le")])
def test_odd_sizes_decode_by_default(depth: int, pix_fmt: str, tmp_path: Path) -> None:
    source = "yuv420p" if depth == 8 else "yuv420p10le"
    film = make_film(tmp_path / "in.mkv", frames=2, width=35, height=27, pix_fmt=source)
    encode_file(film, tmp_path / "n.mkv", FAST)
    report = decode_file(tmp_path / "n.mkv", tmp_path / "o.mp4")
    assert any("odd" in text for text in report.warnings)
    with av.open(str(tmp_path / "o.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.format.name) == (35, 27, pix_fmt)
    with pytest.raises(ConfigError, match="the size is odd"):
        decode_file(tmp_path / "n.mkv", tmp_path / "x.mp4", codec=MediaCodec.named("libx264"))


def test_y4m_of_10_bit_by_ffmpegs_muxer(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=3, width=33, height=21, pix_fmt="yuv420p10le")
    encode_file(film, tmp_path / "n.mkv", FAST)
    report = decode_file(tmp_path / "n.mkv", tmp_path / "o.y4m")
    assert report.frames == 3
    assert (tmp_path / "o.y4m").read_bytes().startswith(b"YUV4MPEG2 W33 H21 F24:1")
    with av.open(str(tmp_path / "o.y4m")) as a, vcfilter.open(tmp_path / "n.mkv") as b:
        for got, expected in zip(a.decode(video=0), b.decode(video=0), strict=True):
            assert got.format.name == "yuv420p10le"
            np.testing.assert_array_equal(planes(got)[1], planes(expected)[1])


# --- other streams -------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["flac", "pcm_s16le"])
def test_audio_that_ts_cannot_hold_is_named(codec: str, tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=2, audio=codec)
    encode_file(film, tmp_path / "n.mkv", FAST)
    report = decode_file(tmp_path / "n.mkv", tmp_path / "o.ts")
    assert report.warnings == (f"stream 1 (audio {codec}) is left out: mpegts cannot hold it",)
    with Demuxer(tmp_path / "o.ts") as demuxer:
        assert [info.kind for info in demuxer.streams] == ["video"]


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "<i>Hello</i> world",
        "<b>a <i>b</i></b> c",
        "two\nlines &amp; <u>more</u>",
        "æ <b>ø</b>",
    ],
)
def test_subrip_and_mov_text_into_each_other(text: str) -> None:
    sample = subrip_to_mov_text(replace(packet(0, 0), data=text.encode()))
    assert sample is not None
    plain_bytes = int.from_bytes(sample.data[:2], "big")
    assert b"<" not in sample.data[2 : 2 + plain_bytes]
    back = mov_text_to_subrip(sample)
    assert back is not None
    assert back.data.decode() == text
    assert mov_text_to_subrip(replace(packet(0, 0), data=b"\0\0")) is None


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_damaged_mov_text_is_read_as_far_as_it_goes(end: int) -> None:
    sample = subrip_to_mov_text(replace(packet(0, 0), data=b"a <b>bold</b> <i>word</i>"))
    assert sample is not None
    mov_text_to_subrip(replace(sample, data=sample.data[:end]))
    mov_text_to_subrip(replace(sample, data=sample.data[:20] + b"\xff" * end))


@pytest.mark.tools
@needs_ffmpeg
def test_styles_of_subtitles_survive(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", codec="libx264", frames=24)
    srt = tmp_path / "s.srt"
    srt.write_text("1\n00:00:00,100 --> 00:00:00,400\n<i>Hello</i> world\n")
    command = ["ffmpeg", "-v", "error", "-i", film, "-i", srt, "-c", "copy", "-c:s", "mov_text"]
    subprocess.run([*map(str, command), str(tmp_path / "in.mp4")], check=True)
    encode_file(tmp_path / "in.mp4", tmp_path / "n.mkv", FAST)
    decode_file(tmp_path / "n.mkv", tmp_path / "o.mp4")
    for name, wanted in (("n.mkv", "<i>Hello</i> world"), ("o.mp4", "<i>Hello</i>")):
        command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / name), "-map", "0:s:0"]
        done = subprocess.run([*command, "-f", "srt", "-"], check=True, capture_output=True)
        assert wanted in done.stdout.decode()


# --- files that name other files -----------------------------------------------------------------


@pytest.fixture
def playlists(tmp_path: Path) -> list[Path]:
    secret = make_film(tmp_path / "secret.mkv", frames=2)
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    texts = {
        "hls.mkv": hls.format(secret),
        "hls_url.mkv": hls.format(f"file:{secret}"),
        "concat.mkv": f"ffconcat version 1.0\nfile '{secret.name}'\n",
        "concat_url.mkv": f"ffconcat version 1.0\nfile 'file:{secret}'\n",
        "dash.mkv": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        f"<BaseURL>{secret}</BaseURL></Period></MPD>",
        "sdp.mkv": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts]


def test_playlists_open_no_other_file(playlists: list[Path], tmp_path: Path) -> None:
    for path in playlists:
        with pytest.raises(InvalidDataError):
            Demuxer(path)
        with open(path, "rb") as file, pytest.raises(InvalidDataError):
            Demuxer(file)
        for refused in (
            lambda path=path: vcfilter.open(path),
            lambda path=path: open_av(path),
            lambda path=path: open_av(io.BytesIO(path.read_bytes())),
            lambda path=path: encode_file(path, tmp_path / "o.mkv", FAST),
        ):
            with pytest.raises(MediaError):
                refused()
    assert not (tmp_path / "o.mkv").exists()
    with open_av(tmp_path / "secret.mkv") as container:
        assert len(list(container.decode(video=0))) == 2


@pytest.mark.slow
def test_a_threaded_decoder_can_be_left_in_the_middle(tmp_path: Path) -> None:
    """Its threads free packets while it is closed: that must not need Python's lock."""
    film = make_film(tmp_path / "in.mp4", frames=48, width=256, height=256, codec="libx264")
    code = f"""
from vcfilter.stream.containers import open_demuxer
from vcfilter.stream.decoders import MediaDecoder
for _ in range(40):
    with open_demuxer({str(film)!r}) as demuxer:
        decoder = MediaDecoder(demuxer.streams[0], threads=4)
        for number, packet in enumerate(demuxer):
            decoder.decode(packet)
            if number == 30:
                break
        del decoder
"""
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_8_bit_is_coded_in_10(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=2)
    report = encode_file(film, tmp_path / "o.mkv", FAST, bit_depth=10)
    assert report.video_format.bit_depth == 10
    with vcfilter.open(tmp_path / "o.mkv") as container:
        assert next(container.decode(video=0)).format.name == "yuv420p10le"
    with pytest.raises(ConfigError, match="bit_depth 12"):
        encode_file(film, tmp_path / "x.mkv", FAST, bit_depth=12)


def test_a_change_of_matrix_is_converted_to_the_first() -> None:
    reader = vcfilter.stream.pixels.FrameReader()
    frames = []
    for matrix in (1, 6):
        source = VideoFrame(32, 16, "yuv420p")
        for plane, value in zip(source.planes, (100, 90, 180), strict=True):
            np.frombuffer(memoryview(plane), np.uint8)[:] = value
        source.colorspace, source.color_range = matrix, 1
        frames.append(reader.read(source, len(frames)))
    assert int(frames[0].y[0, 0]) == 100
    # Kr, Kb of BT.601 and BT.709: the same RGB needs another luma and chroma. swscale goes through
    # RGB of 8 bit, so each value may be off by two.
    y, cb, cr = (100 - 16) / 219, (90 - 128) / 224, (180 - 128) / 224
    r, b = y + 2 * (1 - 0.299) * cr, y + 2 * (1 - 0.114) * cb
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    assert int(frames[1].y[0, 0]) == pytest.approx(16 + 219 * luma, abs=2.5)
    assert int(frames[1].u[0, 0]) == pytest.approx(128 + 224 * (b - luma) / 1.8556, abs=2.5)
    assert int(frames[1].v[0, 0]) == pytest.approx(128 + 224 * (r - luma) / 1.5748, abs=2.5)


# --- FFmpeg's filters ----------------------------------------------------------------------------


def test_filter_chains_are_parsed() -> None:
    assert parse_chain("scale=640:-2,fps=25") == [("scale", "640:-2"), ("fps", "25")]
    assert parse_chain(r"crop='min(iw,ih)':ih, hflip@a") == [
        ("crop", "'min(iw,ih)':ih"),
        ("hflip", ""),
    ]
    assert parse_chain(r"drawtext=text=a\,b") == [("drawtext", r"text=a\,b")]
    for text in ("", "scale=1,,fps", "[0]scale=1", "scale=1;fps=2"):
        with pytest.raises(ConfigError, match="filter"):
            parse_chain(text)


def test_filters_scale_and_change_the_rate(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=12, audio="pcm_s16le")
    report = encode_file(
        film, tmp_path / "o.mkv", FAST, video_filter="crop=48:48,scale=32:-2,hflip,fps=12"
    )
    assert report.frames == 6
    assert (report.video_format.width, report.video_format.height) == (32, 32)
    with vcfilter.open(tmp_path / "o.mkv") as container:
        assert container.streams.video[0].average_rate == 12
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([n / 12 for n in range(6)], abs=0.001)
    decode_file(tmp_path / "o.mkv", tmp_path / "o.mp4", video_filter="scale=64:64")
    with av.open(str(tmp_path / "o.mp4")) as decoded:
        frame = next(decoded.decode(video=0))
        assert (frame.width, frame.height) == (64, 64)


def test_filters_keep_display_and_deinterlace() -> None:
    fmt = VideoFormat(
        width=64, height=48, sample_aspect_ratio=(4, 3), color_range=1, colorspace=1,
        field_order=FieldOrder.TOP_FIRST, content_light=LIGHT, rotation=90,
    )  # fmt: skip
    frame, _ = vcfilter.frame_of(video_frame(0, 64, 48))

    class Frames:
        time_base, frame_rate, video_format = Fraction(1, 25), Fraction(25), fmt

        def frames(self) -> Iterator[vcfilter.Frame]:
            for index in range(4):
                yield replace(frame, pts=index, duration=1)

    def through(text: str) -> tuple[VideoFormat, list[Fraction]]:
        source = FilteredFrames(Frames(), text, logging.getLogger("vcfilter.stream"))
        times = [each.pts * source.time_base for each in source.frames()]
        assert source.video_format is not None
        return source.video_format, times

    same, times = through("null")
    assert same == fmt
    assert times == [Fraction(n, 25) for n in range(4)]
    assert through("scale=32:48")[0].sample_aspect_ratio == (8, 3)
    assert through("setsar=1")[0].sample_aspect_ratio == (1, 1)
    assert through("reverse")[0].sample_aspect_ratio == (4, 3)
    deinterlaced, times = through("yadif")
    assert deinterlaced.field_order is FieldOrder.PROGRESSIVE
    assert len(times) == 4
    for text in ("no_such_filter", "scale=nonsense=5"):
        with pytest.raises(ConfigError, match="filter"):
            through(text)
