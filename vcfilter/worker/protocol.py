"""What a codec worker and its client say to each other (docs/worker.md), and what they share."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

import numpy as np

from vcfilter.errors import VcfilterError
from vcfilter.frames import MAX_PIXELS, Plane, VideoFormat

PROTOCOL_VERSION = 1
MAGIC = b"VCFW"
MESSAGE_MAX = 8 * MAX_PIXELS + 8192  # the largest packet, and room for what is said about it
MEMORY_BYTES = {False: 256 << 20, True: 64 << 20}  # by "is an encoder"; pages never used cost none
SLOTS_MIN, SLOTS_MAX = 4, {False: 128, True: 32}
_HEAD = struct.Struct("<IHHI")  # bytes that follow, kind, zero, stream
_SIDE_MAX = (1 << 16) - 1  # of a sample aspect ratio
_FORMAT = struct.Struct("<11i")
FORMAT_BYTES = _FORMAT.size


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
    INVALID = -5
    OPTION = -6
    MEMORY = -7
    INTERNAL = -8


class ProtocolError(VcfilterError):
    """The client sent what the protocol does not allow."""


class ClientGone(Exception):
    """Nobody listens any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a connection; body without the head, stream 0 for the connection's own."""

    kind: Kind
    stream: int
    body: bytes


class Channel:
    """Messages over a connected Unix socket. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def receive(self) -> Message | None:
        """The next message; None when the client is gone.

        Raises:
            ProtocolError: it is too long, or of no known kind.
        """
        head = self._read(_HEAD.size)
        if head is None:
            return None
        size, kind, zero, stream = _HEAD.unpack(head)
        if size > MESSAGE_MAX or zero:
            raise ProtocolError(f"the client sent a message of {size} bytes, or other nonsense")
        try:
            known = Kind(kind)
        except ValueError:
            raise ProtocolError(f"the client sent a message of unknown kind {kind}") from None
        body = self._read(size)
        return None if body is None else Message(kind=known, stream=stream, body=body)

    def send(self, kind: Kind, stream: int, body: bytes = b"") -> None:
        """Send a message.

        Raises:
            ClientGone: there is nobody to send it to.
        """
        with self._lock:
            try:
                self._socket.sendall(_HEAD.pack(len(body), kind, 0, stream) + body)
            except OSError as error:
                raise ClientGone from error

    def send_memory(self, stream: int, frames: SharedFrames) -> None:
        """Hand shared memory to the client; raises ClientGone like send."""
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
        """Say that work goes on, unless something else is being said or nobody listens."""
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

    def _read(self, size: int) -> bytes | None:
        parts: list[bytes] = []
        while size:
            try:
                part = self._socket.recv(min(size, 1 << 20))
            except OSError:
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class SharedFrames:
    """Pictures in shared memory without a name: slots of three planes each.

    Args:
        video_format: of each picture.
        encoder: how much is set aside depends on it.

    Attributes:
        count: slots.
        descriptor: of the memory, to be sent once and then closed; this object keeps its own hold.
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
            # A client need not fear that pages it reads are taken away.
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
    numerator, denominator = video_format.sample_aspect_ratio
    return _FORMAT.pack(
        video_format.width,
        video_format.height,
        video_format.bit_depth,
        numerator,
        denominator,
        video_format.color_primaries,
        video_format.color_trc,
        video_format.colorspace,
        video_format.color_range,
        video_format.chroma_location,
        video_format.rotation,
    )


def read_format(data: bytes) -> VideoFormat:
    """The format that write_format gives, of numbers from outside.

    Raises:
        ConfigError: one of them is outside what is allowed. struct.error: wrong length.
    """
    width, height, depth, numerator, denominator, *rest = _FORMAT.unpack(data)
    primaries, trc, space, colour_range, location, rotation = rest
    ratio = Fraction(0)
    if numerator > 0 and denominator > 0:
        ratio = Fraction(numerator, denominator).limit_denominator(_SIDE_MAX)
        if ratio.numerator > _SIDE_MAX:
            ratio = Fraction(0)  # beyond anything that can be shown: unknown
    return VideoFormat(
        width=width,
        height=height,
        bit_depth=depth,
        sample_aspect_ratio=(ratio.numerator, ratio.denominator),
        color_primaries=primaries,
        color_trc=trc,
        colorspace=space,
        color_range=colour_range,
        chroma_location=location,
        rotation=rotation,
    )
