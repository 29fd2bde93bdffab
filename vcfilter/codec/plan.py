"""From frames to jobs: the boundaries of GOPs, and the references of their frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vcfilter.bitstream import StructureKind
from vcfilter.codec.lookahead import FOLLOWERS, anchor_distance, key_offset
from vcfilter.codec.propagation import (
    HORIZON,
    Inheritance,
    Map,
    anchor_scale,
    key_scales,
    motion_offset,
)
from vcfilter.codec.scenecut import SceneCutDetector, Thumbnail, thumbnail
from vcfilter.codec.structure import (
    GopStep,
    GopStructure,
    between_anchors,
    chain_step,
    coding_order,
    drop_slots,
    halve,
    restart_step,
)
from vcfilter.codec.trajectories import is_searched_alike, search_step
from vcfilter.frames import DISTANCE_MAX, Frame, VideoFormat
from vcfilter.nn.flow import Flow

SPAN = 2
"""Times the lookahead's distance: the span in which the distance between anchors is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentJob:
    """Frames that are coded together: a whole GOP, or a part of it. Can be pickled.

    Args:
        video_format: what the frames are.
        first: display number of the first frame in its GOP; 0: it is the keyframe.
        frames: in display order.
        steps: of the inter frames among them, in coding order.
        continues: more frames of this GOP follow in the next job.
        key_sent: the keyframe was next_key of the job before, and its packet came with that one.
        next_key: the next GOP's keyframe, where steps refer to it: number first + len(frames).
        qp_offset: added to the qps of its inter frames. key_offset, next_offset: the same of the
            GOP's keyframe and of next_key.
        divisible: the last frame is an anchor, and others may be put before it (codec.trial): the
            anchors that steps refer to are those that the state holds.
        key_scale, next_scale: factors on the Lagrangian of their positions; None: 1 everywhere.
        anchor_scale: of the last frame's, where that is an anchor; others that trials put before
            it have none.
        reach: of the temporal filter: frames on either side that it may look at; 0: none is used.
        flows: by number, dense motion from a frame to the one before, where the planner searched
            what `trajectories.Trajectories` would search as well.
        before: up to so many before the keyframe, where the GOP before it refers to it. after: the
            same behind the last frame, or behind next_key, of the same GOP.
    """

    video_format: VideoFormat
    first: int
    frames: tuple[Frame, ...]
    steps: tuple[GopStep, ...]
    continues: bool = False
    key_sent: bool = False
    next_key: Frame | None = None
    qp_offset: int = 0
    key_offset: int = 0
    next_offset: int = 0
    divisible: bool = False
    key_scale: Map | None = field(default=None, compare=False)
    next_scale: Map | None = field(default=None, compare=False)
    anchor_scale: Map | None = field(default=None, compare=False)
    reach: int = 0
    flows: Mapping[int, Flow] = field(default_factory=dict, compare=False)
    before: tuple[Frame, ...] = ()
    after: tuple[Frame, ...] = ()

    def part(self, first: int, last: int, steps: Sequence[GopStep]) -> SegmentJob:
        """The job of some of its frames, by their numbers; only of a job without next_key."""
        begin, end = first - self.first, last + 1 - self.first
        more = end < len(self.frames)
        return replace(
            self,
            first=first,
            frames=self.frames[begin:end],
            steps=tuple(steps),
            continues=self.continues or more,
            anchor_scale=None if more else self.anchor_scale,
            before=self.before if first == 0 else (),
            after=(*self.frames[end:], *self.after)[: self.reach] if more else self.after,
        )


