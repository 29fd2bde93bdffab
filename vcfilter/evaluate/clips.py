"""Clips as the evaluation sees them: 4:2:0 planes, one lossless copy per clip in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame

from vcfilter.errors import MediaError
from vcfilter.frames import Frame
from vcfilter.stream.pixels import read_plane

NATIVE = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}
"""Pixel formats whose planes are compared as they are, with their bit depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One prepared clip.

    Args:
        name: what reports call it.
        key: sha256 over the source file's bytes and the number of frames taken (hex).
        path: lossless FFV1 copy with exactly the frames and planes that are compared.
        width, height: in luma samples.
        bit_depth: 8 or 10.
        frames: how many.
        rate: frames per second.
        converted_from: pixel format of the source where it was not 4:2:0 of 8 or 10 bit, else "".
    """

    name: str
    key: str
    path: str
    width: int
    height: int
    bit_depth: int
    frames: int
    rate: Fraction
    converted_from: str

    @property
    def seconds(self) -> float:
        """Playing time."""
        return self.frames / float(self.rate)


def planes_of(frame: VideoFrame) -> Frame:
    """Planes of a decoded 4:2:0 frame of 8 or 10 bit, copied.

    Raises:
        MediaError: another pixel format.
    """
    if frame.format.name not in NATIVE:
        raise MediaError(f"decoded frames are {frame.format.name}, not 4:2:0 of 8 or 10 bit")
    dtype = np.uint8 if NATIVE[frame.format.name] == 8 else np.uint16
    y, u, v = (read_plane(frame, index, dtype) for index in range(3))
    return Frame(y=y, u=u, v=v, pts=frame.pts or 0)


def frames_of(path: str | Path, threads: int = 1, limit: int | None = None) -> Iterator[VideoFrame]:
    """Decoded frames of a file's first video stream.

    Raises:
        MediaError: it cannot be opened, has no video stream or cannot be decoded.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            for count, frame in enumerate(container.decode(stream)):
                if limit is not None and count >= limit:
                    return
                yield frame
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{path} cannot be read: {error}") from error


def file_key(path: Path, frames: int | None) -> str:
    """Sha256 over a file's bytes and the number of frames that are taken, as hex."""
    digest = hashlib.sha256(f"frames {frames} ".encode())
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees all of it or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def cache_folder(cache: Path, name: str) -> Path:
    """A folder of the cache, made when missing; others may not write what results come from."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = cache / name
    folder.mkdir(exist_ok=True)
    return folder


def prepare(path: str | Path, cache: Path, frames: int | None = None) -> Clip:
    """Make (or find in the cache) the lossless copy of a clip that all codecs get.

    Frames that are not 4:2:0 of 8 or 10 bit are converted once, here, so that every codec is
    given the same planes; times are counted in frames (a variable rate is evened out).

    Args:
        path: any file that FFmpeg reads.
        cache: the evaluation's cache directory; made when missing.
        frames: take only so many from the start; None takes all.

    Raises:
        MediaError: the file cannot be read or holds no video.
    """
    source = Path(path)
    key = file_key(source, frames)
    folder = cache_folder(cache, "clips")
    card, copy = folder / f"{key}.json", folder / f"{key}.mkv"
    if card.exists() and copy.exists():
        try:
            known: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
            known["rate"] = Fraction(known["rate"])
            return Clip(**known | {"name": source.stem, "path": str(copy)})
        except (ValueError, KeyError, TypeError):
            pass  # damaged or of another version: made again
    partial = copy.with_suffix(f".{os.getpid()}.part.mkv")
    try:
        clip = _copy(source, partial, key, frames)
        os.replace(partial, copy)
    except av.error.FFmpegError as error:
        raise MediaError(f"{source} cannot be read: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    clip = replace(clip, path=str(copy))
    write_atomically(card, json.dumps(asdict(clip) | {"rate": str(clip.rate)}))
    return clip


def _copy(source: Path, target: Path, key: str, limit: int | None) -> Clip:
    with av.open(str(source)) as probe:
        if not probe.streams.video:
            raise MediaError(f"{source} has no video stream")
        rate = Fraction(probe.streams.video[0].average_rate or 25)
    count, found, wanted = 0, "", ""
    with av.open(str(target), "w") as output:
        stream = output.add_stream("ffv1", rate=rate)
        context = stream.codec_context
        for frame in frames_of(source, limit=limit):
            if not count:
                found = frame.format.name
                deep = any(c.bits > 8 for c in frame.format.components)
                wanted = found if found in NATIVE else "yuv420p10le" if deep else "yuv420p"
                stored = "yuv420p" if wanted == "yuvj420p" else wanted
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = stored
                context.color_primaries = frame.color_primaries
                context.color_trc = frame.color_trc
                context.colorspace = frame.colorspace
                context.color_range = frame.color_range
                width, height = frame.width, frame.height
            if (frame.width, frame.height) != (width, height):
                raise MediaError(f"{source} changes its size after {count} frames")
            if frame.format.name != stored and found not in NATIVE:
                frame = frame.reformat(format=stored)
            frame.pts, frame.time_base = count, 1 / rate
            output.mux(stream.encode(frame))
            count += 1
        if count:
            output.mux(stream.encode(None))
    if not count:
        raise MediaError(f"{source} holds no frame")
    return Clip(
        name=source.stem,
        key=key,
        path=str(target),
        width=width,
        height=height,
        bit_depth=NATIVE[wanted],
        frames=count,
        rate=rate,
        converted_from="" if found in NATIVE else found,
    )
