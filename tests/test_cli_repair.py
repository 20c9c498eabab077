"""``logmark repair``: says what it does, does it once, and names what it could not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import logmark
from logmark.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with logmark.open(str(path)) as rt:
        for session_id in ("bad", "good", "halted"):
            for n in range(5):
                rt.session(session_id).append("note", {"n": n})
        rt.store.halt("halted", "sync failed: EIO")
    segment = next((path / "sessions" / "bad").glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b'{"n":2}', b'{"n":7}'))
    return path


def test_a_dry_run_then_a_repair_then_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store", str(store)]) == 1
    assert main(["repair", "--store", str(store), "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert "would be repaired" in said
    assert "good: sound, nothing to do" in said
    assert main(["verify", "--store", str(store)]) == 1

    assert main(["repair", "--store", str(store)]) == 0
    assert "3 sessions looked at, 2 repaired" in capsys.readouterr().out
    assert main(["verify", "--store", str(store)]) == 0
    assert main(["repair", "--store", str(store)]) == 0
    assert "0 repaired" in capsys.readouterr().out
    with logmark.open(str(store)) as rt:
        assert [event.event_seq for event in rt.session("bad").read()] == [1, 2, 4, 5]
        assert rt.session("bad").append("note") == 6
        assert rt.session("halted").append("note") == 6


def test_json_has_the_steps_of_each_session(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "--store", str(store), "--json", "halted", "good"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["session_id"] for report in reports] == ["halted", "good"]
    assert "clear the halt" in reports[0]["steps"][-1]
    assert reports[1]["steps"] == []


def test_a_session_of_a_newer_version_is_left_alone_and_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = next((store / "sessions" / "good").glob("*.jsonl"))
    before = segment.read_bytes().replace(b'{"v":1,"seq":5', b'{"v":2,"seq":5')
    segment.write_bytes(before)
    assert main(["repair", "--store", str(store)]) == 1
    assert "good: not repaired" in capsys.readouterr().out
    assert segment.read_bytes() == before


def test_an_unknown_session_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "--store", str(store), "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_directory_that_no_longer_tells_its_session_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id too long for a directory name stands only in the segment's first line."""
    with logmark.open(str(tmp_path)) as rt:
        rt.session("É" * 100).append("note")
    segment = next(tmp_path.glob("sessions/*/*.jsonl"))
    assert main(["verify", "--store", str(tmp_path)]) == 0
    segment.write_bytes(b"x" + segment.read_bytes()[1:])
    capsys.readouterr()
    assert main(["verify", "--store", str(tmp_path)]) == 1
    assert "which session it is of" in capsys.readouterr().out
