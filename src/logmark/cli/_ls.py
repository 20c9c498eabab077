"""``logmark ls``: the sessions of a store."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..protocol import LogmarkError
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode, exit_code_of
from ._stores import marks_before, open_existing
from ._text import error_text, printable, table

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-l", "--long", action="store_true", help="count the events and jobs too, which reads every log from end to end"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one object per session, with count and jobs, so it reads every log",
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    code = ExitCode.OK
    rows: list[dict[str, Any]] = []
    with open_existing(arguments.store) as runtime:
        for session_id in runtime.store.sessions():
            row: dict[str, Any] = {"session_id": session_id}
            try:
                _describe(runtime, row, count=arguments.long or arguments.json)
            except (LogmarkError, OSError) as error:  # one bad session does not hide the others
                row["error"] = error_text(error)
                code = max(code, exit_code_of(error))
            if not arguments.json:
                rows.append(row)
                continue
            console.out.json(row)
            if console.out.gone:
                break
    if not arguments.json:
        console.out.table(_table(rows, counted=arguments.long))
    return code


def _describe(runtime: Runtime, row: dict[str, Any], *, count: bool) -> None:
    info = runtime.store.info(row["session_id"])
    row |= {
        "first_seq": info.first_seq,
        "last_seq": info.last_seq,
        "next_seq": info.next_seq,
        "first_available": info.first_available,
        "sealed": info.sealed,
        "halted": info.halted,
    }
    if not count:
        return
    marks = marks_before(runtime, info.session_id, info.first_available)
    events = 0
    for event in runtime.store.read(info.session_id, from_seq=info.first_available, halted_ok=True):
        events += 1
        marks.apply((event,))
    row |= {"count": events, "jobs": [dataclasses.asdict(mark) for mark in marks.all()]}


def _table(rows: list[dict[str, Any]], *, counted: bool) -> list[str]:
    names = ("first_seq", "last_seq", *(("count", "jobs") if counted else ()))
    return table(
        ("SESSION", *(name.upper() for name in names), "STATE"),
        [(printable(row["session_id"]), *(_cell(row.get(name, "?")) for name in names), _state(row)) for row in rows],
    )


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | str) else len(value)


def _state(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"error: {row['error']}"
    state = "ok" if row["halted"] is None else f"halted: {printable(row['halted'])}"
    if row["sealed"]:
        state = "sealed" if row["halted"] is None else f"sealed, {state}"
    return state if row["first_available"] == 1 else f"{state}, pruned below {row['first_available']}"


COMMAND = Command(
    name="ls",
    summary="list the sessions of a store",
    description=(
        "List the sessions of a store in the order of their ids: the first and the last number of each, and whether it"
        " is halted, sealed or pruned. This reads no events; --long and --json do, to count them and to derive the"
        " marks of the jobs."
    ),
    example="""\
logmark ls
logmark ls --long --store /var/lib/chat
logmark ls --json | jq -r 'select(.halted) | .session_id'
""",
    add_arguments=_add_arguments,
    run=_run,
)
