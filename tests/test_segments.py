"""Logs of many segments, and stores of many sessions: rotation, what a crash leaves of it, and open descriptors."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import cast

import pytest

from logmark.protocol import Limits, LogCorrupt, RawEnvelope, StorageRejected, StorageUnavailable, row_seed
from logmark.storage import Appended, AppendRequest, FileEventStore
from logmark.storage._head import Head
from logmark.testing._faults import Crashed
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing.conformance import (
    append_answers,
    append_events,
    make_event,
    make_events,
    raised_by,
    run_together,
    seqs_of,
    texts_of,
)

S = "s"
TINY = Limits(segment_bytes_max=700, lock_wait_s=1.0)
COMMITS = ("a", "b c", "d", "e f g h i", "j", "k", "l", "m n", "o", "p")
TEXTS = " ".join(COMMITS).split()
DIRECTORY = f"/store/sessions/{S}"


class Place:
    """A closed session of sixteen events in several segments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = path / "sessions" / S
        self.head = self.directory / "head"
        store = self.open()
        for words in COMMITS:
            append_events(store, S, *make_events(words))
        store.close()
        self.segments = sorted(self.directory.glob("*.jsonl"))
        self.firsts = [int(segment.stem) for segment in self.segments]

    def open(self) -> FileEventStore:
        return FileEventStore(self.path, durability="os", limits=TINY)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "store")


def check_reads(store: FileEventStore, texts: Sequence[str] = TEXTS) -> None:
    for seq in range(1, len(texts) + 2):
        assert texts_of(store.read(S, from_seq=seq)) == texts[seq - 1 :]
        assert texts_of(store.read(S, through_seq=seq)) == texts[:seq]
        assert texts_of(store.read_backwards(S, before_seq=seq)) == texts[: seq - 1][::-1]
    assert texts_of(store.read_backwards(S)) == texts[::-1]


def test_segments_are_named_by_their_first_event_and_bounded(place: Place) -> None:
    """Rows 2 and 31: a commit lies in one segment, and only one that is alone may exceed the bound."""
    assert len(place.segments) >= 5
    for segment, following in zip(place.segments, [*place.firsts[1:], len(TEXTS) + 1], strict=True):
        first, rows = int(segment.stem), segment.read_bytes().splitlines()[1:]
        assert b'"seq":%d,' % first in rows[0]
        assert len(rows) == following - first
        batches = {row[row.index(b'"batch"') : row.index(b'"size"')] for row in rows}
        assert segment.stat().st_size <= TINY.segment_bytes_max or len(batches) == 1


def test_reads_cross_segments_both_ways_from_every_number(place: Place) -> None:
    """Rows 16 and 55: before and after a restart, and while the log grows."""
    store = place.open()
    check_reads(store)
    append_events(store, S, *make_events("q r"))
    check_reads(store, [*TEXTS, "q", "r"])
    assert store.verify(S) == []
    assert store.info(S).first_seq == 1


