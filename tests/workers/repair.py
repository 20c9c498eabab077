"""Repair one session: ``repair.py STORE SESSION``. Prints the steps as one JSON list, or the name of the error."""

from __future__ import annotations

import json
import sys

from logmark.protocol import Limits, LogmarkError
from logmark.storage import FileEventStore


def main(arguments: list[str]) -> None:
    store_path, session_id = arguments
    try:
        store = FileEventStore(store_path, limits=Limits(segment_bytes_max=700))
        steps = store.repair(session_id)
        store.close()
    except LogmarkError as error:
        json.dump({"error": type(error).__name__}, sys.stdout)
    else:
        json.dump(steps, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
