"""``logmark doctor``: whether this machine, and this place, keep what logmark promises."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..protocol import InvalidArgument
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode
from ._text import printable

if TYPE_CHECKING:
    from ._doctor_checks import Opinion

__all__ = ["COMMAND"]

_COLOURS = {"ok": "32", "note": "33", "bad": "31"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one object per check")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    bad = False
    for opinion in _opinions(arguments.store):
        bad = bad or opinion.verdict == "bad"
        if arguments.json:
            console.out.json(dataclasses.asdict(opinion))
        else:
            _print(opinion, console.out)
        console.out.flush()  # some take a moment; each answer is shown when it is there
    return ExitCode.IO if bad else ExitCode.OK


def _opinions(url: str) -> Iterator[Opinion]:
    from ..storage import local_path
    from . import _doctor_checks as checks

    yield from checks.check_versions()
    path = local_path(url)
    if path is None:
        if url.lower().startswith("memory:"):
            raise InvalidArgument("memory: has no place to look at; give --store a directory, a file or a server")
        yield from checks.check_server(url)
        return
    existing = _existing(os.path.abspath(path))
    yield checks.check_place(path, existing)
    yield checks.check_permissions(existing)
    yield checks.check_file_system(existing)
    yield checks.check_space(existing)
    yield checks.check_descriptors()
    directory = existing if os.path.isdir(existing) else os.path.dirname(existing)
    yield from checks.check_by_trial(directory)
    yield from checks.check_store(url, path)


def _existing(path: str) -> str:
    """Return the path, or the nearest directory above it that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _print(opinion: Opinion, out: Output) -> None:
    word = out.coloured(f"{opinion.verdict:<4}", _COLOURS[opinion.verdict])
    out.line(f"{word}  {out.coloured(f'{opinion.check:<13}', '1')}  {printable(opinion.says)}")


COMMAND = Command(
    name="doctor",
    summary="check the machine: file system, lock, fsync, clock, versions, permissions",
    description=(
        "Look at the place where a store is or will be, and say in a sentence each what that means for it: which file"
        " system it is and whether it can be trusted, whether locks keep processes apart, how long a sync takes,"
        " whether the clock is plausible, what is installed and who may write. A file is made there for the trial, and"
        " removed. Of a server it says whether it answers, how quickly, and what it is. The exit code is 3 when"
        " something would break a promise."
    ),
    example="""\
logmark doctor --store /var/lib/chat
logmark doctor --store postgresql://localhost/events
logmark doctor --json | jq -r 'select(.verdict != "ok") | .says'
""",
    add_arguments=_add_arguments,
    run=_run,
)
