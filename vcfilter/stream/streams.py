"""Which streams of a source go where: selection as with FFmpeg's -map, and copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from vcfilter._bridge import (
    DISPOSITION_ATTACHED_PICTURE,
    DISPOSITION_DEFAULT,
    BridgeError,
    BridgePacket,
    Chapter,
    StreamInfo,
    supports,
)
from vcfilter.errors import ConfigError, MediaError
from vcfilter.stream.media import Cut, Warn
from vcfilter.stream.raw import MediaDemuxer, MediaMuxer
from vcfilter.stream.source import reason_of

MATROSKA = "matroska"

_KINDS = {"v": "video", "a": "audio", "s": "subtitle", "t": "attachment", "d": "data"}
_FILE_TAGS_LEFT = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_TRACK_TAGS_LEFT = ("DURATION", "BPS", "NUMBER_OF_", "_STATISTICS_", "ENCODER")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSelection:
    """Which streams are wanted: all, or those that any of FFmpeg's stream specifiers names.

    Args:
        specifiers: "0" (all), a kind (v a s t d) or an index, each optionally after "0:", a kind
            optionally with a position after it: "v", "0:a", "a:1", "0:3".
    """

    specifiers: tuple[str, ...] = ("0",)

    def __post_init__(self) -> None:
        for text in self.specifiers:
            _parse(text)

    def indices(self, streams: Sequence[StreamInfo]) -> list[int]:
        """Indices of the wanted streams, in the order of the file.

        Raises:
            ConfigError: a specifier names no stream.
        """
        wanted: set[int] = set()
        for text in self.specifiers:
            kind, position = _parse(text)
            found = [info.index for info in streams if kind in (None, info.kind)]
            if position is not None:
                found = found[position : position + 1]
            if not found:
                raise ConfigError(f"-map {text}: the source has no such stream")
            wanted.update(found)
        return sorted(wanted)


def _parse(text: str) -> tuple[str | None, int | None]:
    parts = text.split(":")
    if parts[0] == "0" and (len(parts) > 1 or text == "0"):
        parts = parts[1:]
    kind = _KINDS.get(parts[0]) if parts else None
    rest = parts[1:] if kind else parts
    if len(rest) > 1 or not all(each.isdecimal() for each in rest):
        raise ConfigError(
            f"-map {text!r} is not understood; examples: 0 (all), v, a, s, 0:a, a:1, 0:3"
        )
    return kind, int(rest[0]) if rest else None


def choose_video(
    streams: Sequence[StreamInfo], wanted: Sequence[int], only: Callable[[StreamInfo], bool]
) -> StreamInfo:
    """The video stream that is coded: the first that is wanted and marked default, else the
    largest picture.

    Raises:
        MediaError: there is none.
    """
    videos = [
        info
        for info in streams
        if info.index in wanted
        and info.kind == "video"
        and not info.disposition & DISPOSITION_ATTACHED_PICTURE
        and only(info)
    ]
    if not videos:
        kinds = ", ".join(f"{info.kind} {info.codec}".strip() for info in streams)
        which = "the source has" if len(wanted) == len(streams) else "-map leaves"
        raise MediaError(f"{which} no video stream (there is {kinds or 'nothing'})")
    default = [info for info in videos if info.disposition & DISPOSITION_DEFAULT]
    candidates = default if len(default) == 1 else videos
    return max(candidates, key=lambda info: (info.width * info.height, -info.index))


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One stream that is copied: from where, as what, and how each packet changes (if at all)."""

    index: int
    info: StreamInfo
    convert: Callable[[BridgePacket], BridgePacket | None] | None = None


def plan_copies(
    streams: Sequence[StreamInfo],
    wanted: Sequence[int],
    coded: int,
    container: str,
    warn: Warn,
    copy_videos: bool,
) -> list[Copy]:
    """How each wanted stream besides the coded one gets into the container.

    Streams that it cannot hold are named in a warning.

    Args:
        coded: index of the video stream that is coded anew.
        copy_videos: whether further video streams are copied as they are.
    """
    plan = []
    for info in streams:
        if info.index not in wanted or info.index == coded:
            continue
        name = f"stream {info.index} ({info.kind} {info.codec or info.codec_tag})".replace(
            " )", ")"
        )
        clean = replace(info, metadata=track_metadata(info))
        if info.disposition & DISPOSITION_ATTACHED_PICTURE and info.attached_picture:
            if container == MATROSKA:
                try:
                    plan.append(Copy(index=-1, info=info.as_attachment()))
                except ValueError as error:
                    warn(f"{name} is left out: {error}")
                continue
        elif info.kind == "video" and not copy_videos:
            warn(f"{name} is left out: one video stream is coded; -map 0 copies the others too")
            continue
        if info.kind == "subtitle" and info.codec == "mov_text" and container == MATROSKA:
            plan.append(
                Copy(
                    index=info.index,
                    info=replace(clean, codec="subrip", codec_tag="", extradata=b""),
                    convert=_mov_text_to_subrip,
                )
            )
        elif not supports(container, info):
            warn(f"{name} is left out: {container} cannot hold it")
        else:
            plan.append(Copy(index=info.index, info=clean))
    return plan


