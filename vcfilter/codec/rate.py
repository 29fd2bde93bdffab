"""Rate control: the qp of each segment.

A segment's keyframe is coded first, at several qps where needed; its inter frames follow, where
the GOP is open after the next keyframe. Bits are modelled as 2^(complexity - qp / slope):
6 qp double the quantiser step, which about halves the bits.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, log2

from vcfilter.codec.structure import HIERARCHY_MAX, coding_order
from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX, VideoFormat
from vcfilter.options import EncoderOptions

DEFAULT_QP = 32

_SLOPE = 6.0  # qps per halving of the bits, to begin with; learned from trials
_OVERHEAD_BITS = 80  # an inter frame's bytes besides payload
_GOP_MOST = 48  # frames over which a keyframe's bits are spread at most
_MIN_BITS = 32.0
_FIRST_QPS = 16, 48  # between which the first of two passes codes
_FAR = 6  # qps over which a first pass predicts well
_LENGTH_MAX, _BITS_MAX = 1 << 40, 1 << 53  # of a segment in a log
_LAYER_SHARE = (0.0, *(0.6**depth for depth in range(7)))  # bits against a frame of layer 1
_LIKENESS = 0.7  # how far inter frames' complexity follows the keyframes'


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTrial:
    """A keyframe coded at one qp: its size in bits and its PSNR in dB (6:1:1)."""

    qp: int
    bits: int
    psnr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """What one segment cost.

    Args:
        length: frames, the keyframe included.
        begins: the first of them is a keyframe; otherwise key_bits is 0.
        key_qp, inter_qp: qp of the keyframe; of the inter frames before layer offsets.
        key_bits, inter_bits: sizes, the latter of all inter frames together.
        key_psnr, inter_psnr: dB (6:1:1), the latter the mean; 0 without inter frames.
    """

    length: int
    key_qp: int
    inter_qp: int
    key_bits: int
    inter_bits: int
    key_psnr: float = 0.0
    inter_psnr: float = 0.0
    begins: bool = True

    @property
    def inters(self) -> int:
        """Inter frames in it."""
        return self.length - self.begins


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLog:
    """The result of the first of two passes: the costs of each segment.

    Args:
        width, height, keyint: of the first pass, to be the same in the second.
        segments: in display order.
    """

    width: int
    height: int
    keyint: int
    segments: tuple[SegmentRecord, ...]

    def to_json(self) -> str:
        """The log as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PassLog:
        """The log that to_json wrote.

        Raises:
            ConfigError: the text is not such a log.
        """
        try:
            fields = json.loads(text)
            segments = tuple(SegmentRecord(**segment) for segment in fields.pop("segments"))
            log = cls(segments=segments, **fields)
            usable = all(map(_usable, segments))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a pass log: {error}") from error
        if not usable:
            raise ConfigError("not a pass log: a segment's length, qps or bits cannot be")
        return log


def _usable(record: SegmentRecord) -> bool:
    """Whether what a log says of a segment can be."""
    qps, bits = (record.key_qp, record.inter_qp), (record.key_bits, record.inter_bits)
    qualities = record.key_psnr, record.inter_psnr
    return (
        isinstance(record.begins, bool)
        and all(isinstance(n, int) for n in (record.length, *qps, *bits))
        and all(isinstance(n, int | float) and isfinite(n) for n in qualities)
        and 1 <= record.length <= _LENGTH_MAX
        and all(0 <= qp <= QP_MAX for qp in qps)
        and all(0 <= size <= _BITS_MAX for size in bits)
        and (record.key_bits > 0 or not record.begins)
    )


