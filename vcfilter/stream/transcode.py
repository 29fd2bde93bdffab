"""Whole files, in any direction: ordinary to neural, neural to ordinary, neural to neural.

Reading and decoding, the networks, and writing overlap: pictures are decoded a few frames ahead
in one thread, packets are written in another, where the source's other streams are copied up to
the time of each packet. At most one segment of frames is held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction

from vcfilter._bridge import BridgeError, StreamInfo
from vcfilter.codec import PassLog, first_pass_options
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import EncoderOptions
from vcfilter.stream.media import (
    Cut,
    MediaCodec,
    MediaCoder,
    MediaPictures,
    PictureCoder,
    PictureSource,
    Warn,
    Y4mCoder,
)
from vcfilter.stream.pipeline import Ahead, Behind
from vcfilter.stream.raw import RAW, MediaDemuxer
from vcfilter.stream.reader import DecoderOptions, NeuralPictures, neural_frames
from vcfilter.stream.source import Source, reason_of
from vcfilter.stream.streams import (
    MATROSKA,
    StreamCopier,
    StreamSelection,
    choose_video,
    cut_chapters,
    file_metadata,
    plan_copies,
    track_metadata,
)
from vcfilter.stream.track import is_neural
from vcfilter.stream.writer import (
    NEURAL_CONTAINERS,
    MuxerSink,
    NeuralCoder,
    PlainSink,
    Target,
    container_of,
)

__all__ = [
    "Interrupted",
    "Progress",
    "TranscodeReport",
    "decode_file",
    "encode_file",
    "neural_frames",
]

_AHEAD_FRAMES = 8
_BEHIND_PACKETS = 64
_QUEUE_BYTES = 64 << 20  # of pictures in a queue, raw ones in that of packets too
_PROGRESS_SECONDS = 0.2

DEFAULT_CODECS = {
    "webm": MediaCodec.named("libvpx-vp9", options={"row-mt": "1"}),
    "nut": MediaCodec(name="rawvideo"),
    "rawvideo": MediaCodec(name="rawvideo"),
    "avi": MediaCodec(name="mpeg4", options={"flags": "+qscale", "global_quality": "236"}),
    "mpeg": MediaCodec(name="mpeg2video", options={"b": "20000000"}),
    "hevc": MediaCodec.named("libx265"),
}
"""What decoded pictures are coded with when nothing is asked for; elsewhere x264 at crf 18."""

_DEFAULT_CODEC = MediaCodec.named("libx264")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Args:
        stage: "pass 1" or "" for the (last) pass.
        frames: coded so far.
        total_frames: estimate of all; None when unknown.
        seconds: playing time of what is coded.
        total_seconds: playing time of all; None when unknown.
        video_bytes: size of the picture track's packets written so far.
        elapsed_seconds: since the run began.
    """

    stage: str
    frames: int
    total_frames: int | None
    seconds: float
    total_seconds: float | None
    video_bytes: int
    elapsed_seconds: float

    @property
    def frames_per_second(self) -> float:
        """Speed so far."""
        return self.frames / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    @property
    def bitrate(self) -> float:
        """Bit/s of the picture track so far."""
        return 8 * self.video_bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate of the time that is still needed; None when unknown."""
        if not self.total_frames or not self.frames:
            return None
        rest = max(self.total_frames - self.frames, 0)
        return rest * self.elapsed_seconds / self.frames


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscodeReport:
    """What a run did.

    Args:
        source, target: their names.
        frames: coded.
        seconds: playing time of the pictures.
        video_bytes: size of the picture track's packets.
        elapsed_seconds: that the run took.
        video_format: of the pictures.
        psnr: mean over the frames, Y, U, V weighted 6:1:1, in dB; None unless coded neurally.
        warnings: one sentence each.
    """

    source: str
    target: str
    frames: int
    seconds: float
    video_bytes: int
    elapsed_seconds: float
    video_format: VideoFormat
    psnr: float | None
    warnings: tuple[str, ...]

    @property
    def bitrate(self) -> float:
        """Bit/s of the picture track."""
        return 8 * self.video_bytes / self.seconds if self.seconds > 0 else 0.0


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; partial names what was kept of it, if anything."""

    def __init__(self, partial: str | None) -> None:
        super().__init__(partial or "")
        self.partial = partial


