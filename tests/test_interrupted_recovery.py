"""Crashes, power cuts and halts in the middle of mending what an earlier crash has left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logmark.protocol import AppendUncertain, Limits, LogCorrupt, SessionHalted
from logmark.storage import Appended, AppendRequest, FileEventStore, OsFiles
from logmark.testing import Crashed, FaultyFiles
from logmark.testing._disk import DiskState
from logmark.testing._power_cut import cached_state, file_states, power_cut_states, synced_state
from logmark.testing.conformance import (
    append_answers,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

S = "s"
FOLDER = f"/store/sessions/{S}"
LOG = f"{FOLDER}/{1:020d}.jsonl"


def open_store(files: FaultyFiles) -> FileEventStore:
    return FileEventStore("/store", files=files, limits=Limits(segment_bytes_max=500))


def torn_disk(text: str, count: int) -> tuple[DiskState, bytes]:
    """Return a disk with one acknowledged event and most of a commit that was under way, and the bytes of that."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event("told"))
    told, head = files.content(LOG), files.content(f"{FOLDER}/head")
    append_events(store, S, *(make_event(text) for _ in range(count)))
    torn = files.content(LOG)[:-40]
    files.overwrite(LOG, torn)
    files.overwrite(f"{FOLDER}/head", head)
    return cached_state(files.image()), torn[len(told) :]


def crashes(state: DiskState) -> Iterator[FaultyFiles]:
    """Yield the disk after a crash before each step of an append that has to mend it first, and at last after it."""
    for step in itertools.count(1):
        files = FaultyFiles(state)
        files.crash(None, step)
        try:
            append_events(open_store(files), S, make_event("next"))
        except Crashed:
            yield files
        else:
            yield files
            assert step > 30
            return


def test_what_is_cut_is_on_disk_elsewhere_before_it_is_cut() -> None:
    """Row 28: whichever step the power fails at, the torn bytes are at the end of the log or in quarantine."""
    state, torn = torn_disk("x", 3)
    for files in crashes(state):
        image = files.image()
        for left in (synced_state(image), cached_state(image), *power_cut_states(image, budget=30)):
            kept = [content for path, content in left.items() if path.startswith(f"{FOLDER}/quarantine/") and content]
            log = left[LOG]
            assert log is not None
            assert log.endswith(torn) or torn in kept


def test_a_power_cut_after_a_cut_does_not_bring_back_what_was_cut() -> None:
    """Rows 12, 28: rows of the cut commit, further on in the file than the new row reaches, never stand behind it."""
    state, _ = torn_disk("x" * 1500, 6)
    for files in crashes(state):
        image, log = files.image(), files.another_process().stat(LOG).st_ino
        for content in file_states(image.files[log]):
            store = open_store(FaultyFiles({**synced_state(image), LOG: content}))
            texts = texts_of(store.read(S))
            assert texts in (["told"], ["told", "next"])
            assert append_events(store, S, make_event("last")) == Appended(len(texts) + 1, len(texts) + 1)


def damaged_disk() -> tuple[DiskState, bytes]:
    """Return a disk with a session of three segments and a damaged row in one of them, and the damaged bytes."""
    files = FaultyFiles()
    store = open_store(files)
    for text in "abcdef":
        append_events(store, S, make_event(text))
    state = dict(cached_state(files.image()))
    path = next(
        path for path, content in state.items() if content and path.endswith("jsonl") and b'"text":"c"' in content
    )
    damaged = (state[path] or b"").replace(b'"text":"c"', b'"text":"X"')
    state[path] = damaged
    return state, damaged


def test_a_power_cut_in_the_middle_of_a_repair_costs_nothing_more() -> None:
    """Row 67: from whatever the disk has kept of it, the next repair makes the same log, and the originals are kept."""
    state, damaged = damaged_disk()
    for step in itertools.count(1):
        files = FaultyFiles(state)
        files.crash(None, step)
        try:
            open_store(files).repair(S)
        except Crashed:
            pass
        else:
            assert step > 60
            return
        image = files.image()
        for left in (synced_state(image), cached_state(image), *power_cut_states(image, budget=24, seed=step)):
            again = FaultyFiles(left)
            store = open_store(again)
            store.repair(S)
            assert texts_of(store.read(S)) == ["a", "b", "d", "e", "f"]
            assert seqs_of(store.read(S)) == [1, 2, 4, 5, 6]
            assert append_events(store, S, make_event("g")) == Appended(7, 7)
            assert store.verify(S) == []
            kept = [content for path, content in cached_state(again.image()).items() if "/quarantine/" in path]
            assert damaged in kept


@pytest.mark.parametrize("hole", [b"\0", b"x"])
def test_a_hole_between_acknowledged_rows_is_damage_and_not_the_end(tmp_path: Path, hole: bytes) -> None:
    """Row 32: without a head, what follows an unreadable row tells that it was acknowledged; nothing is cut away."""
    store = FileEventStore(tmp_path)
    for text in "abcdef":
        append_events(store, S, make_event(text))
    store.close()
    folder = tmp_path / "sessions" / S
    log = folder / f"{1:020d}.jsonl"
    lines = log.read_bytes().split(b"\n")
    lines[3] = hole * len(lines[3])
    damaged = b"\n".join(lines)
    log.write_bytes(damaged)
    (folder / "head").unlink()
    store = FileEventStore(tmp_path)

    (answer,) = append_answers(store, S, AppendRequest(make_events("g")))
    assert isinstance(answer, LogCorrupt)
    assert (answer.event_seq, answer.offset) == (3, damaged.index(hole * 20))
    with pytest.raises(LogCorrupt):
        list(store.read(S))
    assert log.read_bytes() == damaged


def test_a_halt_that_could_not_wait_holds_for_the_writer_it_did_not_wait_for(tmp_path: Path) -> None:
    """Row 22: the writer's own head takes the mark away; the marker is seen all the same before the next append."""

    class HaltedMeanwhile(OsFiles):
        def sync(self, fd: Any) -> None:
            FileEventStore(tmp_path, limits=Limits(lock_wait_s=0.05)).halt(S, "why")
            super().sync(fd)

    append_events(FileEventStore(tmp_path), S, make_event("a"))
    store = FileEventStore(tmp_path, files=HaltedMeanwhile())
    assert append_events(store, S, make_event("b")) == Appended(2, 2)

    (answer,) = append_answers(store, S, AppendRequest(make_events("c")))
    assert isinstance(answer, SessionHalted)
    assert seqs_of(store.read(S, halted_ok=True)) == [1, 2]


def test_a_halt_survives_a_power_cut_with_its_reason() -> None:
    """Rows 20, 22: when the caller has its ``AppendUncertain``, the marker is on the disk, whatever else is not."""
    files = FaultyFiles()
    store = open_store(files)
    append_events(store, S, make_event("told"))
    files.fail("sync", path="*.jsonl")
    error = raised_by(AppendUncertain, append_events, store, S, make_event("doubtful"))

    image = files.image()
    for left in (synced_state(image), cached_state(image), *power_cut_states(image, budget=100)):
        again = open_store(FaultyFiles(left))
        halt = again.halted(S)
        assert halt is not None
        assert halt.reason in str(error)
        assert texts_of(again.read(S, halted_ok=True)) in (["told"], ["told", "doubtful"])