class RateControl(ABC):
    """Chooses qps. Calls per segment: key_qp until it returns a tried qp; inter_qp and
    inter_done for each inter frame in coding order; done.

    The next segment's key_qp calls may come before this segment's inter_qp.
    """

    @abstractmethod
    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        """The qp to code the next keyframe at. A qp among `trials` ends the search.

        Args:
            trials: results of this keyframe so far.
            length: frames of its segment, or the most it can have while that is not known.
            offset: qps by which it is worth less than a long GOP's keyframe. What aims at a
                size or at a quality leaves it out.
        """

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        """The qp, before the layer's offset, of the next inter frame.

        Args:
            key: the segment's keyframe.
            layers: of the segment's inter frames that are to come, this one's first.
            length: frames of the GOP, or the most it can have while that is not known.
        """
        return key.qp

    def inter_done(self, layer: int, qp: int, bits: int) -> None:
        """Learn what an inter frame cost at a qp, which is before the layer's offset."""
        return None

    def done(self, segment: SegmentRecord) -> None:
        """Learn what a segment cost."""
        return None


class ConstantQp(RateControl):
    """The same qp for all segments, but for keyframes that few frames inherit, and for what the
    planner adds to a job's qps."""

    def __init__(self, qp: int) -> None:
        self.qp = qp

    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        return _clamp_qp(self.qp + offset)

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        return self.qp


class Coarser(RateControl):
    """Another rate control's qps plus an offset: for a segment that was too large."""

    def __init__(self, inner: RateControl, offset: int) -> None:
        self._inner, self._offset = inner, offset
        self._asked: dict[int, int] = {}  # the inner qp, by the one that was returned

    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        # The inner one gets trials at the qps that it returned.
        seen = [replace(t, qp=self._asked.get(t.qp, t.qp)) for t in trials]
        wanted = self._inner.key_qp(seen, length, offset)
        given = _clamp_qp(wanted + self._offset)
        self._asked[given] = wanted
        return given

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        return _clamp_qp(self._inner.inter_qp(key, layers, length) + self._offset)

    def inter_done(self, layer: int, qp: int, bits: int) -> None:
        self._inner.inter_done(layer, qp, bits)

    def done(self, segment: SegmentRecord) -> None:
        self._inner.done(segment)


class ConstantQuality(RateControl):
    """The qp per segment at which the segment's mean PSNR is about `quality` dB.

    The keyframe is tried at up to five qps. Inter frames come out below it; by how much is
    learned from the segments before and added to the aim.
    """

    _TRIALS = 5
    _TOLERANCE = 0.3  # dB; one qp is about 0.6 to 1 dB
    _SLOPE = 0.8  # dB per qp, until two trials measure it

    def __init__(self, quality: float) -> None:
        self._quality = quality
        self._qp = float(DEFAULT_QP)
        self._gap = 1.6  # dB between the keyframe and its segment's mean
        self._shift = 0.0  # qps by which the rest of a long GOP is coded coarser than it began

    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        aim = self._quality + self._gap
        if not trials:
            self._shift = 0.0
            return _clamp_qp(self._qp)
        best = min(trials, key=lambda trial: abs(trial.psnr - aim))
        if abs(best.psnr - aim) <= self._TOLERANCE or len(trials) >= self._TRIALS:
            self._qp = best.qp
            return best.qp
        above = [trial for trial in trials if trial.psnr >= aim]
        below = [trial for trial in trials if trial.psnr < aim]
        if above and below:  # between the nearest qps on both sides
            low = max(above, key=lambda trial: trial.qp)
            high = min(below, key=lambda trial: trial.qp)
            share = (low.psnr - aim) / max(low.psnr - high.psnr, 1e-6)
            guess = low.qp + share * (high.qp - low.qp)
        else:
            slope = self._SLOPE
            if len(trials) >= 2 and trials[-1].qp != trials[-2].qp:
                measured = (trials[-1].psnr - trials[-2].psnr) / (trials[-2].qp - trials[-1].qp)
                slope = min(max(measured, 0.2), 1.5)
            guess = best.qp + (best.psnr - aim) / slope
            if abs(guess - best.qp) < 1:
                guess = best.qp + (1 if best.psnr > aim else -1)
        qp = _clamp_qp(guess)
        if any(trial.qp == qp for trial in trials):  # no qp is left between
            qp = best.qp
            self._qp = qp
        return qp

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        return _clamp_qp(key.qp + self._shift)

    def done(self, segment: SegmentRecord) -> None:
        inters = segment.inters
        if inters:
            slack = (segment.inter_psnr - self._quality) / self._SLOPE
            self._shift = min(max(self._shift + 0.5 * slack, -8.0), 8.0)
        if not segment.begins:
            return
        gap = inters / segment.length * (segment.key_psnr - segment.inter_psnr) if inters else 0.0
        self._gap += 0.7 * (min(max(gap, 0.0), 8.0) - self._gap)


