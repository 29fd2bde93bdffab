"""Files of an evaluation: results.json, report.html, curves/, frames/."""

from __future__ import annotations

import base64
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from jinja2 import Environment, PackageLoader, StrictUndefined

from vcfilter.errors import MediaError
from vcfilter.evaluate.clips import Clip, frames_of, planes_of, write_atomically
from vcfilter.evaluate.plots import NO_MATPLOTLIB, draw_curves, have_matplotlib
from vcfilter.evaluate.runner import Codec, Curve, Point, decoded_frames
from vcfilter.evaluate.tables import Evaluation, Table, percent_text, speeds, tables, text_table
from vcfilter.frames import Frame
from vcfilter.metrics import frame_psnr

METHOD = """\
Each codec gets the same planes (4:2:0 at the clip's size and bit depth) and writes a real
Matroska file; bytes are the sum of the video stream's packets as a demuxer returns them (the
text about the encoder that x264 and x265 put into the stream is left out). x264, x265 and SVT-AV1
run as in PyAV's wheels with the preset named, constant crf, the keyframe interval named and all
else at their defaults, B-frames on. Decoded planes are compared at original size and bit depth;
PSNR and MS-SSIM are averages over frames of each frame's value, 6:1:1 is (6 Y + U + V) / 8 of the
planes' PSNR. BD-rate is the average difference in bits at equal quality over the range that both
curves cover (monotone piecewise cubic over the logarithm of the rate): negative = fewer bits than
the anchor. Frames per second are wall time on the machine that first measured the point."""

TEMPLATE = "report.html"
_PLACES = ("original", "tested", "anchor")


def to_png(frame: Frame, like: VideoFrame) -> bytes:
    """A frame's planes as a PNG file, with the colour description of another frame."""
    deep = frame.y.dtype == np.uint16
    height, width = frame.y.shape
    image = VideoFrame(width, height, "yuv420p10le" if deep else "yuv420p")
    for target, plane in zip(image.planes, frame.planes, strict=True):
        stride = target.line_size // plane.dtype.itemsize
        rows = np.frombuffer(memoryview(target), dtype=plane.dtype).reshape(-1, stride)
        rows[: plane.shape[0], : plane.shape[1]] = plane
    image.colorspace = like.colorspace
    image.color_range = like.color_range
    rgb = image.reformat(format="rgb24")
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "rgb24"
    encoder.time_base = like.time_base or 1
    rgb.pts = 0
    return b"".join(bytes(p) for p in [*encoder.encode(rgb), *encoder.encode(None)])


def _nth(point: Point, codec: Codec, index: int) -> Frame:
    frames = decoded_frames(Path(point.stream), codec, 1)
    found = next(islice(frames, index, None), None)
    if found is None:
        raise MediaError(f"{point.stream} has no frame {index}")
    return found


