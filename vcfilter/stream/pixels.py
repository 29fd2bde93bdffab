"""Frames of any pixel format to planes in 4:2:0 of 8 or 10 bit, and back.

Sample values are never changed where they need not be. Planar 4:2:0 and grey frames are copied
(other depths than 8 and 10 are shifted to 10 bit, or to 8 below that, with rounding). All other
formats go through swscale: YUV formats keep their matrix and range, so only chroma is resampled;
RGB becomes BT.709 limited range at any size, and is flagged so. Grey without a stated range is
full range, as every reader of grey takes it. Alpha is not coded.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import av.error
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.format import VideoFormat as PixelFormat
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from vcfilter._bridge import StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import FieldOrder, Frame, FrameType, Plane, VideoFormat, plane_rows
from vcfilter.stream.hdr import LIGHT_NAME, LOST_NAMES, MASTERING_NAME, read_hdr
from vcfilter.stream.report import Log, RunLog

logger = logging.getLogger(__name__)

PIXEL_FORMATS = {8: "yuv420p", 10: "yuv420p10le"}
"""FFmpeg's name of what is coded, by bit depth."""

_LIMITED, _FULL = 1, 2
_BT709 = 1
_UNSPECIFIED = 2
_RGB_MATRIX = 0
JPEG_MATRIX = 5
"""BT.601, which readers of JPEG take for granted."""
_SCALING = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_HDR_KINDS = {
    SideDataType.MASTERING_DISPLAY_METADATA: MASTERING_NAME,
    SideDataType.CONTENT_LIGHT_LEVEL: LIGHT_NAME,
}
_RANGE_NAMES = {_LIMITED: "limited", _FULL: "full"}


def read_plane(av_frame: VideoFrame, index: int, dtype: Any) -> Plane:
    """A copy of one plane of a frame, (height, width) without the padding of its rows."""
    plane = av_frame.planes[index]
    copy: Plane = plane_rows(plane, dtype)[:, : plane.width].copy()
    return copy


