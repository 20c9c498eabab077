"""A writer looks at its directory once instead of at four paths, and misses nothing that happens to them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from logmark.errors import LockTimeout, LogCorrupt, SessionHalted
from logmark.protocol import Limits
from logmark.storage import FileEventStore, OsFiles
from logmark.storage._undisturbed import Undisturbed
from logmark.testing import ManualClock, eventually
from logmark.testing.conformance import append_events, make_events, texts_of

S = "s"
SECOND_NS = 1_000_000_000


class CountingFiles(OsFiles):
    """The system's files; counts the looks at paths."""

    def __init__(self) -> None:
        self.stats: list[str] = []

    def stat(self, path: str) -> os.stat_result:
        self.stats.append(os.path.basename(path))
        return os.lstat(path)


class Place:
    """A store whose writer relies on its directory being undisturbed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = CountingFiles()
        self.store = FileEventStore(path, limits=Limits(lock_wait_s=0.2), files=self.files)
        self.directory = path / "sessions" / S
        self.texts: list[str] = []
        eventually(self.is_relied_on, timeout=20)

    def is_relied_on(self) -> bool:
        self.files.stats.clear()
        self.append()
        return self.files.stats == [S]

    def append(self) -> int:
        text = f"t{len(self.texts)}"
        answer = append_events(self.store, S, *make_events(text))
        self.texts.append(text)
        return answer.first_seq


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_one_look_is_enough_while_nothing_happens(place: Place) -> None:
    place.files.stats.clear()
    before = len(place.texts)
    for _ in range(10):
        place.append()
    assert place.files.stats == [S] * 10
    assert place.texts == texts_of(place.store.read(S))
    assert len(place.texts) == before + 10


def replace_the_lock(place: Place) -> Callable[[], None]:
    """Another process takes the lock file for stale, makes a new one and holds that."""
    path = place.directory / "lock"
    path.unlink()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return lambda: os.close(fd)


def test_a_lock_file_that_was_replaced_excludes_this_writer(place: Place) -> None:
    release = replace_the_lock(place)
    with pytest.raises(LockTimeout):
        place.append()
    release()
    place.append()
    assert texts_of(place.store.read(S)) == place.texts


def test_a_halt_marker_that_came_without_the_lock_is_seen(place: Place) -> None:
    """Whoever halts waits for the lock no longer than ``lock_wait_s``; its mark in the head may be overwritten."""
    (place.directory / "halt.json.new").write_text('{"reason":"planned","at":"2026-01-01T00:00:00Z"}\n')
    (place.directory / "halt.json.new").rename(place.directory / "halt.json")
    with pytest.raises(SessionHalted, match="planned"):
        place.append()
    assert len(place.texts) == len((place.directory / f"{1:020d}.jsonl").read_bytes().splitlines()) - 1


def test_a_segment_that_was_put_in_place_of_this_one_is_the_one_appended_to(place: Place) -> None:
    segment = place.directory / f"{1:020d}.jsonl"
    shutil.copy2(segment, segment.with_suffix(".copy"))
    segment.with_suffix(".copy").rename(segment)
    place.append()
    assert texts_of(place.store.read(S)) == place.texts
    place.store.close()
    assert texts_of(FileEventStore(place.path).read(S)) == place.texts


def test_a_segment_that_was_removed_is_missed(place: Place) -> None:
    (place.directory / f"{1:020d}.jsonl").unlink()
    with pytest.raises(LogCorrupt):
        place.append()


def test_a_whole_directory_that_was_put_in_place_of_this_one_is_another(place: Place) -> None:
    shutil.copytree(place.directory, place.path / "copy")
    place.directory.rename(place.path / "moved")
    (place.path / "copy").rename(place.directory)
    place.append()
    assert texts_of(place.store.read(S)) == place.texts
    moved = (place.path / "moved" / f"{1:020d}.jsonl").read_bytes()
    assert len(moved.splitlines()) == len(place.texts)  # the header, and all but the last


def test_what_another_writer_appends_in_place_is_seen_though_the_directory_stays_the_same(place: Place) -> None:
    other = FileEventStore(place.path)
    append_events(other, S, *make_events("foreign"))
    place.texts.append("foreign")
    place.append()
    assert texts_of(place.store.read(S)) == place.texts


def test_what_a_dead_writer_left_beyond_its_head_is_seen(place: Place) -> None:
    """It died between the write and the head: the names are as they were, and so is the head."""
    segment = place.directory / f"{1:020d}.jsonl"
    head = (place.directory / "head").read_bytes()
    append_events(FileEventStore(place.path), S, *make_events("late"))
    with (place.directory / "head").open("r+b") as stream:
        stream.write(head)
    with segment.open("ab") as stream:
        stream.write(b'{"v":1,"seq":')
    place.texts.append("late")
    place.append()
    assert texts_of(place.store.read(S)) == place.texts


class OneDirectory(OsFiles):
    """A directory whose time of modification the test decides."""

    modified_ns = 0
    ino = 1

    def stat(self, path: str) -> os.stat_result:
        del path
        times = (self.modified_ns / SECOND_NS,) * 3
        return os.stat_result(
            (0, self.ino, 1, 2, 0, 0, 0, 0, 0, 0, *times, self.modified_ns, self.modified_ns, self.modified_ns)
        )


@pytest.mark.parametrize(
    ("modified_ns", "step_ns"),
    [(5 * SECOND_NS + 1, SECOND_NS // 20), (5 * SECOND_NS, 3 * SECOND_NS)],
    ids=["fine", "whole seconds"],
)
def test_a_time_is_not_relied_on_before_its_step_is_over(modified_ns: int, step_ns: int) -> None:
    """A change in the same step as the last one leaves the same time behind."""
    files, clock = OneDirectory(), ManualClock()
    files.modified_ns = clock.time_ns() // SECOND_NS * SECOND_NS + modified_ns
    undisturbed = Undisturbed(files, clock, "directory")
    clock.advance((files.modified_ns - clock.time_ns()) / SECOND_NS)
    assert undisturbed.look() is None

    clock.advance((step_ns - 1000) / SECOND_NS)
    looked_at = undisturbed.look()
    assert looked_at is None
    undisturbed.remember(looked_at)
    assert not undisturbed.holds()

    clock.advance(2000 / SECOND_NS)
    looked_at = undisturbed.look()
    assert looked_at is not None
    undisturbed.remember(looked_at)
    assert undisturbed.holds()
    files.modified_ns += 1
    assert not undisturbed.holds()
    files.modified_ns -= 1
    files.ino += 1
    assert not undisturbed.holds()


def test_a_directory_of_the_future_is_never_relied_on() -> None:
    files, clock = OneDirectory(), ManualClock()
    files.modified_ns = clock.time_ns() + 3600 * SECOND_NS + 1
    undisturbed = Undisturbed(files, clock, "directory")
    clock.advance(60.0)
    assert undisturbed.look() is None
