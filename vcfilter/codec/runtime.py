"""Loading of models, and threads of the networks, for encoder and decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vcfilter.codec.capacity import usable_cores
from vcfilter.errors import ConfigError
from vcfilter.models.base import Finish, Model
from vcfilter.options import Runtime

_threaded = False  # networks have run in several threads of this process
_forked = False  # this process was forked from one of which that is true


def _after_fork() -> None:
    global _forked
    _forked = _threaded


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def threads_of(runtime: Runtime) -> Iterator[None]:
    """Networks called from this thread within the block use runtime.threads threads.

    PyTorch keeps the number per calling thread, so encoders and decoders with different ones can
    work beside each other.

    Raises:
        ConfigError: several threads are asked for in a process that was forked from one whose
            networks had several: PyTorch would wait for ever for threads that are not there.
    """
    global _threaded
    import torch  # late: importing the package must stay quick

    before = torch.get_num_threads()
    wanted = runtime.threads or before
    if wanted > 1 and _forked:
        raise ConfigError(
            "this process was forked from one whose networks run in several threads, which do not "
            "exist here: start it by 'spawn', or use Runtime(threads=1)"
        )
    _threaded = _threaded or wanted > 1
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
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

    return (runtime.threads or torch.get_num_threads()) < usable_cores()


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


def find_finish(model_id: bytes, runtime: Runtime) -> Finish:
    """What makes the look "sharp" of a model's frames.

    Raises:
        ModelMismatchError: there is none.
    """
    from vcfilter.models import store

    return store.find_finish(model_id, runtime)
