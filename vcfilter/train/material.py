"""What lies in the user's folders: videos, folders of frames, packed shards; decoded once.

Everything becomes arrays of 4:2:0 planes in a cache, memory-mapped from there:

    KEY.json     {"arrays": [{"file", "frames", "rows", "columns", "shots"}, ...]}
    KEY.0.yuv    frames one after the other, each Y above U and V, uint8

KEY is a hash over the paths, sizes and times of the files. The index is written last, so an
array without one was never finished.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from vcfilter.codec.scenecut import SceneCutDetector, thumbnail
from vcfilter.errors import MediaError, reason_of
from vcfilter.frames import plane_rows
from vcfilter.train.data import Clip

Frames = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = {
    *(".mkv", ".mp4", ".mov", ".avi", ".webm", ".y4m", ".m4v", ".ts", ".m2ts", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".mxf", ".nut", ".ogv", ".3gp"),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
NUMBERED = re.compile(r"(.*?)(\d+)")  # of a file's stem
SHARD_INDEX = "index.tsv"  # one row per clip, with at least the columns shard and clip
VIMEO_TRAINING = "sep_trainlist.txt"  # Vimeo-90k's own list: its other septuplets are for tests
RUN_IMAGES = 2000  # images per array of the cache, unless one run of them is longer
LEAST_SIDE = 32  # smaller frames hold no crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What becomes one entry of the cache.

    Args:
        runs: one video file, or runs of images that follow each other.
        video: which of the two.
        clips: number of equally long clips that a packed shard's index tells of; 0: no index.
    """

    runs: tuple[tuple[Path, ...], ...]
    video: bool
    clips: int = 0

    @property
    def name(self) -> str:
        """What to call it in a message."""
        first = self.runs[0][0]
        return str(first if self.video else first.parent)

    def key(self) -> str:
        """16 hexadecimal digits that change with any of its files."""
        digest = hashlib.sha256(f"3 {self.clips}".encode())  # 3: version of layout and cuts
        for path in (p for run in self.runs for p in run):
            stat = path.stat()
            digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def gather(folders: Iterable[str], cache: str | Path, say: Callable[[str], None]) -> list[Clip]:
    """All material of some folders, decoded into the cache or found there.

    Args:
        folders: searched with everything below them. cache: a folder, made if missing.
        say: told what is decoded, and which files were left out since they cannot be read.

    Raises:
        MediaError: a folder does not exist or holds nothing usable; the cache cannot be written.
    """
    clips: list[Clip] = []
    for folder in folders:
        found: list[Clip] = []
        for source in sources(Path(folder)):
            try:
                found += open_source(source, Path(cache), say)
            except UnreadableError as error:
                say(f"left out: {error}")
        if not found:
            raise MediaError(f"nothing in {folder!r} can be read as a video or as images")
        clips += found
    return clips


class UnreadableError(MediaError):
    """One source cannot be decoded; the others may."""


def sources(folder: Path) -> list[Source]:
    """Videos, packed shards and runs of images below a folder, in a fixed order.

    Raises:
        MediaError: there are none.
    """
    if not folder.is_dir():
        raise MediaError(f"{str(folder)!r} is not a folder")
    allowed = vimeo_training(folder)
    videos: list[Source] = []
    runs: list[tuple[Path, ...]] = []
    for place, below, names in os.walk(folder):
        here = Path(place)
        below[:] = sorted(d for d in below if not degraded(d, below) and not d.startswith("."))
        shards = shard_clips(here / SHARD_INDEX) if SHARD_INDEX in names else {}
        paths = [here / name for name in sorted(names) if not name.startswith(".")]
        for path in paths:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                clips = shards.get(path.stem, 0)
                videos.append(Source(runs=((path,),), video=True, clips=clips))
        if allowed is None or here in allowed:
            runs += runs_of(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES)
    found = [*videos, *packed_runs(runs)]
    if not found:
        raise MediaError(f"no video files and no images in {str(folder)!r}")
    return found


