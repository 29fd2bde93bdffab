"""The streams of a file that is read, under PyAV's names."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import av.error
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.video.format import VideoFormat as PixelFormat
from av.video.frame import VideoFrame

from vcfilter._bridge import BridgePacket, StreamInfo
from vcfilter.codec import Decoder
from vcfilter.errors import ConfigError, MediaError
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import Runtime
from vcfilter.stream.context import NeuralContext
from vcfilter.stream.decoders import MediaDecoder
from vcfilter.stream.packets import StreamPacket, coded_packet
from vcfilter.stream.pixels import PIXEL_FORMATS, to_video_frame
from vcfilter.stream.source import reason_of
from vcfilter.stream.track import completed, is_neural

if TYPE_CHECKING:
    from vcfilter.stream.input import InputContainer

MediaFrame: TypeAlias = VideoFrame | AudioFrame | Any

_KINDS = {"video": "video", "audio": "audio", "subtitles": "subtitle", "data": "data"}
_KEYFRAMES_ONLY = ("NONKEY", "NONINTRA")


class Stream:
    """One stream of an input container, with PyAV's names.

    Attributes:
        container: that it is in.
        info: everything that the container says of it.
        codec_name: "vcfilter" for a neural stream, FFmpeg's name otherwise.
    """

    __slots__ = (
        "_begin", "_context", "_decoder", "_lock", "_media", "_started", "codec_name", "container",
        "info",
    )  # fmt: skip

    def __init__(self, container: InputContainer, info: StreamInfo) -> None:
        self.container = container
        self.info = info
        self.codec_name = "vcfilter" if is_neural(info) else info.codec
        self._decoder: Decoder | None = None
        self._media: MediaDecoder | None = None
        self._context: NeuralContext | None = None
        self._started = False  # the neural decoder was given a packet
        self._begin: Fraction | None = None  # no frame before this time comes out
        self._lock = threading.Lock()  # decoders crash where two threads use one

    @property
    def index(self) -> int:
        """Position in the file."""
        return self.info.index

    @property
    def id(self) -> int:
        """The container's own number of the stream."""
        return self.info.id

    @property
    def type(self) -> str:
        """ "video", "audio", "subtitle", "attachment" or "data"."""
        return self.info.kind

    @property
    def name(self) -> str:
        """The codec's name."""
        return self.codec_name

    @property
    def codec_context(self) -> Any:
        """NeuralContext of a neural stream, PyAV's codec context of another.

        Raises:
            MediaError: FFmpeg has no decoder for it.
        """
        if self.codec_name != "vcfilter":
            return self._media_decoder().context
        if self._context is None:
            self._context = NeuralContext(self)
        return self._context

    @property
    def codec(self) -> Any:
        """NeuralCodec of a neural stream, PyAV's codec of another."""
        return self.codec_context.codec

    @property
    def profile(self) -> str | None:
        """The codec's profile; None of a neural stream."""
        if self.codec_name == "vcfilter" or self.info.kind not in ("video", "audio"):
            return None
        profile: str | None = self.codec_context.profile
        return profile

    @property
    def thread_type(self) -> Any:
        """As that of codec_context."""
        return self.codec_context.thread_type

    @thread_type.setter
    def thread_type(self, value: Any) -> None:
        self.codec_context.thread_type = value

    @property
    def thread_count(self) -> int:
        """As that of codec_context."""
        count: int = self.codec_context.thread_count
        return count

    @thread_count.setter
    def thread_count(self, value: int) -> None:
        self.codec_context.thread_count = value

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick."""
        return self.info.time_base

    @property
    def average_rate(self) -> Fraction | None:
        """Frames per second; None when unknown."""
        return self.info.frame_rate

    @property
    def base_rate(self) -> Fraction | None:
        """The lowest rate that represents all times exactly; None when unknown."""
        return self.info.base_rate

    @property
    def guessed_rate(self) -> Fraction | None:
        """The average rate, else the base rate."""
        return self.info.frame_rate or self.info.base_rate

    @property
    def start_time(self) -> int | None:
        """In ticks of time_base."""
        return self.info.start_time

    @property
    def duration(self) -> int | None:
        """In ticks of time_base; None when the container does not state it."""
        return self.info.duration

    @property
    def frames(self) -> int:
        """Number of frames as the container states it; 0 when unknown."""
        return self.info.frames

    @property
    def bit_rate(self) -> int | None:
        """Bit/s as the container states it; None when unknown."""
        return self.info.bit_rate or None

    @property
    def metadata(self) -> dict[str, str]:
        """Tags."""
        return dict(self.info.metadata)

    @property
    def language(self) -> str | None:
        """From the tags."""
        return self.info.metadata.get("language")

    @property
    def disposition(self) -> int:
        """FFmpeg's AV_DISPOSITION_* bits."""
        return self.info.disposition

    @property
    def width(self) -> int:
        """Of a video stream, in luma samples."""
        return self.info.width

    @property
    def height(self) -> int:
        """Of a video stream, in luma samples."""
        return self.info.height

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Of a video stream; None when unknown."""
        return self.info.sample_aspect_ratio

    @property
    def display_aspect_ratio(self) -> Fraction | None:
        """Width over height of a video stream as shown; None when the sample's is unknown."""
        aspect = self.info.sample_aspect_ratio
        return aspect * self.width / self.height if aspect and self.height else None

    @property
    def rotation(self) -> int:
        """Clockwise rotation for display in degrees."""
        fmt = self.video_format
        return fmt.rotation if fmt else self.info.rotation

    @property
    def sample_rate(self) -> int:
        """Of an audio stream."""
        return self.info.sample_rate

    @property
    def rate(self) -> int | Fraction | None:
        """Of an audio stream another name of sample_rate, of a video stream of average_rate."""
        return self.average_rate if self.info.kind == "video" else self.info.sample_rate

    @property
    def channels(self) -> int:
        """Of an audio stream."""
        return self.info.channels

    @property
    def layout(self) -> AudioLayout | None:
        """Of an audio stream."""
        return self.codec_context.layout if self.info.kind == "audio" else None

    @property
    def video_format(self) -> VideoFormat | None:
        """Of a neural stream."""
        fmt = self._neural().video_format if self.codec_name == "vcfilter" else None
        return completed(fmt, self.info) if fmt else None

    @property
    def pix_fmt(self) -> str | None:
        """FFmpeg's name of the decoded frames' format."""
        fmt = self.video_format
        return PIXEL_FORMATS[fmt.bit_depth] if fmt else self.info.pixel_format or None

    @property
    def format(self) -> PixelFormat | AudioFormat | None:
        """Of frames or samples, as PyAV's object; None of other streams."""
        if self.info.kind == "audio":
            found: AudioFormat = self.codec_context.format
            return found
        name = self.pix_fmt if self.info.kind == "video" else None
        return PixelFormat(name, self.width, self.height) if name else None

    @property
    def delay(self) -> int | None:
        """Most packets of a neural stream that are held before a frame comes; None of another."""
        return self._neural().delay if self.codec_name == "vcfilter" else None

    @property
    def levels(self) -> int | None:
        """Of a neural stream: quality levels that are decoded, see `Decoder.levels`."""
        return self._neural().levels if self.codec_name == "vcfilter" else None

    @levels.setter
    def levels(self, levels: int | None) -> None:
        self._neural().levels = levels
        self.container.forget_shown()

    @property
    def dropped_frames(self) -> int:
        """Frames of a neural stream that were damaged or missed a reference, so far."""
        decoder = self._decoder
        return decoder.dropped_damaged + decoder.dropped_missing_reference if decoder else 0

    @property
    def lost_levels(self) -> int:
        """Frames of a neural stream that lack quality levels since these are damaged, so far."""
        return self._decoder.lost_levels if self._decoder else 0

    def decode(self, packet: StreamPacket | None = None, *, show: bool = True) -> list[MediaFrame]:
        """Frames that are ready after this packet; None or an empty packet drains.

        Args:
            show: False: a neural packet's frame will not come out, and is decoded only if others
                need it.

        Raises:
            ConfigError: it is no packet.
            MediaError: it cannot be decoded.
        """
        if packet is not None and not isinstance(packet, StreamPacket):
            raise ConfigError(f"{packet!r} is not a packet of this container")
        content = packet.content if packet else None
        with self._lock:
            if self.codec_name == "vcfilter":
                return self._decode_neural(content, show)
            try:
                frames = self._media_decoder().decode(content)
            except (av.error.FFmpegError, ValueError) as error:
                raise MediaError(
                    f"stream {self.index} cannot be decoded: {reason_of(error)}"
                ) from error
            if content is None and self._media is not None:
                self._media.reset()  # ready for what comes after a seek
            return frames

    def decode_frames(
        self, packet: StreamPacket | None = None, *, show: bool = True
    ) -> list[Frame]:
        """The same of a neural stream as planes, with the motion that frames were coded with.

        Raises: as of `decode`.
        """
        with self._lock:
            return self._decode_planes(packet.content if packet else None, show)

    def _decode_neural(self, content: BridgePacket | None, show: bool) -> list[MediaFrame]:
        frames = self._decode_planes(content, show)
        fmt = self._neural().video_format
        if fmt is None:
            return []
        fmt = completed(fmt, self.info)
        return [to_video_frame(frame, fmt, self.time_base) for frame in frames]

    def _decode_planes(self, content: BridgePacket | None, show: bool) -> list[Frame]:
        skip = self._context.skip_frame if self._context else "DEFAULT"
        if content is not None and (
            not content.data
            or skip == "ALL"
            or (skip in _KEYFRAMES_ONLY and not content.is_keyframe)
        ):
            return []
        decoder = self._neural()
        self._started = True
        packet = coded_packet(content) if content else None
        if packet is not None and self._begin is not None:
            show = show and packet.pts * self.time_base >= self._begin
        return decoder.decode(packet, show=show)

    def reset(self) -> None:
        """Forget what was decoded, as after a seek."""
        self._begin = None
        if self._decoder:
            self._decoder.reset()
        if self._media:
            self._media.reset()

    def use_threads(self, count: int) -> None:
        """Of a neural stream: threads of the networks, see `Runtime`.

        Raises:
            ConfigError: a frame is decoded already, or the count is out of range.
        """
        if self._started:
            raise ConfigError("thread_count is set before the first frame is decoded")
        container = self.container
        container.runtime = replace(container.runtime or Runtime(), threads=count)
        if self._decoder is not None:  # the header alone was read with it
            levels, self._decoder = self._decoder.levels, None
            self._neural().levels = levels

    def hide_before(self, seconds: Fraction) -> None:
        """Of a neural stream, until it is reset: frames before a time do not come out."""
        self._begin = seconds

    def _neural(self) -> Decoder:
        if self._decoder is None:
            container = self.container
            self._decoder = Decoder(
                self.info.extradata, container.options, runtime=container.runtime, motion=True
            )
        return self._decoder

    def _media_decoder(self) -> MediaDecoder:
        if self._media is None:
            self._media = MediaDecoder(self.info)
        return self._media

    def __repr__(self) -> str:
        return f"<vcfilter.Stream #{self.index} {self.type} {self.codec_name}>"


