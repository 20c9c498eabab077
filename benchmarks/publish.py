"""Putting measured figures into the pages, so that nobody copies a number by hand.

The results that the pages speak of are in ``results``; between two comments in a page stands what is made of them.
``python -m benchmarks --publish`` (with ``--slow-disk`` too) and ``python -m benchmarks profile --publish`` renew both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import orjson

from .goals import goals_markdown
from .machine import sentence
from .processor import processor_markdown
from .profiling import Profile, profile_markdown
from .report import Row, markdown

__all__ = ["BLOCKS", "RESULTS", "body", "load", "renew", "save"]

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_HERE)

Results = dict[str, Any]


def _rows(results: Results) -> list[Row]:
    return [Row.from_json(row) for row in results["rows"]]


def _machine(results: Results) -> str:
    return sentence(results["machine"])


def _durable(results: Results) -> str:
    return markdown(_rows(results))


def _goals(results: Results) -> str:
    return goals_markdown(_rows(results))


def _processor(results: Results) -> str:
    return processor_markdown(_rows(results))


def _profile(results: Results) -> str:
    fields = ("total_us", "hops_us", "calls", "plain_us")
    return profile_markdown(Profile(**{name: results[name] for name in fields}))


RESULTS = {name: os.path.join(_HERE, "results", f"{name}.json") for name in ("sample", "slow-disk", "profile")}
"""The results that are kept, and their files."""

BLOCKS: dict[tuple[str, str], tuple[str, Callable[[Results], str]]] = {
    ("README.md", "machine"): ("sample", _machine),
    ("README.md", "durable"): ("sample", _durable),
    ("docs/performance.md", "machine"): ("sample", _machine),
    ("docs/performance.md", "goals"): ("sample", _goals),
    ("docs/performance.md", "processor"): ("sample", _processor),
    ("docs/performance.md", "processor-slow"): ("slow-disk", _processor),
    ("docs/performance.md", "durable-slow"): ("slow-disk", _durable),
    ("docs/performance.md", "profile"): ("profile", _profile),
    ("docs/performance.md", "profile-machine"): ("profile", _machine),
}
"""By page and mark: which results, and what is made of them."""


def _between(mark: str, text: str) -> str:
    return f"<!-- measured: {mark} -->\n{text}\n<!-- end -->"


def body(page: str, mark: str) -> str:
    """Return what a page has between two comments.

    Raises:
        LookupError: it has no such comments.
    """
    with open(os.path.join(_ROOT, page), encoding="utf-8") as file:
        text = file.read()
    opening, closing = _between(mark, "\0").split("\0")
    _, found, rest = text.partition(opening)
    inside, end, _ = rest.partition(closing)
    if not found or not end:
        message = f"{page} has no place for {mark}"
        raise LookupError(message)
    return inside


def load(name: str) -> Results:
    """Return results that are kept."""
    with open(RESULTS[name], "rb") as file:
        found: Results = orjson.loads(file.read())
    return found


def save(path: str, results: Results) -> None:
    """Write results, each row on a line of its own, so that two runs can be compared."""
    rows = results.get("rows")
    text = orjson.dumps({**results, "rows": []} if rows is not None else results, option=orjson.OPT_INDENT_2)
    if rows is not None:
        lines = b",\n    ".join(orjson.dumps(row) for row in rows)
        text = text.replace(b'"rows": []', b'"rows": [\n    ' + lines + b"\n  ]")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "wb") as file:
        file.write(text + b"\n")


def renew(name: str, results: Results) -> list[str]:
    """Keep results, and put what is made of them into the pages; return the files that were written."""
    save(RESULTS[name], results)
    written = [RESULTS[name]]
    for (page, mark), (wanted, make) in BLOCKS.items():
        if wanted != name:
            continue
        text = make(results)
        path = os.path.join(_ROOT, page)
        with open(path, encoding="utf-8") as file:
            before = file.read()
        after = before.replace(_between(mark, body(page, mark)), _between(mark, text))
        with open(path, "w", encoding="utf-8") as file:
            file.write(after)
        written.append(path)
    return list(dict.fromkeys(written))
