"""More frames per second: which times get a frame, and from what it is made.

One pass over frames in display order, two frames late, four frames held. New frames are
interpolated, but for three kinds of intervals: across a scene cut, over a pause, and between a
frame and its repetition.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd, lcm
from statistics import median
from typing import TypeVar

import cv2
import numpy as np

from vcfilter.codec.scenecut import SceneCutDetector, thumbnail
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, Plane, VideoFormat
from vcfilter.interpolation.interpolator import Interpolator
from vcfilter.interpolation.net import load as load_net
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import Runtime

T = TypeVar("T")

NEAR = Fraction(1, 8)  # of an interval: an original so near to a wanted time is taken for it
PAUSE = 4  # times the usual interval: the frame stands still there
HISTORY = 9  # intervals that tell what is usual
REPEATED = 1.0  # 8-bit units: largest mean difference of an 8x8 block in a repeated frame
BLOCK = 8
RUN_MAX = 4  # repetitions in a row that are filled; a longer run is a still
FINEST = 1_000_000_000  # ticks per second


class FrameInterpolation:
    """Adds frames to a sequence of frames.

    Args:
        options: how many frames, and how.
        time_base: seconds per tick of the frames' pts.
        runtime: device and threads.
        hold: the last frame is repeated until its duration is over, so that a stream with a
            constant frame rate is as long as before.
        finished: whether the frame of a number, counted from 0, is not wanted any more: it is not
            interpolated, an original comes in its place.

    Attributes:
        time_base: seconds per tick of the frames that come out.

    Raises:
        ConfigError: the times of the frame rate need more than 10^9 ticks per second.
    """

    def __init__(
        self,
        options: InterpolationOptions,
        time_base: Fraction,
        runtime: Runtime | None = None,
        *,
        hold: bool = True,
        finished: Callable[[int], bool] | None = None,
    ) -> None:
        if options.weights:
            load_net(options.weights)  # a mistake shows at once, not at the first new frame
        self._finished = finished
        self._count = 0
        self._options = options
        self._runtime = runtime
        self._hold = hold
        self._interpolator: Interpolator | None = None
        self._times: _Divided | _Regular
        if options.fps is None:
            self._times = _Divided(options.parts)
            self._ratio = options.parts
            self.time_base = time_base if options.slow else time_base / options.parts
        else:
            self.time_base = _common(time_base, 1 / Fraction(options.fps))
            if self.time_base.denominator > FINEST:
                raise ConfigError(
                    f"fps {options.fps} and a time base of {time_base} have no common ticks"
                )
            self._times = _Regular(int(1 / Fraction(options.fps) / self.time_base))
            self._ratio = int(time_base / self.time_base)

    def frame_rate(self, rate: Fraction | None) -> Fraction | None:
        """Frames per second that come out, for the average of what goes in."""
        if self._options.fps is not None:
            return Fraction(self._options.fps)
        if rate is None or self._options.slow:
            return rate
        return rate * self._options.parts

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames and those between them, pts in ticks of `time_base`; those that are not new
        share their planes with what went in.
        """
        usual: deque[int] = deque(maxlen=HISTORY)
        before: _Entry | None = None
        a: _Entry | None = None
        b: _Entry | None = None
        for after in _with_end(self._entries(frames)):
            if a is not None and b is not None:
                usual.append(b.frame.pts - a.knots[-1])
                pause = len(usual) > 1 and usual[-1] > PAUSE * median(usual)
                yield from self._interval(before, a, b, after, pause=pause)
            before, a, b = a, b, after
        if a is not None:
            yield from self._end(before, a)

    def _entries(self, frames: Iterable[Frame]) -> Iterator[_Entry]:
        """Frames with what is known of their place; filled repetitions are left out."""
        fill = self._options.duplicates == "fill"
        last: _Entry | None = None
        for entry in _described(frames, self._ratio):
            run = last is not None and not last.repeats and len(last.knots) <= RUN_MAX
            if fill and entry.repeats and run and last is not None:
                last.knots.append(entry.frame.pts)
                last.dropped.append(entry.frame)
                continue
            if last is not None:
                yield last
            last = entry
        if last is not None:
            yield last

    def _interval(
        self,
        before: _Entry | None,
        a: _Entry,
        b: _Entry,
        after: _Entry | None,
        *,
        pause: bool,
    ) -> Iterator[Frame]:
        """The frames from a on, before b."""
        knots = [*a.knots, b.frame.pts]
        wanted = self._times.between(knots, split=not pause)
        if before is not None and (a.is_cut or a.repeats):
            before = None
        if after is not None and (after.is_cut or after.repeats):
            after = None
        span = b.frame.pts - a.frame.pts
        made: Iterator[Frame] = iter(())
        interpolated = not (b.is_cut or b.repeats or pause)
        left = [self._is_left(number, w) for number, w in enumerate(wanted, self._count)]
        self._count += len(wanted)
        if interpolated:
            shares = [
                Fraction(w.pts - a.frame.pts, span)
                for w, is_left in zip(wanted, left, strict=True)
                if is_left
            ]
            if shares:
                made = self._of(a.frame).between(
                    _frame_of(before), a.frame, b.frame, _frame_of(after), shares
                )
        for each, is_left in zip(wanted, left, strict=True):
            source = b.frame if each.near > 0 else a.frame
            if is_left:
                if interpolated:
                    source = next(made)
                elif b.is_cut:
                    source = self._at_cut(before, a, b, after, each.pts)
            yield replace(source, pts=each.pts, duration=each.duration)

    def _is_left(self, number: int, wanted: _Wanted) -> bool:
        """Whether a frame is still to be made."""
        return not wanted.near and not (self._finished is not None and self._finished(number))

    def _at_cut(
        self, before: _Entry | None, a: _Entry, b: _Entry, after: _Entry | None, pts: int
    ) -> Frame:
        """What is shown at a time between two scenes."""
        last, first = a.knots[-1], b.frame.pts
        if pts <= last:
            return a.frame
        is_first = 2 * (pts - last) <= first - last
        near, other = (a.frame, before) if is_first else (b.frame, after)
        if self._options.cut == "nearest" or other is None:
            return near
        distance = abs(near.pts - other.frame.pts)
        time = Fraction(abs(pts - near.pts), distance)
        return self._of(near).carried(near, other.frame, min(time, Fraction(1)))

    def _end(self, before: _Entry | None, last: _Entry) -> Iterator[Frame]:
        """The last frame, and what repeats it until its duration is over."""
        shown = [last.frame, *last.dropped]
        length = shown[-1].duration
        if not length and before is not None:
            length = last.knots[-1] - (last.knots[-2] if last.dropped else before.knots[-1])
        hold = self._hold and length > 0
        end = last.knots[-1] + (length if hold else 1)
        for frame, following in zip(shown, [*last.knots[1:], end], strict=True):
            for each in self._times.between([frame.pts, following], split=hold):
                duration = frame.duration if following == end and not hold else each.duration
                yield replace(frame, pts=each.pts, duration=duration)

    def _of(self, frame: Frame) -> Interpolator:
        """The interpolator for a frame's size and depth."""
        if self._interpolator is None:
            height, width = frame.y.shape
            depth = 8 if frame.y.dtype == np.uint8 else 10
            self._interpolator = Interpolator(
                VideoFormat(width=width, height=height, bit_depth=depth),
                self._options.preset,
                self._runtime,
                coded_motion=self._options.coded_motion,
                weights=self._options.weights,
                look=self._options.look,
            )
        return self._interpolator


