"""The bell that wakes a reader: no ring is lost, none is heard twice, and a waiter who leaves hurts nobody."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from logmark.actors import Bell
from logmark.testing import eventually

SOON = 20.0


class Box:
    """A queue with one reader, as a subscription is."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.bell = Bell(self.mutex)
        self.items: deque[int] = deque()

    def put(self, item: int) -> None:
        with self.mutex:
            self.items.append(item)
            ring = self.bell.take()
        if ring is not None:
            ring()

    def get(self, timeout_s: float | None = None) -> int | None:
        with self.mutex:
            while not self.items:
                self.bell.wait(timeout_s)
                if timeout_s is not None and not self.items:
                    return None
            return self.items.popleft()


def test_no_ring_is_lost_among_many_ringers() -> None:
    box, each, ringers = Box(), 2000, 4
    seen: list[int] = []

    def read() -> None:
        while len(seen) < each * ringers:
            item = box.get()
            assert item is not None
            seen.append(item)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def put(first: int) -> None:
        for n in range(each):
            box.put(first * each + n)

    threads = [threading.Thread(target=put, args=(first,)) for first in range(ringers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    reader.join(SOON)
    assert not reader.is_alive()
    assert sorted(seen) == list(range(each * ringers))


def test_each_wait_is_rung_for_once() -> None:
    box = Box()
    reader = threading.Thread(target=box.get, daemon=True)
    reader.start()
    eventually(lambda: box.bell._sleep is not None, SOON)
    with box.mutex:
        ring, second = box.bell.take(), box.bell.take()
    assert ring is not None
    assert second is None
    box.items.append(1)
    ring()
    reader.join(SOON)
    assert not reader.is_alive()


def test_a_ring_that_comes_after_its_waiter_has_left_wakes_nobody_else() -> None:
    box = Box()
    taken = threading.Event()

    def take() -> None:
        eventually(lambda: box.bell._sleep is not None, SOON)
        with box.mutex:
            late.append(box.bell.take())
        taken.set()

    late: list[object] = []
    thread = threading.Thread(target=take)
    thread.start()
    while not taken.is_set():
        assert box.get(0.05) is None
    thread.join(SOON)
    late[0]()  # type: ignore[operator]
    assert box.get(0.01) is None  # the next wait is one of its own
    box.put(7)
    assert box.get(SOON) == 7


def test_nobody_waits_nothing_to_ring() -> None:
    box = Box()
    with box.mutex:
        assert box.bell.take() is None


def test_an_interrupted_waiter_has_the_mutex_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def acquire(self, *_: object, **given: object) -> None:
            if given:
                raise KeyboardInterrupt

    box = Box()
    monkeypatch.setattr("logmark.actors._bell.threading.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt), box.mutex:
        box.bell.wait(1.0)
    monkeypatch.undo()
    assert not box.mutex.locked()
    with box.mutex:
        assert box.bell.take() is None
