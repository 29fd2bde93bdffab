"""Time over pixels and over frames: both should be straight lines.

    python benchmarks/scaling.py --json scaling.json --plot scaling.svg

The plot is made from the JSON alone: --json FILE --plot-only redraws it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from frames import RATE
from speed import add_common, machine, measure

from vcfilter.options import EncoderOptions, Runtime

SIZES = ((176, 144), (352, 288), (528, 432), (704, 576), (1056, 864))
LENGTHS = (13, 25, 49, 97)


def straightness(x: list[float], y: list[float]) -> dict[str, float]:
    """Least-squares line through measurements: slope, offset and the share it explains (R^2)."""
    slope, offset = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + offset)
    r2 = 1 - float((rest**2).sum() / ((np.asarray(y) - np.mean(y)) ** 2).sum())
    return {"slope": float(slope), "offset": float(offset), "r2": r2}


def plot(data: dict[str, Any], target: str) -> None:
    """Two panels from the JSON: seconds over megapixels, seconds over frames."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, key, label in (
        (panels[0], "by_size", "pixels per frame, million"),
        (panels[1], "by_length", "frames"),
    ):
        part = data[key]
        for verb, colour in (("encode", "#1f77b4"), ("decode", "#c8102e")):
            x = part["x"]
            fit = part[verb]
            axes.plot(x, [r[f"{verb}_seconds"] for r in part["rows"]], "o", color=colour)
            ends = np.array([0, max(x)])
            axes.plot(ends, fit["slope"] * ends + fit["offset"], "-", color=colour, alpha=0.6,
                      label=f"{verb}, R² {fit['r2']:.4f}")  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel("seconds (median)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.3)
        axes.legend()
    figure.savefig(target, metadata={"Date": None} if target.endswith(".svg") else None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--plot", metavar="FILE", help="draw into this SVG or PNG")
    parser.add_argument(
        "--plot-only", action="store_true", help="draw from --json, measure nothing"
    )
    add_common(parser)
    args = parser.parse_args()
    if args.plot_only:
        plot(json.loads(Path(args.json).read_text(encoding="utf-8")), args.plot or "scaling.svg")
        return
    options = EncoderOptions(qp=args.qp, preset=args.preset, model=args.model, frame_rate=RATE)
    runtime = Runtime(device=args.device, threads=args.threads)
    data: dict[str, Any] = {"benchmark": "scaling", **machine(runtime)}
    plans = {
        "by_size": [(size, 13) for size in SIZES],
        "by_length": [((352, 288), count) for count in LENGTHS],
    }
    for key, plan in plans.items():
        rows: list[dict[str, Any]] = []
        for size, count in plan:
            row: dict[str, Any] = measure(size, count, options, runtime, args.repeats)
            rows.append(row)
            print(
                f"{size[0]:>5}x{size[1]:<5} {count:>4} frames  "
                f"encode {row['encode_seconds']:8.3f} s"
                f"  decode {row['decode_seconds']:8.3f} s  {row['decode_fps']:7.2f} frames/s",
                flush=True,
            )
        by_size = key == "by_size"
        x = [r["width"] * r["height"] / 1e6 if by_size else float(r["frames"]) for r in rows]
        data[key] = {"x": x, "rows": rows}
        for verb in ("encode", "decode"):
            fit = straightness(x, [float(r[f"{verb}_seconds"]) for r in rows])
            data[key][verb] = fit
            print(f"  {verb} {key.replace('_', ' ')}: straight line explains {fit['r2']:.4f}")
    if args.json:
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")
    if args.plot:
        plot(data, args.plot)


if __name__ == "__main__":
    main()
