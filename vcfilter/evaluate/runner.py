"""Encodes clips with every codec, counts real bytes, compares decoded planes, keeps results."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import av.error

from vcfilter.errors import ConfigError, MediaError
from vcfilter.evaluate.anchors import Anchor, encode
from vcfilter.evaluate.clips import Clip, cache_folder, frames_of, planes_of, write_atomically
from vcfilter.frames import Frame
from vcfilter.metrics import frame_psnr, ms_ssim
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime

RESULT_VERSION = 1
"""Part of every cache key: raised when the way of measuring changes."""

HELD_BYTES = 1 << 30
"""Decoded clips up to this size are kept while decoding is timed; larger are decoded twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neural:
    """vcfilter itself as a codec under test.

    Args:
        preset: one of vcfilter's presets.
        extra: further settings of its encoder, (name, value) each.
        qps: one point each: quantiser parameters, or constant rate factors where rate is "crf".
        model: name, id or path of a model; None takes the default one.
        device: a PyTorch device name or "auto".
    """

    preset: str
    qps: tuple[int, ...]
    extra: tuple[tuple[str, str], ...] = ()
    model: str | None = None
    device: str = "auto"
    rate: str = "qp"

    @property
    def label(self) -> str:
        """What reports call it: "vcfilter medium"."""
        rate = [self.rate] if self.rate != "qp" else []
        name = " ".join(["vcfilter", self.preset, *rate, *(f"{k}={v}" for k, v in self.extra)])
        return f"{name} {Path(self.model).stem}" if self.model else name


def neural(
    text: str, qps: tuple[int, ...], model: str | None = None, device: str = "auto"
) -> Neural:
    """vcfilter from PRESET[:NAME=VALUE...]; crf=20/26/32/38 sets its points, instead of qps.

    Raises:
        ConfigError: a preset, a setting or a value is not vcfilter's.
    """
    preset, *parts = text.split(":")
    extra, rate = [], "qp"
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{part!r} in {text!r} is not NAME=VALUE")
        if name == "crf":
            rate, points = name, value.split("/")
            qps = tuple(EncoderOptions.from_mapping({name: each}).crf or 0 for each in points)
        else:
            extra.append((name, value))
    EncoderOptions.from_mapping({"preset": preset, **dict(extra)})
    return Neural(preset=preset, qps=qps, extra=tuple(extra), model=model, device=device, rate=rate)


Codec = Neural | Anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One codec at one setting on one clip, measured.

    Args:
        setting: crf or qp.
        bytes: sum of the video stream's packets, demuxed from the real file.
        frames, keyframes: packets of the track, and how many of them carry the key flag.
        bpp: bits per luma sample.
        kbps: 1000 bit/s at the clip's frame rate.
        psnr_y, psnr_u, psnr_v: averages over frames of each frame's PSNR, in dB.
        psnr: the same of (6 Y + U + V) / 8.
        ms_ssim: average over frames of luma's MS-SSIM.
        encode_fps, decode_fps: frames per second of wall time, on the machine that first
            measured this point.
        stream: path of the coded file in the cache.
    """

    setting: float
    bytes: int
    frames: int
    keyframes: int
    bpp: float
    kbps: float
    psnr_y: float
    psnr_u: float
    psnr_v: float
    psnr: float
    ms_ssim: float
    encode_fps: float
    decode_fps: float
    stream: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """All points of one codec on one clip at one keyframe interval (0: its own default), by
    rising setting."""

    clip: str
    codec: str
    keyint: int
    points: tuple[Point, ...]


def track_packets(path: Path) -> tuple[int, int, int]:
    """(bytes, packets, key packets) of a file's first video stream, as a demuxer hands them out."""
    size = count = keys = 0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                size += packet.size
                count += 1
                keys += packet.is_keyframe
    return size, count, keys


def decoded_frames(path: Path, codec: Codec, threads: int) -> Iterator[Frame]:
    """Frames of a coded file, decoded by the decoder that belongs to the codec."""
    if isinstance(codec, Anchor):
        return (planes_of(frame) for frame in frames_of(path, threads))
    # Imported late: comparing ordinary codecs needs no networks.
    from vcfilter.stream.decoders import neural_frames

    options = DecoderOptions(strict=True, model=codec.model)
    return neural_frames(path, options, runtime=Runtime(device=codec.device, threads=threads))


def compare(clip: Clip, decoded: Iterator[Frame]) -> tuple[float, float, float, float, float]:
    """(Y, U, V, weighted PSNR, MS-SSIM), each the average over the clip's frames.

    Raises:
        MediaError: not the clip's number of frames, or other sizes.
    """
    sums = [0.0] * 5
    count = 0
    for original, frame in zip_longest(frames_of(clip.path), decoded):
        if original is None or frame is None:
            raise MediaError(f"{clip.name}: {clip.frames} frames went in, another number came out")
        source = planes_of(original)
        psnr = frame_psnr(source, frame, clip.bit_depth)
        values = (psnr.y, psnr.u, psnr.v, psnr.weighted, ms_ssim(source.y, frame.y, clip.bit_depth))
        sums = [a + b for a, b in zip(sums, values, strict=True)]
        count += 1
    y, u, v, weighted, similarity = (value / count for value in sums)
    return y, u, v, weighted, similarity


