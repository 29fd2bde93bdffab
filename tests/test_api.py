"""vcfilter.open in PyAV's manner, and what importing the package costs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import PictureType, VideoFrame
from clips import luma_psnr, make_film, planes, video_frame

import vcfilter
from vcfilter._bridge import BridgePacket, Demuxer, Muxer, StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.stream.transcode import encode_file

FAST = vcfilter.EncoderOptions(qp=24, preset="ultrafast", keyint=5)
OPTIONS = {"qp": "24", "preset": "ultrafast"}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("api") / "film.mkv", frames=12, audio="pcm_s16le")


@pytest.fixture(scope="module")
def neural(film: Path) -> Path:
    encode_file(str(film), str(film.with_name("neural.mkv")), FAST)
    return film.with_name("neural.mkv")


def test_importing_is_quick_and_lazy() -> None:
    code = "import sys, vcfilter; print([n for n in ('torch', 'av', 'cv2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_hardly_spin_while_they_wait_unless_told_otherwise() -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = f"import os, vcfilter; print(*(os.environ.get(name) for name in {names}))"
    bare = {key: value for key, value in os.environ.items() if key not in names}
    for given, expected in (
        ({}, "PASSIVE 5000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=bare | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
    assert set(vcfilter.__all__) <= set(dir(vcfilter))
    for name in vcfilter.__all__:
        assert getattr(vcfilter, name) is not None
    with pytest.raises(AttributeError):
        _ = vcfilter.no_such_name


def test_streams_have_pyav_names(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.type, video.codec_name, video.width, video.height) == (
            "video",
            "vcfilter",
            64,
            48,
        )
        assert video.average_rate == 24
        assert video.time_base == Fraction(1, 1000)
        assert video.pix_fmt == "yuv420p"
        assert (audio.codec_name, audio.sample_rate, audio.channels) == ("pcm_s16le", 48000, 2)
        assert container.metadata["title"] == "tiny film"
        assert container.duration == pytest.approx(500_000, abs=5000)
        assert container.streams.get(video=0, audio=0) == [video, audio]
        assert container.streams.best("video") is video
        assert container.streams.best("audio") is audio
        assert container.streams.best("subtitle") is None
        with pytest.raises(ConfigError, match="not one of"):
            container.streams.best("pictures")
        with pytest.raises(ConfigError, match="video=1"):
            container.streams.get(video=1)


def test_decode_pictures_and_sound_together(film: Path, neural: Path) -> None:
    with vcfilter.open(neural) as container, av.open(str(film)) as source:
        frames = list(container.decode(video=0, audio=0))
        expected = [frame.pts for frame in source.decode(video=0)]
        source.seek(0)
        sound = np.concatenate([frame.to_ndarray() for frame in source.decode(audio=0)], axis=1)
    pictures = [frame for frame in frames if isinstance(frame, VideoFrame)]
    heard = [frame for frame in frames if isinstance(frame, AudioFrame)]
    assert [frame.pts for frame in pictures] == expected
    assert all(frame.time_base == Fraction(1, 1000) for frame in pictures)
    np.testing.assert_array_equal(np.concatenate([f.to_ndarray() for f in heard], axis=1), sound)
    assert heard[0].sample_rate == 48000


def test_demux_ends_with_empty_packets(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        packets = list(container.demux(video=0))
        assert [packet.size > 0 for packet in packets] == [True] * 12 + [False]
        assert [p.is_keyframe for p in packets[:6]] == [True, False, False, False, False, True]
        assert bytes(packets[0])[0] == 2  # a keyframe of format 2
        assert packets[-1].dts is None


def test_seek_and_frame_at(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        stream = container.streams.video[0]
        whole = list(container.decode(video=0))
        for index, frame in enumerate(whole):
            shown = container.frame_at((index + 0.5) / 24)
            assert shown.pts == frame.pts
            np.testing.assert_array_equal(planes(shown)[0], planes(frame)[0])
        assert container.frame_at(0).pts == whole[0].pts
        for late in (99, 10**30):
            assert container.frame_at(late).pts == whole[-1].pts
        container.seek(whole[7].pts, stream=stream)
        assert next(container.decode(video=0)).pts == whole[5].pts
        container.seek(whole[7].pts, stream=stream, backward=False)
        assert next(container.decode(video=0)).pts == whole[10].pts
        container.seek(0)
        assert next(container.decode()).pts == 0
    for closed in (
        lambda: container.frame_at(0),
        lambda: next(container.demux()),
        lambda: container.duration,
        lambda: container.metadata,
        lambda: container.format.name,
        lambda: container.chapters(),
    ):
        with pytest.raises(MediaError, match=r"neural\.mkv is closed$"):
            closed()


def test_write_frames_and_copy_sound(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mkv"
    with av.open(str(film)) as source, vcfilter.open(target, "w") as output:
        output.metadata["title"] = "copy"
        video = output.add_stream("vcfilter", rate=24, options=OPTIONS)
        sound = output.add_stream_from_template(source.streams.audio[0])
        sound.metadata["title"] = "the sound"
        for packet in source.demux():
            if packet.stream.type == "audio":
                output.mux(packet)
            else:
                for frame in packet.decode():
                    output.mux(video.encode(frame))
        output.mux(video.encode())
        assert not target.exists()
        assert sound.index == 1
    with vcfilter.open(target) as container, av.open(str(film)) as source:
        assert container.metadata["title"] == "copy"
        assert container.streams.audio[0].metadata["title"] == "the sound"
        pictures = list(container.decode(video=0))
        expected = list(source.decode(video=0))
        assert [frame.pts for frame in pictures] == [frame.pts for frame in expected]
        assert luma_psnr(planes(pictures[3])[0], planes(expected[3])[0]) > 24
        source.seek(0)
        container.seek(0)
        sent = b"".join(bytes(p) for p in source.demux(audio=0) if p.size)
        assert b"".join(bytes(packet) for packet in container.demux(audio=0)) == sent


def test_write_encoded_sound_and_10_bit_and_scaled(tmp_path: Path) -> None:
    target = tmp_path / "out.mkv"
    with vcfilter.open(target, "w") as output:
        video = output.add_stream("vcfilter", rate=Fraction(24), options={**OPTIONS, "keyint": 4})
        video.width, video.height, video.pix_fmt = 80, 64, "yuv420p10le"
        sound = output.add_stream("libopus", rate=48000)
        for index in range(5):
            output.mux(video.encode(video_frame(index, 64, 48, "rgb24")))
            samples = np.zeros((1, 2 * 2000), np.int16)
            frame = AudioFrame.from_ndarray(samples, "s16", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 2000 * index, Fraction(1, 48000)
            output.mux(sound.encode(frame))
        output.mux(video.encode())
        output.mux(sound.encode())
    with vcfilter.open(target) as container:
        frames = list(container.decode(video=0))
        assert [(f.width, f.height, f.format.name) for f in frames] == [(80, 64, "yuv420p10le")] * 5
        assert [round(f.time * 24) for f in frames] == list(range(5))
        container.seek(0)
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 9000


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.mkv"
    with pytest.raises(RuntimeError), vcfilter.open(target, "w") as output:
        output.mux(output.add_stream("vcfilter", options=OPTIONS).encode(video_frame(0, 64, 48)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MediaError, match="got no frame"), vcfilter.open(target, "w") as output:
        output.add_stream("vcfilter")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(film: Path, tmp_path: Path) -> None:
    with vcfilter.open(io.BytesIO(), "w", format="matroska") as output:
        with pytest.raises(ConfigError, match="not one of crf, qp, quality"):
            output.add_stream("vcfilter", options={"speed": 1})
        with pytest.raises(ConfigError, match="not a whole number"):
            output.add_stream("vcfilter", options={"qp": "high"})
        with pytest.raises(ConfigError, match="outside 0 to 63"):
            output.add_stream("vcfilter", options={"qp": 64})
        with pytest.raises(ConfigError, match="unknown"):
            output.add_stream("no_such_codec")
        stream = output.add_stream("vcfilter", options=OPTIONS)
        frame = video_frame(0, 64, 48)
        frame.pts, frame.time_base = 5, Fraction(1, 24)
        output.mux(stream.encode(frame))
        with pytest.raises(MediaError, match="comes after"):
            stream.encode(frame)
        output.mux(stream.encode())
    with pytest.raises(ConfigError, match="mode"):
        vcfilter.open(film, "a")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="mp4 cannot hold"):
        vcfilter.open(tmp_path / "x.mp4", "w")
    with pytest.raises(MediaError, match="cannot be read"):
        vcfilter.open(tmp_path / "nothing.mkv")


def test_file_objects_and_ordinary_files(film: Path, neural: Path) -> None:
    with io.BytesIO(neural.read_bytes()) as file, vcfilter.open(file) as container:
        assert len(list(container.decode(video=0))) == 12
    buffer = io.BytesIO()
    with vcfilter.open(buffer, "w") as output:
        stream = output.add_stream("vcfilter", options=OPTIONS)
        output.mux(stream.encode(video_frame(0, 64, 48)))
        output.mux(stream.encode())
    buffer.seek(0)
    with vcfilter.open(buffer) as container:
        assert len(list(container.decode(video=0))) == 1
    with vcfilter.open(film) as ordinary:  # PyAV's own container
        assert len(list(ordinary.decode(video=0))) == 12


def test_a_colon_in_a_name_is_no_protocol(film: Path, neural: Path, tmp_path: Path) -> None:
    names = [tmp_path / "1:neural.mkv", tmp_path / "2:film.mkv"]
    for name, source in zip(names, (neural, film), strict=True):
        name.write_bytes(source.read_bytes())
        with vcfilter.open(name) as container:
            assert len(list(container.decode(audio=0))) > 0


# --- PyAV's habits -------------------------------------------------------------------------------


def test_frames_say_what_they_are(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        frames = list(container.decode(video=0))
    assert [f.key_frame for f in frames] == [i % 5 == 0 for i in range(12)]
    assert "".join(PictureType(f.pict_type).name for f in frames) == "IBBBBIBBBBIP"  # open GOPs
    assert [f.dts for f in frames] == [f.pts for f in frames]
    assert all(f.duration in (41, 42) for f in frames)


def test_streams_and_containers_have_pyavs_attributes(film: Path, neural: Path) -> None:
    with vcfilter.open(neural) as ours, av.open(str(film)) as theirs:
        for name in (
            "index", "type", "time_base", "average_rate", "base_rate", "guessed_rate", "width",
            "height", "sample_aspect_ratio", "display_aspect_ratio", "pix_fmt", "start_time",
            "frames", "bit_rate", "metadata", "language", "disposition", "profile", "id", "name",
            "codec_context", "format", "thread_type",
        ):  # fmt: skip
            assert hasattr(theirs.streams.video[0], name), name
            getattr(ours.streams.video[0], name)
        for name in ("sample_rate", "rate", "channels", "layout", "format", "codec_context"):
            assert hasattr(theirs.streams.audio[0], name), name
            assert getattr(ours.streams.audio[0], name), name
        for name in ("size", "bit_rate", "duration", "start_time", "metadata", "name", "format"):
            assert hasattr(theirs, name), name
            getattr(ours, name)
        video = ours.streams.video[0]
        assert (video.guessed_rate, video.base_rate) == (24, 24)
        assert video.format.name == "yuv420p"
        assert ours.format.name == "matroska"
        assert ours.size == neural.stat().st_size
        assert ours.streams.audio[0].layout.nb_channels == 2
        context = video.codec_context
        assert (context.name, context.width, context.height, context.pix_fmt, context.type) == (
            "vcfilter", 64, 48, "yuv420p", "video",
        )  # fmt: skip
        video.thread_type = "AUTO"


def test_threads_are_set_as_with_pyav(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        stream = container.streams.video[0]
        assert stream.pix_fmt == "yuv420p"
        stream.thread_count = 2
        assert container.runtime == vcfilter.Runtime(threads=2)
        with pytest.raises(ConfigError, match="threads"):
            stream.codec_context.thread_count = -1
        assert next(container.decode(stream)).pts == 0
        with pytest.raises(ConfigError, match="before the first frame"):
            stream.codec_context.thread_count = 1
        assert stream.thread_count == 2


def test_the_codec_is_named_as_with_pyav(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        assert [stream.codec.name for stream in container.streams] == ["vcfilter", "pcm_s16le"]
        assert container.streams.video[0].codec_context.codec.long_name.startswith("vcfilter")


def test_subtitles_are_decoded(neural: Path, tmp_path: Path) -> None:
    clock = Fraction(1, 1000)
    with Demuxer(neural) as source, Muxer(tmp_path / "n.mkv", "matroska") as muxer:
        muxer.add_stream(source.streams[0])
        muxer.add_stream(StreamInfo(kind="subtitle", codec="subrip", time_base=clock))
        muxer.write_header()
        for each in source:
            if each.stream_index == 0:
                muxer.write_packet(each)
        muxer.write_packet(
            BridgePacket(
                stream_index=1, data=b"<i>words</i>", pts=9, dts=9, duration=9, time_base=clock
            )
        )
    with vcfilter.open(tmp_path / "n.mkv") as container:
        found = list(container.decode(subtitles=0))
    assert len(found) == 1
    assert b"words" in found[0].ass


def test_a_missing_file_is_what_python_calls_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone.mkv"
    for read in (vcfilter.open, lambda path: encode_file(path, tmp_path / "out.mkv")):
        with pytest.raises(
            FileNotFoundError, match=r"gone\.mkv cannot be read: No such file"
        ) as got:
            read(gone)
        assert isinstance(got.value, MediaError)


def test_skip_frame_decodes_keyframes_alone(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        whole = list(container.decode(video=0))
        container.seek(0)
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONKEY"
        keys = list(container.decode(stream))
        assert [frame.pts for frame in keys] == [whole[i].pts for i in (0, 5, 10)]
        for key, index in zip(keys, (0, 5, 10), strict=True):
            np.testing.assert_array_equal(planes(key)[0], planes(whole[index])[0])
        with pytest.raises(ConfigError, match="nokey"):
            stream.codec_context.skip_frame = "nokey"


def test_unknown_attributes_are_refused(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        for target in (container, container.streams.video[0], container.streams.audio[0],
                       container.streams.video[0].codec_context):  # fmt: skip
            with pytest.raises(AttributeError):
                target.foo = 3
        with pytest.raises(AttributeError):
            container.streams.video[0].width = 3
    with vcfilter.open(io.BytesIO(), "w", format="matroska") as output:
        stream = output.add_stream("vcfilter", options=OPTIONS)
        with pytest.raises(AttributeError):
            stream.foo = 3
        with pytest.raises(ConfigError, match="width '64'"):
            stream.width = "64"
        output.mux(stream.encode(video_frame(0, 64, 48)))
        with pytest.raises(ConfigError, match="before the first frame"):
            stream.bit_rate = 100_000


def test_settings_of_an_output_stream_are_honoured() -> None:
    sizes = {}
    for rate in (20_000, 400_000):
        buffer = io.BytesIO()
        with vcfilter.open(buffer, "w", format="matroska") as output:
            stream = output.add_stream("vcfilter", rate=29.97, width=48, height=32, bit_rate=rate)
            stream.options = {"preset": "ultrafast"}
            assert stream.rate == Fraction(2997, 100)
            for index in range(6):
                output.mux(stream.encode(video_frame(index, 96, 64)))
        sizes[rate] = len(buffer.getvalue())
        buffer.seek(0)
        with vcfilter.open(buffer) as container:
            frames = list(container.decode(video=0))  # close() has drained the encoder
            assert [(f.width, f.height) for f in frames] == [(48, 32)] * 6
    assert sizes[20_000] < sizes[400_000]


def test_a_drained_stream_takes_no_more_frames() -> None:
    """They would be lost, since close() drains a stream once."""
    sound = AudioFrame(format="flt", layout="stereo", samples=64)
    sound.sample_rate = 48000
    for drained_before in (False, True):
        output = vcfilter.open(io.BytesIO(), "w", format="matroska")
        video = output.add_stream("vcfilter", options=OPTIONS)
        audio = output.add_stream("pcm_f32le")
        if not drained_before:
            output.mux(video.encode(video_frame(0, 64, 48)))
            output.mux(audio.encode(sound))
            output.close()
        for stream, frame in ((video, video_frame(1, 64, 48)), (audio, sound)):
            assert stream.encode(None) == []
            with pytest.raises(ConfigError, match=r"is drained, .* it takes no frame"):
                stream.encode(frame)
        output.abort()


def test_frames_closer_than_the_containers_clock_get_times_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with vcfilter.open(tmp_path / "fast.mkv", "w") as output:
        stream = output.add_stream("vcfilter", rate=2000, options=OPTIONS)
        for index in range(6):
            frame = video_frame(index, 64, 48)
            frame.pts, frame.time_base = index, Fraction(1, 2000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with vcfilter.open(tmp_path / "fast.mkv") as container:
        assert [frame.pts for frame in container.decode(video=0)] == list(range(6))
    assert "frames lie closer together than matroska counts time: moved" in caplog.text


def test_packets_are_assigned_to_another_stream(neural: Path, tmp_path: Path) -> None:
    with vcfilter.open(neural) as source, vcfilter.open(tmp_path / "o.mkv", "w") as output:
        copies = {s: output.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            packet.stream = copies[packet.stream]
            output.mux(packet)
    with vcfilter.open(neural) as a, vcfilter.open(tmp_path / "o.mkv") as b:
        assert [bytes(p) for p in a.demux()] == [bytes(p) for p in b.demux()]
        with pytest.raises(ConfigError, match="none of this container"):
            packet = next(a.demux(video=0)) if a.seek(0) is None else None
            vcfilter.open(io.BytesIO(), "w", format="nut").mux(packet)


def test_sound_of_a_file_object_decodes(film: Path, neural: Path) -> None:
    with av.open(str(film)) as source:
        sound = np.concatenate([f.to_ndarray() for f in source.decode(audio=0)], axis=1)
    with io.BytesIO(neural.read_bytes()) as file, vcfilter.open(file) as container:
        got = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    np.testing.assert_array_equal(got, sound)


def test_one_thread_reads_a_container_at_a_time(neural: Path) -> None:
    with vcfilter.open(neural) as container:
        frames = container.decode(video=0)
        next(frames)
        failed: list[BaseException] = []

        def other() -> None:
            try:
                list(container.decode(video=0))
            except MediaError as error:
                failed.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another thread" in str(failed[0])
        assert len(list(frames)) == 11
        container.seek(0)
        thread = threading.Thread(target=lambda: failed.append(list(container.decode(video=0))))
        thread.start()
        thread.join()
        assert len(failed[1]) == 12  # type: ignore[arg-type]


def test_wrong_types_are_one_sentence(neural: Path, tmp_path: Path) -> None:
    video = vcfilter.open(neural)
    output = vcfilter.open(io.BytesIO(), "w", format="matroska")
    stream = output.add_stream("vcfilter", options=vcfilter.EncoderOptions(qp=30))
    calls = {
        "DecoderOptions": lambda: vcfilter.open(neural, options={"skip_frame": "nokey"}),
        "a path": lambda: encode_file(5, tmp_path / "o.mkv"),
        "EncoderOptions": lambda: encode_file(neural, tmp_path / "o.mkv", {"qp": 3}),
        "seconds": lambda: encode_file(neural, tmp_path / "o.mkv", start="1:30"),
        "a path nor": lambda: vcfilter.open(5),
        "av.VideoFrame": lambda: stream.encode(np.zeros((48, 64), np.uint8)),
        "a packet": lambda: output.mux(5),
        "'1:30' is not a number": lambda: video.frame_at("1:30"),
        "None is not a number": lambda: video.frame_at(None),
        "nan is not a number": lambda: video.frame_at(float("nan")),
        "offset 1.5 is not a whole number of ticks": lambda: video.seek(1.5),
        "offset 9223372036854775808 is not": lambda: video.seek(1 << 63),
        "below 2": lambda: next(video.demux(7)),
        "video='0' is neither a position": lambda: next(video.decode(video="0")),
        "video=None is neither a position": lambda: next(video.decode(video=None)),
        "filters 5 is not": lambda: encode_file(neural, tmp_path / "o.mkv", filters=5),
        "filter 3 is not a function": lambda: encode_file(neural, tmp_path / "o.mkv", filters=[3]),
        "progress 5 is not": lambda: encode_file(neural, tmp_path / "o.mkv", progress=5),
        "workers True is not": lambda: encode_file(neural, tmp_path / "o.mkv", workers=True),
        "metadata 5 is not a text": lambda: encode_file(
            neural, tmp_path / "o.mkv", metadata={"title": 5}
        ),
        "runtime 3 is not": lambda: vcfilter.open(tmp_path / "o.mkv", "w", runtime=3),
        "not positive": lambda: output.add_stream("vcfilter", rate=0),
        "not a number": lambda: output.add_stream("vcfilter", rate="fast"),
        "nor a mapping": lambda: output.add_stream("vcfilter", options=5),
        "no setting 'crf'": lambda: output.add_stream("vcfilter", crf=5),
        "not a stream": lambda: output.add_stream_from_template(5),
    }
    for words, call in calls.items():
        with pytest.raises(ConfigError, match=words):
            call()
    output.abort()
    video.close()


def test_audio_frames_without_pts_follow_each_other() -> None:
    buffer = io.BytesIO()
    with vcfilter.open(buffer, "w", format="matroska") as output:
        sound = output.add_stream("flac", rate=48000, layout="mono")
        video = output.add_stream("vcfilter", options=OPTIONS)
        output.mux(video.encode(video_frame(0, 64, 48)))
        for _ in range(4):
            frame = AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
            frame.sample_rate = 48000
            output.mux(sound.encode(frame))
    buffer.seek(0)
    with vcfilter.open(buffer) as container:
        frames = list(container.decode(audio=0))
        assert sum(frame.samples for frame in frames) == 4 * 4800
        assert frames[-1].time > 0.2


def test_dropped_frames_are_logged(
    neural: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(neural.read_bytes())
    with vcfilter.open(neural) as container:
        packet = bytes(next(p for p in container.demux(video=0) if not p.is_keyframe))
    data[data.index(packet) + len(packet) // 2] ^= 0x10
    (tmp_path / "broken.mkv").write_bytes(data)
    assert 8 <= len(list(vcfilter.neural_frames(tmp_path / "broken.mkv"))) < 12
    assert any("damaged packets were dropped" in text for text in caplog.messages)
    assert all(record.name.startswith("vcfilter.stream") for record in caplog.records)


def test_filters_stand_between_source_and_coder(film: Path, tmp_path: Path) -> None:
    def every_second(frames: Iterable[vcfilter.Frame]) -> Iterator[vcfilter.Frame]:
        yield from islice(frames, 0, None, 2)

    def inverted(frames: Iterable[vcfilter.Frame]) -> Iterator[vcfilter.Frame]:
        for frame in frames:
            yield replace(frame, y=255 - frame.y)

    target = tmp_path / "o.mkv"
    report = encode_file(film, target, FAST, filters=[every_second, inverted])
    assert report.frames == 6
    with vcfilter.open(target) as ours, av.open(str(film)) as theirs:
        for got, source in zip(
            ours.decode(video=0), list(theirs.decode(video=0))[::2], strict=True
        ):
            assert got.pts == source.pts
            assert luma_psnr(planes(got)[0], 255 - planes(source)[0]) > 24


def test_frame_at_keeps_what_it_decoded(neural: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vcfilter.open(neural) as container:
        whole = list(container.decode(video=0))
        assert container.frame_at(whole[4].time).pts == whole[4].pts
        monkeypatch.setattr(vcfilter.InputContainer, "seek", None)  # nothing is sought any more
        for frame in whole[:5]:
            shown = container.frame_at(frame.time + 0.01)
            np.testing.assert_array_equal(planes(shown)[0], planes(frame)[0])
            about = ("pts", "duration", "time_base", "key_frame", "pict_type", "colorspace")
            assert [getattr(shown, name) for name in about] == [
                getattr(frame, name) for name in about
            ]
            shown.planes[0].update(bytes(shown.planes[0].buffer_size))  # it is the caller's own
            shown.pts = None
            again = container.frame_at(frame.time)
            np.testing.assert_array_equal(planes(again)[0], planes(frame)[0])
        for other in (lambda: container.frame_at(whole[8].time), lambda: after_levels(container)):
            with pytest.raises(TypeError):
                other()


def after_levels(container: vcfilter.InputContainer) -> None:
    """A frame that was shown, of other levels: it is decoded anew."""
    container.streams.video[0].levels = 1
    container.frame_at(0)
