"""Small clips made by rule: a textured pan with a moving object, noise and scene cuts."""

from __future__ import annotations

import numpy as np

from vcfilter.frames import Frame, VideoFormat


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth random structures of several sizes, 0 to 1."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width))
    for size in (4, 8, 24):
        coarse = rng.normal(size=(height // size + 3, width // size + 3))
        rows, columns = np.arange(height) / size, np.arange(width) / size
        top, left = rows.astype(int), columns.astype(int)
        down, across = (rows - top)[:, None], columns - left
        upper = coarse[top][:, left] * (1 - across) + coarse[top][:, left + 1] * across
        lower = coarse[top + 1][:, left] * (1 - across) + coarse[top + 1][:, left + 1] * across
        picture += size**0.5 * (upper * (1 - down) + lower * down)
    picture -= picture.min()
    return picture / picture.max()


def clip(
    count: int,
    video_format: VideoFormat,
    *,
    seed: int = 0,
    cuts: tuple[int, ...] = (),
    still: bool = False,
    noise: float = 1.0,
    first_pts: int = 0,
    ticks: int = 1,
) -> list[Frame]:
    """Frames of a clip.

    Args:
        cuts: frames that start another scene. still: nothing moves, no noise.
        noise: standard deviation in 8-bit units. ticks: pts from one frame to the next.
    """
    width, height = video_format.width, video_format.height
    scale = 1 if video_format.bit_depth == 8 else 4
    dtype = np.uint8 if video_format.bit_depth == 8 else np.uint16
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        scene = sum(cut <= index for cut in cuts)
        wide = texture(seed + 100 * scene, height + 64, width + 64) * 200 + 20
        shift = 0 if still else index % 60
        picture = wide[shift // 2 : shift // 2 + height, shift : shift + width].copy()
        at = 0 if still else (2 * index) % (width // 2)
        picture[height // 4 : height // 2, at : at + width // 4] = 255 - 30 * scene
        grain = 0.0 if still else rng.normal(0, noise, picture.shape)
        y = np.clip(picture + grain, 0, 255)
        u = np.clip(0.5 * picture[::2, ::2] + 60, 0, 255)
        v = np.clip(200 - 0.6 * picture[::2, ::2], 0, 255)
        planes = [(plane * scale).astype(dtype) for plane in (y, u, v)]
        pts = first_pts + ticks * index
        frames.append(Frame(y=planes[0], u=planes[1], v=planes[2], pts=pts, duration=ticks))
    return frames
