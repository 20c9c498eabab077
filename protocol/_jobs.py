"""Marks: what a session knows of each job, folded from its events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from ._envelope import RawEnvelope
from ._types import EventTypes

__all__ = ["JobMark", "JobMarks", "decode_marks", "encode_marks"]

_MARKS_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobMark:
    """The mark of a job: where its events begin and end, how many they are, and how it stands.

    Attributes:
        status: ``running`` until an event says otherwise; ARCP's terminals are ``success``, ``error``, ``cancelled``
            and ``timed_out`` (ARCP draft, section 7.3). ``pending`` with count 0 is a job without any event.
    """

    job_id: str
    first_seq: int
    last_seq: int
    count: int
    status: str


class JobMarks:
    """The fold of a session's events into marks. Not thread-safe: one actor owns it.

    Events are applied in order of their numbers; an event at or below ``last_seq`` was applied before and is ignored.

    Args:
        types: the rules by which events change a job's status.
        rule_failed: called with the event and the exception when a rule of the embedding program raises; the event
            still counts, the status stays.
    """

    def __init__(
        self, types: EventTypes, *, rule_failed: Callable[[RawEnvelope, Exception], None] | None = None
    ) -> None:
        self._types = types
        self._rule_failed = rule_failed
        self._marks: dict[str, JobMark] = {}
        self.last_seq = 0

    def apply(self, events: Iterable[RawEnvelope]) -> list[JobMark]:
        """Fold events in and return the marks that moved, each once, as they are now."""
        moved: dict[str, None] = {}
        for event in events:
            seq = event.event_seq
            if seq is None or seq <= self.last_seq:
                continue
            self.last_seq = seq
            job_id = event.job_id
            if job_id is None:
                continue
            mark = self._marks.get(job_id)
            before = "pending" if mark is None else mark.status
            status = self._status_after(before, event)
            self._marks[job_id] = JobMark(
                job_id=job_id,
                first_seq=seq if mark is None else mark.first_seq,
                last_seq=seq,
                count=1 if mark is None else mark.count + 1,
                status=status,
            )
            moved[job_id] = None
        return [self._marks[job_id] for job_id in moved]

    def restore(self, last_seq: int, marks: Iterable[JobMark]) -> None:
        """Begin with marks that were folded before, from all events up to ``last_seq``."""
        self._marks = {mark.job_id: mark for mark in marks}
        self.last_seq = last_seq

    def _status_after(self, before: str, event: RawEnvelope) -> str:
        try:
            return self._types.next_status(before, event.type, lambda: orjson.loads(event.payload_json))
        except Exception as error:
            # The rule is the embedding program's. The log is already written, so its fault may not stop the fold.
            if self._rule_failed is None:
                raise
            self._rule_failed(event, error)
            return "running" if before == "pending" else before

    def all(self) -> list[JobMark]:
        """Return every mark, ordered by the job's first event."""
        return list(self._marks.values())

    def get(self, job_id: str) -> JobMark:
        """Return a job's mark; a job without events is ``pending`` with numbers 0."""
        mark = self._marks.get(job_id)
        if mark is None:
            return JobMark(job_id=job_id, first_seq=0, last_seq=0, count=0, status="pending")
        return mark


def encode_marks(rules: str, marks: Iterable[JobMark]) -> bytes:
    """Return marks as bytes for a later run; ``rules`` is what ``EventTypes.status_rules`` says of their statuses."""
    rows = [(mark.job_id, mark.first_seq, mark.last_seq, mark.count, mark.status) for mark in marks]
    return orjson.dumps({"v": _MARKS_VERSION, "rules": rules, "marks": rows})


def decode_marks(rules: str | None, data: bytes) -> list[JobMark]:
    """Return marks that were encoded before, by these status rules; None: by any.

    Raises:
        ValueError: they are of another version, or of other status rules.
    """
    try:
        members: dict[str, Any] = orjson.loads(data)
        if members["v"] != _MARKS_VERSION or members["rules"] != (members["rules"] if rules is None else rules):
            raise ValueError("it is of another version or of other status rules")
        return [
            JobMark(job_id=job_id, first_seq=first_seq, last_seq=last_seq, count=count, status=status)
            for job_id, first_seq, last_seq, count, status in members["marks"]
        ]
    except (KeyError, TypeError) as error:
        message = f"it is not of the form of marks: {error!r}"
        raise ValueError(message) from error
