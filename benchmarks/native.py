"""Native loops beside the plain operators that they stand for: microseconds of CPU time.

    python benchmarks/native.py --size 352x288

Both are compared before they are timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.models import store
from vcfilter.models.hierarchical import cost, latent, loop_filter, refine, search
from vcfilter.models.hierarchical.conditions import context_features
from vcfilter.models.hierarchical.finish import HierarchicalFinish
from vcfilter.models.hierarchical.model import HierarchicalModel
from vcfilter.models.hierarchical.values import Picture
from vcfilter.nn import native, warp
from vcfilter.options import Runtime

REPEATS = 40


def no_loops(*tensors: Tensor) -> bool:
    """In place of is_native."""
    return False


def median(run: Callable[[], Tensor]) -> float:
    """CPU time in microseconds."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return 1e6 * statistics.median(seconds)


def compare(
    name: str, run: Callable[[], Tensor], plainly: Callable[[], Tensor] | None = None
) -> None:
    """One row; plainly: the plain operators, where they are called in another way."""
    found, fast = run(), median(run)
    run = plainly or run
    with (
        patch.object(cost, "is_native", no_loops),
        patch.object(latent, "is_native", no_loops),
        patch.object(loop_filter, "is_native", no_loops),
        patch.object(native, "is_native", no_loops),
        patch.object(refine, "is_native", no_loops),
        patch.object(search, "is_native", no_loops),
        patch.object(warp, "is_native", no_loops),
    ):
        plain, slow = run(), median(run)
    off = float((found - plain).abs().max() / plain.abs().max().clamp(min=1))
    if not off < 1e-3:
        raise SystemExit(f"wrong answer: {name} is off by {off:.3g}")
    print(f"{name:40} {slow:8.0f} -> {fast:6.0f}   {slow / fast:4.1f} times", flush=True)


@torch.inference_mode()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="352x288", metavar="WxH")
    args = parser.parse_args()
    columns, rows = (-(-int(side) // 32) * 32 for side in args.size.split("x"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, a, b = (F.avg_pool2d(torch.rand(1, 1, rows + 8, columns + 8) * 255, 9, 1) for _ in range(3))
    field = F.interpolate(torch.randn(1, 5, 3, 3) * 4, (rows // 8, columns // 8), mode="bilinear")
    blend, share = field[:, 4:].clamp(-1, 1), torch.tensor([[-0.5, 0.5]])[:, :, None, None]
    compare("warp, bicubic", lambda: warp.warp_field(a, field[:, :2], 8, "bicubic"))
    compare("warp, bilinear", lambda: warp.warp_field(a, field[:, :2], 8, "bilinear"))
    compare("sums of the fit", lambda: refine._products(x, a, b, blend))
    sums = refine._products(x, a, b, blend)
    compare("step of the fit", lambda: refine._fitted(field, sums))
    compare("errors of blocks", lambda: search.block_sse(x, (a, b), field))
    half = F.avg_pool2d(a, 2)
    picture, steps = Picture((x, half, half), (rows, columns)), torch.full((1, 96), 16.0)
    residual = cost.ResidualCost(torch.tensor([16.0]), steps)
    predicted = (a, half + 3, half - 2)
    compare("cost of a residual", lambda: torch.tensor(residual.of(picture, predicted)))
    compare(
        "sums of the loop filter",
        lambda: torch.from_numpy(loop_filter._sums(x, a, None, (rows, columns))[0]),
    )
    compare("sums of the decoder's refinement", lambda: refine._agreement(a, b, share, 4))
    model = store.find(None, Runtime(device="cpu", threads=1))
    assert isinstance(model, HierarchicalModel)
    net = model.net
    wide = torch.randn(1, 192, rows // 8, columns // 8).to(memory_format=torch.channels_last)
    block = net.image.synthesis_branch.blocks[0]
    compare("residual block", lambda: block(wide[:, :96].contiguous(
        memory_format=torch.channels_last)))  # fmt: skip
    shipped = store.find_finish(model.info.id, Runtime(device="cpu", threads=1))
    assert isinstance(shipped, HierarchicalFinish) and shipped._loops is not None
    loops, qp, pair = shipped._loops, 36, (-2, 2)
    frame = context_features(torch.tensor([qp]), torch.tensor([1]), torch.tensor([pair]))
    compare(
        "luma of the look sharp",
        lambda: loops.apply(x, qp, 1, pair),
        lambda: (x + shipped.net(x, torch.tensor([qp]), frame)).clamp(0, 255),
    )
    maps = wide[:, :96].mul(20).abs().floor().contiguous(memory_format=torch.channels_last)
    features = torch.ones(1, 16)
    for place in net.image.coding.places(maps):
        step, seen = place.model, place.lattice(maps)
        if step.step.stride != 1:
            continue
        past = [seen[:, step.step.low :]] * 2
        name = f"channels {step.step.low} to {step.step.high}, {len(place.where)} places"
        compare(f"indices, {name}", lambda p=place, s=seen, t=past: p.model.indices(
            s, t, features, torch.zeros(1), p.where))  # fmt: skip
        compare(f"means, {name}", lambda p=place, s=seen: p.model.means(s, features, p.where))


if __name__ == "__main__":
    main()
