"""Listening and answering until the user ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import DecoderOptions, Runtime
from vcfilter.serve.library import Library

_CONNECTIONS = 256  # a page opens six at most
_KEEP_ALIVE_SECONDS = 5
_SHUTDOWN_SECONDS = 2


def serve(
    source: Path,
    options: DecoderOptions,
    *,
    runtime: Runtime | None = None,
    host: str,
    port: int,
    names: tuple[str, ...] = (),
    original: Path | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> bool:
    """Serve a file or a folder until SIGINT or SIGTERM.

    Returns whether all threads have ended: where not, the networks still compute in one.

    Args:
        options: how files are decoded.
        runtime: where the networks run.
        host: address or name to listen on.
        port: 0 takes any.
        names: host names that requests may carry besides those of `host` and of this machine.
        original: what the files were coded from, a file or a folder.
        ready: called with the page's address once it answers.

    Raises:
        ConfigError: the port is out of range.
        MediaError: there is nothing to serve, the port is taken, or the web server is missing.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is outside 0 to 65535")
    try:
        import uvicorn

        from vcfilter.serve.app import make_app
        from vcfilter.serve.connection import Connection, Server
    except ImportError as error:
        raise MediaError(
            f"serve needs the package {error.name}: install vcfilter with the extra serve"
        ) from error
    library = Library(source, options, runtime=runtime, original=original)
    listener = _listen(host, port)
    bound, number = listener.getsockname()[:2]
    app = make_app(library, hosts=(host, bound, *names))
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="critical",  # requests that are cut off are no news
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=16 << 10,
    )
    ready(f"http://{f'[{bound}]' if ':' in bound else bound}:{number}/")
    try:
        with listener, suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
            Server(config, app.state.site.stop).run(sockets=[listener])
    finally:
        ended: bool = app.state.site.close()
    return ended


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises MediaError where that cannot be."""
    listener: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise MediaError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; --port gives another port"
        ) from error
    return listener
