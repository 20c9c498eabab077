"""The pages are true as far as a machine can tell: programs run, links lead somewhere, names exist."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import logmark

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
LOG_EVENTS = TEXTS["docs/log-events.md"]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run(program: str, cwd: Path) -> None:
    """Run a program as a reader would, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    unexpected = [line for line in done.stderr.splitlines() if not line.startswith("event=")]  # a log event is none
    assert (done.returncode, unexpected) == (0, []), done.stderr


IN_STEPS = ("docs/howto/", "docs/tutorial.md")  # tests/test_howtos.py runs them, commands and all


@pytest.mark.parametrize(
    "page", [name for name, text in TEXTS.items() if blocks(text, "python") and not name.startswith(IN_STEPS)]
)
def test_the_programs_of_a_page_run(page: str, tmp_path: Path) -> None:
    run("\n".join(blocks(TEXTS[page], "python")), tmp_path)


def test_the_example_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    lasts: list[int] = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", str(ROOT / "examples" / "embed.py"), "data"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        found = re.search(r"^after a restart: (\d+) events$", done.stdout, flags=re.MULTILINE)
        assert found is not None
        lasts.append(int(found[1]))

    assert lasts == [19, 38]


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings have, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    dead: list[str] = []
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            found = (ROOT / name).parent / path if path else ROOT / name
            if not found.exists() or (anchor and anchor not in anchors(found.read_text(encoding="utf-8"))):
                dead.append(f"{name}: {target}")

    assert dead == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {"README.md"}
    waiting = ["README.md"]
    while waiting:
        name = waiting.pop()
        for target in re.findall(r"\]\(([^)#\s]+\.md)\)", TEXTS[name]):
            page = os.path.normpath(os.path.join(os.path.dirname(name), target))
            if page in TEXTS and page not in reached:
                reached.add(page)
                waiting.append(page)

    assert set(TEXTS) - reached == set()


def owners() -> dict[str, Any]:
    """Return what the pages name members of."""
    found: dict[str, Any] = {"logmark": logmark}
    for module in (logmark, logmark.errors, logmark.protocol, logmark.storage, logmark.actors):
        found.update({name: getattr(module, name) for name in module.__all__ if name[0].isupper()})
    found.update(
        {name: getattr(logmark, name) for name in ("errors", "protocol", "storage", "actors", "logs", "testing")}
    )
    return found


def test_names_in_the_pages_exist() -> None:
    """``Limits.inbox_wait_s``, ``logmark.logs.configure(…)`` and their like: every dotted name of ours in backticks."""
    known = owners()
    unknown: list[str] = []
    for name, text in TEXTS.items():
        for dotted in re.findall(r"`(?:with )?([A-Za-z_]+(?:\.[A-Za-z_]\w*)+)", text):
            first, *members = dotted.split(".")
            owner = known.get(first)
            if owner is None:
                continue
            for member in members:
                fields = getattr(owner, "__annotations__", {})
                if not hasattr(owner, member) and member not in fields and not sets_attribute(owner, member):
                    unknown.append(f"{name}: {dotted}")
                    break
                owner = getattr(owner, member, None)

    assert unknown == []


def sets_attribute(owner: Any, name: str) -> bool:
    """Say whether a class gives its instances an attribute."""
    return inspect.isclass(owner) and re.search(rf"\bself\.{name}\b", inspect.getsource(owner)) is not None


def test_limits_in_the_pages_have_the_values_that_stand_beside_them() -> None:
    claims = re.findall(r"`Limits\.(\w+)` \((\d+)(?: s)?\)", TEXTS["docs/threading.md"])
    limits = logmark.Limits()

    assert len(claims) >= 5
    assert [(name, float(value)) for name, value in claims] == [(name, getattr(limits, name)) for name, _ in claims]


def test_the_table_of_errors_is_complete_and_right() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|no|) ?\|", TEXTS["docs/errors.md"], flags=re.MULTILINE)
    rejected = logmark.AppendRejected

    assert sorted(name for name, _ in rows) == sorted(name for name in logmark.errors.__all__ if name[0].isupper())
    for name, said in rows:
        error = getattr(logmark.errors, name)
        assert (said == "yes") == issubclass(error, rejected), name
        assert (said == "no") == issubclass(error, logmark.AppendUncertain), name


def documented(prefix: str, value: Any) -> list[str]:
    """Return the public names at and below a value that have no docstring of their own."""
    missing: list[str] = []
    text = getattr(value, "__doc__", None)
    if not text or (inspect.isclass(value) and text.startswith(f"{value.__name__}(")):
        missing.append(prefix)
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property | classmethod)):
                missing += [] if member.__doc__ else [f"{prefix}.{name}"]
    return missing


def test_every_public_name_has_a_docstring() -> None:
    missing: list[str] = []
    for name in logmark.__all__:
        value = getattr(logmark, name)
        missing += documented(name, value)
        if isinstance(value, ModuleType):
            for inner in value.__all__:
                found = getattr(value, inner)
                if inspect.isclass(found) or inspect.isroutine(found):
                    missing += documented(f"{name}.{inner}", found)

    assert missing == []


# -- the worked example of docs/log-events.md ------------------------------------------------------------------------

VOLATILE = re.compile(r"timestamp|submitted_first|submitted_last|\w+_ms|store|bytes|runtime|pid")


def shape(lines: list[str]) -> list[str]:
    """Return the events without what differs from run to run, in an order that does not."""
    events = [json.loads(line) for line in lines]
    return sorted(
        json.dumps({name: None if VOLATILE.fullmatch(name) else value for name, value in event.items()})
        for event in events
    )


def test_the_log_in_the_page_is_what_its_program_writes(tmp_path: Path) -> None:
    (program,) = blocks(LOG_EVENTS, "python")
    run(program, tmp_path)
    written = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()

    assert shape(blocks(LOG_EVENTS, "json")[0].splitlines()) == shape(written)


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_questions_in_the_page_have_the_answers_beside_them(tmp_path: Path) -> None:
    (program,) = blocks(LOG_EVENTS, "python")
    run(program, tmp_path)  # for the store; the log is then the page's own
    log, *answers = re.findall(r"^```(?:json|text)\n(.*?)^```$", LOG_EVENTS, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "run.log").write_text(log, encoding="utf-8")
    questions = blocks(LOG_EVENTS, "sh")

    assert len(questions) == len(answers) == 3
    for question, answer in zip(questions, answers, strict=True):
        done = subprocess.run(
            ["sh", "-e", "-c", question], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, done.stderr, done.returncode) == (answer, "", 0)


def test_events_stand_in_the_catalogue_once() -> None:
    names = re.findall(r"^\| `(\w+)` \|", LOG_EVENTS, flags=re.MULTILINE)

    assert names
    assert len(names) == len(set(names))
