"""The networks, and the two ways through a frame: the integer walk and the pixel pass.

`parse` reads all symbols of a frame from integers alone; `reconstruct` makes pixels of them.
`code_keyframe`, `code_motion` and `code_inter` choose symbols near an original, with a coder that
writes or estimates; they go through the same walk and the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vcfilter.entropy.coder import Coder, Reader
from vcfilter.models.hierarchical import loop_filter
from vcfilter.models.hierarchical.blocks import (
    BLOCK,
    Planes,
    finish,
    to_blocks,
    to_planes,
    within,
)
from vcfilter.models.hierarchical.conditions import (
    CONTEXT,
    CONTEXT_MAX,
    Conditions,
    all_past,
    chroma_step,
)
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.image import ImageCodec
from vcfilter.models.hierarchical.latent import LatentContext, LatentExtent, lowest_table
from vcfilter.models.hierarchical.loop_filter import Filtering
from vcfilter.models.hierarchical.mode import FilterMode, MotionMode
from vcfilter.models.hierarchical.motion import (
    MotionCodec,
    blend,
    direct_motion,
    field_step,
    warp_planes,
)
from vcfilter.models.hierarchical.refine import refine
from vcfilter.models.hierarchical.refinement import Below, rescaled_activations
from vcfilter.models.hierarchical.values import (
    CodedMotion,
    FrameContext,
    FrameSymbols,
    LatentSymbols,
    LevelSymbols,
    MotionField,
    Pair,
    Reference,
    lowest_pair,
)
from vcfilter.nn.blocks import Branch, compress

# An error of motion counts for half of what it costs the prediction: the residual mends some.
MOTION_LAMBDA = 2.0
# Motion that serves a picture finer than the frame's own, as with quality levels above, counts so
# much less: on training clips the best of two levels saves 1.5 % of its bits, the base takes 1 %.
MOTION_FINER = 0.4
# Factors on the quantiser's Lagrangian, for what a level above refines and for the best level: what
# the base rounds up is often coded again above it. On training stills both save 1 % of two levels'
# bits and 2 % of three levels'. On training clips 1.35 instead of 1.2 saves 0.8 % of the best
# level's bits, and the base takes 1.7 % more.
REFINED, BEST = 1.3, 0.9
# Bases with levels above them add so much of what a prediction from bases alone lacks; the levels
# take it out again. On four training clips the base saves 1.8 % of its bits, the best level none.
ALONE = 0.5
REFINE_LEVEL = 3  # what `refine` takes motion's error for, coded or not

Size4 = tuple[int, int, int, int] | torch.Size
ContextPair = tuple[FrameContext, FrameContext]
Synthesis = Callable[[Tensor, Tensor], Tensor]
"""A latent and the symbols that refined it, to samples in blocks."""
Start = Callable[[Conditions], tuple[Tensor, Synthesis]]
"""What is expected of a latent, and what makes the frame of it, under a level's conditions."""


@dataclass(slots=True, kw_only=True, eq=False)
class LevelCoder:
    """What codes one quality level above the base.

    Args:
        drop: the base's qp less the level's, at least 1.
        passes: a coder for each pass; the last one counts.
        used: whether the level holds anything; known when it is coded. One that does not is left
            out, and levels above it refine what is below it.
        below: the reconstruction from the levels below, not filtered; known when it is coded.
    """

    drop: int
    passes: Sequence[Coder]
    used: bool = False
    below: Planes | None = None


class _Stack:
    """The levels of an image latent so far, from the base up.

    Args:
        extent: of the latent. symbols: the base's; None: it has none.
    """

    def __init__(self, extent: LatentExtent, symbols: Tensor | None) -> None:
        self._extent = extent
        self._drop = 0
        self.symbols = symbols
        self.values: Tensor | None = None  # in the picture, differences to what is expected

    def below(self, drop: int) -> Below | None:
        """What a level refines; None: nothing, no level below it has symbols."""
        if self.symbols is None:
            return None
        return Below.of(self._extent.crop(self.symbols), drop - self._drop, self.values)

    def add(self, drop: int, symbols: Tensor, values: Tensor | None = None) -> None:
        """Put a level on top."""
        self._drop, self.symbols, self.values = drop, symbols, values


