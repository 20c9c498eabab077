"""``logmark backup`` and ``restore``: of a store that is in use, halted or damaged, and the way back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark.testing import CommandRun, eventually

Run = Callable[..., CommandRun]
State = dict[str, list[tuple[int | None, str | None, object]]]


def state_of(url: str) -> State:
    with logmark.open(url, create=False) as runtime:
        return {
            info.session_id: [
                (event.event_seq, event.id, event.payload)
                for event in runtime.session(info.session_id).read(info.first_available, halted_ok=True)
            ]
            for info in runtime.sessions()
        }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"file:{tmp_path / 'store'}"
    monkeypatch.setenv("LOGMARK_STORE", url)
    with logmark.open(url) as runtime:
        for name in ("a", "b"):
            runtime.session(name).append_many([("note", n) for n in range(5)])
    return url


@pytest.mark.parametrize("engine", ["file", "sqlite"])
def test_a_backup_restored_is_what_was_there(store: str, engine: str, run: Run, tmp_path: Path) -> None:
    backup = f"{engine}:{tmp_path / 'backup'}"
    assert run("backup", backup).code == 0
    before = state_of(store)
    with logmark.open(store) as runtime:  # what comes after the backup is not in it
        runtime.session("a").append("note", "later")
    assert state_of(backup) == before
    assert run("restore", backup, "--store", f"file:{tmp_path / 'new'}").code == 0
    assert state_of(f"file:{tmp_path / 'new'}") == before
    assert run("verify", "--store", f"file:{tmp_path / 'new'}").code == 0


def test_the_next_backup_adds_what_is_new(store: str, run: Run, tmp_path: Path) -> None:
    run("backup", tmp_path / "backup")
    with logmark.open(store) as runtime:
        runtime.session("a").append("note", "later")
        runtime.session("c").append("note", "new")
    ran = run("backup", tmp_path / "backup", "--json")
    assert ran.code == 0
    assert {each["session_id"]: (each["present"], each["copied"]) for each in ran.objects} == {
        "a": (5, 1),
        "b": (5, 0),
        "c": (0, 1),
    }
    assert state_of(str(tmp_path / "backup")) == state_of(store)


def test_a_backup_of_a_store_in_use_has_whole_commits_without_a_gap(store: str, run: Run, tmp_path: Path) -> None:
    stop, failures = threading.Event(), list[BaseException]()

    def write(name: str) -> None:
        try:
            with logmark.open(store) as runtime:
                while not stop.is_set():
                    runtime.session(name).append_many([("note", name)] * 3)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in ("live-1", "live-2")]
    for writer in writers:
        writer.start()
    try:
        with logmark.open(store) as runtime:
            eventually(lambda: all(runtime.session(f"live-{n}").last_seq >= 30 for n in (1, 2)), 60)
        assert run("backup", tmp_path / "backup").code == 0
    finally:
        stop.set()
        for writer in writers:
            writer.join(60)
    assert failures == []
    backed_up = state_of(str(tmp_path / "backup"))
    for name in ("live-1", "live-2"):
        seqs = [seq for seq, _, _ in backed_up[name]]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 30
        assert len(seqs) % 3 == 0
        assert backed_up[name] == state_of(store)[name][: len(seqs)]


def test_a_halted_session_is_backed_up_too(store: str, run: Run, tmp_path: Path) -> None:
    with logmark.open(store) as runtime:
        runtime.store.halt("a", "the disk broke")
    assert run("backup", tmp_path / "backup").code == 0
    assert state_of(str(tmp_path / "backup")) == state_of(store)


def test_a_damaged_session_is_backed_up_to_the_damage(store: str, run: Run, tmp_path: Path) -> None:
    (segment,) = (tmp_path / "store" / "sessions" / "a").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"payload":3', b'"payload":8')
    segment.write_bytes(b"".join(lines))
    ran = run("backup", tmp_path / "backup")
    assert ran.code == 1
    assert "damaged" in ran.err or "checksum" in ran.err
    backed_up = state_of(str(tmp_path / "backup"))
    assert len(backed_up["b"]) == 5
    assert [payload for _, _, payload in backed_up.get("a", [])] in ([], [0, 1, 2])


def test_a_restore_over_something_else_writes_nothing(store: str, run: Run, tmp_path: Path) -> None:
    run("backup", tmp_path / "backup")
    other = f"file:{tmp_path / 'other'}"
    with logmark.open(other) as runtime:
        runtime.session("b").append("note", "another history")
    before = state_of(other)
    assert run("restore", tmp_path / "backup", "--store", other).code == 1
    assert state_of(other) == before
    assert run("restore", tmp_path / "backup", "a", "--store", other).code == 0
    assert state_of(other) == before | {"a": state_of(store)["a"]}


def test_a_restore_does_not_take_back_what_came_after(store: str, run: Run, tmp_path: Path) -> None:
    run("backup", tmp_path / "backup")
    with logmark.open(store) as runtime:
        runtime.session("a").append("note", "later")
    before = state_of(store)
    assert run("restore", tmp_path / "backup").code == 1
    assert state_of(store) == before


def test_there_is_no_backup_of_nothing(run: Run, tmp_path: Path) -> None:
    assert run("backup", tmp_path / "backup", "--store", tmp_path / "nowhere").code == 3
    assert run("restore", tmp_path / "nowhere", "--store", tmp_path / "new").code == 3
