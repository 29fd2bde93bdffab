"""Thinning: the packets of a neural stream without their higher quality levels or temporal layers.

Nothing is coded again. A packet with fewer levels is its first bytes; frames of higher temporal
layers are left out whole, since no frame of a lower one refers to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from vcfilter._bridge import BridgeError, StreamInfo
from vcfilter.bitstream import SequenceHeader, StructureKind, level_sizes, read_packet, thin
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import LAYER_MAX, LEVELS_MAX
from vcfilter.stream.source import Source


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

    Args:
        thinning: what is left.
        video: the stream. source: its file, which is read once before for a bitrate.

    Raises:
        ConfigError: the stream's temporal layers depend on each other, or a pipe would have to be
            read twice.
        MediaError: the source cannot be read.
    """

    def __init__(self, thinning: Thinning, video: StreamInfo, source: Source) -> None:
        self._temporal = thinning.temporal
        self._levels = LEVELS_MAX if thinning.levels is None else thinning.levels
        self._gops: Iterator[int] | None = None
        if thinning.temporal is not None and _structure(video) is StructureKind.LOW_DELAY:
            raise ConfigError(
                f"{source.title} has low delay: its frames refer to all temporal layers, none can "
                "be left out"
            )
        if thinning.bitrate is not None:
            if source.is_pipe:
                raise ConfigError("a bitrate needs a file to read twice, not a pipe")
            self._gops = iter(self._choose(thinning.bitrate, video, source))

    def thin(self, data: bytes) -> bytes | None:
        """What is left of the next packet; None: nothing. A damaged one stays as it is."""
        try:
            header = read_packet(data).header
        except BitstreamError:
            return data
        step = header.step
        if self._gops is not None and not step.references:
            self._levels = next(self._gops, self._levels)
        if self._temporal is not None and step.layer >= self._temporal:
            return None
        return thin(data, self._levels)

    def _choose(self, bitrate: int, video: StreamInfo, source: Source) -> list[int]:
        """Levels of each GOP."""
        gops: list[_Gop] = []
        with source.demuxer() as demuxer:
            while True:
                try:
                    packet = demuxer.read_packet()
                except BridgeError:
                    break  # as far as it goes: the copy says so
                if packet is None:
                    break
                if packet.stream_index != video.index or not packet.data:
                    continue
                try:
                    info = read_packet(packet.data)
                except BitstreamError:
                    continue
                ticks = packet.pts if packet.pts is not None else packet.dts or 0
                time = ticks * packet.time_base
                if info.sequence is not None or not gops:
                    if gops:
                        gops[-1].end = time
                    gops.append(_Gop(time))
                gop = gops[-1]
                gop.end = max(gop.end, time + packet.duration * packet.time_base)
                if self._temporal is None or info.header.step.layer < self._temporal:
                    gop.add(level_sizes(info))
        saved = Fraction(0)
        chosen = []
        for gop in gops:
            saved += bitrate * (gop.end - gop.start) / 8
            fitting = [k for k in range(1, self._levels + 1) if gop.sizes[k - 1] <= saved]
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
