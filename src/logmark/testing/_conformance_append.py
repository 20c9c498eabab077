"""What an engine promises to those who append: numbers, answers, retries, expectations and reservations."""

from __future__ import annotations

import random

from ..protocol import (
    SEQ_MAX,
    Envelope,
    EventIdConflict,
    Limits,
    SequenceExhausted,
    WrongExpectedSeq,
    encode_event,
)
from ..storage import Appended, AppendRequest, SessionBatch
from ._conformance_base import (
    StoreHarness,
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

__all__ = ["IdConformance", "NumberingConformance", "ReservationConformance"]

S = "session"


class NumberingConformance(StoreHarness):
    """The store numbers every session densely from 1, and answers each request for itself."""

    def test_a_session_that_was_never_written_to_is_empty(self) -> None:
        """Row 1: 0 stands for nothing yet, reading yields nothing, and looking leaves no trace."""
        store = self.opened()

        info = store.info(S)
        assert (info.session_id, info.last_seq, info.next_seq, info.first_seq) == (S, 0, 1, 0)
        assert info.halted is None
        assert store.last_seq(S) == 0
        assert list(store.read(S)) == []
        assert list(store.read(S, halted_ok=True)) == []
        assert list(store.read_backwards(S)) == []
        assert store.halted(S) is None
        assert store.verify(S) == []
        assert store.repair(S) == []
        store.clear_halt(S)
        assert list(store.sessions()) == []

    def test_the_first_event_is_1(self) -> None:
        """Row 1."""
        store = self.opened()

        assert append_events(store, S, make_event()) == Appended(1, 1)
        assert store.last_seq(S) == 1

    def test_a_request_gets_contiguous_numbers(self) -> None:
        """Row 2: three events after two get 3, 4 and 5."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))

        assert append_events(store, S, *make_events("c d e")) == Appended(3, 5)
        assert seqs_of(store.read(S)) == [1, 2, 3, 4, 5]
        assert texts_of(store.read(S)) == ["a", "b", "c", "d", "e"]

    def test_requests_of_one_batch_are_numbered_in_order(self) -> None:
        """Each request has its answer, in the order given, and the batch says what it found and what it left."""
        store = self.opened()
        append_events(store, S, make_event("before"))

        result = append_batch(store, S, *(AppendRequest(make_events(words)) for words in ("a", "b c", "d")))

        assert result.session_id == S
        assert result.answers == (Appended(2, 2), Appended(3, 4), Appended(5, 5))
        assert (result.last_seq_before, result.last_seq) == (1, 5)
        assert result.bytes_written > 0
        assert result.sync_s >= 0
        assert texts_of(store.read(S, from_seq=2)) == ["a", "b", "c", "d"]

    def test_batches_of_one_call_are_answered_in_order(self) -> None:
        """One call may carry several sessions, and one session several times."""
        store = self.opened()

        results = store.append(
            [
                SessionBatch("a", (AppendRequest(make_events("a1 a2")),)),
                SessionBatch("b", (AppendRequest(make_events("b1")),)),
                SessionBatch("a", (AppendRequest(make_events("a3")),)),
            ]
        )

        assert [result.session_id for result in results] == ["a", "b", "a"]
        assert [result.answers for result in results] == [(Appended(1, 2),), (Appended(1, 1),), (Appended(3, 3),)]
        assert [(result.last_seq_before, result.last_seq) for result in results] == [(0, 2), (0, 1), (2, 3)]

    def test_nothing_to_append_writes_nothing(self) -> None:
        """Row 3: no batches give no results; a batch without requests gives none of its answers."""
        store = self.opened()
        append_events(store, S, make_event())

        assert store.append([]) == []
        result = append_batch(store, S)
        assert (result.answers, result.last_seq_before, result.last_seq) == ((), 1, 1)
        assert (result.bytes_written, result.sync_s) == (0, 0.0)

    def test_sessions_are_numbered_independently(self) -> None:
        """Row 4."""
        store = self.opened()
        for _ in range(3):
            append_events(store, "a", make_event("in a"))
            append_events(store, "b", make_event("in b"))

        for name in ("a", "b"):
            assert seqs_of(store.read(name)) == [1, 2, 3]
            assert texts_of(store.read(name)) == [f"in {name}"] * 3
            assert {event.session_id for event in store.read(name)} == {name}

    def test_a_number_in_the_callers_envelope_has_no_meaning(self) -> None:
        """Row 5: neither ``event_seq`` nor the producer's own number nor the payload decides."""
        store = self.opened()
        append_events(store, S, make_event())
        envelope = Envelope(
            type="t",
            id="mine",
            session_id="elsewhere",
            event_seq=999,
            stream_seq=999,
            timestamp="2026-01-01T00:00:00Z",
            payload={"event_seq": 999, "seq": 999},
        )

        assert append_events(store, S, encode_event(envelope.fields, envelope.payload, Limits())) == Appended(2, 2)
        (found,) = store.read(S, from_seq=2)
        assert (found.event_seq, found.session_id, found.stream_seq) == (2, S, 999)

    def test_numbering_continues_after_a_restart(self) -> None:
        """Row 6: no number is reused and none is left out."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        store = self.reopened(store)

        assert store.last_seq(S) == 2
        assert append_events(store, S, make_event("c")) == Appended(3, 3)
        store = self.reopened(store)
        assert append_events(store, S, make_event("d")) == Appended(4, 4)
        assert texts_of(store.read(S)) == ["a", "b", "c", "d"]

    def test_an_event_is_read_as_it_was_appended(self) -> None:
        """Row 19: every field and every byte of the payload survive, also a restart."""
        store = self.opened()
        envelope = Envelope(
            type="tool.output",
            id='01J-\u20ac-"quoted"\\',
            job_id="job/\N{PILE OF POO}",
            trace_id="trace\n1",
            timestamp="2026-01-02T03:04:05.123456789+02:00",
            source={"agent": "x", "group": [1, None, True, {"deep": 1.5}]},
            stream_seq=SEQ_MAX,
            arcp="1.2",
            extensions={"x-priority": "high", "size": 3, "crc": "00000000", "payload_": None},
            payload={
                "text": 'line\nbreak\u2028\x00\x7f{"v":1,"seq":7,"batch":[7,7]},"crc":"00000000"}',
                "numbers": [2**64 - 1, -(2**63), 0.1, 1e300],
                "empty": [{}, [], "", None],
            },
        )
        plain = Envelope(type="t", id="plain", timestamp="2026-01-01T00:00:00Z", payload=None)
        append_events(store, S, *(encode_event(each.fields, each.payload, Limits()) for each in (envelope, plain)))

        for again in self.before_and_after_restart(store):
            found, found_plain = (event.decode() for event in again.read(S))
            assert (found.fields, found.payload) == (envelope.fields, envelope.payload)
            assert (found_plain.fields, found_plain.payload) == (plain.fields, None)
            assert found.timestamp_text == "2026-01-02T03:04:05.123456789+02:00"
            assert [event.decode() for event in again.read_backwards(S)] == [found_plain, found]

    def test_payloads_of_many_sizes_are_read_as_appended(self) -> None:
        """Rows from a few bytes to many blocks, in sizes that fit no buffer evenly, and in one commit."""
        store = self.opened()
        sizes = [random.Random(1).randrange(2**power, 2 ** (power + 1)) for power in range(18)]
        texts = [chr(0x61 + power) * size for power, size in enumerate(sizes)]
        append_events(store, S, *map(make_event, texts))
        append_events(store, S, make_event("last"))

        assert texts_of(store.read(S)) == [*texts, "last"]
        assert texts_of(store.read_backwards(S)) == ["last", *reversed(texts)]
        for seq, text in enumerate(texts, 1):
            assert texts_of(store.read(S, from_seq=seq, through_seq=seq)) == [text]

    def test_an_expectation_that_holds_lets_the_append_through(self) -> None:
        """``expected_seq`` is compared with the number of the last event; 0 means that there is none."""
        store = self.opened()

        assert append_events(store, S, make_event(), expected_seq=0) == Appended(1, 1)
        assert append_events(store, S, *make_events("a b"), expected_seq=1) == Appended(2, 3)
        assert append_events(store, S, make_event(), expected_seq=3) == Appended(4, 4)

    def test_an_expectation_that_fails_writes_nothing(self) -> None:
        """The error says both numbers, and the session goes on."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))

        for wrong in (0, 1, 3, SEQ_MAX):
            (error,) = append_answers(store, S, AppendRequest(make_events("c d"), wrong))
            assert isinstance(error, WrongExpectedSeq)
            assert (error.session_id, error.expected_seq, error.last_seq) == (S, wrong, 2)
        assert store.last_seq(S) == 2
        assert append_events(store, S, make_event("c"), expected_seq=2) == Appended(3, 3)
        assert texts_of(store.read(S)) == ["a", "b", "c"]

    def test_a_rejected_append_leaves_no_session_behind(self) -> None:
        """``sessions`` lists those that were written to."""
        store = self.opened()
        raised_by(WrongExpectedSeq, lambda: append_events(store, S, make_event(), expected_seq=1))

        assert list(store.sessions()) == []
        assert store.last_seq(S) == 0
        assert append_events(store, S, make_event()) == Appended(1, 1)

    def test_an_expectation_sees_the_requests_before_it(self) -> None:
        """Within a batch, each request meets the session as those before it leave it."""
        store = self.opened()

        first, second, third, fourth = append_answers(
            store,
            S,
            AppendRequest(make_events("a b"), 0),
            AppendRequest(make_events("lost"), 0),
            AppendRequest(make_events("c"), 2),
            AppendRequest(make_events("d")),
        )

        assert (first, third, fourth) == (Appended(1, 2), Appended(3, 3), Appended(4, 4))
        assert isinstance(second, WrongExpectedSeq)
        assert second.last_seq == 2
        assert texts_of(store.read(S)) == ["a", "b", "c", "d"]

    def test_one_bad_request_does_not_discard_the_others(self) -> None:
        """Row 48: good and bad requests in one batch, each with its own answer."""
        store = self.opened()
        append_events(store, S, make_event("first", id="taken"))

        answers = append_answers(
            store,
            S,
            AppendRequest(make_events("a")),
            AppendRequest(make_events("no no", ids=["x", "x"])),
            AppendRequest(make_events("b c")),
            AppendRequest(make_events("no"), 77),
            AppendRequest(make_events("no no", ids=["taken", "y"])),
            AppendRequest(make_events("again", ids=["taken"])),
            AppendRequest(make_events("d")),
        )

        assert [answers[index] for index in (0, 2, 5, 6)] == [
            Appended(2, 2),
            Appended(3, 4),
            Appended(1, 1, written=False),
            Appended(5, 5),
        ]
        assert [type(answers[index]) for index in (1, 3, 4)] == [EventIdConflict, WrongExpectedSeq, EventIdConflict]
        assert texts_of(store.read(S)) == ["first", "a", "b", "c", "d"]


class IdConformance(StoreHarness):
    """An event id that is there already is answered with the number of the first write."""

    def test_a_retry_gets_the_first_number(self) -> None:
        """Row 40: one row, equal numbers, and the first content stays."""
        store = self.opened()
        first = append_events(store, S, make_event("first", id="x"))

        result = append_batch(store, S, AppendRequest((make_event("second", id="x"),)))

        assert first == Appended(1, 1)
        assert result.answers == (Appended(1, 1, written=False),)
        assert (result.last_seq_before, result.last_seq) == (1, 1)
        assert (result.bytes_written, result.sync_s) == (0, 0.0)
        assert texts_of(store.read(S)) == ["first"]

    def test_a_retry_within_the_batch_gets_the_first_number(self) -> None:
        """Row 40, when both wait for the same commit."""
        store = self.opened()

        answers = append_answers(
            store,
            S,
            AppendRequest((make_event("first", id="x"),)),
            AppendRequest(make_events("between")),
            AppendRequest((make_event("second", id="x"),)),
        )

        assert answers == (Appended(1, 1), Appended(2, 2), Appended(1, 1, written=False))
        assert texts_of(store.read(S)) == ["first", "between"]

    def test_a_retry_long_after_gets_the_first_number(self) -> None:
        """Row 40: with other events in between, some with ids of their own and some without."""
        store = self.opened()
        append_events(store, S, make_event("first", id="x"))
        append_events(store, S, *make_events("a b c"))
        append_events(store, S, make_event("y", id="y"))
        append_events(store, S, make_event())

        assert append_events(store, S, make_event("again", id="x")) == Appended(1, 1, written=False)
        assert append_events(store, S, make_event("again", id="y")) == Appended(5, 5, written=False)
        assert store.last_seq(S) == 6

    def test_a_retry_after_a_restart_gets_the_first_number(self) -> None:
        """Row 40: what a client does that never heard the answer."""
        store = self.opened()
        append_events(store, S, make_event("zero"))
        append_events(store, S, make_event("first", id="x"))
        store = self.reopened(store)

        assert append_events(store, S, make_event("again", id="x")) == Appended(2, 2, written=False)
        assert append_events(store, S, make_event("new", id="z")) == Appended(3, 3)
        assert texts_of(store.read(S)) == ["zero", "first", "new"]

    def test_the_same_id_in_another_session_is_another_event(self) -> None:
        """Row 41."""
        store = self.opened()

        assert append_events(store, "a", make_event("in a", id="x")) == Appended(1, 1)
        assert append_events(store, "b", make_event("in b", id="x")) == Appended(1, 1)
        assert texts_of(store.read("a")) == ["in a"]
        assert texts_of(store.read("b")) == ["in b"]

    def test_several_events_are_retried_as_a_whole(self) -> None:
        """The whole request is answered with its first numbers, also after a restart."""
        store = self.opened()
        append_events(store, S, make_event("zero"))
        events = make_events("a b c", ids=["1", "2", "3"])
        assert append_events(store, S, *events) == Appended(2, 4)

        assert append_events(store, S, *events) == Appended(2, 4, written=False)
        store = self.reopened(store)
        assert append_events(store, S, *events) == Appended(2, 4, written=False)
        assert store.last_seq(S) == 4

    def test_an_overlap_that_is_no_retry_is_a_conflict(self) -> None:
        """Old and new ids in one request, or old ids in another order: nothing of it is written."""
        store = self.opened()
        append_events(store, S, *make_events("a b c", ids=["1", "2", "3"]))

        for ids, culprit, seq in (
            (["3", "4"], "3", 3),
            (["0", "1"], "1", 1),
            (["1", "2", "3", "4"], "1", 1),
            (["2", "1"], "2", 2),
            (["1", "3"], "1", 1),
        ):
            events = tuple(make_event(id=id_) for id_ in ids)
            error = raised_by(EventIdConflict, append_events, store, S, *events)
            assert (error.session_id, error.event_id, error.event_seq) == (S, culprit, seq)
        assert store.last_seq(S) == 3
        assert append_events(store, S, make_event(id="4")) == Appended(4, 4)

    def test_an_overlap_with_the_same_batch_is_a_conflict(self) -> None:
        """The requests before it in the batch count as written."""
        store = self.opened()

        first, second = append_answers(
            store,
            S,
            AppendRequest(make_events("a b", ids=["1", "2"])),
            AppendRequest(make_events("b c", ids=["2", "3"])),
        )

        assert first == Appended(1, 2)
        assert isinstance(second, EventIdConflict)
        assert (second.event_id, second.event_seq) == ("2", 2)
        assert texts_of(store.read(S)) == ["a", "b"]

    def test_an_id_twice_in_one_request_is_a_conflict(self) -> None:
        """It has no number to name, because nothing of the request is written."""
        store = self.opened()

        error = raised_by(EventIdConflict, lambda: append_events(store, S, *make_events("a b c", ids=["1", "2", "1"])))

        assert (error.event_id, error.event_seq) == ("1", None)
        assert store.last_seq(S) == 0
        assert append_events(store, S, make_event(id="1")) == Appended(1, 1)

    def test_ids_come_before_the_expectation(self) -> None:
        """A retry whose first write succeeded must not fail because that write moved ``last_seq``."""
        store = self.opened()
        append_events(store, S, make_event())
        events = make_events("a b", ids=["1", "2"])
        append_events(store, S, *events, expected_seq=1)
        append_events(store, S, make_event())

        assert append_events(store, S, *events, expected_seq=1) == Appended(2, 3, written=False)
        store = self.reopened(store)
        assert append_events(store, S, *events, expected_seq=1) == Appended(2, 3, written=False)

    def test_ids_are_compared_exactly(self) -> None:
        """Case, blanks and composed characters make other ids."""
        store = self.opened()
        ids = ["x", "X", "x ", " x", "\u00e9", "e\u0301", "x\x00", "x\n", '"x"']

        for seq, id_ in enumerate(ids, 1):
            assert append_events(store, S, make_event(id_, id=id_)) == Appended(seq, seq)
        for seq, id_ in enumerate(ids, 1):
            assert append_events(store, S, make_event(id=id_)) == Appended(seq, seq, written=False)


class ReservationConformance(StoreHarness):
    """Numbers can be used up without events, and numbers come to an end."""

    def test_events_after_a_reservation_get_later_numbers(self) -> None:
        """Row 8: reserved through 41, the next event is 42, and readers accept the gap in both directions."""
        store = self.opened()
        append_events(store, S, make_event("one"))
        store.reserve(S, 41)

        info = store.info(S)
        assert (info.last_seq, info.next_seq, info.first_seq) == (1, 42, 1)
        assert append_events(store, S, *make_events("a b")) == Appended(42, 43)
        assert seqs_of(store.read(S)) == [1, 42, 43]
        assert seqs_of(store.read_backwards(S)) == [43, 42, 1]
        for seq in (2, 20, 41, 42):
            assert seqs_of(store.read(S, from_seq=seq)) == [42, 43]
            assert seqs_of(store.read(S, through_seq=seq)) == ([1] if seq < 42 else [1, 42])
            assert seqs_of(store.read_backwards(S, before_seq=seq)) == [1]
        assert store.verify(S) == []

    def test_a_reservation_survives_a_restart(self) -> None:
        """Row 8: before and after the first event that follows it."""
        store = self.opened()
        append_events(store, S, make_event())
        store.reserve(S, 10)
        store = self.reopened(store)
        assert (store.last_seq(S), store.info(S).next_seq) == (1, 11)
        assert seqs_of(store.read(S)) == [1]
        assert seqs_of(store.read_backwards(S)) == [1]

        assert append_events(store, S, make_event()) == Appended(11, 11)
        store = self.reopened(store)
        assert append_events(store, S, make_event()) == Appended(12, 12)
        assert seqs_of(store.read(S)) == [1, 11, 12]

    def test_a_reservation_never_lowers_anything(self) -> None:
        """Numbers that are used already stay used; asking again changes nothing."""
        store = self.opened()
        append_events(store, S, *make_events("a b c"))
        for through in (0, 1, 3):
            store.reserve(S, through)
        assert store.info(S).next_seq == 4
        store.reserve(S, 9)
        for through in (9, 5, 0):
            store.reserve(S, through)

        assert store.info(S).next_seq == 10
        assert append_events(store, S, make_event()) == Appended(10, 10)

    def test_reservations_add_up(self) -> None:
        """Several in a row, and one beyond the other."""
        store = self.opened()
        for through in (2, 3, 7):
            store.reserve(S, through)
        store = self.reopened(store)
        store.reserve(S, 8)

        assert append_events(store, S, make_event()) == Appended(9, 9)
        store.reserve(S, 10)
        assert append_events(store, S, make_event()) == Appended(11, 11)
        assert seqs_of(store.read(S)) == [9, 11]
        assert seqs_of(store.read_backwards(S)) == [11, 9]
        assert store.info(S).first_seq == 9

    def test_a_session_may_begin_with_a_reservation(self) -> None:
        """There is no event yet, so ``last_seq`` is 0 and reading yields nothing."""
        store = self.opened()
        store.reserve(S, 5)

        for again in self.before_and_after_restart(store):
            info = again.info(S)
            assert (info.last_seq, info.next_seq, info.first_seq) == (0, 6, 0)
            assert list(again.read(S)) == []
            assert list(again.read_backwards(S)) == []
            store = again
        assert append_events(store, S, make_event()) == Appended(6, 6)
        assert store.info(S).first_seq == 6

    def test_a_reservation_is_not_an_event_for_expectations(self) -> None:
        """``expected_seq`` is about the last event, which a reservation is not; also after a restart."""
        store = self.opened()
        append_events(store, S, make_event())
        store.reserve(S, 10)

        error = raised_by(WrongExpectedSeq, lambda: append_events(store, S, make_event(), expected_seq=10))
        assert error.last_seq == 1
        store = self.reopened(store)
        assert append_events(store, S, make_event(), expected_seq=1) == Appended(11, 11)
        assert append_events(store, S, make_event(), expected_seq=11) == Appended(12, 12)

    def test_ids_from_before_a_reservation_are_found_after_it(self) -> None:
        """A reservation between write and retry does not hide the write."""
        store = self.opened()
        append_events(store, S, make_event(id="x"))
        store.reserve(S, 10)

        assert append_events(store, S, make_event(id="x")) == Appended(1, 1, written=False)
        append_events(store, S, make_event(id="y"))
        store = self.reopened(store)
        assert append_events(store, S, make_event(id="x")) == Appended(1, 1, written=False)
        assert append_events(store, S, make_event(id="y")) == Appended(11, 11, written=False)

    def test_a_reservation_concerns_its_session_only(self) -> None:
        """Row 4, for reservations."""
        store = self.opened()
        store.reserve("a", 10)

        assert append_events(store, "b", make_event()) == Appended(1, 1)

    def test_numbers_come_to_an_end_before_anything_is_written(self) -> None:
        """Row 14: the last number can be given, and one more is an error that leaves the session as it was."""
        store = self.opened()
        store.reserve(S, SEQ_MAX - 2)

        error = raised_by(SequenceExhausted, lambda: append_events(store, S, *make_events("a b c")))
        assert (error.session_id, error.last_seq) == (S, SEQ_MAX - 2)
        assert store.last_seq(S) == 0
        first, second, third = append_answers(
            store, S, *(AppendRequest(make_events(words)) for words in ("a", "x y", "b"))
        )
        assert (first, third) == (Appended(SEQ_MAX - 1, SEQ_MAX - 1), Appended(SEQ_MAX, SEQ_MAX))
        assert isinstance(second, SequenceExhausted)
        raised_by(SequenceExhausted, append_events, store, S, make_event())
        store = self.reopened(store)
        raised_by(SequenceExhausted, append_events, store, S, make_event())
        assert seqs_of(store.read(S)) == [SEQ_MAX - 1, SEQ_MAX]
        assert seqs_of(store.read_backwards(S)) == [SEQ_MAX, SEQ_MAX - 1]
        assert store.verify(S) == []

    def test_a_reservation_beyond_the_last_number_is_refused(self) -> None:
        """Row 14: nothing is used up by it."""
        store = self.opened()
        append_events(store, S, make_event())

        raised_by(SequenceExhausted, lambda: store.reserve(S, SEQ_MAX + 1))
        assert append_events(store, S, make_event()) == Appended(2, 2)
