"""The parsers, and what they say to options that FFmpeg's users type from habit."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from vcfilter.cli.command import Command

EXIT_USAGE = 2

_HELP = """\
usage: vcfilter COMMAND ...

A neural video codec that lives in FFmpeg's world: any video becomes a Matroska file whose frames
are coded by neural networks; audio, subtitles, chapters and tags stay as they are.

commands:
{commands}

options:
  -h, --help   show this text
  --version    show the version

examples:
  vcfilter encode holiday.mp4 holiday.mkv --crf 32
  vcfilter decode holiday.mkv back.mp4
  vcfilter decode holiday.mkv - -f nut | ffplay -
  vcfilter info holiday.mkv

vcfilter COMMAND --help tells more about a command.
"""
_QUALITY = "--crf N or --quality DB sets the quality of neural coding"
_FILTER = "it is a filter here: -vf scale=640:-2, fps=25, setsar=1, ..."
_COPIED = "audio is copied as it is"
_HINTS = {
    "-q:v": _QUALITY,
    "-qscale": _QUALITY,
    "-i": "the source stands without it: vcfilter COMMAND SOURCE TARGET",
    "-b:v": "--bitrate RATE",
    "-b": "--bitrate RATE",
    "--bit-rate": "--bitrate RATE",
    "-pass": "--two-pass does both",
    "-profile:v": "there are no profiles",
    "-pix_fmt": "--pix-fmt NAME",
    "-filter_complex": _FILTER,
    "-r": _FILTER,
    "-s": _FILTER,
    "-framerate": "--rate RATE, of image files; other sources have their own",
    "-aspect": _FILTER,
    "-an": "-map v takes the video alone",
    "-sn": "-map v -map a leaves subtitles out",
    "-vn": "the video cannot be left out",
    "-c": "-c:v names the encoder of the video; all else is copied",
    "-codec": "-c:v names the encoder of the video; all else is copied",
    "-codec:v": "-c:v NAME",
    "-vcodec": "-c:v NAME",
    "-c:v": "the video is coded neurally; decode takes -c:v",
    "-af": _COPIED,
    "-ar": _COPIED,
    "-ac": _COPIED,
    "-dn": "-map -d leaves data streams out",
    "-c:s": "subtitles are copied, or become what the container holds",
    "-movflags": "MP4 and MOV are written as players need them",
    "-itsoffset": "ffmpeg -itsoffset T -i IN -c copy OUT moves a stream first",
    "-sseof": "-ss TIME counts from the start",
    "-map_metadata": "tags are copied; -metadata KEY=VALUE changes one",
    "-map_chapters": "chapters are copied",
    "--input-res": "raw video states no size: give it as YUV4MPEG2 (.y4m)",
    "--fps": "the frame rate is the source's, or -vf fps=25",
    "--frames": "-t TIME",
    "--output": "the target stands without it: vcfilter COMMAND SOURCE TARGET",
    "-o": "the target stands without it: vcfilter COMMAND SOURCE TARGET",
    "--input": "the source stands without it: vcfilter COMMAND SOURCE TARGET",
    "--output-depth": "--pix-fmt yuv420p10le codes 10 bit",
    "--vbv-maxrate": "--maxrate RATE",
    "--vbv-bufsize": "--bufsize SIZE",
    "--psnr": "the mean PSNR is shown at the end",
    "--pass": "--two-pass does both",
    "--scenecut": "scene cuts make keyframes; --no-scenecut",
    "-c:a": _COPIED,
    "-acodec": _COPIED,
    "-b:a": _COPIED,
    "-keyint_min": "--min-keyint N",
    "-bf": "--bframes N",
    "-sc_threshold": "--no-scenecut",
    "-x264-params": "--set KEY=VALUE",
    "-x265-params": "--set KEY=VALUE",
    "-frames:v": "-t TIME",
    "-vframes": "-t TIME",
    "-hwaccel": "--device cuda",
    "-loglevel": "-q shows errors only, -v more",
    "-hide_banner": "there is no banner",
    "-nostdin": "standard input is read only where SOURCE is -",
    "-copyts": "timestamps are kept",
    "--weights": "--model NAME, ID or FILE",
}
"""What to write instead of an option that other encoders have."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of a page of usage, to programs as JSON."""

    _json_lines = False

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit."""
        from vcfilter.cli.terminal import Terminal

        Terminal(json_lines=self._json_lines).misuse(
            self.prog, f"{message} (see {self.prog} --help)"
        )
        sys.exit(EXIT_USAGE)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Arguments in any order, options between files too; exits where they are wrong."""
        arguments = _with_maps(_with_files(arguments))
        words = " ".join(arguments).replace("=", " ")
        self._json_lines = "--progress json" in words and "--progress" in self.flags
        self._refuse_foreign(arguments)
        found, rest = self.parse_known_intermixed_args(list(arguments))
        if rest:
            self.error(self._left_over(rest))
        return found

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Actions by each spelling of their option."""
        return dict(self._option_string_actions)

    def _refuse_foreign(self, arguments: Sequence[str]) -> None:
        """Exit at an option of FFmpeg's that argparse would take for others of ours.

        argparse reads -vf as -v and -f, since it allows short options in one word.
        """
        for word in arguments:
            name = word.split("=", 1)[0]
            if name in self.flags:
                continue
            ours = f"--{name.lstrip('-').replace('_', '-')}"
            if name[:1] == "-" and ours in self.flags:
                self.error(f"there is no option {name}: it is {ours} here")
            if name in _HINTS:
                self.error(f"there is no option {name}: {_HINTS[name]}")
            if name[:1] == "-" and name[1:2].isalpha() and len(name) > 2 and not self._joined(name):
                self.error(f"there is no option {name}{self._nearest(name)}")

    def _left_over(self, words: Sequence[str]) -> str:
        if words[0].startswith("-"):
            return f"there is no option {words[0]}{self._nearest(words[0])}"
        return f"{' '.join(words)}: too many files are named"

    def _joined(self, word: str) -> bool:
        """Whether a word is several options without values: -qy."""
        actions = [self.flags.get(f"-{letter}") for letter in word[1:]]
        return all(action is not None and action.nargs == 0 for action in actions)

    def _nearest(self, word: str) -> str:
        if not word.startswith("-"):
            return ""
        plain = {flag.lstrip("-"): flag for flag in self.flags}
        found = difflib.get_close_matches(word.lstrip("-").replace("_", "-"), plain, 1)
        return f"; did you mean {plain[found[0]]}?" if found else ""


def _with_files(arguments: Sequence[str]) -> list[str]:
    """Words, files after `--` so that none looks like an option: argparse would lose them."""
    words = list(arguments)
    if "--" not in words:
        return words
    place = words.index("--")
    files = [
        f"./{word}" if word.startswith("-") and word != "-" else word for word in words[place + 1 :]
    ]
    return words[:place] + files


def _with_maps(arguments: Sequence[str]) -> list[str]:
    """Words, those of `-map -0:s` as one: argparse would take the second for an option."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == "-map" and re.fullmatch(r"-(\d+|[vVastdm])(:\S*)?\??", word):
            words[-1] = f"-map={word}"
        else:
            words.append(word)
    return words


def command_parser(command: Command) -> Parser:
    """The parser of one command."""
    parser = Parser(
        prog=f"vcfilter {command.name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=command.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def top_help(commands: Iterable[Command]) -> str:
    """What `vcfilter --help` prints."""
    listed = "\n".join(f"  {each.name:<12}{each.help}" for each in commands)
    return _HELP.format(commands=listed)


def top_problem(arguments: Sequence[str], commands: Iterable[Command]) -> str:
    """Why arguments that name no command are not understood."""
    word = arguments[0]
    if word.startswith("-"):
        return f"there is no option {word} before the command (see vcfilter --help)"
    near = difflib.get_close_matches(word, [each.name for each in commands], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no command {word}{hint} (see vcfilter --help)"
