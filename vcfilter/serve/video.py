"""One video that is served: what is in it, and the decoded frames of its segments."""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from av.video.frame import VideoFrame

from vcfilter.bitstream import PacketReader, SequenceHeader, StructureKind
from vcfilter.errors import BitstreamError, MediaError
from vcfilter.frames import Frame, FrameType, VideoFormat
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.interpolation.sequence import FrameInterpolation
from vcfilter.models import store
from vcfilter.options import LOOKS, DecoderOptions, Runtime
from vcfilter.serve.steps import Step, ThroughputMeter, steps_for
from vcfilter.serve.work import StoppedError
from vcfilter.stream.input import open as open_video
from vcfilter.stream.pixels import to_video_frame
from vcfilter.stream.timestamps import TimestampSnapper

T = TypeVar("T")

SEGMENT_SECONDS = Fraction(1)
"""A segment for the browser ends at the first keyframe after so long; the first one at the first
keyframe of all, so that playing starts soon."""

SEGMENT_FRAMES = 240
"""It also ends at the first keyframe after so many frames: times in a file may be anything."""


_SMOOTH = InterpolationOptions(factor=2, preset="fast", coded_motion=True)


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """One packet of the video stream.

    Args:
        pts: in ticks of the video.
        size: bytes.
        kind: KEY or INTER; a damaged packet counts as INTER at layer 0.
        layer: temporal layer.
        qp: quantiser parameter; -1 of a damaged packet.
        needs_next: it refers to the keyframe that follows its GOP.
        start: no frame before it in its GOP refers to it or to a later one.
    """

    pts: int
    size: int
    kind: FrameType
    layer: int
    qp: int
    needs_next: bool
    start: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the video that is decoded and sent at once.

    Args:
        first, end: indices of its frames in VideoFile.frames.
        start, stop: seconds on the page's clock, which begins with the first frame.
        size: bytes of its packets.
    """

    first: int
    end: int
    start: Fraction
    stop: Fraction
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """The video's first audio stream.

    Args:
        index: of the stream in the file.
        codec: FFmpeg's name.
        rate: samples per second.
        frame_size: samples per packet; 0 unknown or variable.
        first_pts: of its first packet, in ticks of time_base.
        time_base: seconds per tick.
        exact: where packets begin whose samples could be counted (PCM), in samples of the file's
            clock, by their pts.
    """

    index: int
    codec: str
    rate: int
    frame_size: int
    first_pts: int
    time_base: Fraction
    exact: dict[int, int]

    def clock(self) -> Callable[[int, int], tuple[Fraction, Fraction]]:
        """Turns (pts, duration) in ticks into seconds, undoing the container's rounding."""
        grid = None
        if self.frame_size:
            grid = TimestampSnapper.over(self.time_base, Fraction(self.rate, self.frame_size))
        if grid:
            grid.place(self.first_pts, 0)

        def seconds(pts: int, duration: int) -> tuple[Fraction, Fraction]:
            if pts in self.exact:
                return Fraction(self.exact[pts], self.rate), duration * self.time_base
            if grid:
                ticks, length = grid.place(pts, duration)
                return ticks * grid.time_base, length * grid.time_base
            return pts * self.time_base, duration * self.time_base

        return seconds


@dataclass(slots=True)
class _Reading:
    """A file that is being decoded.

    Args:
        container, stream, packets: the open file. begin: where in it decoding began, in ticks.
        look: of its frames.
        waiting: the first packet of the next segment, which was read already.
    """

    container: Any
    stream: Any
    packets: Iterator[Any]
    begin: int
    look: str
    waiting: Any = None


