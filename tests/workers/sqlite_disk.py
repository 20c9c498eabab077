"""What a SQLite store does on a disk that is full, read-only, or fails: ``sqlite_disk.py SCENARIO DIRECTORY``.

``append`` says on standard output what became of four appends, the others assert.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path

from logmark.errors import LogmarkError, StorageRejected, StorageUnavailable
from logmark.storage import Appended, AppendRequest, open_store
from logmark.testing.conformance import append_answers, append_events, make_event, texts_of

S = "session"


def full(directory: Path) -> None:
    """No space: rejected, nothing halted; with space again, the session goes on where it was."""
    store = open_store(f"sqlite:{directory / 'events.db'}")
    append_events(store, S, make_event("a"))
    with (directory / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    for _ in range(3):
        (answer,) = append_answers(store, S, AppendRequest((make_event("x" * 50_000),)))
        assert isinstance(answer, StorageRejected), answer
        assert answer.errno == errno.ENOSPC
        assert store.halted(S) is None
        assert texts_of(store.read(S)) == ["a"]
    (directory / "ballast").unlink()
    assert append_events(store, S, make_event("b")) == Appended(2, 2)
    store.close()
    again = open_store(f"sqlite:{directory / 'events.db'}")
    assert texts_of(again.read(S)) == ["a", "b"]
    assert (again.verify(S), again.verify_store()) == ([], [])
    again.close()


def read_only(directory: Path) -> None:
    """A mount for reading: what is there is read, appends are refused, nothing changes."""
    url = f"sqlite:{directory / 'events.db'}"
    store = open_store(url)
    append_events(store, S, make_event("a"))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
    for create in (True, False):
        store = open_store(url, create=create)
        assert texts_of(store.read(S)) == ["a"]
        assert (store.verify(S), store.verify_store()) == ([], [])
        (answer,) = append_answers(store, S, AppendRequest((make_event("x"),)))
        assert isinstance(answer, StorageRejected), answer
        assert answer.errno == errno.EROFS
        store.close()
    try:
        open_store(f"sqlite:{directory / 'another.db'}")
    except StorageUnavailable as error:
        assert error.errno == errno.EROFS  # noqa: PT017 - not a test of pytest's
    else:
        raise AssertionError


def append(directory: Path) -> None:
    """Append four times, one event more each time, and say what was answered."""
    try:
        store = open_store(f"sqlite:{directory / 'events.db'}")
    except StorageUnavailable:
        return
    for turn in range(4):
        events = tuple(make_event(f"{turn}-{index}", id=f"{turn}-{index}") for index in range(turn + 1))
        try:
            said: dict[str, object] = {"first_seq": append_events(store, S, *events).first_seq}
        except LogmarkError as error:
            said = {"error": type(error).__name__, "reason": str(error)}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    {"full": full, "read_only": read_only, "append": append}[sys.argv[1]](Path(sys.argv[2]))
