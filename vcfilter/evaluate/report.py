"""Tables, curves and frames of an evaluation: results.json, report.html, curves/, frames/."""

from __future__ import annotations

import base64
import html
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from vcfilter.errors import MediaError
from vcfilter.evaluate.bdrate import BdRate, bd_rate
from vcfilter.evaluate.clips import Clip, pictures, planes_of, write_atomically
from vcfilter.evaluate.plots import NO_MATPLOTLIB, draw_curves, have_matplotlib, ms_ssim_db
from vcfilter.evaluate.runner import Codec, Curve, Point, decoded_frames
from vcfilter.frames import Frame
from vcfilter.metrics import frame_psnr

METRICS = {
    "psnr": "PSNR 6:1:1",
    "psnr_y": "PSNR Y",
    "psnr_u": "PSNR U",
    "psnr_v": "PSNR V",
    "ms_ssim": "MS-SSIM (dB)",
}

METHOD = """\
Each codec gets the same planes (4:2:0 at the clip's size and bit depth) and writes a real
Matroska file; bytes are the sum of the picture track's packets as a demuxer hands them out (the
text about the encoder that x264 and x265 put into the stream is left out). x264, x265 and SVT-AV1
run as PyAV ships them with the preset named, constant crf, the keyframe interval named and all
else at their defaults, B-frames on. Decoded planes are compared at original size and bit depth;
PSNR and MS-SSIM are averages over frames of each frame's value, 6:1:1 is (6 Y + U + V) / 8 of the
planes' PSNR. BD-rate is the average difference in bits at equal quality over the range that both
curves cover (monotone piecewise cubic over the logarithm of the rate): negative = fewer bits than
the anchor. Frames per second are wall time on the machine that first measured the point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a report is made from.

    Args:
        clips: prepared clips, in the order of the tables.
        tested: the codecs that were run, in the order of the columns.
        curves: every codec on every clip at every keyframe interval.
        anchor: label of the codec that BD-rates are against.
        threads: threads each codec had; 0: its own choice.
    """

    clips: tuple[Clip, ...]
    tested: tuple[Codec, ...]
    curves: tuple[Curve, ...]
    anchor: str
    threads: int

    @property
    def keyints(self) -> tuple[int, ...]:
        """Keyframe intervals, in the order they first occur."""
        return tuple(dict.fromkeys(curve.keyint for curve in self.curves))

    @property
    def codecs(self) -> tuple[str, ...]:
        """Labels of the codecs."""
        return tuple(codec.label for codec in self.tested)

    def curve(self, clip: str, codec: str, keyint: int) -> Curve:
        """The one curve of a clip, codec and interval."""
        for curve in self.curves:
            if (curve.clip, curve.codec, curve.keyint) == (clip, codec, keyint):
                return curve
        raise KeyError((clip, codec, keyint))


def compare_curves(anchor: Curve, tested: Curve, metric: str = "psnr") -> BdRate:
    """BD-rate of one curve against another in one of METRICS."""

    def values(points: Iterable[Point]) -> list[float]:
        raw = [float(getattr(point, metric)) for point in points]
        return [ms_ssim_db(v) for v in raw] if metric == "ms_ssim" else raw

    return bd_rate(
        [p.kbps for p in anchor.points],
        values(anchor.points),
        [p.kbps for p in tested.points],
        values(tested.points),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of BD-rates: one row per clip, one column per codec, and the columns' averages."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[BdRate, ...]], ...]

    @property
    def averages(self) -> tuple[float | None, ...]:
        """Mean over the clips that have a figure, per column."""
        means: list[float | None] = []
        for column in range(len(self.columns)):
            found = [r[column].percent for _, r in self.rows]
            known = [p for p in found if p is not None]
            means.append(sum(known) / len(known) if known else None)
        return tuple(means)

    def winner(self, row: int, anchor: str) -> str:
        """Codec with the fewest bits on a row's clip, the anchor (0 %) among them."""
        best, least = anchor, 0.0
        for codec, result in zip(self.columns, self.rows[row][1], strict=True):
            if result.percent is not None and result.percent < least:
                best, least = codec, result.percent
        return best


def against_anchor(evaluation: Evaluation, keyint: int, metric: str = "psnr") -> Table:
    """BD-rates of every other codec against the anchor at one keyframe interval."""
    others = tuple(c for c in evaluation.codecs if c != evaluation.anchor)
    rows: list[tuple[str, tuple[BdRate, ...]]] = []
    for clip in evaluation.clips:
        anchor = evaluation.curve(clip.name, evaluation.anchor, keyint)
        tested = (evaluation.curve(clip.name, codec, keyint) for codec in others)
        rows.append((clip.name, tuple(compare_curves(anchor, t, metric) for t in tested)))
    title = f"keyframe interval {keyint}, {METRICS[metric]}, against {evaluation.anchor}"
    return Table(title=title, columns=others, rows=tuple(rows))


def against_intra(evaluation: Evaluation, keyint: int) -> Table:
    """BD-rates of each codec with inter frames against itself with keyframes alone."""
    rows: list[tuple[str, tuple[BdRate, ...]]] = []
    for clip in evaluation.clips:
        results = []
        for codec in evaluation.codecs:
            alone = evaluation.curve(clip.name, codec, 1)
            results.append(compare_curves(alone, evaluation.curve(clip.name, codec, keyint)))
        rows.append((clip.name, tuple(results)))
    title = f"each codec at interval {keyint} against itself with keyframes alone, PSNR 6:1:1"
    return Table(title=title, columns=evaluation.codecs, rows=tuple(rows))


def tables(evaluation: Evaluation) -> list[Table]:
    """All BD-rate tables, the most telling first."""
    found = [against_anchor(evaluation, k, m) for m in METRICS for k in evaluation.keyints]
    if 1 in evaluation.keyints:
        inter = [k for k in evaluation.keyints if k != 1]
        found[len(evaluation.keyints) : 0] = [against_intra(evaluation, k) for k in inter]
    return [table for table in found if table.columns]


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:+.1f} %"


