"""The video track as a container describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from vcfilter._bridge import StreamInfo
from vcfilter.frames import FieldOrder, VideoFormat
from vcfilter.stream.hdr import read_hdr, write_hdr

FOURCC = "VCF1"


def is_neural(info: StreamInfo) -> bool:
    """Whether a stream is one that this codec wrote."""
    return info.kind == "video" and not info.codec and info.codec_tag.upper() == FOURCC


def video_track(
    video_format: VideoFormat, time_base: Fraction, frame_rate: Fraction | None
) -> StreamInfo:
    """A video track of this format, without what depends on its codec."""
    fmt = video_format
    num, den = fmt.sample_aspect_ratio
    return StreamInfo(
        kind="video",
        time_base=time_base,
        disposition=1,
        width=fmt.width,
        height=fmt.height,
        sample_aspect_ratio=Fraction(num, den) if num else None,
        frame_rate=frame_rate,
        pixel_format="yuv420p" if fmt.bit_depth == 8 else "yuv420p10le",
        color_primaries=fmt.color_primaries,
        color_trc=fmt.color_trc,
        colorspace=fmt.colorspace,
        color_range=fmt.color_range,
        chroma_location=fmt.chroma_location,
        rotation=fmt.rotation,
        mirrored=fmt.mirrored,
        field_order=int(fmt.field_order) or int(FieldOrder.PROGRESSIVE),
        side_data=write_hdr(fmt),
    )


def neural_track(
    video_format: VideoFormat,
    extradata: bytes,
    time_base: Fraction,
    frame_rate: Fraction | None,
    metadata: Mapping[str, str],
) -> StreamInfo:
    """The track that holds neural packets, as the container describes it."""
    return replace(
        video_track(video_format, time_base, frame_rate),
        codec_tag=FOURCC,
        extradata=extradata,
        metadata=metadata,
    )


def completed(video_format: VideoFormat, info: StreamInfo) -> VideoFormat:
    """The format of decoded frames, with what only the container says of their display."""
    mastering, light = read_hdr(info.side_data)
    fmt = video_format
    if fmt.mastering is None:
        fmt = replace(fmt, mastering=mastering)
    if fmt.content_light is None:
        fmt = replace(fmt, content_light=light)
    if fmt.field_order is FieldOrder.UNKNOWN and info.field_order in set(FieldOrder):
        fmt = replace(fmt, field_order=FieldOrder(info.field_order))
    if (fmt.rotation, fmt.mirrored) == (0, False) and info.rotation % 90 == 0:
        fmt = replace(fmt, rotation=info.rotation % 360, mirrored=info.mirrored)
    return fmt
