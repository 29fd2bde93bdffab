"""The frame that is shown at a time, with as little decoding as its references allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from vcfilter.stream.input_stream import Stream
from vcfilter.stream.packets import StreamPacket

_KEPT_BYTES = 256 << 20
_DESCRIPTION = (
    "pts", "dts", "time_base", "duration", "key_frame", "pict_type", "colorspace", "color_range",
    "color_primaries", "color_trc",
)  # fmt: skip
"""What a frame tells besides its samples."""
_HELD = 32
"""Packets before the wanted one whose frames are shown too where that costs little: the longest
interval between anchors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Frames that follow each other.

    Args:
        stream: index of their stream.
        frames: in display order; each has a pts.
        until: first time, in ticks, at which none of them is shown.
        following: the packet that was read and not decoded.
    """

    stream: int = -1
    frames: tuple[VideoFrame, ...] = ()
    until: int = 0
    following: StreamPacket | None = None

    def at(self, target: int) -> VideoFrame | None:
        """The last frame at or before a time in ticks."""
        return next((f for f in reversed(self.frames) if _pts(f) <= target), None)

    def covers(self, stream: int, target: int) -> bool:
        """Whether the frame that is shown at a time is among them."""
        if stream != self.stream or not self.frames:
            return False
        return _pts(self.frames[0]) <= target < self.until


def copy_of(frame: VideoFrame) -> VideoFrame:
    """A frame with the same samples, times and description, and memory of its own."""
    copied = VideoFrame(frame.width, frame.height, frame.format.name)
    for own, plane in zip(copied.planes, frame.planes, strict=True):
        rows = min(own.buffer_size // own.line_size, plane.buffer_size // plane.line_size)
        to, source = (
            np.frombuffer(memoryview(p), np.uint8, rows * p.line_size).reshape(rows, -1)
            for p in (own, plane)
        )
        across = min(to.shape[1], source.shape[1])
        to[:, :across] = source[:, :across]
    for name in _DESCRIPTION:
        setattr(copied, name, getattr(frame, name))
    return copied


def look_up(stream: Stream, packets: Iterator[StreamPacket], target: int) -> Shown | None:
    """The frame of a neural stream that is shown at a time, and what becomes ready with it.

    Frames more than 32 before it are decoded only if others need them, and those between if
    they come from the past alone (low delay: all are needed), or if the keyframe is as near.

    Args:
        packets: of the stream, from a keyframe before that time on.
        target: in ticks.

    Returns:
        None: no frame at or before that time could be decoded.
    """
    held: deque[StreamPacket] = deque()
    passed = False
    following: StreamPacket | None = None
    for packet in packets:
        if packet.content is None or (packet.pts is not None and packet.pts > target):
            following = packet
            break
        held.append(packet)
        if len(held) > _HELD:
            stream.decode(held.popleft(), show=False)
            passed = True
    if not held:
        return None
    wanted = held[-1].pts
    last = held[-1]
    cheap = not passed or stream.delay == 0
    frames: deque[VideoFrame] = deque()
    for packet in held:
        _keep(frames, stream.decode(packet, show=cheap or packet is last), target)
    while following is not None and not (frames and _pts(frames[-1]) >= (wanted or 0)):
        last = following
        _keep(frames, stream.decode(last), target)
        following = None if last.content is None else next(packets, None)
    return _shown(stream.index, frames, target, last, following)


def decode_up_to(stream: Stream, packets: Iterable[StreamPacket], target: int) -> Shown | None:
    """The same of any stream, by decoding all frames from the keyframe on.

    Returns:
        None: none could be decoded. Where all lie behind the time, the first one stands for it.
    """
    frames: deque[VideoFrame] = deque()
    for packet in packets:
        _keep(frames, stream.decode(packet), target)
        if len(frames) > 1 and _pts(frames[-1]) > target:
            break
    return _shown(stream.index, frames, target, None, None) if frames else None


def _shown(
    stream: int,
    frames: deque[VideoFrame],
    target: int,
    last: StreamPacket | None,
    following: StreamPacket | None,
) -> Shown | None:
    """Args: last: the packet that was decoded last."""
    if last is not None and not (frames and _pts(frames[0]) <= target):
        return None
    complete = last is not None and _pts(frames[-1]) == last.pts
    until = _pts(frames[-1])
    if complete and following is not None and following.pts is not None:
        until = following.pts
    while len(frames) > 1 and _size(frames) > _KEPT_BYTES and _pts(frames[-1]) > target:
        until = _pts(frames.pop())
    return Shown(stream=stream, frames=tuple(frames), until=until, following=following)


def _keep(frames: deque[VideoFrame], new: Iterable[Any], target: int) -> None:
    """Add frames; the oldest go where they are too large, the one that is wanted never."""
    frames.extend(frame for frame in new if frame.pts is not None)
    while len(frames) > 2 and _pts(frames[1]) <= target and _size(frames) > _KEPT_BYTES:
        frames.popleft()


def _pts(frame: VideoFrame) -> int:
    assert frame.pts is not None
    return frame.pts


def _size(frames: Iterable[VideoFrame]) -> int:
    return sum(plane.buffer_size for frame in frames for plane in frame.planes)
