"""One frame beside x264 at the same size in bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import av.error
from av.codec import CodecContext
from av.video.frame import VideoFrame

from vcfilter.errors import MediaError
from vcfilter.frames import FrameType
from vcfilter.metrics import frame_psnr
from vcfilter.serve.steps import FULL
from vcfilter.serve.video import Segment, VideoFile
from vcfilter.serve.work import StoppedError
from vcfilter.stream.pixels import PIXEL_FORMATS, describe, frame_of
from vcfilter.stream.source import media_url, reason_of
from vcfilter.stream.upright import upright

_TRIES = 9  # of x264's crf, halving 0 to 51 down to a tenth
_CRF_MAX = 51.0
MOST_FRAMES = 64
"""Frames of a segment that are compared at most."""

_SEI = 6  # NAL unit with x264's name and settings, no part of a frame


def compare(video: VideoFile, index: int, stopped: Callable[[], bool]) -> bytes:
    """A frame as vcfilter and as x264 show it, as JSON with two PNG images.

    x264 (medium, B-frames, the same largest keyframe distance) codes the frames of the segment
    around the frame, MOST_FRAMES at most, at the crf that comes nearest to the neural packets'
    bytes. It is given the original where one is known, else vcfilter's own frames.

    Args:
        index: of the frame in video.frames.
        stopped: called between frames; StoppedError is raised where it returns True.

    Raises:
        MediaError: the original does not fit the video, or there is no x264.
    """
    number = video.segment_of(index)
    segment = part_of(video, index)
    decoded = video.decoded(number, FULL, stopped)
    ours = {i: frame for i, frame in decoded if segment.first <= i < segment.end}
    if index not in ours:
        raise MediaError(f"frame {index} is damaged: there is nothing to compare")
    indices = sorted(ours)
    sources = [ours[i] for i in indices]
    if video.original is not None:
        sources = _originals(video, segment, indices)
    size, crf, theirs = _x264_at(video, sources, segment, stopped)
    place = indices.index(index)
    shown, other = ours[index], theirs[place]
    result: dict[str, Any] = {
        "frame": index,
        "time": float(video.time_of(index)),
        "frames": len(indices),
        "original": video.original.name if video.original is not None else None,
        "vcfilter": {"bytes": segment.size, "image": _png(video, shown)},
        "x264": {"bytes": size, "crf": round(crf, 1), "image": _png(video, other)},
    }
    if video.original is not None:
        reference = frame_of(sources[place])[0]
        for name, frame in (("vcfilter", shown), ("x264", other)):
            result[name]["psnr"] = round(frame_psnr(reference, frame_of(frame)[0]).weighted, 2)
    return json.dumps(result).encode()


def compare_looks(video: VideoFile, index: int, look: str, stopped: Callable[[], bool]) -> bytes:
    """A frame in the natural look and in another one, as JSON with two PNG images.

    Raises:
        MediaError: the frame is damaged. ModelMismatchError: the model has no finish.
    """
    number = video.segment_of(index)
    result: dict[str, Any] = {"frame": index, "time": float(video.time_of(index))}
    for name in (FULL.look, look):
        frames = video.decoded(number, replace(FULL, look=name), stopped)
        image = next((_png(video, frame) for i, frame in frames if i == index), None)
        if image is None:
            raise MediaError(f"frame {index} is damaged: there is nothing to compare")
        result[name] = {"image": image}
    return json.dumps(result).encode()


def part_of(video: VideoFile, index: int) -> Segment:
    """The frames that are compared around one: its segment, or MOST_FRAMES of a longer one.

    All of them are held, by both codecs. A part begins with the keyframe before the frame where
    that is near enough, since x264 codes a keyframe there.
    """
    whole = video.segments[video.segment_of(index)]
    if whole.end - whole.first <= MOST_FRAMES:
        return whole
    earliest = max(whole.first, index - MOST_FRAMES + 1)
    keys = [i for i in range(earliest, index + 1) if video.frames[i].kind is FrameType.KEY]
    first = keys[-1] if keys else max(whole.first, index - MOST_FRAMES // 2)
    end = min(whole.end, first + MOST_FRAMES)
    return Segment(
        first=first,
        end=end,
        start=video.time_of(first),
        stop=video.time_of(end),
        size=sum(frame.size for frame in video.frames[first:end]),
    )


def _x264_at(
    video: VideoFile, sources: Sequence[VideoFrame], segment: Segment, stopped: Callable[[], bool]
) -> tuple[int, float, list[VideoFrame]]:
    """(bytes, crf, decoded frames) of x264 nearest to the segment's size."""
    low, high = 0.0, _CRF_MAX
    best: tuple[int, float, list[bytes]] | None = None
    for _ in range(_TRIES):
        if stopped():
            raise StoppedError
        crf = (low + high) / 2
        packets = _encode(video, sources, crf)
        size = sum(len(packet) for packet in packets)
        if best is None or abs(size - segment.size) < abs(best[0] - segment.size):
            best = size, crf, packets
        if size > segment.size:
            low = crf
        else:
            high = crf
    assert best is not None
    fmt = video.video_format
    pixels = PIXEL_FORMATS[fmt.bit_depth]
    frames = [each.reformat(fmt.width, fmt.height, pixels) for each in _decode(best[2])]
    for each in frames:
        describe(each, fmt)
    if len(frames) != len(sources):
        raise MediaError(f"x264 gave {len(frames)} frames for {len(sources)}")
    return best[0], best[1], frames


