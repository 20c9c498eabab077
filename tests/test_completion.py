"""``logmark completion``: each shell completes commands, options and sessions with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark.testing import CommandRun

Run = Callable[..., CommandRun]
Complete = Callable[[str], set[str]]


def needed(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{shell} is not installed")
        pytest.skip(f"{shell} is not installed")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with logmark.open(str(tmp_path / "store")) as runtime:
        for name in ("chat-42", "chat-43", "build"):
            runtime.session(name).append("x")
    return tmp_path / "store"


@pytest.fixture(params=["bash", "fish"])
def complete(request: pytest.FixtureRequest, run: Run, tmp_path: Path, store: Path) -> Complete:
    """Return what the shell offers for a command line, whose last word is the one to complete."""
    shell = needed(request.param)
    script = tmp_path / f"completion.{request.param}"
    script.write_text(run("completion", request.param).out, encoding="utf-8")
    environment = {**os.environ, "LOGMARK_STORE": str(store), "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    def offered(line: str) -> set[str]:
        if request.param == "bash":
            words = line.split(" ")
            quoted = " ".join(f"'{word}'" for word in words)
            program = (
                f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _logmark;"
                ' printf "%s\\n" "${COMPREPLY[@]}"'
            )
            ran = subprocess.run(
                [shell, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=False
            )
        else:
            program = f"source '{script}'; complete -C '{line}'"
            ran = subprocess.run(
                [shell, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=False
            )
        assert ran.returncode in {0, 1}, ran.stderr
        return {word.split("\t")[0] for word in ran.stdout.splitlines() if word}

    return offered


def test_commands_are_completed(complete: Complete) -> None:
    assert complete("logmark ver") == {"verify"}
    assert {"ingest", "ls", "view", "doctor", "completion"} <= complete("logmark ")


def test_options_are_those_of_the_command(complete: Complete) -> None:
    assert complete("logmark view --fo") == {"--follow"}
    assert complete("logmark ls --fo") == set()
    assert {"--store", "--json", "--long"} <= complete("logmark ls --")


def test_sessions_are_those_of_the_store(complete: Complete) -> None:
    assert complete("logmark view chat") == {"chat-42", "chat-43"}
    assert complete("logmark info b") == {"build"}


def test_zsh_takes_the_script(run: Run, tmp_path: Path) -> None:
    shell = needed("zsh")
    script = tmp_path / "_logmark"
    script.write_text(run("completion", "zsh").out, encoding="utf-8")
    program = f"autoload -Uz compinit; compinit -u -d '{tmp_path}/dump'; source '{script}'; print ${{_comps[logmark]}}"
    ran = subprocess.run(
        [shell, "-f", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "_logmark", "")


def test_a_shell_that_is_not_known_is_refused(run: Run) -> None:
    assert run("completion", "tcsh").code == 2
