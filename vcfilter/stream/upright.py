"""Frames as they are shown: turned and mirrored, for containers that cannot state it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcfilter.frames import FieldOrder, Frame, VideoFormat
from vcfilter.stream.decoders import FrameSource


class UprightFrames:
    """The frames of a source, their samples in the order in which they are shown.

    Args:
        source: brings the frames.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source

    @property
    def time_base(self) -> Fraction:
        return self._source.time_base

    @property
    def frame_rate(self) -> Fraction | None:
        return self._source.frame_rate

    @property
    def video_format(self) -> VideoFormat | None:
        fmt = self._source.video_format
        return None if fmt is None else upright_format(fmt)

    @property
    def delay(self) -> int | None:
        return self._source.delay

    def frames(self) -> Iterator[Frame]:
        """The frames in display order."""
        for frame in self._source.frames():
            fmt = self._source.video_format
            assert fmt is not None
            if fmt.rotation or fmt.mirrored:
                y, u, v = (upright(plane, fmt) for plane in frame.planes)
                frame = replace(frame, y=y, u=u, v=v, motion=None)
            yield frame


def upright(samples: NDArray[Any], fmt: VideoFormat) -> NDArray[Any]:
    """A plane (height, width), or an image of (height, width, channels), as it is shown."""
    mirrored = samples[:, ::-1] if fmt.mirrored else samples
    return np.ascontiguousarray(np.rot90(mirrored, -fmt.rotation // 90))


def upright_format(fmt: VideoFormat) -> VideoFormat:
    """The format of frames whose planes went through `upright`."""
    if not fmt.rotation and not fmt.mirrored:
        return fmt
    num, den = fmt.sample_aspect_ratio
    lies = fmt.rotation % 180 != 0
    return replace(
        fmt,
        width=fmt.height if lies else fmt.width,
        height=fmt.width if lies else fmt.height,
        sample_aspect_ratio=(den, num) if lies and num else (num, den),
        chroma_location=0,
        rotation=0,
        mirrored=False,
        field_order=FieldOrder.UNKNOWN if fmt.rotation else fmt.field_order,
    )
