"""The bridge: neural tracks and copied streams arrive, and stock tools can work with the files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from bridge_media import (
    EXTRADATA,
    KEYINT,
    NEURAL,
    RATE,
    ffmpeg,
    merge,
    moved,
    neural_packets,
    payloads,
    probe,
    read_all,
    sound_packets,
    tool,
    write_neural,
    write_sound,
)

from vcfilter._bridge import BridgePacket, Chapter, Demuxer, Muxer, StreamInfo, supports

CONTAINERS = ["matroska", "nut", "avi", "mov"]
SUBTITLES = """1
00:00:00,200 --> 00:00:01,100
Where is it?

2
00:00:01,500 --> 00:00:02,000
Über hier.
"""


@pytest.fixture
def subtitles(tmp_path: Path) -> Path:
    path = tmp_path / "words.srt"
    path.write_text(SUBTITLES, encoding="utf-8")
    return path


@pytest.mark.parametrize("format", CONTAINERS)
def test_neural_track_comes_back(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"film.{format}"
    packets = write_neural(path, format)
    with Demuxer(path) as demuxer:
        info = demuxer.streams[0]
        assert (info.kind, info.codec, info.codec_tag) == ("video", "", "VCF1")
        assert (info.width, info.height, info.frame_rate) == (352, 288, RATE)
        assert info.sample_aspect_ratio == Fraction(12, 11)
        if format != "mov":  # QuickTime has no place for it: keyframes carry the header too
            assert info.extradata == EXTRADATA
        if format in ("matroska", "mov"):
            assert (info.color_primaries, info.color_trc, info.colorspace) == (1, 1, 1)
        if format == "matroska":
            assert (info.color_range, info.chroma_location, info.disposition) == (1, 1, 1)
            assert info.metadata["language"] == "fre"
            assert info.metadata["title"] == "picture"
            assert demuxer.duration == len(packets) / RATE
            assert demuxer.start_time == 0
        read = list(demuxer)
    assert payloads(read) == payloads(packets)
    assert [p.is_keyframe for p in read] == [p.is_keyframe for p in packets]
    assert [p.pts * p.time_base for p in read if p.pts is not None] == [
        p.pts * p.time_base for p in packets if p.pts is not None
    ]
    assert [p.pts for p in read] == [p.dts for p in read]


@pytest.mark.tools
@pytest.mark.parametrize("format", CONTAINERS)
def test_stock_ffprobe_shows_the_track(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"film.{format}"
    packets = write_neural(path, format)
    shown = probe(path, "-show_streams", "-show_format", "-show_packets")
    stream = shown["streams"][0]
    assert stream["codec_tag_string"] == "VCF1"
    assert (stream["width"], stream["height"]) == (352, 288)
    assert Fraction(stream["avg_frame_rate"]) == RATE
    assert stream["sample_aspect_ratio"] == "12:11"
    assert float(shown["format"]["duration"]) == pytest.approx(len(packets) / RATE, abs=0.05)
    assert [int(p["size"]) for p in shown["packets"]] == [len(p.data) for p in packets]
    if format == "matroska":
        assert stream["color_primaries"] == stream["color_space"] == "bt709"


@pytest.mark.tools
@pytest.mark.parametrize("format", CONTAINERS)
def test_stock_ffmpeg_cuts_at_a_keyframe(tmp_path: Path, format: str) -> None:
    name = format.replace("matroska", "mkv")
    source, piece = tmp_path / f"film.{name}", tmp_path / f"piece.{name}"
    packets = write_neural(source, format)
    start = 2 * KEYINT
    ffmpeg("-ss", str(float(start / RATE)), "-i", str(source), "-c", "copy", "-t", "1", str(piece))
    read = read_all(piece)
    expected = packets[start : start + int(RATE)]
    assert payloads(read) == payloads(expected)
    assert read[0].is_keyframe
    assert [p.pts for p in read] == sorted(p.pts for p in read if p.pts is not None)


@pytest.mark.tools
def test_stock_ffmpeg_keeps_the_order_through_copies(tmp_path: Path) -> None:
    packets = write_neural(tmp_path / "0.mkv")
    for n, (source, target) in enumerate(pairwise(["0.mkv", "1.nut", "2.avi", "3.mov", "4.mkv"])):
        ffmpeg("-i", str(tmp_path / source), "-c", "copy", str(tmp_path / target))
        read = read_all(tmp_path / target)
        assert payloads(read) == payloads(packets), (n, target)
        assert [p.is_keyframe for p in read] == [p.is_keyframe for p in packets]
        times = [p.pts * p.time_base for p in read if p.pts is not None]
        assert times == pytest.approx([n / RATE for n in range(len(packets))], abs=0.001)


@pytest.mark.tools
def test_mkvmerge_splits_and_joins(tmp_path: Path) -> None:
    source, sound = tmp_path / "film.mkv", write_sound(tmp_path / "sound.m4a", "aac")
    merge(source, [sound])
    packets = neural_packets()
    pieces = str(tmp_path / "piece%02d.mkv")
    command = [tool("mkvmerge"), "-q", "-o", pieces, "--split", "1s", str(source)]
    subprocess.run(command, check=True)
    found = sorted(tmp_path.glob("piece*.mkv"))
    assert len(found) > 1
    parts = [read_all(path) for path in found]
    assert all(part[0].is_keyframe for part in parts)
    assert [p.data for part in parts for p in part] == payloads(packets)
    with Demuxer(found[1]) as demuxer:
        assert demuxer.streams[0].codec_tag == "VCF1"
        assert demuxer.streams[0].extradata == EXTRADATA
    joined = tmp_path / "joined.mkv"
    command = [
        tool("mkvmerge"),
        "-q",
        "-o",
        str(joined),
        str(found[0]),
        *(f"+{p}" for p in found[1:]),
    ]
    subprocess.run(command, check=True)
    assert payloads(read_all(joined)) == payloads(packets)


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("flac", "sound.flac"),
        ("aac", "sound.m4a"),
        ("libopus", "sound.ogg"),
        ("libmp3lame", "sound.mp3"),
        ("pcm_s16le", "sound.wav"),
        ("ac3", "sound.mkv"),
    ],
)
def test_sound_arrives_bit_for_bit(tmp_path: Path, codec: str, name: str) -> None:
    source, target = write_sound(tmp_path / name, codec), tmp_path / "film.mkv"
    merge(target, [source])
    expected = payloads(read_all(source))
    assert len(expected) > 5
    assert payloads(read_all(target, 1)) == expected
    assert sound_packets(target) == expected
    assert b"".join(sound_packets(source)) == b"".join(expected)
    with Demuxer(source) as before, Demuxer(target) as after:
        old, new = before.streams[0], after.streams[1]
        assert (new.codec, new.sample_rate, new.channels) == (old.codec, 48000, 2)
        assert new.channel_layout == old.channel_layout or not old.channel_layout
        assert new.initial_padding == old.initial_padding or codec != "libopus"
        assert new.extradata == old.extradata
    assert payloads(read_all(target)) == payloads(neural_packets())


@pytest.mark.parametrize(("codec", "name"), [("aac", "sound.m4a"), ("libopus", "sound.ogg")])
def test_sound_that_begins_before_zero_moves_nothing(tmp_path: Path, codec: str, name: str) -> None:
    source, target = write_sound(tmp_path / name, codec), tmp_path / "film.mkv"
    again = tmp_path / "again.mkv"
    merge(target, [source])
    with Demuxer(target) as demuxer, Muxer(again) as muxer:
        for info in demuxer.streams:
            muxer.add_stream(info)
        muxer.write_header()
        for packet in demuxer:
            muxer.write_packet(packet)
    before = [float(p.pts * p.time_base) for p in read_all(source) if p.pts is not None]
    assert before[0] < 0
    for copy in (target, again):
        assert [p.pts for p in read_all(copy)] == [40 * n for n in range(60)]
        after = [float(p.pts * p.time_base) for p in read_all(copy, 1) if p.pts is not None]
        assert after == pytest.approx(before, abs=0.0011)


@pytest.mark.parametrize("layout", ["mono", "5.1"])
def test_channel_layouts_arrive(tmp_path: Path, layout: str) -> None:
    source = write_sound(tmp_path / "sound.mka", "flac", seconds=0.5, layout=layout)
    merge(tmp_path / "film.mkv", [source])
    with Demuxer(source) as before, Demuxer(tmp_path / "film.mkv") as after:
        assert after.streams[1].channels == before.streams[0].channels
        assert after.streams[1].channel_layout == before.streams[0].channel_layout


@pytest.mark.tools
def test_everything_beside_the_picture_survives(tmp_path: Path, subtitles: Path) -> None:
    path = tmp_path / "film.mkv"
    sound = write_sound(tmp_path / "sound.m4a", "aac")
    font = StreamInfo(
        kind="attachment",
        codec="ttf",
        extradata=b"\x00\x01\x00\x00 no real font",
        metadata={"filename": "font.ttf", "mimetype": "application/x-truetype-font"},
    )
    note = StreamInfo(
        kind="attachment",
        extradata=b"just bytes",
        metadata={"filename": "note.bin", "mimetype": "application/octet-stream"},
    )
    chapters = [
        Chapter(id=5, start=0, end=1, time_base=Fraction(1), metadata={"title": "Début"}),
        Chapter(id=6, start=1000, end=2400, time_base=Fraction(1, 1000), metadata={"title": "Fin"}),
    ]
    packets = neural_packets()
    with Muxer(path) as muxer, Demuxer(sound) as audio, Demuxer(subtitles) as words:
        muxer.add_stream(NEURAL)
        for demuxer, language, disposition in ((audio, "deu", 4), (words, "jpn", 64)):
            info = demuxer.streams[0]
            index = muxer.add_stream(
                StreamInfo(
                    kind=info.kind,
                    codec=info.codec,
                    extradata=info.extradata,
                    time_base=info.time_base,
                    sample_rate=info.sample_rate,
                    channels=info.channels,
                    channel_layout=info.channel_layout,
                    frame_size=info.frame_size,
                    disposition=disposition,
                    metadata={"language": language, "title": f"in {language}"},
                )
            )
            packets += [moved(p, index) for p in demuxer]
        muxer.add_stream(font)
        muxer.add_stream(note)
        for chapter in chapters:
            muxer.add_chapter(chapter)
        muxer.metadata = {"title": "A film — ein Film", "artist": "nobody"}
        muxer.write_header()
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            muxer.write_packet(packet)

    with Demuxer(path) as demuxer:
        kinds = [info.kind for info in demuxer.streams]
        assert kinds == ["video", "audio", "subtitle", "attachment", "attachment"]
        assert [info.metadata.get("language") for info in demuxer.streams[:3]] == [
            "fre",
            "deu",
            "jpn",
        ]
        assert [info.disposition for info in demuxer.streams[:3]] == [1, 4, 64]
        assert demuxer.streams[2].codec == "subrip"
        for info, given in zip(demuxer.streams[3:], (font, note), strict=True):
            assert info.extradata == given.extradata
            assert info.metadata["filename"] == given.metadata["filename"]
            assert info.metadata["mimetype"] == given.metadata["mimetype"]
        assert demuxer.metadata["title"] == "A film — ein Film"
        assert demuxer.metadata["ARTIST"] == "nobody"
        assert [c.metadata["title"] for c in demuxer.chapters] == ["Début", "Fin"]
        times = [float(t * c.time_base) for c in demuxer.chapters for t in (c.start, c.end)]
        assert times == [0, 1, 1, 2.4]
        lines = [p for p in demuxer if p.stream_index == 2]
    assert [p.data.decode() for p in lines] == ["Where is it?", "Über hier."]
    assert [(p.pts, p.duration) for p in lines] == [(200, 900), (1500, 500)]
    shown = probe(path, "-show_streams", "-show_chapters")
    assert [s["tags"].get("language") for s in shown["streams"][:3]] == ["fre", "deu", "jpn"]
    assert shown["streams"][2]["disposition"]["forced"] == 1
    assert shown["chapters"][1]["end_time"] == "2.400000"


@pytest.mark.parametrize("format", ["matroska", "mov"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_survives(format: str, rotation: int) -> None:
    file = io.BytesIO()
    info = StreamInfo(
        kind="video",
        codec_tag="VCF1",
        width=64,
        height=48,
        time_base=1 / RATE,
        rotation=rotation,
    )
    for _ in range(2):  # also through a second copy by value
        file = io.BytesIO()
        with Muxer(file, format) as muxer:
            muxer.add_stream(info)
            muxer.write_header()
            muxer.write_packet(neural_packets(1)[0])
        file.seek(0)
        with Demuxer(file) as demuxer:
            info = demuxer.streams[0]
            assert info.rotation == rotation
            assert "rotate" not in {key.lower() for key in info.metadata}


@pytest.mark.tools
def test_rotation_is_clockwise_as_stock_tools_see_it(tmp_path: Path) -> None:
    path = tmp_path / "film.mov"
    with Muxer(path, "mov") as muxer:
        muxer.add_stream(
            StreamInfo(kind="video", codec_tag="VCF1", width=64, height=48, rotation=90)
        )
        muxer.write_header()
        muxer.write_packet(neural_packets(1)[0])
    side_data = probe(path, "-show_streams")["streams"][0]["side_data_list"]
    assert side_data[0]["rotation"] == -90  # FFmpeg counts counterclockwise


def test_stream_side_data_survives() -> None:
    # AVMasteringDisplayMetadata: ten rationals and two flags
    numbers = [34000, 50000, 16000, 50000, 13250, 50000, 34500, 50000, 7500, 50000, 3000, 50000]
    numbers += [15635, 50000, 16450, 50000, 1, 10000, 1000, 1]
    content = struct.pack("=22i", *numbers, 1, 1)
    info = StreamInfo(
        kind="video",
        codec_tag="VCF1",
        width=64,
        height=48,
        side_data=(("Mastering display metadata", content), ("no such type", b"left out")),
    )
    file = io.BytesIO()
    with Muxer(file) as muxer:
        muxer.add_stream(info)
        muxer.write_header()
        muxer.write_packet(neural_packets(1)[0])
    file.seek(0)
    with Demuxer(file) as demuxer:
        found = dict(demuxer.streams[0].side_data)["Mastering display metadata"]
    values, expected = struct.unpack("=22i", found), struct.unpack("=22i", content)
    for n in range(0, 20, 2):  # Matroska stores floats
        ratio = Fraction(expected[n], expected[n + 1])
        assert values[n] / values[n + 1] == pytest.approx(float(ratio), rel=1e-4)


def test_packet_side_data_survives(tmp_path: Path) -> None:
    source, target = write_sound(tmp_path / "sound.ogg", "libopus"), tmp_path / "film.mkv"
    merge(target, [source])
    before, after = read_all(source), read_all(target, 1)
    assert before[-1].side_data
    assert [name for name, _ in after[-1].side_data] == ["Skip Samples"]
    assert dict(after[-1].side_data) == dict(before[-1].side_data)


def test_cover_picture_becomes_an_attachment() -> None:
    picture = b"\xff\xd8\xff\xe0" + bytes(500)
    cover = StreamInfo(
        kind="attachment",
        codec="mjpeg",
        extradata=picture,
        metadata={"filename": "cover.jpg", "mimetype": "image/jpeg"},
    )
    for _ in range(2):
        file = io.BytesIO()
        with Muxer(file) as muxer:
            muxer.add_stream(NEURAL)
            muxer.add_stream(cover)
            muxer.write_header()
            muxer.write_packet(neural_packets(1)[0])
        file.seek(0)
        with Demuxer(file) as demuxer:
            info = demuxer.streams[1]
            assert info.kind == "video"
            assert info.attached_picture == picture
            cover = info.as_attachment()
        assert cover.metadata["filename"] == "cover.jpg"
    with pytest.raises(ValueError, match="no attached picture"):
        NEURAL.as_attachment()


def test_uneven_times_and_a_late_start_are_kept() -> None:
    times = [5000, 5033, 5067, 5400, 5401, 7000]
    info = StreamInfo(kind="video", codec_tag="VCF1", width=64, height=48)
    file = io.BytesIO()
    with Muxer(file) as muxer:
        muxer.add_stream(info)
        muxer.write_header()
        for n, time in enumerate(times):
            muxer.write_packet(
                BridgePacket(
                    stream_index=0,
                    data=b"x",
                    pts=time,
                    dts=time,
                    is_keyframe=n == 0,
                    time_base=Fraction(1, 1000),
                )
            )
    file.seek(0)
    with Demuxer(file) as demuxer:
        assert demuxer.streams[0].start_time == 5000
        assert [p.pts for p in demuxer] == times


@pytest.mark.parametrize("format", ["matroska", "nut"])
def test_seeking_finds_keyframes(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"film.{format}"
    with Muxer(path, format) as muxer:
        muxer.add_stream(NEURAL)
        muxer.write_header()
        packets = neural_packets(300)
        for packet in packets:
            muxer.write_packet(packet)
    with Demuxer(path) as demuxer:
        base = demuxer.streams[0].time_base
        for frame in (299, 30, 12, 11, 0, 200):
            demuxer.seek(0, int(frame / RATE / base))
            found = demuxer.read_packet()
            assert found is not None
            assert found.is_keyframe
            number = int(found.data[:4])
            # NUT's index is sparse: any earlier keyframe will do
            assert number == frame - frame % KEYINT or (format == "nut" and number <= frame)
        if format == "matroska":
            demuxer.seek(0, int(30 / RATE / base), backward=False)
            found = demuxer.read_packet()
            assert found is not None
            assert int(found.data[:4]) == 36
            demuxer.seek(-1, 6_000_000)
            found = demuxer.read_packet()
            assert found is not None
            assert int(found.data[:4]) == 144


@pytest.mark.parametrize("format", ["matroska", "nut"])
@pytest.mark.parametrize("how", ["file object", "url"])
def test_pipes_both_ways(format: str, how: str) -> None:
    reading, writing = os.pipe()
    result: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reading, "rb") as pipe:
            result.append(pipe.read())

    thread = threading.Thread(target=drain)
    thread.start()
    packets = neural_packets(200)
    target = os.fdopen(writing, "wb") if how == "file object" else f"pipe:{writing}"
    with Muxer(target, format) as muxer:
        muxer.add_stream(NEURAL)
        muxer.duration = 200 / RATE
        muxer.write_header()
        for packet in packets:
            muxer.write_packet(packet)
    if isinstance(target, str):
        os.close(writing)
    else:
        target.close()
    thread.join()

    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(result[0])

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reading, "rb") as source:
        with Demuxer(source) as demuxer:
            if format == "matroska":
                assert demuxer.duration == 8
            read = list(demuxer)
        thread.join()
    assert payloads(read) == payloads(packets)


def test_file_objects(tmp_path: Path) -> None:
    file = io.BytesIO()
    packets = write_neural(file)
    assert not file.closed
    write_neural(tmp_path / "film.mkv")
    assert len(file.getvalue()) == (tmp_path / "film.mkv").stat().st_size
    file.seek(0)
    with Demuxer(file) as demuxer:
        assert demuxer.duration == len(packets) / RATE
        demuxer.seek(0, 1000)
        packet = demuxer.read_packet()
        assert packet is not None
        assert int(packet.data[:4]) == 24
    inside = io.BytesIO(b"something else")
    inside.seek(0, io.SEEK_END)
    write_neural(inside)
    assert inside.getvalue().startswith(b"something else\x1a\x45\xdf\xa3")
    inside.seek(len(b"something else"))
    with Demuxer(inside) as demuxer:
        demuxer.seek(0, 1000)
        assert demuxer.duration == len(packets) / RATE
        packet = demuxer.read_packet()
        assert packet is not None
        assert int(packet.data[:4]) == 24
    with open(tmp_path / "raw.mkv", "wb", buffering=0) as raw:
        write_neural(raw)
    with open(tmp_path / "raw.mkv", "rb") as again:
        assert payloads(read_all(again)) == payloads(packets)


@pytest.mark.parametrize(
    "name", ["a:b.mkv", "http:film.mkv", "Ünï 漢字.mkv", "-film.mkv", "100%d.mkv"]
)
def test_odd_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    packets = write_neural(name)
    assert (tmp_path / name).exists()
    assert payloads(read_all(name)) == payloads(packets)
    assert payloads(read_all(os.fsencode(name))) == payloads(packets)


def test_supports() -> None:
    for container in CONTAINERS:
        assert supports(container, NEURAL), container
    for container in ("mp4", "webm"):
        assert not supports(container, NEURAL), container
    aac = StreamInfo(
        kind="audio",
        codec="aac",
        sample_rate=48000,
        channels=2,
        channel_layout=3,
        extradata=b"\x11\x90",
    )
    assert supports("matroska", aac)
    assert supports("mp4", aac)
    assert not supports("webm", aac)
    assert not supports("matroska", StreamInfo(kind="subtitle", codec="mov_text"))
    assert supports("matroska", StreamInfo(kind="subtitle", codec="subrip"))
    assert not supports("matroska", StreamInfo(kind="data", codec_tag="tmcd"))
    assert not supports("matroska", StreamInfo(kind="audio", codec="no such codec"))
    font = StreamInfo(kind="attachment", extradata=b"x", metadata={"filename": "f"})
    assert supports("matroska", font)
    assert not supports("webm", font)
    assert not supports("mp4", font)


def test_reproducible_output() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        with Muxer(file, options={"fflags": "bitexact"}) as muxer:
            muxer.add_stream(NEURAL)
            muxer.write_header()
            for packet in neural_packets():
                muxer.write_packet(packet)
    assert files[0].getvalue() == files[1].getvalue()
