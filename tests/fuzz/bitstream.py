"""Sequence headers and packets. What is read is written back as the same bytes.

Input: a byte of flags (1 a packet, 2 checks computed, 4 the keyframe is known), then the bytes.
"""

from __future__ import annotations

from fuzz.streams import KEY_IDENTITY, sequence_headers, set_checks, single_packets
from vcfilter.bitstream import SequenceHeader, read_packet, thin, write_packet
from vcfilter.errors import BitstreamError
from vcfilter.frames import LEVELS_MAX

PACKET, CHECKED, KNOWN = 1, 2, 4
VERSION_1 = b"VCF1\x01"


def seeds() -> list[bytes]:
    """Every header and kind of packet, with checks and without."""
    found = []
    for checked in (0, CHECKED):
        set_checks(bool(checked))
        found += [bytes((checked,)) + data for data in sequence_headers()]
        for data in single_packets():
            found += [bytes((checked | PACKET | known,)) + data for known in (0, KNOWN)]
    return found


def run(data: bytes) -> None:
    """Read a header or a packet."""
    flags, data = data[0] if data else 0, data[1:]
    set_checks(bool(flags & CHECKED))
    try:
        if not flags & PACKET:
            header = SequenceHeader.read(data)
            written = header.write()
            assert data.startswith(written), "a header is written otherwise than it was read"
            return
        info = read_packet(data, key_identity=KEY_IDENTITY if flags & KNOWN else None)
    except BitstreamError:
        return
    if data.startswith(VERSION_1):
        return  # by chance, and a check of version 1 may be hit: comparisons are traced
    assert info.size == len(data) >= info.base_size
    if flags & KNOWN or info.sequence is not None:
        written = write_packet(
            info.header, info.sections, sequence=info.sequence, key_identity=KEY_IDENTITY
        )
        assert data.startswith(written), "a packet is written otherwise than it was read"
        assert info.lost_levels == (len(written) < len(data))
    for levels in range(1, LEVELS_MAX + 1):
        kept = thin(data, levels)
        assert data.startswith(kept)
        sections = read_packet(kept).sections
        assert sections == tuple(each for each in info.sections if each.level < levels)
