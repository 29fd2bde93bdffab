"""Write a neural film from NumPy pictures: python examples/write_frames.py out.mkv [frames]"""

import sys

import av
import numpy as np

import vcfilter


def main(name: str, frames: str = "24") -> None:
    y, x = np.mgrid[:96, :128]
    with vcfilter.open(name, "w") as container:
        container.metadata["title"] = "waves"
        stream = container.add_stream("vcfilter", rate=24, options={"qp": "28", "preset": "fast"})
        for index in range(int(frames)):
            wave = 127 + 100 * np.sin((x + 2 * index) / 9) * np.cos(y / 13)
            rgb = np.stack([wave, np.full_like(wave, 90), 255 - wave], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")  # pts: one frame per frame
            container.mux(stream.encode(frame))
        container.mux(stream.encode())  # None drains
    print(f"{stream.statistics.frames} frames, {stream.statistics.bytes} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
