"""SubRip and QuickTime text (mov_text) into each other, bold, italic and underlined kept.

A mov_text sample is two bytes of length, UTF-8 text, then boxes; the box "styl" holds a count and
for each style first and last character, font, flags (1 bold, 2 italic, 4 underlined), size, colour.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace

from vcfilter._bridge import BridgePacket

_TAGS = {"b": 1, "i": 2, "u": 4}
_STYLE = struct.Struct(">HHHBBI")
_FONT, _SIZE, _WHITE = 1, 18, 0xFFFFFFFF
_TAG = re.compile(r"<(/?)([biuBIU])>|</?font[^>]*>|\{\\[^}]*\}")

SAMPLE_DESCRIPTION = (
    struct.pack(">IBb4B", 0, 1, -1, 0, 0, 0, 0)  # flags, centred at the bottom, no background
    + struct.pack(">4H", 0, 0, 0, 0)  # the box: the whole frame
    + _STYLE.pack(0, 0, _FONT, 0, _SIZE, _WHITE)
    + struct.pack(">I4sHHB", 18, b"ftab", 1, _FONT, 5)
    + b"Serif"
)
"""Extradata of a mov_text track: white text at the bottom."""


def mov_text_to_subrip(packet: BridgePacket) -> BridgePacket | None:
    """A QuickTime text sample as SubRip; None of an empty one, which ends a text."""
    length = int.from_bytes(packet.data[:2], "big")
    text = packet.data[2 : 2 + length].decode("utf-8", "replace")
    if not text.strip():
        return None
    styles = _styles(packet.data[2 + length :])
    marked = _marked(text, styles).replace("\r\n", "\n").replace("\r", "\n")
    return replace(packet, data=marked.encode(), side_data=())


def subrip_to_mov_text(packet: BridgePacket) -> BridgePacket | None:
    """A SubRip text as a QuickTime text sample."""
    source = packet.data.decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n")
    text, styles = _unmarked(source)
    data = text.encode()[:65535]
    boxes = b""
    if styles:
        records = b"".join(
            _STYLE.pack(start, end, _FONT, flags, _SIZE, _WHITE) for start, end, flags in styles
        )
        boxes = struct.pack(">I4sH", 10 + len(records), b"styl", len(styles)) + records
    return replace(packet, data=len(data).to_bytes(2, "big") + data + boxes, side_data=())


def _styles(boxes: bytes) -> list[tuple[int, int, int]]:
    """(first character, end, flags) of each style in a sample's boxes."""
    found: list[tuple[int, int, int]] = []
    place = 0
    while place + 8 <= len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, place)
        if size < 8:
            break
        if kind == b"styl" and place + 10 <= len(boxes):
            (count,) = struct.unpack_from(">H", boxes, place + 8)
            for index in range(count):
                at = place + 10 + index * _STYLE.size
                if at + _STYLE.size > min(len(boxes), place + size):
                    break
                start, end, _, flags, _, _ = _STYLE.unpack_from(boxes, at)
                found.append((start, end, flags & 7))
        place += size
    return [style for style in found if style[0] < style[1] and style[2]]


def _marked(text: str, styles: list[tuple[int, int, int]]) -> str:
    """The text with SubRip's tags."""
    flags = [0] * len(text)
    for start, end, value in styles:
        for index in range(start, min(end, len(text))):
            flags[index] |= value
    result: list[str] = []
    open_tags: list[str] = []
    for char, wanted in zip([*text, ""], [*flags, 0], strict=True):
        while any(not wanted & _TAGS[tag] for tag in open_tags):
            result.append(f"</{open_tags.pop()}>")
        for tag, bit in _TAGS.items():
            if wanted & bit and tag not in open_tags:
                open_tags.append(tag)
                result.append(f"<{tag}>")
        result.append(char)
    return "".join(result)


def _unmarked(source: str) -> tuple[str, list[tuple[int, int, int]]]:
    """(text without tags, styles as first character, end, flags)."""
    text: list[str] = []
    styles: list[tuple[int, int, int]] = []
    active = dict.fromkeys(_TAGS, 0)
    place = begun = length = 0

    def close(end: int) -> None:
        flags = sum(bit for tag, bit in _TAGS.items() if active[tag])
        if flags and end > begun:
            styles.append((begun, end, flags))

    for match in _TAG.finditer(source):
        part = source[place : match.start()]
        text.append(part)
        length += len(part)
        place = match.end()
        tag = (match.group(2) or "").lower()
        if tag:
            close(length)
            active[tag] = max(0, active[tag] + (-1 if match.group(1) else 1))
            begun = length
    text.append(source[place:])
    close(length + len(source) - place)
    return "".join(text), styles
