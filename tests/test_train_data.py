"""Training material: what is found in folders, how it is cut into shots, how crops are drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clips import make_film, picture

from vcfilter.errors import ConfigError, MediaError
from vcfilter.train import material
from vcfilter.train.data import Augment, Bank, Clip, Samples, crop_side, stills_of


def write_frames(folder: Path, names: list[str], *, width: int = 64, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rgb = picture(first + number, width, 48)
        assert cv2.imwrite(str(folder / name), np.ascontiguousarray(rgb[..., ::-1]))


def gather(folder: Path, cache: Path) -> tuple[list[Clip], list[str]]:
    said: list[str] = []
    return material.gather([str(folder)], cache, said.append), said


def test_vimeo_septuplets(tmp_path: Path) -> None:
    """sequences/NNNNN/NNNN/im1.png ... im7.png: one shot each, only those of the training list."""
    data = tmp_path / "vimeo_septuplet"
    for number in range(1, 5):
        names = [f"im{k}.png" for k in range(1, 8)]
        write_frames(data / "sequences" / "00001" / f"{number:04d}", names, first=30 * number)
    (data / "sep_trainlist.txt").write_text("00001/0001\n00001/0002\n00001/0004\n")
    (clip,), said = gather(data, tmp_path / "cache")
    assert clip.frames.shape == (21, 72, 64) and clip.shots == [0, 7, 14]
    assert len(said) == 1
    again, said = gather(data, tmp_path / "cache")
    assert torch.equal(again[0].frames, clip.frames) and not said
    assert again[0].key == clip.key


def test_reds(tmp_path: Path) -> None:
    """train_sharp/NNN/NNNNNNNN.png; the blurred and shrunk copies beside it are left out."""
    for name in ("train_sharp", "train_blur", "train_sharp_bicubic", "train_blur_bicubic"):
        for number in range(2):
            names = [f"{k:08d}.png" for k in range(12)]
            write_frames(tmp_path / "data" / name / f"{number:03d}", names, first=500 * number)
    (clip,), _ = gather(tmp_path / "data", tmp_path / "cache")
    assert clip.shots == [0, 12] and len(clip.frames) == 24


def test_frames_are_in_numeric_order_and_bt709(tmp_path: Path) -> None:
    names = [f"im{k}.png" for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    write_frames(tmp_path / "data", names)
    (clip,), _ = gather(tmp_path / "data", tmp_path / "cache")
    for number in range(11):
        r, g, b = np.moveaxis(picture(number, 64, 48).astype(np.float64), -1, 0)
        luma = 16 + 219 / 255 * (0.2126 * r + 0.7152 * g + 0.0722 * b)
        assert np.abs(clip.frames[number, :48].numpy() - luma).mean() < 1.0, number


def test_jpeg_photographs_are_stills(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", 64), ("b", 64), ("c", 96)):
        noise = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
        big = cv2.resize(noise, (size, 48), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{name}.jpg"), big)
    clips, _ = gather(folder, tmp_path / "cache")
    assert sorted((c.columns, c.shots) for c in clips) == [(64, [0, 1]), (96, [0])]
    assert stills_of(clips) == clips


def scene(seed: int, columns: int) -> np.ndarray:
    """(72, columns) a frame of large blocks, Y above U and V."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, columns // 2 + 1), np.uint8)
    return np.kron(blocks, np.ones((8, 2), np.uint8))[:, :columns].copy()


