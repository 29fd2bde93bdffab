"""One reading of a source: the packets of one stream, those of copied streams into a queue."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from typing import TypeVar

from vcfilter._bridge import BridgeError, BridgePacket, Demuxer, StreamInfo
from vcfilter.errors import MediaError
from vcfilter.stream.report import Log
from vcfilter.stream.source import reason_of
from vcfilter.stream.streams import is_encrypted_packet, name_of
from vcfilter.stream.timestamps import ClockMender, Cut

T = TypeVar("T")

logger = logging.getLogger(__name__)

_CONTINUOUS = ("video", "audio")
_FURTHER_BACK = (0, 1, 3, 10, 30, 100, 300)  # seconds before the place that a seek missed


class PacketReader:
    """Reads one demuxer once: the packets of one stream, and those of others into a queue.

    Args:
        demuxer: the source.
        info: the stream whose packets are handed out.
        copied: indices of the streams whose packets are queued.
        log: where warnings go.

    Attributes:
        queue: packets of the copied streams, in the order of the file.
    """

    def __init__(
        self,
        demuxer: Demuxer,
        info: StreamInfo,
        copied: Collection[int] = (),
        log: Log = logger,
    ) -> None:
        self._demuxer = demuxer
        self._info = info
        self._copied = frozenset(copied)
        self._log = log
        self._mender = ClockMender() if demuxer.clock_may_jump else None
        self._count = 0
        self._ended = False
        self.queue: deque[BridgePacket] = deque()

    @property
    def jumps(self) -> int:
        """How often the source's clock jumped so far."""
        return self._mender.jumps if self._mender else 0

    @property
    def begin(self) -> Fraction:
        """First time of the stream in seconds, as the container states it."""
        info = self._info
        if info.start_time is not None:
            return info.start_time * info.time_base
        return self._demuxer.start_time or Fraction(0)

    def packets(self) -> Iterator[BridgePacket]:
        """The stream's packets; a file that breaks off ends early, with a warning.

        Raises:
            MediaError: it breaks off before the first packet, or a packet is encrypted.
        """
        while (packet := self._read()) is not None:
            if packet.stream_index == self._info.index:
                self._count += 1
                yield packet

    def read_on(self, end: Fraction | None) -> None:
        """Queue what follows of the copied streams, up to a time on the file's clock."""
        kinds = {info.index: info.kind for info in self._demuxer.streams}
        behind = {index for index in self._copied if kinds.get(index) not in _CONTINUOUS}
        while self._copied and (packet := self._read()) is not None:
            if end is None:
                continue
            ticks = packet.dts if packet.dts is not None else packet.pts
            if ticks is not None and ticks * packet.time_base > end:
                behind.add(packet.stream_index)
                if self._copied <= behind and ticks * packet.time_base > end + 1:
                    return

    def seek(self, time: Fraction) -> None:
        """Go to the last place at or before a time where the stream can be decoded.

        Raises:
            BridgeError: the source cannot seek.
        """
        if time <= self.begin:
            first = int(min(time, self._demuxer.start_time or self.begin) * 1_000_000)
            try:  # a search by bytes passes the first packet when it is asked for that
                self._demuxer.seek(-1, first - 1_000_000)
            except BridgeError:
                self._demuxer.seek(-1, first)
        else:
            self._demuxer.seek(self._info.index, int(time / self._info.time_base))
        self.queue.clear()
        self._ended = False
        if self._mender:
            self._mender.reset()

    def _read(self) -> BridgePacket | None:
        """The next packet; those of copied streams are in the queue as well."""
        if self._ended:
            return None
        try:
            packet = self._demuxer.read_packet()
        except BridgeError as error:
            if not self._count:
                name = self._demuxer.name
                raise MediaError(f"{name} cannot be read: {reason_of(error)}") from error
            self._log.warning(
                f"the source breaks off after {self._count} packets: {reason_of(error)}"
            )
            packet = None
        if packet is None:
            self._ended = True
            return None
        if packet.stream_index == self._info.index and is_encrypted_packet(packet):
            raise MediaError(f"{name_of(self._info)} is encrypted: it cannot be decoded")
        if self._mender:
            jumps = self._mender.jumps
            streams = self._demuxer.streams
            kind = streams[packet.stream_index].kind
            packet = self._mender.mend(packet, watched=kind in _CONTINUOUS)
            if self._mender.jumps > jumps:
                self._log.warning("the source's clock jumps: times go on from where they were")
        if packet.stream_index in self._copied:
            self.queue.append(packet)
        return packet


def decoded_from(
    reader: PacketReader,
    cut: Cut,
    decode: Callable[[], Iterator[T]],
    time_of: Callable[[T], Fraction | None],
    reset: Callable[[], None],
    log: Log,
) -> Iterator[T]:
    """What is decoded, from the start of a cut on or from before it.

    Where the first frame lies behind the start, as in containers without an index, decoding
    begins further back.
    """
    start = cut.start
    for step in _FURTHER_BACK if start is not None else ():
        assert start is not None
        target = max(start - step, reader.begin)
        if step == _FURTHER_BACK[-1]:
            target = reader.begin
        try:
            reader.seek(target)
        except BridgeError:
            log.warning("the source cannot seek: it is read from its start")
            break
        items = decode()
        first = next(items, None)
        time = None if first is None else time_of(first)
        if target <= reader.begin or (time is not None and time <= start):
            if first is not None:
                yield first
                yield from items
            return
        items.close()  # type: ignore[attr-defined]
        reset()
    yield from decode()
