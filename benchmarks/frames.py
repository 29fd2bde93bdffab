"""What the benchmarks code: the demo clip at any size, any length."""

from __future__ import annotations

from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np

from vcfilter.frames import Frame, VideoFormat
from vcfilter.metrics import frame_psnr

CLIP = Path(__file__).resolve().parent.parent / "vcfilter" / "assets" / "demo.mp4"
RATE = Fraction(30)


def clip_frames(width: int, height: int, count: int, start: int = 60) -> list[Frame]:
    """count frames of the demo clip, scaled; after its end it runs backwards, then forwards."""
    pictures: list[Frame] = []
    with av.open(str(CLIP)) as container:
        for picture in islice(container.decode(video=0), start, start + count):
            scaled = picture.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            planes = []
            for plane, side in zip(scaled.planes, (1, 2, 2), strict=True):
                h, w = -(-height // side), -(-width // side)
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
                planes.append(rows[:h, :w].copy())
            y, u, v = planes
            pictures.append(Frame(y=y, u=u, v=v, pts=0))
    order = cycle([*range(len(pictures)), *range(len(pictures) - 2, 0, -1)])
    chosen = [pictures[i] for i in islice(order, count)]
    return [Frame(y=f.y, u=f.u, v=f.v, pts=n, duration=1) for n, f in enumerate(chosen)]


def check_answer(video_format: VideoFormat, source: list[Frame], decoded: list[Frame]) -> float:
    """Mean PSNR 6:1:1 in dB.

    Raises:
        SystemExit: frames are missing, out of order, of the wrong shape, or far from the source.
    """
    if [f.pts for f in decoded] != [f.pts for f in source]:
        raise SystemExit(f"wrong answer: {len(source)} frames in, {len(decoded)} out, or reordered")
    for frame in decoded:
        frame.check(video_format)
    psnr = [frame_psnr(a, b).weighted for a, b in zip(source, decoded, strict=True)]
    if min(psnr) < 20:
        raise SystemExit(f"wrong answer: a frame has {min(psnr):.1f} dB")
    return sum(psnr) / len(psnr)