class FrameReader:
    """Turns the frames of one stream into Frames of one VideoFormat.

    The first frame settles size, depth and colour description; later ones of another size,
    range or matrix are converted to it.

    Args:
        info: the stream, for what its container says of display; None for frames on their own.
        aspect: sample aspect ratio; None takes the container's.
        rotation: clockwise rotation for display in degrees; None takes the container's.
        size: width and height that all frames are scaled to; None takes the first one's.
        bit_depth: 8 or 10; None takes the first frame's (10 for any above 8).
        log: where warnings go, each once.

    Attributes:
        video_format: None before the first frame.
    """

    def __init__(
        self,
        *,
        info: StreamInfo | None = None,
        aspect: Fraction | None = None,
        rotation: int | None = None,
        size: tuple[int, int] | None = None,
        bit_depth: int | None = None,
        log: Log = logger,
    ) -> None:
        self.video_format: VideoFormat | None = None
        self._info = info or StreamInfo(kind="video")
        self._aspect = self._info.sample_aspect_ratio if aspect is None else aspect
        self._rotation = self._info.rotation if rotation is None else rotation
        self._size = size
        self._bit_depth = bit_depth
        self._log = log if isinstance(log, RunLog) else RunLog(log)
        self._reformatter = VideoReformatter()

    def read(self, av_frame: VideoFrame, pts: int, duration: int = 0) -> Frame:
        """The frame's planes, with the given times.

        Raises:
            MediaError: its size or pixel format cannot be coded.
        """
        if self.video_format is None:
            self.video_format = self._settle(av_frame)
        fmt = self.video_format
        if (av_frame.width, av_frame.height) != (fmt.width, fmt.height):
            if self._size is None:
                self._log.warning(
                    f"frames change from {fmt.width}x{fmt.height} to "
                    f"{av_frame.width}x{av_frame.height}: they are scaled to the former"
                )
            av_frame = self._scale(av_frame, _without_range(av_frame), source=_levels(av_frame))
        else:
            av_frame = self._same_levels(av_frame)
        y, u, v = self._planes(av_frame)
        return Frame(y=y, u=u, v=v, pts=pts, duration=duration, corrupt=av_frame.is_corrupt)

    def _settle(self, av_frame: VideoFrame) -> VideoFormat:
        pixel = av_frame.format
        depth = self._bit_depth or (8 if _depth(pixel) <= 8 else 10)
        width, height = self._size or (av_frame.width, av_frame.height)
        matrix, span = _levels(av_frame)
        aspect = (self._aspect or Fraction(0)).limit_denominator(65535)
        if not 0 < aspect < 65536:
            aspect = Fraction(0)
        rotation = self._rotation % 360
        if rotation % 90:
            self._log.warning(
                f"a rotation by {rotation} degrees is not kept, only quarter turns are"
            )
            rotation = 0
        info = self._info
        for name, _ in info.side_data:
            if name in LOST_NAMES:
                self._log.warning(f"the stream's {LOST_NAMES[name]} is not kept")
        if _frame_side_data(av_frame, SideDataType.DYNAMIC_HDR_PLUS):
            self._log.warning("the stream's HDR10+ is not kept")
        own = [(name, _frame_side_data(av_frame, kind)) for kind, name in _HDR_KINDS.items()]
        mastering, light = read_hdr([*info.side_data, *(pair for pair in own if pair[1])])
        try:
            return VideoFormat(
                width=width,
                height=height,
                bit_depth=depth,
                sample_aspect_ratio=(aspect.numerator, aspect.denominator),
                color_primaries=int(av_frame.color_primaries),
                color_trc=int(av_frame.color_trc),
                colorspace=matrix,
                color_range=span,
                chroma_location=info.chroma_location,
                rotation=rotation,
                mirrored=info.mirrored,
                field_order=_field_order(info, av_frame),
                mastering=mastering,
                content_light=light,
            )
        except ConfigError as error:
            raise MediaError(f"frames of {width}x{height}: {error}") from error

    def _same_levels(self, av_frame: VideoFrame) -> VideoFrame:
        """The frame in the stream's range and matrix, where it states others."""
        fmt, pixel = self._format(), av_frame.format
        if pixel.is_rgb or pixel.has_palette or pixel.name.startswith(("gray", "ya")):
            return av_frame
        matrix, span = _levels(av_frame)
        wanted = fmt.color_range or _LIMITED
        other_range = span not in (0, wanted)
        other_matrix = matrix != fmt.colorspace and _UNSPECIFIED not in (matrix, fmt.colorspace)
        if not other_range and not other_matrix:
            return av_frame
        if other_range:
            self._log.warning(
                f"frames change to {_RANGE_NAMES[span]} range: they are converted to "
                f"{_RANGE_NAMES[wanted]} range, the first one's"
            )
        if other_matrix:
            self._log.warning(
                "frames change their colour matrix: they are converted to the first one's"
            )
        return self._scale(av_frame, _without_range(av_frame), source=(matrix, span))

    def _planes(self, av_frame: VideoFrame) -> tuple[Plane, Plane, Plane]:
        fmt, pixel = self._format(), av_frame.format
        name = pixel.name
        if any(component.is_alpha for component in pixel.components) and not _is_opaque(av_frame):
            self._log.warning("the alpha channel is not coded")
        depth = _depth(pixel)
        if name.startswith(("gray", "ya")):
            if name.startswith(("ya", "grayf")) or name.endswith("be"):
                name, depth = ("gray", 8) if depth <= 8 else ("gray16le", 16)
                av_frame = self._scale(av_frame, name, full_range=True)
            y = _to_depth(read_plane(av_frame, 0, _dtype(depth)), depth, fmt.bit_depth)
            neutral = np.full(fmt.chroma_size[::-1], 1 << (fmt.bit_depth - 1), y.dtype)
            return y, neutral, neutral
        if not _is_planar_420(pixel):
            av_frame = self._scale(av_frame, PIXEL_FORMATS[fmt.bit_depth])
            depth = fmt.bit_depth
        y, u, v = (
            _to_depth(read_plane(av_frame, index, _dtype(depth)), depth, fmt.bit_depth)
            for index in range(3)
        )
        return y, u, v

    def _scale(
        self,
        av_frame: VideoFrame,
        name: str,
        full_range: bool = False,
        source: tuple[int, int] | None = None,
    ) -> VideoFrame:
        """Through swscale to another pixel format and the stream's size, matrix and range.

        Args:
            source: matrix and range of the frame; None takes those that it states, or the
                stream's.
        """
        fmt = self._format()
        is_rgb = av_frame.format.is_rgb or av_frame.format.has_palette
        to_rgb = name == av_frame.format.name and is_rgb
        wanted = _FULL if full_range else fmt.color_range or _LIMITED
        matrix, span = source or (fmt.colorspace, wanted)
        if matrix == _UNSPECIFIED:
            matrix = fmt.colorspace
        span = span or wanted
        try:
            return self._reformatter.reformat(
                av_frame,
                width=fmt.width,
                height=fmt.height,
                format=name,
                src_colorspace=None if is_rgb else _swscale_matrix(matrix),
                dst_colorspace=None if to_rgb else _swscale_matrix(fmt.colorspace),
                src_color_range=_FULL if is_rgb else span,
                dst_color_range=_FULL if to_rgb else wanted,
                interpolation=_SCALING,
                threads=1,
            )
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise MediaError(
                f"frames of format {av_frame.format.name} cannot be converted to {name}: {error}"
            ) from error

    def _format(self) -> VideoFormat:
        assert self.video_format is not None
        return self.video_format


