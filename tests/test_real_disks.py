"""Real disks that are full, small, read-only, not ours, or changed under the writer's hands."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark.errors import AppendRejected, LogCorrupt, StorageRejected
from logmark.protocol import Limits

WORKERS = Path(__file__).with_name("workers")
SESSION = "s"
SEGMENT = f"{1:020d}.jsonl"
RUN_S_MAX = 60.0
DISK_BYTES = 256 * 1024
NOBODY = 65534


def skip(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def namespace() -> tuple[str, ...]:
    """Return the command that gives a process mounts of its own; empty where nobody may do that."""
    if shutil.which("unshare") is not None:
        for options in ("-Urm", "-m"):  # the first needs no privileges where user namespaces are allowed
            probe = ["unshare", options, "mount", "-t", "tmpfs", "none", "/mnt"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return ("unshare", options)
    return ()


@pytest.mark.parametrize(
    "scenario",
    [
        "an_append_that_finds_no_space_is_taken_back",
        "a_new_session_on_a_full_disk_is_rejected_and_comes_into_being_later",
        "a_store_on_a_full_disk_cannot_be_made_and_can_later",
        "a_full_disk_at_the_reopening_deletes_nothing",
        "a_repair_on_a_full_disk_changes_nothing_and_succeeds_later",
        "a_mount_for_reading_is_read_and_rejects_appends",
    ],
)
def test_on_a_small_disk(tmp_path: Path, scenario: str) -> None:
    """Rows 22, 28, 45: the scenarios are functions in ``workers/small_disk.py``."""
    if not namespace():
        skip("no mounts: neither root nor unprivileged user namespaces")
    script = 'mount -t tmpfs -o "size=$1" none "$2" && shift && directory=$1 && shift && exec "$@" "$directory"'
    worker = [sys.executable, "-W", "error", str(WORKERS / "small_disk.py"), scenario]
    command = [*namespace(), "sh", "-c", script, "sh", str(DISK_BYTES), str(tmp_path), *worker]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S_MAX)
    assert run.returncode == 0, run.stderr


# -- a limit on the size of files -------------------------------------------------------------------------------


def run_program(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S_MAX, **options)  # type: ignore[call-overload, no-any-return]


def test_a_store_is_not_half_made_where_files_may_not_grow(tmp_path: Path) -> None:
    """A short write of the store's own file is no store; with the limit gone, the next opening makes one."""
    program = """
import errno, resource, sys
import logmark
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
try:
    logmark.open(sys.argv[1])
except logmark.errors.StorageUnavailable as error:
    assert error.errno == errno.EFBIG
else:
    raise AssertionError
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
with logmark.open(sys.argv[1]) as runtime:
    assert runtime.session("s").append("x") == 1
"""
    run = run_program(program, str(tmp_path / "store"))
    assert run.returncode == 0, run.stderr


def test_a_program_that_dies_of_the_limit_on_file_sizes_loses_nothing(tmp_path: Path) -> None:
    """Row 12: with the default action of SIGXFSZ, which Python ignores, the kernel kills in the middle of a write."""
    program = """
import resource, signal, sys
import logmark
runtime = logmark.open(sys.argv[1])
session = runtime.session("s")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
while True:
    print(session.append("x", "y" * 300), flush=True)
"""
    run = run_program(program, str(tmp_path / "store"))
    assert run.returncode == -signal.SIGXFSZ, run.stderr
    told = [int(line) for line in run.stdout.split()]
    assert len(told) > 3
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session(SESSION)
        assert [event.event_seq for event in session.read(1)] == told
        assert session.append("x") == len(told) + 1
        assert runtime.store.verify(SESSION) == []


# -- not ours to write, or to read ------------------------------------------------------------------------------


FOREIGN = """
import errno, os, sys
import logmark
from logmark.errors import StorageRejected, StorageUnavailable
with logmark.open(sys.argv[1] + "-warm") as runtime:  # whoever it becomes need not be allowed to import anything
    session = runtime.session("s")
    session.append("x", job_id="j")
    assert list(session.read(1)) and session.jobs() and list(runtime.sessions())
if sys.argv[2] != "-":
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
def refused(kind, call):
    try:
        call()
    except kind as error:
        assert error.errno in (errno.EACCES, errno.EPERM), error
    else:
        raise AssertionError("it was allowed")
"""

