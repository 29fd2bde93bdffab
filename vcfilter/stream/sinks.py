"""Where coded packets and raw frames of one video go, beside the streams that are copied."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import av
import av.error

from vcfilter._bridge import BridgePacket, Chapter, Muxer, StreamInfo
from vcfilter.frames import FieldOrder, Frame, VideoFormat
from vcfilter.stream.containers import AVI, MATROSKA, Y4M, open_muxer
from vcfilter.stream.copy import StreamCopier
from vcfilter.stream.pixels import PIXEL_FORMATS, to_video_frame
from vcfilter.stream.report import Log
from vcfilter.stream.target import Target, translated

logger = logging.getLogger(__name__)


class MuxerSink:
    """A container with the video track, and streams copied from the source beside it.

    Args:
        target: what is written.
        container: FFmpeg's name of it.
        copier: brings the other streams.
        metadata, chapters: of the file.
        track: tags and disposition of the video track come from it.
        log: where warnings go.

    Attributes:
        video_bytes: of the video track's packets so far.
    """

    def __init__(
        self,
        target: Target,
        container: str,
        *,
        copier: StreamCopier,
        metadata: Mapping[str, str],
        chapters: tuple[Chapter, ...],
        track: StreamInfo,
        log: Log = logger,
    ) -> None:
        self._target = target
        self._container = container
        self._copier = copier
        self._metadata = dict(metadata)
        self._chapters = chapters
        self._track = track
        self._log = log
        self._muxer: Muxer | None = None
        self._packets = 0
        self._live = False
        self.video_bytes = 0

    def start(self, info: StreamInfo, *, live: bool = False) -> None:
        """Write the header; the track is known now.

        Args:
            live: each packet is handed on at once. In an ordinary Matroska file it is not: there
                it has no effect but a cluster per packet.
        """
        self._live = live and not (self._container == MATROSKA and self._target.is_regular)
        metadata = {**self._track.metadata, **info.metadata}
        info = replace(info, metadata=metadata, disposition=self._track.disposition)
        with translated(self._target):
            self._muxer = muxer = open_muxer(self._target.file, self._container)
            muxer.add_stream(info)
            self._copier.add_streams(muxer)
            muxer.metadata.update(self._metadata)
            for chapter in self._chapters:
                muxer.add_chapter(chapter)
            muxer.write_header()
            self._copier.begin(muxer)

    def write(self, packet: Any) -> None:
        """Write one packet of the video track, and those of copied streams up to its time."""
        assert self._muxer is not None
        assert isinstance(packet, BridgePacket)
        with translated(self._target):
            ticks = packet.dts if packet.dts is not None else packet.pts
            if ticks is not None:
                if not self._packets and self._container == AVI:
                    self._lead_in(self._muxer, ticks, packet.time_base)
                self._copier.copy_until(self._muxer, ticks * packet.time_base)
            self._muxer.write_packet(packet)
            if self._live:
                self._muxer.flush()
                self._target.flush()
        self.video_bytes += len(packet.data)
        self._packets += 1

    def _lead_in(self, muxer: Muxer, ticks: int, time_base: Fraction) -> None:
        """Begin an AVI track with an empty packet where other streams begin before it: libavformat
        fills gaps from the first packet on, which would else stand at the file's start.
        """
        begin = floor(min(Fraction(0), self._copier.first_time or Fraction(0)) / time_base)
        if ticks > begin:
            muxer.write_packet(
                BridgePacket(
                    stream_index=0, data=b"", pts=begin, dts=begin, duration=1, time_base=time_base
                )
            )

    def flush(self) -> None:
        """What was written can be read, should the program end here."""
        if self._muxer is not None:
            with translated(self._target):
                self._muxer.flush()
                self._target.flush()
                self._target.sync()

    def finish(self, *, jumped: bool = False) -> None:
        """Write the rest and complete the target.

        Args:
            jumped: the source's clock jumped: the durations it states mean nothing.
        """
        assert self._muxer is not None
        with translated(self._target):
            self._copier.copy_until(self._muxer, None)
            self._copier.finish(jumped=jumped, at_once=self._container == AVI)
            self._muxer.close()
            self._target.complete()

    def abandon(self, keep: bool) -> str | None:
        """Give up; keep what is playable under another name, if asked to: that name."""
        muxer = self._muxer
        with suppress(OSError, RuntimeError):
            if muxer is not None and keep and self._packets:
                muxer.close()
                return self._target.keep_partial()
            if muxer is not None:
                muxer.abort()
        self._target.discard()
        return None


class Y4mSink:
    """Raw frames as YUV4MPEG2, by FFmpeg's muxer. It has a constant rate and no times.

    Args:
        target: what is written.

    Attributes:
        video_bytes: of the frames' samples so far.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._container: Any = None
        self._stream: Any = None
        self._format: VideoFormat | None = None
        self._rate = Fraction(25)
        self._count = 0
        self._live = False
        self.video_bytes = 0

    def start(
        self, video_format: VideoFormat, frame_rate: Fraction | None, *, live: bool = False
    ) -> None:
        """Open the muxer.

        Args:
            live: each frame is handed on at once.
        """
        self._format, self._live = video_format, live
        fmt = video_format
        self._rate = frame_rate or self._rate
        with self._translated():
            self._container = av.open(
                self._target.file,
                "w",
                format=Y4M,
                options={"strict": "unofficial", "flush_packets": str(int(live))},
            )
            self._stream = stream = self._container.add_stream("wrapped_avframe", rate=self._rate)
            stream.width, stream.height = fmt.width, fmt.height
            stream.pix_fmt = PIXEL_FORMATS[fmt.bit_depth]
            context = stream.codec_context
            context.color_range = fmt.color_range
            order = int(fmt.field_order) or int(FieldOrder.PROGRESSIVE)
            context.options = {
                "chroma_sample_location": str(fmt.chroma_location or 1),
                "field_order": str(order),
            }
            num, den = fmt.sample_aspect_ratio
            if num:
                context.sample_aspect_ratio = Fraction(num, den)

    def write(self, frame: Any) -> None:
        """Write one frame."""
        assert self._format is not None
        assert isinstance(frame, Frame)
        av_frame = to_video_frame(frame, self._format, 1 / self._rate)
        av_frame.pts = self._count
        with self._translated():
            self._container.mux(self._stream.encode(av_frame))
            if self._live:
                self._target.flush()
        self._count += 1
        self.video_bytes += sum(plane.nbytes for plane in frame.planes)

    def flush(self) -> None:
        """Nothing is held."""

    def finish(self, *, jumped: bool = False) -> None:
        """Complete the target."""
        del jumped
        with self._translated():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._target.complete()

    def abandon(self, keep: bool) -> str | None:
        """Give up; raw frames are not kept."""
        del keep
        with suppress(OSError, ValueError, av.error.FFmpegError):  # what failed may fail again
            if self._container is not None:
                self._container.close()
        self._target.discard()
        return None

    def _translated(self) -> translated:
        return translated(self._target)
