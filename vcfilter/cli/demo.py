"""vcfilter demo: encode and decode the shipped clip, with figures."""

from __future__ import annotations

import argparse
import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from vcfilter.cli.arguments import add_loudness
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import QP_MAX
from vcfilter.options import DEFAULT_PRESET, PRESETS, EncoderOptions

if TYPE_CHECKING:
    from vcfilter.metrics import FramePsnr

CLIP = Path(__file__).resolve().parents[1] / "assets" / "demo.mp4"
CLIP_SECONDS = 10
DEFAULT_QP = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of demo to a parser."""
    parser.add_argument(
        "--out", default="demo_output", metavar="DIR", help="where the files go (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4, metavar="S",
        help=f"how much of the clip, up to {CLIP_SECONDS} (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--qp", type=int, default=DEFAULT_QP, metavar="N",
        help=f"quantiser parameter, 0 (finest) to {QP_MAX} (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--preset",
        default=DEFAULT_PRESET,
        choices=list(PRESETS),
        help="how much the encoder tries (%(default)s)",
    )
    add_loudness(parser)


def _source_stream(seconds: float) -> tuple[int, Fraction, int]:
    """(frames, frames per second, bytes) of the start of the shipped clip's video stream."""
    import av

    size = frames = 0
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or 30)
        for packet in container.demux(stream):
            ticks = Fraction(seconds) / (stream.time_base or 1)
            if packet.pts is not None and packet.pts < ticks:
                size += packet.size
                frames += 1
    return frames, rate, size


def _mean_psnr(neural: Path, frames: int) -> tuple[FramePsnr, float]:
    """(averages over frames per plane, seconds that decoding took)."""
    from vcfilter.evaluate.clips import frames_of, planes_of
    from vcfilter.metrics import FramePsnr, frame_psnr
    from vcfilter.stream.decoders import neural_frames

    start = time.perf_counter()
    decoded = list(neural_frames(str(neural)))
    seconds = time.perf_counter() - start
    if len(decoded) != frames:
        raise MediaError(f"{frames} frames were encoded, {len(decoded)} decoded")
    sources = (planes_of(frame) for frame in frames_of(CLIP, limit=frames))
    psnr = [frame_psnr(a, b) for a, b in zip(sources, decoded, strict=True)]
    y, u, v = (sum(getattr(p, plane) for p in psnr) / len(psnr) for plane in "yuv")
    return FramePsnr(y=y, u=u, v=v), seconds


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join(line.rstrip() for line in lines)


def _short(path: str) -> str:
    """A path from here where it lies below, else as it is."""
    here = f"{os.getcwd()}{os.sep}"
    return path.removeprefix(here)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out demo."""
    if not 0 < args.seconds <= CLIP_SECONDS:
        raise ConfigError(f"seconds {args.seconds:g} is outside 0 to {CLIP_SECONDS}")
    if not CLIP.exists():
        raise MediaError(f"the shipped clip {CLIP} is missing: install vcfilter anew")
    options = EncoderOptions(qp=args.qp, preset=args.preset)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out} cannot be made: {error.strerror}") from error
    target, playable = out / "demo.mkv", out / "demo_decoded.mp4"
    frames, rate, size = _source_stream(args.seconds)
    terminal.result(
        f"encoding {frames} frames of {CLIP.name} (352x288, {float(rate):g} frames/s, stereo)"
    )
    with terminal.working("loading"):
        from vcfilter.stream.transcode import decode_file, encode_file

        started = time.perf_counter()
        report = encode_file(
            str(CLIP), str(target), options, duration=args.seconds, overwrite=True,
            progress=terminal.progress,
        )  # fmt: skip
        encode_seconds = time.perf_counter() - started
    terminal.result("decoding, comparing with the source")
    with terminal.working("decoding"):
        psnr, decode_seconds = _mean_psnr(target, report.frames)
        decode_file(str(target), str(playable), overwrite=True)

    playing = report.frames / float(rate)
    rows = [
        ("", "source (H.264)", f"vcfilter qp {args.qp}"),
        ("video stream", f"{size / 1000:.1f} kB", f"{report.video_bytes / 1000:.1f} kB"),
        (
            "",
            f"{8 * size / playing / 1000:.0f} kbit/s",
            f"{8 * report.video_bytes / playing / 1000:.0f} kbit/s",
        ),
        ("file with audio", f"{CLIP.stat().st_size / 1000:.1f} kB, {CLIP_SECONDS} s",
         f"{target.stat().st_size / 1000:.1f} kB, {playing:.3g} s"),
        ("PSNR Y / U / V", "", f"{psnr.y:.2f} / {psnr.u:.2f} / {psnr.v:.2f} dB"),
        ("PSNR 6:1:1", "", f"{psnr.weighted:.2f} dB"),
        ("encoding", "", f"{report.frames / encode_seconds:.1f} frames/s"),
        ("decoding", "", f"{report.frames / decode_seconds:.1f} frames/s"),
    ]  # fmt: skip
    lines = ["", _table(rows), ""]
    command = f"{_short(sys.executable)} -m vcfilter"
    lines += [
        f"neural file:       {target}",
        f"  look inside:     ffprobe {target}",
        f"                   {command} info {target}",
        f"  play:            {command} decode {target} - -f nut | ffplay -",
        f"decoded, as H.264: {playable} (any player; coded at high quality)",
        f"source:            {_short(str(CLIP))}",
    ]
    terminal.result("\n".join(lines))
    return 0


COMMAND = Command(
    name="demo",
    help="encode and decode the clip that comes with the package, with figures",
    add_arguments=add_arguments,
    run=run,
)
