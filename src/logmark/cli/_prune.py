"""``logmark prune``: give up the beginning of sessions, by age or once every reader has acknowledged it."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..protocol import InvalidArgument, LogmarkError
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode, exit_code_of
from ._stores import open_existing, require_session
from ._text import error_text, plural, printable

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        message = f"{text!r} is not a number of days"
        raise argparse.ArgumentTypeError(message)
    return days


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to prune (default: all)")
    parser.add_argument("--keep-days", metavar="N", type=_days, help="keep the events of the last N days")
    parser.add_argument(
        "--acked", action="store_true", help="keep what some cursor has not acknowledged; without cursors, everything"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--json", action="store_true", help="one object per session")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.keep_days is None and not arguments.acked:
        raise InvalidArgument("say what may go: --keep-days N, --acked, or both")
    codes: list[int] = [ExitCode.OK]
    removed = 0
    with open_existing(arguments.store) as runtime:
        for session_id in arguments.sessions:
            require_session(runtime, session_id)
        wanted: Iterable[str] = dict.fromkeys(arguments.sessions) or list(runtime.store.sessions())
        for session_id in wanted:
            code, report = _prune(runtime, session_id, arguments)
            codes.append(code)
            removed += report["removed"]
            if arguments.json:
                console.out.json(report)
            else:
                _print(report, console.out, dry_run=arguments.dry_run)
            console.out.flush()
    if not arguments.json:
        verb = "would be pruned" if arguments.dry_run else "pruned"
        console.out.line(f"{plural(removed, 'number')} of {plural(len(codes) - 1, 'session')} {verb}")
    return max(codes)


def _prune(runtime: Runtime, session_id: str, arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Prune one session and return the exit code and the report; one that fails does not stop the others."""
    from .._retention import cutoff_of, first_kept_seq

    report: dict[str, Any] = {"session_id": session_id, "dry_run": arguments.dry_run, "removed": 0}
    try:
        before = runtime.store.info(session_id).first_available
        older_than = None
        if arguments.keep_days is not None:
            older_than = cutoff_of(arguments.keep_days, dt.datetime.now(dt.UTC))
        first = first_kept_seq(runtime.store, session_id, older_than=older_than, acked=arguments.acked)
        if first > before and not arguments.dry_run:
            session = runtime.session(session_id)
            first = session.truncate_before(first)
            runtime.forget_session(session_id)
            session.stop()
        report |= {"first_available": first, "removed": max(0, first - before)}
    except (LogmarkError, OSError) as error:
        report["error"] = error_text(error)
        return exit_code_of(error), report
    return ExitCode.OK, report


def _print(report: dict[str, Any], out: Output, *, dry_run: bool) -> None:
    name = printable(report["session_id"])
    if "error" in report:
        out.line(f"{name}: not pruned: {report['error']}")
    elif report["removed"]:
        would = "would begin" if dry_run else "begins"
        out.line(f"{name}: {would} with {report['first_available']:,}, {plural(report['removed'], 'number')} less")


COMMAND = Command(
    name="prune",
    summary="give up the beginning of sessions: by age, or once it was acknowledged",
    description=(
        "Remove the events at the beginning of every session, or of those named, that are older than --keep-days, or"
        " that every cursor has acknowledged (--acked), or both. Numbering goes on, marks of jobs stay, and readers"
        " that are behind are told where the session begins now. Programs may go on writing meanwhile."
    ),
    example="""\
logmark prune --keep-days 90 --dry-run
logmark prune --keep-days 30 --acked
logmark prune --acked chat-42
""",
    add_arguments=_add_arguments,
    run=_run,
)
