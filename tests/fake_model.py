"""A small, fast model with the contract of the real one (VideoModel), for tests.

Planes are predicted from the references (shifted as a whole where motion is coded), the
error is quantised, and zlib stands for the entropy coder. Everything is exact in integers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcfilter.errors import BitstreamError
from vcfilter.frames import Frame, FrameType, VideoFormat
from vcfilter.models.hierarchical.video import CodingStep, MotionMode

Planes = list[np.ndarray]


@dataclass
class Parsed:
    shifts: list[tuple[int, int]]
    errors: list[np.ndarray]


class FakeEncodingCoder:
    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def finish(self) -> bytes:
        data = b"".join(self._parts)
        return zlib.compress(data) if data else b""


class FakeDecodingCoder:
    LIMIT = 1 << 24

    def __init__(self, data: bytes) -> None:
        self._rest = b""
        if data:
            inflate = zlib.decompressobj()
            try:
                self._rest = inflate.decompress(data, self.LIMIT)
            except zlib.error as error:
                raise BitstreamError(f"zlib: {error}") from error
            if not inflate.eof:
                raise BitstreamError("zlib data are cut short or too long")

    def read(self, size: int) -> bytes:
        if size > len(self._rest):
            raise BitstreamError("payload is too short")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def finish(self) -> None:
        if self._rest:
            raise BitstreamError("payload is too long")


class FakeModel:
    model_id = b"fakemodl"
    device = "cpu"

    def __init__(self, bit_depth: int = 8) -> None:
        self.top = (1 << bit_depth) - 1
        self.calls: list[CodingStep] = []
        self.passes: dict[int, int] = {}  # by layer
        self.explode: BaseException | None = None  # raised by the next decoding call

    def picture(self, frame: Frame, fmt: VideoFormat) -> Planes:
        return [plane.astype(np.int32) for plane in frame.planes]

    def frame_planes(self, rec: Planes, fmt: VideoFormat) -> tuple[np.ndarray, ...]:
        dtype = np.uint8 if fmt.bit_depth == 8 else np.uint16
        return tuple(plane.astype(dtype) for plane in rec)

    def estimate_motion(
        self,
        step: CodingStep,
        x: Planes,
        references: Sequence[Planes],
        flow_scale: int,
        rounds: int,
    ) -> list[tuple[int, int]]:
        shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
        luma = x[0][::flow_scale, ::flow_scale]
        return [
            min(
                shifts,
                key=lambda s: np.abs(
                    luma - np.roll(reference[0], s, (0, 1))[::flow_scale, ::flow_scale]
                ).sum(),
            )
            for reference in references
        ]

    def code(
        self,
        step: CodingStep,
        x: Planes,
        references: Sequence[Planes],
        coder: FakeEncodingCoder,
        motion: list[tuple[int, int]] | None = None,
        passes: int = 1,
    ) -> Planes:
        self.calls.append(step)
        self.passes[step.layer] = passes
        shifts = [(0, 0)] * len(references)
        if step.motion is MotionMode.CODED:
            shifts = motion
            for shift in shifts:
                coder.write(struct.pack("bb", *shift))
        prediction = self.predict(step, references, shifts, [plane.shape for plane in x])
        if not step.residual:
            return prediction
        errors = []
        for original, plane in zip(x, prediction, strict=True):
            errors.append(np.rint((original - plane) / width(step)).astype(">i2"))
            coder.write(errors[-1].tobytes())
        return self.correct(step, prediction, errors)

    def parse(
        self, step: CodingStep, past: Sequence[object], data: bytes, video_format: VideoFormat
    ) -> Parsed:
        self.calls.append(step)
        if self.explode is not None:
            error, self.explode = self.explode, None
            raise error
        coder = FakeDecodingCoder(data)
        shifts = [(0, 0)] * len(past)
        if step.motion is MotionMode.CODED:
            shifts = [struct.unpack("bb", coder.read(2)) for _ in past]
        errors = []
        if step.residual:
            for shape in shapes(video_format):
                plane = np.frombuffer(coder.read(2 * shape[0] * shape[1]), ">i2")
                errors.append(plane.reshape(shape))
        coder.finish()
        return Parsed(shifts, errors)

    def restore(
        self,
        step: CodingStep,
        parsed: Parsed,
        references: Sequence[Planes],
        video_format: VideoFormat,
    ) -> Planes:
        prediction = self.predict(step, references, parsed.shifts, shapes(video_format))
        return self.correct(step, prediction, parsed.errors) if step.residual else prediction

    def predict(
        self,
        step: CodingStep,
        references: Sequence[Planes],
        shifts: list[tuple[int, int]],
        sizes: list[tuple[int, int]],
    ) -> Planes:
        shifted = [
            [np.roll(p, (dy // (2 if i else 1), dx // (2 if i else 1)), (0, 1))
             for i, p in enumerate(reference)]
            for reference, (dy, dx) in zip(references, shifts, strict=True)
        ]  # fmt: skip
        if step.kind is FrameType.KEY:
            return [np.full(size, 128, np.int32) for size in sizes]
        if step.motion is MotionMode.RIGHT:
            return shifted[1]
        if step.motion is MotionMode.LEFT or len(references) == 1:
            return shifted[0]
        return [(a + b + 1) // 2 for a, b in zip(*shifted, strict=True)]

    def correct(self, step: CodingStep, planes: Planes, errors: list[np.ndarray]) -> Planes:
        return [
            np.clip(plane + np.rint(error * width(step)).astype(np.int32), 0, self.top)
            for plane, error in zip(planes, errors, strict=True)
        ]

    def distortion(self, x: Planes, rec: Planes, qp: int) -> float:
        sse = [float(((a - b) ** 2).sum()) for a, b in zip(x, rec, strict=True)]
        return (sse[0] + sse[1] + sse[2]) / x[0].size

    def residual_cost(self, step: CodingStep, x: Planes, predicted: Planes) -> float:
        unit = width(step) ** 2
        pairs = zip(x, predicted, strict=True)
        error = np.concatenate([((a - b) ** 2 / unit).ravel() for a, b in pairs])
        return float(unit * np.minimum(error, 1 + np.log2(np.maximum(error, 1))).sum() / x[0].size)

    def psnr(self, x: Planes, rec: Planes, fmt: VideoFormat) -> float:
        peak = 255 if fmt.bit_depth == 8 else 1023
        mse = [max(float(((a - b) ** 2).mean()), 1e-4) for a, b in zip(x, rec, strict=True)]
        each = [10 * np.log10(peak * peak / value) for value in mse]
        return float((6 * each[0] + each[1] + each[2]) / 8)

    def rd_weight(self, step_qp: int) -> float:
        return 0.1 * (2.0 ** (step_qp / 6) / 2) ** 2

    def encoding_coder(self) -> FakeEncodingCoder:
        return FakeEncodingCoder()


def width(step: CodingStep) -> float:
    return 2.0 ** (step.qp / 6) / 2


def shapes(video_format: VideoFormat) -> list[tuple[int, int]]:
    chroma = video_format.chroma_size[::-1]
    return [(video_format.height, video_format.width), chroma, chroma]
