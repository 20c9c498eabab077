"""docs/format.md says enough: a reader written from it alone reads what logmark wrote, and foresees its recoveries.

The first half of this file is that reader. It imports nothing of logmark: whoever changes the format has to change the
page, and then this reader by the page.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import logmark
from logmark.testing import capture_logs

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
STARTS_WITH = b'{"v":1,"seq":'
SEAL_BYTES = 18


class BadLogError(Exception):
    """What the page calls damage, loss or a schema mismatch."""


class Row(NamedTuple):
    first: int
    last: int
    batch: list[int]
    payload_json: bytes | None
    members: dict[str, Any]


class Head(NamedTuple):
    seq: int
    through: int
    segment: int
    size: int
    halted: int


class End(NamedTuple):
    """Where the last complete commit ends, and what stands behind it."""

    seq: int
    through: int
    offset: int
    newline_missing: bool
    rest: bytes


def directory_of(session_id: str) -> str:
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_."
    name = "".join(chr(byte) if chr(byte) in plain else f"%{byte:02x}" for byte in session_id.encode())
    devices = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
    if name.startswith(".") or name.split(".")[0] in devices:
        name = f"%{ord(name[0]):02x}" + name[1:]
    if name.endswith("."):
        name = name[:-1] + "%2e"
    if len(name) > 200:
        name = name[:120] + "%%" + hashlib.sha256(session_id.encode()).hexdigest()
    return name


def session_of(folder: Path) -> str | None:
    name = folder.name
    if "%%" in name:
        with segments_of(folder)[0][1].open("rb") as file:
            session_id = str(json.loads(file.readline())["session"])
    else:
        session_id = re.sub(rb"%([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), name.encode()).decode()
    return session_id if directory_of(session_id) == name else None


def segments_of(folder: Path) -> list[tuple[int, Path]]:
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"[0-9]{20}\.jsonl", name))
    return [(int(name[:20]), folder / name) for name in names]


def checksum(session_id: str, covered: bytes) -> bytes:
    return b"%08x" % zlib.crc32(session_id.encode() + covered)


def is_sealed(session_id: str, line: bytes) -> bool:
    return line[-SEAL_BYTES:] == b',"crc":"' + checksum(session_id, line[:-SEAL_BYTES]) + b'"}'


def read_row(session_id: str, line: bytes) -> Row | None:
    """Return the row, or None when the line is not a sound one."""
    if not line.startswith(STARTS_WITH) or not is_sealed(session_id, line):
        return None
    members: dict[str, Any] = json.loads(line)
    if "reserved" in members:
        return Row(members["reserved"], members["seq"], members["batch"], None, members)
    payload_json = line[len(line) - SEAL_BYTES - members["size"] : len(line) - SEAL_BYTES]
    return Row(members["seq"], members["seq"], members["batch"], payload_json, members)


def read_head(folder: Path, session_id: str) -> Head | None:
    try:
        line = (folder / "head").read_bytes()
    except FileNotFoundError:
        return None
    found = re.fullmatch(
        rb"(logmark-head 1 seq=(\d{20}) through=(\d{20}) segment=(\d{20}) size=(\d{20}) halted=([01])) crc=(\w{8})\n",
        line,
    )
    if found is None or found[7] != checksum(session_id, found[1]):
        return None
    return Head(*(int(found[group]) for group in range(2, 7)))


def check_first_line(session_id: str, line: bytes, number: int) -> None:
    members = json.loads(line)
    if members.get("v") != 1:
        message = f"version {members.get('v')}"
        raise BadLogError(message)
    wanted = {"logmark": "segment", "v": 1, "session": session_id, "first_seq": number}
    if not is_sealed(session_id, line) or list(members.items())[:-1] != list(wanted.items()):
        message = f"first line {line!r}"
        raise BadLogError(message)


def read_rows(folder: Path, session_id: str, from_seq: int = 1) -> list[Row]:
    """Read as the page's "Reading" says; the result may start below ``from_seq``, at the start of its segment."""
    if (folder / "halt.json").exists():
        message = "halted"
        raise BadLogError(message)
    head = read_head(folder, session_id)
    if head is None:
        message = "no head: recover first"
        raise BadLogError(message)
    rows: list[Row] = []
    segments = [each for each in segments_of(folder) if each[0] <= head.segment]
    start = max(index for index, (number, _) in enumerate(segments) if index == 0 or number <= from_seq)
    expected = segments[start][0]
    for number, path in segments[start:]:
        if number != expected:
            message = f"segment {number} stands where {expected} belongs"
            raise BadLogError(message)
        first_line, *lines = path.read_bytes().split(b"\n")
        check_first_line(session_id, first_line, number)
        for line in lines:
            if expected > head.through:
                break
            if not line:
                continue
            row = read_row(session_id, line)
            if row is None or row.first != expected:
                message = f"row {expected}: {line!r}"
                raise BadLogError(message)
            rows.append(row)
            expected = row.last + 1
    if expected <= head.through:
        message = f"rows {expected} to {head.through} are lost"
        raise BadLogError(message)
    return rows


