"""Replay looks at many rows at once and decodes late: what is wrong with one is still found, and is found there."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logmark
from logmark.actors import Batch
from logmark.protocol import Envelope, Limits, LogCorrupt, RawEnvelope, crc32, encode_event, row_seed
from logmark.storage import FileEventStore
from logmark.testing import FaultyFiles, encoded_event
from logmark.testing.conformance import append_events, seqs_of

S = "s"
ROWS = 1200
"""Enough for several blocks, and for numbers of one to four digits."""


class Log:
    """A log of many rows, to be damaged line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / "sessions" / S / f"{1:020d}.jsonl"
        with logmark.open(str(path), durability="os") as runtime:
            session = runtime.session(S)
            for first in range(1, ROWS + 1, 100):
                session.append_many([("x", {"n": n, "text": "y" * (n % 300)}) for n in range(first, first + 100)])
        self.sound = self._file.read_bytes().splitlines(keepends=True)
        """The first line, then the line of each row: its number is its index."""
        self.head = (self._file.parent / "head").read_bytes()

    def read(self, lines: list[bytes], look: Callable[[Any], Any]) -> tuple[list[Any], LogCorrupt | None]:
        """Return what a replay of these lines shows, and what ends it."""
        self._file.write_bytes(b"".join(lines))
        (self._file.parent / "head").write_bytes(self.head)
        found: list[Any] = []
        with logmark.open(str(self.path), durability="os") as runtime:
            try:
                found += map(look, runtime.session(S).read(halted_ok=True))
            except LogCorrupt as error:
                return found, error
        return found, None


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("many") / "store")


def sealed(text: bytes) -> bytes:
    return b'%b,"crc":"%08x"}\n' % (text, zlib.crc32(text, row_seed(S)))


DAMAGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a bit of the start": lambda line, _: line[:3] + bytes([line[3] ^ 1]) + line[4:],
    "a bit of the number": lambda line, _: line.replace(b'"seq":', b'"seQ":', 1),
    "a bit of the payload": lambda line, _: line[:-25] + bytes([line[-25] ^ 4]) + line[-24:],
    "the name of the checksum": lambda line, _: line.replace(b',"crc":', b',"crC":'),
    "upper case in the checksum": lambda line, _: line[:-11] + line[-11:].swapcase(),
    "the closing brace": lambda line, _: line[:-2] + b"]\n",
    "a byte too many before the end": lambda line, _: line[:-1] + b" \n",
    "an earlier row in its place": lambda _, before: before,
    "another number, sealed again": lambda line, _: sealed(line[:-19].replace(b'"seq":', b'"seq":1', 1)),
    "half of it": lambda line, _: line[: len(line) // 2] + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_one_row_of_many_is_found_at_that_row(log: Log, damage: str) -> None:
    offsets = list(itertools.accumulate(map(len, log.sound), initial=0))
    for seq in (1, 2, 9, 10, 64, 65, 101, 333, 999, 1000, 1001, ROWS):
        line = log.sound[seq]
        if damage == "upper case in the checksum" and line[-11:].swapcase() == line[-11:]:
            continue  # it has no letters
        spoilt = DAMAGES[damage](line, log.sound[max(1, seq - 1)] if seq > 1 else log.sound[2])
        found, error = log.read([*log.sound[:seq], spoilt, *log.sound[seq + 1 :]], lambda event: event.payload["n"])
        assert error is not None, f"row {seq} of {damage}"
        assert (error.event_seq, error.offset) == (seq, offsets[seq])
        assert found == list(range(1, seq))


def test_rows_that_are_swapped_missing_or_twice_there_are_found(log: Log) -> None:
    for seq in (2, 100, 500, 1100):
        one, other = log.sound[seq], log.sound[seq + 1]
        for lines in ([other, one], [other], [one, one, other]):
            found, error = log.read([*log.sound[:seq], *lines, *log.sound[seq + 2 :]], lambda event: event.event_seq)
            assert error is not None
            assert found == list(range(1, error.event_seq or 0))
            assert error.event_seq in (seq, seq + 1)


def test_a_payload_that_cannot_be_decoded_is_the_error_of_its_own_event(log: Log) -> None:
    """Payloads are decoded together; a row that another writer sealed with nonsense in it must not spoil the rest."""

    def look(event: Envelope) -> int | None:
        try:
            return int(event.payload["n"])
        except orjson.JSONDecodeError:
            return None

    line = log.sound[700]
    spoilt = sealed(line[:-19].replace(b'{"n":700,', b'{"n" 700,'))
    found, error = log.read([*log.sound[:700], spoilt, *log.sound[701:]], look)
    assert error is None
    assert found == [*range(1, 700), None, *range(701, ROWS + 1)]


def test_empty_lines_mean_nothing(log: Log) -> None:
    lines = [line + b"\n" * (index in {0, 5, 700}) for index, line in enumerate(log.sound)]
    found, error = log.read(lines, lambda event: event.event_seq)
    assert error is None
    assert found == list(range(1, ROWS + 1))


@pytest.mark.parametrize("size", [1, 400])
def test_a_reservation_of_one_number_among_rows_is_no_event(tmp_path: Path, size: int) -> None:
    store = FileEventStore(tmp_path / "store", durability="os")
    for last in (10, 12, 30):
        append_events(store, S, *[encoded_event("x", "y" * size) for _ in range(last - store.info(S).next_seq)])
        store.reserve(S, last)
    append_events(store, S, encoded_event("x"))
    numbers = [*range(1, 10), 11, *range(13, 30), 31]
    assert seqs_of(store.read(S)) == numbers
    assert [event.event_seq for event in store.read_envelopes(S)] == numbers
    store.close()


def test_a_reader_that_goes_away_lets_go_of_the_file() -> None:
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, *[encoded_event("x", n) for n in range(2000)])

    def held() -> int:
        names = [operation.name for operation in files.operations]
        return names.count("open") - names.count("close")

    before = held()
    for read in (store.read, store.read_envelopes):
        events = read(S)
        next(events)
        assert held() == before + 1
        del events
        assert held() == before
    store.close()


