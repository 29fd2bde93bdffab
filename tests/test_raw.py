"""Raw neural streams (.vcf): written, read, piped, joined, damaged."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import make_film

import vcfilter
from vcfilter._bridge import BridgeError, BridgePacket, InvalidDataError
from vcfilter.cli.main import main
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import EncoderOptions
from vcfilter.stream.inspect import inspect_file, verify_file
from vcfilter.stream.raw import MAGIC, RawDemuxer, RawMuxer, open_demuxer
from vcfilter.stream.reader import neural_frames
from vcfilter.stream.transcode import decode_file, encode_file

FAST = ["--preset", "ultrafast", "--qp", "34"]
OPTIONS = EncoderOptions(qp=34, preset="ultrafast", keyint=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mkv, and coded from it neural.mkv and neural.vcf, 9 frames each."""
    folder = tmp_path_factory.mktemp("raw")
    make_film(folder / "film.mkv", frames=9, audio="aac")
    for name in ("neural.mkv", "neural.vcf"):
        encode_file(str(folder / "film.mkv"), str(folder / name), OPTIONS)
    return folder


def lumas(path: Path) -> list[np.ndarray]:
    return [frame.y for frame in neural_frames(str(path))]


def test_the_bytes(folder: Path) -> None:
    """The format as docs/playback.md states it, read without the reader."""
    data = (folder / "neural.vcf").read_bytes()
    magic, numerator, denominator = struct.unpack_from("<8sII", data)
    assert (magic, Fraction(numerator, denominator)) == (b"VCFRAW1\n", Fraction(1, 3000))
    place, times = 16, []
    while place < len(data):
        length, pts, duration = struct.unpack_from("<IqI", data, place)
        times.append((pts, duration))
        place += 16 + length
    assert place == len(data)
    assert times == [(125 * i, 125) for i in range(9)]  # exact, though Matroska says 0, 42, 83 ms


def test_the_same_pictures_as_in_matroska(folder: Path) -> None:
    raw, boxed = lumas(folder / "neural.vcf"), lumas(folder / "neural.mkv")
    assert len(raw) == 9
    assert all(np.array_equal(a, b) for a, b in zip(raw, boxed, strict=True))


def test_info_verify_and_decode(folder: Path, tmp_path: Path) -> None:
    summary = inspect_file(str(folder / "neural.vcf"))
    assert summary.container == "vcf"
    assert summary.seconds == pytest.approx(9 / 24)
    (stream,) = summary.neural
    assert stream.info.frame_rate == 24
    assert (stream.packets, stream.keyframes, stream.segments) == (9, 3, [4, 4, 1])
    verdict = verify_file(str(folder / "neural.vcf"))
    assert verdict.good
    assert verdict.frames == 9
    report = decode_file(
        str(folder / "neural.vcf"), str(tmp_path / "back.mp4"), start=Fraction(1, 6)
    )
    assert report.frames == 5


def test_a_container_opened_as_in_pyav_seeks(folder: Path) -> None:
    whole = lumas(folder / "neural.vcf")
    with vcfilter.open(folder / "neural.vcf") as video:
        assert video.format_name == "vcf"
        assert video.duration == 375000
        shown = video.frame_at(0.25)
        assert shown.pts == 6 * 125
        assert np.array_equal(shown.to_ndarray()[:48], whole[6])
        video.seek(0)
        assert next(video.decode(video=0)).pts == 0
        video.seek(500, stream=video.streams.video[0], backward=False)
        assert next(video.decode(video=0)).pts == 500


def test_packets_copied_between_containers(folder: Path, tmp_path: Path) -> None:
    """Matroska to raw and back without coding anew: the packets stay the same bytes."""
    with (
        vcfilter.open(folder / "neural.mkv") as source,
        vcfilter.open(tmp_path / "copy.vcf", "w") as target,
    ):
        target.add_stream_from_template(source.streams.video[0])
        target.mux(source.demux(video=0))
        with pytest.raises(ConfigError, match="vcf cannot hold audio aac"):
            vcfilter.open(tmp_path / "no.vcf", "w").add_stream_from_template(
                source.streams.audio[0]
            )
    copied = [p.data for p in RawDemuxer(tmp_path / "copy.vcf")]
    assert copied == [p.data for p in RawDemuxer(folder / "neural.vcf")]
    assert not list(tmp_path.glob("no*"))


