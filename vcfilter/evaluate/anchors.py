"""The codecs to compare with: libx264, libx265 and libsvtav1 as PyAV's wheel ships them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
from av.bitstream import BitStreamFilterContext
from av.video.stream import VideoStream

from vcfilter.errors import ConfigError, MediaError
from vcfilter.evaluate.clips import Clip, frames_of
from vcfilter.stream.scheduling import scheduling_kept

_X26X_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast",
    "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip

PRESETS: dict[str, tuple[str, ...]] = {
    "libx264": _X26X_PRESETS,
    "libx265": _X26X_PRESETS,
    "libsvtav1": tuple(str(p) for p in range(14)),
}
DEFAULT_PRESET = {"libx264": "medium", "libx265": "medium", "libsvtav1": "8"}

CRF: dict[str, tuple[float, ...]] = {
    "libx264": (14, 18, 22, 26, 30, 34, 38, 42),
    "libx265": (14, 18, 22, 26, 30, 34, 38, 42),
    "libsvtav1": (8, 16, 24, 32, 40, 48, 56, 63),
}
"""Points per codec: wide enough that any other codec's four points fall inside the curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One codec to compare with.

    Args:
        codec: libx264, libx265 or libsvtav1.
        preset: the codec's own name or number of it.
        extra: further options of the codec, (name, value) each; none by default.
        crf: constant rate factors, one point each.

    Raises:
        ConfigError: unknown codec or preset, no points.
    """

    codec: str
    preset: str
    extra: tuple[tuple[str, str], ...] = ()
    crf: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.codec not in PRESETS:
            raise ConfigError(f"codec {self.codec!r} is not one of {', '.join(PRESETS)}")
        if self.preset not in PRESETS[self.codec]:
            allowed = ", ".join(PRESETS[self.codec])
            raise ConfigError(f"preset {self.preset!r} of {self.codec} is not one of {allowed}")
        if not self.crf:
            raise ConfigError(f"{self.codec} has no crf to run at")

    @property
    def label(self) -> str:
        """What reports call it: "libx264 medium"."""
        return " ".join([self.codec, self.preset, *(f"{k}={v}" for k, v in self.extra)])


def parse_anchor(text: str) -> Anchor:
    """Anchor from CODEC[:PRESET][:NAME=VALUE...]; crf=20/26/32 sets its points.

    Raises:
        ConfigError: the text does not name a known codec and preset.
    """
    codec, *parts = text.split(":")
    preset = DEFAULT_PRESET.get(codec, "")
    if parts and "=" not in parts[0]:
        preset = parts.pop(0)
    extra: list[tuple[str, str]] = []
    crf = CRF.get(codec, (0.0,))
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{part!r} in {text!r} is not NAME=VALUE")
        if name == "crf":
            try:
                crf = tuple(float(v) for v in value.split("/"))
            except ValueError:
                raise ConfigError(f"crf {value!r} is not numbers joined by '/'") from None
        else:
            extra.append((name, value))
    return Anchor(codec=codec, preset=preset, extra=tuple(extra), crf=crf)


def _options(anchor: Anchor, crf: float, threads: int) -> dict[str, str]:
    options = {"preset": anchor.preset, "crf": f"{crf:g}"}
    if anchor.codec == "libx265":
        # info=0: no text about the encoder in the stream, which would cost short clips dearly.
        pools = f":pools={threads}:frame-threads=1" if threads else ""
        options["x265-params"] = f"log-level=error:info=0{pools}"
    elif anchor.codec == "libsvtav1" and threads:
        options["svtav1-params"] = f"lp={threads}"
    return options | dict(anchor.extra)


def encode(
    clip: Clip, anchor: Anchor, crf: float, keyint: int, target: Path, threads: int = 1
) -> float:
    """Encode a clip into a Matroska file and return the seconds that encoding took.

    Everything is the codec's default but preset, crf, largest keyframe interval and threads;
    B-frames, scene cuts and open groups of frames are as the codec has them. Only encoding and
    muxing are timed, not reading the source.

    Raises:
        MediaError: the codec is missing in this build of PyAV or refuses the clip.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    elapsed = 0.0
    try:
        with av.open(str(target), "w", format="matroska") as output:
            stream = cast(VideoStream, output.add_stream(anchor.codec, rate=clip.rate))
            context = stream.codec_context
            stream.width, stream.height = clip.width, clip.height
            stream.pix_fmt = "yuv420p" if clip.bit_depth == 8 else "yuv420p10le"
            if keyint:  # otherwise the codec's own
                context.gop_size = keyint
            context.thread_count = threads
            context.time_base = 1 / Fraction(clip.rate)
            stream.options = dict[str, object](_options(anchor, crf, threads))
            strip = None
            if anchor.codec == "libx264":
                # The same for x264's text of 700 bytes in the first packet.
                strip = BitStreamFilterContext("filter_units=remove_types=6", "h264")
            for frame in frames_of(clip.path):
                if not elapsed:
                    context.color_primaries = frame.color_primaries
                    context.color_trc = frame.color_trc
                    context.colorspace = frame.colorspace
                    context.color_range = frame.color_range
                frame.pict_type = 0
                start = time.perf_counter()
                with scheduling_kept():  # the first frame opens the encoder
                    packets = stream.encode(frame)
                for packet in packets:
                    output.mux(strip.filter(packet) if strip else packet)
                elapsed += time.perf_counter() - start
            start = time.perf_counter()
            for packet in stream.encode(None):
                output.mux(strip.filter(packet) if strip else packet)
            elapsed += time.perf_counter() - start
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{anchor.label} cannot encode {clip.name}: {error}") from error
    return elapsed
