"""Who runs an actor's turn, and when.

An actor is idle until something is put into its mailbox; then its dispatcher gives it a turn, in which it takes all
that waits. At most one turn of an actor runs at a time, in whatever thread, and its messages are handled in order.
So an idle actor costs memory and no thread, and what arrives during a turn is the next turn's batch.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pykka.messages import _ActorStop  # pyright: ignore[reportPrivateUsage]

from ..protocol import WouldDeadlock
from .messages import Resume

if TYPE_CHECKING:
    from pykka._envelope import Envelope

__all__ = ["Dispatcher", "Mailbox", "ThreadDispatcher", "Turns", "refuse_in_turn"]

_this_thread = threading.local()


def refuse_in_turn(call: str) -> None:
    """Raise ``WouldDeadlock`` in a thread that gives turns: what blocks there waits for a turn that cannot come."""
    if getattr(_this_thread, "gives_turns", False):
        raise WouldDeadlock(call=call)


@runtime_checkable
class Turns(Protocol):
    """What a dispatcher knows of an actor."""

    def take_turn(self) -> bool:
        """Handle all that waits; True when more has come meanwhile and another turn is due."""
        ...


class Dispatcher(Protocol):
    """Gives turns to actors."""

    def schedule(self, actor: Turns) -> None:
        """See to it that the actor gets a turn soon. Never runs it before returning."""
        ...


class Mailbox:
    """An actor's inbox: pykka's three methods, and whole batches for the dispatcher."""

    __slots__ = ("_dispatcher", "_mutex", "_owner", "_paused", "_scheduled", "_waiting")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: list[Envelope[Any]] = []
        self._scheduled = True  # until the actor is started, nobody may give it a turn
        self._paused = False
        self._owner: Turns | None = None
        self._dispatcher: Dispatcher | None = None

    def attach(self, owner: Turns, dispatcher: Dispatcher) -> None:
        """Start: from now on the owner gets turns, the first at once."""
        with self._mutex:
            self._owner, self._dispatcher = owner, dispatcher
        dispatcher.schedule(owner)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message, and call for a turn unless one is due already."""
        with self._mutex:
            self._waiting.append(envelope)
            if self._paused and isinstance(envelope.message, Resume | _ActorStop):
                self._paused = False
            if self._scheduled or self._paused:
                return
            self._scheduled = True
        if self._dispatcher is not None and self._owner is not None:
            self._dispatcher.schedule(self._owner)

    def get(self) -> Envelope[Any]:
        """Remove and return the first message; raises IndexError when there is none, as nobody ever waits here."""
        with self._mutex:
            return self._waiting.pop(0)

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return not self._waiting

    def take(self) -> list[Envelope[Any]]:
        """Remove and return all that waits."""
        with self._mutex:
            waiting, self._waiting = self._waiting, []
            return waiting

    def pause(self, unread: list[Envelope[Any]]) -> None:
        """End a turn early, with what it has not handled; no turn is due until ``Resume`` or a stop comes.

        A stop that waits already ends the pause at once.
        """
        with self._mutex:
            self._waiting = unread + self._waiting
            stopping = any(isinstance(envelope.message, _ActorStop) for envelope in self._waiting)
            self._paused = not stopping
            self._scheduled = stopping
        if stopping and self._dispatcher is not None and self._owner is not None:
            self._dispatcher.schedule(self._owner)

    def finish_turn(self) -> bool:
        """End a turn; True when messages came meanwhile, and the owner is still due."""
        with self._mutex:
            self._scheduled = bool(self._waiting)
            return self._scheduled


class ThreadDispatcher:
    """A few threads that give turns in the order in which actors became ready; threads start as they are needed."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._ready: queue.SimpleQueue[Turns | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._stopped = False
        self._ended = False

    def schedule(self, actor: Turns) -> None:
        """See ``Dispatcher.schedule``."""
        self._ready.put(actor)
        if len(self._threads) < self._threads_max:
            self._start_thread()
        if self._ended:
            self._give_turns_due()  # who was told after the last thread ended answers here, as a dead letter

    def _start_thread(self) -> None:
        with self._mutex:
            if self._stopped or len(self._threads) >= self._threads_max:
                return
            name = f"logmark-{self._name}-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads: those that run do the work
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def _run(self) -> None:
        _this_thread.gives_turns = True
        get, put = self._ready.get, self._ready.put
        while (actor := get()) is not None:
            if actor.take_turn():
                put(actor)  # behind the others: a busy actor does not keep a thread for itself

    def stop(self) -> None:
        """End the threads after the turns that are due; what becomes due meanwhile is done here."""
        with self._mutex:
            self._stopped = True
            threads = list(self._threads)
        for _ in threads:
            self._ready.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        self._ended = True
        self._give_turns_due()

    def _give_turns_due(self) -> None:
        while True:
            try:
                actor = self._ready.get_nowait()
            except queue.Empty:
                return
            if actor is not None and actor.take_turn():
                self._ready.put(actor)
