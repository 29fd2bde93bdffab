"""The whole codec model: one frame at a time, from references, through a coder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcfilter.entropy.coder import (
    QUANTISER_LAMBDA,
    Coder,
    DecodingCoder,
    EncodingCoder,
    TableSet,
)
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, FrameKind, Plane, VideoFormat
from vcfilter.model import motion as moving
from vcfilter.model.inter import Prediction
from vcfilter.model.keyframe import ImageCodec
from vcfilter.model.latent import DECAY, lowest_table
from vcfilter.model.layers import ALIGN, CHANNELS, context, quantiser_step, to_blocks, to_planes
from vcfilter.model.motion import MOTION_CHANNELS, MotionCodec
from vcfilter.model.refine import fit, refine

CHROMA_WEIGHT = 1.5  # weight of a chroma plane's squared error: what 6:1:1 PSNR gives on real video
# A displacement's error e costs about 16 e^2 times the mean squared gradient in squared error per
# grid position, if nothing mends it; the residual mends most of it, hence a multiple of 1/16
# (8 times was near the optimum on three development clips, at fine and coarse qp).
MOTION_LAMBDA = 8.0 / 16.0
REFINE_LEVEL = 5  # what `refine` takes motion's error for, coded or inherited
Planes = tuple[Tensor, Tensor, Tensor]


class MotionMode(IntEnum):
    """Where the prediction of an inter frame comes from."""

    NONE = 0  # the average of the references (the left one if it is alone), no motion
    LEFT = 1  # the left reference as it is
    RIGHT = 2  # the right reference as it is
    DIRECT = 3  # displacements inherited from the references, equal blending
    CODED = 4  # coded displacement fields and blending map


@dataclass(frozen=True, slots=True, kw_only=True)
class CodingStep:
    """Everything about one frame that its header transmits and the networks need.

    Args:
        kind: key or inter.
        qp: 0 to 63, of this frame.
        layer: temporal layer, 0 for keyframes, 1 to 7 for inter frames.
        distances: display distances to the left and right reference; right 0 = left one only.
        motion: how references are moved; motion_level: precision of coded motion, 0 (finest) to 7.
        refine: whether motion, inherited or coded, is corrected by comparing the references.
        residual: whether a latent residual is coded; without it the prediction is the picture.
    """

    kind: FrameKind
    qp: int
    layer: int = 0
    distances: tuple[int, int] = (0, 0)
    motion: MotionMode = MotionMode.NONE
    motion_level: int = 0
    refine: bool = False
    residual: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An original as planes: y (B, 1, H, W), u and v (B, 1, H/2, W/2), 0 to 255, padded."""

    planes: Planes


