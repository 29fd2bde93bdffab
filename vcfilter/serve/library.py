"""Which films are served: one file, or those of a folder and its folders."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from vcfilter.errors import MediaError
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.serve.film import Film
from vcfilter.stream.decoders import neural_stream
from vcfilter.stream.source import Source

SUFFIXES = (".mkv", ".nut", ".avi", ".mov")
"""Names that may be neural films; whether they are is seen inside."""

_FILMS_OPEN = 16  # whose frame lists are held in memory


class ForbiddenError(MediaError):
    """A path leads outside what is served."""


class UnknownFilmError(MediaError):
    """There is no such film."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the list of films.

    Args:
        name: path from the folder, with slashes.
        size: bytes.
    """

    name: str
    size: int


class Library:
    """The films that are served.

    Args:
        source: a file or a folder.
        options: how films are decoded.
        original: what the films were coded from: a file, or a folder with files of their names.

    Raises:
        MediaError: there is no such file or folder, or the file is no neural film.
    """

    def __init__(
        self,
        source: Path,
        options: DecoderOptions,
        *,
        original: Path | None = None,
        runtime: Runtime | None = None,
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
        self._films: dict[tuple[Path, int, int], Film] = {}
        self._neural: dict[tuple[Path, int, int], bool] = {}
        self._lock = threading.Lock()
        self.single = None if self._only is None else source.name
        if self._only is not None and not self._is_neural(self._only):
            raise MediaError(f"{source} has no neural video stream: nothing to serve")

    def entries(self) -> list[Entry]:
        """The films, by name."""
        if self._only is not None:
            return [Entry(name=self._only.name, size=self._only.stat().st_size)]
        found = []
        for path in sorted(self._root.rglob("*")):
            inside = path.relative_to(self._root)
            if path.suffix.lower() not in SUFFIXES or any(p.startswith(".") for p in inside.parts):
                continue
            try:
                if path.resolve().is_relative_to(self._root) and self._is_neural(path):
                    found.append(Entry(name=inside.as_posix(), size=path.stat().st_size))
            except OSError:
                continue  # gone, or not for us to read
        return found

    def film(self, name: str) -> Film:
        """The film of a name from the list.

        Raises:
            ForbiddenError: the name leads outside the folder.
            UnknownFilmError: there is no such film.
            MediaError: it cannot be read.
        """
        path = self._resolve(name)
        try:
            status = path.stat()
        except OSError:
            raise UnknownFilmError(f"there is no film {name}") from None
        key = (path, status.st_mtime_ns, status.st_size)
        with self._lock:
            film = self._films.get(key)
            if film is None:
                if not path.is_file() or not self._is_neural(path):
                    raise UnknownFilmError(f"{name} is no neural film")
                film = Film(
                    path,
                    self._options,
                    original=self._original_of(path),
                    runtime=self._runtime,
                )
                self._films[key] = film
                while len(self._films) > _FILMS_OPEN:
                    del self._films[next(iter(self._films))]
            return film

    def _resolve(self, name: str) -> Path:
        if "\0" in name:
            raise UnknownFilmError("there is no such film")
        if ".." in name.replace("\\", "/").split("/"):
            raise ForbiddenError("paths outside the folder are refused")
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise ForbiddenError("paths outside the folder are refused")
        if self._only is not None and path != self._only:
            raise ForbiddenError("only one film is served")
        return path

    def _is_neural(self, path: Path) -> bool:
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._neural:
            try:
                with Source(str(path)).demuxer() as demuxer:
                    neural_stream(demuxer, path.name)
                self._neural[key] = True
            except MediaError:
                self._neural[key] = False
        return self._neural[key]

    def _original_of(self, path: Path) -> Path | None:
        original = self._original
        if original is None or original.is_file():
            return original
        found = sorted(original.glob(f"{path.stem}.*"))
        return next((each for each in found if each.resolve() != path), None)
