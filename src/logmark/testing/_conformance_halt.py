"""What an engine promises about halts, and to several holders of one store."""

from __future__ import annotations

import datetime as dt

from ..protocol import SessionHalted, WrongExpectedSeq
from ..storage import Appended, AppendRequest, EventStore, SessionBatch
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

__all__ = ["HaltConformance", "TwoStoresConformance"]

S = "session"


def read_all(store: EventStore) -> list[int | None]:
    """Read the session, so that what reading raises is raised."""
    return seqs_of(store.read(S))


class HaltConformance(StoreHarness):
    """A halted session refuses appends and replays, durably, until it is cleared; no other session is concerned."""

    def test_a_halted_session_refuses(self) -> None:
        """Row 20: appends, reservations and reads in both directions name the reason."""
        store = self.opened()
        append_events(store, S, *make_events("a b", ids=["1", "2"]))
        store.halt(S, "the disk is odd", first_event_id="3")
        record = store.halted(S)

        assert record is not None
        assert (record.session_id, record.reason, record.first_event_id) == (S, "the disk is odd", "3")
        assert dt.datetime.fromisoformat(record.at).utcoffset() == dt.timedelta(0)
        for call in (
            lambda: append_events(store, S, make_event()),
            lambda: append_events(store, S, make_event(), expected_seq=99),
            lambda: append_events(store, S, make_event(id="1")),
            lambda: store.reserve(S, 99),
            lambda: list(store.read(S)),
            lambda: list(store.read_backwards(S)),
        ):
            error = raised_by(SessionHalted, call)
            assert (error.session_id, error.reason, error.halted_at) == (S, "the disk is odd", record.at)

    def test_every_request_of_a_halted_session_is_answered(self) -> None:
        """The refusal is in the answers, never raised, and the batch still says where the session stands."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.halt(S, "why")

        result = append_batch(store, S, *(AppendRequest(make_events(words)) for words in ("a", "b c")))
        assert [type(answer) for answer in result.answers] == [SessionHalted, SessionHalted]
        assert (result.last_seq_before, result.last_seq, result.bytes_written) == (2, 2, 0)

    def test_a_halted_session_can_be_looked_at(self) -> None:
        """What it knows, and on request what it holds."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        store.reserve(S, 5)
        store.halt(S, "why")

        for again in self.before_and_after_restart(store):
            assert again.last_seq(S) == 3
            info = again.info(S)
            assert (info.last_seq, info.next_seq, info.halted) == (3, 6, "why")
            assert texts_of(again.read(S, halted_ok=True)) == ["a", "b", "c"]
            assert texts_of(again.read(S, from_seq=2, through_seq=2, halted_ok=True)) == ["b"]
            assert list(again.sessions()) == [S]
            (finding,) = again.verify(S)
            assert (finding.kind, finding.harmless, finding.session_id) == ("halt", False, S)
            assert "why" in finding.detail

    def test_a_halt_survives_a_restart(self) -> None:
        """Row 20: with its reason and its time, and it still refuses."""
        store = self.opened()
        append_events(store, S, make_event())
        store.halt(S, "why", first_event_id="x")
        before = store.halted(S)
        store = self.reopened(store)

        assert store.halted(S) == before
        raised_by(SessionHalted, append_events, store, S, make_event())
        raised_by(SessionHalted, read_all, store)

    def test_a_halt_concerns_its_session_only(self) -> None:
        """Row 20: others append and read, in the same call and later."""
        store = self.opened()
        append_events(store, "a", make_event())
        append_events(store, "b", make_event())
        store.halt("a", "why")

        first, second = store.append(
            [SessionBatch(name, (AppendRequest(make_events("x y")),)) for name in ("a", "b")],
        )
        assert isinstance(first.answers[0], SessionHalted)
        assert second.answers == (Appended(2, 3),)
        assert seqs_of(store.read("b")) == [1, 2, 3]
        assert store.halted("b") is None
        assert seqs_of(store.read("a", halted_ok=True)) == [1]

    def test_the_first_reason_stays(self) -> None:
        """A halt of a halted session changes nothing, also after a restart."""
        store = self.opened()
        append_events(store, S, make_event())
        store.halt(S, "first", first_event_id="x")
        store.halt(S, "second", first_event_id="y")
        store = self.reopened(store)
        store.halt(S, "third")

        record = store.halted(S)
        assert record is not None
        assert (record.reason, record.first_event_id) == ("first", "x")

    def test_a_cleared_session_goes_on(self) -> None:
        """Row 21: with the next number, and a later halt has its own reason."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.halt(S, "first")
        store.clear_halt(S)

        assert store.halted(S) is None
        assert store.info(S).halted is None
        assert texts_of(store.read(S)) == ["a", "b"]
        assert append_events(store, S, make_event("c")) == Appended(3, 3)
        store = self.reopened(store)
        assert store.halted(S) is None
        assert append_events(store, S, make_event("d")) == Appended(4, 4)
        store.halt(S, "second")
        record = store.halted(S)
        assert record is not None
        assert record.reason == "second"

    def test_clearing_after_a_restart(self) -> None:
        """Row 21: whoever clears need not be who halted."""
        store = self.opened()
        append_events(store, S, make_event("a"))
        store.halt(S, "why")
        store = self.reopened(store)
        store.clear_halt(S)

        assert append_events(store, S, make_event("b")) == Appended(2, 2)
        assert texts_of(store.read(S)) == ["a", "b"]

    def test_clearing_what_is_not_halted_does_nothing(self) -> None:
        """A session with events, and one without."""
        store = self.opened()
        append_events(store, S, make_event())
        store.clear_halt(S)
        store.clear_halt("another")

        assert append_events(store, S, make_event()) == Appended(2, 2)
        assert list(store.sessions()) == [S]

    def test_a_session_without_events_can_be_halted(self) -> None:
        """The first append of a session may be the one that failed."""
        store = self.opened()
        store.halt(S, "why")

        for again in self.before_and_after_restart(store):
            raised_by(SessionHalted, append_events, again, S, make_event())
            raised_by(SessionHalted, read_all, again)
            assert list(again.read(S, halted_ok=True)) == []
            assert (again.last_seq(S), again.info(S).halted) == (0, "why")
            store = again
        store.clear_halt(S)
        assert append_events(store, S, make_event()) == Appended(1, 1)

    def test_repair_clears_the_halt_of_a_sound_session(self) -> None:
        """Row 21: it says what it does, does it once, and on a dry run not at all."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.halt(S, "why")

        assert store.repair(S, dry_run=True)
        assert store.halted(S) is not None
        assert store.repair(S)
        assert store.halted(S) is None
        assert store.repair(S) == []
        assert texts_of(store.read(S)) == ["a", "b"]
        assert append_events(store, S, make_event()) == Appended(3, 3)


