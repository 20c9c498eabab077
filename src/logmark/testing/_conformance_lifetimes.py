"""What an engine promises of a session's life: how it ends, and what another store sees of it."""

from __future__ import annotations

import threading
from functools import partial

from ..protocol import (
    SeqPruned,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
    WrongExpectedSeq,
)
from ..storage import Appended, AppendRequest, EventStore, Snapshot
from ._conformance_base import (
    StoreHarness,
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    run_together,
    seqs_of,
    texts_of,
)
from ._conformance_pruning import PruningConformance

__all__ = ["LifetimeConformance", "TwoStoresLifetimeConformance"]

S = "session"


class SealingConformance(StoreHarness):
    """``seal``: everything can be read, nothing can be added."""

    def test_a_sealed_session_takes_no_more_events(self) -> None:
        """Nor reservations; also after a restart, and sealing again changes nothing."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))

        assert store.seal(S) == 2
        for seen in self.before_and_after_restart(store):
            result = append_batch(seen, S, AppendRequest(make_events("c")), AppendRequest(make_events("d"), 7))
            for answer in result.answers:
                assert isinstance(answer, SessionSealed)
                assert (answer.session_id, answer.last_seq) == (S, 2)
            assert (result.last_seq_before, result.last_seq) == (2, 2)
            raised_by(SessionSealed, seen.reserve, S, 10)
            assert seen.seal(S) == 2
            info = seen.info(S)
            assert (info.sealed, info.deleted, info.last_seq, info.next_seq) == (True, False, 2, 3)
            assert texts_of(seen.read(S)) == ["a", "b"]
            assert texts_of(seen.read_backwards(S)) == ["b", "a"]
            assert list(seen.sessions()) == [S]
            assert seen.verify(S) == []
            assert seen.repair(S) == []

    def test_retries_are_answered_after_the_seal(self) -> None:
        """Who did not get the answer to the last append asks again, also together with something new."""
        store = self.opened()
        append_events(store, S, *make_events("a b", ids=["x", "y"]))
        store.seal(S)

        for seen in self.before_and_after_restart(store):
            retry, new = append_answers(
                seen,
                S,
                AppendRequest(make_events("a b", ids=["x", "y"]), 0),
                AppendRequest((make_event("c", id="z"),)),
            )
            assert retry == Appended(1, 2, written=False)
            assert isinstance(new, SessionSealed)

    def test_a_session_without_events_can_be_sealed(self) -> None:
        """So that nobody begins it; it is a session then."""
        store = self.opened()
        assert store.seal(S) == 0
        for seen in self.before_and_after_restart(store):
            assert raised_by(SessionSealed, append_events, seen, S, make_event()).last_seq == 0
            assert seen.info(S).sealed
            assert list(seen.read(S)) == []
            assert list(seen.sessions()) == [S]
            assert seen.verify(S) == []

    def test_a_sealed_session_can_be_pruned(self) -> None:
        """Retention outlasts writing."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        store.seal(S)

        assert store.truncate_before(S, 3) == 3
        seen = store
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S, from_seq=3)) == ["c"]
        seen = self.reopened(seen)
        assert seen.truncate_before(S, 4) == 4
        for again in self.before_and_after_restart(seen):
            info = again.info(S)
            assert (info.first_available, info.first_seq, info.last_seq, info.sealed) == (4, 0, 3, True)
            raised_by(SessionSealed, append_events, again, S, make_event())

    def test_a_halt_stands_before_the_seal_and_the_seal_after_the_halt(self) -> None:
        """What is in doubt is not sealed; what was sealed is, when the doubt is settled."""
        store = self.opened()
        append_events(store, S, make_event("a"))
        store.halt(S, "why")
        raised_by(SessionHalted, store.seal, S)
        store.clear_halt(S)
        assert append_events(store, S, make_event("b")) == Appended(2, 2)
        assert store.seal(S) == 2
        store.halt(S, "why")

        raised_by(SessionHalted, append_events, store, S, make_event())
        assert store.repair(S)
        for seen in self.before_and_after_restart(store):
            raised_by(SessionSealed, append_events, seen, S, make_event())
            assert texts_of(seen.read(S)) == ["a", "b"]


