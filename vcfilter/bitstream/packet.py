"""Packets: one coded frame each, a base and up to seven quality levels behind it.

A check binds a packet to its GOP (it covers the keyframe's identity and the frame's full number),
so that a packet of another GOP, a repeated or a misplaced one is detected when it is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vcfilter.bitstream.headers import (
    MAGIC,
    MODE_BYTES_MAX,
    VERSION,
    SequenceHeader,
    VersionError,
)
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import LEVELS_MAX, QP_MAX, FrameStep, FrameType, Packet, VideoFormat

_KEY_BYTE = 0x02  # a keyframe's first byte: code 0, layer 0, referred to
_REPEAT = 3  # added to the number of references in the code of a frame with nothing coded
_CHECK_BYTES = {"key": 4, "inter": 3, "repeat": 2, "level": 3}
_LENGTH_BYTES_MAX = 4  # 28 bits of length
_DISTANCE_BYTES_MAX = 3
_BYTES_PER_PIXEL_MAX = 8  # several times the raw 10-bit frame (3 bytes per luma sample)
_PACKET_SLACK = 4096  # headers and entropy coder overhead of the smallest frames


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """How one frame is coded.

    Args:
        step: type, qp, layer, number, references and slot. The qp of a frame with nothing coded
            is not transmitted and reads as 0.
        mode: the model's own bytes, at most 3.
        next_key: the farthest reference in the future is the next GOP's keyframe, and these are
            the low 16 bits of its identity; None: all references lie in this GOP.

    Raises:
        BitstreamError: a value is outside these bounds.
    """

    step: FrameStep
    mode: bytes = b""
    next_key: int | None = None

    def __post_init__(self) -> None:
        if len(self.mode) > MODE_BYTES_MAX:
            raise BitstreamError(f"mode has {len(self.mode)} bytes, at most {MODE_BYTES_MAX} fit")
        if self.next_key is not None:
            if not 0 <= self.next_key <= 0xFFFF:
                raise BitstreamError(f"next_key {self.next_key} is no number of 16 bits")
            if max(self.step.references, default=0) <= 0:
                raise BitstreamError("no reference in the future can be the next keyframe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The entropy-coded bytes of one quality level.

    Args:
        level: 0 the base, 1 to 7.
        qp: of the level, 0 to 63; the base's is the frame's.
        data: its bytes; may be empty.

    Raises:
        BitstreamError: a value is outside these bounds.
    """

    level: int
    qp: int
    data: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.level < LEVELS_MAX and 0 <= self.qp <= QP_MAX):
            raise BitstreamError(f"level {self.level} or its qp {self.qp} is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo:
    """A packet that was read.

    Args:
        sequence: the sequence header (keyframes only).
        header: the frame header.
        sections: by level, the base first; empty: nothing is coded.
        size: bytes of the whole packet.
        base_size: bytes of it up to the end of the base, the check included.
        identity: CRC-32 of the bytes before the check. A keyframe's enters the checks of its
            GOP, and the base's those of its levels.
        lost_levels: whether something behind the base is damaged or cut short.
    """

    sequence: SequenceHeader | None
    header: FrameHeader
    sections: tuple[Section, ...]
    size: int
    base_size: int
    identity: int
    lost_levels: bool = False


def write_packet(
    header: FrameHeader,
    sections: Sequence[Section],
    *,
    sequence: SequenceHeader | None = None,
    key_identity: int = 0,
) -> bytes:
    """The bytes of one packet.

    Args:
        sections: by rising level from the base on; none: the frame repeats its reference, or is
            the average of two (an inter frame without mode bytes).
        sequence: given for keyframes, None for inter frames.
        key_identity: `PacketInfo.identity` of the GOP's keyframe, for inter frames.

    Raises:
        BitstreamError: headers and sections contradict each other.
    """
    step = header.step
    key = step.type is FrameType.KEY
    if (sequence is not None) != key:
        raise BitstreamError("a keyframe needs a sequence header, an inter frame has none")
    if not sections and (key or header.mode or len(step.references) > 2):
        raise BitstreamError("a frame with nothing coded has one or two references and no mode")
    levels = [section.level for section in sections]
    if levels and (levels[0] != 0 or levels != sorted(set(levels))):
        raise BitstreamError(f"levels {levels} do not rise from 0 on")
    body = bytearray()
    if sequence is not None:
        body.append(_KEY_BYTE)
        body.append(step.qp << 2 | len(header.mode))
        body += sequence.write_body()
    else:
        extended = header.next_key is not None or step.slot not in (None, step.layer)
        code = len(step.references) + (0 if sections else _REPEAT)
        body.append(code << 5 | step.layer << 2 | (step.slot is not None) << 1 | extended)
        if extended:
            body.append((header.next_key is not None) << 7 | (step.slot or 0) << 4)
        if header.next_key is not None:
            body += header.next_key.to_bytes(2, "big")
        body.append(step.number & 0xFF)
        for distance in step.references:
            body += _write_number(2 * distance if distance > 0 else -2 * distance - 1)
        if sections:
            body.append(step.qp << 2 | len(header.mode))
    if sections:
        body += header.mode + _write_length(sections[0].data)
    identity = zlib.crc32(body)  # without the check: with it half of the bits would cancel out
    seed = b"" if key else _seed(key_identity, step.number)
    body += _check(seed + body, _CHECK_BYTES["key" if key else "inter" if sections else "repeat"])
    for section in sections[1:]:
        head = (section.level << 13 | section.qp << 7).to_bytes(2, "big")
        part = head + _write_length(section.data)
        body += part + _check(identity.to_bytes(4, "big") + part, _CHECK_BYTES["level"])
    return bytes(body)


def read_packet(data: bytes, *, key_identity: int | None = None, after: int = 0) -> PacketInfo:
    """Check and parse one packet.

    Args:
        key_identity: of the GOP's keyframe; None: an inter frame's check is not compared, and
            its number is right modulo 256 only.
        after: number of the newest frame of the GOP; the packet's is 1 to 256 larger.

    Raises:
        VersionError: it is of another bitstream version.
        BitstreamError: it is damaged, cut short, invalid or of another GOP.
    """
    if data[:5] == MAGIC + b"\x01" and data[-4:] == _check(data[:-4], 4):
        raise VersionError(1)  # its keyframe packets began and ended so
    if data[:1] == bytes((_KEY_BYTE,)) and len(data) > 2 and data[2] != VERSION:
        raise _other_version(data)
    reader = _Reader(data)
    first = reader.byte()
    sequence, next_key = None, None
    seed: bytes | None
    if first == _KEY_BYTE:
        fields = reader.byte()
        sequence, reader.offset = SequenceHeader.read_body(data, reader.offset)
        if sequence.name:
            raise BitstreamError("a keyframe's sequence header holds a name")
        step = FrameStep(type=FrameType.KEY, qp=fields >> 2)
        count, kind, seed = fields & 3, "key", b""
    else:
        code = first >> 5
        if not 1 <= code <= 5:
            raise BitstreamError(f"a packet starts with the unknown code {code}")
        slot = first >> 2 & 7 if first & 2 else None
        if first & 1:
            extension = reader.byte()
            slot = _explicit_slot(extension, slot)
            if extension & 0x80:
                next_key = reader.byte() << 8 | reader.byte()
            elif slot in (None, first >> 2 & 7):
                raise BitstreamError("a frame header's extension says nothing")
        number = after + 1 + (reader.byte() - after - 1) % 256
        coded = code <= _REPEAT
        distances = [
            reader.number(_DISTANCE_BYTES_MAX) for _ in range(code - (not coded) * _REPEAT)
        ]
        references = tuple(-(d + 1) // 2 if d & 1 else d // 2 for d in distances)
        if key_identity is None:
            number += max(0, -min(references) - number + 255) // 256 * 256
        fields = reader.byte() if coded else 0
        count, kind = fields & 3, "inter" if coded else "repeat"
        try:
            step = FrameStep(
                type=FrameType.INTER,
                qp=fields >> 2,
                layer=first >> 2 & 7,
                number=number,
                references=references,
                slot=slot,
            )
        except ConfigError as error:
            raise BitstreamError(f"frame header: {error}") from error
        seed = _seed(key_identity, number) if key_identity is not None else None
    header = FrameHeader(step=step, mode=reader.bytes(count), next_key=next_key)
    base = None if kind == "repeat" else reader.bytes(reader.number(_LENGTH_BYTES_MAX))
    end = reader.offset
    check = reader.bytes(_CHECK_BYTES[kind])
    if seed is not None and check != _check(seed + data[:end], len(check)):
        raise BitstreamError(f"a packet of {len(data)} bytes is damaged (its check does not match)")
    identity = zlib.crc32(data[:end])
    base_size = reader.offset
    sections: tuple[Section, ...] = ()
    lost = False
    if base is not None:
        above, lost = _read_levels(reader, identity)
        sections = (Section(level=0, qp=step.qp, data=base), *above)
    elif reader.offset < len(data):
        raise BitstreamError(f"{len(data) - reader.offset} bytes follow a frame's end")
    return PacketInfo(
        sequence=sequence,
        header=header,
        sections=sections,
        size=len(data),
        base_size=base_size,
        identity=identity,
        lost_levels=lost,
    )


class PacketReader:
    """Reads the packets of a stream one after the other, without decoding them."""

    def __init__(self) -> None:
        self._identity: int | None = None
        self._newest = 0

    def read(self, data: bytes) -> PacketInfo:
        """Check and parse the next packet.

        Raises:
            VersionError, BitstreamError: as of `read_packet`; the next packet may be read.
        """
        info = read_packet(data, key_identity=self._identity, after=self._newest)
        if info.sequence is not None:
            self._identity = info.identity
        self._newest = info.header.step.number
        return info


def level_sizes(info: PacketInfo) -> tuple[int, ...]:
    """(8,) the bytes of a packet with 1, 2, ... 8 of its quality levels, as `thin` leaves them."""
    sizes = [info.base_size] * LEVELS_MAX
    for section in info.sections[1:]:
        size = 2 + len(_write_length(section.data)) + _CHECK_BYTES["level"]
        for level in range(section.level, LEVELS_MAX):
            sizes[level] += size
    return tuple(sizes)


def thin(data: bytes, levels: int) -> bytes:
    """A packet with its lowest quality levels only: its first bytes, nothing is coded again.

    Args:
        data: a packet; its check is not compared.
        levels: quality levels that stay, at least 1 (the base).

    Raises:
        BitstreamError: the packet cannot be parsed.
    """
    if levels < 1:
        raise BitstreamError(f"levels {levels}: at least the base stays")
    return data[: level_sizes(read_packet(data))[min(levels, LEVELS_MAX) - 1]]


def thin_packet(packet: Packet, levels: int) -> Packet:
    """The same of a coded frame, see `thin`."""
    return replace(packet, data=thin(packet.data, levels))


def packet_size_max(video_format: VideoFormat) -> int:
    """Largest size in bytes a packet of this format may have."""
    return _BYTES_PER_PIXEL_MAX * video_format.width * video_format.height + _PACKET_SLACK


def _other_version(data: bytes) -> BitstreamError:
    """The error for a keyframe of a later version, or with nothing but its byte damaged."""
    if data[2] > VERSION:  # those of version 1 begin otherwise
        try:
            read_packet(data[:2] + bytes((VERSION,)) + data[3:])
        except BitstreamError:
            return VersionError(data[2])
    return BitstreamError(f"a packet of {len(data)} bytes is damaged (its check does not match)")


def _read_levels(reader: _Reader, identity: int) -> tuple[list[Section], bool]:
    """Levels behind the base; and whether one of them, and so all after it, is lost."""
    found: list[Section] = []
    level = 0
    while not reader.ended:
        start = reader.offset
        try:
            head = reader.byte() << 8 | reader.byte()
            data = reader.bytes(reader.number(_LENGTH_BYTES_MAX))
            part = reader.data[start : reader.offset]
            check = reader.bytes(_CHECK_BYTES["level"])
        except BitstreamError:
            return found, True
        expected = _check(identity.to_bytes(4, "big") + part, len(check))
        if check != expected or head & 0x7F or head >> 13 <= level:
            return found, True
        level = head >> 13
        found.append(Section(level=level, qp=head >> 7 & 63, data=data))
    return found, False


def _explicit_slot(extension: int, slot: int | None) -> int | None:
    if extension & 0x0F:
        raise BitstreamError("a reserved bit of a frame header is set")
    named = extension >> 4 & 7
    if slot is None:
        if named:
            raise BitstreamError(f"slot {named} is named for a frame that is not kept")
        return None
    return named


class _Reader:
    """Reads a packet from its start; never past its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    @property
    def ended(self) -> bool:
        return self.offset >= len(self.data)

    def byte(self) -> int:
        if self.ended:
            raise BitstreamError(f"a packet of {len(self.data)} bytes is cut short")
        self.offset += 1
        return self.data[self.offset - 1]

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.offset:
            raise BitstreamError(
                f"a packet of {len(self.data)} bytes is damaged: {count} bytes are stated, "
                f"{len(self.data) - self.offset} are there"
            )
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, bytes_max: int) -> int:
        """LEB128: seven bits a byte, lowest first, top bit set in all but the last."""
        value = 0
        for index in range(bytes_max):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index:
                    raise BitstreamError("a number is padded")
                return value
        raise BitstreamError(f"a number has more than {bytes_max} bytes")


def _write_number(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))


def _write_length(data: bytes) -> bytes:
    """A section's length and its bytes."""
    if len(data) >> 7 * _LENGTH_BYTES_MAX:
        raise BitstreamError(f"a section of {len(data)} bytes is too long")
    return _write_number(len(data)) + data


def _seed(key_identity: int, number: int) -> bytes:
    """What an inter packet's check covers besides its bytes."""
    return key_identity.to_bytes(4, "big") + number.to_bytes(8, "big")


def _check(data: bytes, size: int) -> bytes:
    """The low bytes of the CRC-32, big-endian."""
    return zlib.crc32(data).to_bytes(4, "big")[4 - size :]
