"""The command `worker`: serves one client on standard input, or many on a Unix socket.

The protocol is specified in docs/reference/worker.md. Frames pass through shared memory without a
name, so none is left when a client or a worker is killed.

Each stream has a thread for its codec. The thread that reads a connection does not write to it
after the version exchange and does not wait for a codec, so a client may send without reading
first.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from vcfilter.errors import ConfigError, reason_of
from vcfilter.options import Limits, Runtime
from vcfilter.worker.connection import Codecs, Connection
from vcfilter.worker.protocol import Channel, ClientGone, Kind, ProtocolError, Status

logger = logging.getLogger(__name__)

CLIENTS_MAX = 64
CHECK_SECONDS = 5.0  # between two looks at whether the socket is still this worker's
PAUSE_SECONDS = 0.5  # after accept failed for lack of descriptors
PROBE_SECONDS = 2.0


def serve(
    *,
    path: str | None,
    clients_max: int,
    runtime: Runtime,
    model: str | None,
    limits: Limits,
    ready: Callable[[str], None] = lambda path: None,
    stopped: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Serve until the client closes the connection, or on a socket until SIGINT or SIGTERM.

    Args:
        path: of the socket; None: standard input is the socket of one client.
        clients_max: most connections at a time.
        model: name, id or path of the model of all streams; None: the one that each names.
        limits: upper bounds of decoding one stream.
        ready: called with the path once clients may connect there.
        stopped: called when a signal ends the worker on a socket.

    Raises:
        ConfigError: clients_max is below 1, another worker listens there, or standard input is no
            socket.
    """
    if clients_max < 1:
        raise ConfigError(f"max-clients {clients_max} is below 1")
    keep_memory()
    codecs = Codecs(runtime, model, limits)
    if path:
        listen(path, codecs, clients_max, ready, stopped)
    serve_standard_input(codecs)


def keep_memory() -> None:
    """Have the C library keep what it frees, up to a bound, for the next frame.

    Networks allocate and free the same megabytes for every frame. glibc returns them to the system
    each time, above all in threads other than the main one, and clearing the new pages takes a
    tenth of the time of decoding. Without glibc nothing happens.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(trim_threshold, 256 << 20)
        mallopt(arena_max, 1)


def serve_standard_input(codecs: Codecs) -> NoReturn:
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
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, see below
    status = 0
    try:
        Connection(Channel(client), codecs).serve()
    except ProtocolError as error:
        logger.error("%s", error)
        status = 1
    # At once, without waiting for codecs that still work for the closed connection.
    os._exit(status)


def listen(
    path: str,
    codecs: Codecs,
    clients_max: int = CLIENTS_MAX,
    ready: Callable[[str], None] = lambda path: None,
    stopped: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Serve clients of the same user on a Unix socket until SIGTERM or SIGINT, then end the
    process and remove the socket. It also ends, once idle, when the socket is no longer its own.
    A signal that was ignored at the start, as SIGINT in a shell's background, stays ignored.

    Raises:
        ConfigError: see `bind`.
    """
    codecs.load()  # before the first client: this is the purpose of --listen
    listener = Listener(path, clients_max)

    def end(number: int, frame: object) -> None:
        try:
            listener.remove()
            stopped()
        finally:
            os._exit(0)  # at once, without waiting for codecs: see serve_standard_input

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    ready(path)
    while (client := listener.next_client()) is not None:
        listener.serve(client, codecs)
    logger.warning("%s was removed or is another worker's: this one ends", path)
    os._exit(0)


class Listener:
    """A listening socket and its clients.

    Args:
        path: of the socket; it is made with mode 0600, in place of a stale one.
        clients_max: most clients at a time.

    Raises:
        ConfigError: see `bind`.
    """

    def __init__(self, path: str, clients_max: int) -> None:
        self._path, self._clients_max = path, clients_max
        self._socket = bind(path)
        self._made = self._identity()
        self._clients = 0
        self._lock = threading.Lock()
        self._socket.settimeout(CHECK_SECONDS)

    def next_client(self) -> socket.socket | None:
        """A client of the same user; None once the socket is no longer this worker's and all
        clients have left."""
        logged = False
        while True:
            try:
                client, _ = self._socket.accept()
            except TimeoutError:
                if self._identity() != self._made and not self._clients:
                    return None
                continue
            except (
                OSError
            ) as error:  # above all, no descriptor is left; other clients are still served
                if not logged:
                    logger.warning("no client can be accepted: %s", error)
                logged = True
                time.sleep(PAUSE_SECONDS)
                continue
            if peer_uid(client) == os.geteuid():
                return client
            client.close()

    def serve(self, client: socket.socket, codecs: Codecs) -> None:
        """Serve a client in a thread of its own, or refuse it with an error."""
        with self._lock:
            full = self._clients >= self._clients_max
            self._clients += not full
        if full:
            _refuse(client, f"the codec worker at {self._path} has {self._clients_max} clients")
            return
        thread = threading.Thread(
            target=self._serve, args=(client, codecs), name="client", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no thread
            self._client_ended()
            _refuse(client, f"the codec worker at {self._path}: {error}")

    def remove(self) -> None:
        """Remove the socket's name, if it is still this worker's."""
        if self._identity() == self._made:
            with suppress(OSError):
                os.unlink(self._path)

    def _serve(self, client: socket.socket, codecs: Codecs) -> None:
        try:
            Connection(Channel(client), codecs).serve()
        except ProtocolError as error:
            logger.warning("%s", error)  # of this client only; the others are still served
        except RuntimeError as error:
            logger.warning("a client cannot be served: %s", error)
        finally:
            self._client_ended()

    def _client_ended(self) -> None:
        with self._lock:
            self._clients -= 1

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def peer_uid(connection: socket.socket) -> int:
    """The user id of the peer of a Unix socket, from the kernel."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])


def bind(path: str) -> socket.socket:
    """A listening socket that only its owner may connect to, in place of a stale one.

    It is bound under another name, listens, and is then renamed: a client never finds one that does
    not listen yet, and two workers that start at the same time never remove each other's.

    Raises:
        ConfigError: another worker listens there, the file is no socket, or none can be made there.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} exists and is no socket: name another one")
        if _answers(path):
            raise ConfigError(f"another worker listens on {path}: stop it, or name another")
    made = str(Path(path).parent / f".{secrets.token_hex(4)}")
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # so that it never has wider permissions
    try:
        listener.bind(made)
    except OSError as error:
        listener.close()
        raise ConfigError(f"no socket can be made at {path}: {reason_of(error)}") from error
    finally:
        os.umask(before)
    try:
        listener.listen(64)
        os.rename(made, path)
    except BaseException:
        listener.close()
        os.unlink(made)
        raise
    return listener


def _answers(path: str) -> bool:
    """Whether a socket has a listener, a hung one included."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False  # of a worker that was killed
        except (BlockingIOError, TimeoutError):
            pass  # its backlog is full
    return True


def _refuse(client: socket.socket, reason: str) -> None:
    logger.warning("a client is refused: %s", reason)
    client.setblocking(False)
    body = struct.pack("<i", Status.ABSENT) + f"{reason}: try again later".encode()
    with suppress(ClientGone):
        Channel(client).send(Kind.FAILED, 0, body)
    client.close()
