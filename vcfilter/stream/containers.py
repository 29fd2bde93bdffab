"""FFmpeg's containers in one table, and opening them for reading and writing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path as FilePath
from typing import Any, TypeAlias

from vcfilter._bridge import Demuxer, Muxer, StreamInfo, can_write, supports
from vcfilter.bitstream import MAGIC, VERSION
from vcfilter.errors import ConfigError

Path: TypeAlias = str | os.PathLike[str]

PIPE = "-"
"""The name of standard input and output."""
MATROSKA = "matroska"
AVI = "avi"
Y4M = "yuv4mpegpipe"

_MILLISECOND = Fraction(1, 1000)
_TS_CLOCK = Fraction(1, 90000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One of FFmpeg's containers.

    Args:
        name: FFmpeg's name of the muxer.
        extensions: of file names, the usual one first.
        neural: whether it keeps a VCF1 track.
        encoder, options: what decoded frames are coded with when nothing is asked for; an empty
            name takes x264 at crf 18.
        tick: the clock that the muxer rounds times to; None where it keeps each time exactly.
        constant_rate: times are numbers of frames.
        video_only: it holds one video stream and nothing else.
        one_audio: it holds one audio stream at most.
        codecs: what it holds, by kind of stream, where libavformat would write more than players
            can read; other kinds are asked of libavformat.
    """

    name: str
    extensions: tuple[str, ...] = ()
    neural: bool = False
    encoder: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    tick: Fraction | None = None
    constant_rate: bool = False
    video_only: bool = False
    one_audio: bool = False
    codecs: Mapping[str, frozenset[str]] = field(default_factory=dict)


_TS_CODECS = {
    "audio": frozenset(("mp1", "mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd",
                        "opus", "s302m")),
    "subtitle": frozenset(("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle",
                           "hdmv_text_subtitle", "arib_caption")),
}  # fmt: skip

CONTAINERS: Mapping[str, Container] = {
    each.name: each
    for each in (
        Container(
            name=MATROSKA, extensions=(".mkv", ".mk3d", ".mka"), neural=True, tick=_MILLISECOND
        ),
        Container(name="nut", extensions=(".nut",), neural=True, encoder="rawvideo"),
        Container(
            name=AVI,
            extensions=(".avi",),
            neural=True,
            encoder="mpeg4",
            options={"flags": "+qscale", "global_quality": "236"},
            constant_rate=True,
        ),
        Container(name="mov", extensions=(".mov",), neural=True),
        Container(name="mp4", extensions=(".mp4", ".m4v")),
        Container(
            name="webm",
            extensions=(".webm",),
            encoder="libvpx-vp9",
            options={"row-mt": "1"},
            tick=_MILLISECOND,
        ),
        Container(
            name="mpegts", extensions=(".ts", ".mts", ".m2ts"), tick=_TS_CLOCK, codecs=_TS_CODECS
        ),
        Container(name="flv", extensions=(".flv",), tick=_MILLISECOND, one_audio=True),
        Container(
            name="mpeg",
            extensions=(".mpg", ".mpeg", ".vob"),
            encoder="mpeg2video",
            options={"b": "20000000"},
            constant_rate=True,
        ),
        Container(name="ogg", extensions=(".ogv", ".ogg"), encoder="libvpx"),
        Container(name="mxf", extensions=(".mxf",), constant_rate=True),
        Container(name="gif", extensions=(".gif",), encoder="gif", video_only=True),
        Container(name="asf", extensions=(".wmv",), tick=_MILLISECOND),
        Container(name="h264", extensions=(".h264", ".264"), video_only=True),
        Container(
            name="hevc", extensions=(".h265", ".hevc", ".265"), encoder="libx265", video_only=True
        ),
        Container(name="mjpeg", extensions=(".mjpeg", ".mjpg"), encoder="mjpeg", video_only=True),
        Container(
            name="mpeg2video",
            extensions=(".m2v",),
            encoder="mpeg2video",
            options={"b": "20000000"},
            constant_rate=True,
            video_only=True,
        ),
        Container(
            name="ivf",
            extensions=(".ivf",),
            encoder="libvpx-vp9",
            options={"row-mt": "1"},
            video_only=True,
        ),
        Container(name="rawvideo", extensions=(".yuv",), encoder="rawvideo", video_only=True),
        Container(name=Y4M, extensions=(".y4m",), video_only=True),
    )
}
"""The containers that have an extension here; -f chooses any other that FFmpeg writes."""

NEURAL_CONTAINERS = tuple(each.name for each in CONTAINERS.values() if each.neural)
"""Containers that keep a VCF1 track."""

_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

_CRASHES = ("apng",)
"""Muxers that end the process where a packet does not bring what FFmpeg's own program gives it."""

