"""Tiny films for tests: moving texture, a sine, and whatever else a test needs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

RATE = 24


def picture(index: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: texture that pans, with a square that moves against it."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x + 1.5 * index, y + 0.5 * index
    waves = np.sin(x / 5) * np.cos(y / 7) + 0.5 * np.sin((x + y) / 3)
    rgb = np.stack([128 + 60 * waves, 120 + 50 * np.roll(waves, 3, 1), 140 - 40 * waves], axis=-1)
    left = (3 * index) % max(1, width - 8)
    rgb[height // 3 : height // 3 + 8, left : left + 8] = (230, 60, 40)
    return rgb.clip(0, 255).astype(np.uint8)


def video_frame(index: int, width: int, height: int, pix_fmt: str = "yuv420p") -> VideoFrame:
    """The picture in a pixel format, BT.709 limited range, without times."""
    frame = VideoFrame.from_ndarray(picture(index, width, height), "rgb24")
    if pix_fmt == "rgb24":
        return frame
    frame = frame.reformat(format=pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
    frame.color_primaries = frame.color_trc = 1
    return frame


def make_film(
    path: Path,
    *,
    frames: int = 14,
    width: int = 64,
    height: int = 48,
    rate: Fraction | int = RATE,
    codec: str = "ffv1",
    pix_fmt: str = "yuv420p",
    audio: str | None = None,
    ticks: list[int] | None = None,
    time_base: Fraction | None = None,
    subtitles: bool = False,
    cut_at: int | None = None,
) -> Path:
    """Write a film; `ticks` are the frames' pts in `time_base` (one tick per frame if None)."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "tiny film"
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        stream.codec_context.color_range = 1
        stream.codec_context.colorspace = 1
        sound = None
        if audio:
            sound = container.add_stream(audio, rate=48000)
            sound.metadata["language"] = "nob"
        for index in range(frames):
            shown = index + (1000 if cut_at is not None and index >= cut_at else 0)
            frame = video_frame(shown, width, height, pix_fmt)
            frame.pts = ticks[index] if ticks else index
            frame.time_base = time_base or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
            if sound is not None:
                for packet in _sound(sound, index, Fraction(rate)):
                    container.mux(packet)
        container.mux(stream.encode())
        if sound is not None:
            container.mux(sound.encode())
    return path


def _sound(stream: av.AudioStream, index: int, rate: Fraction) -> list[av.Packet]:
    """One picture's worth of a sine."""
    start, end = (round(48000 * n / rate) for n in (index, index + 1))
    wave = 8000 * np.sin(np.arange(start, end) * 2 * np.pi * 440 / 48000)
    samples = np.stack([wave, -wave]).T.reshape(1, -1).astype(np.int16)
    frame = AudioFrame.from_ndarray(samples, "s16", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
    return list(stream.encode(frame))


def times(path: Path) -> list[Fraction]:
    """Presentation times of an ordinary film's pictures, in seconds."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def planes(frame: VideoFrame) -> list[np.ndarray]:
    """Copies of the planes of a yuv420p or yuv420p10le picture."""
    dtype = np.uint8 if frame.format.name == "yuv420p" else np.uint16
    result = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        result.append(rows[:, : plane.width].copy())
    return result


def luma_psnr(a: np.ndarray, b: np.ndarray, peak: int = 255) -> float:
    """In dB."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(peak * peak / error))