def track_metadata(info: StreamInfo) -> dict[str, str]:
    """A stream's tags without those that describe how its old file stored it."""
    return {
        key: value
        for key, value in info.metadata.items()
        if not key.upper().startswith(_TRACK_TAGS_LEFT)
    }


def file_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """A file's tags without those that describe its old container."""
    return {key: value for key, value in metadata.items() if key.lower() not in _FILE_TAGS_LEFT}


def cut_chapters(chapters: Sequence[Chapter], cut: Cut) -> Iterator[Chapter]:
    """The chapters that lie in the part, with its times."""
    for chapter in chapters:
        start = chapter.start * chapter.time_base
        end = chapter.end * chapter.time_base
        if cut.after(start) or (cut.start is not None and end <= cut.start):
            continue
        start = max(start - cut.offset, Fraction(0))
        end = (min(end, cut.end) if cut.end is not None else end) - cut.offset
        nano = Fraction(1, 10**9)
        end = max(start, end)  # some files say otherwise, muxers refuse it
        yield replace(chapter, start=int(start / nano), end=int(end / nano), time_base=nano)


class StreamCopier:
    """Copies packets from a demuxer to a muxer, byte for byte, up to a time at a time.

    Args:
        demuxer: the source; it stays open.
        plan: from plan_copies.
        cut: packets outside it are left out, times count from its start.
        warn: called with one sentence for what is lost.
    """

    def __init__(self, demuxer: MediaDemuxer, plan: Sequence[Copy], cut: Cut, warn: Warn) -> None:
        self._demuxer = demuxer
        self._plan = list(plan)
        self._cut = cut
        self._warn = warn
        self._held: deque[BridgePacket] = deque()
        self._targets: dict[int, tuple[int, Copy]] = {}
        self._ended = False

    @property
    def reads(self) -> bool:
        """Whether any packet is copied (attachments have none)."""
        return any(copy.index >= 0 for copy in self._plan)

    def add_streams(self, muxer: MediaMuxer) -> None:
        """Add the copied streams to the muxer, in the plan's order."""
        for copy in self._plan:
            index = muxer.add_stream(copy.info)
            if copy.index >= 0:
                self._targets[copy.index] = (index, copy)

    def copy_until(self, muxer: MediaMuxer, time: Fraction | None) -> None:
        """Copy the packets up to a time in seconds, on the target's clock; None copies all."""
        if not self._targets:
            return
        while True:
            packet = self._held.popleft() if self._held else self._read()
            if packet is None:
                return
            ticks = packet.dts if packet.dts is not None else packet.pts
            if ticks is not None and time is not None:
                seconds = ticks * packet.time_base - self._cut.offset
                if seconds > time:
                    self._held.appendleft(packet)
                    return
            self._write(muxer, packet)

    def _read(self) -> BridgePacket | None:
        """The next packet of a stream in the plan."""
        wanted = {copy.index for copy in self._plan}
        while not self._ended:
            try:
                packet = self._demuxer.read_packet()
            except BridgeError as error:
                self._warn(f"the source breaks off: {reason_of(error)}")
                packet = None
            if packet is None:
                self._ended = True
            elif packet.stream_index in wanted:
                return packet
        return None

    def _write(self, muxer: MediaMuxer, packet: BridgePacket) -> None:
        target, copy = self._targets[packet.stream_index]
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None:
            time = ticks * packet.time_base
            if self._cut.before(time) or self._cut.after(time):
                return
        packet = shifted(packet, self._cut.offset)
        if ticks is None and copy.info.attached_picture:
            packet = replace(packet, pts=0, dts=0)  # cover art has no time
        if copy.convert is not None:
            converted = copy.convert(packet)
            if converted is None:
                return
            packet = converted
        muxer.write_packet(replace(packet, stream_index=target))


def shifted(packet: BridgePacket, offset: Fraction) -> BridgePacket:
    """The packet, its times counted from offset (seconds), exact to a nanosecond."""
    if not offset:
        return packet
    base = packet.time_base
    if (offset / base).denominator != 1:
        base = Fraction(1, 10**9)

    def moved(value: int | None) -> int | None:
        return None if value is None else round((value * packet.time_base - offset) / base)

    return replace(
        packet,
        pts=moved(packet.pts),
        dts=moved(packet.dts),
        duration=round(packet.duration * packet.time_base / base),
        time_base=base,
    )


def _mov_text_to_subrip(packet: BridgePacket) -> BridgePacket | None:
    """A QuickTime text sample as SubRip: two bytes of length, then the text; styles are lost."""
    length = int.from_bytes(packet.data[:2], "big")
    text = packet.data[2 : 2 + length]
    if not text.strip():
        return None
    return replace(packet, data=text.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), side_data=())
