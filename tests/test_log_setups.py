"""The structlog set-ups and the lnav format in ``examples/`` do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import logs
from logmark.testing import check_log_files

ROOT = Path(__file__).resolve().parent.parent
SETUPS = ROOT / "examples" / "structlog_setups.py"
FORMAT = ROOT / "examples" / "logmark.lnav.json"


def run_setup(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SETUPS), name], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_console_is_for_a_person() -> None:
    out = run_setup("console")
    assert re.search(r"^\d\d:\d\d:\d\d\.\d+ \[info +\] order_received +request_id=r-1", out, re.MULTILINE)
    assert "batch_persisted" in out
    assert "\x1b" not in out, "colours are for a terminal"


@pytest.mark.parametrize("name", ["json", "application"])
def test_production_logs_are_what_trace_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(run_setup(name), encoding="utf-8")
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"order_received", "batch_persisted", "session_closed"} <= {event["event"] for event in events}
    assert all((event.get("service") == "shop") == (name == "application") for event in events)
    assert all(event["session"] == "orders" for event in events if "runtime" not in event)
    reader = check_log_files([path])
    assert (reader.events, reader.others, reader.foreign) == (5, 4, 0)


def lnav_format() -> dict[str, Any]:
    found = json.loads(FORMAT.read_text(encoding="utf-8"))
    assert found.keys() == {"$schema", "logmark_log"}
    format_: dict[str, Any] = found["logmark_log"]
    return format_


def test_the_lnav_format_names_keys_that_there_are() -> None:
    format_ = lnav_format()
    page = (ROOT / "docs" / "log-events.md").read_text(encoding="utf-8")
    assert [key for key in format_["value"] if f"`{key}`" not in page] == []
    assert [level for level, pattern in format_["level"].items() if not re.fullmatch(pattern, level)] == []
    events = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    for highlight in format_["highlights"].values():
        assert set(re.compile(highlight["pattern"]).pattern.split("|")) <= events
    used = [part["field"] for part in format_["line-format"] if isinstance(part, dict)]
    assert set(used) - {"__timestamp__", "__level__"} <= format_["value"].keys()
    assert json.loads(format_["sample"][0]["line"])["event"] == "batch_broadcast"


@pytest.mark.skipif(shutil.which("lnav") is None, reason="needs lnav")
def test_lnav_reads_a_log_with_it(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with log.open("w", encoding="utf-8") as stream:
        logs.configure(json=True, stream=stream)
        with logmark.open("memory:") as runtime:
            runtime.session("orders").append_many([("x", 1), ("x", 2)])
            runtime.store.halt("orders", "on request")
            with pytest.raises(logmark.SessionHalted):
                runtime.session("orders").append("x")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"HOME": str(tmp_path), "TERM": "dumb"}

    def lnav(*arguments: str) -> str:
        done = subprocess.run(
            ["lnav", *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    lnav("-i", str(FORMAT))
    lnav("-C")
    question = (
        ";SELECT session, last_seq, log_level FROM logmark_log WHERE log_body IN ('batch_persisted', 'append_failed')"
    )
    table = lnav("-n", "-c", question, "-c", ":write-csv-to -", str(log))
    assert table.splitlines()[1:] == ["orders,2,info", "orders,<NULL>,warning"]
