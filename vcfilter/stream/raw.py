"""Raw neural streams, `.vcf`: the packets of one picture track with their times, nothing else.

A file may be written to and read from a pipe, and files may be joined end to end (`cat a.vcf
b.vcf`). All integers are little-endian. A part begins with 16 bytes of head: the magic
`VCFRAW1\\n`, the time base's numerator and denominator (u32 each). Packets follow: 16 bytes (u32
length, s64 pts, u32 duration, both in ticks) and the packet's bytes. Where a packet would begin
another part's head may stand; its times count from the end of what came before.

RawDemuxer and RawMuxer stand in for the bridge's Demuxer and Muxer, which know no such format.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import IO, Any, Self, TypeAlias

from vcfilter._bridge import (
    BridgeError,
    BridgePacket,
    Chapter,
    Demuxer,
    InvalidDataError,
    Muxer,
    StreamInfo,
    supports,
)
from vcfilter.bitstream import SequenceHeader
from vcfilter.errors import BitstreamError
from vcfilter.frames import MAX_PIXELS
from vcfilter.stream.timestamps import Grid
from vcfilter.stream.track import is_neural, neural_track

RAW = "vcf"
"""The format's name, beside FFmpeg's names of containers."""

MAGIC = b"VCFRAW1\n"
PACKET_BYTES_MAX = 8 * MAX_PIXELS + 4096
"""Longest packet of any picture (docs/bitstream.md); a greater length is damage."""

_HEAD = struct.Struct("<8sII")
_RECORD = struct.Struct("<IqI")
_HEAD_BYTES = _HEAD.size  # a head and a packet's fields are of one size
_PEEK_PACKETS = 130  # two of the longest segments: a keyframe is among them
_TICKS_MAX = 1 << 62
_MICROSECONDS = Fraction(1, 1_000_000)

MediaDemuxer: TypeAlias = "Demuxer | RawDemuxer"
MediaMuxer: TypeAlias = "Muxer | RawMuxer"


def open_demuxer(file: Any) -> MediaDemuxer:
    """A demuxer for a path or binary file object: a raw one if it begins with the magic.

    Raises:
        BridgeError: it cannot be read, or is no media file.
    """
    if hasattr(file, "read"):
        start = _take(file, len(MAGIC))
        if _can_seek(file):
            file.seek(-len(start), os.SEEK_CUR)
        else:
            file = _Rest(file, start)
        return RawDemuxer(file) if start == MAGIC else Demuxer(file)
    name = os.fspath(file)
    if os.path.isfile(name):
        try:
            with open(name, "rb") as opened:
                raw = opened.read(len(MAGIC)) == MAGIC
        except OSError:
            raw = False  # the bridge says why
        if raw:
            return RawDemuxer(name)
    return Demuxer(name)


def open_muxer(file: Any, container: str) -> MediaMuxer:
    """A muxer for a path or binary file object and a container's name."""
    return RawMuxer(file) if container == RAW else Muxer(file, container)


def holds(container: str, info: StreamInfo) -> bool:
    """Whether a container can hold a stream."""
    return is_neural(info) if container == RAW else supports(container, info)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One of the joined files: its time base, and where its times count from (in output ticks)."""

    time_base: Fraction
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a keyframe lies: its byte, its time in output ticks, its part."""

    byte: int
    pts: int
    part: _Part


