"""Envelopes survive the wire: every field, known or not, and the payload's bytes where nobody has to look into them."""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark.errors import DecodeError, InvalidEvent
from logmark.protocol import ARCP_COUNTABLE, SEQ_MAX, Envelope, EventTypes, Limits, RawEnvelope

WIRE_FIELDS: dict[str, Any] = {
    "arcp": "1.1",
    "id": "01J",
    "type": "job.event",
    "session_id": "s",
    "job_id": "j",
    "trace_id": "t",
    "event_seq": 7,
    "payload": {"n": 1},
    "timestamp": "2026-01-31T23:59:59.123456789Z",
    "source": {"host": "a"},
    "stream_seq": 3,
}
PUBLIC = (
    "arcp",
    "event_seq",
    "extensions",
    "fields",
    "id",
    "job_id",
    "payload",
    "session_id",
    "source",
    "stream_seq",
    "timestamp",
    "timestamp_text",
    "trace_id",
    "type",
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
names = st.text(min_size=1, max_size=30)
optional_names = st.none() | names
unknown_names = st.text(max_size=20).filter(lambda name: name not in WIRE_FIELDS)
extensions = st.dictionaries(unknown_names, json_values, max_size=3)
zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
timestamps = st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=zones)  # noqa: DTZ001 - zones follow
envelopes = st.builds(
    Envelope,
    type=names,
    payload=json_values,
    id=optional_names,
    session_id=optional_names,
    job_id=optional_names,
    trace_id=optional_names,
    event_seq=st.none() | st.integers(1, SEQ_MAX),
    timestamp=st.none() | timestamps,
    source=json_values,
    stream_seq=st.none() | st.integers(0, SEQ_MAX),
    arcp=names,
    extensions=extensions,
)


def meaning(value: object) -> str:
    """Return a text that is equal for equal JSON only: 1, 1.0 and true are three values, and order is none."""
    return json.dumps(value, sort_keys=True)


def make(**fields: Any) -> Envelope:
    fields.setdefault("type", "job.event")
    return Envelope(**fields)


def stored(**fields: Any) -> tuple[Envelope, RawEnvelope]:
    """Return an event as a reader gets it, decoded and raw."""
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        session.append_many([make(**fields)])
        return next(session.read()), next(session.read_raw())


# -- round trips ----------------------------------------------------------------------------------------------------


@given(envelopes)
def test_a_typed_envelope_survives_the_wire(envelope: Envelope) -> None:
    wire = envelope.to_wire()
    again = Envelope.from_wire(wire)
    assert again == envelope
    assert again.to_wire() == wire
    for name in PUBLIC:
        assert meaning_of(getattr(again, name)) == meaning_of(getattr(envelope, name)), name


def meaning_of(value: object) -> str:
    return repr(value) if isinstance(value, dt.datetime) else meaning(value)


@given(envelopes)
def test_a_raw_envelope_and_a_typed_one_say_the_same(envelope: Envelope) -> None:
    wire = envelope.to_wire()
    raw = RawEnvelope.from_wire(wire)
    assert raw.decode() == envelope
    assert meaning(json.loads(raw.to_wire())) == meaning(json.loads(wire))


@given(envelopes)
def test_fields_that_are_none_are_absent_and_a_number_is_at_least_one(envelope: Envelope) -> None:
    frame = json.loads(envelope.to_wire())
    for name in WIRE_FIELDS.keys() - {"payload"}:
        assert (name in frame) == (frame.get(name) is not None), name
    assert ("event_seq" in frame) == (envelope.event_seq is not None)
    assert frame.get("event_seq", 1) >= 1
    assert "payload" in frame


frames = st.fixed_dictionaries(
    {"type": names},
    optional={
        "arcp": names,
        "id": optional_names,
        "session_id": optional_names,
        "job_id": optional_names,
        "trace_id": optional_names,
        "event_seq": st.none() | st.integers(1, SEQ_MAX),
        "payload": json_values,
        "source": json_values,
        "stream_seq": st.none() | st.integers(0, SEQ_MAX),
    },
)


