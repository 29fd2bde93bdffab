"""One frame beside x264 at the same size in bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.codec import CodecContext
from av.video.frame import VideoFrame

from vcfilter.errors import MediaError
from vcfilter.metrics import frame_psnr
from vcfilter.serve.film import Film, Segment
from vcfilter.serve.steps import STEPS
from vcfilter.serve.work import StoppedError
from vcfilter.stream.pixels import PIXEL_FORMATS, describe, frame_of
from vcfilter.stream.source import media_url, reason_of

_FULL = STEPS[0]
_TRIES = 9  # of x264's crf, halving 0 to 51 down to a tenth
_CRF_MAX = 51.0
_SEI = 6  # NAL unit with x264's name and settings: no picture


def compare(film: Film, index: int, stopped: Callable[[], bool]) -> bytes:
    """A frame as vcfilter and as x264 show it, as JSON with both pictures as PNG.

    x264 (medium, B-frames, the same largest keyframe distance) codes the frames of the segment
    around the frame, at the crf that comes nearest to the neural packets' bytes. It is given the
    original where one is known, else vcfilter's own pictures.

    Args:
        index: of the frame in film.frames.
        stopped: asked between frames; StoppedError is raised where it says yes.

    Raises:
        MediaError: the original does not fit the film, or there is no x264.
    """
    number = film.segment_of(index)
    segment = film.segments[number]
    ours = dict(film.pictures(number, _FULL, stopped))
    if index not in ours:
        raise MediaError(f"frame {index} is damaged: there is nothing to compare")
    indices = sorted(ours)
    sources = [ours[i] for i in indices]
    if film.original is not None:
        sources = _originals(film, segment, indices)
    size, crf, theirs = _x264_at(film, sources, segment, stopped)
    place = indices.index(index)
    shown, other = ours[index], theirs[place]
    result: dict[str, Any] = {
        "frame": index,
        "time": float(film.time_of(index)),
        "frames": len(indices),
        "original": film.original.name if film.original is not None else None,
        "vcfilter": {"bytes": segment.size, "picture": _png(film, shown)},
        "x264": {"bytes": size, "crf": round(crf, 1), "picture": _png(film, other)},
    }
    if film.original is not None:
        reference = frame_of(sources[place])[0]
        for name, picture in (("vcfilter", shown), ("x264", other)):
            result[name]["psnr"] = round(frame_psnr(reference, frame_of(picture)[0]).weighted, 2)
    return json.dumps(result).encode()


def _x264_at(
    film: Film, sources: Sequence[VideoFrame], segment: Segment, stopped: Callable[[], bool]
) -> tuple[int, float, list[VideoFrame]]:
    """(bytes, crf, decoded pictures) of x264 nearest to the segment's size."""
    low, high = 0.0, _CRF_MAX
    best: tuple[int, float, list[bytes]] | None = None
    for _ in range(_TRIES):
        if stopped():
            raise StoppedError
        crf = (low + high) / 2
        packets = _encode(film, sources, crf)
        size = sum(len(packet) for packet in packets)
        if best is None or abs(size - segment.size) < abs(best[0] - segment.size):
            best = size, crf, packets
        if size > segment.size:
            low = crf
        else:
            high = crf
    assert best is not None
    fmt = film.video_format
    pixels = PIXEL_FORMATS[fmt.bit_depth]
    pictures = [each.reformat(fmt.width, fmt.height, pixels) for each in _decode(best[2])]
    for each in pictures:
        describe(each, fmt)
    if len(pictures) != len(sources):
        raise MediaError(f"x264 gave {len(pictures)} pictures for {len(sources)}")
    return best[0], best[1], pictures


def _encode(film: Film, sources: Sequence[VideoFrame], crf: float) -> list[bytes]:
    """x264's packets in Annex B, without the unit that tells its settings."""
    fmt = film.video_format
    try:
        context: Any = CodecContext.create("libx264", "w")
    except (ValueError, av.error.FFmpegError) as error:
        raise MediaError("the comparison needs x264, which PyAV's FFmpeg lacks here") from error
    context.width, context.height = (side + side % 2 for side in (fmt.width, fmt.height))
    context.pix_fmt = PIXEL_FORMATS[fmt.bit_depth]
    context.time_base = Fraction(1, 1000)
    context.framerate = Fraction(film.frames_per_second).limit_denominator(1001)
    keys = film.keyframe_distance
    context.options = {"preset": "medium", "crf": f"{crf:.2f}", "g": str(keys)}
    packets: list[bytes] = []
    for number, source in enumerate([*sources, None]):
        picture = None
        if source is not None:
            picture = source.reformat(context.width, context.height, context.pix_fmt)
            picture.pts = round(1000 * number / context.framerate)
            picture.time_base = context.time_base
            picture.pict_type = 0
        packets += [_without_settings(bytes(packet)) for packet in context.encode(picture)]
    return packets


def _without_settings(data: bytes) -> bytes:
    units = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\0\1" + unit for unit in units if unit and unit[0] & 31 != _SEI)


def _decode(packets: Sequence[bytes]) -> list[VideoFrame]:
    data = io.BytesIO(b"".join(packets))
    with av.open(data, "r", format="h264") as container:
        return list(container.decode(video=0))


def _originals(film: Film, segment: Segment, indices: Sequence[int]) -> list[VideoFrame]:
    """The original's pictures at the times of these frames.

    Raises:
        MediaError: it has none there, or is of another shape.
    """
    assert film.original is not None
    fmt = film.video_format
    times = [film.time_of(index) for index in indices]
    tolerance = Fraction(1, 2) / Fraction(film.frames_per_second)
    found: list[VideoFrame] = []
    try:
        with av.open(media_url(str(film.original))) as container:
            for time, picture in _timed(container, segment.start):
                if len(found) < len(times) and abs(time - times[len(found)]) < tolerance:
                    found.append(
                        picture.reformat(fmt.width, fmt.height, PIXEL_FORMATS[fmt.bit_depth])
                    )
                if time > segment.stop:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{film.original.name} cannot be read: {reason_of(error)}") from error
    if len(found) != len(times):
        raise MediaError(f"{film.original.name} does not fit {film.path.name}: other times")
    return found


def _timed(container: Any, start: Fraction) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Pictures with their times from the first one, from a keyframe before start on."""
    stream = container.streams.video[0]
    first: Fraction | None = None
    for picture in container.decode(stream):
        first = picture.pts * stream.time_base
        break
    if first is None:
        return
    container.seek(int((first + start) / stream.time_base), stream=stream)
    for picture in container.decode(stream):
        if picture.pts is not None:
            yield picture.pts * stream.time_base - first, picture


def _png(film: Film, picture: VideoFrame) -> str:
    """A picture, turned as it is shown, as an address that holds its content."""
    turned = np.rot90(picture.to_ndarray(format="rgb24"), -(film.video_format.rotation // 90))
    samples = np.ascontiguousarray(turned, dtype=np.uint8)
    shown = VideoFrame.from_ndarray(samples, "rgb24")
    context: Any = CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = shown.width, shown.height, "rgb24"
    context.time_base = Fraction(1, 25)
    shown.pts = 0
    data = b"".join(bytes(p) for p in [*context.encode(shown), *context.encode(None)])
    return "data:image/png;base64," + base64.b64encode(data).decode()
