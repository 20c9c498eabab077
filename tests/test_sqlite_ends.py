"""An append to SQLite begins where this process has left the session: unless somebody else was there since."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import logmark
from logmark.errors import LogCorrupt, SessionDeleted, SessionHalted, SessionSealed
from logmark.storage import Appended, AppendRequest, BatchResult, EventStore, SessionBatch, open_store
from logmark.storage._memory import MemoryEventStore
from logmark.storage._sqlite_db import Database
from logmark.testing.conformance import append_answers, append_events, make_event, make_events, seqs_of, texts_of

S = "session"
SOON_S = 60.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'events.db'}"


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with contextlib.closing(open_store(url)) as opened:
        append_events(opened, S, *make_events("a b c"))
        append_events(opened, S, make_event("d"))
        yield opened


def append_many(store: EventStore, session_id: str) -> object:
    return append_events(store, session_id, *make_events("x y"))


@pytest.mark.parametrize(
    ("others_do", "answer"),
    [
        (append_many, Appended(7, 7)),
        (lambda store, session_id: store.reserve(session_id, 9), Appended(10, 10)),
        (lambda store, session_id: store.truncate_before(session_id, 3), Appended(5, 5)),
        (lambda store, session_id: store.halt(session_id, "because"), SessionHalted),
        (lambda store, session_id: store.seal(session_id), SessionSealed),
        (lambda store, session_id: store.delete(session_id), SessionDeleted),
    ],
    ids=["append", "reserve", "truncate", "halt", "seal", "delete"],
)
@pytest.mark.parametrize("also", [False, True], ids=["alone", "with another session"])
def test_what_others_did_since_is_found(
    store: EventStore, url: str, others_do: Callable[[EventStore, str], object], answer: object, *, also: bool
) -> None:
    append_events(store, "other", make_event("o"))
    with contextlib.closing(open_store(url)) as second:
        others_do(second, S)
    batches = [SessionBatch(S, (AppendRequest((make_event("e"),)),))]
    if also:
        batches.append(SessionBatch("other", (AppendRequest(make_events("p q")),)))
    results = store.append(batches)
    (found,) = results[0].answers
    assert found == answer if isinstance(answer, Appended) else type(found) is answer
    if also:
        assert results[1].answers == (Appended(2, 3),)
        assert texts_of(store.read("other")) == ["o", "p", "q"]
    if isinstance(answer, Appended):
        assert append_events(store, S, make_event("f")) == Appended(answer.last_seq + 1, answer.last_seq + 1)
        assert store.verify(S) == []


def test_a_log_that_was_taken_back_is_not_continued(store: EventStore, url: str, tmp_path: Path) -> None:
    """It was seen to go to 5; that its row says 4 again, as after this process's last commit, is damage."""
    with contextlib.closing(open_store(url)) as second:
        append_events(second, S, make_event("e"))
    assert store.last_seq(S) == 5
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as connection, connection:
        connection.execute("DELETE FROM event WHERE seq = 5")
        connection.execute("UPDATE session SET last_seq = 4, through_seq = 4")
    (answer,) = append_answers(store, S, AppendRequest((make_event("f"),)))
    assert isinstance(answer, LogCorrupt)


def test_a_copy_in_its_place_is_looked_at_anew(store: EventStore, url: str, tmp_path: Path) -> None:
    """It has the same numbers, and the end of its events is damaged: which only the look at a new file finds."""
    store.close()
    with contextlib.closing(open_store(url)) as writer:
        append_events(writer, S, make_event("e"))
        copy, path = tmp_path / "copy.db", tmp_path / "events.db"
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("UPDATE event SET payload = x'22' WHERE seq = 5")
            target.commit()
        for leftover in tmp_path.glob("events.db-*"):
            leftover.unlink()
        copy.replace(path)
        (answer,) = append_answers(writer, S, AppendRequest((make_event("f"),)))
        assert isinstance(answer, LogCorrupt)


@pytest.mark.parametrize("kinds", list(itertools.product(["fresh", "retry", "expected"], repeat=2)))
def test_two_batches_of_a_session_in_one_call(store: EventStore, kinds: Sequence[str]) -> None:
    """The second goes on behind the first, whether there is something to decide about them or not."""
    first = make_event("d", id="mine")
    append_events(store, S, first)  # 5
    through = 5
    batches: list[SessionBatch] = []
    answers: list[Appended] = []
    for kind in kinds:
        if kind == "retry":
            request = AppendRequest((first,))
            answers.append(Appended(5, 5, written=False))
        else:
            request = AppendRequest(make_events("x y"), expected_seq=through if kind == "expected" else None)
            answers.append(Appended(through + 1, through + 2))
            through += 2
        batches.append(SessionBatch(S, (request,)))
    results: list[BatchResult] = store.append(batches)
    assert [result.answers[0] for result in results] == answers
    assert seqs_of(store.read(S)) == list(range(1, through + 1))
    assert store.last_seq(S) == through
    assert store.verify(S) == []


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 200])
def test_any_number_of_rows(store: EventStore, count: int) -> None:
    texts = [str(number) for number in range(count)]
    assert append_events(store, S, *make_events(" ".join(texts))) == Appended(5, 4 + count)
    assert texts_of(store.read(S, from_seq=5)) == texts
    assert append_events(store, S, make_event("last")) == Appended(5 + count, 5 + count)
    assert store.verify(S) == []


@pytest.mark.parametrize("engine", ["sqlite", "memory"])
def test_callers_do_not_wait_for_the_commit_after_theirs(
    url: str, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """With a next batch at hand, those of the last one are answered before it is on the disk, not behind it."""
    reached, permits = threading.Semaphore(0), threading.Semaphore(0)
    where, name = (Database, "commit") if engine == "sqlite" else (MemoryEventStore, "append")
    original = getattr(where, name)

    def held(self: object, argument: object) -> object:
        reached.release()
        assert permits.acquire(timeout=SOON_S)
        return original(self, argument)

    monkeypatch.setattr(where, name, held)
    with logmark.open(url if engine == "sqlite" else "memory:") as runtime:
        session = runtime.session(S)
        first = session.submit("x")
        assert reached.acquire(timeout=SOON_S)
        second = session.submit("x")
        permits.release()
        assert reached.acquire(timeout=SOON_S)  # the second is under way
        assert first.result(SOON_S) == 1
        assert not second.done()
        permits.release()
        assert second.result(SOON_S) == 2
