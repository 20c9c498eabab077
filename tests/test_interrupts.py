"""Ctrl-C surfaces at once wherever the main thread is blocked, and the runtime stays usable and closable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import logmark

WORKER = Path(__file__).parent / "workers" / "interrupted.py"
BLOCKING = (
    "append",
    "append_many",
    "submit to a full inbox",
    "get",
    "get with a timeout",
    "iteration",
    "wait_for",
    "result",
    "close",
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a SIGINT can be sent to a process of its own kind")


@pytest.mark.parametrize("call", BLOCKING)
def test_an_interrupt_surfaces_and_the_runtime_goes_on(tmp_path: Path, call: str) -> None:
    run = subprocess.run(
        [sys.executable, str(WORKER), call, str(tmp_path)], capture_output=True, check=False, timeout=60, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    said = json.loads(run.stdout)
    assert said["interrupted"]
    assert said["end_s"] < 10
    with logmark.open(str(tmp_path)) as runtime:
        events = list(runtime.session("s").read())
    assert [event.event_seq for event in events] == list(range(1, len(events) + 1))
    if call != "close":
        assert said["appended"] == len(events)
        assert said["seen"] == list(range(1, len(events) + 1))
        assert events[-1].type == "y"
    # What was accepted before the interrupt is written all the same; only its answer found nobody.
    assert sum(event.type == "x" for event in events) == {
        "append": 1,
        "append_many": 1,
        "submit to a full inbox": 5,
        "result": 1,
        "close": 1,
    }.get(call, 0)


def test_a_program_that_is_interrupted_ends_like_any_other(tmp_path: Path) -> None:
    """Nothing is caught: Python's own traceback and exit code, and what was submitted is stored."""
    program = (
        "import os, signal, sys, threading, logmark\n"
        "runtime = logmark.open(sys.argv[1])\n"
        "session = runtime.session('s')\n"
        "for n in range(100): session.submit('x', n)\n"
        "subscription = session.subscribe()\n"
        "threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "for event in subscription: pass\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False, timeout=60, text=True
    )
    assert run.returncode == -signal.SIGINT
    assert run.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in run.stderr
    with logmark.open(str(tmp_path)) as runtime:
        assert runtime.session("s").last_seq == 100


def test_a_handler_may_end_the_program_in_an_orderly_way(tmp_path: Path) -> None:
    """SIGTERM turned into SystemExit: the with-block closes, everything accepted is stored, the exit code is kept."""
    program = (
        "import os, signal, sys, threading, logmark\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "with logmark.open(sys.argv[1]) as runtime:\n"
        "    session = runtime.session('s')\n"
        "    for n in range(100): session.submit('x', n)\n"
        "    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        "    session.wait_for(101)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False, timeout=60, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (7, "", "")
    with logmark.open(str(tmp_path)) as runtime:
        assert runtime.session("s").last_seq == 100