HEADS: dict[str, Callable[[Place], bytes | None]] = {
    "missing": lambda place: None,
    "empty": lambda place: b"",
    "garbage": lambda place: b"\x00garbage" * 20,
    "of the first segment": lambda place: Head(3, 3, 1, place.segments[0].stat().st_size).encode(row_seed(S)),
    "of the segment before": lambda place: Head(
        place.firsts[-1] - 1, place.firsts[-1] - 1, place.firsts[-2], place.segments[-2].stat().st_size
    ).encode(row_seed(S)),
    "of nothing": lambda place: Head(0, 0, 1, 0).encode(row_seed(S)),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_last_segment_decides_whatever_the_head_says(place: Place, name: str) -> None:
    """Rows 7 and 9: after a rotation as before it."""
    head = HEADS[name](place)
    place.head.unlink()
    if head is not None:
        place.head.write_bytes(head)

    check_reads(place.open())
    place.head.unlink()
    if head is not None:
        place.head.write_bytes(head)
    assert append_events(place.open(), S, make_event("q")) == Appended(17, 17)
    check_reads(place.open(), [*TEXTS, "q"])


@pytest.mark.parametrize("name", ["present", *HEADS])
@pytest.mark.parametrize("rows_follow", [False, True], ids=["no event follows", "an event follows"])
def test_reservations_at_the_seam_of_two_segments(place: Place, name: str, rows_follow: bool) -> None:
    """Row 8: the last event is in one segment and the reservation in the next; both numbers survive any head."""
    head = place.head.read_bytes() if name == "present" else HEADS[name](place)
    store = place.open()
    for through in (1000, 1001, 2000, 2001, 2002, 2003, 2004):  # enough of them to fill segments by themselves
        store.reserve(S, through)
    if rows_follow:
        assert append_events(store, S, make_event("x" * 700)) == Appended(2005, 2005)
    store.close()
    place.head.unlink()
    if head is not None:
        place.head.write_bytes(head)

    last, following = (2005, 2006) if rows_follow else (16, 2005)
    store = place.open()
    assert (store.last_seq(S), store.info(S).next_seq) == (last, following)
    assert append_events(store, S, make_event("y"), expected_seq=last) == Appended(following, following)
    assert seqs_of(store.read(S, from_seq=16)) == [16, 2005] + [2006] * rows_follow
    assert seqs_of(store.read_backwards(S))[:2] == [following, last]
    assert store.verify(S) == []


@pytest.mark.parametrize("index", range(5))
def test_a_missing_segment_is_noticed(place: Place, index: int) -> None:
    """Row 33: in the middle and at the end, upwards, downwards, and by a process that has looked before."""
    reader = place.open()
    check_reads(reader)
    index = [1, 2, 3, len(place.segments) - 2, len(place.segments) - 1][index]
    first, last = place.firsts[index], [*place.firsts, 17][index + 1] - 1
    is_last = last == 16
    place.segments[index].unlink()

    for store in (reader, place.open()):
        if not is_last or store is reader:
            found: list[str] = []
            with pytest.raises(LogCorrupt) as caught:
                found.extend(texts_of([event])[0] for event in store.read(S))
            assert caught.value.event_seq == first
            down: list[str] = []
            with pytest.raises(LogCorrupt):
                down.extend(texts_of([event])[0] for event in store.read_backwards(S))
            assert down == TEXTS[last:][::-1]
        else:
            with pytest.raises(LogCorrupt) as caught:
                store.read(S)
            assert caught.value.event_seq == first
        assert texts_of(itertools.islice(store.read(S, halted_ok=True), first - 1)) == TEXTS[: first - 1]
        assert {finding.kind for finding in store.verify(S)} & {"gap", "lost"}


def test_segments_that_are_missing_at_the_front_are_lost(place: Place) -> None:
    """Row 33: only what was pruned may be missing; what is left can be read, numbered on, and made a log again."""
    for segment in place.segments[:2]:
        segment.unlink()
    first = place.firsts[2]
    store = place.open()

    for look in (lambda: list(store.read(S)), lambda: store.info(S), lambda: list(store.read(S, halted_ok=True))):
        with pytest.raises(LogCorrupt) as caught:
            look()
        assert caught.value.event_seq == 1
    with pytest.raises(LogCorrupt):
        list(store.read_backwards(S))
    assert seqs_of(store.read(S, from_seq=first)) == list(range(first, 17))
    assert append_events(store, S, make_event()) == Appended(17, 17)
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("lost", 1)]

    assert any(f"numbers 1 to {first - 1} are lost" in step for step in store.repair(S))
    assert seqs_of(store.read(S)) == list(range(first, 18))
    assert store.verify(S) == []


@pytest.mark.parametrize("change", ["header damaged", "copied under a later name", "renamed", "torn in the middle"])
def test_a_damaged_older_segment_is_noticed(place: Place, change: str) -> None:
    """Row 32: the good events before it are read, nothing behind it is passed off as the next."""
    second, third = place.segments[1], place.segments[2]
    data = second.read_bytes()
    match change:
        case "header damaged":
            second.write_bytes(data.replace(b"segment", b"sagment", 1))
        case "copied under a later name":
            third.write_bytes(data)
        case "renamed":
            second.rename(second.with_name(f"{place.firsts[1] + 1:020d}.jsonl"))
        case _:
            second.write_bytes(data[:-30])
    store = place.open()

    found: list[int | None] = []
    with pytest.raises(LogCorrupt):
        found.extend(event.event_seq for event in store.read(S))
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= place.firsts[1] - 1
    down: list[int | None] = []
    with pytest.raises(LogCorrupt):
        down.extend(event.event_seq for event in store.read_backwards(S))
    assert down == list(range(16, 16 - len(down), -1))
    assert [finding for finding in store.verify(S) if not finding.harmless]


