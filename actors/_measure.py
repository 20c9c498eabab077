"""From what the store answered to what those who measure are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..storage import Appended
from ._instrumentation import PersistedBatch
from .messages import Append, Persisted

__all__ = ["persisted_batch"]

_NONE: dict[str, int] = {}


def persisted_batch(session_id: str, appends: Sequence[Append], message: Persisted, ended_ns: int) -> PersistedBatch:
    """Say what a commit did, in numbers."""
    result = message.result
    first_seq = last_seq = events = retries = 0
    appends_s: list[float] = []
    failed: list[str] = []
    for append, answer in zip(appends, result.answers, strict=False):  # a store in a test may answer too few
        if not isinstance(answer, Appended):
            failed.append(type(answer).__name__)
            continue
        # The clock of the wall, which is what a submission has, may have been set back meanwhile.
        appends_s.append(max(0, ended_ns - append.submitted_ns) / 1e9)
        if answer.written:
            first_seq = first_seq or answer.first_seq
            last_seq = answer.last_seq
            events += answer.last_seq - answer.first_seq + 1
        else:
            retries += 1
    return PersistedBatch(
        session_id=session_id,
        first_seq=first_seq,
        last_seq=last_seq,
        events=events,
        size_bytes=result.bytes_written,
        commit_s=message.commit_s,
        sync_s=result.sync_s,
        ended_ns=ended_ns,
        appends_s=appends_s,
        retries=retries,
        errors=Counter(failed) if failed else _NONE,
        spans=[append.span for append in appends if append.span is not None],
    )