class _Model:
    """Predicted bits of keyframes and inter frames, learned frame by frame.

    Keyframes: the last one's size. Inter frames: payload at qp 0 per layer share, a mean over
    the last frames. It is a mean of sizes, not of their logarithms, because many frames of a
    still scene cost nothing and a few cost much.
    """

    _FORGET = 0.85  # per inter frame: about half a segment is remembered

    def __init__(self, key_bits: float, qp: float) -> None:
        self._slope = _SLOPE
        self._key = log2(key_bits) + qp / _SLOPE
        # At first a frame of layer 1 is taken to cost 0.7 times what a keyframe does.
        self._sum = 0.7 * 2**self._key
        self._shares = 1.0
        self._inters = 0

    def bits(self, qp: float, layers: Sequence[int], times: float = 1.0) -> float:
        """Of a GOP: its keyframe, and its inter frames by their layers, so many times."""
        return float(2 ** (self._key - qp / self._slope)) + times * self.inter_bits(qp, layers)

    def inter_bits(self, qp: float, layers: Sequence[int]) -> float:
        """Of inter frames, by their layers, at a qp before layer offsets."""
        share = sum(_LAYER_SHARE[layer] for layer in layers)
        payload = share * self._sum / self._shares * 2 ** (-qp / _SLOPE)
        return float(_OVERHEAD_BITS * len(layers) + payload)

    def learn_key(self, trials: Sequence[KeyTrial]) -> None:
        """Take the last trial's size; learn the slope from two trials."""
        last = trials[-1]
        if len(trials) >= 2:
            fall = log2(max(trials[-2].bits, _MIN_BITS) / max(last.bits, _MIN_BITS))
            step = last.qp - trials[-2].qp
            if fall * step > 0:
                self._slope = min(max(step / fall, 3.0), 20.0)
        key = log2(max(last.bits, _MIN_BITS)) + last.qp / self._slope
        if len(trials) == 1:  # another scene: its inter frames likely change as much
            self._sum *= 2 ** (_LIKENESS * min(max(key - self._key, -3.0), 3.0))
        self._key = key

    def learn_inter(self, layer: int, qp: int, bits: int) -> None:
        """Learn an inter frame's size at a qp before layer offsets."""
        forget = self._FORGET if self._inters else 0.1  # the first guess is soon forgotten
        payload = max(bits - _OVERHEAD_BITS, _MIN_BITS)
        self._sum = forget * self._sum + payload * 2 ** (qp / _SLOPE)
        self._shares = forget * self._shares + _LAYER_SHARE[layer]
        self._inters += 1


