"""From frames to packets."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vcfilter.bitstream import (
    MOTION_CODED,
    MOTION_DIRECT,
    MOTION_LEFT,
    MOTION_RIGHT,
    FrameHeader,
    SequenceHeader,
    packet_crc,
    reference_check,
    write_packet,
)
from vcfilter.codec.engine import coding_step, encode_frame, load_model
from vcfilter.codec.rate import (
    LAYER_QP_OFFSET,
    KeyTrial,
    PassLog,
    SegmentRecord,
    make_rate_control,
)
from vcfilter.codec.structure import Segment, Segmenter, coding_order, last_uses
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, Frame, FrameType, Packet, VideoFormat
from vcfilter.options import PRESETS, EncoderOptions, Runtime

if TYPE_CHECKING:
    from vcfilter.models.hierarchical.video import MotionField, Picture, Reference, VideoModel

_SMALLEST_BITS = 16 * 8
"""Bits of an inter packet with one word of payload: nothing but an empty one is smaller."""
_DEEP_LAYER = 3
"""From here on a pass more gained 0.14 % of the bits, before 0.89 % (ten training clips)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecord:
    """What became of one frame.

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


@dataclass(slots=True)
class EncoderStatistics:
    """Totals so far, and a record of each frame in display order."""

    frames: int = 0
    bytes: int = 0
    records: list[FrameRecord] = field(default_factory=list)

    def add(self, record: FrameRecord) -> None:
        """Count one more frame."""
        self.frames += 1
        self.bytes += record.size
        self.records.append(record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """A frame's packet, and its record for the statistics."""

    packet: Packet
    record: FrameRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """A reconstruction that later frames are coded from, and the CRC of its packet."""

    reference: Reference
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A coded keyframe."""

    coded: _Coded
    reference: _Reference
    trial: KeyTrial


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One way to code an inter frame; cost is distortion plus weighted bits."""

    cost: float
    promise: float
    header: FrameHeader
    reference: Reference
    payload: bytes


