"""Weights files: safetensors (no pickle) with an architecture, its configuration and a card.

The model's id is computed from what the file holds and never read from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vcfilter.errors import MediaError, ModelMismatchError

ID_BYTES = 8
NAME_BYTES = 32
DTYPES = (torch.float32, torch.float64)
BELONGS = "for"  # in a finish's card: its model's id
FINISH = "finish"  # what weights files say that hold a finish, not a model
_FIELDS = ("architecture", "numerics", "config", "name")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightsFile:
    """What a weights file holds.

    Args:
        path: where it was read from.
        id: 8 bytes, a hash over architecture, numerics, configuration and tensors.
        name: what it is found by, at most 32 bytes of UTF-8.
        architecture: name of its folder below vcfilter/models.
        numerics: generation of its arithmetic.
        config: what the architecture is built with.
        card: what the file says of training, data and licence.
        tensors: by name; float32 or float64, all finite.
    """

    path: str
    id: bytes
    name: str
    architecture: str
    numerics: int
    config: Mapping[str, Any]
    card: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def identity(
    architecture: str, numerics: int, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> bytes:
    """8 bytes that change with any weight, table or number of the configuration."""
    head = json.dumps([architecture, numerics, config], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()[:ID_BYTES]


def write_weights(
    path: str,
    *,
    name: str,
    architecture: str,
    numerics: int,
    config: Mapping[str, Any],
    card: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> bytes:
    """Write a weights file, complete or not at all; returns the model's id.

    Raises:
        ModelMismatchError: it would not be read again.
    """
    kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    _check_tensors(path, kept)
    _check_name(path, name)
    metadata = {
        **{k: v for k, v in card.items() if k not in _FIELDS},
        "architecture": architecture,
        "numerics": str(numerics),
        "config": json.dumps(config, sort_keys=True),
        "name": name,
    }
    part = Path(f"{path}.part")
    save_file(kept, part, metadata=metadata)
    mask = os.umask(0)  # reading it means setting it
    os.umask(mask)
    part.chmod(0o666 & ~mask)  # safetensors lets only the owner read
    part.replace(path)
    return identity(architecture, numerics, config, kept)


def read_weights(path: str) -> WeightsFile:
    """A weights file, its tensors on the CPU.

    Raises:
        MediaError: there is no such file.
        ModelMismatchError: it is not a weights file, or holds what none may hold.
    """
    with _open(path) as file:
        metadata = dict(file.metadata() or {})
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelMismatchError(f"{path!r} is not a weights file: {error}") from error
    missing = [field for field in _FIELDS if field not in metadata]
    if missing:
        raise ModelMismatchError(f"{path!r} does not say its {' and '.join(missing)}")
    try:
        config = json.loads(metadata["config"])
        numerics = int(metadata["numerics"])
    except ValueError as error:
        raise ModelMismatchError(f"{path!r} has invalid metadata: {error}") from error
    if not isinstance(config, dict):
        raise ModelMismatchError(f"{path!r} has a configuration that is no object")
    _check_name(path, metadata["name"])
    _check_tensors(path, tensors)
    architecture = metadata["architecture"]
    return WeightsFile(
        path=path,
        id=identity(architecture, numerics, config, tensors),
        name=metadata["name"],
        architecture=architecture,
        numerics=numerics,
        config=config,
        card={k: v for k, v in metadata.items() if k not in _FIELDS},
        tensors=tensors,
    )


def read_card(path: str) -> dict[str, str]:
    """What a file says of itself: architecture, data, licence, steps, results.

    Raises:
        MediaError, ModelMismatchError: as of `read_weights`.
    """
    with _open(path) as file:
        return dict(file.metadata() or {})


def _open(path: str) -> safe_open:
    if not Path(path).is_file():
        raise MediaError(f"no weights file {path!r}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelMismatchError(f"{path!r} is not a weights file: {error}") from error


def _check_name(path: str, name: str) -> None:
    if not name or len(name.encode()) > NAME_BYTES or not name.isprintable():
        raise ModelMismatchError(
            f"{path!r} has the name {name!r}: 1 to {NAME_BYTES} bytes of printable text are allowed"
        )


def _check_tensors(path: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ModelMismatchError(
                f"{path!r}: {name} is {tensor.dtype}, not a float of 32 or 64 bits"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelMismatchError(f"{path!r}: {name} has values that are not finite")