class AverageBitrate(RateControl):
    """One pass: each segment gets its frames' share, less half of what was overspent before.

    What a keyframe takes beyond a frame's share is saved on the frames of its GOP.

    Args:
        bits_per_frame: the target.
        pixels: luma samples per frame (for the first guess).
        keyint: most frames of a GOP.
    """

    _KEY_TRIALS = 3
    _HYSTERESIS = 1.5  # inter frames keep their qp unless it is off by this much
    _SWING = 5  # how far the qp may move within a segment

    def __init__(self, bits_per_frame: float, pixels: int, keyint: int) -> None:
        self._target = bits_per_frame
        # About 0.6 bit per pixel at qp 32: only a start, the first trial corrects it.
        self._model = _Model(0.6 * pixels, DEFAULT_QP)
        self._debt = 0.0  # bits that the segments done took beyond their share
        self._key_debt = 0.0  # bits of the last keyframe that its GOP has not saved yet
        self._length = float(min(keyint, _GOP_MOST))  # of a GOP, as expected
        self._seen = 0  # inter frames of the GOP so far
        self._left: float | None = None  # for the inter frames to come in this segment
        self._share = 0.0  # per inter frame
        self._qp = self._first_qp = 0  # of the segment's inter frames, now and at first
        self._segments = 0

    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        frames = self._frames(length)
        layers = [step.layer for step in coding_order(min(frames, HIERARCHY_MAX))]
        times = (frames - 1) / max(len(layers), 1)  # a long GOP is taken for several short ones
        budget = self._budget(frames * self._target)
        if trials:
            self._model.learn_key(trials)
        qp = _clamp_qp(_solve(lambda q: self._model.bits(q, layers, times), budget))
        if not trials:
            return qp
        nearest = min(trials, key=lambda trial: abs(trial.qp - qp))
        if abs(nearest.qp - qp) > 1 and len(trials) < self._KEY_TRIALS:
            return qp
        self._model.learn_key([*(t for t in trials if t is not nearest), nearest])
        return nearest.qp

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        first = self._left is None
        if self._left is None:
            frames = self._frames(length)
            saved = (frames * self._target - key.bits) / max(frames - 1, 1)
            self._share = max(saved, 0.3 * self._target)
            self._left = self._budget(len(layers) * self._share)
        left = self._left
        qp = _solve(lambda q: self._model.inter_bits(q, layers), left)
        # Not far from the keyframe's: its quality is what the inter frames are made of.
        qp = min(max(qp, key.qp - 4), key.qp + 10)
        if first:
            self._qp = self._first_qp = _clamp_qp(qp)
        elif abs(qp - self._qp) >= self._HYSTERESIS:
            swing = self._SWING if self._segments else QP_MAX  # the first one rests on a guess
            self._qp = _clamp_qp(min(max(qp, self._first_qp - swing), self._first_qp + swing))
        return self._qp

    def inter_done(self, layer: int, qp: int, bits: int) -> None:
        self._model.learn_inter(layer, qp, bits)
        if self._left is not None:
            self._left -= bits

    def done(self, segment: SegmentRecord) -> None:
        if segment.begins:
            self._debt += self._key_debt
            self._key_debt = segment.key_bits - self._target
            if self._segments and self._seen:
                self._length += 0.3 * (self._seen + 1 - self._length)
            self._seen = 0
        self._seen += segment.inters
        saved = segment.inters * (self._target - self._share) if segment.inters else 0.0
        self._key_debt -= saved
        self._debt += segment.inter_bits - segment.inters * self._share
        self._left = None
        self._segments += 1

    def _frames(self, length: int) -> int:
        """Frames of a GOP that has at most so many: of a long one, as many as usual."""
        return length if length <= HIERARCHY_MAX else max(round(self._length), 2)

    def _budget(self, share: float) -> float:
        return min(max(share - 0.5 * self._debt, 0.3 * share), 2.0 * share)


