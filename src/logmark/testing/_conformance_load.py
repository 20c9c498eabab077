"""What an engine promises of bulk: whole batches however large, and reading that takes no more than is asked for."""

from __future__ import annotations

import itertools
import tracemalloc

from ..protocol import EncodedEvent, Limits
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

__all__ = ["LoadConformance"]

S = "session"
_MIB = 1024 * 1024


class LoadConformance(StoreHarness):
    """Sizes and counts at the bounds of ``Limits``."""

    event_bytes_max = Limits().event_bytes_max

    def test_an_event_of_the_greatest_size(self) -> None:
        """A megabyte of one event, alone and among others, comes back byte for byte."""
        store = self.opened()
        text = "\u00e4" * ((self.event_bytes_max - 300) // 2)
        append_events(store, S, make_event("before"), make_event(text), make_event("after"))

        for again in self.before_and_after_restart(store):
            assert texts_of(again.read(S)) == ["before", text, "after"]
            assert texts_of(again.read_backwards(S)) == ["after", text, "before"]

    def test_a_request_of_many_events_is_one_commit(self) -> None:
        """As many as one batch may have, with ids of their own; a retry finds every one of them."""
        store = self.opened()
        count = Limits().batch_events_max
        append_events(store, S, make_event())
        events = tuple(make_event("e", id=f"id-{index}") for index in range(count))

        assert append_events(store, S, *events) == Appended(2, count + 1)
        assert append_events(store, S, *events) == Appended(2, count + 1, written=False)
        assert seqs_of(store.read(S, from_seq=2)) == list(range(2, count + 2))
        part = append_answers(store, S, *(AppendRequest((event,)) for event in events[::500]))
        assert part == tuple(Appended(seq, seq, written=False) for seq in range(2, count + 2, 500))

    def test_many_requests_of_one_batch_are_answered_each(self) -> None:
        """What group commit makes of many callers: one batch, an answer for each, in their order."""
        store = self.opened()
        result = append_batch(store, S, *(AppendRequest((make_event(str(index)),)) for index in range(1000)))

        assert result.answers == tuple(Appended(seq, seq) for seq in range(1, 1001))
        assert texts_of(store.read(S)) == [str(index) for index in range(1000)]

    def test_many_sessions_in_one_call(self) -> None:
        """Each has its own numbers, and they are listed in order while others are being made."""
        store = self.opened()
        names = [f"s{index:03}" for index in range(150)]
        results = store.append([SessionBatch(name, (AppendRequest((make_event(name),)),)) for name in names[::-1]])

        assert [result.session_id for result in results] == names[::-1]
        assert all(result.answers == (Appended(1, 1),) for result in results)
        listing = store.sessions()
        assert next(listing) == names[0]
        append_events(store, "zzz", make_event())
        assert [names[0], *listing][: len(names)] == names
        assert list(store.sessions()) == [*names, "zzz"]

    def test_reading_takes_into_memory_what_is_read(self) -> None:
        """The first event of a long log, from either end, costs a small part of the log."""
        store = self.opened()
        for _ in range(16):
            append_events(store, S, *(make_event("x" * 20_000) for _ in range(40)))
        tracemalloc.start()
        try:
            upwards, downwards = store.read(S), store.read_backwards(S)
            assert next(upwards).event_seq == 1
            assert next(downwards).event_seq == 640
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * _MIB, f"{peak} bytes for two events of a log of 12 MiB"
        assert seqs_of(upwards) == list(range(2, 641))
        assert seqs_of(downwards) == list(range(639, 0, -1))

    def test_an_id_that_was_fresh_is_found_when_a_caller_brings_it(self) -> None:
        """Row 40: a caller may retry by an id that it was shown, whoever made it."""
        store = self.opened()
        append_events(store, S, make_event("zero"))
        fresh = make_event("first")
        append_events(store, S, fresh)
        again = EncodedEvent(fresh.id, fresh.type, fresh.job_id, fresh.head, fresh.payload_json)

        assert append_events(store, S, again) == Appended(2, 2, written=False)
        store = self.reopened(store)
        assert append_events(store, S, again) == Appended(2, 2, written=False)
        assert texts_of(store.read(S)) == ["zero", "first"]

    def test_one_batch_after_another_fails_each_for_itself(self) -> None:
        """A call whose first batch is refused writes its second, and the other way round."""
        store = self.opened()
        append_events(store, "a", *make_events("x"))
        for order in (["a", "b"], ["b", "a"]):
            last = {name: store.last_seq(name) for name in order}
            requests = {"a": AppendRequest(make_events("no"), 99), "b": AppendRequest(make_events("yes"))}
            results = store.append([SessionBatch(name, (requests[name],)) for name in order])
            by_name = {result.session_id: result for result in results}
            assert by_name["b"].answers == (Appended(last["b"] + 1, last["b"] + 1),)
            assert not isinstance(by_name["a"].answers[0], Appended)
            assert by_name["a"].last_seq == store.last_seq("a") == 1

    def test_a_page_may_be_read_again_from_anywhere(self) -> None:
        """Paging both ways: pages of seven, below and above every edge, are the log cut in pieces."""
        store = self.opened()
        append_events(store, S, *(make_event(str(index)) for index in range(30)))
        store.reserve(S, 40)
        append_events(store, S, *(make_event(str(index)) for index in range(30, 50)))
        everything = seqs_of(store.read(S))

        up: list[int | None] = []
        while True:
            page = list(itertools.islice(store.read(S, from_seq=(up[-1] or 0) + 1 if up else 1), 7))
            up += seqs_of(page)
            if not page:
                break
        down: list[int | None] = []
        while True:
            page = list(itertools.islice(store.read_backwards(S, before_seq=down[-1] if down else None), 7))
            down += seqs_of(page)
            if not page:
                break
        assert up == everything
        assert down == everything[::-1]

    def test_nothing_is_read_that_was_refused(self) -> None:
        """A request that is refused leaves neither an event nor a number nor an id behind."""
        store = self.opened()
        append_events(store, S, make_event("a", id="taken"))
        raised_by(Exception, lambda: append_events(store, S, *make_events("b c", ids=["new", "taken"])))

        assert append_events(store, S, make_event("d", id="new")) == Appended(2, 2)
        assert texts_of(store.read(S)) == ["a", "d"]
