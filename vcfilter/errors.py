"""The errors vcfilter raises: each is also the Python builtin a caller would expect."""


class VcfilterError(Exception):
    """Base of every error that vcfilter raises on purpose; its text is one clear sentence."""


class BitstreamError(VcfilterError, ValueError):
    """A coded packet or header is damaged, truncated or of an unknown version."""


class ConfigError(VcfilterError, ValueError):
    """An option or an argument is outside what is allowed."""


class ModelMismatchError(VcfilterError, LookupError):
    """The stream was coded by another model than the one loaded."""


class MediaError(VcfilterError, OSError):
    """A media file cannot be read or written."""
