"""Values and errors of the binding to libavformat."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

StreamKind = Literal["video", "audio", "subtitle", "attachment", "data"]

DISPOSITION_DEFAULT = 0x0001
DISPOSITION_ATTACHED_PICTURE = 0x0400


class BridgeError(OSError):
    """A call into libavformat failed.

    Args:
        code: errno, or errno.EINVAL where libav's error has none.
        text: of av_strerror, followed by libav's log line in parentheses where there is one.
        name: the file or the object in use.
    """

    def __init__(self, code: int, text: str, name: str = "") -> None:
        super().__init__(code, text, name)

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else str(self.strerror)


class BridgeFileNotFoundError(BridgeError, FileNotFoundError):
    """The file or its folder does not exist."""


class BridgePermissionError(BridgeError, PermissionError):
    """The file may not be read or written."""


class BridgeIsADirectoryError(BridgeError, IsADirectoryError):
    """The name is a folder's."""


class BridgeBrokenPipeError(BridgeError, BrokenPipeError):
    """The reader of the output closed it."""


class InvalidDataError(BridgeError, ValueError):
    """The input is no media file, or is damaged beyond reading."""


ERROR_CLASSES: dict[int, type[BridgeError]] = {
    errno.ENOENT: BridgeFileNotFoundError,
    errno.EACCES: BridgePermissionError,
    errno.EPERM: BridgePermissionError,
    errno.EISDIR: BridgeIsADirectoryError,
    errno.EPIPE: BridgeBrokenPipeError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """One stream by value: its parameters as libavformat reads and writes them.

    Args:
        kind: what the stream carries.
        codec: FFmpeg's codec name ("aac"); empty where FFmpeg has none, as for VCF1.
        codec_tag: FourCC as four latin-1 characters ("VCF1"); empty when there is none.
        index: position in its file; the muxer assigns its own.
        extradata: the codec's out-of-band bytes; of an attachment, its content.
        time_base: seconds per tick; a muxer may choose another (see Muxer.stream_time_base).
        start_time, duration: in ticks of time_base; None when unknown.
        id: the container's own number of the stream (MPEG-TS: its PID); not written.
        frames: number of packets as the container states it; 0 when unknown; not written.
        disposition: FFmpeg's AV_DISPOSITION_* bits (1 default, 2 dub, 64 forced, ...).
        metadata: tags; "language", "title", for attachments "filename" and "mimetype".
        width, height: picture size in luma samples.
        sample_aspect_ratio: width of a sample over its height; None when unknown.
        frame_rate: average frames per second; None when unknown or variable. A muxer derives the
            track's default duration from it.
        base_rate: lowest frame rate that represents all times exactly (FFmpeg's r_frame_rate);
            None when unknown; not written.
        pixel_format: FFmpeg's name ("yuv420p"); may be empty.
        color_primaries, color_trc, colorspace: code points of ITU-T H.273 (2 = unspecified).
        color_range: 0 unspecified, 1 limited, 2 full.
        chroma_location: FFmpeg's AVChromaLocation (0 unspecified, 1 left, ...).
        rotation: clockwise rotation for display in degrees, 0 to 359. When written, a
            "Display Matrix" in side_data takes precedence over it and over mirrored.
        mirrored: whether the picture is mirrored left to right before it is rotated.
        field_order: FFmpeg's AVFieldOrder (0 unknown, 1 progressive, ...).
        video_delay: frames of reordering delay.
        sample_rate: audio samples per second.
        channels: number of audio channels.
        channel_layout: mask of speaker positions; 0 where the order is not a native one.
        sample_format: FFmpeg's name ("fltp"); may be empty.
        frame_size: audio samples per packet; 0 unknown or variable.
        initial_padding, trailing_padding, seek_preroll: in audio samples.
        bits_per_coded_sample, bits_per_raw_sample, block_align, profile, level, bit_rate: as in
            AVCodecParameters (-99 is FFmpeg's "unknown" of profile and level).
        side_data: (type name, bytes) of the whole stream ("Display Matrix",
            "Mastering display metadata", ...).
        attached_picture: the picture of a stream with DISPOSITION_ATTACHED_PICTURE.
    """

    kind: StreamKind
    codec: str = ""
    codec_tag: str = ""
    index: int = 0
    extradata: bytes = b""
    time_base: Fraction = Fraction(1, 1000)
    start_time: int | None = None
    duration: int | None = None
    id: int = 0
    frames: int = 0
    disposition: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    height: int = 0
    sample_aspect_ratio: Fraction | None = None
    frame_rate: Fraction | None = None
    base_rate: Fraction | None = None
    pixel_format: str = ""
    color_primaries: int = 2
    color_trc: int = 2
    colorspace: int = 2
    color_range: int = 0
    chroma_location: int = 0
    rotation: int = 0
    mirrored: bool = False
    field_order: int = 0
    video_delay: int = 0
    sample_rate: int = 0
    channels: int = 0
    channel_layout: int = 0
    sample_format: str = ""
    frame_size: int = 0
    initial_padding: int = 0
    trailing_padding: int = 0
    seek_preroll: int = 0
    bits_per_coded_sample: int = 0
    bits_per_raw_sample: int = 0
    block_align: int = 0
    profile: int = -99
    level: int = -99
    bit_rate: int = 0
    side_data: tuple[tuple[str, bytes], ...] = ()
    attached_picture: bytes = b""

    def as_attachment(self) -> StreamInfo:
        """The attachment that holds this stream's attached picture (cover art).

        Matroska stores cover art as an attachment; as a stream it would be a video track of one
        frame.

        Raises:
            ValueError: the stream has no attached picture.
        """
        if not self.attached_picture:
            raise ValueError(f"stream {self.index} has no attached picture")
        mimetype = self.metadata.get("mimetype") or _PICTURE_MIMETYPES.get(self.codec)
        if mimetype is None:
            raise ValueError(f"stream {self.index}: no mimetype is known for codec {self.codec!r}")
        metadata = {"filename": f"cover.{mimetype.split('/')[1].replace('jpeg', 'jpg')}"}
        metadata |= {**self.metadata, "mimetype": mimetype}
        return replace(
            StreamInfo(kind="attachment"),
            codec=self.codec,
            extradata=self.attached_picture,
            metadata=metadata,
        )


_PICTURE_MIMETYPES = {
    "mjpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "webp": "image/webp",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One chapter; start and end are in ticks of time_base."""

    id: int
    start: int
    end: int
    time_base: Fraction
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgePacket:
    """One packet of one stream.

    Args:
        stream_index: index of its stream, in the file that it comes from or goes to.
        data: its bytes.
        pts, dts: presentation and decoding time in ticks of time_base; None when unknown.
        duration: in the same ticks; 0 when unknown.
        is_keyframe: decoding can start here.
        discard: decoded as a reference but not shown (by an edit list); not written.
        time_base: seconds per tick.
        side_data: (type name, bytes), as "Skip Samples" or "Matroska BlockAdditional".
    """

    stream_index: int
    data: bytes
    pts: int | None
    dts: int | None
    duration: int = 0
    is_keyframe: bool = False
    discard: bool = False
    time_base: Fraction
    side_data: tuple[tuple[str, bytes], ...] = ()