class TwoPass(RateControl):
    """Second of two passes: one qp for all, shifted a little per GOP, corrected on the way.

    The bits of each kind of frame are predicted from the first pass; how far predictions are
    off on the whole is learned as segments pass.

    Args:
        log: of the first pass.
        bits_per_frame: the target.
    """

    _COMPRESSION = 0.6  # qps by which a GOP twice as costly as the mean is coarser
    _SHIFT_MAX = 3.0

    def __init__(self, log: PassLog, bits_per_frame: float) -> None:
        segments = log.segments
        costs = _gop_costs(segments)
        mean = sum(costs) / max(len(costs), 1)
        limit = self._SHIFT_MAX
        self._shift = [min(max(self._COMPRESSION * (cost - mean), -limit), limit) for cost in costs]
        self._segments = segments
        self._keys = [
            s.key_bits * 2 ** ((s.key_qp - shift) / _SLOPE)
            for s, shift in zip(segments, self._shift, strict=True)
        ]
        self._inters = [
            _payload_bits(s) * 2 ** ((s.inter_qp - shift) / _SLOPE)
            for s, shift in zip(segments, self._shift, strict=True)
        ]
        # What is yet to come at qp 0 from each segment on.
        self._keys_left = _sums_from_end(self._keys)
        self._inters_left = _sums_from_end(self._inters)
        self._overhead_left = _sums_from_end([_overhead_bits(s) for s in segments])
        self._bits_left = bits_per_frame * sum(s.length for s in segments)
        self._key_count = 0  # segments up to the newest whose keyframe is coded
        self._done_count = 0
        self._key_error = _MeanError(4)
        self._inter_error = _MeanError(44)

    def key_qp(self, trials: Sequence[KeyTrial], length: int, offset: int = 0) -> int:
        if not trials:
            return self._qp(self._next_key())
        index, trial = self._next_key(), trials[-1]
        self._key_error.learn(trial.bits, self._keys[index], trial.qp - self._shift[index])
        self._bits_left -= trial.bits
        self._key_count = index + 1
        return trial.qp

    def inter_qp(self, key: KeyTrial, layers: Sequence[int], length: int) -> int:
        if self._done_count >= len(self._segments) or (
            self._segments[self._done_count].inters < len(layers)
        ):
            raise ConfigError(_OTHER_FRAMES)
        return min(max(self._qp(self._done_count), key.qp - 4), key.qp + 8)

    @property
    def mean_qp(self) -> int:
        """The qp that is predicted for all that is to come."""
        return _clamp_qp(self._qp_at(self._done_count))

    def done(self, segment: SegmentRecord) -> None:
        index = self._done_count
        known = self._segments[index] if index < len(self._segments) else None
        if known is None or (known.length, known.begins) != (segment.length, segment.begins):
            raise ConfigError(_OTHER_FRAMES)
        if segment.inters:
            qp = segment.inter_qp - self._shift[index]
            bits = _payload_bits(segment)
            self._inter_error.learn(bits, self._inters[index], qp, segment.inters)
        self._bits_left -= segment.inter_bits
        self._done_count += 1

    def _next_key(self) -> int:
        """The next segment that begins with a keyframe."""
        for index in range(self._key_count, len(self._segments)):
            if self._segments[index].begins:
                return index
        raise ConfigError(_OTHER_FRAMES)

    def _qp(self, index: int) -> int:
        """The qp for segment `index` at which all that is to come fits what is left."""
        if index >= len(self._segments):
            raise ConfigError(_OTHER_FRAMES)
        return _clamp_qp(self._qp_at(index) + self._shift[index])

    def _qp_at(self, index: int) -> float:
        """The same without what shifts its GOP."""
        at_zero = (
            self._keys_left[self._key_count] * self._key_error.factor
            + self._inters_left[self._done_count] * self._inter_error.factor
        )
        budget = self._bits_left - self._overhead_left[self._done_count]
        return _SLOPE * log2(max(at_zero, 1.0) / budget) if budget > 0 else float(QP_MAX)


_OTHER_FRAMES = (
    "the pass log does not fit these frames: both passes need the same frames, keyint and scenecut"
)


class _MeanError:
    """Mean ratio of actual to predicted bits, newer ones weighing more.

    Args:
        memory: how many frames are remembered.
    """

    def __init__(self, memory: int) -> None:
        self.factor = 1.0
        self._memory = memory
        self._count = 0

    def learn(self, actual: float, at_zero: float, qp: float, frames: int = 1) -> None:
        ratio = max(actual, _MIN_BITS) / (at_zero * 2.0 ** (-qp / _SLOPE))
        self._count = min(self._count + frames, max(self._memory, frames))
        weight = frames / self._count
        self.factor *= ratio**weight / self.factor**weight


