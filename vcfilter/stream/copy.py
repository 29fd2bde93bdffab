"""Streams that are copied: which go along, as what, and their packets' way to the muxer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from vcfilter._bridge import (
    DISPOSITION_ATTACHED_PICTURE,
    BridgePacket,
    InvalidDataError,
    Muxer,
    StreamInfo,
)
from vcfilter.stream.containers import MATROSKA, container_named, holds
from vcfilter.stream.report import Log
from vcfilter.stream.streams import (
    is_encrypted,
    is_encrypted_packet,
    is_short,
    name_of,
    stated_seconds,
)
from vcfilter.stream.subtitles import (
    SAMPLE_DESCRIPTION,
    mov_text_to_subrip,
    subrip_to_mov_text,
)
from vcfilter.stream.tags import track_metadata
from vcfilter.stream.timestamps import Cut, nearest, shifted

logger = logging.getLogger(__name__)

_TEXTS = ("subrip", "text")
_MOV_FAMILY = ("mp4", "mov")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One stream that is copied.

    Args:
        index: of the stream in the source; -1 of what has no packets (attachments).
        info: what it becomes.
        convert: how each packet changes, if at all; None leaves a packet out.
        seconds: how long the source says that it is; None: nothing, or what info says.
    """

    index: int
    info: StreamInfo
    convert: Callable[[BridgePacket], BridgePacket | None] | None = None
    seconds: Fraction | None = None


def plan_copies(
    streams: Sequence[StreamInfo],
    wanted: Sequence[int],
    coded: int,
    container: str,
    log: Log = logger,
    *,
    copy_videos: bool,
    has_chapters: bool = False,
) -> list[Copy]:
    """How each wanted stream besides the coded one gets into the container.

    Streams that it cannot hold are named in a warning.

    Args:
        coded: index of the video stream that is coded anew.
        copy_videos: whether further video streams are copied as they are.
        has_chapters: whether the source has chapters, which are written as such.
    """
    plan = []
    has_timecode = any("timecode" in each.metadata for each in streams if each.index == coded)
    for info in streams:
        if info.index not in wanted or info.index == coded:
            continue
        anew = {"tmcd": has_timecode, "text": has_chapters}
        if info.kind == "data" and anew.get(info.codec_tag):
            continue  # QuickTime's tracks for what a tag and the chapters say as well
        clean = replace(info, metadata=track_metadata(info))
        if is_encrypted(info):
            log.warning(f"{name_of(info)} is left out: it is encrypted")
            continue
        if info.disposition & DISPOSITION_ATTACHED_PICTURE and info.attached_picture:
            if container == MATROSKA:
                try:
                    plan.append(Copy(index=-1, info=info.as_attachment()))
                except ValueError as error:
                    log.warning(f"{name_of(info)} is left out: {error}")
                continue
            if container != _COVERED:
                log.warning(
                    f"{name_of(info)} is left out: {container} holds no cover art that players find"
                )
                continue
        elif info.kind == "video" and not copy_videos:
            log.warning(
                f"{name_of(info)} is left out: one video stream is coded; -map 0 copies the "
                "others too"
            )
            continue
        copy = _text_copy(clean, container)
        if copy is None and info.codec_tag != "tmcd" and holds(container, info):
            copy = Copy(index=info.index, info=clean, seconds=stated_seconds(info))
        alone = info.kind == "audio" and container_named(container).one_audio
        if alone and copy is not None and any(each.info.kind == "audio" for each in plan):
            log.warning(f"{name_of(info)} is left out: {container} holds one audio stream")
        elif copy is None and info.kind == "audio" and not info.sample_rate:
            log.warning(f"{name_of(info)} is left out: none of it is there to tell its sample rate")
        elif copy is None:
            log.warning(f"{name_of(info)} is left out: {container} cannot hold it")
        else:
            plan.append(copy)
    return plan


def _text_copy(info: StreamInfo, container: str) -> Copy | None:
    """A subtitle stream that the container holds in another form."""
    if info.codec == "mov_text" and container == MATROSKA:
        text = replace(info, codec="subrip", codec_tag="", extradata=b"")
        return Copy(index=info.index, info=text, convert=mov_text_to_subrip)
    if info.codec in _TEXTS and container in _MOV_FAMILY:
        text = replace(info, codec="mov_text", codec_tag="", extradata=SAMPLE_DESCRIPTION)
        return Copy(index=info.index, info=text, convert=subrip_to_mov_text)
    return None


@dataclass(slots=True)
class _Track:
    """A copied stream in the target, and where it is."""

    index: int
    copy: Copy
    time_base: Fraction = Fraction(1, 1000)
    last: int | None = None  # dts in the target's ticks
    mended: int = 0
    encrypted: int = 0  # packets, which are left out
    damaged: int = 0  # the same
    early: int = 0  # the same: they lie too far before zero
    begin: Fraction | None = None  # in the target
    end: Fraction | None = None  # in the source


