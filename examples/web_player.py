"""Neural video files in a browser, from a program of your own:

    python examples/web_player.py file_or_folder [port] [seconds]

The application is an ordinary ASGI one: it can be mounted into another (starlette.routing.Mount),
or be run by any ASGI server. It needs the packages of the extra `serve`.
"""

import asyncio
import sys
from pathlib import Path

import uvicorn

from vcfilter import DecoderOptions
from vcfilter.serve.app import make_app
from vcfilter.serve.library import Library


async def serve(source: str, port: int, seconds: float | None) -> None:
    library = Library(Path(source), DecoderOptions())
    app = make_app(library)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.05)
    for entry in library.entries():
        print(f"http://127.0.0.1:{port}/watch/{entry.name}", flush=True)
    if seconds is not None:
        await asyncio.sleep(seconds)
        server.should_exit = True
    await running
    app.state.site.close()  # decoding ends before the interpreter does


def main(source: str, port: str = "8351", seconds: str | None = None) -> None:
    asyncio.run(serve(source, int(port), None if seconds is None else float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
