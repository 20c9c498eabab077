"""What a command is."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

from ._console import Console

__all__ = ["Command"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of the command line.

    Attributes:
        name: the word on the command line.
        summary: one line, for the list of commands.
        description: what it does, for its own help.
        example: command lines to copy, with what they do.
        add_arguments: declares its own arguments; those that all commands share are there already.
        run: carries it out and returns the exit code. It may raise ``LogmarkError`` and ``OSError``.
    """

    name: str
    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]