_BY_EXTENSION = {
    extension: each.name for each in CONTAINERS.values() for extension in each.extensions
}


def is_video_name(name: str) -> bool:
    """Whether a file in a folder looks like a video: by its extension, and it is not hidden."""
    extension = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and extension in _BY_EXTENSION and extension not in (".yuv",)


def container_named(name: str) -> Container:
    """The table's entry; of a container that is not in it, one that says nothing special."""
    return CONTAINERS.get(name) or Container(name=name)


def container_of(target: Path, chosen: str | None, default: str) -> str:
    """FFmpeg's name of the target's container.

    Args:
        target: path, or "-".
        chosen: given by the user; goes before the extension.
        default: for a pipe and for names without extension.

    Raises:
        ConfigError: the extension or the name is unknown.
    """
    if chosen is not None:
        name = _BY_EXTENSION.get(f".{chosen}", chosen)
        if name in CONTAINERS or (can_write(name) and name not in _CRASHES):
            return name
        raise ConfigError(f"-f {chosen} is no container that FFmpeg writes")
    text = path_of("target", target)
    suffix = FilePath(text).suffix.lower()
    if text == PIPE or not suffix:
        return default
    if suffix in _IMAGES:
        raise ConfigError(
            f"{text} names one image; {FilePath(text).stem}_%04d.png names one per frame"
        )
    found = _BY_EXTENSION.get(suffix) or _guessed(suffix)
    if found is None:
        raise ConfigError(
            f"the extension of {text} names no container that is known; give another, or -f FORMAT"
        )
    return found


def _guessed(suffix: str) -> str | None:
    """FFmpeg's name of the container that has an extension, where the table has none."""
    from av.format import ContainerFormat, formats_available

    for name in sorted(formats_available):
        try:
            extensions = ContainerFormat(name, "w").extensions
        except ValueError:  # it is only read
            continue
        if suffix[1:] in extensions and can_write(name) and name not in _CRASHES:
            return name
    return None


def check_kind(
    name: str, value: object, kind: type | tuple[type, ...], wanted: str, *, none: bool = True
) -> None:
    """Raise ConfigError unless an argument is of a kind; None passes where it may be left out."""
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is int)
    if not (fits or (none and value is None)):
        raise ConfigError(f"{name} {value!r} is not {wanted}")


def path_of(name: str, value: object) -> str:
    """A path as text.

    Raises:
        ConfigError: it is none.
    """
    check_kind(name, value, (str, os.PathLike), "a path", none=False)
    text = os.fspath(value)  # type: ignore[call-overload]
    check_kind(name, text, str, "a path of characters", none=False)
    return str(text)


def need_neural(target: Path, container: str) -> None:
    """Raise ConfigError unless the container keeps a VCF1 track."""
    if container not in NEURAL_CONTAINERS:
        raise ConfigError(
            f"{os.fspath(target)}: {container} cannot hold a neural stream; give .mkv (or .nut, "
            ".avi, .mov)"
        )


def holds(container: str, info: StreamInfo) -> bool:
    """Whether a container can hold a stream so that players find it."""
    known = container_named(container)
    if known.video_only and info.kind != "video":
        return False
    if info.kind in known.codecs and info.codec not in known.codecs[info.kind]:
        return False
    return supports(container, info)


def open_demuxer(file: Any, format: str | None = None) -> Demuxer:
    """A demuxer for a path or binary file object; packets without a pts get one.

    Raises:
        BridgeError: it cannot be read, or is no media file.
    """
    options = {"fflags": "+genpts"}
    if format is None and hasattr(file, "peek") and not file.seekable():
        format = _live_format(file.peek(_HEAD_BYTES))
        if format is not None:
            options["probesize"] = "32"
    return Demuxer(file, format, options)


def _live_format(head: bytes) -> str | None:
    """The container of a neural stream without delay that comes through a pipe, by its first bytes.

    FFmpeg would wait for seconds of packets that may not be there yet, to learn what the headers
    of these containers tell.
    """
    place = head.find(MAGIC + bytes([VERSION]))
    delay = place + len(MAGIC) + _REORDER_OFFSET
    if place < 0 or delay >= len(head) or head[delay]:
        return None
    return next((name for start, name in _STARTS.items() if head.startswith(start)), None)


_HEAD_BYTES = 4096
_REORDER_OFFSET = 20
"""In the body of a sequence header."""
_STARTS = {b"nut/multimedia container\0": "nut", b"\x1aE\xdf\xa3": MATROSKA}


def open_muxer(file: Any, container: str) -> Muxer:
    """A muxer for a path or binary file object and a container's name."""
    return Muxer(file, container)