def _source_digest() -> str:
    """Sha256 over the code that decides what vcfilter's encoder writes."""
    package = Path(__file__).resolve().parent.parent
    rooms = ("bitstream", "codec", "entropy", "models", "nn", "options", "_native")
    digest = hashlib.sha256()
    for room in rooms:
        module = package / f"{room}.py"
        files = [module] if module.exists() else sorted((package / room).rglob("*"))
        content = [file for file in files if file.suffix in (".py", ".so", ".pyd")]
        assert content, f"{room} has no code"
        for file in content:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def identity(codec: Codec) -> dict[str, object]:
    """Everything about a codec, apart from its setting, that decides its result."""
    if isinstance(codec, Anchor):
        build = [".".join(map(str, v)) for v in av.library_versions.values()]
        return {"codec": codec.label, "av": av.__version__, "libraries": build}
    from vcfilter.models import store

    model = store.find(codec.model, Runtime(device="cpu")).info.id.hex()
    return {"codec": codec.label, "model": model, "source": _source_digest()}


def _encode(
    clip: Clip, codec: Codec, setting: float, keyint: int, target: Path, threads: int
) -> float:
    if isinstance(codec, Anchor):
        return encode(clip, codec, setting, keyint, target, threads)
    from vcfilter.stream.transcode import encode_file

    settings = {codec.rate: int(setting), "preset": codec.preset, "frame_rate": clip.rate}
    if keyint:
        settings["keyint"] = keyint
    if codec.model:
        settings["model"] = codec.model
    options = EncoderOptions.from_mapping(settings | dict(codec.extra))
    runtime = Runtime(device=codec.device, threads=threads)
    start = time.perf_counter()
    encode_file(clip.path, target, options, runtime=runtime, overwrite=True)
    return time.perf_counter() - start


def measure(
    clip: Clip, codec: Codec, setting: float, keyint: int, target: Path, threads: int = 1
) -> Point:
    """Encode into target, decode it, compare; nothing is taken from a cache."""
    seconds = _encode(clip, codec, setting, keyint, target, threads)
    size, packets, keyframes = track_packets(target)
    if packets != clip.frames:
        raise MediaError(f"{codec.label} wrote {packets} packets for {clip.frames} frames")
    frame_bytes = clip.width * clip.height * (3 if clip.bit_depth > 8 else 1.5)
    start = time.perf_counter()
    if frame_bytes * clip.frames <= HELD_BYTES:
        held = list(decoded_frames(target, codec, threads))
        decode_seconds = time.perf_counter() - start
        y, u, v, weighted, similarity = compare(clip, iter(held))
    else:
        for _ in decoded_frames(target, codec, threads):
            pass
        decode_seconds = time.perf_counter() - start
        y, u, v, weighted, similarity = compare(clip, decoded_frames(target, codec, threads))
    return Point(
        setting=setting,
        bytes=size,
        frames=clip.frames,
        keyframes=keyframes,
        bpp=8 * size / (clip.frames * clip.width * clip.height),
        kbps=8 * size / clip.seconds / 1000,
        psnr_y=y,
        psnr_u=u,
        psnr_v=v,
        psnr=weighted,
        ms_ssim=similarity,
        encode_fps=clip.frames / seconds,
        decode_fps=clip.frames / decode_seconds,
        stream=str(target),
    )


def cached_point(
    clip: Clip,
    codec: Codec,
    codec_identity: dict[str, object],
    setting: float,
    keyint: int,
    cache: Path,
    threads: int = 1,
) -> tuple[Point, bool]:
    """The point, and whether the cache had it.

    Args:
        codec_identity: the result of `identity(codec)`, made once per codec.
    """
    wanted: dict[str, Any] = codec_identity | {
        "version": RESULT_VERSION,
        "clip": clip.key,
        "setting": setting,
        "keyint": keyint,
        "threads": threads,
    }
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    folder = cache_folder(cache, "points")
    record, stream = folder / f"{key}.json", folder / f"{key}.mkv"
    if record.exists() and stream.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            return Point(**found["point"] | {"stream": str(stream)}), True
        except (ValueError, KeyError, TypeError):
            pass  # damaged or of another version: measured again
    partial = folder / f"{key}.{os.getpid()}.mkv"
    try:
        point = measure(clip, codec, setting, keyint, partial, threads)
        os.replace(partial, stream)
    except av.error.FFmpegError as error:
        raise MediaError(f"{codec.label} on {clip.name}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    point = Point(**asdict(point) | {"stream": str(stream)})
    write_atomically(record, json.dumps({"wanted": wanted, "point": asdict(point)}, indent=1))
    return point, False


def run_curves(
    clips: Sequence[Clip],
    codecs: Sequence[Codec],
    keyints: Sequence[int],
    cache: Path,
    threads: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Curve]:
    """All curves, clip by clip, keyint by keyint, in the order the codecs are given.

    Args:
        progress: called with one line after each point.

    Raises:
        MediaError: a codec failed.
    """
    identities = {codec.label: identity(codec) for codec in codecs}
    curves: list[Curve] = []
    for clip in clips:
        for keyint in keyints:
            for codec in codecs:
                points: list[Point] = []
                settings = codec.crf if isinstance(codec, Anchor) else codec.qps
                for setting in settings:
                    point, hit = cached_point(
                        clip, codec, identities[codec.label], setting, keyint, cache, threads
                    )
                    points.append(point)
                    progress(
                        f"{clip.name:<20} keyint {keyint:<3} {codec.label:<18} {setting:>4g} "
                        f"{point.kbps:>9.1f} kbit/s {point.psnr:>6.2f} dB"
                        f"{'  (cached)' if hit else ''}"
                    )
                curves.append(
                    Curve(
                        clip=clip.name,
                        codec=codec.label,
                        keyint=keyint,
                        points=tuple(sorted(points, key=lambda p: p.setting)),
                    )
                )
    return curves
