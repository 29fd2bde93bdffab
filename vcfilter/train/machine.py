"""Where training runs: devices, half precision, several processes.

`torchrun` starts one process per device. All draw the same random numbers, each loads and codes its
own part of the batch, and gradients and figures are averaged; so N processes do what one does with
N times the batch, but for the order of floating-point sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from vcfilter.models.hierarchical.conditions import Conditions
from vcfilter.models.hierarchical.search import estimate_motion
from vcfilter.models.hierarchical.values import MotionField, Pair
from vcfilter.models.store import pick_device
from vcfilter.nn.blocks import Branch
from vcfilter.train.data import Bank, Clip, Planes

PATIENCE = timedelta(hours=12)  # others wait while one process decodes the material
DEVICE_SHARE = 0.5  # of the free device memory that clips may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together.

    Args:
        rank: 0 to count - 1. count: processes. device: of this one.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def own(self) -> slice:
        """Which frames of a batch are this process's."""
        return slice(self.rank, None, self.count)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def spread(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dense = tensor.detach().contiguous()
                distributed.broadcast(dense, 0)
                tensor.detach().copy_(dense)

    def average(self, values: Tensor) -> Tensor:
        """The mean of equally shaped tensors of all processes."""
        if self.count == 1:
            return values
        distributed.all_reduce(values)
        return values / self.count

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.average(torch.cat([g.flatten() for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.average(torch.tensor(float(flag), device=self.device)) > 0)


def join(device: str) -> Processes:
    """This process's place, from what torchrun says in the environment; alone without it.

    Args:
        device: "auto", "cpu", "cuda" ...; with several processes "cuda" is the local one's own.

    Raises:
        ConfigError: no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    found = pick_device(device)
    if found.type == "cuda":
        # TF32 has ten bits of mantissa: too few for the transforms (see
        # `halve_branches`). Crops keep their size, so the search for fast kernels pays.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    if count == 1:
        return Processes(device=found)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(found)
    distributed.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=PATIENCE)
    return Processes(rank=distributed.get_rank(), count=count, device=found)


def leave(processes: Processes) -> None:
    """The end of working together."""
    if processes.count > 1:
        distributed.destroy_process_group()


def settle(clips: list[Clip], device: torch.device) -> Bank | None:
    """The clips in a GPU's memory if they fit half of what is free there; else None."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if sum(clip.frames.numel() for clip in clips) > free * DEVICE_SHARE:
        return None
    return Bank(clips, device)


def halve_branches(net: nn.Module, device: torch.device) -> None:
    """Let the nonlinear branches compute in bfloat16, and nothing else.

    Their inputs are compressed to a few units and their outputs count in quantiser steps, so
    eight bits of mantissa are enough. The linear transforms and the means are not: coefficients
    reach a thousand, steps are as small as one. The exact layers must never see less than the
    24 bits that hold their sums, and since autocast is on inside a branch only, they do not.
    """
    for module in net.modules():
        if isinstance(module, Branch):
            halve(module, device.type)


def halve(branch: Branch, device: str) -> None:
    """See `halve_branches`; parameters stay in float32."""
    forward = branch.forward

    def run(x: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return forward(x, context).to(x.dtype)

    branch.forward = run  # type: ignore[method-assign]


def motion(conditions: Conditions, x: Planes, pair: Pair, threads: int) -> MotionField:
    """`estimate_motion` of a batch; the flow search runs on the host, in several threads."""
    batch = len(conditions.qp)
    parts = min(threads, batch)
    if parts <= 1:
        with torch.no_grad():
            return estimate_motion(conditions, x, pair)

    def part(number: int) -> MotionField:
        own = slice(number * batch // parts, (number + 1) * batch // parts)
        y, u, v = (plane[own] for plane in x)
        rows = {n: getattr(conditions, n)[own] for n in ("qp", "layer", "distances", "level")}
        some = replace(conditions, **rows)
        first, second = (reference.rows(own) for reference in pair)
        with torch.no_grad():  # holds for one thread only
            return estimate_motion(some, (y, u, v), (first, second))

    with ThreadPoolExecutor(parts) as pool:
        found = list(pool.map(part, range(parts)))
    return MotionField(torch.cat([f.field for f in found]), torch.cat([f.hessian for f in found]))
