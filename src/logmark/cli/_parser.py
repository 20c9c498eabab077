"""The arguments of the command line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ._command import Command

__all__ = ["build_parser", "build_parsers"]

_LEVELS = ("debug", "info", "warning", "error")
_EPILOG = """\
exit codes:
  0  fine
  1  damage, a gap, a halt or a bad input line was found
  2  the command line cannot be carried out as it is written
  3  a file, a disk, a lock or a server failed
"""


class _Version(argparse.Action):
    """Prints the version; looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_ignored: Any, **_options: Any) -> None:
        print(f"logmark {version('logmark')}")
        parser.exit()


def _add_common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Declare what may stand before the command and behind it; behind it there are no defaults to overwrite with."""

    def default(value: Any) -> Any:
        return value if top else argparse.SUPPRESS

    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--store",
        metavar="URL",
        default=default(None),
        help="the store: a directory or a URL (default: $LOGMARK_STORE, else ./logmark-data)",
    )
    group.add_argument(
        "--log-level",
        choices=_LEVELS,
        default=default("warning"),
        metavar="LEVEL",
        help=f"log events to standard error from this level on: {', '.join(_LEVELS)} (default: warning)",
    )
    group.add_argument(
        "--log-json", action="store_true", default=default(False), help="log events as JSON, one object per line"
    )


def build_parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    """Return the parser; the namespace it makes has the chosen command as ``command``."""
    return build_parsers(commands)[0]


def build_parsers(commands: Sequence[Command]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and that of each command by its name."""
    parser = argparse.ArgumentParser(
        prog="logmark",
        description="Look into, fill and check a store of durable, ordered event streams.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    _add_common(parser, top=True)
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    subs: dict[str, argparse.ArgumentParser] = {}
    for command in commands:
        sub = subs[command.name] = choices.add_parser(
            command.name,
            help=command.summary,
            description=textwrap.fill(command.description, 100),
            epilog="examples:\n" + textwrap.indent(command.example, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        _add_common(sub, top=False)
        sub.set_defaults(command=command)
    return parser, subs