@given(
    frames,
    extensions,
    st.randoms(use_true_random=False),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([Envelope, RawEnvelope]),
)
def test_a_foreign_frame_is_passed_on_with_every_field_it_had(
    known: dict[str, Any],
    unknown: dict[str, Any],
    chance: random.Random,
    indent: int | None,
    ascii_only: bool,
    kind: type[Envelope | RawEnvelope],
) -> None:
    members = [*known.items(), *unknown.items()]
    chance.shuffle(members)
    frame = dict(members)
    passed_on = json.loads(kind.from_wire(json.dumps(frame, indent=indent, ensure_ascii=ascii_only).encode()).to_wire())
    expected = {name: value for name, value in frame.items() if value is not None or name not in WIRE_FIELDS}
    assert meaning(passed_on) == meaning({"arcp": "1.1", "payload": None} | expected)


@pytest.mark.parametrize(
    "payload",
    [
        "null",
        "0",
        "-0",
        "1.50",
        "1E+2",
        "100000000000000000000.0",
        '"\\u0041\\/\\ud83d\\ude00"',
        '"a,\\"payload\\":{}}"',
        '{ "a" : [ 1 , 2 ] ,\t"payload":{"payload" : 3} }',
        "[]",
        '"\u2028"',
    ],
)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", ["payload", "pay\\u006coad"])
def test_a_raw_envelope_keeps_the_payloads_bytes(payload: str, place: int, name: str) -> None:
    members = ['"type" : "x}{"', '"note":{"payload":"\\"payload\\":1"}']
    members.insert(place, f'"{name}" :\n {payload} ')
    raw = RawEnvelope.from_wire(("\t{ " + " ,\r\n".join(members) + "}\n").encode())
    assert raw.payload_json == payload.encode()
    assert raw.to_wire().endswith(b',"payload":' + payload.encode() + b"}")
    assert meaning(raw.decode().payload) == meaning(json.loads(payload))


def test_a_frame_without_a_payload_has_the_payload_null() -> None:
    assert RawEnvelope.from_wire(b'{"type":"x"}').payload_json == b"null"
    assert Envelope.from_wire(b'{"type":"x"}').payload is None


def test_real_frames_decode_and_are_passed_on_unchanged() -> None:
    """Three hundred frames of a recorded conversation: what carries a number is exactly what is countable."""
    types = EventTypes()
    seen: set[str] = set()
    lines = (Path(__file__).parent / "data" / "arcp-wire.jsonl").read_bytes().splitlines()
    assert len(lines) == 300
    for line in lines:
        data = line[line.index(b'"frame": ') + len(b'"frame": ') : -1]
        frame = json.loads(data)
        typed, raw = Envelope.from_wire(data), RawEnvelope.from_wire(data)
        assert meaning(json.loads(typed.to_wire())) == meaning(json.loads(raw.to_wire())) == meaning(frame)
        assert raw.decode() == typed
        assert b'"payload": ' + raw.payload_json in data
        assert json.loads(raw.payload_json) == typed.payload == frame["payload"]
        assert (typed.event_seq is not None) == types.is_countable(typed.type) == (typed.type in ARCP_COUNTABLE)
        seen.add(typed.type)
    assert seen >= {"job.event", "job.result", "session.ack", "session.ping", "job.accepted"}


def test_real_frames_are_numbered_anew_and_keep_their_own_words(store_url: str) -> None:
    """Row 5, row 19: an envelope's own number and session have no meaning to the store; the rest is kept."""
    lines = (Path(__file__).parent / "data" / "arcp-wire.jsonl").read_bytes().splitlines()
    given_ = [
        Envelope.from_wire(line[line.index(b'"frame": ') + len(b'"frame": ') : -1])
        for line in lines
        if b'"type": "job.event"' in line or b'"type": "job.result"' in line
    ]
    unique = list({envelope.id: envelope for envelope in given_}.values())
    with logmark.open(store_url) as runtime:
        session = runtime.session("copy")
        assert session.append_many(unique) == (1, len(unique))
        for seq, (before, after) in enumerate(zip(unique, session.read(), strict=True), 1):
            assert (after.event_seq, after.session_id) == (seq, "copy")
            assert (after.id, after.type, after.job_id, after.payload) == (
                before.id,
                before.type,
                before.job_id,
                before.payload,
            )


