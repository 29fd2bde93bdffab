"""Training crops: drawn on the host, cut, turned, scaled and brightened where the clips lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vcfilter.errors import ConfigError

Planes = tuple[Tensor, Tensor, Tensor]
Frames = npt.NDArray[np.uint8]
ALIGNMENT = 32  # crops' sides are multiples of it
BLACK, GREY = 16.0, 128.0  # of luma in limited range, of chroma


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How crops differ from what was recorded, besides flips, turns and reversal.

    Args:
        strides: (temporal stride, probability), one drawn per batch.
        scales: (factor by which a larger crop is shrunk, probability), one drawn per clip; a
            multiple of 1/4, at least 1.
        brightness: probability that contrast (0.8 to 1.2) and brightness (16 up or down) change.

    Raises:
        ConfigError: probabilities do not sum to one, or a value is outside what is allowed.
    """

    strides: tuple[tuple[int, float], ...] = ((1, 1.0),)
    scales: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name, rows in (("strides", self.strides), ("scales", self.scales)):
            if abs(sum(p for _, p in rows) - 1) > 1e-9:
                raise ConfigError(f"the probabilities of {name} {rows} do not sum to 1")
            if any(v < 1 or v * 4 % 1 for v, _ in rows):
                raise ConfigError(f"{name} {rows}: a value is not a multiple of 1/4 from 1 on")
        if not 0 <= self.brightness <= 1:
            raise ConfigError(f"brightness {self.brightness} is not a probability")