def degraded(name: str, beside: list[str]) -> bool:
    """Whether a folder is a blurred, shrunk or compressed copy of another beside it, as in REDS."""
    sharp = re.sub(r"_(bicubic|comp|jpeg)$", "", name.replace("_blur", "_sharp"))
    return sharp != name and sharp in beside


def vimeo_training(folder: Path) -> set[Path] | None:
    """The folders that Vimeo-90k's list of training septuplets names; None without a list."""
    path = folder / VIMEO_TRAINING
    if not path.is_file():
        return None
    return {folder / "sequences" / line.strip() for line in path.read_text().splitlines() if line}


def shard_clips(index: Path) -> dict[str, int]:
    """How many clips each shard holds, by the shard's name without suffix."""
    counts: dict[str, int] = {}
    with index.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        if not {"shard", "clip"} <= set(rows.fieldnames or ()):
            return {}
        for row in rows:
            name = Path(row["shard"]).stem
            counts[name] = counts.get(name, 0) + 1
    return counts


def runs_of(images: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Images of one folder as runs of frames: im1, im2 ... im10; 00000000, 00000001 ...

    Those without a number are shots of their own.
    """
    numbered: dict[str, list[tuple[int, Path]]] = {}
    alone: list[tuple[Path, ...]] = []
    for path in images:
        match = NUMBERED.fullmatch(path.stem)
        if match:
            numbered.setdefault(match[1], []).append((int(match[2]), path))
        else:
            alone.append((path,))
    return [*(tuple(p for _, p in sorted(numbered[k])) for k in sorted(numbered)), *alone]


def packed_runs(runs: list[tuple[Path, ...]]) -> Iterator[Source]:
    """Short runs whose folders lie side by side, put into common arrays."""
    pack: list[tuple[Path, ...]] = []
    for run in runs:
        apart = pack and run[0].parent.parent != pack[0][0].parent.parent
        if pack and (apart or sum(map(len, pack)) + len(run) > RUN_IMAGES):
            yield Source(runs=tuple(pack), video=False)
            pack = []
        pack.append(run)
    if pack:
        yield Source(runs=tuple(pack), video=False)


def open_source(source: Source, cache: Path, say: Callable[[str], None]) -> list[Clip]:
    """The arrays of a source, decoded into the cache unless they are there.

    Raises:
        UnreadableError: it cannot be decoded. MediaError: the cache cannot be written.
    """
    key = source.key()
    index = cache / f"{key}.json"
    if not index.exists():
        say(f"decoding {source.name}")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            decode(source, index)
        except UnreadableError:
            raise
        except OSError as error:
            raise MediaError(f"the cache {str(cache)!r} cannot be written: {error}") from error
    clips = []
    for array in json.loads(index.read_text())["arrays"]:
        shape = (array["frames"], array["rows"] * 3 // 2, array["columns"])
        # Copy on write: PyTorch wants writable memory, and nothing ever reaches the file.
        frames = np.memmap(cache / array["file"], np.uint8, "c", shape=shape)
        clips.append(Clip(frames, array["shots"], key))
    return clips


class ShardWriter:
    """An array of the cache while it is written: all frames of one size, and where shots begin."""

    def __init__(self, file: BinaryIO, rows: int, columns: int) -> None:
        self.file, self.rows, self.columns = file, rows, columns
        self.frames = 0
        self.shots: list[int] = []
        self.keys: list[int] = []
        self._cuts = SceneCutDetector()

    def add(self, frame: Frames, key: bool, first: bool) -> None:
        """Append a frame; first: it surely begins a shot."""
        if first or not self.frames:
            self._cuts = SceneCutDetector()
        # What follows is not known yet: a flash begins a shot, too.
        cut = self._cuts.is_cut(thumbnail(frame[: self.rows], 8), None)
        if first or not self.frames or cut:
            self.shots.append(self.frames)
        if key:
            self.keys.append(self.frames)
        self.file.write(frame.tobytes())
        self.frames += 1

    def all_shots(self, clips: int) -> list[int]:
        """Where shots begin: by the shard's index, by keyframes that are cuts, by what is seen."""
        if clips and self.frames % clips == 0:
            return list(range(0, self.frames, self.frames // clips))
        gaps = set(np.diff(self.keys).tolist())
        cuts = set(self.shots)
        if (
            len(self.keys) > 2
            and len(gaps) == 1
            and 2 * len(cuts & set(self.keys)) > len(self.keys)
        ):
            cuts |= set(self.keys)  # clips of one length, packed without an index
        return sorted(cuts)


def decode(source: Source, index: Path) -> None:
    """Write a source's arrays, then their index.

    Raises:
        UnreadableError: nothing of it can be decoded.
    """
    arrays: dict[tuple[int, int], ShardWriter] = {}
    parts: list[Path] = []
    try:
        last: tuple[int, int] | None = None
        for frame, key, first in frames_of(source):
            size = frame.shape[0] * 2 // 3, frame.shape[1]
            if min(size) < LEAST_SIDE:
                continue
            if size not in arrays:
                parts.append(index.with_suffix(f".{len(arrays)}.{os.getpid()}.part"))
                arrays[size] = ShardWriter(parts[-1].open("wb"), *size)
            arrays[size].add(frame, key, first or size != last)
            last = size
        entries = []
        for number, (array, part) in enumerate(zip(arrays.values(), parts, strict=True)):
            array.file.close()
            target = index.with_suffix(f".{number}.yuv")
            part.replace(target)
            entries.append(
                {
                    "file": target.name,
                    "frames": array.frames,
                    "rows": array.rows,
                    "columns": array.columns,
                    "shots": array.all_shots(source.clips),
                }
            )
    finally:
        for array in arrays.values():
            array.file.close()
        for part in parts:
            part.unlink(missing_ok=True)
    if not entries:
        raise UnreadableError(f"{source.name!r} holds no frame of {LEAST_SIDE}x{LEAST_SIDE}")
    part = index.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"source": source.name, "arrays": entries}))
    part.replace(index)


