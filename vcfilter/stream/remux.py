"""A neural film in another container: its packets as they are, nothing is coded anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from vcfilter._bridge import BridgePacket
from vcfilter.errors import ConfigError, MediaError
from vcfilter.stream.media import Cut, Warn
from vcfilter.stream.raw import RAW, MediaMuxer, holds, open_muxer
from vcfilter.stream.source import PIPE, Source
from vcfilter.stream.streams import (
    MATROSKA,
    Copy,
    StreamCopier,
    StreamSelection,
    choose_video,
    file_metadata,
    plan_copies,
    track_metadata,
)
from vcfilter.stream.track import is_neural
from vcfilter.stream.writer import Target, container_of, translated


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What was copied.

    Args:
        source, target: their names.
        packets, video_bytes: of the neural stream, and their size.
        warnings: one sentence each.
    """

    source: str
    target: str
    packets: int
    video_bytes: int
    warnings: tuple[str, ...]


def copy_file(
    source: str,
    target: str,
    *,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    container: str | None = None,
    warn: Warn | None = None,
) -> CopyReport:
    """Copy a neural film into another container, or into the raw stream `.vcf` and back.

    Every packet stays the same bytes, those of other streams too; chapters and tags go along. The
    target appears under its name only when it is complete.

    Args:
        source, target, streams, overwrite, container, warn: as for encode_file.

    Raises:
        ConfigError: an argument is outside what is allowed.
        MediaError: the source has no neural stream, or either side cannot be read or written.
    """
    selection = StreamSelection(
        specifiers=("0",)
        if streams == "all"
        else (streams,)
        if isinstance(streams, str)
        else tuple(streams)
    )
    name = container_of(target, container, MATROSKA)
    warnings: list[str] = []

    def tell(text: str) -> None:
        warnings.append(text)
        if warn:
            warn(text)

    with ExitStack() as stack:
        opened = Source(source)
        stack.callback(opened.close)
        demuxer = opened.demuxer()
        stack.callback(demuxer.close)
        if not any(map(is_neural, demuxer.streams)):
            raise MediaError(f"{opened.title} has no neural video stream to copy")
        wanted = selection.indices(demuxer.streams)
        video = choose_video(demuxer.streams, wanted, is_neural)
        if not holds(name, video):
            raise ConfigError(
                f"{target}: {name} cannot hold a neural stream; give .mkv (or .nut, .avi, .mov, "
                ".vcf)"
            )
        goal = Target(target, overwrite=overwrite, source=opened.name)
        stack.callback(goal.discard)  # nothing is left to discard of a completed one
        count = _Count()
        pictures = Copy(
            index=video.index,
            info=replace(video, metadata=track_metadata(video)),
            convert=count,
        )
        if name == RAW:
            if len(wanted) > 1:
                tell(f"vcf holds pictures only: {len(wanted) - 1} other streams are left out")
            plan = [pictures]
        else:
            plan = [
                pictures,
                *plan_copies(demuxer.streams, wanted, video.index, name, tell, copy_videos=True),
            ]
        copier = StreamCopier(demuxer, plan, Cut(), tell)
        output: Any = sys.stdout.buffer if target == PIPE else goal.path
        with translated(goal):
            muxer: MediaMuxer = open_muxer(output, name)
            try:
                copier.add_streams(muxer)
                muxer.metadata.update(file_metadata(demuxer.metadata))
                for chapter in demuxer.chapters:
                    muxer.add_chapter(chapter)
                muxer.write_header()
                copier.copy_until(muxer, None)
                muxer.close()
            except BaseException:
                muxer.abort()
                raise
        if not count.packets:
            raise MediaError(f"{opened.title} has no picture to copy")
        goal.complete()
    return CopyReport(
        source=opened.name,
        target=target,
        packets=count.packets,
        video_bytes=count.video_bytes,
        warnings=tuple(warnings),
    )


class _Count:
    """Counts the pictures that pass; empty packets, with which AVI fills gaps in time, do not."""

    def __init__(self) -> None:
        self.packets = self.video_bytes = 0

    def __call__(self, packet: BridgePacket) -> BridgePacket | None:
        if not packet.data:
            return None
        self.packets += 1
        self.video_bytes += len(packet.data)
        return packet
