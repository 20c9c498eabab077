"""Pruning, sealing, deleting and keeping records: one operation of the disk fails, any one; files are damaged."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logmark.errors import LogCorrupt, SeqPruned, SessionDeleted, SessionSealed, StorageUnavailable
from logmark.protocol import Limits, LogmarkError
from logmark.storage import Appended, EventStore, FileEventStore, Record, open_store
from logmark.testing import FaultyFiles, eventually
from logmark.testing._disk import DiskState
from logmark.testing._faults import OPERATIONS
from logmark.testing._power_cut import cached_state
from logmark.testing.conformance import append_events, make_event, make_events, raised_by, seqs_of, texts_of

S = "s"
LIMITS = Limits(segment_bytes_max=700, lock_wait_s=0.01)
SESSIONS = ("pruned", "emptied", "sealed", "gone")
FAILURES = [
    *((name, errno.EIO) for name in OPERATIONS if name != "close"),
    *((name, errno.ENOSPC) for name in ("open", "write", "rename")),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the warnings of a thousand failures out of the report."""
    logger = logging.getLogger("logmark")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


# -- one operation fails -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state() -> DiskState:
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, limits=LIMITS)
    for name in SESSIONS:
        for word in ["a", "b", "c", "d", "e"]:
            append_events(store, name, make_event(word + "x" * 150))
        store.save_record(name, "ui", b"0", version=0)
    store.close()
    return cached_state(files.image())


