"""Every row of the acceptance list is carried by tests that say so, and none of them only on paper.

``data/acceptance.tsv`` is the list: a number, the behaviour, and the tests that show it best. A test carries a row when
its name or docstring says so: ``row_31``, "row 31", "rows 30 and 33", "rows 43 to 49".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
CONFORMANCE = TESTS.parent / "src" / "logmark" / "testing"
LAST_ROW = 68
OF_READERS = frozenset({15, 23, 24, 25, 26, 42, 65, 66})  # upserts, projections, reading marks
IN_NAMES = re.compile(r"_row_(\d+)")
IN_WORDS = re.compile(r"\brows? (\d+\b(?:(?:, and |, | and | to )(?:row )?\d+\b)*)(?! of the faults)", re.IGNORECASE)


class Row(NamedTuple):
    number: int
    behaviour: str
    tests: tuple[str, ...]


def table() -> Iterator[Row]:
    for line in (TESTS / "data" / "acceptance.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        number, behaviour, tests = line.split("\t")
        yield Row(int(number), behaviour, tuple(tests.split()))


def rows_in(words: str) -> set[int]:
    """Return the rows that a docstring speaks of."""
    found: set[int] = set()
    for each in IN_WORDS.finditer(" ".join(words.split())):
        numbers = [int(number) for number in re.findall(r"\d+", each[1])]
        ranges = [(int(first), int(last)) for first, last in re.findall(r"(\d+) to (\d+)", each[1])]
        found.update(numbers, *(range(first, last) for first, last in ranges))
    return found


def claims() -> dict[str, set[int]]:
    """Return which rows each test carries, by module and name."""
    found: dict[str, set[int]] = {}
    for path in (*TESTS.glob("test_*.py"), *CONFORMANCE.glob("_conformance_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                rows = {int(number) for number in IN_NAMES.findall(node.name)}
                found[f"{path.stem}::{node.name}"] = rows | rows_in(ast.get_docstring(node) or "")
    return found


CLAIMS = claims()
TABLE = list(table())


def test_the_table_has_every_row() -> None:
    numbers = [row.number for row in TABLE]
    assert numbers == sorted(set(numbers))
    assert set(range(1, LAST_ROW + 1)) - OF_READERS <= set(numbers) <= set(range(1, LAST_ROW + 1))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"row {row.number}")
def test_every_row_is_carried_by_the_tests_that_the_table_names(row: Row) -> None:
    assert row.behaviour
    assert row.tests
    for test in row.tests:
        assert test in CLAIMS, f"there is no {test}"
        assert row.number in CLAIMS[test], f"{test} does not say that it shows row {row.number}: {row.behaviour}"


def test_no_test_carries_a_row_that_is_not_there() -> None:
    assert {test: rows for test, rows in CLAIMS.items() if not rows <= set(range(1, LAST_ROW + 1))} == {}


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("Row 31: the half that was taken is cut off again.", {31}),
        ("Rows 30 and 33: the loss is named.", {30, 33}),
        ("Rows 12, 28, 30, 31: several sessions.", {12, 28, 30, 31}),
        ("Rows 43 to 49, 53, 60 and 64 in any mixture.", {*range(43, 50), 53, 60, 64}),
        ("Row 5, row 19: an envelope's own number.", {5, 19}),
        ("Row 43, row 44: while\n    the disk is busy.", {43, 44}),
        ("Row 37 in one process: four runtimes.", {37}),
        ("Row 21 of the faults: the limit itself fits.", set()),
        ("A row of 40 bytes, and 3 rows.", set()),
    ],
)
def test_docstrings_are_understood(words: str, rows: set[int]) -> None:
    assert rows_in(words) == rows
