"""What the NATS engine asks of servers, streams and URLs, and what it makes of messages that others have put there."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

import logmark
from logmark.errors import InvalidArgument, LogCorrupt, MissingExtra, SchemaMismatch, StorageUnavailable
from logmark.protocol import Limits, crc32
from logmark.storage import Appended, AppendRequest, SessionBatch
from logmark.testing import CapturedLogs, NatsServer
from logmark.testing.conformance import (
    append_batch,
    append_events,
    make_event,
    make_events,
    run_together,
    seqs_of,
    texts_of,
)

pytest.importorskip("nats", reason="logmark[nats] is not installed")

from logmark.storage._nats import NatsEventStore
from logmark.storage._nats_message import EXPECTED, Commit, session_of, session_subject
from logmark.storage._nats_url import NatsUrl
from logmark.storage._sealed import sealed, unsealed

S = "session"
SOON = 30.0
PERMISSIONS = {  # all that a store needs; docs/engines.md says so
    "publish": ["logmark.mine.>", "$JS.API.>"],
    "subscribe": ["_INBOX.>", "logmark-hint.mine.>"],
}
_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    return f"server_{next(_numbers)}"


@pytest.fixture
def url(nats_server: NatsServer, name: str) -> str:
    return nats_server.url(name)


@pytest.fixture
def store(url: str) -> Iterator[NatsEventStore]:
    made = NatsEventStore(url)
    yield made
    made.close()


@pytest.fixture
def other(store: NatsEventStore, url: str) -> Iterator[NatsEventStore]:
    """Another process's store, which knows nothing yet."""
    made = NatsEventStore(url)
    yield made
    made.close()


def api(store: NatsEventStore, verb: str, **request: Any) -> dict[str, Any]:
    return store._stream.api(verb, request or None, deadline=time.monotonic() + SOON)


# -- the URL ---------------------------------------------------------------------------------------------------------


def test_a_url_names_servers_a_stream_and_what_is_asked_of_it() -> None:
    parsed = NatsUrl.parse("nats://ada:s3cret@one:4222,two,[::1]:4224/chat-log_1?replicas=3&monitor=one:8222")
    assert parsed.servers == ("nats://one:4222", "nats://two", "nats://[::1]:4224")
    assert parsed.login == {"user": "ada", "password": "s3cret"}
    assert (parsed.name, parsed.replicas, parsed.monitor) == ("chat-log_1", 3, ("one:8222",))
    assert parsed.shown == "nats://ada@one:4222,two,[::1]:4224/chat-log_1?replicas=3&monitor=one:8222"
    assert "s3cret" not in parsed.shown + repr(parsed)
    assert "t0ken" not in NatsUrl.parse("nats://t0ken@one/x").shown


@pytest.mark.parametrize(
    "text",
    [
        "nats://one",
        "nats://one/",
        "nats:one/x",
        "nats:///x",
        "nats://one,,two/x",
        "nats://one/a.b",
        "nats://one/a b",
        "nats://one/x/y",
        "nats://one/" + "x" * 101,
        "nats://one/x?replicas=0",
        "nats://one/x?replicas=6",
        "nats://one/x?replicas=three",
        "nats://one/x?replicas=1&replicas=3",
        "nats://one/x?replica=3",
        "nats://one/x?monitor=http://one",
        "nats://user:s3cret@one two/x",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        logmark.open(text)
    assert "s3cret" not in str(caught.value)


def test_no_server_is_an_error_in_time_that_pickles_and_has_no_password() -> None:
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        logmark.open("nats://ada:s3cret@127.0.0.1:1,127.0.0.1:2/log", limits=Limits(server_wait_s=60.0))
    assert time.monotonic() - began < SOON
    assert "could not be reached" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("authorization", "login"),
    [
        ({"user": "ada", "password": "s3 cr@t/%"}, "ada:s3%20cr%40t%2F%25"),
        ({"token": "s3 cr@t/%"}, "s3%20cr%40t%2F%25"),
        (
            {"users": [{"user": "ada", "password": "s3 cr@t/%", "permissions": PERMISSIONS}]},
            "ada:s3%20cr%40t%2F%25",
        ),
    ],
    ids=["password", "token", "permissions"],
)
def test_a_server_may_ask_who_it_is(authorization: dict[str, Any], login: str, logs: CapturedLogs) -> None:
    with NatsServer(authorization=authorization) as server:
        url = server.url("mine").replace("nats://", f"nats://{login}@")
        with logmark.open(url) as runtime, runtime.session(S).subscribe(1) as subscription:
            assert runtime.session(S).append("note", 1) == 1
            assert subscription.get(SOON).event_seq == 1
            with logmark.open(url) as other:
                assert other.session(S).append("note", 2, id="own") == 2
            assert subscription.get(SOON).event_seq == 2
        for wrong in (server.url("mine"), url.replace("s3", "s4")):
            with pytest.raises(StorageUnavailable, match="could not be reached") as caught:
                logmark.open(wrong, limits=Limits(server_wait_s=60.0))  # told at once
            assert "s3" not in str(caught.value)
    assert "cr@t" not in repr(logs.events) + runtime.store.url
    assert "cr%40t" not in repr(logs.events) + runtime.store.url


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("logmark.storage._nats")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "nats.aio.msg", None)
    with pytest.raises(MissingExtra, match=r"logmark\[nats\]"):
        logmark.open("nats://127.0.0.1:1/x")


