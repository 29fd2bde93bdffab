"""Finds models by name, id or path."""

from __future__ import annotations

from vcfilter.errors import ModelMismatchError
from vcfilter.models.base import Model
from vcfilter.options import Runtime


def find(name: str | None, runtime: Runtime) -> Model:
    from vcfilter.models.checkpoint import read_card
    from vcfilter.models.hierarchical.model import HierarchicalModel
    from vcfilter.models.hierarchical.video import VideoModel

    return HierarchicalModel(VideoModel.load(name, runtime.device), read_card(name))


def find_by_id(model_id: bytes, runtime: Runtime) -> Model:
    model = find(None, runtime)
    if model.info.id != model_id:
        raise ModelMismatchError(f"no model {model_id.hex()} is found")
    return model
