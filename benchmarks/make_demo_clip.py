"""Draw the demo clip: a street below mountains, filmed by a hand-held camera that pans.

Everything is synthesised from a fixed seed, so the clip is free to distribute: layers at several
depths that move against each other by fractions of a pixel, a cobbled ground in perspective, a
van, a ball and a balloon that cover and uncover what is behind them, a lamp post that passes close
by, lens blur, vignetting, sensor noise; a chord progression, wind and the van's engine in stereo.

    python benchmarks/make_demo_clip.py vcfilter/assets/demo.mp4
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import Any, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

WIDTH, HEIGHT, RATE, SECONDS = 352, 288, 30, 10
SAMPLE_RATE = 48000
SCALE = 2  # drawn at twice the size, then averaged: edges and texture as a lens gives them
W, H = WIDTH * SCALE, HEIGHT * SCALE
HORIZON = 0.60 * H

Image = npt.NDArray[np.float32]


def fractal_noise(shape: tuple[int, int], cell: float, octaves: int, seed: int) -> Image:
    """Sum of smoothly enlarged random grids, each half as coarse and half as strong; 0 to 1."""
    rng = np.random.default_rng(seed)
    total = np.zeros(shape, np.float32)
    strength = 1.0
    for _ in range(octaves):
        grid = rng.random((int(shape[0] / cell) + 3, int(shape[1] / cell) + 3), dtype=np.float32)
        total += strength * cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
        cell, strength = max(1.0, cell / 2), strength * 0.55
    total -= total.min()
    return cast(Image, total / total.max())


def mix(a: Any, b: Any, t: Image) -> Image:
    """Colour a where t is 0, b where it is 1; (h, w, 3)."""
    t = np.clip(t, 0, 1)[..., None]
    return cast(Image, (np.float32(a) * (1 - t) + np.float32(b) * t).astype(np.float32))


def lit(height: Image, strength: float) -> Image:
    """Light from the upper left on a relief, around 1."""
    slope = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) + cv2.Sobel(
        height, cv2.CV_32F, 0, 1, ksize=3
    )
    return cast(Image, np.clip(1 + strength * slope, 0.35, 1.7)[..., None])


def ridge(height: float, rough: float, seed: int, length: int) -> Image:
    """Rows of a skyline: (length,)."""
    line = fractal_noise((4, length), 260, 7, seed)[1]
    return cast(Image, height - rough * line)


def below(line: Image, rows: int) -> Image:
    """Soft mask of what lies below a skyline: (rows, len(line))."""
    y = np.arange(rows, dtype=np.float32)[:, None]
    return cast(Image, np.clip(y - line[None, :] + 0.5, 0, 1))


class Scene:
    """The layers, drawn once; picture(n) composes frame n."""

    def __init__(self) -> None:
        wide = int(W * 1.9)
        clouds = fractal_noise((H, wide), 190, 7, 1)
        y = np.linspace(0, 1, H, dtype=np.float32)[:, None]
        blue = mix((96, 148, 208), (205, 218, 226), np.repeat(y * 1.6, wide, 1))
        self.sky = mix(blue, (246, 243, 238), (clouds - 0.48 - 0.25 * y) * 3.2)

        rock = fractal_noise((H, wide), 60, 7, 2)
        far = mix((108, 122, 142), (168, 176, 186), rock) * lit(rock, 1.6)
        snow = (fractal_noise((H, wide), 40, 6, 3) - y * 1.5 + 0.05) * 8
        self.far = mix(far, (238, 240, 246), snow), below(ridge(0.50 * H, 0.34 * H, 4, wide), H)

        leaves = fractal_noise((H, wide), 22, 5, 5)
        crowns = fractal_noise((H, wide), 70, 3, 6)
        green = mix((34, 56, 30), (126, 142, 72), leaves * 0.7 + crowns * 0.5 - 0.15)
        line = ridge(0.56 * H, 0.13 * H, 7, wide) - 9 * fractal_noise((4, wide), 14, 3, 8)[1]
        self.wood = green * lit(leaves, 1.5), below(line, H)

        self.houses = self._houses(int(W * 2.4))
        stones = self._stones(1024)
        self.ground = [stones]
        self.light = fractal_noise((H, wide), 120, 3, 18)
        for _ in range(5):
            self.ground.append(cv2.resize(self.ground[-1], None, fx=0.5, fy=0.5,
                                          interpolation=cv2.INTER_AREA))  # fmt: skip
        self.ball = mix(
            (214, 70, 40), (240, 226, 190), np.float32(np.indices((96, 96))[1] // 16 % 2)
        )
        self.van = self._van()
        rng = np.random.default_rng(9)
        # Hand-held: a few slow sines and a small random walk, pulled back to the middle.
        t = np.arange(RATE * SECONDS) / RATE
        walk = np.zeros((len(t), 2))
        for i in range(1, len(t)):
            walk[i] = 0.9 * walk[i - 1] + rng.normal(0, 0.16, 2)
        sway = np.stack([1.7 * np.sin(1.9 * t) + 0.9 * np.sin(4.7 * t + 1),
                         1.3 * np.sin(2.6 * t + 2) + 0.7 * np.sin(5.3 * t)], 1)  # fmt: skip
        pan = 250 * (1 - np.cos(np.pi * np.clip((t - 0.6) / 8.2, 0, 1)))
        self.camera = np.stack([pan, np.zeros_like(pan)], 1) + sway + walk
        self.noise = np.random.default_rng(10)

    @staticmethod
    def _houses(wide: int) -> tuple[Image, Image]:
        rng = np.random.default_rng(11)
        image = np.zeros((H, wide, 3), np.float32)
        mask = np.zeros((H, wide), np.float32)
        foot = int(HORIZON + 26)
        plaster = fractal_noise((H, wide), 9, 4, 12)
        stain = fractal_noise((H, wide), 80, 4, 13)
        x = 6
        while x < wide - 190:
            width, top = int(rng.integers(110, 175)), foot - int(rng.integers(120, 178))
            wall = np.float32(rng.choice([(196, 172, 132), (172, 92, 70), (206, 200, 186),
                                          (150, 158, 150), (212, 180, 96)]))  # fmt: skip
            area = np.s_[top:foot, x : x + width]
            image[area] = wall * (0.72 + 0.3 * plaster[area] + 0.22 * stain[area])[..., None]
            if wall[1] < 120:  # bricks
                rows, cols = np.mgrid[top:foot, x : x + width]
                joint = (rows % 8 < 2) | ((cols + rows // 8 * 9) % 18 < 2)
                image[area][joint] *= 0.80
            mask[area] = 1
            roof = np.array([[x - 8, top], [x + width // 2, top - 46], [x + width + 8, top]])
            cv2.fillPoly(image, [roof], (118, 66, 54))
            cv2.fillPoly(mask, [roof], 1.0)
            for k in range(1, 7):  # tiles
                half = (width // 2 + 8) * k // 7
                row = top - 46 + 46 * k // 7
                cv2.line(image, (x + width // 2 - half, row), (x + width // 2 + half, row),
                         (86, 48, 42), 1)  # fmt: skip
            for wy in range(top + 14, foot - 44, 42):
                for wx in range(x + 14, x + width - 26, 34):
                    glass = np.float32((58, 74, 92)) * rng.uniform(0.7, 1.5)
                    cv2.rectangle(image, (wx - 2, wy - 2), (wx + 20, wy + 28), (226, 222, 212), -1)
                    cv2.rectangle(image, (wx, wy), (wx + 18, wy + 26), glass.tolist(), -1)
                    cv2.line(image, (wx + 9, wy), (wx + 9, wy + 26), (220, 216, 206), 2)
                    shine = np.array([[wx, wy + 20], [wx + 12, wy], [wx + 16, wy], [wx, wy + 26]])
                    cv2.fillPoly(image, [shine], (glass * 1.35).tolist())
            door = x + width // 2
            cv2.rectangle(image, (door - 12, foot - 38), (door + 12, foot), (70, 44, 32), -1)
            x += width + int(rng.integers(4, 70))
        mask = cv2.GaussianBlur(mask, (3, 3), 0.7)
        return image, mask

    @staticmethod
    def _stones(side: int) -> Image:
        """Cobblestones seen from above, tiling."""
        rng = np.random.default_rng(14)
        n = 26
        cells = (np.indices((n, n)).transpose(1, 2, 0) + rng.uniform(0.2, 0.8, (n, n, 2))) / n
        points = np.concatenate(
            [(cells + np.array((a, b))).reshape(-1, 2) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        )
        near = points[(np.abs(points - 0.5) < 0.56).all(1)]
        half = side // 2
        y, x = (np.mgrid[0:half, 0:half] + 0.5) / half
        first = np.full((half, half), 9.0)
        second, owner = first.copy(), np.zeros((half, half), int)
        for i, (py, px) in enumerate(near):
            d = np.hypot(y - py, x - px)
            closer = d < first
            second = np.where(closer, first, np.minimum(second, d))
            owner = np.where(closer, i, owner)
            first = np.where(closer, d, first)
        tone = rng.uniform(0.7, 1.15, len(near))[owner].astype(np.float32)
        edge = np.clip((second - first) * n * 2.2, 0, 1).astype(np.float32)
        grain = fractal_noise((half, half), 6, 3, 15)
        stone = mix((64, 60, 56), (150, 144, 136), edge * tone * (0.6 + 0.6 * grain))
        return cast(Image, cv2.resize(stone, (side, side), interpolation=cv2.INTER_CUBIC))

    @staticmethod
    def _van() -> tuple[Image, Image]:
        image = np.zeros((150, 290, 3), np.float32)
        mask = np.zeros((150, 290), np.float32)
        body = np.array([[8, 118], [8, 30], [22, 16], [196, 16], [226, 28], [256, 70], [280, 80],
                         [284, 118]])  # fmt: skip
        cv2.fillPoly(mask, [body], 1.0)
        shade = np.linspace(1.18, 0.72, 150, dtype=np.float32)[:, None, None]
        image[:] = np.float32((186, 38, 34)) * shade
        pane = np.array([[200, 28], [222, 34], [246, 68], [200, 68]])
        cv2.fillPoly(image, [pane], (70, 92, 110))
        cv2.rectangle(image, (28, 30), (180, 62), (236, 230, 214), -1)
        letters = np.zeros(mask.shape, np.uint8)
        cv2.putText(letters, "BAKERY", (36, 56), cv2.FONT_HERSHEY_DUPLEX, 1.05, 255, 2, cv2.LINE_AA)
        image = mix(image, (60, 52, 120), np.float32(letters / 255))
        cv2.line(image, (10, 92), (282, 92), (240, 236, 226), 4)
        cv2.circle(image, (277, 96), 7, (250, 244, 200), -1)
        for cx in (62, 226):
            cv2.circle(image, (cx, 118), 26, (24, 24, 26), -1)
            cv2.circle(mask, (cx, 118), 26, 1.0, -1)
        return image, cv2.GaussianBlur(mask, (3, 3), 0.8)

    @staticmethod
    def _paste(target: Image, layer: tuple[Image, Image], x: float, y: float, size: float) -> None:
        """Lay a layer over the picture, its left upper corner at (x, y), to the subpixel."""
        move = np.float32([[size, 0, x], [0, size, y]])
        image, mask = (
            cv2.warpAffine(part, move, (W, H), flags=cv2.INTER_LINEAR, borderMode=mode)
            for part, mode in zip(layer, (cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT), strict=True)
        )
        mask = mask[..., None]
        target *= 1 - mask
        target += image * mask

    def _floor(self, target: Image, shift: float, lift: float) -> None:
        rows = np.arange(int(HORIZON), H)
        depth = 46.0 / (rows + lift - HORIZON + 7)  # 1 close by, larger further off
        x = (np.arange(W) - W / 2)[None, :] * depth[:, None] * 1.6 + shift * 1.28
        z = np.repeat(depth[:, None] * 330, W, 1)
        for i in range(len(rows)):  # one row has one distance, hence one level of detail
            level = int(np.clip(np.log2(depth[i] * 2.7), 0, len(self.ground) - 1))
            texture = self.ground[level]
            side = texture.shape[0]
            u = np.float32(x[i : i + 1] * 1.7 * side / 1024 % side)
            v = np.float32(z[i : i + 1] * 1.7 * side / 1024 % side)
            line = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            shade = 1 - 0.42 / (1 + np.exp(9 * (1.75 - depth[i])))  # the houses' shadow
            cast_light = 0.86 + 0.28 * self.light[i % H, np.int32(x[i] / 3) % self.light.shape[1]]
            target[rows[i]] = line[0] * shade * cast_light[:, None]

    def _wheels(self, angle: float) -> tuple[Image, Image]:
        image, mask = self.van[0].copy(), self.van[1]
        for cx in (62, 226):
            cv2.circle(image, (cx, 118), 15, (150, 152, 156), -1, cv2.LINE_AA)
            for k in range(5):
                a = angle + k * 2 * np.pi / 5
                end = (round(cx + 14 * np.cos(a)), round(118 + 14 * np.sin(a)))
                cv2.line(image, (cx, 118), end, (60, 62, 66), 3, cv2.LINE_AA)
        return image, mask

    def picture(self, n: int) -> npt.NDArray[np.uint8]:
        """Frame n as RGB, (288, 352, 3)."""
        t = n / RATE
        cx, cy = (float(v) for v in self.camera[n])
        drift = np.float32([[1, 0, -0.06 * cx - 7 * t], [0, 1, -0.6 * cy]])
        image = cv2.warpAffine(self.sky, drift, (W, H), borderMode=cv2.BORDER_REPLICATE)
        self._paste(image, self.far, -0.18 * cx - 20, -cy, 1)
        x = 380 - 14 * t - 0.30 * cx
        balloon = np.zeros((120, 90), np.float32)
        cv2.ellipse(balloon, (45, 46), (36, 42), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
        cv2.rectangle(balloon, (38, 100), (52, 112), 1.0, -1)
        stripes = (np.indices((120, 90))[1] - 45) / np.sqrt(
            np.abs(1 - ((np.indices((120, 90))[0] - 46) / 44) ** 2) + 0.05
        )
        cloth = mix((232, 190, 60), (60, 96, 160), np.float32(np.sin(stripes / 4) > 0))
        self._paste(image, (cloth, balloon), x, 62 - 5.5 * t - cy, 0.95)
        self._paste(image, self.wood, -0.42 * cx - 40, -cy, 1)
        self._floor(image, cx, -cy)
        self._paste(image, self.houses, -0.80 * cx - 30, -cy, 1)

        x = -330 + 165 * max(0.0, t - 0.5) - cx * 1.02  # the van overtakes the pan
        shadow = np.zeros((40, 310), np.float32)
        cv2.ellipse(shadow, (155, 18), (140, 11), 0, 0, 360, 0.62, -1)
        dark = np.zeros((40, 310, 3), np.float32) + 22
        self._paste(image, (dark, cv2.GaussianBlur(shadow, (0, 0), 5)), x - 8, HORIZON + 82 - cy, 1)
        bump = 0.8 * np.sin(17 * t) + 0.5 * np.sin(31 * t)
        self._paste(image, self._wheels(165 * t / 26), x, HORIZON - 46 - cy + bump, 1)

        phase = (t * 1.15) % 1
        bounce = 210 * phase * (1 - phase)
        disc = np.zeros((96, 96), np.float32)
        cv2.circle(disc, (48, 48), 44, 1.0, -1, cv2.LINE_AA)
        turn = cv2.getRotationMatrix2D((48, 48), -150 * t, 1)
        ball = cv2.warpAffine(self.ball, turn, (96, 96), borderMode=cv2.BORDER_REFLECT)
        yy, xx = np.mgrid[0:96, 0:96]
        ball = ball * np.float32(1.2 - np.hypot(xx - 32, yy - 30) / 96)[..., None]
        self._paste(image, (ball, disc), 620 - 96 * t + 0.25 * cx, H - 128 - bounce - cy, 0.5)

        post = np.zeros((H, 60), np.float32)
        post[:, 22:38] = 1
        metal = np.float32(60 + 70 * np.sin(np.linspace(0, np.pi, 60)))[None, :, None]
        iron = np.repeat(metal, H, 0) * np.float32([0.8, 0.9, 0.86])
        rust = fractal_noise((H, 60), 12, 4, 16)[..., None]
        post = cv2.GaussianBlur(post, (0, 0), 2.2)  # close by, out of focus
        self._paste(image, (iron * (0.6 + 0.6 * rust), post), 980 - 2.1 * cx, -cy * 1.5, 1)

        image = cv2.GaussianBlur(image, (0, 0), 0.9)
        image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        yy, xx = np.mgrid[0:HEIGHT, 0:WIDTH]
        corner = np.hypot((xx - WIDTH / 2) / WIDTH, (yy - HEIGHT / 2) / HEIGHT)
        image *= np.float32(1.05 - 0.42 * corner**2)[..., None]
        grain = self.noise.normal(0, 1, image.shape).astype(np.float32)
        grain = 0.75 * cv2.GaussianBlur(grain, (3, 3), 0.55) + 0.35 * grain.mean(2, keepdims=True)
        image += grain * (1.5 + 0.16 * np.sqrt(np.maximum(image, 0)))  # more light, more noise
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def sound() -> npt.NDArray[np.float32]:
    """Chords, wind and a passing engine: (2, samples), -1 to 1."""
    rng = np.random.default_rng(17)
    count = SAMPLE_RATE * SECONDS
    t = np.arange(count) / SAMPLE_RATE
    left, right = np.zeros(count), np.zeros(count)
    chords = [(57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 60, 64), (55, 59, 62, 67)]
    for i in range(8):
        start, length = i * 1.25, 1.9
        inside = (t >= start) & (t < start + length)
        local = t[inside] - start
        envelope = np.minimum(local / 0.02, 1) * np.exp(-1.9 * local)
        for k, note in enumerate(chords[i % 4]):
            frequency = 440 * 2 ** ((note - 69) / 12)
            tone = sum(
                np.sin(2 * np.pi * frequency * h * local) / h**1.7 * np.exp(-0.6 * h * local)
                for h in range(1, 6)
            )
            left[inside] += 0.10 * (1.3 - 0.2 * k) * envelope * tone
            right[inside] += 0.10 * (0.7 + 0.2 * k) * envelope * tone
    spectrum = np.fft.rfft(rng.normal(size=(2, count)))
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    wind = np.fft.irfft(spectrum / (1 + (frequency / 260) ** 2), count)
    wind /= np.abs(wind).max()
    gust = 0.10 * (1.2 + np.sin(1.3 * t) + 0.5 * np.sin(2.9 * t + 1))
    motor = np.fft.irfft(spectrum / (1 + (frequency / 120) ** 2), count)[0]
    motor = motor / np.abs(motor).max() + 0.5 * np.sin(2 * np.pi * 62 * t) * np.sin(
        2 * np.pi * 31 * t
    )
    place = np.clip((t - 2.2) / 2.6, 0, 1)  # from the left to the right
    loud = 0.22 * np.exp(-(((t - 3.6) / 1.5) ** 2))
    both = np.stack([left, right]) + wind * gust
    both += motor * loud * np.stack([np.cos(place * np.pi / 2), np.sin(place * np.pi / 2)])
    fade = np.minimum(1, np.minimum(t / 0.05, (SECONDS - t) / 0.3))
    return np.clip(both * fade * 0.85, -1, 1).astype(np.float32)


def write(path: str, crf: int) -> None:
    """Draw all frames and write them with the sound as H.264 and AAC."""
    scene = Scene()
    with av.open(path, "w", options={"movflags": "+faststart"}) as output:
        output.metadata["title"] = "vcfilter demo"
        output.metadata["comment"] = "synthesised; free of any rights"
        video = cast(VideoStream, output.add_stream("libx264", rate=Fraction(RATE)))
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"crf": str(crf), "preset": "veryslow"}
        context = video.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1
        audio = cast(AudioStream, output.add_stream("aac", rate=SAMPLE_RATE, layout="stereo"))
        audio.bit_rate = 96_000
        samples = sound()
        size = SAMPLE_RATE // RATE
        for n in range(RATE * SECONDS):
            picture = VideoFrame.from_ndarray(scene.picture(n), "rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709
            )
            picture.pts, picture.time_base = n, Fraction(1, RATE)
            output.mux(video.encode(picture))
            block = np.ascontiguousarray(samples[:, n * size : (n + 1) * size])
            heard = AudioFrame.from_ndarray(block, "fltp", "stereo")
            heard.sample_rate, heard.pts = SAMPLE_RATE, n * size
            heard.time_base = Fraction(1, SAMPLE_RATE)
            output.mux(audio.encode(heard))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", help="MP4 file to write")
    parser.add_argument("--crf", type=int, default=20, help="quality of the H.264 (%(default)s)")
    args = parser.parse_args()
    write(args.target, args.crf)


if __name__ == "__main__":
    main()