def _encode(video: VideoFile, sources: Sequence[VideoFrame], crf: float) -> list[bytes]:
    """x264's packets in Annex B, without the unit that holds its settings."""
    fmt = video.video_format
    try:
        context: Any = CodecContext.create("libx264", "w")
    except (ValueError, av.error.FFmpegError) as error:
        raise MediaError("the comparison needs x264, which PyAV's FFmpeg lacks here") from error
    context.width, context.height = (side + side % 2 for side in (fmt.width, fmt.height))
    context.pix_fmt = PIXEL_FORMATS[fmt.bit_depth]
    context.time_base = Fraction(1, 1000)
    context.framerate = Fraction(video.frames_per_second).limit_denominator(1001)
    keys = video.keyframe_distance
    context.options = {"preset": "medium", "crf": f"{crf:.2f}", "g": str(keys)}
    packets: list[bytes] = []
    for number, source in enumerate([*sources, None]):
        frame = None
        if source is not None:
            frame = source.reformat(context.width, context.height, context.pix_fmt)
            frame.pts = round(1000 * number / context.framerate)
            frame.time_base = context.time_base
            frame.pict_type = 0
        packets += [_without_settings(bytes(packet)) for packet in context.encode(frame)]
    return packets


def _without_settings(data: bytes) -> bytes:
    units = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\0\1" + unit for unit in units if unit and unit[0] & 31 != _SEI)


def _decode(packets: Sequence[bytes]) -> list[VideoFrame]:
    data = io.BytesIO(b"".join(packets))
    with av.open(data, "r", format="h264") as container:
        return list(container.decode(video=0))


def _originals(video: VideoFile, segment: Segment, indices: Sequence[int]) -> list[VideoFrame]:
    """The original's frames at the times of these frames.

    Raises:
        MediaError: it has none there, or is of another shape.
    """
    assert video.original is not None
    fmt = video.video_format
    times = [video.time_of(index) for index in indices]
    tolerance = Fraction(1, 2) / Fraction(video.frames_per_second)
    found: list[VideoFrame] = []
    try:
        with av.open(media_url(str(video.original))) as container:
            for time, frame in _timed(container, segment.start):
                if len(found) < len(times) and abs(time - times[len(found)]) < tolerance:
                    found.append(
                        frame.reformat(fmt.width, fmt.height, PIXEL_FORMATS[fmt.bit_depth])
                    )
                if time > segment.stop:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{video.original.name} cannot be read: {reason_of(error)}") from error
    if len(found) != len(times):
        raise MediaError(f"{video.original.name} does not fit {video.path.name}: other times")
    return found


def _timed(container: Any, start: Fraction) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Frames with their times from the first one, from a keyframe before start on."""
    stream = container.streams.video[0]
    first: Fraction | None = None
    for frame in container.decode(stream):
        first = frame.pts * stream.time_base
        break
    if first is None:
        return
    container.seek(int((first + start) / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame.pts * stream.time_base - first, frame


def _png(video: VideoFile, frame: VideoFrame) -> str:
    """A frame, turned for display, as a data URL of a PNG image."""
    samples = upright(frame.to_ndarray(format="rgb24"), video.video_format)
    shown = VideoFrame.from_ndarray(samples, "rgb24")
    context: Any = CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = shown.width, shown.height, "rgb24"
    context.time_base = Fraction(1, 25)
    shown.pts = 0
    data = b"".join(bytes(p) for p in [*context.encode(shown), *context.encode(None)])
    return "data:image/png;base64," + base64.b64encode(data).decode()
