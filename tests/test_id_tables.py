"""What is kept of the ids beside the log is derived: however it is damaged, a retry gets its first number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from logmark.protocol import EncodedEvent, Limits
from logmark.storage import Appended, FileEventStore
from logmark.storage._layout import IDS
from logmark.testing import encoded_event
from logmark.testing.conformance import append_events

S = "s"
EVENTS = 24


def event(number: int) -> EncodedEvent:
    """Return an event whose id is the caller's own, so that it may be a retry."""
    return encoded_event("note", {"n": number}, id=f"id-{number:03}")


def open_store(path: Path) -> FileEventStore:
    return FileEventStore(path, limits=Limits(segment_bytes_max=800), durability="os")


def tables(path: Path) -> list[Path]:
    return sorted((path / "sessions" / S).glob(f"*{IDS}"))


# A process checks the entries of a table once, before it first goes by them.
ENTRIES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped entry": lambda table: table[:-3] + bytes([table[-3] ^ 1]) + table[-2:],
    "blocks that were never written": lambda table: table[:-16] + bytes(16),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda table: table[:-8],
    "entries gone": lambda table: table[: table.index(b"\n") + 1],
    "a damaged first line": lambda table: table.replace(b'"entries":', b'"entriez":'),
    "half a first line": lambda table: table[:20],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize(
    ("damage", "reopened"),
    [*((name, True) for name in (*ENTRIES, *DAMAGES)), *((name, False) for name in DAMAGES)],
)
def test_a_damaged_table_is_made_anew(tmp_path: Path, damage: str, *, reopened: bool) -> None:
    """Row 40: with its first number and nothing written, whatever the table says."""
    store = open_store(tmp_path)
    for number in range(1, EVENTS + 1):
        assert append_events(store, S, event(number)).first_seq == number
    assert append_events(store, S, event(2)) == Appended(2, 2, written=False)
    if reopened:
        store.close()
    sound = {path: path.read_bytes() for path in tables(tmp_path)}
    assert len(sound) > 3
    for path, content in sound.items():
        path.write_bytes((ENTRIES | DAMAGES)[damage](content))
    if reopened:
        store = open_store(tmp_path)

    for number in range(1, EVENTS + 1):
        assert append_events(store, S, event(number)) == Appended(number, number, written=False)
    assert append_events(store, S, event(EVENTS + 1)).first_seq == EVENTS + 1
    assert store.verify(S) == []


@pytest.mark.parametrize(("events", "segment_bytes"), [(EVENTS, 800), (250, 12_000)])
def test_an_id_that_was_made_for_its_event_is_found_as_well(tmp_path: Path, events: int, segment_bytes: int) -> None:
    """Row 40: who read an event may append it again, and nobody had asked for an id when its segment was closed."""
    store = FileEventStore(tmp_path, limits=Limits(segment_bytes_max=segment_bytes), durability="os")
    for number in range(1, events + 1):
        assert append_events(store, S, event(number)._replace(id_is_fresh=True)).first_seq == number
    assert len(tables(tmp_path)) > 1

    for number in range(1, events + 1):
        assert append_events(store, S, event(number)) == Appended(number, number, written=False)
