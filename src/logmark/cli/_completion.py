"""``logmark completion``: what a shell needs to complete command lines."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator

from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode

__all__ = ["completion_command"]

_SESSIONS = "logmark ls 2>/dev/null | sed '1d; s/ .*//'"

_BASH = """\
# logmark: eval "$(logmark completion bash)"
_logmark() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command= each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in {names}) command=$each; break ;; esac
    done
    COMPREPLY=()
    case $previous in {values}) COMPREPLY=($(compgen -o default -- "$word")); return ;; esac
    case $command in
        '') COMPREPLY=($(compgen -W '{words}' -- "$word")) ;;
{cases}
    esac
    if [[ ${{#COMPREPLY[@]}} -eq 0 && $word != -* ]]; then
        case $command in
            {session_commands}) COMPREPLY=($(compgen -W "$({sessions})" -- "$word")) ;;
            *) COMPREPLY=($(compgen -o default -- "$word")) ;;
        esac
    fi
}}
complete -F _logmark logmark
"""

_ZSH = """\
#compdef logmark
# logmark: eval "$(logmark completion zsh)"
_logmark() {{
    local command each
    for each in "${{(@)words[2,CURRENT-1]}}"; do
        case $each in {names}) command=$each; break ;; esac
    done
    case ${{words[CURRENT-1]}} in {values}) _files; return ;; esac
    case $command in
        '')
            local -a commands=(
{described}
            )
            if [[ ${{words[CURRENT]}} == -* ]]; then compadd -- {options}; else _describe command commands; fi
            return ;;
{cases}
    esac
    if [[ ${{words[CURRENT]}} != -* ]]; then
        case $command in
            {session_commands}) compadd -- $({sessions}) ;;
            *) _files ;;
        esac
    fi
}}
compdef _logmark logmark
"""

_FISH = """\
# logmark: logmark completion fish | source
complete -c logmark -n __fish_use_subcommand -f
{lines}
"""


def completion_command(commands: Callable[[], Iterable[Command]]) -> Command:
    """Return the command; ``commands`` are all there are, this one too."""

    def run(arguments: argparse.Namespace, console: Console) -> int:
        for line in _script(arguments.shell, list(commands())).splitlines():
            console.out.line(line)
        return ExitCode.OK

    return Command(
        name="completion",
        summary="print what a shell needs to complete logmark's command lines",
        description=(
            "Print a script for bash, zsh or fish. With it, the Tab key completes commands, options and, where a"
            " session is wanted, the sessions of the store."
        ),
        example="""\
eval "$(logmark completion bash)"
logmark completion zsh > "${fpath[1]}/_logmark"
logmark completion fish > ~/.config/fish/completions/logmark.fish
""",
        add_arguments=_add_arguments,
        run=run,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def _script(shell: str, commands: list[Command]) -> str:
    from ._parser import build_parsers

    parser, subs = build_parsers(commands)
    takes_session = [name for name, sub in subs.items() if any(each.metavar == "SESSION" for each in _positionals(sub))]
    names = "|".join(subs)
    if shell == "fish":
        return _FISH.format(lines="\n".join(_fish_lines(commands, subs, takes_session)))
    values = "|".join(dict.fromkeys(option for sub in (parser, *subs.values()) for option in _with_value(sub)))
    shape = {"bash": "compgen", "zsh": "compadd"}[shell]
    cases = [_case(shape, name, _flags(sub)) for name, sub in subs.items()]
    common = {
        "names": names,
        "values": values,
        "cases": "\n".join(cases),
        "session_commands": "|".join(takes_session),
        "sessions": _SESSIONS,
    }
    if shell == "bash":
        return _BASH.format(words=" ".join((*subs, *_flags(parser))), **common)
    described = [f"                {shlex.quote(_zsh_described(command))}" for command in commands]
    return _ZSH.format(described="\n".join(described), options=" ".join(_flags(parser)), **common)


def _zsh_described(command: Command) -> str:
    return f"{command.name}:{command.summary}".replace(": ", "\\: ")


def _case(shape: str, name: str, flags: list[str]) -> str:
    words = " ".join(flags)
    if shape == "compgen":
        return f"        {name}) [[ $word == -* ]] && COMPREPLY=($(compgen -W '{words}' -- \"$word\")) ;;"
    return f"        {name}) [[ ${{words[CURRENT]}} == -* ]] && compadd -- {words} ;;"


def _fish_lines(
    commands: list[Command], subs: dict[str, argparse.ArgumentParser], sessions: list[str]
) -> Iterator[str]:
    for command in commands:
        summary = command.summary.replace("'", "\\'")
        yield f"complete -c logmark -n __fish_use_subcommand -f -a {command.name} -d '{summary}'"
        seen = f"'__fish_seen_subcommand_from {command.name}'"
        for action in _options(subs[command.name]):
            parts = [
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in action.option_strings
            ]
            needs = " -r" if action.nargs != 0 else ""
            told = (action.help or "").replace("'", "\\'").replace("%%", "%")
            yield f"complete -c logmark -n {seen} {' '.join(parts)}{needs} -d '{told}'"
        if command.name in sessions:
            quoted = _SESSIONS.replace("\\", "\\\\").replace("$", "\\$").replace('"', '\\"')
            yield f'complete -c logmark -n {seen} -f -a "({quoted})"'


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]  # noqa: SLF001


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]  # noqa: SLF001


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in _options(parser) for option in action.option_strings if option.startswith("--")]


def _with_value(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in _options(parser) if action.nargs != 0 for option in action.option_strings]