# -- what is no envelope ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_seq": 0},
        {"event_seq": -1},
        {"event_seq": SEQ_MAX + 1},
        {"event_seq": 1.0},
        {"event_seq": True},
        {"event_seq": "1"},
        {"type": ""},
        {"type": None},
        {"type": 5},
        {"id": ""},
        {"id": 5},
        {"session_id": ""},
        {"session_id": ["s"]},
        {"job_id": ""},
        {"job_id": {}},
        {"trace_id": ""},
        {"trace_id": False},
        {"stream_seq": -1},
        {"stream_seq": 1.5},
        {"stream_seq": True},
        {"stream_seq": SEQ_MAX + 1},
        {"arcp": ""},
        {"arcp": 1.1},
        {"timestamp": 0},
        {"timestamp": "yesterday"},
        {"timestamp": "2026-01-31T23:59:59"},
    ],
    ids=meaning,
)
def test_a_field_of_the_wrong_kind_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        make(**wrong)
    data = json.dumps({"type": "x"} | wrong).encode()
    for kind in (Envelope, RawEnvelope):
        with pytest.raises(DecodeError):
            kind.from_wire(data)


@pytest.mark.parametrize("name", sorted(WIRE_FIELDS))
def test_an_extension_cannot_pass_for_a_field(name: str) -> None:
    with pytest.raises(InvalidEvent):
        Envelope(type="x", extensions={name: 1})


@pytest.mark.parametrize("data", [b"", b"[]", b'"x"', b"1", b"null", b"{}", b'{"type":"x"', b'{"type":"x"}{}'])
def test_what_is_no_object_with_a_type_is_refused(data: bytes) -> None:
    for kind in (Envelope, RawEnvelope):
        with pytest.raises(DecodeError):
            kind.from_wire(data)


def test_a_frame_beyond_the_limits_is_refused() -> None:
    limits = Limits(event_bytes_max=100, depth_max=3)
    exact = b'{"type":"x","payload":"%b"}'
    fits = exact % (b"y" * (100 - len(exact) + 2))
    assert len(fits) == 100
    deep = b'{"type":"x","payload":[[[1]]]}'
    for kind in (Envelope, RawEnvelope):
        assert kind.from_wire(fits, limits=limits).type == "x"
        assert kind.from_wire(deep, limits=limits).type == "x"
        for data in (fits + b" ", deep.replace(b"1", b"[1]")):
            with pytest.raises(DecodeError):
                kind.from_wire(data, limits=limits)


# -- timestamps ------------------------------------------------------------------------------------------------------


@given(timestamps)
def test_a_timestamp_is_utc_to_the_microsecond(moment: dt.datetime) -> None:
    envelope = Envelope(type="x", timestamp=moment)
    assert envelope.timestamp == moment
    assert envelope.timestamp is not None
    assert envelope.timestamp.tzinfo is dt.UTC
    assert envelope.timestamp_text is not None
    assert envelope.timestamp_text.endswith("Z")
    assert Envelope(type="x", timestamp=envelope.timestamp_text) == envelope


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T23:59:59Z", dt.datetime(2026, 1, 31, 23, 59, 59, tzinfo=dt.UTC)),
        ("2026-01-31 23:59:59.5-00:00", dt.datetime(2026, 1, 31, 23, 59, 59, 500_000, tzinfo=dt.UTC)),
        ("2026-01-31T23:59:59.123456789+01:30", dt.datetime(2026, 1, 31, 22, 29, 59, 123_456, tzinfo=dt.UTC)),
    ],
)
def test_a_timestamp_given_as_text_is_kept_as_it_is(text: str, moment: dt.datetime) -> None:
    typed, raw = stored(timestamp=text)
    assert (typed.timestamp, typed.timestamp_text, raw.timestamp_text) == (moment, text, text)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "2026-01-31",
        "20260131T235959Z",
        "2026-W05-6T00:00:00Z",
        "2026-01-31T23:59:59",
        "2026-01-31T23:59Z",
        "2026-01-31\u202823:59:59Z",
        "2026-01-31\ud80023:59:59Z",
        "2026-01-31T23:59:59Z\n",
        "2026-02-30T00:00:00Z",
        "\u0662026-01-31T23:59:59Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        dt.datetime(2026, 1, 31),  # noqa: DTZ001 - the point
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
        dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1))),
    ],
    ids=ascii,
)
def test_a_timestamp_that_a_reader_could_not_use_is_refused(wrong: dt.datetime | str) -> None:
    with pytest.raises(InvalidEvent, match="timestamp"):
        Envelope(type="x", timestamp=wrong)


# -- frozen, and nobody else's ---------------------------------------------------------------------------------------


