"""Headers and packets in bytes (docs/reference/bitstream.md). Knows no model and no structure."""

from vcfilter.bitstream.headers import (
    MAGIC,
    MODE_BYTES_MAX,
    VERSION,
    SequenceHeader,
    StructureKind,
    VersionError,
)
from vcfilter.bitstream.packet import (
    FrameHeader,
    PacketInfo,
    PacketReader,
    Section,
    level_sizes,
    packet_size_max,
    read_packet,
    thin,
    thin_packet,
    write_packet,
)

__all__ = [
    "MAGIC",
    "MODE_BYTES_MAX",
    "VERSION",
    "FrameHeader",
    "PacketInfo",
    "PacketReader",
    "Section",
    "SequenceHeader",
    "StructureKind",
    "VersionError",
    "level_sizes",
    "packet_size_max",
    "read_packet",
    "thin",
    "thin_packet",
    "write_packet",
]
