"""Foreign logs: which files there are, what each line is, and what of it is kept."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from logmark import Limits
from logmark.cli._ingest_events import ForeignEvent, MalformedLine, NotStored
from logmark.cli._ingest_gaps import GapTracker
from logmark.cli._ingest_reader import LineReader, find_files
from logmark.protocol import EventTypes

DATA = Path(__file__).parent / "data"
MEERKAT = sorted(DATA.glob("meerkat/*/events/*.jsonl"))
ENVELOPE: dict[str, Any] = {
    "arcp": "1.1",
    "id": "01M7XQ50NZP9JSB5M78E50V9AA",
    "type": "job.event",
    "session_id": "s",
    "job_id": "j",
    "event_seq": 7,
    "payload": {"kind": "log", "ts": "2026-11-21T00:12:28.223097Z", "body": {"message": "hi"}},
}
ROW: dict[str, Any] = {
    "seq": 1,
    "schema_version": 2,
    "timestamp": {"secs_since_epoch": 1786824040, "nanos_since_epoch": 814217000},
    "source": {"type": "session", "session_id": "s"},
    "stream_seq": 4,
    "event": {"type": "run_started", "input": {"kind": "content"}},
}
DELETED = object()


def reader(data: bytes, session_id: str | None = None, **limits: int) -> LineReader:
    return LineReader(io.BytesIO(data), session_id, Limits(**limits), EventTypes().is_countable)


def decode(value: Any, session_id: str | None = None) -> ForeignEvent | NotStored:
    return reader(b"", session_id).decode(json.dumps(value).encode())


def decode_event(value: Any, session_id: str | None = None) -> ForeignEvent:
    found = decode(value, session_id)
    assert isinstance(found, ForeignEvent)
    return found


def changed(original: dict[str, Any], **members: Any) -> dict[str, Any]:
    merged = original | members
    return {name: value for name, value in merged.items() if value is not DELETED}


# -- wire logs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [ENVELOPE, {"t": 1.5, "conn": "A#1", "dir": "s2c", "frame": ENVELOPE}, {"frame": ENVELOPE}],
    ids=["bare", "record", "record without direction"],
)
def test_an_event_is_the_same_bare_or_in_a_record(line: dict[str, Any]) -> None:
    event = decode_event(line)

    assert (event.session_id, event.origin_seq, event.is_row) == ("s", 7, False)
    assert event.envelope.type == "job.event"
    assert event.envelope.id == ENVELOPE["id"]
    assert event.envelope.job_id == "j"
    assert event.envelope.payload == ENVELOPE["payload"]
    assert event.envelope.extensions == {"origin_seq": 7}


def test_unknown_top_level_fields_are_kept() -> None:
    event = decode_event(changed(ENVELOPE, x_future={"a": [1]}, trace_id="t", stream_seq=3, source="me"))

    assert event.envelope.extensions == {"x_future": {"a": [1]}, "origin_seq": 7}
    assert (event.envelope.trace_id, event.envelope.stream_seq, event.envelope.source) == ("t", 3, "me")


def test_the_first_origin_is_kept_when_an_event_is_ingested_again() -> None:
    assert decode_event(changed(ENVELOPE, event_seq=2, origin_seq=50)).envelope.extensions == {"origin_seq": 50}


def test_another_protocol_version_is_kept_beside_ours() -> None:
    assert decode_event(changed(ENVELOPE, arcp="2.0")).envelope.extensions["origin_arcp"] == "2.0"
    assert "origin_arcp" not in decode_event(changed(ENVELOPE, arcp=DELETED)).envelope.extensions


def test_the_time_of_an_event_is_its_own_or_its_payloads() -> None:
    result = changed(ENVELOPE, type="job.result", payload={"completed_at": "2026-11-21T00:12:29Z"})
    own = changed(ENVELOPE, timestamp="2020-01-01T00:00:00.123456789Z")
    none = changed(ENVELOPE, payload={"ts": "yesterday", "completed_at": 5})

    assert decode_event(ENVELOPE).envelope.timestamp_text == "2026-11-21T00:12:28.223097Z"
    assert decode_event(result).envelope.timestamp_text == "2026-11-21T00:12:29Z"
    assert decode_event(own).envelope.timestamp_text == "2020-01-01T00:00:00.123456789Z"
    assert decode_event(none).envelope.timestamp_text is None


def test_an_event_without_an_id_gets_one_of_its_number() -> None:
    assert decode_event(changed(ENVELOPE, id=DELETED)).envelope.id == "event_seq-7"


@pytest.mark.parametrize("type_", ["session.welcome", "job.accepted", "session.ping"])
def test_control_envelopes_are_told_apart(type_: str) -> None:
    assert decode(changed(ENVELOPE, type=type_, event_seq=DELETED)) is NotStored.CONTROL


@pytest.mark.parametrize("frame", [ENVELOPE, {"type": 5}, {}], ids=["an event", "a wrong type", "nothing"])
def test_what_a_client_sends_is_never_an_event(frame: dict[str, Any]) -> None:
    assert decode({"conn": "A#1", "dir": "c2s", "frame": frame}) is NotStored.CLIENT


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (changed(ENVELOPE, session_id=DELETED), "no session_id"),
        (changed(ENVELOPE, session_id=5), "session_id"),
        (changed(ENVELOPE, session_id=""), "session_id"),
        (changed(ENVELOPE, session_id="x" * 201), "200 UTF-8 bytes"),
        (changed(ENVELOPE, type=5), "type"),
        (changed(ENVELOPE, type=""), "type"),
        (changed(ENVELOPE, event_seq="7"), "event_seq"),
        (changed(ENVELOPE, event_seq=0), "event_seq"),
        (changed(ENVELOPE, event_seq=True), "event_seq"),
        (changed(ENVELOPE, job_id=5), "job_id"),
        (changed(ENVELOPE, id=5), "id"),
        (changed(ENVELOPE, id=DELETED, event_seq=DELETED), "no id"),
        (changed(ENVELOPE, arcp=5), "arcp"),
        (changed(ENVELOPE, stream_seq=-1), "stream_seq"),
        (changed(ENVELOPE, timestamp="noon"), "RFC 3339"),
        (changed(ENVELOPE, type="session.ping", session_id=5), "session_id"),
        ({"dir": "sideways", "frame": ENVELOPE}, "dir"),
        ({"dir": "s2c", "frame": [1]}, "frame"),
        ({"dir": "c2s", "frame": None}, "frame is null"),
        ({"a": 1}, "neither"),
        ([ENVELOPE], "not a JSON object"),
        (5, "not a JSON object"),
    ],
)
def test_what_is_no_envelope_is_malformed(line: Any, reason: str) -> None:
    with pytest.raises(MalformedLine, match=reason):
        decode(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json\n", "not valid JSON"),
        (b'{"type":"a"', "not valid JSON"),
        (b'{"type":"\xff"}', "not valid JSON"),
        (b'{"type":"a","type":"b"}', "appears twice"),
        (b'{"type":"a","payload":123456789012345678901234567890}', "64 bits"),
        (b'{"type":"a","payload":NaN}', "not valid JSON"),
        (b'{"type":"a","payload":' + b"[" * 100 + b"]" * 100 + b"}", "levels deep"),
    ],
)
def test_what_is_not_exact_json_is_malformed(line: bytes, reason: str) -> None:
    with pytest.raises(MalformedLine, match=reason):
        reader(b"").decode(line)


# -- rows of an event store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MEERKAT, ids=lambda path: path.parent.parent.name)
def test_every_real_row_keeps_source_number_time_and_body(path: Path) -> None:
    """Row 19: what the producer said comes through."""
    lines = reader(path.read_bytes(), path.stem)
    for text in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        line = lines.next_line()
        assert line is not None
        event = lines.decode(line)
        assert isinstance(event, ForeignEvent)
        envelope = event.envelope

        assert (event.session_id, event.origin_seq, event.is_row) == (path.stem, row["seq"], True)
        assert envelope.type == row["event"]["type"]
        assert envelope.payload == row["event"]
        assert envelope.source == row["source"]
        assert envelope.stream_seq == row["stream_seq"]
        assert envelope.extensions == {"origin_seq": row["seq"]}
        assert nanoseconds(envelope.timestamp_text) == (
            row["timestamp"]["secs_since_epoch"] * 10**9 + row["timestamp"]["nanos_since_epoch"]
        )
    assert lines.next_line() is None


def nanoseconds(text: str | None) -> int:
    """Read RFC 3339 exactly, in integers."""
    assert text is not None
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    moment = dt.datetime.fromisoformat(seconds).replace(tzinfo=dt.UTC)
    return int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (1786824040, 1, "2026-08-15T20:00:40.000000001Z"),
        (253402300799, 999999999, "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_a_rows_time_is_exact_to_the_nanosecond(seconds: int, nanos: int, text: str) -> None:
    row = changed(ROW, timestamp={"secs_since_epoch": seconds, "nanos_since_epoch": nanos})

    assert decode_event(row, "s").envelope.timestamp_text == text


def test_a_rows_id_is_made_of_its_session_and_number() -> None:
    ids = [decode_event(changed(ROW, seq=seq), session).envelope.id for session in ("s", "t") for seq in (1, 2)]

    assert len(set(ids)) == 4
    assert decode_event(ROW, "s").envelope.id == ids[0]
    long_id = decode_event(ROW, "ß" * 100).envelope.id
    assert long_id is not None
    assert len(long_id.encode()) <= Limits().name_bytes_max


def test_the_file_names_the_session_and_the_source_the_producer() -> None:
    row = changed(ROW, source={"type": "interaction", "interaction_id": "i"}, mob_id="m")
    event = decode_event(row, "named-by-the-file")

    assert event.session_id == "named-by-the-file"
    assert event.envelope.source == {"type": "interaction", "interaction_id": "i"}
    assert event.envelope.extensions == {"origin_seq": 1, "mob_id": "m"}


def test_rows_without_a_file_go_to_the_session_of_their_source() -> None:
    assert decode_event(ROW).session_id == "s"
    with pytest.raises(MalformedLine, match="which session"):
        decode(changed(ROW, source={"type": "external"}))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(ROW, schema_version=3), "3 found, 2 expected"),
        (changed(ROW, schema_version=1, source=DELETED, stream_seq=DELETED), "1 found, 2 expected"),
        (changed(ROW, schema_version=DELETED), "None found, 2 expected"),
        (changed(ROW, seq=0), "seq"),
        (changed(ROW, seq="1"), "seq"),
        (changed(ROW, seq=True), "seq"),
        (changed(ROW, source=DELETED), "source"),
        (changed(ROW, event=[]), "event"),
        (changed(ROW, event={}), "type"),
        (changed(ROW, event={"type": 5}), "type"),
        (changed(ROW, stream_seq="1"), "stream_seq"),
        (changed(ROW, timestamp="2026-01-01T00:00:00Z"), "timestamp"),
        (changed(ROW, timestamp={"secs_since_epoch": 1, "nanos_since_epoch": 10**9}), "timestamp"),
        (changed(ROW, timestamp={"secs_since_epoch": -1, "nanos_since_epoch": 0}), "timestamp"),
        (changed(ROW, payload={}), "extensions"),
    ],
)
def test_a_row_of_another_shape_is_malformed(row: dict[str, Any], reason: str) -> None:
    """Rows 17 and 18: another schema version is named as such, also where its shape differs."""
    with pytest.raises(MalformedLine, match=reason):
        decode(row, "s")


@pytest.mark.parametrize("second", [1, 2], ids=["lower", "equal"])
def test_a_row_that_does_not_rise_is_malformed(second: int) -> None:
    """Row 34: it would otherwise pass for a retry of the row that had the number before."""
    rows = reader(b"", "s")
    rows.decode(json.dumps(changed(ROW, seq=2)).encode())

    with pytest.raises(MalformedLine, match=f"row {second} comes after row 2"):
        rows.decode(json.dumps(changed(ROW, seq=second)).encode())
    assert isinstance(rows.decode(json.dumps(changed(ROW, seq=3)).encode()), ForeignEvent)


# -- lines ------------------------------------------------------------------------------------------------------------


def test_blank_lines_count_and_are_skipped() -> None:
    lines = reader(b"\n  \n1\n\r\n2")

    assert [(lines.next_line(), lines.line_number) for _ in range(3)] == [(b"1\n", 3), (b"2", 5), (None, 5)]
    assert lines.bytes_read == 9


def test_a_line_without_end_is_reported_and_not_kept_in_memory() -> None:
    limit = 4 * 100
    lines = reader(b"x" * limit * 10 + b"\n" + b"y" * limit + b"\n", event_bytes_max=100)

    long = lines.next_line()
    assert long is not None
    assert len(long) <= limit + 1
    with pytest.raises(MalformedLine, match="longer than 400 bytes"):
        lines.decode(long)
    assert (lines.next_line(), lines.line_number) == (b"y" * limit + b"\n", 2)
    assert lines.next_line() is None
    assert lines.bytes_read == limit * 11 + 2


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.7.5", "0.8.10"])
def test_an_event_store_is_found_by_its_directory_the_one_above_and_a_file(version: str) -> None:
    store = DATA / "meerkat" / version
    (path,) = (store / "events").glob("*.jsonl")

    for name in (store, store / "events", path):
        (found,) = find_files([str(name)])
        assert found.path == str(path)
        assert found.session_id == path.stem
        assert found.size_bytes == path.stat().st_size
        assert found.given_out == len(path.read_text(encoding="utf-8").splitlines())


def test_standard_input_has_no_session_and_no_size() -> None:
    (found,) = find_files(["-"])

    assert (found.name, found.session_id, found.size_bytes, found.given_out) == ("<stdin>", None, None, None)


def test_files_are_taken_in_the_order_given_and_directories_by_name(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    for name in ("b.jsonl", "a.jsonl", "notes.txt", ".hidden.jsonl"):
        (events / name).touch()
    wire = tmp_path / "wire.log"
    wire.touch()

    found = find_files([str(wire), str(tmp_path)])

    assert [file.path for file in found] == [str(wire), str(events / "a.jsonl"), str(events / "b.jsonl")]


def test_what_is_not_there_is_found_before_anything_is_read(tmp_path: Path) -> None:
    wire = tmp_path / "wire.jsonl"
    wire.touch()

    with pytest.raises(FileNotFoundError):
        find_files([str(wire), str(tmp_path / "missing.jsonl")])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no <session>\.jsonl"):
        find_files([str(empty)])


def test_a_pipe_is_not_opened_before_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    (found,) = find_files([str(pipe)])  # opening it would wait for a writer

    assert found.size_bytes is None


@pytest.mark.parametrize("text", [b"", b"garbage", b"-3", b"12 90"])
def test_a_sequence_file_that_says_nothing_is_ignored(tmp_path: Path, text: bytes) -> None:
    shutil.copytree(DATA / "meerkat" / "0.7.5" / "events", tmp_path / "events")
    (hint,) = (tmp_path / "events" / ".sequence").iterdir()
    hint.write_bytes(text)

    (found,) = find_files([str(tmp_path)])

    assert found.given_out is None


# -- gaps -------------------------------------------------------------------------------------------------------------


def test_a_jump_is_a_gap_and_a_repetition_is_none() -> None:
    gaps = GapTracker()
    for seq in (5, 6, 7, 6, 7, 8, 11, 12, 20):
        gaps.note("s", seq, f"line {seq}", from_one=False)
    gaps.note("sound", 9, "line 1", from_one=False)

    (sentence,) = gaps.sentences()
    assert "'s': 9 of its numbers" in sentence
    assert "first 9 to 10 (before line 11)" in sentence


def test_an_event_store_starts_with_one_and_ends_with_what_it_gave_out() -> None:
    gaps = GapTracker()
    gaps.note("head", 2, "line 1", from_one=True)
    gaps.note("tail", 1, "line 1", from_one=True)
    gaps.note_given_out("tail", 3, "the end")
    gaps.note("sound", 1, "line 1", from_one=True)
    gaps.note_given_out("sound", 1, "the end")
    gaps.note_given_out("sound", 0, "the end")  # a hint that trails the log is normal after a crash

    assert [sentence.split(", first ")[1] for sentence in gaps.sentences()] == [
        "1 (before line 1)",
        "2 to 3 (before the end)",
    ]
