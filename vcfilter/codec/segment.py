"""Coding one segment: a pure function of a job, the model and the GOP's state."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from vcfilter.bitstream import FrameHeader, Section, SequenceHeader, read_packet, write_packet
from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.propagation import Map
from vcfilter.codec.rate import ConstantQp, KeyTrial, RateControl, SegmentRecord
from vcfilter.codec.references import Slots
from vcfilter.codec.runtime import one_thread, set_usual_threads, usual_threads
from vcfilter.codec.structure import GopStep
from vcfilter.codec.temporal_filter import TemporalFilter, frames_of
from vcfilter.codec.trajectories import KnownMotion, Trajectories
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, Frame, FrameStep, FrameType, Packet
from vcfilter.models.base import CodedFrame, Model, Picture, Reference, Tracked


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecord:
    """The coding result of one frame.

    Args:
        pts: its presentation time.
        header: how it was coded.
        size: bytes of its packet.
        psnr: of the reconstruction, dB, Y, U and V weighted 6:1:1.
    """

    pts: int
    header: FrameHeader
    size: int
    psnr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult:
    """A coded segment, in display order. Can be pickled.

    Args:
        packets: one per frame, and the next keyframe's if frames refer to it, so that the packets
            written so far can be decoded. records: of the same frames.
        summary: input of rate control and of a second pass.
    """

    packets: tuple[Packet, ...]
    records: tuple[FrameRecord, ...]
    summary: SegmentRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """Parameters of coding, the same for all segments of a stream.

    Args:
        sequence: the stream's header. effort: a key of the model's efforts.
        key_length: most frames of a GOP, for rate control while a GOP's length is not known.
        layers: quality levels of a frame, 1 to 8. layer_step: their distance in qps.
        trial: the effort of trials of anchors (codec.trial); None: there are none.
    """

    sequence: SequenceHeader
    effort: str
    key_length: int
    layers: int = 1
    layer_step: int = 6
    trial: str | None = None

    def level_qps(self, qp: int) -> list[tuple[int, int]]:
        """(level, qp) of a frame whose best level has a qp, by falling qp; the first is the base.

        Levels that would lie above the largest qp are left out.
        """
        found: list[tuple[int, int]] = []
        for level in range(self.layers):
            own = qp + (self.layers - 1 - level) * self.layer_step
            if own <= QP_MAX or level == self.layers - 1:
                found.append((level if found else 0, min(own, QP_MAX)))
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedKey:
    """A coded keyframe, and the identity that binds the packets of its GOP to it."""

    packet: Packet
    record: FrameRecord
    reference: Reference
    identity: int
    trial: KeyTrial


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GopState:
    """State of a GOP between two of its segments.

    Args:
        key: of the GOP that the next segment belongs to, already coded.
        slots: references that are kept; None: the next segment begins a GOP.
        motion: of the frames so far, of a GOP that goes on.
    """

    key: CodedKey
    slots: Slots[Reference] | None = field(default=None)
    motion: KnownMotion | None = field(default=None)


CodedInter = tuple[int, Packet, FrameRecord, Reference]
"""An inter frame's qp, and what it was coded to."""
Code = Callable[[int, Sequence[Reference]], CodedInter]
"""Codes the frame of a step, by its place in coding order, from its references."""
T = TypeVar("T")


