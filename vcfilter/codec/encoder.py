"""From frames to packets: planning, coding (codec.segment), output in display order."""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from math import log2

from vcfilter.bitstream import SequenceHeader
from vcfilter.codec.buffer import Buffer
from vcfilter.codec.executor import Executor, GopTask
from vcfilter.codec.finished import FinishedPackets
from vcfilter.codec.plan import Planner, SegmentJob
from vcfilter.codec.rate import Coarser, PassLog, SegmentRecord, make_rate_control
from vcfilter.codec.runtime import frame_threads, load_model, threads_of
from vcfilter.codec.segment import Coding, FrameRecord, GopState, SegmentResult, encode_segment
from vcfilter.codec.structure import GopStructure
from vcfilter.codec.trial import encode_tried
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, Frame, Packet, VideoFormat
from vcfilter.models.base import ARCHITECTURES, Model
from vcfilter.options import EncoderOptions, Runtime, check_type

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.2  # between reports of coded frames while workers are waited for


@dataclass(slots=True)
class EncoderStatistics:
    """Totals so far, and records of each frame and segment in display order.

    The lists grow with the stream: `clear` empties them, and the totals stay. A pass log holds the
    segments since then.
    """

    frames: int = 0
    bytes: int = 0
    psnr_sum: float = 0.0
    records: list[FrameRecord] = field(default_factory=list)
    segments: list[SegmentRecord] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the records."""
        self.records.clear()
        self.segments.clear()

    @property
    def psnr(self) -> float | None:
        """Mean of the frames', dB; None without frames."""
        return self.psnr_sum / self.frames if self.frames else None

    def add(self, record: FrameRecord) -> None:
        """Count one more frame."""
        self.frames += 1
        self.bytes += record.size
        self.psnr_sum += record.psnr
        self.records.append(record)


@dataclass(slots=True)
class _Submitted:
    """A GOP that an executor codes.

    Args:
        result: what comes of it.
        coded: records of its coded frames that have come.
        reported: how many of them coded_frame was called with.
    """

    result: Future[list[SegmentResult]]
    coded: list[FrameRecord]
    reported: int = 0


