"""New frames at times between two frames, from these and the frames before and after them.

Motion is quadratic in time (Enhanced Quadratic Video Interpolation, Liu et al. 2020, after
Quadratic Video Interpolation, Xu et al. 2019): the frames before and after tell the acceleration.
It is linear where one of them is missing, and where motion to them does not fit or accelerations
disagree.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.codec.runtime import threads_of
from vcfilter.errors import ConfigError
from vcfilter.frames import CodedMotion, Frame, Plane, VideoFormat
from vcfilter.interpolation.motion import (
    EFFORTS,
    GRID,
    Effort,
    Motion,
    box_mean,
    difference,
    energy,
    estimate_motion,
    fitted_motion,
    gradient,
)
from vcfilter.interpolation.net import BetweenNet, Candidates, load_shipped
from vcfilter.interpolation.net import load as load_net
from vcfilter.interpolation.options import PRESETS
from vcfilter.models.hierarchical.blocks import BLOCK, Planes
from vcfilter.models.store import pick_device
from vcfilter.nn.warp import enlarge, warp
from vcfilter.options import LOOKS, Runtime

ALIGN = 16
FIT = (10.0, 2.0)
"""Squared error per sample that counts as none, and how many times the error between the two
frames that of a third frame may be before its acceleration loses weight."""
AGREEMENT = 1.5
"""Acceleration counts by (1 + correlation of its two estimates) / AGREEMENT, at most in full: in
hand-held shots it changes from one interval to the next."""
AGREEMENT_WINDOW = 9  # positions, each way
DETAIL = 3  # positions, each way, whose errors are counted together for an acceleration
VISIBLE = 64.0, 0.3
"""Squared error, in 8-bit units, that counts as none where one side is hidden, and the share of the
luma's squared gradient that does: where there is texture, motion that is a little off errs much."""
VISIBLE_WINDOW = 3  # positions, each way
STILL = 3.0  # 8-bit units: samples that differ by no more in all frames stand still
STILL_SHARE = 0.6  # of the 3x3 samples around
SHARPNESS = 0.94  # gradient energy of a new frame, of that of the two around it
SHARPEN_MAX = 0.3  # share of a frame's detail (what 3x3 means lack) that is added at most
SPAN_RATIO = 3  # a frame further away than so many intervals tells no acceleration
INVERSIONS = 3


