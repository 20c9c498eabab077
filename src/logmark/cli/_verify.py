"""``logmark verify``: read sessions from end to end and say what is wrong with them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..protocol import LogmarkError
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode, exit_code_of
from ._stores import open_existing, require_session
from ._text import error_text, plural, printable

if TYPE_CHECKING:
    from ..storage import EventStore, Finding

__all__ = ["COMMAND"]

_GREEN, _YELLOW, _RED = "32", "33", "31"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to verify (default: all)")
    parser.add_argument("--json", action="store_true", help="one object per session, with its findings")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    codes: list[int] = []
    with open_existing(arguments.store) as runtime:
        for session_id in arguments.sessions:
            require_session(runtime, session_id)
        if not arguments.sessions:
            codes += _verify_store(runtime.store, console.out, as_json=arguments.json)
        wanted: Iterable[str] = dict.fromkeys(arguments.sessions) or runtime.store.sessions()
        for session_id in wanted:
            code, report = _verify(runtime.store, session_id)
            codes.append(code)
            if arguments.json:
                console.out.json(report)
            else:
                _print(report, console.out)
            console.out.flush()  # a large store takes a while; each answer is shown when it is there
    if not arguments.json:
        bad = len(codes) - codes.count(ExitCode.OK)
        console.out.line(f"{plural(len(codes), 'session')} verified, {f'{bad:,} not' if bad else 'all'} sound")
    return max(codes, default=ExitCode.OK)


def _verify_store(store: EventStore, out: Output, *, as_json: bool) -> list[int]:
    """Report what is wrong beyond any session; return a code for each finding."""
    findings = store.verify_store()
    for finding in findings:
        if as_json:
            out.json({"session_id": None, "ok": False, "findings": [_members(finding)]})
        else:
            out.line(f"{out.coloured(finding.kind, _RED)}: {printable(finding.detail)}")
    return [ExitCode.FOUND] * len(findings)


def _verify(store: EventStore, session_id: str) -> tuple[int, dict[str, Any]]:
    """Verify one session and return its exit code and its report; one bad session does not hide the others."""
    code: int
    report: dict[str, Any] = {"session_id": session_id}
    try:
        findings = store.verify(session_id)
        code = ExitCode.OK if all(finding.harmless for finding in findings) else ExitCode.FOUND
        report |= {"ok": code == ExitCode.OK, "findings": [_members(finding) for finding in findings]}
    except (LogmarkError, OSError) as error:
        code = exit_code_of(error)
        report |= {"ok": False, "findings": [], "error": error_text(error)}
    return code, report


def _members(finding: Finding) -> dict[str, Any]:
    members = dataclasses.asdict(finding)
    del members["session_id"]  # the report has it
    return members


def _print(report: dict[str, Any], out: Output) -> None:
    name = printable(report["session_id"])
    if "error" in report:
        out.line(f"{name}: {out.coloured('cannot be read', _RED)}: {report['error']}")
    for finding in report["findings"]:
        if finding["harmless"]:
            word = out.coloured("note", _YELLOW) + f" ({finding['kind']})"
        else:
            word = out.coloured(finding["kind"], _RED)
        out.line(f"{name}: {word}: {printable(finding['detail'])}")
    if report["ok"]:
        out.line(f"{name}: {out.coloured('ok', _GREEN)}")


COMMAND = Command(
    name="verify",
    summary="read sessions from end to end and report damage",
    description=(
        "Read every row of every session, or of those named, and check numbers, checksums and commits. Nothing is"
        " locked or changed. What the next append mends by itself, such as the remains of a write that a crash cut"
        " short, is a note; anything else is damage, a gap, lost rows or a halt, and makes the exit code 1."
    ),
    example="""\
logmark verify
logmark verify chat-42 chat-43
logmark verify --json | jq -c 'select(.ok | not)'
""",
    add_arguments=_add_arguments,
    run=_run,
)
