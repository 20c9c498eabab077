"""What this process has logged of its own commits and troubles, kept for as long as the page is served.

An event's batch, its sync and whom it was shown to are not in the log of a session; they are in the log events of the
process that wrote it. So they are known here only for what this process has written since the page is there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

__all__ = ["Trails"]

_SESSIONS_MAX = 512
_BATCHES_MAX = 2048
_NOTES_MAX = 50
_TEXT_MAX = 400
_COMMIT_KEYS = (
    "first_seq",
    "last_seq",
    "events",
    "appends",
    "retries",
    "bytes",
    "sync_ms",
    "commit_ms",
    "submitted_first",
    "submitted_last",
)
_NOTED_KEYS = ("reason", "error", "lag", "next_seq", "last_seq", "segment", "kept", "restarts", "first_event_id")
_WORTH_NOTING = frozenset({"subscriber_caught_up", "session_repaired", "halt_cleared"})


class _Trail:
    """What is known of one session."""

    __slots__ = ("batches", "broadcasts", "notes", "notes_count")

    def __init__(self) -> None:
        self.batches: deque[dict[str, Any]] = deque(maxlen=_BATCHES_MAX)
        self.broadcasts: deque[tuple[int, int, int]] = deque(maxlen=_BATCHES_MAX)
        self.notes: deque[dict[str, Any]] = deque(maxlen=_NOTES_MAX)
        self.notes_count = 0


class Trails:
    """A ``LogSink`` that remembers the last commits, deliveries and troubles of each session. Safe from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._trails: OrderedDict[str, _Trail] = OrderedDict()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take a log event."""
        session_id = event.get("session")
        if not isinstance(session_id, str):
            return
        name, level = event["event"], event["level"]
        noted = level in ("warning", "error") or name in _WORTH_NOTING
        if not noted and name not in ("batch_persisted", "batch_broadcast"):
            return
        with self._mutex:
            trail = self._trails.get(session_id)
            if trail is None:
                trail = self._trails[session_id] = _Trail()
                if len(self._trails) > _SESSIONS_MAX:
                    self._trails.popitem(last=False)
            else:
                self._trails.move_to_end(session_id)
            if name == "batch_persisted":
                trail.batches.append({key: event[key] for key in _COMMIT_KEYS})
            elif name == "batch_broadcast":
                if event["first_seq"] is not None:
                    trail.broadcasts.append((event["first_seq"], event["last_seq"], event["subscribers"]))
            else:
                self._note(trail, event)

    def _note(self, trail: _Trail, event: Mapping[str, Any]) -> None:
        trail.notes_count += 1
        said = {key: str(event[key])[:_TEXT_MAX] for key in _NOTED_KEYS if event.get(key) is not None}
        trail.notes.append(
            {
                "n": trail.notes_count,
                "at_ms": time.time_ns() // 1_000_000,
                "event": event["event"],
                "level": event["level"],
                "said": said,
            }
        )

    def notes(self, session_id: str, after: int = 0) -> list[dict[str, Any]]:
        """Return the troubles of a session with a higher number than that, oldest first."""
        with self._mutex:
            trail = self._trails.get(session_id)
            return [] if trail is None else [note for note in trail.notes if note["n"] > after]

    def of(self, session_id: str, seq: int) -> dict[str, Any] | None:
        """Return the commit that wrote an event and how many subscribers were shown it; None when it is not known."""
        with self._mutex:
            trail = self._trails.get(session_id)
            if trail is None:
                return None
            batch = next(
                (each for each in reversed(trail.batches) if each["first_seq"] <= seq <= each["last_seq"]), None
            )
            if batch is None:
                return None
            shown = next((count for first, last, count in reversed(trail.broadcasts) if first <= seq <= last), 0)
            return {**batch, "subscribers": shown}
