"""The picture track as a container describes it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from vcfilter._bridge import StreamInfo
from vcfilter.frames import VideoFormat

FOURCC = "VCF1"


def is_neural(info: StreamInfo) -> bool:
    """Whether a stream is one that this codec wrote."""
    return info.kind == "video" and not info.codec and info.codec_tag.upper() == FOURCC


def neural_track(
    video_format: VideoFormat,
    extradata: bytes,
    time_base: Fraction,
    frame_rate: Fraction | None,
    metadata: Mapping[str, str],
) -> StreamInfo:
    """The track that holds neural packets, as the container describes it."""
    fmt = video_format
    num, den = fmt.sample_aspect_ratio
    return StreamInfo(
        kind="video",
        codec_tag=FOURCC,
        extradata=extradata,
        time_base=time_base,
        disposition=1,
        metadata=metadata,
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
        field_order=1,
    )