def use(store: FileEventStore) -> dict[str, bool]:
    """Do everything that ends something, and say what was answered with success."""
    done: dict[str, bool] = {}

    def attempt(what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except LogmarkError:
            done[what] = False
        else:
            done[what] = True

    attempt("pruned", lambda: store.truncate_before("pruned", 4))
    attempt("pruned append", lambda: append_events(store, "pruned", make_event("f")))
    attempt("emptied", lambda: store.truncate_before("emptied", 6))
    attempt("emptied append", lambda: append_events(store, "emptied", make_event("f")))
    attempt("sealed", lambda: store.seal("sealed"))
    attempt("gone", lambda: store.delete("gone"))
    attempt("record", lambda: store.save_record("pruned", "ui", b"1", version=1))
    attempt("look", lambda: [store.info(name) for name in SESSIONS])
    return done


def check(files: FaultyFiles, done: dict[str, bool]) -> None:
    """Look at what is left as another process, on a disk that is sound again, and do what was not done."""
    store = FileEventStore("/store", files=files.another_process(), limits=LIMITS)
    for name in SESSIONS:
        if store.halted(name) is not None:
            store.repair(name)
        assert [finding for finding in store.verify(name) if not finding.harmless] == []
    for name, mark in (("pruned", 4), ("emptied", 6)):
        info = store.info(name)
        assert info.first_available == mark or (not done[name] and info.first_available == 1)
        assert info.next_seq == 6 + done[f"{name} append"] or info.next_seq == 7
        assert seqs_of(store.read(name, from_seq=info.first_available)) == list(
            range(info.first_available, info.next_seq)
        )
        assert store.truncate_before(name, mark) == mark
        raised_by(SeqPruned, store.read, name, from_seq=mark - 1)
        assert append_events(store, name, make_event("g")).first_seq == info.next_seq
    assert store.info("sealed").sealed or not done["sealed"]
    assert store.seal("sealed") == 5
    assert raised_by(SessionSealed, append_events, store, "sealed", make_event()).last_seq == 5
    assert store.info("gone").deleted or not done["gone"]
    store.delete("gone")
    assert raised_by(SessionDeleted, append_events, store, "gone", make_event()).last_seq == 5
    left = files.another_process().listdir("/store/sessions/gone")
    assert set(left) <= {"lifetime", "lock", "records", "quarantine"}
    record = store.load_record("pruned", "ui")
    assert record == Record(b"1", 2) or (not done["record"] and record == Record(b"0", 1))
    assert list(store.sessions()) == ["emptied", "pruned", "sealed"]
    store.close()


def check_locks(files: FaultyFiles) -> None:
    """Look whether a failure has left a lock behind, which would keep other processes out for good."""
    other = files.another_process()
    for name in SESSIONS:
        for lock in (f"/store/sessions/{name}/lock", f"/store/sessions/{name}/records/lock"):
            try:
                fd = other.open(lock, write=True)
            except FileNotFoundError:
                continue
            assert other.lock(fd), f"{lock} is still locked"
            other.close(fd)


@pytest.mark.parametrize(
    ("operation", "error"), FAILURES, ids=[f"{name}-{errno.errorcode[error]}" for name, error in FAILURES]
)
def test_any_operation_may_fail_once(state: DiskState, operation: str, error: int) -> None:
    """Done or not, with a typed error in the second case, and the next call settles it."""
    for n in itertools.count(1):
        files = FaultyFiles(state)
        files.fail(operation, n, error=error)
        try:
            store = FileEventStore("/store", files=files, limits=LIMITS)
        except LogmarkError:
            files.heal()
            store = FileEventStore("/store", files=files, limits=LIMITS)
        done = use(store)
        files.heal()
        check_locks(files)
        struck = any(made.error == error and made.name == operation for made in files.operations)
        store.close()

        assert files._open_files == {}, (n, sorted(file.node.path for file in files._open_files.values()))
        check(files, done)
        if not struck:
            return


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_end_may_be_interrupted_at_any_operation(state: DiskState, interruption: type[BaseException]) -> None:
    """A Ctrl-C in the middle leaves one state or the other, and no lock."""

    def interrupt(_: object) -> None:
        struck.append(True)
        raise interruption

    for operation in ("write", "sync", "rename", "sync_dir", "unlink"):
        for n in itertools.count(1):
            files, struck = FaultyFiles(state), list[bool]()
            store = FileEventStore("/store", files=files, limits=LIMITS)
            done: dict[str, bool] = dict.fromkeys(
                ("pruned", "pruned append", "emptied", "emptied append", "sealed", "gone", "record"), False
            )
            files.call(operation, interrupt, n)
            with contextlib.suppress(KeyboardInterrupt, MemoryError):
                done = use(store)
            files.heal()
            check_locks(files)
            store.close()
            check(files, done)
            if not struck:
                break


def test_no_operation_is_added_to_a_lone_append() -> None:
    """What a session may be is seen when its directory changes, and costs nothing while it does not."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)

    def operations_of_an_append() -> list[str]:
        before = len(files.operations)
        append_events(store, S, make_event())
        return [operation.name for operation in files.operations[before:]]

    def is_calm() -> bool:
        """Append, and say whether the directory was looked at once, and nothing in it but what is open."""
        operations = operations_of_an_append()
        return operations.count("stat") == 1 and "open" not in operations

    append_events(store, S, make_event())
    eventually(is_calm, timeout=20)
    plain = operations_of_an_append()
    assert sorted(plain) == sorted(["lock", "stat", "read", "fstat", "write", "sync", "write", "unlock"])
    store.truncate_before(S, 3)
    eventually(is_calm, timeout=20)
    assert operations_of_an_append() == plain


def test_nothing_is_synced_where_nothing_is_to_be() -> None:
    """``durability="os"``: in the page cache only, as its name says."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, durability="os", limits=LIMITS)
    before = len(files.operations)
    for word in ["a", "b", "c", "d", "e"]:
        append_events(store, S, make_event(word + "x" * 150))
    store.save_record(S, "ui", b"0", version=0)
    store.save_record(S, "ui", None, version=1)
    store.truncate_before(S, 4)
    store.truncate_before(S, 6)
    store.seal(S)
    store.delete(S)
    synced = [operation for operation in files.operations[before:] if operation.name in {"sync", "sync_dir"}]
    assert [operation for operation in synced if "halt" not in operation.path] == []


# -- what comes back of the disk ---------------------------------------------------------------------------------------


def open_files(path: Path, **options: object) -> EventStore:
    return open_store(str(path), **options)  # type: ignore[arg-type]


def bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_the_space_of_what_is_removed_is_returned(tmp_path: Path) -> None:
    """Whole segments at once; of the one that is written to, when it is closed or when nothing of it is kept."""
    store = open_files(tmp_path, limits=Limits(segment_bytes_max=100_000))
    directory = tmp_path / "sessions" / S
    for _ in range(40):
        append_events(store, S, *(make_event("x" * 1000) for _ in range(10)))
    full = bytes_of(directory)
    store.truncate_before(S, 301)
    assert bytes_of(directory) < full * 0.45
    assert sorted(path.name for path in directory.glob("*.ids")) <= sorted(
        path.with_suffix(".ids").name for path in directory.glob("*.jsonl")
    )
    store.truncate_before(S, 401)
    assert bytes_of(directory) < 2000
    assert append_events(store, S, make_event()) == Appended(401, 401)
    store.save_record(S, "ui", b"x" * 1000, version=0)
    store.delete(S)
    assert bytes_of(directory) < 500
    assert not list(directory.glob("*.jsonl"))


def test_a_segment_that_is_mostly_hidden_is_closed_so_that_it_can_go(tmp_path: Path) -> None:
    store = open_files(tmp_path)
    directory = tmp_path / "sessions" / S
    append_events(store, S, *(make_event("x" * 1000) for _ in range(100)))
    store.truncate_before(S, 91)
    assert len(list(directory.glob("*.jsonl"))) == 2
    append_events(store, S, *(make_event("y" * 1000) for _ in range(20)))
    store.truncate_before(S, 101)
    assert [path.name for path in directory.glob("*.jsonl")] == [f"{101:020d}.jsonl"]
    assert seqs_of(store.read(S, from_seq=101)) == list(range(101, 121))


def test_a_full_disk_can_be_pruned() -> None:
    """What is derived makes room for the few bytes that let rows go; without any, the disk has the last word."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, limits=LIMITS)
    for number in range(20):
        append_events(store, S, make_event("x" * 150, id=f"e{number}"))
    assert any(name.endswith(".ids") for name in files.listdir(f"/store/sessions/{S}"))
    files.fail("write", error=errno.ENOSPC, path="*.new")
    assert store.save_record(S, "base", b"data", version=0) == 1
    assert not any(name.endswith(".ids") for name in files.listdir(f"/store/sessions/{S}"))
    files.heal()
    files.fail("write", error=errno.ENOSPC, path="*.new")
    raised_by(StorageUnavailable, store.truncate_before, S, 15)
    append_events(store, S, make_event(id="e1"))
    append_events(store, S, *(make_event("y" * 300) for _ in range(3)))
    files.heal()
    files.fail("write", error=errno.ENOSPC, path="*.new")
    assert store.truncate_before(S, 15) == 15
    assert seqs_of(store.read(S, from_seq=15)) == list(range(15, 24))
    assert append_events(store, S, make_event(id="e19")) == Appended(20, 20, written=False)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with_long_name = open_files(tmp_path, limits=LIMITS)
    for word in ["a", "b", "c", "d", "e"]:
        append_events(with_long_name, S, make_event(word + "x" * 150))
    with_long_name.truncate_before(S, 4)
    with_long_name.save_record(S, "ui", b"data", version=0)
    with_long_name.close()
    return tmp_path / "sessions" / S


@pytest.mark.parametrize("content", [b"", b"garbage\n", b'{"logmark":"lifetime","v":1}\n'])
def test_a_damaged_lifetime_file_is_noticed_and_mended(place: Path, content: bytes) -> None:
    """Nobody knows then what is kept: nothing is read or appended until a repair has settled it."""
    lifetime = place / "lifetime"
    lifetime.write_bytes(content)
    store = open_files(place.parent.parent, limits=LIMITS)

    for call in (
        lambda: store.read(S, from_seq=4),
        lambda: store.info(S),
        lambda: append_events(store, S, make_event()),
        lambda: store.seal(S),
        lambda: store.truncate_before(S, 5),
    ):
        assert raised_by(LogCorrupt, call).segment == "lifetime"
    assert [finding.kind for finding in store.verify(S)][:1] == ["damage"]
    assert list(store.sessions()) == [S]
    assert store.repair(S, dry_run=True)
    assert lifetime.read_bytes() == content
    assert any("lifetime: was damaged" in step for step in store.repair(S))

    assert store.verify(S) == []
    assert store.repair(S) == []
    first = store.info(S).first_available
    assert texts_of(store.read(S, from_seq=first))[-2:] == ["d" + "x" * 150, "e" + "x" * 150]
    assert append_events(store, S, make_event()) == Appended(6, 6)
    assert list(place.glob("quarantine/repair-*/lifetime"))


def test_a_damaged_seal_or_tombstone_is_one_all_the_same(place: Path) -> None:
    """What was meant to be for good is not undone by a flipped bit."""
    root = place.parent.parent
    store = open_files(root, limits=LIMITS)
    store.seal(S)
    lifetime = place / "lifetime"
    lifetime.write_bytes(lifetime.read_bytes().replace(b'"last_below":3', b'"last_below":9'))
    raised_by(LogCorrupt, open_files(root).info, S)
    assert store.repair(S)
    assert raised_by(SessionSealed, append_events, open_files(root), S, make_event()).last_seq == 5

    store.delete(S)
    lifetime.write_bytes(lifetime.read_bytes().replace(b'"last_below":5', b'"last_below":9'))
    assert open_files(root).repair(S)
    assert raised_by(SessionDeleted, append_events, open_files(root), S, make_event()).last_seq == 5
    assert list(open_files(root).sessions()) == []


@pytest.mark.parametrize("damage", ["head", "data", "cut", "name", "session"])
def test_a_damaged_record_is_noticed_and_put_aside(place: Path, damage: str) -> None:
    path = place / "records" / "ui.record"
    store = open_files(place.parent.parent, limits=LIMITS)
    match damage:
        case "head":
            path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
        case "data":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "name":
            path.rename(path.with_name("other.record"))
        case _:
            store.save_record("t", "ui", b"data", version=0)
            path.write_bytes((place.parent / "t" / "records" / "ui.record").read_bytes())
    name = "other" if damage == "name" else "ui"

    for call in (
        lambda: store.load_record(S, name),
        lambda: store.records(S),
        lambda: store.save_record(S, name, b"new", version=1),
    ):
        assert f"{name}.record" in str(raised_by(LogCorrupt, call))
    assert append_events(store, S, make_event()) == Appended(6, 6)
    assert [(finding.kind, finding.place) for finding in store.verify(S)] == [("damage", f"records/{name}.record:0")]
    assert store.repair(S, dry_run=True) == store.repair(S)
    assert store.verify(S) == []
    assert store.records(S) == {}
    assert store.save_record(S, name, b"new", version=0) == 1
    assert len(list(place.glob(f"quarantine/{name}.record.*"))) == 1


def test_damaged_logs_can_be_deleted(place: Path) -> None:
    for path in place.iterdir():
        if path.is_file():
            path.write_bytes(b"garbage")
    store = open_files(place.parent.parent)
    raised_by(LogCorrupt, lambda: list(store.read(S)))
    store.delete(S)
    store.delete(S)
    assert store.info(S).deleted
    assert raised_by(SessionDeleted, append_events, store, S, make_event()).last_seq >= 3
    assert list(store.sessions()) == []
    assert store.verify_store() == []


def test_a_session_with_a_long_name_is_known_without_a_segment(tmp_path: Path) -> None:
    """By its lifetime file, as its directory's name does not tell it."""
    store = open_files(tmp_path)
    names = ["Z" * 199 + end for end in "abc"]
    append_events(store, names[0], *make_events("a b"))
    store.truncate_before(names[0], 3)
    store.seal(names[1])
    store.delete(names[2])
    assert list(open_files(tmp_path).sessions()) == names[:2]
    assert store.verify_store() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written_to_is_read_all_the_same(place: Path) -> None:
    place.chmod(0o500)
    try:
        store = open_files(place.parent.parent)
        assert seqs_of(store.read(S, from_seq=4)) == [4, 5]
        assert store.info(S).first_available == 4
        assert store.load_record(S, "ui") == Record(b"data", 1)
        raised_by(StorageUnavailable, store.truncate_before, S, 5)
    finally:
        place.chmod(0o700)
