"""The command line: what can be asked for, and how it ends.

Data go to standard output, everything else to standard error. Exit status: 0 done, 1 it failed,
2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from vcfilter.cli.arguments import add_model, add_part
from vcfilter.cli.interrupts import Interrupts
from vcfilter.cli.terminal import Terminal, report_lines, time_text
from vcfilter.errors import ConfigError, VcfilterError
from vcfilter.frames import QP_MAX
from vcfilter.options import (
    DEFAULT_PRESET,
    KEYINT_MAX,
    PRESETS,
    DecoderOptions,
    EncoderOptions,
    Runtime,
)

if TYPE_CHECKING:
    from vcfilter.stream.encoders import MediaCodec
    from vcfilter.stream.transcode import TranscodeReport

EXIT_FAILED, EXIT_USAGE, EXIT_SIGNAL = 1, 2, 128  # the signal is added

_DESCRIPTION = """\
A neural video codec that lives in FFmpeg's world: any video becomes a Matroska file whose
pictures are coded by neural networks; sound, subtitles, chapters and tags stay as they are.
"""
_EXAMPLES = """\
examples:
  vcfilter encode holiday.mp4 holiday.mkv --qp 32
  vcfilter decode holiday.mkv back.mp4
  vcfilter decode holiday.mkv - -f nut | ffplay -
  vcfilter info holiday.mkv
vcfilter COMMAND --help tells more about a command.
"""
_ENCODE_EXAMPLES = """\
One of --qp, --quality and --bitrate rules the rate; without any, --qp 32 holds.

examples:
  vcfilter encode in.mp4 out.mkv                           qp 32
  vcfilter encode in.mp4 out.mkv --quality 38              about 38 dB in every segment
  vcfilter encode in.mp4 out.mkv --bitrate 800k --two-pass
  vcfilter encode in.mp4 out.mkv -ss 1:30 -t 20 -map v -map a:0
  ffmpeg -i in.avi -f nut -c copy - | vcfilter encode - out.mkv
"""
_DECODE_EXAMPLES = """\
Without -c:v the pictures are coded with x264 at crf 18 (webm: VP9, nut: raw video, avi: MPEG-4
part 2, mpg: MPEG-2); the other streams are copied where the container can hold them. On standard
output y4m comes, pictures only; -f nut brings raw pictures together with the sound.

examples:
  vcfilter decode film.mkv film.mp4
  vcfilter decode film.mkv film.265.mkv -c:v libx265 --crf 20 --set preset=slow
  vcfilter decode film.mkv lossless.mkv -c:v ffv1
  vcfilter decode film.mkv - | x264 --demuxer y4m -o film.264 -
  vcfilter decode film.mkv - -f nut | ffplay -
"""
_TRANSCODE_EXAMPLES = """\
-c:v vcfilter codes neurally, -c:v copy copies a neural stream as it is, any other -c:v codes
ordinarily. Without -c:v a neural stream is coded where the target's container can hold one (mkv,
nut, avi, mov, vcf), and an ordinary one elsewhere.

examples:
  vcfilter transcode film.mkv smaller.mkv --qp 40          neural to neural
  vcfilter transcode film.mkv film.mp4                     as decode
  vcfilter transcode film.mp4 film.mkv                     as encode
"""
_DELEGATES = {
    "evaluate": ("vcfilter.evaluate.cli", "compare with x264, x265 and SVT-AV1: one report"),
    "train": ("vcfilter.train.cli", "train a model on a folder of videos"),
    "play": ("vcfilter.cli.play", "play a neural film in ffplay or mpv, with its sound"),
    "serve": ("vcfilter.serve", "a web page that plays neural films in any browser"),
    "demo": ("vcfilter.cli.demo", "the main job on the clip that comes with the package"),
    "worker": (
        "vcfilter.worker.server",
        "code for programs without Python (FFmpeg's plugin)",
    ),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


class _Handler(logging.Handler):
    """Prints warnings of the library through the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.warning(record.getMessage())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    with Interrupts() as interrupts:
        return _run(list(sys.argv[1:] if argv is None else argv), interrupts)


