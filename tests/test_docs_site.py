"""The site is built from the pages without a warning, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("CI") != "true":
        for module in ("mkdocs", "mkdocstrings_handlers.python", "material"):
            pytest.importorskip(module, reason="the extra docs is not installed")
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()


def test_the_api_has_its_docstrings(site: Path) -> None:
    text = (site / "api" / "logmark.html").read_text(encoding="utf-8")
    for anchor in ("logmark.open", "logmark.Session.append", "logmark.Session.subscribe", "logmark.Runtime.close"):
        assert f'id="{anchor}"' in text
    assert "Append one event and return its" in text


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]+)\"", text)
        fetched += re.findall(r"<link[^>]* rel=\"(?:stylesheet|preload|icon)\"[^>]* href=\"(https?:[^\"]+)\"", text)
        assert fetched == [], page
