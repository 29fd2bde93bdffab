"""vcfilter completion: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
import shlex

from vcfilter.cli.command import Command
from vcfilter.cli.terminal import Terminal

_EXAMPLES = """\
examples:
  eval "$(vcfilter completion bash)"                                        in ~/.bashrc
  eval "$(vcfilter completion zsh)"                                         in ~/.zshrc
  vcfilter completion fish > ~/.config/fish/completions/vcfilter.fish
"""
_BASH = """\
_vcfilter() {{
    local words word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W {commands} -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}} $before" in
{choices}
    esac
    case "$word" in -*) ;; *) COMPREPLY=($(compgen -f -- "$word")); return ;; esac
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o filenames -F _vcfilter vcfilter
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of completion to a parser."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out completion."""
    from vcfilter.cli.commands import COMMANDS
    from vcfilter.cli.parser import command_parser

    options: dict[str, list[argparse.Action]] = {}
    for command in COMMANDS.values():
        try:
            flags = command_parser(command).flags
        except ImportError:  # of an extra that is not installed
            flags = {}
        options[command.name] = list(dict.fromkeys(flags.values()))
    if args.shell == "fish":
        terminal.result(_fish(options, {name: each.help for name, each in COMMANDS.items()}))
        return 0
    script = _bash(options)
    if args.shell == "zsh":
        script = f"autoload -U +X compinit bashcompinit && compinit && bashcompinit\n{script}"
    terminal.result(script.rstrip())
    return 0


def _bash(options: dict[str, list[argparse.Action]]) -> str:
    choices, words = [], []
    for name, actions in options.items():
        flags = " ".join(flag for action in actions for flag in action.option_strings)
        words.append(f"        {name}) words={shlex.quote(flags)} ;;")
        for action in actions:
            if action.choices:
                cases = " | ".join(f"'{name} {flag}'" for flag in action.option_strings)
                values = shlex.quote(" ".join(map(str, action.choices)))
                choices.append(f'        {cases}) COMPREPLY=($(compgen -W {values} -- "$word"))')
                choices.append("            return ;;")
    return _BASH.format(
        commands=shlex.quote(" ".join(options)),
        choices="\n".join(choices),
        options="\n".join(words),
    )


def _fish(options: dict[str, list[argparse.Action]], helps: dict[str, str]) -> str:
    lines = []
    for name, actions in options.items():
        lines.append(
            f"complete -c vcfilter -n __fish_use_subcommand -f -a {name} "
            f"-d {shlex.quote(helps[name])}"
        )
        for action in actions:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--")
                else f"-s {flag[1:]}" if len(flag) == 2
                else f"-o {flag[1:]}"
                for flag in action.option_strings
            )  # fmt: skip
            told = shlex.quote((action.help or "").replace("%(default)s", str(action.default)))
            names = shlex.quote(" ".join(map(str, action.choices or ())))
            values = f" -x -a {names}" if action.choices else ""
            takes = " -r" if action.nargs != 0 and not action.choices else ""
            lines.append(
                f"complete -c vcfilter -n '__fish_seen_subcommand_from {name}' {flags} "
                f"-d {told}{takes}{values}"
            )
    return "\n".join(lines)


COMMAND = Command(
    name="completion",
    help="print a script that completes commands and options in a shell",
    add_arguments=add_arguments,
    run=run,
    examples=_EXAMPLES,
)
