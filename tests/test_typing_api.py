"""The public surface as a program with annotations uses it: what mypy and pyright see here is part of the promise."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, assert_type

import pytest

import logmark
from logmark import (
    AppendRejected,
    AppendUncertain,
    Cursor,
    CursorMark,
    Envelope,
    Job,
    JobMark,
    Limits,
    LogCorrupt,
    LogmarkError,
    Overloaded,
    Page,
    RawEnvelope,
    Row,
    RowPage,
    Runtime,
    Session,
    SessionHalted,
    SessionInfo,
    Subscription,
    WrongExpectedSeq,
    errors,
    logs,
)
from logmark.storage import BatchResult, EventStore, MemoryEventStore, SessionBatch


def record(session: Session, job_id: str, lines: Sequence[str]) -> tuple[int, int]:
    """Append as a program would, with every option."""
    first: int = session.append("build.started", {"lines": len(lines)}, job_id=job_id)
    assert_type(
        session.append(
            "build.line",
            [*lines],
            job_id=job_id,
            id="01J",
            expected_seq=first,
            source={"host": "a"},
            stream_seq=0,
            trace_id="t",
            timestamp=dt.datetime.now(dt.UTC),
            extensions={"vendor": True},
        ),
        int,
    )
    assert_type(session.submit("build.line", None, job_id=job_id), Future[int])
    pairs: list[tuple[str, str]] = [("build.line", line) for line in lines]
    mixed: list[Envelope | tuple[str, Any]] = [("a", {}), Envelope(type="c", payload=1, job_id=job_id)]
    assert_type(session.append_many(pairs), tuple[int, int])
    assert_type(session.append_many(mixed, expected_seq=None), tuple[int, int])
    assert_type(session.append_many(iter(mixed)), tuple[int, int])
    session.send("session.ping", {"nonce": 1})
    return first, session.last_seq


def watch(session: Session) -> Iterator[str]:
    """Follow as a program would."""
    with session.subscribe(from_seq=1, job_id=None, control=False) as subscription:
        assert_type(subscription, Subscription)
        assert_type(subscription.get(timeout=1.0), Envelope)
        assert_type(subscription.get_raw(timeout=1), RawEnvelope)
        assert_type(subscription.lag, int)
        assert_type(subscription.next_seq, int)
        for event in subscription:
            assert_type(event, Envelope)
            assert_type(event.event_seq, int | None)
            assert_type(event.timestamp, dt.datetime | None)
            assert_type(event.extensions, Mapping[str, Any])
            yield event.type
            if subscription.lag == 0:
                return


def look(runtime: Runtime, session: Session) -> list[JobMark]:
    """Read as a program would."""
    page: Page = session.page(before=None, after=None, limit=50)
    assert_type(page.events, tuple[Envelope, ...])
    assert_type(page.has_more, bool)
    assert_type((page.first_seq, page.last_seq), tuple[int, int])
    older = session.page(before=page.events[0])
    assert_type(older, Page)
    assert_type(session.read(from_seq=1, limit=None, job_id=None), Iterator[Envelope])
    assert_type(session.read_raw(page.events[-1]), Iterator[RawEnvelope])
    assert_type(next(session.read_raw()).payload_json, bytes)
    session.wait_for(session.last_seq, timeout=1.0)
    job = session.job("build-7")
    assert_type(job, Job)
    assert_type(job.mark, JobMark)
    assert_type(job.mark.status, str)
    for info in runtime.sessions():
        assert_type(info, SessionInfo)
        assert_type((info.session_id, info.last_seq, info.halted), tuple[str, int, str | None])
    return session.jobs()


def come_back(runtime: Runtime, session: Session) -> int:
    """Keep rows, a position and old payloads as a program would."""

    @runtime.upcaster("message", from_version=1)
    def to_2(payload: Any) -> Any:
        return {"text": payload}

    assert_type(to_2("a"), Any)
    assert_type(session.upsert("m1", "message", "a", final=False, job_id="build-7"), int)
    assert_type(session.upsert("m1", "message", {"text": "ab"}, final=True, type_version=2), int)
    page = session.rows(before=None, after=None, limit=50)
    assert_type(page, RowPage)
    assert_type(page.rows, tuple[Row, ...])
    assert_type((page.first_position, page.last_position, page.has_more), tuple[int, int, bool])
    assert_type(session.rows(before=page.rows[0]), RowPage)
    assert_type(session.row("m1"), Row | None)
    row = page.rows[-1]
    assert_type((row.row_id, row.position, row.last_seq, row.type, row.final), tuple[str, int, int, str, bool])
    cursor = session.cursor("ui")
    assert_type(cursor, Cursor)
    with session.subscribe(cursor=cursor, coalesce=True) as subscription:
        assert_type(cursor.ack(subscription.get(timeout=30)), int)
        assert_type(subscription.coalesced, int)
    assert_type((cursor.name, cursor.position, cursor.lag), tuple[str, int, int])
    assert_type(session.cursors(), list[CursorMark])
    cursor.delete()
    return row.position


def careful_append(session: Session) -> int | None:
    """Handle errors as a program would: by what to do about them."""
    try:
        return session.append("x", expected_seq=session.last_seq)
    except errors.RuntimeClosed:
        raise
    except WrongExpectedSeq as error:
        assert_type(error.last_seq, int)
    except Overloaded as error:
        assert_type(error.waited_s, float)
    except SessionHalted as error:
        assert_type(error.halted_at, str | None)
    except LogCorrupt as error:
        assert_type((error.event_seq, error.segment, error.offset), tuple[int | None, str | None, int | None])
    except AppendRejected as error:
        assert_type(error, AppendRejected)
    except AppendUncertain as error:
        assert_type(error.first_event_id, str | None)
    except (errors.ForkedRuntime, LogmarkError) as error:
        assert_type(error, errors.ForkedRuntime | LogmarkError)
    return None


def decide(payload: Any) -> str | None:
    return payload.get("status") if isinstance(payload, dict) else None


class OwnStore(MemoryEventStore):
    """A store of the program's own: the contract can be implemented under strict type checking."""

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        return super().append(batches)


