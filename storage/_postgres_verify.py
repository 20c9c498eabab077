"""Verify and repair sessions in PostgreSQL: every row by itself, the numbers without a hole, the counters."""

from __future__ import annotations

import dataclasses
from typing import cast

from psycopg.types.numeric import Int8

from ..protocol import LogCorrupt, row_seed
from ._postgres_lifetimes import damaged_records
from ._postgres_pool import Connection
from ._postgres_rows import Events, Reader, SessionRow, row_problem
from ._postgres_schema import Statements
from ._store import Finding

__all__ = ["Scan", "repair_locked", "scan_session", "verify_schema", "verify_session"]

_FINDINGS_MAX = 1000
_CONSTRAINTS = 2


@dataclasses.dataclass(slots=True)
class Scan:
    """What reading all rows of a session has shown.

    Attributes:
        bad: number and reason of each damaged row.
        missing: first and last number of each gap that nothing explains.
        last: number of the last sound row, 0 when there is none.
        counters: what is wrong with the counters, or None.
        records: name and reason of each record that cannot be trusted.
    """

    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list[tuple[int, str]])
    missing: list[tuple[int, int]] = dataclasses.field(default_factory=list[tuple[int, int]])
    last: int = 0
    counters: str | None = None
    records: list[tuple[bytes, str]] = dataclasses.field(default_factory=list[tuple[bytes, str]])

    @property
    def is_sound(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.bad and not self.missing and self.counters is None and not self.records


def scan_session(
    reader: Reader, statements: Statements, session_id: str, row: SessionRow, *, known: int, chunk_bytes: int
) -> Scan:
    """Look at every row up to the high-water, and at the counters; others may go on appending.

    Args:
        reader: asks the server.
        statements: of the store.
        session_id: the session.
        row: what the table says of it.
        known: through which number this process knows the log to go.
        chunk_bytes: the size of a page.
    """
    events = Events(reader, statements, session_id, row, chunk_bytes=chunk_bytes)
    seed = row_seed(session_id)
    scan = Scan()
    wanted = row.first_available
    for each in events.rows(1, row.through):
        if each[0] < row.first_available:
            scan.bad.append((each[0], f"it is below {row.first_available}, the first number that is available"))
            continue
        if each[0] > wanted:
            scan.missing += events.unexplained(wanted, each[0] - 1)
        wanted = each[0] + 1
        problem = row_problem(each, seed)
        if problem is None:
            scan.last = each[0]
        else:
            scan.bad.append((each[0], problem))
    through = max(row.through, known)
    if wanted <= through:
        scan.missing += events.unexplained(wanted, through)
    # In one statement, which sees rows and counters as of one moment, whoever appends meanwhile.
    counters = reader.ask(statements.counters, (row.key,))
    for last_seq, through_seq, last_row, last_reserved, pruned, deleted_at in counters:
        if deleted_at is not None:
            return Scan()  # somebody has removed it meanwhile, and what it lacked with it
        scan.missing = [(max(low, pruned + 1), high) for low, high in scan.missing if high > pruned]
        wanted = last_seq if last_seq > pruned else 0
        if (last_row or 0) != wanted and not scan.bad and not scan.missing:
            scan.counters = f"the last event is said to be {last_seq}, and it is {last_row or 0}"
        elif max(last_row or 0, last_reserved or 0) > through_seq:
            scan.counters = f"the numbers are said to be used through {through_seq}, and {last_row} is"
    rows = reader.ask(statements.load_records, {"session": session_id.encode(), "name": None})
    scan.records = damaged_records(session_id, rows)
    return scan


def verify_session(
    reader: Reader, statements: Statements, session_id: str, row: SessionRow, *, known: int, chunk_bytes: int
) -> tuple[list[Finding], LogCorrupt | None]:
    """Return what is wrong with a session, and the first of it as an error; a halt is a finding and no error."""
    findings: list[Finding] = []
    if row.deleted_at is not None:
        ((left,),) = reader.ask(statements.left, (row.key,))
        if left:
            detail = f"{left} events are left of a session that was deleted at {row.deleted_at}; delete it again"
            place = "logmark_events"
            findings.append(Finding(session_id=session_id, kind="damage", detail=detail, harmless=True, place=place))
        return findings, None
    halt = row.halt(session_id)
    if halt is not None:
        detail = f"halted since {halt.at}: {halt.reason}"
        findings.append(Finding(session_id=session_id, kind="halt", detail=detail, harmless=False))
    scan = scan_session(reader, statements, session_id, row, known=known, chunk_bytes=chunk_bytes)
    problems: list[tuple[str, int | None, str]] = [("damage", seq, reason) for seq, reason in scan.bad]
    for first, last in scan.missing:
        kind = "lost" if last >= row.through else "gap"
        problems.append((kind, first, f"events {first} to {last} were durable and are missing"))
    problems.sort(key=lambda each: each[1] or 0)
    if scan.counters is not None:
        problems.append(("damage", None, scan.counters))
    error: LogCorrupt | None = None
    for kind, seq, reason in problems[:_FINDINGS_MAX]:
        damage = LogCorrupt(session_id=session_id, reason=reason, event_seq=seq, segment=None, offset=None)
        error = error or damage
        findings.append(
            Finding(
                session_id=session_id,
                kind=kind,
                detail=str(damage),
                harmless=False,
                event_seq=seq,
                place="logmark_sessions" if seq is None else "logmark_events",
            )
        )
    for _, reason in scan.records:  # which are no reason to keep a session halted
        place = "logmark_records"
        findings.append(Finding(session_id=session_id, kind="damage", detail=reason, harmless=False, place=place))
    return findings, error


def verify_schema(reader: Reader, statements: Statements) -> list[Finding]:
    """Return what is wrong with the store as a whole: constraints that are gone, rows that no session owns."""
    found: list[str] = []
    ((constraints,),) = reader.ask(statements.constraints, ())
    if constraints != _CONSTRAINTS:
        found.append("logmark_events lacks a constraint on (session, number) or on (session, event id)")
    ((orphans,),) = reader.ask(statements.orphans, ())
    if orphans:
        found.append(f"{orphans} rows of logmark_events and logmark_records belong to no session")
    return [
        Finding(session_id="", kind="damage", detail=detail, harmless=False, place="logmark_events") for detail in found
    ]


def repair_locked(
    connection: Connection,
    statements: Statements,
    row: SessionRow,
    scan: Scan,
    *,
    known: int,
    dry_run: bool,
) -> list[str]:
    """Mend what a scan has found; the caller holds the session's lock, and commits.

    What is taken out of the events goes to the quarantine table. The numbers of what is lost stay used.
    """
    steps: list[str] = []
    for seq, reason in scan.bad:
        steps.append(f"put event {seq} into logmark_quarantine ({reason}), its number stays used")
        if not dry_run:
            connection.execute(statements.take_out, (row.key, seq, reason.encode()))
    lost = sorted([*scan.missing, *((seq, seq) for seq, _ in scan.bad if seq >= row.first_available)])
    for first, last in scan.missing:
        steps.append(f"mark the numbers {first} to {last}, whose events are lost, as used")
    if not dry_run:
        for first, last in lost:
            connection.execute(
                statements.reserve, (Int8(row.key), Int8(first), Int8(last), b"lost, and marked as used by a repair")
            )
    for name, reason in scan.records:
        steps.append(f"put record {name.decode(errors='replace')!r} into logmark_quarantine ({reason})")
        if not dry_run:
            connection.execute(statements.take_out_record, (Int8(row.key), name, reason.encode()))
    ((_, through, last_row, last_reserved, _, _),) = cast(
        "list[tuple[int, int, int | None, int | None, int, str | None]]",
        connection.execute(statements.counters, (row.key,), binary=True).fetchall(),
    )
    wanted = (last_row or 0) if not dry_run else scan.last
    wanted = wanted or min(row.seq, row.pruned_through)  # the last event may be pruned
    through = max(through, last_row or 0, last_reserved or 0, known)
    if scan.counters is not None or (wanted, through) != (row.seq, row.through):
        steps.append(f"set the last event to {wanted}, and the numbers that are used to {through}")
        if not dry_run:
            connection.execute(statements.set_counters, (Int8(wanted), Int8(through), Int8(row.key)))
    return steps
