"""More frames per second out of a neural file: coded motion, decode --fps, play, the page."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import luma_psnr, make_film, times
from synthetic import texture

import vcfilter
from vcfilter.cli.main import main
from vcfilter.codec import Decoder, Encoder
from vcfilter.frames import Frame, VideoFormat
from vcfilter.interpolation import interpolator
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import DecoderOptions, EncoderOptions
from vcfilter.serve import fragments
from vcfilter.serve.steps import FULL
from vcfilter.serve.video import VideoFile
from vcfilter.stream.transcode import decode_file, encode_file

FORMAT = VideoFormat(width=96, height=80)
WIDE = texture(3, 200, 300) * 200 + 20
COUNT = 9


def panned(number: float) -> Frame:
    """A window that moves by (2.5, 1) samples from one frame to the next."""
    shift = np.array([[1, 0, -20 - 2.5 * number], [0, 1, -20 - number]])
    luma = cv2.warpAffine(WIDE, shift, (96, 80), flags=cv2.INTER_CUBIC).round().clip(0, 255)
    grey = np.full((40, 48), 128, np.uint8)
    return Frame(y=luma.astype(np.uint8), u=grey, v=grey, pts=round(number), duration=1)


@pytest.fixture(scope="module", params=["random-access", "low-delay"])
def decoded(request: pytest.FixtureRequest) -> list[Frame]:
    """A pan, coded and decoded together with its motion."""
    encoder = Encoder(FORMAT, EncoderOptions(qp=22, preset="medium", structure=request.param))
    packets = [p for n in range(COUNT) for p in encoder.encode(panned(n))]
    packets += encoder.encode(None)
    decoder = Decoder(encoder.extradata, motion=True)
    return [f for p in [*packets, None] for f in decoder.decode(p)]


def test_frames_bring_the_motion_they_were_coded_with(decoded: list[Frame]) -> None:
    found = 0
    for frame in decoded:
        assert frame.motion is not None
        assert frame.motion.pts == frame.pts
        for pts, field in frame.motion.fields.items():
            assert pts in range(COUNT)
            assert field.shape == (2, 12, 12)  # of the padded frame, 96x96
            assert field.dtype == np.float32
            inner = field[:, 2:-4, 2:-2].reshape(2, -1).mean(1)
            wanted = np.array([-2.5, -1.0]) * (pts - frame.pts)
            assert np.abs(inner - wanted).max() < 0.4 + 0.1 * np.abs(wanted).max()
            found += 1
    assert found >= COUNT - 1


def test_coded_motion_needs_no_search(
    decoded: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*arguments: object) -> None:
        raise AssertionError("a search where motion was coded")

    tool = Interpolator(FORMAT, "fast", coded_motion=True)
    linked = [
        (a, b)
        for a, b in itertools.pairwise(decoded)
        if a.motion and b.motion
        if b.pts in a.motion.fields or a.pts in b.motion.fields
    ]
    assert len(linked) >= COUNT // 2
    monkeypatch.setattr(interpolator, "estimate_motion", search)
    for a, b in linked:
        (new,) = tool.between(None, a, b, None, [0.5])
        inner = np.s_[8:-8, 8:-8]
        assert luma_psnr(new.y[inner], panned(a.pts + 0.5).y[inner]) > 30
        moved = replace(b, motion=None)
        with pytest.raises(AssertionError, match="a search"):
            list(tool.between(None, a, moved, None, [0.5]))


def test_motion_to_frames_that_are_not_there_is_not_used(decoded: list[Frame]) -> None:
    """A frame between two was lost: their times do not fit what they were coded with."""
    tool = Interpolator(FORMAT, "fast", coded_motion=True)
    (new,) = tool.between(None, decoded[2], decoded[4], None, [0.5])
    assert luma_psnr(new.y[8:-8, 8:-8], panned(3).y[8:-8, 8:-8]) > 30


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smooth")
    source = make_film(folder / "in.mkv", frames=12, width=96, height=64, audio="flac")
    options = EncoderOptions(qp=30, preset="ultrafast", keyint=6, scenecut=False)
    encode_file(source, folder / "film.mkv", options)
    return folder / "film.mkv"


def test_decoding_at_a_higher_rate(film: Path, tmp_path: Path) -> None:
    plain, smooth = tmp_path / "plain.nut", tmp_path / "smooth.nut"
    assert main(["decode", str(film), str(plain), "-q"]) == 0
    assert main(["decode", str(film), str(smooth), "--fps", "48", "-q"]) == 0
    assert times(smooth) == [Fraction(n, 48) for n in range(24)]

    def frames(path: Path) -> list[np.ndarray]:
        with av.open(str(path)) as container:
            return [f.to_ndarray() for f in container.decode(video=0)]

    def audio(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(container.streams.audio[0])]

    old, new = frames(plain), frames(smooth)
    assert all(np.array_equal(a, b) for a, b in zip(old, new[::2], strict=True))
    assert not any(np.array_equal(old[n], new[2 * n + 1]) for n in range(11))
    assert np.array_equal(new[23], old[11])  # until the last one's time is over
    assert audio(plain) == audio(smooth)


def test_what_is_not_neural_is_not_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_film(tmp_path / "in.mkv", frames=2)
    assert main(["decode", str(source), str(tmp_path / "o.mp4"), "--fps", "48", "-q"]) == 1
    assert "nothing to decode" in capsys.readouterr().err
    with pytest.raises(vcfilter.ConfigError, match="coded_motion"):
        InterpolationOptions(factor=2, coded_motion=1)  # type: ignore[arg-type]
    with pytest.raises(vcfilter.MediaError):
        decode_file(
            source, tmp_path / "o.mp4",
            interpolation=InterpolationOptions(factor=2, coded_motion=True),
        )  # fmt: skip
    assert not (tmp_path / "o.mp4").exists()


def test_smooth_segments_have_a_frame_between_every_two(film: Path) -> None:
    video = VideoFile(film, DecoderOptions())
    for step in video.steps:
        assert f"{step.name}-smooth" in [each.name for each in step.variants()]
    smooth = replace(FULL, smooth=True)
    data = fragments.video_init(video, smooth)
    plain_count = 0
    for number in range(len(video.segments)):
        plain_count += len(video.kept(number, FULL))
        data += fragments.video_segment(video, number, smooth, lambda: False)
    with av.open(io.BytesIO(data)) as container:
        found = [f.time for f in container.decode(video=0)]
    assert (plain_count, len(video.segments)) == (12, 2)
    assert len(found) == 2 * plain_count - len(video.segments)
    gaps = np.diff(found)
    assert min(gaps) == pytest.approx(1 / 48, abs=1e-3)  # Matroska's times are milliseconds
    assert max(gaps) == pytest.approx(1 / 24, abs=1e-3)
