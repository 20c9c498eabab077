"""What the conformance tests run in a process of its own: append to a session, and say what was answered.

``python -m logmark.testing._conformance_program URL SESSION NAME APPENDS EVENTS_EACH``: waits for a line on standard
input, then appends. Each append brings its own ids (``NAME-turn-index``), so that it can be tried again. One line is
written after each answer: its turn and its first number.
"""

from __future__ import annotations

import sys

from ..storage import AppendRequest, open_store
from ._conformance_base import append_events, make_event

__all__ = ["event_ids", "main", "request_of_turn"]


def event_ids(name: str, turn: int, events_each: int) -> list[str]:
    """Return the ids of one append of the program."""
    return [f"{name}-{turn}-{index}" for index in range(events_each)]


def request_of_turn(name: str, turn: int, events_each: int) -> AppendRequest:
    """Return one append of the program."""
    return AppendRequest(tuple(make_event(id_, id=id_) for id_ in event_ids(name, turn, events_each)))


def main(url: str, session_id: str, name: str, appends: str, events_each: str) -> None:
    """Append, as the module says."""
    store = open_store(url)
    _say("ready")
    sys.stdin.readline()
    for turn in range(int(appends)):
        answer = append_events(store, session_id, *request_of_turn(name, turn, int(events_each)).events)
        _say(f"{turn} {answer.first_seq}")
    store.close()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