class Planner:
    """Collects frames into jobs, one frame at a time.

    Args:
        video_format: what the frames are.
        structure: how GOPs are built. With scene cuts, decisions come one frame late, because
            the next frame distinguishes a cut from a flash; with low delay they come at once.
    """

    def __init__(self, video_format: VideoFormat, structure: GopStructure) -> None:
        self._format = video_format
        self._structure = structure
        self._detector = SceneCutDetector() if structure.scenecut else None
        self._undecided: tuple[Frame, Thumbnail, bool] | None = None
        self._length = 0  # frames of the GOP so far
        self._forced = False  # the next frame is a keyframe
        self._held: SegmentJob | None = None  # until the worth of its next_key is known
        self._gop: _Placement
        if structure.kind is not StructureKind.RANDOM_ACCESS:
            self._gop = _Chain(video_format, structure)
        else:
            self._gop = _Anchors(video_format, structure)

    def push(self, frame: Frame, force_key: bool = False) -> list[SegmentJob]:
        """Take the next frame; return the jobs that are now known.

        Args:
            force_key: a GOP begins with this frame.
        """
        force_key, self._forced = force_key or self._forced, False
        if self._detector is None:
            return self._place(frame, False, force_key)
        small = thumbnail(frame.y, self._format.bit_depth)
        if self._structure.delay == 0:
            return self._place(frame, self._detector.is_cut(small, None), force_key)
        before, self._undecided = self._undecided, (frame, small, force_key)
        if before is None:
            return []
        return self._place(before[0], self._detector.is_cut(before[1], small), before[2])

    def acknowledge(self, pts: int) -> None:
        """A receiver has this frame (low delay only)."""
        if isinstance(self._gop, _Chain):
            self._gop.acknowledge(pts)

    def lost(self, pts: int) -> None:
        """A receiver lacks this frame: the next one can be decoded without it."""
        if not (isinstance(self._gop, _Chain) and self._gop.lost(pts)):
            self._forced = True

    def finish(self) -> list[SegmentJob]:
        """The jobs that the end of the stream makes of what is left."""
        jobs = []
        if self._undecided is not None and self._detector is not None:
            frame, small, forced = self._undecided
            jobs += self._place(frame, self._detector.is_cut(small, None), forced)
            self._undecided = None
        jobs += self._release()
        self._length = 0
        return [*jobs, *self._gop.end(None)]

    def _place(self, frame: Frame, cut: bool, forced: bool) -> list[SegmentJob]:
        """Put a frame into the current GOP, or begin the next one with it."""
        jobs: list[SegmentJob] = []
        structure = self._structure
        cut = cut and self._length >= structure.min_keyint
        if self._length and (cut or forced or self._length >= structure.keyint):
            jobs += self._release()
            jobs += self._gop.end(frame if structure.open_gop and not cut else None)
            if jobs and jobs[-1].next_key is not None:
                self._held = jobs.pop()
            self._length = 0
        self._length += 1
        if self._length > structure.followers:
            jobs += self._release()
        return [*jobs, *self._gop.add(frame)]

    def _release(self) -> list[SegmentJob]:
        """The job that is held, if any, now that the frames behind its next_key are known."""
        job, self._held = self._held, None
        if job is None:
            return []
        assert job.next_key is not None
        offset = 0
        if self._length <= self._structure.followers:  # the GOP has no more
            offset = key_offset(
                job.frames[0],
                job.next_key,
                self._length - 1,
                self._structure.keyint,
                self._format.bit_depth,
            )
        offset += self._gop.motion_offset(1, 1 + FOLLOWERS)
        self._gop.key_offset = offset
        return [replace(job, next_offset=offset, after=self._gop.following(job.reach))]