class Prediction(nn.Module):
    """Corrects y_interp = g_a(x_interp) from the two warped references; zero until trained."""

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        self.branch = Branch(
            2 * config.channels,
            config.prediction_width,
            config.channels,
            config.prediction_blocks,
            last=1,
            context=CONTEXT,
            context_max=CONTEXT_MAX,
        )

    def forward(
        self, y_interp: Tensor, difference: Tensor, base: Tensor, features: Tensor
    ) -> Tensor:
        """The predicted latent (B, 96, h, w).

        Args:
            y_interp: latent of the blended picture.
            difference: linear latent of the second warped reference minus the first.
            base: (B,) quantiser step. features: (B, 16).
        """
        scale = base[:, None, None, None]
        inputs = torch.cat([compress(y_interp / scale), compress(difference / scale)], dim=1)
        return y_interp + scale * self.branch(inputs, features)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """An inter frame's prediction.

    Args:
        planes: the prediction. first, second: the references it was blended from, warped.
        moves: (B, 4, h, w) the displacements.
    """

    planes: Planes
    first: Planes
    second: Planes
    moves: Tensor


class VideoNet(nn.Module):
    """All networks (batched; frame types and modes alike within a batch)."""

    def __init__(self, config: HierarchicalConfig | None = None) -> None:
        super().__init__()
        self.config = config or HierarchicalConfig()
        self.image = ImageCodec(self.config)
        self.motion = MotionCodec(self.config)
        self.prediction = Prediction(self.config)

    def features(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(base steps (B,), context features (B, 16)) in the networks' own precision."""
        return conditions.features(self.image.analysis_linear.weight.dtype)

    def quantiser(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(base steps (B,), quantiser steps (B, 96) of the image latent)."""
        base, features = self.features(conditions)
        shape = 1 + (chroma_step(base)[:, None] - 1) * self.image.chroma
        return base, base[:, None] * shape * torch.exp(self.image.log_step(features / CONTEXT_MAX))

    def latent_shape(self, batch: int, rows: int, columns: int) -> Size4:
        """The image latent's shape for frames of so many padded luma samples."""
        return (batch, self.config.channels, *self.config.latent_size(rows, columns))

    # The integers.

    def image_extent(self, conditions: Conditions, shape: Size4) -> LatentExtent:
        """What values of an image latent of a shape follow from: nothing of other frames."""
        _, features = self.features(conditions)
        rows, columns = conditions.size or (BLOCK * shape[2], BLOCK * shape[3])
        inside = (-(-rows // BLOCK), -(-columns // BLOCK))
        return LatentExtent(features=features, size=(shape[2], shape[3]), inside=inside)

    def image_context(
        self,
        conditions: Conditions,
        contexts: ContextPair | None,
        shape: Size4,
        drop: int = 0,
    ) -> LatentContext:
        """What the image latent of a shape is coded with; contexts None: a keyframe.

        Args:
            drop: of a quality level, the base's qp less the one in conditions.
        """
        extent = self.image_extent(conditions, shape)
        features = extent.features
        if contexts is None:
            none = features.new_zeros(shape)
            temporal = none, none
        else:
            first, second = contexts
            temporal = (
                torch.maximum(first.symbols, second.symbols).to(features.dtype),
                torch.maximum(first.activity, second.activity).to(features.dtype),
            )
            if drop:
                temporal = (
                    rescaled_activations(temporal[0], drop),
                    rescaled_activations(temporal[1], drop),
                )
        return LatentContext(
            features=features,
            size=extent.size,
            inside=extent.inside,
            lowest=lowest_table(conditions.qp),
            temporal=temporal,
        )

    def motion_context(self, conditions: Conditions, contexts: ContextPair) -> LatentContext:
        """What the motion latent (B, 80, h/4, w/4) is coded with.

        Motion of frames between their references says little of motion that goes on from them:
        where all references are past, their motion counts as none.
        """
        _, features = self.features(conditions)
        first, second = contexts
        counts = (~all_past(conditions.distances)).to(features.dtype)[:, None, None, None]
        temporal = (
            torch.maximum(first.motion_symbols, second.motion_symbols) * counts,
            torch.maximum(first.motion_activity, second.motion_activity) * counts,
        )
        size = temporal[0].shape[2], temporal[0].shape[3]
        lowest = torch.zeros_like(features[:, 0])
        return LatentContext(
            features=features, size=size, inside=size, lowest=lowest, temporal=temporal
        )

    def parse(
        self,
        mode: MotionMode,
        residual: bool,
        conditions: Conditions,
        contexts: ContextPair | None,
        shape: Size4,
        reader: Reader,
        levels: Sequence[tuple[int, Reader]] = (),
        filtered: FilterMode | None = None,
    ) -> FrameSymbols:
        """Read a frame's integers.

        Args:
            contexts: of the references; None: a keyframe.
            shape: (B, 96, h, w) of the image latent.
            levels: what reads each quality level above the base, by rising drop (see
                LevelSymbols), which stands before it.
            filtered: how the loop filter is coded, at the end of the base.
        """
        motion = None
        context = self.image_context(conditions, contexts, shape)
        if contexts is not None and mode is MotionMode.CODED:
            motion = self.motion.coding.parse(self.motion_context(conditions, contexts), reader)
        coded = contexts is None or residual
        image = self.image.coding.parse(context, reader) if coded else context.untouched()
        sources = [c.loop_filter for c in contexts or ()]
        shown_filter = base_filter = loop_filter.read(filtered, sources, reader)
        stack = _Stack(context, image.symbols if coded else None)
        found = []
        for drop, each in levels:
            context = self.image_context(conditions.finer(drop), contexts, shape, drop)
            symbols = self.image.coding.parse(context, each, stack.below(drop)).symbols
            if filtered is not None:
                shown_filter = loop_filter.read_level(shown_filter, each)
            found.append(LevelSymbols(drop, symbols, shown_filter))
            stack.add(drop, symbols)
        return FrameSymbols(
            image=image.symbols if coded else None,
            motion=None if motion is None else motion.symbols,
            context=FrameContext.of(image, motion, self.config.motion_channels, base_filter),
            levels=tuple(found),
        )

    # The pixels.

    def reconstruct(
        self,
        mode: MotionMode,
        conditions: Conditions,
        symbols: FrameSymbols,
        references: Pair | None,
    ) -> Reference:
        """Pixels of a parsed frame; references None: a keyframe."""
        size = conditions.size
        base = symbols.context.loop_filter
        shown = symbols.levels[-1].loop_filter if symbols.levels else base
        if references is None:
            blocks = self._decode_image(conditions, symbols, self.from_nothing)
            whole = self.key_reference(conditions, blocks, symbols.context)
            return whole.filtered(base, shown, size)
        field = None
        if symbols.motion is not None:
            field = self.decode_field(conditions, symbols.motion, references)
        predicted = self.predict(mode, conditions, references, field)
        if symbols.image is None and not symbols.levels:
            whole = self.inter_reference(conditions, predicted, predicted.planes, symbols.context)
            return whole.filtered(base, shown, size)

        def start(own: Conditions) -> tuple[Tensor, Synthesis]:
            return self.expect(own, predicted)

        blocks = self._decode_image(conditions, symbols, start)
        whole = self.inter_reference(conditions, predicted, to_planes(blocks), symbols.context)
        return whole.filtered(base, shown, size)

    def _decode_image(self, conditions: Conditions, symbols: FrameSymbols, start: Start) -> Tensor:
        """Samples in blocks, of the base and the levels above it: values of each, one synthesis."""
        shape, top = symbols.context.symbols.shape, conditions
        extent = self.image_extent(conditions, shape)
        stack = _Stack(extent, symbols.image)
        if symbols.image is not None:
            stack.values = self._differences(conditions, symbols.image, extent)
        for level in symbols.levels:
            top = conditions.finer(level.drop)
            extent = self.image_extent(top, shape)
            below = stack.below(level.drop)
            values = self._differences(top, level.symbols, extent, below)
            stack.add(level.drop, level.symbols, values)
        assert stack.symbols is not None and stack.values is not None
        expected, synthesis = start(top)
        return synthesis(expected + extent.fill(stack.values), stack.symbols)

    def _differences(
        self,
        conditions: Conditions,
        symbols: Tensor,
        extent: LatentExtent,
        below: Below | None = None,
    ) -> Tensor:
        _, steps = self.quantiser(conditions)
        return self.image.coding.differences(symbols, steps, extent, below)

    def decode_field(self, conditions: Conditions, symbols: Tensor, references: Pair) -> Tensor:
        """(B, 5, h, w) the field that a motion latent's symbols stand for."""
        base, features = self.features(conditions)
        step = field_step(base, conditions.level)
        size = symbols.shape[2], symbols.shape[3]
        extent = LatentExtent(features=features, size=size, inside=size)
        direct = direct_motion(references, conditions.distances)
        expected = self.motion.analyse(direct, conditions.distances)
        steps = self.motion.quantiser_steps(step)
        latent = self.motion.coding.values(symbols, expected, steps, extent)
        return self.motion.synthesise(latent, conditions.distances, step, features)

    def predict(
        self,
        mode: MotionMode,
        conditions: Conditions,
        references: Pair,
        field: Tensor | None = None,
    ) -> Predicted:
        """An inter frame's prediction.

        Args:
            field: (B, 5, h, w) of coded motion.
        """
        first, second = references[0].planes, references[1].planes
        if mode is MotionMode.DIRECT:
            field = direct_motion(references, conditions.distances)
        if field is None:
            moves = torch.zeros_like(references[0].moves)
            if mode is MotionMode.FIRST:
                return Predicted(planes=first, first=first, second=first, moves=moves)
            if mode is MotionMode.SECOND:
                return Predicted(planes=second, first=second, second=second, moves=moves)
            y, u, v = ((a + b) / 2 for a, b in zip(first, second, strict=True))
            return Predicted(planes=(y, u, v), first=first, second=second, moves=moves)
        distances = conditions.distances
        if conditions.refine:
            base, _ = self.features(conditions)
            step = field_step(base, torch.full_like(conditions.level, REFINE_LEVEL))
            left, right = references[0].half_size(), references[1].half_size()
            field = refine(field, left, right, distances, step)
        both = zip(references, (field[:, :2], field[:, 2:4]), strict=True)
        first, second = (self._warped(each, flow, conditions.sharp) for each, flow in both)
        alone = (distances[:, 1] == 0)[:, None, None, None]
        y, u, v = (torch.where(alone, a, b) for a, b in zip(first, second, strict=True))
        planes = blend(first, second, torch.where(alone, -1.0, field[:, 4:]))
        return Predicted(planes=planes, first=first, second=(y, u, v), moves=field[:, :4])

    @staticmethod
    def _warped(reference: Reference, flow: Tensor, sharp: bool) -> Planes:
        """A reference's planes, warped."""
        y, u, v = reference.planes
        return warp_planes((reference.finest() if sharp else y, u, v), flow)

    def from_nothing(self, conditions: Conditions) -> tuple[Tensor, Synthesis]:
        """The same as `expect` of a keyframe, whose latent is expected to be zero."""
        base, features = self.features(conditions)

        def synthesis(latent: Tensor, symbols: Tensor) -> Tensor:
            return self.image.synthesise(latent, symbols, base, features)

        return torch.zeros_like(base)[:, None, None, None], synthesis

    def expect(self, conditions: Conditions, predicted: Predicted) -> tuple[Tensor, Synthesis]:
        """(predicted latent (B, 96, h, w), what makes the frame of the latent that is coded)."""
        base, features = self.features(conditions)
        interpolated = to_blocks(*predicted.planes)
        y_interp = self.image.analyse(interpolated, base, features)
        difference = to_blocks(*predicted.second) - to_blocks(*predicted.first)
        difference = self.image.analysis_linear(difference)
        expected = self.prediction(y_interp, difference, base, features)
        bare = self.image.without_learned(interpolated, y_interp, base, features)

        def synthesis(latent: Tensor, symbols: Tensor) -> Tensor:
            return self.image.correct(bare, y_interp, latent, symbols, base, features)

        return expected, synthesis

    def key_reference(
        self, conditions: Conditions, blocks: Tensor, context: FrameContext
    ) -> Reference:
        """A keyframe's reconstruction from samples in blocks, not filtered."""
        batch, _, rows, columns = blocks.shape
        return Reference(
            planes=finish(to_planes(blocks), conditions.size),
            context=context,
            moves=blocks.new_zeros(batch, 4, rows, columns),
            distances=conditions.distances,
        )

    def inter_reference(
        self, conditions: Conditions, predicted: Predicted, planes: Planes, context: FrameContext
    ) -> Reference:
        """An inter frame's reconstruction from its planes, not filtered."""
        return Reference(
            planes=finish(planes, conditions.size),
            context=context,
            moves=predicted.moves,
            distances=conditions.distances,
        )

    # Encoding and training.

    def code_keyframe(
        self,
        conditions: Conditions,
        x: Planes,
        coder: Coder,
        earlier: Sequence[Coder] = (),
        levels: Sequence[LevelCoder] = (),
        rd_scale: Tensor | float = 1.0,
        filters: Filtering | None = None,
        foreseen: int = 0,
    ) -> Reference:
        """Code keyframes.

        Args:
            earlier: coders of passes before the one that counts. Each later pass aims at what the
                synthesis left of the one before: rounding and branches work against each other
                less.
            levels: quality levels above the base, by rising drop.
            rd_scale: factor on the Lagrangian, (1, 1, h, w) of the latent's part in the picture,
                or a number.
            filters: passes aim at what a filter leaves; the reconstruction is not filtered yet.
            foreseen: after how many passes, from the first on, it is measured what symbols cost
                later ones (see `LatentModel.later_costs`).
        """
        wanted = to_blocks(*x)
        start = self.from_nothing
        blocks, image = self._code_image(
            conditions, wanted, None, start, coder, earlier, levels, rd_scale, filters, foreseen
        )
        assert blocks is not None
        integers = FrameContext.of(image, None, self.config.motion_channels)
        reference = self.key_reference(conditions, blocks, integers)
        for level in levels:
            if level.used and level.below is not None:
                return replace(reference, lowest=replace(reference, planes=level.below))
        return reference

    def code_motion(
        self,
        conditions: Conditions,
        estimate: MotionField,
        references: Pair,
        coder: Coder,
        finer: int = 0,
    ) -> CodedMotion:
        """Code motion fields near an estimate.

        Args:
            finer: by how many qps the picture that motion serves is finer than in conditions.
        """
        base, features = self.features(conditions)
        step, distances = field_step(base, conditions.level), conditions.distances
        contexts = references[0].context, references[1].context
        context = self.motion_context(conditions, contexts)
        expected = self.motion.analyse(direct_motion(references, distances), distances)
        steps = self.motion.quantiser_steps(step)
        target = self.motion.analyse(estimate.field, distances)
        cost = self.motion.cost(estimate.hessian, distances) + 1.0
        share = base[:, None] / steps * 2.0 ** (-finer / 6)
        weight = MOTION_LAMBDA * (MOTION_FINER if finer else 1.0)
        scale = (weight * share[:, :, None, None] ** 2 / cost).clamp(0.1, 1000.0)
        latent, symbols = self.motion.coding.code(target, expected, steps, context, coder, scale)
        return CodedMotion(self.motion.synthesise(latent, distances, step, features), symbols)

    def code_inter(
        self,
        mode: MotionMode,
        residual: bool,
        conditions: Conditions,
        x: Planes,
        references: Pair,
        coder: Coder,
        motion: CodedMotion | None = None,
        earlier: Sequence[Coder] = (),
        levels: Sequence[LevelCoder] = (),
        rd_scale: Tensor | float = 1.0,
        filters: Filtering | None = None,
        foreseen: int = 0,
    ) -> Reference:
        """Code inter frames.

        Args:
            motion: what `code_motion` gave, for CODED.
            earlier, levels, rd_scale, filters, foreseen: see `code_keyframe`.
        """
        contexts = references[0].context, references[1].context
        predicted = self.predict(mode, conditions, references, motion.field if motion else None)
        motion_symbols = motion.symbols if motion else None
        if not residual and not levels:
            integers = FrameContext.untouched(contexts, motion_symbols)
            return self.inter_reference(conditions, predicted, predicted.planes, integers)

        def start(own: Conditions) -> tuple[Tensor, Synthesis]:
            return self.expect(own, predicted)

        # Nothing is to be coded outside the picture.
        wanted = to_blocks(*within(x, predicted.planes, conditions.size))
        base = coder if residual else None
        alone, less = None, None
        if levels:
            alone = self._predict_alone(mode, conditions, references, motion)
            less = to_blocks(*predicted.planes) - to_blocks(*alone.planes)
        blocks, image = self._code_image(
            conditions,
            wanted,
            contexts,
            start,
            base,
            earlier,
            levels,
            rd_scale,
            filters,
            foreseen,
            less,
        )
        integers = FrameContext.of(image, motion_symbols, self.config.motion_channels)
        for level in levels:
            if level.below is None:
                level.below = finish(predicted.planes, conditions.size)
        planes = predicted.planes if blocks is None else to_planes(blocks)
        reference = self.inter_reference(conditions, predicted, planes, integers)
        if alone is None:
            return reference
        base_planes = alone.planes
        if base is not None:
            context = self.image_context(conditions, contexts, wanted.shape)
            values = context.fill(self._differences(conditions, image.symbols, context))
            expected, synthesis = self.expect(conditions, alone)
            base_planes = to_planes(synthesis(expected + values, image.symbols))
        lowest = self.inter_reference(conditions, alone, base_planes, integers)
        return replace(reference, lowest=lowest)

    def _predict_alone(
        self,
        mode: MotionMode,
        conditions: Conditions,
        references: Pair,
        motion: CodedMotion | None,
    ) -> Predicted:
        """The prediction that a decoder of the bases alone makes."""
        pair = lowest_pair(references)
        field = None
        if motion is not None:
            field = self.decode_field(conditions, motion.symbols.symbols, pair)
        return self.predict(mode, conditions, pair, field)

    def _code_image(
        self,
        conditions: Conditions,
        wanted: Tensor,
        contexts: ContextPair | None,
        start: Start,
        coder: Coder | None,
        earlier: Sequence[Coder],
        levels: Sequence[LevelCoder],
        rd_scale: Tensor | float = 1.0,
        filters: Filtering | None = None,
        foreseen: int = 0,
        less: Tensor | None = None,
    ) -> tuple[Tensor | None, LatentSymbols]:
        """Code the image latent: (reconstruction in blocks, integers of the base).

        Args:
            coder: of the base; None: it holds no residual. Where no level holds one either there
                is no reconstruction.
            rd_scale, filters, foreseen: see `code_keyframe`.
            less: with levels, what a prediction from bases alone lacks, in blocks.
        """
        if isinstance(rd_scale, Tensor):
            rd_scale = rd_scale.expand(*wanted.shape[:2], -1, -1)
        context = self.image_context(conditions, contexts, wanted.shape)
        image, blocks = context.untouched(), None
        stack = _Stack(context, None)
        if coder is not None:
            passes = [*earlier, coder]
            scale = rd_scale * (REFINED if levels else 1.0)
            aim = wanted if less is None else wanted + ALONE * less
            blocks, image = self._code_level(
                conditions, aim, context, start, passes, None, scale, filters, foreseen
            )
            stack.add(0, image.symbols)
            if levels:
                stack.values = self._differences(conditions, image.symbols, context)
        for level in levels:
            if blocks is not None:
                level.below = finish(to_planes(blocks), conditions.size)
            own = conditions.finer(level.drop)
            context = self.image_context(own, contexts, wanted.shape, level.drop)
            below = stack.below(level.drop)
            scale = rd_scale * (BEST if level is levels[-1] else REFINED)
            found, finer = self._code_level(
                own, wanted, context, start, level.passes, below, scale, filters, foreseen
            )
            symbols = context.crop(finer.symbols)
            level.used = bool((symbols if below is None else symbols - below.scaled).any())
            if level.used:
                blocks = found
                values = self._differences(own, finer.symbols, context, below)
                stack.add(level.drop, finer.symbols, values)
        return blocks, image

    def _code_level(
        self,
        conditions: Conditions,
        wanted: Tensor,
        context: LatentContext,
        start: Start,
        passes: Sequence[Coder],
        below: Below | None,
        scale: Tensor | float,
        filters: Filtering | None,
        foreseen: int = 0,
    ) -> tuple[Tensor, LatentSymbols]:
        """Code the base or a level of the image latent in passes; see `code_keyframe`.

        Args:
            scale: factor on the quantiser's Lagrangian, see `LatentModel.code`.
        """
        base, features = self.features(conditions)
        (_, steps), coding = self.quantiser(conditions), self.image.coding
        expected, synthesis = start(conditions)
        target, later = self.image.analyse(wanted, base, features), None
        for number, each in enumerate(passes[:-1]):
            with torch.no_grad():
                latent, image = coding.code(
                    target, expected, steps, context, each, scale, below, later
                )
                blocks = synthesis(latent, image.symbols)
                if filters is not None:
                    size = conditions.size
                    planes = filters.filtered(finish(to_planes(blocks), size))
                    blocks = to_blocks(*finish(planes, size))
                target = latent + self.image.analysis_linear(wanted - blocks)
                if number < foreseen:
                    later = coding.later_costs(image.symbols, context, each.bits, later, below)
        latent, image = coding.code(
            target, expected, steps, context, passes[-1], scale, below, later
        )
        return synthesis(latent, image.symbols), image
