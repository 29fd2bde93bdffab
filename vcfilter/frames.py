"""Values that codec, files and programs exchange: video format, frame, packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vcfilter.errors import ConfigError

if TYPE_CHECKING:
    from av.video.plane import VideoPlane

MIN_SIDE = 16
MAX_SIDE = 4096
MAX_PIXELS = 4096 * 2304


LAYER_MAX = 7
QP_MAX = 63
LEVELS_MAX = 8
"""Most quality levels of a frame, the base included."""
SLOTS = 8
"""Places for decoded frames that later ones may refer to (0 is the keyframe's)."""
REFERENCES_MAX = 3
DISTANCE_MAX = 1 << 15


class FrameType(IntEnum):
    """How a frame is coded: on its own, or from one to three decoded references."""

    KEY = 0
    INTER = 1


class FieldOrder(IntEnum):
    """Progressive, or the order of the two fields; the values are FFmpeg's AVFieldOrder."""

    UNKNOWN = 0
    PROGRESSIVE = 1
    TOP_FIRST = 2  # coded and displayed top first
    BOTTOM_FIRST = 3
    TOP_CODED_BOTTOM_SHOWN = 4
    BOTTOM_CODED_TOP_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MasteringDisplay:
    """The display a video was graded on (SMPTE ST 2086), in the units of HEVC's SEI message.

    Args:
        primaries: x and y of red, green and blue in steps of 0.00002, 0 to 50000 each.
        white_point: x and y in the same steps.
        luminance: (min, max) in steps of 0.0001 cd/m2, 32 bits each, min below max.

    Raises:
        ConfigError: a value is outside these bounds.
    """

    primaries: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    white_point: tuple[int, int]
    luminance: tuple[int, int]

    def __post_init__(self) -> None:
        for value in (*(c for xy in self.primaries for c in xy), *self.white_point):
            if not 0 <= value <= 50000:
                raise ConfigError(f"chromaticity {value} is outside 0 to 50000 (steps of 0.00002)")
        low, high = self.luminance
        if not 0 <= low < high < 1 << 32:
            raise ConfigError(f"mastering luminance {low} to {high} is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentLight:
    """Content light level (CTA-861.3) in cd/m2, 0 to 65535 each.

    Args:
        max_content: brightest sample (MaxCLL).
        max_average: brightest frame's average (MaxFALL).

    Raises:
        ConfigError: a value is outside these bounds.
    """

    max_content: int
    max_average: int

    def __post_init__(self) -> None:
        for value in (self.max_content, self.max_average):
            if not 0 <= value < 1 << 16:
                raise ConfigError(f"content light level {value} is outside 0 to 65535")


_NUMBERS = (
    *("width", "height", "bit_depth", "color_primaries", "color_trc", "colorspace"),
    *("color_range", "chroma_location", "rotation", "field_order"),
)


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
        mirrored: whether the frame is mirrored left to right before it is rotated.
        field_order: progressive, or which field comes first.
        mastering: the display it was graded on, if known.
        content_light: content light level, if known.

    Raises:
        ConfigError: a value is outside these bounds, or of another type.
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
    mirrored: bool = False
    field_order: FieldOrder = FieldOrder.UNKNOWN
    mastering: MasteringDisplay | None = None
    content_light: ContentLight | None = None

    def __post_init__(self) -> None:
        self._check_types()
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
        if self.field_order not in set(FieldOrder):
            raise ConfigError(f"field_order {self.field_order} is outside 0 to 5")

    def _check_types(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ConfigError(f"{name} {value!r} is not a whole number")
            if not isinstance(value, int):  # NumPy's overflow
                object.__setattr__(self, name, int(value))
        ratio = self.sample_aspect_ratio
        if not (
            isinstance(ratio, tuple)
            and len(ratio) == 2
            and all(isinstance(part, Integral) for part in ratio)
        ):
            raise ConfigError(f"sample_aspect_ratio {ratio!r} is not a pair of whole numbers")
        for name, kind in (
            ("mirrored", bool),
            ("mastering", MasteringDisplay | None),
            ("content_light", ContentLight | None),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ConfigError(f"{name} {value!r} has the wrong type, {type(value).__name__}")

    @property
    def chroma_size(self) -> tuple[int, int]:
        """Width and height of each chroma plane: half the luma size, rounded up."""
        return (self.width + 1) // 2, (self.height + 1) // 2


Plane = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedMotion:
    """The motion that a frame was coded with.

    Args:
        pts: of the frame, as its packet states it.
        fields: displacements to a reference by its pts: (2, rows, columns) float32, x and y in
            luma samples, one position per 8x8 luma samples, which lies in their middle; at least
            as many as cover the frame. A frame that was coded without motion has none.
    """

    pts: int
    fields: Mapping[int, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One video frame: three planes in 4:2:0.

    Args:
        y: (height, width) luma, uint8 for 8 bit and uint16 (0 to 1023) for 10 bit.
        u, v: (ceil(height / 2), ceil(width / 2)) chroma, same dtype.
        pts: presentation time in ticks of the stream's time base.
        duration: in the same ticks; 0 when unknown.
        type: how it was coded (decoded frames only).
        bidirectional: it was coded from a later frame as well: a B-frame (decoded frames only).
        corrupt: parts of it are missing (never set by an undamaged stream).
        motion: what it was coded with (decoded frames only, where it was asked for).
    """

    y: Plane
    u: Plane
    v: Plane
    pts: int
    duration: int = 0
    type: FrameType | None = None
    bidirectional: bool = False
    corrupt: bool = False
    motion: CodedMotion | None = None

    @property
    def planes(self) -> tuple[Plane, Plane, Plane]:
        """(y, u, v)."""
        return self.y, self.u, self.v

    def in_c_order(self) -> Frame:
        """The frame with each plane's samples in one piece, row by row: itself where they are."""
        if all(plane.flags.c_contiguous for plane in self.planes):
            return self
        y, u, v = (plane.copy() for plane in self.planes)
        return replace(self, y=y, u=u, v=v)

    def check(self, video_format: VideoFormat) -> None:
        """Raise ConfigError unless the planes have the format's shapes, dtype and range, and times
        are whole numbers of 64 bits."""
        for name, time in (("pts", self.pts), ("duration", self.duration)):
            if not isinstance(time, Integral) or not -(1 << 63) <= int(time) < 1 << 63:
                raise ConfigError(f"{name} {time!r} is not a whole number of 64 bits")
        dtype = np.dtype(np.uint8 if video_format.bit_depth == 8 else np.uint16)
        luma = (video_format.height, video_format.width)
        chroma = video_format.chroma_size[::-1]
        for name, plane, shape in zip("yuv", self.planes, (luma, chroma, chroma), strict=True):
            if not isinstance(plane, np.ndarray):
                raise ConfigError(f"plane {name} is a {type(plane).__name__}, not a NumPy array")
            if plane.shape != shape or plane.dtype != dtype:
                raise ConfigError(
                    f"plane {name} is {plane.dtype} {plane.shape}; the stream has {dtype} {shape}"
                )
            if dtype == np.uint16 and plane.max() > 1023:
                raise ConfigError(f"plane {name} has a sample of {plane.max()}: more than 1023")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One coded frame. Packets follow each other in display order (pts = dts).

    Args:
        data: the packet's bytes (docs/reference/bitstream.md).
        pts: presentation time in ticks of the stream's time base.
        duration: in the same ticks; 0 when unknown.
        is_keyframe: decoding can start here.
    """

    data: bytes
    pts: int
    duration: int = 0
    is_keyframe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStep:
    """One frame's place in a reference structure, as plan, frame header and model use it.

    Args:
        type: key or inter.
        qp: quantiser parameter of this frame, 0 (finest) to 63.
        layer: temporal layer: 0 for keyframes, 1 to 7 for inter frames.
        number: display number since the GOP's keyframe, which has 0.
        references: signed display distances to 1 to 3 references (negative: the past), none
            for a keyframe; distinct, not 0, within +-32768. None lies before the keyframe.
        slot: where it is kept for later frames, 0 to 7, in place of what was kept there before;
            None: no frame refers to it. A keyframe has 0.

    Raises:
        ConfigError: a value is outside these bounds, or they contradict each other.
    """

    type: FrameType
    qp: int
    layer: int = 0
    number: int = 0
    references: tuple[int, ...] = ()
    slot: int | None = 0

    def __post_init__(self) -> None:
        _within("qp", self.qp, 0, QP_MAX)
        if self.slot is not None:
            _within("slot", self.slot, 0, SLOTS - 1)
        if self.type is FrameType.KEY:
            if self.layer or self.number or self.references or self.slot != 0:
                raise ConfigError(f"a keyframe has inter fields: {self}")
            return
        _within("layer", self.layer, 1, LAYER_MAX)
        _within("frame number", self.number, 1, 1 << 40)
        _within("number of references", len(self.references), 1, REFERENCES_MAX)
        for distance in self.references:
            _within("reference distance", distance, -DISTANCE_MAX, DISTANCE_MAX)
            if distance == 0 or self.number + distance < 0:
                raise ConfigError(f"frame {self.number} cannot refer to a frame {distance} away")
        if len(set(self.references)) < len(self.references):
            raise ConfigError(f"frame {self.number} refers to one frame twice: {self.references}")

    @property
    def reference_numbers(self) -> tuple[int, ...]:
        """Display numbers of the references, in the same order."""
        return tuple(self.number + distance for distance in self.references)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} {value} is outside {low} to {high}")


def plane_rows(plane: VideoPlane, dtype: Any) -> Plane:
    """A view of a plane's rows from top to bottom, with their padding."""
    rows: Plane = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
    return rows[::-1] if plane.line_size < 0 else rows  # negative: the last row lies first
