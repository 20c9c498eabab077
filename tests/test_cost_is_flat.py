"""A long log costs what a short one does: cold opens, marks, retries and reads touch what they need and no more."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope, JobMark, Limits, LogCorrupt
from logmark._runtime import Runtime
from logmark.protocol import EventTypes, JobMarks
from logmark.storage import Appended, FileEventStore, OsFiles, SessionBatch, Snapshot, _session_ids
from logmark.testing import CapturedLogs, encoded_event, request_of

SOON = 30.0
LIMITS = Limits(segment_bytes_max=20_000, marks_unsaved_events_max=100, read_chunk_bytes=4096)
EVENTS = 1200
LOG_BYTES_MIN = EVENTS * 150


class CountingFiles(OsFiles):
    """The operating system's files; counts operations, and bytes read."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def open(self, path: str, *, write: bool, create: bool = False, exclusive: bool = False) -> int:
        self.counts["open"] += 1
        return super().open(path, write=write, create=create, exclusive=exclusive)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self.counts["read_bytes"] += len(data)
        return data

    def listdir(self, path: str) -> list[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self.counts["listdir"] += 1
        return os.listdir(path)


def opened(path: Path, files: OsFiles | None = None, limits: Limits = LIMITS, **rules: Any) -> Runtime:
    store = FileEventStore(path, files=files or OsFiles(), limits=limits, durability="os")
    return Runtime(store, limits=limits, types=EventTypes(**rules))


def fill(path: Path, session_id: str = "s", events: int = EVENTS, *, batch: int = 20, **rules: Any) -> None:
    """Make a log of many segments, and wait until its marks are saved."""
    with opened(path, **rules) as runtime:
        session = runtime.session(session_id)
        for first in range(0, events, batch):
            session.append_many(
                Envelope(type="job.event", job_id=f"j{number % 7}", payload={"n": number})
                for number in range(first, min(events, first + batch))
            )
            session.jobs()


def folded(path: Path, session_id: str = "s") -> list[JobMark]:
    """Return the marks as the rows give them."""
    marks = JobMarks(EventTypes())
    store = FileEventStore(path, limits=LIMITS)
    marks.apply(store.read(session_id))
    store.close()
    return marks.all()


def directory(path: Path, session_id: str = "s") -> Path:
    return path / "sessions" / session_id


# -- marks ----------------------------------------------------------------------------------------------------------


def test_a_cold_open_and_its_marks_read_the_tail_and_not_the_log(tmp_path: Path, logs: CapturedLogs) -> None:
    fill(tmp_path / "store")
    files = CountingFiles()
    with opened(tmp_path / "store", files) as runtime:
        marks = runtime.session("s").jobs()
        assert runtime.session("s").append("job.event", job_id="j0") == EVENTS + 1

    assert marks == folded(tmp_path / "store")[:0] + _without_last(folded(tmp_path / "store"), EVENTS + 1)
    assert logs.named("marks_taken_over")[-1]["seq"] > EVENTS - 2 * LIMITS.marks_unsaved_events_max
    assert files.counts["read_bytes"] < LOG_BYTES_MIN / 2


def _without_last(marks: list[JobMark], seq: int) -> list[JobMark]:
    """Return marks as they were before the event ``seq`` of job ``j0``."""
    before = EVENTS - EVENTS % 7 + 1 if EVENTS % 7 else EVENTS - 6
    return [
        JobMark(
            job_id=mark.job_id,
            first_seq=mark.first_seq,
            last_seq=before if mark.last_seq == seq else mark.last_seq,
            count=mark.count - (mark.last_seq == seq),
            status=mark.status,
        )
        for mark in marks
    ]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


def flipped_in_the_first_line(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[30] ^= 4
    path.write_bytes(data)


def nul(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """Another session's file of the same name."""
    other = path.parent.parent / "other"
    shutil.copy(min(other.glob(f"*{path.suffix}")), path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


DAMAGES = [torn, longer, flipped, flipped_in_the_first_line, nul, empty, foreign, a_directory, a_link]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "store"
    fill(path)
    fill(path, "other")
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_snapshot_that_is_not_whole_or_not_of_this_session_changes_no_answer(
    damage: Callable[[Path], None], filled: Path, tmp_path: Path, logs: CapturedLogs
) -> None:
    path = tmp_path / "store"
    shutil.copytree(filled, path)
    damage(directory(path) / "marks.snapshot")
    with opened(path) as runtime:
        assert runtime.session("s").jobs() == folded(path)
        assert runtime.session("other").jobs() == folded(path, "other")

    assert [each["session"] for each in logs.named("snapshot_ignored")] == ["s"]
    assert [each["session"] for each in logs.named("marks_taken_over")] == ["other"]


def test_a_snapshot_that_is_ahead_of_an_older_copy_of_the_log_is_ignored(
    filled: Path, tmp_path: Path, logs: CapturedLogs
) -> None:
    path = tmp_path / "store"
    fill(path, events=300)
    shutil.copytree(path, older := tmp_path / "older")
    fill(path, events=900)
    shutil.copy(directory(path) / "marks.snapshot", directory(older))
    with opened(older) as runtime:
        session = runtime.session("s")
        assert session.jobs() == folded(older)
        for _ in range(30):  # and not when the numbers are given anew either, to other events
            session.append_many([("x", number) for number in range(40)])
        assert session.jobs() == folded(older)
    shutil.copy(directory(path) / "marks.snapshot", directory(older))
    with opened(older) as runtime:
        assert runtime.session("s").jobs() == folded(older)
    assert {each["reason"] for each in logs.named("snapshot_ignored")} == {
        f"it goes to {logs.named('snapshot_ignored')[0]['reason'].split()[3].rstrip(',')}, the log to 300",
        "it is of another log",
    }


def test_marks_do_not_hide_that_segments_were_taken_away(tmp_path: Path, logs: CapturedLogs) -> None:
    """Nobody pruned them, so they are lost: a snapshot that still counts their events is no answer."""
    fill(path := tmp_path / "store")
    lowest = min(directory(path).glob("*.jsonl"))
    lowest.rename(tmp_path / lowest.name)
    with opened(path) as runtime, pytest.raises(LogCorrupt, match="missing"):
        runtime.session("s").jobs()
    assert logs.named("snapshot_ignored")


def test_statuses_are_not_taken_over_from_other_rules(tmp_path: Path, logs: CapturedLogs) -> None:
    path = tmp_path / "store"
    with opened(path, job_status={"done": "success"}) as runtime:
        session = runtime.session("s")
        for _ in range(10):
            session.append_many([Envelope(type="done", job_id="j") for _ in range(20)])
            assert session.jobs()[0].status == "success"
    with opened(path, job_status={"done": "error"}) as runtime:
        assert runtime.session("s").jobs()[0].status == "error"
    assert logs.named("marks_not_taken_over")


def test_rules_that_are_functions_are_applied_to_the_log_each_time(tmp_path: Path, logs: CapturedLogs) -> None:
    path = tmp_path / "store"
    fill(path, job_status={"done": lambda payload: payload["status"]})
    assert not (directory(path) / "marks.snapshot").exists()
    fill(path, events=LIMITS.marks_unsaved_events_max)
    with opened(path, job_status={"done": lambda payload: payload["status"]}) as runtime:
        assert runtime.session("s").jobs() == folded(path)
    assert not logs.named("snapshot_ignored")


def test_a_repair_removes_what_was_derived_and_what_was_derived_before_is_not_kept(
    filled: Path, tmp_path: Path, logs: CapturedLogs
) -> None:
    path = tmp_path / "store"
    shutil.copytree(filled, path)
    with opened(path) as runtime:
        assert runtime.session("s").append("x", id="own") == EVENTS + 1
    assert len(list(directory(path).glob("*.ids"))) > 3
    segment = sorted(directory(path).glob("*.jsonl"))[2]
    data = bytearray(segment.read_bytes())
    data[5000] ^= 1
    segment.write_bytes(data)
    early = FileEventStore(path, limits=LIMITS)
    assert early.load_snapshot("s", "marks") is not None
    with opened(path) as runtime:
        runtime.store.repair("s")
        assert not [*directory(path).glob("*.ids"), *directory(path).glob("*.snapshot")]
        assert sum(mark.count for mark in runtime.session("s").jobs()) == EVENTS - 1
        assert runtime.session("s").jobs() == folded(path)
    early.save_snapshot("s", "marks", Snapshot(EVENTS, b"of the log before the repair"))
    kept = early.load_snapshot("s", "marks")
    assert kept is None or b"before the repair" not in kept.data
    assert logs.named("snapshot_unsaved")
    early.close()


def test_marks_that_cannot_be_saved_are_as_right_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    original = OsFiles.rename

    def refusing(source: str, target: str) -> None:
        if target.endswith(".snapshot"):
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(OsFiles, "rename", staticmethod(refusing))
    fill(path := tmp_path / "store", events=400)
    with opened(path) as runtime:
        assert runtime.session("s").jobs() == folded(path)
    assert logs.named("marks_unsaved")


# -- ids ------------------------------------------------------------------------------------------------------------


def append_ids(store: FileEventStore, ids: list[str], *, fresh: bool = False) -> list[int]:
    """Append one event for each id, as one commit, and return the numbers answered."""
    events = (encoded_event("x", {"pad": "x" * 60}, id=each) for each in ids)
    requests = tuple(request_of(each._replace(id_is_fresh=fresh)) for each in events)
    answers = store.append([SessionBatch("s", requests)])[0].answers
    assert all(isinstance(answer, Appended) for answer in answers), answers
    return [answer.first_seq for answer in answers if isinstance(answer, Appended)]


def ids_of(path: Path) -> dict[str, int]:
    store = FileEventStore(path, limits=LIMITS)
    found = {str(event.id): int(event.event_seq or 0) for event in store.read("s")}
    store.close()
    return found


def test_every_id_of_the_log_is_known_after_a_cold_open_without_reading_it(tmp_path: Path, logs: CapturedLogs) -> None:
    path = tmp_path / "store"
    store = FileEventStore(path, limits=LIMITS, durability="os")
    for number in range(0, EVENTS, 20):
        append_ids(store, [f"id-{random.Random(n).random()}" for n in range(number, number + 20)])
    store.close()
    known = ids_of(path)
    assert len(list(directory(path).glob("*.ids"))) == len(list(directory(path).glob("*.jsonl"))) - 1

    files = CountingFiles()
    store = FileEventStore(path, files=files, limits=LIMITS)
    assert append_ids(store, ["new"]) == [EVENTS + 1]
    assert files.counts["read_bytes"] < LOG_BYTES_MIN / 2
    for event_id, seq in random.Random(0).sample(sorted(known.items()), 300):
        assert append_ids(store, [event_id]) == [seq]
    store.close()
    assert not logs.named("id_table_made")


def test_an_id_that_logmark_made_can_be_retried_in_any_segment(tmp_path: Path, logs: CapturedLogs) -> None:
    """Whoever was told the id of an event, as in ``AppendUncertain``, may try again with it."""
    fill(path := tmp_path / "store")
    known = ids_of(path)
    assert sum(table.stat().st_size for table in directory(path).glob("*.ids")) < 400 * len(known) / 20
    files = CountingFiles()
    store = FileEventStore(path, files=files, limits=LIMITS, durability="os")
    assert append_ids(store, ["own"]) == [EVENTS + 1]
    assert files.counts["read_bytes"] < LOG_BYTES_MIN / 2
    assert not logs.named("id_table_made")
    for event_id, seq in random.Random(0).sample(sorted(known.items()), 100):
        assert append_ids(store, [event_id]) == [seq]
    assert logs.named("id_table_made")
    store.close()


@pytest.mark.parametrize("damage", [Path.unlink, *DAMAGES])
def test_a_table_that_is_not_whole_or_not_of_its_segment_changes_no_answer(
    damage: Callable[[Path], None], tmp_path: Path, logs: CapturedLogs
) -> None:
    path = tmp_path / "store"
    for session_id in ("other", "s"):
        store = FileEventStore(path, limits=LIMITS, durability="os")
        for number in range(0, 400, 20):
            batch = tuple(
                request_of(encoded_event("x", {"p": "x" * 60}, id=f"{session_id}-{number + n}")) for n in range(20)
            )
            store.append([SessionBatch(session_id, batch)])
        store.close()
    tables = sorted(directory(path).glob("*.ids"))
    assert len(tables) >= 2
    for table in tables:
        damage(table)
    store = FileEventStore(path, limits=LIMITS, durability="os")
    assert append_ids(store, [f"s-{number}" for number in (0, 150, 399)]) == [1, 151, 400]
    assert append_ids(store, ["new"]) == [401]
    store.close()
    assert logs.named("id_table_ignored") or damage in {Path.unlink, longer}
    assert logs.named("id_table_unsaved") or damage is not a_directory


@pytest.mark.parametrize("events", [60, 400])
def test_ids_are_those_of_the_log_after_another_process_has_repaired_it(events: int, tmp_path: Path) -> None:
    path = tmp_path / "store"
    one, two = (FileEventStore(path, limits=LIMITS, durability="os") for _ in range(2))
    for number in range(0, events, 20):
        append_ids(one, [f"id-{each}" for each in range(number, number + 20)])
    segment = min(directory(path).glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[3000] ^= 1
    segment.write_bytes(data)
    two.repair("s")
    known = ids_of(path)
    (lost,) = {f"id-{number}" for number in range(events)} - set(known)
    for event_id, seq in sorted(known.items()):
        assert append_ids(one, [event_id]) == [seq]
    assert append_ids(one, [lost]) == [events + 1]
    one.close()
    two.close()


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_exact_whatever_was_compacted_filtered_closed_or_opened_anew(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session_ids, "_RECENT_MAX", 8 if seed % 2 else 1000)
    monkeypatch.setattr(_session_ids, "_LOOKUPS_UNFILTERED", 3)
    monkeypatch.setattr(_session_ids, "_SLOT_BITS", 10)
    monkeypatch.setattr(_session_ids, "_SLOT_MASK", 2**10 - 1)
    monkeypatch.setattr(_session_ids, "_TABLES_IN_FILTER", 12)
    rng = random.Random(seed)
    limits = Limits(segment_bytes_max=4000, read_chunk_bytes=1000, open_sessions_max=1)
    stores = [FileEventStore(tmp_path / "store", limits=limits, durability="os") for _ in range(2)]
    known: dict[str, int] = {}
    through = 0
    for step in range(300):
        turn = rng.randrange(2)
        store = stores[turn]
        choice = rng.random()
        if choice < 0.05:
            store.close()
            stores[turn] = FileEventStore(tmp_path / "store", limits=limits, durability="os")
        elif choice < 0.1:
            store.append([SessionBatch("another", (request_of(encoded_event("x", id=f"a{step}")),))])
        elif choice < 0.13:
            store.reserve("s", through := through + rng.randrange(1, 5))
        elif choice < 0.5 and known:
            for event_id in rng.sample(sorted(known), min(len(known), 4)):
                assert append_ids(store, [event_id]) == [known[event_id]]
        else:
            made = [f"{rng.random()}" for _ in range(rng.choice((1, 1, 5, 12)))]
            seqs = append_ids(store, made, fresh=rng.random() < 0.3)
            assert seqs == list(range(through + 1, through + len(made) + 1))
            through += len(made)
            known.update(zip(made, seqs, strict=True))
    for store in stores:
        store.close()
    assert ids_of(tmp_path / "store") == known


def test_a_filter_made_late_knows_the_ids_of_the_last_segment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session_ids, "_LOOKUPS_UNFILTERED", 1)
    limits = Limits(segment_bytes_max=4000, open_sessions_max=1)
    store = FileEventStore(tmp_path / "store", limits=limits, durability="os")
    for number in range(50):
        append_ids(store, [f"id-{number:03}"])
    store.append([SessionBatch("another", (request_of(encoded_event("x", id="a")),))])  # the first one is idle now
    assert [append_ids(store, [f"id-{number:03}"]) for number in (0, 49, 30)] == [[1], [50], [31]]
    store.close()


# -- appends and reads ----------------------------------------------------------------------------------------------


def cost_of(files: CountingFiles, action: Callable[[], object]) -> Counter[str]:
    before = Counter(files.counts)
    action()
    return files.counts - before


@pytest.mark.parametrize("fresh", [True, False])
def test_an_append_does_the_same_on_a_long_log_as_on_a_short_one(fresh: bool, filled: Path, tmp_path: Path) -> None:
    costs: list[Counter[str]] = []
    shutil.copytree(filled, tmp_path / "long")
    for name in ("long", "short"):
        files = CountingFiles()
        store = FileEventStore(tmp_path / name, files=files, limits=Limits(), durability="os")
        for event_id in ("first", "second"):
            append_ids(store, [event_id], fresh=fresh)
        costs.append(cost_of(files, lambda at=store: append_ids(at, ["third"], fresh=fresh)))  # type: ignore[misc]
        store.close()
    assert costs[0] == costs[1]
    assert costs[0]["listdir"] == costs[0]["open"] == 0


def test_a_read_from_a_number_touches_what_follows_it(filled: Path) -> None:
    files = CountingFiles()
    store = FileEventStore(filled, files=files, limits=LIMITS)
    store.info("s")
    cost = cost_of(files, lambda: list(store.read("s", from_seq=EVENTS - 9)))
    assert cost["read_bytes"] < 20_000
    assert cost["listdir"] == 1
    store.close()


def test_a_session_whose_files_were_closed_is_opened_again_without_looking_for_its_end(tmp_path: Path) -> None:
    """With many more sessions than descriptors, each append opens three files and compares, and reads no rows."""
    files = CountingFiles()
    limits = Limits(open_sessions_max=1)
    store = FileEventStore(tmp_path / "store", files=files, limits=limits, durability="os")
    told: list[str] = []

    def append(session_id: str) -> None:
        store.append([SessionBatch(session_id, (request_of(encoded_event("x", id=f"{session_id}-{len(told)}")),))])
        told.append(session_id)

    for session_id in ("a", "b", "a", "b"):
        append(session_id)
    cost = cost_of(files, lambda: append("a"))
    assert (cost["open"], cost["listdir"]) == (3, 0)
    assert cost["read_bytes"] < 200
    store.close()


def test_an_idle_session_has_no_thread_no_descriptor_and_little_memory(tmp_path: Path) -> None:
    sessions, limits = 400, Limits(open_sessions_max=8)
    with logmark.open(str(tmp_path / "store"), limits=limits, durability="os") as runtime:
        runtime.session("first").append("job.event", job_id="j")
        runtime.session("first").jobs()
        gc.collect()
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        tracemalloc.start()
        try:
            for number in range(sessions):
                runtime.session(f"s{number}").append("message.created", {"n": number})
            gc.collect()
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert threading.active_count() <= threads + limits.persist_threads_max
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 3 * limits.open_sessions_max
        assert used / sessions < 16_000
