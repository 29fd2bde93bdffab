"""The planner: where GOPs end, and what its jobs hold."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from synthetic import clip, texture

from vcfilter.codec.lookahead import anchor_distance
from vcfilter.codec.plan import Planner, SegmentJob
from vcfilter.codec.references import Slots
from vcfilter.codec.structure import GopStructure
from vcfilter.codec.temporal_filter import frames_of, window
from vcfilter.codec.trajectories import Trajectories
from vcfilter.frames import Frame, VideoFormat
from vcfilter.options import EncoderOptions

SMALL = VideoFormat(width=64, height=48)


def still(count: int) -> list[Frame]:
    frame = clip(1, SMALL, still=True)[0]
    return [Frame(y=frame.y, u=frame.u, v=frame.v, pts=i) for i in range(count)]


def structure_of(**options: object) -> GopStructure:
    return GopStructure.of(EncoderOptions(**options))


def plan(
    frames: list[Frame],
    forced: tuple[int, ...] = (),
    fmt: VideoFormat = SMALL,
    **options: object,
) -> list[SegmentJob]:
    planner = Planner(fmt, structure_of(**options))
    jobs = [job for f in frames for job in planner.push(f, f.pts in forced)]
    jobs += planner.finish()
    check(jobs, frames, structure_of(**options))
    return jobs


def check(jobs: list[SegmentJob], frames: list[Frame], structure: GopStructure) -> None:
    """All frames in order, each coded once, from what is kept then; bounds hold."""
    assert [f.pts for job in jobs for f in job.frames] == [f.pts for f in frames]
    slots: Slots[int] = Slots(0)
    expected, sent = 0, False
    for job, following in zip(jobs, [*jobs, None][1:], strict=True):
        assert job.first == expected
        last = job.first + len(job.frames)
        expected = last if job.continues and following and following.first else 0
        if job.first == 0:
            slots = Slots(0)
            assert job.key_sent == sent
            assert sent or job.key_offset == job.qp_offset
            sent = False
        sent |= job.next_key is not None
        times = [frame.pts for _, frame in sorted(frames_of(job).items())]
        assert times == list(range(times[0], times[-1] + 1))
        assert last <= structure.keyint
        inters = set(range(max(job.first, 1), last))
        assert {step.number for step in job.steps} == inters
        assert len(job.steps) == len(inters)
        used = set()
        for step in job.steps:
            for number in step.references:
                used.add(number)
                if number != last or job.next_key is None:
                    assert slots.get(number) == number
                assert abs(number - step.number) <= structure.reach
                assert number - step.number <= structure.reorder
            assert (step.slot or 0) < structure.slots
            slots.store(step.step(30), step.number)
        assert (last in used) == (job.next_key is not None)
        if job.next_key is not None:
            assert following is not None
            assert following.first == 0
            assert job.next_key is following.frames[0]
            assert job.next_offset == following.key_offset
            assert job.next_scale is following.key_scale
            assert filtered(job, last) == filtered(following, 0)
        else:
            assert job.next_offset == 0
            assert job.next_scale is None


def filtered(job: SegmentJob, number: int) -> list[int]:
    """Times of the frames that the temporal filter of a frame looks at."""
    around = frames_of(job)
    assert around[number] is (job.next_key if number else job.frames[0])
    return [around[n].pts for n in window(job, number) if n in around]


def lengths(jobs: list[SegmentJob]) -> list[int]:
    """Of the GOPs."""
    found: list[int] = []
    for job in jobs:
        if job.first == 0:
            found.append(0)
        found[-1] += len(job.frames)
    return found


@pytest.mark.parametrize("scenecut", [True, False])
@pytest.mark.parametrize("keyint", [1, 2, 12, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 12, 13, 24, 25, 66])
def test_all_frames_are_covered(keyint: int, count: int, scenecut: bool) -> None:
    jobs = plan(still(count), keyint=keyint, scenecut=scenecut)
    found = lengths(jobs)
    assert sum(found) == count
    assert all(length == keyint for length in found[:-1])
    ends = [
        job
        for job, after in zip(jobs, [*jobs, None][1:], strict=True)
        if not after or not after.first
    ]
    assert [job.next_key is not None for job in ends] == [keyint > 1] * (len(ends) - 1) + [
        False
    ] * (count > 0)


@pytest.mark.parametrize("open_gop", [True, False])
@pytest.mark.parametrize("bframes", [None, 0, 1, 3, 7, 15, 31])
@pytest.mark.parametrize("keyint", [9, 64, 100])
def test_anchors(keyint: int, bframes: int | None, open_gop: bool) -> None:
    frames = clip(130, SMALL)
    for count in (1, 2, 40, 130):
        jobs = plan(
            frames[:count], keyint=keyint, bframes=bframes, open_gop=open_gop, scenecut=False
        )
        assert lengths(jobs) == [keyint] * (count // keyint) + [count % keyint] * (
            count % keyint > 0
        )
        if not open_gop:
            assert all(job.next_key is None for job in jobs)


def test_a_gop_that_ends_on_an_anchor_leaves_nothing_to_the_next_keyframe() -> None:
    """Its jobs all go on; the keyframe after it, forced or at a cut, is told as any other."""
    for bframes, keyint, forced in ((3, 10, 15), (7, 48, 57), (3, 10, 19)):
        jobs = plan(
            clip(forced + 9, SMALL), (forced,), keyint=keyint, bframes=bframes, scenecut=False
        )
        assert not any(job.key_sent for job in jobs if job.frames[0].pts == forced)


def test_a_part_of_a_job_has_the_frames_around_it() -> None:
    frames = clip(110, SMALL)
    found = 0
    jobs = plan(frames, keyint=70, scenecut=False)
    for job in (job for job in jobs if job.next_key is None):
        last = job.first + len(job.frames) - 1
        for middle in range(job.first, last):
            for part in (
                job.part(job.first, middle, ()),
                *((job.part(middle, last, ()),) if middle else ()),
            ):
                times = [frame.pts for _, frame in sorted(frames_of(part).items())]
                assert times == list(range(times[0], times[-1] + 1))
                assert times[0] == part.frames[0].pts - len(part.before)
                found += bool(part.before)
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bframes": 15}])
def test_a_keyframe_that_few_frames_inherit_is_coarser(options: dict[str, object]) -> None:
    """By up to 6 qps in a still scene, by half of it in a moving one, and not at all where the
    end of the stream or of the scene is not near."""

    def offsets(frames: list[Frame], **more: object) -> list[int]:
        return [
            job.key_offset
            for job in plan(frames, keyint=16, qp=32, **options, **more)
            if not job.first
        ]

    counts = (1, 2, 3, 5, 8, 9, 16)
    assert [offsets(still(32 + count))[2] for count in counts] == [6, 6, 5, 3, 1, 0, 0]
    large = VideoFormat(width=256, height=192)
    moving = [offsets(clip(32 + count, large))[2] for count in counts]
    assert moving == [3, 2, 2, 1, 0, 0, 0]
    assert offsets(still(34)) == [0, 0, 6]
    assert offsets(still(34), open_gop=False) == [0, 0, 0]  # nothing before refers to it
    two_scenes = clip(40, large, cuts=(17,))
    # The second keyframe is alone before the cut.
    assert [offset > 0 for offset in offsets(two_scenes)] == [False, True, False, False]


def test_the_next_keyframe_is_awaited_no_longer_than_promised() -> None:
    for options in ({"keyint": 12}, {"keyint": 12, "scenecut": False}, {"keyint": 2}):
        planner = Planner(SMALL, structure_of(**options))
        frames = still(60)
        first = next(i for i, frame in enumerate(frames) if planner.push(frame))
        assert first + 1 == structure_of(**options).delay


def test_anchors_follow_the_motion() -> None:
    def mean_distance(frames: list[Frame], fmt: VideoFormat) -> float:
        planner = Planner(fmt, structure_of(keyint=1000, scenecut=False))
        jobs = [job for frame in frames for job in planner.push(frame)] + planner.finish()
        anchors = [s.number for job in jobs for s in job.steps if s.layer == 1]
        return float(np.mean([b - a for a, b in pairwise([0, *anchors])]))

    def pan(speed: int) -> list[Frame]:
        wide = (texture(1, 96, 128 + 64 * speed) * 255).astype(np.uint8)
        cells = wide.repeat(2, 0).repeat(2, 1)  # 2x2 samples each: whole shifts fit
        chroma = np.full((96, 128), 128, np.uint8)
        return [
            Frame(y=cells[:, i * speed : i * speed + 256], u=chroma, v=chroma, pts=i)
            for i in range(65)
        ]

    large = VideoFormat(width=256, height=192)
    assert mean_distance(still(65), SMALL) == 32
    assert mean_distance(pan(1), large) == 16  # in 32 frames an eighth of the picture is new
    assert mean_distance(pan(4), large) <= 8
    assert mean_distance(pan(16), large) <= 4


@pytest.mark.parametrize("options", [{}, {"keyint": 8}, {"keyint": 8, "open_gop": False}])
def test_what_moves_more_is_coarser_at_a_constant_rate_factor(options: dict[str, object]) -> None:
    fmt = VideoFormat(width=96, height=64)
    calm = clip(24, fmt, still=True)
    wild = clip(24, fmt, seed=3, noise=20.0)
    frames = [
        Frame(y=f.y, u=f.u, v=f.v, pts=i) for i, f in enumerate([*calm, *wild, *calm, calm[0]])
    ]
    for rate in ({}, {"crf": 40}):
        jobs = plan(frames, fmt=fmt, **options, **rate)
        by_frame = {f.pts: job.qp_offset for job in jobs for f in job.frames}
        assert [by_frame[i] for i in (3, 20, 51, 68)] == [-6, -6, -6, -6]
        assert all(by_frame[i] == 6 for i in range(28, 44))
        keys = {job.frames[0].pts: job.key_offset for job in jobs if job.first == 0}
        assert (keys[0], keys[24], keys[48]) == (-6, 6, -6)
    for rate in ({"qp": 32}, {"quality": 38.0}, {"bitrate": 10000}, {"structure": "low-delay"}):
        jobs = plan(frames, fmt=fmt, **options, **rate)
        assert {job.qp_offset for job in jobs} == {0}


def test_motion_that_the_planner_searched_is_what_a_segment_would_search() -> None:
    fmt = VideoFormat(width=88, height=68)
    jobs = plan(clip(20, fmt, seed=5), fmt=fmt, keyint=1000)
    assert len(jobs) > 1
    for job in jobs:
        numbers = range(max(job.first, 1), job.first + len(job.frames))
        assert set(numbers) <= job.flows.keys()
        lumas = {number: frame.y for number, frame in frames_of(job).items()}
        known = Trajectories(lumas, 8, rough=job.flows)
        searched = Trajectories(lumas, 8)
        for number in numbers[job.first > 0 :]:
            pair = known, searched
            (ours,), (theirs,) = (each.to_references(number, [number - 1]) for each in pair)
            assert np.array_equal(ours, theirs)


def test_anchors_lie_at_the_same_frames_in_any_size() -> None:
    cells = (texture(1, 96, 200) * 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    chroma = np.full((8, 8), 128, np.uint8)  # not looked at

    def pan(enlarged: int) -> list[Frame]:
        found = []
        for i in range(17):
            y = cells[:288, i * 4 : i * 4 + 352].repeat(enlarged, 0).repeat(enlarged, 1)
            found.append(Frame(y=y, u=chroma, v=chroma, pts=i))
        return found

    distances = [anchor_distance(f[0], f[1:], 8) for f in (pan(1), pan(2), pan(3))]
    assert distances == [8, 8, 8]


@pytest.mark.parametrize(("keyint", "offsets"), [(12, [6, 5, 6, 3]), (24, [8, 7, 8, 5])])
def test_low_delay_frames_are_coarser_where_many_inherit_a_keyframe(
    keyint: int, offsets: list[int]
) -> None:
    jobs = plan(still(9), structure="low-delay", keyint=keyint)
    assert [step.offset for job in jobs for step in job.steps] == offsets * 2


def test_anchors_lie_at_the_ends_of_fades() -> None:
    """Frames within are predicted from both sides, and from the past alone badly."""
    chroma = np.full((96, 128), 128, np.uint8)
    one, two = (texture(seed, 96, 128).repeat(2, 0).repeat(2, 1) * 235 for seed in (1, 2))

    def film(shares: list[float], target: object, shift: int = 0) -> list[Frame]:
        return [
            Frame(
                y=np.roll((1 - s) * one + s * target, i * shift, 1).astype(np.uint8),
                u=chroma, v=chroma, pts=i,
            )
            for i, s in enumerate(shares)
        ]  # fmt: skip

    linear = [n / 16 for n in range(17)]
    dissolve, to_black = film(linear, two), film(linear, np.full_like(one, 16))
    abrupt = film([0.0] * 9 + [1.0] * 8, two)
    moving = film(linear, two, shift=19)
    for frames, distance in ((dissolve, 16), (to_black, 16), (abrupt, 8), (moving, 2)):
        assert anchor_distance(frames[0], frames[1:], 8) == distance


@pytest.mark.parametrize("cut", [5, 12, 13])
@pytest.mark.parametrize(
    "options",
    [{"keyint": 12}, {"keyint": 12, "bframes": 3}, {"structure": "low-delay", "keyint": 12}],
)
def test_gops_end_before_a_cut(cut: int, options: dict[str, object]) -> None:
    jobs = plan(clip(20, SMALL, cuts=(cut,)), **options)
    expected = [12] if cut > 12 else []
    expected.append(cut - sum(expected))
    assert lengths(jobs)[: len(expected)] == expected
    assert all(job.next_key is None for job in jobs if job.frames[-1].pts == cut - 1)


def test_min_keyint() -> None:
    frames = clip(40, SMALL, cuts=(4, 8, 30))
    assert lengths(plan(frames, keyint=40)) == [4, 4, 22, 10]
    assert lengths(plan(frames, keyint=40, min_keyint=6)) == [8, 22, 10]
    assert lengths(plan(frames, keyint=40, min_keyint=40)) == [40]


@pytest.mark.parametrize("scenecut", [True, False])
@pytest.mark.parametrize("options", [{}, {"bframes": 3, "keyint": 90}, {"structure": "low-delay"}])
def test_forced_keyframes(options: dict[str, object], scenecut: bool) -> None:
    options = {"keyint": 12, **options}
    jobs = plan(still(30), (0, 5, 6, 29), scenecut=scenecut, **options)
    starts = {job.frames[0].pts for job in jobs if job.first == 0}
    assert {0, 5, 6, 29} <= starts


def test_a_new_stream_after_finish() -> None:
    for options in ({"keyint": 4}, {"keyint": 90, "bframes": 1}, {"structure": "low-delay"}):
        planner = Planner(SMALL, structure_of(**options))
        found = []
        for _ in range(2):
            jobs = [job for frame in still(7) for job in planner.push(frame)]
            jobs += planner.finish()
            found.append([(job.first, job.steps, job.continues) for job in jobs])
            assert planner.finish() == []
        assert found[0] == found[1]


def test_jobs_can_be_pickled() -> None:
    for job in plan(clip(40, SMALL), keyint=20, bframes=3):
        again = pickle.loads(pickle.dumps(job))
        assert (again.steps, again.first, again.continues) == (
            job.steps,
            job.first,
            job.continues,
        )
        for a, b in zip(again.frames, job.frames, strict=True):
            assert a.pts == b.pts
            assert np.array_equal(a.y, b.y)


@pytest.mark.parametrize("seed", range(12))
def test_low_delay_recovers_from_any_losses(seed: int) -> None:
    """Frames are acknowledged or reported lost at random; every reference stays allowed."""
    rng = np.random.default_rng(seed)
    structure = structure_of(structure="low-delay", keyint=1000, scenecut=False, ltr=seed % 3 * 8)
    planner = Planner(SMALL, structure)
    frames = still(150)
    jobs: list[SegmentJob] = []
    sent: dict[int, set[int]] = {}  # of each frame, all it depends on
    pts_of: dict[int, int] = {}
    lost: set[int] = set()
    known: set[int] = set()
    report = -1
    for frame in frames:
        (job,) = planner.push(frame)
        jobs.append(job)
        if job.first == 0:
            pts_of = {}
        pts_of[job.first] = frame.pts
        direct = {pts_of[n] for step in job.steps for n in step.references}
        sent[frame.pts] = direct.union(*(sent[pts] for pts in direct)) | {frame.pts}
        if report >= 0:  # the first frame after a report avoids what was lost
            assert not sent[frame.pts] & lost
            assert direct <= known
        report = -1
        gone = bool(sent[frame.pts] & lost)
        if rng.random() < 0.1:
            lost.add(frame.pts)
            planner.lost(frame.pts)
            report = frame.pts
        elif rng.random() < 0.6 and not gone:
            planner.acknowledge(frame.pts)
            known.add(frame.pts)
    check(jobs, frames, structure)
    assert lost


def test_recovery_from_farther_than_a_header_can_say_is_a_keyframe() -> None:
    structure = structure_of(structure="low-delay", keyint=1 << 20, scenecut=False)
    frame = still(1)[0]
    for count in (32_768, 32_769):
        planner = Planner(SMALL, structure)
        for pts in range(count):
            (job,) = planner.push(Frame(y=frame.y, u=frame.u, v=frame.v, pts=pts))
            if pts == 0:
                planner.acknowledge(0)
        planner.lost(count - 1)
        (job,) = planner.push(Frame(y=frame.y, u=frame.u, v=frame.v, pts=count))
        assert job.first == (count if count == 32_768 else 0)
        for step in job.steps:
            assert step.step(30).references == (-32_768,)