def encode_file(
    source: str,
    target: str,
    options: EncoderOptions | None = None,
    *,
    decoder: DecoderOptions | None = None,
    start: float | Fraction | None = None,
    duration: float | Fraction | None = None,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    two_pass: bool = False,
    container: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    warn: Warn | None = None,
) -> TranscodeReport:
    """Code a film's pictures neurally; its other streams, chapters and tags are copied.

    Packets of the other streams are copied byte for byte. The target appears under its name only
    when it is complete.

    Args:
        source: path or URL of anything that FFmpeg reads; "-" is standard input.
        target: path; "-" is standard output. Its extension tells the container: mkv, nut, avi,
            mov or vcf (the pictures alone).
        options: see EncoderOptions; its frame rate is replaced by the source's.
        decoder: how a source that is itself neural is decoded.
        start, duration: the part wanted, in seconds from the source's start.
        streams: "all", or specifiers like FFmpeg's -map ("v", "a:0", "0:2").
        overwrite: whether an existing target is replaced.
        two_pass: look at the whole source first, to meet options.bitrate.
        container: FFmpeg's name of the container, instead of the extension's.
        progress: called about five times a second.
        warn: called at once with each warning; all are in the report as well.

    Raises:
        ConfigError: an argument is outside what is allowed.
        MediaError: source or target cannot be read or written.
        Interrupted: after Ctrl-C.
    """
    options = options or EncoderOptions()
    job = _Job(source, start, duration, streams, warn, progress, decoder or DecoderOptions())
    name = container_of(target, container, MATROSKA)
    if name not in NEURAL_CONTAINERS:
        raise ConfigError(
            f"{target}: {name} cannot hold a neural stream; give .mkv (or .nut, .avi, .mov, .vcf)"
        )
    with job:
        log: PassLog | None = None
        if two_pass:
            if options.bitrate is None:
                raise ConfigError("two passes need a bitrate to aim at")
            if job.source.is_pipe:
                raise ConfigError("two passes need a file: a pipe can be read only once")
        goal = job.target(target, overwrite)
        if two_pass:
            log = job.first_pass(options)
        coder = NeuralCoder(options, log, {"ENCODER": "vcfilter"})
        return job.run(goal, coder, name)


def decode_file(
    source: str,
    target: str,
    *,
    codec: MediaCodec | None = None,
    decoder: DecoderOptions | None = None,
    start: float | Fraction | None = None,
    duration: float | Fraction | None = None,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    container: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    warn: Warn | None = None,
) -> TranscodeReport:
    """Decode a neural film into an ordinary one; its other streams are copied.

    Args:
        source: a neural file; "-" is standard input.
        target: path, of any container that FFmpeg writes; "-" is standard output, YUV4MPEG2
            unless container says otherwise.
        codec: encoder of the pictures; None takes x264 at crf 18 (webm: VP9, nut: raw video,
            avi: MPEG-4 part 2, mpg: MPEG-2).
        decoder: see DecoderOptions.
        start, duration, streams, overwrite, container, progress, warn: as for encode_file.

    Raises:
        ConfigError, MediaError, Interrupted: as encode_file.
        BitstreamError: damage, where the decoder is strict.
        ModelMismatchError: the stream was coded by another model.
    """
    job = _Job(source, start, duration, streams, warn, progress, decoder or DecoderOptions())
    name = container_of(target, container, "yuv4mpegpipe")
    with job:
        if not job.is_neural:
            raise MediaError(f"{job.source.title} has no neural video stream: nothing to decode")
        goal = job.target(target, overwrite)
        coder: PictureCoder
        if name == "yuv4mpegpipe":
            if codec is not None:
                raise ConfigError("y4m holds raw pictures: it takes no codec")
            coder = Y4mCoder()
        elif name == RAW:
            raise ConfigError(f"{target}: vcf holds neural pictures only; encode writes it")
        else:
            chosen = codec or DEFAULT_CODECS.get(name, _DEFAULT_CODEC)
            threads = decoder.threads if decoder else 0
            coder = MediaCoder(chosen, name, threads)
        return job.run(goal, coder, name)


