"""A neural video in another container: its packets as they are, nothing is coded anew."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from vcfilter._bridge import BridgeError, BridgePacket, Demuxer, Muxer, StreamInfo
from vcfilter.errors import MediaError
from vcfilter.stream.containers import (
    MATROSKA,
    Path,
    container_named,
    container_of,
    need_neural,
    open_muxer,
)
from vcfilter.stream.copy import Copy, StreamCopier, plan_copies
from vcfilter.stream.report import RunLog
from vcfilter.stream.source import Source, reason_of
from vcfilter.stream.streams import StreamSelection, choose_video
from vcfilter.stream.tags import file_metadata, track_metadata
from vcfilter.stream.target import Target, translated
from vcfilter.stream.thinning import Thinner, Thinning
from vcfilter.stream.timestamps import Cut, constant_rate
from vcfilter.stream.track import is_neural

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What was copied.

    Args:
        source, target: their names.
        packets, video_bytes: of the neural stream, and their size, as written.
        warnings: one sentence each.
    """

    source: str
    target: str
    packets: int
    video_bytes: int
    warnings: tuple[str, ...]


def copy_file(
    source: Path,
    target: Path,
    *,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    container: str | None = None,
    thinning: Thinning | None = None,
) -> CopyReport:
    """Copy a neural video into another container.

    Every packet stays the same bytes, or its first ones where it is thinned; those of other streams
    too; chapters and tags go along. The target appears under its name only when it is complete.
    Warnings are logged and in the report.

    Args:
        source, target, streams, overwrite, container: as for encode_file.
        thinning: what is left of the video; None: all of it.

    Raises:
        ConfigError: an argument is outside what is allowed.
        MediaError: the source has no neural stream, or either side cannot be read or written.
    """
    selection = StreamSelection.of(streams)
    name = container_of(target, container, MATROSKA)
    need_neural(target, name)
    log = RunLog(logger)
    with ExitStack() as stack:
        opened = Source(source)
        stack.callback(opened.close)
        demuxer = opened.demuxer()
        stack.callback(demuxer.close)
        if not any(map(is_neural, demuxer.streams)):
            raise MediaError(f"{opened.title} has no neural video stream to copy")
        wanted = selection.indices(demuxer.streams)
        video = choose_video(demuxer.streams, wanted, is_neural, opened.title)
        thinner = None
        if thinning is not None:
            thinner = Thinner(thinning, video, opened)
        goal = Target(target, overwrite=overwrite, source=opened.name)
        stack.callback(goal.discard)  # nothing is left to discard of a completed one
        count = _Count(thinner)
        plan = [
            Copy(index=video.index, info=_track(video, name, thinner), convert=count),
            *plan_copies(
                demuxer.streams,
                wanted,
                video.index,
                name,
                log,
                copy_videos=True,
                has_chapters=bool(demuxer.chapters),
            ),
        ]
        copier = StreamCopier(deque(), plan, Cut(), log)
        with translated(goal):
            muxer = open_muxer(goal.file, name)
            try:
                _copy(demuxer, muxer, copier, log)
            except BaseException:
                muxer.abort()
                raise
        if not count.packets:
            raise MediaError(f"{opened.title} has no frame to copy")
        goal.complete()
    return CopyReport(
        source=opened.name,
        target=goal.name,
        packets=count.packets,
        video_bytes=count.video_bytes,
        warnings=tuple(log.warnings),
    )


def _track(video: StreamInfo, container: str, thinner: Thinner | None) -> StreamInfo:
    """The video stream as the new file describes it."""
    info = replace(video, metadata=track_metadata(video, coded=thinner is None))
    if thinner is not None:
        info = replace(info, frame_rate=thinner.frame_rate)
    rate = constant_rate(video)
    if container_named(container).constant_rate and rate:
        info = replace(info, time_base=1 / rate)
    return info


def _copy(demuxer: Demuxer, muxer: Muxer, copier: StreamCopier, log: RunLog) -> None:
    """Write header, all packets and trailer."""
    copier.add_streams(muxer)
    muxer.metadata.update(file_metadata(demuxer.metadata))
    for chapter in demuxer.chapters:
        muxer.add_chapter(chapter)
    muxer.write_header()
    copier.begin(muxer)
    while True:
        try:
            packet = demuxer.read_packet()
        except BridgeError as error:
            log.warning(f"the source breaks off: {reason_of(error)}")
            packet = None
        if packet is None:
            break
        copier.write(muxer, packet)
    copier.finish()
    muxer.close()


class _Count:
    """Counts the frames that pass; empty packets, with which AVI fills gaps in time, do not.

    Args:
        thinner: what thins them before.
    """

    def __init__(self, thinner: Thinner | None = None) -> None:
        self.packets = self.video_bytes = 0
        self._thinner = thinner

    def __call__(self, packet: BridgePacket) -> BridgePacket | None:
        if not packet.data:
            return None
        if self._thinner is not None:
            thinned = self._thinner.thin(packet)
            if thinned is None:
                return None
            packet = thinned
        self.packets += 1
        self.video_bytes += len(packet.data)
        return packet
