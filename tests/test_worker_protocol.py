"""The worker's side of its protocol, message by message, without a process of its own."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel
from fake_worker import FakeCodecs
from synthetic import clip

from vcfilter.codec import Decoder, Encoder
from vcfilter.errors import ConfigError, LimitError
from vcfilter.frames import ContentLight, FieldOrder, MasteringDisplay, VideoFormat
from vcfilter.options import DecoderOptions, EncoderOptions, Limits, Runtime
from vcfilter.worker import streams
from vcfilter.worker.connection import Codecs, Connection
from vcfilter.worker.protocol import (
    FORMAT_BYTES,
    INBOX_MAX,
    STREAMS_MAX,
    Channel,
    Kind,
    ProtocolError,
    read_format,
    write_format,
)
from vcfilter.worker.server import peer_uid
from vcfilter.worker.streams import parse_settings

SMALL = VideoFormat(width=48, height=32)
HELLO = b"VCFW" + struct.pack("<I", 2)


class SlowCodecs(FakeCodecs):
    """Codecs that can be made to take their time."""

    wait = 0.0
    busy = False

    def decoder(self, extradata: bytes, look: str = "natural") -> Decoder:
        end = time.monotonic() + self.wait
        while time.monotonic() < end:
            if not self.busy:
                time.sleep(0.2)
        return super().decoder(extradata, look)


class Client:
    """The other end of a connection that is served in a thread."""

    def __init__(self) -> None:
        self.socket, served = socket.socketpair()
        self.socket.settimeout(20)
        self.codecs = SlowCodecs()
        self.error: ProtocolError | None = None
        self.descriptors: list[int] = []
        self._thread = threading.Thread(target=self._serve, args=(served,))
        self._thread.start()

    def _serve(self, served: socket.socket) -> None:
        try:
            Connection(Channel(served), self.codecs).serve()
        except ProtocolError as error:
            self.error = error

    def say(self, kind: int, stream: int = 0, body: bytes = b"") -> None:
        self.socket.sendall(struct.pack("<IHHI", len(body), kind, 0, stream) + body)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            space = socket.CMSG_SPACE(4)
            part, extra, _, _ = self.socket.recvmsg(size - len(data), space)
            for _, _, found in extra:
                self.descriptors += array.array("i", found[: len(found) // 4 * 4])
            if not part:
                raise EOFError
            data += part
        return data

    def hear(self) -> tuple[Kind, int, bytes]:
        size, kind, zero, stream = struct.unpack("<IHHI", self._read(12))
        assert zero == 0
        return Kind(kind), stream, self._read(size)

    def expect(self, kind: Kind) -> bytes:
        found, _, body = self.hear()
        assert found is kind, (found, body)
        return body

    def failure(self) -> str:
        """What the worker says of a client that breaks the protocol; it has hung up then."""
        with pytest.raises((EOFError, ConnectionError)):
            while True:
                self.hear()
        self._thread.join(10)
        assert self.error is not None
        return str(self.error)

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


@pytest.fixture
def greeted(client: Client) -> Client:
    client.say(Kind.HELLO, 0, HELLO)
    assert client.expect(Kind.WELCOME)[:8] == HELLO
    return client


def test_a_decoder_from_the_first_to_the_last_message(greeted: Client) -> None:
    """The conversation that docs/reference/worker.md shows."""
    encoder = Encoder(SMALL, EncoderOptions(keyint=3), model=FakeModel())
    frames = clip(4, SMALL)
    packets = [packet for frame in [*frames, None] for packet in encoder.encode(frame)]
    greeted.say(Kind.OPEN_DECODER, 7, encoder.extradata)
    assert read_format(greeted.expect(Kind.FORMAT)) == SMALL
    count, slot_bytes, *places = struct.unpack("<8I", greeted.expect(Kind.MEMORY))
    greeted.expect(Kind.OPENED)
    (descriptor,) = greeted.descriptors
    assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with mmap.mmap(descriptor, count * slot_bytes, prot=mmap.PROT_READ) as memory:
        for packet in packets:
            head = struct.pack("<qqB", packet.pts, packet.duration, packet.is_keyframe)
            greeted.say(Kind.SEND_PACKET, 7, head + packet.data)
        greeted.say(Kind.DRAIN, 7)
        shown, done = [], 0
        while True:
            kind, stream, body = greeted.hear()
            assert stream == 7
            if kind is Kind.DRAINED:
                break
            if kind is Kind.DONE:
                done += 1
                continue
            assert kind is Kind.FRAME
            epoch, slot, pts, _, key = struct.unpack("<IIqqB", body)
            assert epoch == 0
            shown.append((pts, key))
            data = memory[slot * slot_bytes + places[0] :][: places[1] * 32]
            luma = np.frombuffer(data, np.uint8).reshape(32, places[1])[:, :48]
            assert np.abs(luma.astype(int) - frames[pts].y).mean() < 12
            greeted.say(Kind.RELEASE, 7, struct.pack("<I", slot))
    assert shown == [(0, 1), (1, 0), (2, 0), (3, 1)]
    assert done == 5
    greeted.say(Kind.CLOSE, 7)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ((Kind.OPEN_DECODER, 1, b""), "stream 1 was opened twice"),
        ((Kind.SEND_PACKET, 1, b"short"), "SEND_PACKET is malformed"),
        ((Kind.SEND_FRAME, 1, bytes(21)), "SEND_FRAME was sent to a decoder"),
        ((Kind.RELEASE, 1, bytes(4)), "slot 0 was released, which was not given out"),
        ((Kind.DRAIN, 2, b""), "DRAIN was sent to stream 2, not open"),
        ((Kind.FRAME, 1, b""), "FRAME was sent to a decoder"),
        ((77, 1, b""), "unknown kind 77"),
    ],
)
def test_a_broken_protocol_ends_the_connection(
    greeted: Client, message: tuple[int, int, bytes], reason: str
) -> None:
    greeted.say(Kind.OPEN_DECODER, 1)
    greeted.expect(Kind.OPENED)
    greeted.say(*message)
    assert reason in greeted.failure()


def test_absurd_lengths_are_not_read(greeted: Client) -> None:
    greeted.socket.sendall(struct.pack("<IHHI", 0xFFFFFFFF, Kind.SEND_PACKET, 0, 1))
    assert "4294967295 bytes" in greeted.failure()


def test_a_stream_takes_only_so_much(greeted: Client) -> None:
    greeted.codecs.wait = 3
    greeted.say(Kind.OPEN_DECODER, 1)
    for _ in range(INBOX_MAX + 1):
        greeted.say(Kind.DRAIN, 1)
    assert "messages wait on stream 1" in greeted.failure()


def test_a_stream_takes_only_so_many_bytes(
    greeted: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "INBOX_BYTES_MAX", 1000)
    greeted.codecs.wait = 3
    greeted.say(Kind.OPEN_DECODER, 1)
    for _ in range(2):
        greeted.say(Kind.SEND_PACKET, 1, struct.pack("<qqB", 0, 0, 1) + bytes(500))
    greeted.say(Kind.FLUSH, 1, struct.pack("<I", 1))  # forgets them
    for _ in range(3):
        greeted.say(Kind.SEND_PACKET, 1, struct.pack("<qqB", 0, 0, 1) + bytes(500))
    assert greeted.failure() == "more than 1000 bytes wait on stream 1"


def test_a_client_has_only_so_many_streams(greeted: Client) -> None:
    for stream in range(1, STREAMS_MAX + 1):
        greeted.say(Kind.OPEN_DECODER, stream)
    for _ in range(STREAMS_MAX):
        greeted.expect(Kind.OPENED)
    greeted.say(Kind.CLOSE, 1)
    greeted.say(Kind.OPEN_DECODER, STREAMS_MAX + 1)
    greeted.expect(Kind.OPENED)
    greeted.say(Kind.OPEN_DECODER, STREAMS_MAX + 2)
    assert greeted.failure() == f"the client has more than {STREAMS_MAX} open streams"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"short", f"a format has 5 bytes, not {FORMAT_BYTES}"),
        (write_format(SMALL) + b"qp=\xff", "settings are not UTF-8"),
        (write_format(SMALL) + b"frame_rate=1e30000000", "frame_rate '1e30000000' is not"),
    ],
)
def test_a_wish_that_is_refused_has_an_honest_status(
    greeted: Client, body: bytes, reason: str
) -> None:
    greeted.say(Kind.OPEN_ENCODER, 1, body)
    found = greeted.expect(Kind.FAILED)
    assert struct.unpack_from("<i", found)[0] == -6
    assert found[4:].startswith(reason.encode())


def test_a_frame_can_be_made_a_keyframe(greeted: Client) -> None:
    greeted.say(Kind.OPEN_ENCODER, 1, write_format(SMALL) + b"scenecut=0")
    greeted.expect(Kind.MEMORY)
    greeted.expect(Kind.OPENED)
    for n in range(5):
        greeted.say(Kind.SEND_FRAME, 1, struct.pack("<IqqB", n % 4, n, 1, n == 3))
    greeted.say(Kind.DRAIN, 1)
    keys = []
    while (heard := greeted.hear())[0] is not Kind.DRAINED:
        if heard[0] is Kind.PACKET:
            pts, _, key = struct.unpack_from("<qqB", heard[2])
            keys.append((pts, key))
    assert keys == [(0, 1), (1, 0), (2, 0), (3, 1), (4, 0)]


def test_a_slot_that_is_none_ends_the_stream_alone(greeted: Client) -> None:
    greeted.say(Kind.OPEN_ENCODER, 1, write_format(SMALL))
    greeted.expect(Kind.MEMORY)
    greeted.expect(Kind.OPENED)
    greeted.say(Kind.SEND_FRAME, 1, struct.pack("<IqqB", 1 << 20, 0, 0, 0))
    status, text = struct.unpack_from("<i", body := greeted.expect(Kind.FAILED))[0], body[4:]
    assert (status, text) == (-6, b"slot 1048576 is outside 0 to 31")
    greeted.say(Kind.OPEN_DECODER, 2)
    greeted.expect(Kind.OPENED)


@pytest.mark.parametrize(
    ("structure", "encoder_ahead", "decoder_ahead"),
    [("random-access", 46, 2), ("low-delay", 1, 1), ("intra", 1, 2)],
)
def test_how_much_is_sent_ahead(
    greeted: Client, structure: str, encoder_ahead: int, decoder_ahead: int
) -> None:
    """Nothing where each frame leaves at once, else two segments and what is looked at."""
    settings = f"structure={structure}:keyint=13".encode()
    greeted.say(Kind.OPEN_ENCODER, 1, write_format(SMALL) + settings)
    greeted.expect(Kind.MEMORY)
    opened = greeted.expect(Kind.OPENED)
    assert struct.unpack_from("<I", opened) == (encoder_ahead,)
    greeted.say(Kind.OPEN_DECODER, 2, opened[4:])
    greeted.expect(Kind.FORMAT)
    greeted.expect(Kind.MEMORY)
    assert struct.unpack("<I", greeted.expect(Kind.OPENED)) == (decoder_ahead,)


def test_an_error_of_the_codec_ends_the_stream_alone(greeted: Client) -> None:
    encoder = Encoder(SMALL, EncoderOptions(), model=FakeModel())
    (packet,) = [p for frame in [*clip(1, SMALL), None] for p in encoder.encode(frame)]
    greeted.codecs.model.explode = RuntimeError("the device\nis gone")
    greeted.say(Kind.OPEN_DECODER, 1)
    greeted.expect(Kind.OPENED)
    greeted.say(Kind.SEND_PACKET, 1, struct.pack("<qqB", 0, 0, 1) + packet.data)
    body = greeted.expect(Kind.FAILED)
    assert struct.unpack_from("<i", body)[0] == -8
    assert body[4:] == b"RuntimeError: the device is gone"


@pytest.mark.parametrize("body", [b"VCFW" + struct.pack("<I", 1), b"HTTP/1.1", b"VCF"])
def test_other_clients_are_told_apart(client: Client, body: bytes) -> None:
    client.say(Kind.HELLO, 0, body)
    if body[:4] == b"VCFW":
        assert client.expect(Kind.WELCOME)[:8] == HELLO  # so that it can tell its user
        assert "version 1 of the protocol, this worker version 2" in client.failure()
    else:
        assert "does not use" in client.failure()


@pytest.mark.slow
def test_who_works_shows_life_and_who_hangs_does_not(greeted: Client) -> None:
    counts = []
    for stream, busy in enumerate((True, False), 1):
        greeted.codecs.wait, greeted.codecs.busy = 3.5, busy
        greeted.say(Kind.OPEN_DECODER, stream)
        kinds = [greeted.hear()[0]]
        while kinds[-1] is not Kind.OPENED:
            kinds.append(greeted.hear()[0])
        counts.append(kinds.count(Kind.ALIVE))
    assert counts[0] in (2, 3, 4)
    assert counts[1] <= 1  # in the second that began while the first stream was at work


def test_examples_of_the_documentation(client: Client) -> None:
    text = (Path(__file__).parent.parent / "docs" / "reference" / "worker.md").read_text(
        encoding="utf-8"
    )
    hello, welcome = re.findall(r"(?m)^(?:[0-9a-f]{2} +)+[0-9a-f]{2}$", text)
    client.socket.sendall(bytes.fromhex(hello))
    assert client.hear() == (Kind.WELCOME, 0, bytes.fromhex(welcome)[12:])
    assert bytes.fromhex(hello)[12:] == HELLO


def test_the_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that open at once wait for the one that loads; the store keeps what it loaded."""
    loading, most = 0, 0

    def load(name: str | None, runtime: Runtime) -> FakeModel:
        nonlocal loading, most
        assert (name, runtime.device) == ("some model", "cpu")
        loading += 1
        most = max(most, loading)
        time.sleep(0.1)
        loading -= 1
        return FakeModel()

    monkeypatch.setattr("vcfilter.codec.runtime.load_model", load)
    monkeypatch.setattr("vcfilter.codec.decoder.load_model", load)
    codecs = Codecs(Runtime(device="cpu"), "some model")
    threads = [threading.Thread(target=codecs.decoder, args=(b"",)) for _ in range(4)]
    threads.append(threading.Thread(target=codecs.load))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_formats_pass_whole() -> None:
    full = VideoFormat(
        width=64, height=48, bit_depth=10, sample_aspect_ratio=(4, 3), color_primaries=9,
        color_trc=16, colorspace=9, color_range=1, chroma_location=3, rotation=270, mirrored=True,
        field_order=FieldOrder.BOTTOM_FIRST,
        mastering=MasteringDisplay(
            primaries=((35400, 14600), (8500, 39850), (6550, 2300)), white_point=(15635, 16450),
            luminance=(1, (1 << 32) - 1),
        ),
        content_light=ContentLight(max_content=65535, max_average=400),
    )  # fmt: skip
    data = write_format(full)
    assert len(data) == FORMAT_BYTES
    assert read_format(data) == full
    assert struct.unpack("<13i13I", data)[:14] == (
        64, 48, 10, 4, 3, 9, 16, 9, 1, 3, 270, 1, 3, 3,
    )  # fmt: skip
    assert struct.unpack("<13i13I", data)[14:] == (
        35400, 14600, 8500, 39850, 6550, 2300, 15635, 16450, 1, (1 << 32) - 1, 65535, 400,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 15, "width 15"), (0, 5000, "width 5000"), (2, 9, "bit depth 9"),
        (5, 256, "color_primaries 256"), (8, 3, "color_range 3"), (10, 45, "rotation 45"),
        (11, 2, "mirrored 2"), (12, 6, "field_order 6"), (12, -1, "field_order -1"),
    ],
)  # fmt: skip
def test_formats_beyond_their_bounds_are_refused(place: int, value: int, reason: str) -> None:
    numbers = list(struct.unpack("<26i", write_format(SMALL)))
    numbers[place] = value
    with pytest.raises(ConfigError, match=reason):
        read_format(struct.pack("<26i", *numbers))