class StreamCopier:
    """Writes the packets of copied streams, byte for byte, up to a time at a time.

    Times that do not rise, or fall together in the target's ticks, are moved as far as needed; how
    many is logged at the end.

    Args:
        queue: packets of the source, in its order; another thread may append to it.
        plan: from plan_copies.
        cut: packets outside it are left out, times count from its start.
        log: where warnings go.
    """

    def __init__(
        self,
        queue: deque[BridgePacket],
        plan: Sequence[Copy],
        cut: Cut,
        log: Log = logger,
    ) -> None:
        self._queue = queue
        self._plan = list(plan)
        self._cut = cut
        self._log = log
        self._tracks: dict[int, _Track] = {}
        self._equal_times = False
        self._earliest: Fraction | None = None

    def add_streams(self, muxer: Muxer) -> None:
        """Add the copied streams to the muxer, in the plan's order."""
        for copy in self._plan:
            index = muxer.add_stream(copy.info)
            if copy.index >= 0:
                self._tracks[copy.index] = _Track(index, copy)

    def begin(self, muxer: Muxer) -> None:
        """The header is written: the target's clocks are known."""
        self._equal_times = muxer.equal_times
        self._earliest = _EARLIEST.get(muxer.format_name)
        for track in self._tracks.values():
            track.time_base = muxer.stream_time_base(track.index)

    @property
    def first_time(self) -> Fraction | None:
        """Earliest time of the packets in the queue, in seconds on the target's clock."""
        times = [
            ticks * packet.time_base - self._cut.offset
            for packet in tuple(self._queue)
            if (ticks := packet.dts if packet.dts is not None else packet.pts) is not None
        ]
        return min(times, default=None)

    def copy_until(self, muxer: Muxer, time: Fraction | None) -> None:
        """Write the packets in the queue up to a time in seconds, on the target's clock; None
        writes all.
        """
        while self._queue:
            packet = self._queue[0]
            ticks = packet.dts if packet.dts is not None else packet.pts
            begin = None if ticks is None else ticks * packet.time_base - self._cut.offset
            if begin is not None and time is not None and begin > time:
                return
            self._queue.popleft()
            self.write(muxer, packet)

    def write(self, muxer: Muxer, packet: BridgePacket) -> None:
        """Write one packet of the source, if its stream is copied and it lies in the cut."""
        track = self._tracks.get(packet.stream_index)
        if track is None:
            return
        if is_encrypted_packet(packet):
            track.encrypted += 1
            return
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None:
            time = ticks * packet.time_base
            end = time + packet.duration * packet.time_base
            track.end = end if track.end is None else max(track.end, end)
            if self._cut.before(time) or self._cut.after(time):
                return
            if self._earliest is not None and time - self._cut.offset < self._earliest:
                track.early += 1
                return
            if track.begin is None:
                track.begin = time - self._cut.offset
        packet = shifted(packet, self._cut.offset)
        if ticks is None:
            packet = self._timed(packet, track)
        if track.copy.convert is not None:
            converted = track.copy.convert(packet)
            if converted is None:
                return
            packet = converted
        try:
            muxer.write_packet(replace(self._mended(packet, track), stream_index=track.index))
        except InvalidDataError:  # it cannot be brought into the container's form
            track.damaged += 1

    def finish(self, *, jumped: bool = False, at_once: bool = False) -> None:
        """Log what was mended or left out, and which streams ended early.

        Args:
            jumped: the source's clock jumped: the durations it states mean nothing.
            at_once: the container begins all audio at its start.
        """
        for track in self._tracks.values():
            info = track.copy.info
            if track.mended:
                self._log.warning(
                    f"{track.mended} packets of {name_of(info)} had a time that was not after the "
                    "one before: moved"
                )
            if track.damaged:
                self._log.warning(
                    f"{track.damaged} packets of {name_of(info)} are left out: they are damaged"
                )
            if track.early:
                self._log.warning(
                    f"{track.early} packets of {name_of(info)} are left out: they lie too far "
                    "before the first frame"
                )
            late = track.begin or Fraction(0)
            if at_once and info.kind == "audio" and late > _LATE_SECONDS:
                self._log.warning(
                    f"{name_of(info)} begins {float(late):.2f} s late, which AVI cannot state: it "
                    "plays too early by that"
                )
            if track.encrypted:
                self._log.warning(
                    f"{track.encrypted} packets of {name_of(info)} are left out: they are encrypted"
                )
                continue
            stated = track.copy.seconds or stated_seconds(info)
            if jumped or info.kind != "audio" or stated is None or not self._cut.is_all:
                continue
            begin = (info.start_time or 0) * info.time_base
            got = Fraction(0) if track.end is None else track.end - begin
            if is_short(got, stated):
                self._log.warning(
                    f"the source says it has {float(stated):.2f} s of {name_of(info)}, "
                    f"{float(max(got, Fraction(0))):.2f} s are there: it seems to be cut short"
                )

    def _timed(self, packet: BridgePacket, track: _Track) -> BridgePacket:
        """A packet without times directly after the one before it; cover art begins at zero."""
        last = -1 if track.last is None else track.last
        return replace(packet, pts=last + 1, dts=last + 1, time_base=track.time_base, duration=0)

    def _mended(self, packet: BridgePacket, track: _Track) -> BridgePacket:
        """The packet, its dts after that of the packet before it in the target's ticks."""
        ratio = packet.time_base / track.time_base
        ticks = packet.dts if packet.dts is not None else packet.pts
        assert ticks is not None
        dts = nearest(ticks * ratio)
        least = dts if track.last is None else track.last + (0 if self._equal_times else 1)
        track.last = max(dts, least)
        if dts >= least:
            return packet
        track.mended += 1
        pts = least if packet.pts is None else max(nearest(packet.pts * ratio), least)
        return replace(
            packet,
            pts=pts,
            dts=least,
            duration=nearest(packet.duration * ratio),
            time_base=track.time_base,
        )


_EARLIEST = {"matroska": Fraction(-32), "webm": Fraction(-32)}
"""Seconds before zero that a container can state: 16 bits of milliseconds."""
_COVERED = "mp4"  # beside Matroska the one container whose cover art players find
_LATE_SECONDS = Fraction(1, 10)
