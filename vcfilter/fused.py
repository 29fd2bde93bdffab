"""Elementwise functions that PyTorch's compiler makes one kernel of, where training asks for it.

A GPU spends about as long on starting a small kernel as on running it. Encoding and decoding never
ask for it: a compiled function may round otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

VARIANTS = 64  # of one function: by rank, layout and whether gradients pass

_asked = False
_broken: set[str] = set()


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Within the block, functions marked by `fused` are compiled; all kinds of devices alike."""
    global _asked
    before, _asked = _asked, on
    try:
        yield
    finally:
        _asked = before


def asked() -> bool:
    """Whether the caller is within `compiled`, where speed counts for more than equal rounding."""
    return _asked


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of tensors, which is compiled at its first call within `compiled`.

    Sizes stay symbolic, so that one kernel serves all. Where compiling fails, the function goes on
    as it is, and standard error says so.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    made: Callable[P, R] | None = None

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal made
        if not _asked or name in _broken:
            return function(*args, **kwargs)
        try:
            if made is None:
                made = _compile(function)
            return made(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _broken.add(name)
            first = str(error).strip().partition("\n")[0]
            print(f"{name} is not compiled: {type(error).__name__}: {first}", file=sys.stderr)
            return function(*args, **kwargs)

    return run


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    import torch._dynamo  # late: a second of CPU
    import torch.fx.experimental._config as shapes

    shapes.use_duck_shape = False  # sizes that happen to be equal are not taken for one
    config: Any = torch._dynamo.config
    config.specialize_float = True  # as constants in the kernel: they are the same in all calls
    # Their names in PyTorch 2.6, which later versions know as well.
    config.cache_size_limit = max(config.cache_size_limit, VARIANTS)
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, 1024)
    made: Callable[P, R] = torch.compile(function, dynamic=True, fullgraph=True)
    return made
