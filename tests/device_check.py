"""A stand-in for a GPU: tensors on the device "meta", and no operation may mix devices."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
MOVES = {"to", "copy_", "_to_copy", "__get__", "__set__", "set_"}


class DeviceCheck(TorchFunctionMode):
    """Within it, an operation on tensors of two devices is an AssertionError.

    PyTorch itself lets CPU tensors without dimensions mix with others; so does this.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        found = {t.device.type for t in leaves if isinstance(t, torch.Tensor) and t.dim()}
        assert len(found) < 2 or getattr(func, "__name__", "") in MOVES, (func, found)
        return func(*args, **(kwargs or {}))
