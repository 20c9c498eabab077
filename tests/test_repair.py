"""Repair makes a damaged session sound, says what it did, keeps what it took out, and does nothing twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import logmark
from logmark import errors

SESSION = "chat"
WORKER = Path(__file__).parent / "workers" / "repair.py"


def _dir(store: Path) -> Path:
    return store / "sessions" / SESSION


def _segment(store: Path) -> Path:
    return max(_dir(store).glob("*.jsonl"))


def _fill(store: Path, count: int = 6) -> list[tuple[int | None, Any]]:
    with logmark.open(str(store)) as rt:
        session = rt.session(SESSION)
        for n in range(1, count + 1):
            session.append("message.created", {"n": n}, id=f"id-{n}", job_id="job")
        return _events(session)


def _events(session: logmark.Session) -> list[tuple[int | None, Any]]:
    return [(event.event_seq, event.payload) for event in session.read()]


def _edit(store: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    path = _segment(store)
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"".join(line + b"\n" for line in [lines[0], *edit(lines[1:])]))


def _repair(store: Path, *, dry_run: bool = False) -> list[str]:
    with logmark.open(str(store)) as rt:
        return rt.store.repair(SESSION, dry_run=dry_run)


def _after(store: Path) -> list[tuple[int | None, Any]]:
    with logmark.open(str(store)) as rt:
        assert [finding for finding in rt.store.verify(SESSION) if not finding.harmless] == []
        return _events(rt.session(SESSION))


def _tree(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def _number(line: bytes, seq: int, *, seal: bool) -> bytes:
    """Return a row with another number, its checksum made right or left as it was."""
    row = orjson.loads(line)
    old = b'"seq":%d,' % row["seq"]
    line = line.replace(old, b'"seq":%d,' % seq, 1)
    if seal:
        text = line[: line.rindex(b',"crc":"')]
        line = text + b',"crc":"%08x"}' % zlib.crc32(text, zlib.crc32(SESSION.encode()))
    return line


def test_a_sound_session_is_left_alone(tmp_path: Path) -> None:
    before = _fill(tmp_path)
    files = _tree(tmp_path)
    assert _repair(tmp_path) == []
    assert _tree(tmp_path) == files
    assert _after(tmp_path) == before


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize(
    "numbers",
    [[0, 0, 0, 0, 0, 0], [1, 2, 2, 3, 4, 4], [1, 1, 2, 2, 3, 3], [1, 2, 3, 3, 2, 1]],
    ids=["zeros", "duplicates", "interleaved", "backwards"],
)
def test_broken_numbers_become_the_order_of_writing(tmp_path: Path, numbers: list[int], *, seal: bool) -> None:
    """Row 67: renumbered per session, idempotent, with the originals kept."""
    _fill(tmp_path)
    _edit(tmp_path, lambda rows: [_number(r, n, seal=seal) for r, n in zip(rows, numbers, strict=True)])
    (_dir(tmp_path) / "head").unlink()
    original = _segment(tmp_path).read_bytes()

    steps = _repair(tmp_path)

    assert any("is spent" in step for step in steps)
    assert _after(tmp_path) == [(n, {"n": n}) for n in range(1, 7)]
    assert original in [p.read_bytes() for p in (_dir(tmp_path) / "quarantine").rglob("*.jsonl")]
    files = _tree(tmp_path)
    assert _repair(tmp_path) == []
    assert _tree(tmp_path) == files
    with logmark.open(str(tmp_path)) as rt:
        assert rt.session(SESSION).append("message.created", {"n": 7}) == 7


def test_a_damaged_row_is_taken_out_and_its_number_never_used_again(tmp_path: Path) -> None:
    before = _fill(tmp_path)

    def flip(rows: list[bytes]) -> list[bytes]:
        rows[2] = rows[2].replace(b'{"n":3}', b'{"n":9}')
        return rows

    _edit(tmp_path, flip)
    with logmark.open(str(tmp_path)) as rt, pytest.raises(errors.LogCorrupt):
        list(rt.session(SESSION).read())
    steps = _repair(tmp_path)
    assert any("cannot be read" in step for step in steps)
    assert _after(tmp_path) == [event for event in before if event[0] != 3]
    with logmark.open(str(tmp_path)) as rt:
        assert rt.session(SESSION).append("message.created") == 7
        assert rt.session(SESSION).append("message.created", id="id-4") == 4


def test_lost_rows_at_the_end_leave_their_numbers_used(tmp_path: Path) -> None:
    """Row 33: the head knows of two rows that are gone; no later event gets their numbers."""
    _fill(tmp_path)
    _edit(tmp_path, lambda rows: rows[:-2])
    with logmark.open(str(tmp_path)) as rt, pytest.raises(errors.LogCorrupt) as caught:
        rt.session(SESSION).append("message.created")
    assert caught.value.event_seq == 5
    assert any("5 to 6" in step for step in _repair(tmp_path))
    with logmark.open(str(tmp_path)) as rt:
        assert rt.session(SESSION).append("message.created") == 7
        assert [event.event_seq for event in rt.session(SESSION).read()] == [1, 2, 3, 4, 7]


def test_a_lost_row_in_the_middle_leaves_a_named_gap(tmp_path: Path) -> None:
    _fill(tmp_path)
    _edit(tmp_path, lambda rows: rows[:2] + rows[3:])
    assert any("3 to 3 are lost" in step for step in _repair(tmp_path))
    assert [seq for seq, _ in _after(tmp_path)] == [1, 2, 4, 5, 6]


def test_a_dry_run_says_the_same_and_changes_nothing(tmp_path: Path) -> None:
    _fill(tmp_path)
    _edit(tmp_path, lambda rows: rows[:1] + rows[2:])
    files = _tree(tmp_path)
    said = _repair(tmp_path, dry_run=True)
    assert {name: data for name, data in _tree(tmp_path).items() if not name.endswith("lock")} == {
        name: data for name, data in files.items() if not name.endswith("lock")
    }
    assert said == _repair(tmp_path)


def test_a_halted_but_sound_session_is_rewritten_and_cleared(tmp_path: Path) -> None:
    """Row 21: the halt is inspectable and cleared after verification."""
    before = _fill(tmp_path)
    with logmark.open(str(tmp_path)) as rt:
        rt.store.halt(SESSION, "sync failed: EIO")
        inode = _segment(tmp_path).stat().st_ino
        with pytest.raises(errors.SessionHalted):
            rt.session(SESSION).append("message.created")
        assert any("clear the halt" in step for step in rt.store.repair(SESSION))
        assert _segment(tmp_path).stat().st_ino != inode
        assert rt.session(SESSION).append("message.created", {"n": 7}) == 7
        assert _events(rt.session(SESSION))[:6] == before


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    _fill(tmp_path)
    _edit(tmp_path, lambda rows: [*rows[:-1], rows[-1].replace(b'{"v":1,', b'{"v":2,')])
    files = _tree(tmp_path)
    with pytest.raises(errors.SchemaMismatch):
        _repair(tmp_path)
    assert _tree(tmp_path).keys() == files.keys()


def test_an_interrupted_repair_starts_again_from_the_originals(tmp_path: Path) -> None:
    before = _fill(tmp_path)
    _edit(tmp_path, lambda rows: [rows[0], rows[1][:20], *rows[2:]])
    # As if the process had died after the originals were copied and half of the new segment was written.
    with logmark.open(str(tmp_path)) as rt:
        rt.store.halt(SESSION, "a repair is under way or was interrupted: run 'logmark repair'")
    originals = _dir(tmp_path) / "quarantine" / "repair-1"
    originals.mkdir(parents=True)
    (originals / "copied").touch()
    for path in [_segment(tmp_path), _dir(tmp_path) / "head"]:
        shutil.copy(path, originals)
    _segment(tmp_path).write_bytes(b'{"logmark"')
    with logmark.open(str(tmp_path)) as rt, pytest.raises(errors.SessionHalted):
        list(rt.session(SESSION).read())
    assert _repair(tmp_path)[0].startswith("start again")
    assert _after(tmp_path) == [event for event in before if event[0] != 2]


@pytest.mark.parametrize("instead", [b"\x0b", b"\x00", b"}", b""], ids=["one bit", "NUL", "brace", "gone"])
def test_a_damaged_newline_costs_no_event(tmp_path: Path, instead: bytes) -> None:
    """Both rows beside it are sound, as are the first row and the line that the segment begins with."""
    before = _fill(tmp_path)
    segment, head = _segment(tmp_path), _dir(tmp_path) / "head"
    sound, sound_head = segment.read_bytes(), head.read_bytes()
    newlines = [index for index, byte in enumerate(sound) if byte == 0x0A]
    assert len(newlines) == 7

    for at in newlines:
        segment.write_bytes(sound[:at] + instead + sound[at + 1 :])
        head.write_bytes(sound_head)
        _repair(tmp_path)
        assert _after(tmp_path) == before
    segment.write_bytes(sound.replace(b"\n", instead))
    head.write_bytes(sound_head)
    assert len(_repair(tmp_path)) >= 5
    assert _after(tmp_path) == before


def test_processes_that_repair_at_once_repair_once(tmp_path: Path) -> None:
    """One of them does, under the session's lock; the others find a sound session, or that somebody is at it."""
    before = _fill(tmp_path, 200)
    _edit(tmp_path, lambda rows: [*rows[:99], rows[99].replace(b'"n"', b'"m"'), *rows[100:]])
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), SESSION], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0] * 4
    repaired = [answer for answer in said if answer and answer != {"error": "LockTimeout"}]
    assert len(repaired) == 1
    assert any("take out what cannot be read" in step for step in repaired[0])
    assert _after(tmp_path) == [event for event in before if event[0] != 100]
    assert len([path for path in (_dir(tmp_path) / "quarantine").iterdir() if path.name.startswith("repair-")]) == 1


def test_repair_of_several_segments(tmp_path: Path) -> None:
    limits = logmark.Limits(segment_bytes_max=600)
    with logmark.open(str(tmp_path), limits=limits) as rt:
        for n in range(20):
            rt.session(SESSION).append("message.created", {"n": n})
        before = _events(rt.session(SESSION))
    segments = sorted(_dir(tmp_path).glob("*.jsonl"))
    assert len(segments) > 3
    data = segments[1].read_bytes()
    segments[1].write_bytes(data[: len(data) // 2] + b"\x00" + data[len(data) // 2 + 1 :])
    with logmark.open(str(tmp_path), limits=limits) as rt:
        assert rt.store.repair(SESSION)
        kept = _events(rt.session(SESSION))
        assert len(kept) == 19
        assert all(event in before for event in kept)
        assert rt.session(SESSION).append("message.created") == 21
