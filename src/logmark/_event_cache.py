"""The events that were last looked at by their numbers, so that the page everybody looks at is read once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from .protocol import RawEnvelope

__all__ = ["EventCache"]

_EVENTS_MAX = 256
_BYTES_MAX = 1024 * 1024


class EventCache:
    """Events of one session by number. Safe from any thread.

    What stands under a number never changes, so nothing here is ever out of date; whether an event may still be shown
    is for the caller to know.
    """

    __slots__ = ("_bytes", "_events", "_mutex")

    def __init__(self) -> None:
        self._events: OrderedDict[int, RawEnvelope] = OrderedDict()
        self._bytes = 0
        self._mutex = threading.Lock()

    def get(self, seqs: Iterable[int]) -> dict[int, RawEnvelope]:
        """Return those of the events that are here."""
        with self._mutex:
            found = {seq: self._events[seq] for seq in seqs if seq in self._events}
            for seq in found:
                self._events.move_to_end(seq)
        return found

    def put(self, events: Iterable[RawEnvelope]) -> None:
        """Keep events, in place of those that were longest not asked for."""
        with self._mutex:
            for event in events:
                seq = event.event_seq
                if seq is None or seq in self._events:
                    continue
                self._events[seq] = event
                self._bytes += len(event.payload_json)
            while len(self._events) > _EVENTS_MAX or self._bytes > _BYTES_MAX:
                _, oldest = self._events.popitem(last=False)
                self._bytes -= len(oldest.payload_json)
