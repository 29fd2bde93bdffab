"""Full float32 on CUDA for a while, without changing what the rest of the process has set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0  # blocks that are being executed, in all threads
_before = (True, True)  # what was set when the first of them began


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within the block, convolutions and products on a CUDA device do not use TF32.

    Ten bits of mantissa would let pixels drift; table indices do not depend on it. PyTorch has
    one setting for all threads: it is set back when the last thread leaves such a block.
    """
    if device.type != "cuda":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            _set(False, False)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set(*_before)


def _set(convolutions: bool, products: bool) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
