"""What an engine promises when events are pruned: what lies before a number is gone, and nothing else has changed."""

from __future__ import annotations

from ..protocol import (
    CursorAhead,
    SeqPruned,
    SessionHalted,
)
from ..storage import Appended, AppendRequest
from ._conformance_base import (
    StoreHarness,
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

__all__ = ["PruningConformance"]

S = "session"


class PruningConformance(StoreHarness):
    """``truncate_before``: what lies before a number is gone, and nothing else has changed."""

    def test_events_below_the_mark_are_gone(self) -> None:
        """The others are read as before, in both directions, also after a restart."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        append_events(store, S, *make_events("d e"))

        assert store.truncate_before(S, 4) == 4
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S, from_seq=4)) == ["d", "e"]
            assert texts_of(seen.read(S, from_seq=5)) == ["e"]
            assert list(seen.read(S, from_seq=6)) == []
            assert seqs_of(seen.read(S, from_seq=4, through_seq=4)) == [4]
            assert seqs_of(seen.read_backwards(S)) == [5, 4]
            assert [envelope.event_seq for envelope in seen.read_envelopes(S, from_seq=4)] == [4, 5]
            info = seen.info(S)
            assert (info.first_available, info.first_seq, info.last_seq, info.next_seq) == (4, 4, 5, 6)
            assert not info.sealed
            assert not info.deleted
            assert seen.verify(S) == []
            assert seen.repair(S) == []

    def test_the_mark_may_lie_within_a_commit(self) -> None:
        """A request is written whole; what is kept of it later is decided by the number alone."""
        store = self.opened()
        append_events(store, S, *make_events("a b c d e f"))

        assert store.truncate_before(S, 4) == 4
        seen = store
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S, from_seq=4)) == ["d", "e", "f"]
            assert texts_of(seen.read_backwards(S)) == ["f", "e", "d"]
            assert [finding for finding in seen.verify(S) if not finding.harmless] == []
        assert append_events(self.reopened(seen), S, make_event("g")) == Appended(7, 7)

    def test_reading_below_the_mark_is_refused_at_the_call(self) -> None:
        """With the number from which on there is something; an empty success would pass for a complete read."""
        store = self.opened()
        append_events(store, S, *make_events("a b c d"))
        store.truncate_before(S, 3)

        for seen in self.before_and_after_restart(store):
            for start, asked in ((1, 1), (2, 2), (0, 1), (-3, 1)):
                error = raised_by(SeqPruned, seen.read, S, from_seq=start)
                assert (error.session_id, error.seq, error.first_available) == (S, asked, 3)
            raised_by(SeqPruned, seen.read, S)
            raised_by(SeqPruned, seen.read, S, from_seq=1, through_seq=1)
            raised_by(SeqPruned, seen.read, S, from_seq=2, halted_ok=True)
            raised_by(SeqPruned, seen.read_envelopes, S, from_seq=2)

    def test_reading_downwards_ends_at_the_mark(self) -> None:
        """Row 57: there is no more below it, whatever number is asked for."""
        store = self.opened()
        append_events(store, S, *make_events("a b c d"))
        store.truncate_before(S, 3)

        for seen in self.before_and_after_restart(store):
            assert seqs_of(seen.read_backwards(S)) == [4, 3]
            assert seqs_of(seen.read_backwards(S, before_seq=4)) == [3]
            for before in (3, 2, 1, 0):
                assert list(seen.read_backwards(S, before_seq=before)) == []

    def test_pruning_and_gaps_go_together(self) -> None:
        """Row 57: events 1 and 42, 1 is pruned: 42 is all there is, from either side."""
        store = self.opened()
        append_events(store, S, make_event("first"))
        store.reserve(S, 41)
        append_events(store, S, make_event("second"))

        assert store.truncate_before(S, 2) == 2
        seen = store
        for seen in self.before_and_after_restart(store):
            assert seqs_of(seen.read_backwards(S)) == [42]
            assert list(seen.read_backwards(S, before_seq=42)) == []
            assert seqs_of(seen.read(S, from_seq=2)) == [42]
            info = seen.info(S)
            assert (info.first_available, info.first_seq, info.last_seq) == (2, 42, 42)

        seen = self.reopened(seen)
        assert seen.truncate_before(S, 30) == 30
        assert seqs_of(seen.read(S, from_seq=30)) == [42]
        assert seqs_of(seen.read_backwards(S)) == [42]
        assert raised_by(SeqPruned, seen.read, S, from_seq=29).first_available == 30
        assert [finding for finding in seen.verify(S) if not finding.harmless] == []

    def test_numbers_are_not_used_again_when_the_newest_are_removed(self) -> None:
        """Row 54: all events are removed, the store is opened anew, and the next number is above the last one."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))

        assert store.truncate_before(S, 4) == 4
        seen = store
        for seen in self.before_and_after_restart(store):
            info = seen.info(S)
            assert (info.first_available, info.first_seq, info.last_seq, info.next_seq) == (4, 0, 3, 4)
            assert list(seen.read(S, from_seq=4)) == []
            assert list(seen.read_backwards(S)) == []
            raised_by(SeqPruned, seen.read, S, from_seq=3)
            assert list(seen.sessions()) == [S]
            assert seen.verify(S) == []

        seen = self.reopened(seen)
        result = append_batch(seen, S, AppendRequest((make_event("d"),), 3))
        assert result.answers == (Appended(4, 4),)
        assert (result.last_seq_before, result.last_seq) == (3, 4)
        assert texts_of(seen.read(S, from_seq=4)) == ["d"]

    def test_reserved_numbers_stay_used_when_everything_is_removed(self) -> None:
        """Row 54: also those that no event ever had."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store.reserve(S, 9)

        assert store.truncate_before(S, 10) == 10
        seen = store
        for seen in self.before_and_after_restart(store):
            info = seen.info(S)
            assert (info.first_available, info.last_seq, info.next_seq) == (10, 2, 10)
        assert append_events(self.reopened(seen), S, make_event()) == Appended(10, 10)

    def test_pruning_again_goes_on_and_never_back(self) -> None:
        """A mark that is the same or lower changes nothing; a higher one moves it."""
        store = self.opened()
        for text in "abcdefgh":
            append_events(store, S, make_event(text))

        assert store.truncate_before(S, 3) == 3
        for lower in (3, 2, 1, 0, -1):
            assert store.truncate_before(S, lower) == 3
        assert texts_of(store.read(S, from_seq=3)) == list("cdefgh")
        store = self.reopened(store)
        assert store.truncate_before(S, 1) == 3
        assert store.truncate_before(S, 6) == 6
        assert append_events(store, S, make_event("i")) == Appended(9, 9)
        assert store.truncate_before(S, 10) == 10
        assert append_events(store, S, make_event("j")) == Appended(10, 10)
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S, from_seq=10)) == ["j"]
            assert seen.truncate_before(S, 2) == 10

    def test_a_mark_beyond_the_next_number_is_refused(self) -> None:
        """It would use up numbers that nobody was told; nothing is removed."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))

        error = raised_by(CursorAhead, store.truncate_before, S, 4)
        assert (error.session_id, error.cursor, error.last_seq) == (S, 4, 2)
        raised_by(CursorAhead, store.truncate_before, "never written", 2)
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S)) == ["a", "b"]

    def test_a_session_that_was_never_written_to_is_left_alone(self) -> None:
        """Nothing comes into being by it."""
        store = self.opened()
        assert store.truncate_before(S, 1) == 1
        assert store.truncate_before(S, 0) == 1
        assert list(store.sessions()) == []
        assert append_events(store, S, make_event()) == Appended(1, 1)

    def test_an_id_that_was_pruned_is_a_new_one(self) -> None:
        """Also many appends and a restart later; ids that are kept are retries as ever."""
        store = self.opened()
        append_events(store, S, *make_events("a b", ids=["x", "y"]))
        append_events(store, S, make_event("c", id="z"))
        store.truncate_before(S, 3)

        assert append_events(store, S, make_event("again", id="z")) == Appended(3, 3, written=False)
        assert append_events(store, S, make_event("d", id="x")) == Appended(4, 4)
        seen = store
        for seen in self.before_and_after_restart(store):
            assert append_events(seen, S, make_event("again", id="x")) == Appended(4, 4, written=False)
            assert append_events(seen, S, make_event("again", id="z")) == Appended(3, 3, written=False)
        assert append_events(self.reopened(seen), S, make_event("e", id="y")) == Appended(5, 5)

    def test_other_sessions_are_not_concerned(self) -> None:
        """Neither by pruning nor by sealing nor by deleting."""
        store = self.opened()
        for name in ("a", "b", "c", "d"):
            append_events(store, name, *make_events("one two three"))
        store.truncate_before("a", 3)
        store.seal("b")
        store.delete("c")

        seen = store
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read("d")) == ["one", "two", "three"]
            assert list(seen.sessions()) == ["a", "b", "d"]
        assert append_events(self.reopened(seen), "d", make_event()) == Appended(4, 4)

    def test_many_events_are_pruned_bit_by_bit(self) -> None:
        """The mark follows the log, as under a retention rule, and what is kept is always whole."""
        store = self.opened()
        for turn in range(30):
            append_events(store, S, *(make_event(f"{turn}-{index}" + "x" * 50) for index in range(5)))
            if turn % 3 == 2:
                mark = store.last_seq(S) - 7
                assert store.truncate_before(S, mark) == mark
                assert seqs_of(store.read(S, from_seq=mark)) == list(range(mark, mark + 8))
                assert seqs_of(store.read_backwards(S)) == list(range(mark + 7, mark - 1, -1))
        for seen in self.before_and_after_restart(store):
            assert seqs_of(seen.read(S, from_seq=143)) == list(range(143, 151))
            assert seen.info(S).first_available == 143
            assert [finding for finding in seen.verify(S) if not finding.harmless] == []

    def test_a_halted_session_is_not_pruned(self) -> None:
        """Its log is in doubt; when it is settled, it can be."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        store.truncate_before(S, 2)
        store.halt(S, "why")

        raised_by(SessionHalted, store.truncate_before, S, 3)
        raised_by(SessionHalted, lambda: list(store.read(S, from_seq=2)))
        assert texts_of(store.read(S, from_seq=2, halted_ok=True)) == ["b", "c"]
        raised_by(SeqPruned, store.read, S, halted_ok=True)
        assert (store.info(S).first_available, store.info(S).halted) == (2, "why")
        assert store.repair(S)
        seen = store
        for seen in self.before_and_after_restart(store):
            assert texts_of(seen.read(S, from_seq=2)) == ["b", "c"]
            assert raised_by(SeqPruned, seen.read, S).first_available == 2
            assert seen.verify(S) == []
        seen = self.reopened(seen)
        assert seen.truncate_before(S, 3) == 3
        assert append_events(seen, S, make_event("d")) == Appended(4, 4)

    def test_a_repair_gives_no_number_again_when_everything_was_removed(self) -> None:
        """Row 54: what the store knows of the numbers does not depend on an event that is there."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        store.truncate_before(S, 4)
        store.halt(S, "why")
        store.repair(S)

        seen = store
        for seen in self.before_and_after_restart(store):
            assert (seen.info(S).first_available, seen.last_seq(S)) == (4, 3)
        assert append_events(self.reopened(seen), S, make_event()) == Appended(4, 4)

    def test_a_reader_on_its_way_gets_what_is_there_or_is_told(self) -> None:
        """Never garbage, never a gap without a word."""
        store = self.opened()
        for index in range(40):
            append_events(store, S, make_event(f"{index + 1}" + "x" * 100))
        upwards, downwards = store.read(S), store.read_backwards(S)
        assert next(upwards).event_seq == 1
        assert next(downwards).event_seq == 40
        store.truncate_before(S, 41)

        told: list[int] = []
        expected = 2
        try:
            for event in upwards:
                assert event.event_seq == expected
                expected += 1
            assert expected == 41
        except SeqPruned as error:
            told.append(error.first_available)
        expected = 39
        try:
            for event in downwards:
                assert event.event_seq == expected
                expected -= 1
        except SeqPruned as error:
            told.append(error.first_available)
        assert set(told) <= {41}
