"""What a safeguard is, and how it is taken out."""

from __future__ import annotations

import dataclasses

__all__ = ["Safeguard"]


@dataclasses.dataclass(frozen=True)
class Safeguard:
    """One safeguard.

    Attributes:
        name: what it does, in the words of the table.
        path: the file that it is in.
        text: what to replace; must be there exactly once.
        without: what to put in its place.
        tests: arguments of pytest, the tests that should notice.
    """

    name: str
    path: str
    text: str
    without: str
    tests: tuple[str, ...]