class Streams(tuple[Stream, ...]):
    """The streams of a container, in the file's order."""

    __slots__ = ()

    @property
    def video(self) -> tuple[Stream, ...]:
        """Neural streams first, then other video."""
        videos = self._of("video")
        return tuple(sorted(videos, key=lambda stream: stream.codec_name != "vcfilter"))

    @property
    def audio(self) -> tuple[Stream, ...]:
        """The audio streams."""
        return self._of("audio")

    @property
    def subtitles(self) -> tuple[Stream, ...]:
        """The subtitle streams."""
        return self._of("subtitle")

    @property
    def data(self) -> tuple[Stream, ...]:
        """The data streams."""
        return self._of("data")

    @property
    def attachments(self) -> tuple[Stream, ...]:
        """The attachments."""
        return self._of("attachment")

    def _of(self, kind: str) -> tuple[Stream, ...]:
        return tuple(stream for stream in self if stream.type == kind)

    def best(self, kind: str) -> Stream | None:
        """The stream of a kind ("video", "audio", "subtitle", "data", "attachment") that a player
        begins with: the first one flagged as default, else the first; None: there is none.

        Of video streams neural ones come first.

        Raises:
            ConfigError: the kind is none of these.
        """
        known = (*_KINDS.values(), "attachment")
        if kind not in known:
            raise ConfigError(f"stream kind {kind!r} is not one of {', '.join(known)}")
        found = self.video if kind == "video" else self._of(kind)
        neural = tuple(stream for stream in found if stream.codec_name == "vcfilter")
        return max(neural or found, key=lambda stream: stream.disposition & 1, default=None)

    def _one(self, chosen: object) -> Stream:
        if isinstance(chosen, Stream):
            return chosen
        if not isinstance(chosen, int) or not 0 <= chosen < len(self):
            raise ConfigError(f"{chosen!r} is neither a stream nor an index below {len(self)}")
        return self[chosen]

    def get(self, *streams: Stream | int, **kinds: int | Sequence[int]) -> list[Stream]:
        """Streams by themselves, by index, or by kind and position (video=0, audio=(0, 1))."""
        chosen = [self._one(each) for each in streams]
        for kind, positions in kinds.items():
            if kind not in _KINDS:
                raise ConfigError(f"stream kind {kind!r} is not one of {', '.join(_KINDS)}")
            of_kind = self.video if kind == "video" else self._of(_KINDS[kind])
            wanted = (positions,) if isinstance(positions, int) else positions
            if not isinstance(wanted, Sequence) or not all(isinstance(n, int) for n in wanted):
                raise ConfigError(f"{kind}={positions!r} is neither a position nor several of them")
            for position in wanted:
                if not 0 <= position < len(of_kind):
                    raise ConfigError(f"{kind}={position}: there are {len(of_kind)} such streams")
                chosen.append(of_kind[position])
        return chosen or list(self)