class Encoder:
    """Encodes frames, given in display order, into packets in display order.

    Packets come a segment at a time, when the frame after it (with scene-cut detection, the
    second one after it) is there. At most one segment of frames is held.

    Args:
        video_format: what the frames are.
        options: see EncoderOptions.
        runtime: where and how networks run.
        pass_log: of a first pass over the same frames: this is the second one.
        model: a model that is already loaded, instead of options' device, threads, weights.

    Attributes:
        extradata: the sequence header, for the container.
        statistics: what was coded so far.

    Raises:
        ConfigError: the pass log does not fit.
    """

    def __init__(
        self,
        video_format: VideoFormat,
        options: EncoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        pass_log: PassLog | None = None,
        model: VideoModel | None = None,
    ) -> None:
        options = options if options is not None else EncoderOptions()
        self.statistics = EncoderStatistics()
        self._rate = make_rate_control(video_format, options, pass_log)
        self._format = video_format
        self._options = options
        self._preset = PRESETS[options.preset]
        self._model = (
            model
            if model is not None
            else load_model(
                options.model or options.weights,
                runtime.device if runtime else options.device,
                runtime.threads if runtime else options.threads,
            )
        )
        self._sequence = SequenceHeader(model_id=self._model.model_id, video_format=video_format)
        self.extradata = self._sequence.write()
        self._segmenter = Segmenter(options.keyint, options.scenecut)
        self._frames: deque[Frame] = deque()  # from the current segment's keyframe on
        self._key: _Key | None = None  # that keyframe, once coded
        self._last_pts: int | None = None
        self._segments: list[SegmentRecord] = []

    @property
    def pass_log(self) -> PassLog:
        """What was learned so far, for a second pass."""
        return PassLog(
            width=self._format.width,
            height=self._format.height,
            keyint=self._options.keyint,
            segments=tuple(self._segments),
        )

    def encode(self, frame: Frame | None) -> list[Packet]:
        """Take the next frame and return the packets that are now ready, in display order.

        Args:
            frame: kept, and not to be changed, until its packet has come. None at the end of
                the stream: all remaining packets come.

        Raises:
            ConfigError: the frame is of another format, or not later than the one before.
        """
        if frame is None:
            packets = []
            for segment in self._segmenter.finish():
                packets += self._code_segment(segment)
            self._last_pts = None
            return packets
        frame.check(self._format)
        if self._last_pts is not None and frame.pts <= self._last_pts:
            raise ConfigError(f"frame with pts {frame.pts} comes after one with {self._last_pts}")
        self._last_pts = frame.pts
        self._frames.append(frame)
        ended = self._segmenter.push(frame.y, self._format.bit_depth)
        return self._code_segment(ended) if ended is not None else []

    def _code_segment(self, segment: Segment) -> list[Packet]:
        """The packets of a segment, less its keyframe's if that came out with the segment
        before, plus the next keyframe's if that is its right reference."""
        coded = []
        if self._key is None:
            self._key = self._code_key(self._frames[0], segment.length)
            coded.append(self._key.coded)
        key = self._key
        following = None
        if segment.closed:
            following = self._code_key(self._frames[segment.length], self._options.keyint)
        inters, base_qp = self._code_inters(segment, key, following)
        coded += inters
        if following is not None:
            coded.append(following.coded)
        self._key = following
        for _ in range(segment.length):
            self._frames.popleft()
        for frame in coded:
            self.statistics.add(frame.record)
        records = [inter.record for inter in inters]
        done = SegmentRecord(
            length=segment.length,
            key_qp=key.trial.qp,
            inter_qp=base_qp,
            key_bits=key.trial.bits,
            inter_bits=sum(8 * record.size for record in records),
            key_psnr=key.trial.psnr,
            inter_psnr=sum(r.psnr for r in records) / len(records) if records else 0.0,
        )
        self._rate.done(done)
        self._segments.append(done)
        return [frame.packet for frame in coded]

    def _code_key(self, frame: Frame, length: int) -> _Key:
        """Code the keyframe of a segment, at as many qps as rate control wants to see."""
        x = self._model.picture(frame, self._format)
        tried: dict[int, _Key] = {}
        while True:
            qp = self._rate.key_qp([key.trial for key in tried.values()], length)
            if qp in tried:
                return tried[qp]
            header = FrameHeader(kind=FrameType.KEY, qp=qp)
            reference, payload = encode_frame(self._model, header, x, (), passes=self._passes(0))
            coded = self._packet(frame, header, payload, x, reference)
            bits, psnr = 8 * coded.record.size, coded.record.psnr
            tried[qp] = _Key(
                coded=coded,
                reference=_Reference(reference=reference, crc=packet_crc(coded.packet.data)),
                trial=KeyTrial(qp=qp, bits=bits, psnr=psnr),
            )

    def _code_inters(
        self, segment: Segment, key: _Key, following: _Key | None
    ) -> tuple[list[_Coded], int]:
        """A segment's inter frames, in display order, and their mean qp before layer offsets."""
        held = {0: key.reference}
        if following is not None:
            held[segment.length] = following.reference
        coded: dict[int, _Coded] = {}
        steps = coding_order(segment.length, segment.closed)
        uses = last_uses(steps)
        qps = []
        for index, step in enumerate(steps):
            base_qp = self._rate.inter_qp(key.trial, [later.layer for later in steps[index:]])
            qps.append(base_qp)
            frame = self._frames[step.position]
            x = self._model.picture(frame, self._format)
            references = [held[position] for position in step.references]
            header = FrameHeader(
                kind=FrameType.INTER,
                qp=min(base_qp + LAYER_QP_OFFSET[step.layer], QP_MAX),
                layer=step.layer,
                position=step.position,
                segment_length=segment.length,
                distances=step.distances,
                residual=False,
                reference_check=reference_check(*(r.crc for r in references)),
            )
            best = self._search(header, x, [r.reference for r in references])
            inter = self._packet(frame, best.header, best.payload, x, best.reference)
            coded[step.position] = inter
            self._rate.inter_done(step.layer, base_qp, 8 * inter.record.size)
            crc = packet_crc(inter.packet.data)
            held[step.position] = _Reference(reference=best.reference, crc=crc)
            for position in (*step.references, step.position):
                if uses.get(position, -1) <= index:
                    del held[position]
        mean_qp = round(sum(qps) / len(qps)) if qps else key.trial.qp
        return [coded[position] for position in sorted(coded)], mean_qp

    def _search(self, plain: FrameHeader, x: Picture, references: Sequence[Reference]) -> _Trial:
        """The cheapest way to code an inter frame, among those that the preset tries.

        Every motion is tried without a residual first; the residual, which costs most of the
        time, is coded only for the motions that promise most.

        Args:
            plain: the header with neither motion nor residual.
        """
        best = self._try(plain, x, references)
        pixels = self._format.width * self._format.height
        if best.cost <= self._model.rd_weight(plain.qp) * _SMALLEST_BITS / pixels:
            return best  # a still picture: nothing else can be cheaper
        found = [(best.promise, best.header)]
        motions = []
        if self._preset.free_modes and len(references) == 2:
            motions = [replace(plain, motion=MOTION_LEFT), replace(plain, motion=MOTION_RIGHT)]
        if len(references) == 2 and plain.layer > 1:
            motions.append(replace(plain, motion=MOTION_DIRECT, refine=True))
        coded = [
            replace(plain, motion=MOTION_CODED, motion_level=level)
            for level in self._preset.motion_levels
        ]
        field = self._model.estimate_motion(
            coding_step(plain), x, references, self._preset.flow_scale, self._preset.fit_rounds
        )
        promises = {}
        for header in [*motions, *coded]:
            trial = self._try(header, x, references, field)
            promises[header] = trial.promise
            best = min(best, trial, key=lambda t: t.cost)
        if len(references) == 2:
            header = replace(min(coded, key=lambda h: promises[h]), refine=True)
            trial = self._try(header, x, references, field)
            promises[header] = trial.promise
            best = min(best, trial, key=lambda t: t.cost)
        found += [(promise, header) for header, promise in promises.items()]
        found.sort(key=lambda pair: pair[0])
        for _, header in found[: self._preset.residuals]:
            trial = self._try(replace(header, residual=True), x, references, field)
            best = min(best, trial, key=lambda t: t.cost)
        return best

    def _try(
        self,
        header: FrameHeader,
        x: Picture,
        references: Sequence[Reference],
        field: MotionField | None = None,
    ) -> _Trial:
        motion = field if header.motion == MOTION_CODED else None
        passes = self._passes(header.layer)
        reference, payload = encode_frame(self._model, header, x, references, motion, passes)
        weight = self._model.rd_weight(header.qp)
        size = len(write_packet(None, header, payload))
        rate_cost = weight * 8 * size / (self._format.width * self._format.height)
        distortion = self._model.distortion(x, reference, header.qp)
        promise = distortion
        if not header.residual:
            promise = self._model.residual_cost(coding_step(header), x, reference)
        return _Trial(
            cost=distortion + rate_cost,
            promise=promise + rate_cost,
            header=header,
            reference=reference,
            payload=payload,
        )

    def _passes(self, layer: int) -> int:
        """One more for keyframes and one less for deep layers, on which little else depends."""
        return max(1, self._preset.passes + (layer == 0) - (layer >= _DEEP_LAYER))

    def _packet(
        self, frame: Frame, header: FrameHeader, payload: bytes, x: Picture, reference: Reference
    ) -> _Coded:
        is_key = header.kind is FrameType.KEY
        data = write_packet(self._sequence if is_key else None, header, payload)
        psnr = self._model.psnr(x, reference, self._format)
        return _Coded(
            packet=Packet(data=data, pts=frame.pts, duration=frame.duration, is_keyframe=is_key),
            record=FrameRecord(pts=frame.pts, header=header, size=len(data), psnr=psnr),
        )