texts = st.text(st.sampled_from('a"{}[],:\\é\u2028payload'), max_size=12) | st.sampled_from(
    [',"payload":{', '","type":"', '{"payload":1}', "payload", '"size":3,']
)
names = texts.filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["payload", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
events = st.builds(
    Envelope,
    type=names,
    payload=values,
    id=st.none() | names,
    job_id=st.none() | names,
    trace_id=st.none() | names,
    source=values,
    stream_seq=st.none() | st.integers(0, 2**63 - 1),
    extensions=st.dictionaries(st.sampled_from(["x-a", "x,", 'x"{']), values, max_size=2),
)


@settings(max_examples=40)  # each makes a store
@given(written=st.lists(events, min_size=1, max_size=5, unique_by=lambda event: event.id or object()))
def test_whatever_stands_in_a_row_its_parts_are_found(written: list[Envelope]) -> None:
    """Parts are cut out of a line by what stands around them; no text in a field may pass for that."""
    store = FileEventStore("/store", files=FaultyFiles())
    encoded = [
        encode_event(
            each.fields._replace(id=each.id or f"id {index}", timestamp="2026-01-01T00:00:00Z"), each.payload, Limits()
        )
        for index, each in enumerate(written)
    ]
    append_events(store, S, *encoded)
    for event, row, found, raw in zip(written, encoded, store.read_envelopes(S), store.read(S), strict=True):
        assert (found.type, found.payload, found.job_id) == (event.type, event.payload, event.job_id)
        assert (raw.type, raw.payload_json, raw.head_json) == (event.type, row.payload_json, row.head)
        assert (raw.source, raw.trace_id, raw.stream_seq) == (event.source, event.trace_id, event.stream_seq)
        assert (found.extensions, raw.decode().payload) == (event.extensions, event.payload)
        assert raw == row.stamped(S, raw.event_seq)
    # And together, as for a reader who has looked at all of so many.
    lines = [line for _, run in store._session_log(S).read(1, None, halted_ok=False) for line in run]
    payloads = [each.payload for each in Envelope.from_runs(S, [(1, lines[:1] * 64), (65, lines)])]
    assert payloads[64:] == [each.payload for each in written]
    store.close()


def test_a_payload_within_another_field_is_not_taken_for_the_events_own() -> None:
    """Looked at one by one, and from the second lot on together."""
    store = FileEventStore("/store", files=FaultyFiles())
    source = {"a": 1, "payload": {"not": "this"}}
    append_events(store, S, *[encoded_event("x", n, source=source if n % 9 else None) for n in range(300)])
    assert [event.payload for event in store.read_envelopes(S)] == list(range(300))
    store.close()


@given(data=st.binary(max_size=200), seed=st.integers(0, 2**32 - 1))
def test_the_checksum_is_that_of_zlib(data: bytes, seed: int) -> None:
    assert crc32(data, seed) == zlib.crc32(data, seed)
    assert crc32(data) == zlib.crc32(data)


def test_a_batch_is_measured_without_its_controls_where_they_are_not_wanted() -> None:
    event = encoded_event("x", "text")
    control: RawEnvelope = encoded_event("session.ping", "ping").stamped(S, None)
    batch = Batch([control, event.stamped(S, 4), control, event.stamped(S, 6)])
    assert (batch.first_seq, batch.last_seq, batch.controls, batch.size_bytes) == (4, 6, 2, 24)
    alone = batch.events()
    assert [envelope.event_seq for envelope in alone] == [4, 6]
    assert (alone.first_seq, alone.last_seq, alone.controls, alone.size_bytes) == (4, 6, 0, 12)
    assert alone.events() is alone
    controls = Batch([control])
    assert (controls.first_seq, controls.last_seq, controls.controls) == (None, None, 1)
    assert not controls.events()
