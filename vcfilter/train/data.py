"""Training material: video files decoded once into memory-mapped 4:2:0 planes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from vcfilter.errors import ConfigError, MediaError

VIDEO_SUFFIXES = {".mkv", ".mp4", ".mov", ".avi", ".webm", ".y4m", ".m4v", ".ts", ".mpg"}
Planes = tuple[Tensor, Tensor, Tensor]
Frames = npt.NDArray[np.uint8]


class Clip:
    """Consecutive frames of one size: (frames, rows * 3 / 2, columns) uint8, Y above U and V."""

    def __init__(self, frames: Frames, shots: list[int]) -> None:
        self.frames = frames
        self.shots = shots  # indices of frames at which a new shot begins, 0 first
        self.rows, self.columns = frames.shape[1] * 2 // 3, frames.shape[2]

    def planes(self, index: int, top: int, left: int, size: int) -> tuple[Frames, Frames, Frames]:
        """A size x size crop of one frame; top and left are even."""
        frame = self.frames[index]
        half = size // 2
        columns = self.columns // 2
        chroma = frame[self.rows :].reshape(2, self.rows // 2, columns)
        t, c = top // 2, left // 2
        return (
            frame[top : top + size, left : left + size],
            chroma[0, t : t + half, c : c + half],
            chroma[1, t : t + half, c : c + half],
        )


def video_files(folder: Path) -> list[Path]:
    """The video files below a folder, sorted.

    Raises:
        MediaError: there are none.
    """
    if not folder.is_dir():
        raise MediaError(f"{str(folder)!r} is not a folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise MediaError(f"no video files in {str(folder)!r}")
    return found


def decode(path: Path, cache: Path) -> Clip:
    """Decode a file into the cache (or find it there).

    Keyframes of the file are taken as the starts of shots when all lie equally far apart (packed
    training shards); otherwise a shot starts where neighbouring frames differ strongly.
    """
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    target = cache / f"{key.hexdigest()[:16]}.npy"
    index = target.with_suffix(".json")
    if not (target.exists() and index.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        _decode(path, target, index)
    return Clip(np.load(target, mmap_mode="r"), json.loads(index.read_text()))


def _decode(path: Path, target: Path, index: Path) -> None:
    part = target.with_suffix(".part")
    try:
        with av.open(str(path)) as container:
            count = sum(1 for p in container.demux(video=0) if p.size)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rows, columns = stream.height // 2 * 2, stream.width // 2 * 2
            store = open_memmap(part, "w+", np.uint8, (count, rows * 3 // 2, columns))
            keys: list[int] = []
            cuts = [0]
            past: npt.NDArray[np.int16] | None = None
            for number, frame in enumerate(container.decode(stream)):
                if number == count:
                    break
                picture = frame.reformat(width=columns, height=rows, format="yuv420p").to_ndarray()
                store[number] = picture
                if frame.key_frame:
                    keys.append(number)
                small = picture[:rows:8, ::8].astype(np.int16)
                if past is not None and np.abs(small - past).mean() > 30:
                    cuts.append(number)
                past = small
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{str(path)!r} cannot be decoded: {error}") from error
    gaps = set(np.diff(keys).tolist())
    index.write_text(json.dumps(keys if len(gaps) == 1 and len(keys) > 2 else cuts))
    store.flush()
    part.replace(target)


class Samples:
    """Draws random crops of frames that follow each other.

    Args:
        clips: what to draw from, each as likely as it has frames.
        size: side of the square crops, a multiple of 32.
        seed: of the random draws.
    """

    def __init__(self, clips: list[Clip], size: int, seed: int) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.shots: list[tuple[Clip, int, int]] = []
        for clip in clips:
            if clip.rows < size or clip.columns < size:
                continue
            ends = [*clip.shots[1:], len(clip.frames)]
            self.shots += [(clip, a, b) for a, b in zip(clip.shots, ends, strict=True)]
        if not self.shots:
            raise ConfigError(f"no clip is at least {size}x{size}")
        self._lengths = np.array([b - a for _, a, b in self.shots])

    def draw(self, offsets: list[int], batch: int, size: int | None = None) -> list[Planes]:
        """One batch per offset: planes (batch, 1, size, size) and chroma, float, 0 to 255.

        Args:
            offsets: frame numbers within a shot, relative to a random start, 0 first.
            size: side of these crops, at most the side given to the constructor (the default).
        """
        size = size or self.size
        fits = np.flatnonzero(self._lengths > offsets[-1])
        if not len(fits):
            raise ConfigError(f"no shot has more than {offsets[-1]} frames")
        weights = (self._lengths[fits] - offsets[-1]).astype(np.float64)
        stacks: list[list[tuple[Frames, Frames, Frames]]] = [[] for _ in offsets]
        for chosen in self.random.choice(fits, batch, p=weights / weights.sum()):
            clip, first, end = self.shots[chosen]
            start = int(self.random.integers(first, end - offsets[-1]))
            top = int(self.random.integers(0, (clip.rows - size) // 2 + 1)) * 2
            left = int(self.random.integers(0, (clip.columns - size) // 2 + 1)) * 2
            flip, turn, back = self.random.random(3) < 0.5
            order = offsets[::-1] if back else offsets
            for stack, offset in zip(stacks, order, strict=True):
                crops = clip.planes(start + offset, top, left, size)
                crops = tuple(p[:, ::-1] if flip else p for p in crops)
                crops = tuple(p.T if turn else p for p in crops)
                stack.append(crops)
        return [_tensors(stack) for stack in stacks]


def _tensors(stack: list[tuple[Frames, Frames, Frames]]) -> Planes:
    y, u, v = (
        torch.from_numpy(np.stack(p).astype(np.float32))[:, None] for p in zip(*stack, strict=True)
    )
    return y, u, v


def clips_of(folders: list[str], cache: str) -> list[Clip]:
    """All videos of some folders, decoded."""
    return list(_clips(folders, cache))


def _clips(folders: list[str], cache: str) -> Iterator[Clip]:
    for folder in folders:
        for path in video_files(Path(folder)):
            yield decode(path, Path(cache))