def _run(arguments: list[str], interrupts: Interrupts) -> int:
    terminal = Terminal()
    verbose = False
    try:
        parser = _parser(next((each for each in arguments if not each.startswith("-")), None))
        args = parser.parse_args(arguments)
        verbose = getattr(args, "verbose", False)
        terminal = Terminal(quiet=getattr(args, "quiet", False), verbose=verbose)
        logging.getLogger("vcfilter").handlers[:] = [_Handler(terminal)]
        if args.delegated:  # training and the worker have their own way with it
            interrupts.release(signal.SIGTERM)
        return int(args.run(args) if args.delegated else args.run(args, terminal))
    except KeyboardInterrupt as stop:
        partial = getattr(stop, "partial", None)
        kept = f"; what was done is in {partial}" if partial else ""
        terminal.error(f"stopped{kept}")
        return EXIT_SIGNAL + (interrupts.seen or signal.SIGINT)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ConfigError as error:
        terminal.error(str(error))
        return EXIT_USAGE
    except (VcfilterError, OSError) as error:
        terminal.error(str(error))
        return EXIT_FAILED
    except MemoryError:
        terminal.error("out of memory")
        return EXIT_FAILED
    except Exception as error:
        if (
            interrupts.seen
        ):  # it came while a library was loading, and was taken for a fault of that
            terminal.error("stopped")
            return EXIT_SIGNAL + interrupts.seen
        if verbose:
            raise
        text = str(error).strip().splitlines()
        terminal.error(f"{type(error).__name__}: {text[0] if text else 'no reason given'}")
        return EXIT_FAILED


