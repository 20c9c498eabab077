"""What a slow reader of a streaming row is spared: only what a later change replaces, never a first or a final one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark._coalescing import coalesced
from logmark.errors import LogCorrupt
from logmark.protocol import EnvelopeFields, Limits, RawEnvelope, encode_event
from logmark.testing import eventually

SOON = 30.0


def stream(s: logmark.Session, row_id: str, text: str) -> None:
    """Upsert a text that grows by a letter at a time."""
    for end in range(1, len(text) + 1):
        s.upsert(row_id, "message", text[:end], final=end == len(text))


def test_the_first_and_the_final_change_are_seen_and_all_are_kept(every_store_url: str) -> None:
    """Row 65: a, ab, abc, abcd (final)."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        stream(s, "m1", "abcd")
        with s.subscribe(1, coalesce=True) as sub:
            seen = [sub.get(SOON) for _ in range(2)]
            assert [(event.event_seq, event.payload) for event in seen] == [(1, "a"), (4, "abcd")]
            assert (sub.coalesced, sub.next_seq, sub.lag) == (2, 5, 0)
        with s.subscribe(1) as sub:
            assert [sub.get(SOON).payload for _ in range(4)] == ["a", "ab", "abc", "abcd"]
            assert sub.coalesced == 0
        assert [event.payload for event in s.read()] == ["a", "ab", "abc", "abcd"]


def test_who_keeps_up_sees_every_change_and_who_waits_sees_the_newest(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        with s.subscribe(coalesce=True) as sub:
            for n in range(5):  # nothing waits behind what is read at once
                s.upsert("m1", "message", n)
                assert sub.get(SOON).payload == n
            assert sub.coalesced == 0
            for n in range(5, 10):
                s.upsert("m1", "message", n)
            s.append("note", "end")
            seen = [sub.get(SOON)]
            while seen[-1].type != "note":
                seen.append(sub.get(SOON))
            assert [event.payload for event in seen[-2:]] == [9, "end"]  # the last before it went quiet
            assert len(seen) + sub.coalesced == 6


def test_it_is_the_same_live_and_from_the_log(runtime: logmark.Runtime) -> None:
    """A queue that overflows makes the reader read the log, where the same may be left out."""
    s = runtime.session("chat")
    with s.follow(1, coalesce=True, limits=Limits(subscriber_events_max=8)) as sub:
        for row in range(4):
            stream(s, f"m{row}", "abcdefgh")
        eventually(lambda: sub.lag == 32, SOON)
        seen = [sub.get(SOON) for _ in range(8)]
        assert sub.lag_count == 1
        assert [event.payload for event in seen] == ["a", "abcdefgh"] * 4
        assert sub.coalesced == 24


def test_controls_and_other_events_are_never_left_out(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    with s.subscribe(coalesce=True, control=True) as sub:
        s.upsert("m1", "message", 0)
        for n in range(1, 4):
            s.upsert("m1", "message", n)
            s.send("session.ping", n)
            s.append("note", n)
        seen: list[logmark.Envelope] = []
        while len([event for event in seen if event.type == "note"]) < 3:
            seen.append(sub.get(SOON))
        assert [event.payload for event in seen if event.type == "session.ping"] == [1, 2, 3]
        assert [event.payload for event in seen if event.type == "note"] == [1, 2, 3]
        assert seen[0].payload == 0


def test_a_change_of_another_job_replaces_nothing_for_who_follows_one(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    s.upsert("m1", "message", 1, job_id="a")
    s.upsert("m1", "message", 2, job_id="a")
    s.upsert("m1", "message", 3, job_id="a")
    s.upsert("m1", "message", 4, job_id="b")
    s.upsert("m1", "message", 5, job_id="b")
    with s.subscribe(1, "a", coalesce=True) as sub:
        assert [sub.get(SOON).payload for _ in range(2)] == [1, 3]
        assert sub.coalesced == 1


def test_what_comes_before_damage_is_seen_before_it() -> None:
    def damaged() -> Iterator[RawEnvelope]:
        yield from events([("m1", False), ("m1", False), ("m1", False)])
        raise LogCorrupt(session_id="s", reason="for the test", event_seq=4, segment=None, offset=None)

    seen: list[int | None] = []
    with pytest.raises(LogCorrupt):
        seen.extend(event.event_seq for event in coalesced(damaged(), None, lambda _: None))
    assert seen == [1, 3]


def test_a_subscription_is_closed_while_it_leaves_something_out(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    stream(s, "m1", "abcdefgh")
    sub = s.subscribe(1, coalesce=True)
    assert sub.get(SOON).payload == "a"
    closer = threading.Thread(target=sub.close)
    closer.start()
    closer.join(SOON)
    assert list(sub) == []


def events(changes: Iterable[tuple[str | None, bool]]) -> list[RawEnvelope]:
    """Return stored events: changes of rows, or (None) of none."""
    stored: list[RawEnvelope] = []
    created: dict[str, int] = {}
    for seq, (row_id, final) in enumerate(changes, 1):
        fields: dict[str, Any] = {}
        if row_id is not None:
            fields = {"row_id": row_id, "row_final": final}
            if created.setdefault(row_id, seq) != seq:
                fields["row_position"] = created[row_id]
        event = encode_event(EnvelopeFields("message", "id", timestamp="t", extensions=fields), None, Limits())
        stored.append(event.stamped("s", seq))
    return stored


@given(
    changes=st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans()), max_size=30),
    cut=st.integers(0, 30),
)
def test_nothing_is_left_out_but_what_a_later_change_replaces(changes: list[tuple[str | None, bool]], cut: int) -> None:
    """However the stream is cut into what waits together."""
    stored = events(changes)
    dropped: list[int] = []
    seen = [
        event.event_seq or 0
        for part in (stored[:cut], stored[cut:])
        for event in coalesced(iter(part), None, dropped.append)
    ]
    assert seen == sorted(set(seen))
    assert sum(dropped) == len(stored) - len(seen)
    for seq in set(range(1, len(stored) + 1)) - set(seen):
        row_id, final = changes[seq - 1]
        assert row_id is not None
        assert not final
        assert row_id in {changes[n][0] for n in range(seq - 1)}, "the first is never left out"
        until = cut if seq <= cut else len(changes)
        assert any(changes[n - 1][0] == row_id and n in seen for n in range(seq + 1, until + 1))


def test_a_long_stream_is_merged_in_bounded_parts() -> None:
    first, *later = events([("a", False)] * 4999)
    seen = [event.event_seq for event in coalesced([first, *later], None, lambda _: None)]
    assert seen[-1] == 4999
    assert 2 <= len(seen) <= 10
