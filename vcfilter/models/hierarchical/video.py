"""The whole codec model: one frame at a time, from references, through a coder."""

from __future__ import annotations

import dataclasses
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
    DraftCoder,
    EncodingCoder,
    Reader,
    TableSet,
    Written,
)
from vcfilter.errors import ConfigError
from vcfilter.frames import Frame, FrameType, Plane, VideoFormat
from vcfilter.models.hierarchical import motion as moving
from vcfilter.models.hierarchical import search
from vcfilter.models.hierarchical.image import ImageCodec
from vcfilter.models.hierarchical.latent import DECAY, Known, Symbols, lowest_table
from vcfilter.models.hierarchical.layers import (
    ALIGN,
    BLOCK,
    CHANNELS,
    chroma_weight,
    context,
    picture_dct,
    quantiser_step,
    to_blocks,
    to_planes,
)
from vcfilter.models.hierarchical.motion import MOTION_CHANNELS, MotionCodec
from vcfilter.models.hierarchical.prediction import Prediction
from vcfilter.models.hierarchical.refine import refine

# An error of motion counts for half of what it costs the prediction: the residual mends some.
MOTION_LAMBDA = 2.0
# Of a coefficient u in steps that is coded rather than dropped: its cost at 1, and per doubling.
CODED_COST, BITS_COST = 0.7, 0.46  # 0.4 to 1 and 0.46 to 0.6 choose alike on training clips
REFINE_LEVEL = 3  # what `refine` takes motion's error for, coded or inherited
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

    kind: FrameType
    qp: int
    layer: int = 0
    distances: tuple[int, int] = (0, 0)
    motion: MotionMode = MotionMode.NONE
    motion_level: int = 0
    refine: bool = False
    residual: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An original as planes: y (B, 1, H, W), u and v (B, 1, H/2, W/2), 0 to 255, padded.

    Args:
        size: rows and columns of luma that are picture; the rest repeats its border.
    """

    planes: Planes
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class CodedField:
    """Motion as it was coded: the field (B, 5, H/8, W/8), its symbols' activations, activity."""

    field: Tensor
    symbols: Tensor
    activity: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MotionField:
    """Estimated motion and what errors in it cost.

    Args:
        field: (B, 5, H/8, W/8), see `MotionCodec`.
        normal: (B, H/8, W/8, 5, 5) what errors cost, see `refine.linearise`.
        coded: filled by `VideoModel.code`, so that trials with the same motion code it once:
            by qp and level, what it decodes to and what was written.
    """

    field: Tensor
    normal: Tensor
    coded: dict[tuple[int, int], tuple[CodedField, list[Written]]] = dataclasses.field(
        default_factory=dict
    )

    def within(self, size: tuple[int, int] | None) -> MotionField:
        """The same for a picture of so many rows and columns of luma: outside, errors are free."""
        rows, columns = self.field.shape[2:]
        inside = (rows, columns) if size is None else (-(-size[0] // BLOCK), -(-size[1] // BLOCK))
        if inside == (rows, columns):
            return self
        missing = (0, columns - inside[1], 0, rows - inside[0])
        field = F.pad(self.field[..., : inside[0], : inside[1]], missing, mode="replicate")
        normal = self.normal[:, : inside[0], : inside[1]]
        return MotionField(field, F.pad(normal, (0, 0, 0, 0, *missing)))


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

    @property
    def context(self) -> Reference:
        """What later frames' symbols depend on."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """All integers of a frame, read before its pixels are made.

    Args:
        image, motion: the latents' own integers; None where none were coded.
        symbols, activity, motion_symbols, motion_activity: as of the Reference it becomes.
    """

    image: Symbols | None
    motion: Symbols | None
    symbols: Tensor
    activity: Tensor
    motion_symbols: Tensor
    motion_activity: Tensor


Past = Reference | Parsed
"""What the next frame's parse needs of a reference."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """The numbers of a batch of CodingSteps as tensors (B,), distances (B, 2).

    Args:
        size: rows and columns of luma inside the picture; None: all of it.
    """

    qp: Tensor
    layer: Tensor
    distances: Tensor
    level: Tensor
    refine: bool = False
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        steps: Sequence[CodingStep],
        device: torch.device,
        size: tuple[int, int] | None = None,
    ) -> Conditions:
        """Tensors on a device from steps."""
        rows = [[s.qp, s.layer, *s.distances, s.motion_level] for s in steps]
        table = torch.tensor(rows, device=device)
        return cls(table[:, 0], table[:, 1], table[:, 2:4], table[:, 4], steps[0].refine, size)


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

    def image_known(
        self, given: Conditions, ctx: Tensor, past: tuple[Past, Past] | None, grid: torch.Size
    ) -> Known:
        """What the image latent (B, 96, h, w) is coded with; past None: a keyframe."""
        if past is None:
            none = ctx.new_zeros(grid)
            seen = none, none
        else:
            left, right = past
            seen = (
                torch.maximum(left.symbols, right.symbols),
                torch.maximum(left.activity, right.activity),
            )
        rows, columns = given.size or (BLOCK * grid[2], BLOCK * grid[3])
        inside = (-(-rows // BLOCK), -(-columns // BLOCK))
        return Known(ctx=ctx, lowest=lowest_table(given.qp), past=seen, inside=inside)

    def motion_known(self, ctx: Tensor, past: tuple[Past, Past]) -> Known:
        """What the motion latent (B, 80, h/4, w/4) is coded with."""
        left, right = past
        seen = (
            torch.maximum(left.motion_symbols, right.motion_symbols),
            torch.maximum(left.motion_activity, right.motion_activity),
        )
        rows, columns = left.motion_symbols.shape[2:]
        return Known(ctx=ctx, lowest=torch.zeros_like(ctx[:, 0]), past=seen, inside=(rows, columns))

    def parse(
        self,
        mode: MotionMode,
        residual: bool,
        given: Conditions,
        past: tuple[Past, Past] | None,
        grid: torch.Size,
        reader: Reader,
    ) -> Parsed:
        """Read a frame's integers; past None: a keyframe. grid is (B, 96, H/8, W/8)."""
        _, ctx = self.conditions(given)
        known = self.image_known(given, ctx, past, grid)
        none = ctx.new_zeros(grid[0], MOTION_CHANNELS, grid[2] // 4, grid[3] // 4)
        motion: Symbols | None = None
        motion_symbols = motion_activity = none
        if past is not None and mode is MotionMode.CODED:
            motion = self.motion.coding.parse(self.motion_known(ctx, past), reader)
            motion_symbols = self.motion.coding.activation(motion.symbols)
            motion_activity = motion.activity
        image: Symbols | None = None
        symbols, activity = torch.zeros_like(known.past[1]), torch.floor(known.past[1] * DECAY)
        if past is None or residual:
            image = self.image.coding.parse(known, reader)
            symbols, activity = self.image.coding.activation(image.symbols), image.activity
        return Parsed(image, motion, symbols, activity, motion_symbols, motion_activity)

    def keyframe(
        self,
        given: Conditions,
        x: Planes | None,
        grid: torch.Size,
        coder: Coder | Parsed,
        drafts: Sequence[Coder] = (),
    ) -> Reference:
        """Code keyframes, or restore parsed ones; grid is (B, 96, H/8, W/8).

        Args:
            drafts: coders of passes before the one that counts. Each later pass aims at what the
                synthesis left of the one before: rounding and branches work against each other
                less.
        """
        base, ctx = self.conditions(given)
        known = self.image_known(given, ctx, None, grid)
        zeros, quantum = known.past[0], self.image.quantum(base, ctx)
        if isinstance(coder, Parsed):
            assert coder.image is not None
            coded = self.image.coding.restore(coder.image, zeros, quantum, known)
        else:
            assert x is not None
            wanted = to_blocks(*x)
            target = self.image.analyse(wanted, base, ctx)
            for draft in drafts:
                with torch.no_grad():
                    coded = self.image.coding.code(target, zeros, quantum, known, draft)
                    blocks = self.image.synthesise(coded.value, coded.integers.symbols, base, ctx)
                    target = coded.value + self.image.analysis_linear(wanted - blocks)
            coded = self.image.coding.code(target, zeros, quantum, known, coder)
        blocks = self.image.synthesise(coded.value, coded.integers.symbols, base, ctx)
        batch, _, rows, columns = grid
        none = zeros.new_zeros(batch, MOTION_CHANNELS, rows // 4, columns // 4)
        return Reference(
            finish(to_planes(blocks), given.size),
            self.image.coding.activation(coded.integers.symbols),
            coded.integers.activity,
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
        coder: Coder | Parsed,
    ) -> CodedField:
        """Code motion, or restore parsed motion."""
        base, ctx = self.conditions(given)
        step = moving.field_step(base, given.level)
        known = self.motion_known(ctx, references)
        direct = direct_motion(references, given.distances)
        expected = self.motion.analyse(direct, given.distances)
        quantum = self.motion.quantum(step)
        if isinstance(coder, Parsed):
            assert coder.motion is not None
            coded = self.motion.coding.restore(coder.motion, expected, quantum, known)
        else:
            assert estimate is not None
            target = self.motion.analyse(estimate.field, given.distances)
            cost = self.motion.cost(estimate.normal, given.distances) + 1.0
            share = base[:, None] / quantum
            scale = (MOTION_LAMBDA * share[:, :, None, None] ** 2 / cost).clamp(0.1, 1000.0)
            coded = self.motion.coding.code(target, expected, quantum, known, coder, scale)
        field = self.motion.synthesise(coded.value, given.distances, step, ctx)
        symbols = self.motion.coding.activation(coded.integers.symbols)
        return CodedField(field, symbols, coded.integers.activity)

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
        coder: Coder | Parsed,
        motion: MotionField | CodedField | None = None,
        drafts: Sequence[Coder] = (),
    ) -> tuple[Reference, Planes]:
        """Code inter frames, or restore parsed ones: (reconstruction, its prediction).

        Args:
            drafts: of the residual, see `keyframe`.
        """
        left, right = references
        base, ctx = self.conditions(given)
        field: Tensor | None = None
        motion_symbols = torch.zeros_like(left.motion_symbols)
        motion_activity = torch.zeros_like(left.motion_activity)
        if mode is MotionMode.DIRECT:
            field = direct_motion(references, given.distances)
        if mode is MotionMode.CODED:
            if not isinstance(motion, CodedField):
                motion = self.field(given, motion, references, coder)
            field, motion_symbols, motion_activity = motion.field, motion.symbols, motion.activity
        if given.refine and field is not None:
            known_step = moving.field_step(base, torch.full_like(given.level, REFINE_LEVEL))
            luma = left.planes[0], right.planes[0]
            field = refine(field, *luma, given.distances, known_step)
        moves = torch.zeros_like(left.moves) if field is None else field[:, :4]
        moved = motion_symbols, motion_activity, moves, given.distances
        predicted, moved_left, moved_right = self.predict(mode, references, field, given.distances)
        known = self.image_known(given, ctx, references, left.symbols.shape)
        if not residual:
            faded = torch.floor(known.past[1] * DECAY)
            symbols = torch.zeros_like(faded)
            return Reference(finish(predicted, given.size), symbols, faded, *moved), predicted
        interpolated = to_blocks(*predicted)
        y_interp = self.image.analyse(interpolated, base, ctx)
        apart = self.image.analysis_linear(to_blocks(*moved_right) - to_blocks(*moved_left))
        y_predicted = self.prediction(y_interp, apart, base, ctx)
        bare = self.image.without_learned(interpolated, y_interp, base, ctx)
        quantum = self.image.quantum(base, ctx)
        if isinstance(coder, Parsed):
            assert coder.image is not None
            coded = self.image.coding.restore(coder.image, y_predicted, quantum, known)
        else:
            assert x is not None
            # Nothing is to be coded outside.
            wanted = to_blocks(*within(x, predicted, given.size))
            target = self.image.analyse(wanted, base, ctx)
            for draft in drafts:
                with torch.no_grad():
                    coded = self.image.coding.code(target, y_predicted, quantum, known, draft)
                    symbols = coded.integers.symbols
                    blocks = self.image.correct(bare, y_interp, coded.value, symbols, base, ctx)
                    target = coded.value + self.image.analysis_linear(wanted - blocks)
            coded = self.image.coding.code(target, y_predicted, quantum, known, coder)
        symbols = coded.integers.symbols
        blocks = self.image.correct(bare, y_interp, coded.value, symbols, base, ctx)
        reference = Reference(
            finish(to_planes(blocks), given.size),
            self.image.coding.activation(symbols),
            coded.integers.activity,
            *moved,
        )
        return reference, predicted


def cropped(planes: Planes, size: tuple[int, int] | None) -> Planes:
    """The part of planes that is picture (size: rows and columns of luma; None: all of it)."""
    if size is None:
        return planes
    y, u, v = planes
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    return y[..., : size[0], : size[1]], u[..., : half[0], : half[1]], v[..., : half[0], : half[1]]


def finish(planes: Planes, size: tuple[int, int] | None) -> Planes:
    """Planes within 0 to 255; outside the picture its border repeats."""
    results = []
    for whole, part in zip(planes, cropped(planes, size), strict=True):
        missing = (0, whole.shape[3] - part.shape[3], 0, whole.shape[2] - part.shape[2])
        part = part.clamp(0, 255)
        results.append(F.pad(part, missing, mode="replicate") if any(missing) else part)
    return results[0], results[1], results[2]


def within(x: Planes, others: Planes, size: tuple[int, int] | None) -> Planes:
    """x inside the picture and others outside."""
    if size is None:
        return x
    results = []
    for mine, other, part in zip(x, others, cropped(x, size), strict=True):
        filled = mine
        if part.shape != mine.shape:
            filled = other.clone()
            filled[..., : part.shape[2], : part.shape[3]] = part
        results.append(filled)
    return results[0], results[1], results[2]


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
    given: Conditions,
    x: Planes,
    references: tuple[Reference, Reference],
    scale: int = 1,
    rounds: int = 2,
) -> MotionField:
    """Dense motion from x to its references, see `search.estimate_field`.

    Outside the picture (given.size), motion goes on as at the border.
    """
    left, right = (reference.planes[0] for reference in references)
    start = direct_motion(references, given.distances)
    alone = not bool(given.distances[0, 1])
    base = quantiser_step(given.qp)
    found = search.estimate_field(x[0], left, None if alone else right, start, base, scale, rounds)
    return MotionField(*found).within(given.size)


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
        dtype = net.image.analysis_linear.weight.dtype
        self._dct = picture_dct()[:, :, None, None].to(device, dtype)
        self.device = device

    @classmethod
    def load(cls, path: str | None = None, device: str = "auto") -> VideoModel:
        """The model of a weights file (None: the shipped one), kept for the next call.

        Raises:
            ConfigError: no such device. MediaError, ModelMismatchError: no usable weights file.
        """
        from vcfilter.models.checkpoint import load_model

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
        return Picture((planes[0], planes[1], planes[2]), (video_format.height, video_format.width))

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
        given = Conditions.of([step], self.device, x.size)
        return estimate_motion(given, x.planes, pair(references), flow_scale, rounds)

    @torch.inference_mode()
    def code(
        self,
        step: CodingStep,
        x: Picture,
        references: Sequence[Reference],
        coder: Coder,
        motion: MotionField | None = None,
        passes: int = 1,
    ) -> Reference:
        """Code one frame with a coder that writes or estimates.

        Args:
            step: what the header says. x: the original.
            references: none for a keyframe, (left,) or (left, right) for an inter frame.
            motion: the estimate, for CODED.
            passes: how often the latent is coded, each time aimed better; the last one counts.
        """
        given = Conditions.of([step], self.device, x.size)
        drafts = [DraftCoder(self.tables) for _ in range(passes - 1)]
        if step.kind is FrameType.KEY:
            grid = latent_grid(*x.planes[0].shape[2:])
            return self.net.keyframe(given, x.planes, grid, coder, drafts)
        both, mode = pair(references), step.motion
        known: CodedField | MotionField | None = motion
        if motion is not None and isinstance(coder, EncodingCoder):
            key = step.qp, step.motion_level
            if key in motion.coded:
                known, written = motion.coded[key]
                coder.repeat(written)
            else:
                known = self.net.field(given, motion, both, coder)
                motion.coded[key] = known, coder.written
        coded = self.net.inter(mode, step.residual, given, x.planes, both, coder, known, drafts)
        return coded[0]

    @torch.inference_mode()
    def parse(
        self, step: CodingStep, past: Sequence[Past], data: bytes, video_format: VideoFormat
    ) -> Parsed:
        """Read one frame's integers; its references may be parsed only, too.

        Raises:
            BitstreamError: the bytes are damaged.
        """
        given = Conditions.of([step], self.device, (video_format.height, video_format.width))
        both = None if step.kind is FrameType.KEY else (past[0], past[-1])
        grid, reader = latent_grid(*padded(video_format)), self.decoding_coder(data)
        return self.net.parse(step.motion, step.residual, given, both, grid, reader)

    @torch.inference_mode()
    def restore(
        self,
        step: CodingStep,
        parsed: Parsed,
        references: Sequence[Reference],
        video_format: VideoFormat,
    ) -> Reference:
        """The reconstruction of a parsed frame."""
        given = Conditions.of([step], self.device, (video_format.height, video_format.width))
        if step.kind is FrameType.KEY:
            return self.net.keyframe(given, None, latent_grid(*padded(video_format)), parsed)
        both = pair(references)
        return self.net.inter(step.motion, step.residual, given, None, both, parsed)[0]

    @staticmethod
    def distortion(x: Picture, reconstruction: Reference, qp: int) -> float:
        """Squared error per luma sample of the picture, chroma weighted (8-bit units)."""
        y, u, v = (
            float(((a - b) ** 2).sum())
            for a, b in zip(
                cropped(x.planes, x.size), cropped(reconstruction.planes, x.size), strict=True
            )
        )
        weight = float(chroma_weight(quantiser_step(torch.tensor(qp))))
        return (y + weight * (u + v)) / (x.size[0] * x.size[1])

    @torch.inference_mode()
    def residual_cost(self, step: CodingStep, x: Picture, predicted: Reference) -> float:
        """What coding the error of a prediction will cost, distortion plus weighted bits.

        An estimate in units of `distortion`: each DCT coefficient of the error, in steps, is
        dropped or costs its rounding error and bits that grow with its logarithm.
        """
        base, ctx = self.net.conditions(Conditions.of([step], self.device))
        error = to_blocks(*within(x.planes, predicted.planes, x.size))
        error = F.conv2d(error - to_blocks(*predicted.planes), self._dct)
        u = error / self.net.image.quantum(base, ctx)[:, :, None, None]
        cost = torch.minimum(u * u, CODED_COST + BITS_COST * torch.log2(u.abs().clamp(min=1)))
        return float(cost.sum() * base**2) / (x.size[0] * x.size[1])

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


def latent_grid(rows: int, columns: int) -> torch.Size:
    """The image latent's shape for one picture of so many padded luma samples."""
    return torch.Size((1, CHANNELS, rows // BLOCK, columns // BLOCK))


@lru_cache(maxsize=64)
def padded(video_format: VideoFormat) -> tuple[int, int]:
    """(rows, columns) of the padded luma plane."""
    return -(-video_format.height // ALIGN) * ALIGN, -(-video_format.width // ALIGN) * ALIGN
