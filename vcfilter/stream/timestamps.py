"""Times: a part of a file, rounding undone, order kept, jumps of a clock corrected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, lcm
from typing import Any

from vcfilter._bridge import BridgePacket, StreamInfo
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame


def rational(value: Any) -> Fraction | None:
    """PyAV's rational as a Fraction; None where it is undefined or zero.

    PyAV 18 gives None for what is not known, PyAV 19 a rational that is false.
    """
    if not value:
        return None
    return Fraction(value.numerator, value.denominator) if value.denominator else None


def nearest(value: Fraction) -> int:
    """The nearest integer, a half up, as libavformat rounds times."""
    return floor(value + Fraction(1, 2))


def seconds_of(name: str, value: float | Fraction) -> Fraction:
    """A time that was given, exactly: a float stands for the shortest decimal that it prints as.

    Raises:
        ConfigError: it is no finite number.
    """
    if isinstance(value, int | float | Fraction) and not isinstance(value, bool):
        with suppress(ValueError):  # nan and inf are none
            return Fraction(float.__repr__(value) if isinstance(value, float) else value)
    raise ConfigError(f"{name} {value!r} is not a number of seconds")


_BASE_RATE_MAX = 240
"""Base rates above are clocks, not frame rates: 1000 of Matroska, 60000 of a demuxer's guess."""


def frame_rate(info: StreamInfo) -> Fraction | None:
    """Average frames per second; None when unknown."""
    base = info.base_rate
    return info.frame_rate or (base if base and base <= _BASE_RATE_MAX else None)


def constant_rate(info: StreamInfo) -> Fraction | None:
    """Frames per second at which a container that numbers frames keeps a stream's times best."""
    rate, base = frame_rate(info), info.base_rate
    return base if rate and base and rate < base <= _BASE_RATE_MAX else rate


_USUAL_RATES = tuple(
    Fraction(*each)
    for each in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001),
        (60, 1), (120, 1),
    )
)  # fmt: skip


def rate_of_gaps(rate: Fraction, times: Iterable[Fraction], tick: Fraction) -> Fraction:
    """A frame rate at which a container that numbers frames keeps frames apart.

    Args:
        rate: the average. It is kept where no two frames are much closer than it says.
        times: of frames, in seconds.
        tick: what the times are rounded to.
    """
    shown = sorted(set(times))
    gap = min((b - a for a, b in pairwise(shown) if b - a > tick), default=None)
    if gap is None or gap > Fraction(3, 4) / rate:
        return rate
    usual = [each for each in _USUAL_RATES if abs(1 / each - gap) <= tick]
    nearest_usual = min(usual, key=lambda each: abs(1 / each - gap), default=None)
    return min(nearest_usual or Fraction(round(1 / gap)), Fraction(_BASE_RATE_MAX))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Which part of a file is wanted, in its own time.

    Args:
        start: first time in seconds, on the file's own clock; None for all from the start.
        end: first time that is not wanted; None for all to the end.
        zero: what times count from in the target where start is None.
    """

    start: Fraction | None = None
    end: Fraction | None = None
    zero: Fraction = Fraction(0)

    @property
    def offset(self) -> Fraction:
        """What is subtracted from each time, so that a cut begins at zero."""
        return self.zero if self.start is None else self.start

    @property
    def is_all(self) -> bool:
        """Whether it is the whole file."""
        return self.start is None and self.end is None

    def before(self, time: Fraction) -> bool:
        """Whether a time lies before the part."""
        return self.start is not None and time < self.start

    def after(self, time: Fraction) -> bool:
        """Whether a time lies after the part."""
        return self.end is not None and time >= self.end


class TimestampSnapper:
    """Puts back the times of a constant frame rate that a container rounded to milliseconds.

    A time that lies on the grid of the frame rate, counted from the first frame, within the
    rounding, is moved onto it, unless another one lies there already; others stay as they are.

    Attributes:
        time_base: seconds per tick of the times that come out.
    """

    _FINEST = 1_000_000

    def __init__(self, coarse: Fraction, frame_rate: Fraction) -> None:
        self._coarse = coarse
        self._rate = frame_rate
        self._first: Fraction | None = None
        self._last: int | None = None
        self.time_base = Fraction(1, lcm(coarse.denominator, frame_rate.numerator))

    @classmethod
    def over(cls, time_base: Fraction, frame_rate: Fraction | None) -> TimestampSnapper | None:
        """None where times are exact already, or the rate is odd."""
        if frame_rate is None or (1 / frame_rate / time_base).denominator == 1:
            return None
        grid = cls(time_base, frame_rate)
        return grid if grid.time_base.denominator <= cls._FINEST else None

    def place(self, pts: int, duration: int) -> tuple[int, int]:
        """A frame's time and duration, in ticks of the container, in ticks of the grid."""
        time = pts * self._coarse
        if self._first is None:
            self._first = time
        index = round((time - self._first) * self._rate)
        regular = self._first + index / self._rate
        if abs(regular - time) <= self._coarse and index != self._last:
            time = regular
            self._last = index
        length = Fraction(duration * self._coarse)
        if abs(length - 1 / self._rate) <= self._coarse:
            length = 1 / self._rate
        return round(time / self.time_base), round(length / self.time_base)