@dataclass(frozen=True, slots=True, eq=False)
class MotionField:
    """Estimated motion and what errors in it cost.

    Args:
        field: (B, 5, H/8, W/8), see `MotionCodec`.
        texture: (B, 1, H/8, W/8) squared error per squared error of displacement.
        apart: (B, 1, H/8, W/8) the same per squared error of the blend, in the latent's units.
    """

    field: Tensor
    texture: Tensor
    apart: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A reconstruction, and the integers later frames take their context from.

    Args:
        planes: as of a Picture, within 0 to 255.
        symbols, activity: (B, 96, H/8, W/8) integers 0 to 255.
        motion_symbols, motion_activity: (B, 80, H/32, W/32) integers 0 to 255.
        moves: (B, 4, H/8, W/8) displacements to its own references, zero where it has none.
        distances: (B, 2) to its own references.
    """

    planes: Planes
    symbols: Tensor
    activity: Tensor
    motion_symbols: Tensor
    motion_activity: Tensor
    moves: Tensor
    distances: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """The numbers of a batch of CodingSteps as tensors (B,), distances (B, 2)."""

    qp: Tensor
    layer: Tensor
    distances: Tensor
    level: Tensor
    refine: bool = False

    @classmethod
    def of(cls, steps: Sequence[CodingStep], device: torch.device) -> Conditions:
        """Tensors on a device from steps."""
        rows = [[s.qp, s.layer, *s.distances, s.motion_level] for s in steps]
        table = torch.tensor(rows, device=device)
        return cls(table[:, 0], table[:, 1], table[:, 2:4], table[:, 4], steps[0].refine)


class VideoNet(nn.Module):
    """All networks, and the one walk through a frame (batched; kinds and modes alike within)."""

    def __init__(self) -> None:
        super().__init__()
        self.image = ImageCodec(width=96, analysis_blocks=2, synthesis_blocks=4)
        self.motion = MotionCodec(width=48, blocks=1)
        self.prediction = Prediction(width=96, blocks=2)

    def conditions(self, given: Conditions) -> tuple[Tensor, Tensor]:
        """(base steps (B,), context (B, 13)) in the networks' own precision."""
        dtype = self.image.analysis_linear.weight.dtype
        return quantiser_step(given.qp).to(dtype), context(given.qp, given.layer).to(dtype)

    def keyframe(
        self, given: Conditions, x: Planes | None, shape: torch.Size, coder: Coder
    ) -> Reference:
        """Code keyframes; shape is (B, 96, H/8, W/8)."""
        device = given.qp.device
        base, ctx = self.conditions(given)
        zeros = torch.zeros(shape, device=device, dtype=base.dtype)
        target = None if x is None else self.image.analyse(to_blocks(*x), base, ctx)
        quantum = self.image.quantum(base, ctx)
        lowest = lowest_table(given.qp)
        coded = self.image.coding.code(target, zeros, quantum, ctx, lowest, (zeros, zeros), coder)
        blocks = self.image.synthesise(coded.value, coded.symbols, base, ctx)
        batch, _, rows, columns = shape
        none = zeros.new_zeros(batch, MOTION_CHANNELS, rows // 4, columns // 4)
        return Reference(
            clamp(to_planes(blocks)),
            self.image.coding.activation(coded.symbols),
            coded.activity,
            none,
            none,
            zeros.new_zeros(batch, 4, rows, columns),
            given.distances,
        )

    def field(
        self,
        given: Conditions,
        estimate: MotionField | None,
        references: tuple[Reference, Reference],
        direct: Tensor,
        coder: Coder,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Code motion: the field (B, 5, h, w), its symbols' activations and activity."""
        base, ctx = self.conditions(given)
        step = moving.field_step(base, given.level)
        left, right = references
        past = (
            torch.maximum(left.motion_symbols, right.motion_symbols),
            torch.maximum(left.motion_activity, right.motion_activity),
        )
        target: Tensor | None = None
        scale: Tensor | float = 1.0
        if estimate is not None:
            target = self.motion.analyse(estimate.field, given.distances)
            weight = F.avg_pool2d(torch.cat([estimate.texture, estimate.apart], dim=1), 4) + 1.0
            ratio = (base / step) ** 2 * MOTION_LAMBDA
            scale = (ratio[:, None, None, None] / weight).clamp(0.3, 1000.0)
            scale = scale[:, [0, 0, 0, 0, 1] * moving.GRID**2]
        expected = self.motion.analyse(direct, given.distances)
        quantum, lowest = self.motion.quantum(step), torch.zeros_like(base)
        coded = self.motion.coding.code(target, expected, quantum, ctx, lowest, past, coder, scale)
        field = self.motion.synthesise(coded.value, given.distances, step, ctx)
        return field, self.motion.coding.activation(coded.symbols), coded.activity

    def predict(
        self,
        mode: MotionMode,
        references: tuple[Reference, Reference],
        field: Tensor | None,
        distances: Tensor,
    ) -> tuple[Planes, Planes, Planes]:
        """(prediction, moved left, moved right) as planes."""
        left, right = references[0].planes, references[1].planes
        if mode is MotionMode.LEFT:
            return left, left, left
        if mode is MotionMode.RIGHT:
            return right, right, right
        if field is None:
            y, u, v = ((a + b) / 2 for a, b in zip(left, right, strict=True))
            return (y, u, v), left, right
        left, right = moving.warp(left, field[:, :2]), moving.warp(right, field[:, 2:4])
        alone = (distances[:, 1] == 0)[:, None, None, None]
        weight = torch.where(alone, -1.0, field[:, 4:])
        return moving.blend(left, right, weight), left, right

    def inter(
        self,
        mode: MotionMode,
        residual: bool,
        given: Conditions,
        x: Planes | None,
        references: tuple[Reference, Reference],
        coder: Coder,
        estimate: MotionField | None = None,
    ) -> tuple[Reference, Planes]:
        """Code inter frames: (reconstruction, prediction before the residual)."""
        left, right = references
        base, ctx = self.conditions(given)
        field: Tensor | None = None
        motion_symbols = torch.zeros_like(left.motion_symbols)
        motion_activity = torch.zeros_like(left.motion_activity)
        if mode in (MotionMode.DIRECT, MotionMode.CODED):
            field = direct_motion(references, given.distances)
        if mode is MotionMode.CODED:
            assert field is not None
            coded_motion = self.field(given, estimate, references, field, coder)
            field, motion_symbols, motion_activity = coded_motion
        if given.refine and field is not None:
            known = moving.field_step(base, torch.full_like(given.level, REFINE_LEVEL))
            luma = left.planes[0], right.planes[0]
            field = refine(field, *luma, given.distances, known)
        moves = torch.zeros_like(left.moves) if field is None else field[:, :4]
        motion = motion_symbols, motion_activity, moves, given.distances
        predicted, moved_left, moved_right = self.predict(mode, references, field, given.distances)
        past_symbols = torch.maximum(left.symbols, right.symbols)
        past_activity = torch.maximum(left.activity, right.activity)
        if not residual:
            faded = torch.floor(past_activity * DECAY)
            symbols = torch.zeros_like(faded)
            planes = clamp(predicted)
            return Reference(planes, symbols, faded, *motion), predicted
        y_interp = self.image.analyse(to_blocks(*predicted), base, ctx)
        apart = self.image.analysis_linear(to_blocks(*moved_right) - to_blocks(*moved_left))
        y_predicted = self.prediction(y_interp, apart, base, ctx)
        target = None if x is None else self.image.analyse(to_blocks(*x), base, ctx)
        quantum = self.image.quantum(base, ctx)
        past = (past_symbols, past_activity)
        lowest = lowest_table(given.qp)
        coded = self.image.coding.code(target, y_predicted, quantum, ctx, lowest, past, coder)
        blocks = self.image.synthesise(coded.value, coded.symbols, base, ctx)
        reference = Reference(
            clamp(to_planes(blocks)),
            self.image.coding.activation(coded.symbols),
            coded.activity,
            *motion,
        )
        return reference, predicted


def clamp(planes: Planes) -> Planes:
    """Planes within 0 to 255."""
    y, u, v = planes
    return y.clamp(0, 255), u.clamp(0, 255), v.clamp(0, 255)


def pair(references: Sequence[Reference]) -> tuple[Reference, Reference]:
    """(left, right); the left one twice when it is alone."""
    if not 1 <= len(references) <= 2:
        raise ConfigError(f"an inter frame has 1 or 2 references, not {len(references)}")
    return references[0], references[-1]


def direct_motion(references: tuple[Reference, Reference], distances: Tensor) -> Tensor:
    """(B, 5, H/8, W/8) field that the references' own motion implies."""
    left, right = references
    spans = torch.stack([left.distances[:, 1], right.distances[:, 0]], dim=1)
    return moving.inherited((left.moves, right.moves), spans, distances)


def estimate_motion(
    x: Planes,
    references: tuple[Reference, Reference],
    distances: Tensor,
    scale: int,
    rounds: int = 2,
) -> MotionField:
    """Dense motion from x to both references and the blend that fits them best.

    Args:
        scale: the search works at 1/scale of the size. rounds: Gauss-Newton steps after it.
    """
    left, right = references
    start = direct_motion(references, distances)
    flow_left = moving.estimate_flow(x[0], left.planes[0], scale, start[:, :2])
    if not bool(distances[0, 1]):
        field = torch.cat([flow_left, torch.zeros_like(flow_left[:, :1]).expand(-1, 3, -1, -1)], 1)
        texture = moving.texture(x[0])
        return MotionField(field, texture, torch.zeros_like(texture))
    flow_right = moving.estimate_flow(x[0], right.planes[0], scale, start[:, 2:4])
    moved_left = moving.warp(left.planes, flow_left)[0]
    moved_right = moving.warp(right.planes, flow_right)[0]
    weight, energy = moving.estimate_blend(x[0], moved_left, moved_right)
    field = torch.cat([flow_left, flow_right, weight], dim=1)
    if rounds:
        field, energy = fit(x[0], left.planes[0], right.planes[0], field, rounds)
    # An error of displacement counts for one reference, which has half the weight: a quarter.
    return MotionField(field, moving.texture(x[0]), energy * (4 / moving.BLEND_SHARE**2))


class VideoModel:
    """The model as the codec uses it: one frame at a time, on one device, without gradients."""

    def __init__(
        self, net: VideoNet, table_set: TableSet, model_id: bytes, device: torch.device
    ) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa: pixels would drift
        self.tables = table_set
        self.model_id = model_id
        self.device = device

    @classmethod
    def load(cls, path: str | None = None, device: str = "auto") -> VideoModel:
        """The model of a weights file (None: the shipped one), kept for the next call.

        Raises:
            ConfigError: no such device. MediaError, ModelMismatchError: no usable weights file.
        """
        from vcfilter.model.checkpoint import load_model

        return load_model(path, device)

    def encoding_coder(self) -> EncodingCoder:
        """A coder that writes."""
        return EncodingCoder(self.tables)

    def decoding_coder(self, data: bytes) -> DecodingCoder:
        """A coder that reads data."""
        return DecodingCoder(self.tables, data)

    def picture(self, frame: Frame, video_format: VideoFormat) -> Picture:
        """A frame's planes on the device, in 8-bit units, padded by repeating the border."""
        rows, columns = padded(video_format)
        unit = 1.0 if video_format.bit_depth == 8 else 0.25
        planes = []
        for plane, share in zip(frame.planes, (1, 2, 2), strict=True):
            t = torch.from_numpy(np.ascontiguousarray(plane).astype(np.float32))
            t = t.to(self.device)[None, None] * unit
            pad = (0, columns // share - t.shape[3], 0, rows // share - t.shape[2])
            planes.append(F.pad(t, pad, mode="replicate"))
        return Picture((planes[0], planes[1], planes[2]))

    def frame_planes(
        self, reference: Reference, video_format: VideoFormat
    ) -> tuple[Plane, Plane, Plane]:
        """A reconstruction's planes: cropped, rounded, uint8 or uint16."""
        chroma_width, chroma_height = video_format.chroma_size
        sizes = (
            (video_format.height, video_format.width),
            (chroma_height, chroma_width),
            (chroma_height, chroma_width),
        )
        deep = video_format.bit_depth == 10
        dtype = torch.int16 if deep else torch.uint8
        planes = []
        for t, (rows, columns) in zip(reference.planes, sizes, strict=True):
            values = t[0, 0, :rows, :columns] * (4.0 if deep else 1.0)
            values = torch.floor(values + 0.5).clamp(0, 1023 if deep else 255)
            plane = values.to(dtype).cpu().numpy()
            planes.append(plane.view(np.uint16) if deep else plane)
        return planes[0], planes[1], planes[2]

    @torch.inference_mode()
    def estimate_motion(
        self,
        step: CodingStep,
        x: Picture,
        references: Sequence[Reference],
        flow_scale: int = 1,
        rounds: int = 2,
    ) -> MotionField:
        """Motion from a picture to its references (encoder only)."""
        distances = torch.tensor([step.distances], device=self.device)
        return estimate_motion(x.planes, pair(references), distances, flow_scale, rounds)

    @torch.inference_mode()
    def code(
        self,
        step: CodingStep,
        x: Picture | None,
        references: Sequence[Reference],
        coder: Coder,
        motion: MotionField | None = None,
        video_format: VideoFormat | None = None,
    ) -> Reference:
        """Code one frame either way.

        Args:
            step: what the header says. x: the original, None when decoding.
            references: none for a keyframe, (left,) or (left, right) for an inter frame.
            coder: an encoding or a decoding coder. motion: the estimate, when encoding CODED.
            video_format: needed to decode a keyframe.

        Raises:
            BitstreamError: the coder's bytes are damaged.
        """
        given = Conditions.of([step], self.device)
        planes = None if x is None else x.planes
        if step.kind is FrameKind.KEY:
            if planes is not None:
                rows, columns = planes[0].shape[2:]
            elif video_format is not None:
                rows, columns = padded(video_format)
            else:
                raise ConfigError("decoding a keyframe needs the video format")
            shape = torch.Size((1, CHANNELS, rows // 8, columns // 8))
            return self.net.keyframe(given, planes, shape, coder)
        both = pair(references)
        mode = step.motion
        return self.net.inter(mode, step.residual, given, planes, both, coder, motion)[0]

    @staticmethod
    def distortion(x: Picture, reconstruction: Reference) -> float:
        """Squared error per luma sample, chroma weighted (8-bit units)."""
        y, u, v = (
            float(((a - b) ** 2).sum())
            for a, b in zip(x.planes, reconstruction.planes, strict=True)
        )
        return (y + CHROMA_WEIGHT * (u + v)) / x.planes[0].numel()

    @staticmethod
    def psnr(x: Picture, reconstruction: Reference, video_format: VideoFormat) -> float:
        """PSNR in dB, planes weighted 6:1:1, over the cropped picture as decoded; 100 at most."""
        chroma_width, chroma_height = video_format.chroma_size
        sizes = (
            (video_format.height, video_format.width),
            (chroma_height, chroma_width),
            (chroma_height, chroma_width),
        )
        scale, peak = (4.0, 1023 / 4) if video_format.bit_depth == 10 else (1.0, 255.0)
        total = 0.0
        for a, b, (rows, columns), weight in zip(
            x.planes, reconstruction.planes, sizes, (6, 1, 1), strict=True
        ):
            shown = torch.floor(b[..., :rows, :columns] * scale + 0.5) / scale
            mse = float(((a[..., :rows, :columns] - shown) ** 2).mean())
            total += weight * min(100.0, 10 * np.log10(peak**2 / max(mse, 1e-12)))
        return float(total / 8)

    @staticmethod
    def rd_weight(qp: int) -> float:
        """Lagrangian: squared error per luma sample that one bit per luma sample is worth."""
        return float(QUANTISER_LAMBDA * 2.0 ** ((qp - 4) / 3))


@lru_cache(maxsize=64)
def padded(video_format: VideoFormat) -> tuple[int, int]:
    """(rows, columns) of the padded luma plane."""
    return -(-video_format.height // ALIGN) * ALIGN, -(-video_format.width // ALIGN) * ALIGN
