"""vcfilter play: a neural video file in ffplay or mpv, decoded into a pipe.

Two processes run, `vcfilter decode` and the player, joined by a pipe that carries raw frames and
the file's own audio in one NUT stream, so both stay in step at any decoding speed. A pipe cannot
seek: another time is reached by starting both again from there.
"""

from __future__ import annotations

import argparse
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vcfilter.cli.arguments import (
    add_levels,
    add_limits,
    add_look,
    add_model,
    add_part,
    add_smooth,
    duration,
)
from vcfilter.cli.arguments import seconds as seconds_of
from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError, MediaError
from vcfilter.options import LOOKS

PLAYERS = ("ffplay", "mpv")
"""Players in the order in which they are looked for."""

_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 3.0
_EXAMPLES = """\
examples:
  vcfilter play in.mkv
  vcfilter play in.mkv -ss 1:30
  vcfilter play in.mkv --player 'mpv --fullscreen'
  vcfilter play in.mkv --fps 50

In a terminal a time and Enter go there: 90, 1:30, +10, -10; q and Enter end it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What is run: two commands and a pipe between them.

    Args:
        decode: writes raw frames and audio to standard output.
        player: plays standard input.
    """

    decode: tuple[str, ...]
    player: tuple[str, ...]

    def __str__(self) -> str:
        """As one would type it in a shell."""
        return f"{shlex.join(self.decode)} | {shlex.join(self.player)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of play to a parser."""
    parser.add_argument("source", metavar="FILE", help="a neural video file")
    add_part(parser)
    parser.add_argument(
        "--player", metavar="COMMAND",
        help=f"{' or '.join(PLAYERS)} or a path to one, its options behind it "
        "(the first that is installed)",
    )  # fmt: skip
    add_levels(parser)
    add_smooth(parser)
    add_look(parser)
    add_model(parser)
    add_limits(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out play."""
    try:
        wanted, *options = shlex.split(args.player) if args.player else [None]
    except ValueError as error:
        raise ConfigError(f"player {args.player!r}: {error}") from None
    player = find_player(wanted)
    _check_source(args.source)
    start = args.ss or Fraction(0)
    while True:
        commands = player_commands(
            args.source,
            player,
            start=start,
            duration=duration(args),
            options=[each for each in options if each],
            decoder_options=_decoder_options(args),
        )
        terminal.line(f"vcfilter: {commands}")
        if sys.stdin is not None and sys.stdin.isatty():
            terminal.line("a time and Enter go there (90, 1:30, +10, -10); q and Enter end it")
        began = time.monotonic()
        asked, status = _play(commands, terminal)
        if asked is None:
            return status
        start = _place(asked, start + Fraction(time.monotonic() - began).limit_denominator(1000))


def find_player(wanted: str | None) -> str:
    """The player's path: the one that is asked for, or the first that is installed.

    Raises:
        ConfigError: the player asked for is not one that reads NUT from a pipe as known here.
        MediaError: it, or any, is not installed.
    """
    if wanted is None:
        for name in PLAYERS:
            found = shutil.which(name)
            if found:
                return found
        raise MediaError(
            "no player is installed: install ffplay (apt-get install ffmpeg) or mpv, "
            "or open the file in a browser with: vcfilter serve FILE"
        )
    if Path(wanted).name not in PLAYERS:
        raise ConfigError(f"player {wanted!r} is not {' or '.join(PLAYERS)}, or a path to one")
    found = shutil.which(wanted)
    if not found:
        raise MediaError(f"player {wanted} is not installed")
    return found


def player_commands(
    source: str,
    player: str,
    *,
    start: Fraction = Fraction(0),
    duration: Fraction | None = None,
    options: list[str] | None = None,
    decoder_options: tuple[str, ...] = (),
) -> Commands:
    """The commands that play a file.

    Args:
        source: its path.
        player: path of ffplay or mpv.
        start, duration: the part wanted, in seconds.
        options: further ones for the player.
        decoder_options: further ones for vcfilter decode.
    """
    decode = [sys.executable, "-m", "vcfilter", "decode", "-f", "nut", "-q"]
    if start:
        decode += ["-ss", _text(start)]
    if duration is not None:
        decode += ["-t", _text(duration)]
    title = Path(source).name
    if Path(player).name == "mpv":
        show = [player, f"--title={title}", "--really-quiet", *(options or []), "-"]
    else:
        show = [player, "-hide_banner", "-loglevel", "error", "-autoexit"]
        show += ["-window_title", title, *(options or []), "-f", "nut", "-"]
    files = ("--", source, "-")  # the name may begin with a dash
    return Commands(decode=(*decode, *decoder_options, *files), player=tuple(show))


def _play(commands: Commands, terminal: Terminal) -> tuple[str | None, int]:
    """Run both to the end; returns (a place that was asked for on the way, exit status)."""
    asked: str | None = None
    player: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as complaints:
        decode = subprocess.Popen(
            commands.decode, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
        )
        try:
            assert decode.stdout is not None
            player = subprocess.Popen(commands.player, stdin=decode.stdout)
            decode.stdout.close()  # the player alone holds the reading end: its leaving is seen
            asked = _wait(player, terminal)
        except OSError as error:
            raise MediaError(f"{commands.player[0]} cannot be started: {error.strerror}") from error
        finally:
            _leave(player)
            # Where the player ended first, the decoder ends at its next write, without a message.
            stopped = _leave(decode)
        complaints.seek(0)
        text = complaints.read().decode(errors="replace").strip()
    if asked is None and text and decode.returncode > 0 and not stopped:
        raise MediaError(text.splitlines()[-1].removeprefix("vcfilter: "))
    assert player is not None
    return asked, 0 if asked is not None or player.returncode <= 0 else 1


def _wait(player: subprocess.Popen[bytes], terminal: Terminal) -> str | None:
    """Wait until the player ends, or a place is typed: that place."""
    listen = sys.stdin is not None and sys.stdin.isatty()
    while listen and player.poll() is None:
        if select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
            line = sys.stdin.readline()
            listen = bool(line)
            line = line.strip()
            if line == "q":
                return None
            if line:
                try:
                    _place(line, Fraction(0))
                    return line
                except argparse.ArgumentTypeError as error:
                    terminal.error(str(error))
    player.wait()
    return None


def _leave(process: subprocess.Popen[bytes] | None) -> bool:
    """End a process that has not ended soon; returns whether it had to be stopped."""
    if process is None:
        return False
    for stop in (None, process.terminate, process.kill):
        if stop is not None:
            stop()
        try:
            process.wait(_LEAVE_SECONDS)
            return stop is not None
        except subprocess.TimeoutExpired:
            continue
    return True


def _place(text: str, now: Fraction) -> Fraction:
    """A typed place: a time, or +time and -time from now."""
    if text[:1] in "+-":
        step = seconds_of(text[1:])
        return max(Fraction(0), now + step if text[0] == "+" else now - step)
    return seconds_of(text)


def _decoder_options(args: argparse.Namespace) -> tuple[str, ...]:
    words: list[str] = []
    if args.threads:
        words += ["--threads", str(args.threads)]
    if args.device != "auto":
        words += ["--device", args.device]
    if args.model:
        words += ["--model", args.model]
    if args.levels is not None:
        words += ["--layers", str(args.levels)]
    if args.fps is not None:
        words += ["--fps", str(args.fps)]
    if args.look != LOOKS[0]:
        words += ["--look", args.look]
    for name in ("pixels", "frames", "seconds", "memory"):
        value = getattr(args, f"max_{name}")
        if value is not None:
            words += [f"--max-{name}", str(value)]
    return tuple(words)


def _check_source(name: str) -> None:
    """Raise MediaError where there is nothing to play, before a player starts."""
    from vcfilter.stream.decoders import neural_stream
    from vcfilter.stream.source import Source

    if name == "-":
        raise ConfigError("play needs a file; a pipe plays with: vcfilter decode - - -f nut | ...")
    source = Source(name)
    with source.demuxer() as demuxer:
        neural_stream(demuxer, source.title)


def _text(seconds: Fraction) -> str:
    return f"{float(seconds):.3f}".rstrip("0").rstrip(".")


COMMAND = Command(
    name="play",
    help="play a neural video file in ffplay or mpv, with its audio",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