def make_rate_control(
    video_format: VideoFormat, options: EncoderOptions, pass_log: PassLog | None = None
) -> RateControl:
    """The rate control that the options ask for.

    Args:
        pass_log: with options.bitrate, makes this the second pass.

    Raises:
        ConfigError: the log is of other frames or segments, or no bitrate is given with it.
    """
    if pass_log is not None:
        if options.bitrate is None:
            raise ConfigError("a pass log is given without a bitrate")
        size = (video_format.width, video_format.height, options.keyint)
        if size != (pass_log.width, pass_log.height, pass_log.keyint) or not pass_log.segments:
            raise ConfigError(_OTHER_FRAMES)
        return TwoPass(pass_log, float(options.bitrate / options.frame_rate))
    if options.bitrate is not None:
        pixels = video_format.width * video_format.height
        per_frame = float(options.bitrate / options.frame_rate)
        return AverageBitrate(per_frame, pixels, options.keyint)
    if options.quality is not None:
        return ConstantQuality(options.quality)
    given = options.qp if options.crf is None else options.crf
    return ConstantQp(DEFAULT_QP if given is None else given)


def first_pass_options(
    video_format: VideoFormat, options: EncoderOptions, log: PassLog | None = None
) -> EncoderOptions:
    """Options of the first of two passes towards options.bitrate: a constant qp, a fast preset.

    The nearer the qp is to what the second pass will need, the better are its predictions;
    0.2 bit per pixel at qp 32 is the middle of 0.1 to 0.3 on the development clips.

    Args:
        log: of such a pass whose qp was far from what is needed, see `is_far`.
    """
    if options.bitrate is None:
        raise ConfigError("two passes need a bitrate")
    pixels = video_format.width * video_format.height
    per_frame = float(options.bitrate / options.frame_rate)
    if log is not None:
        qp = TwoPass(log, per_frame).mean_qp
    else:
        qp = round(DEFAULT_QP - _SLOPE * log2(per_frame / pixels / 0.2))
        qp = min(max(qp, _FIRST_QPS[0]), _FIRST_QPS[1])
    preset = "fast" if options.preset != "ultrafast" else options.preset
    return replace(options, bitrate=None, qp=qp, preset=preset)


def is_far(log: PassLog, options: EncoderOptions) -> bool:
    """Whether a first pass was so far from the qp that its log tells that this is a guess.

    Args:
        options: of the second pass, with a bitrate.
    """
    assert options.bitrate is not None
    needed = TwoPass(log, float(options.bitrate / options.frame_rate)).mean_qp
    measured = min(segment.key_qp for segment in log.segments)
    return abs(needed - measured) > _FAR


def _cost_at_zero(segment: SegmentRecord) -> float:
    """Bits of a segment at qp 0, by the model."""
    key = segment.key_bits * 2 ** (segment.key_qp / _SLOPE)
    return float(key + _payload_bits(segment) * 2 ** (segment.inter_qp / _SLOPE))


def _gop_costs(segments: Sequence[SegmentRecord]) -> list[float]:
    """Of each segment the logarithm of its whole GOP's bits per frame at qp 0."""
    costs: list[float] = []
    start = 0
    for index in range(1, len(segments) + 1):
        if index == len(segments) or segments[index].begins:
            gop = segments[start:index]
            cost = sum(_cost_at_zero(s) for s in gop) / sum(s.length for s in gop)
            costs += [log2(cost)] * len(gop)
            start = index
    return costs


def _overhead_bits(segment: SegmentRecord) -> float:
    return float(_OVERHEAD_BITS * segment.inters)


def _payload_bits(segment: SegmentRecord) -> float:
    if segment.inters == 0:
        return 0.0
    return max(segment.inter_bits - _overhead_bits(segment), _MIN_BITS)


def _sums_from_end(values: Sequence[float]) -> list[float]:
    """sums[i] = sum(values[i:]), one longer than values."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _solve(bits: Callable[[float], float], budget: float) -> float:
    """The qp, 0 to 63, at which the falling function `bits` meets the budget."""
    low, high = 0.0, float(QP_MAX)
    for _ in range(20):
        middle = (low + high) / 2
        if bits(middle) > budget:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _clamp_qp(qp: float) -> int:
    return min(max(round(qp), 0), QP_MAX)
