"""The sequence header: the parameters that a decoder needs before the first frame.

All integers are big-endian. Every field that is read is checked.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import (
    LEVELS_MAX,
    SLOTS,
    ContentLight,
    FieldOrder,
    MasteringDisplay,
    VideoFormat,
)

MAGIC = b"VCF1"
VERSION = 2
MODEL_ID_BYTES = 8
MODE_BYTES_MAX = 3
NAME_BYTES_MAX = 32

_FIXED = struct.Struct(">BB8sBBHHBBBBBH")
_CHROMA_420 = 1
_COLOR, _ASPECT, _MASTERING, _LIGHT, _NAME = 1, 2, 4, 8, 16  # flags of the blocks


class VersionError(BitstreamError):
    """The stream is of a bitstream version that this release does not read.

    Args:
        version: which one. Version 1 is recognised by its check; a later one by its number only,
            since the position of its check is unknown.
    """

    def __init__(self, version: int) -> None:
        super().__init__(
            f"the stream has bitstream version {version}; this vcfilter reads version "
            f"{VERSION}: another release of vcfilter is needed"
        )
        self.version = version

    def __reduce__(self) -> tuple[type[VersionError], tuple[int]]:
        return VersionError, (self.version,)


class StructureKind(IntEnum):
    """The kind of reference structure; the references themselves stand in the frame headers."""

    RANDOM_ACCESS = 0
    LOW_DELAY = 1
    INTRA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceHeader:
    """The track's extradata; every keyframe packet holds it as well, without the name.

    Args:
        model_id: 8 bytes, hash over the model's architecture, configuration, weights and tables.
        architecture, numerics: numbers of the model's kind and of its arithmetic, 0 to 255.
        video_format: size, depth, colour and display of every frame.
        structure: kind of the reference structure.
        levels: most quality levels of a frame, 1 to 8.
        slots: places for references that the stream uses, 1 to 8.
        reorder: most frames that a decoder holds before it can output one, 0 to 255.
        reach: largest display distance to a reference, 0 to 65535.
        name: the model's, at most 32 bytes of UTF-8; "" if it is not stated.

    Raises:
        BitstreamError: a value is outside these bounds.
    """

    model_id: bytes
    architecture: int = 1
    numerics: int = 1
    video_format: VideoFormat
    structure: StructureKind = StructureKind.RANDOM_ACCESS
    levels: int = 1
    slots: int = SLOTS
    reorder: int = 0
    reach: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.model_id) != MODEL_ID_BYTES:
            raise BitstreamError(f"model id has {len(self.model_id)} bytes, not {MODEL_ID_BYTES}")
        for name, low, high in (
            ("architecture", 0, 255),
            ("numerics", 0, 255),
            ("levels", 1, LEVELS_MAX),
            ("slots", 1, SLOTS),
            ("reorder", 0, 255),
            ("reach", 0, 0xFFFF),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise BitstreamError(f"{name} {value} is outside {low} to {high}")
        try:
            size = len(self.name.encode())
        except UnicodeEncodeError as error:
            raise BitstreamError(f"model name {self.name!r} is no UTF-8: {error}") from error
        if size > NAME_BYTES_MAX:
            raise BitstreamError(f"model name {self.name!r} has more than {NAME_BYTES_MAX} bytes")

    def write(self) -> bytes:
        """The bytes of the extradata: magic, body, and a check of 16 bits."""
        data = MAGIC + self.write_body(self.name)
        return data + _check(data)

    def write_body(self, name: str = "") -> bytes:
        """The bytes that a keyframe packet holds."""
        fmt = self.video_format
        colour = (fmt.color_primaries, fmt.color_trc, fmt.colorspace)
        flags, blocks = 0, b""
        if colour != (2, 2, 2):
            flags, blocks = _COLOR, bytes(colour)
        if fmt.sample_aspect_ratio != (0, 1):
            flags |= _ASPECT
            blocks += struct.pack(">HH", *fmt.sample_aspect_ratio)
        if fmt.mastering is not None:
            flags |= _MASTERING
            shown = fmt.mastering
            points = [value for point in shown.primaries for value in point]
            blocks += struct.pack(">8H2I", *points, *shown.white_point, *shown.luminance)
        if fmt.content_light is not None:
            flags |= _LIGHT
            light = fmt.content_light
            blocks += struct.pack(">HH", light.max_content, light.max_average)
        if name:
            flags |= _NAME
            blocks += bytes((len(name.encode()),)) + name.encode()
        return (
            _FIXED.pack(
                VERSION,
                flags,
                self.model_id,
                self.architecture,
                self.numerics,
                fmt.width,
                fmt.height,
                _CHROMA_420 << 4 | fmt.bit_depth,
                fmt.color_range << 6
                | fmt.chroma_location << 3
                | fmt.rotation // 90 << 1
                | fmt.mirrored,
                fmt.field_order << 5 | self.structure << 3 | (self.levels - 1),
                self.slots << 4,
                self.reorder,
                self.reach,
            )
            + blocks
        )

    @classmethod
    def read(cls, data: bytes) -> SequenceHeader:
        """Parse extradata; what follows them is ignored.

        Raises:
            VersionError: they are of a version that this release does not read.
            BitstreamError: they are cut short, damaged or out of range.
        """
        if data[:4] != MAGIC:
            raise BitstreamError(f"sequence header starts with {data[:4]!r}, not {MAGIC!r}")
        if len(data) > 4 and data[4] != VERSION:
            raise _other_version(data)
        header, end = cls.read_body(data, 4)
        if _check(data[:end]) != data[end : end + 2]:
            raise BitstreamError("sequence header is damaged (its check does not match)")
        return header

    @classmethod
    def read_body(cls, data: bytes, start: int) -> tuple[SequenceHeader, int]:
        """Parse the body at `start`: the header, and the offset behind it.

        Raises:
            VersionError, BitstreamError: as of `read`.
        """
        if len(data) > start and data[start] != VERSION:
            raise VersionError(data[start])
        if len(data) < start + _FIXED.size:
            raise BitstreamError(f"sequence header has {len(data) - start} bytes: too short")
        (_, flags, model_id, architecture, numerics, width, height, depth, display, structure,
         slots, reorder, reach) = _FIXED.unpack_from(data, start)  # fmt: skip
        if depth >> 4 != _CHROMA_420 or flags >> 5 or slots & 0x0F:
            raise BitstreamError(
                f"sequence header has unknown chroma format {depth >> 4} or a reserved bit set"
            )
        blocks = _Blocks(data, start + _FIXED.size)
        fields: dict[str, object] = {}
        if flags & _COLOR:
            primaries, trc, space = blocks.take(">3B")
            fields |= {"color_primaries": primaries, "color_trc": trc, "colorspace": space}
        try:
            if flags & _ASPECT:
                fields["sample_aspect_ratio"] = blocks.take(">HH")
            if flags & _MASTERING:
                xs = blocks.take(">8H2I")
                fields["mastering"] = MasteringDisplay(
                    primaries=((xs[0], xs[1]), (xs[2], xs[3]), (xs[4], xs[5])),
                    white_point=(xs[6], xs[7]),
                    luminance=(xs[8], xs[9]),
                )
            if flags & _LIGHT:
                brightest, average = blocks.take(">HH")
                fields["content_light"] = ContentLight(max_content=brightest, max_average=average)
            name = blocks.text() if flags & _NAME else ""
            fmt = VideoFormat(
                width=width,
                height=height,
                bit_depth=depth & 15,
                color_range=display >> 6,
                chroma_location=display >> 3 & 7,
                rotation=(display >> 1 & 3) * 90,
                mirrored=bool(display & 1),
                field_order=FieldOrder(structure >> 5),
                **fields,  # type: ignore[arg-type]
            )
            kind = StructureKind(structure >> 3 & 3)
        except (ConfigError, ValueError) as error:
            raise BitstreamError(f"sequence header: {error}") from error
        header = cls(
            model_id=model_id,
            architecture=architecture,
            numerics=numerics,
            video_format=fmt,
            structure=kind,
            levels=(structure & 7) + 1,
            slots=slots >> 4,
            reorder=reorder,
            reach=reach,
            name=name,
        )
        if header.write_body(name) != data[start : blocks.offset]:
            raise BitstreamError("sequence header holds a block that says nothing")
        return header, blocks.offset


class _Blocks:
    """Reads the optional blocks behind the fixed fields."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self.offset = offset

    def take(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        if len(self._data) < self.offset + size:
            raise BitstreamError("sequence header is cut short")
        self.offset += size
        return struct.unpack_from(form, self._data, self.offset - size)

    def text(self) -> str:
        (length,) = self.take(">B")
        if not 1 <= length <= NAME_BYTES_MAX:
            raise BitstreamError(f"model name has {length} bytes, 1 to {NAME_BYTES_MAX} are valid")
        raw = bytes(self.take(f">{length}B"))
        return raw.decode()  # a ValueError is translated by the caller


def _other_version(data: bytes) -> BitstreamError:
    """The error for extradata of another version, or with nothing but its byte damaged."""
    damaged = BitstreamError("sequence header is damaged (its version and check contradict)")
    if data[4] < VERSION:
        return VersionError(data[4]) if _check(data[:26]) == data[26:28] else damaged
    try:
        SequenceHeader.read(data[:4] + bytes((VERSION,)) + data[5:])
    except BitstreamError:
        return VersionError(data[4])
    return damaged


def _check(data: bytes) -> bytes:
    """The low 16 bits of the CRC-32, big-endian."""
    return (zlib.crc32(data) & 0xFFFF).to_bytes(2, "big")
