"""Frames per second of encoder and decoder per preset, on frames in memory.

    python benchmarks/speed.py --presets fast,medium --json speed.json

The answer is checked before anything is timed; medians over runs are printed and written. Beside
them, since they hold for one machine: how fast it multiplies matrices, and encodes the same frames
with x264 and decodes them with FFmpeg's H.264 decoder and dav1d.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import vcfilter  # noqa: F401  # before torch: it says how OpenMP's threads wait

# isort: split
import av
import numpy as np
import torch
from av.codec import CodecContext
from frames import RATE, check_answer, clip_frames

from vcfilter.codec import Decoder, Encoder
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

SIDE = 1024  # of the matrices whose product tells how fast a machine is


def encode(
    video_format: VideoFormat, options: EncoderOptions, runtime: Runtime, source: list[Frame]
) -> list[Packet]:
    """All packets of the frames."""
    encoder = Encoder(video_format, options, runtime=runtime)
    return [p for frame in [*source, None] for p in encoder.encode(frame)]


def decode(packets: list[Packet], options: EncoderOptions, runtime: Runtime) -> list[Frame]:
    """All frames of the packets."""
    chosen = DecoderOptions(strict=True, model=options.model)
    decoder = Decoder(options=chosen, runtime=runtime)
    return [f for packet in [*packets, None] for f in decoder.decode(packet)]


def measure(
    size: tuple[int, int], count: int, options: EncoderOptions, runtime: Runtime, repeats: int
) -> dict[str, object]:
    """One row: checked once (which also warms up), then timed."""
    video_format = VideoFormat(width=size[0], height=size[1])
    source = clip_frames(*size, count)
    packets = encode(video_format, options, runtime, source)
    psnr = check_answer(video_format, source, decode(packets, options, runtime))
    encoding, decoding = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        encode(video_format, options, runtime, source)
        middle = time.perf_counter()
        decode(packets, options, runtime)
        encoding.append(middle - start)
        decoding.append(time.perf_counter() - middle)
    size_bytes = sum(len(p.data) for p in packets)
    return {
        "width": size[0],
        "height": size[1],
        "frames": count,
        "preset": options.preset,
        "qp": options.qp,
        "psnr": psnr,
        "kbps": 8 * size_bytes / (count / float(RATE)) / 1000,
        "encode_seconds": statistics.median(encoding),
        "decode_seconds": statistics.median(decoding),
        "encode_fps": count / statistics.median(encoding),
        "decode_fps": count / statistics.median(decoding),
    }


def product_rate(threads: int, repeats: int = 9) -> float:
    """GFLOP/s of a product of float32 matrices, the median of some."""
    before, seconds = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    a = torch.rand(SIDE, SIDE)
    torch.mm(a, a)
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * SIDE**3 / statistics.median(seconds) / 1e9


def other_encode(source: list[Frame], codec: str, threads: int, **options: str) -> Any:
    """(codec context, its packets) of frames coded by one of FFmpeg's encoders."""
    rows, columns = source[0].y.shape
    context = CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = columns, rows, "yuv420p"
    context.time_base, context.framerate = 1 / RATE, RATE
    context.thread_count, context.options = threads, options
    packets = []
    for number, frame in enumerate(source):
        picture = av.VideoFrame(columns, rows, "yuv420p")
        for plane, values in zip(picture.planes, frame.planes, strict=True):
            padded = np.zeros((plane.height, plane.line_size), np.uint8)
            padded[:, : plane.width] = values
            plane.update(padded.tobytes())
        picture.pts = number
        packets += context.encode(picture)
    return context, packets + context.encode(None)


def other_decode(context: Any, packets: list[Any], codec: str, threads: int) -> int:
    """How many frames one of FFmpeg's decoders makes of packets."""
    decoder = CodecContext.create(codec, "r")
    decoder.extradata, decoder.thread_count = context.extradata, threads
    frames = [frame for packet in packets for frame in decoder.decode(packet)]
    return len(frames) + len(decoder.decode(None))


def others(size: tuple[int, int], count: int, threads: int, repeats: int) -> dict[str, float]:
    """Frames per second of others on the same frames, the best of some runs."""
    source = clip_frames(*size, count)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        for _ in range(repeats):
            start = time.perf_counter()
            result = work()
            rate = count / (time.perf_counter() - start)
            found[name] = max(found.get(name, 0.0), rate)
        return result

    for encoder, decoder, title in (
        ("libx264", "h264", "x264 medium"),
        ("libsvtav1", "libdav1d", ""),
    ):
        coded = partial(
            other_encode, source, encoder, threads, preset="8" if not title else "medium"
        )
        context, packets = timed(f"encode, {title}", coded) if title else coded()
        made = timed(
            f"decode, {decoder}", partial(other_decode, context, packets, decoder, threads)
        )
        if made != count:
            raise SystemExit(f"{decoder} made {made} of {count} frames")
    return found


def machine(runtime: Runtime) -> dict[str, object]:
    """What a reader needs to judge the figures."""
    return {
        "machine": platform.machine(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": runtime.device,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "repeats": "medians",
    }


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments that the benchmarks share."""
    parser.add_argument("--qp", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the networks; 0: PyTorch's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", help="name, id or path of another model")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")


def main() -> None:
    """Command line."""
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="352x288", metavar="WxH,...")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--keyint", type=int, default=12)
    parser.add_argument("--presets", default="fast,medium", metavar="NAME,...")
    add_common(parser)
    args = parser.parse_args()
    runtime = Runtime(device=args.device, threads=args.threads)
    rows = []
    for text in args.size.split(","):
        width, height = (int(v) for v in text.split("x"))
        for preset in args.presets.split(","):
            options = EncoderOptions(
                qp=args.qp, preset=preset, model=args.model, keyint=args.keyint, frame_rate=RATE,
            )  # fmt: skip
            row = measure((width, height), args.frames, options, runtime, args.repeats)
            rows.append(row)
            print(
                f"{text:>9} {preset:<10} encode {row['encode_fps']:7.2f}/s  "
                f"decode {row['decode_fps']:7.2f}/s  {row['psnr']:.2f} dB "
                f"{row['kbps']:.0f} kbit/s",
                flush=True,
            )
    threads = args.threads or torch.get_num_threads()
    beside = others((width, height), args.frames, threads, args.repeats)
    beside[f"GFLOP/s of float32 matrix product, {threads} threads"] = product_rate(threads)
    for title, rate in beside.items():
        print(f"{text:>9} {title:<44} {rate:8.1f}", flush=True)
    if args.json:
        data = {"benchmark": "speed", **machine(runtime), "rows": rows, "beside": beside}
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