def test_what_a_crash_left_half_made_is_no_segment(place: Place, logs: object) -> None:
    """Row 28: files that were never renamed into place are ignored by readers and removed by the next writer."""
    names = [f"{1:020d}.jsonl.new", f"{17:020d}.jsonl.new", f"{99:020d}.jsonl.new", "halt.json.new"]
    for name in names:
        (place.directory / name).write_bytes(b'{"logmark":"segm')
    (place.directory / "notes.txt").write_bytes(b"somebody's own")
    store = place.open()

    assert store.verify(S) == []
    assert append_events(store, S, make_event("q")) == Appended(17, 17)
    check_reads(store, [*TEXTS, "q"])
    assert store.halted(S) is None
    assert not [name for name in names if (place.directory / name).exists()]
    assert (place.directory / "notes.txt").read_bytes() == b"somebody's own"


def rotating_store(files: FaultyFiles) -> FileEventStore:
    return FileEventStore("/store", files=files, limits=Limits(segment_bytes_max=1000, lock_wait_s=1.0))


def crashed_rotation(step: int) -> tuple[FaultyFiles, FileEventStore] | None:
    """Return a disk on which a rotation died before its n-th operation, and a neighbour that knew the tail before."""
    files = FaultyFiles()
    store = rotating_store(files)
    append_events(store, S, make_event("a"))
    neighbour = rotating_store(files.another_process())
    append_events(neighbour, S, make_event("b"))
    append_events(store, S, make_event("c"))
    append_events(neighbour, S, make_event("d", id="d"))
    assert len([name for name in files.listdir(DIRECTORY) if name.endswith(".jsonl")]) == 1
    files.crash(None, step)
    try:
        append_events(store, S, make_event("x" * 600))
    except Crashed:
        return files, neighbour
    files.heal()
    assert len([name for name in files.listdir(DIRECTORY) if name.endswith(".jsonl")]) == 2
    return None


@pytest.mark.parametrize("end", ["crash", "power cut", "neighbour"])
def test_a_crash_at_every_step_of_a_rotation(end: str) -> None:
    """Rows 12 and 31: for the process that restarts, after a power cut, and for a neighbour that knew the old tail."""
    steps = 0
    while (crashed := crashed_rotation(steps + 1)) is not None:
        steps += 1
        files, writer = crashed
        if end == "power cut":
            files.power_cut()
        if end != "neighbour":
            files.restart()
            writer = rotating_store(files)

        texts = ["a", "b", "c", "d"]
        (answer,) = append_answers(writer, S, AppendRequest(make_events("e")))
        assert isinstance(answer, Appended)
        if answer.first_seq == 6:  # the commit that was not acknowledged is there as a whole
            texts.append("x" * 600)
        assert answer.first_seq == len(texts) + 1
        texts.append("e")
        for size in (17, 600, 3, 250, 470, 0, 333, 590, 44, 110):
            assert append_events(writer, S, make_event("f" * size)).first_seq == len(texts) + 1
            texts.append("f" * size)
        check_reads(writer, texts)
        files.restart()
        reader = rotating_store(files)
        check_reads(reader, texts)
        assert reader.verify(S) == []
        assert append_events(reader, S, make_event("d", id="d")) == Appended(4, 4, written=False)
    assert steps > 15


@pytest.mark.parametrize("operation", ["open", "write", "truncate", "rename"])
def test_a_rotation_that_fails_early_is_rejected(operation: str) -> None:
    """Row 45: nothing was written, the old segment is as it was, and the next append tries again."""
    files = FaultyFiles()
    store = rotating_store(files)
    append_events(store, S, *make_events("a b"))
    files.fail(operation, error=errno.ENOSPC, path=f"{3:020d}.jsonl*")
    raised_by(StorageRejected, lambda: append_events(store, S, make_event("x" * 600)))

    assert append_events(store, S, make_event("small")) == Appended(3, 3)
    assert append_events(store, S, make_event("x" * 600)) == Appended(4, 4)
    check_reads(store, ["a", "b", "small", "x" * 600])
    files.restart()
    check_reads(rotating_store(files), ["a", "b", "small", "x" * 600])


# -- descriptors --------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


FEW = Limits(open_sessions_max=3)
FILES_PER_SESSION = 3  # segment, head and lock