@dataclass(slots=True, eq=False)
class _Entry:
    """A frame in its place.

    Args:
        frame: pts in ticks of the result.
        is_cut: a new scene starts with it.
        repeats: it repeats the frame before.
        knots: its time, and those of repetitions that were left out.
        dropped: these.
    """

    frame: Frame
    is_cut: bool
    repeats: bool
    knots: list[int] = field(default_factory=list)
    dropped: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.knots.append(self.frame.pts)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A frame that is to come: its time, its duration, and whether an original is taken for it:
    the earlier one (-1) or the later one (1) of an interval; 0: none.
    """

    pts: int
    duration: int
    near: int


class _Divided:
    """Each interval in equal parts."""

    def __init__(self, parts: int) -> None:
        self._parts = parts

    def between(self, knots: Sequence[int], *, split: bool) -> list[_Wanted]:
        """What is wanted from the first time on, before the last."""
        parts = self._parts if split else 1
        times = [
            start + (end - start) * part // parts
            for start, end in itertools.pairwise(knots)
            for part in range(parts)
        ]
        ends = [*times[1:], knots[-1]]
        return [
            _Wanted(time, end - time, -1 if not index else 0)
            for index, (time, end) in enumerate(zip(times, ends, strict=True))
        ]


class _Regular:
    """Times at a constant distance from the first one on."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._next: int | None = None

    def between(self, knots: Sequence[int], *, split: bool) -> list[_Wanted]:
        """What is wanted from the first time on, before the last."""
        start, end = knots[0], knots[-1]
        if self._next is None:
            self._next = start
        count = max(0, -(-(end - self._next) // self._step))
        times = [self._next + index * self._step for index in range(count)]
        self._next += count * self._step
        near = min((end - start) * NEAR, Fraction(self._step, 2))  # one time for an original
        reach = near if split else end - start
        return [
            _Wanted(time, self._step, -1 if time - start <= reach else int(end - time <= reach))
            for time in times
        ]


def _described(frames: Iterable[Frame], ratio: int) -> Iterator[_Entry]:
    """Frames in ticks of the result, one frame late: the frame after it decides on a cut."""
    detector = SceneCutDetector()
    waiting: Frame | None = None
    former: Frame | None = None
    small = None
    for frame in _with_end(frames):
        depth = 8 if frame is None or frame.y.dtype == np.uint8 else 10
        following = None if frame is None else thumbnail(frame.y, depth)
        if waiting is not None:
            assert small is not None
            is_cut = detector.is_cut(small, following)
            same = former is not None and not is_cut and repeats(former, waiting)
            yield _Entry(waiting, is_cut, same)
            former = waiting
        if frame is not None:
            waiting = replace(frame, pts=frame.pts * ratio, duration=frame.duration * ratio)
        small = following


def repeats(a: Frame, b: Frame) -> bool:
    """Whether a frame shows what another one shows, but for noise."""
    scale = 1 if a.y.dtype == np.uint8 else 4
    return all(_most(p, q) <= REPEATED * scale for p, q in zip(a.planes, b.planes, strict=True))


def _most(a: Plane, b: Plane) -> float:
    """The largest mean absolute difference of an 8x8 block."""
    apart = cv2.absdiff(a, b).astype(np.float32)
    size = (max(1, a.shape[1] // BLOCK), max(1, a.shape[0] // BLOCK))
    return float(cv2.resize(apart, size, interpolation=cv2.INTER_AREA).max())


def _frame_of(entry: _Entry | None) -> Frame | None:
    return None if entry is None else entry.frame


def _with_end(items: Iterable[T]) -> Iterator[T | None]:
    yield from items
    yield None


def _common(one: Fraction, two: Fraction) -> Fraction:
    """The largest time that both are multiples of."""
    denominator = lcm(one.denominator, two.denominator)
    return Fraction(gcd(int(one * denominator), int(two * denominator)), denominator)
