"""Verify and repair sessions in a NATS stream: every message by itself, and the numbers without a hole."""

from __future__ import annotations

import dataclasses
import functools

import orjson

from ..protocol import LogCorrupt
from ._nats_append import Change
from ._nats_message import EMPTY, REPAIR, Commit, State, Stored, session_subject
from ._nats_reader import Reader
from ._nats_stream import Stream
from ._store import Finding

__all__ = ["Scan", "repaired", "scan_session", "verify_session"]

_PAGE_MESSAGES = 256
_FINDINGS_MAX = 1000


@dataclasses.dataclass(slots=True)
class Scan:
    """What reading all messages of a session has shown.

    Attributes:
        state: after the last sound message, but for ``at``, which is that of the very last.
        bad: number in the stream and reason of each damaged message.
        missing: first and last of the numbers whose events are gone, and nothing explains why.
        strays: how many messages were put there by somebody else.
        lost: the numbers that the last repair has given up.
        through: the last number that anything in the stream says was used.
    """

    state: State = EMPTY
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list[tuple[int, str]])
    missing: list[tuple[int, int]] = dataclasses.field(default_factory=list[tuple[int, int]])
    strays: int = 0
    lost: tuple[tuple[int, int], ...] = ()
    through: int = 0


def scan_session(reader: Reader, stream: Stream, session_id: str, *, known: int, chunk_bytes: int) -> Scan:
    """Look at every message up to the last; others may go on appending.

    Args:
        reader: of the store.
        stream: of the store.
        session_id: the session.
        known: through which number this process knows the session to go.
        chunk_bytes: the size of a page.
    """
    subject = session_subject(stream.name, session_id)
    scan = Scan()
    last = reader.asked(lambda deadline: stream.last(subject, deadline=deadline))
    if last is not None:
        at = 1
        while at <= last.seq:
            page = reader.asked(functools.partial(_page, stream, subject, at, chunk_bytes))
            if not page:
                break
            for stored in page:
                if stored.seq <= last.seq:
                    _look(scan, stored, session_id)
            at = page[-1].seq + 1
        scan.state = scan.state._replace(at=last.seq)
    through = max(known, scan.through)
    if through > scan.state.through:
        scan.missing.append((scan.state.through + 1, through))
    available = scan.state.first_available
    holes = [(max(low, available), high) for low, high in scan.missing if high >= available]
    scan.missing = [hole for low, high in holes for hole in _without(low, high, scan.lost)]
    return scan


def _page(stream: Stream, subject: str, at: int, chunk_bytes: int, deadline: float) -> list[Stored]:
    return stream.page(subject, at, bytes_max=chunk_bytes, count_max=_PAGE_MESSAGES, deadline=deadline)


def _look(scan: Scan, stored: Stored, session_id: str) -> None:
    try:
        commit = Commit.decode(stored, session_id)
    except LogCorrupt as error:
        scan.bad.append((stored.seq, error.reason))
        scan.through = max(scan.through, _claimed(stored))
        return
    if commit is None:
        scan.strays += 1
        return
    if commit.before > scan.state.through:
        scan.missing.append((scan.state.through + 1, commit.before))
    if commit.kind == REPAIR:
        scan.lost, scan.bad = commit.lost, []
    scan.state = commit.state


def _claimed(stored: Stored) -> int:
    """Return through which number a damaged message says that numbers are used, as far as that can be made out."""
    try:
        through = orjson.loads(stored.body.partition(b"\n")[0])["state"]["through"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0
    return through if isinstance(through, int) else 0


def _without(low: int, high: int, lost: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Return what of a range is in none of the sorted ranges."""
    found: list[tuple[int, int]] = []
    for first, last in lost:
        if first > high or last < low:
            continue
        if first > low:
            found.append((low, first - 1))
        low = last + 1
    if low <= high:
        found.append((low, high))
    return found


def verify_session(session_id: str, scan: Scan) -> tuple[list[Finding], LogCorrupt | None]:
    """Return what is wrong with a session, and the first of it as an error; a halt is a finding and no error."""
    findings: list[Finding] = []
    halt = scan.state.halt_record(session_id)
    if halt is not None:
        detail = f"halted since {halt.at}: {halt.reason}"
        findings.append(Finding(session_id=session_id, kind="halt", detail=detail, harmless=False))
    problems: list[tuple[str, int | None, str, str]] = [
        (
            "lost" if high >= scan.state.through else "gap",
            low,
            f"events {low} to {high} were durable and are missing",
            "",
        )
        for low, high in scan.missing
    ]
    problems += [("damage", None, reason, f"message {seq}") for seq, reason in scan.bad]
    error: LogCorrupt | None = None
    for kind, seq, reason, place in problems[:_FINDINGS_MAX]:
        damage = LogCorrupt(session_id=session_id, reason=reason, event_seq=seq, segment=None, offset=None)
        error = error or damage
        findings.append(
            Finding(
                session_id=session_id,
                kind=kind,
                detail=str(damage),
                harmless=False,
                event_seq=seq,
                place=place or None,
            )
        )
    return findings, error


def repaired(scan: Scan) -> tuple[Change | None, list[str]]:
    """Return what makes a session sound again, and a sentence for each step; nothing is taken out of the stream."""
    state = scan.state
    steps = [f"leave out message {seq} of the stream ({reason})" for seq, reason in scan.bad]
    steps += [f"mark the numbers {low} to {high}, whose events are lost, as used" for low, high in scan.missing]
    if state.halt is not None:
        steps.append(f"clear the halt ({state.halt[1]})")
    if not steps:
        return None, []
    through = max([state.through, *(high for _, high in scan.missing)])
    lost = tuple(sorted([*scan.lost, *scan.missing]))
    return Change(REPAIR, state._replace(through=through, halt=None), lost), steps
