"""Value classes that cross the codec's doors: video format, frame, packet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from vcfilter.errors import ConfigError

MIN_SIDE = 16
MAX_SIDE = 4096
MAX_PIXELS = 4096 * 2304


class FrameKind(IntEnum):
    """How a frame is coded: on its own, or from one or two decoded references."""

    KEY = 0
    INTER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFormat:
    """What every frame of one video stream has in common.

    Args:
        width, height: size in luma samples, 16 to 4096 each, at most 4096x2304 samples in all.
        bit_depth: 8 or 10; the chroma format is always 4:2:0.
        sample_aspect_ratio: (numerator, denominator); (0, 1) when unknown.
        color_primaries, color_trc, colorspace: code points of ITU-T H.273 (2 = unspecified).
        color_range: 0 unspecified, 1 limited ("tv"), 2 full ("pc").
        chroma_location: FFmpeg's AVChromaLocation (0 unspecified, 1 left, ...).
        rotation: clockwise rotation for display in degrees, one of 0, 90, 180, 270.

    Raises:
        ConfigError: a value is outside these bounds.
    """

    width: int
    height: int
    bit_depth: int = 8
    sample_aspect_ratio: tuple[int, int] = (0, 1)
    color_primaries: int = 2
    color_trc: int = 2
    colorspace: int = 2
    color_range: int = 0
    chroma_location: int = 0
    rotation: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise ConfigError(f"{name} {side} is outside {MIN_SIDE} to {MAX_SIDE}")
        if self.width * self.height > MAX_PIXELS:
            raise ConfigError(
                f"{self.width}x{self.height} has more than {MAX_PIXELS} samples (4096x2304)"
            )
        if self.bit_depth not in (8, 10):
            raise ConfigError(f"bit depth {self.bit_depth} is not 8 or 10")
        numerator, denominator = self.sample_aspect_ratio
        if not (0 <= numerator < 1 << 16 and 0 < denominator < 1 << 16):
            raise ConfigError(f"sample aspect ratio {numerator}:{denominator} is out of range")
        for name in ("color_primaries", "color_trc", "colorspace"):
            if not 0 <= getattr(self, name) <= 255:
                raise ConfigError(f"{name} {getattr(self, name)} is outside 0 to 255")
        if not 0 <= self.color_range <= 2:
            raise ConfigError(f"color_range {self.color_range} is outside 0 to 2")
        if not 0 <= self.chroma_location <= 6:
            raise ConfigError(f"chroma_location {self.chroma_location} is outside 0 to 6")
        if self.rotation not in (0, 90, 180, 270):
            raise ConfigError(f"rotation {self.rotation} is not 0, 90, 180 or 270")

    @property
    def chroma_size(self) -> tuple[int, int]:
        """Width and height of each chroma plane: half the luma size, rounded up."""
        return (self.width + 1) // 2, (self.height + 1) // 2


Plane = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One picture as three planes in 4:2:0.

    Args:
        y: (height, width) luma, uint8 for 8 bit and uint16 (0 to 1023) for 10 bit.
        u, v: (ceil(height / 2), ceil(width / 2)) chroma, same dtype.
        pts: presentation time in ticks of the stream's time base.
        duration: in the same ticks; 0 when unknown.
        kind: how it was coded (decoded frames only).
        corrupt: parts of it are missing (never set by an undamaged stream).
    """

    y: Plane
    u: Plane
    v: Plane
    pts: int
    duration: int = 0
    kind: FrameKind | None = None
    corrupt: bool = False

    @property
    def planes(self) -> tuple[Plane, Plane, Plane]:
        """(y, u, v)."""
        return self.y, self.u, self.v

    def check(self, video_format: VideoFormat) -> None:
        """Raise ConfigError unless the planes have the format's shapes and dtype."""
        dtype = np.dtype(np.uint8 if video_format.bit_depth == 8 else np.uint16)
        luma = (video_format.height, video_format.width)
        chroma = video_format.chroma_size[::-1]
        for name, plane, shape in zip("yuv", self.planes, (luma, chroma, chroma), strict=True):
            if plane.shape != shape or plane.dtype != dtype:
                raise ConfigError(
                    f"plane {name} is {plane.dtype} {plane.shape}; the stream has {dtype} {shape}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One coded frame. Packets follow each other in display order (pts = dts).

    Args:
        data: the packet's bytes (docs/bitstream.md).
        pts: presentation time in ticks of the stream's time base.
        duration: in the same ticks; 0 when unknown.
        is_keyframe: decoding can start here.
    """

    data: bytes
    pts: int
    duration: int = 0
    is_keyframe: bool