class Interpolator:
    """Makes frames between frames of one format. Keeps motion between the last frames it was given.

    Args:
        video_format: of all frames.
        preset: "fast", "medium" or "slow": how much the search for motion tries.
        runtime: device and threads.
        coded_motion: take the motion that frames were coded with, where they bring it.
        weights: path of the learned part's weights file; None: the package's own for the look, if
            it brings any; "": none. "fast" does without.
        look: one of LOOKS: frames nearest to what was there, or with detail for the eye.

    Raises:
        ConfigError: there is no such preset or look.
    """

    def __init__(
        self,
        video_format: VideoFormat,
        preset: str = "medium",
        runtime: Runtime | None = None,
        *,
        coded_motion: bool = False,
        weights: str | None = None,
        look: str = LOOKS[0],
    ) -> None:
        if look not in LOOKS:
            raise ConfigError(f"look {look!r} is not one of {', '.join(LOOKS)}")
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
        self.video_format = video_format
        self._runtime = runtime or Runtime()
        self._device = pick_device(self._runtime.device)
        self._effort = EFFORTS[preset]
        self._coded_motion = coded_motion
        self._net: BetweenNet | None = None
        if self._effort.learned and weights != "":
            net = load_shipped(look) if weights is None else load_net(weights)
            self._net = None if net is None else copy.deepcopy(net).to(self._device)
        self._neighbours: dict[Frame, _Neighbour] = {}

    @property
    def is_trained(self) -> bool:
        """Whether the learned part is in use."""
        return self._net is not None

    def between(
        self,
        before: Frame | None,
        a: Frame,
        b: Frame,
        after: Frame | None,
        times: Sequence[float | Fraction],
    ) -> Iterator[Frame]:
        """Frames between a and b, one for each time.

        Args:
            before, after: the frames next to a and b; None where there is none, or another scene.
            a, b: frames of increasing pts.
            times: from 0 (a) to 1 (b), exclusive.

        Yields:
            Frames with pts rounded to the nearest tick between those of a and b, duration 0.

        Raises:
            ConfigError: a frame is not of the format, times or pts are out of order.
        """
        self._check(before, a, b, after, times)
        with threads_of(self._runtime), torch.inference_mode():
            interval = self._interval(before, a, b, after)
        for time in times:
            with threads_of(self._runtime), torch.inference_mode():
                planes = interval.frame_at(float(time), self._effort, self._net)
            yield self._finished(planes, a.pts + round((b.pts - a.pts) * Fraction(time)))

    def candidates(
        self,
        before: Frame | None,
        a: Frame,
        b: Frame,
        after: Frame | None,
        times: Sequence[float | Fraction],
    ) -> list[Candidates]:
        """What the learned part makes frames between a and b of; arguments as of `between`. Planes
        are padded to multiples of 16.

        Raises:
            ConfigError: a frame is not of the format, times or pts are out of order.
        """
        self._check(before, a, b, after, times)
        with threads_of(self._runtime), torch.inference_mode():
            interval = self._interval(before, a, b, after)
            return [interval.candidates(float(time), self._effort) for time in times]

    def carried(self, frame: Frame, other: Frame, time: float | Fraction) -> Frame:
        """A frame carried on by the motion that leads from another one to it.

        Args:
            frame: which is moved; its pts is kept.
            other: its neighbour on the other side of time.
            time: how far, in intervals between the two; above 0.

        Raises:
            ConfigError: a frame is not of the format.
        """
        frame.check(self.video_format)
        other.check(self.video_format)
        with threads_of(self._runtime), torch.inference_mode():
            self._keep(frame, other)
            near = self._neighbours[frame]
            flow = near.motion_to(self._neighbours[other], self._effort).flow * float(time)
            planes = near.warped(_inverse(flow, -flow))
        return self._finished(planes, frame.pts)

    def _check(
        self,
        before: Frame | None,
        a: Frame,
        b: Frame,
        after: Frame | None,
        times: Sequence[float | Fraction],
    ) -> None:
        frames = [frame for frame in (before, a, b, after) if frame is not None]
        for frame in frames:
            frame.check(self.video_format)
        for earlier, later in itertools.pairwise(frames):
            if later.pts <= earlier.pts:
                raise ConfigError(f"frames at {earlier.pts} and {later.pts}: pts must rise")
        for time in times:
            if not isinstance(time, float | Rational) or not 0 < time < 1:
                raise ConfigError(f"time {time!r} is not between 0 and 1")

    def _interval(self, before: Frame | None, a: Frame, b: Frame, after: Frame | None) -> _Interval:
        span = b.pts - a.pts
        if before is not None and a.pts - before.pts > SPAN_RATIO * span:
            before = None
        if after is not None and after.pts - b.pts > SPAN_RATIO * span:
            after = None
        self._keep(*(frame for frame in (before, a, b, after) if frame is not None))
        near_a, near_b = self._neighbours[a], self._neighbours[b]

        def outer(near: _Neighbour, frame: Frame | None, distance: int) -> _Outer | None:
            if frame is None:
                return None
            other = self._neighbours[frame]
            return _Outer(
                planes=other.planes,
                motion=near.motion_to(other, self._effort),
                distance=distance / span,
            )

        return _Interval(
            a=near_a,
            b=near_b,
            ahead=near_a.motion_to(near_b, self._effort),
            back=near_b.motion_to(near_a, self._effort),
            before=outer(near_a, before, 0 if before is None else a.pts - before.pts),
            after=outer(near_b, after, 0 if after is None else after.pts - b.pts),
        )

    def _keep(self, *frames: Frame) -> None:
        """Tensors of these frames, and of no others."""
        former = self._neighbours
        fresh = {
            frame: former.get(frame)
            or _Neighbour(
                frame, self.video_format, self._device, frame.motion if self._coded_motion else None
            )
            for frame in frames
        }
        for each in fresh.values():
            each.forget_all_but(list(fresh.values()))
        self._neighbours = fresh

    def _finished(self, planes: Planes, pts: int) -> Frame:
        fmt = self.video_format
        chroma = fmt.chroma_size[::-1]
        sizes = ((fmt.height, fmt.width), chroma, chroma)
        y, u, v = (
            _samples(plane[0, 0, :rows, :columns], fmt.bit_depth)
            for plane, (rows, columns) in zip(planes, sizes, strict=True)
        )
        return Frame(y=y, u=u, v=v, pts=pts)


