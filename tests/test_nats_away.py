"""The NATS server goes away at any moment of an append: nothing is lost, doubled or halted, and nobody hangs."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import logmark
from logmark.errors import (
    AppendUncertain,
    EventTooLarge,
    LogCorrupt,
    StorageRejected,
    StorageUnavailable,
    WrongExpectedSeq,
)
from logmark.protocol import AppendError, EncodedEvent, Limits
from logmark.storage import Appended, AppendRequest, SessionBatch
from logmark.testing import CapturedLogs, FaultyProxy, NatsServer, eventually
from logmark.testing.conformance import (
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    seqs_of,
    texts_of,
)

pytest.importorskip("nats", reason="logmark[nats] is not installed")

from logmark.storage._nats import NatsEventStore
from logmark.storage._nats_link import Unanswered

S = "session"
SOON = 30.0
LIMITS = Limits(server_wait_s=10.0, lock_wait_s=10.0)
HASTY = Limits(server_wait_s=0.5, lock_wait_s=0.1)
MOMENTS = ("before", "sent", "answered")
_numbers = itertools.count(1)

Open = Callable[..., NatsEventStore]


@pytest.fixture
def proxy(nats_server: NatsServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(nats_server.port) as made:
        yield made


@pytest.fixture
def name() -> str:
    return f"away_{next(_numbers)}"


@pytest.fixture
def open_store(nats_server: NatsServer, proxy: FaultyProxy, name: str) -> Iterator[Open]:
    """Open the test's store behind the proxy, or past it."""
    opened: list[NatsEventStore] = []

    def make(limits: Limits = LIMITS, *, direct: bool = False) -> NatsEventStore:
        url = nats_server.url(name, port=None if direct else proxy.port)
        opened.append(NatsEventStore(url, limits=limits))
        return opened[-1]

    yield make
    proxy.heal()
    for store in opened:
        store.close()


def assert_sound(store: NatsEventStore, texts: list[str], session_id: str = S) -> None:
    """Every text is there once, in this order, under the numbers from 1 on, and nothing is wrong or halted."""
    assert texts_of(store.read(session_id)) == texts
    assert seqs_of(store.read(session_id)) == list(range(1, len(texts) + 1))
    assert store.verify(session_id) == []
    assert store.halted(session_id) is None


def append_in_the_end(store: NatsEventStore, event: EncodedEvent) -> Appended:
    """Append with as many attempts as a busy machine needs, for a store that waits for next to nothing."""
    found: list[Appended] = []

    def attempt() -> bool:
        (answer,) = append_answers(store, S, AppendRequest((event,)))
        found.extend([answer] if isinstance(answer, Appended) else [])
        return bool(found)

    eventually(attempt, timeout=SOON)
    return found[0]


# -- a connection is lost in the middle ------------------------------------------------------------------------------

APPENDS: dict[str, tuple[AppendRequest, ...]] = {
    "plain": (AppendRequest(make_events("needle")),),
    "with an id": (AppendRequest(make_events("needle", ids=["mine"])),),
    "expecting": (AppendRequest(make_events("needle"), 1),),
    "several": (AppendRequest(make_events("needle more")), AppendRequest(make_events("and"))),
}


