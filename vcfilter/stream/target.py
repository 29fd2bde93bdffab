"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path as FilePath
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: whether another run writes a file is not seen there
    fcntl = None  # type: ignore[assignment]

from vcfilter.errors import ExistingFileError, MediaError
from vcfilter.stream.containers import PIPE, Path, path_of
from vcfilter.stream.source import reason_of

logger = logging.getLogger(__name__)

_NAME_BYTES = 255  # longest file name of Linux's file systems
_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NEW_MODE = 0o666
_LEFTOVERS_MAX = 100  # names that are looked for


class Target:
    """A file that gets its name only when it is complete; pipes and devices are written directly.

    Until then it is written beside its place as "NAME.part.EXT" (numbered if that exists). No
    file that exists is touched but the target itself, and that only when it may be overwritten
    and the new one is complete. A symbolic link is written through; the mode of a file that is
    replaced is kept.

    Args:
        name: path; "-" is standard output.
        overwrite: whether a file of that name may be replaced.
        source: path of a file that must not be the same one.

    Raises:
        MediaError: the target exists, is the source, or cannot be written.
    """

    def __init__(self, name: Path, *, overwrite: bool, source: str | None = None) -> None:
        self.name = path_of("target", name)
        self.title = "standard output" if self.name == PIPE else self.name
        self._overwrite = overwrite
        self._part: FilePath | None = None
        self._file: io.FileIO | None = None
        self._finalizer: weakref.finalize[..., Target] | None = None
        if self.name == PIPE:
            if sys.stdout is None:
                raise MediaError("standard output is closed")
            if sys.stdout.isatty():
                raise MediaError("standard output is a terminal: give a file, or pipe it")
            return
        try:
            self._place = FilePath(os.path.realpath(self.name))
            self._begin(source)
        except MediaError:
            raise
        except (OSError, ValueError) as error:
            raise MediaError(f"{self.name!s} cannot be written: {reason_of(error)}") from error

    def _begin(self, source: str | None) -> None:
        if _is_special(self.name):
            return  # a device or a named pipe
        place = self._place
        exists = place.exists()
        both = exists and source is not None and os.path.exists(source)
        if both and os.path.samefile(place, str(source)):
            raise MediaError(f"{self.name} is the source: give the target another name")
        if place.is_dir():
            raise MediaError(f"{self.name} is a folder: give a file's name")
        if exists and not self._overwrite:
            raise ExistingFileError(self.name)
        if not place.parent.is_dir():
            raise MediaError(f"{self.name} cannot be written: there is no folder {place.parent}")
        self._part, number = _create(place, "part", place.stat().st_mode if exists else None)
        self._file = _WholeFile(number, "wb")
        self._finalizer = weakref.finalize(self, _remove, self._file, self._part)
        logger.info("%s is written as %s until it is complete", self.name, self._part)

    @property
    def path(self) -> str:
        """Where it is written until it is complete."""
        return str(self._part) if self._part else self.name

    @property
    def is_pipe(self) -> bool:
        """Whether it is standard output."""
        return self.name == PIPE

    @property
    def file(self) -> Any:
        """The binary file object, or path of a device, that is to be written."""
        if self.is_pipe:
            return sys.stdout.buffer
        return self._file if self._file is not None else self.name

    @property
    def is_regular(self) -> bool:
        """Whether it is an ordinary file, which is not read before it is complete."""
        return self._part is not None

    def leftovers(self) -> list[FilePath]:
        """Files that other runs to the same target left unfinished, or are writing."""
        if self._part is None:
            return []
        found = []
        for word in ("part", "partial"):
            for name in islice(_names(self._place, word), _LEFTOVERS_MAX):
                if name != self._part and name.is_file() and not name.is_symlink():
                    found.append(name)
        return found

    @staticmethod
    def is_written(leftover: FilePath) -> bool:
        """Whether a run that goes on writes this file."""
        if fcntl is None:
            return False
        with leftover.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks
                return False
        return False

    def flush(self) -> None:
        """What was written so far can be read at the other end of a pipe."""
        if self.is_pipe:
            sys.stdout.buffer.flush()

    def sync(self) -> None:
        """What was written so far is on the disk."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())

    def complete(self) -> None:
        """Give the finished file its name.

        Raises:
            MediaError: a file of that name appeared meanwhile and may not be overwritten, or the
                disk is full.
        """
        if self._part is None:
            return
        try:
            self._close(sync=True)
            if self._overwrite:
                os.replace(self._part, self._place)
            elif not _move(self._part, self._place):
                kept = self.keep_partial()
                raise MediaError(f"{self.name} exists already: what was written is {kept}")
        except OSError as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{self.name} cannot be written: {reason_of(error)}") from error
        self._done()

    def keep_partial(self) -> str | None:
        """Keep what was written under a name of its own, beside the target's; returns that."""
        if self._part is None:
            return None
        self._close(sync=True)
        for name in _names(self._place, "partial"):
            if _move(self._part, name):
                self._done()
                return (
                    str(FilePath(self.name).parent / name.name)
                    if self._same_folder()
                    else str(name)
                )
        return None

    def discard(self) -> None:
        """Remove what was written."""
        if self._part is not None:
            self._close(sync=False)
            self._part.unlink(missing_ok=True)
            self._done()

    def _same_folder(self) -> bool:
        with suppress(OSError):
            return FilePath(self.name).parent.samefile(self._place.parent)
        return False

    def _close(self, *, sync: bool) -> None:
        if self._file is None:
            return
        try:
            if sync:
                os.fsync(self._file.fileno())
        finally:
            file, self._file = self._file, None
            file.close()

    def _done(self) -> None:
        self._part = None
        if self._finalizer is not None:
            self._finalizer.detach()
        with suppress(OSError):  # the name itself is on the disk, where folders can be synced
            number = os.open(self._place.parent, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


class _WholeFile(io.FileIO):
    """A file without a buffer that writes all of what it is given; a full disk cuts a write short
    before it is an error, and PyAV does not look at that.
    """

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return size


def _is_special(name: str) -> bool:
    """Whether a path, links followed, is there and neither a file nor a folder."""
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _names(place: FilePath, word: str) -> Iterator[FilePath]:
    """place.word.ext, place.word-2.ext, ..., as short as a file's name must be."""
    for number in count(1):
        tail = f".{word}{f'-{number}' if number > 1 else ''}{place.suffix}"
        room = max(1, _NAME_BYTES - len(os.fsencode(tail)))
        stem = os.fsencode(place.stem)
        if len(stem) > room:
            stem = stem[:room].decode("utf-8", "ignore").encode() or stem[:room]
        yield place.with_name(os.fsdecode(stem) + tail)


def _create(place: FilePath, word: str, mode: int | None) -> tuple[FilePath, int]:
    """A new file beside a place: (its path, a descriptor that writes it)."""
    for name in _names(place, word):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
        try:
            number = os.open(name, flags, _NEW_MODE)
        except FileExistsError:
            continue
        with suppress(OSError):
            if mode is not None:
                os.fchmod(number, stat.S_IMODE(mode))
        with suppress(OSError):
            if fcntl is not None:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends
        return name, number
    raise AssertionError("names do not end")


def _move(part: FilePath, name: FilePath) -> bool:
    """Give a file a name that no other file has; False where one has it."""
    try:
        os.link(part, name)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW, _NEW_MODE))
        except FileExistsError:
            return False
        os.replace(part, name)
        return True
    part.unlink()
    return True


def _remove(file: io.FileIO, part: FilePath) -> None:
    """Close and delete a part file that was neither completed nor discarded."""
    with suppress(OSError):
        file.close()
        part.unlink(missing_ok=True)


class translated:
    """Turns the errors of writing into MediaError that names the target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, value: BaseException | None, traceback: Any) -> None:
        if isinstance(value, MediaError | BrokenPipeError) or not isinstance(
            value, OSError | ValueError | OverflowError | ZeroDivisionError
        ):
            return
        reason = reason_of(value).replace(f"{self._target.path}: ", "")
        raise MediaError(f"{self._target.title} cannot be written: {reason}") from value
