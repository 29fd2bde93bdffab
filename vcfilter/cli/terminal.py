"""What a command-line user sees: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from vcfilter.errors import ExistingFileError

if TYPE_CHECKING:
    from vcfilter.stream.remux import CopyReport
    from vcfilter.stream.transcode import Progress, TranscodeReport

_LINE_SECONDS = 5.0
_BAR_SECONDS = 0.1
_TICK_SECONDS = 0.5
_RATE_SECONDS = 3.0  # of measurement before a speed and a remaining time are shown
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
del _CONTROLS[9], _CONTROLS[10]
# Characters that reorder the text around them: a name could show itself as another.
_CONTROLS |= dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "")


class Terminal:
    """Progress, warnings and results: a bar on a terminal, plain lines elsewhere.

    Control characters in texts, which file names and tags may hold, are replaced.

    Args:
        quiet: errors only.
        verbose: show information about what was done as well.
        json_lines: progress, warnings and errors as one JSON object a line instead of texts.
        output: where all but results goes; None is standard error.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        json_lines: bool = False,
        output: TextIO | None = None,
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.json_lines = json_lines
        self._output = output if output is not None else sys.stderr
        self._draws = self._output.isatty() and not json_lines
        self._lock = threading.RLock()
        self._shown = time.monotonic()
        self._bar = ""
        self._text = ""
        self._share: float | None = None
        self._clock: tuple[threading.Event, threading.Thread] | None = None
        self._began = time.monotonic()
        self._meter = _Meter()

    def result(self, text: str) -> None:
        """What the command was asked for: lines of standard output.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            self._clear()
            if sys.stdout is None:
                raise OSError("standard output is closed")
            try:
                _write(sys.stdout, clean(text) + "\n", strict=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OSError(f"standard output cannot be written: {error.strerror}") from error

    def line(self, text: str) -> None:
        """One line of information."""
        if not self.quiet:
            self._say("info", text, text)

    def detail(self, text: str) -> None:
        """One line for those who asked for more."""
        if self.verbose:
            self.line(text)

    def warning(self, text: str) -> None:
        """One line about what is not as it should be."""
        if not self.quiet:
            self._say("warning", text, f"vcfilter: warning: {_one_line(text)}")

    def error(self, text: str, source: str | None = None) -> None:
        """One line about why it ends here; shown to quiet users too.

        Args:
            source: the file that failed, of several, for programs.
        """
        about = {} if source is None else {"source": source}
        self._say("error", text, f"vcfilter: {_one_line(text)}", **about)

    def misuse(self, command: str, text: str) -> None:
        """One line about a command that is typed wrongly."""
        self._say("error", text, f"{command}: {_one_line(text)}")

    def report(self, report: TranscodeReport, target_size: int | None) -> None:
        """What a run did."""
        if self.quiet:
            return
        if self.json_lines:
            self._event("done", **_report_values(report, target_size))
            return
        for line in report_lines(report, target_size):
            self.line(line)
        self.detail(str(report.video_format))

    def copied(self, report: CopyReport, target_size: int | None) -> None:
        """What was copied."""
        if self.quiet:
            return
        if self.json_lines:
            values = {**asdict(report), "file_bytes": target_size}
            self._event("done", **values)
            return
        packets = count_text(report.packets, "packet")
        self.line(f"{report.target}: {packets}, {count_text(report.video_bytes, 'byte')} copied")

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a text with the time that has passed, until progress or an end replaces it."""
        self._began = time.monotonic()
        self._meter = _Meter()
        self._text, self._share = text, None
        self._start_clock()
        try:
            yield
        finally:
            self.end()

    def progress(self, progress: Progress) -> None:
        """Show how far a run is."""
        if self.json_lines:
            if not self.quiet:
                self._event("progress", **_progress_values(progress))
            return
        self.status(_text(progress, self._meter.speed(progress)), _share(progress))

    def status(self, text: str, share: float | None = None) -> None:
        """Show a changing text, and the share that is done (0 to 1) if it is known."""
        if self.quiet or self.json_lines:
            return
        with self._lock:
            self._text, self._share = text, share
            now = time.monotonic()
            if now - self._shown >= (_BAR_SECONDS if self._draws else _LINE_SECONDS):
                self._shown = now
                self._draw()

    def end(self) -> None:
        """Leave the bar's line, and stop the clock."""
        if self._clock is not None:
            stop, thread = self._clock
            self._clock = None
            stop.set()
            thread.join()
        with self._lock:
            self._clear()

    def _start_clock(self) -> None:
        """Draw twice a second, so that a long computation is seen to go on."""
        if not self._draws or self.quiet or self._clock is not None:
            return
        stop = threading.Event()

        def tick() -> None:
            while not stop.wait(_TICK_SECONDS):
                with self._lock:
                    self._draw()

        thread = threading.Thread(target=tick, name="clock", daemon=True)
        self._clock = stop, thread
        thread.start()

    def _draw(self) -> None:
        share, text = self._share, clean(self._text)
        if self._clock is not None or not self._draws:
            text += f"  {time_text(time.monotonic() - self._began)}"
        if not self._draws:
            _write(self._output, (f"{100 * share:3.0f} %  " if share is not None else "") + text)
            _write(self._output, "\n")
            return
        width = shutil.get_terminal_size().columns - 1
        head = ""
        if share is not None:
            cells = max(8, min(30, width - len(text) - 10))
            full = round(cells * share)
            head = f"{100 * share:3.0f} % [{'#' * full}{'.' * (cells - full)}] "
        line = (head + text)[:width]
        _write(self._output, "\r" + line + " " * max(0, len(self._bar) - len(line)))
        self._bar = line

    def _say(self, event: str, text: str, line: str, **values: str) -> None:
        with self._lock:
            if self.json_lines:
                self._event(event, text=text, **values)
                return
            self._clear()
            _write(self._output, clean(line) + "\n")

    def _event(self, event: str, **values: Any) -> None:
        with self._lock:
            _write(self._output, json.dumps({"event": event, **values}) + "\n")

    def _clear(self) -> None:
        if self._bar:
            _write(self._output, "\r" + " " * len(self._bar) + "\r")
            self._bar = ""


