"""Arguments that several commands share, and the options that they make."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from fractions import Fraction
from typing import TYPE_CHECKING

from vcfilter.errors import ConfigError
from vcfilter.frames import QP_MAX
from vcfilter.interpolation.options import InterpolationOptions
from vcfilter.options import (
    DEFAULT_PRESET,
    LOOKS,
    PRESETS,
    TUNES,
    DecoderOptions,
    EncoderOptions,
    Limits,
    Runtime,
    bitrate,
)

if TYPE_CHECKING:
    from vcfilter.stream.encoders import MediaCodec
    from vcfilter.stream.thinning import Thinning

_DEPTHS = {"yuv420p": 8, "yuv420p10le": 10}
_NUMBER = re.compile(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}")
_UNIT = re.compile(rf"(?P<number>{_NUMBER.pattern})(?P<unit>s|ms|us)")
_UNITS = {"s": Fraction(1), "ms": Fraction(1, 1000), "us": Fraction(1, 1_000_000)}


def seconds(text: str) -> Fraction:
    """Seconds of "90", "1:30", "0:01:30.5", "90s", "500ms" or "20us".

    Raises:
        argparse.ArgumentTypeError: the text is no time.
    """
    found = _UNIT.fullmatch(text)
    if found is not None:
        return Fraction(found["number"]) * _UNITS[found["unit"]]
    parts = text.split(":")
    if len(parts) > 3 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 90 or 1:30.5")
    total = Fraction(0)
    for part in parts:
        total = total * 60 + Fraction(part)
    return total


def add_files(parser: argparse.ArgumentParser, source: str) -> None:
    """SOURCE... and TARGET."""
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+",
        help=f'{source}; "-" is standard input; several, or those of a folder, go into a folder',
    )  # fmt: skip
    parser.add_argument(
        "target", metavar="TARGET", help='file or folder to write; "-" is standard output'
    )


def add_part(group: argparse._ActionsContainer) -> None:
    """-ss, -t and -to."""
    group.add_argument("-ss", type=seconds, metavar="TIME", help="start there: 90, 1:30, 0:01:30.5")
    end = group.add_mutually_exclusive_group()
    end.add_argument("-t", type=seconds, metavar="TIME", help="duration of the part")
    end.add_argument("-to", type=seconds, metavar="TIME", help="end there")


def duration(args: argparse.Namespace) -> Fraction | None:
    """The duration that -t, or -ss and -to, ask for; None is all.

    Raises:
        ConfigError: the end is not after the start.
    """
    if args.to is None:
        return args.t  # type: ignore[no-any-return]
    start = args.ss or Fraction(0)
    if args.to <= start:
        raise ConfigError(f"-to {float(args.to):g} s is not after the start {float(start):g} s")
    return Fraction(args.to - start)


def add_streams(parser: argparse.ArgumentParser) -> None:
    """What is coded: -ss, -t, -to and -map."""
    group = parser.add_argument_group("what is coded")
    add_part(group)
    add_map(group)


def add_map(group: argparse._ActionsContainer) -> None:
    """-map."""
    group.add_argument(
        "-map", action="append", metavar="STREAMS", dest="streams",
        help="only these streams: v, a, s, t, d (video, audio, subtitles, attachments, data), a:1, "
        "0:2; -s: all but these; may be repeated (all)",
    )  # fmt: skip


_SETTINGS = (
    (
        "crf",
        ("--crf",),
        "N",
        f"constant rate factor, 0 (finest) to {QP_MAX}: the qp of usual motion, coarser where more "
        "moves, finer where less (32)",
    ),
    (
        "qp",
        ("--qp",),
        "N",
        f"the same quantiser parameter everywhere, 0 (finest) to {QP_MAX}; 6 more double the step",
    ),
    ("quality", ("--quality",), "DB", "constant quality: mean PSNR of each segment, 20 to 60 dB"),
    ("bitrate", ("--bitrate",), "RATE", "bit/s on average: 800k, 1.5M"),
    (
        "maxrate",
        ("--maxrate",),
        "RATE",
        "rate at which a receiver's buffer fills, bit/s; with --bufsize",
    ),
    ("bufsize", ("--bufsize",), "SIZE", "size of that buffer in bits: 2M; with --maxrate"),
    ("keyint", ("--keyint", "-g"), "N", "largest distance between keyframes, in frames (250)"),
    (
        "min_keyint",
        ("--min-keyint",),
        "N",
        "smallest distance at which a scene cut makes a keyframe (1)",
    ),
    (
        "structure",
        ("--structure",),
        "NAME",
        "random-access, low-delay (each frame's packet at once) or intra (keyframes alone) "
        "(random-access)",
    ),
    (
        "bframes",
        ("--bframes",),
        "N",
        "B-frames between two anchors: 0, 1, 3, 7, 15 or 31, as far as --keyint has room (chosen "
        "by content)",
    ),
    (
        "ltr",
        ("--ltr",),
        "N",
        "low delay: every Nth frame is coded from the last such one alone, so that losses end (0)",
    ),
    (
        "layers",
        ("--layers",),
        "N",
        "quality levels of each frame, 1 to 8; --qp and rates are those of the best one (1)",
    ),
    ("layer_step", ("--layer-step",), "N", "distance of quality levels in qps, 2 to 12 (6)"),
    (
        "preset",
        ("--preset",),
        "NAME",
        f"{', '.join(PRESETS)}: how much the encoder tries ({DEFAULT_PRESET})",
    ),
    ("tune", ("--tune",), "NAME", f"{' or '.join(TUNES)} (low-delay)"),
)
"""Settings that take a text, as EncoderOptions.from_mapping reads it: name, options, what follows,
help."""

_SWITCHES = (
    ("scenecut", "--no-scenecut", "no keyframes at scene changes"),
    ("temporal_filter", "--no-temporal-filter", "no temporal filter of what is inherited most"),
    ("open_gop", "--no-open-gop", "no references to the keyframe after a GOP"),
)
"""Settings that an option turns off."""


def add_rate(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Rate, structure and speed of neural coding; `encoder_options` reads them."""
    group = parser.add_argument_group("rate, structure and speed (neural coding)")
    for name, flags, metavar, text in _SETTINGS:
        group.add_argument(*flags, dest=name, metavar=metavar, help=text)
    for name, flag, text in _SWITCHES:
        group.add_argument(flag, dest=name, action="store_const", const="no", help=text)
    group.add_argument(
        "--two-pass", action="store_true", help="code twice, to meet --bitrate; needs a file"
    )
    return group


