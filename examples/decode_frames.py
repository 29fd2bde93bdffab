"""Read a neural film as with PyAV: python examples/decode_frames.py film.mkv [seconds]"""

import sys

import vcfilter


def main(name: str, seconds: str = "0.2") -> None:
    with vcfilter.open(name) as container:
        stream = container.streams.video[0]
        print(f"{stream.width}x{stream.height} {stream.pix_fmt}, {stream.average_rate} frames/s")

        for frame in container.decode(video=0):  # av.VideoFrame
            luma = frame.to_ndarray()[: frame.height]
            print(f"{frame.time:.3f} s, mean luma {luma.mean():.1f}")

        # Seeking goes to a keyframe; frame_at decodes on to the frame that is shown then.
        container.seek(0)
        first = next(container.decode(video=0))
        shown = container.frame_at(float(seconds))
        print(
            f"first frame at {first.time:.3f} s, at {seconds} s frame {shown.time:.3f} s is shown"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