def test_the_command_line_copies(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Packets, sound and times as they are; the neural stream alone as .vcf, and back."""

    def copy(*arguments: object) -> int:
        return main(["transcode", *map(str, arguments), "-c:v", "copy"])

    def content(path: Path, kind: str) -> list[tuple[bytes, Fraction]]:
        with open_demuxer(path) as demuxer:
            chosen = [info.index for info in demuxer.streams if info.kind == kind]
            return [
                (p.data, p.pts * p.time_base)
                for p in demuxer
                if p.stream_index in chosen and p.pts is not None and p.data
            ]

    source = folder / "neural.mkv"
    assert copy(source, tmp_path / "copy.nut") == 0
    later = content(tmp_path / "copy.nut", "video")[0][1]  # sound began before zero; NUT cannot
    for kind in ("video", "audio"):
        sent, arrived = content(source, kind), content(tmp_path / "copy.nut", kind)
        assert [data for data, _ in arrived] == [data for data, _ in sent] != []
        for (_, ours), (_, theirs) in zip(arrived, sent, strict=True):
            assert abs(ours - later - theirs) <= Fraction(1, 1000)
    assert copy(source, tmp_path / "copy.vcf") == 0
    error = capfd.readouterr().err
    assert "1 other streams are left out" in error
    assert "9 packets" in error
    assert (tmp_path / "copy.vcf").read_bytes() == (folder / "neural.vcf").read_bytes()
    assert copy(tmp_path / "copy.vcf", tmp_path / "back.mkv", "-q") == 0
    assert content(tmp_path / "back.mkv", "video") == content(source, "video")
    assert copy(source, tmp_path / "sound.mkv", "-map", "v") == 0
    assert content(tmp_path / "sound.mkv", "audio") == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["neural.mkv", "out.mp4"], 2, "mp4 cannot hold a neural stream"),
        (["film.mkv", "out.mkv"], 1, "no neural video stream to copy"),
        (["neural.mkv", "out.vcf", "--qp", "30"], 2, "it takes no options of coding"),
        (["neural.mkv", "out.vcf", "-ss", "1"], 2, "takes whole films"),
        (["neural.mkv", "out.vcf", "-map", "a"], 1, "no video stream"),
        (["neural.mkv", "neural.vcf"], 1, "exists already"),
    ],
)
def test_copies_that_cannot_be(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    source, target, *rest = arguments
    goal = (folder if (folder / target).exists() else tmp_path) / target
    command = ["transcode", str(folder / source), str(goal), "-c:v", "copy", *rest]
    assert main(command) == status
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_joined_files_play_on(folder: Path, tmp_path: Path) -> None:
    """cat a.vcf b.vcf: times go on, also where the second part counts in other ticks."""
    one = (folder / "neural.vcf").read_bytes()
    other = RawDemuxer(folder / "neural.vcf")
    with open(tmp_path / "ms.vcf", "wb") as file:
        info = other.streams[0]
        from dataclasses import replace

        muxer = RawMuxer(file)
        muxer.add_stream(replace(info, time_base=Fraction(1, 24000), frame_rate=None))
        muxer.write_header()
        for packet in other:
            muxer.write_packet(packet)
        muxer.close()
    joined = tmp_path / "joined.vcf"
    joined.write_bytes(one + (tmp_path / "ms.vcf").read_bytes() + one)
    demuxer = RawDemuxer(joined)
    packets = list(demuxer)
    assert [p.pts for p in packets] == [125 * i for i in range(27)]
    assert demuxer.duration == Fraction(27, 24)
    demuxer.seek(0, 125 * 23)
    found = demuxer.read_packet()
    assert found is not None
    assert (found.pts, found.is_keyframe) == (125 * 22, True)
    assert [p.pts for p in demuxer] == [125 * i for i in range(23, 27)]
    decoded, single = lumas(joined), lumas(folder / "neural.vcf")
    assert len(decoded) == 27
    assert np.array_equal(decoded[9], single[0])
    assert verify_file(str(joined)).good


def test_pipes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vcfilter"]
    coded = subprocess.run(
        [*command, "encode", "-", "-", "-f", "vcf", *FAST, "-g", "4"],
        input=(folder / "film.mkv").read_bytes(),
        capture_output=True,
        check=True,
    )
    assert coded.stdout == (folder / "neural.vcf").read_bytes()
    y4m = subprocess.run(
        [*command, "decode", "-", "-"], input=coded.stdout, capture_output=True, check=True
    ).stdout
    assert len(y4m) == y4m.index(b"\n") + 1 + 9 * (6 + 64 * 48 * 3 // 2)
    told = subprocess.run(
        [*command, "info", "-"], input=coded.stdout, capture_output=True, check=True
    ).stdout
    assert b"24 frames/s; 9 packets" in told


def test_file_objects(folder: Path) -> None:
    data = (folder / "neural.vcf").read_bytes()
    with vcfilter.open(io.BytesIO(data)) as video:
        assert len(list(video.decode(video=0))) == 9
    target = io.BytesIO()
    with (
        vcfilter.open(folder / "neural.mkv") as source,
        vcfilter.open(target, "w", format="vcf") as output,
    ):
        output.add_stream_from_template(source.streams.video[0])
        output.mux(source.demux(video=0))
    assert target.getvalue() == data


def test_sound_is_left_out_with_a_warning(folder: Path, tmp_path: Path) -> None:
    report = encode_file(str(folder / "film.mkv"), str(tmp_path / "a.vcf"), OPTIONS)
    assert any("1 other streams are left out" in warning for warning in report.warnings)


def test_decode_writes_no_vcf(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", str(folder / "neural.mkv"), str(tmp_path / "x.vcf")]) == 2
    assert "vcf holds neural pictures only" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_truncation_ends_in_a_sentence(folder: Path) -> None:
    data = (folder / "neural.vcf").read_bytes()
    whole = [packet.data for packet in RawDemuxer(io.BytesIO(data))]
    ends = {16}
    for packet in whole:
        ends.add(max(ends) + 16 + len(packet))
    for size in range(len(data)):
        for file in (io.BytesIO(data[:size]), _Pipe(data[:size])):
            try:
                demuxer = RawDemuxer(file)
            except InvalidDataError as error:
                assert str(error)
                assert size < sorted(ends)[1]
                continue
            read: list[bytes] = []
            try:
                for packet in demuxer:
                    read.append(packet.data)
            except BridgeError as error:
                assert "in the middle" in str(error)
                assert size not in ends
            else:
                assert size in ends
            assert read == whole[: len(read)]


class _Pipe:
    """Bytes that can be read once."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, 7))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (struct.pack("<IqI", 0, 0, 1), "nonsense"),
        (struct.pack("<IqI", 0x50000000, 0, 1), "nonsense"),
        (struct.pack("<IqI", 9, -(1 << 63), 1), "nonsense"),
        (MAGIC + struct.pack("<II", 0, 1), "time base 0/1 is nonsense"),
        (MAGIC + struct.pack("<II", 1, 0), "time base 1/0 is nonsense"),
    ],
)
def test_nonsense_is_refused(record: bytes, message: str, folder: Path) -> None:
    data = (folder / "neural.vcf").read_bytes() + record + bytes(9)
    demuxer = RawDemuxer(io.BytesIO(data))
    with pytest.raises(InvalidDataError, match=message):
        list(demuxer)


