"""What an engine promises to those who read: order, bounds, laziness, and session ids of every kind."""

from __future__ import annotations

import functools
import random
import sys
import threading

from ..storage import Appended, EventStore
from ._conformance_base import (
    StoreHarness,
    append_events,
    make_event,
    make_events,
    run_together,
    seqs_of,
    texts_of,
)

__all__ = ["ODD_SESSION_IDS", "ReadingConformance", "SessionIdConformance", "ThreadingConformance"]

S = "session"

ODD_SESSION_IDS = (
    "chat-42",
    " ",
    "  two  blanks  ",
    ".",
    "..",
    "...",
    "../../etc/passwd",
    "/etc/passwd",
    "/",
    "\\",
    "C:\\windows",
    "a/b",
    "a//b",
    "a/../b",
    "a%2fb",
    "a%2Fb",
    "%",
    "%%",
    "%2e",
    "%00",
    ".hidden",
    "trailing.",
    "trailing ",
    "name.new",
    "case",
    "Case",
    "CASE",
    "con",
    "CON",
    "nul.txt",
    "com1",
    "lpt9.log",
    "head",
    "lock",
    "halt.json",
    "quarantine",
    "store.json",
    "00000000000000000001.jsonl",
    "-rf",
    "*",
    "?",
    "'",
    '"',
    ";",
    "$(id)",
    "a\nb",
    "a\rb",
    "\t",
    "\x00",
    "a\x00b",
    "\x7f",
    "\u00e9",
    "e\u0301",
    "\u00df",
    "SS",
    "\u0131",
    "\u200b",
    "\u2028",
    "\u202ertl",
    "\ufeff",
    "\N{PILE OF POO}",
    "\U0010ffff",
    "z" * 200,
    "Z" * 200,
    "Z" * 199 + "Y",
    "\N{PILE OF POO}" * 50,
    "." * 200,
    "%" * 200,
    "\x00" * 200,
)
"""Valid ids that have hurt some store or other: each is a session of its own."""


