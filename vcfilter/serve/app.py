"""The web application: pages, and what the player asks for."""

from __future__ import annotations

import asyncio
import html
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from importlib import resources
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vcfilter.errors import VcfilterError
from vcfilter.options import LOOKS
from vcfilter.serve import fragments
from vcfilter.serve.compare import compare, compare_looks
from vcfilter.serve.guard import Guard, sentence
from vcfilter.serve.library import ForbiddenError, Library, UnknownVideoError
from vcfilter.serve.steps import FULL, Step, advise
from vcfilter.serve.video import VideoFile
from vcfilter.serve.work import Run, StoppedError, WorkQueue

_CACHE_BYTES = 192 << 20
_AUDIO_CACHE_BYTES = 32 << 20
_POLL_SECONDS = 0.2
_VIEWER_SECONDS = 30.0  # after which a viewer without requests is dropped
_URGENT, _PATIENT = 0, 1
_SHARE_WEIGHT = 0.5


def make_app(library: Library, *, hosts: Sequence[str] = ()) -> Starlette:
    """The application for a library. `app.state.site.close()` ends its work.

    Args:
        hosts: addresses and names that it is reached by besides this machine's own (see Guard).
    """
    site = _Site(library)
    routes = [
        Route("/", site.index),
        Route("/watch/{video:path}", site.watch),
        Route("/page/{name}", site.page),
        Route("/media/{video:path}/info.json", site.info),
        Route("/media/{video:path}/frames/{number:int}.json", site.frames),
        Route("/media/{video:path}/compare/{frame:int}.json", site.compare),
        Route("/media/{video:path}/video/{step}/init.mp4", site.video_init),
        Route("/media/{video:path}/video/{step}/{number:int}.m4s", site.video_segment),
        Route("/media/{video:path}/video/{step}/index.m3u8", site.playlist),
        Route("/media/{video:path}/audio/init.mp4", site.audio_init),
        Route("/media/{video:path}/audio/{number:int}.m4s", site.audio_segment),
        Route("/media/{video:path}/audio/index.m3u8", site.playlist),
        Route("/media/{video:path}/master.m3u8", site.master),
        Route("/media/{video:path}", site.unknown),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ForbiddenError: _refusal(403),
            UnknownVideoError: _refusal(404),
            VcfilterError: _refusal(500),
        },
    )
    app.state.site = site
    app.add_middleware(Guard, hosts=hosts)
    site.start()
    return app


