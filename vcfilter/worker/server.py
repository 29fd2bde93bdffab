"""The codec worker: encodes and decodes for programs that hold no Python, FFmpeg among them.

It speaks the protocol of docs/worker.md over a Unix socket: its standard input, or with --listen
one in the file system that stays open for many clients. Pictures pass through shared memory that
has no name, so nothing is left behind however a client or a worker ends.

Each stream has a thread for its codec. The thread that reads a connection never writes to it once
it is open and never waits for a codec, so a client may send without reading first.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from vcfilter import __version__
from vcfilter.cli.arguments import add_model
from vcfilter.errors import ConfigError
from vcfilter.worker.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    Channel,
    ClientGone,
    Kind,
    Message,
    ProtocolError,
)
from vcfilter.worker.streams import DecoderStream, EncoderStream, Stream, Surroundings

if TYPE_CHECKING:
    from vcfilter.models.hierarchical.video import VideoModel

ALIVE_SECONDS = 1.0
ALIVE_CPU_SECONDS = 0.005  # who worked less in ALIVE_SECONDS hangs, and had better be silent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `worker`."""
    parser.add_argument(
        "--listen", metavar="SOCKET",
        help="stay warm for many clients of the same user on a Unix socket of this name; "
        "without it, one client speaks through standard input, which it made a socket",
    )  # fmt: skip
    add_model(parser)


def run(args: argparse.Namespace) -> NoReturn:
    """Serve until the client is gone, or with --listen until a signal comes."""
    if args.threads < 0:
        raise ConfigError(f"threads {args.threads} is negative")
    keep_memory()
    models = Models(args.model, args.device, args.threads)
    if args.listen:
        listen(args.listen, models)
    serve_standard_input(models)


def keep_memory() -> None:
    """Have the C library keep what it frees, up to a bound, for the next frame.

    Networks free and take the same megabytes for every frame. glibc gives them back to the system
    each time, most of all in threads other than the main one, and the pages that must be
    cleared anew are a tenth of the time of decoding. Where there is no glibc nothing happens.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(trim_threshold, 256 << 20)
        mallopt(arena_max, 1)


class Models:
    """The model, loaded once, by the stream that needs it first.

    Args:
        weights, device, threads: as those of vcfilter.Decoder.
    """

    def __init__(self, weights: str | None, device: str, threads: int) -> None:
        self._weights, self._device, self._threads = weights, device, threads
        self._lock = threading.Lock()
        self._model: VideoModel | None = None

    def model(self) -> VideoModel:
        """The model; the calling thread is then set up to run it."""
        import torch  # late: a client is greeted before the seconds that this takes

        from vcfilter.codec.engine import load_model

        if self._threads:
            torch.set_num_threads(self._threads)  # OpenMP keeps the number per thread
        with self._lock:
            if self._model is None:
                self._model = load_model(self._weights, self._device, self._threads)
            return self._model


class Connection:
    """A client and its streams.

    Args:
        channel: to the client.
        models: where the streams get their model.
    """

    def __init__(self, channel: Channel, models: Models) -> None:
        self._channel = channel
        self._surroundings = Surroundings(channel=channel, model=models.model, work=self._work)
        self._streams: dict[int, Stream] = {}
        self._working = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def serve(self) -> None:
        """Do what the client asks for until it is gone; its streams end with it.

        Raises:
            ProtocolError: the client talks nonsense, or is of another version.
        """
        try:
            self._greet()
            threading.Thread(target=self._show_life, name="alive", daemon=True).start()
            while (message := self._channel.receive()) is not None:
                try:
                    self._dispatch(message)
                except (struct.error, UnicodeDecodeError) as error:
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

    def _greet(self) -> None:
        hello = self._channel.receive()
        if hello is None:
            return
        if hello.kind is not Kind.HELLO or hello.body[:4] != MAGIC or len(hello.body) < 8:
            raise ProtocolError("the client does not speak the worker's protocol")
        (version,) = struct.unpack_from("<I", hello.body, 4)
        head = MAGIC + struct.pack("<I", PROTOCOL_VERSION)
        with suppress(ClientGone):
            self._channel.send(Kind.WELCOME, 0, head + f"vcfilter {__version__}".encode())
        if version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the client speaks version {version} of the protocol, this worker version "
                f"{PROTOCOL_VERSION}: install vcfilter and the plugin from one release"
            )

    def _dispatch(self, message: Message) -> None:
        number = message.stream
        if message.kind in (Kind.OPEN_DECODER, Kind.OPEN_ENCODER):
            if number in self._streams:
                raise ProtocolError(f"stream {number} was opened twice")
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
            stream = DecoderStream(message.stream, self._surroundings, message.body)
        else:
            stream = EncoderStream(message.stream, self._surroundings, message.body)
        self._streams[message.stream] = stream
        stream.start()

    def _show_life(self) -> None:
        """Say every second that streams are at work, as long as the process does work: what is
        slow is not taken for dead, and what hangs not for slow."""
        before = time.process_time()
        while not self._over.wait(ALIVE_SECONDS):
            now = time.process_time()
            if self._working and now - before >= ALIVE_CPU_SECONDS:
                self._channel.send_alive()
            before = now


def serve_standard_input(models: Models) -> NoReturn:
    """Serve the client at the other end of standard input, then end the process.

    Raises:
        ConfigError: standard input is no socket.
    """
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        raise ConfigError(
            "standard input is no socket: the worker is started by FFmpeg's plugin, "
            "or by hand with --listen SOCKET"
        )
    client = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    client.setblocking(True)
    status = 0
    try:
        Connection(Channel(client), models).serve()
    except ProtocolError as error:
        _say(str(error))
        status = 1
    # At once: codecs that still work for a client that is gone have nothing to finish.
    os._exit(status)


def listen(path: str, models: Models) -> NoReturn:
    """Serve clients of the same user on a Unix socket until SIGTERM or SIGINT, then end the
    process and remove the socket.

    Raises:
        ConfigError: another worker listens there, or the file is no socket.
        OSError: the socket cannot be made.
    """
    models.model()  # before anyone is let in: warm is what this worker is for
    listener = _bind(path)
    made = os.stat(path).st_ino

    def end(number: int, frame: object) -> None:
        with suppress(OSError):
            if os.stat(path).st_ino == made:
                os.unlink(path)
        # At once, without waiting for codecs: see serve_standard_input.
        os._exit(0 if number == signal.SIGTERM else 128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    _say(f"the worker listens on {path}")
    while True:
        client, _ = listener.accept()
        if peer_uid(client) != os.geteuid():
            client.close()
            continue
        threading.Thread(target=_serve, args=(client, models), name="client", daemon=True).start()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket, as the kernel knows it."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])


def _serve(client: socket.socket, models: Models) -> None:
    try:
        Connection(Channel(client), models).serve()
    except ProtocolError as error:
        _say(str(error))  # this client's fault; the others are served on


def _bind(path: str) -> socket.socket:
    """A listening socket that only its owner may connect to, in place of one that is dead."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} exists and is no socket: name another one")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # of a worker that was killed
            else:
                raise ConfigError(f"another worker listens on {path}: stop it, or name another")
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # so that it never stands there with wider permissions
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _say(text: str) -> None:
    print(f"vcfilter: {text}", file=sys.stderr, flush=True)
