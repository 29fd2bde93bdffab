"""What the codec asks of a model, and what a model says of itself.

The rule that every model keeps: **one integer walk, one pixel pass.** `parse` makes table indices
and symbols from integers alone, in one place that encoding goes through as well; `reconstruct`
makes pixels from symbols and never decides what is read next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vcfilter.frames import Frame, FrameStep, Plane, VideoFormat

ARCHITECTURES = {"test": 0, "hierarchical": 1}
"""Folders below vcfilter/models by name, and their numbers in sequence headers."""

Picture = Any
"""A frame as the model holds it on its device; made by `Model.picture`."""
Context = Any
"""The integers of a decoded frame that the symbols of later frames depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model says of itself.

    Args:
        id: 8 bytes, a hash over architecture, configuration, weights and tables.
        name: what `--model` finds it by, at most 32 bytes of UTF-8.
        architecture: name of its folder below vcfilter/models.
        numerics: generation of its arithmetic; another number may give other symbols.
        config: what the architecture was built with, from the weights file.
        efforts: its presets by name, fastest first; the values are the architecture's own.
        trials: by effort, a cheaper one that tries where its anchors are; others try nothing.
        quality_layers: quality levels per frame that it can code, at least 1 (the base).
        references: most references of one frame that it uses.
        card: what the weights file says of training, data and licence.
    """

    id: bytes
    name: str
    architecture: str
    numerics: int
    config: Mapping[str, Any]
    efforts: Mapping[str, Any]
    trials: Mapping[str, str] = field(default_factory=dict)
    quality_layers: int = 1
    references: int = 2
    card: Mapping[str, str] = field(default_factory=dict)


Tracked = Callable[[], Sequence[npt.NDArray[np.float32]] | None]
"""Gives motion from a frame to each of its references, (2, ceil(height / 8), ceil(width / 8))
displacements in luma samples; None where it is not known."""


class Symbols(Protocol):
    """All integers of one frame, parsed before its pixels are made."""

    @property
    def context(self) -> Context:
        """What later frames' symbols depend on; small, without the symbols themselves."""


class Reference(Protocol):
    """A reconstruction that later frames may be predicted from."""

    @property
    def context(self) -> Context:
        """The context of the symbols it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedFrame:
    """What encoding one frame gives.

    Args:
        mode: the model's own bytes of the frame header, at most 3. Empty together with no
            sections: nothing is coded, the frame repeats its reference (or the average of two).
        sections: entropy-coded bytes by quality level, the base first; none: nothing is coded.
            An empty one above the base holds nothing, and is left out of the packet.
        reference: the reconstruction, equal to what `reconstruct` makes of these bytes.
        psnr: of the frame as it will be shown, dB, Y, U and V weighted 6:1:1.
    """

    mode: bytes
    sections: tuple[bytes, ...]
    reference: Reference
    psnr: float


class Finish(Protocol):
    """Changes how shown frames look; no frame is predicted from what it makes. Pure, as a model."""

    @property
    def id(self) -> bytes:
        """8 bytes, a hash over configuration and weights; no part of the model's id."""

    def apply(self, reference: Reference, step: FrameStep, video_format: VideoFormat) -> Reference:
        """What is shown of a reconstruction; the reconstruction itself stays as it is.

        Args:
            step: how the frame was coded, with the qp of the finest level that was decoded.
        """


class Model(Protocol):
    """One loaded model on one device. Its methods are pure: no state but the weights."""

    @property
    def info(self) -> ModelInfo:
        """What it is."""

    @property
    def device(self) -> str:
        """A PyTorch device name."""

    def picture(self, frame: Frame, video_format: VideoFormat) -> Picture:
        """A frame on the model's device."""

    def encode(
        self,
        picture: Picture,
        step: FrameStep,
        references: Sequence[Reference],
        video_format: VideoFormat,
        effort: str,
        levels: Sequence[int] = (),
        rd_scale: npt.NDArray[np.float32] | None = None,
        tracked: Tracked | None = None,
        source: Picture | None = None,
    ) -> CodedFrame:
        """Code one frame in the way that is cheapest in rate and distortion.

        Args:
            references: as in step.references, as many and in the same order.
            effort: a key of info.efforts.
            levels: qps of the quality levels above the base, falling from below step.qp on. A
                level's tables follow from integers of this frame's levels up to it, and of the
                references' bases.
            rd_scale: factors on the Lagrangian per 8x8 luma samples,
                (ceil(height / 8), ceil(width / 8)); None: 1 everywhere.
            tracked: of an inter frame, gives motion that was found through the frames between.
            source: the frame that `psnr` is of, where picture was filtered; None: picture.
        """

    def parse(
        self,
        step: FrameStep,
        mode: bytes,
        sections: Sequence[bytes],
        contexts: Sequence[Context],
        video_format: VideoFormat,
        levels: Sequence[int] = (),
    ) -> Symbols:
        """Read a frame's integers. No float decides about anything; safe in another thread.

        Args:
            contexts: of the references, in their order.
            levels: qp of each section above the base that is there.

        Raises:
            BitstreamError: mode or sections are invalid for this model.
        """

    def reconstruct(
        self,
        step: FrameStep,
        mode: bytes,
        symbols: Symbols,
        references: Sequence[Reference],
        video_format: VideoFormat,
    ) -> Reference:
        """The reconstruction of a parsed frame."""

    def planes(self, reference: Reference, video_format: VideoFormat) -> tuple[Plane, Plane, Plane]:
        """A reconstruction's (y, u, v) planes at the format's size and depth."""

    def motion(self, reference: Reference) -> Sequence[npt.NDArray[np.float32]]:
        """Displacements to a reconstruction's own references, see `CodedMotion`; of the first ones
        alone, or none where it was made without motion.
        """

    def picture_bytes(self, video_format: VideoFormat) -> int:
        """Bytes that one reconstruction takes on the device, its context included."""

    def complexity(self) -> dict[str, dict[str, float]]:
        """Multiply-accumulates per luma sample of decoding, in thousands.

        Returns:
            By frame type ("keyframe", "inter"), and by part of the networks.
        """
