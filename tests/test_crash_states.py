"""Power cuts at every step of every kind of write: nothing told is lost, nothing half-written is seen."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from collections.abc import Callable, Iterator

import pytest

from logmark.protocol import AppendError, EncodedEvent, Limits, LogmarkError
from logmark.storage import Appended, FileEventStore, SessionBatch
from logmark.storage._segment import RowCheck
from logmark.storage._session_log import SessionLog
from logmark.testing import ManualClock, encoded_event, request_of
from logmark.testing._crash_program import SESSION, Program
from logmark.testing._crash_states import CrashExplorer, Workload
from logmark.testing._faults import Crashed
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing._promises import StoredEvent, stored_events

Start = Callable[[], Program]
STATES_MIN = 10_000
COURSES = 200


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the warnings of ten thousand recoveries out of the report."""
    logger = logging.getLogger("logmark")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


def event(name: str, size: int = 4) -> EncodedEvent:
    return encoded_event("note", {"text": f"{name} ".ljust(size, "x")}, id=name)


# -- workloads ------------------------------------------------------------------------------------------------------


def single_appends(start: Start) -> None:
    program = start()
    for number, size in enumerate((4, 300, 1400, 4)):
        program.append(request_of(event(f"e{number}", size)))
    program.reopen()
    program.append(request_of(event("e9")))