# --- arguments -----------------------------------------------------------------------------------


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; of the delegated commands only the one that is asked for is imported."""
    from vcfilter import __version__

    parser = _Parser(
        prog="vcfilter",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vcfilter {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, text: str, examples: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    encode = add("encode", "code a film's pictures neurally, keep all the rest", _ENCODE_EXAMPLES)
    _add_files(encode, "any video that FFmpeg reads")
    _add_rate(encode)
    _add_part(encode)
    _add_output(encode)
    _add_model(encode, strict=True)
    encode.set_defaults(run=_encode, delegated=False)

    decode = add("decode", "turn a neural film into an ordinary one", _DECODE_EXAMPLES)
    _add_files(decode, "a neural film")
    _add_codec(decode)
    _add_part(decode)
    _add_output(decode)
    _add_model(decode, strict=True)
    decode.set_defaults(run=_decode, delegated=False)

    transcode = add("transcode", "code in any direction, also neural again", _TRANSCODE_EXAMPLES)
    _add_files(transcode, "any video, neural or not")
    _add_codec(transcode)
    _add_rate(transcode)
    _add_part(transcode)
    _add_output(transcode)
    _add_model(transcode, strict=True)
    transcode.set_defaults(run=_transcode, delegated=False)

    info = add("info", "show streams, segments, frame types and sizes; or the model")
    info.add_argument("files", nargs="*", metavar="FILE", help='a media file; "-" is stdin')
    info.add_argument("--json", action="store_true", help="as JSON")
    info.add_argument("--frames", action="store_true", help="one line per coded frame")
    info.add_argument(
        "--model", action="store_true", help="the model's card and what it costs per pixel"
    )
    info.add_argument("--weights", metavar="FILE", help="another model than the shipped one")
    info.set_defaults(run=_info, delegated=False)

    verify = add("verify", "check all packets of a neural film and decode it whole")
    verify.add_argument("files", nargs="+", metavar="FILE", help="a neural film")
    _add_model(verify, strict=True)
    _add_loudness(verify)
    verify.set_defaults(run=_verify, delegated=False)

    for name, (module, text) in _DELEGATES.items():
        delegate = add(name, text)
        if name == command:
            implementation = import_module(module)
            implementation.add_arguments(delegate)
            delegate.set_defaults(run=implementation.run, delegated=True)
    return parser


def _add_files(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("source", metavar="SOURCE", help=f'{source}; "-" is stdin')
    parser.add_argument("target", metavar="TARGET", help='file to write; "-" is stdout')


def _add_rate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rate and speed (neural coding)")
    group.add_argument(
        "--qp", type=int, metavar="N",
        help=f"quantiser parameter, 0 (finest) to {QP_MAX}; 6 more double the step (32)",
    )  # fmt: skip
    group.add_argument("--quality", type=float, metavar="DB", help="constant PSNR, 20 to 60 dB")
    group.add_argument("--bitrate", type=_bitrate, metavar="RATE", help="bit/s: 800k, 1.5M")
    group.add_argument("--two-pass", action="store_true", help="look ahead to meet --bitrate")
    group.add_argument(
        "--keyint", "-g", type=int, default=12, metavar="N",
        help=f"largest distance of keyframes in frames, 1 to {KEYINT_MAX} (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--preset", choices=list(PRESETS), default=DEFAULT_PRESET, metavar="NAME",
        help=f"{', '.join(PRESETS)}: how much the encoder tries (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--no-scenecut", action="store_true", help="no keyframe where the scene changes"
    )


def _add_codec(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ordinary coding")
    group.add_argument("-c:v", dest="codec", metavar="NAME", help="encoder: libx264, ffv1, ...")
    group.add_argument("--crf", type=float, metavar="N", help="its constant quality (x264: 18)")
    group.add_argument("--pix-fmt", metavar="NAME", help="pixel format: yuv420p, yuv444p, ...")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", type=_setting,
        help="one of the encoder's own options; may be repeated",
    )  # fmt: skip


def _add_part(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is coded")
    add_part(group)
    group.add_argument(
        "-map", action="append", metavar="STREAMS", dest="streams",
        help="only these streams: v a s t d (kinds), a:1, 0:2; may be repeated (all)",
    )  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-f", dest="format", metavar="NAME", help="container: matroska, nut, y4m")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("-y", dest="overwrite", action="store_true", help="replace the target")
    choice.add_argument("-n", action="store_true", help="never replace the target (default)")
    _add_loudness(parser)


def _add_loudness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell more")


def _add_model(parser: argparse.ArgumentParser, strict: bool) -> None:
    group = parser.add_argument_group("model")
    add_model(group)
    if strict:
        group.add_argument(
            "--strict", action="store_true", help="damage in a neural film is an error"
        )


def _bitrate(text: str) -> int:
    factor = {"k": 1000, "m": 1_000_000, "g": 1_000_000_000}.get(text[-1:].lower(), 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no bitrate like 800k or 1.5M") from None


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


# --- commands ------------------------------------------------------------------------------------


def _encoder_options(args: argparse.Namespace) -> EncoderOptions:
    return EncoderOptions(
        qp=args.qp,
        quality=args.quality,
        bitrate=args.bitrate,
        keyint=args.keyint,
        scenecut=not args.no_scenecut,
        preset=args.preset,
        threads=args.threads,
        device=args.device,
        weights=args.weights,
    )


def _decoder_options(args: argparse.Namespace) -> DecoderOptions:
    return DecoderOptions(strict=args.strict, model=args.weights)


def _runtime(args: argparse.Namespace) -> Runtime:
    return Runtime(device=args.device, threads=args.threads)


def _codec(args: argparse.Namespace) -> MediaCodec | None:
    from vcfilter.stream.encoders import MediaCodec

    if args.codec is None:
        if args.crf is not None or args.pix_fmt or args.set:
            raise ConfigError("--crf, --pix-fmt and --set need an encoder: give -c:v too")
        return None
    return MediaCodec.named(args.codec, args.crf, args.pix_fmt, dict(args.set))


def _encode(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.stream.transcode import encode_file

    options = _encoder_options(args)
    report = encode_file(
        args.source,
        args.target,
        options,
        decoder=_decoder_options(args),
        runtime=_runtime(args),
        start=args.ss,
        duration=args.t,
        streams=args.streams or "all",
        overwrite=args.overwrite,
        two_pass=args.two_pass,
        container=args.format,
        progress=terminal.progress,
    )
    _finish(report, terminal)
    return 0


def _decode(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.stream.transcode import decode_file

    report = decode_file(
        args.source,
        args.target,
        codec=_codec(args),
        decoder=_decoder_options(args),
        runtime=_runtime(args),
        start=args.ss,
        duration=args.t,
        streams=args.streams or "all",
        overwrite=args.overwrite,
        container=args.format,
        progress=terminal.progress,
    )
    _finish(report, terminal)
    return 0


def _transcode(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.stream.containers import NEURAL_CONTAINERS, container_of
    from vcfilter.stream.transcode import decode_file

    if args.codec == "copy":
        return _copy(args, terminal)
    container = container_of(args.target, args.format, "matroska")
    if args.codec == "vcfilter" or (args.codec is None and container in NEURAL_CONTAINERS):
        return _encode(args, terminal)
    report = decode_file(
        args.source,
        args.target,
        codec=_codec(args),
        decoder=_decoder_options(args),
        runtime=_runtime(args),
        start=args.ss,
        duration=args.t,
        streams=args.streams or "all",
        overwrite=args.overwrite,
        container=container,
        progress=terminal.progress,
    )
    _finish(report, terminal)
    return 0


def _copy(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.stream.remux import copy_file

    if args.ss is not None or args.t is not None:
        raise ConfigError("-c:v copy takes whole films; ffmpeg -ss TIME -c copy cuts at keyframes")
    coding = (args.crf, args.qp, args.quality, args.bitrate, args.pix_fmt)
    if any(value is not None for value in coding) or args.set or args.two_pass:
        raise ConfigError("-c:v copy codes nothing: it takes no options of coding")
    report = copy_file(
        args.source,
        args.target,
        streams=args.streams or "all",
        overwrite=args.overwrite,
        container=args.format,
    )
    terminal.line(f"{report.target}: {report.packets} packets, {report.video_bytes} bytes copied")
    return 0


def _finish(report: TranscodeReport, terminal: Terminal) -> None:
    size = os.path.getsize(report.target) if os.path.isfile(report.target) else None
    for line in report_lines(report, size):
        terminal.line(line)
    terminal.detail(f"{report.video_format}")


def _verify(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.stream.inspect import verify_file

    status = 0
    for name in args.files:
        verdict = verify_file(
            name,
            _decoder_options(args),
            lambda packets, seconds: terminal.status(f"{packets} packets, {time_text(seconds)}"),
            runtime=_runtime(args),
        )
        terminal.end()
        others = ", ".join(f"{count} {kind}" for kind, count in verdict.other_packets.items())
        counts = f"{verdict.packets} packets ({verdict.keyframes} keyframes), "
        counts += f"{verdict.frames} frames decoded"
        counts += f"; copied streams: {others} packets" if others else ""
        if verdict.good:
            terminal.line(f"{name}: good: {counts}")
        else:
            status = EXIT_FAILED
            terminal.error(f"{name}: bad: {'; '.join(verdict.problems)} ({counts})")
    return status


def _info(args: argparse.Namespace, terminal: Terminal) -> int:
    from vcfilter.cli.summary import print_model, print_summary
    from vcfilter.stream.inspect import inspect_file

    if not args.files and not args.model:
        raise ConfigError("info needs a FILE, or --model")
    if args.model:
        print_model(args.weights, args.json)
    summaries = [inspect_file(name) for name in args.files]
    if args.json and summaries:
        found = [summary.to_dict(args.frames) for summary in summaries]
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
        return 0
    for summary in summaries:
        print_summary(summary, args.frames)
        for warning in summary.warnings:
            terminal.warning(f"{summary.name}: {warning}")
    return 0
