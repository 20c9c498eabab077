"""A process of its own on a store that has a server: appends to the session "shared", prunes it, or reads it.

    pruning_peer.py append URL COUNT
    pruning_peer.py prune URL COUNT
    pruning_peer.py read URL COUNT

All go on until number COUNT is there. The first prints the numbers that it got, the second the last mark that it set,
the third what it read: runs of numbers, a new one wherever it was told that events were pruned.
"""

from __future__ import annotations

import json
import sys

from logmark.errors import SeqPruned
from logmark.protocol import Limits
from logmark.storage import EventStore, open_store
from logmark.testing.conformance import append_events, make_event

SESSION = "shared"
KEPT = 30
LIMITS = Limits(read_chunk_bytes=500)


def append(store: EventStore, count: int) -> list[int]:
    numbers: list[int] = []
    while store.last_seq(SESSION) < count:
        answer = append_events(store, SESSION, make_event("x"), make_event("y"))
        numbers += [answer.first_seq, answer.last_seq]
    return numbers


def prune(store: EventStore, count: int) -> int:
    while True:
        last_seq = store.last_seq(SESSION)
        first = store.truncate_before(SESSION, max(1, last_seq - KEPT))
        if last_seq >= count:
            return first


def read(store: EventStore, count: int) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    at = 1
    while at <= count:
        try:
            for event in store.read(SESSION, from_seq=at):
                runs[-1].append(event.event_seq or 0)
                at = (event.event_seq or 0) + 1
        except SeqPruned as error:
            at = error.first_available
            runs.append([])
    return runs


def main() -> None:
    what, url, count = sys.argv[1:]
    store = open_store(url, limits=LIMITS)
    work = {"append": append, "prune": prune, "read": read}[what]
    sys.stdout.write(json.dumps(work(store, int(count))) + "\n")
    store.close()


if __name__ == "__main__":
    main()