def find_end(folder: Path, session_id: str) -> End:
    """Walk as the page's "Recovery", steps 3 to 7, says."""
    head = read_head(folder, session_id)
    segments = segments_of(folder)
    if not segments:
        if head is not None and head.through:
            message = "lost"
            raise BadLogError(message)
        return End(0, 0, 0, newline_missing=False, rest=b"")
    number, path = segments[-1]
    data = path.read_bytes()
    check_first_line(session_id, data.partition(b"\n")[0], number)
    seq, through, start = number - 1, number - 1, data.index(b"\n") + 1
    if head is not None and head.segment == number and head.size <= len(data):
        before, newline, after = data[: head.size].rpartition(b"\n")
        row = read_row(session_id, before[before.rfind(b"\n") + 1 :]) if newline and not after else None
        if row is not None and row.last == head.through:
            seq, through, start = head.seq, head.through, head.size
    end = walk(session_id, data, start, seq, through)
    if head is not None and head.through > end.through:
        message = f"rows {end.through + 1} to {head.through} are lost"
        raise BadLogError(message)
    return end


def walk(session_id: str, data: bytes, start: int, seq: int, through: int) -> End:
    end = End(seq, through, start, newline_missing=False, rest=data[start:])
    next_seq, last_event = through + 1, seq
    commit: list[int] | None = None
    torn = False
    at = start
    while at < len(data):
        line, newline, _ = data[at:].partition(b"\n")
        at += len(line) + len(newline)
        row = read_row(session_id, line) if line else None
        if not line:
            if commit is None and not torn:
                end = end._replace(offset=at, rest=data[at:])
        elif row is None:
            if newline and not torn and is_json_object(line):
                message = f"damage or another version: {line!r}"
                raise BadLogError(message)
            torn = True
        elif torn:
            if row.batch[0] != end.through + 1:
                message = f"damage before {line!r}"
                raise BadLogError(message)
        else:
            if row.first != next_seq or (row.batch != commit if commit else row.batch[0] != row.first):
                message = f"{line!r} does not come next"
                raise BadLogError(message)
            next_seq = row.last + 1
            last_event = last_event if "reserved" in row.members else row.last
            commit = row.batch
            if row.last == row.batch[1]:
                end = End(last_event, row.last, at, not newline, data[at:])
                commit = None
    return end


def is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


# -- from here on logmark writes, and the reader above is put to the test -------------------------------------------

SMALL = logmark.Limits(segment_bytes_max=700)
ODD_IDS = (
    "plain-1_a.b",
    "Chat/Ü",
    "chat/ü",
    "..",
    ".",
    "con",
    "con.1",
    "console",
    "com7.log",
    "a%2fb",
    "a%%b",
    "ends.",
    'quo"te\\ and \n line',
    "\x00\x1f\x7f\u2028",
    "x" * 200,
    "Ü" * 100,
    "Ü" * 33 + "abc",
    "𝄞a" * 40,
)


