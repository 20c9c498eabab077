"""Something else where a store's file should be, stores that may only be read, and directories that are no store."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from logmark.protocol import AppendRejected, Limits, LogCorrupt, StorageRejected, StorageUnavailable
from logmark.storage import AppendRequest, FileEventStore, OsFiles
from logmark.testing.conformance import append_answers, append_events, make_event, make_events, seqs_of, texts_of

S = "s"
SEGMENT = f"{1:020d}.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a session of three events, closed."""
    store = open_store(tmp_path / "store")
    append_events(store, S, *make_events("a b c"))
    append_events(store, "other", make_event())
    store.close()
    return tmp_path / "store"


def open_store(path: Path, files: OsFiles | None = None) -> FileEventStore:
    return FileEventStore(path, durability="os", limits=Limits(lock_wait_s=0.2), files=files)


def link(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


def dangling_link(place: Path) -> None:
    place.unlink()
    place.symlink_to("nowhere")


def fifo(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def directory(place: Path) -> None:
    place.unlink()
    place.mkdir()


def device(place: Path) -> None:
    place.unlink()
    place.symlink_to("/dev/zero")


REPLACEMENTS = [link, dangling_link, fifo, directory, device]


@pytest.mark.timeout(20)  # a FIFO waits for whoever opens its other end, unless it is opened with care
@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("name", [SEGMENT, "head", "lock", "halt.json"])
def test_what_is_no_regular_file_is_refused(path: Path, name: str, replace: Callable[[Path], None]) -> None:
    """A typed error and no hang; nothing is followed, nothing is written through it, others go on."""
    place = path / "sessions" / S / name
    if name == "halt.json":
        place.write_text(json.dumps({"reason": "why", "at": "2026-01-01T00:00:00Z"}))
    replace(place)
    elsewhere = path / "sessions" / S / "elsewhere"
    before = elsewhere.read_bytes() if elsewhere.exists() else None
    store = open_store(path)

    if name == "halt.json":
        # Nobody can tell whether the session is halted, so nothing is read or written.
        with pytest.raises(StorageUnavailable):
            list(store.read(S))
    elif name == "lock":
        with pytest.raises((StorageUnavailable, AppendRejected)):
            list(store.read(S))
        assert texts_of(store.read(S, halted_ok=True)) == ["a", "b", "c"]
    (answer,) = append_answers(store, S, AppendRequest(make_events("d")))
    assert isinstance(answer, AppendRejected)
    for look in (
        lambda: list(store.read(S)),
        lambda: list(store.read_backwards(S)),
        lambda: store.info(S),
        lambda: store.last_seq(S),
        lambda: store.halted(S),
        lambda: store.verify(S),
        lambda: list(store.sessions()),
        lambda: store.reserve(S, 50),
        lambda: store.halt(S, "because"),
        lambda: store.clear_halt(S),
    ):
        with contextlib.suppress(StorageUnavailable, AppendRejected):
            look()
    assert seqs_of(open_store(path).read("other")) == [1]
    assert before is None or elsewhere.read_bytes() == before


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_store_file_that_is_no_regular_file_is_refused(path: Path, replace: Callable[[Path], None]) -> None:
    """The file that makes a directory a store is as suspect as any other."""
    replace(path / "store.json")

    with pytest.raises(StorageUnavailable):
        open_store(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"{}", b'{"logmark":"store"}', b'{"logmark":"store","v":2}', b'{"logmark":"x","v":1}'],
)
def test_a_store_of_another_kind_or_version_is_refused(path: Path, content: bytes) -> None:
    """Row 17: for reading too, and nothing is changed."""
    (path / "store.json").write_bytes(content)

    with pytest.raises(StorageUnavailable) as caught:
        open_store(path)
    assert str(path) in caught.value.store
    assert (path / "store.json").read_bytes() == content


def test_tools_that_only_look_make_no_store(tmp_path: Path) -> None:
    """A mistyped path is an error and leaves nothing behind."""
    with pytest.raises(StorageUnavailable) as caught:
        FileEventStore(tmp_path / "typo", create=False)

    assert caught.value.errno == errno.ENOENT
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    """Whatever it holds."""
    (tmp_path / "file").write_bytes(b"precious")

    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageUnavailable):
            open_store(place)
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_strange_things_among_the_sessions_are_not_listed(path: Path) -> None:
    """Files, empty directories, and names that no session has."""
    sessions = path / "sessions"
    (sessions / ".DS_Store").write_bytes(b"\x00")
    (sessions / "a-file").write_bytes(b"\x00")
    (sessions / "empty").mkdir()
    (sessions / "UPPER").mkdir()
    (sessions / "%zz").mkdir()
    (sessions / "%%hash").mkdir()
    (sessions / "%%hash" / SEGMENT).write_bytes(b"\xff\x00")
    (sessions / "wrong%20hash%%00").mkdir()
    (sessions / "lost+found").mkdir()

    assert list(open_store(path).sessions()) == ["other", S]