def test_the_client_is_not_imported_before_it_is_needed() -> None:
    program = "import logmark, sys; print(sorted(name for name in sys.modules if name.split('.')[0] == 'nats'))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weaker", "reason"),
    [
        ({"storage": "memory"}, "storage is 'memory'"),
        ({"retention": "interest"}, "retention is 'interest'"),
        ({"max_age": 10**12}, "max_age is set"),
        ({"max_msgs_per_subject": 5}, "max_msgs_per_subject is set"),
        ({"discard": "old", "max_bytes": 10**6}, "discard is 'old'"),
        ({"discard": "old", "max_msgs": 10}, "discard is 'old'"),
        ({"no_ack": True}, "no_ack is True"),
        ({"deny_purge": True, "allow_rollup_hdrs": False}, "deny_purge is True"),
        ({"allow_direct": False}, "allow_direct is False"),
        ({"persist_mode": "async"}, "persist_mode is 'async'"),
    ],
)
def test_a_stream_that_promises_less_is_refused_with_an_explanation(
    nats_server: NatsServer, store: NatsEventStore, weaker: dict[str, Any], reason: str
) -> None:
    name = f"weak_{next(_numbers)}"
    config = api(store, f"STREAM.INFO.{store._stream.name}")["config"]
    made = {key: config[key] for key in ("storage", "retention", "discard", "allow_direct", "allow_rollup_hdrs")}
    made |= {"name": name, "subjects": [f"logmark.{name}.>"], "metadata": {"logmark": "1"}, "num_replicas": 1}
    api(store, f"STREAM.CREATE.{name}", **(made | weaker))
    with pytest.raises(StorageUnavailable, match=f"promises less than is asked of it: .*{reason}"):
        NatsEventStore(nats_server.url(name))


def test_a_server_that_acknowledges_before_it_syncs_is_refused_where_that_can_be_seen(logs: CapturedLogs) -> None:
    with NatsServer(sync="2m") as server:
        with pytest.raises(StorageUnavailable, match=r"sync_interval: always.*durability="):
            NatsEventStore(server.url())
        NatsEventStore(server.url(), durability="os").close()
        assert not logs.named("server_sync_unknown")
        NatsEventStore(server.url(monitor="")).close()
        assert len(logs.named("server_sync_unknown")) == 1
        with pytest.raises(StorageUnavailable, match="does not answer"):
            NatsEventStore(server.url(monitor="127.0.0.1:1"))


def test_more_replicas_than_there_are_servers_are_refused(nats_server: NatsServer, name: str) -> None:
    with pytest.raises(StorageUnavailable, match="replicas"):
        NatsEventStore(nats_server.url(name, replicas="3"))


def test_a_stream_of_somebody_else_is_refused_and_left_alone(
    nats_server: NatsServer, store: NatsEventStore, name: str
) -> None:
    theirs = f"{name}_theirs"
    api(store, f"STREAM.CREATE.{theirs}", name=theirs, subjects=["orders.>"], storage="file")
    with pytest.raises(StorageUnavailable, match="none of logmark's"):
        NatsEventStore(nats_server.url(theirs))
    assert api(store, f"STREAM.INFO.{theirs}")["config"]["subjects"] == ["orders.>"]


def test_a_newer_store_is_refused_and_left_alone(url: str, store: NatsEventStore) -> None:
    config = api(store, f"STREAM.INFO.{store._stream.name}")["config"]
    api(store, f"STREAM.UPDATE.{store._stream.name}", **(config | {"metadata": {"logmark": "99"}}))
    with pytest.raises(StorageUnavailable, match="expected store version 1, found 99"):
        NatsEventStore(url)


