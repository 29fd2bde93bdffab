"""FFmpeg's video filters between source and coder: scale, crop, fps, yadif and all others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from math import lcm
from typing import Any

import av.error
from av.filter import Graph
from av.video.frame import VideoFrame

from vcfilter._bridge import StreamInfo
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import FieldOrder, Frame, VideoFormat
from vcfilter.stream.decoders import FrameSource
from vcfilter.stream.hdr import write_hdr
from vcfilter.stream.pixels import PIXEL_FORMATS, FrameReader, to_video_frame
from vcfilter.stream.report import Log
from vcfilter.stream.source import reason_of
from vcfilter.stream.timestamps import nearest, rational

_CLOCK = 90_000
_FINEST = 1_000_000_000
_ASPECT_STEPS = 4096
_DEINTERLACERS = {"yadif", "bwdif", "w3fdif", "estdif", "kerndeint", "nnedi"}
_CHANGE_RATE = {
    "framerate", "minterpolate", "tinterlace", "telecine", "pullup", "decimate", "setpts",
}  # fmt: skip


def parse_chain(text: str) -> list[tuple[str, str]]:
    """(name, arguments) of each filter of a chain as ffmpeg's -vf takes it: "scale=640:-2,fps=25".

    Raises:
        ConfigError: it is empty, or uses labels or several chains.
    """
    parts = [""]
    quoted = escaped = False
    for char in text.strip():
        if char == "," and not quoted and not escaped:
            parts.append("")
            continue
        if char in "[];" and not quoted and not escaped:
            raise ConfigError(f"filter {text!r} is not one chain: labels are not taken")
        quoted ^= char == "'" and not escaped
        escaped = char == "\\" and not escaped
        parts[-1] += char
    chain = []
    for part in parts:
        name, _, arguments = part.strip().partition("=")
        name = name.split("@")[0]
        if not re.fullmatch(r"\w+", name):
            raise ConfigError(f"filter {text!r} is not understood; an example: scale=640:-2,fps=25")
        chain.append((name, arguments))
    return chain


class FilteredFrames:
    """The frames of a source, behind a chain of FFmpeg's filters.

    Args:
        source: brings the frames.
        text: the chain, as ffmpeg's -vf takes it. It sees frames as they are coded: before they
            are turned for display.
        log: where warnings go.

    Raises:
        ConfigError: the chain is not understood, or has an unknown filter or option.
    """

    def __init__(self, source: FrameSource, text: str, log: Log) -> None:
        self._source = source
        self._text = text
        self._chain = parse_chain(text)
        self._log = log
        self._reader: FrameReader | None = None
        self._graph: Graph | None = None
        finest = lcm(source.time_base.denominator, _CLOCK)
        self.time_base = Fraction(1, finest) if finest <= _FINEST else source.time_base
        for name, _ in self._chain:
            _check_filter(name)

    @property
    def frame_rate(self) -> Fraction | None:
        """That of a filter fps, else the source's; None where a filter makes it unknown."""
        rate = self._source.frame_rate
        for name, arguments in self._chain:
            if name == "fps":
                found = re.match(r"(?:fps=)?(\d+/\d+|\d+(?:\.\d+)?)(?::|$)", arguments)
                rate = Fraction(found.group(1)) if found else None
            elif name in _CHANGE_RATE or (
                name in _DEINTERLACERS and re.search(r"\b1\b|field", arguments)
            ):
                rate = None
        return rate

    @property
    def video_format(self) -> VideoFormat | None:
        return self._reader.video_format if self._reader else None

    @property
    def delay(self) -> int | None:
        """None: the filters may hold frames."""
        return None

    def frames(self) -> Iterator[Frame]:
        """The frames that come out, in display order."""
        for frame in self._source.frames():
            fmt = self._source.video_format
            assert fmt is not None
            av_frame = to_video_frame(frame, fmt, self._source.time_base)
            if self._graph is None:
                self._graph = self._configured(fmt, self._chain)
            yield from self._passed(av_frame, fmt)
        fmt = self._source.video_format
        if fmt is not None:
            yield from self._passed(None, fmt)

    def _passed(self, av_frame: VideoFrame | None, fmt: VideoFormat) -> Iterator[Frame]:
        graph: Any = self._graph
        try:
            graph.vpush(av_frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"filter {self._text!r} failed: {reason_of(error)}") from error
        while True:
            try:
                found: VideoFrame = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            except (av.error.FFmpegError, ValueError) as error:
                raise MediaError(f"filter {self._text!r} failed: {reason_of(error)}") from error
            if self._reader is None:
                self._reader = FrameReader(info=self._described(fmt), log=self._log)
            ratio = (rational(found.time_base) or self._source.time_base) / self.time_base
            yield self._reader.read(
                found, nearest((found.pts or 0) * ratio), nearest((found.duration or 0) * ratio)
            )

    def _configured(self, fmt: VideoFormat, chain: list[tuple[str, str]]) -> Graph:
        """A graph of these filters for frames of a format."""
        graph = Graph()
        num, den = fmt.sample_aspect_ratio
        base, rate = self._source.time_base, self._source.frame_rate
        options = {
            "video_size": f"{fmt.width}x{fmt.height}",
            "pix_fmt": PIXEL_FORMATS[fmt.bit_depth],
            "time_base": f"{base.numerator}/{base.denominator}",
            "pixel_aspect": f"{num or 1}/{den if num else 1}",
            "colorspace": str(fmt.colorspace),
            "range": str(fmt.color_range),
        }
        if rate:
            options["frame_rate"] = f"{rate.numerator}/{rate.denominator}"
        try:
            nodes = [graph.add("buffer", ":".join(f"{k}={v}" for k, v in options.items()))]
            nodes += [graph.add(name, arguments or None) for name, arguments in chain]
            nodes.append(graph.add("buffersink"))
            graph.link_nodes(*nodes).configure()
        except (av.error.FFmpegError, ValueError, TypeError) as error:
            raise ConfigError(f"filter {self._text!r} is refused: {reason_of(error)}") from error
        return graph

    def _described(self, fmt: VideoFormat) -> StreamInfo:
        """What is not told by the frames that come out."""
        order = fmt.field_order
        if any(name in _DEINTERLACERS for name, _ in self._chain):
            order = FieldOrder.PROGRESSIVE
        return StreamInfo(
            kind="video",
            sample_aspect_ratio=self._aspect(fmt),
            chroma_location=fmt.chroma_location,
            rotation=fmt.rotation,
            mirrored=fmt.mirrored,
            field_order=int(order),
            side_data=write_hdr(fmt),
        )

    def _aspect(self, fmt: VideoFormat) -> Fraction | None:
        """The sample aspect ratio behind the filters, which PyAV's frames do not tell.

        A filter more makes it the width of a frame of its own.
        """
        if not fmt.sample_aspect_ratio[0] and not any(n.startswith("set") for n, _ in self._chain):
            return None
        tell = ("scale", f"w='clip(trunc({_ASPECT_STEPS}*sar+0.5),1,{16 * _ASPECT_STEPS})':h=2")
        graph = self._configured(fmt, [*self._chain, tell])
        black = VideoFrame(fmt.width, fmt.height, PIXEL_FORMATS[fmt.bit_depth])
        for index in range(65):  # some filters hold frames back, some until the end
            black.pts, black.time_base = index, self._source.time_base
            graph.vpush(black if index < 64 else None)
            try:
                found = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                continue
            return Fraction(found.width, _ASPECT_STEPS).limit_denominator(255)
        return None


def _check_filter(name: str) -> None:
    """Raise ConfigError unless FFmpeg has a video filter of that name."""
    if name not in av.filter.filters_available:
        raise ConfigError(f"filter {name!r} is unknown")
