"""From frames to jobs: where GOPs begin and end, and how their frames refer to each other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vcfilter.codec.scenecut import SceneCutDetector, Thumbnail, thumbnail
from vcfilter.codec.structure import GopStep, GopStructure, coding_order
from vcfilter.frames import Frame, VideoFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentJob:
    """Frames that are coded together: a whole GOP, or a part of it. Can be pickled.

    Args:
        video_format: what the frames are.
        first: display number of the first frame in its GOP; 0: it is the keyframe.
        frames: in display order.
        steps: of the inter frames among them, in coding order.
        continues: more frames of this GOP follow in the next job.
        next_key: the next GOP's keyframe, where steps refer to it: number first + len(frames).
    """

    video_format: VideoFormat
    first: int
    frames: tuple[Frame, ...]
    steps: tuple[GopStep, ...]
    continues: bool = False
    next_key: Frame | None = None


class Planner:
    """Collects frames into GOPs, one frame at a time.

    Args:
        video_format: what the frames are.
        structure: how GOPs are built. With scene cuts, decisions come one frame late, because
            the frame after it tells a cut from a flash.
    """

    def __init__(self, video_format: VideoFormat, structure: GopStructure) -> None:
        self._format = video_format
        self._structure = structure
        self._detector = SceneCutDetector() if structure.scenecut else None
        self._undecided: tuple[Frame, Thumbnail, bool] | None = None
        self._gop: deque[Frame] = deque()

    def push(self, frame: Frame, force_key: bool = False) -> SegmentJob | None:
        """Take the next frame; return the GOP that is now known to have ended.

        Args:
            force_key: a GOP begins with this frame.
        """
        if self._detector is None:
            return self._place(frame, False, force_key)
        small = thumbnail(frame.y, self._format.bit_depth)
        before, self._undecided = self._undecided, (frame, small, force_key)
        if before is None:
            return None
        return self._place(before[0], self._detector.is_cut(before[1], small), before[2])

    def finish(self) -> list[SegmentJob]:
        """The GOPs that the end of the stream ends: none, one or two."""
        jobs = []
        if self._undecided is not None and self._detector is not None:
            frame, small, forced = self._undecided
            jobs.append(self._place(frame, self._detector.is_cut(small, None), forced))
            self._undecided = None
        if self._gop:
            jobs.append(self._job(None))
            self._gop.clear()
        return [job for job in jobs if job is not None]

    def _place(self, frame: Frame, cut: bool, forced: bool) -> SegmentJob | None:
        """Put a frame into the current GOP, or begin the next one with it."""
        job = None
        if self._gop and (cut or forced or len(self._gop) == self._structure.keyint):
            job = self._job(None if cut else frame)
            self._gop.clear()
        self._gop.append(frame)
        return job

    def _job(self, next_key: Frame | None) -> SegmentJob:
        length = len(self._gop)
        used = next_key if length > 1 else None
        return SegmentJob(
            video_format=self._format,
            first=0,
            frames=tuple(self._gop),
            steps=coding_order(length, used is not None),
            next_key=used,
        )