def _levels(av_frame: VideoFrame) -> tuple[int, int]:
    """(matrix, range) of a frame once it is YUV: H.273 code point; 0, limited or full."""
    pixel = av_frame.format
    matrix, span = int(av_frame.colorspace), int(av_frame.color_range)
    if pixel.is_rgb or pixel.has_palette:
        return _BT709, _LIMITED
    if pixel.name.startswith("yuvj") or (pixel.name.startswith(("gray", "ya")) and not span):
        span = _FULL
    if matrix == _RGB_MATRIX:  # flagged as RGB, yet the planes are luma and chroma
        matrix = _UNSPECIFIED
    return matrix, span if span in (_LIMITED, _FULL) else 0


def _without_range(av_frame: VideoFrame) -> str:
    """The frame's pixel format; of those that imply full range, the one that does not."""
    name: str = av_frame.format.name
    return name.replace("yuvj", "yuv") if name.startswith("yuvj") else name


def _field_order(info: StreamInfo, av_frame: VideoFrame) -> FieldOrder:
    """What the container says, else what the decoder does: no more than that it is interlaced."""
    order = FieldOrder(info.field_order) if info.field_order in set(FieldOrder) else FieldOrder(0)
    if order is FieldOrder.UNKNOWN and av_frame.interlaced_frame:
        return FieldOrder.BOTTOM_FIRST if info.codec == "dvvideo" else FieldOrder.TOP_FIRST
    return order


def _frame_side_data(av_frame: VideoFrame, kind: SideDataType) -> bytes:
    """What the decoder found in the stream itself; empty where it has none."""
    try:
        side_data: Any = av_frame.side_data
    except ValueError:  # it has a kind that PyAV has no name for
        return b""
    found = side_data.get(kind)
    return b"" if found is None else bytes(found)


def to_video_frame(frame: Frame, video_format: VideoFormat, time_base: Fraction) -> VideoFrame:
    """The frame as PyAV's VideoFrame: yuv420p or yuv420p10le, with times and colour description.

    Times, key_frame and pict_type (I, P or B) are set as PyAV's decoders do.

    Args:
        frame: planes as the format says; its pts is in ticks of time_base.
    """
    fmt = video_format
    av_frame = VideoFrame(fmt.width, fmt.height, PIXEL_FORMATS[fmt.bit_depth])
    for plane, samples in zip(av_frame.planes, frame.planes, strict=True):
        stride = plane.line_size // samples.itemsize
        rows = np.frombuffer(memoryview(plane), dtype=samples.dtype, count=plane.height * stride)
        rows.reshape(plane.height, stride)[:, : plane.width] = samples
    av_frame.pts = av_frame.dts = frame.pts
    av_frame.time_base = time_base
    av_frame.duration = frame.duration
    if frame.type is not None:
        av_frame.key_frame = frame.type is FrameType.KEY  # type: ignore[misc]
        inter = PictureType.B if frame.bidirectional else PictureType.P
        av_frame.pict_type = PictureType.I if frame.type is FrameType.KEY else inter
    describe(av_frame, fmt)
    return av_frame


def describe(av_frame: VideoFrame, video_format: VideoFormat) -> None:
    """Set a frame's colour description."""
    av_frame.colorspace = video_format.colorspace
    av_frame.color_range = video_format.color_range
    av_frame.color_primaries = video_format.color_primaries
    av_frame.color_trc = video_format.color_trc


