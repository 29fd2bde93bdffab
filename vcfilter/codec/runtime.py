"""Loading of models, and threads of the networks, for encoder and decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from vcfilter.errors import ConfigError
from vcfilter.frames import VideoFormat
from vcfilter.models.base import Finish, Model
from vcfilter.options import Runtime

FRAMES, SAMPLES = 4, 1 << 22
"""Coded beside each other, at most: a hierarchy has few frames that do not need each other, and
each takes memory, about 0.4 GiB a megapixel; luma samples of all of them."""

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


def frame_threads(model: Model, video_format: VideoFormat) -> int:
    """How many frames are coded beside each other: on a CPU one per thread, see FRAMES."""
    import torch

    if not model.device.startswith("cpu"):
        return 1
    fitting = SAMPLES // (video_format.width * video_format.height)
    return max(1, min(torch.get_num_threads(), FRAMES, fitting))


def one_thread() -> None:
    """Networks called from this thread use it alone, from now on.

    So do those of threads that begin later, until `set_usual_threads`.
    """
    import torch

    # A thread's first look takes the process's number, which another may have changed by then.
    torch.get_num_threads()
    torch.set_num_threads(1)


def usual_threads() -> int:
    """Threads of networks that are called from this thread."""
    import torch

    return torch.get_num_threads()


def set_usual_threads(threads: int) -> None:
    """Have networks called from this thread, and from those that begin later, use so many."""
    import torch

    torch.set_num_threads(threads)


def reads_ahead(model: Model) -> bool:
    """Whether threads read the next frames' symbols while pixels of one are made: on a GPU.

    On a CPU it gains nothing, also where a core is free (measured: 43 instead of 45 frames/s with
    one thread of the networks and a fifth more CPU time).
    """
    return not model.device.startswith("cpu")


def _loading(runtime: Runtime) -> AbstractContextManager[None]:
    """Weights are loaded in one thread.

    OpenMP gives each thread that works in several its own team, and teams that together are more
    than the cores wait without spinning. Frames may be decoded in another thread than this.
    """
    return threads_of(replace(runtime, threads=1))


def load_model(name: str | None, runtime: Runtime) -> Model:
    """The model of a name, id or path; None: the default one."""
    from vcfilter.models import store  # late: importing the package must stay quick

    with _loading(runtime):
        return store.find(name, runtime)


def find_model(model_id: bytes, runtime: Runtime) -> Model:
    """The model that a stream names.

    Raises:
        ModelMismatchError: it cannot be found.
    """
    from vcfilter.models import store

    with _loading(runtime):
        return store.find_by_id(model_id, runtime)


def find_finish(model_id: bytes, runtime: Runtime) -> Finish:
    """What makes the look "sharp" of a model's frames.

    Raises:
        ModelMismatchError: there is none.
    """
    from vcfilter.models import store

    with _loading(runtime):
        return store.find_finish(model_id, runtime)
