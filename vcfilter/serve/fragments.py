"""Segments for browsers: fragmented MP4 with H.264 (or VP9) and the video's audio, through PyAV.

Each segment is made on its own, with an encoder of its own, and carries its time: any of them can
follow any other, in any quality.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.codec import Codec
from av.filter import Graph
from av.video.frame import VideoFrame

from vcfilter.errors import MediaError
from vcfilter.serve.steps import Step
from vcfilter.serve.video import Audio, Segment, VideoFile, measured
from vcfilter.serve.work import StoppedError
from vcfilter.stream.source import media_url, reason_of

VIDEO_TYPE, AUDIO_TYPE = "video/mp4", "audio/mp4"
COPIED_CODECS = ("aac", "opus", "flac")
"""Audio that browsers play from MP4: copied byte for byte. All other is coded as FLAC, without
loss."""

_CLOCK = Fraction(1, 90000)
# Times as they are: without the last two the muxer would let each segment begin at zero.
_MP4 = {
    "movflags": "empty_moov+default_base_moof+frag_discont",
    "avoid_negative_ts": "disabled",
    "use_editlist": "0",
}
_ENCODERS = {
    "libx264": {"preset": "superfast", "crf": "17", "bf": "0", "g": "9999", "sc_threshold": "0"},
    "libvpx-vp9": {
        "deadline": "realtime", "cpu-used": "7", "row-mt": "1", "crf": "18", "b": "0",
        "lag-in-frames": "0", "g": "9999",
    },
}  # fmt: skip
"""What frames are coded with: the first that PyAV's FFmpeg brings. All wheels bring x264, builds
without GPL only VP9."""
_CHUNK_SAMPLES = 4096
_LEAD_SECONDS = Fraction(1, 2)  # decoders of audio need some packets to settle
_FLAC_FORMATS = {True: "s16", False: "s32"}  # by whether 16 bits hold all there is
_SIXTEEN_BITS = ("u8", "u8p", "s16", "s16p")


def display_size(video: VideoFile, step: Step) -> tuple[int, int]:
    """Width and height that a step shows, even ones: chroma is half of them."""
    fmt = video.video_format
    sides = (fmt.width, fmt.height) if fmt.rotation % 180 == 0 else (fmt.height, fmt.width)
    width, height = (max(16, (side + 2 * step.scale - 1) // (2 * step.scale) * 2) for side in sides)
    return width, height


def video_init(video: VideoFile, step: Step) -> bytes:
    """What a browser needs before the first video segment of a step: ftyp and moov."""
    file = io.BytesIO()
    with _VideoStream(video, step, file) as (container, _):
        container.start_encoding()
    return _boxes(file.getvalue(), (b"ftyp", b"moov"))


def video_segment(video: VideoFile, number: int, step: Step, stopped: Callable[[], bool]) -> bytes:
    """The frames of one segment: moof and mdat. Their cost goes to the throughput meter, but for
    the first frame of all, which loads the networks."""
    began = time.perf_counter()
    cost = [0.0]
    file = io.BytesIO()
    count = counted = 0
    lengths: dict[int, int] = {}

    def encode(container: Any, stream: Any, frame: VideoFrame | None) -> None:
        for packet in stream.encode(frame):
            packet.duration = lengths.get(packet.pts, packet.duration)
            container.mux(packet)

    with _VideoStream(video, step, file) as (container, stream):
        scale = _Scaler(video, step)
        for begin, stop, frame in measured(video.shown(number, step, stopped), cost):
            shown = scale(frame)
            pts, end = (round(seconds / _CLOCK) for seconds in (begin, stop))
            lengths[pts] = max(1, end - pts)
            shown.pts, shown.time_base, shown.duration = pts, _CLOCK, lengths[pts]
            shown.pict_type = 0
            encode(container, stream, shown)
            count += 1
            counted += 1
            if not video.is_warm:
                video.is_warm = True
                began, cost[0], counted = time.perf_counter(), 0.0, 0
            if stopped():
                raise StoppedError
        if count:
            encode(container, stream, None)
    originals = min(counted, len(video.kept(number, step)))
    video.speed.add(step, originals, cost[0], time.perf_counter() - began - cost[0])
    return _boxes(file.getvalue(), (b"moof", b"mdat"))


def video_codec(init: bytes) -> str:
    """The codec as MSE and HLS name it ("avc1.64000d", "vp09.00.11.08"), from the init segment."""
    place = init.find(b"avcC")
    if place >= 0:
        return f"avc1.{init[place + 5 : place + 8].hex()}"
    place = init.find(b"vpcC")
    if place < 0:
        raise MediaError("the encoder gave neither an H.264 nor a VP9 configuration")
    profile, level, depth = init[place + 8], init[place + 9], init[place + 10] >> 4
    return f"vp09.{profile:02}.{level:02}.{depth:02}"


@cache
def video_encoder() -> str:
    """The name of the encoder for frames.

    Raises:
        MediaError: there is none.
    """
    for name in _ENCODERS:
        try:
            Codec(name, "w")
        except (ValueError, av.error.FFmpegError):
            continue
        return name
    raise MediaError(f"PyAV's FFmpeg has no encoder for browsers: {' or '.join(_ENCODERS)}")


def audio_codec(audio: Audio) -> str:
    """The codec as MSE and HLS name it."""
    return {"aac": "mp4a.40.2", "opus": "opus"}.get(audio.codec, "flac")


def audio_init(video: VideoFile) -> bytes:
    """What a browser needs before the first audio segment."""
    return _boxes(_audio(video, None), (b"ftyp", b"moov"))


def audio_segment(video: VideoFile, number: int, stopped: Callable[[], bool]) -> bytes:
    """The audio of one segment: moof and mdat; empty where the video is silent there."""
    del stopped  # it is over at once
    return _boxes(_audio(video, video.segments[number]), (b"moof", b"mdat"))


class _VideoStream:
    """An MP4 file in memory with one video stream, closed at the end of the block."""

    def __init__(self, video: VideoFile, step: Step, file: io.BytesIO) -> None:
        fmt = video.video_format
        self._container = av.open(file, "w", format="mp4", options=dict(_MP4))
        name = video_encoder()
        stream: Any = self._container.add_stream(name, options=dict(_ENCODERS[name]))
        stream.width, stream.height = display_size(video, step)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = _CLOCK
        context.framerate = Fraction(video.frames_per_second).limit_denominator(1001)
        num, den = fmt.sample_aspect_ratio
        if num:
            aspect = Fraction(num, den)
            context.sample_aspect_ratio = aspect if fmt.rotation % 180 == 0 else 1 / aspect
        context.colorspace, context.color_range = fmt.colorspace, fmt.color_range
        context.color_primaries, context.color_trc = fmt.color_primaries, fmt.color_trc
        self._stream = stream

    def __enter__(self) -> tuple[Any, Any]:
        return self._container, self._stream

    def __exit__(self, *exception: object) -> None:
        self._container.close()


class _Scaler:
    """Frames as they are shown: mirrored, turned, scaled to the step's size, 8 bit."""

    def __init__(self, video: VideoFile, step: Step) -> None:
        self._size = display_size(video, step)
        self._rotation = video.video_format.rotation
        self._mirrored = video.video_format.mirrored
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        turned = self._rotation or self._mirrored
        wanted = (frame.width, frame.height) == self._size and not turned
        if wanted and frame.format.name == "yuv420p":
            return frame
        if self._graph is None:
            self._graph = self._make(frame)
        self._graph.push(frame)
        shown = self._graph.pull()
        assert isinstance(shown, VideoFrame)
        return shown

    def _make(self, frame: VideoFrame) -> Graph:
        width, height = self._size
        turn = {90: [("transpose", "clock")], 270: [("transpose", "cclock")]}
        turn[180] = [("hflip", ""), ("vflip", "")]
        steps = [("hflip", "")] if self._mirrored else []
        steps += [*turn.get(self._rotation, []), ("scale", f"{width}:{height}:flags=bicubic")]
        graph = Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or _CLOCK,
            )
        ]
        nodes += [graph.add(name, args) for name, args in [*steps, ("format", "yuv420p")]]
        nodes.append(graph.add("buffersink"))
        for before, after in itertools.pairwise(nodes):
            before.link_to(after)
        graph.configure()
        return graph


