"""Stores as the commands that only look open them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import InvalidArgument, JobMarks, LogmarkError, check_session_id, decode_marks

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["first_available", "has_session", "marks_before", "open_existing", "require_session"]


def open_existing(url: str) -> Runtime:
    """Open a store without making one; the runtime is a context manager that closes it.

    Raises:
        StorageUnavailable: there is none, or it cannot be opened.
    """
    from .. import open as open_store

    return open_store(url, create=False)


def has_session(runtime: Runtime, session_id: str) -> bool:
    """Say whether the store has ever heard of a session."""
    check_session_id(session_id, bytes_max=runtime.limits.session_id_bytes_max)
    return any(known == session_id for known in runtime.store.sessions())


def first_available(runtime: Runtime, session_id: str) -> int:
    """Return the smallest number of a session that can be asked for; 1 when its log cannot tell."""
    try:
        return runtime.store.info(session_id).first_available
    except LogmarkError:
        return 1


def marks_before(runtime: Runtime, session_id: str, first_available: int) -> JobMarks:
    """Return marks to fold a session's events into, which know of those that were pruned."""
    marks = JobMarks(runtime.types)
    if first_available > 1:
        from ..actors import BASE_PREFIX, decode_base

        base = runtime.store.load_record(session_id, f"{BASE_PREFIX}marks")
        if base is not None:
            last_seq, data = decode_base(base.data)
            marks.restore(last_seq, decode_marks(None, data))
    return marks


def require_session(runtime: Runtime, session_id: str) -> None:
    """Raise unless the store has the session: an empty answer to a misspelt name would pass for good news.

    Raises:
        InvalidArgument: it has not.
    """
    if not has_session(runtime, session_id):
        message = f"there is no session {session_id!r} in {runtime.store.url}; see 'logmark ls'"
        raise InvalidArgument(message)
