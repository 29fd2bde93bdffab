"""What frames that others inherit are coded towards."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import clip

from vcfilter.codec.encoder import Encoder
from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.temporal_filter import STRENGTH, TemporalFilter, frames_of
from vcfilter.codec.trajectories import Trajectories
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.metrics import frame_psnr
from vcfilter.options import EncoderOptions, Runtime

FORMAT = VideoFormat(width=100, height=68)
DEEP = VideoFormat(width=100, height=68, bit_depth=10)
QP = 32


def noisy(frames: list[Frame], deviation: float, video_format: VideoFormat = FORMAT) -> list[Frame]:
    random, most = np.random.default_rng(5), (1 << video_format.bit_depth) - 1
    found = []
    for frame in frames:
        y, u, v = (
            (plane + random.normal(scale=deviation, size=plane.shape)).round().clip(0, most)
            .astype(plane.dtype)
            for plane in frame.planes
        )  # fmt: skip
        found.append(Frame(y=y, u=u, v=v, pts=frame.pts))
    return found


def filter_of(
    frames: list[Frame], video_format: VideoFormat = FORMAT, reach: int = 4
) -> TemporalFilter:
    job = SegmentJob(
        video_format=video_format, first=0, frames=tuple(frames), steps=(), reach=reach
    )
    found = frames_of(job)
    lumas = {number: frame.y for number, frame in found.items()}
    trajectories = Trajectories(lumas, video_format.bit_depth)
    return TemporalFilter(job=job, frames=found, trajectories=trajectories)


@pytest.mark.parametrize("video_format", [FORMAT, DEEP], ids=["8 bit", "10 bit"])
def test_noise_is_less_in_the_mean_of_frames_that_move(video_format: VideoFormat) -> None:
    clean = clip(9, video_format)
    source = noisy(clean, 4.0 if video_format.bit_depth == 8 else 16.0, video_format)
    tool = filter_of(source, video_format)
    before = frame_psnr(clean[4], source[4])
    gains = []
    for layer in range(len(STRENGTH)):
        found = tool.target(4, layer, QP)
        found.check(video_format)
        assert (found.pts, found.duration) == (source[4].pts, source[4].duration)
        gains.append(frame_psnr(clean[4], found).weighted - before.weighted)
    assert gains[0] > 2
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0.3
    assert tool.target(4, len(STRENGTH), QP) is source[4]


def test_fine_frames_change_less() -> None:
    source = noisy(clip(9, FORMAT), 4.0)
    tool = filter_of(source)
    changes = [frame_psnr(source[4], tool.target(4, 0, qp)).weighted for qp in (4, 16, 28, 40)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > changes[-1] + 6


def test_another_scene_is_left_out() -> None:
    source = [*clip(4, FORMAT, seed=1), *clip(4, FORMAT, seed=2)]
    source = [Frame(y=f.y, u=f.u, v=f.v, pts=n) for n, f in enumerate(source)]
    alone = filter_of(source[4:]).target(0, 0, QP)
    assert frame_psnr(alone, filter_of(source).target(4, 0, QP)).weighted > 45


def test_what_moves_alone_is_not_smeared() -> None:
    """A bright bar that jumps: it is where it was, as bright as it was."""
    still = clip(1, FORMAT, still=True)[0]
    source = []
    for number in range(9):
        y = still.y.copy()
        y[:, 10 * number : 10 * number + 6] = 235
        source.append(Frame(y=y, u=still.u, v=still.v, pts=number))
    found = filter_of(source).target(4, 0, QP)
    assert found.y[:, 41:45].min() > 225
    assert np.abs(found.y.astype(int) - source[4].y)[:, 60:].mean() < 2


@pytest.mark.parametrize("size", [(16, 16), (24, 200)])
def test_small_frames_stay_as_they_are(size: tuple[int, int]) -> None:
    video_format = VideoFormat(width=size[1], height=size[0])
    source = noisy(clip(5, video_format), 4.0, video_format)
    assert filter_of(source, video_format).target(2, 0, QP) is source[2]


def test_switched_off_no_frame_is_looked_at() -> None:
    source = noisy(clip(5, FORMAT), 4.0)
    assert filter_of(source, reach=0).target(2, 0, QP) is source[2]


def test_an_encoder_codes_noise_in_fewer_bytes_and_tells_the_psnr_of_the_source() -> None:
    source = noisy(clip(10, FORMAT), 4.0)
    sizes = []
    for chosen in (True, False):
        options = EncoderOptions(
            qp=24, keyint=9, preset="ultrafast", scenecut=False, temporal_filter=chosen
        )
        encoder = Encoder(FORMAT, options, runtime=Runtime(device="cpu", threads=1))
        packets = [p for f in [*source, None] for p in encoder.encode(f)]
        sizes.append(sum(len(packet.data) for packet in packets))
        assert encoder.statistics.psnr is not None
        assert 33 < encoder.statistics.psnr < 45
    assert sizes[0] < 0.97 * sizes[1]


def test_how_samples_lie_in_memory_changes_no_bytes() -> None:
    source = clip(4, FORMAT)
    turned = [
        replace(f, y=np.asfortranarray(f.y), u=np.asfortranarray(f.u), v=np.asfortranarray(f.v))
        for f in source
    ]
    assert not turned[0].y.flags.c_contiguous
    coded = []
    for frames in (source, turned):
        encoder = Encoder(FORMAT, EncoderOptions(preset="ultrafast"), runtime=Runtime(threads=1))
        coded.append([p.data for f in [*frames, None] for p in encoder.encode(f)])
    assert coded[0] == coded[1]


def test_its_names() -> None:
    assert EncoderOptions().temporal_filter
    for name in ("temporal-filter", "mcstf"):
        assert not EncoderOptions.from_mapping({name: "no"}).temporal_filter
    with pytest.raises(ConfigError, match="temporal_filter 3 is not yes or no"):
        EncoderOptions(temporal_filter=3)  # type: ignore[arg-type]
