"""What ``docs/format.md`` says of the lifetime of a session and of its records, read without logmark."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import logmark
from logmark.storage import Record

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
SEAL_BYTES = len(b',"crc":"00000000"}')


def is_sealed(session_id: str, line: bytes) -> bool:
    crc = zlib.crc32(session_id.encode() + line[:-SEAL_BYTES])
    return line[-SEAL_BYTES:] == b',"crc":"%08x"}' % crc


def read_sealed(session_id: str, path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """Return the members of a sealed first line, and what follows it."""
    line, _, rest = path.read_bytes().partition(b"\n")
    members: dict[str, Any] = json.loads(line)
    assert is_sealed(session_id, line)
    assert (members["logmark"], members["v"], members["session"]) == (kind, 1, session_id)
    return members, rest


def test_what_is_kept_of_a_session_stands_where_the_page_says(tmp_path: Path) -> None:
    """The reader of this page finds what was pruned, sealed, deleted and kept beside the log."""
    with logmark.open(str(tmp_path), limits=logmark.Limits(segment_bytes_max=2000)) as runtime:
        session = runtime.session("s")
        for number in range(30):
            session.append("note", {"text": f"{number:0300}"})
        session.truncate_before(12)
        session.seal()
        session.cursor("A/b").ack(20)
        runtime.session("t").append("note")
        runtime.delete_session("t")
    folder = tmp_path / "sessions" / "s"
    lifetime, rest = read_sealed("s", folder / "lifetime", "lifetime")
    example = next(json.loads(line) for line in PAGE.splitlines() if line.startswith('    {"logmark":"lifetime"'))
    assert rest == b""
    assert list(lifetime) == list(example)
    assert (lifetime["first_available"], lifetime["last_below"], lifetime["sealed"]) == (12, 11, True)
    segments = sorted(folder.glob("*.jsonl"))
    firsts = [int(path.stem) for path in segments]
    assert firsts[0] <= 12 < firsts[1]
    assert {path.stem for path in folder.glob("*.ids")} <= {path.stem for path in segments}
    rows = [json.loads(line) for path in segments for line in path.read_text().splitlines()[1:]]
    assert [row["seq"] for row in rows if row["seq"] >= lifetime["first_available"]] == list(range(12, 31))

    members, data = read_sealed("s", folder / "records" / "cursor%3a%41%2fb.record", "record")
    assert (members["name"], members["version"], members["bytes"]) == ("cursor:A/b", 1, len(data))
    assert members["data_crc"] == f"{zlib.crc32(data):08x}"

    tombstone, _ = read_sealed("t", tmp_path / "sessions" / "t" / "lifetime", "lifetime")
    assert (tombstone["last_used"], tombstone["deleted_at"][-1]) == (1, "Z")
    left = {path.name for path in (tmp_path / "sessions" / "t").iterdir()}
    assert {"lifetime", "lock"} <= left <= {"lifetime", "lock", "records", "quarantine"}


def test_the_lifetime_and_the_record_are_as_the_page_shows_them(tmp_path: Path) -> None:
    folder = tmp_path / "sessions" / "chat-42"
    with logmark.open(str(tmp_path)) as runtime:
        runtime.store.reserve("chat-42", 41)
        runtime.session("chat-42").append("note")
    lines = [line[4:].encode() for line in PAGE.splitlines() if re.match(r'    \{"logmark":"(lifetime|record)"', line)]
    lifetime, record = lines
    (folder / "lifetime").write_bytes(lifetime + b"\n")
    (folder / "records").mkdir()
    (folder / "records" / "cursor%3aui.record").write_bytes(record + b'\n{"v":1,"seq":42}')

    assert is_sealed("chat-42", lifetime)
    assert is_sealed("chat-42", record)
    with logmark.open(str(tmp_path), create=False) as runtime:
        info = runtime.store.info("chat-42")
        assert (info.first_available, info.first_seq, info.last_seq, info.sealed) == (42, 42, 42, True)
        assert runtime.store.load_record("chat-42", "cursor:ui") == Record(b'{"v":1,"seq":42}', 3)
        assert runtime.store.verify("chat-42") == []
