"""What encoder and decoder share: the model, and its one guarded call in each direction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vcfilter.bitstream import FrameHeader
from vcfilter.errors import BitstreamError
from vcfilter.frames import VideoFormat

if TYPE_CHECKING:
    from vcfilter.models.hierarchical.video import (
        CodingStep,
        MotionField,
        Parsed,
        Past,
        Picture,
        Reference,
        VideoModel,
    )


def load_model(weights: str | None, device: str, threads: int) -> VideoModel:
    """The model for a weights file (None: the shipped one) on a device.

    Args:
        threads: threads of the networks, for the whole process; 0 leaves them as they are.
    """
    import torch  # late: importing the package must stay quick

    from vcfilter.models.hierarchical.video import VideoModel

    if threads:
        torch.set_num_threads(threads)
    return VideoModel.load(weights, device)


def spare_core(model: VideoModel) -> bool:
    """Whether the networks leave a core to read symbols on: they run on a GPU, or in few threads.

    Where they fill all cores, a second thread only takes them away (measured: 17 instead of 28
    frames/s with two threads on two cores, 22 instead of 20.5 with one).
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return torch.device(model.device).type != "cpu" or torch.get_num_threads() < (cores or 1)


def coding_step(header: FrameHeader) -> CodingStep:
    """The model's view of a frame header."""
    from vcfilter.models.hierarchical.video import CodingStep, MotionMode

    return CodingStep(
        kind=header.kind,
        qp=header.qp,
        layer=header.layer,
        distances=(-header.distances[0], header.distances[1]),
        motion=MotionMode(header.motion),
        motion_level=header.motion_level,
        refine=header.refine,
        residual=header.residual,
    )


def encode_frame(
    model: VideoModel,
    header: FrameHeader,
    x: Picture,
    references: Sequence[Reference],
    motion: MotionField | None = None,
    passes: int = 1,
) -> tuple[Reference, bytes]:
    """Code one picture as its header says: its reconstruction and its payload."""
    coder = model.encoding_coder()
    reference = model.code(coding_step(header), x, references, coder, motion, passes)
    return reference, coder.finish()


def parse_frame(
    model: VideoModel,
    header: FrameHeader,
    payload: bytes,
    past: Sequence[Past],
    video_format: VideoFormat,
) -> Parsed:
    """The integers of a frame, from those of its references; safe in another thread.

    Raises:
        BitstreamError: the payload is nonsense. Its CRC was right, so it was made that way.
    """
    try:
        return model.parse(coding_step(header), past, payload, video_format)
    except BitstreamError:
        raise
    except (ArithmeticError, AssertionError, LookupError, ValueError) as error:
        raise BitstreamError(f"payload of {len(payload)} bytes is invalid: {error}") from error
    except BaseException as error:
        # pyo3's PanicException is a BaseException that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise BitstreamError(f"payload of {len(payload)} bytes is invalid: {error}") from error


def restore_frame(
    model: VideoModel,
    header: FrameHeader,
    parsed: Parsed,
    references: Sequence[Reference],
    video_format: VideoFormat,
) -> Reference:
    """The reconstruction that encode_frame returned with the payload that was parsed."""
    return model.restore(coding_step(header), parsed, references, video_format)
