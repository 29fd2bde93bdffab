"""Weights files: safetensors (no pickle) with the tables, an identity and a card."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vcfilter.entropy import tables
from vcfilter.entropy.coder import TableSet
from vcfilter.errors import ConfigError, MediaError, ModelMismatchError
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.video import VideoModel, VideoNet
from vcfilter.nn.exact import check_bound

ARCHITECTURE = "hierarchical"
NUMERICS = 1  # generation of the arithmetic that the symbols depend on
TABLES_NAME = "tables"
SHIPPED = "vcfilter.safetensors"


def identity(tensors: dict[str, torch.Tensor]) -> bytes:
    """8 bytes that change with any weight, table or the architecture."""
    digest = hashlib.sha256(f"{ARCHITECTURE} {NUMERICS}".encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()[:8]


def save_weights(
    path: str, net: VideoNet, magnitudes: tables.Probabilities, card: dict[str, str]
) -> bytes:
    """Write a weights file, complete or not at all; returns the model's identity.

    Raises:
        ConfigError: an exact layer could leave the range in which its sums are exact.
    """
    if check_bound(net) >= 1:
        raise ConfigError("the weights of an exact layer are too large: its sums may pass 2^24")
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    tensors[TABLES_NAME] = torch.from_numpy(magnitudes)
    metadata = {
        **card,
        "architecture": ARCHITECTURE,
        "config": HierarchicalConfig().to_json(),
        "numerics": str(NUMERICS),
    }
    part = Path(f"{path}.part")
    save_file(tensors, part, metadata=metadata)
    mask = os.umask(0)  # reading it means setting it
    os.umask(mask)
    part.chmod(0o666 & ~mask)  # safetensors lets only the owner read
    part.replace(path)
    load_model.cache_clear()  # it may hold what was under that name before
    return identity(tensors)


def shipped_weights() -> str:
    """Path of the weights in the package."""
    return str(resources.files("vcfilter") / "weights" / SHIPPED)


def read_card(path: str | None = None) -> dict[str, str]:
    """What the file says of itself: data, licence, steps, results."""
    with _open(path or shipped_weights()) as file:
        return dict(file.metadata() or {})


def _open(path: str) -> safe_open:
    if not Path(path).is_file():
        raise MediaError(f"no weights file {path!r}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelMismatchError(f"{path!r} is not a weights file: {error}") from error


def load_weights(path: str) -> tuple[VideoNet, tables.Probabilities, bytes]:
    """(networks on the CPU, tables, identity) of a weights file."""
    with _open(path) as file:
        found = (file.metadata() or {}).get("architecture")
        if found != ARCHITECTURE:
            raise ModelMismatchError(
                f"{path!r} holds a model of architecture {found!r}; "
                f"this version runs {ARCHITECTURE!r}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model_id = identity(tensors)
    magnitudes = tensors.pop(TABLES_NAME, None)
    net = VideoNet()
    try:
        if magnitudes is None or magnitudes.shape != (tables.TABLES, tables.MAGNITUDE_MAX + 2):
            raise RuntimeError("its tables are missing")
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelMismatchError(f"{path!r} does not fit this version: {error}") from error
    if check_bound(net) >= 1:
        raise ModelMismatchError(f"{path!r} has an exact layer whose sums may pass 2^24")
    return net, magnitudes.numpy(), model_id


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {error}") from error
    return device


@lru_cache(maxsize=4)
def load_model(path: str | None, device: str) -> VideoModel:
    """See `VideoModel.load`."""
    net, magnitudes, model_id = load_weights(path or shipped_weights())
    return VideoModel(net, TableSet(magnitudes), model_id, pick_device(device))
