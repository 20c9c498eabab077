"""A process of its own on a store that has a server: appends with ids of its own until all is there, or follows.

    server_peer.py append URL NAME COUNT
    server_peer.py follow URL COUNT

Both use the session "shared". The first prints a list of [id, number] pairs, the second one of [number, id] pairs, in
the order of what they got. An append that failed is made again under its id, whatever was the matter.
"""

from __future__ import annotations

import json
import sys

import logmark
from logmark import Limits
from logmark.errors import AppendUncertain, StorageRejected, StorageUnavailable

SESSION = "shared"
WAIT_S = 60.0
LIMITS = Limits(server_wait_s=5.0, lock_wait_s=5.0)


def append(url: str, name: str, count: int) -> list[tuple[str, int]]:
    answers: list[tuple[str, int]] = []
    with logmark.open(url, limits=LIMITS) as runtime:
        session = runtime.session(SESSION)
        for number in range(count):
            event_id = f"{name}-{number}"
            while True:
                try:
                    answers.append((event_id, session.append("note", {"from": name, "n": number}, id=event_id)))
                except (AppendUncertain, StorageRejected):
                    continue
                break
    return answers


def follow(url: str, count: int) -> list[tuple[int | None, str | None]]:
    seen: list[tuple[int | None, str | None]] = []
    with logmark.open(url, limits=LIMITS) as runtime, runtime.session(SESSION).subscribe(1) as subscription:
        while len(seen) < count:
            try:
                event = subscription.get(WAIT_S)
            except StorageUnavailable:  # nothing is skipped: the next call goes on where this one was
                continue
            seen.append((event.event_seq, event.id))
    return seen


def main() -> None:
    match sys.argv[1:]:
        case ["append", url, name, count]:
            found: object = append(url, name, int(count))
        case ["follow", url, count]:
            found = follow(url, int(count))
        case words:
            raise SystemExit(f"what is {words}?")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
