"""The README keeps its word: its commands exist and work, its program runs and prints what it should."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INGEST = "python -m pip install . && logmark ingest tests/data/arcp-wire.jsonl --store ./logmark-data"
TESTS = "python -m pip install -e '.[test]' && python -m pytest"


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return every command of the shell blocks, the parts of ``a && b`` each alone."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    return [part.strip() for line in lines for part in line.split("&&")]


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_the_two_commands_stand_there_as_they_are() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]

    assert lines.count(INGEST) == 1
    assert lines.count(TESTS) == 1
    assert TESTS in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_what_it_is_is_said_in_five_lines_before_anything_else() -> None:
    title, empty, *rest = README.splitlines()

    assert (title, empty) == ("# logmark", "")
    assert rest.index("") == 5


def test_every_command_is_one_we_know() -> None:
    others = [command for command in commands() if not command.startswith("logmark ")]

    assert sorted(others) == ["python -m pip install -e '.[test]'", "python -m pip install .", "python -m pytest"]


def test_every_logmark_command_works_in_the_order_of_the_page(tmp_path: Path) -> None:
    """A reader who types what stands there, from the top of a checkout, sees each command succeed."""
    (tmp_path / "tests" / "data").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "data" / "arcp-wire.jsonl", tmp_path / "tests" / "data")
    outputs: dict[str, str] = {}
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "logmark":
            done = run(["-m", "logmark", *arguments], tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            outputs[arguments[0]] = done.stdout

    assert set(outputs) == {"ingest", "ls", "info", "view", "verify"}
    assert all(outputs.values())
    assert "sess_01M7XQ50QR84A170SF6H1NJFAK" in outputs["ls"]


@pytest.mark.parametrize("program", blocks("python"))
def test_the_program_runs_and_says_what_it_should(program: str, tmp_path: Path) -> None:
    done = run(["-c", program], tmp_path)
    lines = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert [int(line.split()[0]) for line in lines[:-1]] == list(range(1, 8))
    assert lines[-1] == "1 7 7 success"


def test_there_is_a_program() -> None:
    assert len(blocks("python")) == 1
