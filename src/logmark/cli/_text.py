"""Text for a terminal: what data may contain and a terminal must not be sent, and how wide it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..protocol import LogmarkError

__all__ = ["cut", "error_text", "pad", "plural", "printable", "table", "width_of"]

# C0 and C1 control characters move the cursor or start escape sequences, line and paragraph separators break a line,
# bidirectional controls show text in another order than it has, and lone surrogates cannot be encoded at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDE = "WF"
_ELLIPSIS = "…"


def printable(text: str) -> str:
    r"""Return the text with every character that could steer a terminal as ``\uXXXX``, which JSON reads back."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def error_text(error: BaseException) -> str:
    """Return one printable line that says what went wrong."""
    if isinstance(error, OSError) and not isinstance(error, LogmarkError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return printable(f"{where}{error.strerror}")
    return printable(str(error) or type(error).__name__)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1


def width_of(text: str) -> int:
    """Return how many columns a terminal needs for printable text."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, columns: int) -> str:
    """Return the text, or as much of its beginning as fits the columns with an ellipsis behind it."""
    if width_of(text) <= columns:
        return text
    used = 0
    for index, character in enumerate(text):
        used += _width(character)
        if used > columns - 1:
            return text[:index] + _ELLIPSIS
    return text


def plural(count: int, noun: str) -> str:
    """Return a count and its noun, as a person writes them."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def pad(text: str, columns: int) -> str:
    """Return the text with spaces behind it up to a width."""
    return text + " " * (columns - width_of(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str | int]]) -> list[str]:
    """Return aligned lines, header first: numbers to the right, the last column as long as it is."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(header, *cells, strict=True)]
    numeric = [any(isinstance(row[index], int) for row in rows) for index in range(len(header))]
    lines: list[str] = []
    for row in (header, *cells):
        line = [
            " " * (width - width_of(cell)) + cell if right else pad(cell, width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(line).rstrip())
    return lines
