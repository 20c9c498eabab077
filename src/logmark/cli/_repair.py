"""``logmark repair``: make damaged or halted sessions sound again, keeping every byte that is taken out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..protocol import LogmarkError
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode, exit_code_of
from ._stores import open_existing, require_session
from ._text import error_text, plural, printable

if TYPE_CHECKING:
    from ..storage import EventStore

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to repair (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done; exit code 1 if anything")
    parser.add_argument("--json", action="store_true", help="one object per session, with its steps")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    codes: list[int] = []
    changed = 0
    with open_existing(arguments.store) as runtime:
        for session_id in arguments.sessions:
            require_session(runtime, session_id)
        wanted: Iterable[str] = dict.fromkeys(arguments.sessions) or runtime.store.sessions()
        for session_id in wanted:
            code, report = _repair(runtime.store, session_id, dry_run=arguments.dry_run)
            codes.append(code)
            changed += bool(report["steps"])
            if arguments.json:
                console.out.json(report)
            else:
                _print(report, console.out)
            console.out.flush()
    if not arguments.json:
        verb = "would be repaired" if arguments.dry_run else "repaired"
        console.out.line(f"{plural(len(codes), 'session')} looked at, {changed:,} {verb}")
    return max(codes, default=ExitCode.OK)


def _repair(store: EventStore, session_id: str, *, dry_run: bool) -> tuple[int, dict[str, Any]]:
    """Repair one session and return the exit code and the report; one that fails does not stop the others."""
    code: int
    report: dict[str, Any] = {"session_id": session_id, "dry_run": dry_run, "steps": []}
    try:
        report["steps"] = store.repair(session_id, dry_run=dry_run)
        code = ExitCode.FOUND if dry_run and report["steps"] else ExitCode.OK
    except (LogmarkError, OSError) as error:
        code = exit_code_of(error)
        report["error"] = error_text(error)
    return code, report


def _print(report: dict[str, Any], out: Output) -> None:
    name = printable(report["session_id"])
    for step in report["steps"]:
        out.line(f"{name}: {printable(step)}")
    if "error" in report:
        out.line(f"{name}: not repaired: {report['error']}")
    elif not report["steps"]:
        out.line(f"{name}: sound, nothing to do")


COMMAND = Command(
    name="repair",
    summary="make damaged or halted sessions sound again",
    description=(
        "Take out what cannot be read, give rows whose numbers are broken the next ones in the order of writing,"
        " reserve the numbers of events that are lost so that none is used again, rebuild the head, and clear the halt"
        " once the log is sound. The originals are copied to the session's quarantine directory first; sound sessions"
        " are left alone, and a second repair does nothing. Stop the programs that write to a session first."
    ),
    example="""\
logmark repair --dry-run
logmark repair chat-42
logmark repair --json | jq -c 'select(.steps | length > 0)'
""",
    add_arguments=_add_arguments,
    run=_run,
)
