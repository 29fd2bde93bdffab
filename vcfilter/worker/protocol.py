"""Messages between a codec worker and its client, and shared memory.

The protocol is specified in docs/reference/worker.md.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

import numpy as np

from vcfilter.errors import ConfigError, VcfilterError
from vcfilter.frames import (
    MAX_PIXELS,
    ContentLight,
    FieldOrder,
    MasteringDisplay,
    Plane,
    VideoFormat,
)

PROTOCOL_VERSION = 2
MAGIC = b"VCFW"
MESSAGE_MAX = 8 * MAX_PIXELS + 8192  # the largest packet, and its fields
MEMORY_BYTES = {False: 256 << 20, True: 64 << 20}  # by "is an encoder"; pages never used cost none
SLOTS_MIN, SLOTS_MAX = 4, {False: 128, True: 32}
_HEAD = struct.Struct("<IHHI")  # bytes that follow, kind, zero, stream
_SIDE_MAX = (1 << 16) - 1  # of a sample aspect ratio
_FORMAT = struct.Struct("<13i13I")
FORMAT_BYTES = _FORMAT.size
AHEAD_MAX = 1024
"""Largest send window: packets or frames that a client sends before it takes the first result."""
STREAMS_MAX = 128
"""Most open streams of one client; the C client stops at half."""
INBOX_MAX = AHEAD_MAX + 8
INBOX_BYTES_MAX = 256 << 20
"""Most messages, and bytes of packets, that may wait per stream; the C client stops at half."""
_MASTERING, _LIGHT = 1, 2  # flags of a format: the block is present
FRAME_KEY, FRAME_CORRUPT = 1, 2
"""Flags of a frame in messages."""


class Kind(IntEnum):
    """What a message is; up to 15 from the client, from 16 on from the worker."""

    HELLO = 1
    OPEN_DECODER = 2
    OPEN_ENCODER = 3
    SEND_PACKET = 4
    SEND_FRAME = 5
    DRAIN = 6
    FLUSH = 7
    RELEASE = 8
    CLOSE = 9
    OPEN_DECODER_WITH = 10
    WELCOME = 16
    OPENED = 17
    FORMAT = 18
    MEMORY = 19
    FRAME = 20
    PACKET = 21
    DONE = 22
    DRAINED = 23
    RELEASED = 24
    FAILED = 25
    ALIVE = 26


class Status(IntEnum):
    """Why something failed: values of enum VcfStatus in vcf_worker.h."""

    OK = 0
    ABSENT = -1
    INVALID = -5
    OPTION = -6
    MEMORY = -7
    INTERNAL = -8


class ProtocolError(VcfilterError):
    """The client violated the protocol."""


class ClientGone(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: body without the head; stream 0 belongs to the connection itself."""

    kind: Kind
    stream: int
    body: bytes


class Channel:
    """Messages over a connected Unix socket. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message; None when the client is gone.

        Args:
            seconds: a client that has not sent it whole by then counts as gone; None: no limit.
                Only before other threads use the channel.

        Raises:
            ProtocolError: it is too long, or of no known kind.
        """
        limit = None if seconds is None else time.monotonic() + seconds
        head = self._read(_HEAD.size, limit)
        if head is None:
            return None
        size, kind, zero, stream = _HEAD.unpack(head)
        if size > MESSAGE_MAX:
            raise ProtocolError(
                f"the client sent a message of {size} bytes, {MESSAGE_MAX} are allowed"
            )
        if zero:
            raise ProtocolError(f"the client sent {zero} where 0 is expected")
        try:
            known = Kind(kind)
        except ValueError:
            raise ProtocolError(f"the client sent a message of unknown kind {kind}") from None
        body = self._read(size, limit)
        if seconds is not None:
            self._socket.settimeout(None)
        return None if body is None else Message(kind=known, stream=stream, body=body)

    def send(self, kind: Kind, stream: int, body: bytes = b"") -> None:
        """Send a message.

        Raises:
            ClientGone: the client is gone.
        """
        with self._lock:
            try:
                self._socket.sendall(_HEAD.pack(len(body), kind, 0, stream) + body)
            except OSError as error:
                raise ClientGone from error

    def send_memory(self, stream: int, frames: SharedFrames) -> None:
        """Send shared memory to the client; raises ClientGone like send."""
        body = frames.describe()
        data = _HEAD.pack(len(body), Kind.MEMORY, 0, stream) + body
        with self._lock:
            try:
                sent = socket.send_fds(self._socket, [data], [frames.descriptor])
                self._socket.sendall(data[sent:])
            except OSError as error:
                raise ClientGone from error
            finally:
                os.close(frames.descriptor)

    def send_alive(self) -> None:
        """Send ALIVE, unless another message is being sent or the connection is closed."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if select.select([], [self._socket], [], 0)[1]:
                self._socket.sendall(_HEAD.pack(0, Kind.ALIVE, 0, 0))
        except (OSError, ValueError):
            pass  # the client is gone, which the receiving thread notices too
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the connection; threads that are about to send fail."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int, limit: float | None) -> bytes | None:
        parts: list[bytes] = []
        while size:
            try:
                if limit is not None:
                    self._socket.settimeout(max(limit - time.monotonic(), 0.001))
                part = self._socket.recv(min(size, 1 << 20))
            except OSError:
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class SharedFrames:
    """Frames in shared memory without a name: slots of three planes each.

    Args:
        video_format: of each frame.
        encoder: encoders get fewer slots than decoders.

    Attributes:
        count: slots.
        descriptor: of the memory, to be sent once and then closed; this object keeps its mapping.
    """

    def __init__(self, video_format: VideoFormat, *, encoder: bool) -> None:
        chroma_width, chroma_height = video_format.chroma_size
        sample = 1 if video_format.bit_depth == 8 else 2
        self._dtype = np.dtype(np.uint8 if sample == 1 else "<u2")
        self._layout: list[tuple[int, int, tuple[int, int]]] = []  # offset, row in bytes, shape
        size = 0
        for rows, columns in (
            (video_format.height, video_format.width),
            (chroma_height, chroma_width),
            (chroma_height, chroma_width),
        ):
            row = -(-columns * sample // 64) * 64
            self._layout.append((size, row, (rows, columns)))
            size += row * rows
        self._slot_bytes = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        room = MEMORY_BYTES[encoder] // self._slot_bytes
        self.count = min(max(room, SLOTS_MIN), SLOTS_MAX[encoder])
        self.descriptor = os.memfd_create("vcfilter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.count * self._slot_bytes)
            # Sealed: pages that a client reads stay mapped.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._memory = mmap.mmap(self.descriptor, self.count * self._slot_bytes)
        except BaseException:
            os.close(self.descriptor)
            raise

    def describe(self) -> bytes:
        """The body of a MEMORY message."""
        places = [number for offset, row, _ in self._layout for number in (offset, row)]
        return struct.pack("<8I", self.count, self._slot_bytes, *places)

    def planes(self, slot: int) -> list[Plane]:
        """Views of a slot's planes Y, U and V."""
        return [
            np.ndarray(
                shape,
                self._dtype,
                self._memory,
                offset=slot * self._slot_bytes + offset,
                strides=(row, self._dtype.itemsize),
            )
            for offset, row, shape in self._layout
        ]


