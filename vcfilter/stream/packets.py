"""Packets: the public one of both directions, and the ways between it, PyAV and the bridge."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, get_args

import av
import numpy as np
from av.packet import PacketSideData, PktSideDataT

from vcfilter._bridge import BridgePacket
from vcfilter.errors import ConfigError
from vcfilter.frames import Packet
from vcfilter.stream.timestamps import rational

if TYPE_CHECKING:
    from vcfilter.stream.input_stream import Stream
    from vcfilter.stream.output_stream import OutputStream

_MICROSECOND = Fraction(1, 1_000_000)


def bridge_packet(packet: Packet, index: int, time_base: Fraction) -> BridgePacket:
    """A coded frame for the muxer."""
    return BridgePacket(
        stream_index=index,
        data=packet.data,
        pts=packet.pts,
        dts=packet.pts,
        duration=packet.duration,
        is_keyframe=packet.is_keyframe,
        time_base=time_base,
    )


def coded_packet(packet: BridgePacket) -> Packet:
    """A demuxed packet as the codec takes it."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return Packet(
        data=packet.data,
        pts=ticks if ticks is not None else 0,
        duration=packet.duration,
        is_keyframe=packet.is_keyframe,
    )


def from_av(packet: av.Packet[Any], index: int, time_base: Fraction | None = None) -> BridgePacket:
    """PyAV's packet for the muxer.

    Args:
        time_base: of its times where it states none.
    """
    return BridgePacket(
        stream_index=index,
        data=bytes(packet),
        pts=packet.pts,
        dts=packet.dts,
        duration=packet.duration or 0,
        is_keyframe=packet.is_keyframe,
        time_base=rational(packet.time_base) or time_base or _MICROSECOND,
    )


def to_av(packet: BridgePacket) -> av.Packet[Any]:
    """A demuxed packet for one of PyAV's decoders, its side data included."""
    # Not av.Packet(data): a decoder's thread would need Python's lock to free that, and hangs
    # where another thread holds the lock and waits for the decoder.
    result: av.Packet[Any] = av.Packet(len(packet.data))
    if packet.data:
        result.update(packet.data)
    result.pts, result.dts = packet.pts, packet.dts
    result.duration, result.time_base = packet.duration, packet.time_base
    result.is_keyframe = packet.is_keyframe
    for name, content in packet.side_data:
        kind = _SIDE_DATA_KINDS.get(name)
        if kind is not None and content:
            side: Any = PacketSideData(kind, len(content))  # type: ignore[call-arg]
            np.frombuffer(memoryview(side), np.uint8)[:] = np.frombuffer(content, np.uint8)
            side.to_packet(result)
    return result


def _side_data_kinds() -> dict[str, int]:
    """PyAV's number of each kind of side data that it knows, by libavcodec's name."""
    kinds: dict[str, int] = {}
    for number in range(len(get_args(PktSideDataT))):
        side: Any = PacketSideData(number, 0)  # type: ignore[call-arg]
        kinds[side.data_desc] = number
    return kinds


_SIDE_DATA_KINDS = _side_data_kinds()


class StreamPacket:
    """One packet of one stream, read or to be written, as av.Packet.

    Args:
        stream: which it belongs to; assign another one to write it there.
        packet: its content; None for the empty packet that ends a stream and drains its decoder.

    Attributes:
        pts, dts: presentation and decoding time in ticks of time_base; None when unknown.
        duration: in the same ticks; 0 when unknown.
        time_base: seconds per tick.
        is_keyframe: decoding can start here.
    """

    __slots__ = (
        "_content", "dts", "duration", "is_keyframe", "pts", "stream", "time_base",
    )  # fmt: skip

    def __init__(self, stream: Stream | OutputStream, packet: BridgePacket | None) -> None:
        self.stream = stream
        self._content = packet
        self.pts = packet.pts if packet else None
        self.dts = packet.dts if packet else None
        self.duration = packet.duration if packet else 0
        base = packet.time_base if packet else stream.time_base
        self.time_base: Fraction = base or _MICROSECOND
        self.is_keyframe = packet.is_keyframe if packet else False

    @property
    def stream_index(self) -> int:
        """Index of its stream."""
        return self.stream.index

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._content.data) if self._content else 0

    @property
    def content(self) -> BridgePacket | None:
        """The packet by value, for its stream; None for the empty one at the end."""
        if self._content is None:
            return None
        return replace(
            self._content,
            stream_index=self.stream.index,
            pts=self.pts,
            dts=self.dts,
            duration=self.duration,
            is_keyframe=self.is_keyframe,
            time_base=self.time_base,
        )

    def __bytes__(self) -> bytes:
        return self._content.data if self._content else b""

    def decode(self) -> list[Any]:
        """Frames that are now ready: av.VideoFrame or av.AudioFrame.

        Raises:
            ConfigError: its stream is one that is written.
        """
        decode = getattr(self.stream, "decode", None)
        if decode is None:
            raise ConfigError(f"{self!r} belongs to a stream that is written: nothing to decode")
        frames: list[Any] = decode(self)
        return frames

    def __repr__(self) -> str:
        index, kind = self.stream.index, self.stream.type
        return f"<vcfilter.StreamPacket of #{index} {kind}, pts={self.pts}, {self.size} bytes>"