class _Placement(ABC):
    """Places the frames of one GOP after the other."""

    def __init__(self, video_format: VideoFormat, structure: GopStructure) -> None:
        self._format, self._structure = video_format, structure
        self._first = 0  # number of the first frame that waits
        self._waiting: list[Frame] = []
        self._key_sent = False  # the next keyframe's packet comes with a job before its own
        self.key_offset = 0  # of the keyframe that waits, or of the last one
        self._key_scale: Map | None = None  # of the keyframe that was sent
        self._before: tuple[Frame, ...] = ()  # that keyframe
        self._previous: Frame | None = None  # the last frame of the job before
        self._flows: dict[int, Flow] = {}  # to the frame before, by number
        self._reach = structure.filter_reach

    @abstractmethod
    def add(self, frame: Frame) -> list[SegmentJob]:
        """Take the GOP's next frame."""

    @abstractmethod
    def end(self, next_key: Frame | None) -> list[SegmentJob]:
        """The GOP is complete.

        Args:
            next_key: the keyframe that follows, if frames may refer to it.
        """

    def motion_offset(self, first: int, last: int) -> int:
        """By how many qps frames are coded coarser, as they move.

        Args:
            first, last: places among the frames that wait, the last one excluded.
        """
        return 0

    def following(self, count: int) -> tuple[Frame, ...]:
        """So many frames behind the keyframe, as far as they are known."""
        return tuple(self._waiting[1 : 1 + count])

    def _job(
        self, count: int, steps: Sequence[GopStep], continues: bool, next_key: Frame | None = None
    ) -> SegmentJob:
        """The job of the first so many frames that wait."""
        frames, first, last = self._waiting[:count], self._first, self._first + count
        key_sent = first == 0 and self._key_sent
        keys = [0] if first == 0 and not key_sent else []
        lumas = {first + index: frame.y for index, frame in enumerate(frames)}
        if next_key is not None:
            keys.append(last)
            lumas[last] = next_key.y
        scales = key_scales(lumas, steps, keys, self._format.bit_depth)
        told = count if first or count > 1 else 1 + FOLLOWERS
        offset = self.motion_offset(1 if first == 0 else 0, told)
        known = last if next_key is not None else last + self._reach  # those behind have flows, too
        job = SegmentJob(
            video_format=self._format,
            first=first,
            frames=tuple(frames),
            steps=tuple(steps),
            continues=continues,
            key_sent=key_sent,
            next_key=next_key,
            qp_offset=offset,
            key_offset=0 if first else self.key_offset if key_sent else offset,
            key_scale=self._key_scale if key_sent else scales.get(0),
            next_scale=scales.get(last) if next_key is not None else None,
            reach=self._reach,
            flows={n: flow for n, flow in self._flows.items() if n < known},
            before=self._before if key_sent else (),
            after=() if next_key is not None else tuple(self._waiting[count:][: self._reach]),
        )
        if first == 0:  # none of it holds for the next keyframe
            self.key_offset, self._key_sent, self._key_scale, self._before = 0, False, None, ()
        if next_key is not None:
            self._key_sent = True
            self._key_scale = job.next_scale
            self._before = job.frames[-self._reach :] if self._reach else ()
        del self._waiting[:count]
        self._flows = {n: flow for n, flow in self._flows.items() if n >= last}
        self._previous = frames[-1]
        self._first = last if continues else 0
        return job


class _Chain(_Placement):
    """Low delay, or keyframes alone: each frame is a job of its own."""

    def __init__(self, video_format: VideoFormat, structure: GopStructure) -> None:
        super().__init__(video_format, structure)
        self._base = 0  # where the chain began or restarted: nothing older is referred to
        self._pts: dict[int, int] = {}  # number of each frame of the GOP that is kept
        self._kept: dict[int, int] = {0: 0}  # by slot
        self._acknowledged: set[int] = set()
        self._recover: int | None = None

    def add(self, frame: Frame) -> list[SegmentJob]:
        self._waiting.append(frame)
        number = self._first
        steps: tuple[GopStep, ...] = ()
        if number:
            ltr = self._structure.ltr
            if self._recover is None and ltr and number % ltr == 0:
                self._recover = self._base
            if self._recover is None:
                step = chain_step(number, self._base)
            else:
                step = restart_step(number, self._recover)
                self._base, self._recover = number, None
            step = replace(step, offset=step.offset + self._structure.chain_offset)
            steps = (step,)
            if step.slot is not None:
                self._kept[step.slot] = number
        kept = set(self._kept.values())
        self._pts = {pts: n for pts, n in self._pts.items() if n in kept}
        self._pts[frame.pts] = number
        return [self._job(1, steps, self._structure.kind is StructureKind.LOW_DELAY)]

    def end(self, next_key: Frame | None) -> list[SegmentJob]:
        self._first = self._base = 0
        self._pts, self._kept, self._acknowledged = {}, {0: 0}, set()
        self._recover = None
        return []

    def acknowledge(self, pts: int) -> None:
        """A receiver has this frame."""
        if pts in self._pts:
            self._acknowledged.add(self._pts[pts])

    def lost(self, pts: int) -> bool:
        """A receiver lacks this frame: the next one avoids it and all that came after it.

        Returns:
            Whether it can: a frame from before it is acknowledged and kept.
        """
        number = self._pts.get(pts, 0)
        held = set(self._kept.values()) & self._acknowledged
        near = (n for n in held if self._first - n <= DISTANCE_MAX)
        usable = [n for n in near if not number or n < number]
        if usable:
            self._recover = max(usable)
        return bool(usable)