def text_table(table: Table, anchor: str) -> str:
    """A table for the terminal; figures with a note carry a star, notes follow below."""
    head = ["BD-rate", *table.columns, "fewest bits" if anchor else ""]
    lines = [head]
    notes: list[str] = []
    for i, (clip, results) in enumerate(table.rows):
        cells = []
        for codec, result in zip(table.columns, results, strict=True):
            cells.append(_percent(result.percent) + ("*" if result.note else ""))
            if result.note:
                notes.append(f"* {clip}, {codec}: {result.note}")
        lines.append([clip, *cells, table.winner(i, anchor) if anchor else ""])
    lines.append(["average", *map(_percent, table.averages), ""])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([table.title, *(row.rstrip() for row in rows), *notes])


def speeds(evaluation: Evaluation) -> list[tuple[str, int, float, float]]:
    """(codec, keyint, encode, decode frames/s): geometric means over clips and points."""
    found = []
    for keyint in evaluation.keyints:
        for codec in evaluation.codecs:
            points = [
                p for c in evaluation.curves if (c.codec, c.keyint) == (codec, keyint)
                for p in c.points
            ]  # fmt: skip
            encode = math.exp(sum(math.log(p.encode_fps) for p in points) / len(points))
            decode = math.exp(sum(math.log(p.decode_fps) for p in points) / len(points))
            found.append((codec, keyint, encode, decode))
    return found


def to_png(frame: Frame, like: VideoFrame) -> bytes:
    """A frame's planes as a PNG file, with the colour description of another picture."""
    deep = frame.y.dtype == np.uint16
    height, width = frame.y.shape
    picture = VideoFrame(width, height, "yuv420p10le" if deep else "yuv420p")
    for target, plane in zip(picture.planes, frame.planes, strict=True):
        stride = target.line_size // plane.dtype.itemsize
        rows = np.frombuffer(memoryview(target), dtype=plane.dtype).reshape(-1, stride)
        rows[: plane.shape[0], : plane.shape[1]] = plane
    picture.colorspace = like.colorspace
    picture.color_range = like.color_range
    rgb = picture.reformat(format="rgb24")
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
    picture = next(islice(pictures(clip.path), index, None))
    source = planes_of(picture)
    points = evaluation.curve(clip.name, tested, keyint).points
    ours = points[(len(points) + 1) // 2] if len(points) > 2 else points[-1]
    nearest = min(
        evaluation.curve(clip.name, evaluation.anchor, keyint).points,
        key=lambda p: abs(math.log(p.kbps / ours.kbps)),
    )
    images = [(f"original, frame {index}", to_png(source, picture))]
    for codec, point in ((tested, ours), (evaluation.anchor, nearest)):
        frame = _nth(point, by_label[codec], index)
        here = frame_psnr(source, frame, clip.bit_depth).weighted
        caption = f"{codec}, {point.kbps:.0f} kbit/s, this frame {here:.2f} dB"
        images.append((caption, to_png(frame, picture)))
    return images


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells}</tr>{body}</table></div>"