class _Neighbour:
    """A frame as tensors, and its motion to others."""

    def __init__(
        self,
        frame: Frame,
        video_format: VideoFormat,
        device: torch.device,
        coded: CodedMotion | None = None,
    ) -> None:
        fmt = video_format
        rows, columns = (-(-side // ALIGN) * ALIGN for side in (fmt.height, fmt.width))
        scale = 1 << (fmt.bit_depth - 8)
        self.planes: Planes = (
            _padded(frame.y, rows, columns, scale, device),
            _padded(frame.u, rows // 2, columns // 2, scale, device),
            _padded(frame.v, rows // 2, columns // 2, scale, device),
        )
        self._coded = coded
        self._motions: dict[_Neighbour, Motion] = {}

    def motion_to(self, other: _Neighbour, effort: Effort) -> Motion:
        """Motion to another frame, estimated once."""
        if other not in self._motions:
            coded = self._coded_to(other)
            self._motions[other] = (
                estimate_motion(self.planes[0], other.planes[0], effort)
                if coded is None
                else fitted_motion(self.planes[0], other.planes[0], coded)
            )
        return self._motions[other]

    def _coded_to(self, other: _Neighbour) -> Tensor | None:
        """The flow to another frame that one of both was coded with."""
        if self._coded is None or other._coded is None:
            return None
        own = self._coded.fields.get(other._coded.pts)
        if own is not None:
            return self._flow(own)
        theirs = other._coded.fields.get(self._coded.pts)
        if theirs is None:
            return None
        flow = self._flow(theirs)
        return _inverse(-flow, flow)

    def _flow(self, field: npt.NDArray[np.float32]) -> Tensor:
        """A field of coded motion on the grid of flows."""
        luma = self.planes[0]
        fine = enlarge(torch.from_numpy(field)[None].to(luma.device), BLOCK // GRID)
        rows, columns = (side // GRID for side in luma.shape[2:])
        return fine[..., :rows, :columns].contiguous()

    def forget_all_but(self, others: Sequence[_Neighbour]) -> None:
        """Keep motion to these frames only."""
        self._motions = {k: v for k, v in self._motions.items() if k in others}

    def warped(self, field: Tensor) -> Planes:
        """The planes sampled at p + field(p)."""
        y, u, v = self.planes
        luma, chroma = enlarge(field, GRID), enlarge(field, GRID // 2) / 2
        u, v = warp(torch.cat([u, v], dim=1), chroma, "bicubic").split(1, dim=1)
        return warp(y, luma, "bicubic"), u, v


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Warped:
    """Two frames moved to one time.

    Args:
        blended: both together. near, far: each.
        maps: (1, 3, H/4, W/4) squared errors: between the two, and of the frames before and after
            them; 0 where one of these is missing.
    """

    blended: Planes
    near: Planes
    far: Planes
    maps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outer:
    """The frame before a or after b.

    Args:
        planes: its samples.
        motion: from its neighbour to it.
        distance: of both in intervals from a to b.
    """

    planes: Planes
    motion: Motion
    distance: float

    def luma_at(self, field: Tensor) -> Tensor:
        """Its luma moved to where a field (1, 2, h, w) leads to its neighbour from."""
        onwards = field + warp(self.motion.flow, field / GRID, "bilinear")
        return warp(self.planes[0], enlarge(onwards, GRID), "bilinear")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Interval:
    """Two frames, motion from one to the other both ways, and what lies around them."""

    a: _Neighbour
    b: _Neighbour
    ahead: Motion
    back: Motion
    before: _Outer | None
    after: _Outer | None

    def frame_at(self, time: float, effort: Effort, net: BetweenNet | None) -> Planes:
        """The planes at a time between 0 (a) and 1 (b)."""
        fields, bend = self._fields(time, effort)
        warped = self._warped(fields, bend, time)
        planes = warped.blended
        if net is not None:
            planes = net(self._candidates(warped, fields, bend, time))
        y, u, v = planes
        return self._with_still((self._as_sharp(y, time), u, v), time)

    def _as_sharp(self, y: Tensor, time: float) -> Tensor:
        """Luma with as much detail as SHARPNESS asks for: a blend of two frames is softer than
        both, and would flicker between them.
        """
        one, two = (energy(each.planes[0]) for each in (self.a, self.b))
        wanted = SHARPNESS * (one + time * (two - one))
        detail = y - box_mean(y, 3)
        has, adds = energy(y), energy(detail)
        both = (energy(y + detail) - has - adds) / 2
        # has + 2 s both + s^2 adds = wanted
        root = (both**2 + adds * (wanted - has)).clamp(min=0).sqrt()
        amount = ((root - both) / (adds + 1e-6)).clamp(0, SHARPEN_MAX)
        return y + amount * detail

    def candidates(self, time: float, effort: Effort) -> Candidates:
        """What the learned part makes a new frame of."""
        fields, bend = self._fields(time, effort)
        return self._candidates(self._warped(fields, bend, time), fields, bend, time)

    def _fields(self, time: float, effort: Effort) -> tuple[list[Tensor], Tensor]:
        """Linear motion as seen from a and from b, or their mean, and what acceleration adds."""
        from_a = self._linear(self.ahead.flow, time)
        from_b = self._linear(self.back.flow, 1 - time)
        from_b = torch.cat([from_b[:, 2:], from_b[:, :2]], dim=1)
        bend = self._acceleration(from_a, from_b) * (time * (1 - time) / 2)
        bend = torch.cat([bend, bend], dim=1)
        return [from_a, from_b] if effort.sides else [(from_a + from_b) / 2], bend

    def _warped(self, fields: Sequence[Tensor], bend: Tensor, time: float) -> _Warped:
        results = [self._blended(field + bend, time) for field in fields]
        if len(results) == 1:
            return results[0]
        return _Warped(
            blended=_mean([r.blended for r in results]),
            near=_mean([r.near for r in results]),
            far=_mean([r.far for r in results]),
            maps=torch.stack([r.maps for r in results]).mean(0),
        )

    def _candidates(
        self, warped: _Warped, fields: Sequence[Tensor], bend: Tensor, time: float
    ) -> Candidates:
        linear = warped.blended
        if bool(bend.any()):
            linear = self._warped(fields, torch.zeros_like(bend), time).blended
        bent = F.avg_pool2d((warped.blended[0] - linear[0]) ** 2, GRID)
        field = torch.stack([*fields]).mean(0) + bend
        ends = (self.before, field[:, :2]), (self.after, field[:, 2:])
        before, after = (
            warped.blended[0] if outer is None else outer.luma_at(at) for outer, at in ends
        )
        return Candidates(
            blended=warped.blended,
            near=warped.near,
            far=warped.far,
            linear=linear,
            outer=(before, after),
            maps=F.avg_pool2d(torch.cat([warped.maps, bent], dim=1), BLOCK // GRID),
            time=torch.tensor([time], device=bent.device),
        )

    def _linear(self, flow: Tensor, time: float) -> Tensor:
        """(1, 4, h, w): from a position at a time to the frame that flow starts in, and where it
        ends.
        """
        there = flow * time
        return _inverse(torch.cat([-there, flow - there], dim=1), there)

    def _acceleration(self, from_a: Tensor, from_b: Tensor) -> Tensor:
        """(1, 2, h, w) second derivative of motion per interval squared, as far as it is sure; zero
        where a frame before or after is missing.
        """
        if self.before is None or self.after is None:
            return torch.zeros_like(from_a[:, :2])
        found = []
        for inner, outer, at in (
            (self.ahead, self.before, from_a[:, :2]),
            (self.back, self.after, from_b[:, 2:]),
        ):
            value = 2 * (inner.flow + outer.motion.flow / outer.distance) / (1 + outer.distance)
            least, times = FIT
            own, third = (box_mean(e, DETAIL) + least for e in (inner.error, outer.motion.error))
            trust = (times * own / third).clamp(max=1) ** 2
            both = warp(torch.cat([value, trust], dim=1), at / GRID, "bilinear")
            found.append((both[:, :2], both[:, 2:]))
        (one, trust_one), (two, trust_two) = found
        mean = (one * trust_one + two * trust_two) / (trust_one + trust_two + 1e-3)
        mean = mean * torch.maximum(trust_one, trust_two)
        weight = trust_one * trust_two
        together, size = (
            box_mean((values * weight).sum(1, keepdim=True), AGREEMENT_WINDOW)
            for values in (one * two, (one * one + two * two) / 2)
        )
        sure: Tensor = ((1 + together / (size + 1e-3)) / AGREEMENT).clamp(0, 1)
        return mean * sure

    def _blended(self, field: Tensor, time: float) -> _Warped:
        """Both frames moved along a field and blended: by time, and where they disagree by which
        of the two agrees with the frame on its own side (what is hidden in b is seen before a).
        """
        near, far = self.a.warped(field[:, :2]), self.b.warped(field[:, 2:])
        weight = torch.full_like(field[:, :1], time)
        sides = []
        for outer, at in ((self.before, field[:, :2]), (self.after, field[:, 2:])):
            if outer is not None:
                error = warp(outer.motion.error, at / GRID, "bilinear")
                sides.append(box_mean(error, VISIBLE_WINDOW))
        none = torch.zeros_like(weight)
        apart = box_mean(difference(near[0], far[0]), VISIBLE_WINDOW)
        if len(sides) == 2:
            usual = VISIBLE[0] + VISIBLE[1] * box_mean(gradient(near[0]), VISIBLE_WINDOW)
            one, two = (1 - time) / (sides[0] + usual), time / (sides[1] + usual)
            doubt = (apart - torch.minimum(*sides)).clamp(min=0) / (apart + usual)
            weight = weight + doubt * (two / (one + two) - time)
        full, half = enlarge(weight, GRID), enlarge(weight, GRID // 2)
        y, u, v = (p + w * (q - p) for p, q, w in zip(near, far, (full, half, half), strict=True))
        maps = torch.cat([apart, *(sides if len(sides) == 2 else (none, none))], dim=1)
        return _Warped(blended=(y, u, v), near=near, far=far, maps=maps)

    def _with_still(self, planes: Sequence[Tensor], time: float) -> Planes:
        """Samples that stand still in all frames as the mean by time: logos and subtitles."""
        around = [self.a.planes, self.b.planes]
        if self.before is not None:
            around.insert(0, self.before.planes)
        if self.after is not None:
            around.append(self.after.planes)
        same = [_equal([each[index] for each in around]) for index in range(3)]
        luma = same[0] * (box_mean(same[0], 3) >= STILL_SHARE)
        chroma = 1 - F.max_pool2d(1 - luma, 2)
        y, u, v = (
            plane + still * (p + time * (q - p) - plane)
            for plane, still, p, q in zip(
                planes,
                (luma, chroma * same[1], chroma * same[2]),
                self.a.planes,
                self.b.planes,
                strict=True,
            )
        )
        return y, u, v


def _mean(several: Sequence[Planes]) -> Planes:
    y, u, v = (torch.stack(same).mean(0) for same in zip(*several, strict=True))
    return y, u, v


def _inverse(field: Tensor, flow: Tensor) -> Tensor:
    """A field (1, C, h, w) of the places where motion starts, at those where flow ends."""
    at = flow
    for _ in range(INVERSIONS):
        at = warp(flow, -at / GRID, "bilinear")
    return warp(field, -at / GRID, "bilinear")


def _equal(planes: Sequence[Tensor]) -> Tensor:
    """1 where the samples of all frames differ by STILL at most from one to the next, else 0."""
    most = torch.stack([(q - p).abs() for p, q in itertools.pairwise(planes)]).amax(0)
    return (most <= STILL).to(most.dtype)


def _padded(plane: Plane, rows: int, columns: int, scale: int, device: torch.device) -> Tensor:
    """(1, 1, rows, columns) samples in 8-bit units, the border repeated."""
    missing = ((0, rows - plane.shape[0]), (0, columns - plane.shape[1]))
    padded = np.pad(plane, missing, mode="edge").astype(np.float32)
    return torch.from_numpy(padded / np.float32(scale))[None, None].to(device)


def _samples(plane: Tensor, bit_depth: int) -> Plane:
    """A plane in 8-bit units as it is stored."""
    peak = (1 << bit_depth) - 1
    whole = (plane * (1 << (bit_depth - 8))).round().clamp(0, peak)
    samples = whole.cpu().numpy()
    return samples.astype(np.uint8) if bit_depth == 8 else samples.astype(np.uint16)