def _audio(video: VideoFile, segment: Segment | None) -> bytes:
    """An MP4 file with the audio of one segment; of None with no audio at all."""
    audio = video.audio
    assert audio is not None
    file = io.BytesIO()
    try:
        with (
            av.open(media_url(str(video.path))) as source,
            av.open(file, "w", format="mp4", options=dict(_MP4)) as target,
        ):
            if audio.codec in COPIED_CODECS:
                _copy(source, target, video, audio, segment)
            else:
                _code(source, target, video, audio, segment)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"the audio of {video.path.name} fails: {reason_of(error)}") from error
    return file.getvalue()


def _copy(
    source: Any, target: Any, video: VideoFile, audio: Audio, segment: Segment | None
) -> None:
    """Packets as they are, their times put back onto the grid of their lengths."""
    stream = source.streams[audio.index]
    out = target.add_stream_from_template(stream)
    base = Fraction(1, audio.rate)
    out.time_base = base
    target.start_encoding()
    if segment is None:
        return
    clock = audio.clock()
    for packet in _packets(source, stream, video, segment):
        if packet.pts is None or not packet.size:
            continue
        begin, length = clock(packet.pts, packet.duration)
        seconds = begin - video.origin
        if seconds >= segment.stop:
            break
        if seconds < segment.start:
            continue
        packet.time_base = base
        packet.pts = packet.dts = round(seconds / base)
        packet.duration = round(length / base)
        packet.stream = out
        target.mux(packet)


