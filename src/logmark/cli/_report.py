"""``logmark report``: what a store holds, counted, and how far its readers have come."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime as dt
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..protocol import JobMarks, LogmarkError, RawEnvelope
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode, exit_code_of
from ._pretty import ago, rich_console
from ._progress import Progress
from ._stores import open_existing, require_session
from ._text import error_text, plural, printable, table

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]

_COLUMNS = ("SESSION", "EVENTS", "BYTES", "FIRST", "LAST", "LAST EVENT", "JOBS", "CURSORS", "STATE")
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to report (default: all)")
    parser.add_argument("--json", action="store_true", help="one object per session, then one of the whole store")


@dataclasses.dataclass(slots=True)
class _Tally:
    """What one reading of a session has counted."""

    marks: JobMarks
    events: int = 0
    bytes: int = 0
    first_seq: int = 0
    last: RawEnvelope | None = None

    def add(self, event: RawEnvelope) -> None:
        self.events += 1
        self.bytes += len(event.head_json or b"") + len(event.payload_json)
        self.first_seq = self.first_seq or event.event_seq or 0
        self.last = event
        self.marks.apply((event,))


def _run(arguments: argparse.Namespace, console: Console) -> int:
    reports: list[dict[str, Any]] = []
    codes: list[int] = [ExitCode.OK]
    with open_existing(arguments.store) as runtime:
        for session_id in arguments.sessions:
            require_session(runtime, session_id)
        wanted = list(dict.fromkeys(arguments.sessions) or runtime.store.sessions())
        progress = Progress(console.err, None, noun="events")
        done = 0
        try:
            for session_id in wanted:
                tally = _Tally(JobMarks(runtime.types))
                code, report = _report(runtime, session_id, tally, functools.partial(_show, progress, done))
                done += tally.events
                codes.append(code)
                reports.append(report)
                if arguments.json:
                    console.out.json(report)
        finally:
            progress.end()
        total = _total(runtime.store.url, reports)
    if arguments.json:
        console.out.json(total)
    else:
        _print(reports, total, console)
    return max(codes)


def _report(
    runtime: Runtime, session_id: str, tally: _Tally, progressed: Callable[[int], None]
) -> tuple[int, dict[str, Any]]:
    """Report one session; one that cannot be read is counted as far as it can, and does not hide the others."""
    from .._cursor import cursor_marks
    from .._projection import projection_halts

    report: dict[str, Any] = {"session_id": session_id}
    error: LogmarkError | OSError | None = None
    store = runtime.store
    try:
        info = store.info(session_id)
        report |= {"first_available": info.first_available, "sealed": info.sealed, "halted": info.halted}
        for event in store.read(session_id, from_seq=info.first_available, halted_ok=True):
            tally.add(event)
            progressed(tally.events)
        pruned = info.first_available > 1 and info.halted is None
        marks = runtime.session(session_id).jobs() if pruned else tally.marks.all()
        cursors = cursor_marks(store, session_id)
        stopped = projection_halts(store, session_id)
    except (LogmarkError, OSError) as problem:
        error, marks, cursors, stopped = problem, tally.marks.all(), [], []
    report |= {
        "events": tally.events,
        "bytes": tally.bytes,
        "first_seq": tally.first_seq,
        "last_seq": 0 if tally.last is None else tally.last.event_seq,
        "last_timestamp": None if tally.last is None else tally.last.timestamp_text,
        "jobs": dict(sorted(collections.Counter(mark.status for mark in marks).items())),
        "cursors": [
            {
                "name": cursor.name,
                "position": cursor.position,
                "lag": cursor.lag,
                "updated_at": cursor.updated_at.isoformat().replace("+00:00", "Z"),
            }
            for cursor in cursors
        ],
        "projections_halted": [{"name": halt.name, "seq": halt.seq, "reason": halt.reason} for halt in stopped],
        "error": None if error is None else error_text(error),
    }
    return (ExitCode.OK if error is None else exit_code_of(error)), report


def _show(progress: Progress, before: int, count: int) -> None:
    progress.update(0, before + count)


def _total(url: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    jobs: collections.Counter[str] = collections.Counter()
    for report in reports:
        jobs.update(report["jobs"])
    return {
        "store": url,
        "sessions": len(reports),
        "events": sum(report["events"] for report in reports),
        "bytes": sum(report["bytes"] for report in reports),
        "jobs": dict(sorted(jobs.items())),
        "cursors": sum(len(report["cursors"]) for report in reports),
        "lag_max": max((cursor["lag"] for report in reports for cursor in report["cursors"]), default=0),
        "projections_halted": sum(len(report["projections_halted"]) for report in reports),
        "halted": sum(report.get("halted") is not None for report in reports),
        "sealed": sum(bool(report.get("sealed")) for report in reports),
        "failed": sum(report["error"] is not None for report in reports),
    }


def _print(reports: list[dict[str, Any]], total: dict[str, Any], console: Console) -> None:
    out, now = console.out, dt.datetime.now(dt.UTC)
    rows = [_row(report, now) for report in reports]
    rich = rich_console(out)
    if rich is not None and rows:
        from ._pretty import pretty_table

        for line in pretty_table(rich, _COLUMNS, rows):
            out.line(line)
    else:
        out.table(table(_COLUMNS, rows))
    lagging = [(report["session_id"], cursor) for report in reports for cursor in report["cursors"] if cursor["lag"]]
    for session_id, cursor in sorted(lagging, key=lambda each: -each[1]["lag"]):
        when = ago(dt.datetime.fromisoformat(cursor["updated_at"]), now)
        out.line(
            f"cursor {printable(cursor['name'])} of {printable(session_id)} is {plural(cursor['lag'], 'event')} behind,"
            f" at {cursor['position']:,}; it moved {when}"
        )
    for report in reports:
        for halt in report["projections_halted"]:
            out.line(
                f"projection {printable(halt['name'])} of {printable(report['session_id'])} is halted at"
                f" {halt['seq']:,}: {printable(halt['reason'])}"
            )
    out.line(
        f"{plural(total['sessions'], 'session')}, {plural(total['events'], 'event')}, {size_text(total['bytes'])};"
        f" {total['halted']:,} halted, {total['sealed']:,} sealed, {total['failed']:,} not readable to the end"
    )


def _row(report: dict[str, Any], now: dt.datetime) -> tuple[Any, ...]:
    last = report["last_timestamp"]
    lags = [cursor["lag"] for cursor in report["cursors"]]
    return (
        printable(report["session_id"]),
        report["events"],
        size_text(report["bytes"]),
        report["first_seq"],
        report["last_seq"],
        "-" if last is None else ago(dt.datetime.fromisoformat(last), now),
        " ".join(f"{count} {status}" for status, count in report["jobs"].items()) or "-",
        f"{len(lags)}, lag {max(lags):,}" if lags else "-",
        _state(report),
    )


def _state(report: dict[str, Any]) -> str:
    if report["error"] is not None:
        return f"error: {report['error']}"
    if report["halted"] is not None:
        return f"halted: {printable(report['halted'])}"
    pruned = f"pruned below {report['first_available']:,}" if report["first_available"] > 1 else ""
    return ", ".join(filter(None, ("sealed" if report["sealed"] else "", pruned))) or "ok"


def size_text(size: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit in _UNITS[:-1]:
        if size < _STEP:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= _STEP
    return f"{size:,.1f} {_UNITS[-1]}"


COMMAND = Command(
    name="report",
    summary="count what a store holds, and say how far its readers have come",
    description=(
        "Read every session, or those named, from end to end and report how many events and bytes they have, their"
        " first and last number, how old the last event is, how their jobs stand, which cursors they have and how far"
        " behind those are, and what is halted, sealed or pruned. Bytes are those of the events, whatever the engine"
        " needs beside them."
    ),
    example="""\
logmark report
logmark report --json | jq -c 'select(.cursors) | .cursors[] | select(.lag > 1000)'
logmark report chat-42 --store postgresql://localhost/events
""",
    add_arguments=_add_arguments,
    run=_run,
)
