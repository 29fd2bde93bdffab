"""Loading of models, and threads of the networks, for encoder and decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vcfilter.models.base import Model
from vcfilter.options import Runtime


@contextmanager
def threads_of(runtime: Runtime) -> Iterator[None]:
    """Networks called from this thread within the block use runtime.threads threads.

    PyTorch keeps the number per calling thread, so encoders and decoders with different ones can
    work beside each other.
    """
    if not runtime.threads:
        yield
        return
    import torch  # late: importing the package must stay quick

    before = torch.get_num_threads()
    if before == runtime.threads:
        yield
        return
    torch.set_num_threads(runtime.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_core(model: Model, runtime: Runtime) -> bool:
    """Whether a core is free for parsing: the networks use a GPU, or fewer threads than cores.

    Where they use all cores, a second thread slows decoding (measured: 17 instead of 28
    frames/s with two threads on two cores, 22 instead of 20.5 with one).
    """
    if not model.device.startswith("cpu"):
        return True
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (runtime.threads or torch.get_num_threads()) < (cores or 1)


def load_model(name: str | None, runtime: Runtime) -> Model:
    """The model of a name, id or path; None: the default one."""
    from vcfilter.models import store  # late: importing the package must stay quick

    return store.find(name, runtime)


def find_model(model_id: bytes, runtime: Runtime) -> Model:
    """The model that a stream names.

    Raises:
        ModelMismatchError: it cannot be found.
    """
    from vcfilter.models import store

    return store.find_by_id(model_id, runtime)
