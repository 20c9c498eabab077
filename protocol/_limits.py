"""Every bound in the system, in one place."""

from __future__ import annotations

import dataclasses

from ._errors import InvalidArgument

__all__ = ["SEQ_MAX", "Limits"]

_ENCODER_DEPTH_MAX = 250  # the JSON encoder stops at 254 levels, and the envelope takes some

_WAIT_S_MAX = 10**9  # 31 years; not far beyond it, the operating system's timers overflow

SEQ_MAX = 2**63 - 1
"""The highest ``event_seq``: a signed 64-bit integer, which every engine and every client can hold."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one runtime; units are the last word of each name.

    Raises:
        InvalidArgument: a bound is not positive, or two bounds contradict each other.
    """

    event_bytes_max: int = 1024 * 1024
    """JSON bytes of one event, its envelope included."""
    depth_max: int = 64
    """Nesting of containers in one event."""
    session_id_bytes_max: int = 200
    """UTF-8 bytes of a session id."""
    name_bytes_max: int = 200
    """UTF-8 bytes of an event type, event id, job id or trace id."""
    batch_events_max: int = 4096
    """Events in one commit; a larger ``append_many`` is a commit of its own."""
    batch_bytes_max: int = 8 * 1024 * 1024
    """Bytes in one commit; a larger ``append_many`` is a commit of its own."""
    segment_bytes_max: int = 64 * 1024 * 1024
    """Size at which the file engine starts the next segment."""
    lock_wait_s: float = 10.0
    """Longest wait for a session's lock, then ``LockTimeout``."""
    inbox_events_max: int = 65_536
    """Events of one session accepted and not yet answered; also the largest ``append_many``."""
    inbox_bytes_max: int = 64 * 1024 * 1024
    """Bytes of one session accepted and not yet answered."""
    inbox_wait_s: float = 30.0
    """Longest wait for a place in the inbox, then ``Overloaded``."""
    subscriber_events_max: int = 4096
    """Events held in memory for one subscriber; beyond it the subscriber reads from the log."""
    subscriber_bytes_max: int = 8 * 1024 * 1024
    """Bytes held in memory for one subscriber."""
    read_chunk_bytes: int = 256 * 1024
    """Bytes that one read of the log brings into memory."""
    marks_unsaved_events_max: int = 16_384
    """Events after which a session's marks, and its rows' places, are saved again; a cold open folds about as many."""
    page_events_max: int = 10_000
    """Events of one page."""
    open_sessions_max: int = 256
    """Sessions whose files the file engine keeps open at once."""
    persist_threads_max: int = 16
    """PersistActors; each has a thread from the first time that no caller gives it its turn."""
    pool_threads_max: int = 2
    """Threads shared by the actors that never block."""
    io_threads_max: int = 2
    """Threads that read logs on behalf of actors."""
    aio_threads_max: int = 4
    """Threads in which a ``logmark.aio`` runtime does what may block."""
    server_wait_s: float = 10.0
    """Longest wait of an engine with a server: for a connection, or for an answer; then an error, never a hang."""
    server_connections_max: int = 12
    """Connections that an engine with a server keeps for appends and reads."""
    watch_interval_s: float = 0.05
    """How often the store is asked what other processes have appended."""
    actor_restarts_max: int = 5
    """Restarts of one actor within ``actor_restart_window_s`` before it gives up."""
    actor_restart_window_s: float = 60.0
    """The window of ``actor_restarts_max``."""
    close_wait_s: float = 30.0
    """Longest wait of ``Runtime.close()`` for what was accepted."""

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive or that contradict each other."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = float if field.name.endswith("_s") else int
            if isinstance(value, bool) or not isinstance(value, wanted | int) or not value > 0:
                message = f"Limits.{field.name} must be a positive {wanted.__name__}, not {value!r}"
                raise InvalidArgument(message)
            if wanted is float and value > _WAIT_S_MAX:
                message = f"Limits.{field.name} is at most {_WAIT_S_MAX} seconds, not {value!r}"
                raise InvalidArgument(message)
        if self.depth_max > _ENCODER_DEPTH_MAX:
            message = f"Limits.depth_max is at most {_ENCODER_DEPTH_MAX}, not {self.depth_max}"
            raise InvalidArgument(message)
        if self.inbox_bytes_max < self.event_bytes_max:
            message = "Limits.inbox_bytes_max must hold one event of event_bytes_max"
            raise InvalidArgument(message)
