"""Append many events while one subscriber stands still and another follows: ``many_events.py STORE EVENTS``.

Prints one JSON object: by how many bytes the process has grown at most, how many events each subscriber was given, and
whether these were all of them in order.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import logmark

BATCH = 500
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * PAGE_BYTES


def count_in_order(subscription: logmark.Subscription, through: int) -> int:
    """Read to a number, and return how many came, or -1 at the first that was not the next."""
    for seq in range(1, through + 1):
        if subscription.get_raw(60).event_seq != seq:
            return -1
    return through


def main() -> None:
    store, total = sys.argv[1], int(sys.argv[2])
    followed: list[int] = []
    with logmark.open(store, durability="os") as runtime:
        session = runtime.session("s")
        stalled, follower = session.subscribe(1), session.subscribe(1)
        thread = threading.Thread(target=lambda: followed.append(count_in_order(follower, total)))
        thread.start()
        before = peak = resident_bytes()
        for start in range(0, total, BATCH):
            session.append_many([("x", {"n": number}) for number in range(start, start + BATCH)])
            peak = max(peak, resident_bytes())
        thread.join()
        lag, lag_count = stalled.lag, stalled.lag_count
        caught_up = count_in_order(stalled, total)
        peak = max(peak, resident_bytes())
    found = {"grown_bytes": peak - before, "lag": lag, "lag_count": lag_count}
    json.dump({**found, "stalled": caught_up, "followed": followed[0]}, sys.stdout)


if __name__ == "__main__":
    main()