class DeletionConformance(StoreHarness):
    """``delete``: what was kept is gone, and what was said stays true."""

    def test_a_deleted_session_takes_and_gives_nothing(self) -> None:
        """Row 54: its numbers and its id are not used again, also after a restart."""
        store = self.opened()
        append_events(store, S, *make_events("a b c", ids="xyz"))
        store.save_record(S, "ui", b"1", version=0)
        store.delete(S)

        for seen in self.before_and_after_restart(store):
            result = append_batch(
                seen,
                S,
                AppendRequest(make_events("d")),
                AppendRequest((make_event(id="x"),)),
                AppendRequest(make_events("e"), 3),
            )
            for answer in result.answers:
                assert isinstance(answer, SessionDeleted)
                assert (answer.session_id, answer.last_seq) == (S, 3)
                assert answer.deleted_at.endswith("Z")
            assert (result.last_seq_before, result.last_seq) == (3, 3)
            for call in (
                partial(seen.read, S),
                partial(seen.read, S, from_seq=4),
                partial(seen.read, S, halted_ok=True),
                partial(seen.read_envelopes, S),
                partial(seen.read_backwards, S),
                partial(seen.reserve, S, 10),
                partial(seen.truncate_before, S, 1),
                partial(seen.seal, S),
                partial(seen.halt, S, "why"),
                partial(seen.clear_halt, S),
                partial(seen.records, S),
                partial(seen.load_record, S, "ui"),
                partial(seen.save_record, S, "ui", b"2", version=1),
                partial(seen.save_record, S, "other", b"2", version=0),
            ):
                assert raised_by(SessionDeleted, call).last_seq == 3
            assert list(seen.sessions()) == []
            assert seen.halted(S) is None
            assert seen.verify(S) == []
            assert seen.repair(S) == []

    def test_a_tombstone_says_what_was(self) -> None:
        """The last number that was used, by whatever; deleting again changes nothing."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.reserve(S, 7)
        store.delete(S)
        when = raised_by(SessionDeleted, append_events, store, S, make_event()).deleted_at

        for seen in self.before_and_after_restart(store):
            seen.delete(S)
            info = seen.info(S)
            assert info.deleted
            assert (info.last_seq, info.next_seq, info.first_available, info.first_seq) == (7, 8, 8, 0)
            assert info.halted is None
            assert seen.last_seq(S) == 7
            (told,) = seen.last_seqs([S]).values()  # by which those who follow it learn of its end
            assert isinstance(told, SessionDeleted)
            assert told.last_seq == 7
            assert raised_by(SessionDeleted, append_events, seen, S, make_event()).deleted_at == when
            assert seen.load_snapshot(S, "marks") is None

    def test_a_session_that_was_never_written_to_can_be_deleted(self) -> None:
        """So that nobody begins it."""
        store = self.opened()
        store.delete(S)
        for seen in self.before_and_after_restart(store):
            assert raised_by(SessionDeleted, append_events, seen, S, make_event()).last_seq == 0
            info = seen.info(S)
            assert (info.deleted, info.last_seq, info.next_seq, info.first_available) == (True, 0, 1, 1)
            assert list(seen.sessions()) == []

    def test_pruned_sealed_and_halted_sessions_can_be_deleted(self) -> None:
        """There is no state in which a session cannot be got rid of."""
        store = self.opened()
        for name in ("pruned", "emptied", "sealed", "halted"):
            append_events(store, name, *make_events("a b c"))
        store.truncate_before("pruned", 3)
        store.truncate_before("emptied", 4)
        store.seal("sealed")
        store.halt("halted", "why")
        for name in ("pruned", "emptied", "sealed", "halted"):
            store.delete(name)

        for seen in self.before_and_after_restart(store):
            assert list(seen.sessions()) == []
            for name in ("pruned", "emptied", "sealed", "halted"):
                assert raised_by(SessionDeleted, append_events, seen, name, make_event()).last_seq == 3
                raised_by(SessionDeleted, seen.read, name)
                info = seen.info(name)
                assert (info.deleted, info.last_seq, info.halted) == (True, 3, None)

    def test_snapshots_go_with_their_session(self) -> None:
        """They are made of its events."""
        store = self.opened()
        append_events(store, S, make_event())
        store.save_snapshot(S, "marks", Snapshot(1, b"data"))
        store.delete(S)

        assert store.load_snapshot(S, "marks") is None
        store.save_snapshot(S, "marks", Snapshot(1, b"data"))
        assert self.reopened(store).load_snapshot(S, "marks") is None

    def test_a_reader_on_its_way_gets_events_or_is_told_of_the_deletion(self) -> None:
        """In both directions; and an iterator that was not begun yields no half of a log."""
        store = self.opened()
        for index in range(40):
            append_events(store, S, make_event(f"{index + 1}" + "x" * 100))
        upwards, downwards, unbegun = store.read(S), store.read_backwards(S), store.read(S)
        assert next(upwards).event_seq == 1
        assert next(downwards).event_seq == 40
        store.delete(S)

        for reader, begun, step, last in ((upwards, 1, 1, 40), (downwards, 40, -1, 1), (unbegun, 0, 1, 40)):
            at, told = begun, None
            try:
                for event in reader:
                    at += step
                    assert event.event_seq == at
            except SessionDeleted as error:
                told = error.last_seq
            assert told == 40 or (told is None and at == last)


class LifetimeConformance(PruningConformance, SealingConformance, DeletionConformance):
    """What every engine promises of the life of a session."""


class TwoStoresLifetimeConformance(StoreHarness):
    """What one store does to a session holds for the other, whatever that believes to know."""

    def test_what_one_store_prunes_is_gone_for_the_other(self) -> None:
        """Also for one that appended last, and for its ids."""
        one, two = self.two_stores()
        append_events(one, S, *make_events("a b c", ids="xyz"))
        append_events(two, S, make_event("d", id="w"))
        assert append_events(two, S, make_event("a", id="x")) == Appended(1, 1, written=False)
        assert one.truncate_before(S, 4) == 4

        assert raised_by(SeqPruned, two.read, S).first_available == 4
        assert seqs_of(two.read_backwards(S)) == [4]
        assert two.info(S).first_available == 4
        assert append_events(two, S, make_event("d", id="w")) == Appended(4, 4, written=False)
        assert append_events(two, S, make_event("e", id="x")) == Appended(5, 5)
        assert append_events(one, S, make_event("e", id="x")) == Appended(5, 5, written=False)
        assert two.truncate_before(S, 6) == 6
        assert raised_by(SeqPruned, one.read, S, from_seq=5).first_available == 6
        assert append_events(one, S, make_event("f"), expected_seq=5) == Appended(6, 6)
        assert texts_of(two.read(S, from_seq=6)) == ["f"]
        for store in (one, two):
            assert [finding for finding in store.verify(S) if not finding.harmless] == []

    def test_a_seal_holds_for_both_stores(self) -> None:
        """Also for the store that appended last and believes to know the session."""
        one, two = self.two_stores()
        append_events(one, S, make_event("a"))
        for text in ("b", "c", "d"):
            append_events(two, S, make_event(text, id=text))
        assert one.seal(S) == 4

        assert raised_by(SessionSealed, append_events, two, S, make_event()).last_seq == 4
        raised_by(SessionSealed, two.reserve, S, 9)
        assert append_events(two, S, make_event(id="d")) == Appended(4, 4, written=False)
        assert two.info(S).sealed
        assert two.seal(S) == 4
        assert seqs_of(two.read(S)) == [1, 2, 3, 4]

    def test_a_deletion_holds_for_both_stores(self) -> None:
        """Also for the store that appended last and believes to know the session."""
        one, two = self.two_stores()
        append_events(one, S, make_event("a"))
        append_events(two, S, make_event("b"))
        assert seqs_of(one.read(S)) == [1, 2]
        one.delete(S)

        assert raised_by(SessionDeleted, append_events, two, S, make_event()).last_seq == 2
        raised_by(SessionDeleted, two.read, S)
        raised_by(SessionDeleted, two.read_backwards, S)
        raised_by(SessionDeleted, two.records, S)
        raised_by(SessionDeleted, two.save_record, S, "ui", b"", version=0)
        assert two.info(S).deleted
        assert (one.last_seq(S), two.last_seq(S)) == (2, 2)
        assert list(two.sessions()) == []

    def test_readers_of_one_store_follow_the_pruning_of_another(self) -> None:
        """While one appends and prunes, another reads: consecutive events, or from where to go on."""
        one, two = self.two_stores()
        append_events(one, S, make_event("x" * 60))
        done = threading.Event()

        def write() -> None:
            try:
                for turn in range(60):
                    append_events(one, S, *(make_event("x" * 60) for _ in range(5)))
                    if turn % 4 == 3:
                        one.truncate_before(S, one.last_seq(S) - 6)
            finally:
                done.set()

        def look() -> None:
            at = 1
            while True:
                last_look = done.is_set()
                first_available = at
                try:
                    for event in two.read(S, from_seq=at):
                        assert event.event_seq == at
                        at += 1
                except SeqPruned as error:
                    first_available = error.first_available
                if first_available > at:
                    at = first_available
                    continue
                below = None
                for event in two.read_backwards(S):
                    assert below is None or event.event_seq == below - 1
                    below = event.event_seq
                if last_look:
                    assert at == 302
                    return

        run_together(write, look)
        assert [finding for finding in two.verify(S) if not finding.harmless] == []

    def test_a_session_is_sealed_while_another_store_appends(self) -> None:
        """What was answered with a number is there, what came later was refused, and the seal says how far it goes."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        begun = threading.Event()
        stored: list[int] = []
        sealed: list[int] = []

        def write(store: EventStore) -> None:
            while True:
                (answer,) = append_answers(store, S, AppendRequest((make_event(),)))
                if not isinstance(answer, Appended):
                    assert isinstance(answer, SessionSealed)
                    assert answer.last_seq == store.last_seq(S)
                    return
                stored.append(answer.last_seq)
                if answer.last_seq >= 20:
                    begun.set()

        def seal() -> None:
            assert begun.wait(60)
            sealed.append(one.seal(S))

        run_together(lambda: write(two), seal)
        assert sealed == [max(stored)]
        assert seqs_of(one.read(S)) == list(range(1, sealed[0] + 1))

    def test_an_expectation_and_a_deletion_meet(self) -> None:
        """A condition that names the last number does not bring a deleted session back."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        raised_by(WrongExpectedSeq, append_events, two, S, make_event(), expected_seq=0)
        one.delete(S)
        for expected in (0, 1, 2):
            (answer,) = append_answers(two, S, AppendRequest((make_event(),), expected))
            assert isinstance(answer, SessionDeleted)
