"""What a command-line user sees while a run goes on: always on standard error."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from vcfilter.stream.transcode import Progress, TranscodeReport

_LINE_SECONDS = 5.0
_BAR_SECONDS = 0.1


class Terminal:
    """Progress, warnings and results: a bar on a terminal, plain lines elsewhere.

    Args:
        quiet: errors only.
        verbose: more about what was done.
        output: a text stream; None is standard error.
    """

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, output: TextIO | None = None
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._output = output if output is not None else sys.stderr
        self._is_terminal = self._output.isatty()
        self._shown = time.monotonic()
        self._bar = ""

    def line(self, text: str) -> None:
        """One line of information."""
        if not self.quiet:
            self._clear()
            self._write(text + "\n")

    def detail(self, text: str) -> None:
        """One line for those who asked for more."""
        if self.verbose:
            self.line(text)

    def warning(self, text: str) -> None:
        """One line about what is not as it should be."""
        self.line(f"vcfilter: warning: {text}")

    def error(self, text: str) -> None:
        """One line about why it ends here; shown to quiet users too."""
        self._clear()
        self._write(f"vcfilter: {text}\n")

    def progress(self, progress: Progress) -> None:
        """Show how far a run is; for a TranscodeReport's run."""
        self.status(_text(progress), _share(progress))

    def status(self, text: str, share: float | None = None) -> None:
        """Show a changing text, and the share that is done (0 to 1) if it is known."""
        now = time.monotonic()
        wait = _BAR_SECONDS if self._is_terminal else _LINE_SECONDS
        if self.quiet or now - self._shown < wait:
            return
        self._shown = now
        if not self._is_terminal:
            self._write((f"{100 * share:3.0f} %  " if share is not None else "") + text + "\n")
            return
        width = shutil.get_terminal_size().columns - 1
        head = ""
        if share is not None:
            cells = max(8, min(30, width - len(text) - 10))
            full = round(cells * share)
            head = f"{100 * share:3.0f} % [{'#' * full}{'.' * (cells - full)}] "
        line = (head + text)[:width]
        self._write("\r" + line + " " * max(0, len(self._bar) - len(line)))
        self._bar = line

    def end(self) -> None:
        """Leave the bar's line."""
        self._clear()

    def _clear(self) -> None:
        if self._bar:
            self._write("\r" + " " * len(self._bar) + "\r")
            self._bar = ""

    def _write(self, text: str) -> None:
        try:
            self._output.write(text)
            self._output.flush()
        except OSError:  # nobody reads it
            pass


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


def report_lines(report: TranscodeReport, target_size: int | None) -> list[str]:
    """What a run did, for the user."""
    speed = report.frames / report.elapsed_seconds if report.elapsed_seconds else 0.0
    done = f"{report.frames} frames ({report.seconds:.2f} s) in {report.elapsed_seconds:.1f} s"
    picture = f"pictures {size_text(report.video_bytes)}, {report.bitrate / 1000:.1f} kbit/s"
    if report.psnr is not None:
        picture += f", PSNR {report.psnr:.2f} dB"
    if target_size is not None:
        picture += f"; file {size_text(target_size)}"
    return [f"{report.target}: {done}, {speed:.1f} frames/s; {picture}"]


def _share(progress: Progress) -> float | None:
    if not progress.total_frames:
        return None
    return min(1.0, progress.frames / progress.total_frames)


def _text(progress: Progress) -> str:
    stage = f"{progress.stage}  " if progress.stage else ""
    frames = f"{progress.frames}"
    if progress.total_frames:
        frames += f"/{max(progress.total_frames, progress.frames)}"
    parts = [
        f"{stage}{frames} frames",
        f"{progress.frames_per_second:.1f} fps",
        f"{progress.bitrate / 1000:.0f} kbit/s",
        size_text(progress.video_bytes),
    ]
    remaining = progress.remaining_seconds
    if remaining is not None:
        parts.append(f"ETA {time_text(remaining)}")
    return "  ".join(parts)
