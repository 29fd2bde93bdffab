"""Training steps as CUDA graphs: the host launches one thing instead of twenty thousand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vcfilter.train.plan import Figures, StepNumbers, StepPlan

Learn = Callable[[StepPlan, StepNumbers], Figures]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors(part)


def cloned(value: Any) -> Any:
    """Nested tuples with copies of their tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    parts = [cloned(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


class StepGraphs:
    """Runs steps; each plan's first one as it is, and the graph captured then from the next on.

    All graphs share one pool of memory: they run one after the other.

    Args:
        learn: the device's part of a step; it must not read a value.
    """

    def __init__(self, learn: Learn) -> None:
        self._learn = learn
        self._captured: dict[StepPlan, tuple[torch.cuda.CUDAGraph, StepNumbers, Figures]] = {}
        self._pool: Any = None  # torch has no public name for its type

    def run(self, plan: StepPlan, inputs: StepNumbers) -> Figures:
        """One step."""
        found = self._captured.get(plan)
        if found is None:
            return self._first(plan, inputs)
        graph, static, figures = found
        for own, new in zip(tensors(static), tensors(inputs), strict=True):
            own.copy_(new, non_blocking=True)
        graph.replay()
        return Figures(figures.names, figures.values.clone())

    def _first(self, plan: StepPlan, inputs: StepNumbers) -> Figures:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Copies here as well: they may lie otherwise in memory, for which a compiled function
            # has another variant.
            static: StepNumbers = cloned(inputs)
            done = self._learn(plan, static)
            done = Figures(done.names, done.values.clone())
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            figures = self._learn(plan, static)
        self._pool = graph.pool()
        self._captured[plan] = graph, static, figures
        return done