def add_parallel(group: argparse._ActionsContainer) -> None:
    """--workers and --cluster: GOPs that are coded beside each other."""
    group.add_argument(
        "--workers", type=_workers, metavar="N",
        help="code N GOPs beside each other, in processes of one thread each; auto: as many as "
        "there are cores and memory for (--crf or --qp; the bytes do not depend on N)",
    )  # fmt: skip
    group.add_argument(
        "--cluster", metavar="ADDRESS",
        help="code GOPs on the workers of the Dask scheduler there, as tcp://host:8786 (--crf or "
        "--qp; only in a network you trust)",
    )  # fmt: skip


def _workers(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, and not auto") from None


def encoder_options(args: argparse.Namespace) -> EncoderOptions:
    """Options of the neural encoder.

    Raises:
        ConfigError: a value is not what it must be.
    """
    settings = _settings_of(args)
    if args.model is not None:
        settings["model"] = args.model
    return EncoderOptions.from_mapping(settings)


def is_rate_given(args: argparse.Namespace, but: Collection[str] = ("layers",)) -> bool:
    """Whether any option of `add_rate` is given, but for some; --crf is as well that of -c:v."""
    if getattr(args, "codec", None) not in (None, "vcfilter"):
        but = (*but, "crf")
    return any(name not in but for name in _settings_of(args)) or args.two_pass


def _settings_of(args: argparse.Namespace) -> dict[str, str]:
    names = [each[0] for each in (*_SETTINGS, *_SWITCHES)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def add_image_rate(group: argparse._ActionsContainer) -> None:
    """--rate of image files."""
    group.add_argument(
        "--rate",
        type=frame_rate,
        metavar="RATE",
        help="frames per second of image files as source (25)",
    )


def add_codec(parser: argparse.ArgumentParser, *, crf: bool = True) -> None:
    """Encoders of FFmpeg's; `media_codec` reads them.

    Args:
        crf: False where `add_rate` has --crf already.
    """
    group = parser.add_argument_group("coding with another encoder")
    group.add_argument(
        "-c:v", dest="codec", metavar="NAME", help="encoder: libx264, libx265, ffv1, ..."
    )
    if crf:
        group.add_argument("--crf", metavar="N", help="constant quality of -c:v")
    group.add_argument(
        "--pix-fmt", metavar="NAME",
        help="pixel format for -c:v: yuv420p, yuv444p, ..."
        + ("" if crf else "; coded neurally: " + " or ".join(_DEPTHS)),
    )  # fmt: skip
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", type=_setting,
        help="an option of the encoder -c:v; may be repeated",
    )  # fmt: skip


def media_codec(args: argparse.Namespace) -> MediaCodec | None:
    """The encoder that -c:v names; None leaves it to the container.

    Raises:
        ConfigError: it is unknown, or its options are given without it.
    """
    from vcfilter.stream.encoders import MediaCodec

    if args.codec is None:
        if args.crf is not None or args.pix_fmt or args.set:
            raise ConfigError("--crf, --pix-fmt and --set need an encoder: give -c:v too")
        return None
    try:
        crf = None if args.crf is None else float(args.crf)
    except ValueError:
        raise ConfigError(f"--crf {args.crf!r} is not a number") from None
    return MediaCodec.named(args.codec, crf, args.pix_fmt, dict(args.set))


def add_filter(parser: argparse.ArgumentParser) -> None:
    """-vf: FFmpeg's filters between source and coder."""
    parser.add_argument(
        "-vf", "-filter:v", dest="video_filter", metavar="FILTERS",
        help="FFmpeg's filters for the video: scale=640:-2, crop=..., fps=25, yadif, ...",
    )  # fmt: skip


def add_depth(parser: argparse.ArgumentParser) -> None:
    """--pix-fmt of neural coding, which is 4:2:0; `bit_depth` reads it."""
    parser.add_argument(
        "--pix-fmt", choices=list(_DEPTHS), metavar="NAME",
        help="yuv420p (8 bit) or yuv420p10le (10 bit) (as the source)",
    )  # fmt: skip


def bit_depth(args: argparse.Namespace) -> int | None:
    """Bits per sample that are coded; None: as the source has them.

    Raises:
        ConfigError: --pix-fmt is none that is coded neurally.
    """
    if args.pix_fmt is None:
        return None
    if args.pix_fmt not in _DEPTHS:
        raise ConfigError(
            f"--pix-fmt {args.pix_fmt} is not coded neurally: {' or '.join(_DEPTHS)} is"
        )
    return _DEPTHS[args.pix_fmt]


def add_output(parser: argparse.ArgumentParser) -> None:
    """The target's container, and whether it may be replaced."""
    group = parser.add_argument_group("output")
    add_container(group)
    group.add_argument(
        "-metadata", action="append", default=[], metavar="KEY=VALUE", type=_setting,
        help="a tag of the file: title=Harbour; KEY= removes one; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--progress", choices=("auto", "json"), default="auto",
        help="json: progress, warnings and errors as one JSON object a line (%(default)s)",
    )  # fmt: skip


def add_container(group: argparse._ActionsContainer) -> None:
    """-f, -y and -n."""
    group.add_argument(
        "-f",
        dest="format",
        metavar="NAME",
        help="container, instead of the one of TARGET's extension: matroska, nut, ...",
    )
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("-y", dest="overwrite", action="store_true", help="replace the target")
    choice.add_argument("-n", action="store_true", help="never replace the target (default)")


def add_thinning(parser: argparse.ArgumentParser) -> None:
    """What stays of a neural stream; `thinning` reads it."""
    group = parser.add_argument_group("what stays of the video")
    group.add_argument("--layers", type=_whole, metavar="N", help="the N lowest quality levels")
    group.add_argument(
        "--bitrate", type=_amount, metavar="RATE",
        help="as many quality levels as fit this rate, chosen for each GOP: 400k",
    )  # fmt: skip
    group.add_argument(
        "--temporal", type=_whole, metavar="N",
        help="frames of the N lowest temporal layers, 1: keyframes alone",
    )  # fmt: skip


def thinning(args: argparse.Namespace) -> Thinning:
    """What stays of a neural stream.

    Raises:
        ConfigError: nothing is asked for, or a value is out of range.
    """
    from vcfilter.stream.thinning import Thinning

    return Thinning(levels=args.layers, bitrate=args.bitrate, temporal=args.temporal)


def add_smooth(parser: argparse.ArgumentParser) -> None:
    """Add --fps of commands that decode."""
    parser.add_argument(
        "--fps", type=frame_rate, metavar="RATE",
        help="show so many frames per second: new ones between those of the file, made with the "
        "motion that they were coded with (50, 60000/1001)",
    )  # fmt: skip


def smooth(args: argparse.Namespace) -> InterpolationOptions | None:
    """What --fps asks for."""
    if args.fps is None:
        return None
    return InterpolationOptions(fps=args.fps, preset="fast", coded_motion=True)


def frame_rate(text: str) -> Fraction:
    """Frames per second: a number or a ratio above 0."""
    if not re.fullmatch(r"\d{1,9}(\.\d{0,9})?|\d{1,9}/0*[1-9]\d{0,8}", text) or not Fraction(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no frame rate like 60 or 60000/1001")
    return Fraction(text)


def add_levels(group: argparse._ActionsContainer) -> None:
    """--layers of a command that decodes."""
    group.add_argument(
        "--layers", "--levels", type=_whole, dest="levels", metavar="N",
        help="decode the N lowest quality levels only (all that are there)",
    )  # fmt: skip


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """-q and -v."""
    parser.add_argument("-q", "--quiet", action="store_true", help="show errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="show details as well")


def add_model(group: argparse._ActionsContainer) -> None:
    """--threads, --device and --model."""
    group.add_argument(
        "--threads", type=_whole, default=0, metavar="N",
        help="CPU threads of the networks; 0: PyTorch's choice (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--device", default="auto",
        help="PyTorch device: cpu, cuda; auto: a GPU where there is one (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--model", metavar="NAME", help="a model's name, id or file (vcfilter models lists them)"
    )


def add_look(parser: argparse._ActionsContainer) -> None:
    """--look of a command that shows frames."""
    parser.add_argument(
        "--look",
        choices=LOOKS,
        default=LOOKS[0],
        help="frames as they are, or with lost detail made up for the eye (%(default)s)",
    )


def add_decoder(parser: argparse.ArgumentParser) -> None:
    """The model, where it runs, and what damage means."""
    group = parser.add_argument_group("model")
    add_model(group)
    group.add_argument(
        "--strict",
        action="store_true",
        help="end with an error at a damaged packet; otherwise it is left out",
    )
    add_limits(parser)


MEMORY_MAX = 4 << 30
"""What frames held for reference may take where others decide what is decoded (serve, worker):
enough for the largest size of the format with the shipped model, which takes 2.1 GB."""


def add_limits(
    parser: argparse.ArgumentParser,
    *,
    frames: int | None = None,
    seconds: float | None = None,
    memory: int | None = None,
) -> None:
    """--max-pixels, --max-frames, --max-seconds and --max-memory, with a command's defaults."""
    group = parser.add_argument_group("limits of decoding, per neural stream")
    group.add_argument(
        "--max-pixels", type=_amount, metavar="N", help="luma samples of a frame (no limit)"
    )
    for name, kind, default, metavar, text in (
        ("frames", _amount, frames, "N", "frames in all"),
        ("seconds", _positive, seconds, "S", "CPU seconds in all"),
        ("memory", _amount, memory, "BYTES", "bytes of frames held for reference: 512M, 4G"),
    ):
        text += " (no limit)" if default is None else f" ({default:.0f})"
        group.add_argument(f"--max-{name}", type=kind, default=default, metavar=metavar, help=text)


def limits(args: argparse.Namespace) -> Limits:
    """What decoding may cost; of a command without `add_limits` nothing is limited."""
    names = ("pixels", "frames", "seconds", "memory")
    return Limits(**{name: getattr(args, f"max_{name}", None) for name in names})


def runtime(args: argparse.Namespace) -> Runtime:
    """Where and how the networks run.

    Raises:
        ConfigError: the number of threads is negative.
    """
    return Runtime(device=args.device, threads=args.threads)


def decoder_options(args: argparse.Namespace) -> DecoderOptions:
    """How neural streams are decoded.

    Raises:
        ConfigError: a value is out of range.
    """
    return DecoderOptions(
        strict=getattr(args, "strict", False),
        model=args.model,
        levels=getattr(args, "levels", None),
        look=getattr(args, "look", LOOKS[0]),
        limits=limits(args),
    )


def whole_number(name: str, text: str | None) -> int | None:
    """The number that a setting's text stands for; None where it is not given.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is not a whole number") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _amount(text: str) -> int:
    """A count or a size of "800000", "512M" or "4G"; M and G are decimal."""
    try:
        return bitrate(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number like 800000, 512M or 4G") from None


def _positive(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds like 90 or 1.5")
    return float(text)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
