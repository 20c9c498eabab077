"""In which order an append touches the disk, how much it touches, and what it leaves untouched when it fails."""

from __future__ import annotations

import functools
import math
import threading
from pathlib import Path

import pytest

import logmark
from logmark.protocol import SEQ_MAX, Limits, NotEncodable, SequenceExhausted
from logmark.storage import Appended, AppendRequest, FileEventStore
from logmark.testing._faults import Crashed, Operation
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing.conformance import append_answers, append_events, make_event, make_events, texts_of

S = "s"
SESSIONS = "/store/sessions"
DIRECTORY = f"{SESSIONS}/{S}"
LOG = f"{DIRECTORY}/{1:020d}.jsonl"
HEAD = f"{DIRECTORY}/head"
LASTING = {"write", "sync", "truncate", "rename", "sync_dir", "mkdir", "unlink"}


def lasting(operations: list[Operation]) -> list[tuple[str, str]]:
    """Return what changes the disk, by name and path; the lock file's content is for people only."""
    return [(each.name, each.path) for each in operations if each.name in LASTING and not each.path.endswith("/lock")]


def test_the_log_is_synced_before_the_head_is_written() -> None:
    """Row 11: so a head never says more than the disk holds."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event())
    before = len(files.operations)
    append_events(store, S, *make_events("a b"))

    assert lasting(files.operations[before:]) == [("write", LOG), ("sync", LOG), ("write", HEAD)]


def test_a_new_log_survives_a_power_cut() -> None:
    """Row 35: its name is synced in its directory, and the directory's name above, before the append returns."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event("a"))

    done = lasting(files.operations)
    named = done.index(("rename", LOG))
    synced = [done.index(("sync_dir", DIRECTORY), named), done.index(("sync_dir", SESSIONS), named)]
    written = done.index(("write", LOG), named)
    assert done[named - 1] == ("sync", f"{LOG}.new")
    assert max(synced) < done.index(("sync", LOG), written)
    files.power_cut()
    assert texts_of(FileEventStore("/store", files=files).read(S)) == ["a"]


def test_a_directory_that_another_process_left_behind_is_synced_too() -> None:
    """Row 35: whoever made the session's directory may have died before its name was durable."""
    files = FaultyFiles()
    FileEventStore("/store", files=files)
    files.mkdir(DIRECTORY)
    append_events(FileEventStore("/store", files=files.another_process()), S, make_event("a"))

    files.power_cut()
    assert texts_of(FileEventStore("/store", files=files).read(S)) == ["a"]


def test_rows_that_a_dead_process_left_unsynced_are_synced_before_they_are_shown() -> None:
    """Rows 12 and 36: whoever finds whole commits beyond the head makes them durable, as nobody else will."""
    files = FaultyFiles()
    append_events(FileEventStore("/store", files=files), S, make_event("a"))
    files.restart()
    files.crash("sync", path="*.jsonl")
    with pytest.raises(Crashed):
        append_events(FileEventStore("/store", files=files), S, *make_events("b c"))

    files.restart()
    assert texts_of(FileEventStore("/store", files=files).read(S)) == ["a", "b", "c"]
    files.power_cut()
    assert texts_of(FileEventStore("/store", files=files).read(S)) == ["a", "b", "c"]


def test_each_rotation_is_durable_before_it_is_used() -> None:
    """Row 35: for every later segment as for the first."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, limits=Limits(segment_bytes_max=500))
    texts = []
    for index in range(12):
        texts.append(f"{index}{'x' * 200}")
        append_events(store, S, make_event(texts[-1]))
        files.power_cut()
        store = FileEventStore("/store", files=files, limits=Limits(segment_bytes_max=500))
        assert texts_of(store.read(S)) == texts


def test_without_durability_nothing_is_synced() -> None:
    """``durability="os"`` means what it says."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, durability="os")
    before = len(files.operations)
    append_events(store, S, make_event())

    assert not [each for each in files.operations[before:] if each.name in {"sync", "sync_dir"}]


