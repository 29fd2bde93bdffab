"""What encode, decode and transcode share: one call a file, for one file or many."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcfilter.cli.arguments import (
    add_decoder,
    add_filter,
    add_loudness,
    add_output,
    add_streams,
    bit_depth,
    decoder_options,
    duration,
    encoder_options,
    is_rate_given,
    media_codec,
    runtime,
    thinning,
    whole_number,
)
from vcfilter.cli.terminal import Terminal, reason
from vcfilter.errors import ConfigError, MediaError, VcfilterError

if TYPE_CHECKING:
    from vcfilter.stream.thinning import Thinning

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the three commands share besides sources, target and coder: see `_common`."""
    add_streams(parser)
    add_filter(parser)
    add_output(parser)
    add_loudness(parser)
    add_decoder(parser)


def _readable(source: str, target: str) -> str:
    """A source as `encode_file` takes it: a folder of image files is the pattern of these."""
    if not os.path.isdir(source):
        return source
    from vcfilter.stream.containers import is_video_name
    from vcfilter.stream.images import folder_pattern

    if any(map(is_video_name, os.listdir(source))):
        raise ConfigError(f"{source} holds videos, which go into a folder: {target} is none")
    return folder_pattern(source)


def encode(args: argparse.Namespace, terminal: Terminal, source: str, target: str) -> None:
    """Code one file's video neurally."""
    options = encoder_options(args)
    if getattr(args, "set", None):
        raise ConfigError("--set is for encoders of FFmpeg's: neural coding takes none")
    depth = bit_depth(args)
    with terminal.working("loading"):
        from vcfilter.stream.transcode import encode_file

        report = encode_file(
            _readable(source, target),
            target,
            options,
            two_pass=args.two_pass,
            bit_depth=depth,
            workers=getattr(args, "workers", None),  # interpolate has neither
            cluster=getattr(args, "cluster", None),
            resume=getattr(args, "resume", False),
            **_common(args, terminal),
        )
    terminal.report(report, _size(target))


def check_no_rate(args: argparse.Namespace, but: Collection[str]) -> None:
    """Raise ConfigError where options of neural coding, but for some, are given in vain."""
    if is_rate_given(args, but):
        raise ConfigError("options of neural coding need a neural target: -c:v vcfilter, or .mkv")


def decode(
    args: argparse.Namespace,
    terminal: Terminal,
    source: str,
    target: str,
    *,
    any_source: bool = False,
) -> None:
    """Code one file's video with an encoder of FFmpeg's.

    Args:
        any_source: the source may be an ordinary video.
    """
    with terminal.working("loading"):
        from vcfilter.stream.transcode import decode_file

        report = decode_file(
            _readable(source, target) if any_source else source,
            target,
            codec=media_codec(args),
            any_source=any_source,
            eqvi_names=getattr(args, "names", None) == "eqvi",
            resume=getattr(args, "resume", False),
            **_common(args, terminal),
        )
    terminal.report(report, _size(target))


def copy(args: argparse.Namespace, terminal: Terminal, source: str, target: str) -> None:
    """Copy one file's neural stream as it is, or with its lowest quality levels alone."""
    from vcfilter.stream.thinning import Thinning

    levels = whole_number("layers", args.layers)
    _copy(args, terminal, source, target, None if levels is None else Thinning(levels=levels))


def thin(args: argparse.Namespace, terminal: Terminal, source: str, target: str) -> None:
    """Copy a part of one file's neural stream."""
    _copy(args, terminal, source, target, thinning(args))


def _copy(
    args: argparse.Namespace, terminal: Terminal, source: str, target: str, left: Thinning | None
) -> None:
    from vcfilter.stream.remux import copy_file

    report = copy_file(
        source,
        target,
        streams=args.streams or "all",
        overwrite=args.overwrite,
        container=args.format,
        thinning=left,
    )
    terminal.copied(report, _size(target))


def _common(args: argparse.Namespace, terminal: Terminal) -> dict[str, Any]:
    """Arguments that encode_file and decode_file share."""
    return {
        "decoder": decoder_options(args),
        "runtime": runtime(args),
        "start": args.ss,
        "duration": duration(args),
        "streams": args.streams or "all",
        "overwrite": args.overwrite,
        "container": args.format,
        "metadata": dict(args.metadata),
        "video_filter": args.video_filter,
        "interpolation": getattr(args, "interpolation", None),
        "image_rate": getattr(args, "rate", None),
        "progress": terminal.progress,
    }


def _size(target: str) -> int | None:
    return os.path.getsize(target) if os.path.isfile(target) else None


def each_source(
    args: argparse.Namespace,
    terminal: Terminal,
    run: Callable[[argparse.Namespace, Terminal, str, str], None],
    default: str,
) -> int:
    """Run over one source, or over several into a folder; returns the exit status.

    In a folder a target is called like its source, with the extension of -f's container or the
    default one. A source that fails does not keep the others from being coded.

    Args:
        run: codes one file: arguments, terminal, source, target.
        default: extension of targets in a folder, with its dot.
    """
    pairs = _pairs(args, default)
    if len(pairs) == 1:
        source, target = pairs[0]
        try:
            run(args, terminal, source, target)
        except MediaError as error:
            raise MediaError(_named(error, source, target)) from error
        return 0
    failed: list[tuple[str, str]] = []
    for source, target in pairs:
        try:
            run(args, terminal, source, target)
        except ConfigError:
            raise  # it would fail for all of them
        except (VcfilterError, OSError) as error:
            failed.append((_named(error, source, target), source))
    for text, source in failed:
        terminal.error(text, source)
    if failed:
        terminal.error(f"{len(failed)} of {len(pairs)} files failed")
    return EXIT_FAILED if failed else 0


def _named(error: Exception, source: str, target: str) -> str:
    """What went wrong, with the name of the file."""
    text = reason(error)
    known = any(name in text for name in (source, target, "standard input", "standard output"))
    return text if known or source == "-" else f"{source}: {text}"


def _pairs(args: argparse.Namespace, default: str) -> list[tuple[str, str]]:
    """(source, target) of each file."""
    sources: list[str] = args.sources
    target: str = args.target
    if any(os.path.isdir(source) for source in sources) and not Path(target).suffix:
        target = os.path.join(target, "")  # a folder's files go into one, which is made
    if target == "-" or not (os.path.isdir(target) or target.endswith(os.sep)):
        if len(sources) > 1:
            raise ConfigError(f"{len(sources)} sources need a folder; {target} is none")
        return [(sources[0], target)]
    if "-" in sources:
        raise ConfigError("standard input needs the name of a file to write, not of a folder")
    sources = [each for source in sources for each in _files(source)]
    suffix = _extension(args.format) if args.format else default
    folder = Path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be made: {error.strerror}") from error
    pairs = [(each, str(folder / f"{Path(each).stem}{suffix}")) for each in sources]
    for index, (source, name) in enumerate(pairs):
        for other, same in pairs[:index]:
            if same == name:
                raise ConfigError(f"{other} and {source} would both become {name}")
    return pairs


def _files(source: str) -> list[str]:
    """A source itself; of a folder its video files by name, those in folders within left out."""
    if not os.path.isdir(source):
        return [source]
    from vcfilter.stream.containers import is_video_name

    names = sorted(name for name in os.listdir(source) if is_video_name(name))
    if not names:
        raise ConfigError(f"{source} holds no video files")
    return [os.path.join(source, name) for name in names]


def _extension(container: str) -> str:
    from vcfilter.stream.containers import container_named, container_of

    extensions = container_named(container_of("-", container, container)).extensions
    return extensions[0] if extensions else f".{container}"
