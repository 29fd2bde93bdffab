"""What PyAV calls a codec context, of a neural stream that is read."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from av.video.format import VideoFormat as PixelFormat

from vcfilter.errors import ConfigError

if TYPE_CHECKING:
    from vcfilter.stream.input_stream import Stream

_SKIP_FRAME = ("NONE", "DEFAULT", "NONREF", "BIDIR", "NONINTRA", "NONKEY", "ALL")
_THREAD_TYPES = ("NONE", "FRAME", "SLICE", "AUTO")


@dataclass(frozen=True, slots=True)
class NeuralCodec:
    """What PyAV calls a codec, of a neural stream."""

    name: str = "vcfilter"
    long_name: str = "vcfilter neural video codec"
    type: str = "video"
    is_decoder: bool = True
    is_encoder: bool = False


class NeuralContext:
    """The neural decoder under the names of av.VideoCodecContext.

    Attributes:
        skip_frame: "NONKEY" or "NONINTRA" decodes keyframes alone, "ALL" nothing; all others
            decode every frame.
        thread_type: kept as it was set, for PyAV's sake: Runtime.threads rules.
    """

    __slots__ = ("_skip_frame", "_stream", "_thread_type")

    name = "vcfilter"
    codec = NeuralCodec()
    type = "video"
    is_decoder = True
    is_encoder = False

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._skip_frame = "DEFAULT"
        self._thread_type = "AUTO"

    @property
    def skip_frame(self) -> str:
        """Which frames are left out."""
        return self._skip_frame

    @skip_frame.setter
    def skip_frame(self, value: str) -> None:
        if value not in _SKIP_FRAME:
            raise ConfigError(f"skip_frame {value!r} is not one of {', '.join(_SKIP_FRAME)}")
        self._skip_frame = value

    @property
    def thread_type(self) -> str:
        """As it was set."""
        return self._thread_type

    @thread_type.setter
    def thread_type(self, value: object) -> None:
        name = str(getattr(value, "name", value))
        if name not in _THREAD_TYPES:
            raise ConfigError(f"thread_type {value!r} is not one of {', '.join(_THREAD_TYPES)}")
        self._thread_type = name

    @property
    def thread_count(self) -> int:
        """Threads of the networks, as Runtime sets them; 0 leaves it to PyTorch.

        Raises:
            ConfigError: it is set when frames are decoded already, or out of range.
        """
        runtime = self._stream.container.runtime
        return runtime.threads if runtime else 0

    @thread_count.setter
    def thread_count(self, value: int) -> None:
        self._stream.use_threads(value)

    @property
    def width(self) -> int:
        """In luma samples."""
        return self._stream.width

    @property
    def height(self) -> int:
        """In luma samples."""
        return self._stream.height

    @property
    def pix_fmt(self) -> str | None:
        """FFmpeg's name of the decoded frames' format."""
        return self._stream.pix_fmt

    @property
    def format(self) -> PixelFormat | None:
        """The same as PyAV's object."""
        name = self._stream.pix_fmt
        return PixelFormat(name, self.width, self.height) if name else None

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self._stream.time_base

    @property
    def framerate(self) -> Fraction | None:
        """Frames per second; None when unknown."""
        return self._stream.average_rate

    rate = framerate

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Width of a sample over its height; None when unknown."""
        return self._stream.sample_aspect_ratio

    @property
    def display_aspect_ratio(self) -> Fraction | None:
        """Width of the frame over its height as shown."""
        return self._stream.display_aspect_ratio

    @property
    def extradata(self) -> bytes | None:
        """The sequence header."""
        return self._stream.info.extradata or None

    @property
    def bit_rate(self) -> int | None:
        """Bit/s as the container states it."""
        return self._stream.bit_rate

    @property
    def color_range(self) -> int:
        """0 unspecified, 1 limited, 2 full."""
        return self._stream.info.color_range

    @property
    def color_primaries(self) -> int:
        """Code point of H.273."""
        return self._stream.info.color_primaries

    @property
    def color_trc(self) -> int:
        """Code point of H.273."""
        return self._stream.info.color_trc

    @property
    def colorspace(self) -> int:
        """Code point of H.273."""
        return self._stream.info.colorspace

    def __repr__(self) -> str:
        return f"<vcfilter.NeuralContext {self.width}x{self.height} {self.pix_fmt}>"
