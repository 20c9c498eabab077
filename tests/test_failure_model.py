"""The page on failures names tests that are there, leaves no fault out, and its safeguards are still in the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "failure-model.md").read_text(encoding="utf-8")
FAULTS = 39


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(test_\w+)(?:::(test_\w+))?`", PAGE)
    assert len(named) > 60
    missing = [
        f"{module}::{name}"
        for module, name in named
        if not (path := TESTS / f"{module}.py").is_file()
        or (name and not re.search(rf"^ *def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    ]
    assert missing == []


def test_every_fault_has_its_line() -> None:
    numbered = [int(number) for number in re.findall(r"^(?:\| |\*\*)(\d+)(?: \||:)", PAGE, re.MULTILINE)]
    assert sorted(numbered) == list(range(1, FAULTS + 1))


def test_every_line_names_the_test_that_shows_it() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", PAGE, re.MULTILINE)
    assert [row for row in rows if not re.search(r"\| `test_[^|]*\|$", row)] == []


def test_every_safeguard_is_still_where_it_is_taken_out() -> None:
    """``tests/mutations`` names lines of the code: who changes one of them says there what the line is now."""
    check = [sys.executable, str(TESTS / "mutations" / "run.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