def test_a_store_that_only_looks_makes_nothing(url: str, store: NatsEventStore, name: str) -> None:
    with pytest.raises(StorageUnavailable, match="no stream"):
        NatsEventStore(url.replace(name, f"{name}_more"), create=False)
    assert f"{name}_more" not in api(store, "STREAM.NAMES")["streams"]
    NatsEventStore(url, create=False).close()


def test_many_may_make_the_same_store_at_once(nats_server: NatsServer, name: str) -> None:
    stores: list[NatsEventStore] = []
    url = nats_server.url(f"{name}_new")
    run_together(*[lambda: stores.append(NatsEventStore(url))] * 6)
    for number, each in enumerate(stores, 1):
        assert append_events(each, S, make_event()) == Appended(number, number)
        each.close()


def test_settings_that_are_changed_later_are_found_by_verification(store: NatsEventStore) -> None:
    append_events(store, S, make_event("a"))
    config = api(store, f"STREAM.INFO.{store._stream.name}")["config"]
    api(store, f"STREAM.UPDATE.{store._stream.name}", **(config | {"max_age": 10**15}))
    (finding,) = store.verify_store()
    assert "max_age" in finding.detail
    assert not finding.harmless


def test_a_full_stream_refuses_what_is_new_and_drops_nothing(store: NatsEventStore) -> None:
    append_events(store, S, make_event("kept"))
    config = api(store, f"STREAM.INFO.{store._stream.name}")["config"]
    api(store, f"STREAM.UPDATE.{store._stream.name}", **(config | {"max_bytes": 4000}))
    (answer,) = append_batch(store, S, AppendRequest((make_event("x" * 5000),))).answers
    assert "maximum bytes" in str(answer)
    api(store, f"STREAM.UPDATE.{store._stream.name}", **(config | {"max_bytes": -1}))
    assert append_events(store, S, make_event("more")) == Appended(2, 2)
    assert texts_of(store.read(S)) == ["kept", "more"]


# -- what others have put there --------------------------------------------------------------------------------------


def publish(store: NatsEventStore, body: bytes, headers: dict[str, str] | None = None, session_id: str = S) -> int:
    subject = session_subject(store._stream.name, session_id)
    return store._stream.publish(subject, body, headers or {}, deadline=time.monotonic() + SOON)


def stored(store: NatsEventStore, session_id: str = S) -> Any:
    subject = session_subject(store._stream.name, session_id)
    found = store._stream.last(subject, deadline=time.monotonic() + SOON)
    assert found is not None
    return found


def test_orphans_clones_and_messages_of_others_never_surface(store: NatsEventStore, other: NatsEventStore) -> None:
    """Row "shown by" of issue 6: whoever reads or writes next passes them over, and numbers stay dense."""
    append_events(store, S, make_event("a", id="a"))
    first = stored(store)
    append_events(store, S, make_event("b"))
    second = stored(store)
    append_events(store, "elsewhere", make_event("not here"))
    strays: list[tuple[bytes, dict[str, str]]] = [
        (first.body, {}),  # published again by somebody who does not compare
        (second.body, {}),
        (b"", {}),
        (b"what is this?", {EXPECTED: ""}),
        (stored(store, "elsewhere").body, {}),
    ]
    for number, (body, headers) in enumerate(strays):
        publish(store, body, {name: value for name, value in headers.items() if value})
        # An orphan: a commit that was written behind another message than it says.
        publish(store, second.body, {EXPECTED: str(stored(store).seq)})
        for looking in (other, store):
            expected = ["a", "b", *(f"after {each}" for each in range(number))]
            assert texts_of(looking.read(S)) == expected
            assert texts_of(looking.read_backwards(S)) == expected[::-1]
            assert looking.last_seq(S) == len(expected)
            assert looking.verify(S) == []
        writer = (store, other)[number % 2]
        assert append_events(writer, S, make_event(f"after {number}")) == Appended(3 + number, 3 + number)
    assert append_events(other, S, make_event("again", id="a")) == Appended(1, 1, written=False)
    assert seqs_of(other.read(S, from_seq=4)) == [4, 5, 6, 7]


