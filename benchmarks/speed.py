"""Frames per second of encoder and decoder per preset, on frames in memory.

    python benchmarks/speed.py --presets fast,medium --json speed.json

The answer is checked before anything is timed; medians over runs are printed and written.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from frames import RATE, check_answer, clip_frames

from vcfilter.codec import Decoder, Encoder
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime


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
    if args.json:
        data = {"benchmark": "speed", **machine(runtime), "rows": rows}
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
