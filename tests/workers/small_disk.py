"""What happens on a disk that is full or that may not be written to: ``small_disk.py SCENARIO DIRECTORY``.

Runs inside a mount namespace of its own, where DIRECTORY is a tmpfs of ``DISK_BYTES``. Each scenario is a test; what it
asserts, it asserts here, and its traceback is what the test that started it shows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import logmark
from logmark.errors import StorageRejected, StorageUnavailable

SESSION = "s"
PAGE = 4096
PAGES_MAX = 1000
LARGE = "x" * (PAGE + PAGE // 2)  # so that a write may stop in its middle, at the end of a page
SEGMENT = f"{1:020d}.jsonl"


@contextlib.contextmanager
def refused(kind: type[OSError], number: int) -> Iterator[None]:
    """Let what is inside be refused with this kind of error and this errno, and nothing else."""
    try:
        yield
    except kind as error:
        if error.errno != number:
            raise
    else:
        message = "it was allowed"
        raise AssertionError(message)


def fill(disk: Path) -> Path:
    """Take all the space there is, and return the file to remove in order to give it back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, refused(OSError, errno.ENOSPC):
        for _ in range(PAGES_MAX):
            file.write(b"\0" * PAGE)
    return ballast


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def numbers(session: logmark.Session) -> list[int | None]:
    return [event.event_seq for event in session.read(1)]


def append_until_full(session: logmark.Session) -> int:
    told = session.last_seq
    with refused(StorageRejected, errno.ENOSPC):
        for _ in range(PAGES_MAX):
            told = session.append("large", LARGE)
    return told


def an_append_that_finds_no_space_is_taken_back(disk: Path) -> None:
    with logmark.open(str(disk / "store")) as runtime:
        session = runtime.session(SESSION)
        subscription = session.subscribe()
        ballast = disk / "ballast"
        ballast.write_bytes(b"\0" * 16 * PAGE)
        told = append_until_full(session)
        assert told > 3
        # A failed append leaves not a byte, so that the next one stands in its place and not behind its remains.
        segment = disk / "store" / "sessions" / SESSION / SEGMENT
        size = segment.stat().st_size
        for _ in range(3):
            with refused(StorageRejected, errno.ENOSPC):
                session.append_many([("large", LARGE)] * 3)
            assert segment.stat().st_size == size
        assert session.last_seq == told
        assert numbers(session) == list(range(1, told + 1))
        ballast.unlink()
        assert session.append_many([("large", LARGE)] * 3) == (told + 1, told + 3)
        assert runtime.store.halted(SESSION) is None
    assert [event.event_seq for event in subscription] == list(range(1, told + 4))
    with logmark.open(str(disk / "store")) as runtime:
        assert numbers(runtime.session(SESSION)) == list(range(1, told + 4))
        assert runtime.store.verify(SESSION) == []


def a_new_session_on_a_full_disk_is_rejected_and_comes_into_being_later(disk: Path) -> None:
    with logmark.open(str(disk / "store")) as runtime:
        runtime.session("first").append("x")
        ballast = fill(disk)
        session = runtime.session(SESSION)
        for _ in range(3):
            with refused(StorageRejected, errno.ENOSPC):
                session.append("large", LARGE)
        assert session.last_seq == 0
        ballast.unlink()
        assert session.append("large", LARGE) == 1
        assert runtime.store.verify(SESSION) == []


def a_store_on_a_full_disk_cannot_be_made_and_can_later(disk: Path) -> None:
    ballast = fill(disk)
    with refused(StorageUnavailable, errno.ENOSPC):
        logmark.open(str(disk / "store"))
    ballast.unlink()
    with logmark.open(str(disk / "store")) as runtime:
        assert runtime.session(SESSION).append("x") == 1


