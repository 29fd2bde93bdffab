"""A small, fast model with the contract of models.base.Model, for tests.

Frames are predicted from the references (shifted as a whole where motion is coded), the error is
quantised, and zlib stands for the entropy coder. Everything is exact in integers.

Sections above the base sharpen what is shown, and not what later frames are predicted from.

Mode byte: bit 0 a residual is coded, bits 1 and 2 the motion mode. Empty: the average of the
references, or a copy of the only one, without a residual.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameStep, Plane, VideoFormat
from vcfilter.models.base import CodedFrame, Model, ModelInfo, Tracked

Planes = list[np.ndarray]
Shift = tuple[int, int]
HEADER_BYTES, REPEAT_BYTES = 9, 6


class Motion(IntEnum):
    AVERAGE = 0
    FIRST = 1
    SECOND = 2
    CODED = 3


@dataclass
class FakeReference:
    planes: Planes
    context: int
    shown: Planes


@dataclass
class FakeSymbols:
    motion: Motion
    shifts: list[Shift]
    errors: list[np.ndarray]
    context: int
    finer: list[tuple[float, list[np.ndarray]]]


class Reader:
    """Bytes of a section, inflated."""

    LIMIT = 1 << 24

    def __init__(self, data: bytes) -> None:
        self.rest = b""
        if data:
            inflate = zlib.decompressobj()
            try:
                self.rest = inflate.decompress(data, self.LIMIT)
            except zlib.error as error:
                raise BitstreamError(f"zlib: {error}") from error
            if not inflate.eof:
                raise BitstreamError("zlib data are cut short or too long")

    def read(self, size: int) -> bytes:
        if size > len(self.rest):
            raise BitstreamError("section is too short")
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def planes(self, video_format: VideoFormat) -> list[np.ndarray]:
        found = []
        for shape in shapes(video_format):
            plane = np.frombuffer(self.read(2 * shape[0] * shape[1]), ">i2")
            found.append(plane.reshape(shape))
        return found

    def finish(self) -> None:
        if self.rest:
            raise BitstreamError("section is too long")


@dataclass
class FakeModel:
    """Args: bit_depth of the frames; id, numerics and levels as of ModelInfo; calls: steps encoded
    or parsed, in order; explode: raised by the next call of parse; trials as of ModelInfo."""

    bit_depth: int = 8
    id: bytes = b"fakemodl"
    numerics: int = 1
    levels: int = 1
    device: str = "cpu"
    calls: list[FrameStep] = field(default_factory=list)
    explode: BaseException | None = None
    trials: dict[str, str] = field(default_factory=dict)

    @property
    def info(self) -> ModelInfo:
        efforts = dict.fromkeys(("ultrafast", "veryfast", "fast", "medium", "slow", "veryslow"))
        return ModelInfo(
            id=self.id, name="fake", architecture="test", numerics=self.numerics, config={},
            efforts=efforts, quality_layers=self.levels, references=3, trials=self.trials,
        )  # fmt: skip

    def picture(self, frame: Frame, video_format: VideoFormat) -> Planes:
        return [plane.astype(np.int32) for plane in frame.planes]

    def planes(
        self, reference: FakeReference, video_format: VideoFormat
    ) -> tuple[Plane, Plane, Plane]:
        dtype = np.uint8 if video_format.bit_depth == 8 else np.uint16
        y, u, v = (plane.astype(dtype) for plane in reference.shown)
        return y, u, v

    def motion(self, reference: FakeReference) -> list[np.ndarray]:
        return []

    def encode(
        self,
        picture: Planes,
        step: FrameStep,
        references: Sequence[FakeReference],
        video_format: VideoFormat,
        effort: str,
        levels: Sequence[int] = (),
        rd_scale: np.ndarray | None = None,
        tracked: Tracked | None = None,
        source: Planes | None = None,
    ) -> CodedFrame:
        self.calls.append(step)
        assert effort in self.info.efforts
        assert len(references) == len(step.references)
        sizes = shapes(video_format)
        contexts = [reference.context for reference in references]
        found: list[tuple[float, CodedFrame]] = []
        modes = [Motion.AVERAGE]
        if references:
            modes += [Motion.FIRST, Motion.CODED] + [Motion.SECOND] * (len(references) > 1)
        for motion in modes:
            shifts = [(0, 0)] * len(references)
            parts = []
            if motion is Motion.CODED:
                shifts = [search(picture[0], reference.planes[0]) for reference in references]
                parts = [struct.pack("bb", *shift) for shift in shifts]
            prediction = predict(motion, references, shifts, sizes)
            errors = [
                np.rint((original - plane) / width(step.qp)).astype(">i2")
                for original, plane in zip(picture, prediction, strict=True)
            ]
            for residual in (False, True) if references else (True,):
                data = [*parts, *(e.tobytes() for e in errors)] if residual else parts
                section = zlib.compress(b"".join(data)) if data else b""
                still = motion is Motion.AVERAGE and not residual
                context = context_of(contexts, section)
                planes = prediction
                if residual:
                    planes = self.correct(width(step.qp), prediction, errors)
                size = REPEAT_BYTES if still else HEADER_BYTES + len(section)
                finer, shown = ([], planes) if still else self.sharpen(picture, levels, planes)
                coded = CodedFrame(
                    mode=b"" if still else bytes((motion << 1 | residual,)),
                    sections=() if still else (section, *finer),
                    reference=FakeReference(planes, context, shown),
                    psnr=self.psnr(picture if source is None else source, shown),
                )
                error = sum(
                    float(((a - b) ** 2).sum()) for a, b in zip(picture, planes, strict=True)
                )
                weight = 0.1 * width(step.qp) ** 2
                found.append((error + weight * 8 * size, coded))
        return min(found, key=lambda pair: pair[0])[1]

    def sharpen(
        self, x: Planes, levels: Sequence[int], planes: Planes
    ) -> tuple[list[bytes], Planes]:
        """The sections above the base, and what is shown with all of them."""
        sections, shown = [], planes
        for qp in levels:
            size = width(qp)
            errors = [np.rint((a - b) / size).astype(">i2") for a, b in zip(x, shown, strict=True)]
            shown = self.correct(size, shown, errors)
            sections.append(zlib.compress(b"".join(e.tobytes() for e in errors)))
        return sections, shown

    def parse(
        self,
        step: FrameStep,
        mode: bytes,
        sections: Sequence[bytes],
        contexts: Sequence[int],
        video_format: VideoFormat,
        levels: Sequence[int] = (),
    ) -> FakeSymbols:
        self.calls.append(step)
        if self.explode is not None:
            error, self.explode = self.explode, None
            raise error
        bits = mode[0] if mode else 0
        if len(mode) > 1 or bits > 7 or (mode and not sections):
            raise BitstreamError(f"mode {mode!r} is invalid")
        motion = Motion(bits >> 1)
        if motion is Motion.SECOND and len(contexts) < 2:
            raise BitstreamError("there is no second reference")
        section = sections[0] if sections else b""
        reader = Reader(section)
        shifts = [(0, 0)] * len(contexts)
        if motion is Motion.CODED:
            shifts = [struct.unpack("bb", reader.read(2)) for _ in contexts]
        errors = reader.planes(video_format) if bits & 1 else []
        reader.finish()
        finer = []
        for qp, above in zip(levels, sections[1:], strict=True):
            reader = Reader(above)
            finer.append((width(qp), reader.planes(video_format)))
            reader.finish()
        return FakeSymbols(motion, shifts, errors, context_of(contexts, section), finer)

    def reconstruct(
        self,
        step: FrameStep,
        mode: bytes,
        symbols: FakeSymbols,
        references: Sequence[FakeReference],
        video_format: VideoFormat,
    ) -> FakeReference:
        planes = predict(symbols.motion, references, symbols.shifts, shapes(video_format))
        if symbols.errors:
            planes = self.correct(width(step.qp), planes, symbols.errors)
        shown = planes
        for size, errors in symbols.finer:
            shown = self.correct(size, shown, errors)
        return FakeReference(planes, symbols.context, shown)

    def correct(self, size: float, planes: Planes, errors: list[np.ndarray]) -> Planes:
        top = (1 << self.bit_depth) - 1
        return [
            np.clip(plane + np.rint(error * size).astype(np.int32), 0, top)
            for plane, error in zip(planes, errors, strict=True)
        ]

    def picture_bytes(self, video_format: VideoFormat) -> int:
        samples = sum(rows * columns for rows, columns in shapes(video_format))
        return 2 * np.dtype(np.int32).itemsize * samples

    def complexity(self) -> dict[str, dict[str, float]]:
        return {"keyframe": {"all": 0.001}, "inter": {"all": 0.001}}

    def psnr(self, x: Planes, rec: Planes) -> float:
        peak = (1 << self.bit_depth) - 1
        mse = [max(float(((a - b) ** 2).mean()), 1e-4) for a, b in zip(x, rec, strict=True)]
        each = [10 * np.log10(peak * peak / value) for value in mse]
        return float((6 * each[0] + each[1] + each[2]) / 8)


def _typed_by_the_protocol(model: FakeModel) -> Model:
    return model  # mypy holds FakeModel to the contract


def predict(
    motion: Motion,
    references: Sequence[FakeReference],
    shifts: Sequence[Shift],
    sizes: list[tuple[int, int]],
) -> Planes:
    if not references:
        return [np.full(size, 128, np.int32) for size in sizes]
    shifted = [
        [np.roll(p, (dy // (2 if i else 1), dx // (2 if i else 1)), (0, 1))
         for i, p in enumerate(reference.planes)]
        for reference, (dy, dx) in zip(references, shifts, strict=True)
    ]  # fmt: skip
    if motion is Motion.SECOND:
        return shifted[1]
    if motion is Motion.FIRST or len(references) == 1:
        return shifted[0]
    return [(a + b + 1) // 2 for a, b in zip(shifted[0], shifted[1], strict=True)]


def search(luma: np.ndarray, reference: np.ndarray) -> Shift:
    shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    return min(shifts, key=lambda s: np.abs(luma - np.roll(reference, s, (0, 1))).sum())


def context_of(contexts: Sequence[int], section: bytes) -> int:
    return zlib.crc32(section, sum(contexts) & 0xFFFFFFFF)


def width(qp: int) -> float:
    return 2.0 ** (qp / 6) / 2


def shapes(video_format: VideoFormat) -> list[tuple[int, int]]:
    chroma = video_format.chroma_size[::-1]
    return [(video_format.height, video_format.width), chroma, chroma]
