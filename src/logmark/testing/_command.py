"""What a run of the command line gave."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

__all__ = ["CommandRun"]


@dataclasses.dataclass(frozen=True, slots=True)
class CommandRun:
    """A run of ``logmark.cli.main`` that has ended.

    Attributes:
        code: its exit code.
        out: what it wrote to standard output.
        err: what it wrote to standard error.
    """

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """The output of ``--json``: an object for each line."""
        return [json.loads(line) for line in self.out.splitlines()]
