"""Peak memory of encoding and decoding a file, for a short and a long one.

    python benchmarks/memory.py --size 1920x1080 --segments 2,20 --json memory.json

Each measurement is a process of its own, whose largest resident set is what counts; it must not
grow with the film's length. --keyint shortens the segments where time is short.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from frames import RATE, clip_frames

from vcfilter.options import EncoderOptions


def write_source(path: Path, width: int, height: int, count: int) -> None:
    """The demo clip, enlarged, as H.264."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "20"}
        held = clip_frames(width, height, 24)
        for n in range(count):
            frame = held[min(n % 46, 46 - n % 46)]
            picture = VideoFrame(width, height, "yuv420p")
            for target, plane in zip(picture.planes, frame.planes, strict=True):
                rows = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
                rows[: plane.shape[0], : plane.shape[1]] = plane
            picture.pts = n
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def child(args: argparse.Namespace) -> None:
    """Do one thing, print frames, seconds and the peak in bytes as JSON."""
    start = time.perf_counter()
    if args.child == "encode":
        from vcfilter.stream.transcode import encode_file

        options = EncoderOptions(qp=args.qp, preset=args.preset, keyint=args.keyint)
        frames = encode_file(args.source, args.target, options, overwrite=True).frames
    else:
        from vcfilter.stream.decoders import neural_frames

        frames = sum(1 for _ in neural_frames(args.source))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"frames": frames, "seconds": time.perf_counter() - start, "peak": peak}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="1920x1080", metavar="WxH")
    parser.add_argument("--segments", default="2,20", metavar="N,...")
    parser.add_argument("--keyint", type=int, default=12)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--qp", type=int, default=32)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("--child", choices=("encode", "decode"), help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    width, height = (int(v) for v in args.size.split("x"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for segments in (int(v) for v in args.segments.split(",")):
            count = segments * args.keyint
            source, neural = Path(folder) / "source.mp4", Path(folder) / "neural.mkv"
            write_source(source, width, height, count)
            for verb, given in (("encode", source), ("decode", neural)):
                command = [
                    sys.executable, __file__, "--child", verb, "--source", str(given),
                    "--target", str(neural), "--keyint", str(args.keyint),
                    "--preset", args.preset, "--qp", str(args.qp),
                ]  # fmt: skip
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                if row["frames"] != count:
                    raise SystemExit(f"wrong answer: {row['frames']} of {count} frames")
                row |= {"verb": verb, "segments": segments, "width": width, "height": height}
                rows.append(row)
                speed = row["frames"] / row["seconds"]
                print(
                    f"{args.size} {verb:<7} {segments:>3} segments ({count} frames): peak "
                    f"{row['peak'] / 2**20:7.0f} MiB, {speed:.2f} frames/s",
                    flush=True,
                )
    if args.json:
        data = {"benchmark": "memory", "keyint": args.keyint, "preset": args.preset, "rows": rows}
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