def test_a_stray_behind_the_last_word_does_not_take_it_away(store: NatsEventStore, other: NatsEventStore) -> None:
    """What is removed is what lies before the message that says where the session stands, not before the last one."""
    for name in ("emptied", "gone"):
        append_events(store, name, *make_events("a b"))
    store.truncate_before("emptied", 3)
    store.delete("gone")
    for name in ("emptied", "gone"):
        publish(store, b"what is this?", session_id=name)
    assert store.truncate_before("emptied", 3) == 3
    store.delete("gone")
    for looking in (other, store):
        assert (looking.info("emptied").first_available, looking.last_seq("emptied")) == (3, 2)
        assert looking.info("gone").deleted
    assert append_events(other, "emptied", make_event("c")) == Appended(3, 3)


def test_a_message_that_is_delivered_twice_is_stored_once(store: NatsEventStore) -> None:
    """By the comparison, also when the server has long forgotten its id."""
    append_events(store, S, make_event("a"))
    first = stored(store)
    with pytest.raises(Exception, match="wrong last sequence"):
        publish(store, first.body, {EXPECTED: "0"})
    assert texts_of(store.read(S)) == ["a"]


def put_behind(store: NatsEventStore, old: bytes, new: bytes, **changes: Any) -> None:
    """Put the session's last message behind itself, as one of its own, with some of its rows or members changed."""
    last = stored(store)
    line, _, rows = last.body.partition(b"\n")
    members = unsealed(line, crc32(S.encode()))
    assert members is not None
    del members["crc"]
    first = sealed(orjson.dumps(members | {"after": last.seq} | changes)[:-1], crc32(S.encode()))
    publish(store, first + rows.replace(old, new), {EXPECTED: str(last.seq)})


def test_a_damaged_message_is_reported_and_given_up_by_a_repair(store: NatsEventStore, other: NatsEventStore) -> None:
    append_events(store, S, *make_events("a b"))
    append_events(store, S, make_event("c"))
    put_behind(store, b'"c"', b'"C"')

    for looking in (other, store):
        with pytest.raises(LogCorrupt, match="checksum"):
            looking.info(S)
        with pytest.raises(LogCorrupt):
            append_events(looking, S, make_event("d"))
        assert texts_of(looking.read(S, halted_ok=True)) == ["a", "b", "c"]
        assert [finding.kind for finding in looking.verify(S)] == ["damage"]
    assert other.repair(S, dry_run=True)
    with pytest.raises(LogCorrupt):
        other.info(S)
    assert other.repair(S)
    assert other.repair(S) == []
    assert append_events(store, S, make_event("d")) == Appended(4, 4)
    for looking in (other, store):
        assert texts_of(looking.read(S)) == ["a", "b", "c", "d"]
        assert looking.verify(S) == []


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["first", "middle", "last but one"])
def test_a_message_that_is_gone_is_reported_and_given_up_by_a_repair(
    store: NatsEventStore, other: NatsEventStore, lost: int
) -> None:
    """As when somebody deletes it by hand; its numbers stay used, and readers pass over them from then on."""
    seqs: list[int] = []
    for words in ("a b", "c d", "e", "f"):
        append_events(store, S, *make_events(words))
        seqs.append(stored(store).seq)
    api(store, f"STREAM.MSG.DELETE.{store._stream.name}", seq=seqs[lost])
    ranges = [(1, 2), (3, 4), (5, 5)]
    low, high = ranges[lost]

    for looking in (other, store):
        with pytest.raises(LogCorrupt, match=f"events {low} to {high}"):
            list(looking.read(S))
        assert seqs_of(looking.read(S, from_seq=6)) == [6]
        (finding,) = looking.verify(S)
        assert (finding.kind, finding.event_seq) == ("gap", low)
    assert other.repair(S)
    kept = [seq for seq in range(1, 7) if not low <= seq <= high]
    assert append_events(store, S, make_event("g")) == Appended(7, 7)
    for looking in (other, store):
        assert seqs_of(looking.read(S)) == [*kept, 7]
        assert seqs_of(looking.read_backwards(S)) == [7, *kept[::-1]]
        assert seqs_of(looking.read(S, from_seq=low)) == [*(seq for seq in kept if seq >= low), 7]
        assert looking.verify(S) == []
        assert looking.repair(S) == []


def test_a_message_of_another_version_is_refused(store: NatsEventStore, other: NatsEventStore) -> None:
    append_events(store, S, make_event("a"))
    put_behind(store, b"", b"", logmark=99)
    with pytest.raises(SchemaMismatch):
        other.info(S)
    with pytest.raises(SchemaMismatch):
        append_events(store, S, make_event("b"))


