"""Finds models by name, id or path, and keeps those that are loaded.

Models lie as *.safetensors in the package's folder `weights`, in the folders that the
environment variable VCFILTER_MODELS lists (as PATH does), and in ~/.local/share/vcfilter/models.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from vcfilter.errors import BitstreamError, ConfigError, MediaError, ModelMismatchError
from vcfilter.frames import Frame, FrameStep, FrameType, VideoFormat
from vcfilter.models.base import Finish, Model, Reference
from vcfilter.models.weights import BELONGS, FINISH, WeightsFile, read_weights
from vcfilter.options import Runtime

logger = logging.getLogger(__name__)

OTHERS = ("between",)  # architectures that code nothing: the learned part of interpolation
DEFAULT_NAME = "default"
SUFFIX = ".safetensors"
FOLDERS_VARIABLE = "VCFILTER_MODELS"
LOADED_MAX = 8  # models that are kept
VERIFY_TOLERANCE = 1  # between encoder's and decoder's samples: rounding

Loader = Callable[[WeightsFile, torch.device], Model]


def _load_hierarchical(file: WeightsFile, device: torch.device) -> Model:
    from vcfilter.models.hierarchical.model import load  # late: reading a card must stay quick

    return load(file, device)


LOADERS: dict[str, Loader] = {"hierarchical": _load_hierarchical}
"""Architectures by name: what makes a model of a weights file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A weights file that was found.

    Args:
        path: of the file. name, id, architecture: what it says, and its hash.
        belongs: of a finish, the model's id in hexadecimal digits.
    """

    path: str
    name: str
    id: bytes
    architecture: str
    belongs: str = ""


def folders() -> tuple[Path, ...]:
    """Where models are looked for, in order."""
    given = [Path(f) for f in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if f]
    home = Path.home() / ".local" / "share" / "vcfilter" / "models"
    return (Path(str(resources.files("vcfilter") / "weights")), *given, home)


def list_models() -> tuple[ModelEntry, ...]:
    """All models in these folders; a file that cannot be read is logged and left out."""
    return tuple(entry for entry in _found() if entry.architecture != FINISH)


def list_finishes() -> tuple[ModelEntry, ...]:
    """All finishes in these folders, likewise."""
    return tuple(entry for entry in _found() if entry.architecture == FINISH)


def _found() -> tuple[ModelEntry, ...]:
    found = []
    for folder in folders():
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
            try:
                entry = _entry(str(path))
                if entry.architecture not in OTHERS:
                    found.append(entry)
            except (MediaError, ModelMismatchError) as error:
                logger.warning("%s", error)
    return tuple(found)


def locate(name: str | None) -> str:
    """The path of a model's file.

    Args:
        name: a name, an id (16 hexadecimal digits) or a path; None: the default model.

    Raises:
        ModelMismatchError: no model in the folders has that name or id.
    """
    name = DEFAULT_NAME if name is None else name
    if os.sep in name or name.endswith(SUFFIX):
        return name
    entries = list_models()
    for entry in entries:
        if name in (entry.name, entry.id.hex()):
            return entry.path
    known = ", ".join(dict.fromkeys(entry.name for entry in entries)) or "none"
    raise ModelMismatchError(
        f"no model has the name or id {name!r}: there are {known} in {_places()}"
    )


def find(name: str | None, runtime: Runtime) -> Model:
    """The model of a name, an id or a path, see `locate`.

    Raises:
        ConfigError: the runtime's device cannot be used.
        MediaError: there is no file at the path.
        ModelMismatchError: no model has that name or id, or its file cannot be used.
    """
    return load(locate(name), runtime)


def find_by_id(model_id: bytes, runtime: Runtime) -> Model:
    """The model that a stream names.

    Raises:
        ConfigError: the runtime's device cannot be used.
        ModelMismatchError: no file in the folders holds it.
    """
    with _lock:
        loaded = [model for model in _models.values() if model.info.id == model_id]
    wanted = str(pick_device(runtime.device))
    for model in loaded:
        if model.device == wanted:
            return model
    for entry in list_models():
        if entry.id == model_id:
            return load(entry.path, runtime)
    raise ModelMismatchError(f"no file with the model {model_id.hex()} in {_places()}")


def find_finish(model_id: bytes, runtime: Runtime) -> Finish:
    """What makes the look "sharp" of a model's frames.

    Raises:
        ConfigError: the runtime's device cannot be used.
        ModelMismatchError: no file in the folders holds one for this model.
    """
    from vcfilter.models.hierarchical.finish import load_finish  # late, as models are

    for entry in list_finishes():
        if entry.belongs == model_id.hex():
            device = pick_device(runtime.device)
            key = (*_file_key(entry.path), str(device))
            make = partial(load_finish, entry.path, device)
            return _kept(_finishes, key, make)
    raise ModelMismatchError(
        f"the look 'sharp' needs a finish for the model {model_id.hex()}, and there is none in "
        f"{_places()}: decode with the look 'natural'"
    )


def load(path: str, runtime: Runtime) -> Model:
    """The model of a weights file; kept as long as the file does not change.

    Raises:
        ConfigError: the runtime's device cannot be used.
        MediaError, ModelMismatchError: the file cannot be used.
    """
    device = pick_device(runtime.device)
    key = (*_file_key(path), str(device))

    def make() -> Model:
        file = read_weights(path)
        loader = LOADERS.get(file.architecture)
        if loader is None:
            raise ModelMismatchError(
                f"{path!r} holds a model of architecture {file.architecture!r}; this version has "
                f"{', '.join(LOADERS)}"
            )
        return loader(file, device)

    return _kept(_models, key, make)


def verify(path: str) -> ModelEntry:
    """Load a weights file and code a few small frames with it, there and back.

    Raises:
        MediaError, ModelMismatchError: the file cannot be used, or decodes other than it codes.
    """
    model = load(path, Runtime(device="cpu"))
    video_format = VideoFormat(width=96, height=64)
    rows, columns = np.mgrid[0:64, 0:96]
    steps = (
        FrameStep(type=FrameType.KEY, qp=30),
        FrameStep(type=FrameType.INTER, qp=33, layer=1, number=4, references=(-4,)),
        FrameStep(type=FrameType.INTER, qp=36, layer=2, number=2, references=(-2, 2)),
    )
    coded: dict[int, Reference] = {}
    decoded: dict[int, Reference] = {}
    for step in steps:
        wave = 128 + 60 * np.sin((columns + 3 * step.number) / 5) * np.cos(rows / 7)
        y = wave.astype(np.uint8)
        frame = Frame(y=y, u=y[::2, ::2] // 2, v=255 - y[::2, ::2], pts=step.number)
        numbers = step.reference_numbers
        picture = model.picture(frame, video_format)
        effort = next(iter(model.info.efforts))
        past = [coded[n] for n in numbers]
        done = model.encode(picture, step, past, video_format, effort)
        own = [decoded[n] for n in numbers]
        contexts = [reference.context for reference in own]
        try:
            symbols = model.parse(step, done.mode, done.sections, contexts, video_format)
            again = model.reconstruct(step, done.mode, symbols, own, video_format)
        except BitstreamError as error:
            raise ModelMismatchError(f"{path!r} cannot decode what it coded: {error}") from error
        pairs = zip(
            model.planes(done.reference, video_format),
            model.planes(again, video_format),
            strict=True,
        )
        if any(np.abs(a.astype(int) - b.astype(int)).max() > VERIFY_TOLERANCE for a, b in pairs):
            raise ModelMismatchError(f"{path!r} decodes other pixels than it coded")
        coded[step.number], decoded[step.number] = done.reference, again
    return _entry(path)


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one.

    Raises:
        ConfigError: it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {error}") from error
    return device


_lock = threading.Lock()
_models: OrderedDict[tuple[object, ...], Model] = OrderedDict()
_finishes: OrderedDict[tuple[object, ...], Finish] = OrderedDict()
_entries: OrderedDict[tuple[object, ...], ModelEntry] = OrderedDict()
Kept = TypeVar("Kept")


def _file_key(path: str) -> tuple[object, ...]:
    """What changes when a file does."""
    try:
        stat = os.stat(path)
    except OSError:
        raise MediaError(f"no weights file {path!r}") from None
    return os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _kept(
    cache: OrderedDict[tuple[object, ...], Kept], key: tuple[object, ...], make: Callable[[], Kept]
) -> Kept:
    with _lock:
        if key in cache:
            cache.move_to_end(key)
            return cache[key]
    made = make()
    with _lock:
        cache[key] = made
        while len(cache) > LOADED_MAX:
            cache.popitem(last=False)
    return made


def _entry(path: str) -> ModelEntry:
    def make() -> ModelEntry:
        file = read_weights(path)
        belongs = file.card.get(BELONGS, "") if file.architecture == FINISH else ""
        return ModelEntry(
            path=path,
            name=file.name,
            id=file.id,
            architecture=file.architecture,
            belongs=belongs,
        )

    return _kept(_entries, _file_key(path), make)


def _places() -> str:
    return ", ".join(str(folder) for folder in folders())
