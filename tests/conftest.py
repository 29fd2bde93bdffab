"""Settings of every test: few threads, and GPU tests that never skip in silence."""

from __future__ import annotations

import os
import signal

# Before PyTorch loads OpenMP: threads that wait by spinning make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(2)
# A shell starts background jobs with SIGINT ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu without a CUDA device; VCFILTER_REQUIRE_GPU=1 makes that an error."""
    if torch.cuda.is_available():
        return
    if os.environ.get("VCFILTER_REQUIRE_GPU") == "1":
        raise pytest.UsageError("VCFILTER_REQUIRE_GPU=1, and there is no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