class ReadingConformance(StoreHarness):
    """Reading yields the durable events in order, lazily, as of the call."""

    def test_reading_starts_at_the_number_asked_for(self) -> None:
        """Row 16: the bound is inclusive, 0 and less are the same as 1, beyond the end there is nothing."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        append_events(store, S, make_event("c"))

        assert texts_of(store.read(S, from_seq=2)) == ["b", "c"]
        for start in (1, 0, -5):
            assert texts_of(store.read(S, from_seq=start)) == ["a", "b", "c"]
        assert texts_of(store.read(S, from_seq=3)) == ["c"]
        assert list(store.read(S, from_seq=4)) == []
        assert list(store.read(S, from_seq=10**18)) == []

    def test_reading_ends_at_the_number_asked_for(self) -> None:
        """The upper bound is inclusive too; an empty range yields nothing."""
        store = self.opened()
        append_events(store, S, *make_events("a b c d"))

        assert seqs_of(store.read(S, through_seq=2)) == [1, 2]
        assert seqs_of(store.read(S, from_seq=2, through_seq=3)) == [2, 3]
        assert seqs_of(store.read(S, from_seq=2, through_seq=2)) == [2]
        assert list(store.read(S, from_seq=3, through_seq=2)) == []
        assert list(store.read(S, through_seq=0)) == []
        assert seqs_of(store.read(S, through_seq=99)) == [1, 2, 3, 4]

    def test_reading_downwards(self) -> None:
        """``before_seq`` is exclusive; beyond the end it is the same as none."""
        store = self.opened()
        append_events(store, S, *make_events("a b c d"))

        assert texts_of(store.read_backwards(S)) == ["d", "c", "b", "a"]
        assert seqs_of(store.read_backwards(S, before_seq=4)) == [3, 2, 1]
        assert seqs_of(store.read_backwards(S, before_seq=2)) == [1]
        assert seqs_of(store.read_backwards(S, before_seq=5)) == [4, 3, 2, 1]
        assert seqs_of(store.read_backwards(S, before_seq=10**18)) == [4, 3, 2, 1]
        for nothing in (1, 0, -5):
            assert list(store.read_backwards(S, before_seq=nothing)) == []

    def test_both_directions_agree_from_every_number(self) -> None:
        """Rows 16 and 55: commits of one to seven events, read from and up to every number, also after a restart."""
        store = self.opened()
        source = random.Random(7)
        expected: list[str] = []
        while len(expected) < 60:
            texts = [
                f"{len(expected) + index}-{'x' * source.randrange(300)}" for index in range(source.randrange(1, 8))
            ]
            append_events(store, S, *map(make_event, texts))
            expected += texts

        for again in self.before_and_after_restart(store):
            for seq in range(1, len(expected) + 2):
                assert texts_of(again.read(S, from_seq=seq)) == expected[seq - 1 :]
                assert texts_of(again.read(S, through_seq=seq)) == expected[:seq]
                assert texts_of(again.read_backwards(S, before_seq=seq)) == expected[: seq - 1][::-1]

    def test_reading_is_as_of_the_call(self) -> None:
        """What is appended later is not there, even when nothing has been taken from the iterator yet."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        upwards, bounded, downwards = store.read(S), store.read(S, through_seq=9), store.read_backwards(S)
        append_events(store, S, *make_events("c d"))

        assert texts_of(upwards) == ["a", "b"]
        assert texts_of(bounded) == ["a", "b"]
        assert texts_of(downwards) == ["b", "a"]
        assert texts_of(store.read(S)) == ["a", "b", "c", "d"]

    def test_appends_go_on_while_a_reader_stands_still(self) -> None:
        """A reader in the middle of the log holds nothing that an append or another reader needs."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        upwards, downwards = store.read(S), store.read_backwards(S)
        assert next(upwards).event_seq == 1
        assert next(downwards).event_seq == 3

        assert append_events(store, S, make_event("d")) == Appended(4, 4)
        assert seqs_of(store.read(S)) == [1, 2, 3, 4]
        assert seqs_of(upwards) == [2, 3]
        assert seqs_of(downwards) == [2, 1]

    def test_a_reader_may_be_abandoned(self) -> None:
        """Readers left in the middle, many times over, cost nothing that runs out."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))

        for _ in range(2000):
            next(store.read(S))
            next(store.read_backwards(S))
        assert append_events(store, S, make_event()) == Appended(4, 4)

    def test_everyone_reads_their_own_writes(self) -> None:
        """When ``append`` returns, every way to look includes what it wrote."""
        store = self.opened()
        for seq in range(1, 30):
            append_events(store, S, make_event())
            assert store.last_seq(S) == seq
            assert (store.info(S).last_seq, store.info(S).next_seq, store.info(S).first_seq) == (seq, seq + 1, 1)
            assert seqs_of(store.read(S, from_seq=seq)) == [seq]
            assert next(store.read_backwards(S)).event_seq == seq

    def test_a_sound_session_verifies_without_findings(self) -> None:
        """Verification changes nothing, and there is nothing to repair."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.reserve(S, 4)
        append_events(store, S, make_event())

        for again in self.before_and_after_restart(store):
            assert again.verify_store() == []
            assert again.verify(S) == []
            assert again.repair(S, dry_run=True) == []
            assert again.repair(S) == []
            assert seqs_of(again.read(S)) == [1, 2, 5]
            store = again
        assert append_events(store, S, make_event()) == Appended(6, 6)

    def test_closing_twice_does_nothing(self) -> None:
        """The second call finds nothing to release."""
        store = self.opened()
        append_events(store, S, make_event())
        store.close()
        store.close()


class SessionIdConformance(StoreHarness):
    """Any non-empty text of up to 200 UTF-8 bytes names a session of its own."""

    def test_odd_ids_are_sessions_of_their_own(self) -> None:
        """Each holds what was written to it, under its own id, also after a restart."""
        store = self.opened()
        for turn in ("first", "second"):
            for index, session_id in enumerate(ODD_SESSION_IDS):
                append_events(store, session_id, make_event(f"{turn} {index}"))

        for again in self.before_and_after_restart(store):
            for index, session_id in enumerate(ODD_SESSION_IDS):
                assert texts_of(again.read(session_id)) == [f"first {index}", f"second {index}"]
                assert {event.session_id for event in again.read(session_id)} == {session_id}
                assert again.info(session_id).session_id == session_id

    def test_sessions_are_listed_by_their_ids_in_order(self) -> None:
        """``sessions`` gives back the ids themselves, sorted as text, also after a restart."""
        store = self.opened()
        shuffled = list(ODD_SESSION_IDS)
        random.Random(3).shuffle(shuffled)
        for session_id in shuffled:
            append_events(store, session_id, make_event())

        assert list(store.sessions()) == sorted(ODD_SESSION_IDS)
        assert list(self.reopened(store).sessions()) == sorted(ODD_SESSION_IDS)

    def test_a_halt_finds_its_session_whatever_the_id(self) -> None:
        """No two odd ids share a halt."""
        store = self.opened()
        for session_id in ODD_SESSION_IDS:
            append_events(store, session_id, make_event())
            store.halt(session_id, f"because of {len(session_id)}")
        for session_id in ODD_SESSION_IDS:
            record = store.halted(session_id)
            assert record is not None
            assert (record.session_id, record.reason) == (session_id, f"because of {len(session_id)}")
            store.clear_halt(session_id)
            assert store.halted(session_id) is None


class ThreadingConformance(StoreHarness):
    """Every method is safe from any thread."""

    def test_threads_append_to_sessions_of_their_own(self) -> None:
        """Row 4: eight threads and eight sessions, each dense and in order."""
        store = self.opened()
        names = [f"s{index}" for index in range(8)]
        run_together(*(functools.partial(_append_numbered, store, name, 40) for name in names))

        for name in names:
            assert texts_of(store.read(name)) == [f"{name} {index}" for index in range(40)]
            assert seqs_of(store.read(name)) == list(range(1, 41))
        assert list(store.sessions()) == names

    def test_readers_see_whole_commits_in_order(self) -> None:
        """Row 36: whoever reads while another thread writes sees the log up to some commit, never a part of one."""
        store = self.opened()
        commits = [tuple(make_event("x" * 300) for _ in range(50)) for _ in range(200)]
        done = threading.Event()

        def write() -> None:
            try:
                for events in commits:
                    append_events(store, S, *events)
            finally:
                done.set()

        def look() -> None:
            known = 0
            while True:
                last_look = done.is_set()
                found = seqs_of(store.read(S, from_seq=known + 1))
                assert found == list(range(known + 1, known + len(found) + 1))
                assert len(found) % 50 == 0
                known += len(found)
                assert store.info(S).last_seq % 50 == 0
                assert store.last_seq(S) >= known
                newest = next(store.read_backwards(S), None)
                assert known == 0 or (newest is not None and (newest.event_seq or 0) >= known)
                if last_look:
                    assert known == 10_000
                    return

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that threads meet in the middle of things
        try:
            run_together(write, look, look)
        finally:
            sys.setswitchinterval(interval)


def _append_numbered(store: EventStore, name: str, count: int) -> None:
    for index in range(count):
        append_events(store, name, make_event(f"{name} {index}"))
