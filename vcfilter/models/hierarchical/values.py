"""What the model hands in and out: originals, integers of a frame, reconstructions, motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.errors import ConfigError
from vcfilter.models.hierarchical.blocks import BLOCK, Planes, Size, finish
from vcfilter.models.hierarchical.loop_filter import NO_FILTER, LoopFilter
from vcfilter.nn.warp import with_halves

FADED, FADED_SHIFT = 7, 3
"""Of activity, from reference to reference: so many eighths."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An original as planes, 0 to 255, padded.

    Args:
        size: rows and columns of luma inside the picture; the rest repeats its border.
    """

    planes: Planes
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSymbols:
    """The integers of one latent, all (B, C, h, w).

    Args:
        symbols: what was coded; 0 at positions outside the picture.
        activations: of the symbols, 0 to 255.
        activity: 0 to 255, the decayed maximum activation here and in the references.
    """

    symbols: Tensor
    activations: Tensor
    activity: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameContext:
    """What the symbols of later frames depend on, uint8 each but the filter.

    Args:
        symbols, activity: (B, 96, h, w) activations and activity of the image latent.
        motion_symbols, motion_activity: (B, 80, h/4, w/4) likewise of the motion latent.
        loop_filter: the frame's.
    """

    symbols: Tensor
    activity: Tensor
    motion_symbols: Tensor
    motion_activity: Tensor
    loop_filter: LoopFilter = NO_FILTER

    @staticmethod
    def of(
        image: LatentSymbols,
        motion: LatentSymbols | None,
        motion_channels: int,
        loop_filter: LoopFilter = NO_FILTER,
    ) -> FrameContext:
        """Of a frame's integers; motion None: it has none."""
        activations = as_bytes(image.activations)
        if motion is None:
            batch, _, rows, columns = activations.shape
            none = activations.new_zeros(batch, motion_channels, rows // 4, columns // 4)
            motion = LatentSymbols(symbols=none, activations=none, activity=none)
        return FrameContext(
            symbols=activations,
            activity=as_bytes(image.activity),
            motion_symbols=as_bytes(motion.activations),
            motion_activity=as_bytes(motion.activity),
            loop_filter=loop_filter,
        )

    @staticmethod
    def untouched(
        references: tuple[FrameContext, FrameContext], motion: LatentSymbols | None
    ) -> FrameContext:
        """Of a frame whose image latent is not coded.

        The same as `of` with `LatentContext.untouched`, in integers.

        Args:
            motion: see `of`.
        """
        first, second = references
        highest = torch.maximum(first.activity, second.activity).to(torch.int16)
        activity = (highest * FADED >> FADED_SHIFT).to(torch.uint8)
        if motion is None:
            symbols = seen = torch.zeros_like(first.motion_symbols)
        else:
            symbols, seen = as_bytes(motion.activations), as_bytes(motion.activity)
        return FrameContext(
            symbols=torch.zeros_like(activity),
            activity=activity,
            motion_symbols=symbols,
            motion_activity=seen,
        )

    def to(self, device: torch.device) -> FrameContext:
        """The same on a device."""
        return self if self.symbols.device == device else self.each(lambda t: t.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> FrameContext:
        """All tensors changed alike."""
        return FrameContext(
            symbols=change(self.symbols),
            activity=change(self.activity),
            motion_symbols=change(self.motion_symbols),
            motion_activity=change(self.motion_activity),
            loop_filter=self.loop_filter,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LevelSymbols:
    """The integers of a quality level above the base.

    Args:
        drop: the base's qp less the level's, at least 1.
        symbols: (B, 96, h, w) of the image latent in the level's steps, levels below included.
        loop_filter: of the frame up to this level.
    """

    drop: int
    symbols: Tensor
    loop_filter: LoopFilter = NO_FILTER


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameSymbols:
    """All integers of a frame, parsed before its pixels are made.

    Args:
        image, motion: symbols (B, C, h, w) of the latents in the base; None where none were coded.
        context: what later frames' symbols depend on.
        levels: by falling qp.
        packed: what all symbols are parts of, where they were put together.
    """

    image: Tensor | None
    motion: Tensor | None
    context: FrameContext
    levels: tuple[LevelSymbols, ...] = ()
    packed: Tensor | None = None

    def together(self, pinned: bool) -> FrameSymbols:
        """The same, all symbols parts of one tensor, channels last.

        Args:
            pinned: in memory from which a GPU copies without a stop of the host.
        """
        each = [part.permute(0, 2, 3, 1).reshape(-1) for part in self._parts()]
        if not each:
            return self
        packed = torch.cat(each)
        return self._of(packed.pin_memory() if pinned else packed)

    def to(self, device: torch.device) -> FrameSymbols:
        """The same with symbols on a device, in one copy; the context stays where it is.

        Args:
            device: not waited for where symbols are pinned.
        """
        if self.packed is None:
            return self
        return self._of(self.packed.to(device, non_blocking=True))

    def _parts(self) -> list[Tensor]:
        every = (self.image, self.motion, *(level.symbols for level in self.levels))
        return [part for part in every if part is not None]

    def _of(self, packed: Tensor) -> FrameSymbols:
        """The same with symbols that are parts of a tensor."""
        parts = self._parts()
        flat = iter(packed.split([part.numel() for part in parts]))

        def next_like(part: Tensor) -> Tensor:
            batch, channels, rows, columns = part.shape
            return next(flat).view(batch, rows, columns, channels).permute(0, 3, 1, 2)

        return FrameSymbols(
            image=None if self.image is None else next_like(self.image),
            motion=None if self.motion is None else next_like(self.motion),
            context=self.context,
            levels=tuple(replace(each, symbols=next_like(each.symbols)) for each in self.levels),
            packed=packed,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """A reconstruction that later frames may be predicted from.

    Args:
        planes: within 0 to 255.
        context: of the symbols it was made from.
        moves: (B, 4, h, w) displacements to its own references, zero where it has none.
        distances: (B, 2) signed, to its own references, 0 where it has none.
        halves: luma with the samples between, see `warp.with_halves`, where it is kept.
        half: luma at half the size, where it is kept.
        lowest: what a decoder of the bases alone makes of the frame, where an encoder follows it.
    """

    planes: Planes
    context: FrameContext
    moves: Tensor
    distances: Tensor
    halves: Tensor | None = None
    half: Tensor | None = None
    lowest: Reference | None = None

    def filtered(self, base: LoopFilter, shown: LoopFilter, size: Size | None) -> Reference:
        """What a loop filter makes of it.

        Args:
            base: the base's, which later frames know. shown: of the best level.
            size: rows and columns of luma inside the picture; None: all of it.
        """
        context = replace(self.context, loop_filter=base)
        planes = self.planes if shown == NO_FILTER else finish(shown.apply(self.planes), size)
        lowest = None if self.lowest is None else self.lowest.filtered(base, base, size)
        return replace(self, planes=planes, context=context, halves=None, half=None, lowest=lowest)

    def each(self, change: Callable[[Tensor], Tensor]) -> Reference:
        """All tensors changed alike."""
        y, u, v = (change(p) for p in self.planes)
        return Reference(
            planes=(y, u, v),
            context=self.context.each(change),
            moves=change(self.moves),
            distances=change(self.distances),
            halves=None if self.halves is None else change(self.halves),
            half=None if self.half is None else change(self.half),
        )

    def finest(self) -> Tensor:
        """Luma with the samples between."""
        return with_halves(self.planes[0]) if self.halves is None else self.halves

    def half_size(self) -> Tensor:
        """Luma at half the size."""
        return F.avg_pool2d(self.planes[0], 2) if self.half is None else self.half

    def with_sizes(self) -> Reference:
        """The same with `halves` and `half`, which an encoder needs more than once."""
        return replace(self, halves=self.finest(), half=self.half_size())

    def rows(self, own: slice) -> Reference:
        """Some frames of a batch."""
        return self.each(lambda tensor: tensor[own])


Pair = tuple[Reference, Reference]


def pair(references: Sequence[Reference]) -> Pair:
    """The first two references; the only one twice.

    Raises:
        ConfigError: there is none.
    """
    if not references:
        raise ConfigError("an inter frame has no reference")
    return references[0], references[min(1, len(references) - 1)]


def lowest_pair(references: Pair) -> Pair:
    """The two as a decoder of the bases alone has them."""
    first, second = (each.lowest or each for each in references)
    return first, second


def context_pair(contexts: Sequence[FrameContext]) -> tuple[FrameContext, FrameContext]:
    """The same of contexts."""
    if not contexts:
        raise ConfigError("an inter frame has no reference")
    return contexts[0], contexts[min(1, len(contexts) - 1)]


@dataclass(frozen=True, slots=True, eq=False)
class MotionField:
    """Estimated motion and what errors in it cost.

    Args:
        field: (B, 5, h, w), see `MotionCodec`.
        hessian: (B, h, w, 5, 5) what errors cost, see `refine.linearise`.
    """

    field: Tensor
    hessian: Tensor

    def within(self, size: Size | None) -> MotionField:
        """The same for a picture of so many rows and columns of luma: outside, errors are free."""
        rows, columns = self.field.shape[2:]
        inside = (rows, columns) if size is None else (-(-size[0] // BLOCK), -(-size[1] // BLOCK))
        if inside == (rows, columns):
            return self
        missing = (0, columns - inside[1], 0, rows - inside[0])
        field = F.pad(self.field[..., : inside[0], : inside[1]], missing, mode="replicate")
        hessian = self.hessian[:, : inside[0], : inside[1]]
        return MotionField(field, F.pad(hessian, (0, 0, 0, 0, *missing)))


@dataclass(frozen=True, slots=True, eq=False)
class CodedMotion:
    """Motion as it was coded: the field (B, 5, h, w), and its latent's integers."""

    field: Tensor
    symbols: LatentSymbols


def as_bytes(integers: Tensor) -> Tensor:
    """Integers of 0 to 255 in any type as uint8."""
    return integers.detach().to(torch.uint8)