def test_damage_in_the_middle_costs_a_segment(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "neural.vcf").read_bytes())
    length = struct.unpack_from("<I", data, 16)[0]
    data[16 + 16 + length // 2] ^= 0x55  # inside the first keyframe's payload
    (tmp_path / "bad.vcf").write_bytes(data)
    verdict = verify_file(str(tmp_path / "bad.vcf"))
    assert not verdict.good
    assert verdict.damaged == 1
    assert verdict.frames >= 5


def test_a_name_without_the_content_is_no_raw_stream(tmp_path: Path) -> None:
    (tmp_path / "a.vcf").write_bytes(b"VCFRAW2\n" + bytes(range(200)))
    with pytest.raises(MediaError, match=r"no media file|Invalid data"):
        inspect_file(str(tmp_path / "a.vcf"))


def test_the_muxer_refuses_what_cannot_be_read(folder: Path) -> None:
    source = RawDemuxer(folder / "neural.vcf")
    muxer = RawMuxer(io.BytesIO())
    muxer.add_stream(source.streams[0])
    muxer.write_header()
    with pytest.raises(ValueError, match="nothing else"):
        muxer.add_stream(source.streams[0])
    packet = source.read_packet()
    assert packet is not None
    muxer.write_packet(packet)
    with pytest.raises(ValueError, match="not after"):
        muxer.write_packet(packet)
    with pytest.raises(ValueError, match="without time"):
        muxer.write_packet(
            BridgePacket(stream_index=0, data=b"x", pts=None, dts=None, time_base=Fraction(1))
        )
