"""The errors vcfilter raises: each is also the Python builtin a caller would expect."""

from __future__ import annotations


class VcfilterError(Exception):
    """Base of every error that vcfilter raises on purpose; its text is one clear sentence."""


class BitstreamError(VcfilterError, ValueError):
    """A coded packet or header is damaged, truncated or of an unknown version."""


class ConfigError(VcfilterError, ValueError):
    """An option or an argument is outside what is allowed."""


class LimitError(VcfilterError, ValueError):
    """Decoding would cost more than the caller allows, see `options.Limits`.

    Args:
        name: of the limit. value: what is asked for. limit: what is allowed.
    """

    def __init__(self, name: str, value: float, limit: float) -> None:
        super().__init__(f"{name} {value:.15g} is above the limit of {limit:.15g}")
        self.name, self.value, self.limit = name, value, limit

    def __reduce__(self) -> tuple[type[LimitError], tuple[str, float, float]]:
        return LimitError, (self.name, self.value, self.limit)


class ModelMismatchError(VcfilterError, LookupError):
    """The stream was coded by another model than the one loaded."""


class MediaError(VcfilterError, OSError):
    """A media file cannot be read or written."""


class MissingFileError(MediaError, FileNotFoundError):
    """A media file that is to be read is not there."""


class ExistingFileError(MediaError, FileExistsError):
    """A file that is to be written is there already.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already: overwrite=True replaces it")
        self.name = name

    def __reduce__(self) -> tuple[type[ExistingFileError], tuple[str]]:
        return ExistingFileError, (self.name,)


def reason_of(error: BaseException) -> str:
    """What went wrong, without numbers and names that stand in front."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error).rstrip(".")
