"""HDR10's two descriptions of brightness, as FFmpeg keeps them in side data."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from vcfilter.errors import ConfigError
from vcfilter.frames import ContentLight, MasteringDisplay, VideoFormat

MASTERING_NAME = "Mastering display metadata"
LIGHT_NAME = "Content light level metadata"
"""Names of the two kinds of side data; libavcodec's av_packet_side_data_name gives them."""

LOST_NAMES = {
    "DOVI configuration record": "Dolby Vision",
    "HDR10+ Dynamic Metadata (SMPTE 2094-40)": "HDR10+",
    "Spherical Mapping": "spherical mapping",
    "Stereo 3D": "stereoscopic layout",
}
"""Side data of a video stream that is not kept when its frames are coded anew, in words."""

# AVMasteringDisplayMetadata: x and y of red, green, blue, white, minimum and maximum luminance as
# rationals, then whether primaries and luminance are known. AVContentLightMetadata: two integers.
_MASTERING = struct.Struct("=20i2i")
_LIGHT = struct.Struct("=2I")
_XY_STEPS, _LUMINANCE_STEPS = 50000, 10000


def read_hdr(
    side_data: Iterable[tuple[str, bytes]],
) -> tuple[MasteringDisplay | None, ContentLight | None]:
    """(mastering display, content light level) of a stream's side data; None where it has none."""
    found: Mapping[str, bytes] = dict(side_data)
    return _mastering(found.get(MASTERING_NAME, b"")), _light(found.get(LIGHT_NAME, b""))


def write_hdr(video_format: VideoFormat) -> tuple[tuple[str, bytes], ...]:
    """The side data of a track with this format."""
    result = []
    mastering, light = video_format.mastering, video_format.content_light
    if mastering is not None:
        xy = [c for pair in (*mastering.primaries, mastering.white_point) for c in pair]
        values = [(c, _XY_STEPS) for c in xy]
        values += [(min(c, (1 << 31) - 1), _LUMINANCE_STEPS) for c in mastering.luminance]
        flat = [number for value in values for number in value]
        result.append((MASTERING_NAME, _MASTERING.pack(*flat, 1, 1)))
    if light is not None:
        result.append((LIGHT_NAME, _LIGHT.pack(light.max_content, light.max_average)))
    return tuple(result)


def _mastering(data: bytes) -> MasteringDisplay | None:
    if len(data) < _MASTERING.size:
        return None
    *numbers, has_primaries, has_luminance = _MASTERING.unpack_from(data)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    if not (has_primaries and has_luminance and all(den > 0 for _, den in pairs)):
        return None
    steps = [_XY_STEPS] * 8 + [_LUMINANCE_STEPS] * 2
    values = [
        (2 * num * step + den) // (2 * den) for (num, den), step in zip(pairs, steps, strict=True)
    ]
    xy = [(values[i], values[i + 1]) for i in range(0, 8, 2)]
    try:
        return MasteringDisplay(
            primaries=(xy[0], xy[1], xy[2]), white_point=xy[3], luminance=(values[8], values[9])
        )
    except ConfigError:
        return None  # out of range: no description is better than a wrong one


def _light(data: bytes) -> ContentLight | None:
    if len(data) < _LIGHT.size:
        return None
    content, average = _LIGHT.unpack_from(data)
    if not content and not average:
        return None
    try:
        return ContentLight(max_content=content, max_average=average)
    except ConfigError:
        return None
