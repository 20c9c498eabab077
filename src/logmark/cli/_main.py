"""The entry point: arguments in, exit code out, and no traceback for what can go wrong in a store or on a disk."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TextIO, cast

from ..protocol import LogmarkError
from . import (
    _backup,
    _copy,
    _doctor,
    _info,
    _ingest,
    _ls,
    _prune,
    _repair,
    _report,
    _serve,
    _trace,
    _ui,
    _verify,
    _view,
)
from ._command import Command
from ._completion import completion_command
from ._console import Console, Messages
from ._exit_codes import ExitCode, exit_code_of
from ._parser import build_parser
from ._text import error_text

__all__ = ["main"]

_COMMANDS: tuple[Command, ...] = (
    _ingest.COMMAND,
    _ls.COMMAND,
    _info.COMMAND,
    _view.COMMAND,
    _verify.COMMAND,
    _repair.COMMAND,
    _copy.COMMAND,
    _backup.BACKUP,
    _backup.RESTORE,
    _prune.COMMAND,
    _report.COMMAND,
    _serve.COMMAND,
    _trace.COMMAND,
    _ui.COMMAND,
    _doctor.COMMAND,
    completion_command(lambda: _COMMANDS),
)
_STORE_DEFAULT = "logmark-data"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments, those of the process by default.
    """
    try:
        console = Console.of_process()
    except OSError as error:
        Messages(sys.stderr).say(error_text(error))
        return ExitCode.IO
    try:
        code = _parse_and_run(argv, console)
        console.out.flush()
    except KeyboardInterrupt:
        console.err.end_line()
        console.out.abandon()
        return ExitCode.INTERRUPTED
    except OSError as error:  # the flush: standard output is on a full disk
        console.err.say(error_text(error))
        return ExitCode.IO
    return code


def _parse_and_run(argv: Sequence[str] | None, console: Console) -> int:
    try:
        arguments = build_parser(_COMMANDS).parse_args(argv)
    except SystemExit as end:  # --help and --version end with 0, a usage error with 2
        return end.code if isinstance(end.code, int) else ExitCode.USAGE
    arguments.store = arguments.store or os.environ.get("LOGMARK_STORE") or _STORE_DEFAULT
    _configure_logs(arguments, console)
    command: Command = arguments.command
    try:
        return command.run(arguments, console)
    except (LogmarkError, OSError) as error:
        console.out.flush()
        console.err.say(error_text(error))
        return exit_code_of(error)


def _configure_logs(arguments: argparse.Namespace, console: Console) -> None:
    from .. import logs

    # Messages offers what a log needs of a stream, and keeps the log clear of the line of progress.
    logs.configure(json=arguments.log_json, level=arguments.log_level, stream=cast("TextIO", console.err))
