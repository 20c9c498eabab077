"""Read a whole session and say what is wrong with it, without a lock and without changing anything."""

from __future__ import annotations

import os

from ..protocol import Limits, LogCorrupt, SchemaMismatch
from ._files import Files
from ._halt import HaltMarker
from ._head import HEAD_BYTES, Head
from ._layout import HALT, HEAD, available, segment_first_seq, segment_name
from ._lifetime import LifetimeFile
from ._segment import Scan, Segment
from ._store import Finding

__all__ = ["read_head", "verify_session"]


class _Report:
    """Findings, and the first error among them that an append or a read would raise."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self.findings: list[Finding] = []
        self.error: LogCorrupt | SchemaMismatch | None = None

    def note(
        self, kind: str, detail: str, *, harmless: bool, event_seq: int | None = None, place: str | None = None
    ) -> None:
        self.findings.append(
            Finding(
                session_id=self._session_id,
                kind=kind,
                detail=detail,
                harmless=harmless,
                event_seq=event_seq,
                place=place,
            )
        )

    def fail(self, error: LogCorrupt | SchemaMismatch, kind: str = "damage") -> None:
        self.error = self.error or error
        schema = isinstance(error, SchemaMismatch)
        self.note(
            "schema" if schema else kind,
            str(error),
            harmless=False,
            event_seq=None if isinstance(error, SchemaMismatch) else error.event_seq,
            place=None if error.segment is None else f"{error.segment}:{error.offset}",
        )


def read_head(files: Files, path: str, seed: int) -> Head | None:
    """Return the head of the session in a directory, or None when it is missing or damaged."""
    try:
        fd = files.open(os.path.join(path, HEAD), write=False)
    except FileNotFoundError:
        return None
    try:
        return Head.decode(files.read(fd, HEAD_BYTES, 0), seed)
    finally:
        files.close(fd)


def verify_session(
    files: Files, session_id: str, path: str, seed: int, limits: Limits
) -> tuple[list[Finding], LogCorrupt | SchemaMismatch | None]:
    """Return what is wrong, and the error that an append or a read would raise for it (None: the session is sound)."""
    lifetime = LifetimeFile(files, session_id, path)
    while True:
        before = lifetime.read_or_default()
        try:
            return _verify_session(files, session_id, path, seed, limits, lifetime)
        except FileNotFoundError:  # a segment that is not there any more, as it was pruned while this read
            if lifetime.read_or_default() == before:
                raise


def _verify_session(
    files: Files, session_id: str, path: str, seed: int, limits: Limits, lifetime_file: LifetimeFile
) -> tuple[list[Finding], LogCorrupt | SchemaMismatch | None]:
    report = _Report(session_id)
    halt = HaltMarker(files, session_id, os.path.join(path, HALT)).read()
    if halt is not None:
        report.note("halt", f"halted since {halt.at}: {halt.reason}", harmless=False)
    # The head first: rows and segments that arrive while this reads are then beyond it, and no loss.
    head = read_head(files, path, seed)
    try:
        names = files.listdir(path)
    except FileNotFoundError:
        return report.findings, None
    # After the names: what is not among them because it was pruned is then known to be.
    try:
        lifetime = lifetime_file.read()
    except (LogCorrupt, SchemaMismatch) as error:
        report.fail(error)
        lifetime = lifetime_file.read_or_default()
    if lifetime.deleted_at is not None:
        return [], None
    found = sorted(first for first in map(segment_first_seq, names) if first is not None)
    segments = available(found, lifetime.first_available)
    last: Scan | None = None
    through = min([lifetime.first_available, *segments[:1]]) - 1
    for first in segments:
        if first != through + 1 and last is None:
            report.fail(
                LogCorrupt(
                    session_id=session_id,
                    reason=f"rows {through + 1} to {first - 1} were durable and are missing",
                    event_seq=through + 1,
                    segment=segment_name(first),
                    offset=0,
                ),
                "lost",
            )
        elif first != through + 1:
            report.fail(
                LogCorrupt(
                    session_id=session_id,
                    reason=f"the segment starts with {first}, the one before it ends with {through}",
                    event_seq=through + 1,
                    segment=segment_name(first),
                    offset=0,
                ),
                "gap",
            )
        last = _verify_segment(files, session_id, path, first, limits, report, is_last=first == segments[-1])
        through = last.through
    _compare_head(report, session_id, head, through, segments, last)
    return report.findings, report.error


def _verify_segment(
    files: Files, session_id: str, path: str, first: int, limits: Limits, report: _Report, *, is_last: bool
) -> Scan:
    fd = files.open(os.path.join(path, segment_name(first)), write=False)
    try:
        segment = Segment(files, fd, session_id=session_id, first_seq=first, chunk_bytes=limits.read_chunk_bytes)
        try:
            start = segment.header_end()
        except (LogCorrupt, SchemaMismatch) as error:
            report.fail(error)
            return Scan(seq=first - 1, through=first - 1, end=0, size=0)
        scan = segment.scan(start, first - 1, first - 1)
        if scan.problem is not None:
            report.fail(scan.problem)
        elif scan.end < scan.size:
            report.note(
                "torn_tail" if is_last else "damage",
                f"{scan.size - scan.end} bytes after the last complete commit",
                harmless=is_last,
                event_seq=scan.through + 1,
                place=f"{segment.name}:{scan.end}",
            )
        return scan
    finally:
        files.close(fd)


def _compare_head(
    report: _Report, session_id: str, head: Head | None, through: int, segments: list[int], last: Scan | None
) -> None:
    if head is None:
        if segments:
            report.note("head", "the head is missing or damaged; it is rebuilt from the log", harmless=True)
    elif head.through > through:
        if report.error is None:
            report.fail(
                LogCorrupt(
                    session_id=session_id,
                    reason=f"rows {through + 1} to {head.through} were durable and are missing",
                    event_seq=through + 1,
                    segment=None if not segments else segment_name(segments[-1]),
                    offset=None if last is None else last.end,
                ),
                "lost",
            )
    elif head.through < through:
        report.note(
            "head", f"the head is at {head.through}, the log at {through}: the next append catches up", harmless=True
        )
