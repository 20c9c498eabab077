"""``logmark info``: one session, counted event by event."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..protocol import JobMarks, LogmarkError, RawEnvelope
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode, exit_code_of
from ._stores import first_available as first_available_of
from ._stores import marks_before, open_existing, require_session
from ._text import error_text, printable, table

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", help="a session id, as 'logmark ls' shows it")
    parser.add_argument("--json", action="store_true", help="everything as one object")


@dataclasses.dataclass(slots=True)
class _Tally:
    """What one reading of a session has counted."""

    marks: JobMarks
    count: int = 0
    first: RawEnvelope | None = None
    last: RawEnvelope | None = None

    def add(self, event: RawEnvelope) -> None:
        self.count += 1
        self.first = self.first or event
        self.last = event
        self.marks.apply((event,))


def _run(arguments: argparse.Namespace, console: Console) -> int:
    with open_existing(arguments.store) as runtime:
        require_session(runtime, arguments.session)
        start = first_available_of(runtime, arguments.session)
        tally = _Tally(marks_before(runtime, arguments.session, start))
        code = _count(runtime, arguments.session, start, tally, console)
        report = _report(runtime, arguments.session, tally)
    if arguments.json:
        console.out.json(report)
    else:
        _print(report, console)
    return code


def _count(runtime: Runtime, session_id: str, start: int, tally: _Tally, console: Console) -> int:
    """Count what can be read, which of a halted session is all and of a damaged one the good prefix."""
    try:
        for event in runtime.store.read(session_id, from_seq=start, halted_ok=True):
            tally.add(event)
    except LogmarkError as error:
        console.err.say(error_text(error))
        return exit_code_of(error)
    return ExitCode.OK


def _report(runtime: Runtime, session_id: str, tally: _Tally) -> dict[str, Any]:
    halted = runtime.store.halted(session_id)
    try:
        info = runtime.store.info(session_id)
        last_seq, first_available, sealed = info.last_seq, info.first_available, info.sealed
    except LogmarkError:  # what could be counted is all that is known
        last_seq, first_available, sealed = 0, 1, False
    return {
        "session_id": session_id,
        "first_seq": 0 if tally.first is None else tally.first.event_seq,
        "last_seq": last_seq if tally.last is None else tally.last.event_seq,
        "first_available": first_available,
        "sealed": sealed,
        "count": tally.count,
        "first_timestamp": None if tally.first is None else tally.first.timestamp_text,
        "last_timestamp": None if tally.last is None else tally.last.timestamp_text,
        "halted": None if halted is None else halted.reason,
        "halted_at": None if halted is None else halted.at,
        "jobs": [dataclasses.asdict(mark) for mark in tally.marks.all()],
    }


def _print(report: dict[str, Any], console: Console) -> None:
    out = console.out
    halted = "no" if report["halted"] is None else f"since {report['halted_at']}: {report['halted']}"
    lines = {
        "session": report["session_id"],
        "first_seq": report["first_seq"],
        "last_seq": report["last_seq"],
        "count": report["count"],
        "pruned": f"below {report['first_available']}" if report["first_available"] > 1 else None,
        "sealed": "yes" if report["sealed"] else None,
        "first": report["first_timestamp"],
        "last": report["last_timestamp"],
        "halted": halted,
        "jobs": len(report["jobs"]),
    }
    for name, value in lines.items():
        if value is not None:
            out.line(f"{out.coloured(f'{name:<9}', '1')}  {printable(str(value))}")
    if report["jobs"]:
        out.line("")
        columns = ("job_id", "first_seq", "last_seq", "count", "status")
        out.table(
            table(
                tuple(name.upper().removesuffix("_ID") for name in columns),
                [
                    tuple(printable(mark[name]) if isinstance(mark[name], str) else mark[name] for name in columns)
                    for mark in report["jobs"]
                ],
            )
        )


COMMAND = Command(
    name="info",
    summary="describe one session and its jobs",
    description=(
        "Read a session from end to end and report its first and last number, how many events it has, whether it is"
        " halted and why, and for each job the first and last number, the count and the status, pruned events included."
        " A halted session is counted too, a damaged one up to the damage."
    ),
    example="""\
logmark info chat-42
logmark info chat-42 --json | jq '.jobs[] | select(.status == "running")'
""",
    add_arguments=_add_arguments,
    run=_run,
)
