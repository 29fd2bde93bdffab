"""Draw the README's picture: one frame of the demo clip, beside vcfilter's and x264's at one size.

    python benchmarks/make_comparison.py docs/images/comparison.png

The clip's first frames are coded by vcfilter at --qp; x264 (medium, B-frames on, same keyframe
interval) gets the crf whose real size comes nearest. Left to right: source, vcfilter, x264; below
each, a part of it at three times the size. The figures that belong under the picture are printed.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from vcfilter.evaluate.anchors import Anchor
from vcfilter.evaluate.clips import frames_of, planes_of, prepare
from vcfilter.evaluate.report import to_png
from vcfilter.evaluate.runner import Codec, Neural, Point, decoded_frames, measure
from vcfilter.frames import Frame
from vcfilter.metrics import frame_psnr

CLIP = Path(__file__).resolve().parent.parent / "vcfilter" / "assets" / "demo.mp4"
ZOOM = 3
GAP = 6


def rgb(data: bytes) -> npt.NDArray[np.uint8]:
    """Pixels of a PNG file, (h, w, 3)."""
    decoder = av.CodecContext.create("png", "r")
    (picture,) = decoder.decode(av.Packet(data))  # type: ignore[attr-defined]
    return picture.to_ndarray(format="rgb24")  # type: ignore[no-any-return]


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = image.shape[:2]  # type: ignore[attr-defined]
    encoder.pix_fmt = "rgb24"  # type: ignore[attr-defined]
    encoder.time_base = 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
    packets = [*encoder.encode(frame), *encoder.encode(None)]  # type: ignore[attr-defined]
    return b"".join(bytes(packet) for packet in packets)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--source", type=Path, default=CLIP)
    parser.add_argument("--qp", type=int, default=40)
    parser.add_argument("--keyint", type=int, default=12)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--show", type=int, default=102, help="which frame (%(default)s)")
    parser.add_argument("--part", default="16,120", metavar="X,Y", help="corner of the part below")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = prepare(args.source, folder, args.frames)
        picture = next(islice(frames_of(clip.path), args.show, None))
        source = planes_of(picture)
        neural = Neural(preset=args.preset, qps=(args.qp,))
        ours = measure(clip, neural, args.qp, args.keyint, folder / "ours.mkv")
        low, high = 10.0, 50.0
        best: tuple[Point, Anchor] | None = None
        for n in range(9):
            crf = (low + high) / 2
            x264 = Anchor(codec="libx264", preset="medium", crf=(crf,))
            point = measure(clip, x264, crf, args.keyint, folder / f"{n}.mkv")
            if best is None or abs(point.bytes - ours.bytes) < abs(best[0].bytes - ours.bytes):
                best = point, x264
            low, high = (crf, high) if point.bytes > ours.bytes else (low, crf)
        assert best is not None
        shown: list[tuple[str, Frame]] = [("source", source)]
        coded: list[tuple[Codec, Point]] = [(neural, ours), (best[1], best[0])]
        for codec, point in coded:
            frames = decoded_frames(Path(point.stream), codec, 1)
            frame = next(islice(frames, args.show, None))
            here = frame_psnr(source, frame, clip.bit_depth).weighted
            shown.append((codec.label, frame))
            print(
                f"{codec.label} at {point.setting:g}: {point.bytes} bytes, {point.kbps:.0f} "
                f"kbit/s, {point.psnr:.2f} dB over {point.frames} frames, {here:.2f} dB in this one"
            )
    x, y = (int(v) for v in args.part.split(","))
    width, height = clip.width // ZOOM, clip.height // ZOOM
    columns = []
    for _, frame in shown:
        image = rgb(to_png(frame, picture))
        part = image[y : y + height, x : x + width].repeat(ZOOM, 0).repeat(ZOOM, 1)
        line = np.full((GAP, clip.width, 3), 255, np.uint8)
        below = np.full((clip.height, clip.width, 3), 255, np.uint8)
        below[: part.shape[0], : part.shape[1]] = part
        columns += [np.concatenate([image, line, below]), None]
    gap = np.full((2 * clip.height + GAP, GAP, 3), 255, np.uint8)
    joined = np.concatenate([gap if c is None else c for c in columns[:-1]], axis=1)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    args.target.write_bytes(png(joined))


if __name__ == "__main__":
    main()
