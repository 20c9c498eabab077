"""What an engine promises when nobody can know whether a commit took place."""

from __future__ import annotations

import contextlib

from ..protocol import AppendUncertain, SessionHalted
from ..storage import Appended, AppendRequest, EventStore
from ._conformance_base import (
    StoreHarness,
    append_answers,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

__all__ = ["UncertainConformance"]

S = "session"


class UncertainConformance(StoreHarness):
    """An append of unknown outcome is said to be one, is shown to nobody, and is settled by trying it again.

    An engine whose server's word decides the truth may settle the question by itself: then the append is answered as
    any other, and the session is not halted.
    """

    def unknown_outcome(self, store: EventStore) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the outcome of every commit of ``store`` cannot be known to it."""
        raise NotImplementedError

    def test_an_append_of_unknown_outcome_is_settled_by_a_retry(self) -> None:
        """Rows 34 and 46: one event or none, then exactly one, and no number is given twice."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))
        events = make_events("c d", ids=["c", "d"])
        with self.unknown_outcome(store):
            (answer,) = append_answers(store, S, AppendRequest(events))

        if isinstance(answer, AppendUncertain):
            assert (answer.session_id, answer.first_event_id) == (S, "c")
            record = store.halted(S)
            assert record is not None
            assert record.first_event_id == "c"
            raised_by(SessionHalted, lambda: append_events(store, S, make_event()))
            raised_by(SessionHalted, lambda: list(store.read(S)))
            assert texts_of(store.read(S, halted_ok=True)) in (["a", "b"], ["a", "b", "c", "d"])
            store.repair(S)
        else:
            assert isinstance(answer, Appended)
        settled = append_events(store, S, *events)
        for again in self.before_and_after_restart(store):
            assert texts_of(again.read(S)) == ["a", "b", "c", "d"]
            assert append_events(again, S, *events) == Appended(settled.first_seq, settled.last_seq, written=False)
            assert seqs_of(again.read(S))[2:] == [settled.first_seq, settled.last_seq]
            assert again.verify(S) == []

    def test_an_unknown_outcome_concerns_its_session_only(self) -> None:
        """Other sessions append and read as before, and the requests that the log itself answers stand."""
        store = self.opened()
        append_events(store, S, make_event("a", id="a"))
        append_events(store, "other", make_event("x"))
        with self.unknown_outcome(store):
            retry, new = append_answers(
                store, S, AppendRequest((make_event("a", id="a"),)), AppendRequest((make_event("b", id="b"),))
            )

        assert retry == Appended(1, 1, written=False)
        assert isinstance(new, AppendUncertain | Appended)
        assert append_events(store, "other", make_event("y")) == Appended(2, 2)
        assert texts_of(store.read("other")) == ["x", "y"]

    def test_an_unknown_outcome_is_remembered_after_a_restart(self) -> None:
        """A halt that follows an unknown outcome is durable, as far as the engine can write at all."""
        store = self.opened()
        append_events(store, S, make_event("a"))
        with self.unknown_outcome(store):
            (answer,) = append_answers(store, S, AppendRequest((make_event("b", id="b"),)))
        store = self.reopened(store)

        if isinstance(answer, AppendUncertain):
            raised_by(SessionHalted, lambda: append_events(store, S, make_event("c")))
            store.repair(S)
        assert append_events(store, S, make_event("b", id="b")).first_seq == 2
        assert append_events(store, S, make_event("c")) == Appended(3, 3)
        assert texts_of(store.read(S)) == ["a", "b", "c"]
