"""The worker's side of its protocol: a client that says anything.

Input: a byte of flags (1 a greeting first, 2 raw bytes), then raw bytes, or records: a kind, a
stream, and a body, which become messages.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

from fake_worker import FakeCodecs

from fuzz import outcome, record, records
from fuzz.streams import TINY, coded_streams, set_checks
from vcfilter.options import DecoderOptions, Limits
from vcfilter.worker.connection import Connection
from vcfilter.worker.protocol import Channel, Kind, ProtocolError, Status, write_format

GREETED, RAW = 1, 2
HELLO = b"VCFW" + struct.pack("<I", 2)
LIMITS = Limits(pixels=48 * 48, frames=200, seconds=10, memory=1 << 24)
MESSAGES_MAX = 100
SETTLE_SECONDS = 0.25
_HEAD = struct.Struct("<IHHI")


def seeds() -> list[bytes]:
    """Conversations with decoders and encoders, as clients lead them."""
    set_checks(True)
    found = []
    for extradata, packets in coded_streams():
        parts = [(Kind.OPEN_DECODER, 1, extradata)]
        for n, packet in enumerate(packets):
            head = struct.pack("<qqB", packet.pts, 1, packet.is_keyframe)
            parts.append((Kind.SEND_PACKET, 1, head + packet.data))
            if n == 4:
                parts.append((Kind.RELEASE, 1, struct.pack("<I", 0)))
        parts += [(Kind.FLUSH, 1, struct.pack("<I", 1)), (Kind.DRAIN, 1, b""), (Kind.CLOSE, 1, b"")]
        found.append(_conversation(GREETED, parts))
    for settings in (b"", b"qp=30:keyint=3", b"bitrate=80k:preset=fast:frame_rate=30000/1001"):
        parts = [(Kind.OPEN_ENCODER, 2, write_format(TINY) + settings)]
        for n in range(4):
            parts.append((Kind.SEND_FRAME, 2, struct.pack("<IqqB", n % 2, n, 1, n == 2)))
        parts += [(Kind.DRAIN, 2, b""), (Kind.CLOSE, 2, b"")]
        found.append(_conversation(GREETED, parts))
    found.append(_conversation(0, [(Kind.HELLO, 0, HELLO)]))
    hello = _HEAD.pack(len(HELLO), Kind.HELLO, 0, 0) + HELLO
    found.append(bytes((RAW,)) + hello + _HEAD.pack(0, Kind.OPEN_DECODER, 0, 3))
    return found


def _conversation(flags: int, parts: list[tuple[Kind, int, bytes]]) -> bytes:
    return bytes((flags,)) + b"".join(
        record(bytes((kind, stream)), body) for kind, stream, body in parts
    )


def run(data: bytes) -> None:
    """Serve a client that sends this, and read what it is answered."""
    flags, data = data[0] if data else 0, data[1:]
    set_checks(True)
    sent = b""
    if flags & GREETED:
        sent = _HEAD.pack(len(HELLO), Kind.HELLO, 0, 0) + HELLO
    if flags & RAW:
        sent += data
    else:
        for (kind, stream), body in records(data, 2)[:MESSAGES_MAX]:
            sent += _HEAD.pack(len(body), kind, 0, stream) + body
    client, served = socket.socketpair()
    codecs = FakeCodecs()
    codecs.options = DecoderOptions(limits=LIMITS)
    connection = Connection(Channel(served), codecs)
    before = set(threading.enumerate())
    answers = bytearray()
    server = threading.Thread(target=_serve, args=(connection,))
    reader = threading.Thread(target=_read, args=(client, answers))
    server.start()
    reader.start()
    try:
        client.sendall(sent)
        _settle(connection, server)
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the worker has hung up
    for thread in (server, reader, *(set(threading.enumerate()) - before)):
        if thread.name != "alive":  # it looks once a second whether the connection is over
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} hangs"
    client.close()
    if server.error is not None:  # type: ignore[attr-defined]
        raise server.error  # type: ignore[attr-defined]
    _check(bytes(answers))


def _serve(connection: Connection) -> None:
    thread = threading.current_thread()
    thread.error = None  # type: ignore[attr-defined]
    try:
        connection.serve()
    except ProtocolError:
        pass
    except BaseException as error:
        thread.error = error  # type: ignore[attr-defined]


def _settle(connection: Connection, server: threading.Thread) -> None:
    """Wait until the streams have done what was asked for."""
    end = time.monotonic() + SETTLE_SECONDS
    quiet = 0
    while quiet < 3 and server.is_alive() and time.monotonic() < end:
        busy = connection._working or any(each._inbox for each in connection._streams.values())
        quiet = 0 if busy else quiet + 1
        time.sleep(0.0005)


def _read(client: socket.socket, answers: bytearray) -> None:
    try:
        while part := client.recv(1 << 16):
            answers += part
    except OSError:
        pass


def _check(answers: bytes) -> None:
    """What was answered are whole messages, the last one perhaps cut, and none tells of a fault."""
    place = 0
    while place + _HEAD.size <= len(answers):
        size, kind, zero, _ = _HEAD.unpack_from(answers, place)
        place += _HEAD.size
        body = answers[place : place + size]
        place += size
        assert zero == 0
        outcome(kind, body[:4] if kind == Kind.FAILED else size)
        offset = {Kind.FAILED: 0, Kind.DONE: 12}.get(Kind(kind))
        if offset is not None and len(body) >= offset + 4:
            (status,) = struct.unpack_from("<i", body, offset)
            assert status != Status.INTERNAL, body[offset + 4 :].decode(errors="replace")