def test_static_metadata_beyond_their_bounds_are_unknown() -> None:
    numbers = list(struct.unpack("<26i", write_format(SMALL)))
    numbers[13:] = [3, 60000, *[1] * 7, 5, 5, 70000, 1]
    found = read_format(struct.pack("<26i", *numbers))
    assert (found.mastering, found.content_light) == (None, None)


def test_sample_aspect_ratios_of_any_client() -> None:
    for given, kept in [
        ((12, 11), (12, 11)), ((0, 0), (0, 1)), ((7, 0), (0, 1)), ((-4, 3), (0, 1)),
        ((400000, 300000), (4, 3)), ((1 << 30, 1), (0, 1)),
    ]:  # fmt: skip
        found = read_format(struct.pack("<26i", 64, 48, 8, *given, 2, 2, 2, *[0] * 18))
        assert found.sample_aspect_ratio == kept


def test_settings() -> None:
    assert parse_settings(b"") == EncoderOptions()
    assert parse_settings(
        b"keyint=3:bitrate=90000:keyint=30:scenecut=0:frame_rate=30000/1001:preset=fast"
    ) == (
        EncoderOptions(
            bitrate=90000,
            keyint=30,
            scenecut=False,
            frame_rate=Fraction(30000, 1001),
            preset="fast",
        )
    )
    with pytest.raises(ConfigError, match="'weights' is not one of"):
        parse_settings(b"weights=/etc/passwd")
    with pytest.raises(ConfigError, match="chosen by the worker's command"):
        parse_settings(b"model=/etc/passwd")