class Rising:
    """Moves times that would not rise, or would fall together when a container rounds them.

    Args:
        time_base: seconds per tick of the times.
        tick: the container's clock in seconds; None where it keeps each time exactly.

    Attributes:
        moved_count: how many times were moved.
    """

    def __init__(self, time_base: Fraction, tick: Fraction | None) -> None:
        self._time_base = time_base
        self._tick = max(tick or time_base, time_base)
        self._last: int | None = None
        self.moved_count = 0

    def place(self, pts: int) -> int:
        """The time itself, or the first one after the last one's tick."""
        ratio = self._time_base / self._tick
        count = nearest(pts * ratio)
        if self._last is not None and count <= self._last:
            self.moved_count += 1
            count = self._last + 1
            pts = ceil((count - Fraction(1, 2)) / ratio)
        self._last = count
        return pts


class FrameClock:
    """Gives frames the times that they have in a target: from its zero on, rising in its ticks.

    Args:
        time_base: seconds per tick of the frames.
        frame_rate: average frames per second; None when unknown.
        offset: seconds that are subtracted from each time.
        tick: the container's clock; None where it keeps each time exactly.
        constant_rate: the container numbers its frames.
        exact: times stay as they are; else those that were rounded to milliseconds are put back
            onto the grid of the frame rate.

    Attributes:
        time_base: seconds per tick of the frames that come out.
        frame_rate: frames per second of the track.
    """

    def __init__(
        self,
        time_base: Fraction,
        frame_rate: Fraction | None,
        *,
        offset: Fraction = Fraction(0),
        tick: Fraction | None = None,
        constant_rate: bool = False,
        exact: bool = False,
    ) -> None:
        self.frame_rate = frame_rate
        self._source_base = time_base
        self._grid = (
            None if exact or constant_rate else TimestampSnapper.over(time_base, frame_rate)
        )
        self.time_base = self._grid.time_base if self._grid else time_base
        if constant_rate and frame_rate:
            self.time_base = 1 / frame_rate
        self._offset = nearest(offset / self.time_base)
        self._rising = Rising(self.time_base, tick)

    @property
    def moved_count(self) -> int:
        """How many times were moved since they did not rise."""
        return self._rising.moved_count

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames with the target's times."""
        ratio = self._source_base / self.time_base
        for frame in frames:
            if self._grid:
                pts, duration = self._grid.place(frame.pts, frame.duration)
            else:
                pts, duration = nearest(frame.pts * ratio), nearest(frame.duration * ratio)
            yield replace(frame, pts=self._rising.place(pts - self._offset), duration=duration)


class ClockMender:
    """Takes the jumps out of the clock of a stream of packets that may have any (MPEG-TS).

    As ffmpeg does: a packet whose decoding time lies more than 10 seconds from where its stream
    should go on, or more than 0.1 seconds back, moves the clock of all streams from there on.

    Attributes:
        jumps: how often the clock was moved.
    """

    _FAR = Fraction(10)
    _BACK = Fraction(1, 10)

    def __init__(self) -> None:
        self.jumps = 0
        self.reset()

    def reset(self) -> None:
        """Forget where the streams are, as after a seek."""
        self._offset = Fraction(0)
        self._next: dict[int, Fraction] = {}
        self._latest: dict[int, Fraction] = {}
        self._step: dict[int, Fraction] = {}
        self._end: Fraction | None = None

    def mend(self, packet: BridgePacket, *, watched: bool = True) -> BridgePacket:
        """The packet, its times on a clock without jumps.

        Args:
            watched: whether its stream is continuous (video, audio); subtitles may pause.
        """
        if packet.dts is None and packet.pts is None:
            return packet
        index, base = packet.stream_index, packet.time_base
        ticks = packet.dts if packet.dts is not None else packet.pts
        assert ticks is not None
        time = ticks * base + self._offset
        if watched:
            self._watch(index, time)
            time = ticks * base + self._offset
            length = packet.duration * base
            if not length and index in self._latest:
                length = self._step.get(index, Fraction(0))
            if index in self._latest and time > self._latest[index]:
                self._step[index] = time - self._latest[index]
            self._latest[index] = time
            self._next[index] = time + length
            self._end = time + length
        if not self._offset:
            return packet
        shift = round(self._offset / base)
        return replace(
            packet,
            pts=None if packet.pts is None else packet.pts + shift,
            dts=None if packet.dts is None else packet.dts + shift,
        )

    def _watch(self, index: int, time: Fraction) -> None:
        expected = self._next.get(index, self._end)
        if expected is None:
            return
        delta = time - expected
        back = index in self._latest and time + self._BACK < self._latest[index]
        if abs(delta) > self._FAR or back:
            self._offset -= delta
            self.jumps += 1


def shifted(packet: BridgePacket, offset: Fraction) -> BridgePacket:
    """The packet, its times counted from offset (seconds), exact to a nanosecond."""
    if not offset:
        return packet
    base = packet.time_base
    if (offset / base).denominator != 1:
        base = Fraction(1, 10**9)

    def shift(value: int | None) -> int | None:
        return None if value is None else round((value * packet.time_base - offset) / base)

    return replace(
        packet,
        pts=shift(packet.pts),
        dts=shift(packet.dts),
        duration=round(packet.duration * packet.time_base / base),
        time_base=base,
    )