def _code(
    source: Any, target: Any, video: VideoFile, audio: Audio, segment: Segment | None
) -> None:
    """Decoded and coded as FLAC, exactly the samples from the segment's start to its end."""
    stream = source.streams[audio.index]
    context = stream.codec_context
    sample_format = _FLAC_FORMATS[context.format.name in _SIXTEEN_BITS]
    out = target.add_stream("flac", rate=audio.rate, layout=context.layout.name)
    out.codec_context.format = sample_format
    out.time_base = Fraction(1, audio.rate)
    target.start_encoding()
    if segment is None:
        return
    first, end = (round(t * audio.rate) for t in (segment.start, segment.stop))
    channels = context.layout.nb_channels
    dtype = np.int16 if sample_format == "s16" else np.int32
    samples = np.zeros((end - first, channels), dtype)
    filled = 0
    clock = audio.clock()
    resampler = AudioResampler(format=sample_format, layout=context.layout.name, rate=audio.rate)
    for frame in _audio_frames(source, stream, video, segment):
        if frame.pts is None or frame.time_base is None:
            continue
        ticks = round(frame.pts * frame.time_base / audio.time_base)
        begin = round((clock(ticks, 0)[0] - video.origin) * audio.rate) - first
        for part in resampler.resample(frame):
            values = part.to_ndarray().reshape(-1, channels)
            low, high = max(0, begin), min(len(samples), begin + len(values))
            if low < high:
                samples[low:high] = values[low - begin : high - begin]
                filled = max(filled, high)
            begin += len(values)
        if begin >= len(samples):
            break
    for start in range(0, filled, _CHUNK_SAMPLES):
        chunk = samples[start : min(start + _CHUNK_SAMPLES, filled)].reshape(1, -1)
        coded = AudioFrame.from_ndarray(chunk, sample_format, context.layout.name)
        coded.sample_rate, coded.time_base = audio.rate, Fraction(1, audio.rate)
        coded.pts = first + start
        target.mux(out.encode(coded))
    if filled:
        target.mux(out.encode(None))


def _packets(source: Any, stream: Any, video: VideoFile, segment: Segment) -> Iterator[Any]:
    """The audio's packets from somewhat before the segment on."""
    begin = max(Fraction(0), segment.start + video.origin - _LEAD_SECONDS)
    if segment.start > 0:
        source.seek(int(begin * av.time_base))
    yield from source.demux(stream)


def _audio_frames(
    source: Any, stream: Any, video: VideoFile, segment: Segment
) -> Iterator[AudioFrame]:
    for packet in _packets(source, stream, video, segment):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue  # silence there


def _boxes(data: bytes, wanted: tuple[bytes, ...]) -> bytes:
    """The boxes of these types, one after another."""
    found = []
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:
            break
        if data[place + 4 : place + 8] in wanted:
            found.append(data[place : place + size])
        place += size
    return b"".join(found)
