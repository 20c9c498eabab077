"""The tutorial and the how-tos work as they stand: every program and every command, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from logmark.testing import PostgresServer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "docs" / "tutorial.md", *(ROOT / "docs" / "howto").glob("*.md")])
NEEDS = {
    "flask": ("flask",),
    "fastapi": ("fastapi", "httpx"),
    "postgresql": ("psycopg_pool",),
    "arcp-runtime": ("websockets",),
}
LANGUAGES = {"python", "sh", "text", "json"}
INSTALLS = re.compile(r"^python -m pip install .*\n", re.MULTILINE)  # what is needed is installed with the tests


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a reader would do: programs, each as the blocks of Python up to the next commands, and commands."""
    program = ""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        assert language in LANGUAGES, language
        if language == "python":
            program += block + "\n"
        elif language == "sh":
            if program:
                yield "python", program
            program = ""
            yield "sh", INSTALLS.sub("", block)
    if program:
        yield "python", program


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_works_as_it_stands(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if os.environ.get("CI") != "true":
        for module in NEEDS.get(page.stem, ()):
            pytest.importorskip(module)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if page.stem == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        environment["DATABASE_URL"] = server.url(schema="howto")
        data = ROOT / "tests" / "data" / "arcp-wire.jsonl"
        ingest = ["logmark", "ingest", str(data), "--store", "logmark-data"]
        subprocess.run(ingest, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    for language, text in steps(page.read_text(encoding="utf-8")):
        command = ["bash", "-euo", "pipefail", "-c", text]
        if language == "python":
            command = [sys.executable, "-W", "error", "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_no_how_to_is_missing_from_the_site() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in config} == set()
