"""The hierarchical model as models.base asks for it, and its weights file."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.entropy import tables
from vcfilter.entropy.coder import DecodingCoder, TableSet
from vcfilter.errors import BitstreamError, ModelMismatchError
from vcfilter.frames import LEVELS_MAX, Frame, FrameStep, FrameType, Plane, VideoFormat
from vcfilter.models.base import CodedFrame, ModelInfo, Tracked
from vcfilter.models.hierarchical.complexity import complexity
from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.config import EFFORTS, TRIALS, HierarchicalConfig
from vcfilter.models.hierarchical.cost import plane_sizes, psnr
from vcfilter.models.hierarchical.decide import ModeDecision, choose_keyframe, filters_of
from vcfilter.models.hierarchical.device import DevicePixels
from vcfilter.models.hierarchical.mode import KEY_MODE, HierarchicalMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.refinement import with_own_tables
from vcfilter.models.hierarchical.sections import finish_sections
from vcfilter.models.hierarchical.values import (
    FrameSymbols,
    Pair,
    Picture,
    Reference,
    context_pair,
    pair,
)
from vcfilter.models.weights import WeightsFile, write_weights
from vcfilter.nn.exact import check_bound
from vcfilter.nn.precision import full_precision

ARCHITECTURE = "hierarchical"
NUMERICS = 1  # generation of the arithmetic that the symbols depend on
TABLES_NAME = "tables"
HOST = torch.device("cpu")


def parses_on_host(device: torch.device) -> bool:
    """Whether a model on a device keeps its exact networks on the host as well, which parse there.

    On a device a frame's parse is a few hundred small operators, and each step of a latent waits
    for symbols that the range decoder reads on the host.
    """
    return device.type != "cpu"


class HierarchicalModel:
    """One loaded model on one device; see `models.base.Model`.

    Where the device is not the CPU, frames are parsed on the host: symbols and contexts stay there,
    and `reconstruct` moves a frame's symbols in one copy.

    Args:
        net: on the CPU; moved to the device.
        table_set: of `with_own_tables`.
    """

    def __init__(
        self, net: VideoNet, table_set: TableSet, info: ModelInfo, device: torch.device
    ) -> None:
        net = net.eval().requires_grad_(False)
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._host = copy.deepcopy(net) if parses_on_host(device) else None
        if self._host is not None:
            self._host.image.coding.share()
            self._host.motion.coding.share()
        self.net: VideoNet = net.to(device)
        self.tables = table_set
        self.info = info
        self._device = device

    @property
    def device(self) -> str:
        """A PyTorch device name."""
        return str(self._device)

    def picture(self, frame: Frame, video_format: VideoFormat) -> Picture:
        """A frame's planes on the device, in 8-bit units, padded by repeating the border."""
        rows, columns = self._padded(video_format)
        unit = 1.0 if video_format.bit_depth == 8 else 0.25
        planes = []
        for plane, share in zip(frame.planes, (1, 2, 2), strict=True):
            t = torch.from_numpy(np.ascontiguousarray(plane).astype(np.float32))
            t = t.to(self._device)[None, None] * unit
            pad = (0, columns // share - t.shape[3], 0, rows // share - t.shape[2])
            planes.append(F.pad(t, pad, mode="replicate"))
        return Picture((planes[0], planes[1], planes[2]), (video_format.height, video_format.width))

    def planes(self, reference: Any, video_format: VideoFormat) -> tuple[Plane, Plane, Plane]:
        """A reconstruction's planes: cropped, rounded, uint8 or uint16."""
        deep = video_format.bit_depth == 10

        def shown(values: Tensor) -> Tensor:
            values = torch.floor(values * (4.0 if deep else 1.0) + 0.5)
            values = values.clamp(0, 1023 if deep else 255)
            return values.to(torch.int16 if deep else torch.uint8)

        sizes = plane_sizes(video_format)
        each = zip(reference.planes, sizes, strict=True)
        parts = [t[0, 0, :rows, :columns] for t, (rows, columns) in each]
        if self._host is None:
            whole = [shown(part).numpy() for part in parts]
        else:  # in one copy
            moved = shown(torch.cat([part.reshape(-1) for part in parts])).cpu().numpy()
            ends = np.cumsum([part.numel() for part in parts])[:-1]
            flat = zip(np.split(moved, ends), sizes, strict=True)
            whole = [plane.reshape(size) for plane, size in flat]
        y, u, v = (plane.view(np.uint16) if deep else plane for plane in whole)
        return y, u, v

    def motion(self, reference: Any) -> Sequence[npt.NDArray[np.float32]]:
        """Displacements to the two references, the only one's twice; none of a frame without."""
        moves = reference.moves
        if not bool(moves.any()):
            return ()
        return [each[0].cpu().numpy() for each in moves.split(2, dim=1)]

    def encode(
        self,
        picture: Picture,
        step: FrameStep,
        references: Sequence[Any],
        video_format: VideoFormat,
        effort: str,
        levels: Sequence[int] = (),
        rd_scale: npt.NDArray[np.float32] | None = None,
        tracked: Tracked | None = None,
        source: Picture | None = None,
    ) -> CodedFrame:
        """Code one frame in the way that is cheapest in rate and distortion of the base."""
        with self._inference():
            if step.type is FrameType.KEY:
                mode = KEY_MODE
                chosen = choose_keyframe(
                    self.net, self.tables, picture, step, EFFORTS[effort], levels, rd_scale
                )
            else:
                conditions = Conditions.of([step], [KEY_MODE], self._device)
                decision = ModeDecision(
                    self.net,
                    self.tables,
                    picture,
                    step,
                    references,
                    EFFORTS[effort],
                    self.net.quantiser(conditions),
                    levels,
                    rd_scale,
                    tracked,
                )
                best = decision.best()
                mode, chosen = best.mode, (best.coder, [], best.reference)
                if levels:
                    chosen = decision.with_levels(mode, levels)
            _, above, reference = chosen
            sections: list[bytes] = []
            if not mode.repeats or any(level.used for level in above):
                filters = None
                if step.layer < EFFORTS[effort].filtered:
                    filters = filters_of(self.tables, picture, step.qp, references)
                found, sections, reference = finish_sections(chosen, filters, picture.size)
                mode = replace(mode, filter=found)
            quality = psnr(source or picture, reference.planes, video_format)
        return CodedFrame(
            mode=mode.pack(key=step.type is FrameType.KEY, levels=any(sections[1:])),
            sections=tuple(sections),
            reference=reference,
            psnr=quality,
        )

    def parse(
        self,
        step: FrameStep,
        mode: bytes,
        sections: Sequence[bytes],
        contexts: Sequence[Any],
        video_format: VideoFormat,
        levels: Sequence[int] = (),
    ) -> FrameSymbols:
        """Read a frame's integers. No float decides about anything; safe in another thread.

        Raises:
            BitstreamError: mode or sections are invalid for this model.
        """
        found = HierarchicalMode.unpack(mode, step)
        key = step.type is FrameType.KEY
        wanted = 1 + len(levels) if key or mode else 0
        if len(sections) != wanted:
            raise BitstreamError(
                f"a frame of mode {mode.hex()!r} has {len(sections)} sections, not {wanted}"
            )
        if any(a <= b for a, b in itertools.pairwise((step.qp, *levels))):
            raise BitstreamError(f"the qps of levels {levels} do not fall from {step.qp} on")
        net, device = (self.net, self._device) if self._host is None else (self._host, HOST)
        with self._inference():
            symbols = net.parse(
                found.motion,
                found.residual,
                self._conditions(step, found, video_format, device),
                None if key else context_pair([each.to(device) for each in contexts]),
                self.net.latent_shape(1, *self._padded(video_format)),
                DecodingCoder(self.tables, sections[0] if sections else b""),
                [
                    (step.qp - qp, DecodingCoder(self.tables, data))
                    for qp, data in zip(levels, sections[1:], strict=True)
                ],
                found.filter,
            )
        if self._host is None:
            return symbols
        return symbols.together(pinned=self._device.type == "cuda")

    def reconstruct(
        self,
        step: FrameStep,
        mode: bytes,
        symbols: Any,
        references: Sequence[Any],
        video_format: VideoFormat,
    ) -> Reference:
        """The reconstruction of a parsed frame."""
        found = HierarchicalMode.unpack(mode, step)
        both = None if step.type is FrameType.KEY else pair(references)
        with self._inference():
            if self._host is not None:
                return self._from_host(step, found, symbols, both, video_format)
            conditions = self._conditions(step, found, video_format, self._device)
            return self.net.reconstruct(found.motion, conditions, symbols, both)

    def _from_host(
        self,
        step: FrameStep,
        mode: HierarchicalMode,
        symbols: FrameSymbols,
        references: Pair | None,
        video_format: VideoFormat,
    ) -> Reference:
        """The reconstruction from symbols on the host, where its context and distances stay."""
        moved = symbols.to(self._device)
        own = self._conditions(step, mode, video_format, HOST)
        if DevicePixels.fitting(self.net.config) and not symbols.levels:
            return self._pixels.reconstruct(mode.motion, own, moved, references)
        conditions = self._conditions(step, mode, video_format, self._device)
        if references is not None:
            first, second = (
                replace(each, distances=each.distances.to(self._device)) for each in references
            )
            references = first, second
        whole = self.net.reconstruct(mode.motion, conditions, moved, references)
        return replace(whole, distances=own.distances)

    @cached_property
    def _pixels(self) -> DevicePixels:
        assert self._host is not None
        return DevicePixels(self._host, self._device)

    def picture_bytes(self, video_format: VideoFormat) -> int:
        """Bytes that one reconstruction takes on the device, its context included."""
        rows, columns = self._padded(video_format)
        config = self.net.config
        h, w = config.latent_size(rows, columns)
        samples = rows * columns * 3 // 2
        field = 5 * h * w  # displacements are a view of a whole motion field
        context = config.channels * h * w + config.motion_channels * (h // 4) * (w // 4)
        distances = torch.int64.itemsize * 5  # with the other numbers of the frame's conditions
        return torch.float32.itemsize * (samples + field) + 2 * context + distances

    def complexity(self) -> dict[str, dict[str, float]]:
        """Multiply-accumulates per luma sample of decoding, in thousands, see `complexity`."""
        return complexity(self.net)

    @staticmethod
    def _conditions(
        step: FrameStep, mode: HierarchicalMode, video_format: VideoFormat, device: torch.device
    ) -> Conditions:
        size = video_format.height, video_format.width
        return Conditions.of([step], [mode], device, size)

    def _padded(self, video_format: VideoFormat) -> tuple[int, int]:
        """Rows and columns of the padded luma plane."""
        return self.net.config.padded_size(video_format.height, video_format.width)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with torch.inference_mode(), full_precision(self._device):
            yield


def save(
    path: str, net: VideoNet, magnitudes: tables.Probabilities, name: str, card: Mapping[str, str]
) -> bytes:
    """Write a weights file, complete or not at all; returns the model's id.

    Raises:
        ModelMismatchError: it would not be read again.
    """
    _check(path, net, magnitudes)
    return write_weights(
        path,
        name=name,
        architecture=ARCHITECTURE,
        numerics=NUMERICS,
        config=asdict(net.config),
        card=card,
        tensors={**net.state_dict(), TABLES_NAME: torch.from_numpy(magnitudes)},
    )


def networks(file: WeightsFile) -> tuple[VideoNet, tables.Probabilities]:
    """(networks on the CPU, tables) of a weights file.

    Raises:
        ModelMismatchError: they do not fit its configuration, or could break the promise that
            every machine parses alike.
    """
    if file.numerics != NUMERICS:
        raise ModelMismatchError(
            f"{file.path!r} needs arithmetic of generation {file.numerics}; "
            f"this version has generation {NUMERICS}"
        )
    config = HierarchicalConfig.from_values(file.config)
    tensors = dict(file.tensors)
    magnitudes = tensors.pop(TABLES_NAME, torch.zeros(0)).numpy()
    with torch.device("meta"):  # shapes alone: a foreign file's widths must not fill the memory
        wanted = VideoNet(config).state_dict()
    for name in sorted({*wanted, *tensors}):
        expected, found = (_shape(group.get(name)) for group in (wanted, tensors))
        if expected != found:
            raise ModelMismatchError(
                f"{file.path!r} does not fit its configuration: {name} is {found}, not {expected}"
            )
    net = VideoNet(config)
    net.load_state_dict(tensors)
    _check(file.path, net, magnitudes)
    return net, magnitudes


def load(file: WeightsFile, device: torch.device) -> HierarchicalModel:
    """The model of a weights file on a device.

    Raises:
        ModelMismatchError: see `networks`.
    """
    net, magnitudes = networks(file)
    info = ModelInfo(
        id=file.id,
        name=file.name,
        architecture=file.architecture,
        numerics=file.numerics,
        config=file.config,
        efforts=EFFORTS,
        trials=TRIALS,
        quality_layers=LEVELS_MAX,
        card=file.card,
    )
    return HierarchicalModel(net, TableSet(with_own_tables(magnitudes)), info, device)


def _check(path: str, net: VideoNet, magnitudes: tables.Probabilities) -> None:
    fault = tables.fault(magnitudes)
    if fault:
        raise ModelMismatchError(f"{path!r}: {fault}")
    if not check_bound(net) < 1:
        raise ModelMismatchError(
            f"{path!r} has an exact layer whose sums may pass 2^24, or are not finite"
        )


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
