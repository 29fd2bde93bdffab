"""Thinning: the packets of a neural stream without their higher quality levels or temporal layers.

Nothing is coded again. A packet with fewer levels is its first bytes; frames of higher temporal
layers are left out whole, since no frame of a lower one refers to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from vcfilter._bridge import BridgeError, BridgePacket, StreamInfo
from vcfilter.bitstream import SequenceHeader, StructureKind, level_sizes, read_packet
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import LAYER_MAX, LEVELS_MAX
from vcfilter.stream.source import Source
from vcfilter.stream.timestamps import constant_rate, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinning:
    """What is left of a neural stream.

    Args:
        levels: quality levels that stay, 1 (the base) to 8; None: all.
        bitrate: bit/s of the video that is not to be exceeded: levels are chosen for each GOP, and
            what one leaves the next may use. The bases stay whatever they take.
        temporal: temporal layers that stay, 1 (the keyframes) to 8; None: all.

    Raises:
        ConfigError: a value is out of range, or neither is given.
    """

    levels: int | None = None
    bitrate: int | None = None
    temporal: int | None = None

    def __post_init__(self) -> None:
        if self.levels is None and self.bitrate is None and self.temporal is None:
            raise ConfigError("thinning needs layers, a bitrate or temporal layers")
        if self.levels is not None and not 1 <= self.levels <= LEVELS_MAX:
            raise ConfigError(f"layers {self.levels} is outside 1 to {LEVELS_MAX}")
        if self.bitrate is not None and self.bitrate < 1000:
            raise ConfigError(f"bitrate {self.bitrate} bit/s is below 1000")
        if self.temporal is not None and not 1 <= self.temporal <= LAYER_MAX + 1:
            raise ConfigError(f"temporal layers {self.temporal} is outside 1 to {LAYER_MAX + 1}")


class Thinner:
    """Thins the packets of one stream, given in their order.

    For a bitrate or temporal layers the source is read once before; a pipe cannot be.

    Args:
        thinning: what is left.
        video: the stream. source: its file.

    Attributes:
        frame_rate: frames per second of what is left; None: unknown or variable.

    Raises:
        ConfigError: the stream's temporal layers depend on each other, or a pipe would have to be
            read twice.
        MediaError: the source cannot be read.
    """

    def __init__(self, thinning: Thinning, video: StreamInfo, source: Source) -> None:
        self._temporal = thinning.temporal
        self._levels = LEVELS_MAX if thinning.levels is None else thinning.levels
        self._gops: Iterator[int] = iter(())
        self._began = False
        self._durations: Iterator[int] = iter(())
        self.frame_rate = video.frame_rate
        if thinning.temporal is not None and _structure(video) is StructureKind.LOW_DELAY:
            raise ConfigError(
                f"{source.title} has low delay: its frames refer to all temporal layers, none can "
                "be left out"
            )
        if source.is_pipe:
            if thinning.bitrate is not None:
                raise ConfigError("a bitrate needs a file to read twice, not a pipe")
            if thinning.temporal is not None:
                self.frame_rate = None
        elif thinning.bitrate is not None or thinning.temporal is not None:
            recorder = _Recorder(video, source, self._temporal)
            if thinning.bitrate is not None:
                self._gops = iter(_choose(thinning.bitrate, recorder.gops, self._levels))
            if thinning.temporal is not None:
                self._durations = iter(recorder.durations())
                self.frame_rate = recorder.frame_rate(constant_rate(video))

    def thin(self, packet: BridgePacket) -> BridgePacket | None:
        """What is left of the next packet; None: nothing. A damaged one stays as it is."""
        data = packet.data
        try:
            info = read_packet(data)
        except BitstreamError:
            pass
        else:
            step = info.header.step
            if not step.references or not self._began:  # a stream may begin within a GOP
                self._levels = next(self._gops, self._levels)
            self._began = True
            if self._temporal is not None and step.layer >= self._temporal:
                return None
            data = data[: level_sizes(info)[min(self._levels, LEVELS_MAX) - 1]]
        return replace(packet, data=data, duration=next(self._durations, packet.duration))


class _Recorder:
    """What a stream's packets are, read once.

    Args:
        temporal: temporal layers that stay; None: all.

    Attributes:
        gops: of the frames that stay.
    """

    def __init__(self, video: StreamInfo, source: Source, temporal: int | None) -> None:
        self.gops: list[_Gop] = []
        self._pts: list[int] = []  # of the packets that stay, in ticks
        self._time_base = video.time_base
        self._end = 0  # of all packets
        with source.demuxer() as demuxer:
            while True:
                try:
                    packet = demuxer.read_packet()
                except BridgeError:
                    break  # as far as it goes: the copy says so
                if packet is None:
                    break
                if packet.stream_index == video.index and packet.data:
                    self._add(packet, temporal)

    def _add(self, packet: BridgePacket, temporal: int | None) -> None:
        ticks = packet.pts if packet.pts is not None else packet.dts or 0
        self._time_base = packet.time_base
        self._end = max(self._end, ticks + packet.duration)
        try:
            info = read_packet(packet.data)
        except BitstreamError:
            self._pts.append(ticks)  # damaged packets stay
            return
        time = ticks * packet.time_base
        if info.sequence is not None or not self.gops:
            if self.gops:
                self.gops[-1].end = time
            self.gops.append(_Gop(time))
        gop = self.gops[-1]
        gop.end = max(gop.end, time + packet.duration * packet.time_base)
        if temporal is None or info.header.step.layer < temporal:
            gop.add(level_sizes(info))
            self._pts.append(ticks)

    def durations(self) -> list[int]:
        """Of each packet that stays, in ticks: up to the next one."""
        following = [*self._pts[1:], max(self._end, *self._pts[-1:], 0)]
        return [max(0, b - a) for a, b in zip(self._pts, following, strict=True)]

    def frame_rate(self, rate: Fraction | None) -> Fraction | None:
        """Of what stays, frames per second; None: it varies.

        Args:
            rate: of the source.
        """
        if not rate:
            return None
        passed = {nearest(d * self._time_base * rate) for d in self.durations()[:-1]}
        every = passed.pop() if len(passed) == 1 else 0
        return rate / every if every else None


def _choose(bitrate: int, gops: Sequence[_Gop], levels: int) -> list[int]:
    """Levels of each GOP."""
    saved = Fraction(0)
    chosen = []
    for gop in gops:
        saved += bitrate * (gop.end - gop.start) / 8
        fitting = [k for k in range(1, levels + 1) if gop.sizes[k - 1] <= saved]
        chosen.append(max(fitting, default=1))
        saved = max(saved - gop.sizes[chosen[-1] - 1], Fraction(0))
    return chosen


class _Gop:
    """A GOP's times in seconds, and its bytes by the number of levels that stay."""

    def __init__(self, start: Fraction) -> None:
        self.start = self.end = start
        self.sizes = [0] * LEVELS_MAX

    def add(self, sizes: tuple[int, ...]) -> None:
        """Count a packet."""
        self.sizes = [total + size for total, size in zip(self.sizes, sizes, strict=True)]


def _structure(video: StreamInfo) -> StructureKind | None:
    try:
        return SequenceHeader.read(video.extradata).structure
    except BitstreamError:
        return None
