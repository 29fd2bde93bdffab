"""What each preset costs and gives: CPU time and BD-rate against medium, as a table.

    python benchmarks/presets.py clip.mkv other.mkv --json presets.json

One thread; CPU time is that of the process, so that a busy machine tells about as much as an idle
one. Every stream is decoded, and quality is that of the decoded frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from frames import check_answer
from speed import decode, encode, machine, product_rate

from vcfilter.evaluate.bdrate import bd_rate
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import DEFAULT_PRESET, PRESETS, EncoderOptions, Runtime


def read(path: str, count: int) -> tuple[VideoFormat, list[Frame]]:
    """The first frames of a file in 8-bit 4:2:0."""
    frames = []
    with av.open(path) as container:
        for number, picture in enumerate(islice(container.decode(video=0), count)):
            plain = picture.reformat(format="yuv420p")
            planes = []
            for plane in plain.planes:
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
                planes.append(rows[: plane.height, : plane.width].copy())
            y, u, v = planes
            frames.append(Frame(y=y, u=u, v=v, pts=number, duration=1))
    if not frames:
        raise SystemExit(f"{path} has no frames")
    height, width = frames[0].y.shape
    return VideoFormat(width=width, height=height), frames


def measure(
    clip: tuple[VideoFormat, list[Frame]], preset: str, qps: list[int], keyint: int
) -> dict[str, list[float]]:
    """CPU seconds, bytes and dB of a clip at each qp."""
    fmt, source = clip
    runtime = Runtime(device="cpu", threads=1)
    found: dict[str, list[float]] = {"seconds": [], "bytes": [], "psnr": []}
    for qp in qps:
        options = EncoderOptions(qp=qp, preset=preset, keyint=keyint)
        began = time.process_time()
        packets = encode(fmt, options, runtime, source)
        found["seconds"].append(time.process_time() - began)
        found["bytes"].append(sum(len(packet.data) for packet in packets))
        found["psnr"].append(check_answer(fmt, source, decode(packets, options, runtime)))
    return found


def table(results: dict[str, dict[str, dict[str, list[float]]]], frames: int) -> str:
    """The table in Markdown; by preset and clip what `measure` found."""
    base = results[DEFAULT_PRESET]
    lines = ["| preset | CPU time | per frame | BD-rate |", "|---|---|---|---|"]
    for preset, clips in results.items():
        shares, rates = [], []
        for name, row in clips.items():
            shares.append(sum(row["seconds"]) / sum(base[name]["seconds"]))
            rate = bd_rate(base[name]["bytes"], base[name]["psnr"], row["bytes"], row["psnr"])
            if rate.percent is not None:
                rates.append(rate.percent)
        spent = sum(sum(row["seconds"]) for row in clips.values())
        coded = frames * len(next(iter(clips.values()))["seconds"])
        gain = f"{statistics.mean(rates):+.1f} %" if preset != DEFAULT_PRESET else "0"
        share, each = statistics.mean(shares), 1000 * spent / coded
        lines.append(f"| `{preset}` | {share:.2f} | {each:.0f} ms | {gain} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="+", metavar="CLIP")
    parser.add_argument("--presets", default=",".join(PRESETS), metavar="NAME,...")
    parser.add_argument("--qps", default="26,32,38", metavar="QP,...", help="%(default)s")
    parser.add_argument("--frames", type=int, default=13, help="of each clip (%(default)s)")
    parser.add_argument("--keyint", type=int, default=12, help="%(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    presets, qps = args.presets.split(","), [int(qp) for qp in args.qps.split(",")]
    if DEFAULT_PRESET not in presets:
        presets.append(DEFAULT_PRESET)
    clips = {Path(path).stem: read(path, args.frames) for path in args.clips}
    first = next(iter(clips.values()))
    measure((first[0], first[1][:2]), presets[0], qps[:1], args.keyint)  # loads and warms up
    rate = product_rate(1)
    results: dict[str, dict[str, dict[str, list[float]]]] = {preset: {} for preset in presets}
    for name, clip in clips.items():  # presets of a clip one after the other: the machine is alike
        for preset in presets:
            results[preset][name] = found = measure(clip, preset, qps, args.keyint)
            print(f"{name:16} {preset:10} {sum(found['seconds']):7.1f} s", flush=True)
    frames = sum(len(source) for _, source in clips.values())
    print(f"\n{table(results, frames)}\n\none core: {rate:.0f} GFLOP/s of float32 matrix product")
    if args.json:
        data = {"benchmark": "presets", **machine(Runtime(device="cpu", threads=1)), "qps": qps,
                "gflops": rate, "results": results}  # fmt: skip
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
