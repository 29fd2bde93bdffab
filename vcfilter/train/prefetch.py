"""A captured step's numbers, prepared while the device works on the step before.

The dense motion search works on the host, between originals, as an encoder's does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from vcfilter.models.hierarchical.search import pooled_flow
from vcfilter.train.data import Planes, upload
from vcfilter.train.graph import tensors
from vcfilter.train.plan import StepNumbers, StepPlan

AT_ONCE = 8  # frames that a thread searches before it asks for more


class Prepared(NamedTuple):
    """A step that is drawn: its plan and numbers, and the generators' states before the draw."""

    plan: StepPlan
    inputs: StepNumbers
    before: list[dict[str, Any]]


class FlowSearch:
    """Dense flows between frames of a group, in threads of the host.

    Args:
        threads: at least 1. None of them touches a GPU.
    """

    def __init__(self, threads: int) -> None:
        cv2.setNumThreads(1)  # of what is done beside the search
        self._pool = ThreadPoolExecutor(threads)

    def __call__(
        self, frames: Sequence[Planes], pairs: Sequence[tuple[int, int]], device: torch.device
    ) -> list[Tensor]:
        """(B, 2, H/8, W/8) on a device for each (frame, reference), see `search.dense_flow`.

        The host waits until the frames lie in its memory.

        Args:
            frames: luma within 0 to 255. pairs: of indices of frames.
        """
        if not pairs:
            return []
        luma = torch.stack([y[:, 0] for y, _, _ in frames]).clamp(0, 255).round().to(torch.uint8)
        there = luma.to("cpu", non_blocking=True)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        host = there.numpy()
        batch = host.shape[1]
        parts = [slice(n, n + AT_ONCE) for n in range(0, batch, AT_ONCE)]

        def search(job: tuple[int, int, slice]) -> list[np.ndarray[Any, Any]]:
            frame, reference, own = job
            both = zip(host[frame, own], host[reference, own], strict=True)
            return [pooled_flow(x, other) for x, other in both]

        jobs = [(frame, reference, own) for frame, reference in pairs for own in parts]
        found = [flow for some in self._pool.map(search, jobs) for flow in some]
        return [
            upload(np.stack(found[n * batch : (n + 1) * batch]), device) for n in range(len(pairs))
        ]


class Prefetcher:
    """Draws each step before it is asked for; on a GPU on a stream of its own.

    Args:
        draw: a step. states: of the generators it draws from.
    """

    def __init__(
        self,
        draw: Callable[[], tuple[StepPlan, StepNumbers]],
        states: Callable[[], list[dict[str, Any]]],
        device: torch.device,
    ) -> None:
        self._draw, self._states, self._device = draw, states, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # of the clips there
        self._prepared: Prepared | None = None

    def prepare(self) -> None:
        """Draw the next step, unless that is done."""
        if self._prepared is None:
            before = self._states()
            with self._apart():
                self._prepared = Prepared(*self._draw(), before)

    def take(self) -> tuple[StepPlan, StepNumbers]:
        """The next step; what the device is given from now on waits for its numbers."""
        self.prepare()
        assert self._prepared is not None
        plan, inputs, _ = self._prepared
        self._prepared = None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in tensors(inputs):
                tensor.record_stream(current)
        return plan, inputs

    def states(self) -> list[dict[str, Any]]:
        """Of the generators, as if nothing were drawn ahead."""
        return self._states() if self._prepared is None else self._prepared.before

    def forget(self) -> None:
        """What was drawn ahead is not wanted: the generators were set back."""
        self._prepared = None

    @contextmanager
    def _apart(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
