"""What encoder and decoder share: the model, and its one guarded call in each direction."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vcfilter.bitstream import FrameHeader
from vcfilter.errors import BitstreamError
from vcfilter.frames import VideoFormat

if TYPE_CHECKING:
    from vcfilter.model.video import (
        CodingStep,
        MotionField,
        Parsed,
        Past,
        Picture,
        Reference,
        VideoModel,
    )


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
LANE_SAMPLES = 1 << 20
"""Luma samples of the largest picture of which several are coded at a time."""


def load_model(weights: str | None, device: str, threads: int) -> VideoModel:
    """The model for a weights file (None: the shipped one) on a device.

    Args:
        threads: threads of the networks, for the whole process; 0 leaves them as they are.
    """
    import torch  # late: importing the package must stay quick

    from vcfilter.model.video import VideoModel

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


class Lanes:
    """Threads that code frames beside each other, as many as the networks may use.

    A small picture gains nothing from several threads of the networks (measured at 352x288: 227 ms
    a frame with two, 224 with one). There is one lane only, the caller's, on a GPU and for large
    pictures: they fill the threads, and two at a time would take twice the memory.

    Attributes:
        count: how many frames are coded at a time.
    """

    def __init__(self, model: VideoModel, video_format: VideoFormat) -> None:
        import torch

        small = video_format.width * video_format.height <= LANE_SAMPLES
        on_cpu = torch.device(model.device).type == "cpu"
        self.count = torch.get_num_threads() if small and on_cpu else 1
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            pool = ThreadPoolExecutor(self.count, "vcfilter-frame", torch.set_num_threads, (1,))
            ready = threading.Barrier(self.count + 1)
            for _ in range(self.count):
                pool.submit(ready.wait)
            ready.wait()
            torch.set_num_threads(self.count)  # or threads that begin later had one, too
            self._pool = pool

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """The function's results, in order; the first exception in order is raised."""
        run = map if self._pool is None else self._pool.map
        return list(run(function, items))


def coding_step(header: FrameHeader) -> CodingStep:
    """The model's view of a frame header."""
    from vcfilter.model.video import CodingStep, MotionMode

    return CodingStep(
        kind=header.kind,
        qp=header.qp,
        layer=header.layer,
        distances=header.distances,
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
