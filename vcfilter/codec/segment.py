"""Coding one segment: a pure function of a job, the model and the GOP's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vcfilter.bitstream import FrameHeader, Section, SequenceHeader, read_packet, write_packet
from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.propagation import Map
from vcfilter.codec.rate import KeyTrial, RateControl, SegmentRecord
from vcfilter.codec.references import Slots
from vcfilter.codec.structure import GopStep
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, Frame, FrameStep, FrameType, Packet, VideoFormat
from vcfilter.models.base import CodedFrame, Model, Reference


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
    """

    key: CodedKey
    slots: Slots[Reference] | None = field(default=None)


def encode_segment(
    model: Model,
    job: SegmentJob,
    coding: Coding,
    rate: RateControl,
    state: GopState | None = None,
    *,
    coded_frame: Callable[[FrameRecord], None] | None = None,
) -> tuple[SegmentResult, GopState | None]:
    """Code a segment.

    Args:
        rate: gives the qps, and learns the sizes.
        state: what the segment before left; None: nothing, the job begins a GOP. A keyframe that
            it holds is not coded again; the result is the same as if it were.
        coded_frame: called after each frame, in coding order.

    Returns:
        The packets, and what the next segment continues from; None: it begins anew.

    Raises:
        ConfigError: a job in the middle of a GOP comes without a state.
    """
    coder = _FrameCoder(model, coding, rate, job.video_format)
    length = job.first + len(job.frames)
    if job.first == 0:
        ready = state is not None and state.slots is None
        gop = coding.key_length if job.continues else length
        if state and ready:
            key = state.key
        else:
            key = coder.code_key(job.frames[0], gop, job.key_offset, job.key_scale)
            if coded_frame:
                coded_frame(key.record)
        slots: Slots[Reference] = Slots(key.reference)
    elif state is None or state.slots is None:
        raise ConfigError(f"a segment from frame {job.first} of a GOP on needs what came before")
    else:
        key, slots = state.key, state.slots.copy()
    gop = length if job.first == 0 and not job.continues else coding.key_length
    following = None
    if job.next_key is not None:
        following = coder.code_key(job.next_key, coding.key_length, job.next_offset, job.next_scale)
        if coded_frame:
            coded_frame(following.record)
    coded: dict[int, tuple[Packet, FrameRecord]] = {}
    qps = []
    for index, step in enumerate(job.steps):
        qp = rate.inter_qp(key.trial, [later.layer for later in job.steps[index:]], gop)
        qps.append(qp)
        references = []
        for number in step.references:
            found = following.reference if following and number == length else slots.get(number)
            if found is None:
                raise ConfigError(f"frame {step.number} refers to {number}, which is not kept")
            references.append(found)
        next_key = following if following and length in step.references else None
        frame = job.frames[step.number - job.first]
        packet, record, reference = coder.code_inter(frame, step, qp, references, key, next_key)
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
    return result, GopState(key=key, slots=slots) if job.continues else None


class _FrameCoder:
    """Codes single frames into packets."""

    def __init__(
        self, model: Model, coding: Coding, rate: RateControl, video_format: VideoFormat
    ) -> None:
        self._model, self._coding, self._rate, self._format = model, coding, rate, video_format

    def code_key(self, frame: Frame, length: int, offset: int, scale: Map | None) -> CodedKey:
        """Code the keyframe of a GOP, at the qps that rate control asks for.

        Args:
            length, offset: see RateControl.key_qp. scale: see Model.encode.
        """
        picture = self._model.picture(frame, self._format)
        tried: dict[int, CodedKey] = {}
        while True:
            qp = self._rate.key_qp([key.trial for key in tried.values()], length, offset)
            if qp in tried:
                return tried[qp]
            levels = self._coding.level_qps(qp)
            step = FrameStep(type=FrameType.KEY, qp=levels[0][1])
            coded = self._model.encode(
                picture, step, (), self._format, self._coding.effort, _finer(levels), scale
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
        frame: Frame,
        place: GopStep,
        qp: int,
        references: Sequence[Reference],
        key: CodedKey,
        next_key: CodedKey | None,
    ) -> tuple[Packet, FrameRecord, Reference]:
        """Code one inter frame.

        Args:
            next_key: the next GOP's keyframe, if the frame refers to it.
        """
        step = place.step(qp)
        levels = self._coding.level_qps(step.qp)
        step = replace(step, qp=levels[0][1])
        picture = self._model.picture(frame, self._format)
        coded = self._model.encode(
            picture, step, references, self._format, self._coding.effort, _finer(levels)
        )
        header = FrameHeader(
            step=step,
            mode=coded.mode,
            next_key=None if next_key is None else next_key.identity & 0xFFFF,
        )
        data = write_packet(header, _sections(levels, coded), key_identity=key.identity)
        record = FrameRecord(pts=frame.pts, header=header, size=len(data), psnr=coded.psnr)
        return _packet(frame, data, False), record, coded.reference


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
