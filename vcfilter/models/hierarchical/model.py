"""The hierarchical model as models.base asks for it: mode decision, parse, reconstruct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameStep, FrameType, Plane, VideoFormat
from vcfilter.models.base import CodedFrame, ModelInfo
from vcfilter.models.hierarchical.video import (
    CodingStep,
    MotionField,
    MotionMode,
    Parsed,
    Picture,
    Reference,
    VideoModel,
)
from vcfilter.options import PRESETS, Preset

_HEADER_BYTES = 9
_REPEAT_BYTES = 6
_SMALLEST_BITS = 16 * 8
_DEEP_LAYER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    cost: float
    promise: float
    step: CodingStep
    reference: Reference
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Symbols:
    parsed: Parsed

    @property
    def context(self) -> Parsed:
        return self.parsed


def coding_step(step: FrameStep, mode: bytes) -> CodingStep:
    if step.type is FrameType.KEY:
        return CodingStep(kind=step.type, qp=step.qp)
    bits = mode[0] if mode else 0
    coded = bool(bits & 0x80)
    left = -step.references[0]
    right = step.references[1] if len(step.references) > 1 else 0
    if left < 0 or right < 0 or len(step.references) > 2 or len(mode) > 1:
        raise BitstreamError(f"references {step.references} or mode {mode!r} are invalid")
    motion = MotionMode.CODED if coded else MotionMode(bits >> 4 & 3)
    refine = bool(bits & 2)
    if (motion in (MotionMode.RIGHT, MotionMode.DIRECT) or refine) and not right:
        raise BitstreamError("a second reference is needed, there is none")
    if refine and motion < MotionMode.DIRECT:
        raise BitstreamError("motion is refined, but there is none")
    if bits & 1 or (not coded and bits & 0x40):
        raise BitstreamError(f"mode byte {bits:#x} is invalid")
    return CodingStep(
        kind=step.type,
        qp=step.qp,
        layer=step.layer,
        distances=(left, right),
        motion=motion,
        motion_level=bits >> 4 & 7 if coded else 0,
        refine=refine,
        residual=bool(bits & 4),
    )


def mode_bytes(step: CodingStep) -> bytes:
    coded = step.motion is MotionMode.CODED
    bits = step.motion_level if coded else int(step.motion)
    return bytes((coded << 7 | bits << 4 | step.residual << 2 | step.refine << 1,))


class HierarchicalModel:
    def __init__(self, inner: VideoModel, card: dict[str, str]) -> None:
        self._inner = inner
        self.device = str(inner.device)
        self.info = ModelInfo(
            id=inner.model_id, name="default", architecture="hierarchical", numerics=1,
            config={}, efforts=PRESETS, card=card,
        )  # fmt: skip

    def picture(self, frame: Frame, video_format: VideoFormat) -> Picture:
        return self._inner.picture(frame, video_format)

    def planes(self, reference: Any, video_format: VideoFormat) -> tuple[Plane, Plane, Plane]:
        return self._inner.frame_planes(reference, video_format)

    def parse(
        self, step: FrameStep, mode: bytes, sections: Sequence[bytes], contexts: Sequence[Any],
        video_format: VideoFormat,
    ) -> _Symbols:  # fmt: skip
        payload = sections[0] if sections else b""
        parsed = self._inner.parse(coding_step(step, mode), contexts, payload, video_format)
        return _Symbols(parsed=parsed)

    def reconstruct(
        self, step: FrameStep, mode: bytes, symbols: Any, references: Sequence[Any],
        video_format: VideoFormat,
    ) -> Reference:  # fmt: skip
        return self._inner.restore(
            coding_step(step, mode), symbols.parsed, references, video_format
        )

    def encode(
        self, picture: Picture, step: FrameStep, references: Sequence[Any],
        video_format: VideoFormat, effort: str,
    ) -> CodedFrame:  # fmt: skip
        preset = PRESETS[effort]
        if step.type is FrameType.KEY:
            coder = self._inner.encoding_coder()
            key = CodingStep(kind=step.type, qp=step.qp)
            passes = self._passes(preset, 0)
            reference = self._inner.code(key, picture, (), coder, None, passes)
            mode, sections = b"", (coder.finish(),)
        else:
            best = self._search(picture, step, references, video_format, preset)
            reference = best.reference
            still = best.step.motion is MotionMode.NONE and not best.step.residual
            mode = b"" if still else mode_bytes(best.step)
            sections = () if still else (best.payload,)
        psnr = self._inner.psnr(picture, reference, video_format)
        return CodedFrame(mode=mode, sections=sections, reference=reference, psnr=psnr)

    @staticmethod
    def _passes(preset: Preset, layer: int) -> int:
        return max(1, preset.passes + (layer == 0) - (layer >= _DEEP_LAYER))

    def _search(
        self, x: Picture, step: FrameStep, references: Sequence[Reference], fmt: VideoFormat,
        preset: Preset,
    ) -> _Trial:  # fmt: skip
        plain = replace(coding_step(step, b""), residual=False)
        pixels = fmt.width * fmt.height

        def attempt(step: CodingStep, field: MotionField | None = None) -> _Trial:
            motion = field if step.motion is MotionMode.CODED else None
            coder = self._inner.encoding_coder()
            passes = self._passes(preset, step.layer)
            reference = self._inner.code(step, x, references, coder, motion, passes)
            payload = coder.finish()
            weight = self._inner.rd_weight(step.qp)
            still = step.motion is MotionMode.NONE and not step.residual
            size = _REPEAT_BYTES if still else len(payload) + _HEADER_BYTES + 1
            rate_cost = weight * 8 * size / pixels
            distortion = self._inner.distortion(x, reference, step.qp)
            promise = distortion
            if not step.residual:
                promise = self._inner.residual_cost(step, x, reference)
            return _Trial(
                cost=distortion + rate_cost, promise=promise + rate_cost, step=step,
                reference=reference, payload=payload,
            )  # fmt: skip

        best = attempt(plain)
        if best.cost <= self._inner.rd_weight(plain.qp) * _SMALLEST_BITS / pixels:
            return best
        found = [(best.promise, best.step)]
        motions = []
        if preset.free_modes and len(references) == 2:
            motions = [
                replace(plain, motion=MotionMode.LEFT), replace(plain, motion=MotionMode.RIGHT)
            ]  # fmt: skip
        if len(references) == 2 and plain.layer > 1:
            motions.append(replace(plain, motion=MotionMode.DIRECT, refine=True))
        coded = [
            replace(plain, motion=MotionMode.CODED, motion_level=level)
            for level in preset.motion_levels
        ]
        field = self._inner.estimate_motion(
            plain, x, references, preset.flow_scale, preset.fit_rounds
        )
        promises = {}
        for each in [*motions, *coded]:
            trial = attempt(each, field)
            promises[each] = trial.promise
            best = min(best, trial, key=lambda t: t.cost)
        if len(references) == 2:
            each = replace(min(coded, key=lambda h: promises[h]), refine=True)
            trial = attempt(each, field)
            promises[each] = trial.promise
            best = min(best, trial, key=lambda t: t.cost)
        found += [(promise, each) for each, promise in promises.items()]
        found.sort(key=lambda pair: pair[0])
        for _, each in found[: preset.residuals]:
            trial = attempt(replace(each, residual=True), field)
            best = min(best, trial, key=lambda t: t.cost)
        return best
