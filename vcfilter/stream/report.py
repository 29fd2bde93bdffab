"""What a run says of itself: its progress, its report, and warnings, logged and kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeAlias

from vcfilter.frames import VideoFormat

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
        video_bytes: size of the video track's packets written so far.
        elapsed_seconds: since the run began.
    """

    stage: str
    frames: int
    total_frames: int | None
    seconds: float
    total_seconds: float | None
    video_bytes: int
    elapsed_seconds: float

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