@pytest.mark.parametrize("kind", APPENDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_append_whose_connection_is_cut_is_answered_truthfully(
    open_store: Open, proxy: FaultyProxy, moment: str, kind: str
) -> None:
    """The same message is published again, and what stands behind the one that it was to follow says what happened."""
    store = open_store()
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", moment)  # type: ignore[arg-type]

    result = append_batch(store, S, *APPENDS[kind])

    fault.wait()
    sizes = [len(request.events) for request in APPENDS[kind]]
    ends = list(itertools.accumulate(sizes, initial=1))
    assert result.answers == tuple(Appended(start + 1, end) for start, end in itertools.pairwise(ends))
    assert result.last_seq == ends[-1]
    words = [event.payload_json.decode() for request in APPENDS[kind] for event in request.events]
    assert_sound(store, ["first", *(word.split('"')[3] for word in words)])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_change_whose_connection_is_cut_is_made_once(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    """Reservations, halts, seals, deletions and records go the same way as events."""
    store = open_store()
    append_events(store, S, *make_events("a b"))
    for mark, call in (
        (b'"kind":"reserve"', lambda: store.reserve(S, 9)),
        (b'"kind":"halt"', lambda: store.halt(S, "why")),
        (b'"kind":"clear_halt"', lambda: store.clear_halt(S)),
        (b'"kind":"truncate"', lambda: store.truncate_before(S, 2)),
        (b'"version":1', lambda: store.save_record(S, "ui", b"1", version=0)),
        (b'"kind":"seal"', lambda: store.seal(S)),
    ):
        fault = proxy.fault(mark, moment)  # type: ignore[arg-type]
        call()
        fault.wait()
    info = store.info(S)
    assert (info.last_seq, info.next_seq, info.first_available, info.sealed) == (2, 10, 2, True)
    assert store.load_record(S, "ui") == logmark.storage.Record(b"1", 1)
    assert store.verify(S) == []
    fault = proxy.fault(b'"kind":"delete"', moment)  # type: ignore[arg-type]
    store.delete(S)
    fault.wait()
    assert store.info(S).deleted


@pytest.mark.parametrize("moment", MOMENTS)
def test_others_append_between_the_loss_and_the_question(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    """An expectation that the lost append met must not fail because of itself, nor hold because of a stranger."""
    store, other = open_store(), open_store(direct=True)
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", moment, refuse=True)  # type: ignore[arg-type]
    answers: list[Appended | AppendError] = []
    thread = threading.Thread(
        target=lambda: answers.extend(append_batch(store, S, AppendRequest(make_events("needle"), 1)).answers)
    )
    thread.start()
    fault.wait()
    # What was sent may still be under way: the stranger's append comes after it, or instead of it.
    append_events(other, S, make_event("stranger"))
    proxy.heal()
    thread.join(SOON)

    (answer,) = answers
    texts = texts_of(other.read(S))
    if isinstance(answer, Appended):
        assert texts[answer.first_seq - 1] == "needle"
        assert moment != "before"
    else:
        assert isinstance(answer, WrongExpectedSeq)
        assert "needle" not in texts
    assert_sound(other, texts)


def test_an_append_that_was_overtaken_while_in_doubt_is_written_behind_the_other(
    open_store: Open, proxy: FaultyProxy
) -> None:
    """It certainly did not get in, and never will; so it is planned anew, and is there once."""
    store, other = open_store(), open_store(direct=True)
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", "before", refuse=True)
    answers: list[Appended] = []
    thread = threading.Thread(target=lambda: answers.append(append_events(store, S, make_event("needle"))))
    thread.start()
    fault.wait()
    append_events(other, S, make_event("stranger"))
    proxy.heal()
    thread.join(SOON)
    assert answers == [Appended(3, 3)]
    assert_sound(other, ["first", "stranger", "needle"])


# -- no answer until the deadline ------------------------------------------------------------------------------------


def test_an_answer_that_is_lost_with_the_server_is_an_unknown_outcome(open_store: Open, proxy: FaultyProxy) -> None:
    """Said as such, in time; a retry with the same id settles it, and nothing was halted."""
    store, other = open_store(HASTY), open_store(direct=True)
    append_in_the_end(store, make_event("first", id="first"))
    proxy.fault(b"needle", "answered", refuse=True)
    began = time.monotonic()
    needle, later = append_answers(
        store, S, AppendRequest((make_event("needle", id="mine"),)), AppendRequest(make_events("with"))
    )
    assert time.monotonic() - began < SOON
    assert isinstance(needle, AppendUncertain)
    assert isinstance(later, AppendUncertain)
    assert (needle.halted, needle.first_event_id) == (False, "mine")

    (refused,) = append_batch(store, S, AppendRequest(make_events("refused"))).answers
    assert isinstance(refused, StorageRejected)  # this one was never sent, so nothing of it can be there
    with pytest.raises(StorageUnavailable, match="could not be reached"):
        list(store.read(S))
    with pytest.raises(StorageUnavailable):
        store.halt(S, "why")
    with pytest.raises(StorageRejected):
        store.reserve(S, 10)
    assert all(isinstance(each, StorageUnavailable) for each in store.last_seqs([S, "other"]).values())
    proxy.heal()
    assert append_in_the_end(store, make_event("needle", id="mine")) == Appended(2, 2, written=False)
    assert_sound(other, ["first", "needle", "with"])


def test_a_session_heals_by_itself_when_the_server_is_back(
    open_store: Open, proxy: FaultyProxy, logs: CapturedLogs
) -> None:
    """An append that waits for the server goes through as soon as there is one; the outage is logged once."""
    store = open_store()
    append_events(store, S, make_event("first"))
    proxy.refuse()
    answers: list[Appended] = []
    thread = threading.Thread(target=lambda: answers.append(append_events(store, S, make_event("waiting"))))
    thread.start()
    eventually(lambda: logs.named("server_lost"), timeout=SOON)
    proxy.heal()
    thread.join(SOON)

    assert answers == [Appended(2, 2)]
    assert_sound(store, ["first", "waiting"])
    assert len(logs.named("server_lost")) == 1
    assert len(logs.named("server_reached")) == 1


def test_a_stopped_server_is_waited_for_until_the_deadline_only(nats_server: NatsServer, open_store: Open) -> None:
    """Its sockets stay open and its system acknowledges every byte, so only the engine's own clock can tell."""
    store = open_store(HASTY, direct=True)
    for word in ("first", "second"):  # from then on it knows the session's ids
        append_in_the_end(store, make_event(word, id=word))
    nats_server.pause()
    try:
        began = time.monotonic()
        (answer,) = append_batch(store, S, AppendRequest((make_event("a", id="a"),))).answers
        assert isinstance(answer, AppendUncertain)
        with pytest.raises(StorageUnavailable):
            list(store.read(S))
        assert time.monotonic() - began < SOON
    finally:
        nats_server.resume()
    append_in_the_end(store, make_event("a", id="a"))
    assert_sound(open_store(direct=True), ["first", "second", "a"])


@pytest.mark.parametrize("moment", ["before", "answered"])
def test_a_lost_connection_is_not_waited_for(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    """Whoever waits for an answer on it goes on as soon as it is gone, not when the time for an answer is over."""
    store = open_store(Limits(server_wait_s=400.0))
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", moment)  # type: ignore[arg-type]
    began = time.monotonic()
    assert append_events(store, S, make_event("needle")) == Appended(2, 2)
    fault.wait()
    proxy.fault(b'"last_by_subj"', moment)  # type: ignore[arg-type]
    assert store.last_seq(S) == 2
    assert time.monotonic() - began < SOON


def test_a_server_that_answers_nothing_is_left_for_the_next(nats_server: NatsServer, name: str) -> None:
    """As one that is cut off from the others of its cluster, and still has its clients."""
    with FaultyProxy(nats_server.port) as silent:
        url = nats_server.url(name, port=silent.port).replace("/" + name, f",127.0.0.1:{nats_server.port}/{name}")
        store = NatsEventStore(url, limits=Limits(server_wait_s=4.0))
        append_events(store, S, make_event("first"))
        fault = silent.fault(b"needle", "silent")
        assert append_events(store, S, make_event("needle")) == Appended(2, 2)
        assert fault.happened.is_set()
        assert silent.connections == 0
        assert_sound(store, ["first", "needle"])
        store.close()


def test_hints_come_again_after_the_connection_was_lost(open_store: Open, proxy: FaultyProxy) -> None:
    """With a word that something may have been missed."""
    store, other = open_store(), open_store(direct=True)
    heard: list[str | None] = []
    assert store.watch(heard.append) is not None
    for turn in range(3):
        eventually(lambda: None in heard, timeout=SOON)
        append_events(store, "mine", make_event())
        append_events(other, f"theirs {turn}", make_event())
        eventually(lambda turn=turn: f"theirs {turn}" in heard, timeout=SOON)  # type: ignore[misc]
        assert "mine" not in heard  # what this store has done itself is no news
        heard.clear()
        proxy.cut_all()


def test_a_reader_goes_on_where_its_connection_was_lost(open_store: Open, proxy: FaultyProxy) -> None:
    store = open_store(Limits(read_chunk_bytes=500))
    for number in range(40):
        append_events(store, S, make_event(f"e{number}"))
    found: list[int | None] = []
    for event in store.read(S):
        if len(found) % 10 == 0:
            proxy.cut_all()
        found.append(event.event_seq)
    assert found == list(range(1, 41))


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_batch_that_fits_no_message_is_several_and_an_append_that_does_not_is_refused() -> None:
    """The server's max_payload bounds one append; what waits together in a session is cut between appends."""
    with NatsServer(max_payload=20_000) as server:
        store = NatsEventStore(server.url())
        requests = [AppendRequest((make_event("x" * 4000),)) for _ in range(12)]
        requests[5] = AppendRequest(tuple(make_event("y" * 4000) for _ in range(6)))
        result = append_batch(store, S, *requests)
        refused = result.answers[5]
        assert isinstance(refused, EventTooLarge)
        assert "max_payload" in str(refused)
        written = [answer for answer in result.answers if isinstance(answer, Appended)]
        assert [answer.first_seq for answer in written] == list(range(1, 12))
        assert (result.last_seq_before, result.last_seq) == (0, 11)
        assert seqs_of(store.read(S)) == list(range(1, 12))
        assert store.verify(S) == []
        with pytest.raises(StorageUnavailable, match="max_payload"):
            store.save_record(S, "ui", b"x" * 30_000, version=0)
        store.close()


def test_an_uncertain_part_of_a_batch_refuses_the_rest(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(HASTY)
    append_in_the_end(store, make_event("first", id="first"))
    published: list[bytes] = []

    def silent(subject: str, body: bytes, *_: object, **__: object) -> int:
        published.append(body)
        raise Unanswered("the server has not answered")

    monkeypatch.setattr(store._stream, "publish", silent)
    monkeypatch.setattr(store._stream, "message_bytes_max", 10_000)
    texts = ["one" + "x" * 5000, "two" + "x" * 5000]
    one, two = append_answers(store, S, *(AppendRequest((make_event(text),)) for text in texts))
    assert isinstance(one, AppendUncertain)
    assert isinstance(two, StorageRejected)
    assert "before it" in str(two)
    assert published
    assert all(b"two" not in body for body in published)


# -- the runtime above -----------------------------------------------------------------------------------------------


def test_a_follower_misses_nothing_when_its_connection_is_cut(
    nats_server: NatsServer, proxy: FaultyProxy, name: str
) -> None:
    """The hints come on it too; the log is what it goes by."""
    with (
        logmark.open(nats_server.url(name, port=proxy.port)) as follower,
        logmark.open(nats_server.url(name)) as writer,
    ):
        session = writer.session(S)
        with follower.session(S).subscribe(1) as subscription:
            for number in range(1, 61):
                assert session.append("note", number) == number
                if number % 20 == 0:
                    proxy.cut_all()
                if number % 3 == 0:
                    assert [subscription.get(SOON).event_seq for _ in range(3)] == [number - 2, number - 1, number]


def test_a_follower_hears_of_an_append_elsewhere_without_polling(nats_server: NatsServer, name: str) -> None:
    """The hint arrives long before the next look would be made."""
    limits = Limits(watch_interval_s=50.0)
    url = nats_server.url(name)
    with (
        logmark.open(url, limits=limits) as one,
        logmark.open(url, limits=limits) as two,
        one.session(S).subscribe(1) as subscription,
    ):
        two.session(S).append("note", 0)
        subscription.get(SOON)  # now it listens
        delays: list[float] = []
        for number in range(1, 12):
            two.session(S).append("note", number)
            began = time.monotonic()
            assert subscription.get(SOON).payload == number
            delays.append(time.monotonic() - began)
    assert sorted(delays)[len(delays) // 2] < 0.5


def test_appends_go_on_through_crashes_of_the_server(name: str) -> None:
    """Three threads append with ids of their own, twice the server is killed and started again."""
    kills, count = 2, 40
    acknowledged: list[tuple[str, int]] = []
    halfway = threading.Semaphore(0)
    with (
        NatsServer() as server,
        logmark.open(server.url(name), limits=Limits(server_wait_s=20.0)) as runtime,
    ):
        session = runtime.session(S)

        def append(writer: str) -> None:
            for number in range(count):
                event_id = f"{writer}-{number}"
                while True:
                    try:
                        seq = session.append("note", event_id, id=event_id)
                    except (AppendUncertain, StorageRejected, StorageUnavailable):
                        continue  # each of them took the engine as long as it may take
                    acknowledged.append((event_id, seq))
                    break
                if number in (count // 3, 2 * count // 3):
                    halfway.release()

        threads = [threading.Thread(target=append, args=(writer,)) for writer in "abc"]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            assert halfway.acquire(timeout=SOON)
            server.kill()
            server.start()
        for thread in threads:
            thread.join(2 * SOON)
        assert len(acknowledged) == 3 * count
        found = [(event.id, event.event_seq) for event in session.read()]
        assert sorted(found, key=lambda each: each[1] or 0) == sorted(acknowledged, key=lambda each: each[1])
        assert [seq for _, seq in found] == list(range(1, 3 * count + 1))
        assert runtime.store.verify(S) == []
        assert runtime.store.halted(S) is None


def test_several_sessions_of_one_call_lose_their_connection(open_store: Open, proxy: FaultyProxy) -> None:
    store = open_store()
    fault = proxy.fault(b"needle", "answered")
    results = store.append([SessionBatch(each, (AppendRequest(make_events("needle")),)) for each in ("c", "a", "b")])
    fault.wait()
    for result in results:
        assert result.answers == (Appended(1, 1),)
        assert_sound(store, ["needle"], result.session_id)


# -- a log that has become shorter -----------------------------------------------------------------------------------


def test_a_stream_that_has_lost_its_end_is_noticed_and_no_number_is_given_twice(open_store: Open) -> None:
    """As after a restored backup, or the loss of servers that had not synced."""
    store, other = open_store(Limits(server_wait_s=4.0, lock_wait_s=0.1)), open_store(direct=True)
    append_events(store, S, *make_events("a b"))
    append_events(store, S, make_event("c"))
    last = store._sessions.of(S).state.at
    store._stream.api(f"STREAM.MSG.DELETE.{store._stream.name}", {"seq": last}, deadline=store._stream.deadline())

    (answer,) = append_batch(store, S, AppendRequest(make_events("d"))).answers
    assert isinstance(answer, LogCorrupt)
    assert "older copy" in str(answer)
    assert other.last_seq(S) == 2  # who does not know of it cannot tell
    assert [finding.kind for finding in store.verify(S)] == ["lost"]
    assert store.repair(S, dry_run=True)
    assert store.repair(S)
    assert append_events(store, S, make_event("e")) == Appended(4, 4)
    assert seqs_of(other.read(S)) == [1, 2, 4]
    assert store.verify(S) == []


# -- a fork ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_the_connection_to_its_parent(nats_server: NatsServer, name: str) -> None:
    with logmark.open(nats_server.url(name)) as runtime:
        session = runtime.session(S)
        with session.subscribe(1) as subscription:
            assert session.append("note", 1) == 1
            child = os.fork()
            if child == 0:
                try:
                    runtime.close()
                    with logmark.open(nats_server.url(name)) as own:
                        assert own.session(S).append("note", 2) == 2
                    del runtime, session
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert session.append("note", 3) == 3
            assert [subscription.get(SOON).event_seq for _ in range(3)] == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_keep_the_connection_of_its_parent(name: str) -> None:
    """The server sees at once that the parent has gone, however long the child lives."""
    with NatsServer() as server:

        def connections() -> int:
            return len(server.monitored("/connz")["connections"])

        runtime = logmark.open(server.url(name))
        assert connections() == 1
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # lives until the test lets it go
            os._exit(0)
        os.close(reading)
        try:
            runtime.close()
            eventually(lambda: connections() == 0, timeout=SOON)
        finally:
            os.close(writing)
            os.waitpid(child, 0)
