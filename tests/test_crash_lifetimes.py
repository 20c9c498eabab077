"""Power cuts at every step of pruning, sealing, deleting and keeping records leave one state or the other.

``LOGMARK_CRASHES_THOROUGH=1`` looks at five times as many states.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import pytest

from logmark.protocol import EncodedEvent
from logmark.storage import Appended, FileEventStore
from logmark.testing import FaultyFiles, encoded_event, request_of
from logmark.testing._crash_program import SESSION, Program
from logmark.testing._crash_states import CrashExplorer, Workload
from logmark.testing._faults import Crashed
from logmark.testing._power_cut import synced_state
from logmark.testing.conformance import append_events

Start = Callable[[], Program]
KILLED_STEPS = 100
THOROUGHLY = 5 if os.environ.get("LOGMARK_CRASHES_THOROUGH") else 1


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


def pruning(start: Start) -> None:
    """Within a segment, whole segments, all there is, and again; what is pruned by one is not read by another."""
    one, two = start(), start()
    for number in range(4):
        one.append(request_of(event(f"a{number}", 300), event(f"b{number}")))
    one.truncate_before(2)
    two.append(request_of(event("c", 200)))
    one.truncate_before(7)
    two.append(request_of(event("a0")), request_of(event("c")))
    two.truncate_before(11)
    one.append(request_of(event("d")))
    one.restart()
    one.read()
    one.truncate_before(12)
    two.append(request_of(event("e")))


def pruning_of_reserved_numbers(start: Start) -> None:
    program = start()
    program.append(request_of(event("a", 300)))
    program.reserve(9)
    program.truncate_before(5)
    program.append(request_of(event("b", 800)))
    program.reserve(19)
    program.truncate_before(20)
    program.restart()
    program.append(request_of(event("c")))


def pruning_on_a_disk_that_fails(start: Start) -> None:
    program = start()
    for number in range(4):
        program.append(request_of(event(f"e{number}", 700)))
    program.files.fail("rename", path="lifetime*")
    program.truncate_before(3)
    program.files.fail("sync_dir", path=SESSION)
    program.truncate_before(3)
    program.files.fail("unlink", path="*.jsonl")
    program.truncate_before(4)
    program.append(request_of(event("f")))
    program.truncate_before(4)
    program.halt()
    program.repair()
    program.append(request_of(event("g")))


def sealing(start: Start) -> None:
    one, two = start(), start()
    one.append(request_of(event("a")))
    two.append(request_of(event("b")))
    one.seal()
    two.append(request_of(event("c")), request_of(event("b")))
    two.truncate_before(2)
    two.truncate_before(3)
    one.append(request_of(event("d")))


def deleting(start: Start) -> None:
    one, two = start(), start()
    one.append(request_of(event("a", 800)))
    one.append(request_of(event("b", 800)))
    one.reserve(7)
    one.save_record("r", b"data")
    two.append(request_of(event("c")))
    one.delete()
    two.append(request_of(event("d")))
    two.delete()


def deleting_what_is_halted(start: Start) -> None:
    program = start()
    program.append(request_of(event("a")))
    program.files.fail("sync", path="*.jsonl")
    program.append(request_of(event("b")))
    program.repair()
    program.delete()


def ends_without_events(start: Start) -> None:
    one = start()
    one.save_record("r", b"1")
    one.seal()
    one.append(request_of(event("a")))
    one.delete()


def records(start: Start) -> None:
    one, two = start(), start()
    one.save_record("r", b"one")
    two.append(request_of(event("a")))
    two.save_record("r", b"two" * 500)
    one.save_record("q", b"")
    two.files.fail("rename", path="r.record*")
    two.save_record("r", b"three")
    one.save_record("r", b"four")
    one.append(request_of(event("b")))


def killed_while_pruning(step: int) -> Workload:
    """One process is killed at some step of pruning or of an end, and the other goes on."""

    def workload(start: Start) -> None:
        one, two = start(), start()
        one.append(request_of(event("a", 700)))
        two.append(request_of(event("b", 700)))
        one.append(request_of(event("c")))
        two.files.crash(n=step)
        with contextlib.suppress(Crashed):
            two.truncate_before(3)
            two.truncate_before(4)
            two.seal()
        one.append(request_of(event("d")))
        one.append(request_of(event("e")))

    return workload


LIFETIMES = (
    pruning,
    pruning_of_reserved_numbers,
    pruning_on_a_disk_that_fails,
    sealing,
    deleting,
    deleting_what_is_halted,
    ends_without_events,
    records,
)


# -- tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workload", LIFETIMES)
def test_a_power_cut_while_a_session_is_pruned_or_ended_leaves_one_state_or_the_other(workload: Workload) -> None:
    """Rows 12 and 54: and what was removed does not come back, in whole or in part, and no number is given again."""
    explorer = CrashExplorer(budget=18 * THOROUGHLY, budget_again=3, again_every=60 // THOROUGHLY)
    explorer.explore(workload, workload.__name__)

    assert explorer.violations[:3] == []


@pytest.mark.slow
def test_a_process_killed_while_it_prunes_or_seals_leaves_the_session_to_the_others() -> None:
    """Rows 12 and 54: at any step, and then the power is cut while another process goes on."""
    explorer = CrashExplorer(budget=8 * THOROUGHLY, budget_again=3, again_every=80 // THOROUGHLY)
    for step in range(1, KILLED_STEPS, 1 if THOROUGHLY > 1 else 7):
        explorer.explore(killed_while_pruning(step), f"killed_while_pruning({step})")

    assert explorer.violations[:3] == []


def test_nothing_rests_on_a_state_that_a_power_cut_takes_back() -> None:
    """Row 40: a process dies right after its mark was seen and before it was durable; the id is given anew by then."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, SESSION, event("a"), event("b"))
    other = files.another_process()
    other.crash("sync_dir", path=SESSION)
    with pytest.raises(Crashed):
        FileEventStore("/store", files=other).truncate_before(SESSION, 2)
    other.restart()
    assert append_events(store, SESSION, event("a")) == Appended(3, 3)

    after = FileEventStore("/store", files=FaultyFiles(synced_state(files.image())))
    assert after.info(SESSION).first_available == 2
    assert [(found.event_seq, found.id) for found in after.read(SESSION, from_seq=2)] == [(2, "b"), (3, "a")]