def encode_segment(
    model: Model,
    job: SegmentJob,
    coding: Coding,
    rate: RateControl,
    state: GopState | None = None,
    *,
    coded_frame: Callable[[FrameRecord], None] | None = None,
    threads: int = 1,
) -> tuple[SegmentResult, GopState | None]:
    """Code a segment.

    Args:
        rate: gives the qps, and learns the sizes.
        state: what the segment before left; None: nothing, the job begins a GOP. A keyframe that
            it holds is not coded again; the result is the same as if it were.
        coded_frame: called after each frame whose packet the result holds, in coding order.

    Returns:
        The packets, and what the next segment continues from; None: it begins anew.

    Raises:
        ConfigError: a job in the middle of a GOP comes without a state.
    """
    length = job.first + len(job.frames)
    by_number = frames_of(job)
    lumas = {number: frame.y for number, frame in by_number.items()}
    known = state.motion if state is not None and job.first else None
    trajectories = Trajectories(
        lumas, job.video_format.bit_depth, known, rough=job.flows, threads=threads
    )
    temporal_filter = TemporalFilter(job=job, frames=by_number, trajectories=trajectories)
    coder = _FrameCoder(model, coding, rate, temporal_filter)
    if job.first == 0:
        ready = state is not None and state.slots is None
        gop = coding.key_length if job.continues else length
        if state and ready:
            key = state.key
        else:
            key = coder.code_key(0, gop, job.key_offset, job.key_scale)
            if coded_frame and not job.key_sent:
                coded_frame(key.record)
        slots: Slots[Reference] = Slots(key.reference)
    elif state is None or state.slots is None:
        raise ConfigError(f"a segment from frame {job.first} of a GOP on needs what came before")
    else:
        key, slots = state.key, state.slots.copy()
    gop = length if job.first == 0 and not job.continues else coding.key_length
    following = None
    if job.next_key is not None:
        following = coder.code_key(length, coding.key_length, job.next_offset, job.next_scale)
        if coded_frame:
            coded_frame(following.record)
    coded: dict[int, tuple[Packet, FrameRecord]] = {}
    qps = []

    def code(index: int, references: Sequence[Reference]) -> CodedInter:
        step = job.steps[index]
        qp = rate.inter_qp(key.trial, [later.layer for later in job.steps[index:]], gop)
        qp = min(max(qp + job.qp_offset, 0), QP_MAX)
        next_key = following if following and length in step.references else None
        tracked = partial(trajectories.to_references, step.number, step.references)
        scale = job.anchor_scale if step.number == length - 1 else None
        return qp, *coder.code_inter(step, qp, references, key, next_key, scale, tracked)

    later = {length: following.reference} if following else {}
    if threads > 1 and len(job.steps) > 1 and isinstance(rate, ConstantQp):
        frames = code_beside(job.steps, slots, later, code, threads)
    else:
        frames = code_in_turn(job.steps, slots, later, code)
    for step, (qp, packet, record, reference) in zip(job.steps, frames, strict=True):
        qps.append(qp)
        coded[step.number] = packet, record
        if coded_frame:
            coded_frame(record)
        rate.inter_done(step.layer, qp, 8 * record.size)
        slots.store(step.step(qp), reference)
    inters = [coded[number] for number in sorted(coded)]
    records = [record for _, record in inters]
    summary = SegmentRecord(
        length=len(job.frames),
        key_qp=key.trial.qp,
        inter_qp=round(sum(qps) / len(qps)) if qps else key.trial.qp,
        key_bits=key.trial.bits if job.first == 0 else 0,
        begins=job.first == 0,
        inter_bits=sum(8 * record.size for record in records),
        key_psnr=key.trial.psnr,
        inter_psnr=sum(r.psnr for r in records) / len(records) if records else 0.0,
    )
    rate.done(summary)
    own = [(key.packet, key.record)] if job.first == 0 and not job.key_sent else []
    ahead = [(following.packet, following.record)] if following else []
    result = SegmentResult(
        packets=tuple(packet for packet, _ in (*own, *inters, *ahead)),
        records=tuple(record for _, record in (*own, *inters, *ahead)),
        summary=summary,
    )
    if following is not None:
        return result, GopState(key=following)
    if not job.continues:
        return result, None
    known = trajectories.known_motion(length - 1, slots.numbers())
    return result, GopState(key=key, slots=slots, motion=known)


def code_in_turn(
    steps: Sequence[GopStep],
    slots: Slots[Reference],
    later: Mapping[int, Reference],
    code: Code,
) -> Iterator[CodedInter]:
    """The frames of steps, one after the other.

    Args:
        slots: references that are kept; the caller stores each frame before the next is coded.
        later: references by number that are not in a slot.
        code: codes the frame of a step.
    """
    for index, step in enumerate(steps):
        yield code(index, [_found(step, number, slots, later) for number in step.references])


def code_beside(
    steps: Sequence[GopStep],
    slots: Slots[Reference],
    later: Mapping[int, Reference],
    code: Code,
    threads: int,
) -> Iterator[CodedInter]:
    """The same frames, in the same order, each coded as soon as its references are there.

    Args:
        threads: so many at a time.
    """
    kept: Slots[Reference | int] = slots.copy()  # type: ignore[assignment]  # a number: a step's
    needed: list[list[Reference | int]] = []
    for index, step in enumerate(steps):
        needed.append([_found(step, number, kept, later) for number in step.references])
        kept.store(step.step(0), index)
    users = Counter(each for need in needed for each in need if isinstance(each, int))
    waiting, coded = deque(range(len(steps))), dict[int, CodedInter]()
    known: dict[int, Reference] = {}  # those that others still need
    running: dict[Future[CodedInter], int] = {}
    pool = ThreadPoolExecutor(threads, "vcfilter-frames", one_thread)
    before = usual_threads()
    try:
        for next_one in range(len(steps)):
            while next_one not in coded:
                for index in list(waiting):
                    steps_needed = {each for each in needed[index] if isinstance(each, int)}
                    if len(running) >= threads or not steps_needed <= known.keys():
                        continue
                    references = [
                        known[each] if isinstance(each, int) else each for each in needed[index]
                    ]
                    running[pool.submit(code, index, references)] = index
                    waiting.remove(index)
                    users.subtract(each for each in needed[index] if isinstance(each, int))
                for number in [number for number in known if not users[number]]:
                    del known[number]
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(done)
                    coded[index] = done.result()
                    if users[index]:
                        known[index] = coded[index][-1]
            yield coded.pop(next_one)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        set_usual_threads(before)