def test_a_change_of_brightness_starts_no_shot(tmp_path: Path) -> None:
    writer = material.ShardWriter((tmp_path / "x").open("wb"), 48, 64)
    for number in range(8):
        writer.add(scene(1, 64) // 2 + (0 if number < 4 else 90), key=False, first=False)
    writer.file.close()
    assert writer.all_shots(0) == [0]


def test_a_cut_starts_a_shot_and_odd_sizes_are_cut(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with_cut = make_film(data / "a.mkv", frames=16, width=67, height=49)
    frames = material.video_frames(with_cut)
    planes, key, first = next(frames)
    assert planes.shape == (72, 66) and key and first
    one, other = scene(1, 66), scene(2, 66)
    writer = material.ShardWriter((tmp_path / "x").open("wb"), 48, 66)
    for number in range(8):
        writer.add(one if number < 5 else other, key=False, first=False)
    writer.file.close()
    assert writer.all_shots(0) == [0, 5]


def test_packed_shards(tmp_path: Path) -> None:
    """By their index; without one, by keyframes that lie evenly and are cuts."""
    data = tmp_path / "data"
    data.mkdir()
    make_film(data / "shard.mkv", frames=20, width=64, height=48)
    (clip,), _ = gather(data, tmp_path / "cache")
    assert clip.shots == [0], "an intra codec's frames are all keyframes, yet one shot"
    rows = ["shard\tclip\tsource", *(f"shard\t{k}\tsomewhere" for k in range(4))]
    (data / "index.tsv").write_text("\n".join(rows) + "\n")
    (clip,), _ = gather(data, tmp_path / "cache")
    assert clip.shots == [0, 5, 10, 15]
    writer = material.ShardWriter((tmp_path / "x").open("wb"), 48, 64)
    for number in range(12):  # the second clip begins much like the first
        frame = scene(1 if number < 8 else 2, 64)
        writer.add(frame, key=number % 4 == 0, first=False)
    writer.file.close()
    assert writer.all_shots(0) == [0, 4, 8]


def test_what_cannot_be_read_is_left_out_aloud(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(MediaError, match="nothing in"):
        gather(data, tmp_path / "cache")
    make_film(data / "good.mkv", frames=3)
    clips, said = gather(data, tmp_path / "cache")
    assert len(clips) == 1 and any("left out" in s and "broken.mp4" in s for s in said)
    assert not any("Errno" in s for s in said)
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_material_is_one_sentence(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    with pytest.raises(MediaError, match="no video files" if make else "not a folder"):
        gather(folder, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    make_film(data / "a.mkv", frames=3)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MediaError, match="cache"):
        gather(data, tmp_path / "cache")


def ramp(count: int = 12, rows: int = 128, columns: int = 160, shots: list[int] | None = None):
    """A clip whose luma tells frame, row and column; chroma likewise."""
    y = np.add.outer(np.arange(rows), np.arange(columns)) // 2 + 16
    c = np.add.outer(np.arange(rows // 2), np.arange(columns // 2)) + 16
    frames = []
    for number in range(count):
        chroma = np.concatenate([(c + number).reshape(-1), (c + 2 * number).reshape(-1)])
        frames.append(np.concatenate([(y + number).reshape(-1), chroma]))
    stored = np.stack(frames).astype(np.uint8).reshape(count, rows * 3 // 2, columns)
    return Clip(stored, shots or [0])


def test_a_crop_is_what_was_stored() -> None:
    luma, chroma = ramp().crop([3, 5], top=4, left=10, size=32)
    assert luma.shape == (2, 1, 32, 32) and chroma.shape == (2, 2, 16, 16)
    assert int(luma[1, 0, 2, 6]) == (6 + 16) // 2 + 16 + 5
    assert int(chroma[1, 0, 2, 6]) == 4 + 11 + 16 + 5
    assert int(chroma[1, 1, 2, 6]) == 4 + 11 + 16 + 10


def test_draws_stay_within_shots_and_repeat() -> None:
    clip = ramp(shots=[0, 5])
    one, two = Samples([clip], 64, 3), Samples([clip], 64, 3)
    for _ in range(20):
        a, b = one.draw([0, 2, 4], 4), two.draw([0, 2, 4], 4)
        pairs = ((p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True))
        assert all(torch.equal(p, q) for p, q in pairs)
        steps = (a[1][0] - a[0][0]).flatten(1)
        assert all(set(s.unique().tolist()) in ({2.0}, {-2.0}) for s in steps)
    with pytest.raises(ConfigError, match="no shot has more than 7 frames"):
        one.draw([0, 7], 1)


def test_parts_of_a_batch_are_the_batch() -> None:
    clip, augment = ramp(), Augment(strides=((1, 0.5), (2, 0.5)), brightness=0.5)
    whole, *parts = (Samples([clip], 64, 3, augment) for _ in range(3))
    for _ in range(5):
        every = whole.draw([0, 2], 4)
        halves = [s.draw([0, 2], 4, own=slice(k, None, 2)) for k, s in enumerate(parts)]
        for frame in range(2):
            for plane in range(3):
                for k in range(2):
                    assert torch.equal(every[frame][plane][k::2], halves[k][frame][plane])


def test_temporal_stride() -> None:
    samples = Samples([ramp()], 64, 3, Augment(strides=((3, 1.0),)))
    a = samples.draw([0, 2], 4)
    assert set((a[1][0] - a[0][0]).unique().tolist()) <= {6.0, -6.0}
    far = samples.draw([0, 8], 2)  # three times that is more than there is: as it is
    assert set((far[1][0] - far[0][0]).unique().tolist()) <= {8.0, -8.0}


def test_scale_shrinks_and_brightness_keeps_the_range() -> None:
    """On a ramp, half the size means twice the slope."""
    samples = Samples([ramp()], 64, 3, Augment(scales=((2.0, 1.0),)))
    y, u, _ = samples.draw([0], 6)[0]
    assert y.shape == (6, 1, 64, 64) and u.shape == (6, 1, 32, 32)
    slopes = (y[:, 0, 20, 50] - y[:, 0, 20, 10]).abs()
    assert torch.allclose(slopes, torch.full((6,), 40.0), atol=1.5)
    assert torch.equal(y, torch.floor(y))
    bright = Samples([ramp()], 64, 3, Augment(brightness=1.0)).draw([0], 16)[0]
    plain = Samples([ramp()], 64, 3).draw([0], 16)[0]
    assert bright[0].std((1, 2, 3)).std() > plain[0].std((1, 2, 3)).std() + 0.5
    assert all(float(p.min()) >= 0 and float(p.max()) <= 255 for p in bright)


@pytest.mark.parametrize(
    "values",
    [{"strides": ((1, 0.5),)}, {"scales": ((1.3, 1.0),)}, {"brightness": 2.0}],
)
def test_augment_checks_itself(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Augment(**values)


def test_the_side_of_crops() -> None:
    assert crop_side([ramp()], 192) == 128
    assert crop_side([ramp()], 64) == 64
    assert crop_side([ramp(count=2, rows=34, columns=40), ramp(count=9)], 192) == 128
    with pytest.raises(ConfigError, match="smaller than 32x32"):
        crop_side([ramp(rows=30, columns=40)], 192)


def test_a_bank_gives_the_same_crops() -> None:
    random = np.random.default_rng(3)
    sizes = ((96, 64), (66, 130), (72, 72))
    clips = [
        Clip(random.integers(0, 256, (9, rows * 3 // 2, columns), np.uint8), [0])
        for rows, columns in sizes
    ]
    augment = Augment(brightness=0.5)
    bank = Bank(clips, torch.device("cpu"))
    one, other = (Samples(clips, 64, 5, augment, bank=b) for b in (None, bank))
    for offsets in ([0], [0, 3, 5]):
        for mine, same in zip(one.draw(offsets, 16), other.draw(offsets, 16), strict=True):
            assert [p.shape for p in mine] == [p.shape for p in same]
            assert all(torch.equal(a, b) for a, b in zip(mine, same, strict=True))
