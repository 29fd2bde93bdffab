"""Demuxing of containers, and copying what comes out into another one.

Input: a byte that picks formats, then the file.
"""

from __future__ import annotations

import io
from fractions import Fraction

from bridge_media import NEURAL, write_neural

from fuzz import outcome
from vcfilter._bridge import BridgeError, BridgePacket, Demuxer, Muxer, StreamInfo

READ = ("matroska", "nut", "avi", "mov", None)  # None: as libavformat finds it
WRITTEN = ("matroska", "nut", "avi", "mov")
PACKETS_MAX = 2000
SECOND = StreamInfo(kind="audio", codec="pcm_s16le", sample_rate=8000, channels=1, channel_layout=4)


def seeds() -> list[bytes]:
    """Small files of each container, one with audio beside the neural track."""
    found = []
    for index, name in enumerate(READ[:4]):
        target = io.BytesIO()
        write_neural(target, name, count=4)
        found.append(bytes((index,)) + target.getvalue())
        found.append(bytes((4 + 8 * index,)) + target.getvalue())
        found.append(bytes((index + 8 * ((index + 1) % 4),)) + _with_audio(name))
    return found


def _with_audio(name: str) -> bytes:
    target = io.BytesIO()
    with Muxer(target, name) as muxer:
        muxer.metadata = {"title": "a title"}
        for info in (NEURAL, SECOND):
            muxer.add_stream(info)
        muxer.write_header()
        for n in range(4):
            for index, base in ((0, Fraction(1, 25)), (1, Fraction(320, 8000))):
                packet = BridgePacket(
                    stream_index=index, data=bytes(64 if index == 0 else 640), pts=n, dts=n,
                    duration=1, is_keyframe=index == 1 or n == 0, time_base=base,
                )  # fmt: skip
                muxer.write_packet(packet)
    return target.getvalue()


def run(data: bytes) -> None:
    """Read a file to its end, from the start and after a seek, and copy its packets."""
    choice, data = data[0] if data else 0, data[1:]
    streams: tuple[StreamInfo, ...] = ()
    packets: list[BridgePacket] = []
    try:
        with Demuxer(io.BytesIO(data), READ[choice % 8 % len(READ)]) as demuxer:
            packets = _read(demuxer)
            streams = demuxer.streams
            _ = demuxer.chapters, demuxer.metadata, demuxer.duration, demuxer.start_time
            if streams:
                demuxer.seek(0, 0)
                _read(demuxer)
    except BridgeError as error:
        outcome("opening", choice % 8, error.errno, len(packets), len(streams))
        return
    for info in streams:
        outcome("stream", choice % 8, info.kind, info.codec, len(info.extradata), info.time_base)
    for index in range(len(packets)):
        packet = packets[index]
        outcome("packet", choice % 8, index, packet.stream_index, packet.is_keyframe)
        outcome("size", choice % 8, index, len(packet.data), packet.pts is None)
    try:
        with Muxer(io.BytesIO(), WRITTEN[choice // 8 % 4]) as muxer:
            for info in streams:
                muxer.add_stream(info)
            muxer.write_header()
            for packet in packets:
                if packet.stream_index < len(streams):
                    muxer.write_packet(packet)
    except (BridgeError, ValueError) as error:  # the documented ones, of times and fields
        outcome("muxing", choice // 8 % 4, type(error), getattr(error, "errno", 0))


def _read(demuxer: Demuxer) -> list[BridgePacket]:
    packets = []
    try:
        for packet in demuxer:
            assert packet.stream_index >= 0
            assert packet.time_base > 0
            packets.append(packet)
            if len(packets) >= PACKETS_MAX:
                break
    except BridgeError:
        pass
    return packets
