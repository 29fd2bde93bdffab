"""Decoded frames as images, and ST-LPIPS of them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from av.video.frame import VideoFrame

from vcfilter.evaluate.clips import planes_of
from vcfilter.frames import Frame, Plane
from vcfilter.nn.perceptual import StLpips

LPIPS_FRAMES = 6  # of a clip, spread evenly: the network takes about a second for one of 720x576
SIDE_MIN = 32


def video_frame(frame: Frame, pixels: str, pts: int) -> VideoFrame:
    """Planes as a frame of 25 per second for FFmpeg's filters; pixels: its 4:2:0 format."""
    height, width = frame.y.shape
    result = VideoFrame(width, height, pixels)
    for plane, samples in zip(result.planes, frame.planes, strict=True):
        stride = plane.line_size // samples.dtype.itemsize
        rows = np.frombuffer(memoryview(plane), samples.dtype).reshape(-1, stride)
        rows[: samples.shape[0], : samples.shape[1]] = samples
    result.pts, result.time_base = pts, Fraction(1, 25)
    return result


def as_image(like: VideoFrame, frame: Frame, pixels: str) -> Plane:
    """Planes as (height, width, 3) of 8 bit, rgb24 or bgr24, with the colours of an original."""
    image = video_frame(frame, like.format.name, 0)
    image.colorspace, image.color_range = like.colorspace, like.color_range
    return np.asarray(image.to_ndarray(format=pixels), np.uint8)


def lpips(
    judge: StLpips | None, originals: Sequence[VideoFrame], shown: Sequence[Sequence[Frame]]
) -> list[float | None]:
    """Mean ST-LPIPS of each of several versions of the originals; None without a judge, and for
    frames that are too small for it.
    """
    if judge is None or min(originals[0].width, originals[0].height) < SIDE_MIN:
        return [None] * len(shown)
    count = min(LPIPS_FRAMES, len(originals))
    numbers = sorted({(2 * n + 1) * len(originals) // (2 * count) for n in range(count)})
    sums = [0.0] * len(shown)

    def features(like: VideoFrame, frame: Frame) -> list[torch.Tensor]:
        image = torch.from_numpy(as_image(like, frame, "rgb24")).permute(2, 0, 1)[None]
        return judge.features(image.float() / 127.5 - 1)

    with torch.inference_mode():
        for number in numbers:
            like = originals[number]
            wanted = features(like, planes_of(like))
            for place, frames in enumerate(shown):
                seen = features(like, frames[number])
                sums[place] += float(judge.distance(seen, wanted)) / len(numbers)
    return list(sums)