def side_by_side(evaluation: Evaluation, clip: Clip, keyint: int) -> list[tuple[str, bytes]]:
    """(caption, PNG) of one frame: original, the codec under test, the anchor at nearest rate."""
    tested = next((c for c in evaluation.codecs if c != evaluation.anchor), evaluation.anchor)
    by_label = {codec.label: codec for codec in evaluation.tested}
    index = clip.frames // 2
    original = next(islice(frames_of(clip.path), index, None))
    source = planes_of(original)
    points = evaluation.curve(clip.name, tested, keyint).points
    ours = points[(len(points) + 1) // 2] if len(points) > 2 else points[-1]
    nearest = min(
        evaluation.curve(clip.name, evaluation.anchor, keyint).points,
        key=lambda p: abs(math.log(p.kbps / ours.kbps)),
    )
    images = [(f"original, frame {index}", to_png(source, original))]
    for codec, point in ((tested, ours), (evaluation.anchor, nearest)):
        frame = _nth(point, by_label[codec], index)
        here = frame_psnr(source, frame, clip.bit_depth).weighted
        caption = f"{codec}, {point.kbps:.0f} kbit/s, this frame {here:.2f} dB"
        images.append((caption, to_png(frame, original)))
    return images


def write_report(evaluation: Evaluation, out: Path) -> str:
    """Write results.json, report.html, curves/ and frames/ under out; return the text summary.

    Raises:
        MediaError: out cannot be written.
    """
    try:
        for folder in (out / "curves", out / "frames"):
            folder.mkdir(parents=True, exist_ok=True)
        return _write(evaluation, out)
    except OSError as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{out} cannot be written: {error.strerror}") from error


def _write(evaluation: Evaluation, out: Path) -> str:
    found = tables(evaluation)
    drawn = have_matplotlib()
    data = {
        "method": METHOD,
        "anchor": evaluation.anchor,
        "threads": evaluation.threads,
        "machine": platform.processor() or platform.machine(),
        "clips": [asdict(clip) | {"rate": str(clip.rate)} for clip in evaluation.clips],
        "curves": [asdict(curve) for curve in evaluation.curves],
        "bd_rates": [asdict(table) | {"averages": table.averages} for table in found],
    }
    write_atomically(out / "results.json", json.dumps(data, indent=1, ensure_ascii=False))
    environment = Environment(
        loader=PackageLoader("vcfilter.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent_text
    page = environment.get_template(TEMPLATE).render(
        method=METHOD,
        threads=evaluation.threads or "as many as each takes by itself",
        missing="" if drawn else NO_MATPLOTLIB,
        # One table per keyframe interval and the one against keyframes alone; planes are folded.
        tables=[_page_table(table, evaluation.anchor) for table in found],
        shown=len(evaluation.keyints) + 1,
        speeds=speeds(evaluation),
        clips=[
            {
                "clip": clip,
                "intervals": list(_intervals(evaluation, clip, out, drawn)),
                "images": list(_images(evaluation, clip, out)),
            }
            for clip in evaluation.clips
        ],
    )
    write_atomically(out / "report.html", page)
    main = len(evaluation.keyints)
    summary = [
        text_table(table, _anchor_of(table, evaluation.anchor))
        for table in found[: main + (1 in evaluation.keyints and main > 1)]
    ]
    if not drawn:
        summary.append(NO_MATPLOTLIB)
    summary.append(f"report: {out / 'report.html'}")
    return "\n\n".join(summary)


def _anchor_of(table: Table, anchor: str) -> str:
    """The codec that a table's figures are against; "" where each codec is its own anchor."""
    return "" if "against itself" in table.title else anchor


def _page_table(table: Table, anchor: str) -> dict[str, Any]:
    """A table with its notes numbered, for the template."""
    anchor = _anchor_of(table, anchor)
    notes: list[str] = []
    rows = []
    for number, (clip, results) in enumerate(table.rows):
        winner = table.winner(number, anchor) if anchor else ""
        cells = []
        for codec, result in zip(table.columns, results, strict=True):
            if result.note:
                notes.append(f"{clip}, {codec}: {result.note}")
            note = len(notes) if result.note else 0
            cells.append({"percent": result.percent, "note": note, "wins": codec == winner})
        rows.append({"clip": clip, "cells": cells, "winner": winner})
    return {
        "title": table.title,
        "columns": table.columns,
        "against": bool(anchor),
        "rows": rows,
        "averages": table.averages,
        "notes": notes,
    }


def _intervals(
    evaluation: Evaluation, clip: Clip, out: Path, drawn: bool
) -> Iterator[dict[str, Any]]:
    """Of each keyframe interval: the curves, drawn into curves/ where matplotlib is there."""
    for keyint in evaluation.keyints:
        title = f"{clip.name}, keyframe interval {keyint}"
        curves: list[Curve] = [
            evaluation.curve(clip.name, codec, keyint) for codec in evaluation.codecs
        ]
        plot = ""
        if drawn:
            target = out / "curves" / f"{clip.name}_keyint{keyint}"
            draw_curves(curves, title, target)
            plot = _embed("image/svg+xml", target.with_suffix(".svg").read_bytes())
        yield {"keyint": keyint, "title": title, "curves": curves, "plot": plot}


def _images(evaluation: Evaluation, clip: Clip, out: Path) -> Iterator[dict[str, str]]:
    """One frame of the original, the codec under test and the anchor, written into frames/."""
    images = side_by_side(evaluation, clip, evaluation.keyints[0])
    for place, (caption, png) in zip(_PLACES, images, strict=True):
        (out / "frames" / f"{clip.name}_{place}.png").write_bytes(png)
        yield {"caption": caption, "source": _embed("image/png", png)}


def _embed(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