def convert(av_frame: VideoFrame, name: str, reformatter: VideoReformatter) -> VideoFrame:
    """A decoded frame in another pixel format; YUV formats keep matrix and range, but for those
    of JPEG, which have a matrix and a range of their own.

    Raises:
        MediaError: FFmpeg knows no such format or cannot convert to it.
    """
    if av_frame.format.name == name:
        return av_frame
    span = int(av_frame.color_range) or _LIMITED
    matrix = int(av_frame.colorspace)
    to_jpeg = name.startswith("yuvj")
    try:
        to_rgb = PixelFormat(name).is_rgb
        result = reformatter.reformat(
            av_frame,
            format=name,
            src_colorspace=_swscale_matrix(matrix),
            dst_colorspace=None if to_rgb else _swscale_matrix(JPEG_MATRIX if to_jpeg else matrix),
            src_color_range=span,
            dst_color_range=_FULL if to_rgb or to_jpeg else span,
            interpolation=_SCALING,
            threads=1,
        )
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"frames cannot be converted to {name!r}: {error}") from error
    result.pts, result.duration = av_frame.pts, av_frame.duration
    if av_frame.time_base:
        result.time_base = av_frame.time_base
    if to_rgb or to_jpeg:
        result.colorspace = _RGB_MATRIX if to_rgb else JPEG_MATRIX
    return result


def frame_of(av_frame: VideoFrame) -> tuple[Frame, VideoFormat]:
    """Planes and format of one frame on its own (see FrameReader for a stream)."""
    reader = FrameReader()
    frame = reader.read(av_frame, av_frame.pts or 0, av_frame.duration or 0)
    assert reader.video_format is not None
    return frame, reader.video_format


def _is_opaque(av_frame: VideoFrame) -> bool:
    """Whether a frame's alpha hides nothing; False where that is not looked up."""
    pixel = av_frame.format
    if pixel.name in ("rgba", "bgra", "argb", "abgr"):
        (plane,) = av_frame.planes
        rows = plane_rows(plane, np.uint8)
        alpha: Any = rows[:, pixel.name.index("a") : 4 * plane.width : 4]
    elif len(av_frame.planes) == 4 and not pixel.name.endswith("be"):
        alpha = read_plane(av_frame, 3, _dtype(_depth(pixel)))
    else:
        return False
    return bool(alpha.min() >= (1 << _depth(pixel)) - 1)


def _depth(pixel: PixelFormat) -> int:
    return max((component.bits for component in pixel.components), default=8)


def _dtype(depth: int) -> Any:
    return np.uint8 if depth <= 8 else np.dtype("<u2")


def _is_planar_420(pixel: PixelFormat) -> bool:
    """Three planes of whole samples, little-endian, chroma halved both ways (alpha may follow)."""
    name = pixel.name
    if name in ("yuv420p", "yuvj420p", "yuva420p"):
        return True
    return name.startswith(("yuv420p", "yuva420p")) and name.endswith("le")


def _to_depth(plane: Plane, depth: int, target: int) -> Plane:
    if depth == target:
        if depth <= 8:
            return plane
        inside: Plane = np.minimum(plane, np.uint16((1 << depth) - 1))
        return inside
    if depth < target:
        return (plane.astype(np.uint16) << (target - depth)).astype(np.uint16)
    shift = depth - target
    rounded = (plane.astype(np.uint32) + (1 << (shift - 1))) >> shift
    narrow: Plane = np.minimum(rounded, (1 << target) - 1).astype(_dtype(target))
    return narrow


def _swscale_matrix(matrix: int) -> int | None:
    """PyAV's swscale constant for an H.273 matrix; None leaves it unspecified.

    Between YUV formats of one matrix it does not matter which, so BT.709 stands in for those
    that swscale does not know.
    """
    if int(matrix) == _UNSPECIFIED:
        return None
    return {
        1: int(Colorspace.ITU709),
        4: int(Colorspace.FCC),
        5: int(Colorspace.ITU601),
        6: int(Colorspace.ITU601),
        7: int(Colorspace.SMPTE240M),
        9: int(Colorspace.BT2020),
    }.get(int(matrix), int(Colorspace.ITU709))


__all__ = [
    "JPEG_MATRIX",
    "PIXEL_FORMATS",
    "FrameReader",
    "convert",
    "describe",
    "frame_of",
    "plane_rows",
    "read_plane",
    "to_video_frame",
]
