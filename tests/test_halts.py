"""Failed writes: rolled back when that is certain, else the session halts, for everyone, until it is verified."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logmark.protocol import (
    AppendUncertain,
    EventIdConflict,
    Limits,
    LockTimeout,
    LogCorrupt,
    SchemaMismatch,
    SessionHalted,
    StorageRejected,
    WrongExpectedSeq,
)
from logmark.storage import Appended, AppendRequest, FileEventStore
from logmark.testing import CapturedLogs, ManualClock
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing.conformance import (
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    seqs_of,
    texts_of,
)

S = "s"
DIRECTORY = f"/store/sessions/{S}"
SEGMENT = f"{1:020d}.jsonl"
LOG = f"{DIRECTORY}/{SEGMENT}"
MARKER = f"{DIRECTORY}/halt.json"
NO_SPACE = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


class Harness:
    """A store on a disk in memory, in which session ``s`` has two events and ``other`` has one."""

    def __init__(self) -> None:
        self.files = FaultyFiles()
        self.clock = ManualClock()
        self.store = self.open(self.files)
        append_events(self.store, S, *make_events("a b"))
        append_events(self.store, "other", make_event("o"))
        self.told = self.files.content(LOG)

    def open(self, files: FaultyFiles) -> FileEventStore:
        return FileEventStore("/store", files=files, clock=self.clock, limits=Limits(lock_wait_s=1.0))

    def another(self) -> FileEventStore:
        return self.open(self.files.another_process())

    def restarted(self) -> FileEventStore:
        self.files.heal()
        self.files.restart()
        return self.open(self.files)

    def everyone(self) -> Iterator[FileEventStore]:
        """Yield the store, that of another process, and that of a process started after both have ended."""
        yield self.store
        yield self.another()
        yield self.restarted()

    def check_halted(self, store: FileEventStore) -> None:
        """Check that the session refuses and that the other one does not."""
        for call in (
            lambda: append_events(store, S, make_event("no")),
            lambda: store.reserve(S, 50),
            lambda: list(store.read(S)),
            lambda: list(store.read_backwards(S)),
        ):
            with pytest.raises(SessionHalted) as caught:
                call()
            assert caught.value.session_id == S
        assert store.halted(S) is not None
        assert texts_of(store.read(S, halted_ok=True))[:2] == ["a", "b"]
        before = store.last_seq("other")
        assert append_events(store, "other", make_event("o")) == Appended(before + 1, before + 1)
        assert store.halted("other") is None


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.mark.parametrize("error", NO_SPACE)
def test_a_full_disk_rejects_and_the_session_goes_on(harness: Harness, error: int, logs: CapturedLogs) -> None:
    """Row 45: certainly nothing was written, the log is as it was, and the next number is the next number."""
    harness.files.fail("write", error=error, path=SEGMENT)
    result = append_batch(harness.store, S, AppendRequest(make_events("c d")), AppendRequest(make_events("e")))

    for answer in result.answers:
        assert isinstance(answer, StorageRejected)
        assert (answer.session_id, answer.errno) == (S, error)
    assert (result.last_seq_before, result.last_seq, result.bytes_written) == (2, 2, 0)
    assert harness.files.content(LOG) == harness.told
    assert harness.store.halted(S) is None
    assert logs.named("append_rolled_back", session=S)
    assert append_events(harness.store, S, make_event("c")) == Appended(3, 3)
    assert texts_of(harness.restarted().read(S)) == ["a", "b", "c"]


@pytest.mark.parametrize("size", [0, 1, 100, 300])
def test_a_write_that_stops_in_the_middle_is_rolled_back(harness: Harness, size: int) -> None:
    """Row 31: the half that was taken is cut off again, and the cut is made durable."""
    harness.files.short("write", size=size, path=SEGMENT)
    harness.files.fail("write", 2, error=errno.ENOSPC, path=SEGMENT)
    before = len(harness.files.operations)
    with pytest.raises(StorageRejected):
        append_events(harness.store, S, *make_events("c d e"))

    done = [(each.name, each.size) for each in harness.files.operations[before:] if each.path == LOG]
    assert done[-2:] == [("truncate", len(harness.told)), ("sync", None)]
    assert harness.files.content(LOG) == harness.told
    assert append_events(harness.store, S, *make_events("c d")) == Appended(3, 4)
    harness.files.power_cut()
    assert texts_of(harness.open(harness.files).read(S)) == ["a", "b", "c", "d"]


def test_short_writes_are_continued(harness: Harness) -> None:
    """Row 31: a write may take fewer bytes than given; that is no failure."""
    for size in (0, 1, 7, 50):
        harness.files.short("write", size=size, path=SEGMENT)
        append_events(harness.store, S, *make_events("c d e"))

    assert seqs_of(harness.store.read(S)) == list(range(1, 15))
    assert harness.store.verify(S) == []


@pytest.mark.parametrize("operation", ["mkdir", "open", "write", "truncate", "rename"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_first_append_that_fails_early_is_rejected(harness: Harness, operation: str, error: int) -> None:
    """Row 45: what fails before a byte of the log is certain, and costs the session nothing."""
    harness.files.fail(operation, error=error, path=f"{S}2" if operation == "mkdir" else "*.jsonl*")
    with pytest.raises(StorageRejected) as caught:
        append_events(harness.store, f"{S}2", make_event("a"))
    assert caught.value.errno == error

    assert list(harness.store.sessions()) == ["other", S]
    assert append_events(harness.store, f"{S}2", make_event("a")) == Appended(1, 1)
    assert texts_of(harness.restarted().read(f"{S}2")) == ["a"]


def test_a_full_disk_leaves_no_lock_behind(harness: Harness) -> None:
    """Row 38: a process that cannot even write its name into the lock file holds the lock only while it appends."""
    full = harness.files.another_process()
    full.fail("write", error=errno.ENOSPC, times=None)
    store = harness.open(full)
    with pytest.raises(StorageRejected):
        append_events(store, S, make_event("c"))

    assert append_events(harness.store, S, make_event("c")) == Appended(3, 3)
    full.heal()
    assert append_events(store, S, make_event("d")) == Appended(4, 4)


@pytest.mark.parametrize("operation", ["fstat", "read", "listdir", "stat"])
def test_an_error_under_the_lock_leaves_no_lock_behind(harness: Harness, operation: str) -> None:
    """Row 38: whatever fails while the lock is held, it is let go."""
    failing = harness.files.another_process()
    store = harness.open(failing)
    failing.fail(operation, error=errno.EIO, times=3)
    append_answers(store, S, AppendRequest(make_events("c")))

    (answer,) = append_answers(harness.store, S, AppendRequest(make_events("d")))
    assert not isinstance(answer, LockTimeout)


def fail_write(files: FaultyFiles) -> None:
    files.fail("write", error=errno.EIO, path=SEGMENT)


def fail_write_after_a_part(files: FaultyFiles) -> None:
    files.short("write", size=150, path=SEGMENT)
    files.fail("write", 2, error=errno.EIO, path=SEGMENT)


def fail_sync(files: FaultyFiles) -> None:
    files.fail("sync", error=errno.EIO, path=SEGMENT)


def fail_sync_for_want_of_space(files: FaultyFiles) -> None:
    files.fail("sync", error=errno.ENOSPC, path=SEGMENT)


def fail_roll_back(files: FaultyFiles) -> None:
    files.short("write", size=150, path=SEGMENT)
    files.fail("write", 2, error=errno.ENOSPC, path=SEGMENT)
    files.fail("truncate", error=errno.EIO, path=SEGMENT)


def fail_sync_of_roll_back(files: FaultyFiles) -> None:
    files.fail("write", error=errno.ENOSPC, path=SEGMENT)
    files.fail("sync", error=errno.EIO, path=SEGMENT)


UNCERTAIN = [
    fail_write,
    fail_write_after_a_part,
    fail_sync,
    fail_sync_for_want_of_space,
    fail_roll_back,
    fail_sync_of_roll_back,
]


@pytest.mark.parametrize("fail", UNCERTAIN)
def test_an_uncertain_write_halts_the_session(
    harness: Harness, fail: Callable[[FaultyFiles], None], logs: CapturedLogs
) -> None:
    """Rows 20 and 22: in this process, in another, and after a restart; nothing is appended across the hole."""
    other = harness.another()
    append_events(other, S, make_event("c"))
    append_events(harness.store, S, make_event("d"))
    fail(harness.files)

    result = append_batch(harness.store, S, AppendRequest((make_event("x", id="in doubt"), make_event("y"))))
    (error,) = result.answers
    assert isinstance(error, AppendUncertain)
    assert (error.session_id, error.first_event_id) == (S, "in doubt")
    assert (result.last_seq_before, result.last_seq) == (4, 4)
    left = harness.files.content(LOG)
    record = harness.store.halted(S)
    assert record is not None
    assert (record.first_event_id, record.at[:4]) == ("in doubt", "2026")
    assert logs.named("session_halted", session=S, level="error")

    harness.check_halted(other)
    for store in harness.everyone():
        harness.check_halted(store)
        assert store.halted(S) == record
        assert (store.last_seq(S), store.info(S).halted) == (4, record.reason)
    assert harness.files.content(LOG) == left


def test_a_failed_sync_is_never_retried(harness: Harness) -> None:
    """Row 22: the page cache may call clean what the disk does not have, so a second sync would prove nothing."""
    harness.files.fail("sync", error=errno.EIO, path=SEGMENT)
    before = len(harness.files.operations)
    with pytest.raises(AppendUncertain):
        append_events(harness.store, S, make_event("c"))
    for _ in range(3):
        with pytest.raises(SessionHalted):
            append_events(harness.store, S, make_event("c"))

    on_log = [each for each in harness.files.operations[before:] if each.path == LOG]
    assert [each.name for each in on_log if each.name in {"write", "sync", "truncate"}] == ["write", "sync"]
    harness.files.power_cut()
    assert texts_of(harness.open(harness.files).read(S, halted_ok=True)) == ["a", "b"]


def test_a_retry_settles_what_was_in_doubt(harness: Harness) -> None:
    """Rows 21 and 40: once cleared, the same id gets the first number if the write has come through, else a new one."""
    event = make_event("x", id="in doubt")
    harness.files.fail("sync", error=errno.EIO, path=SEGMENT)
    with pytest.raises(AppendUncertain):
        append_events(harness.store, S, event)
    harness.store.clear_halt(S)
    assert append_events(harness.store, S, event) == Appended(3, 3, written=False)

    second = make_event("y", id="in doubt again")
    harness.files.fail("write", error=errno.EIO, path=SEGMENT)
    with pytest.raises(AppendUncertain):
        append_events(harness.store, S, second)
    harness.store.clear_halt(S)
    assert append_events(harness.store, S, second) == Appended(4, 4)
    assert texts_of(harness.another().read(S)) == ["a", "b", "x", "y"]


@pytest.mark.parametrize("fail", [*UNCERTAIN, None])
def test_answers_from_the_log_do_not_share_the_fate_of_the_write(
    harness: Harness, fail: Callable[[FaultyFiles], None] | None
) -> None:
    """Row 48: retries and refusals of a batch stay what they are; what was to be written, or hung on it, fails."""
    append_events(harness.store, S, make_event("c", id="old"))
    if fail is None:
        harness.files.fail("write", error=errno.ENOSPC, path=SEGMENT)
    else:
        fail(harness.files)

    answers = append_answers(
        harness.store,
        S,
        AppendRequest((make_event("again", id="old"),)),
        AppendRequest(make_events("no"), 99),
        AppendRequest((make_event("new", id="new"),)),
        AppendRequest((make_event("again", id="old"),)),
        AppendRequest((make_event("again", id="new"),)),
        AppendRequest(make_events("no no", ids=["old", "z"])),
        AppendRequest(make_events("no"), 3),
        AppendRequest(make_events("d")),
    )

    failure = StorageRejected if fail is None else AppendUncertain
    assert answers[0] == answers[3] == Appended(3, 3, written=False)
    assert [type(answer) for answer in answers] == [
        Appended,
        WrongExpectedSeq,
        failure,
        Appended,
        failure,
        EventIdConflict,
        failure,  # it met the request before it, which was not written
        failure,
    ]


@pytest.mark.parametrize("fail", UNCERTAIN)
def test_a_disk_that_takes_no_marker_still_halts_this_process(
    harness: Harness, fail: Callable[[FaultyFiles], None], logs: CapturedLogs
) -> None:
    """Row 22: the marker cannot be written either, so the halt is held in memory and the log says so."""
    harness.files.fail("write", error=errno.EIO, path="halt.json*", times=None)
    fail(harness.files)
    with pytest.raises(AppendUncertain):
        append_events(harness.store, S, make_event("c"))

    assert logs.named("halt_marker_unwritten", session=S, level="error")
    harness.check_halted(harness.store)
    harness.store.halt(S, "another reason")
    harness.check_halted(harness.store)


@pytest.mark.parametrize("operation", ["open", "read", "fstat", "close"])
def test_an_uncertain_write_stays_uncertain_whatever_else_fails(harness: Harness, operation: str) -> None:
    """Row 45: errors while halting must not make a rejection of it, which would say that nothing was written."""

    def everything_fails(_: object) -> None:
        harness.files.fail(operation, error=errno.EIO, times=None)
        raise OSError(errno.EIO, "sync")

    harness.files.call("sync", everything_fails, path=SEGMENT)
    (answer,) = append_answers(harness.store, S, AppendRequest(make_events("c")))

    assert isinstance(answer, AppendUncertain)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_is_rolled_back(harness: Harness, interruption: type[BaseException]) -> None:
    """Row 31: whatever is raised in the middle of a write, the log is as it was and the session goes on."""

    def interrupt(_: object) -> None:
        raise interruption

    harness.files.short("write", size=100, path=SEGMENT)
    harness.files.call("write", interrupt, 2, path=SEGMENT)
    with pytest.raises(KeyboardInterrupt if interruption is KeyboardInterrupt else StorageRejected):
        append_events(harness.store, S, make_event("c"))

    assert harness.files.content(LOG) == harness.told
    assert append_events(harness.store, S, make_event("c")) == Appended(3, 3)


MARKERS = {
    "garbage": b"\xff\x00 not JSON",
    "empty": b"",
    "cut": b'{"reason":"the disk is o',
    "an array": b"[1,2]",
    "a number": b"7",
    "null": b"null",
    "no members": b"{}",
    "other members": b'{"at":"2026-01-01T00:00:00Z"}',
}


@pytest.mark.parametrize("name", MARKERS)
def test_a_damaged_marker_fails_closed(harness: Harness, name: str) -> None:
    """Row 20: nobody can tell why the session was halted, so it stays halted until somebody has verified it."""
    harness.store.halt(S, "why")
    harness.files.overwrite(MARKER, MARKERS[name])

    for store in harness.everyone():
        harness.check_halted(store)
        record = store.halted(S)
        assert record is not None
        assert "damaged" in record.reason
        assert "halt" in [finding.kind for finding in store.verify(S)]
    store = harness.restarted()
    store.clear_halt(S)
    assert append_events(store, S, make_event("c")) == Appended(3, 3)


def damage_interior(content: bytes) -> bytes:
    return content.replace(b'"text":"a"', b'"text":"A"')


def lose_the_end(content: bytes) -> bytes:
    return content[: content.rindex(b"\n", 0, len(content) - 1) + 1]


def lose_everything(content: bytes) -> bytes:
    return b""


def follow_with_another_schema(content: bytes) -> bytes:
    return content + b'{"v":2,"seq":3}\n'


@pytest.mark.parametrize("damage", [damage_interior, lose_the_end, lose_everything, follow_with_another_schema])
def test_a_halt_is_not_cleared_while_the_log_is_bad(harness: Harness, damage: Callable[[bytes], bytes]) -> None:
    """Row 21: it stays halted, here and for others, until the log is mended; then clearing succeeds."""
    harness.store.halt(S, "why")
    damaged = damage(harness.told)
    harness.files.overwrite(LOG, damaged)

    for store in (harness.store, harness.another()):
        with pytest.raises((LogCorrupt, SchemaMismatch)):
            store.clear_halt(S)
        record = store.halted(S)
        assert record is not None
        assert record.reason == "why"
        with pytest.raises(SessionHalted):
            append_events(store, S, make_event("c"))
        kinds = [finding.kind for finding in store.verify(S) if not finding.harmless]
        assert kinds[0] == "halt"
        assert len(kinds) > 1
    assert harness.files.content(LOG) == damaged
    harness.files.overwrite(LOG, harness.told)
    harness.store.clear_halt(S)
    assert append_events(harness.another(), S, make_event("c")) == Appended(3, 3)


@pytest.mark.parametrize("halted_by", ["a failed sync", "a call"])
def test_a_halt_and_its_end_survive_a_power_cut(harness: Harness, halted_by: str) -> None:
    """Rows 20 and 21: the marker is durable when the session is halted, and gone for good when it is cleared."""
    if halted_by == "a call":
        harness.store.halt(S, "why")
    else:
        harness.files.fail("sync", error=errno.EIO, path=SEGMENT)
        with pytest.raises(AppendUncertain):
            append_events(harness.store, S, make_event("c"))
    record = harness.store.halted(S)
    harness.files.power_cut()
    store = harness.open(harness.files)
    harness.check_halted(store)
    assert store.halted(S) == record

    store.clear_halt(S)
    harness.files.power_cut()
    store = harness.open(harness.files)
    assert store.halted(S) is None
    assert texts_of(store.read(S)) == ["a", "b"]
    assert append_events(store, S, make_event("d")) == Appended(3, 3)


@pytest.mark.parametrize("head_there", [True, False], ids=["head", "no head"])
def test_a_halted_session_can_be_looked_at_without_a_head(harness: Harness, head_there: bool) -> None:
    """Row 21: what is known of it comes from the rows then, and nothing is mended meanwhile."""
    harness.store.halt(S, "why")
    if not head_there:
        harness.files.unlink(f"{DIRECTORY}/head")
    names = harness.files.listdir(DIRECTORY)

    for store in harness.everyone():
        assert (store.last_seq(S), store.info(S).next_seq, store.info(S).halted) == (2, 3, "why")
        assert texts_of(store.read(S, halted_ok=True)) == ["a", "b"]
        harness.check_halted(store)
    assert sorted(harness.files.listdir(DIRECTORY)) == sorted(names)


def test_a_halt_waits_for_the_append_that_is_under_way(harness: Harness) -> None:
    """Row 22: an append that holds the lock finishes; what comes after it is refused, also in its own process."""
    other = FileEventStore("/store", files=(files := harness.files.another_process()))
    threads: list[threading.Thread] = []
    waiting = threading.Event()

    def halt_meanwhile(_: object) -> None:
        files.call("lock", lambda _: waiting.set(), 2)  # the first try has failed
        threads.append(threading.Thread(target=other.halt, args=(S, "why"), daemon=True))
        threads[0].start()
        assert waiting.wait(10)

    harness.files.call("sync", halt_meanwhile, path=SEGMENT)
    assert append_events(harness.store, S, make_event("c")) == Appended(3, 3)
    threads[0].join(10)

    for store in (harness.store, other, harness.another()):
        harness.check_halted(store)
        assert store.last_seq(S) == 3


def test_a_halt_reaches_a_writer_that_has_made_another_head(harness: Harness) -> None:
    """Row 22: whoever halts may still have the head open that was there before, and must not write into that one."""
    other = harness.another()
    append_events(other, S, make_event("c"))
    harness.files.unlink(f"{DIRECTORY}/head")
    append_events(harness.store, S, make_event("d"))
    other.halt(S, "why")

    harness.check_halted(harness.store)
    assert harness.store.last_seq(S) == 4


def test_a_holder_of_the_lock_that_hangs_does_not_prevent_a_halt(harness: Harness) -> None:
    """Row 22: the marker is written without the lock then, after ``lock_wait_s`` of (here virtual) waiting."""
    other = harness.another()
    harness.files.call("sync", lambda _: other.halt(S, "why"), path=SEGMENT)
    append_events(harness.store, S, make_event("c"))

    harness.check_halted(other)
    harness.check_halted(harness.another())


def test_a_real_file_that_may_not_grow_rejects_and_goes_on(tmp_path: Path) -> None:
    """Row 45: the operating system's own short write and error, at a limit on the size of files."""
    program = """
import resource, sys
from logmark.protocol import StorageRejected
from logmark.storage import FileEventStore
from logmark.testing.conformance import append_events, make_event, seqs_of

store = FileEventStore(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
append_events(store, "s", make_event("x" * 300))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
told = 1
try:
    while True:
        append_events(store, "s", make_event("x" * 300), make_event("y"))
        told += 2
except StorageRejected as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert append_events(store, "s", make_event("z")).first_seq == told + 1
assert seqs_of(store.read("s")) == list(range(1, told + 2))
assert store.verify("s") == []
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout.split()) == (0, [str(errno.EFBIG)]), run.stderr