class Encoder:
    """Encodes frames, given in display order, into packets in display order.

    Packets come a segment at a time, when the frames that it refers to, and up to 9 after them that
    the lookahead needs, are there (`delay`). At most so many frames are held, a GOP more per worker
    with an executor.

    Args:
        video_format: what the frames are.
        options: see EncoderOptions.
        runtime: device and threads of the networks.
        pass_log: of a first pass over the same frames; makes this the second pass.
        model: a loaded model, instead of the one that options and runtime name.
        executor: codes GOPs beside each other; the qp must be constant. Its owner closes it.
        finished: packets of an earlier run over the same frames, in display order: those before
            the last keyframe among them are output instead of being coded again. The qp must be
            constant.
        coded_frame: called when a frame is coded, in coding order; with a maxrate when its packet
            is there. With an executor frames of several GOPs come mixed, within encode().

    Attributes:
        extradata: the sequence header, for the container.
        statistics: what was coded so far, without finished packets.
        delay: most frames that are held before a packet comes.

    Raises:
        ConfigError: an argument is of another type, the pass log does not fit, the preset is none
            of the model's, or an executor or finished packets come with a rate that is neither a
            constant qp nor a crf.
    """

    def __init__(
        self,
        video_format: VideoFormat,
        options: EncoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        pass_log: PassLog | None = None,
        model: Model | None = None,
        executor: Executor | None = None,
        finished: Sequence[Packet] = (),
        coded_frame: Callable[[FrameRecord], None] | None = None,
    ) -> None:
        options = options if options is not None else EncoderOptions()
        runtime = runtime if runtime is not None else Runtime()
        check_type("video_format", video_format, VideoFormat, "a VideoFormat")
        check_type("options", options, EncoderOptions, "EncoderOptions")
        check_type("runtime", runtime, Runtime, "a Runtime")
        self.statistics = EncoderStatistics()
        self._runtime = runtime
        if executor is not None and not options.is_constant_qp:
            raise ConfigError("GOPs can be coded beside each other at a constant qp or crf only")
        if executor is not None and options.maxrate is not None:
            raise ConfigError("GOPs that are coded beside each other cannot keep a maxrate")
        if finished and (not options.is_constant_qp or options.maxrate is not None):
            raise ConfigError("an earlier run can be gone on from at a constant qp or crf only")
        self._finished = FinishedPackets(finished) if finished else None
        self._joined: FinishedPackets | None = None  # until the first job after them is coded
        self._executor = executor
        self._coded_frame = coded_frame
        self._pending: deque[_Submitted] = deque()
        self._jobs: list[SegmentJob] = []  # of a GOP that an executor will code
        self._format = video_format
        self._options = options
        self._pass_log = pass_log
        self._model = model if model is not None else load_model(options.model, self._runtime)
        info = self._model.info
        if options.preset not in info.efforts:
            raise ConfigError(
                f"preset {options.preset!r} is not one of {', '.join(info.efforts)} "
                f"of the model {info.name!r}"
            )
        if options.layers > info.quality_layers:
            raise ConfigError(
                f"layers {options.layers}: the model {info.name!r} codes {info.quality_layers}"
            )
        structure = GopStructure.of(options)
        sequence = SequenceHeader(
            model_id=info.id,
            architecture=ARCHITECTURES[info.architecture],
            numerics=info.numerics,
            video_format=video_format,
            structure=structure.kind,
            levels=options.layers,
            slots=structure.slots,
            reorder=structure.reorder,
            reach=structure.reach,
            name=info.name,
        )
        trial = info.trials.get(options.preset)
        constant = options.is_constant_qp and options.maxrate is None
        if not (constant and structure.adaptive):
            trial = None
        self.extradata = sequence.write()
        self.delay = structure.delay
        self._coding = Coding(
            sequence=sequence,
            effort=options.preset,
            key_length=structure.keyint,
            layers=options.layers,
            layer_step=options.layer_step,
            trial=trial,
        )
        self._structure = replace(structure, trial=trial is not None)
        self._begin()

    def _begin(self) -> None:
        """A stream begins, of which nothing is known."""
        options = self._options
        self._rate = make_rate_control(self._format, options, self._pass_log)
        self._buffer: Buffer | None = None
        if options.maxrate is not None and options.bufsize is not None:
            self._buffer = Buffer(options.maxrate, options.bufsize, options.frame_rate)
        self._planner = Planner(self._format, self._structure)
        self._state: GopState | None = None
        self._last_pts: int | None = None
        self._is_over = False

    @property
    def is_skipping(self) -> bool:
        """Whether finished packets are still output instead of coding frames."""
        return self._finished is not None

    @property
    def pass_log(self) -> PassLog:
        """Sizes and qps so far, for a second pass."""
        return PassLog(
            width=self._format.width,
            height=self._format.height,
            keyint=self._options.keyint,
            segments=tuple(self.statistics.segments),
        )

    def encode(self, frame: Frame | None, *, force_key: bool = False) -> list[Packet]:
        """Take the next frame and return the packets that are now ready, in display order.

        Args:
            frame: kept, and not to be changed, until its packet and those of the next GOP have
                come. None at the end of the stream: all remaining packets come, and the next frame
                begins another stream.
            force_key: this frame becomes a keyframe.

        Raises:
            ConfigError: the frame is of another format, or not later than the one before.
        """
        if frame is None:
            packets = [packet for job in self._planner.finish() for packet in self._code(job)]
            if self._finished is not None:
                raise self._finished.too_short()
            if self._executor is not None:
                packets += self._submit()
            while self._pending:
                self._wait([self._pending[0].result])
                packets += self._ready()
            self._state, self._is_over = None, True
            return packets
        if not isinstance(frame, Frame):
            raise ConfigError(f"a {type(frame).__name__} is no Frame")
        frame.check(self._format)
        frame = frame.in_c_order()
        if self._is_over:
            self._begin()
        if self._last_pts is not None and frame.pts <= self._last_pts:
            raise ConfigError(f"frame with pts {frame.pts} comes after one with {self._last_pts}")
        self._last_pts = frame.pts
        packets = [p for job in self._planner.push(frame, force_key) for p in self._code(job)]
        return packets + self._ready()

    def acknowledge(self, pts: int) -> None:
        """The receiver has decoded the frame of this time; see `lost`."""
        self._planner.acknowledge(pts)

    def lost(self, pts: int) -> None:
        """The receiver lacks the frame of this time, and so all frames that depend on it.

        The next frame is coded from the newest one that was acknowledged and is still kept; if
        there is none, or the structure is not low delay, it becomes a keyframe.
        """
        self._planner.lost(pts)

    def _code(self, job: SegmentJob) -> list[Packet]:
        """The packets that are ready once this segment is coded or submitted."""
        if self._finished is not None:
            taken = self._finished.take(job)
            if taken is not None:
                return taken
            job = self._finished.first_coded(job)
            self._joined, self._finished = self._finished, None
        if self._executor is None:
            with threads_of(self._runtime):
                return [p for result in self._code_here(job) for p in self._done(result)]
        packets = self._submit() if job.first == 0 else []
        self._jobs.append(job)
        if not job.continues:
            packets += self._submit()
        return packets

    def _submit(self) -> list[Packet]:
        """Submit the collected GOP to the executor, and return the packets that are ready.

        Returns when no more GOPs are unfinished than there are workers. Of a GOP that is finished
        before an earlier one only packets are held.
        """
        assert self._executor is not None
        if self._jobs:
            qp = self._rate.key_qp((), self._coding.key_length)
            task = GopTask(
                jobs=tuple(self._jobs), coding=self._coding, qp=qp, runtime=self._runtime
            )
            self._jobs = []
            coded: list[FrameRecord] = []
            result = self._executor.submit(task, coded.append)
            self._pending.append(_Submitted(result, coded))
        while len(running := self._running()) > self._executor.workers:
            self._wait(running)
        return self._ready()

    def _running(self) -> list[Future[list[SegmentResult]]]:
        return [each.result for each in self._pending if not each.result.done()]

    def _wait(self, results: Sequence[Future[list[SegmentResult]]]) -> None:
        """Wait a little for one of some results, and report frames that were coded."""
        wait(results, _REPORT_SECONDS, FIRST_COMPLETED)
        self._report()

    def _report(self) -> None:
        """Call coded_frame with the records that have come."""
        for each in self._pending:
            new = each.coded[each.reported :]
            each.reported += len(new)
            if self._coded_frame:
                for record in new:
                    self._coded_frame(record)

    def _ready(self) -> list[Packet]:
        """Packets of the GOPs that are finished, up to the first that is not."""
        self._report()
        packets: list[Packet] = []
        while self._pending and self._pending[0].result.done():
            submitted = self._pending.popleft()
            results = submitted.result.result()
            reported = {record.pts for record in submitted.coded[: submitted.reported]}
            for result in results:
                packets += self._done(result)
                for record in result.records:
                    if self._coded_frame and record.pts not in reported:
                        self._coded_frame(record)
        return packets

    def _code_here(self, job: SegmentJob) -> list[SegmentResult]:
        """Code a job; again at a higher qp where a packet exceeds the buffer's content."""
        if self._coding.trial is not None:
            qp = self._rate.key_qp((), self._coding.key_length)
            results, self._state = encode_tried(
                self._model,
                job,
                self._coding,
                qp,
                self._state,
                coded_frame=self._coded_frame,
                threads=frame_threads(self._model, self._format),
            )
            return results
        coarser = 0
        while True:
            # The rate control keeps what it learned only from a segment that is output.
            rate = copy.deepcopy(self._rate) if self._buffer else self._rate
            asked = Coarser(rate, coarser) if coarser else rate
            result, state = encode_segment(
                self._model,
                job,
                self._coding,
                asked,
                self._state,
                coded_frame=None if self._buffer else self._coded_frame,
                threads=frame_threads(self._model, self._format),
            )
            sizes = [8 * len(packet.data) for packet in result.packets]
            overflow = self._buffer.overflow(sizes) if self._buffer else 0.0
            if overflow <= 1 or coarser >= QP_MAX:
                break
            coarser = min(coarser + min(max(1, round(6 * log2(overflow))), 4), QP_MAX)
        if self._buffer:
            if overflow > 1:
                logger.warning("maxrate and bufsize cannot be kept: a packet is too large at qp 63")
            self._buffer.take(sizes)
            self._rate = rate
        self._state = state
        return [result]

    def _done(self, result: SegmentResult) -> list[Packet]:
        for record in result.records:
            self.statistics.add(record)
            if self._coded_frame and self._buffer:
                self._coded_frame(record)
        self.statistics.segments.append(result.summary)
        packets: Sequence[Packet] = result.packets
        if self._joined is not None:
            packets, self._joined = self._joined.join(packets), None
        return list(packets)
