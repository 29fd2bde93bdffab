"""Which videos are served: one file, or those of a folder and its folders."""

from __future__ import annotations

import glob
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from vcfilter.errors import MediaError
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.serve.video import VideoFile
from vcfilter.stream.decoders import neural_stream
from vcfilter.stream.source import Source

SUFFIXES = (".mkv", ".nut", ".avi", ".mov")
"""Extensions of files that may be neural; whether one is stands inside it."""

_VIDEOS_OPEN = 16  # whose frame lists are held in memory
_LIST_SECONDS = 3.0  # how long a list of the folder is taken for true


class ForbiddenError(MediaError):
    """A path leads outside what is served."""


class UnknownVideoError(MediaError):
    """There is no such video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the list of videos.

    Args:
        name: path from the folder, with slashes.
        size: bytes.
    """

    name: str
    size: int


_Key = tuple[Path, int, int]


@dataclass(slots=True)
class _Slot:
    """A file whose index is made once, by the first request; others wait for that file alone."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    video: VideoFile | None = None


class Library:
    """The videos that are served.

    Args:
        source: a file or a folder.
        options: how videos are decoded.
        runtime: where the networks run.
        original: what the videos were coded from: a file, or a folder with files of their names.

    Raises:
        MediaError: there is no such file or folder, or the file is no neural video.
    """

    def __init__(
        self,
        source: Path,
        options: DecoderOptions,
        *,
        runtime: Runtime | None = None,
        original: Path | None = None,
    ) -> None:
        if not source.exists():
            raise MediaError(f"{source} cannot be served: there is no such file or folder")
        if original is not None and not original.exists():
            raise MediaError(f"{original}: there is no such file or folder")
        self._root = (source if source.is_dir() else source.parent).resolve()
        self._only = None if source.is_dir() else source.resolve()
        self._options = options
        self._runtime = runtime
        self._original = original
        self._videos: dict[_Key, _Slot] = {}
        self._neural: dict[_Key, bool] = {}
        self._lock = threading.Lock()
        self._listing = threading.Lock()
        self._listed: tuple[float, list[Entry]] | None = None
        self.single = None if self._only is None else source.name
        if self._only is not None and not self._is_neural(self._only):
            raise MediaError(f"{source} has no neural video stream: nothing to serve")

    def entries(self) -> list[Entry]:
        """The videos, by name."""
        if self._only is not None:
            return [Entry(name=self._only.name, size=self._only.stat().st_size)]
        with self._listing:  # one walk at a time
            if self._listed is None or time.monotonic() - self._listed[0] > _LIST_SECONDS:
                found = self._walk()
                self._listed = time.monotonic(), found
            return list(self._listed[1])

    def _walk(self) -> list[Entry]:
        found = []
        for path in sorted(self._root.rglob("*")):
            inside = path.relative_to(self._root)
            if not _is_listed(inside):
                continue
            try:
                if path.resolve().is_relative_to(self._root) and self._is_neural(path):
                    found.append(Entry(name=inside.as_posix(), size=path.stat().st_size))
            except OSError:
                continue  # gone, or not for us to read
        return found

    def video(self, name: str) -> VideoFile:
        """The video of a name from the list.

        Raises:
            ForbiddenError: the name leads outside the folder.
            UnknownVideoError: there is no such video.
            MediaError: it cannot be read.
        """
        path = self._resolve(name)
        try:
            status = path.stat()
        except OSError:
            raise UnknownVideoError(f"there is no video {name}") from None
        key = (path, status.st_mtime_ns, status.st_size)
        with self._lock:
            slot = self._videos.setdefault(key, _Slot())
            while len(self._videos) > _VIDEOS_OPEN:
                del self._videos[next(iter(self._videos))]
        with slot.lock:
            if slot.video is None:
                if not path.is_file() or not self._is_neural(path):
                    raise UnknownVideoError(f"{name} is no neural video")
                slot.video = VideoFile(
                    path, self._options, runtime=self._runtime, original=self._original_of(path)
                )
            return slot.video

    def _resolve(self, name: str) -> Path:
        if "\0" in name:
            raise UnknownVideoError("there is no such video")
        if ".." in name.replace("\\", "/").split("/"):
            raise ForbiddenError("paths outside the folder are refused")
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise ForbiddenError("paths outside the folder are refused")
        if self._only is not None and path != self._only:
            raise ForbiddenError("only one video is served")
        if self._only is None and not _is_listed(Path(name)):
            raise UnknownVideoError(f"there is no video {name}")
        return path

    def _is_neural(self, path: Path) -> bool:
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._neural:
            try:
                with Source(path).demuxer() as demuxer:
                    neural_stream(demuxer, path.name)
                self._neural[key] = True
            except MediaError:
                self._neural[key] = False
        return self._neural[key]

    def _original_of(self, path: Path) -> Path | None:
        original = self._original
        if original is None or original.is_file():
            return original
        found = sorted(original.glob(f"{glob.escape(path.stem)}.*"))
        return next((each for each in found if each.resolve() != path), None)


def _is_listed(inside: Path) -> bool:
    """Whether a path in the folder may be served: not hidden, and of a container that can be."""
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and inside.suffix.lower() in SUFFIXES
