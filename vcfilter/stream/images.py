"""Numbered image files: a folder or pattern of them as source, PNG files as target."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path as FilePath
from typing import Any

import av.error
from av.codec import CodecContext
from av.video.reformatter import VideoReformatter

from vcfilter.errors import ConfigError, ExistingFileError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.stream.containers import Path, is_video_name, path_of
from vcfilter.stream.pixels import convert, to_video_frame
from vcfilter.stream.source import is_sequence, reason_of

KINDS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SUFFIX = ".png"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_NUMBERED = "%06d" + SUFFIX
_PIXELS = {8: "rgb24", 10: "rgb48be"}
_SPECIAL = re.compile(r"([*?\[\]\\])")


def folder_pattern(folder: Path) -> str:
    """The pattern of a folder's image files, in order of their names, as `Source` takes it.

    Raises:
        MediaError: there are none, or of several kinds.
    """
    name = path_of("source", folder)
    try:
        found = {FilePath(each).suffix for each in os.listdir(name) if each[0] != "."}
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {reason_of(error)}") from error
    kinds = sorted(each for each in found if each.lower() in KINDS)
    if len(kinds) != 1:
        what = f"image files of several kinds ({', '.join(kinds)})" if kinds else "no image file"
        raise MediaError(f"{name} holds {what}; give a pattern like '{name.rstrip('/')}/*.png'")
    return os.path.join(_SPECIAL.sub(r"\\\1", name), f"*{kinds[0]}")


def files_of(pattern: str) -> list[FilePath]:
    """The files that a pattern of image files means, in the order in which they are read."""
    base = FilePath(pattern).name
    folder = FilePath(re.sub(r"\\(.)", r"\1", str(FilePath(pattern).parent)))
    if "%" not in base:
        expression = re.compile("".join(_wildcard(char) for char in base), re.DOTALL)
        return sorted(each for each in folder.iterdir() if expression.fullmatch(each.name))
    head, _, tail = re.split(r"%(0?\d*)d", base, maxsplit=1)
    expression = re.compile(f"{re.escape(head)}(\\d+){re.escape(tail)}")
    numbered = {}
    for each in folder.iterdir():
        match = expression.fullmatch(each.name)
        if match and base % int(match[1]) == each.name:
            numbered[int(match[1])] = each
    files: list[FilePath] = []
    for number in sorted(numbered):
        if files and number - 1 not in numbered:
            break  # libavformat stops at a gap
        files.append(numbered[number])
    return files


def _is_whole(path: FilePath) -> bool:
    """Whether a PNG file is there and ends as it should."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def _wildcard(char: str) -> str:
    return {"*": ".*", "?": "."}.get(char, re.escape(char))


def is_image_target(target: Path) -> bool:
    """Whether a target is a folder, or a pattern of image files."""
    name = path_of("target", target)
    if name.endswith(os.sep) or os.path.isdir(name):
        return True
    return "%" in FilePath(name).name and not is_video_name(name)