def an_append_and_a_batch(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.append(request_of(event("b")), request_of(event("c"), event("d", 20)))


def batches(start: Start) -> None:
    program = start()
    program.append(request_of(event("a", 150), event("b", 500)), request_of(event("c")))
    program.append(request_of(event("d")), request_of(event("e", 900), event("f")), request_of(event("g")))


def a_batch_of_many_pages(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.append(request_of(event("b", 5000), event("c", 3000), event("d", 200)), request_of(event("e", 2000)))


def rotation(start: Start) -> None:
    program = start()
    for number in range(5):
        program.append(request_of(event(f"e{number}", 400)))
    program.restart()
    program.append(request_of(event("e9", 700)))


def reservations(start: Start) -> None:
    program = start()
    program.reserve(3)
    program.append(request_of(event("a")))
    program.reserve(10)
    program.reserve(7)
    program.restart()
    program.append(request_of(event("b", 500)))
    program.reserve(20)
    program.append(request_of(event("c", 500)))
    program.reserve(30)
    program.append(request_of(event("d", 900)))


def reservation_at_the_end_of_a_segment(start: Start) -> None:
    program = start()
    program.append(request_of(event("a", 850)))
    program.reserve(9)
    program.append(request_of(event("b", 850)))
    program.reserve(19)


def head_that_cannot_be_written(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.fail("write", error=errno.EIO, path="head")
    program.append(request_of(event("b")))
    program.files.short("write", size=40, path="head")
    program.append(request_of(event("c")))
    program.append(request_of(event("d")))
    program.files.fail("write", error=errno.ENOSPC, path="head", times=2)
    program.append(request_of(event("e")))
    program.restart()
    program.append(request_of(event("f")))


def full_disk(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.short("write", size=120, path="*.jsonl")
    program.files.fail("write", 2, error=errno.ENOSPC, path="*.jsonl")
    program.append(request_of(event("b"), event("c")))
    program.append(request_of(event("d")))
    program.files.short("write", size=400, path="*.jsonl")
    program.files.fail("write", 2, error=errno.EDQUOT, path="*.jsonl")
    program.append(request_of(event("e")), request_of(event("f", 300), event("g")))
    program.append(request_of(event("h", 600)))
    program.files.fail("write", error=errno.ENOSPC, path="*.jsonl.new")
    program.append(request_of(event("i", 600)))
    program.append(request_of(event("j", 600)))


def full_disk_at_the_last_byte(start: Start) -> None:
    """All of a commit is written but its newline, which a recovery would take for whole: the roll-back must hold."""
    program = start()
    program.append(request_of(event("a"), event("b")))
    rows = next(op for op in reversed(program.files.operations) if op.name == "write" and op.path.endswith(".jsonl"))
    program.files.short("write", size=(rows.size or 0) - 1, path="*.jsonl")
    program.files.fail("write", 2, error=errno.ENOSPC, path="*.jsonl")
    program.append(request_of(event("c"), event("d")))
    program.append(request_of(event("e")))


def roll_back_that_fails(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.short("write", size=200, path="*.jsonl")
    program.files.fail("write", 2, error=errno.ENOSPC, path="*.jsonl")
    program.files.fail("truncate", error=errno.EIO, path="*.jsonl")
    program.append(request_of(event("b"), event("c")))
    program.clear_halt()
    program.append(request_of(event("d")))


def failed_sync(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.fail("sync", path="*.jsonl")
    program.append(request_of(event("b", 200)), request_of(event("c")))
    program.clear_halt()
    program.append(request_of(event("b", 200)))
    program.read()
    program.append(request_of(event("d", 4500)))
    program.append(request_of(event("e")))


def failed_sync_then_repair(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.fail("sync", path="*.jsonl")
    program.append(request_of(event("b", 200)), request_of(event("c")))
    program.repair()
    program.read()
    program.append(request_of(event("d")))


def failed_sync_and_restart(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.fail("sync", path="*.jsonl")
    program.append(request_of(event("b", 200)))
    program.restart()
    program.clear_halt()
    program.read()
    program.append(request_of(event("c")))


def halting(start: Start) -> None:
    program = start()
    program.halt()
    program.clear_halt()
    program.append(request_of(event("a")))
    program.halt()
    program.restart()
    program.append(request_of(event("b")))
    program.clear_halt()
    program.append(request_of(event("b")))


def retries(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")), request_of(event("b"), event("c")))
    program.append(request_of(event("a")), request_of(event("d")), request_of(event("d")))
    program.append(request_of(event("b"), event("c")), request_of(event("c"), event("e")))
    program.append(request_of(event("f"), expected_seq=4), request_of(event("g"), expected_seq=4))
    program.restart()
    program.append(request_of(event("d")), request_of(event("h")))


def snapshots(start: Start) -> None:
    """What is derived may be torn, lost, of an older log or of one before a repair: it is right or it is not used."""
    program = start()
    program.append(request_of(event("a", 300)), request_of(event("b")))
    program.save_snapshot()
    program.append(request_of(event("c", 700)))
    program.save_snapshot()
    program.files.fail("sync", path="*.jsonl")
    program.append(request_of(event("d", 200)))
    program.repair()
    program.save_snapshot()
    program.append(request_of(event("e", 900)))
    program.save_snapshot()


def turns(start: Start) -> None:
    one, two = start(), start()
    for number in range(3):
        one.append(request_of(event(f"one{number}", 300)))
        two.append(request_of(event(f"two{number}", 200)))
    one.reserve(9)
    two.append(request_of(event("two9")))
    one.append(request_of(event("two0")), request_of(event("one9")))


def torn_tail(start: Start) -> None:
    """What is left has sound rows, and the next commit is shorter: together they must not look like damage."""
    program = start()
    program.append(request_of(event("a")))
    program.files.short("write", size=700, path="*.jsonl")
    program.files.crash("write", 2, path="*.jsonl")
    with pytest.raises(Crashed):
        program.append(request_of(event("b", 200)), request_of(event("c")), request_of(event("d", 300)))
    program.restart()
    program.read()
    program.append(request_of(event("e")))


def killed_in_turn(step: int) -> Workload:
    """Two processes take turns; one is killed at some step of its append, and what the other appends is shorter."""

    def workload(start: Start) -> None:
        one, two = start(), start()
        one.append(request_of(event("a")))
        two.append(request_of(event("b")))
        one.append(request_of(event("c")))
        two.files.crash(n=step)
        with contextlib.suppress(Crashed):
            two.append(request_of(event("d", 200)), request_of(event("e")))
        one.append(request_of(event("f")))
        one.append(request_of(event("g")))

    return workload


def killed_at_a_new_segment(step: int) -> Workload:
    """As before, on a segment that is full for the one that is killed, and not for the other."""

    def workload(start: Start) -> None:
        one, two = start(), start()
        one.append(request_of(event("a", 300)))
        two.append(request_of(event("b", 300)))
        one.append(request_of(event("c", 300)))
        two.files.crash(n=step)
        with contextlib.suppress(Crashed):
            two.append(request_of(event("d", 40)), request_of(event("e", 900)))
        one.append(request_of(event("f", 20)))
        one.append(request_of(event("g", 900)))

    return workload


def killed_at_the_start(step: int) -> Workload:
    """One process is killed while it makes the store and its first session; another goes on."""

    def workload(start: Start) -> None:
        one, two = start(), start()
        one.files.crash(n=step)
        with contextlib.suppress(Crashed):
            one.append(request_of(event("a")))
        two.append(request_of(event("b")))

    return workload


def course_of_chance(seed: int) -> Workload:
    """Two processes do this and that on a disk that fails now and then, and die now and then, or lose power."""

    def workload(start: Start) -> None:
        rng = random.Random(seed)
        programs = [start(), start()]
        names = [f"e{number}" for number in range(200)]  # the last ones are used first
        for _ in range(rng.randrange(4, 16)):
            program = rng.choice(programs)
            if rng.random() < 0.5:
                rates = {"failure_rate": rng.choice((0, 0.02, 0.1)), "crash_rate": rng.choice((0, 0, 0.01, 0.05))}
                program.files.fail_at_random(rng, short_rate=rng.choice((0, 0.1)), **rates)
            try:
                one_step(program, rng, names)
            except Crashed:
                program.restart()
            except LogmarkError:
                pass  # typed, and no promise: what it means for the log is seen at the end
            for other in programs:
                other.files.heal()
            if rng.random() < 0.05:
                program.files.power_cut(rng)
                for other in programs:
                    other.restart()
            program.promises.halted = frozenset({False, True})  # a failing disk may halt at any recovery

    return workload


def one_step(program: Program, rng: random.Random, names: list[str]) -> None:
    def an_event() -> EncodedEvent:
        size = rng.choice((4, 100, 400, 700))
        if rng.random() < 0.15:  # a name that may have been used already: a retry or a conflict
            return event(f"e{len(names) + rng.randrange(3)}", size)
        name = names.pop()
        if rng.random() < 0.3:
            return event(f"fresh {name}", size)._replace(id_is_fresh=True)
        return event(name, size)

    choice = rng.random()
    if choice < 0.6:
        sizes = [rng.choice((1, 1, 2, 3)) for _ in range(rng.choice((1, 1, 2, 3)))]
        program.append(*(request_of(*(an_event() for _ in range(size))) for size in sizes))
    elif choice < 0.7:
        program.reserve(rng.randrange(1, 30))
    elif choice < 0.8:
        program.restart()
    elif choice < 0.85 and program.store.halted(SESSION) is None:
        program.save_snapshot()
    elif program.store.halted(SESSION) is None:
        program.read()
    else:
        program.files.heal()
        (program.clear_halt if rng.random() < 0.5 else program.repair)()


WORKLOADS = (
    single_appends,
    batches,
    a_batch_of_many_pages,
    rotation,
    reservations,
    reservation_at_the_end_of_a_segment,
    head_that_cannot_be_written,
    full_disk,
    full_disk_at_the_last_byte,
    roll_back_that_fails,
    failed_sync,
    failed_sync_then_repair,
    failed_sync_and_restart,
    halting,
    retries,
    snapshots,
    turns,
    torn_tail,
)


# -- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_power_cut_leaves_what_callers_were_told(
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Rows 12, 28, 29, 30, 31 and 35, and that neither a reader nor a retry nor a restart ever sees anything else.

    What is appended, retried, rolled back, reserved, halted, repaired or rotated, by one process or by two: whenever
    the power goes, a fresh store reads what callers had been told, whole commits and nothing else beside it, and goes
    on with the next number.
    """
    explorer = CrashExplorer()
    explorer.explore(an_append_and_a_batch, "torn at every byte", budget=5000)
    for workload in WORKLOADS:
        explorer.explore(workload, workload.__name__)
    record_testsuite_property("crash_states", explorer.states)

    assert explorer.violations[:3] == []
    assert explorer.states >= STATES_MIN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "steps"), [(killed_in_turn, 30), (killed_at_a_new_segment, 48), (killed_at_the_start, 44)]
)
def test_a_process_killed_at_any_step_leaves_the_log_to_the_others(
    family: Callable[[int], Workload], steps: int, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Row 12: and then the power is cut while another process goes on."""
    explorer = CrashExplorer(budget=60, budget_again=6, again_every=24)
    for step in range(1, steps):
        explorer.explore(family(step), f"{family.__name__}({step})")
    record_testsuite_property(f"crash_states_{family.__name__}", explorer.states)

    assert explorer.violations[:3] == []


def append(store: FileEventStore, added: EncodedEvent) -> Appended | AppendError:
    return store.append([SessionBatch(SESSION, (request_of(added),))])[0].answers[0]


def stored(seq: int, added: EncodedEvent) -> StoredEvent:
    return StoredEvent(seq, added.id, added.type, added.payload_json)


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_a_killed_process_loses_nothing_it_has_told(durability: str) -> None:
    """Row 12: the page cache outlives the process, so this holds without any sync."""
    completed = False
    step = 0
    while not completed:
        step += 1
        files = FaultyFiles()
        store = FileEventStore("/store", files=files, clock=ManualClock(), durability=durability)
        files.crash(n=step)
        told: list[StoredEvent] = []
        try:
            for number in range(1, 4):
                answer = append(store, event(f"e{number}", 500))
                assert answer == Appended(number, number)
                told.append(stored(number, event(f"e{number}", 500)))
            completed = True
        except Crashed:
            pass
        files.heal()
        files.restart()
        after = FileEventStore("/store", files=files, clock=ManualClock(), durability=durability)
        found = stored_events(after.read(SESSION))

        assert list(found[: len(told)]) == told, step
        assert len(found) <= len(told) + 1, step
        assert append(after, event("next")) == Appended(len(found) + 1, len(found) + 1), step


@pytest.mark.slow
def test_histories_made_by_chance_end_as_callers_were_told(
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Two processes append, retry, reserve, read and restart, on a disk that fails, at whatever moment, by chance."""
    explorer = CrashExplorer(limits=Limits(segment_bytes_max=1000, lock_wait_s=0.001, read_chunk_bytes=300))
    for seed in range(COURSES):
        explorer.explore_end(course_of_chance(seed), f"seed {seed}", random.Random(seed))
    record_testsuite_property("crash_states_by_chance", explorer.states)

    assert explorer.violations[:3] == []


# -- and it would notice --------------------------------------------------------------------------------------------


def without_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FaultyFiles, "sync", lambda *_: None)


def without_sync_of_directories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FaultyFiles, "sync_dir", lambda *_: None)


def without_checksums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RowCheck, "is_sound", lambda _, line: line.startswith(b'{"v":1,') and line.endswith(b'"}'))


def without_looking_at_the_tail_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionLog, "_tail_is_current", lambda log: log._tail is not None)


@pytest.mark.parametrize(
    ("breakage", "workload", "seen"),
    [
        (without_sync, single_appends, "found   [] then 1\n  allowed [1:e0] then 2"),
        (without_sync_of_directories, single_appends, "found   [] then 1\n  allowed [1:e0] then 2"),
        (without_checksums, turns, "JSONDecodeError"),
        (without_looking_at_the_tail_again, turns, "possible [1:one0 2:two0 3:one1] then 4"),
    ],
)
def test_a_broken_store_is_found_out(
    breakage: Callable[[pytest.MonkeyPatch], None], workload: Workload, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = CrashExplorer(budget=200, again_every=1000)
    with monkeypatch.context() as patch:
        breakage(patch)
        explorer.explore(workload, workload.__name__)

    assert any(seen in violation for violation in explorer.violations), explorer.violations[:3]
