"""JSON in and out is exact or an error at the call, and after an error nothing at all was written."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark import Envelope, Limits
from logmark.errors import (
    AppendRejected,
    DecodeError,
    EventTooDeep,
    EventTooLarge,
    InvalidArgument,
    InvalidEvent,
    NotEncodable,
)
from logmark.protocol import EnvelopeFields, decode_json, encode_event, encode_json

SIZES = {"bytes_max": 10_000, "depth_max": 8}
LONE = "\ud800"
LINE_BREAKS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \r\n \x00 \x7f \ufeff"


class Color(enum.Enum):
    RED = "red"
    NAN = math.nan
    NESTED = ({"deep": [math.inf]},)


class Outer(enum.Enum):
    INNER = Color.NAN


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    HI = "hi"


class Point(NamedTuple):
    x: int


@dataclasses.dataclass
class Plain:
    x: int = 1


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(levels: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


class Deep(enum.Enum):
    VALUE = nested(65)


BAD_VALUES: dict[str, tuple[Any, type[Exception]]] = {
    "nan": (math.nan, NotEncodable),
    "infinity": (math.inf, NotEncodable),
    "minus infinity": (-math.inf, NotEncodable),
    "nan beside null": ([None, {"a": math.nan}], NotEncodable),
    "infinity in a tuple": ({"a": (1, (math.inf,))}, NotEncodable),
    "nan as an enum's value": (Color.NAN, NotEncodable),
    "infinity in an enum's value": ([Color.NESTED], NotEncodable),
    "nan as an enum's enum's value": ({"a": Outer.INNER}, NotEncodable),
    "65 bits": (2**64, NotEncodable),
    "65 bits below zero": ([-(2**63) - 1], NotEncodable),
    "far beyond 64 bits": ({"a": 10**400}, NotEncodable),
    "lone surrogate": (LONE, NotEncodable),
    "lone surrogate inside": ({"a": [f"x{LONE}y"]}, NotEncodable),
    "lone surrogate as a key": ({LONE: 1}, NotEncodable),
    "number as a key": ({1: 1}, NotEncodable),
    "None as a key": ({None: 1}, NotEncodable),
    "enum as a key": ({Word.HI: 1}, NotEncodable),
    "bytes": (b"x", NotEncodable),
    "bytearray": ([bytearray(b"x")], NotEncodable),
    "set": ({1}, NotEncodable),
    "frozenset": ({"a": frozenset({1})}, NotEncodable),
    "generator": ((each for each in "x"), NotEncodable),
    "range": (range(3), NotEncodable),
    "object": (object(), NotEncodable),
    "class": (Plain, NotEncodable),
    "function": (itself, NotEncodable),
    "dataclass": (Plain(), NotEncodable),
    "named tuple": (Point(1), NotEncodable),
    "datetime": (dt.datetime.now(dt.UTC), NotEncodable),
    "date": (dt.date(2026, 1, 1), NotEncodable),
    "decimal": (decimal.Decimal(1), NotEncodable),
    "complex": (1j, NotEncodable),
    "mapping that is no dict": (types.MappingProxyType({"a": 1}), NotEncodable),
    "deque": (collections.deque([1]), NotEncodable),
    "fragment with a line break": (orjson.Fragment(b'"a\nb"'), NotEncodable),
    "envelope": (Envelope(type="x"), NotEncodable),
    "itself": (itself(), EventTooDeep),
    "too deep": (nested(65), EventTooDeep),
    "too deep for the encoder": (nested(300), EventTooDeep),
    "too deep in objects": (nested(65, lambda inner: {"a": inner}), EventTooDeep),
    "too deep in tuples": (nested(65, lambda inner: (inner,)), EventTooDeep),
    "too deep in an enum": (Deep.VALUE, EventTooDeep),
    "too large": ("x" * 2**20, EventTooLarge),
}
GOOD_VALUES: dict[str, tuple[Any, Any]] = {
    "enum": (Color.RED, "red"),
    "int enum": ({"a": Number.ONE}, {"a": 1}),
    "text enum": ([Word.HI], ["hi"]),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "tuple": ((1, (2,)), [1, [2]]),
    "ordered dict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "default dict": (collections.defaultdict(int, a=1), {"a": 1}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "largest": (2**64 - 1, 2**64 - 1),
    "smallest": (-(2**63), -(2**63)),
    "largest float": (1.7976931348623157e308, 1.7976931348623157e308),
    "smallest float": (5e-324, 5e-324),
    "the word null": ("null", "null"),
    "null beside a finite float": ([None, 1.5], [None, 1.5]),
    "line breaks": (LINE_BREAKS, LINE_BREAKS),
    "line breaks in a key": ({LINE_BREAKS: LINE_BREAKS}, {LINE_BREAKS: LINE_BREAKS}),
    "astral": ("\U0001f600", "\U0001f600"),
    "empty": ("", ""),
    "empty key": ({"": {}}, {"": {}}),
    "no bool for an int": ([True, 1, 1.0], [True, 1, 1.0]),
    "deep": (nested(64), nested(64)),
    "deep in objects": (nested(64, lambda inner: {"a": inner}), nested(64, lambda inner: {"a": inner})),
    "wide": ([[]] * 1000, [[]] * 1000),
    "brackets that are text": ("[" * 1000 + "{" * 1000, "[" * 1000 + "{" * 1000),
}

CALLS: dict[str, Callable[[logmark.Session, Any], object]] = {
    "append payload": lambda session, bad: session.append("x", bad),
    "append source": lambda session, bad: session.append("x", source=bad),
    "append extension": lambda session, bad: session.append("x", extensions={"e": bad}),
    "submit payload": lambda session, bad: session.submit("x", {"a": bad}),
    "submit source": lambda session, bad: session.submit("x", source={"a": bad}),
    "append_many": lambda session, bad: session.append_many([("x", 1), ("x", bad), ("x", 2)]),
    "append_many envelope": lambda session, bad: session.append_many(
        [("x", 1), Envelope(type="x", payload=1, extensions={"e": bad})]
    ),
    "job append": lambda session, bad: session.job("j").append("x", bad),
}
BAD_NAMES: dict[str, Callable[[logmark.Session, str], object]] = {
    "type": lambda session, bad: session.append(bad),
    "id": lambda session, bad: session.append("x", id=bad),
    "job_id": lambda session, bad: session.append("x", job_id=bad),
    "trace_id": lambda session, bad: session.append("x", trace_id=bad),
    "submit": lambda session, bad: session.submit("x", job_id=bad),
    "append_many": lambda session, bad: session.append_many([("x", 1), (bad, 1)]),
    "arcp": lambda session, bad: session.append_many([Envelope(type="x", arcp=bad)]),
    "extension": lambda session, bad: session.append("x", extensions={bad: 1}),
    "send": lambda session, bad: session.send("session.ping", id=bad),
    "send payload": lambda session, bad: session.send("session.ping", {"a": bad}),
}


def files_of(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


# -- what is refused leaves no trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["file", "memory"])
def test_what_has_no_exact_json_form_is_refused_and_nothing_is_written_row_13(tmp_path: Path, engine: str) -> None:
    with logmark.open(str(tmp_path) if engine == "file" else "memory:") as runtime:
        session = runtime.session("s")
        session.append("x", 1)
        with session.subscribe(control=True) as subscription:
            before = files_of(tmp_path)
            for call_name, call in CALLS.items():
                for name, (value, error) in BAD_VALUES.items():
                    with pytest.raises(error) as caught:
                        call(session, value)
                    assert isinstance(caught.value, InvalidEvent), (call_name, name)
                    assert isinstance(caught.value, AppendRejected)
                    assert isinstance(caught.value, ValueError)
            for bad_call in BAD_NAMES.values():
                with pytest.raises(InvalidEvent):
                    bad_call(session, LONE)
            for name, bad_call in BAD_NAMES.items():
                if name not in {"extension", "send payload", "arcp"}:
                    with pytest.raises(InvalidEvent, match="201 bytes"):
                        bad_call(session, "x" * 199 + "é")
            assert files_of(tmp_path) == before
            assert session.last_seq == 1
            assert session.append("x", 2) == 2
            assert subscription.get(timeout=5).event_seq == 2


@pytest.mark.parametrize("bad", [LONE, f"a{LONE}", "", "x" * 201, "é" * 101, b"s", None, 5, ["s"], ("s",)], ids=ascii)
def test_a_bad_session_id_is_refused_and_makes_nothing(tmp_path: Path, bad: Any) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        before = files_of(tmp_path)
        with pytest.raises(InvalidArgument):
            runtime.session(bad)
        assert files_of(tmp_path) == before
        assert list(runtime.sessions()) == []


def test_a_first_event_that_is_refused_makes_no_session(store_url: str, tmp_path: Path) -> None:
    with logmark.open(store_url) as runtime:
        before = files_of(tmp_path)
        with pytest.raises(NotEncodable):
            runtime.session("s").append("x", math.nan)
        assert list(runtime.sessions()) == []
        assert files_of(tmp_path) == before


# -- what is accepted comes back exactly -----------------------------------------------------------------------------


def test_what_is_accepted_is_read_back_exactly_also_after_a_restart(tmp_path: Path) -> None:
    expected = [value for _, value in GOOD_VALUES.values()]
    shallow = [value for name, (_, value) in GOOD_VALUES.items() if not name.startswith("deep")]

    def check(session: logmark.Session) -> None:
        events = list(session.read())
        assert json.dumps([event.payload for event in events]) == json.dumps(expected)
        # A source stands one level deeper in the row than a payload does.
        assert json.dumps([event.source for event in events if event.source != "none"]) == json.dumps(shallow)

    with logmark.open(str(tmp_path)) as runtime:
        session = runtime.session(LINE_BREAKS)
        for name, (value, _) in GOOD_VALUES.items():
            session.append("x", value, source="none" if name.startswith("deep") else value)
        check(session)
    with logmark.open(str(tmp_path)) as runtime:
        check(runtime.session(LINE_BREAKS))
        assert [info.session_id for info in runtime.sessions()] == [LINE_BREAKS]


@pytest.mark.parametrize("text", [LINE_BREAKS, "\u2028", "\n", '","payload":{', '"', "\\", "é" * 100, "x" * 200])
def test_a_name_may_hold_any_text(tmp_path: Path, text: str) -> None:
    for _ in range(2):  # the second time the rows of the first are recovered and read
        with logmark.open(str(tmp_path)) as runtime:
            session = runtime.session(text)
            session.append(text, {text: text}, id=text, job_id=text, trace_id=text, extensions={text: text})
            (event,) = session.read(job_id=text)
            assert (event.type, event.id, event.job_id, event.trace_id) == (text,) * 4
            assert event.payload == event.extensions == {text: text}
            assert event.session_id == text
            assert session.job(text).mark.count == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_decoding_undoes_encoding(value: Any) -> None:
    data = encode_json(value, bytes_max=10**6, depth_max=64)
    assert json.dumps(decode_json(data, bytes_max=10**6, depth_max=64)) == json.dumps(value)


@given(st.integers() | st.floats() | st.text(st.characters(categories=["Cs", "Lu"])) | st.binary(), json_values)
def test_what_is_encoded_is_exact(value: Any, beside: Any) -> None:
    try:
        data = encode_json([beside, value], bytes_max=10**6, depth_max=64)
    except NotEncodable:
        return
    assert json.dumps(json.loads(data)[1]) == json.dumps(value)


def test_the_bytes_are_a_snapshot(store_url: str) -> None:
    """What a caller does to its objects after the call reaches neither the log nor a subscriber."""
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            payload: dict[str, Any] = {"list": [1]}
            source, extensions = {"list": [1]}, {"e": [1]}
            future = session.submit("x", payload, source=source, extensions=extensions)
            payload["list"].append(2)
            source["list"].append(2)
            extensions["e"].append(2)
            future.result(timeout=5)
            session.append("x", payload)
            payload["list"].append(3)
            envelope = Envelope(type="x", payload=payload)
            session.append_many([envelope, ("x", payload)])
            payload.clear()
            lists = [[1], [1, 2], [1, 2, 3], [1, 2, 3]]
            assert [event.payload["list"] for event in session.read()] == lists
            assert [subscription.get(timeout=5).payload["list"] for _ in lists] == lists
            first = next(session.read())
            assert (first.source, first.extensions) == ({"list": [1]}, {"e": [1]})


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 64, 250])
@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"[": inner}, lambda inner: (inner, 1)])
def test_depth_counts_containers(limit: int, wrap: Callable[[Any], Any]) -> None:
    limits = Limits(depth_max=limit)
    with logmark.open("memory:", limits=limits) as runtime:
        session = runtime.session("s")
        for levels in (limit - 1, limit):
            value = nested(levels, wrap)
            seq = session.append("x", value)
            event = next(session.read(seq))
            assert json.dumps(event.payload) == json.dumps(value)
            assert Envelope.from_wire(event.to_wire(limits=limits), limits=limits) == event
        with pytest.raises(EventTooDeep) as caught:
            session.append("x", nested(limit + 1, wrap))
        assert caught.value.limit == limit
        assert session.last_seq == 2


def test_size_counts_the_bytes_of_the_whole_event(store_url: str) -> None:
    """Row 21 of the faults: the limit itself fits, one byte more does not."""
    fields: dict[str, Any] = {
        "id": "01J",
        "job_id": "j",
        "trace_id": "t",
        "timestamp": "2026-01-01T00:00:00Z",
        "source": {"host": "a"},
        "stream_seq": 5,
    }
    limits = Limits(event_bytes_max=400)
    empty = encode_event(EnvelopeFields(type="x", **fields), "", limits).size_bytes
    with logmark.open(store_url, limits=limits) as runtime:
        session = runtime.session("s")
        for size in (399, 400, 401):
            text = "é" * ((size - empty) // 2) + "x" * ((size - empty) % 2)
            if size > 400:
                with pytest.raises(EventTooLarge) as caught:
                    session.append("x", text, **fields)
                assert (caught.value.size_bytes, caught.value.limit_bytes) == (401, 400)
            else:
                named: dict[str, Any] = fields | {"id": str(size)}
                session.append("x", text, **named)
        assert [event.id for event in session.read()] == ["399", "400"]


# -- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"nul",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e400",
        b"-1e400",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"'a'",
        b"[1,]",
        b"{} {}",
        b"{}\x00",
        b'"\n"',
        b'"\t"',
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'{"\\ud800":1}',
        b"\xef\xbb\xbf1",
        b"\xff\xfe1\x00",
        b'"\\x41"',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"b":{"a":1,"c":2,"a":3}}]',
        b'{"":1,"":1}',
        b"18446744073709551616",
        b"-9223372036854775809",
        b"[18446744073709551616]",
        b'{"a":-9223372036854775809}',
        b"1" * 5000,
        b"-" + b"9" * 5000,
        b"[" * 9 + b"]" * 9,
        b'{"a":' * 9 + b"1" + b"}" * 9,
        b"[" * 2000 + b"]" * 2000,
        b"[" * 100_000,
        b"1" + b" " * 10_000,
        b'"' + b"x" * 9_999 + b'"',
    ],
    ids=lambda data: ascii(data[:24]),
)
def test_what_is_not_exact_json_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_json(data, **SIZES)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b" [ ] \n", []),
        (b'{"a":{"a":1},"b":{"a":1}}', {"a": {"a": 1}, "b": {"a": 1}}),
        (b'["a:b:c","18446744073709551616"]', ["a:b:c", "18446744073709551616"]),
        (b"123456789012345678901234567890.0", 123456789012345678901234567890.0),
        (b"123456789012345678901234567890e0", 123456789012345678901234567890.0),
        (b"1e19", 1e19),
        (b"1.0000000000000000000000001", 1.0),
        (b"[1e-1234567890123456789]", [0.0]),
        (b'"\xe2\x80\xa8\xc2\x85"', "\u2028\x85"),
        (b'"\\u2028\\ud83d\\ude00\\u0000"', "\u2028\U0001f600\x00"),
        (b"[" * 8 + b"]" * 8, [[[[[[[[]]]]]]]]),
        (b'"' + b"[" * 100 + b'"', "[" * 100),
        (b'"' + b"x" * 9_998 + b'"', "x" * 9_998),
    ],
    ids=lambda data: ascii(data[:24]) if isinstance(data, bytes) else "",
)
def test_what_is_exact_json_is_decoded(data: bytes, value: Any) -> None:
    assert json.dumps(decode_json(data, **SIZES)) == json.dumps(value)


@given(st.text(st.sampled_from('0123456789.eE+-{}[]:," \n'), max_size=60).map(str.encode))
def test_an_integer_is_never_rounded(data: bytes) -> None:
    try:
        value = decode_json(data, bytes_max=1000, depth_max=64)
    except DecodeError:
        return
    assert json.dumps(value) == json.dumps(json.loads(data))