def a_full_disk_at_the_reopening_deletes_nothing(disk: Path) -> None:
    """The crash that a full disk brought about has left a torn tail, for whose copy there is no space."""
    with logmark.open(str(disk / "store")) as runtime:
        assert runtime.session(SESSION).append_many([("large", LARGE)] * 3) == (1, 3)
    torn = b'{"v":1,"seq":4,"batch":[4,4],"size":'
    segment = disk / "store" / "sessions" / SESSION / SEGMENT
    with segment.open("ab") as file:
        file.write(torn)
    ballast = fill(disk)
    before = files_of(disk / "store")
    with logmark.open(str(disk / "store")) as runtime:
        session = runtime.session(SESSION)
        for _ in range(2):
            assert numbers(session) == [1, 2, 3]
            assert session.last_seq == 3
            assert session.page().last_seq == 3
            with refused(StorageRejected, errno.ENOSPC):
                session.append("x")
        after = files_of(disk / "store")
        assert {name: after[name] for name in before} == before
        ballast.unlink()
        assert session.append("x") == 4
        assert numbers(session) == [1, 2, 3, 4]
        assert runtime.store.verify(SESSION) == []
    kept = disk / "store" / "sessions" / SESSION / "quarantine"
    assert [path.read_bytes() for path in kept.iterdir()] == [torn]


def a_repair_on_a_full_disk_changes_nothing_and_succeeds_later(disk: Path) -> None:
    """There is no room for a second copy of the log; every attempt finds and leaves the same."""
    with logmark.open(str(disk / "store")) as runtime:
        assert runtime.session(SESSION).append_many([("large", LARGE)] * 8) == (1, 8)
    segment = disk / "store" / "sessions" / SESSION / SEGMENT
    damaged = segment.read_bytes().replace(b"xxxx", b"xxxy", 1)
    segment.write_bytes(damaged)
    ballast = fill(disk)
    os.truncate(ballast, ballast.stat().st_size - 5 * PAGE)  # enough to begin with, too little to finish
    with logmark.open(str(disk / "store")) as runtime:
        free = os.statvfs(disk).f_bfree
        open_files: set[int] = set()
        for _ in range(4):
            with refused(StorageUnavailable, errno.ENOSPC):
                runtime.store.repair(SESSION)
            assert segment.read_bytes() == damaged
            assert free - os.statvfs(disk).f_bfree <= 2, "no more than a halt marker is left of it"
            open_files.add(len(os.listdir("/proc/self/fd")))
        assert len(open_files) == 1, f"what each attempt opens stays open: {open_files}"
        assert runtime.store.halted(SESSION) is not None
        ballast.unlink()
        assert runtime.store.repair(SESSION)
        assert numbers(runtime.session(SESSION)) == list(range(2, 9))
        assert runtime.session(SESSION).append("x") == 9
        assert runtime.store.verify(SESSION) == []
    kept = disk / "store" / "sessions" / SESSION / "quarantine"
    assert [path.read_bytes() for path in kept.rglob(SEGMENT)] == [damaged]


def a_mount_for_reading_is_read_and_rejects_appends(disk: Path) -> None:
    with logmark.open(str(disk / "store")) as runtime:
        runtime.session(SESSION).append_many([("a", 1), logmark.Envelope(type="b", payload=2, job_id="j")])
        runtime.session("headless").append("a")
        runtime.session("torn").append("a")
    sessions = disk / "store" / "sessions"
    (sessions / "headless" / "head").unlink()
    with (sessions / "torn" / SEGMENT).open("ab") as file:
        file.write(b'{"v":1,')
    before = files_of(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with logmark.open(str(disk / "store")) as runtime:
        session = runtime.session(SESSION)
        assert numbers(session) == [1, 2]
        assert [mark.last_seq for mark in session.jobs()] == [2]
        with session.subscribe(1) as subscription:
            assert [subscription.get(10).event_seq for _ in range(2)] == [1, 2]
        assert {info.session_id: info.last_seq for info in runtime.sessions()} == {SESSION: 2, "headless": 1, "torn": 1}
        assert numbers(runtime.session("headless")) == [1]
        assert numbers(runtime.session("torn")) == [1]
        for name in (SESSION, "headless", "torn", "new"):
            with refused(StorageRejected, errno.EROFS):
                runtime.session(name).append("x")
            assert runtime.store.halted(name) is None
    with refused(StorageUnavailable, errno.EROFS):
        logmark.open(str(disk / "another"))
    assert files_of(disk) == before


def main() -> None:
    scenario, directory = sys.argv[1:]
    os.umask(0o077)
    globals()[scenario](Path(directory))


if __name__ == "__main__":
    main()
