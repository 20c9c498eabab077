"""Upsert rows and acknowledge a cursor until killed, saying on standard output what is done as soon as it is.

    rows_until_killed.py STORE NAME

Each line is ``upsert ROW SEQ N`` or ``ack POSITION``: it is durable when it is printed.
"""

from __future__ import annotations

import os
import sys
import threading

import logmark

ROWS = 5


def say(text: str) -> None:
    """Print a line with one system call, so that it survives whatever comes next."""
    os.write(1, f"{text}\n".encode())


def upsert(session: logmark.Session, name: str) -> None:
    n = 0
    while True:
        n += 1
        row_id = f"r{n % ROWS}"
        seq = session.upsert(row_id, "message", {"by": name, "n": n}, final=n % 3 == 0)
        say(f"upsert {row_id} {seq} {n}")


def main() -> None:
    store, name = sys.argv[1:]
    session = logmark.open(store).session("chat")
    cursor = session.cursor("ui")
    say(f"ack {cursor.position}")
    threading.Thread(target=upsert, args=(session, name), daemon=True).start()
    with session.subscribe(cursor=cursor) as sub:
        for event in sub:
            say(f"seen {event.event_seq}")
            say(f"ack {cursor.ack(event)}")


main()