def test_a_deleted_session_that_is_damaged_can_be_deleted(store: NatsEventStore) -> None:
    append_events(store, S, make_event("a"))
    put_behind(store, b'"a"', b'"A"')
    store.delete(S)
    assert store.info(S).deleted
    assert list(store.sessions()) == []


def test_an_id_in_the_pruned_part_of_a_message_is_a_new_one(store: NatsEventStore, other: NatsEventStore) -> None:
    """The message is kept for what is left of it, and its first events are gone all the same."""
    append_events(store, S, *make_events("a b c", ids=["x", "y", "z"]))
    store.truncate_before(S, 3)
    assert append_events(store, S, make_event("again", id="z")) == Appended(3, 3, written=False)
    assert append_events(store, S, make_event("new", id="x")) == Appended(4, 4)
    assert append_events(other, S, make_event("new", id="y")) == Appended(5, 5)
    assert append_events(other, S, make_event("again", id="x")) == Appended(4, 4, written=False)


def messages_of(store: NatsEventStore, session_id: str) -> int:
    """Return how many messages the stream has of a session, whatever they are about."""
    wanted = session_subject(store._stream.name, session_id)
    found = api(store, f"STREAM.INFO.{store._stream.name}", subjects_filter=wanted)["state"].get("subjects") or {}
    return int(found.get(wanted, 0))


def test_what_is_pruned_or_deleted_takes_no_room(store: NatsEventStore) -> None:
    """But for what says so; and what an interrupted call has left goes with the next."""
    for name in (S, "gone"):
        for number in range(20):
            append_events(store, name, make_event(str(number)))
    assert messages_of(store, S) == 20
    store.truncate_before(S, 18)
    assert messages_of(store, S) == 4  # three events, and the word of the truncation
    store.truncate_before(S, 21)
    assert messages_of(store, S) == 1
    store.save_record("gone", "ui", b"1", version=0)
    store.delete("gone")
    assert messages_of(store, "gone") == 1
    for kind in ("r", "s"):
        assert list(store._stream.subjects(f"logmark.{store._stream.name}.{kind}.gone.*")) == []


# -- costs -----------------------------------------------------------------------------------------------------------


def test_reading_from_a_number_does_not_read_what_lies_before_it(
    store: NatsEventStore, other: NatsEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a process that knows the session, nor in one that has never seen it; other sessions lie between."""
    for number in range(150):
        requests = (AppendRequest((make_event("x" * 200),)),)
        store.append([SessionBatch(S, requests), *(SessionBatch(f"other {number % 3}", requests) for _ in range(2))])
    looked: list[int] = []
    original = Commit.decode.__func__  # type: ignore[attr-defined]

    def counting(cls: type[Commit], found: Any, session_id: str) -> Any:
        looked.append(found.seq)
        return original(cls, found, session_id)

    monkeypatch.setattr(Commit, "decode", classmethod(counting))
    for looking in (store, other):
        for seq in (1, 2, 75, 149, 150):
            looked.clear()
            assert next(looking.read(S, from_seq=seq, through_seq=seq)).event_seq == seq
            assert len(looked) < 30, f"{len(looked)} messages for event {seq}"


def test_strays_at_the_end_of_a_long_session_cost_a_few_questions(
    store: NatsEventStore, other: NatsEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        append_events(store, S, make_event(str(number)))
    for _ in range(3):
        publish(store, b"what is this?")
    looked: list[int] = []
    original = Commit.decode.__func__  # type: ignore[attr-defined]

    def counting(cls: type[Commit], found: Any, session_id: str) -> Any:
        looked.append(found.seq)
        return original(cls, found, session_id)

    monkeypatch.setattr(Commit, "decode", classmethod(counting))
    assert other.last_seq(S) == 60
    assert len(looked) < 12
    assert append_events(other, S, make_event("next")) == Appended(61, 61)
    looked.clear()
    assert store.last_seq(S) == 61
    assert len(looked) == 1


def test_sessions_of_every_name_have_a_subject_of_their_own() -> None:
    names = ["a", "A", "a.b", "a%2Eb", "*", ">", "a b", "\n", "\N{PILE OF POO}" * 50, "~._-", "$JS"]
    subjects = [session_subject("x", name) for name in names]
    assert len(set(subjects)) == len(names)
    for name, subject in zip(names, subjects, strict=True):
        assert session_of(subject) == name
        assert subject.count(".") == 3
        assert subject.isascii()
        assert not set(subject) & set(" *>\r\n\t")
