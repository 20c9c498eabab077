"""``logmark doctor``: what it says of a good place, and that it notices the bad ones."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark.cli import _doctor_checks as checks
from logmark.testing import CommandRun, PostgresServer

Run = Callable[..., CommandRun]


def verdicts(ran: CommandRun) -> dict[str, str]:
    return {each["check"]: each["verdict"] for each in ran.objects}


def said(ran: CommandRun, check: str) -> str:
    (found,) = (each["says"] for each in ran.objects if each["check"] == check)
    assert isinstance(found, str)
    return found


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the folder of the tests pass for a disk, wherever it is."""
    monkeypatch.setattr(checks, "_file_system", lambda _path: "ext4")
    monkeypatch.setattr(checks, "_SYNC_S_TOO_GOOD", 0.0)
    monkeypatch.setattr(checks, "_SYNC_S_SLOW", 60.0)


@pytest.mark.usefixtures("on_disk")
def test_a_sound_store_on_a_disk_is_fine_and_is_left_as_it_was(run: Run, tmp_path: Path) -> None:
    with logmark.open(str(tmp_path / "store")) as runtime:
        runtime.session("s").append("x")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    ran = run("doctor", "--json", "--store", tmp_path / "store")
    assert ran.code == 0, ran.out
    found = verdicts(ran)
    assert {
        "python",
        "packages",
        "place",
        "permissions",
        "file system",
        "lock",
        "sync",
        "clock",
        "store",
    } <= found.keys()
    assert "bad" not in found.values()
    assert "1 session" in said(ran, "store")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("on_disk")
def test_a_place_without_a_store_is_looked_at_where_it_will_be(run: Run, tmp_path: Path) -> None:
    ran = run("doctor", "--json", "--store", tmp_path / "not" / "yet" / "there")
    assert ran.code == 0
    assert verdicts(ran)["place"] == "note"
    assert str(tmp_path) in said(ran, "place")
    assert "store" not in verdicts(ran)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("on_disk")
def test_halted_and_damaged_sessions_are_bad(run: Run, tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        for name in ("halted", "damaged", "fine"):
            runtime.session(name).append("x", name)
        runtime.store.halt("halted", "the disk broke")
    (segment,) = (tmp_path / "sessions" / "damaged").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"payload":"damaged"', b'"payload":"Damaged"'))
    ran = run("doctor", "--json", "--store", tmp_path)
    assert (ran.code, verdicts(ran)["store"]) == (3, "bad")
    assert "1 damaged and 1 halted" in said(ran, "store")
    assert "repair" in said(ran, "store")


@pytest.mark.parametrize(
    ("kind", "verdict", "word"),
    [
        ("nfs4", "bad", "network"),
        ("tmpfs", "bad", "memory"),
        ("overlay", "note", "container"),
        ("fuse.x", "note", "program"),
        (None, "note", "does not say"),
        ("xfs", "ok", "local disk"),
    ],
)
def test_what_each_file_system_means(
    kind: str | None, verdict: str, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "_file_system", lambda _path: kind)
    opinion = checks.check_file_system(str(tmp_path))
    assert opinion.verdict == verdict
    assert word in opinion.says


def test_this_machines_own_mounts_are_told_apart() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux lists its mounts there")
    assert checks._file_system("/proc/self") == "proc"
    assert checks._file_system("/") not in {None, "proc"}


@pytest.mark.usefixtures("on_disk")
def test_a_lock_that_keeps_nobody_out_is_bad(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filelock.lock_descriptor", lambda _fd, **_options: True)
    ran = run("doctor", "--json", "--store", tmp_path)
    assert (ran.code, verdicts(ran)["lock"]) == (3, "bad")


@pytest.mark.usefixtures("on_disk")
def test_a_lock_that_is_never_given_back_is_bad(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filelock.unlock_descriptor", lambda _fd: None)
    ran = run("doctor", "--json", "--store", tmp_path)
    assert (ran.code, verdicts(ran)["lock"]) == (3, "bad")


@pytest.mark.parametrize(("sync_s", "verdict"), [(1e-6, "note"), (200e-6, "ok"), (0.02, "note")])
def test_a_sync_is_judged_by_its_time(
    sync_s: float, verdict: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += sync_s
        return now

    monkeypatch.setattr(checks, "time", types.SimpleNamespace(perf_counter=tick, time=time.time))
    assert verdicts(run("doctor", "--json", "--store", tmp_path))["sync"] == verdict


@pytest.mark.usefixtures("on_disk")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_is_bad(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        ran = run("doctor", "--json", "--store", tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert (ran.code, verdicts(ran)["permissions"], verdicts(ran)["trial"]) == (3, "bad", "bad")


@pytest.mark.usefixtures("on_disk")
def test_no_room_and_few_descriptors_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 0  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    assert checks.check_space(str(tmp_path)).verdict == "note"
    fields[5], fields[7] = 100, 0  # f_files and f_favail
    assert checks.check_space(str(tmp_path)).verdict == "bad"
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 4096))
    assert checks.check_descriptors().verdict == "note"


def test_a_server_is_asked(run: Run, postgres_server: PostgresServer) -> None:
    with logmark.open(postgres_server.url(schema="doctor")):
        pass
    ran = run("doctor", "--json", "--store", postgres_server.url(schema="doctor"))
    assert ran.code == 0, ran.out + ran.err
    assert {"server", "round trip"} <= verdicts(ran).keys()


def test_a_server_that_does_not_answer_is_bad(run: Run) -> None:
    ran = run("doctor", "--json", "--store", "postgresql://127.0.0.1:1/nobody")
    assert (ran.code, verdicts(ran)["server"]) == (3, "bad")


def test_memory_has_no_place(run: Run) -> None:
    assert run("doctor", "--store", "memory:").code == 2


@pytest.fixture(autouse=True)
def _quick_server_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")


def test_the_plain_form_is_a_line_for_each_check(run: Run, tmp_path: Path) -> None:
    ran = run("doctor", "--store", tmp_path)
    lines = ran.out.splitlines()
    assert len(lines) >= 9
    assert all(line.split()[0] in {"ok", "note", "bad"} for line in lines)
    assert all(line.endswith(".") for line in lines)
