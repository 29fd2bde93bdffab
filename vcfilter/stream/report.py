"""What a run says of itself: its progress, its report, and warnings, logged and kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

from vcfilter.codec import FrameRecord
from vcfilter.frames import FrameType, VideoFormat

Log: TypeAlias = "logging.Logger | RunLog"


class RunLog:
    """Logs each warning of a run once, and keeps it.

    Args:
        logger: where warnings go at once.

    Attributes:
        warnings: one sentence each.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.warnings: list[str] = []

    def warning(self, text: str, *values: object) -> None:
        """Log a sentence, as logging.Logger.warning; the same one is logged once."""
        said = text % values if values else text
        if said not in self.warnings:
            self.warnings.append(said)
            self._logger.warning("%s", said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Args:
        stage: "pass 1", "finished before" where an earlier run coded the frames, or "" for the
            (last) pass.
        frames: coded so far.
        total_frames: estimate of all; None when unknown.
        seconds: playing time of what is coded.
        total_seconds: playing time of all; None when unknown.
        video_bytes: size of these frames' packets.
        elapsed_seconds: since the run began.
        gop: number of the GOP at work, from 1, of one of them where several are; 0 where nothing
            is coded neurally.
    """

    stage: str
    frames: int
    total_frames: int | None
    seconds: float
    total_seconds: float | None
    video_bytes: int
    elapsed_seconds: float
    gop: int = 0

    @property
    def frames_per_second(self) -> float:
        """Speed so far."""
        return self.frames / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    @property
    def bitrate(self) -> float:
        """Bit/s of the video track so far."""
        return 8 * self.video_bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate of the time that is still needed; None when unknown."""
        if not self.total_frames or not self.frames:
            return None
        rest = max(self.total_frames - self.frames, 0)
        return rest * self.elapsed_seconds / self.frames


class ProgressMeter:
    """Counts the frames of a run and reports them, at most five times a second.

    Args:
        report: called with the progress; None: it is counted only.
        began: time.monotonic() when the run began.

    Attributes:
        seconds: playing time that went into the coder so far.
        total_frames, total_seconds: of the whole run; None when unknown.
    """

    def __init__(self, report: Callable[[Progress], None] | None, began: float) -> None:
        self._call = report
        self._began = began
        self._last = 0.0
        self.total_frames: int | None = None
        self.total_seconds: float | None = None
        self.begin("", lambda: 0)

    def begin(self, stage: str, size: Callable[[], int]) -> None:
        """A pass begins.

        Args:
            size: bytes of the video track written so far; those of frames that are coded neurally
                come with `coded`, which may be long before.
        """
        self._stage, self._size = stage, size
        self._bytes = 0
        self._read = self._frames = self._keys = self._gop = 0
        self._key_pts = -inf  # of the last keyframe
        self.seconds = 0.0

    def read(self, seconds: float) -> None:
        """A frame went into the coder; the playing time up to its end."""
        self._read += 1
        self.seconds = seconds

    def estimate(self) -> None:
        """Take the number of all frames from what was read so far and the playing time: the frame
        rate that a source states may be odd.
        """
        if self.total_seconds and self.seconds > 0:
            share = min(1.0, self.seconds / self.total_seconds)
            self.total_frames = max(self._read, round(self._read / share))

    def done(self, frames: int, size: int = 0, *, stage: str = "") -> None:
        """So many frames are done, none of them coded neurally here.

        Args:
            size: bytes of their packets, where neural ones follow.
        """
        self._frames, self._bytes = frames, size
        self._report(stage or self._stage)

    def coded(self, record: FrameRecord) -> None:
        """One more frame is coded neurally."""
        self._frames += 1
        self._bytes += record.size
        if record.header.step.type is FrameType.KEY:
            self._keys += 1
            self._key_pts = max(self._key_pts, record.pts)
        # Of an open GOP the next keyframe is coded first.
        self._gop = self._keys - (record.pts < self._key_pts)
        self._report(self._stage)

    def end(self) -> None:
        """All that was read is done."""
        self._frames = self.total_frames = self._read
        self._bytes = 0
        self._last = 0.0
        self._report(self._stage)

    def _report(self, stage: str) -> None:
        now = time.monotonic()
        if self._call is None or now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        self._call(
            Progress(
                stage=stage,
                frames=self._frames,
                total_frames=self.total_frames,
                seconds=self.seconds * min(1.0, self._frames / max(1, self._read)),
                total_seconds=self.total_seconds,
                video_bytes=max(self._bytes, self._size()),
                elapsed_seconds=now - self._began,
                gop=self._gop,
            )
        )


_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscodeReport:
    """What a run did.

    Args:
        source, target: their names.
        frames: coded.
        seconds: playing time of the frames.
        video_bytes: size of the video track's packets.
        elapsed_seconds: that the run took.
        video_format: of the frames.
        psnr: mean over the frames, Y, U, V weighted 6:1:1, in dB; None unless all were coded
            neurally in this run.
        warnings: one sentence each.
        resumed: frames among them that an earlier run had coded.
    """

    source: str
    target: str
    frames: int
    seconds: float
    video_bytes: int
    elapsed_seconds: float
    video_format: VideoFormat
    psnr: float | None
    warnings: tuple[str, ...]
    resumed: int = 0

    @property
    def bitrate(self) -> float:
        """Bit/s of the video track."""
        return 8 * self.video_bytes / self.seconds if self.seconds > 0 else 0.0