def test_readers_see_an_event_only_when_it_is_durable() -> None:
    """Rows 36 and 43: while the sync is under way, neither this process nor another reads it, or counts it."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event("a"))
    other = FileEventStore("/store", files=files.another_process())
    assert other.last_seq(S) == 1
    seen: list[tuple[list[str], list[str], int]] = []

    def look(_: object) -> None:
        seen.extend(
            (texts_of(each.read(S)), texts_of(each.read_backwards(S)), each.last_seq(S)) for each in (store, other)
        )

    files.call("sync", look, path="*.jsonl")
    append_events(store, S, make_event("b"))

    assert seen == [(["a"], ["a"], 1)] * 2
    assert (other.last_seq(S), texts_of(other.read(S))) == (2, ["a", "b"])


def test_a_first_look_does_not_wait_for_a_sync_under_way() -> None:
    """Row 39: a reader of a session whose first events are being written reads what there is, at once."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event("a"))
    stalled, gate = threading.Event(), threading.Event()

    def stall(_: object) -> None:
        stalled.set()
        assert gate.wait(60)

    files.call("sync", stall, path="*.jsonl")
    thread = threading.Thread(target=append_events, args=(store, S, make_event("b")), daemon=True)
    thread.start()
    assert stalled.wait(60)
    try:
        assert texts_of(store.read(S)) == ["a"]
    finally:
        gate.set()
        thread.join(60)


@pytest.mark.parametrize(
    "payload",
    [object(), {1: 2}, {"x": math.nan}, {"x": [math.inf]}, 2**64, "\ud800", {"x": b"bytes"}],
    ids=["object", "key", "NaN", "infinity", "65 bits", "surrogate", "bytes"],
)
def test_an_event_that_cannot_be_encoded_touches_nothing(tmp_path: Path, payload: object) -> None:
    """Row 13: neither alone nor between good ones."""
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session(S)
        session.append("t", {"text": "a"})
        directory = tmp_path / "store" / "sessions" / S
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        with pytest.raises(NotEncodable):
            session.append("t", payload)
        with pytest.raises(NotEncodable):
            session.append_many([("t", {}), ("t", payload), ("t", {})])

        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
        assert session.append("t", {}) == 2


def test_running_out_of_numbers_touches_nothing(tmp_path: Path) -> None:
    """Row 14: the error comes before any write."""
    store = FileEventStore(tmp_path)
    store.reserve(S, SEQ_MAX - 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (answer,) = append_answers(store, S, AppendRequest(make_events("a b")))
    assert isinstance(answer, SequenceExhausted)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def bytes_read(operations: list[Operation]) -> int:
    return sum(each.size or 0 for each in operations if each.name == "read")


def test_an_append_reads_the_same_whatever_the_length_of_the_log() -> None:
    """Row 27: warm, after another process has appended, and by a process that has just started."""
    found: dict[str, list[tuple[int, int]]] = {"warm": [], "after another": [], "cold": []}
    files = FaultyFiles()
    for length in (100, 2_000, 40_000):
        store = FileEventStore("/store", files=files, durability="os")
        while store.last_seq(S) < length:
            append_events(store, S, *(make_event("x" * 30) for _ in range(100)))
        append_events(store, S, make_event())
        for name, costs in found.items():
            if name == "after another":
                append_events(FileEventStore("/store", files=files.another_process()), S, make_event())
            elif name == "cold":
                files.restart()
                store = FileEventStore("/store", files=files, durability="os")
            before = len(files.operations)
            append_events(store, S, make_event())
            done = files.operations[before:]
            costs.append((len(done), bytes_read(done)))

    for name, costs in found.items():
        assert max(count for count, _ in costs) == min(count for count, _ in costs), (name, costs)
        assert max(size for _, size in costs) <= min(size for _, size in costs) + 200, (name, costs)
        assert max(size for _, size in costs) < (1_000 if name == "warm" else 300_000), (name, costs)


def test_a_read_from_the_end_does_not_read_what_lies_before() -> None:
    """Rows 16 and 27: from any number in either direction, the search is logarithmic and the rest is what is asked."""
    files = FaultyFiles()
    limits = Limits(read_chunk_bytes=4096)
    store = FileEventStore("/store", files=files, durability="os", limits=limits)
    for _ in range(200):
        append_events(store, S, *(make_event("x" * 100) for _ in range(50)))
    size = len(files.content(LOG))
    assert size > 2_000_000

    for seq in (1, 2, 17, 4_999, 5_000, 9_990, 10_000):
        for read in (
            functools.partial(store.read, S, from_seq=seq, through_seq=seq + 3),
            functools.partial(store.read_backwards, S, before_seq=seq + 1),
        ):
            before = len(files.operations)
            assert next(read()).event_seq == seq
            assert bytes_read(files.operations[before:]) < 150_000
    assert append_events(store, S, make_event()) == Appended(10_001, 10_001)