def test_the_kernel_knows_who_is_there() -> None:
    a, b = socket.socketpair()
    assert peer_uid(a) == os.geteuid()
    a.close()
    b.close()


def test_limits_end_a_stream_with_a_sentence(greeted: Client) -> None:
    greeted.codecs.options = DecoderOptions(limits=Limits(frames=2))
    encoder = Encoder(SMALL, EncoderOptions(structure="intra"), model=FakeModel())
    packets = [p for frame in [*clip(4, SMALL), None] for p in encoder.encode(frame)]
    greeted.say(Kind.OPEN_DECODER, 1, encoder.extradata)
    for packet in packets:
        greeted.say(Kind.SEND_PACKET, 1, struct.pack("<qqB", packet.pts, 1, 1) + packet.data)
    frames = 0
    while (message := greeted.hear())[0] is not Kind.FAILED:
        frames += message[0] is Kind.FRAME
    (status,) = struct.unpack_from("<i", message[2])
    assert (frames, status, message[2][4:]) == (2, -5, b"frames 3 is above the limit of 2")


def test_the_workers_limits_are_those_of_its_decoders() -> None:
    codecs = Codecs(Runtime(device="cpu"), limits=Limits(pixels=100))
    encoder = Encoder(SMALL, EncoderOptions(), model=FakeModel())
    with pytest.raises(LimitError, match="pixels 1536 is above the limit of 100"):
        codecs.decoder(encoder.extradata)