class ReadOnlyFiles(OsFiles):
    """A file system that was mounted for reading; as root, permissions alone would forbid nothing."""

    __slots__ = ()

    def open(self, path: str, *, write: bool, create: bool = False, exclusive: bool = False) -> int:
        if write or create:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return super().open(path, write=write)

    def mkdir(self, path: str) -> bool:
        if os.path.isdir(path):
            return False
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def change_nothing(directory: Path) -> None:
    pass


def delete_head(directory: Path) -> None:
    (directory / "head").unlink()


def damage_head(directory: Path) -> None:
    (directory / "head").write_bytes(b"garbage")


def tear_tail(directory: Path) -> None:
    with (directory / SEGMENT).open("ab") as log:
        log.write(b'{"v":1,"seq":4,"ba')


def tear_tail_without_head(directory: Path) -> None:
    tear_tail(directory)
    delete_head(directory)


def take_newline(directory: Path) -> None:
    log = directory / SEGMENT
    log.write_bytes(log.read_bytes()[:-1])


def leave_half_made(directory: Path) -> None:
    (directory / f"{4:020d}.jsonl.new").write_bytes(b"")


@pytest.mark.parametrize(
    "change",
    [change_nothing, delete_head, damage_head, tear_tail, tear_tail_without_head, take_newline, leave_half_made],
)
def test_a_store_that_may_only_be_read_is_readable(path: Path, change: Callable[[Path], None]) -> None:
    """Row 28: whatever a crash has left there, it is read around, as nothing can be mended."""
    change(path / "sessions" / S)
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    store = open_store(path, files=ReadOnlyFiles())

    assert store.last_seq(S) == 3
    assert (store.info(S).last_seq, store.info(S).next_seq, store.info(S).first_seq) == (3, 4, 1)
    assert texts_of(store.read(S)) == ["a", "b", "c"]
    assert texts_of(store.read(S, from_seq=2, through_seq=2)) == ["b"]
    assert texts_of(store.read_backwards(S)) == ["c", "b", "a"]
    assert texts_of(store.read(S, halted_ok=True)) == ["a", "b", "c"]
    assert [finding for finding in store.verify(S) if not finding.harmless] == []
    assert list(store.sessions()) == ["other", S]
    assert store.last_seq("never written to") == 0
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before


def test_a_store_that_may_only_be_read_rejects_appends(path: Path) -> None:
    """Row 45: certainly nothing was written, also to sessions that are new."""
    store = open_store(path, files=ReadOnlyFiles())

    for name in (S, "new"):
        (answer,) = append_answers(store, name, AppendRequest(make_events("d")))
        assert isinstance(answer, StorageRejected)
        assert answer.errno == errno.EROFS
    with pytest.raises((StorageUnavailable, StorageRejected)):
        store.reserve(S, 50)
    assert list(store.sessions()) == ["other", S]
    assert append_events(open_store(path), S, make_event("d")).first_seq == 4


def test_damage_in_a_store_that_may_only_be_read_is_named(path: Path) -> None:
    """Row 32: as where it could be mended."""
    log = path / "sessions" / S / SEGMENT
    log.write_bytes(log.read_bytes().replace(b'"text":"b"', b'"text":"B"'))
    (path / "sessions" / S / "head").unlink()
    store = open_store(path, files=ReadOnlyFiles())

    with pytest.raises(LogCorrupt):
        list(store.read(S))
    assert texts_of(store.read(S, halted_ok=True)) == []  # the commit of three is not whole


def test_what_the_store_makes_is_for_its_owner_only(path: Path) -> None:
    """Directories with mode 0700 and files with 0600, whatever the umask allows."""
    old = os.umask(0)
    try:
        store = open_store(path.with_name("another"))
        append_events(store, S, make_event())
        store.halt(S, "why")
    finally:
        os.umask(old)

    made = list(path.with_name("another").rglob("*"))
    assert len(made) > 5
    assert {each.stat().st_mode & 0o777 for each in made if each.is_dir()} == {0o700}
    assert {each.stat().st_mode & 0o777 for each in made if each.is_file()} == {0o600}