def _bd_html(table: Table, anchor: str) -> str:
    notes: list[str] = []
    rows = []
    for i, (clip, results) in enumerate(table.rows):
        winner = table.winner(i, anchor) if anchor else ""
        row = [html.escape(clip)]
        for codec, result in zip(table.columns, results, strict=True):
            text = _percent(result.percent)
            if result.note:
                notes.append(f"{clip}, {codec}: {result.note}")
                text += f"<sup>{len(notes)}</sup>"
            row.append(f"<b>{text}</b>" if codec == winner else text)
        rows.append([*row, html.escape(winner)] if anchor else row)
    tail = [_percent(v) for v in table.averages]
    rows.append(["average", *tail, ""] if anchor else ["average", *tail])
    head = ["clip", *table.columns, *(["fewest bits"] if anchor else [])]
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h3>{html.escape(table.title)}</h3>{_html_table(head, rows)}" + (
        f"<ol class=notes>{listed}</ol>" if notes else ""
    )


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem } h3 { margin-top: 1.8rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto } .notes, .method { font-size: .87em; opacity: .85 }
img.curve { width: 100%; background: white; border-radius: 4px }
.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem }
figure { margin: 0 } figure img { width: 100%; display: block } figcaption { font-size: .85em }
"""


def _embed(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


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
    shown = tables(evaluation)
    data = {
        "method": METHOD,
        "anchor": evaluation.anchor,
        "threads": evaluation.threads,
        "machine": platform.processor() or platform.machine(),
        "clips": [asdict(clip) | {"rate": str(clip.rate)} for clip in evaluation.clips],
        "curves": [asdict(curve) for curve in evaluation.curves],
        "bd_rates": [asdict(table) | {"averages": table.averages} for table in shown],
    }
    write_atomically(out / "results.json", json.dumps(data, indent=1, ensure_ascii=False))
    drawn = have_matplotlib()
    body = ["<h1>vcfilter evaluation</h1>", f"<p class=method>{html.escape(METHOD)}</p>"]
    threads = evaluation.threads or "as many as it likes"
    body.append(f"<p>Threads per codec: {threads}. Stars and small figures lead to notes.</p>")
    body.append("<h2>BD-rates</h2>")
    main = len(evaluation.keyints)
    for i, table in enumerate(shown):
        anchor = evaluation.anchor if "against itself" not in table.title else ""
        if i == main + 1:
            body.append("<details><summary>Per plane, and MS-SSIM</summary>")
        body.append(_bd_html(table, anchor))
    body.append("</details>" if len(shown) > main + 1 else "")
    body.append("<h2>Speed</h2><p>Frames per second, geometric means over clips and points.</p>")
    rows = [
        [html.escape(codec), str(keyint), f"{encode:.1f}", f"{decode:.1f}"]
        for codec, keyint, encode, decode in speeds(evaluation)
    ]
    body.append(_html_table(["codec", "keyframe interval", "encode", "decode"], rows))
    for clip in evaluation.clips:
        body.append(
            f"<h2>{html.escape(clip.name)}</h2><p>{clip.width}x{clip.height}, "
            f"{clip.bit_depth} bit, {clip.frames} frames at {float(clip.rate):.3g} per second"
            + (f", converted from {clip.converted_from}" if clip.converted_from else "")
            + "</p>"
        )
        for keyint in evaluation.keyints:
            title = f"{clip.name}, keyframe interval {keyint}"
            curves = [evaluation.curve(clip.name, codec, keyint) for codec in evaluation.codecs]
            if drawn:
                target = out / "curves" / f"{clip.name}_keyint{keyint}"
                draw_curves(curves, title, target)
                svg = _embed("image/svg+xml", target.with_suffix(".svg").read_bytes())
                body.append(f'<img class=curve alt="{html.escape(title)}" src="{svg}">')
            body.append(f"<details><summary>Points at interval {keyint}</summary>")
            body.append(_points_html(curves) + "</details>")
        images = side_by_side(evaluation, clip, evaluation.keyints[0])
        body.append("<div class=frames>")
        for place, (caption, png) in zip(("original", "tested", "anchor"), images, strict=True):
            (out / "frames" / f"{clip.name}_{place}.png").write_bytes(png)
            alt = html.escape(caption)
            body.append(
                f'<figure><img alt="{alt}" src="{_embed("image/png", png)}">'
                f"<figcaption>{alt}</figcaption></figure>"
            )
        body.append("</div>")
    if not drawn:
        body.insert(1, f"<p><b>{html.escape(NO_MATPLOTLIB)}</b></p>")
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>vcfilter evaluation</title><style>{_STYLE}</style>" + "\n".join(body) + "</html>\n"
    )
    write_atomically(out / "report.html", page)
    summary = [text_table(t, "" if "against itself" in t.title else evaluation.anchor)
               for t in shown[: main + (1 in evaluation.keyints and main > 1)]]  # fmt: skip
    if not drawn:
        summary.append(NO_MATPLOTLIB)
    summary.append(f"report: {out / 'report.html'}")
    return "\n\n".join(summary)


def _points_html(curves: Sequence[Curve]) -> str:
    head = ["codec", "setting", "kbit/s", "bits/pixel", "Y", "U", "V", "6:1:1", "MS-SSIM",
            "keyframes", "encode/s", "decode/s"]  # fmt: skip
    rows = [
        [
            html.escape(curve.codec), f"{p.setting:g}", f"{p.kbps:.1f}", f"{p.bpp:.4f}",
            f"{p.psnr_y:.2f}", f"{p.psnr_u:.2f}", f"{p.psnr_v:.2f}", f"{p.psnr:.2f}",
            f"{p.ms_ssim:.4f}", str(p.keyframes), f"{p.encode_fps:.1f}", f"{p.decode_fps:.1f}",
        ]
        for curve in curves
        for p in curve.points
    ]  # fmt: skip
    return _html_table(head, rows)
