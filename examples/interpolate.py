"""Twice as many frames per second: python examples/interpolate.py film.mp4 smooth.mkv [factor]"""

import sys

import av

import vcfilter


def main(source: str, target: str, factor: str = "2") -> None:
    with av.open(source) as film, av.open(target, "w") as result:
        stream = film.streams.video[0]
        output = result.add_stream("libx264", rate=stream.average_rate * int(factor))
        output.width, output.height, output.pix_fmt = stream.width, stream.height, "yuv420p"
        count = 0
        for frame in vcfilter.interpolate(film.decode(stream), factor=int(factor)):
            frame.pict_type = 0  # the encoder chooses
            result.mux(output.encode(frame))
            count += 1
        result.mux(output.encode(None))
    print(f"{count} frames")


if __name__ == "__main__":
    main(*sys.argv[1:])
