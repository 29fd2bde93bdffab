"""The serve command: a web page that plays neural films in any browser.

Pictures are decoded segment by segment as a browser asks for them, coded anew as H.264 and handed
over as fragmented MP4 with the film's own sound; nothing is decoded that nobody asked for.
"""

from __future__ import annotations

import argparse
import socket
import sys
from contextlib import suppress
from pathlib import Path

from vcfilter.cli.arguments import add_model
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import DecoderOptions, Runtime

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8350

_EXAMPLES = """\
examples:
  vcfilter serve film.mkv
  vcfilter serve films/ --port 9000
  vcfilter serve film.mkv --original film.mp4     compare with x264 coded from the original
  vcfilter serve films/ --host 0.0.0.0            for the whole network: there is no password
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of serve to a parser."""
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="FILE_OR_FOLDER", help="a neural film, or a folder")
    parser.add_argument(
        "--host", default=DEFAULT_HOST, metavar="ADDRESS", help="where to listen (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N", help="0: any (%(default)s)"
    )
    parser.add_argument(
        "--original", metavar="FILE_OR_FOLDER",
        help="what the films were coded from (in a folder, files of the same name): "
        "the comparison then codes it with x264",
    )  # fmt: skip
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out serve until it is stopped; errors are raised as VcfilterError."""
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"port {args.port} is outside 0 to 65535")
    try:
        import uvicorn

        from vcfilter.serve.app import make_app
    except ImportError as error:
        raise MediaError(
            f"serve needs the package {error.name}: pip install 'vcfilter[serve]'"
        ) from error
    from vcfilter.serve.library import Library

    library = Library(
        Path(args.source),
        DecoderOptions(model=args.weights),
        original=Path(args.original) if args.original else None,
        runtime=Runtime(device=args.device, threads=args.threads),
    )
    listener = _listen(args.host, args.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    app = make_app(library, local=_is_local(host))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    print(f"vcfilter: http://{shown}:{port}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
    with listener, suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        server.run(sockets=[listener])
    return 0


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


def _is_local(host: str) -> bool:
    return host in ("::1", "localhost") or host.startswith("127.")