def write_format(video_format: VideoFormat) -> bytes:
    """The bytes of a format in messages."""
    mastering, light = video_format.mastering, video_format.content_light
    hdr = [0] * 12
    if mastering is not None:
        points = (*mastering.primaries, mastering.white_point, mastering.luminance)
        hdr[:10] = [value for pair in points for value in pair]
    if light is not None:
        hdr[10:] = light.max_content, light.max_average
    return _FORMAT.pack(
        video_format.width,
        video_format.height,
        video_format.bit_depth,
        *video_format.sample_aspect_ratio,
        video_format.color_primaries,
        video_format.color_trc,
        video_format.colorspace,
        video_format.color_range,
        video_format.chroma_location,
        video_format.rotation,
        video_format.mirrored,
        video_format.field_order,
        (_MASTERING if mastering else 0) | (_LIGHT if light else 0),
        *hdr,
    )


def read_format(data: bytes) -> VideoFormat:
    """The format that write_format wrote, from untrusted bytes.

    An aspect ratio or static HDR metadata out of bounds count as unknown, since programs pass on
    the values of their sources unchecked; any other value out of bounds is an error.

    Raises:
        ConfigError: one of them is outside what is allowed, or there are too few of them.
    """
    try:
        (width, height, depth, numerator, denominator, primaries, trc, space, color_range,
         location, rotation, mirrored, field_order, known, *hdr) = _FORMAT.unpack(data)  # fmt: skip
    except struct.error as error:
        raise ConfigError(f"a format has {len(data)} bytes, not {FORMAT_BYTES}") from error
    if mirrored not in (0, 1):
        raise ConfigError(f"mirrored {mirrored} is not 0 or 1")
    if field_order not in set(FieldOrder):
        raise ConfigError(f"field_order {field_order} is outside 0 to {max(FieldOrder)}")
    ratio = Fraction(0)
    if numerator > 0 and denominator > 0:
        ratio = Fraction(numerator, denominator).limit_denominator(_SIDE_MAX)
        if ratio.numerator > _SIDE_MAX:
            ratio = Fraction(0)
    mastering, light = None, None
    with suppress(ConfigError):
        if known & _MASTERING:
            mastering = MasteringDisplay(
                primaries=((hdr[0], hdr[1]), (hdr[2], hdr[3]), (hdr[4], hdr[5])),
                white_point=(hdr[6], hdr[7]),
                luminance=(hdr[8], hdr[9]),
            )
    with suppress(ConfigError):
        if known & _LIGHT:
            light = ContentLight(max_content=hdr[10], max_average=hdr[11])
    return VideoFormat(
        width=width,
        height=height,
        bit_depth=depth,
        sample_aspect_ratio=(ratio.numerator, ratio.denominator),
        color_primaries=primaries,
        color_trc=trc,
        colorspace=space,
        color_range=color_range,
        chroma_location=location,
        rotation=rotation,
        mirrored=bool(mirrored),
        field_order=FieldOrder(field_order),
        mastering=mastering,
        content_light=light,
    )
