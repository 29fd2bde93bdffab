"""Cut a neural film with the stock ffmpeg, no coding: python examples/cut_with_ffmpeg.py \
film.mkv piece.mkv start seconds"""

import subprocess
import sys

import vcfilter


def main(source: str, target: str, start: str = "0", seconds: str = "1") -> None:
    # As with any codec, -c copy begins at the keyframe before `start`.
    command = ["ffmpeg", "-v", "error", "-y", "-ss", start, "-i", source, "-t", seconds]
    subprocess.run([*command, "-map", "0", "-c", "copy", target], check=True)
    with vcfilter.open(target) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(video=0))
        print(f"{target}: {count} frames, {stream.dropped_frames} dropped at the end")


if __name__ == "__main__":
    main(*sys.argv[1:])
