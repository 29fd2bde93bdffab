"""The bitstream: sequence headers, frame headers and packets, in bytes (docs/bitstream.md).

All integers are big-endian. Nothing read here is believed before it is checked: the CRC
first, then each field, then lengths against what is there.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import QP_MAX, FrameType, VideoFormat
from vcfilter.options import KEYINT_MAX

MAGIC = b"VCF1"
VERSION = 1
MODEL_ID_BYTES = 8
SEQUENCE_HEADER_BYTES = 28
LAYER_MAX = 7
MOTION_LEVEL_MAX = 7
MOTION_LEFT, MOTION_RIGHT, MOTION_DIRECT, MOTION_CODED = 1, 2, 3, 4
"""Values of FrameHeader.motion; 0 is no motion (average of the references)."""

_CHROMA_420 = 1
_INTER_BYTES = 7  # five bytes of fields, two of reference check
_CRC_BYTES = 4
_LENGTH_BYTES_MAX = 4  # 28 bits of payload length
_BYTES_PER_PIXEL_MAX = 8  # several times the raw 10-bit picture (3 bytes per luma pixel)
_PACKET_SLACK = 4096  # headers and entropy coder overhead of the smallest pictures


class VersionError(BitstreamError):
    """The stream is intact, but of a bitstream version that this release does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceHeader:
    """What a decoder must know before the first frame: the track's extradata, and the head
    of each keyframe packet.

    Args:
        model_id: 8 bytes, hash over the model's configuration, weights and tables.
        video_format: size, depth and colour description of every frame.

    Raises:
        BitstreamError: model_id is not 8 bytes long.
    """

    model_id: bytes
    video_format: VideoFormat

    def __post_init__(self) -> None:
        if len(self.model_id) != MODEL_ID_BYTES:
            raise BitstreamError(f"model id has {len(self.model_id)} bytes, not {MODEL_ID_BYTES}")

    def write(self) -> bytes:
        """The header's 28 bytes."""
        fmt = self.video_format
        fields = struct.pack(
            ">4sB8sHHBBBBBHH",
            MAGIC,
            VERSION,
            self.model_id,
            fmt.width,
            fmt.height,
            _CHROMA_420 << 4 | fmt.bit_depth,
            fmt.color_primaries,
            fmt.color_trc,
            fmt.colorspace,
            fmt.color_range << 6 | fmt.chroma_location << 3 | (fmt.rotation // 90) << 1,
            *fmt.sample_aspect_ratio,
        )
        return fields + _check16(fields)

    @classmethod
    def read(cls, data: bytes) -> SequenceHeader:
        """Parse the header at the start of `data`; what follows it is ignored.

        Raises:
            VersionError: it is of a version that this release does not know.
            BitstreamError: it is cut short, damaged or out of range.
        """
        if data[:4] != MAGIC:
            raise BitstreamError(f"sequence header starts with {data[:4]!r}, not {MAGIC!r}")
        if len(data) < SEQUENCE_HEADER_BYTES:
            raise BitstreamError(
                f"sequence header has {len(data)} bytes, {SEQUENCE_HEADER_BYTES} are needed"
            )
        data = data[:SEQUENCE_HEADER_BYTES]
        if _check16(data[:-2]) != data[-2:]:
            raise BitstreamError("sequence header is damaged (its check does not match)")
        _, version, model_id, width, height, depth, primaries, trc, space, flags, num, den = (
            struct.unpack(">4sB8sHHBBBBBHH", data[:-2])
        )
        if version != VERSION:
            raise VersionError(
                f"the stream has bitstream version {version}; this vcfilter reads version "
                f"{VERSION}: another release of vcfilter is needed"
            )
        if depth >> 4 != _CHROMA_420 or flags & 1:
            raise BitstreamError(
                f"sequence header has unknown chroma format {depth >> 4} or a reserved bit set"
            )
        try:
            fmt = VideoFormat(
                width=width,
                height=height,
                bit_depth=depth & 15,
                sample_aspect_ratio=(num, den),
                color_primaries=primaries,
                color_trc=trc,
                colorspace=space,
                color_range=flags >> 6,
                chroma_location=flags >> 3 & 7,
                rotation=(flags >> 1 & 3) * 90,
            )
        except ConfigError as error:
            raise BitstreamError(f"sequence header: {error}") from error
        return cls(model_id=model_id, video_format=fmt)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """How one frame is coded. A keyframe transmits its qp only; the rest keeps the defaults.

    Args:
        kind: KEY or INTER.
        qp: quantiser parameter of this frame, 0 to 63.
        layer: temporal layer: 0 keyframe, 1 to 7 inter; a reference's layer is always lower.
        position: display position in the segment, 0 (the keyframe) to 63.
        segment_length: frames in the segment, 2 to 64; 0 in a keyframe (not yet known).
        distances: display distance to the left reference (1 to position) and to the right
            one; right 0 means that only the left one is used. Position 0 is the segment's
            keyframe, position segment_length the next segment's.
        motion: 0 none (average, or copy of the left), 1 left, 2 right, 3 inherited from the
            references, 4 coded.
        motion_level: precision of coded motion, 0 (finest) to 7; 0 unless motion is coded.
        refine: whether motion is corrected by comparing the two references.
        residual: whether a residual is coded; otherwise the prediction is the picture.
        reference_check: reference_check() of the packets of the references, 16 bits.

    Raises:
        BitstreamError: a field is outside its range, or fields contradict each other.
    """

    kind: FrameType
    qp: int
    layer: int = 0
    position: int = 0
    segment_length: int = 0
    distances: tuple[int, int] = (0, 0)
    motion: int = 0
    motion_level: int = 0
    refine: bool = False
    residual: bool = True
    reference_check: int = 0

    def __post_init__(self) -> None:
        _within("qp", self.qp, 0, QP_MAX)
        if self.kind is FrameType.KEY:
            rest = (self.layer, self.position, self.segment_length, *self.distances)
            if any((*rest, self.motion, self.motion_level, self.refine)) or not self.residual:
                raise BitstreamError(f"a keyframe has inter fields: {self}")
            return
        left, right = self.distances
        _within("layer", self.layer, 1, LAYER_MAX)
        _within("segment_length", self.segment_length, 2, KEYINT_MAX)
        _within("position", self.position, 1, self.segment_length - 1)
        _within("left distance", left, 1, self.position)
        _within("right distance", right, 0, self.segment_length - self.position)
        _within("motion", self.motion, 0, MOTION_CODED)
        _within("motion_level", self.motion_level, 0, MOTION_LEVEL_MAX)
        _within("reference_check", self.reference_check, 0, 0xFFFF)
        if self.motion in (MOTION_RIGHT, MOTION_DIRECT) and right == 0:
            name = "right" if self.motion == MOTION_RIGHT else "inherited"
            raise BitstreamError(f"motion is {name!r}, but there is no right reference")
        if self.refine and (self.motion < MOTION_DIRECT or right == 0):
            raise BitstreamError("motion is refined, but there is none or no right reference")
        if self.motion_level and self.motion != MOTION_CODED:
            raise BitstreamError(f"motion_level {self.motion_level} without coded motion")

    @property
    def references(self) -> tuple[int, ...]:
        """Positions of the references in the segment: (), (left,) or (left, right)."""
        if self.kind is FrameType.KEY:
            return ()
        left, right = self.distances
        positions = (self.position - left, self.position + right)
        return positions if right else positions[:1]

    @property
    def has_payload(self) -> bool:
        """Whether anything is coded besides the header (even if it takes no bytes)."""
        return self.residual or self.motion == MOTION_CODED

    def write(self) -> bytes:
        """One byte for a keyframe, seven for an inter frame."""
        if self.kind is FrameType.KEY:
            return bytes((self.qp,))
        bits = 1  # marks an inter frame
        coded = self.motion == MOTION_CODED
        for value, width in (
            (int(coded), 1),
            (self.motion_level if coded else self.motion, 3),
            (int(self.residual), 1),
            (int(self.refine), 1),
            (self.qp, 6),
            (self.layer, 3),
            (self.position, 6),
            (self.segment_length - 1, 6),
            (self.distances[0], 6),
            (self.distances[1], 6),
            (self.reference_check, 16),
        ):
            bits = bits << width | value
        return bits.to_bytes(_INTER_BYTES, "big")

    @classmethod
    def read(cls, data: bytes) -> FrameHeader:
        """Parse the header at the start of `data`; what follows it is ignored.

        Raises:
            BitstreamError: it is cut short or a field is out of range.
        """
        if not data:
            raise BitstreamError("frame header is missing")
        if not data[0] & 0x80:
            return cls(kind=FrameType.KEY, qp=data[0])
        if len(data) < _INTER_BYTES:
            raise BitstreamError(f"frame header has {len(data)} bytes, not {_INTER_BYTES}")
        bits = int.from_bytes(data[:_INTER_BYTES], "big")
        coded, mode = bool(bits >> 54 & 1), bits >> 51 & 7
        if not coded and mode >= MOTION_CODED:
            raise BitstreamError(f"motion {mode} is not known")
        return cls(
            kind=FrameType.INTER,
            motion=MOTION_CODED if coded else mode,
            residual=bool(bits >> 50 & 1),
            motion_level=mode if coded else 0,
            refine=bool(bits >> 49 & 1),
            qp=bits >> 43 & 63,
            layer=bits >> 40 & 7,
            position=bits >> 34 & 63,
            segment_length=(bits >> 28 & 63) + 1,
            distances=(bits >> 22 & 63, bits >> 16 & 63),
            reference_check=bits & 0xFFFF,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo:
    """What a packet says about itself, without decoding it.

    Args:
        sequence: the sequence header (keyframes only).
        header: the frame header.
        size: bytes of the whole packet.
        payload_size: bytes of entropy-coded data in it.
        crc: the packet's CRC-32, which names it in its dependents' reference checks.
    """

    sequence: SequenceHeader | None
    header: FrameHeader
    size: int
    payload_size: int
    crc: int

    @classmethod
    def read(cls, data: bytes) -> PacketInfo:
        """Parse a packet; raises BitstreamError like read_packet."""
        sequence, header, payload = read_packet(data)
        return cls(
            sequence=sequence,
            header=header,
            size=len(data),
            payload_size=len(payload),
            crc=packet_crc(data),
        )


def write_packet(sequence: SequenceHeader | None, header: FrameHeader, payload: bytes) -> bytes:
    """The bytes of one packet: headers, payload length, payload, CRC-32.

    Args:
        sequence: given for keyframes, None for inter frames.

    Raises:
        BitstreamError: headers and payload do not belong together.
    """
    _check_packet(sequence, header, len(payload))
    head = sequence.write() if sequence is not None else b""
    body = head + header.write() + _write_length(len(payload)) + payload
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "big")


def read_packet(data: bytes) -> tuple[SequenceHeader | None, FrameHeader, bytes]:
    """Check and parse one packet: its sequence header (keyframes only), header and payload.

    Raises:
        BitstreamError: the packet is damaged, cut short, of an unknown version or nonsense.
    """
    if len(data) <= _CRC_BYTES:
        raise BitstreamError(f"a packet of {len(data)} bytes is too short")
    body = data[:-_CRC_BYTES]
    if zlib.crc32(body) != packet_crc(data):
        raise BitstreamError(f"a packet of {len(data)} bytes is damaged (its CRC does not match)")
    sequence = None
    start = 0
    if not body[0] & 0x80:
        sequence = SequenceHeader.read(body)
        start = SEQUENCE_HEADER_BYTES
    header = FrameHeader.read(body[start : start + _INTER_BYTES])
    start += 1 if header.kind is FrameType.KEY else _INTER_BYTES
    length, start = _read_length(body, start)
    if length != len(body) - start:
        raise BitstreamError(f"payload length {length} is stated, {len(body) - start} is there")
    _check_packet(sequence, header, length)
    return sequence, header, body[start:]


def packet_crc(data: bytes) -> int:
    """The CRC-32 a packet ends with (unchecked; 0 for less than four bytes)."""
    return int.from_bytes(data[-_CRC_BYTES:], "big") if len(data) >= _CRC_BYTES else 0


def packet_size_max(video_format: VideoFormat) -> int:
    """Largest size in bytes a packet of this format may have."""
    return _BYTES_PER_PIXEL_MAX * video_format.width * video_format.height + _PACKET_SLACK


def reference_check(*crcs: int) -> int:
    """16 bits that tie an inter frame to its references' packets.

    Args:
        crcs: CRC-32 of the left reference's packet and, if there is one, of the right one's.
    """
    return zlib.crc32(b"".join(crc.to_bytes(_CRC_BYTES, "big") for crc in crcs)) & 0xFFFF


def _check_packet(sequence: SequenceHeader | None, header: FrameHeader, length: int) -> None:
    if (sequence is not None) != (header.kind is FrameType.KEY):
        raise BitstreamError("a keyframe needs a sequence header, an inter frame has none")
    if length and not header.has_payload:
        raise BitstreamError(f"a payload of {length} bytes contradicts the frame header")
    if length >> 7 * _LENGTH_BYTES_MAX:
        raise BitstreamError(f"a payload of {length} bytes is too long")


def _write_length(length: int) -> bytes:
    """LEB128: seven bits a byte, lowest first, top bit set in all but the last."""
    groups = []
    while length > 0x7F:
        groups.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((*groups, length))


def _read_length(data: bytes, start: int) -> tuple[int, int]:
    """Length and the offset behind it; refuses longer forms than write_length's."""
    length = 0
    for index, byte in enumerate(data[start : start + _LENGTH_BYTES_MAX]):
        length |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                raise BitstreamError("payload length is padded")
            return length, start + index + 1
    raise BitstreamError("payload length is cut short or too long")


def _check16(data: bytes) -> bytes:
    return (zlib.crc32(data) & 0xFFFF).to_bytes(2, "big")


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BitstreamError(f"{name} {value} is outside {low} to {high}")