def samples() -> list[Envelope | RawEnvelope]:
    fields = WIRE_FIELDS | {"extensions": {"x": [1]}}
    data = make(**fields).to_wire()
    return [make(**fields), Envelope.from_wire(data), RawEnvelope.from_wire(data), *stored(**fields)]


@pytest.mark.parametrize("index", range(5))
def test_an_envelope_cannot_be_changed(index: int) -> None:
    envelope = samples()[index]
    for name in (*PUBLIC, "payload_json", "head_json", "anything"):
        with pytest.raises(AttributeError):
            setattr(envelope, name, "x")
        with pytest.raises(AttributeError):
            delattr(envelope, name)
    assert envelope == samples()[index]


COPIES: tuple[Callable[[Any], Any], ...] = (
    copy.copy,
    copy.deepcopy,
    *(
        lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ),
)


@pytest.mark.parametrize("index", range(5))
def test_a_copy_is_equal_and_hashes_alike(index: int) -> None:
    for look_first in (False, True):
        for make in COPIES:
            envelope = samples()[index]
            if look_first:  # fields and payload are decoded when they are first looked at
                _ = envelope.fields, getattr(envelope, "payload", None)
            again = make(envelope)
            assert again == envelope
            assert hash(again) == hash(envelope)
            assert type(again) is type(envelope)
            assert repr(again) == repr(envelope)
            assert again.to_wire() == envelope.to_wire()


def test_equality_is_by_every_field_and_hashing_is_consistent() -> None:
    changes: dict[str, Any] = {
        "id": "02J",
        "type": "job.error",
        "session_id": "s2",
        "job_id": "j2",
        "trace_id": "t2",
        "event_seq": 8,
        "payload": {"n": 2},
        "timestamp": "2026-01-31T23:59:59.123456788Z",
        "source": {"host": "b"},
        "stream_seq": 4,
        "arcp": "1.0",
        "extensions": {"x": 2},
    }
    variants = [make(**WIRE_FIELDS), *(make(**(WIRE_FIELDS | {name: value})) for name, value in changes.items())]
    for one, other in itertools.product(variants, repeat=2):
        assert (one == other) == (one is other)
        raw_one, raw_other = RawEnvelope.from_wire(one.to_wire()), RawEnvelope.from_wire(other.to_wire())
        assert (raw_one == raw_other) == (one is other)
        assert raw_one != one
    assert len({*variants, *(Envelope.from_wire(each.to_wire()) for each in variants)}) == len(variants)
    assert variants[0] != "an envelope"


def test_a_repr_says_what_matters() -> None:
    typed, raw = stored(id="01J", job_id="j", payload={"n": 1})
    assert repr(typed) == (
        "Envelope(session_id='s', event_seq=1, type='job.event', id='01J', job_id='j', payload={'n': 1})"
    )
    assert repr(raw) == (
        "RawEnvelope(session_id='s', event_seq=1, type='job.event', id='01J', job_id='j', payload_json=7 bytes)"
    )


def test_two_readers_share_nothing_that_one_could_change(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        session.append(
            "x", {"list": [1]}, job_id="j", source={"list": [1]}, extensions={"list": [1], "object": {"list": [1]}}
        )

        def spoil(envelope: Envelope) -> None:
            assert (envelope.payload, envelope.source) == ({"list": [1]}, {"list": [1]})
            assert envelope.extensions == {"list": [1], "object": {"list": [1]}}
            envelope.payload["list"].append(2)
            envelope.source["list"].append(2)
            envelope.extensions["list"].append(2)
            envelope.extensions["object"]["list"].append(2)

        for _ in range(2):
            spoil(next(session.read()))
            spoil(next(session.read(job_id="j")))  # the filter has looked into the stored bytes
            spoil(session.page().events[0])
            with session.subscribe(1, job_id="j") as one, session.subscribe(1) as other:
                spoil(one.get(timeout=5))
                spoil(other.get(timeout=5))
        raw = RawEnvelope.from_wire(next(session.read()).to_wire())
        for _ in range(2):
            spoil(raw.decode())


def test_no_envelope_gets_the_extensions_that_somebody_put_into_another() -> None:
    for envelope in (Envelope(type="x"), *stored()):
        envelope.extensions["x"] = 1  # type: ignore[index]
        assert envelope.extensions == Envelope(type="x").extensions == {}