class _Site:
    """What each address answers."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._video_work = WorkQueue(_CACHE_BYTES, "video")
        self._audio_work = WorkQueue(_AUDIO_CACHE_BYTES, "audio")
        self._shares: dict[str, tuple[float, float]] = {}  # viewer: (share, when)
        self._inits: dict[tuple[str, str], bytes] = {}

    def start(self) -> None:
        """Load networks and libraries in a thread, before the first viewer comes."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def stop(self) -> None:
        """Drop all work; close() still follows."""
        self._video_work.stop()
        self._audio_work.stop()

    def close(self) -> bool:
        """Drop all work; returns whether its threads have ended within some seconds."""
        return all([self._video_work.close(), self._audio_work.close()])

    def _warm_up(self) -> None:
        name = self._library.single or next((e.name for e in self._library.entries()), None)
        if name is None:
            return
        # An error is reported when the file is asked for.
        with suppress(Exception, CancelledError):
            video = self._library.video(name)
            key = (video.key, FULL.name, 0)
            work = self._video_work.ask(key, _video_run(video, 0, FULL))
            work.future.result()
            self._video_work.leave(work)

    async def index(self, request: Request) -> Response:
        """The list of videos."""
        if self._library.single is not None:
            return self._watch_page(self._library.single)
        entries = await run_in_threadpool(self._library.entries)
        rows = "".join(
            f'<li><a href="/watch/{_quoted(entry.name)}">{html.escape(_shown(entry.name))}</a> '
            f"<small>{entry.size / 1000:,.0f} kB</small></li>"
            for entry in entries
        )
        text = _page_text("list.html").replace("{{rows}}", rows or "<li>no neural video here</li>")
        return HTMLResponse(text)

    async def watch(self, request: Request) -> Response:
        """The player."""
        await self._video(request)
        return self._watch_page(request.path_params["video"])

    def _watch_page(self, name: str) -> Response:
        back = "" if self._library.single else '<a href="/">all videos</a>'
        text = _page_text("watch.html").replace("{{back}}", back)
        text = text.replace("{{name}}", html.escape(_shown(name), quote=True))
        return HTMLResponse(text.replace("{{media}}", f"/media/{_quoted(name)}"))

    async def page(self, request: Request) -> Response:
        """The player's script and style."""
        types = {"player.js": "text/javascript", "style.css": "text/css"}
        name = request.path_params["name"]
        if name not in types:
            return sentence(404, "there is no such page")
        return Response(_page_text(name), media_type=types[name])

    async def unknown(self, request: Request) -> Response:
        """An unknown address below a video; one outside the folder is refused."""
        await self._video(request)
        return sentence(404, "there is no such address")

    async def info(self, request: Request) -> Response:
        """What the player must know of a video."""
        video = await self._video(request)
        return JSONResponse(await run_in_threadpool(self._describe, video))

    def _describe(self, video: VideoFile) -> dict[str, Any]:
        fmt = video.video_format
        width, height = fragments.display_size(video, FULL)
        speeds = video.speeds()
        audio = video.audio
        is_ready = self._video_work.has((video.key, FULL.name, 0))  # full size costs nothing
        return {
            "name": _shown(video.path.name),
            "width": width,
            "height": height,
            "coded": f"{fmt.width}x{fmt.height}, {fmt.bit_depth} bit",
            "model": video.header.model_id.hex(),
            "seconds": float(video.seconds),
            "frames": len(video.frames),
            "bytes": sum(segment.size for segment in video.segments),
            "levels": len(video.levels),
            "looks": video.looks,
            "original": _shown(video.original.name) if video.original else None,
            "segments": [[float(s.start), float(s.stop), s.size] for s in video.segments],
            "steps": [
                {
                    "name": step.name,
                    "size": "x".join(map(str, fragments.display_size(video, step))),
                    "rate": round(video.rate_of(step), 2),
                    "levels": sum(each <= step.levels for each in video.levels),
                    "type": self._video_type(video, step),
                    "speed": speeds[step.name],
                }
                for step in video.steps
            ],
            "advice": FULL.name if is_ready else advise(speeds, FULL.name),
            "audio": None
            if audio is None
            else {
                "codec": audio.codec,
                "type": f'{fragments.AUDIO_TYPE}; codecs="{fragments.audio_codec(audio)}"',
            },
        }

    def _video_type(self, video: VideoFile, step: Step) -> str:
        codec = fragments.video_codec(self._video_init(video, step))
        return f'{fragments.VIDEO_TYPE}; codecs="{codec}"'

    def _video_init(self, video: VideoFile, step: Step) -> bytes:
        key = (video.key, step.name)
        if key not in self._inits:
            if len(self._inits) > 256:
                self._inits.clear()
            self._inits[key] = fragments.video_init(video, step)
        return self._inits[key]

    async def frames(self, request: Request) -> Response:
        """The packets of one segment: [seconds, bytes, layer (0 keyframe), qp] each."""
        video = await self._video(request)
        number = _number(request, video)
        segment = video.segments[number]
        rows = [
            [round(float(video.time_of(i)), 4), frame.size, frame.layer, frame.qp]
            for i, frame in enumerate(video.frames[segment.first : segment.end], segment.first)
        ]
        return JSONResponse({"first": segment.first, "frames": rows})

    async def compare(self, request: Request) -> Response:
        """One frame beside x264, or with ?look= natural beside that look."""
        video = await self._video(request)
        index = request.path_params["frame"]
        if not 0 <= index < len(video.frames):
            return sentence(404, f"frame {index} is outside 0 to {len(video.frames) - 1}")
        look = request.query_params.get("look", LOOKS[0])
        if look not in LOOKS:
            return sentence(404, f"look {look!r} is not one of {', '.join(LOOKS)}")
        key = (video.key, "compare", index, look)

        def run(stopped: Callable[[], bool]) -> bytes:
            if look != LOOKS[0]:
                return compare_looks(video, index, look, stopped)
            return compare(video, index, stopped)

        made = await self._made(request, self._video_work, key, run, _PATIENT)
        return made or Response(status_code=204)

    async def video_init(self, request: Request) -> Response:
        """The head of a step's video stream."""
        video = await self._video(request)
        step = _step(request, video)
        data = await run_in_threadpool(self._video_init, video, step)
        return Response(data, media_type=fragments.VIDEO_TYPE)

    async def video_segment(self, request: Request) -> Response:
        """Frames of a segment; a header advises the step for the next one."""
        video = await self._video(request)
        step = _step(request, video)
        number = _number(request, video)
        began = time.monotonic()
        key = (video.key, step.name, number)
        made = await self._made(
            request, self._video_work, key, _video_run(video, number, step), _URGENT
        )
        if made is None:
            return Response(status_code=204)
        made.media_type = fragments.VIDEO_TYPE
        made.headers["content-type"] = fragments.VIDEO_TYPE
        speeds = await run_in_threadpool(video.speeds)
        cached = made.headers["vcfilter-cached"] == "1"
        segment = video.segments[number]
        share = self._share(
            request.query_params.get("viewer", ""),
            None if cached else float(segment.stop - segment.start) / (time.monotonic() - began),
            speeds[step.rung],
        )
        made.headers["vcfilter-advice"] = advise(speeds, step.rung, share)
        made.headers["vcfilter-speed"] = f"{speeds[step.rung] or 0:.3f}"
        quickest = max((speed for speed in speeds.values() if speed), default=0.0)
        made.headers["vcfilter-quickest"] = f"{quickest:.3f}"
        return made

    def _share(self, viewer: str, delivered: float | None, possible: float | None) -> float:
        """Which part of the machine's speed a viewer gets, from what was delivered so far."""
        now = time.monotonic()
        self._shares = {k: v for k, v in self._shares.items() if now - v[1] < _VIEWER_SECONDS}
        share = self._shares.get(viewer, (1.0, now))[0]
        if delivered is not None and possible:
            share += _SHARE_WEIGHT * (min(1.0, delivered / possible) - share)
        self._shares[viewer[:64]] = (share, now)
        return share

    async def audio_init(self, request: Request) -> Response:
        """The head of the audio stream."""
        video = await self._video(request)
        if video.audio is None:
            return sentence(404, "the video has no audio")
        data = await run_in_threadpool(fragments.audio_init, video)
        return Response(data, media_type=fragments.AUDIO_TYPE)

    async def audio_segment(self, request: Request) -> Response:
        """Audio of a segment."""
        video = await self._video(request)
        number = _number(request, video)
        if video.audio is None:
            return sentence(404, "the video has no audio")
        key = (video.key, "audio", number)
        made = await self._made(
            request,
            self._audio_work,
            key,
            lambda stopped: fragments.audio_segment(video, number, stopped),
            _URGENT,
        )
        if made is not None:
            made.headers["content-type"] = fragments.AUDIO_TYPE
        return made or Response(status_code=204)

    async def master(self, request: Request) -> Response:
        """HLS: the steps, for players that read it (Safari, VLC, mpv)."""
        video = await self._video(request)
        lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-INDEPENDENT-SEGMENTS"]
        codecs, group = "", ""
        if video.audio is not None:
            lines.append(
                '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="audio",DEFAULT=YES,'
                'AUTOSELECT=YES,URI="audio/index.m3u8"'
            )
            codecs, group = f",{fragments.audio_codec(video.audio)}", ',AUDIO="audio"'
        for step in video.steps:
            init = await run_in_threadpool(self._video_init, video, step)
            width, height = fragments.display_size(video, step)
            rate = video.rate_of(step)
            # What x264 makes of it is not known before: a bit and a half per sample at most.
            bandwidth = round(1.5 * width * height * rate)
            lines.append(
                f"#EXT-X-STREAM-INF:BANDWIDTH={bandwidth},RESOLUTION={width}x{height},"
                f'FRAME-RATE={rate:.3f},CODECS="{fragments.video_codec(init)}{codecs}"{group}'
            )
            lines.append(f"video/{step.name}/index.m3u8")
        return _playlist(lines)

    async def playlist(self, request: Request) -> Response:
        """HLS: the segments of one track."""
        video = await self._video(request)
        if "step" in request.path_params:
            _step(request, video)
        longest = max(segment.stop - segment.start for segment in video.segments)
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            f"#EXT-X-TARGETDURATION:{max(1, round(longest))}",
            "#EXT-X-PLAYLIST-TYPE:VOD",
            '#EXT-X-MAP:URI="init.mp4"',
        ]
        for number, segment in enumerate(video.segments):
            lines += [f"#EXTINF:{float(segment.stop - segment.start):.5f},", f"{number}.m4s"]
        return _playlist([*lines, "#EXT-X-ENDLIST"])

    async def _video(self, request: Request) -> VideoFile:
        return await run_in_threadpool(self._library.video, request.path_params["video"])

    async def _made(
        self, request: Request, work_queue: WorkQueue, key: Any, run: Run, urgency: int
    ) -> Response | None:
        """The result of some work; None where the client left before."""
        work = work_queue.ask(key, run, urgency)
        try:
            future = asyncio.wrap_future(work.future)
            future.add_done_callback(lambda each: each.cancelled() or each.exception())
            while not (await asyncio.wait({future}, timeout=_POLL_SECONDS))[0]:
                if await request.is_disconnected():
                    return None
            data = future.result()
        except (StoppedError, asyncio.CancelledError):
            return None
        finally:
            work_queue.leave(work)
        return Response(
            data,
            media_type="application/json",
            headers={"vcfilter-cached": "1" if work.cached else "0", "cache-control": "no-cache"},
        )


def _video_run(video: VideoFile, number: int, step: Step) -> Run:
    return lambda stopped: fragments.video_segment(video, number, step, stopped)


def _number(request: Request, video: VideoFile) -> int:
    number = int(request.path_params["number"])
    if number >= len(video.segments):
        raise UnknownVideoError(f"segment {number} is outside 0 to {len(video.segments) - 1}")
    return number


def _step(request: Request, video: VideoFile) -> Step:
    name = request.path_params["step"]
    steps = {each.name: each for step in video.steps for each in step.variants()}
    if name not in steps:
        raise UnknownVideoError(f"step {name!r} is not one of {', '.join(steps)}")
    return steps[name]


def _refusal(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return sentence(status, str(error))

    return answer


def _quoted(name: str) -> str:
    """A file's name in an address, byte by byte."""
    return quote(os.fsencode(name))


def _shown(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "replace").decode()


def _playlist(lines: list[str]) -> Response:
    return Response("\n".join([*lines, ""]), media_type="application/vnd.apple.mpegurl")


def _page_text(name: str) -> str:
    return (resources.files("vcfilter.serve") / "page" / name).read_text(encoding="utf-8")