def test_many_sessions_take_few_descriptors(tmp_path: Path) -> None:
    """The log used longest ago is closed, and opened again when it is appended to again."""
    before = descriptors()
    store = FileEventStore(tmp_path, durability="os", limits=FEW)
    names = [f"s{index}" for index in range(40)]
    for turn in range(1, 4):
        for name in names:
            assert append_events(store, name, make_event()) == Appended(turn, turn)
            assert descriptors() <= before + 3 * FILES_PER_SESSION
    store.reserve("s0", 9)
    store.halt("s1", "why")
    assert descriptors() <= before + 3 * FILES_PER_SESSION
    store.close()
    assert descriptors() == before


def test_looking_at_many_sessions_takes_no_descriptors(tmp_path: Path) -> None:
    """Whoever only looks keeps nothing open, in whatever way it looks."""
    names = [f"s{index}" for index in range(40)]
    with_events = FileEventStore(tmp_path, durability="os")
    for name in names:
        append_events(with_events, name, make_event())
    (tmp_path / "sessions" / "s5" / "head").unlink()
    (tmp_path / "sessions" / "s6" / "head").write_bytes(b"")
    log = tmp_path / "sessions" / "s7" / f"{1:020d}.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    with_events.close()
    before = descriptors()
    store = FileEventStore(tmp_path, durability="os", limits=FEW)

    for name in [*names, "s99"]:
        for look in (
            lambda name: list(store.read(name, halted_ok=True)),
            lambda name: list(store.read(name)),
            lambda name: list(store.read_backwards(name)),
            store.info,
            store.last_seq,
            store.halted,
            store.verify,
        ):
            try:
                look(name)
            except LogCorrupt:
                assert name == "s7"
    assert list(store.sessions()) == sorted(names)
    assert descriptors() == before


def test_a_reader_that_is_closed_early_releases_its_descriptor(place: Place) -> None:
    """Row 16: at once when it is closed, and when it is dropped."""
    store = place.open()
    store.last_seq(S)
    before = descriptors()
    for read in (store.read, store.read_backwards):
        reader = read(S)
        assert descriptors() == before
        next(reader)
        assert descriptors() == before + 1
        cast("Generator[RawEnvelope]", reader).close()
        assert descriptors() == before
        reader = read(S)
        next(reader)
        del reader
        assert descriptors() == before


def test_threads_on_more_sessions_than_may_be_open(tmp_path: Path) -> None:
    """Row 4: closing one log while another thread uses it costs neither an event nor a number."""
    store = FileEventStore(tmp_path, durability="os", limits=Limits(open_sessions_max=2))
    names = [f"s{index}" for index in range(6)]
    done = threading.Event()

    def write(name: str) -> None:
        for seq in range(1, 60):
            assert append_events(store, name, make_event()) == Appended(seq, seq)
            assert store.last_seq(name) == seq
            assert seqs_of(store.read(name, from_seq=seq)) == [seq]

    def look() -> None:
        while not done.is_set():
            for name in names:
                found = seqs_of(store.read(name))
                assert found == list(range(1, len(found) + 1))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        run_together(*(functools.partial(write, name) for name in names))
    finally:
        done.set()
        watcher.join(30)
    assert not watcher.is_alive()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EIO])
def test_running_out_of_descriptors_is_typed_and_passes(error: int) -> None:
    """An append is rejected and a look says that the store is unavailable; both work again afterwards."""
    files = FaultyFiles()
    append_events(FileEventStore("/store", files=files), S, make_event())
    files = files.another_process()
    store = FileEventStore("/store", files=files)
    files.fail("open", error=error, times=None)

    rejected = raised_by(StorageRejected, lambda: append_events(store, S, make_event()))
    assert rejected.errno == error
    for look in (
        lambda: store.reserve(S, 9),
        lambda: list(store.read(S)),
        lambda: list(store.read_backwards(S)),
        lambda: store.info(S),
        lambda: store.last_seq(S),
        lambda: store.verify(S),
        lambda: store.halted(S),
    ):
        with pytest.raises((StorageUnavailable, StorageRejected)) as caught:
            look()
        assert cast("OSError", caught.value).errno == error
    files.heal()
    assert append_events(store, S, make_event()) == Appended(2, 2)
    assert seqs_of(store.read(S)) == [1, 2]
