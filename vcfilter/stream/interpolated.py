"""Frame interpolation between source and coder, and over av.VideoFrames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

from av.video.frame import VideoFrame

from vcfilter.errors import ConfigError
from vcfilter.frames import FieldOrder, Frame, VideoFormat
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.interpolation.sequence import FrameInterpolation
from vcfilter.options import Runtime
from vcfilter.stream.containers import check_kind
from vcfilter.stream.decoders import FrameSource
from vcfilter.stream.output_stream import rate_of
from vcfilter.stream.pixels import FrameReader, to_video_frame
from vcfilter.stream.report import Log
from vcfilter.stream.timestamps import Rising, TimestampSnapper, nearest, rational

_CLOCK = Fraction(1, 90_000)  # of frames that state no time base


class InterpolatedFrames:
    """The frames of a source, and those between them.

    Times that a container rounded to milliseconds are put back onto the frame rate first, so that
    new frames lie at exact fractions.

    Args:
        source: brings the frames.
        options: how many are added, and how.
        runtime: device and threads.
        log: where warnings go.
        hold, finished: as for FrameInterpolation.
    """

    def __init__(
        self,
        source: FrameSource,
        options: InterpolationOptions,
        runtime: Runtime | None,
        log: Log,
        *,
        hold: bool = True,
        finished: Callable[[int], bool] | None = None,
    ) -> None:
        self._source = source
        self._log = log
        self._snapper = TimestampSnapper.over(source.time_base, source.frame_rate)
        base = self._snapper.time_base if self._snapper else source.time_base
        self._rising = Rising(base, None)
        self._interpolation = FrameInterpolation(
            options, base, runtime, hold=hold, finished=finished
        )
        self.time_base = self._interpolation.time_base

    @property
    def frame_rate(self) -> Fraction | None:
        return self.frame_rate_for(self._source.frame_rate)

    def frame_rate_for(self, rate: Fraction | None) -> Fraction | None:
        """Frames per second that come out of so many."""
        return self._interpolation.frame_rate(rate)

    @property
    def video_format(self) -> VideoFormat | None:
        return self._source.video_format

    @property
    def delay(self) -> int | None:
        """None: two frames are held."""
        return None

    def frames(self) -> Iterator[Frame]:
        """The frames in display order."""
        return self._interpolation(self._timed())

    def _timed(self) -> Iterator[Frame]:
        for count, frame in enumerate(self._source.frames()):
            fmt = self._source.video_format
            if not count and fmt is not None and fmt.field_order > FieldOrder.PROGRESSIVE:
                self._log.warning(
                    "the frames are interlaced and interpolated as whole ones: -vf bwdif makes "
                    "them progressive first"
                )
            pts, duration = frame.pts, frame.duration
            if self._snapper:
                pts, duration = self._snapper.place(pts, duration)
            yield replace(frame, pts=self._rising.place(pts), duration=duration)


def interpolate(
    frames: Iterable[VideoFrame],
    *,
    factor: int | None = None,
    fps: int | Fraction | None = None,
    slow: int | None = None,
    preset: str = "medium",
    duplicates: str = "keep",
    cut: str = "nearest",
    runtime: Runtime | None = None,
) -> Iterator[VideoFrame]:
    """More frames per second.

    Frames come two frames late, four are held. They are 4:2:0 of 8 or 10 bit; the originals among
    them have the samples that went in, unless those had another pixel format.

    Args:
        frames: of one video, in display order, with rising pts.
        factor, fps, slow, preset, duplicates, cut: see InterpolationOptions.
        runtime: device and threads.

    Yields:
        Frames with pts and duration in ticks of a finer time base.

    Raises:
        ConfigError: an argument is out of range or of the wrong type, or pts do not rise.
    """
    check_kind("frames", frames, Iterable, "an iterable of frames", none=False)
    check_kind("runtime", runtime, Runtime, "a Runtime")
    options = InterpolationOptions(
        factor=factor,
        fps=None if fps is None else rate_of(fps),
        slow=slow,
        preset=preset,
        duplicates=duplicates,
        cut=cut,
    )
    return _interpolated(frames, options, runtime)


def _interpolated(
    frames: Iterable[VideoFrame], options: InterpolationOptions, runtime: Runtime | None
) -> Iterator[VideoFrame]:
    reader = FrameReader()
    stage: FrameInterpolation | None = None
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        return
    check_kind("frame", first, VideoFrame, "an av.VideoFrame", none=False)
    base = rational(first.time_base) or _CLOCK
    stage = FrameInterpolation(options, base, runtime)

    def read() -> Iterator[Frame]:
        last: int | None = None
        found: VideoFrame | None = first
        while found is not None:
            check_kind("frame", found, VideoFrame, "an av.VideoFrame", none=False)
            ratio = (rational(found.time_base) or base) / base
            pts = None if found.pts is None else nearest(found.pts * ratio)
            if pts is None or (last is not None and pts <= last):
                raise ConfigError(f"a frame's pts {pts} is not after the one before, {last}")
            last = pts
            yield reader.read(found, pts, nearest((found.duration or 0) * ratio))
            found = next(iterator, None)

    for frame in stage(read()):
        assert reader.video_format is not None
        yield to_video_frame(frame, reader.video_format, stage.time_base)