class _Anchors(_Placement):
    """Anchors, and a hierarchy of B-frames between each two of them; a short GOP of which the
    next keyframe is a reference is one hierarchy."""

    def __init__(self, video_format: VideoFormat, structure: GopStructure) -> None:
        super().__init__(video_format, structure)
        self._start()

    def _start(self) -> None:
        self._anchors: tuple[int, ...] = (0,)  # the newest first
        self._slot = 0  # of the newest
        self._anchor: Frame | None = None
        self._inherited: dict[int, Inheritance] = {}  # by number of the frame
        self._flows = {}

    def add(self, frame: Frame) -> list[SegmentJob]:
        self._waiting.append(frame)
        if self._first == 0:
            self._anchor = self._waiting[0]
        if self._structure.one_hierarchy or self._inters() < self._structure.interval:
            return []
        return [self._next(self._span(self._structure.interval), True)]

    def end(self, next_key: Frame | None) -> list[SegmentJob]:
        jobs = []
        if self._structure.one_hierarchy and next_key is not None and self._inters():
            count = len(self._waiting)
            jobs.append(self._job(count, coding_order(count), False, next_key))
        while (left := self._inters()) > 0:
            if next_key is not None and left < self._distance(left + 1, next_key):
                last = self._anchors[0] + left + 1
                steps = drop_slots(tuple(halve(self._anchors[0], last, 2)))
                jobs.append(self._job(len(self._waiting), steps, False, next_key))
                break
            span = self._span(left)
            jobs.append(self._next(span, span < left or next_key is not None))
        if self._waiting:  # a keyframe alone
            jobs.append(self._job(1, (), False))
        self._start()
        self._first = 0
        return jobs

    def _inters(self) -> int:
        """Inter frames that wait."""
        return len(self._waiting) - (self._first == 0)

    def _distance(self, most: int, next_key: Frame | None = None) -> int:
        """Frames from the newest anchor to the next one.

        Args:
            next_key: is behind the frames that wait.
        """
        most = min(most, self._structure.interval)
        if not self._structure.adaptive:
            return most
        assert self._anchor is not None
        frames = self._waiting[self._first == 0 :]
        if next_key is not None:
            frames = [*frames, next_key]
        return anchor_distance(self._anchor, frames[:most], self._format.bit_depth)

    def _span(self, most: int) -> int:
        """Frames of the next job, which ends on an anchor."""
        most = min(most, self._structure.interval)
        distance = self._distance(most)
        return min(SPAN * distance, most) if self._structure.trial else distance

    def _next(self, distance: int, continues: bool) -> SegmentJob:
        """The job of the frames up to the next anchor."""
        count = distance + (self._first == 0)
        self._anchor = self._waiting[count - 1]
        self._slot = 1 - self._slot
        last = self._anchors[0] + distance
        steps = between_anchors(self._anchors, last, self._slot)
        self._anchors = (last, self._anchors[0])
        scale = self._scale(count - 1)
        end = self._first + count
        job = self._job(count, steps, continues)
        self._inherited = {n: each for n, each in self._inherited.items() if n >= end}
        return replace(job, divisible=self._structure.trial, anchor_scale=scale)

    def _scale(self, anchor: int) -> Map | None:
        """Factors on the Lagrangian of an anchor's positions.

        Args:
            anchor: its place among the frames that wait.
        """
        known = [
            self._inheritance(index)
            for index in range(anchor + 1, min(anchor + 1 + HORIZON, len(self._waiting)))
        ]
        following = [each for each in known if each is not None]
        return anchor_scale(following) if following else None

    def motion_offset(self, first: int, last: int) -> int:
        if not self._structure.by_motion:
            return 0
        known = [self._inheritance(n) for n in range(first, min(last, len(self._waiting)))]
        return motion_offset([each for each in known if each is not None])

    def _inheritance(self, index: int) -> Inheritance | None:
        """What a frame takes over from the one before it; None: frames are too small to tell.

        Args:
            index: its place among the frames that wait; there is a frame before it.
        """
        number = self._first + index
        if number not in self._inherited:
            before = self._waiting[index - 1] if index else self._previous
            assert before is not None
            now, depth = self._waiting[index].y, self._format.bit_depth
            flow = search_step(now, before.y, depth)
            if flow is None:
                return None
            self._inherited[number] = Inheritance.of(before.y, now, flow, depth)
            if is_searched_alike(now):
                self._flows[number] = flow
        return self._inherited[number]
