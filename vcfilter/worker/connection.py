"""One client of the worker: version exchange, streams, and the factory of their codecs."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vcfilter import __version__
from vcfilter.frames import VideoFormat
from vcfilter.options import LOOKS, DecoderOptions, EncoderOptions, Limits, Runtime
from vcfilter.worker.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    STREAMS_MAX,
    Channel,
    ClientGone,
    Kind,
    Message,
    ProtocolError,
)
from vcfilter.worker.streams import DecoderStream, EncoderStream, Stream, StreamContext

if TYPE_CHECKING:
    from vcfilter.codec import Decoder, Encoder

HELLO_SECONDS = 10.0
ALIVE_SECONDS = 1.0
ALIVE_CPU_SECONDS = (
    0.005  # a process that used less in ALIVE_SECONDS counts as hung: no ALIVE is sent
)


class Codecs:
    """Makes encoders and decoders. Each model is loaded once, by the stream that needs it first.

    Args:
        runtime: device and threads of the networks.
        model: name, id or path; None: each stream's own, and the default one for encoding.
        limits: upper bounds of decoding one stream.
    """

    def __init__(
        self, runtime: Runtime, model: str | None = None, limits: Limits | None = None
    ) -> None:
        self._runtime, self._model = runtime, model
        self._limits = limits if limits is not None else Limits()
        self._loading = threading.Lock()

    def load(self) -> None:
        """Load the model now."""
        from vcfilter.codec.runtime import load_model

        with self._loading:
            load_model(self._model, self._runtime)

    def decoder(self, extradata: bytes, look: str = LOOKS[0]) -> Decoder:
        """A decoder for a sequence header; without one, for that of the first keyframe.

        Args:
            look: see DecoderOptions.
        """
        from vcfilter.codec import (
            Decoder,
        )  # late: the version exchange does not wait for this import

        with self._loading:
            options = DecoderOptions(model=self._model, look=look, limits=self._limits)
            return Decoder(extradata or None, options, runtime=self._runtime)

    def encoder(self, video_format: VideoFormat, options: EncoderOptions) -> Encoder:
        """An encoder with the worker's model; the options' model is ignored."""
        from vcfilter.codec import Encoder

        with self._loading:
            options = replace(options, model=self._model)
            return Encoder(video_format, options, runtime=self._runtime)


class Connection:
    """A client and its streams.

    Args:
        channel: to the client.
        codecs: makes the encoders and decoders of its streams.
    """

    def __init__(self, channel: Channel, codecs: Codecs) -> None:
        self._channel = channel
        self._context = StreamContext(
            channel=channel, decoder=codecs.decoder, encoder=codecs.encoder, work=self._work
        )
        self._streams: dict[int, Stream] = {}
        self._working = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def serve(self) -> None:
        """Serve the client until it closes the connection; its streams end with it.

        Raises:
            ProtocolError: the client violates the protocol, or has another version of it.
        """
        try:
            if not self._exchange_versions():
                return
            threading.Thread(target=self._send_alive, name="alive", daemon=True).start()
            while (message := self._channel.receive()) is not None:
                try:
                    self._dispatch(message)
                except struct.error as error:
                    raise ProtocolError(f"{message.kind.name} is malformed: {error}") from error
        finally:
            self._over.set()
            for stream in self._streams.values():
                stream.close()
            self._channel.close()

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Around work of a stream that a client may have to wait for."""
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1

    def _exchange_versions(self) -> bool:
        """Exchange versions; False if the client closed the connection or sent none in time."""
        hello = self._channel.receive(HELLO_SECONDS)
        if hello is None:
            return False
        if hello.kind is not Kind.HELLO or hello.body[:4] != MAGIC or len(hello.body) < 8:
            raise ProtocolError("the client does not use the worker's protocol")
        (version,) = struct.unpack_from("<I", hello.body, 4)
        head = MAGIC + struct.pack("<I", PROTOCOL_VERSION)
        with suppress(ClientGone):
            self._channel.send(Kind.WELCOME, 0, head + f"vcfilter {__version__}".encode())
        if version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the client has version {version} of the protocol, this worker version "
                f"{PROTOCOL_VERSION}: install vcfilter and the plugin from one release"
            )
        return True

    def _dispatch(self, message: Message) -> None:
        number = message.stream
        if message.kind in (Kind.OPEN_DECODER, Kind.OPEN_DECODER_WITH, Kind.OPEN_ENCODER):
            if number in self._streams:
                raise ProtocolError(f"stream {number} was opened twice")
            if len(self._streams) >= STREAMS_MAX:
                raise ProtocolError(f"the client has more than {STREAMS_MAX} open streams")
            self._open(message)
        elif message.kind is Kind.CLOSE:
            stream = self._streams.pop(number, None)
            if stream is not None:
                stream.close()
        elif number in self._streams:
            self._streams[number].accept(message)
        else:
            raise ProtocolError(f"{message.kind.name} was sent to stream {number}, not open")

    def _open(self, message: Message) -> None:
        stream: Stream
        if message.kind is Kind.OPEN_DECODER:
            stream = DecoderStream(message.stream, self._context, message.body)
        elif message.kind is Kind.OPEN_DECODER_WITH:
            (length,) = struct.unpack_from("<I", message.body)
            settings, extradata = message.body[4 : 4 + length], message.body[4 + length :]
            stream = DecoderStream(message.stream, self._context, extradata, settings)
        else:
            stream = EncoderStream(message.stream, self._context, message.body)
        self._streams[message.stream] = stream
        try:
            stream.start()
        except RuntimeError as error:  # the system gives no thread
            raise ProtocolError(f"stream {message.stream} cannot be served: {error}") from error

    def _send_alive(self) -> None:
        """Send ALIVE every second while streams work and the process uses CPU time, so that a
        client can distinguish a slow machine from a hung worker."""
        before = time.process_time()
        while not self._over.wait(ALIVE_SECONDS):
            now = time.process_time()
            if self._working and now - before >= ALIVE_CPU_SECONDS:
                self._channel.send_alive()
            before = now