class ImageTarget:
    """PNG files in a folder; each appears under its name when it is complete.

    Args:
        name: a folder, which is made if it is missing, or a pattern like "frames/%05d.png".
        overwrite: whether files may be replaced.
        parts: frames per frame of the source.
        originals: the source's image files, which become every parts-th file: PNG files are copied
            as they are. Empty: all files are written from frames.
        eqvi_names: files are called as the original before, with _0, _1, ... behind the name, as
            EQVI does; else they are numbered from 0.
        resume: files that are there stay as they are, but for those that were cut short.

    Raises:
        ConfigError: the pattern is not one of PNG files, or names are asked for without originals.
        MediaError: the folder cannot be made.
    """

    def __init__(
        self,
        name: Path,
        *,
        overwrite: bool,
        parts: int = 1,
        originals: Sequence[FilePath] = (),
        eqvi_names: bool = False,
        resume: bool = False,
    ) -> None:
        self.name = path_of("target", name)
        self.title = self.name
        place = FilePath(self.name)
        self._pattern = _NUMBERED
        if "%" in place.name:
            place, self._pattern = place.parent, place.name
            if not is_sequence(self._pattern) or not self._pattern.endswith(SUFFIX):
                raise ConfigError(f"{self.name} is no pattern of PNG files like frames/%05d.png")
        if eqvi_names and not originals:
            raise ConfigError("names like those of the source need a source of image files")
        self._folder = place
        self._overwrite = overwrite or resume
        self._resume = resume
        self._parts = parts
        self._originals = list(originals)
        self._eqvi_names = eqvi_names
        self._count = 0
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(f"{place} cannot be made: {reason_of(error)}") from error
        if self._originals and self._originals[0].parent.samefile(place):
            raise MediaError(f"{self.name} is the source's folder: give another one")

    def discard(self) -> None:
        """Files that are complete stay."""

    def has(self, number: int) -> bool:
        """Whether a file is there already, whole, and is to stay.

        Raises:
            MediaError: an original's copy is of another file.
        """
        path = self._folder / self._file_name(number)
        if not self._resume or not _is_whole(path):
            return False
        original = self._original(number)
        if original is not None and not filecmp.cmp(path, original, shallow=False):
            raise MediaError(
                f"{path} is no copy of {original}: it is of a run with another source or factor"
            )
        return True

    @property
    def is_done(self) -> bool:
        """Whether the next file is there already."""
        return self.has(self._count)

    def skip(self) -> None:
        """Leave the next file as it is."""
        self._count += 1

    def write(self, png: bytes | None) -> int:
        """Write the next file; None: the original's copy. Returns its size."""
        path = self._folder / self._file_name(self._count)
        part = path.with_name(f".{path.name}.part")
        original = self.original
        try:
            if path.exists() and not self._overwrite:
                raise ExistingFileError(str(path))
            if png is None:
                assert original is not None
                shutil.copyfile(original, part)
            else:
                part.write_bytes(png)
            os.replace(part, path)
            size = path.stat().st_size
        except OSError as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{path} cannot be written: {reason_of(error)}") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        self._count += 1
        return size

    @property
    def original(self) -> FilePath | None:
        """The PNG file that the next file is a copy of; None: there is none."""
        return self._original(self._count)

    def _original(self, number: int) -> FilePath | None:
        index, new = divmod(number, self._parts)
        if new or index >= len(self._originals):
            return None
        return self._originals[index] if self._originals[index].suffix == SUFFIX else None

    def _file_name(self, count: int) -> str:
        if not self._eqvi_names:
            return self._pattern % count
        index, new = divmod(count, self._parts)
        stem = self._originals[min(index, len(self._originals) - 1)].stem
        return f"{stem}_{new - 1}{SUFFIX}" if new else f"{stem}{SUFFIX}"


class ImageSink:
    """Frames as PNG files: RGB of 8 bits, or of 16 for 10-bit frames.

    Args:
        target: where they go.

    Attributes:
        video_bytes: of the files so far.
    """

    def __init__(self, target: ImageTarget) -> None:
        self._target = target
        self._format: VideoFormat | None = None
        self._reformatter = VideoReformatter()
        self.video_bytes = 0

    def start(
        self, video_format: VideoFormat, frame_rate: Fraction | None, *, live: bool = False
    ) -> None:
        """The format is known now."""
        del frame_rate, live
        self._format = video_format

    def write(self, frame: Any) -> None:
        """Write one frame."""
        assert self._format is not None
        assert isinstance(frame, Frame)
        if self._target.is_done:
            self._target.skip()
            return
        png = None
        if self._target.original is None:
            png = to_png(frame, self._format, self._reformatter)
        self.video_bytes += self._target.write(png)

    def flush(self) -> None:
        """Nothing is held."""

    def finish(self, *, jumped: bool = False) -> None:
        """Nothing is left to do."""
        del jumped

    def abandon(self, keep: bool) -> str | None:
        """Files that are complete stay."""
        del keep
        return None


def to_png(frame: Frame, video_format: VideoFormat, reformatter: VideoReformatter) -> bytes:
    """A frame as a PNG file in RGB.

    Raises:
        MediaError: it cannot be converted.
    """
    pixels = _PIXELS[video_format.bit_depth]
    image = convert(to_video_frame(frame, video_format, Fraction(1)), pixels, reformatter)
    image.pts = 0
    encoder: Any = CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = image.width, image.height, pixels
    encoder.time_base = Fraction(1)
    try:
        return b"".join(bytes(each) for each in [*encoder.encode(image), *encoder.encode(None)])
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"a frame cannot be written as PNG: {reason_of(error)}") from error