class Holder:
    """A program's object that owns a runtime."""

    def __init__(self, url: str) -> None:
        self._runtime = logmark.open(
            url,
            limits=Limits(subscriber_events_max=16, lock_wait_s=1),
            durability="fsync",
            control_types=["typing.started"],
            job_status={"build.done": "success", "build.state": decide},
            create=True,
        )
        assert_type(self._runtime, Runtime)

    def __enter__(self) -> Session:
        return self._runtime.__enter__().session("chat-42")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._runtime.__exit__(kind, error, traceback)


def test_a_program_with_annotations_runs(store_url: str) -> None:
    holder = Holder(store_url)
    with holder as session:
        assert record(session, "build-7", ["one", "two"])[0] == 1
        session.append("end")
        types = list(watch(session))
        assert types[-1] == "end"
        marks = look(holder._runtime, session)
        assert [dataclasses.asdict(mark)["job_id"] for mark in marks] == ["build-7"]
        assert careful_append(session) == session.last_seq
        position = session.last_seq + 1
        assert come_back(holder._runtime, session) == position
    with pytest.raises(errors.RuntimeClosed):
        careful_append(session)


def test_an_own_store_can_be_opened() -> None:
    store: EventStore = OwnStore()
    with Runtime(store, limits=Limits()) as runtime:
        assert_type(runtime.session("s").append("x"), int)
        assert runtime.store is store


def test_wire_types_are_symmetric() -> None:
    typed = Envelope.from_wire(b'{"type":"x","payload":{"n":1}}', limits=Limits())
    assert_type(typed, Envelope)
    assert_type(typed.to_wire(limits=Limits()), bytes)
    raw = RawEnvelope.from_wire(typed.to_wire())
    assert_type(raw, RawEnvelope)
    assert_type(raw.decode(), Envelope)
    assert raw.decode() == typed


def test_the_log_facade_is_typed() -> None:
    sink: logs.LogSink = lambda event: None  # noqa: E731 - the alias is what is looked at
    logs.add_sink(sink)
    logs.remove_sink(sink)
