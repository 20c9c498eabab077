"""``logmark backup`` and ``logmark restore``: a copy of a store that is in use, and the way back."""

from __future__ import annotations

import argparse

from ._command import Command
from ._console import Console
from ._copy import copy_stores

__all__ = ["BACKUP", "RESTORE"]


def _add_backup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DEST", help="where to: a directory or a URL, made when there is nothing yet")
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to back up (default: all)")
    parser.add_argument("--json", action="store_true", help="one object per session")


def _add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the backup: a directory or a URL")
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to restore (default: all)")
    parser.add_argument("--json", action="store_true", help="one object per session")


def _back_up(arguments: argparse.Namespace, console: Console) -> int:
    # A backup that left out what is halted would lose the very sessions that may need it.
    return copy_stores(
        arguments.store, arguments.target, arguments.sessions, console, as_json=arguments.json, halted_ok=True
    )


def _restore(arguments: argparse.Namespace, console: Console) -> int:
    return copy_stores(arguments.source, arguments.store, arguments.sessions, console, as_json=arguments.json)


BACKUP = Command(
    name="backup",
    summary="back up a store, also one that is in use",
    description=(
        "Copy every session, or those named, into a store of its own, while programs go on writing: of each session"
        " the events up to a moment of its own, whole commits only, read back and compared. Into the same DEST again,"
        " only what is new is added, after what is there was compared. Of a halted session all that is durable is"
        " backed up, of a damaged one what is sound before the damage, and the exit code is 1."
    ),
    example="""\
logmark backup /mnt/backup/chat --store /var/lib/chat
logmark backup sqlite:/mnt/backup/chat.db --store postgresql://db.example/chat
""",
    add_arguments=_add_backup_arguments,
    run=_back_up,
)

RESTORE = Command(
    name="restore",
    summary="restore a backup into a store",
    description=(
        "Copy the sessions of a backup into the store, of whatever engine, under their own numbers and ids, read back"
        " and compared. A session that the store has already is compared; one that has other events, or goes on"
        " further than the backup, stops everything before anything is written: restore into an empty store, or name"
        " the sessions that are missing."
    ),
    example="""\
logmark restore /mnt/backup/chat --store /var/lib/chat
logmark restore /mnt/backup/chat chat-42 --store /var/lib/chat
""",
    add_arguments=_add_restore_arguments,
    run=_restore,
)
