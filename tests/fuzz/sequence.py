"""Sequence headers in the reader of the plugin, which is in C, and in Python's: one verdict.

Input: a byte of flags (1 the check is computed), then the header.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

from fuzz import Program, outcome
from fuzz.streams import sequence_headers
from vcfilter.bitstream import VERSION, SequenceHeader
from vcfilter.errors import BitstreamError

CHECKED = 1


@cache
def _program() -> Program:
    return Program("sequence.c", "vcf_sequence.c")


def seeds() -> list[bytes]:
    """Every kind of header, with its check and with one that is computed."""
    return [
        bytes((flags,)) + (data[:-2] if flags else data)
        for flags in (0, CHECKED)
        for data in sequence_headers()
    ]


def run(data: bytes) -> None:
    """Read a header twice."""
    flags, data = data[0] if data else 0, data[1:]
    if flags & CHECKED:
        data += (zlib.crc32(data) & 0xFFFF).to_bytes(2, "big")
    found = _program().ask(struct.pack("=I", len(data)) + data).split(" ")
    outcome(found[0], len(data))
    try:
        header = SequenceHeader.read(data)
    except BitstreamError as error:
        if data[4:5] != bytes((VERSION,)):  # what of it is damage each may tell otherwise
            assert found[0] in ("version", "damaged"), data.hex()
            return
        # A name that is no UTF-8 does not matter to the plugin.
        assert found[0] == "damaged" or "utf-8" in str(error).lower(), data.hex()
    else:
        fmt = header.video_format
        wanted = ("ok", str(fmt.width), str(fmt.height), str(fmt.bit_depth))
        assert tuple(found[:4]) == wanted, data.hex()
        assert header.model_id.hex() in found
