"""One run over a source: decoder, filters, coder and target joined, in three threads.

One thread reads the source once, decodes frames a few ahead and queues the packets of streams that
are copied; another writes packets, those of copied streams up to the time of each. At most one
segment of frames is held.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

from vcfilter._bridge import BridgeError, BridgePacket, Demuxer, StreamInfo
from vcfilter.codec import ClusterExecutor, PassLog, ProcessExecutor, first_pass_options, is_far
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime
from vcfilter.stream.containers import (
    AVI,
    Y4M,
    Path,
    check_kind,
    container_named,
)
from vcfilter.stream.copy import Copy, StreamCopier, plan_copies
from vcfilter.stream.decoders import FrameSource, MediaFrames, NeuralFrames
from vcfilter.stream.encoders import FrameEncoder, NeuralEncoder
from vcfilter.stream.filters import FrameFilter, apply
from vcfilter.stream.graph import FilteredFrames
from vcfilter.stream.images import ImageSink, ImageTarget
from vcfilter.stream.interpolated import InterpolatedFrames
from vcfilter.stream.pipeline import BackgroundWriter, Prefetcher
from vcfilter.stream.pixels import PIXEL_FORMATS
from vcfilter.stream.reader import PacketReader
from vcfilter.stream.report import Progress, ProgressMeter, RunLog, TranscodeReport
from vcfilter.stream.sinks import MuxerSink, Y4mSink
from vcfilter.stream.source import Source
from vcfilter.stream.streams import (
    LENGTH_IN_HEADER,
    StreamSelection,
    choose_video,
    is_encrypted,
    is_short,
    name_of,
    stated_seconds,
)
from vcfilter.stream.tags import cut_chapters, file_metadata, track_metadata
from vcfilter.stream.target import Target
from vcfilter.stream.timestamps import (
    Cut,
    FrameClock,
    constant_rate,
    frame_rate,
    rate_of_gaps,
    seconds_of,
)
from vcfilter.stream.track import is_neural
from vcfilter.stream.upright import UprightFrames

logger = logging.getLogger(__name__)

RawSink = Y4mSink | ImageSink

ClosedExecutor = TypeVar("ClosedExecutor", ClusterExecutor, ProcessExecutor)

_STATE_DISPLAY = ("mp4", "mov")
"""Containers that state how decoded frames are turned for display, so that players find it."""
_AHEAD_FRAMES = 8
_TIMED_PACKETS = 1000
_LEAD_SECONDS = 60
_ENOUGH_FRAMES = 48  # tell how many new frames are to be expected
_BEHIND_PACKETS = 64
_MORE_GUESSES = 2  # first passes after the first, at most
_QUEUE_BYTES = 64 << 20  # of frames in a queue, raw ones in that of packets too


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; partial names what was kept of it, if anything."""

    def __init__(self, partial: str | None) -> None:
        super().__init__(partial or "")
        self.partial = partial


