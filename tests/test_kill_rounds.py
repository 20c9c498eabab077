"""Kill the writers without warning, again and again, on the real disk: no acknowledged event is ever lost.

``LOGMARK_KILL_ROUNDS`` says how many rounds (200 and more for a soak), ``LOGMARK_KILL_SEED`` makes the workload, though
not the moments of the kills, the same as in an earlier run.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import logmark
from logmark.storage import FileEventStore
from logmark.testing import check_log_files

WORKER = Path(__file__).with_name("workers") / "append_until_killed.py"
ROUNDS = int(os.environ.get("LOGMARK_KILL_ROUNDS", "40"))
SESSIONS = 4
THREADS = 3
ACKNOWLEDGED_MAX = 60


class Attempt(NamedTuple):
    """An append: who made it, and its place among those of its thread."""

    process: str
    thread: int
    place: int


@dataclasses.dataclass
class Ledger:
    """What was told of one session, and how far that was compared with the log."""

    told: dict[Attempt, tuple[int, int]] = dataclasses.field(default_factory=dict)
    checked_seq: int = 0


def start(store: Path, process: str, seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(store), process, str(SESSIONS), str(THREADS), seed, f"{store}.log"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], acknowledged: int) -> list[str]:
    """Kill a process once it has said so much, and return all that it has said."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        lines = list(itertools.islice(process.stdout, acknowledged))
        process.kill()
        # What is still in the pipe was acknowledged too.
        told = [*lines, *process.stdout]
        assert len(lines) == acknowledged, process.stderr.read()
    return told


def check_round(store: Path, ledgers: dict[str, Ledger], last_place: dict[tuple[str, int], int]) -> None:
    """Compare what the round has added to each session with what was told of it."""
    with logmark.open(str(store)) as runtime:
        for name, ledger in ledgers.items():
            session = runtime.session(name)
            events = list(session.read(ledger.checked_seq + 1))
            assert [event.event_seq for event in events] == [
                ledger.checked_seq + place for place in range(1, len(events) + 1)
            ], "numbers are dense"
            found: dict[Attempt, tuple[int, int]] = {}
            for by, group in itertools.groupby(events, key=lambda event: Attempt(*event.payload["by"])):
                parts = list(group)
                assert [part.payload["part"] for part in parts] == list(range(parts[0].payload["of"])), "whole or not"
                assert by not in found, "once"
                found[by] = (parts[0].event_seq or 0, parts[-1].event_seq or 0)
            assert {by: found.get(by) for by in ledger.told} == ledger.told, "acknowledged and lost, or changed"
            for by in set(found) - set(ledger.told):
                assert by.place == last_place.get((by.process, by.thread), -1) + 1, "only an append under way is there"
            ledger.told.clear()
            ledger.checked_seq = session.last_seq


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * ROUNDS)
def test_no_acknowledged_event_is_lost_by_a_kill(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Rows 12, 28, 30, 31: several sessions, threads and, in some rounds, processes; batches; tiny segments."""
    seed = os.environ.get("LOGMARK_KILL_SEED") or str(random.SystemRandom().getrandbits(32))
    record_property("seed", seed)
    sys.stdout.write(f"LOGMARK_KILL_SEED={seed}\n")  # shown when the test fails
    chance = random.Random(seed)
    store = tmp_path / "store"
    FileEventStore(store).close()
    ledgers = {f"s{number}": Ledger() for number in range(SESSIONS)}
    for number in range(ROUNDS):
        abreast = chance.choice((1, 1, 2))
        processes = [start(store, f"{number}-{each}", f"{seed} {number}") for each in range(abreast)]
        last_place: dict[tuple[str, int], int] = {}
        for process in processes:
            for line in kill_after(process, chance.randint(1, ACKNOWLEDGED_MAX)):
                name, by, thread, place, first, last = line.split()
                ledgers[name].told[Attempt(by, int(thread), int(place))] = (int(first), int(last))
                last_place[by, int(thread)] = int(place)
        check_round(store, ledgers, last_place)
    whole = FileEventStore(store)
    for name, ledger in ledgers.items():
        assert whole.verify(name) == []
        assert [event.event_seq for event in whole.read(name)] == list(range(1, ledger.checked_seq + 1))
    whole.close()
    assert check_log_files([f"{store}.log"]).events > ROUNDS, "and the processes' own logs say the same"