def _found(
    step: GopStep, number: int, slots: Slots[T], later: Mapping[int, Reference]
) -> T | Reference:
    """A reference of a step.

    Raises:
        ConfigError: it is not kept.
    """
    found = later[number] if number in later else slots.get(number)
    if found is None:
        raise ConfigError(f"frame {step.number} refers to {number}, which is not kept")
    return found


class _FrameCoder:
    """Codes single frames into packets."""

    def __init__(
        self,
        model: Model,
        coding: Coding,
        rate: RateControl,
        temporal_filter: TemporalFilter,
    ) -> None:
        self._model, self._coding, self._rate = model, coding, rate
        self._format, self._filter = temporal_filter.job.video_format, temporal_filter

    def code_key(self, number: int, length: int, offset: int, scale: Map | None) -> CodedKey:
        """Code the keyframe of a GOP, at the qps that rate control asks for.

        Args:
            number: of the frame. length, offset: see RateControl.key_qp. scale: see Model.encode.
        """
        frame = self._filter.frames[number]
        source = self._model.picture(frame, self._format)
        tried: dict[int, CodedKey] = {}
        while True:
            qp = self._rate.key_qp([key.trial for key in tried.values()], length, offset)
            if qp in tried:
                return tried[qp]
            levels = self._coding.level_qps(qp)
            step = FrameStep(type=FrameType.KEY, qp=levels[0][1])
            coded = self._model.encode(
                self._target(number, 0, qp, source),
                step,
                (),
                self._format,
                self._coding.effort,
                _finer(levels),
                scale,
                None,
                source,
            )
            header = FrameHeader(step=step, mode=coded.mode)
            data = write_packet(header, _sections(levels, coded), sequence=self._coding.sequence)
            record = FrameRecord(pts=frame.pts, header=header, size=len(data), psnr=coded.psnr)
            tried[qp] = CodedKey(
                packet=_packet(frame, data, True),
                record=record,
                reference=coded.reference,
                identity=read_packet(data).identity,
                trial=KeyTrial(qp=qp, bits=8 * len(data), psnr=coded.psnr),
            )

    def code_inter(
        self,
        place: GopStep,
        qp: int,
        references: Sequence[Reference],
        key: CodedKey,
        next_key: CodedKey | None,
        scale: Map | None,
        tracked: Tracked,
    ) -> tuple[Packet, FrameRecord, Reference]:
        """Code one inter frame.

        Args:
            next_key: the next GOP's keyframe, if the frame refers to it.
            scale, tracked: see Model.encode.
        """
        step = place.step(qp)
        levels = self._coding.level_qps(step.qp)
        frame = self._filter.frames[place.number]
        source = self._model.picture(frame, self._format)
        picture = self._target(place.number, step.layer, step.qp, source)
        step = replace(step, qp=levels[0][1])
        coded = self._model.encode(
            picture,
            step,
            references,
            self._format,
            self._coding.effort,
            _finer(levels),
            scale,
            tracked,
            source,
        )
        header = FrameHeader(
            step=step,
            mode=coded.mode,
            next_key=None if next_key is None else next_key.identity & 0xFFFF,
        )
        data = write_packet(header, _sections(levels, coded), key_identity=key.identity)
        record = FrameRecord(pts=frame.pts, header=header, size=len(data), psnr=coded.psnr)
        return _packet(frame, data, False), record, coded.reference

    def _target(self, number: int, layer: int, qp: int, source: Picture) -> Picture:
        """What a frame is coded towards.

        Args:
            source: the frame.
        """
        if not self._filter.job.reach:
            return source
        target = self._filter.target(number, layer, qp)
        if target is self._filter.frames[number]:
            return source
        return self._model.picture(target, self._format)


def _finer(levels: Sequence[tuple[int, int]]) -> list[int]:
    """The qps of the levels above the base."""
    return [qp for _, qp in levels[1:]]


def _sections(levels: Sequence[tuple[int, int]], coded: CodedFrame) -> list[Section]:
    """The sections that hold anything; of the (level, qp) that were asked for."""
    if not coded.sections:
        return []
    return [
        Section(level=level, qp=qp, data=data)
        for (level, qp), data in zip(levels, coded.sections, strict=True)
        if data or not level
    ]


def _packet(frame: Frame, data: bytes, is_keyframe: bool) -> Packet:
    return Packet(data=data, pts=frame.pts, duration=frame.duration, is_keyframe=is_keyframe)