def upload(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; the host does not wait for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Clip:
    """Consecutive frames of one size.

    Args:
        frames: (frames, rows * 3 / 2, columns) uint8, Y above U and V; rows and columns even.
        shots: indices of frames at which a new shot begins, 0 first.
        key: names the file, for telling one set of material from another.
    """

    def __init__(self, frames: Frames | Tensor, shots: list[int], key: str = "") -> None:
        self.frames = frames if isinstance(frames, Tensor) else torch.from_numpy(frames)
        self.shots, self.key = shots, key
        self.rows, self.columns = self.frames.shape[1] * 2 // 3, self.frames.shape[2]
        count, half = self.frames.shape[0], (self.rows // 2, self.columns // 2)
        self.luma = self.frames[:, : self.rows]
        self.chroma = self.frames[:, self.rows :].view(count, 2, *half)

    def crop(self, numbers: list[int], top: int, left: int, size: int) -> tuple[Tensor, Tensor]:
        """uint8 crops of some frames: (n, 1, size, size) luma, (n, 2, size/2, size/2) chroma.

        top, left and size are even.
        """
        t, c, half = top // 2, left // 2, size // 2
        luma = self.luma[:, top : top + size, left : left + size]
        chroma = self.chroma[:, :, t : t + half, c : c + half]
        return luma[numbers][:, None], chroma[numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One drawn crop: which frames, where, and how it is changed."""

    clip: Clip
    numbers: list[int]
    top: int
    left: int
    size: int
    flip: bool
    turn: bool
    gain: float
    lift: float

    def load(self, size: int, device: torch.device) -> Planes:
        """(n, 1, size, size) luma and two (n, 1, size/2, size/2), float, 0 to 255, integers."""
        luma, chroma = (
            p.to(device, non_blocking=True).float()
            for p in self.clip.crop(self.numbers, self.top, self.left, self.size)
        )
        if self.size != size:
            luma, chroma = shrink(luma, size), shrink(chroma, size // 2)
        if self.gain != 1 or self.lift:
            luma = (luma - BLACK) * self.gain + BLACK + self.lift
            chroma = (chroma - GREY) * self.gain + GREY
        if self.flip:
            luma, chroma = luma.flip(3), chroma.flip(3)
        if self.turn:
            luma, chroma = luma.transpose(2, 3), chroma.transpose(2, 3)
        luma, chroma = whole(luma), whole(chroma)
        return luma, chroma[:, :1], chroma[:, 1:]


class Bank:
    """Clips in a device's memory, from which all crops of a batch are gathered at once.

    Args:
        clips: copied there.
    """

    def __init__(self, clips: list[Clip], device: torch.device) -> None:
        self.device = device
        ends = np.cumsum([clip.frames.numel() for clip in clips])
        starts = [0, *ends[:-1].tolist()]
        self.starts = {id(clip): start for clip, start in zip(clips, starts, strict=True)}
        self.clips = clips  # keeps them, so that what names them stays theirs
        self.samples = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        for clip, start, end in zip(clips, starts, ends.tolist(), strict=True):
            self.samples[start:end] = clip.frames.reshape(-1)

    def load(self, picks: list[Pick], size: int) -> tuple[Tensor, Tensor]:
        """What `Pick.load` gives of each, stacked: (B, n, 1, H, W) luma, (B, n, 2, H/2, W/2)."""
        rows = [
            (self.starts[id(p.clip)], p.clip.rows, p.clip.columns, p.top, p.left, p.flip, p.turn)
            for p in picks
        ]
        table = upload(np.array(rows, np.int64), self.device)[:, :, None, None, None]
        numbers = upload(np.array([p.numbers for p in picks], np.int64), self.device)
        light = np.array([(p.gain, p.lift) for p in picks], np.float32)
        gain, lift = upload(light, self.device)[:, :, None, None, None, None].unbind(1)
        start, height, width, top, left, flip, turn = table.unbind(1)
        frame = start + numbers[:, :, None, None] * (height * width * 3 // 2)

        def places(side: int, share: int) -> Tensor:
            """(B, 1, side, side) distances from a plane's first sample."""
            at = torch.arange(side, device=self.device)
            down, across = at[:, None], at[None]
            row = torch.where(turn > 0, across, down)
            column = torch.where(turn > 0, down, across)
            column = torch.where(flip > 0, side - 1 - column, column)
            return (top // share + row) * (width // share) + left // share + column

        half = size // 2
        luma = self.samples[frame + places(size, 1)][:, :, None]
        area = height * width
        planes = [frame + area + places(half, 2) + n * (area // 4) for n in (0, 1)]
        chroma = self.samples[torch.stack(planes, 2)]
        return (
            whole((luma.float() - BLACK) * gain + BLACK + lift),
            whole((chroma.float() - GREY) * gain + GREY),
        )


def whole(planes: Tensor) -> Tensor:
    """Samples rounded and within 0 to 255."""
    return torch.floor(planes + 0.5).clamp(0, 255)


def shrink(planes: Tensor, size: int) -> Tensor:
    """Planes resampled to size x size, with the low-pass that belongs to it."""
    return F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)


class Samples:
    """Draws random crops of frames that follow each other.

    Everything is drawn from one generator on the host, for the whole batch, so that several
    processes with equal seeds draw alike and each loads its own part.

    Args:
        clips: what to draw from, each as likely as it has frames.
        size: side of the square crops, a multiple of 32.
        seed: of the random draws.
        augment: how crops are changed.
        device: where crops are delivered. bank: the clips there, if they fit.
    """

    def __init__(
        self,
        clips: list[Clip],
        size: int,
        seed: int,
        augment: Augment | None = None,
        device: torch.device | None = None,
        bank: Bank | None = None,
    ) -> None:
        self.size, self.bank = size, bank
        self.random = np.random.default_rng(seed)
        self.augment = augment or Augment()
        self.device = device or torch.device("cpu")
        self.shots: list[tuple[Clip, int, int]] = []
        for clip in clips:
            if clip.rows < size or clip.columns < size:
                continue
            ends = [*clip.shots[1:], len(clip.frames)]
            self.shots += [(clip, a, b) for a, b in zip(clip.shots, ends, strict=True)]
        if not self.shots:
            raise ConfigError(f"no clip is at least {size}x{size}")
        self._lengths = np.array([b - a for _, a, b in self.shots])

    @property
    def longest(self) -> int:
        """Frames of the longest shot."""
        return int(self._lengths.max())

    def draw(
        self, offsets: list[int], batch: int, size: int | None = None, own: slice | None = None
    ) -> list[Planes]:
        """One batch per offset: planes (batch, 1, size, size) and chroma, float, 0 to 255.

        Args:
            offsets: frame numbers within a shot, relative to a random start, 0 first.
            batch: crops drawn.
            size: side of these crops, at most the side given to the constructor (the default).
            own: which of the drawn crops to load (default: all).

        Raises:
            ConfigError: no shot is long enough.
        """
        size = size or self.size
        picks = self._picks(offsets, batch, size)[own or slice(None)]
        if self.bank and all(pick.size == size for pick in picks):
            luma, chroma = self.bank.load(picks, size)
            return [(luma[:, i], chroma[:, i, :1], chroma[:, i, 1:]) for i in range(len(offsets))]
        loaded = [pick.load(size, self.device) for pick in picks]
        stacks = [torch.stack(planes) for planes in zip(*loaded, strict=True)]  # (B, n, 1, H, W)
        return [(stacks[0][:, i], stacks[1][:, i], stacks[2][:, i]) for i in range(len(offsets))]

    def _picks(self, offsets: list[int], batch: int, size: int) -> list[Pick]:
        stride = int(self._of(self.augment.strides))
        if offsets[-1] * stride >= self.longest:
            stride = 1
        offsets = [offset * stride for offset in offsets]
        fits = np.flatnonzero(self._lengths > offsets[-1])
        if not len(fits):
            raise ConfigError(f"no shot has more than {offsets[-1]} frames")
        weights = (self._lengths[fits] - offsets[-1]).astype(np.float64)
        picks = []
        for chosen in self.random.choice(fits, batch, p=weights / weights.sum()):
            clip, first, end = self.shots[chosen]
            start = int(self.random.integers(first, end - offsets[-1]))
            taken = int(self._of(self.augment.scales) * size)
            if taken > min(clip.rows, clip.columns):
                taken = size
            top = int(self.random.integers(0, (clip.rows - taken) // 2 + 1)) * 2
            left = int(self.random.integers(0, (clip.columns - taken) // 2 + 1)) * 2
            flip, turn, back = (bool(v) for v in self.random.random(3) < 0.5)
            gain, lift = 1.0, 0.0
            if self.augment.brightness and self.random.random() < self.augment.brightness:
                gain, lift = self.random.uniform(0.8, 1.2), self.random.uniform(-16, 16)
            order = offsets[::-1] if back else offsets
            picks.append(
                Pick(
                    clip=clip,
                    numbers=[start + offset for offset in order],
                    top=top,
                    left=left,
                    size=taken,
                    flip=flip,
                    turn=turn,
                    gain=gain,
                    lift=lift,
                )
            )
        return picks

    def _of(self, rows: tuple[tuple[float, float], ...]) -> float:
        if len(rows) == 1:
            return rows[0][0]
        values, chances = zip(*rows, strict=True)
        return float(values[int(self.random.choice(len(values), p=chances))])


def crop_side(clips: list[Clip], wanted: int) -> int:
    """The side of crops: as wanted, or the largest multiple of 32 that half of all frames hold.

    Raises:
        ConfigError: the frames are too small for any crop.
    """
    sides = np.repeat([min(c.rows, c.columns) for c in clips], [len(c.frames) for c in clips])
    side = min(wanted, int(np.quantile(sides, 0.5, method="lower")) // ALIGNMENT * ALIGNMENT)
    if side < ALIGNMENT:
        raise ConfigError(f"most frames are smaller than {ALIGNMENT}x{ALIGNMENT}")
    return side


def stills_of(clips: list[Clip]) -> list[Clip]:
    """What keyframes are drawn from besides the clips: photographs if there are any."""
    return [c for c in clips if len(c.shots) == len(c.frames)] or clips