READ_ONLY_BY_PERMISSION = """
runtime = logmark.open(sys.argv[1])
session = runtime.session("s")
assert [event.payload for event in session.read(1)] == ["a", "b"]
assert session.last_seq == 2
refused(StorageRejected, lambda: session.append("x"))
refused(StorageRejected, lambda: runtime.session("new").append("x"))
assert runtime.store.halted("s") is None
runtime.close()
"""

NO_ENTRY = """
refused(StorageUnavailable, lambda: logmark.open(sys.argv[1]))
"""

NO_ENTRY_TO_THE_SESSION = """
runtime = logmark.open(sys.argv[1])
session = runtime.session("s")
refused(StorageUnavailable, lambda: session.last_seq)
refused(StorageUnavailable, lambda: list(session.read(1)))
refused(StorageRejected, lambda: session.append("x"))
runtime.close()
"""

NO_LISTING = """
runtime = logmark.open(sys.argv[1])
refused(StorageUnavailable, lambda: list(runtime.sessions()))
runtime.close()
"""

NO_PLACE_FOR_A_STORE = """
refused(StorageUnavailable, lambda: logmark.open(sys.argv[1] + "/below"))
"""


def only_readable(store: Path) -> None:
    for path in (store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def shut(store: Path) -> None:
    store.chmod(0)


def shut_session(store: Path) -> None:
    (store / "sessions" / SESSION).chmod(0)


def shut_list(store: Path) -> None:
    (store / "sessions").chmod(0o111)


def shut_for_writing(store: Path) -> None:
    (store / "store.json").unlink()
    store.chmod(0o555)


@pytest.mark.parametrize(
    ("change", "program"),
    [
        (only_readable, READ_ONLY_BY_PERMISSION),
        (shut, NO_ENTRY),
        (shut_session, NO_ENTRY_TO_THE_SESSION),
        (shut_list, NO_LISTING),
        (shut_for_writing, NO_PLACE_FOR_A_STORE),
    ],
)
def test_permissions_are_respected_and_typed(tmp_path: Path, change: Callable[[Path], None], program: str) -> None:
    """No fallback directory, no half-made files: what may be read is read, the rest is refused with EACCES."""
    store = tmp_path / "store"
    with logmark.open(str(store)) as runtime:
        runtime.session(SESSION).append_many([("x", "a"), ("x", "b")])
    account = "-"
    if os.geteuid() == 0:  # whom no permission stops: become somebody else, to whom the store is given
        account = str(NOBODY)
        for path in (store, *store.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    entered = [parent for parent in tmp_path.parents if parent.stat().st_uid == os.geteuid() and parent != Path("/")]
    modes = {path: path.stat().st_mode for path in (tmp_path, *entered)}
    for path, mode in modes.items():
        path.chmod(mode | 0o111)
    change(store)
    try:
        before = sorted(store.rglob("*")) if os.geteuid() == 0 else None
        run = run_program(FOREIGN + program, str(store), account)
        assert run.returncode == 0, run.stderr
        assert before is None or sorted(store.rglob("*")) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
        for path in (store, store / "sessions", store / "sessions" / SESSION):
            path.chmod(0o700)


# -- changed under the writer -----------------------------------------------------------------------------------


def remove_segment(store: Path) -> None:
    (store / "sessions" / SESSION / SEGMENT).unlink()


def move_segment(store: Path) -> None:
    path = store / "sessions" / SESSION / SEGMENT
    path.rename(path.with_name("elsewhere"))


def empty_segment(store: Path) -> None:
    (store / "sessions" / SESSION / SEGMENT).write_bytes(b"")


def remove_session(store: Path) -> None:
    shutil.rmtree(store / "sessions" / SESSION)


def move_session(store: Path) -> None:
    (store / "sessions" / SESSION).rename(store / "sessions" / "moved")


def remove_sessions(store: Path) -> None:
    shutil.rmtree(store / "sessions")


def remove_store(store: Path) -> None:
    shutil.rmtree(store)


@pytest.mark.parametrize(
    "change",
    [remove_segment, move_segment, empty_segment, remove_session, move_session, remove_sessions, remove_store],
)
def test_what_is_taken_away_under_the_writer_is_not_begun_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Row 33: typed errors, other sessions go on where they are still there, and no number is given twice."""
    store = tmp_path / "store"
    with logmark.open(str(store)) as runtime:
        session, other = runtime.session(SESSION), runtime.session("other")
        assert [session.append("x") for _ in range(3)] == [1, 2, 3]
        assert other.append("x") == 1
        change(store)
        for _ in range(2):
            with pytest.raises(AppendRejected) as caught:
                session.append("x")
            assert isinstance(caught.value, LogCorrupt | StorageRejected)
        if (store / "sessions" / "other").exists():
            assert other.append("x") == 2


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)


def away_and_back(path: Path) -> None:
    path.rename(path.with_name("away"))
    path.with_name("away").rename(path)


def replace_session(path: Path) -> None:
    folder = path.parent
    shutil.copytree(folder, folder.with_name("copy"))
    folder.rename(folder.with_name("old"))
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize("change", [replace_by_copy, away_and_back, replace_session])
@pytest.mark.parametrize("name", [SEGMENT, "head", "lock"])
def test_a_file_replaced_by_the_same_bytes_is_the_log_from_then_on(
    tmp_path: Path, change: Callable[[Path], None], name: str
) -> None:
    """Row 6: what is appended is appended to the file that has the name, not to the one that is still open."""
    store = tmp_path / "store"
    with logmark.open(str(store)) as runtime:
        session = runtime.session(SESSION)
        subscription = session.subscribe(1)
        assert [session.append("x", number) for number in range(3)] == [1, 2, 3]
        change(store / "sessions" / SESSION / name)
        assert [session.append("x", number) for number in range(3, 6)] == [4, 5, 6]
        assert [event.payload for event in session.read(1)] == list(range(6))
    assert [event.payload for event in subscription] == list(range(6))
    with logmark.open(str(store)) as runtime:
        assert [event.payload for event in runtime.session(SESSION).read(1)] == list(range(6))
        assert runtime.store.verify(SESSION) == []


# -- copies -----------------------------------------------------------------------------------------------------


def copy_head_first(source: Path, target: Path) -> None:
    """Copy a session as ``docs/failure-model.md`` says: the head before the segments."""
    target.mkdir(parents=True)
    for name in ("head", *sorted(path.name for path in source.glob("*.jsonl"))):
        shutil.copyfile(source / name, target / name)


def copy_head_last(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in (*sorted(path.name for path in source.glob("*.jsonl")), "head"):
        shutil.copyfile(source / name, target / name)


@pytest.mark.parametrize("copy", [copy_head_first, copy_head_last])
def test_a_copy_taken_while_it_is_written_is_a_prefix(tmp_path: Path, copy: Callable[[Path, Path], None]) -> None:
    """Row 33: with the head first always; else it may be reported as short, and is one after a repair."""
    store = tmp_path / "store"
    enough = threading.Event()
    runtime = logmark.open(str(store), limits=Limits(segment_bytes_max=50_000))
    session = runtime.session(SESSION)
    session.append("x", 1)

    def write() -> None:
        while not enough.is_set():
            session.append_many([("x", session.last_seq + part) for part in range(1, 4)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(25):
            session.wait_for(session.last_seq + 1, 30)
            target = tmp_path / f"copy-{number}"
            target.mkdir()
            shutil.copyfile(store / "store.json", target / "store.json")
            told = session.last_seq
            copy(store / "sessions" / SESSION, target / "sessions" / SESSION)
            check_copy(target, told, may_be_short=copy is copy_head_last)
    finally:
        enough.set()
        writer.join(RUN_S_MAX)
        runtime.close()


def check_copy(target: Path, told: int, *, may_be_short: bool) -> None:
    with logmark.open(str(target)) as runtime:
        session = runtime.session(SESSION)
        try:
            events = list(session.read(1))
        except LogCorrupt:
            assert may_be_short
            runtime.store.repair(SESSION)
            events = list(session.read(1))
        assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
        assert [event.payload for event in events] == list(range(1, len(events) + 1))
        assert len(events) >= told
        assert len(events) % 3 == 1, "an append is there in part"
        assert session.append("x") > len(events)
        assert [finding for finding in runtime.store.verify(SESSION) if not finding.harmless] == []
