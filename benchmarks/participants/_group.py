"""Group commit for peers that have none: a thread that commits all that waits at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import orjson

from ._base import Caller, Payload

__all__ = ["GroupCaller", "GroupWriter"]

_EVENTS_MAX = 4096

_Item = tuple[str, list[bytes], "Future[int]"]


class GroupWriter:
    """Takes all that waits, hands it to ``commit`` by session, and answers everyone with its last number.

    Args:
        commit: makes the payloads of each session durable, and returns each session's last number before them. It is
            called in the writer's thread only.
    """

    def __init__(self, commit: Callable[[dict[str, list[bytes]]], dict[str, int]]) -> None:
        self._commit = commit
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="group-writer", daemon=True)
        self._thread.start()

    def put(self, session_id: str, payloads: list[bytes]) -> Future[int]:
        """Hand payloads over; the future has the number of the last one."""
        future: Future[int] = Future()
        self._queue.put((session_id, payloads, future))
        return future

    def stop(self) -> None:
        """Finish what waits and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            first = self._queue.get()
            if first is None:
                return
            items, events = [first], len(first[1])
            while events < _EVENTS_MAX:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    going = False
                    break
                items.append(item)
                events += len(item[1])
            self._write(items)

    def _write(self, items: list[_Item]) -> None:
        groups: dict[str, list[bytes]] = {}
        for session_id, payloads, _ in items:
            groups.setdefault(session_id, []).extend(payloads)
        try:
            numbers = self._commit(groups)
        except Exception as error:
            for _, _, future in items:
                future.set_exception(error)
            return
        for session_id, payloads, future in items:
            numbers[session_id] += len(payloads)
            future.set_result(numbers[session_id])


class GroupCaller(Caller):
    """A caller that leaves everything to the writer thread."""

    def __init__(self, writer: GroupWriter, session_id: str) -> None:
        self._writer = writer
        self._session_id = session_id

    def append(self, payload: Payload) -> int:
        """Wait for one event."""
        return self._writer.put(self._session_id, [orjson.dumps(payload)]).result()

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        """Wait for several."""
        return self._writer.put(self._session_id, [orjson.dumps(payload) for payload in payloads]).result()

    def submit(self, payload: Payload) -> Future[int]:
        """Wait for none."""
        return self._writer.put(self._session_id, [orjson.dumps(payload)])