class TerminalHandler(logging.Handler):
    """Shows the library's log: warnings as one line each, information where it was asked for."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._terminal.error(text)
        elif record.levelno >= logging.WARNING:
            self._terminal.warning(text)
        else:
            self._terminal.detail(text)


@contextmanager
def logging_to(terminal: Terminal) -> Iterator[None]:
    """While entered, the log of "vcfilter" is shown on a terminal."""
    logger = logging.getLogger("vcfilter")
    handler = TerminalHandler(terminal)
    former = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if terminal.verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)


def reason(error: Exception) -> str:
    """What went wrong, in the command line's words."""
    if isinstance(error, ExistingFileError):
        return f"{error.name} exists already: -y replaces it"
    return str(error)


def clean(text: str) -> str:
    """A text without control characters, undecodable bytes and marks of writing direction."""
    return text.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _write(output: TextIO, text: str, strict: bool = False) -> None:
    """Write; characters that the output's encoding lacks are replaced.

    Args:
        strict: raise OSError where the reader closed the output; otherwise it is ignored.
    """
    encoding = getattr(output, "encoding", None) or "utf-8"
    try:
        output.write(text.encode(encoding, "replace").decode(encoding))
        output.flush()
    except (OSError, ValueError):  # the reader closed it
        if strict:
            raise


def size_text(size: float) -> str:
    """Bytes in words: "1.2 MB"."""
    for unit, limit in (("B", 1e3), ("kB", 1e6), ("MB", 1e9)):
        if size < limit:
            value = size / (limit / 1e3)
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
    return f"{size / 1e9:.2f} GB"


def time_text(seconds: float) -> str:
    """Seconds as a clock shows them: "1:02:03", "2:03"."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def count_text(count: int, noun: str) -> str:
    """A number and its noun: "1 frame", "2 frames"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def report_lines(report: TranscodeReport, target_size: int | None) -> list[str]:
    """What a run did, for the user."""
    coded = report.frames - report.resumed
    speed = coded / report.elapsed_seconds if report.elapsed_seconds else 0.0
    done = f"{count_text(report.frames, 'frame')} ({report.seconds:.2f} s) "
    done += f"in {report.elapsed_seconds:.1f} s"
    if report.resumed:
        done += f", {report.resumed} of them finished before"
    video = f"video {size_text(report.video_bytes)}, {report.bitrate / 1000:.1f} kbit/s"
    if report.psnr is not None:
        video += f", PSNR {report.psnr:.2f} dB"
    if target_size is not None:
        video += f"; file {size_text(target_size)}"
    return [f"{report.target}: {done}, {speed:.1f} frames/s; {video}"]


def _report_values(report: TranscodeReport, target_size: int | None) -> dict[str, Any]:
    return {
        "source": report.source,
        "target": report.target,
        "frames": report.frames,
        "resumed_frames": report.resumed,
        "seconds": round(report.seconds, 6),
        "video_bytes": report.video_bytes,
        "file_bytes": target_size,
        "elapsed_seconds": round(report.elapsed_seconds, 3),
        "psnr": None if report.psnr is None else round(report.psnr, 4),
        "warnings": list(report.warnings),
    }


def _progress_values(progress: Progress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "frames": progress.frames,
        "total_frames": progress.total_frames,
        "seconds": round(progress.seconds, 6),
        "video_bytes": progress.video_bytes,
        "elapsed_seconds": round(progress.elapsed_seconds, 3),
        "gop": progress.gop,
    }


class _Meter:
    """Speed from the first progress on: what loading the networks took is left out."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._stage = ""

    def speed(self, progress: Progress) -> float | None:
        """Frames per second; None before there is enough to measure."""
        if self._first is None or self._stage != progress.stage:
            self._first, self._stage = (progress.elapsed_seconds, progress.frames), progress.stage
        spent = progress.elapsed_seconds - self._first[0]
        frames = progress.frames - self._first[1]
        return frames / spent if frames and spent >= _RATE_SECONDS else None


def _share(progress: Progress) -> float | None:
    if not progress.total_frames:
        return None
    return min(1.0, progress.frames / progress.total_frames)


def _text(progress: Progress, speed: float | None) -> str:
    stage = f"{progress.stage}  " if progress.stage else ""
    frames = f"{progress.frames}"
    if progress.total_frames:
        frames += f"/{max(progress.total_frames, progress.frames)}"
    gop = f"GOP {progress.gop}  " if progress.gop else ""
    parts = [f"{stage}{gop}{frames} frames"]
    if speed:
        parts.append(f"{speed:.1f} fps")
    if progress.video_bytes:
        parts += [f"{progress.bitrate / 1000:.0f} kbit/s", size_text(progress.video_bytes)]
    if speed and progress.total_frames:
        remaining = max(progress.total_frames - progress.frames, 0) / speed
        parts.append(f"ETA {time_text(remaining)}")
    return "  ".join(parts)