def facts(event: logmark.Envelope) -> dict[str, Any]:
    """Return the members that the row of an event has, by the page's names."""
    members = {
        "v": 1,
        "seq": event.event_seq,
        "ts": event.timestamp_text,
        "id": event.id,
        "type": event.type,
        "job": event.job_id,
        "trace": event.trace_id,
        "stream_seq": event.stream_seq,
        "arcp": None if event.arcp == "1.1" else event.arcp,
        "source": event.source,
        "ext": dict(event.extensions) or None,
    }
    return {name: value for name, value in members.items() if value is not None} | {"payload": event.payload}


def write_everything(session: logmark.Session, store: Any) -> None:
    """Append events of every shape, in batches and alone, with reservations between, over several segments."""
    session.append("plain", None)
    session.append_many([("batch.of.five", {"index": index, "text": "x\u2028\r\n\x85" * index}) for index in range(5)])
    store.reserve(session.session_id, session.last_seq + 30)
    session.append(
        "everything",
        [1.5, 2**64 - 1, -(2**63), "Ü𝄞\x00", {"size": 1, "crc": "0", "payload": {}}],
        job_id="job/1",
        id="my own id",
        source={"worker": ["w", 3]},
        stream_seq=0,
        trace_id="trace",
        timestamp="2026-11-21T09:30:00.123456789+09:00",
        extensions={"x-vendor": {"nested": [None, True]}, "payload2": 1},
    )
    other_protocol = logmark.Envelope(type="old", payload="text", arcp="1.0", job_id="job/1")
    session.append_many([other_protocol, ("plain", ["size", ',"crc":"00000000"}'])])
    for index in range(10):
        session.append("plain", index)
    store.reserve(session.session_id, session.last_seq + 1)
    store.reserve(session.session_id, session.last_seq + 5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a store in which every odd session id has a session with everything in it."""
    with logmark.open(str(tmp_path / "data"), durability="os", limits=SMALL) as runtime:
        for session_id in ODD_IDS:
            write_everything(runtime.session(session_id), runtime.store)
    return tmp_path / "data"


def test_the_reader_gets_the_events_that_logmark_gets(data: Path) -> None:
    assert json.loads((data / "store.json").read_bytes()) == {"logmark": "store", "v": 1}
    folders = list((data / "sessions").iterdir())
    seen: set[str] = set()

    assert {session_of(folder) for folder in folders} == set(ODD_IDS)
    with logmark.open(str(data)) as runtime:
        for session_id in ODD_IDS:
            folder = data / "sessions" / directory_of(session_id)
            rows = read_rows(folder, session_id)
            events = list(runtime.session(session_id).read())
            head = read_head(folder, session_id)
            read = [row.members for row in rows if "reserved" not in row.members]
            seen.update(*(row.members for row in rows))

            assert [{name: row[name] for name in row if name not in {"batch", "size", "crc"}} for row in read] == [
                facts(event) for event in events
            ]
            assert [row.payload_json for row in rows if row.payload_json is not None] == [
                event.payload_json for event in runtime.session(session_id).read_raw()
            ]
            assert len(segments_of(folder)) > 3
            assert head is not None
            assert (head.seq, head.through) == (events[-1].event_seq, rows[-1].last)
            assert head.size == segments_of(folder)[-1][1].stat().st_size
    table = set(re.findall(r"^\| `(\w+)` \| (?:always|in |if )", PAGE, flags=re.MULTILINE))
    assert seen == table


def test_every_commit_is_whole_and_in_one_segment(data: Path) -> None:
    folder = data / "sessions" / "plain-1_a.b"
    sizes: list[int] = []
    for _, path in segments_of(folder):
        rows = [read_row("plain-1_a.b", line) for line in path.read_bytes().split(b"\n")[1:-1]]
        commits: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            assert row is not None
            commits.setdefault(tuple(row.batch), []).extend(range(row.first, row.last + 1))
        for (first, last), numbers in commits.items():
            assert numbers == list(range(first, last + 1))
        sizes += [len(numbers) for numbers in commits.values()]

    assert 5 in sizes


def test_reading_may_start_at_any_number(data: Path) -> None:
    folder = data / "sessions" / "plain-1_a.b"
    with logmark.open(str(data)) as runtime:
        session = runtime.session("plain-1_a.b")
        for number in range(1, session.last_seq + 1):
            rows = read_rows(folder, "plain-1_a.b", number)
            read = [row.last for row in rows if row.payload_json is not None and row.last >= number]

            assert read == [event.event_seq for event in session.read(number)]


def test_a_flipped_byte_never_goes_unnoticed(data: Path) -> None:
    folder = data / "sessions" / "plain-1_a.b"
    path = segments_of(folder)[1][1]
    sound = path.read_bytes()
    for offset in range(len(sound) - 1):  # the last newline is none of a row's bytes
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0x08]) + sound[offset + 1 :])
        with pytest.raises((BadLogError, ValueError)):
            read_rows(folder, "plain-1_a.b")


def torn_tails(sound: bytes, durable: int, every: int) -> list[bytes]:
    """Return what a crash, or worse, may have made of a segment whose last commit starts at ``durable``."""
    cut = [sound[:size] for size in range(durable, len(sound), every)]
    nul = [sound[:size].ljust(len(sound), b"\0") for size in range(durable, len(sound), 23)]
    lost_page = [sound[:at] + bytes(40) + sound[at + 40 :] for at in range(durable, len(sound) - 40, 19)]
    older_damage = [sound[:at] + b"#" + sound[at + 1 :] for at in range(0, durable, 29)]
    shorter = [sound[:size] for size in range(1, durable, 37)]
    more = [
        sound + extra
        for extra in (b"", b"\n\n", b'{"v":2,"seq":9}\n', b"{}\n", b'{"v":1', sound.split(b"\n")[1] + b"\n")
    ]
    return [sound[:-1], *cut, *nul, *lost_page, *older_damage, *shorter, *more]


@pytest.mark.parametrize(("head_is", "every"), [("behind", 1), ("missing", 11), ("there", 11)])
def test_the_page_foresees_what_a_recovery_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, head_is: str, every: int
) -> None:
    """For every way in which the end of a log may look, logmark keeps, cuts and refuses what the page says (row 31)."""
    caplog.set_level(logging.CRITICAL, logger="logmark")
    folder = tmp_path / "sessions" / "s"
    with logmark.open(str(tmp_path), durability="os") as runtime:
        session = runtime.session("s")
        session.append("one", 1)
        runtime.store.reserve("s", 7)
        head, durable = (folder / "head").read_bytes(), segments_of(folder)[-1][1].stat().st_size
        session.append_many([("many", index) for index in range(4)])
    if head_is == "missing":
        (folder / "head").unlink()
    elif head_is == "there":
        head = (folder / "head").read_bytes()
    sound = segments_of(folder)[-1][1].read_bytes()
    outcomes: set[str] = set()

    for tail in torn_tails(sound, durable, every):
        shutil.rmtree(folder / "quarantine", ignore_errors=True)
        segments_of(folder)[-1][1].write_bytes(tail)
        if head_is == "missing":
            (folder / "head").unlink(missing_ok=True)
        else:
            (folder / "head").write_bytes(head)
        outcomes.add(foretell_and_check(tmp_path, tail, sound))

    assert outcomes == {"whole", "cut", "refused"}


def foretell_and_check(store: Path, tail: bytes, sound: bytes) -> str:
    """Compare what the page says of a session's directory with what logmark makes of it."""
    folder = store / "sessions" / "s"
    try:
        end: End | None = find_end(folder, "s")
    except (BadLogError, ValueError):
        end = None
    with logmark.open(str(store), durability="os") as runtime:
        session = runtime.session("s")
        if end is None:
            with pytest.raises((logmark.LogCorrupt, logmark.errors.SchemaMismatch)):
                session.append("next")
            assert segments_of(folder)[-1][1].read_bytes() == tail
            return "refused"
        assert session.append("next") == end.through + 1
        if sound.startswith(tail[: end.offset]):  # else reading meets the damage, wherever it starts
            wanted = [seq for seq in (end.seq, end.through + 1) if seq]
            assert [event.event_seq for event in session.read(end.seq)] == wanted
    log = segments_of(folder)[-1][1].read_bytes()
    assert log.startswith(tail[: end.offset] + (b"\n" if end.newline_missing else b"") + STARTS_WITH)
    assert [path.read_bytes() for path in folder.glob("quarantine/*")] == ([end.rest] if end.rest else [])
    return "cut" if end.rest else "whole"


NUMBER_AT = len(STARTS_WITH)


@pytest.mark.parametrize("count", [12, 300])  # within one look of the reader, and with a search by byte offset
def test_no_way_of_reading_serves_wrong_events(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """From any number, up or down: the events that follow, as far as they are sound, then an error (row 32)."""
    caplog.set_level(logging.CRITICAL, logger="logmark")
    path = tmp_path / "sessions" / "s" / f"{1:020d}.jsonl"
    with logmark.open(str(tmp_path), durability="os") as runtime:
        session = runtime.session("s")
        for index in range(count):
            session.submit("x", index)
        session.wait_for(count, timeout=10)
        sound = path.read_bytes()
        numbers = range(1, count + 1, max(1, count // 12))
        for damaged in numbers:
            start = sound.index(STARTS_WITH + b"%d," % damaged)
            for offset in (start + 1, start + NUMBER_AT, start + NUMBER_AT + len(str(damaged)), start + 60):
                for byte in b"\x007\n":
                    path.write_bytes(sound[:offset] + bytes([byte]) + sound[offset + 1 :])
                    for number in numbers:
                        check_reads(session, number, count)


def check_reads(session: logmark.Session, number: int, last: int) -> None:
    upwards: list[int | None] = []
    with contextlib.suppress(logmark.LogCorrupt, logmark.errors.SchemaMismatch):
        upwards.extend(event.event_seq for event in session.read(number))
        assert len(upwards) == last - number + 1
    assert upwards == list(range(number, number + len(upwards)))
    with contextlib.suppress(logmark.LogCorrupt, logmark.errors.SchemaMismatch):
        page = session.page(before=number, limit=3)
        assert [event.event_seq for event in page.events] == list(range(max(1, number - 3), number))


def test_a_halt_is_a_file_as_the_page_says(data: Path) -> None:
    folder = data / "sessions" / directory_of("con")
    with logmark.open(str(data)) as runtime:
        runtime.store.halt("con", "said the operator", first_event_id="e-1")
    marker = json.loads((folder / "halt.json").read_bytes())
    example = next(json.loads(line) for line in PAGE.splitlines() if line.startswith('    {"reason"'))

    assert list(marker) == list(example)
    assert (marker["reason"], marker["first_event_id"], marker["pid"]) == ("said the operator", "e-1", os.getpid())
    with pytest.raises(BadLogError, match="halted"):
        read_rows(folder, "con")


@pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX")
def test_only_the_owner_may_enter(data: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in data.rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in data.rglob("*") if path.is_file()} == {0o600}


# -- the examples in the page ---------------------------------------------------------------------------------------


def example_lines() -> list[bytes]:
    pattern = r'    (\{"v":|\{"logmark":"segment"|logmark-head )'
    return [line[4:].encode() for line in PAGE.splitlines() if re.match(pattern, line)]


def derived_lines() -> list[bytes]:
    pattern = r'    \{"logmark":"(ids|snapshot)"'
    return [line[4:].encode() for line in PAGE.splitlines() if re.match(pattern, line)]


def build_the_example(store: Path) -> Path:
    """Make the store whose files the page shows."""
    first, one, two, three, reservation, second, late, head = example_lines()
    folder = store / "sessions" / "chat-42"
    folder.mkdir(parents=True)
    (store / "store.json").write_bytes(b'{"logmark":"store","v":1}\n')
    (folder / "00000000000000000001.jsonl").write_bytes(b"\n".join((first, one, two, three, reservation, b"")))
    (folder / "00000000000000000042.jsonl").write_bytes(b"\n".join((second, late, b"")))
    (folder / "head").write_bytes(head + b"\n")
    return folder


def test_the_examples_are_sealed_with_their_own_checksums() -> None:
    *lines, head = example_lines()

    assert len(lines) == 7
    assert all(is_sealed("chat-42", line) for line in lines)
    assert not any(is_sealed("chat-43", line) for line in lines)
    covered, _, crc = head.rpartition(b" crc=")
    assert crc == checksum("chat-42", covered)
    assert f"one line of {len(head) + 1} bytes" in PAGE


def test_the_examples_are_a_sound_log_to_logmark_and_to_the_reader(tmp_path: Path) -> None:
    folder = build_the_example(tmp_path)
    rows = read_rows(folder, "chat-42")

    assert [(row.first, row.last) for row in rows] == [(1, 1), (2, 2), (3, 3), (4, 41), (42, 42)]
    with logmark.open(str(tmp_path), create=False) as runtime:
        session = runtime.session("chat-42")
        events = list(session.read())

        assert runtime.store.verify("chat-42") == []
        assert [event.event_seq for event in events] == [1, 2, 3, 42]
        assert events[1].source == {"worker": "w-3"}
        assert events[2].extensions == {"x-vendor": {"cost": 12}}
        assert events[3].payload == {"text": "späte Antwort"}
        assert session.append("message.created", {"text": "one more"}) == 43


def test_the_derived_files_are_as_the_page_shows_them(tmp_path: Path) -> None:
    """Except for the entries of a table, which the page describes in words."""
    folder = build_the_example(tmp_path)
    ids, snapshot = derived_lines()
    assert is_sealed("chat-42", ids)
    assert is_sealed("chat-42", snapshot)
    table = folder / f"{1:020d}.ids"
    marks = b'{"v":1,"rules":"[\\"1\\",{}]","marks":[["build-7",2,3,2,"success"]]}'
    table.write_bytes(ids + b"\n")
    (folder / "marks.snapshot").write_bytes(snapshot + b"\n" + marks)
    with capture_logs() as logs, logmark.open(str(tmp_path)) as runtime:
        session = runtime.session("chat-42")
        assert [(mark.job_id, mark.count, mark.status) for mark in session.jobs()] == [("build-7", 2, "success")]
        assert session.append("message.created", id="another") == 43
        assert table.read_bytes() == ids + b"\n"
        assert session.append("job.event", id="01M7XPE8XR1HEAD8X4A1JH69RE") == 2
    assert logs.named("marks_taken_over")
    assert not logs.named("snapshot_ignored")
    assert not logs.named("id_table_ignored")

    first_line, _, entries = table.read_bytes().partition(b"\n")
    assert json.loads(first_line)["entries"] == 3
    rows = (folder / f"{1:020d}.jsonl").read_bytes()
    for event_id in ("01M7XPE6Z84TFF59TDWH9EDD1R", "01M7XPE8XR1HEAD8X4A1JH69RE", "01M7XPE9X1H4QX4FR84G98PBSK"):
        digest = int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")
        at = rows.rindex(b"\n", 0, rows.index(event_id.encode())) + 1
        assert ((digest >> 36 << 36) | at).to_bytes(8, "little") in entries


def test_the_directory_names_in_the_page_are_right(tmp_path: Path) -> None:
    table = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", PAGE, flags=re.MULTILINE))
    long_name = re.search(r"`(%%[0-9a-f]{64})`", PAGE)
    assert len(table) == 5
    assert long_name is not None
    table["Ü" * 100] = "%c3%9c" * 20 + long_name[1]

    with logmark.open(str(tmp_path), durability="os") as runtime:
        for session_id in table:
            runtime.session(session_id).append("x")
    assert {directory_of(session_id): session_id for session_id in table} == {
        path.name: session_of(path) for path in (tmp_path / "sessions").iterdir()
    }
    assert {session_id: directory_of(session_id) for session_id in table} == table
