"""Show a neural film in ffplay: python examples/stream_to_ffplay.py film.mkv [player command ...]

Pictures and sound go through one pipe, as a NUT stream of raw pictures and samples. Any program
that reads NUT from standard input can stand where ffplay stands.
"""

import subprocess
import sys
from contextlib import suppress
from fractions import Fraction

import av

import vcfilter

FFPLAY = ("ffplay", "-loglevel", "error", "-autoexit", "-f", "nut", "-")


def main(name: str, *player: str) -> None:
    with (
        subprocess.Popen(player or FFPLAY, stdin=subprocess.PIPE) as process,
        vcfilter.open(name) as film,
    ):
        shown = 0
        try:
            with av.open(process.stdin, "w", format="nut") as pipe:
                video = film.streams.video[0]
                pictures = pipe.add_stream("rawvideo", rate=video.average_rate or 25)
                pictures.width, pictures.height = video.width, video.height
                pictures.pix_fmt = video.pix_fmt
                pictures.codec_context.time_base = video.time_base
                sounds = None
                if film.streams.audio:
                    rate = film.streams.audio[0].sample_rate
                    sounds = pipe.add_stream("pcm_s16le", rate=rate, layout="stereo")
                    to_stereo = av.AudioResampler("s16", "stereo", rate)

                for frame in film.decode(video, *film.streams.audio[:1]):
                    if isinstance(frame, av.VideoFrame):
                        pipe.mux(pictures.encode(frame))
                        shown += 1
                    elif sounds is not None:
                        for samples in to_stereo.resample(frame):
                            samples.time_base = samples.time_base or Fraction(1, rate)
                            pipe.mux(sounds.encode(samples))
        except BrokenPipeError:  # the player was closed
            pass
        with suppress(BrokenPipeError):
            process.stdin.close()
    print(f"{shown} frames shown, the player ended with status {process.returncode}")


if __name__ == "__main__":
    main(*sys.argv[1:])