class TwoStoresConformance(StoreHarness):
    """For engines that several runtimes or processes can hold at once: two stores on the same data."""

    def test_two_stores_number_one_session(self) -> None:
        """Row 37: whoever appends gets the next number, and finds what the other has appended."""
        one, two = self.two_stores()
        for turn in range(10):
            first = append_batch(one, S, AppendRequest(make_events("one")))
            second = append_batch(two, S, AppendRequest(make_events("two two")))
            assert first.answers == (Appended(3 * turn + 1, 3 * turn + 1),)
            assert (first.last_seq_before, first.last_seq) == (3 * turn, 3 * turn + 1)
            assert second.answers == (Appended(3 * turn + 2, 3 * turn + 3),)
            assert (second.last_seq_before, second.last_seq) == (3 * turn + 1, 3 * turn + 3)

        for store in (one, two):
            assert texts_of(store.read(S)) == ["one", "two", "two"] * 10
            assert seqs_of(store.read(S)) == list(range(1, 31))

    def test_each_store_sees_at_once_what_the_other_appends(self) -> None:
        """By every way to look, whether it has looked before or not."""
        one, two = self.two_stores()
        assert one.is_shared
        assert two.last_seq(S) == 0
        for seq in range(1, 10):
            append_events(one, S, make_event())
            assert two.last_seq(S) == seq
            assert two.info(S).next_seq == seq + 1
            assert seqs_of(two.read(S)) == list(range(1, seq + 1))
            assert seqs_of(two.read_backwards(S)) == list(range(seq, 0, -1))
            assert list(two.sessions()) == [S]

    def test_ids_of_the_other_store_are_found(self) -> None:
        """Row 40: a retry through another store gets the first number."""
        one, two = self.two_stores()
        append_events(one, S, make_event("first", id="x"))

        assert append_events(two, S, make_event("again", id="x")) == Appended(1, 1, written=False)
        append_events(two, S, make_event("second", id="y"))
        assert append_events(one, S, make_event("again", id="y")) == Appended(2, 2, written=False)

    def test_ids_of_the_other_store_are_found_behind_events_of_ones_own(self) -> None:
        """Row 40: what the other wrote before one's own last event is not overlooked."""
        one, two = self.two_stores()
        append_events(one, S, make_event("mine", id="mine"))
        append_events(two, S, make_event("first", id="x"))
        append_events(one, S, make_event("without an id of its own"))

        assert append_events(one, S, make_event("again", id="x")) == Appended(2, 2, written=False)
        assert texts_of(two.read(S)) == ["mine", "first", "without an id of its own"]

    def test_expectations_meet_what_the_other_store_has_appended(self) -> None:
        """``expected_seq`` is compared with the log, not with what this store saw last."""
        one, two = self.two_stores()
        append_events(one, S, make_event(), expected_seq=0)
        append_events(two, S, make_event(), expected_seq=1)

        error = raised_by(WrongExpectedSeq, lambda: append_events(one, S, make_event(), expected_seq=1))
        assert error.last_seq == 2
        assert append_events(one, S, make_event(), expected_seq=2) == Appended(3, 3)

    def test_reservations_hold_for_both_stores(self) -> None:
        """Row 8: the numbers are used for everyone."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        append_events(two, S, make_event())
        one.reserve(S, 10)

        assert two.info(S).next_seq == 11
        assert append_events(two, S, make_event()) == Appended(11, 11)
        assert append_events(one, S, make_event()) == Appended(12, 12)

    def test_a_halt_holds_for_both_stores(self) -> None:
        """Row 20: also for the store that appended last and believes to know the session."""
        one, two = self.two_stores()
        append_events(two, S, make_event("a"))
        append_events(one, S, make_event("b"))
        assert texts_of(one.read(S)) == ["a", "b"]
        two.halt(S, "why")

        (answer,) = append_answers(one, S, AppendRequest(make_events("lost")))
        assert isinstance(answer, SessionHalted)
        assert answer.reason == "why"
        raised_by(SessionHalted, read_all, one)
        raised_by(SessionHalted, lambda: list(one.read_backwards(S)))
        assert (one.last_seq(S), one.info(S).halted) == (2, "why")
        assert texts_of(one.read(S, halted_ok=True)) == ["a", "b"]

    def test_a_halt_by_a_store_that_never_appended_holds(self) -> None:
        """Row 20: a supervisor may halt a session that it has never looked at."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        two.halt(S, "why")

        raised_by(SessionHalted, append_events, one, S, make_event())
        raised_by(SessionHalted, read_all, one)
        assert (one.last_seq(S), two.last_seq(S)) == (1, 1)

    def test_a_cleared_halt_is_cleared_for_both_stores(self) -> None:
        """Row 21: neither keeps refusing on its own account."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        one.halt(S, "why")
        raised_by(SessionHalted, append_events, two, S, make_event())
        raised_by(SessionHalted, append_events, one, S, make_event())
        two.clear_halt(S)

        assert append_events(one, S, make_event()) == Appended(2, 2)
        assert append_events(two, S, make_event()) == Appended(3, 3)
        assert seqs_of(one.read(S)) == [1, 2, 3]

    def test_two_stores_append_to_one_session_at_once(self) -> None:
        """Row 37: requests of three events from two threads, each contiguous, all numbers unique and dense."""
        one, two = self.two_stores()

        def write(store: EventStore, name: str) -> None:
            for turn in range(50):
                append_events(store, S, *(make_event(f"{name} {turn}") for _ in range(3)))

        run_together(lambda: write(one, "one"), lambda: write(two, "two"))

        for store in (one, two):
            assert seqs_of(store.read(S)) == list(range(1, 301))
            texts = texts_of(store.read(S))
            assert [text for text in texts[::3] for _ in range(3)] == texts
            for name in ("one", "two"):
                mine = [text for text in texts[::3] if text.startswith(name)]
                assert mine == [f"{name} {turn}" for turn in range(50)]
            assert store.verify(S) == []