class RawDemuxer:
    """Reads a raw stream, from a file (with seek) or a pipe.

    Args:
        source: path, or binary file object (not closed).

    Raises:
        BridgeError: it cannot be read.
        InvalidDataError: it is no raw stream, or has no keyframe to begin with.
    """

    format_name = RAW

    def __init__(self, source: Any) -> None:
        self._owned = not hasattr(source, "read")
        self.name = str(os.fspath(source) if self._owned else getattr(source, "name", "stream"))
        self._file: Any = source
        if self._owned:
            try:
                self._file = open(source, "rb")  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise BridgeError(error.errno or errno.EIO, error.strerror or "", self.name) from (
                    error
                )
        self.metadata: dict[str, str] = {}
        self.chapters: tuple[Chapter, ...] = ()
        self._held: deque[BridgePacket] = deque()
        self._failure: BridgeError | None = None
        self._index: list[_Place] = []
        self._end = 0  # of the newest packet, in output ticks
        self._step = 1
        self._last: int | None = None
        try:
            head = _take(self._file, _HEAD_BYTES)
            if len(head) < _HEAD_BYTES or head[: len(MAGIC)] != MAGIC:
                raise self._damage("it does not begin with a raw stream's head")
            self._part = _Part(time_base=self._time_base(head))
            self.time_base = self._part.time_base
            self._first_byte = self._file.tell() if _can_seek(self._file) else None
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Find out what the stream is: from its first packets, and all heads if it can seek."""
        first = self._part
        header: SequenceHeader | None = None
        while header is None and len(self._held) < _PEEK_PACKETS:
            try:
                packet = self._next()
            except BridgeError as error:
                self._failure = error
                break
            if packet is None:
                break
            self._held.append(packet)
            if packet.is_keyframe:
                try:
                    header = SequenceHeader.read(packet.data)
                except BitstreamError:
                    continue
        if header is None:
            raise self._failure or self._damage("it has no keyframe to begin with")
        start = self._held[0].pts
        duration = None
        packets = 1
        if self._first_byte is not None:
            packets = self._scan(first)
            duration = self._end - (start or 0)
            self._rewind(_Place(byte=self._first_byte, pts=start or 0, part=first))
        step = self._held[0].duration if self._held else 0
        rate = 1 / (step * self.time_base) if step else None
        if duration and (rate is None or self._regular is False):
            rate = Fraction(packets / (duration * self.time_base)).limit_denominator(1001)
        self.streams: tuple[StreamInfo, ...] = (
            replace(
                neural_track(header.video_format, header.write(), self.time_base, rate, {}),
                start_time=start,
                duration=duration,
            ),
        )
        if self._first_byte is not None:
            self._held.clear()

    _regular = True

    def _scan(self, first: _Part) -> int:
        """Index the keyframes of a file without reading its packets; returns their number."""
        assert self._first_byte is not None
        self._rewind(_Place(byte=self._first_byte, pts=0, part=first))
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._first_byte)
        count, step = 0, None
        while True:
            place = self._file.tell()
            try:
                record = self._record()
            except BridgeError:
                break  # told when it is read
            if record is None:
                break
            length, pts, duration = record
            if size - self._file.tell() < length:
                break
            byte = self._file.read(1)
            if byte and not byte[0] & 0x80:
                self._index.append(_Place(byte=place, pts=pts, part=self._part))
            self._file.seek(length - 1, os.SEEK_CUR)
            self._passed(pts, duration)
            step = duration if step is None else step
            self._regular = self._regular and duration == step
            count += 1
        return count

    @property
    def duration(self) -> Fraction | None:
        """In seconds, of a file; None of a pipe."""
        ticks = self.streams[0].duration
        return None if ticks is None else ticks * self.time_base

    @property
    def start_time(self) -> Fraction | None:
        """Of the first packet, in seconds."""
        ticks = self.streams[0].start_time
        return None if ticks is None else ticks * self.time_base

    def read_packet(self) -> BridgePacket | None:
        """The next packet; None at the end.

        Raises:
            BridgeError: the stream is damaged or breaks off here.
        """
        if self._held:
            return self._held.popleft()
        if self._failure is not None:
            raise self._failure
        return self._next()

    def seek(self, stream_index: int, timestamp: int, backward: bool = True) -> None:
        """Go to a keyframe: the last one at or before a time, else the first at or after it.

        Args:
            stream_index: 0, or -1 for a timestamp in microseconds.
            timestamp: in ticks of the time base.

        Raises:
            BridgeError: a pipe cannot seek, or there is no such keyframe.
        """
        if self._first_byte is None:
            raise BridgeError(errno.ESPIPE, "a pipe cannot seek", self.name)
        ticks = Fraction(timestamp)
        if stream_index < 0:
            ticks = timestamp * _MICROSECONDS / self.time_base
        if backward:
            found = [place for place in self._index if place.pts <= ticks][-1:] or self._index[:1]
        else:
            found = [place for place in self._index if place.pts >= ticks][:1]
        if not found:
            raise BridgeError(errno.EINVAL, "there is no keyframe in that direction", self.name)
        self._rewind(found[0])

    def close(self) -> None:
        """Close a file that was given by its path."""
        if self._owned:
            self._file.close()

    def _rewind(self, place: _Place) -> None:
        self._file.seek(place.byte)
        self._held.clear()
        self._failure = None
        self._part = place.part
        self._end, self._last = place.pts, None

    def _next(self) -> BridgePacket | None:
        place = self._record()
        if place is None:
            return None
        length, pts, duration = place
        data = _take(self._file, length)
        if len(data) < length:
            raise self._damage("it ends in the middle of a packet")
        self._passed(pts, duration)
        return BridgePacket(
            stream_index=0,
            data=data,
            pts=pts,
            dts=pts,
            duration=duration,
            is_keyframe=not data[0] & 0x80,
            time_base=self.time_base,
        )

    def _record(self) -> tuple[int, int, int] | None:
        """(length, pts, duration) of the next packet, in output ticks; None at the end."""
        while True:
            head = _take(self._file, _HEAD_BYTES)
            if not head:
                return None
            if len(head) < _HEAD_BYTES:
                raise self._damage("it ends in the middle of a packet's head")
            if head[: len(MAGIC)] != MAGIC:
                break
            self._part = _Part(time_base=self._time_base(head), offset=self._end)
        length, pts, duration = _RECORD.unpack(head)
        if not 0 < length <= PACKET_BYTES_MAX or abs(pts) > _TICKS_MAX:
            raise self._damage(f"a packet of {length} bytes at pts {pts} is nonsense")
        ratio = self._part.time_base / self.time_base
        if ratio != 1:
            end = round((pts + duration) * ratio)
            pts = round(pts * ratio)
            duration = end - pts
        return length, pts + self._part.offset, duration

    def _passed(self, pts: int, duration: int) -> None:
        """A packet is behind us: where a part that follows begins."""
        if self._last is not None and pts > self._last:
            self._step = pts - self._last
        self._last = pts
        self._end = max(self._end, pts + (duration or self._step))

    def _time_base(self, head: bytes) -> Fraction:
        _, numerator, denominator = _HEAD.unpack(head)
        if not numerator or not denominator:
            raise self._damage(f"its time base {numerator}/{denominator} is nonsense")
        return Fraction(numerator, denominator)

    def _damage(self, text: str) -> InvalidDataError:
        return InvalidDataError(errno.EINVAL, text, self.name)

    def __iter__(self) -> Iterator[BridgePacket]:
        while (packet := self.read_packet()) is not None:
            yield packet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class RawMuxer:
    """Writes a raw stream, to a file or a pipe. It holds one neural stream and no tags.

    Times of a constant frame rate that the source's container rounded are written exact.

    Args:
        target: path, or binary file object (not closed).

    Raises:
        BridgeError: it cannot be written.
    """

    format_name = RAW

    def __init__(self, target: Any) -> None:
        self._owned = not hasattr(target, "write")
        self.name = str(os.fspath(target) if self._owned else getattr(target, "name", "stream"))
        self._file: IO[bytes] = target
        if self._owned:
            try:
                self._file = open(target, "wb")  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise BridgeError(error.errno or errno.EIO, error.strerror or "", self.name) from (
                    error
                )
        self.metadata: dict[str, str] = {}
        self.duration: Fraction | float | None = None
        self._info: StreamInfo | None = None
        self._grid: Grid | None = None
        self._last: int | None = None

    def add_stream(self, info: StreamInfo) -> int:
        """Add the one stream; returns its index.

        Raises:
            ValueError: it is not neural, or not the first.
        """
        if self._info is not None or not is_neural(info):
            raise ValueError("a raw stream holds one neural picture track and nothing else")
        self._info = info
        self._grid = Grid.over(info.time_base, info.frame_rate)
        return 0

    def add_chapter(self, chapter: Chapter) -> None:
        """Chapters have no place in a raw stream: left out."""

    def write_header(self) -> None:
        """Write the head."""
        base = self.stream_time_base(0)
        self._file.write(_HEAD.pack(MAGIC, base.numerator, base.denominator))

    def stream_time_base(self, index: int) -> Fraction:
        """Seconds per tick of what is written."""
        assert self._info is not None
        return self._grid.time_base if self._grid else self._info.time_base

    def write_packet(self, packet: BridgePacket) -> None:
        """Write one packet.

        Raises:
            ValueError: it has no time, or one that is not after the packet before it.
        """
        assert self._info is not None
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is None or not packet.data:
            raise ValueError("a packet without time or content cannot be written")
        ratio = packet.time_base / self._info.time_base
        pts, duration = round(ticks * ratio), round(packet.duration * ratio)
        if self._grid:
            pts, duration = self._grid.place(pts, duration)
        if self._last is not None and pts <= self._last:
            raise ValueError(f"a packet at pts {pts} is not after the one at {self._last}")
        self._last = pts
        self._file.write(_RECORD.pack(len(packet.data), pts, min(duration, 0xFFFFFFFF)))
        self._file.write(packet.data)

    def close(self) -> None:
        """Complete the stream."""
        self._file.flush()
        if self._owned:
            self._file.close()

    def abort(self) -> None:
        """Give up; what was written stays where it is."""
        if self._owned:
            self._file.close()


def _take(file: Any, size: int) -> bytes:
    """So many bytes; fewer at the end only."""
    parts: list[bytes] = []
    while size > 0:
        chunk = file.read(size)
        if not chunk:
            break
        parts.append(bytes(chunk))
        size -= len(chunk)
    return b"".join(parts)


def _can_seek(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable is not None and seekable())


class _Rest:
    """A file object that cannot seek, with the bytes before it that were read already."""

    def __init__(self, file: Any, start: bytes) -> None:
        self.name = getattr(file, "name", "stream")
        self._file = file
        self._start = start

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if not self._start:
            return bytes(self._file.read(size) or b"")
        size = len(self._start) if size < 0 else size
        start, self._start = self._start[:size], self._start[size:]
        return start


__all__ = [
    "MAGIC",
    "RAW",
    "MediaDemuxer",
    "MediaMuxer",
    "RawDemuxer",
    "RawMuxer",
    "holds",
    "open_demuxer",
    "open_muxer",
]
