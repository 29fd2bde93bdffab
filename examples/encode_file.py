"""Code a film neurally: python examples/encode_file.py film.mp4 film.mkv [crf]"""

import sys

import vcfilter


def main(source: str, target: str, crf: str = "32") -> None:
    report = vcfilter.encode_file(
        source,
        target,
        vcfilter.EncoderOptions(crf=int(crf), preset="fast"),
        overwrite=True,
        progress=lambda now: print(f"\r{now.frames} frames", end="", file=sys.stderr),
    )
    print(f"{report.frames} frames, {report.bitrate / 1000:.1f} kbit/s, PSNR {report.psnr:.2f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:])
