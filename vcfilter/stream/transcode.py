"""Whole files, in any direction: ordinary to neural, neural to ordinary, neural to neural."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Literal

from vcfilter.codec import PassLog, fitting_processes
from vcfilter.codec.cluster import ClusterExecutor
from vcfilter.codec.executor import Executor, ProcessExecutor
from vcfilter.codec.runtime import load_model
from vcfilter.codec.structure import GopStructure
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import VideoFormat
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime
from vcfilter.stream.containers import (
    MATROSKA,
    Y4M,
    Path,
    check_kind,
    container_of,
    need_neural,
)
from vcfilter.stream.encoders import FrameEncoder, MediaCodec, NeuralEncoder
from vcfilter.stream.filters import FrameFilter
from vcfilter.stream.images import ImageTarget, files_of, is_image_target
from vcfilter.stream.job import Interrupted, Job
from vcfilter.stream.report import Progress, TranscodeReport
from vcfilter.stream.resume import (
    RESUMABLE,
    SETTINGS_TAG,
    EarlierRun,
    check_resumable,
    earlier_runs,
    remove,
    settings_text,
)

logger = logging.getLogger(__name__)

__all__ = ["Interrupted", "Progress", "TranscodeReport", "decode_file", "encode_file"]


def encode_file(
    source: Path,
    target: Path,
    options: EncoderOptions | None = None,
    *,
    decoder: DecoderOptions | None = None,
    runtime: Runtime | None = None,
    start: float | Fraction | None = None,
    duration: float | Fraction | None = None,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    two_pass: bool = False,
    bit_depth: int | None = None,
    workers: int | Literal["auto"] | None = None,
    cluster: str | None = None,
    resume: bool = False,
    container: str | None = None,
    filters: Sequence[FrameFilter] = (),
    video_filter: str | None = None,
    interpolation: InterpolationOptions | None = None,
    image_rate: Fraction | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TranscodeReport:
    """Code a video's frames neurally; its other streams, chapters and tags are copied.

    Packets of the other streams are copied byte for byte. The target appears under its name only
    when it is complete. Warnings are logged (logging, "vcfilter.stream") and in the report.

    Args:
        source: path or URL of anything that FFmpeg reads; "-" is standard input.
        target: path; "-" is standard output. Its extension tells the container: mkv, nut, avi or
            mov.
        options: see EncoderOptions; its frame rate is replaced by the source's.
        decoder: how a source that is itself neural is decoded.
        runtime: where the networks run.
        start, duration: the part wanted, in seconds from the source's start.
        streams: "all", or specifiers like FFmpeg's -map ("v", "a:0", "0:2").
        overwrite: whether an existing target is replaced.
        two_pass: look at the whole source first, to meet options.bitrate.
        bit_depth: 8 or 10 bits per sample; None takes the source's (10 for any above 8).
        workers: code so many GOPs beside each other, each in a process of one thread; the bytes
            do not depend on how many. With crf or qp only. None: in this process. "auto": as many
            as there are cores and memory for; where that is one, the networks run on a GPU, or the
            source has no more frames than one GOP may have, in this process.
        cluster: address of a Dask scheduler, whose workers code GOPs beside each other instead;
            see codec.cluster.ClusterExecutor. With crf or qp only.
        resume: go on with a run that was stopped, from the last keyframe of what it left beside the
            target (NAME.part.EXT or NAME.partial.EXT), which is removed at the end; begin anew
            where there is nothing. Matroska and NUT with crf or qp only. The source is read from
            its start, and all packets become those of an undisturbed run.
        container: FFmpeg's name of the container, instead of the extension's.
        filters: what frames go through before they are coded, in this order.
        video_filter: a chain of FFmpeg's filters before those, as ffmpeg's -vf takes it
            ("scale=640:-2,fps=25").
        interpolation: more frames per second, between video_filter and filters.
        image_rate: frames per second of a source that is a sequence of images (25).
        metadata: tags of the file, over those of the source; an empty text removes one.
        progress: called about five times a second.

    Raises:
        ConfigError: an argument is outside what is allowed, or the run to resume had others.
        MediaError: source or target cannot be read or written.
        Interrupted: after Ctrl-C.
    """
    check_kind("options", options, EncoderOptions, "EncoderOptions")
    options = options or EncoderOptions()
    job = Job(
        source, start, duration, streams, filters, progress, decoder, runtime, image_rate, metadata
    )
    check_kind("video_filter", video_filter, str, "a text")
    job.video_filter = video_filter
    check_kind("interpolation", interpolation, InterpolationOptions, "InterpolationOptions")
    job.interpolation = interpolation
    if bit_depth not in (None, 8, 10):
        raise ConfigError(f"bit_depth {bit_depth!r} is not 8 or 10")
    job.bit_depth = bit_depth
    job.at_once = options.structure == "low-delay"
    check_kind("cluster", cluster, str, "an address")
    if workers is not None or cluster is not None:
        _check_workers(workers, cluster, options)
    name = container_of(target, container, MATROSKA)
    need_neural(target, name)
    check_kind("resume", resume, bool, "yes or no", none=False)
    if resume:
        check_resumable(options, name)
    settings = settings_text(options, start=start, bit_depth=bit_depth, video_filter=video_filter)
    with job:
        log: PassLog | None = None
        if two_pass:
            if options.bitrate is None:
                raise ConfigError("two passes need a bitrate to aim at")
            if job.source.is_pipe:
                raise ConfigError("two passes need a file: a pipe can be read only once")
        goal = job.target(target, overwrite)
        if resume and not goal.is_regular:
            raise ConfigError(f"only a file can be resumed, not {goal.title}")
        earlier: list[EarlierRun] = earlier_runs(goal, settings) if resume else []
        run = earlier[0] if earlier else None
        if run:
            logger.info("%d frames are taken from %s", run.finished, run.path)
        elif not resume and name in RESUMABLE:
            for path in goal.leftovers():
                if not goal.is_written(path):
                    job.log.warning(
                        f"{path} is of a run that was stopped: --resume goes on with it"
                    )
        if two_pass:
            log = job.first_pass(options, name)
        info = None
        if cluster is not None:
            info = load_model(options.model, replace(runtime or Runtime(), threads=1)).info
        remote = job.closing(ClusterExecutor(cluster, info.id)) if cluster and info else None

        def executor(video_format: VideoFormat) -> Executor | None:
            if workers is None:
                return remote
            return _processes(job, options, runtime or Runtime(), workers, video_format)

        tags = {"ENCODER": "vcfilter", SETTINGS_TAG: settings}
        coder = NeuralEncoder(options, runtime, log, tags, executor, run)
        report = job.run(goal, coder, name)
        remove(earlier)
        return replace(report, resumed=run.finished if run else 0)


def _processes(
    job: Job,
    options: EncoderOptions,
    runtime: Runtime,
    workers: int | Literal["auto"],
    video_format: VideoFormat,
) -> Executor | None:
    """Processes that code GOPs of frames of a format; None: better this one alone."""
    frames, keyint = job.total_frames, GopStructure.of(options).keyint
    if workers == "auto":
        workers = 1
        if frames is None or frames > keyint:
            workers = fitting_processes(video_format, min(keyint, frames or keyint))
        if workers > 1 and not load_model(options.model, runtime).device.startswith("cpu"):
            workers = 1
        if workers == 1:
            logger.info("all GOPs are coded in this process")
            return None
        logger.info("GOPs are coded in %d processes", workers)
    load = partial(load_model, options.model, replace(runtime, threads=1))
    executor = job.closing(ProcessExecutor(load, workers))
    if frames is not None and frames > (workers - 1) * keyint:
        executor.start()  # all are needed: they load their models while this process loads its own
    return executor


def _check_workers(
    workers: int | Literal["auto"] | None, cluster: str | None, options: EncoderOptions
) -> None:
    """Raise ConfigError unless GOPs can be coded beside each other with these options."""
    if workers != "auto":
        check_kind("workers", workers, int, "a whole number or 'auto'")
    if workers is not None and cluster is not None:
        raise ConfigError("workers are processes here, a cluster has its own: give one of them")
    if isinstance(workers, int) and workers < 1:
        raise ConfigError(f"workers {workers} is below 1")
    for name in ("bitrate", "quality", "maxrate"):
        if getattr(options, name) is not None:
            who = "workers code" if cluster is None else "a cluster codes"
            raise ConfigError(f"{who} at a constant qp or crf only: give no {name}")


def decode_file(
    source: Path,
    target: Path,
    *,
    codec: MediaCodec | None = None,
    decoder: DecoderOptions | None = None,
    runtime: Runtime | None = None,
    start: float | Fraction | None = None,
    duration: float | Fraction | None = None,
    streams: str | Sequence[str] = "all",
    overwrite: bool = False,
    container: str | None = None,
    filters: Sequence[FrameFilter] = (),
    video_filter: str | None = None,
    interpolation: InterpolationOptions | None = None,
    image_rate: Fraction | None = None,
    any_source: bool = False,
    eqvi_names: bool = False,
    resume: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TranscodeReport:
    """Decode a neural video into an ordinary one; its other streams are copied.

    Args:
        source: a neural file, with interpolation or any_source any video; "-" is standard input.
        target: path, of any container that FFmpeg writes; "-" is standard output, YUV4MPEG2
            unless container says otherwise. A folder, or a pattern like "frames/%05d.png", gets
            PNG files; of PNG files as a source, the originals are copied there byte for byte.
        codec: encoder of the frames; None takes the container's (x264 at crf 18; webm: VP9, nut:
            raw video, avi: MPEG-4 part 2, mpg: MPEG-2).
        decoder: see DecoderOptions.
        any_source: the source may be an ordinary video, which is coded anew.
        eqvi_names: image files are called as the source's, new ones with _0, _1, ... behind.
        resume: image files that an earlier run with the same arguments left stay as they are, and
            new frames among them are not made again. A file that was cut short is replaced.
        runtime, start, duration, streams, overwrite, container, filters, video_filter,
            interpolation, image_rate, metadata, progress: as for encode_file.

    Raises:
        ConfigError, MediaError, Interrupted: as encode_file.
        BitstreamError: damage, where the decoder is strict.
        ModelMismatchError: the stream was coded by another model.
    """
    job = Job(
        source, start, duration, streams, filters, progress, decoder, runtime, image_rate, metadata
    )
    check_kind("video_filter", video_filter, str, "a text")
    job.video_filter = video_filter
    check_kind("interpolation", interpolation, InterpolationOptions, "InterpolationOptions")
    job.interpolation = interpolation
    images = is_image_target(target)
    if eqvi_names and not images:
        raise ConfigError("names like those of the source are those of image files")
    check_kind("resume", resume, bool, "yes or no", none=False)
    if resume and not images:
        raise ConfigError(f"{target} is no folder of image files, which alone can be resumed here")
    if images and (codec is not None or container is not None):
        raise ConfigError(f"{target} gets PNG files: it takes no codec and no container")
    name = Y4M if images else container_of(target, container, Y4M)
    with job:
        is_taken = any_source if interpolation is None else not interpolation.coded_motion
        if not job.is_neural and not is_taken:
            raise MediaError(f"{job.source.title} has no neural video stream: nothing to decode")
        if name == Y4M and codec is not None:
            raise ConfigError("y4m holds raw frames: it takes no codec")
        if images:
            job.hold = False  # files have no duration
            files = _image_target(target, job, overwrite, eqvi_names, resume)
            job.finished = files.has if resume else None
            return job.run(files, None, name)
        threads = runtime.threads if runtime else 0
        coder = None if name == Y4M else FrameEncoder(codec, name, threads, job.log)
        return job.run(job.target(target, overwrite), coder, name)


def _image_target(
    target: Path, job: Job, overwrite: bool, eqvi_names: bool, resume: bool
) -> ImageTarget:
    """Where image files go. Those of the source are known where its frames come out as they are."""
    options = job.interpolation
    originals = files_of(job.source.name) if job.source.is_sequence else []
    whole = job.is_whole and job.video_filter is None
    if not whole or options is None or options.fps is not None or options.duplicates == "fill":
        if eqvi_names:
            raise ConfigError(
                "names like those of the source need a factor and all of the source's frames"
            )
        originals = []
    parts = 1 if options is None else options.parts
    return ImageTarget(
        target,
        overwrite=overwrite,
        parts=parts,
        originals=originals,
        eqvi_names=eqvi_names,
        resume=resume,
    )