class Job:
    """One run over a source: what encode_file and decode_file share."""

    def __init__(
        self,
        source: Path,
        start: float | Fraction | None,
        duration: float | Fraction | None,
        streams: str | Sequence[str],
        filters: Sequence[FrameFilter],
        progress: Callable[[Progress], None] | None,
        decoder: DecoderOptions | None,
        runtime: Runtime | None,
        image_rate: Fraction | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        check_kind("decoder", decoder, DecoderOptions, "DecoderOptions")
        check_kind("runtime", runtime, Runtime, "a Runtime")
        check_kind("filters", filters, Iterable, "a sequence of functions", none=False)
        check_kind("progress", progress, Callable, "a function")  # type: ignore[arg-type]
        self._filters = tuple(filters)
        for each in self._filters:
            check_kind("filter", each, Callable, "a function", none=False)  # type: ignore[arg-type]
        check_kind("metadata", metadata, Mapping, "a mapping of texts")
        self.metadata = dict(metadata or {})
        for text in (*self.metadata, *self.metadata.values()):
            check_kind("metadata", text, str, "a text", none=False)
        self._start = None if start is None else seconds_of("start", start)
        self._duration = None if duration is None else seconds_of("duration", duration)
        if self._start is not None and self._start < 0:
            raise ConfigError(f"start {float(start or 0)} s is negative")
        if self._duration is not None and self._duration <= 0:
            raise ConfigError(f"duration {float(duration or 0)} s is not positive")
        self._selection = StreamSelection.of(streams)
        self._copy_videos = streams != "all"
        self._decoder = decoder or DecoderOptions()
        self._runtime = runtime
        self._began = time.monotonic()
        self._meter = ProgressMeter(progress, self._began)
        self._stack = ExitStack()
        self.bit_depth: int | None = None
        self.video_filter: str | None = None
        self.at_once = False
        self.hold = True
        self.finished: Callable[[int], bool] | None = None
        self.log = RunLog(logger)
        self.interpolation: InterpolationOptions | None = None
        self.source = Source(source, image_rate)

    def __enter__(self) -> Job:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def is_neural(self) -> bool:
        """Whether the chosen video stream is neurally coded."""
        return is_neural(self._video)

    @property
    def is_whole(self) -> bool:
        """Whether no part of the source is left out."""
        return self._start is None and self._duration is None and not self._filters

    @property
    def total_frames(self) -> int | None:
        """How many frames there will be, by what the source says; None where nothing tells.

        FFmpeg's filters may change it.
        """
        return None if self.video_filter is not None else self._meter.total_frames

    def closing(self, executor: ClosedExecutor) -> ClosedExecutor:
        """The executor, which is closed with the job."""
        return self._stack.enter_context(executor)

    def target(self, name: Path, overwrite: bool) -> Target:
        """The target, checked."""
        target = Target(name, overwrite=overwrite, source=self.source.name)
        self._stack.callback(target.discard)  # nothing is left to discard of a completed one
        return target

    def _open(self) -> None:
        self._stack.callback(self.source.close)
        self._demuxer: Demuxer = self.source.demuxer()
        self._stack.callback(_close, self._demuxer)
        self._streams = self._demuxer.streams
        self._wanted = self._selection.indices(self._streams)
        self._video: StreamInfo = choose_video(
            self._streams, self._wanted, lambda info: True, self.source.title
        )
        if is_encrypted(self._video):
            raise MediaError(f"{name_of(self._video)} is encrypted: it cannot be decoded")
        begin = self._demuxer.start_time or Fraction(0)
        start = None if self._start is None else begin + self._start
        end = None
        if self._duration is not None:
            end = (begin if start is None else start) + self._duration
        # The clock of MPEG-TS begins anywhere; that of other containers means what it says.
        zero = begin if self._demuxer.clock_may_jump else Fraction(0)
        self._cut = Cut(start=start, end=end, zero=zero)
        length = self._stated_length
        if length is not None and start is not None:
            length -= start - begin
            if length <= 0:
                raise MediaError(
                    f"{self.source.title} is over before {float(self._start or 0):g} s"
                )
        video = self._video
        if start is None:
            length = stated_seconds(video) or length  # subtitles may outlast the frames
        if self._duration is not None:
            length = self._duration if length is None else min(length, self._duration)
        rate = self._video.frame_rate
        if self.interpolation is not None:
            known = frame_rate(self._video)
            rate = self.interpolation.fps or (known and known * self.interpolation.parts)
            if length is not None and self.interpolation.slow:
                length, rate = length * self.interpolation.slow, known
        if length is not None:
            self._meter.total_seconds = float(length)
            self._meter.total_frames = round(length * rate) if rate else None

    @property
    def _stated_length(self) -> Fraction | None:
        """How long the source says that it is; Matroska says where it ends."""
        length = self._demuxer.duration
        if length is not None and self._demuxer.format_name == "matroska,webm":
            length -= max(Fraction(0), self._demuxer.start_time or Fraction(0))
        return length

    def _frame_source(self, reader: PacketReader) -> FrameSource:
        source: FrameSource = self._decoded(reader)
        if self.video_filter is not None:
            source = FilteredFrames(source, self.video_filter, self.log)
        if self.interpolation is not None:
            source = InterpolatedFrames(
                source,
                self.interpolation,
                self._runtime,
                self.log,
                hold=self.hold,
                finished=self.finished,
            )
        return source

    def _decoded(self, reader: PacketReader) -> FrameSource:
        seekable = not self.source.is_pipe
        if self.is_neural:
            frames = NeuralFrames(
                reader,
                self._video,
                self._decoder,
                self._cut,
                seekable=seekable,
                runtime=self._runtime,
                log=self.log,
                motion=self.interpolation is not None and self.interpolation.coded_motion,
            )
            if self.bit_depth is None:
                return frames
            return FilteredFrames(frames, f"format={PIXEL_FORMATS[self.bit_depth]}", self.log)
        return MediaFrames(
            reader,
            self._video,
            self._cut,
            seekable=seekable,
            bit_depth=self.bit_depth,
            log=self.log,
            at_once=self.at_once,
        )

    def _clock(
        self,
        source: FrameSource,
        container: str,
        *,
        exact: bool,
        coder: FrameEncoder | None = None,
    ) -> FrameClock:
        known = container_named(container)
        rate = source.frame_rate
        own = coder.nearest_rate(rate) if coder else None
        numbered = known.constant_rate or own is not None
        if numbered and self.video_filter is None:
            rate = constant_rate(self._video)
            if isinstance(source, InterpolatedFrames):
                rate = source.frame_rate_for(rate)
            elif rate and not self.source.is_pipe:
                rate = rate_of_gaps(rate, self._first_times(), self._video.time_base)
        if coder and own is not None:
            rate = coder.nearest_rate(rate)
        return FrameClock(
            source.time_base,
            rate,
            offset=self._cut.offset,
            tick=known.tick,
            constant_rate=numbered,
            exact=exact,
        )

    def _first_times(self) -> list[Fraction]:
        """Times of the video's first packets, in seconds, by a reading of its own."""
        times: list[Fraction] = []
        with self.source.demuxer() as demuxer, suppress(BridgeError):
            while len(times) < _TIMED_PACKETS and (packet := demuxer.read_packet()) is not None:
                if packet.stream_index == self._video.index and packet.pts is not None:
                    times.append(packet.pts * packet.time_base)
        return times

    def first_pass(self, options: EncoderOptions, container: str) -> PassLog:
        """Code all frames quickly, for the log that the second pass needs; again, nearer to what it
        needs, where the guess of a qp was far off.
        """
        log, options = self._measured(options, container, None)
        for _ in range(_MORE_GUESSES):
            if not is_far(log, options):
                break
            log, _same = self._measured(options, container, log)
        return log

    def _measured(
        self, options: EncoderOptions, container: str, guide: PassLog | None
    ) -> tuple[PassLog, EncoderOptions]:
        """A first pass: (its log, options with the source's frame rate).

        Args:
            guide: the log of an earlier one.
        """
        size = 0
        coder: NeuralEncoder | None = None
        self._meter.begin("pass 1", lambda: size)
        with self.source.demuxer() as demuxer:
            source = self._frame_source(PacketReader(demuxer, self._video, log=self.log))
            clock = self._clock(source, container, exact=True)
            stage = apply(self._filters, clock.frames(source.frames()))
            try:
                with (
                    Prefetcher(stage, self._depth(_AHEAD_FRAMES), "source") as ahead,
                    self._stop_early(),
                ):
                    for frame in ahead:
                        if coder is None:
                            if source.frame_rate:
                                options = replace(options, frame_rate=source.frame_rate)
                            coder = self._first_coder(source, clock, options, guide)
                        self._meter.read(float(frame.pts * clock.time_base))
                        size += sum(len(packet.data) for packet in coder.encode(frame))
                if coder is not None:
                    coder.encode(None)
            except KeyboardInterrupt:
                raise Interrupted(None) from None
        if coder is None or coder.encoder is None:
            raise MediaError("there is no frame in the part that was asked for")
        log = coder.encoder.pass_log
        if log is None:
            raise MediaError("the first pass gave no log")
        return log, options

    def _first_coder(
        self,
        source: FrameSource,
        clock: FrameClock,
        options: EncoderOptions,
        guide: PassLog | None,
    ) -> NeuralEncoder:
        fmt = source.video_format
        assert fmt is not None
        coder = NeuralEncoder(first_pass_options(fmt, options, guide), self._runtime)
        coder.coded_frame = self._meter.coded
        coder.keeps_log = True
        coder.open(fmt, clock.time_base, source.frame_rate)
        return coder

    def run(
        self,
        target: Target | ImageTarget,
        coder: NeuralEncoder | FrameEncoder | None,
        container: str,
    ) -> TranscodeReport:
        """Code all frames into the target and copy what stands beside them.

        Args:
            coder: None writes the frames themselves (YUV4MPEG2, image files).
        """
        sink: MuxerSink | RawSink | None = None
        begin = self._demuxer.start_time
        if container_named(container).constant_rate and begin and begin > _LEAD_SECONDS:
            self._cut = replace(self._cut, zero=begin)  # frames would be numbered up to it
        try:
            plan = self._plan(container, target)
            copied = [copy.index for copy in plan if copy.index >= 0]
            reader = PacketReader(self._demuxer, self._video, copied, self.log)
            copier = StreamCopier(reader.queue, plan, self._cut, self.log)
            sink = self._sink(target, container, copier)
            return self._run(sink, coder, target, reader, container)
        except KeyboardInterrupt:
            partial = sink.abandon(keep=True) if sink else None
            target.discard()
            raise Interrupted(partial) from None
        except BaseException:
            if sink:
                sink.abandon(keep=False)
            target.discard()
            raise

    def _tags(self) -> dict[str, str]:
        """The file's tags: the source's, and those that were asked for over them."""
        new = {key.lower() for key in self.metadata}
        kept = file_metadata(self._demuxer.metadata).items()
        tags = {key: value for key, value in kept if key.lower() not in new}
        return tags | {key: value for key, value in self.metadata.items() if value}

    def _plan(self, container: str, target: Target | ImageTarget) -> list[Copy]:
        rest = [i for i in self._wanted if i != self._video.index]
        if self._is_slow:
            if rest:
                self.log.warning(
                    f"slow motion stretches the video's times: {len(rest)} other streams are left "
                    "out"
                )
            return []
        if container_named(container).video_only:
            # Raw frames on standard output are what was asked for.
            piped = isinstance(target, Target) and target.is_pipe
            if rest and (self._copy_videos or not piped):
                what = "a sequence of images" if isinstance(target, ImageTarget) else container
                left = "1 other stream is" if len(rest) == 1 else f"{len(rest)} other streams are"
                self.log.warning(f"{what} holds one video stream alone: {left} left out")
            return []
        return plan_copies(
            self._streams,
            self._wanted,
            self._video.index,
            container,
            self.log,
            copy_videos=self._copy_videos,
            has_chapters=bool(self._demuxer.chapters),
        )

    @property
    def _is_slow(self) -> bool:
        return self.interpolation is not None and self.interpolation.slow is not None

    def _sink(
        self, target: Target | ImageTarget, container: str, copier: StreamCopier
    ) -> MuxerSink | RawSink:
        if isinstance(target, ImageTarget):
            return ImageSink(target)
        if container == Y4M:
            return Y4mSink(target)
        plain = container_named(container).video_only
        return MuxerSink(
            target,
            container,
            copier=copier,
            metadata={} if plain else self._tags(),
            chapters=()
            if plain or self._is_slow
            else tuple(cut_chapters(self._demuxer.chapters, self._cut)),
            track=replace(self._video, metadata=track_metadata(self._video)),
            log=self.log,
        )

    def _run(
        self,
        sink: MuxerSink | RawSink,
        coder: NeuralEncoder | FrameEncoder | None,
        target: Target | ImageTarget,
        reader: PacketReader,
        container: str,
    ) -> TranscodeReport:
        source = self._frame_source(reader)
        clock = self._clock(
            source,
            container,
            exact=isinstance(coder, NeuralEncoder),
            coder=coder if isinstance(coder, FrameEncoder) else None,
        )
        if not isinstance(coder, NeuralEncoder) and container not in _STATE_DISPLAY:
            source = UprightFrames(source)
        stage = apply(self._filters, clock.frames(source.frames()))
        count = 0
        first: Fraction | None = None
        last = Fraction(0)
        self._meter.begin("", lambda: sink.video_bytes)
        if isinstance(coder, NeuralEncoder):
            coder.coded_frame = self._meter.coded
        writer = BackgroundWriter(
            sink.write, self._depth(_BEHIND_PACKETS), "target", idle=sink.flush
        )
        try:
            with (
                Prefetcher(stage, self._depth(_AHEAD_FRAMES), "source") as ahead,
                self._stop_early(),
            ):
                for frame in ahead:
                    if first is None:
                        self._start_sink(sink, coder, source, clock)
                        first = frame.pts * clock.time_base
                    count += 1
                    last = max(last, self._end_of(frame, clock))
                    self._meter.read(float(last - first))
                    if self.interpolation is not None and count >= _ENOUGH_FRAMES:
                        self._meter.estimate()
                    if reader.jumps:  # the duration that the source states means nothing
                        self._meter.total_frames = self._meter.total_seconds = None
                    for item in _items(coder, frame):
                        writer.put(item)
                    if not isinstance(coder, NeuralEncoder):
                        self._meter.done(count)
                    elif coder.is_skipping:
                        self._meter.done(*coder.finished_of(count), stage="finished before")
            if first is None:
                raise MediaError("there is no frame in the part that was asked for")
            for item in _items(coder, None):
                writer.put(item)
            # AVI numbers frames from its start: what it says counts from there.
            begin = Fraction(0) if self._demuxer.format_name == AVI else first
            self._check(last - begin, reader, clock)
            writer.finish()
        except KeyboardInterrupt:
            self.source.stop()
            writer.finish()  # what is coded is kept
            raise
        except BaseException:
            writer.abandon()
            raise
        sink.finish(jumped=bool(reader.jumps))
        self._meter.end()
        assert source.video_format is not None
        psnr = None
        if isinstance(coder, NeuralEncoder) and coder.statistics:
            psnr = coder.statistics.psnr if coder.statistics.frames == count else None
        return TranscodeReport(
            source=self.source.name,
            target=target.name,
            frames=count,
            seconds=float(last - first),
            video_bytes=sink.video_bytes,
            elapsed_seconds=time.monotonic() - self._began,
            video_format=source.video_format,
            psnr=psnr,
            warnings=tuple(self.log.warnings),
        )

    def _start_sink(
        self,
        sink: MuxerSink | RawSink,
        coder: NeuralEncoder | FrameEncoder | None,
        source: FrameSource,
        clock: FrameClock,
    ) -> None:
        fmt = source.video_format
        assert fmt is not None
        if not isinstance(sink, MuxerSink):
            sink.start(fmt, clock.frame_rate, live=source.delay == 0)
            return
        assert coder is not None
        info = coder.open(fmt, clock.time_base, clock.frame_rate)
        stage = coder if isinstance(coder, NeuralEncoder) else source
        sink.start(info, live=stage.delay == 0)

    @contextmanager
    def _stop_early(self) -> Iterator[None]:
        """Where the block is left by an exception, no thread waits for a silent pipe any longer."""
        try:
            yield
        except BaseException:
            self.source.stop()
            raise

    def _check(self, seconds: Fraction, reader: PacketReader, clock: FrameClock) -> None:
        """Warn of times that were moved, and where frames end well before the source says."""
        if clock.moved_count:
            self.log.warning(
                f"{clock.moved_count} frames had a time that was not after the frame before: moved"
            )
        filtered = self._filters or self.video_filter is not None or self._is_slow
        if not self._cut.is_all or reader.jumps or filtered:
            return
        told = stated_seconds(self._video)
        if told is None and self._demuxer.format_name in LENGTH_IN_HEADER:
            told = self._stated_length
        if told is not None and is_short(seconds, told):
            self.log.warning(
                f"the source says it has {float(told):.2f} s of {name_of(self._video)}, "
                f"{float(seconds):.2f} s could be decoded: it seems to be cut short"
            )

    def _depth(self, most: int) -> int:
        """How many frames may wait in a queue: few where they are large."""
        size = max(1, self._video.width * self._video.height * 3 // 2)
        return max(2, min(most, _QUEUE_BYTES // size))

    def _end_of(self, frame: Frame, clock: FrameClock) -> Fraction:
        length = frame.duration * clock.time_base if frame.duration else Fraction(0)
        if not length and clock.frame_rate:
            length = 1 / clock.frame_rate
        return frame.pts * clock.time_base + length


def _close(demuxer: Demuxer) -> None:
    """Release a source, unless its thread still waits for it: the thread's end releases it."""
    with suppress(RuntimeError):
        demuxer.close()


def _items(
    coder: NeuralEncoder | FrameEncoder | None, frame: Frame | None
) -> Sequence[BridgePacket | Frame]:
    """What the sink writes next: packets, or the frame itself where nothing is coded."""
    if coder is not None:
        return coder.encode(frame)
    return [] if frame is None else [frame]
