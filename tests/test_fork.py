"""After a fork the parent's runtime is the parent's: the child is told so, and neither can disturb the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.errors import ForkedRuntime

WORKER = Path(__file__).parent / "workers" / "forked.py"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run_worker(mode: str, store: Path) -> list[dict[str, Any]]:
    # Newer Pythons warn that a fork in a process with threads is dangerous, which is what is tested here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(WORKER), mode, str(store)]
    run = subprocess.run(command, capture_output=True, check=False, timeout=60, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_fork
def test_every_use_in_the_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    child, parent = run_worker("uses", tmp_path)
    assert len(child["child"]) > 15
    assert set(child["child"].values()) == {"ForkedRuntime"}
    assert child["closed"] == "ForkedRuntime"
    assert parent == {"child_exit": 5, "numbers": list(range(2, 12)), "seen": True, "count": 11}


@needs_fork
@pytest.mark.parametrize(("mode", "code"), [("normal", 5), ("hard", 0), ("with block", 0)])
def test_a_child_that_leaves_closes_nothing_of_the_parents(tmp_path: Path, mode: str, code: int) -> None:
    child, parent = run_worker(mode, tmp_path)
    assert child == {"child": "leaves"}
    assert parent == {"child_exit": code, "numbers": list(range(2, 12)), "seen": True, "count": 11}


@needs_fork
def test_a_child_may_open_the_store_itself(tmp_path: Path) -> None:
    """And the parent's subscriber sees what the child has appended."""
    child, parent = run_worker("own", tmp_path)
    assert child == {"child": True, "count": 11}
    assert parent == {"child_exit": 5, "numbers": list(range(12, 22)), "seen": True, "count": 21}


@needs_fork
@pytest.mark.slow
def test_a_fork_at_any_moment_hangs_nobody(tmp_path: Path) -> None:
    (said,) = run_worker("often", tmp_path)
    assert said["exits"] == [0] * 20
    with logmark.open(str(tmp_path)) as runtime:
        events = list(runtime.session("s").read())
    assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
    assert sum(event.type == "child" for event in events) == 20


def test_spawned_processes_have_runtimes_of_their_own(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            program = (
                "import multiprocessing, sys\n"
                "import logmark\n"
                "def work(store):\n"
                "    with logmark.open(store) as runtime:\n"
                "        return [runtime.session('s').append('x') for _ in range(20)]\n"
                "if __name__ == '__main__':\n"
                "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
                "        numbers = pool.map(work, [sys.argv[1]] * 4)\n"
                "        pool.close()\n"
                "        pool.join()\n"
                "    assert sorted(sum(numbers, [])) == list(range(1, 81)), numbers\n"
            )
            script = tmp_path / "spawning.py"
            script.write_text(program)
            run = subprocess.run(
                [sys.executable, str(script), str(tmp_path)], capture_output=True, check=False, timeout=60, text=True
            )
            assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
            assert [subscription.get(20).event_seq for _ in range(80)] == list(range(1, 81))
        assert session.append("x") == 81


def test_the_error_says_what_to_do() -> None:
    assert "logmark.open() in the child" in str(ForkedRuntime(owner_pid=1, pid=2))