class _Job:
    """One run over a source: what encode_file and decode_file share."""

    def __init__(
        self,
        source: str,
        start: float | Fraction | None,
        duration: float | Fraction | None,
        streams: str | Sequence[str],
        warn: Warn | None,
        progress: Callable[[Progress], None] | None,
        decoder: DecoderOptions,
    ) -> None:
        if start is not None and start < 0:
            raise ConfigError(f"start {float(start)} s is negative")
        if duration is not None and duration <= 0:
            raise ConfigError(f"duration {float(duration)} s is not positive")
        named = ("0",) if streams == "all" else (streams,) if isinstance(streams, str) else streams
        self._selection = StreamSelection(specifiers=tuple(named))
        self._copy_videos = streams != "all"
        self._start, self._duration = start, duration
        self._warn_now = warn
        self._progress = progress
        self._decoder = decoder
        self._warnings: list[str] = []
        self._began = time.monotonic()
        self._stack = ExitStack()
        self.source = Source(source)

    def __enter__(self) -> _Job:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def warn(self, text: str) -> None:
        """Keep a warning for the report, and tell it."""
        if text not in self._warnings:
            self._warnings.append(text)
            if self._warn_now:
                self._warn_now(text)

    @property
    def is_neural(self) -> bool:
        """Whether the chosen pictures are neurally coded."""
        return is_neural(self._video)

    def target(self, name: str, overwrite: bool) -> Target:
        """The target, checked."""
        target = Target(name, overwrite=overwrite, source=self.source.name)
        self._stack.callback(target.discard)  # nothing is left to discard of a completed one
        return target

    def _open(self) -> None:
        self._stack.callback(self.source.close)
        self._demuxer: MediaDemuxer = self.source.demuxer()
        self._stack.callback(self._demuxer.close)
        self._streams = self._demuxer.streams
        self._wanted = self._selection.indices(self._streams)
        self._video: StreamInfo = choose_video(self._streams, self._wanted, lambda info: True)
        begin = self._demuxer.start_time or Fraction(0)
        start = None if self._start is None else begin + Fraction(self._start)
        end = None
        if self._duration is not None:
            end = (begin if start is None else start) + Fraction(self._duration)
        self._cut = Cut(start=start, end=end)
        length = self._demuxer.duration
        if length is not None and start is not None:
            length -= start - begin
            if length <= 0:
                raise MediaError(
                    f"{self.source.title} is over before {float(self._start or 0):g} s"
                )
        if self._duration is not None:
            wanted = Fraction(self._duration)
            length = wanted if length is None else min(length, wanted)
        self._length = length

    def _pictures(self) -> PictureSource:
        """The pictures, from the source's second opening."""
        seekable = not self.source.is_pipe
        if self.is_neural:
            demuxer = self.source.demuxer()
            try:
                return NeuralPictures(
                    demuxer,
                    self._video,
                    self._decoder,
                    self._cut,
                    seekable=seekable,
                    warn=self.warn,
                )
            except BaseException:
                demuxer.close()
                raise
        container = self.source.container()
        videos = [info.index for info in self._streams if info.kind == "video"]
        position = videos.index(self._video.index)
        if position >= len(container.streams.video):
            container.close()
            raise MediaError(f"{self.source.title}: its video stream cannot be decoded")
        return MediaPictures(
            container, position, self._video, self._cut, seekable=seekable, warn=self.warn
        )

    def first_pass(self, options: EncoderOptions) -> PassLog:
        """Code all pictures quickly, for the log that the second pass needs."""
        pictures = self._pictures()
        frames = 0
        coder: NeuralCoder | None = None
        size = 0
        try:
            with (
                Ahead(pictures.frames(), self._depth(_AHEAD_FRAMES), "source") as ahead,
                self._stop_early(),
            ):
                for frame in ahead:
                    if coder is None:
                        coder = self._first_coder(pictures, options)
                    size += sum(len(packet.data) for packet in coder.encode(frame))
                    frames += 1
                    self._tell("pass 1", frames, self._time_of(frame, pictures), size)
        except KeyboardInterrupt:
            raise Interrupted(None) from None
        finally:
            pictures.close()
        if coder is None or coder.encoder is None:
            raise MediaError("there is no picture in the part that was asked for")
        coder.encode(None)
        log = coder.encoder.pass_log
        if log is None:
            raise MediaError("the first pass gave no log")
        return log

    def _first_coder(self, pictures: PictureSource, options: EncoderOptions) -> NeuralCoder:
        fmt = pictures.video_format
        assert fmt is not None
        if pictures.frame_rate:
            options = replace(options, frame_rate=pictures.frame_rate)
        coder = NeuralCoder(first_pass_options(fmt, options))
        coder.open(fmt, pictures.time_base, pictures.frame_rate)
        return coder

    def run(self, target: Target, coder: PictureCoder, container: str) -> TranscodeReport:
        """Code all pictures into the target and copy what stands beside them."""
        sink: MuxerSink | PlainSink | None = None
        try:
            sink = self._sink(target, container)
            return self._run(sink, coder, target)
        except KeyboardInterrupt:
            partial = sink.abandon(keep=True) if sink else None
            target.discard()
            raise Interrupted(partial) from None
        except BaseException:
            if sink:
                sink.abandon(keep=False)
            target.discard()
            raise

    def _sink(self, target: Target, container: str) -> MuxerSink | PlainSink:
        if container == "yuv4mpegpipe":
            self._warn_dropped("y4m")
            self._copy_nothing()
            return PlainSink(target)
        if container in ("rawvideo", "h264", "hevc", RAW):
            self._warn_dropped(container)
            self._copy_nothing()
            return MuxerSink(target, container, copier=None, metadata={}, chapters=())
        plan = plan_copies(
            self._streams,
            self._wanted,
            self._video.index,
            container,
            self.warn,
            self._copy_videos,
        )
        if self._cut.start and plan and not self.source.is_pipe:
            try:
                self._demuxer.seek(-1, int(self._cut.start * 1_000_000))
            except BridgeError as error:
                self.warn(f"the source cannot seek ({reason_of(error)}): it is read from its start")
        copier = StreamCopier(self._demuxer, plan, self._cut, self.warn)
        track = replace(self._video, metadata=track_metadata(self._video))
        sink = MuxerSink(
            target,
            container,
            copier=copier,
            metadata=file_metadata(self._demuxer.metadata),
            chapters=tuple(cut_chapters(self._demuxer.chapters, self._cut)),
            track=track,
            offset=self._cut.offset,
        )
        if not copier.reads:
            self._copy_nothing()
        return sink

    def _copy_nothing(self) -> None:
        """Only the pictures are read on: what a pipe brings need not be held for the copies."""
        self._demuxer.close()
        self.source.drop_first()

    def _warn_dropped(self, container: str) -> None:
        rest = [i for i in self._wanted if i != self._video.index]
        if rest and (self._copy_videos or container == RAW):
            self.warn(f"{container} holds pictures only: {len(rest)} other streams are left out")

    def _run(
        self, sink: MuxerSink | PlainSink, coder: PictureCoder, target: Target
    ) -> TranscodeReport:
        pictures = self._pictures()
        frames = 0
        first: Fraction | None = None
        last = Fraction(0)
        behind = Behind(sink.write, self._depth(_BEHIND_PACKETS), "target")
        try:
            with (
                Ahead(pictures.frames(), self._depth(_AHEAD_FRAMES), "source") as ahead,
                self._stop_early(),
            ):
                for frame in ahead:
                    if first is None:
                        assert pictures.video_format is not None
                        info = coder.open(
                            pictures.video_format, pictures.time_base, pictures.frame_rate
                        )
                        sink.start(info)
                        first = frame.pts * pictures.time_base
                    for packet in coder.encode(frame):
                        behind.put(packet)
                    frames += 1
                    last = max(last, self._end_of(frame, pictures))
                    self._tell("", frames, float(last - first), sink.video_bytes)
            if first is None:
                raise MediaError("there is no picture in the part that was asked for")
            for packet in coder.encode(None):
                behind.put(packet)
            self._check_length(last - first)
            behind.finish()
        except KeyboardInterrupt:
            self.source.stop()
            behind.finish()  # what is coded is kept
            raise
        except BaseException:
            behind.abandon()
            raise
        finally:
            pictures.close()
        sink.finish()
        self._tell("", frames, float(last - first), sink.video_bytes, final=True)
        assert pictures.video_format is not None
        psnr = None
        if isinstance(coder, NeuralCoder) and coder.statistics and coder.statistics.records:
            records = coder.statistics.records
            psnr = sum(record.psnr for record in records) / len(records)
        return TranscodeReport(
            source=self.source.name,
            target=target.name,
            frames=frames,
            seconds=float(last - first),
            video_bytes=sink.video_bytes,
            elapsed_seconds=time.monotonic() - self._began,
            video_format=pictures.video_format,
            psnr=psnr,
            warnings=tuple(self._warnings),
        )

    @contextmanager
    def _stop_early(self) -> Iterator[None]:
        """Where the block is left by an exception, no thread waits for a silent pipe any longer."""
        try:
            yield
        except BaseException:
            self.source.stop()
            raise

    def _check_length(self, seconds: Fraction) -> None:
        """Warn where the pictures end well before the source says they do."""
        if self._video.duration is None or self._cut != Cut():
            return
        told = self._video.duration * self._video.time_base
        if told - seconds > max(Fraction(1, 2), told / 20):
            self.warn(
                f"the source says it has {float(told):.2f} s of pictures, "
                f"{float(seconds):.2f} s could be decoded: it seems to be cut short"
            )

    def _depth(self, most: int) -> int:
        """How many pictures may wait in a queue: few where they are large."""
        size = max(1, self._video.width * self._video.height * 3 // 2)
        return max(2, min(most, _QUEUE_BYTES // size))

    def _time_of(self, frame: Frame, pictures: PictureSource) -> float:
        return float(frame.pts * pictures.time_base - self._cut.offset)

    def _end_of(self, frame: Frame, pictures: PictureSource) -> Fraction:
        rate = pictures.frame_rate
        length = frame.duration * pictures.time_base if frame.duration else Fraction(0)
        if not length and rate:
            length = 1 / rate
        return frame.pts * pictures.time_base + length

    _told = 0.0

    def _tell(
        self, stage: str, frames: int, seconds: float, size: int, final: bool = False
    ) -> None:
        now = time.monotonic()
        if self._progress is None or (not final and now - self._told < _PROGRESS_SECONDS):
            return
        self._told = now
        rate = self._video.frame_rate
        total = round(self._length * rate) if self._length is not None and rate else None
        self._progress(
            Progress(
                stage=stage,
                frames=frames,
                total_frames=frames if final else total,
                seconds=seconds,
                total_seconds=float(self._length) if self._length is not None else None,
                video_bytes=size,
                elapsed_seconds=now - self._began,
            )
        )
