"""Motion-compensated temporal filter: what frames that others inherit from are coded towards.

What a keyframe alone shows, noise above all, costs bits in it and is an error in every frame that
is predicted from it. So it is coded towards a mean of itself and the frames around it, moved to it:
the idea of the test models' GOP-based temporal filter (JVET-O0549). Here the motion is what frames
are predicted by later, and a frame counts where a prediction from it would leave so little that
nothing more is coded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from vcfilter.codec.plan import SegmentJob
from vcfilter.codec.trajectories import BLOCK, Trajectories
from vcfilter.frames import Frame, Plane
from vcfilter.nn.flow import Samples, warp_plane

NEARNESS = (0.85, 0.57, 0.41, 0.33)
"""Weights of frames so far away, relative to the frame's own."""
STRENGTH = (0.6, 0.3, 0.15)
"""The same by temporal layer; what is deeper is inherited by few."""
DEVIATION = 15.0
"""Root mean square of what predictions leave uncoded at qp 32, in 8-bit units; proportional to the
quantiser's step."""
ALONE = 2.0
"""Times the variance: a prediction that leaves more is none."""
NOISE_SHARE = 0.2
"""So much of a picture is taken to differ by noise only."""
NOISE_MOST = 50.0
"""The most that is taken for noise, mean square in 8-bit units: another scene differs by more."""
CELL = 4
"""Luma samples, each way, that have one weight."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TemporalFilter:
    """Filters frames of a segment. Methods may be called from several threads.

    Args:
        frames: of the job and around it, see `frames_of`. trajectories: motion between them.
    """

    job: SegmentJob
    frames: Mapping[int, Frame]
    trajectories: Trajectories

    def target(self, number: int, layer: int, qp: int) -> Frame:
        """What a frame is coded towards; the frame itself if no other frame counts.

        Args:
            number: its display number in the GOP. layer: temporal layer, 0 of keyframes.
            qp: of the frame, of its best quality level.
        """
        frame = self.frames[number]
        if layer >= len(STRENGTH):
            return frame
        planes = self._planes(frame)
        sums, weights = [plane.copy() for plane in planes], [np.ones_like(p) for p in planes]
        spread = 2 * DEVIATION**2 * 2 ** ((qp - 32) / 3)
        variance = _mean(planes[0] ** 2) - _mean(planes[0]) ** 2
        counted = False
        for other in window(self.job, number):
            away = abs(other - number)
            if not away or other not in self.frames:
                continue
            fields = self.trajectories.to_references(number, [other])
            if fields is None:
                continue
            moved = [
                warp_plane(plane, fields[0], scale)
                for plane, scale in zip(
                    self._planes(self.frames[other]), (1, 0.5, 0.5), strict=True
                )
            ]
            left = _mean((moved[0] - planes[0]) ** 2)
            noise = min(float(np.quantile(left, NOISE_SHARE)), NOISE_MOST)
            alone = ALONE * variance.clip(0) + 2 * noise + 1
            share = np.exp(-left / spread) * (1 - left / alone).clip(0)
            share *= STRENGTH[layer] * NEARNESS[away - 1]
            for total, weight, plane in zip(sums, weights, moved, strict=True):
                size = plane.shape[1], plane.shape[0]
                own = cv2.resize(share.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
                total += own * plane
                weight += own
            counted = True
        if not counted:
            return frame
        y, u, v = (
            self._whole(total / weight, plane)
            for total, weight, plane in zip(sums, weights, frame.planes, strict=True)
        )
        return Frame(y=y, u=u, v=v, pts=frame.pts, duration=frame.duration)

    @property
    def _unit(self) -> np.float32:
        """What a level of a sample is, in 8-bit units."""
        return np.float32(1 if self.job.video_format.bit_depth == 8 else 0.25)

    @property
    def _most(self) -> int:
        """The largest level."""
        return (1 << self.job.video_format.bit_depth) - 1

    def _planes(self, frame: Frame) -> list[Samples]:
        """In 8-bit units, their borders repeated up to whole blocks."""
        found = []
        for plane, side in zip(frame.planes, (BLOCK, BLOCK // 2, BLOCK // 2), strict=True):
            rows, columns = (-length % side for length in plane.shape)
            values = plane.astype(np.float32) * self._unit
            found.append(np.pad(values, ((0, rows), (0, columns)), mode="edge"))
        return found

    def _whole(self, values: Samples, like: Plane) -> Plane:
        """A plane of such values, of the size and type of another one."""
        rows, columns = like.shape
        levels = np.rint(values[:rows, :columns] / self._unit).clip(0, self._most)
        whole: Plane = levels.astype(like.dtype)
        return whole


def frames_of(job: SegmentJob) -> dict[int, Frame]:
    """A job's frames and those around them, by number."""
    behind = job.after if job.next_key is None else (job.next_key, *job.after)
    return dict(enumerate((*job.before, *job.frames, *behind), job.first - len(job.before)))


def window(job: SegmentJob, number: int) -> range:
    """Numbers of the frames that the filter of a frame may look at.

    A keyframe that two jobs code has the same in both: of the GOP before it those of the job that
    refers to it, and none behind its own GOP.
    """
    first, last = number - job.reach, number + job.reach
    if number == 0:
        last = min(last, len(job.frames) - 1 + (0 if job.next_key else len(job.after)))
    elif job.next_key is not None and number == job.first + len(job.frames):
        first = max(first, job.first)
    return range(first, last + 1)


def _mean(values: Samples) -> Samples:
    """Means over three times three cells around each cell."""
    size = values.shape[1] // CELL, values.shape[0] // CELL
    cells = np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)
    p = np.pad(cells, 1, mode="edge")
    rows = p[:-2] + p[1:-1] + p[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9, np.float32)