class VideoFile:
    """A video's index, made in one pass over its packets, without decoding.

    Args:
        path: of the file.
        options: how it is decoded.
        runtime: where the networks run.
        original: what it was coded from, for comparisons.

    Attributes:
        frames: the packets of the video stream, in display order.
        segments: what browsers ask for.
        levels: its operating points, rising: numbers of quality levels, 1 the base.
        steps: its quality steps, the best first.
        speed: what decoding cost so far. is_warm: whether a frame was decoded already.

    Raises:
        MediaError: it cannot be read or holds no keyframe.
    """

    def __init__(
        self,
        path: Path,
        options: DecoderOptions,
        *,
        runtime: Runtime | None = None,
        original: Path | None = None,
    ) -> None:
        self.path = path
        self.original = original
        self._options = options
        self._runtime = runtime
        status = path.stat()
        identity = f"{path}:{status.st_mtime_ns}:{status.st_size}"
        self.key = hashlib.blake2b(os.fsencode(identity), digest_size=8).hexdigest()
        self.frames: list[CodedFrame] = []
        self.audio: Audio | None = None
        present = {0}  # quality levels
        with open_video(path, options=options, runtime=runtime) as container:
            stream = container.streams.video[0]
            audio_streams = container.streams.audio[:1]
            self.time_base = stream.time_base
            self.rate = stream.average_rate
            self._header = _header(stream.info.extradata)
            self._reader = PacketReader()
            self._farthest = 0  # number of the last frame of the GOP that is referred to so far
            end = position = block = 0
            for packet in container.demux(stream, *audio_streams):
                content = packet.content
                if content is None or content.pts is None:
                    continue
                if packet.stream is not stream:
                    if self.audio is None:
                        info = packet.stream.info
                        assert info is not None  # of a container that was opened for reading
                        self.audio = Audio(
                            index=info.index,
                            codec=info.codec,
                            rate=info.sample_rate,
                            frame_size=info.frame_size,
                            first_pts=content.pts,
                            time_base=content.time_base,
                            exact={},
                        )
                        block = _block_bytes(info)
                    if block:
                        position = self._count(content.pts, position)
                        position += len(content.data) // block
                    continue
                self.frames.append(self._coded(content.data, content.pts, present))
                end = content.pts + content.duration
        while self.frames and self.frames[0].kind is not FrameType.KEY:
            del self.frames[0]  # nothing to decode them from
        if not self.frames or self._header is None:
            raise MediaError(f"{path.name} has no keyframe that can be read")
        last = self.frames[-1].pts
        if len(self.frames) > 1:
            step = (last - self.frames[0].pts) / (len(self.frames) - 1)
        else:
            step = float(1 / ((self.rate or 25) * self.time_base))
        self._end = end if end > last else last + max(1, round(step))
        self._pts = [frame.pts for frame in self.frames]
        self._rates: dict[Step, float] = {}
        self.levels = tuple(level + 1 for level in sorted(present))
        self.steps = steps_for(self.levels)
        self.speed = ThroughputMeter(self.levels)
        self.is_warm = False
        self.origin = self._pts[0] * self.time_base
        self.segments = self._cut()
        self._reading: _Reading | None = None

    @property
    def header(self) -> SequenceHeader:
        """The sequence header of the first keyframe."""
        assert self._header is not None
        return self._header

    @property
    def video_format(self) -> VideoFormat:
        """Size, depth and colour of the frames."""
        return self.header.video_format

    @property
    def looks(self) -> tuple[str, ...]:
        """Looks that its frames can have: with a finish for its model all, else the natural one."""
        model = self.header.model_id.hex()
        finished = any(entry.belongs == model for entry in store.list_finishes())
        return LOOKS if finished else LOOKS[:1]

    @property
    def seconds(self) -> Fraction:
        """How long it plays."""
        return self.segments[-1].stop

    @property
    def keyframe_distance(self) -> int:
        """Frames between keyframes at most."""
        keys = [i for i, frame in enumerate(self.frames) if frame.kind is FrameType.KEY]
        return max(b - a for a, b in pairwise([*keys, len(self.frames)]))

    @property
    def frames_per_second(self) -> float:
        """On average."""
        return len(self.frames) / float(self.seconds)

    def time_of(self, index: int) -> Fraction:
        """When a frame is shown, in seconds on the page's clock."""
        pts = self._pts[index] if index < len(self._pts) else self._end
        return pts * self.time_base - self.origin

    def frame_at(self, seconds: float) -> int:
        """Index of the frame that is shown at a time."""
        ticks = (Fraction(seconds) + self.origin) / self.time_base + Fraction(1, 2)
        return max(0, bisect_right(self._pts, ticks) - 1)

    def segment_of(self, frame: int) -> int:
        """Number of the segment that a frame belongs to."""
        return bisect_right([segment.first for segment in self.segments], frame) - 1

    def kept(self, number: int, step: Step) -> list[int]:
        """Indices of the frames of a segment that are shown in a step.

        Frames of the deepest temporal layers are left out first: no other frame needs them. What
        is left, and what has no such layers, is thinned out evenly.
        """
        segment = self.segments[number]
        kept = list(range(segment.first, segment.end))
        most = max(1.0, step.share * len(kept))
        layer = max(self.frames[i].layer for i in kept)
        if self.header.structure is StructureKind.LOW_DELAY:
            layer = 0
        while len(kept) > most and layer > 0:
            kept = [i for i in kept if self.frames[i].layer < layer]
            layer -= 1
        return kept[:: ceil(len(kept) / most)]

    def rate_of(self, step: Step) -> float:
        """Frames per second that a step shows, on average."""
        if step not in self._rates:
            count = sum(len(self.kept(number, step)) for number in range(len(self.segments)))
            self._rates[step] = count / float(self.seconds)
        return self._rates[step]

    def speeds(self) -> dict[str, float | None]:
        """Seconds of video per second of work, of each step."""
        return {step.name: self.speed.speed(step, self.rate_of(step)) for step in self.steps}

    def decoded(
        self, number: int, step: Step, stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The decoded frames of a segment: (index in `frames`, frame).

        Args:
            stopped: called between packets; StoppedError is raised where it returns True.

        Raises:
            StoppedError: it was given up.
            MediaError: the file cannot be read any more.
        """
        for index, frame, fmt in self._decoded(number, step, stopped):
            yield index, to_video_frame(frame, fmt, self.time_base)

    def shown(
        self, number: int, step: Step, stopped: Callable[[], bool]
    ) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """The frames of a segment, and those between them where the step is smooth: (start, end,
        frame), in seconds on the page's clock.

        Args, raises: as of `decoded`.
        """
        last: tuple[Fraction, VideoFrame] | None = None
        for start, frame in self._timed(number, step, stopped):
            if last is not None:
                yield last[0], start, last[1]
            last = start, frame
        if last is not None:
            yield last[0], self.segments[number].stop, last[1]

    def _timed(
        self, number: int, step: Step, stopped: Callable[[], bool]
    ) -> Iterator[tuple[Fraction, VideoFrame]]:
        if not step.smooth:
            for index, shown in self.decoded(number, step, stopped):
                yield self.time_of(index), shown
            return
        stage = FrameInterpolation(_SMOOTH, self.time_base, self._runtime, hold=False)
        formats: list[VideoFormat] = []

        def frames() -> Iterator[Frame]:
            for _, frame, fmt in self._decoded(number, step, stopped):
                formats.append(fmt)
                yield frame

        for frame in stage(frames()):
            start = frame.pts * stage.time_base - self.origin
            yield start, to_video_frame(frame, formats[0], stage.time_base)

    def _decoded(
        self, number: int, step: Step, stopped: Callable[[], bool]
    ) -> Iterator[tuple[int, Frame, VideoFormat]]:
        segment = self.segments[number]
        wanted = {self._pts[i]: i for i in self.kept(number, step)}
        reading = self._continued(segment, step.look)
        reading.stream.levels = step.levels  # also within a GOP: frames refer to what is there
        complete = False
        try:
            for frame in self._decode(reading, segment, set(wanted), stopped):
                index = wanted.pop(frame.pts, None)
                fmt = reading.stream.video_format
                if index is not None and fmt is not None:
                    yield index, frame, fmt
            complete = True
        finally:
            done: _Reading | None = reading
            if complete and reading.waiting is not None:
                done, self._reading = self._reading, reading
            if done is not None:
                done.container.close()

    def _continued(self, segment: Segment, look: str) -> _Reading:
        """The file, read up to a segment: from the segment before it, or from its keyframe on."""
        reading, self._reading = self._reading, None
        if reading is not None:
            next_pts = None if reading.waiting is None else reading.waiting.pts
            if (next_pts, reading.look) == (self._pts[segment.first], look):
                return reading
            reading.container.close()
        options = replace(self._options, look=look)
        container = open_video(self.path, options=options, runtime=self._runtime)
        stream = container.streams.video[0]
        key = segment.first
        while self.frames[key].kind is not FrameType.KEY:
            key -= 1
        container.seek(self._pts[key], stream=stream)
        return _Reading(container, stream, container.demux(stream), self._pts[key], look)

    def _decode(
        self, reading: _Reading, segment: Segment, wanted: set[int], stopped: Callable[[], bool]
    ) -> Iterator[Frame]:
        """The frames whose times are wanted; others are decoded only if those need them."""
        needs_next = any(frame.needs_next for frame in self.frames[segment.first : segment.end])
        waiting, reading.waiting = reading.waiting, None
        packets = reading.packets if waiting is None else chain((waiting,), reading.packets)
        for packet in packets:
            if stopped():
                raise StoppedError
            if packet.pts is None:
                break
            if packet.pts < reading.begin:
                continue
            if segment.end < len(self._pts) and packet.pts >= self._pts[segment.end]:
                if needs_next:
                    yield from reading.stream.decode_frames(packet, show=False)
                elif self.frames[segment.end].kind is not FrameType.KEY:
                    reading.waiting = packet  # the next segment goes on from here
                return
            yield from reading.stream.decode_frames(packet, show=packet.pts in wanted)
        yield from reading.stream.decode_frames(None)

    def _count(self, pts: int, expected: int) -> int:
        """Where a PCM packet begins: where the one before ended, unless its time differs."""
        audio = self.audio
        assert audio is not None
        stated = pts * audio.time_base * audio.rate
        if not audio.exact or abs(stated - expected) > 2 * audio.time_base * audio.rate:
            expected = round(stated)
        audio.exact[pts] = expected
        return expected

    def _coded(self, data: bytes, pts: int, present: set[int]) -> CodedFrame:
        try:
            info = self._reader.read(data)
        except BitstreamError:
            return CodedFrame(pts, len(data), FrameType.INTER, 0, -1, False, False)
        present.update(section.level for section in info.sections)
        if self._header is None:
            self._header = info.sequence
        step, needs_next = info.header.step, info.header.next_key is not None
        if step.type is FrameType.KEY:
            self._farthest = 0
        start = self._farthest < step.number or step.type is FrameType.KEY
        self._farthest = max(self._farthest, *step.reference_numbers, step.number)
        return CodedFrame(pts, len(data), step.type, step.layer, step.qp, needs_next, start)

    def _cut(self) -> list[Segment]:
        """Segments that end where what is shown needs nothing that comes later, each long enough
        to be worth a request."""
        starts = [0]
        for index, frame in enumerate(self.frames):
            length = self.time_of(index) - self.time_of(starts[-1])
            enough = SEGMENT_SECONDS if len(starts) > 1 else Fraction(1, 1000)
            if frame.kind is not FrameType.KEY:  # a keyframe is the better place
                enough = 2 * SEGMENT_SECONDS if len(starts) > 1 else SEGMENT_SECONDS
            long = length >= enough or index - starts[-1] >= SEGMENT_FRAMES
            if frame.start and long:
                starts.append(index)
        ends = [*starts[1:], len(self.frames)]
        return [
            Segment(
                first=first,
                end=end,
                start=self.time_of(first),
                stop=self.time_of(end),
                size=sum(frame.size for frame in self.frames[first:end]),
            )
            for first, end in zip(starts, ends, strict=True)
        ]


def measured(items: Iterator[T], cost: list[float]) -> Iterator[T]:
    """The same items; cost[0] grows by the seconds that each took to make."""
    while True:
        began = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            cost[0] += time.perf_counter() - began
            return
        cost[0] += time.perf_counter() - began
        yield item


def _block_bytes(info: Any) -> int:
    """Bytes of one sample of all channels of PCM; 0 of other audio."""
    if not info.codec.startswith("pcm_"):
        return 0
    bits: int = info.bits_per_coded_sample or info.bits_per_raw_sample
    return int(info.block_align or info.channels * bits // 8)


def _header(extradata: bytes) -> SequenceHeader | None:
    try:
        return SequenceHeader.read(extradata)
    except BitstreamError:
        return None
