"""The page on ARCP claims nothing untested, and leaves no section of the draft out."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
PAGE = (TESTS.parent / "docs" / "arcp.md").read_text(encoding="utf-8")
# The sections of the draft that ask for something; the others introduce, define, give examples or list references.
SECTIONS: Sequence[str] = """
    4 5 6.1 6.2 6.3 6.4 6.5 6.6 6.7 7.1 7.2 7.3 7.4 7.5 7.6 7.7 8.1 8.2 8.3 8.4
    9.1 9.2 9.3 9.4 9.5 9.6 9.7 9.8 10 11 12 14
""".split()  # noqa: SIM905 - a list of thirty short lines says no more
ROW = re.compile(r"^\| (\d+(?:\.\d+)?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str]]:
    return [(match[1], match[2], match[3], match[4]) for match in ROW.finditer(PAGE)]


def test_no_section_is_left_out_and_they_stand_in_order() -> None:
    found = [section for section, *_ in rows()]
    order = [SECTIONS.index(section) for section in found if section in SECTIONS]

    assert set(found) == set(SECTIONS)
    assert order == sorted(order)


def test_every_row_says_whether_it_is_kept() -> None:
    assert len(rows()) > 40
    for section, _, here, _ in rows():
        assert re.match(r"\*(kept|differently|not offered)\*", here), (section, here)


def test_every_row_names_tests_that_are_there() -> None:
    missing: list[str] = []
    for section, asks, _, shown in rows():
        named = re.findall(r"`(test_\w+)::(test_\w+)`", shown)
        assert named, (section, asks)
        assert re.sub(r"`test_\w+::test_\w+`(?:, )?", "", shown) == "", (section, shown)
        for module, name in named:
            path = TESTS / f"{module}.py"
            if not path.is_file() or not re.search(
                rf"^def {name}\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE
            ):
                missing.append(f"{section}: {module}::{name}")

    assert missing == []


def test_what_is_announced_is_not_called_not_offered() -> None:
    from logmark.gateway import Agents
    from logmark.protocol.arcp import FEATURES

    not_offered = " ".join(f"{asks} {here}" for _, asks, here, _ in rows() if here.startswith("*not offered*"))
    assert "model.use" in not_offered
    assert "provisioned_credentials" in not_offered
    assert not any(f"`{feature}`" in not_offered for feature in FEATURES)
    assert Agents().features() <= set(FEATURES)


def test_the_examples_go_together(serve: Callable[..., Any], tmp_path: Path) -> None:
    """The agents of the example served, and its client losing its connection to them."""
    server = serve(agents="build_agents:register", cwd=EXAMPLES)

    async def client() -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", str(EXAMPLES / "build_client.py"), server.url, "token-a"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(os.environ),
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, output.decode()

    code, output = asyncio.run(client())
    assert code == 0, output
    assert re.search(r"resumed after event \d+; the job is (running|success)", output)
    assert output.count("tool_call") == 5  # one before, four in the history
    assert "a report of 2000 lines: 44890 bytes, 2000 lines" in output
    assert "never retrieved" not in output