def frames_of(source: Source) -> Iterator[tuple[Frames, bool, bool]]:
    """(planes as one array, keyframe, first of its run) of each frame.

    Raises:
        UnreadableError: a file cannot be decoded.
    """
    if source.video:
        yield from video_frames(source.runs[0][0])
        return
    for run in source.runs:
        for number, path in enumerate(run):
            bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if bgr is None:
                raise UnreadableError(f"{str(path)!r} cannot be decoded")
            frame = av.VideoFrame.from_ndarray(np.asarray(bgr, np.uint8), format="bgr24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            yield planes(frame), False, number == 0


def video_frames(path: Path) -> Iterator[tuple[Frames, bool, bool]]:
    """The same of a video file's main video stream."""
    number = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")  # covers are streams as well
            if not isinstance(stream, VideoStream):
                raise ValueError("it has no video stream")
            stream.thread_type = "AUTO"
            width, height = stream.width, stream.height
            for frame in container.decode(stream):
                same = frame.reformat(width=width, height=height, format="yuv420p")
                yield planes(same), bool(frame.key_frame), number == 0
                number += 1
    except (av.FFmpegError, ValueError) as error:
        if number == 0:
            raise UnreadableError(f"{str(path)!r} cannot be decoded: {reason_of(error)}") from error
    if number == 0:
        raise UnreadableError(f"{str(path)!r} has no frames")


def planes(frame: av.VideoFrame) -> Frames:
    """(rows * 3 / 2, columns) uint8 of a yuv420p frame, cut to an even size."""
    rows, columns = frame.height // 2 * 2, frame.width // 2 * 2
    whole = np.empty((rows * 3 // 2, columns), np.uint8)
    luma, *parts = (plane_rows(plane, np.uint8) for plane in frame.planes)
    whole[:rows] = luma[:rows, :columns]
    chroma = [part[: rows // 2, : columns // 2].reshape(-1) for part in parts]
    whole[rows:].reshape(-1)[:] = np.concatenate(chroma)
    return whole
