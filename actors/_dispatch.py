"""Who runs an actor's turn, and when.

An actor is idle until something is put into its mailbox; then its dispatcher gives it a turn, in which it takes all
that waits. At most one turn of an actor runs at a time, in whatever thread, and its messages are handled in order.
So an idle actor costs memory and no thread, and what arrives during a turn is the next turn's batch.

A change of threads costs more than most turns. So a thread that may block, a writer's or that of a caller who waits for
his answer, has a *lane*: actors that *travel*, those on the way of an append, get the turn that became due by the turn
before in the same thread, unless somebody else waits for that thread.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any, Protocol, runtime_checkable

from pykka._envelope import Envelope
from pykka.messages import _ActorStop  # pyright: ignore[reportPrivateUsage]

from ..protocol import WouldDeadlock
from ..storage import catch_up, may_put_off
from ._bell import Bell
from .messages import Append, Resume, Send

__all__ = [
    "Dispatcher",
    "LaneItem",
    "Mailbox",
    "ThreadDispatcher",
    "Turns",
    "envelope_of",
    "give_back",
    "is_lane",
    "leave_thread",
    "open_lane",
    "refuse_in_turn",
]

_MAY_WAIT = frozenset({Append, Send})


LaneItem = tuple["ThreadDispatcher", "Turns"]
"""An actor that is due, and the dispatcher that would give it its turn if the lane's thread did not."""


class _ThisThread(threading.local):
    """What a thread is to the actors."""

    gives_turns = False
    lane: deque[LaneItem] | None = None


_this_thread = _ThisThread()


def open_lane(lane: deque[LaneItem]) -> None:
    """Give turns in this thread: travelling actors that become due by it are put here."""
    _this_thread.gives_turns = True
    _this_thread.lane = lane


def leave_thread() -> None:
    """Have travelling actors get their turns elsewhere from now on, as this thread must not block any more."""
    _this_thread.lane = None


def is_lane(lane: deque[LaneItem]) -> bool:
    """Say whether this is still where travelling actors are put."""
    return _this_thread.lane is lane


def give_back(lane: deque[LaneItem]) -> None:
    """Give no more turns in this thread, and pass on those that are due."""
    _this_thread.lane = None
    _this_thread.gives_turns = False
    while lane:
        dispatcher, actor = lane.popleft()
        dispatcher.enqueue(actor)


def refuse_in_turn(call: str) -> None:
    """Raise ``WouldDeadlock`` in a thread that gives turns: what blocks there waits for a turn that cannot come."""
    if _this_thread.gives_turns:
        raise WouldDeadlock(call=call)


@runtime_checkable
class Turns(Protocol):
    """What a dispatcher knows of an actor."""

    @property
    def travels(self) -> bool:
        """Whether any thread that may block may give it its turn."""
        ...

    def take_turn(self) -> bool:
        """Handle all that waits; True when more has come meanwhile and another turn is due."""
        ...


class Dispatcher(Protocol):
    """Gives turns to actors."""

    def schedule(self, actor: Turns) -> None:
        """See to it that the actor gets a turn soon. Never runs it before returning."""
        ...


def envelope_of(message: Any) -> Envelope[Any]:
    """Return what lies in a mailbox as pykka's envelope: what was told gets one of its own."""
    return message if message.__class__ is Envelope else Envelope(message)


class Mailbox:
    """An actor's inbox: pykka's three methods, and whole batches for the dispatcher.

    What was told lies in it as it is, what was asked in pykka's envelope, with where the answer goes.

    While its owner is *quiet*, because the answer it waits for will bring its next turn, appends and control envelopes
    wait without calling for one.
    """

    __slots__ = ("_bell", "_dispatcher", "_mutex", "_owner", "_paused", "_quiet", "_scheduled", "_waiting", "_wanted")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: list[Any] = []
        self._scheduled = True  # until the actor is started, nobody may give it a turn
        self._paused = False
        self._quiet = False
        self._bell: Bell | None = None
        self._wanted = 0
        self._owner: Turns | None = None
        self._dispatcher: Dispatcher | None = None

    def attach(self, owner: Turns, dispatcher: Dispatcher) -> None:
        """Start: from now on the owner gets turns, the first at once."""
        with self._mutex:
            self._owner, self._dispatcher = owner, dispatcher
        dispatcher.schedule(owner)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add what was told or asked; otherwise as ``add``."""
        self.add(envelope.message if envelope.reply_to is None else envelope)

    def add(self, message: Any) -> None:
        """Add a message, and call for a turn unless one is due already."""
        with self._mutex:
            self._waiting.append(message)
            if self._scheduled:
                if self._bell is not None:
                    self._count(self._bell, message)
                return
            if self._paused:
                if not isinstance(envelope_of(message).message, Resume | _ActorStop):
                    return
                self._paused = False
            elif self._quiet and message.__class__ in _MAY_WAIT:
                return
            self._scheduled = True
        if self._dispatcher is not None and self._owner is not None:
            self._dispatcher.schedule(self._owner)

    def get(self) -> Envelope[Any]:
        """Remove and return the first message; raises IndexError when there is none, as nobody ever waits here."""
        with self._mutex:
            return envelope_of(self._waiting.pop(0))

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return not self._waiting

    def take(self) -> list[Any]:
        """Remove and return all that waits."""
        with self._mutex:
            waiting, self._waiting = self._waiting, []
            return waiting

    def wait(self, messages: int, timeout_s: float) -> int:
        """Wait, before a turn that is due, until so many messages are there or the time is over; return how many are.

        Only appends and control envelopes are waited for: anything else ends the wait at once.
        """
        with self._mutex:
            self._wanted = messages - len(self._waiting)
            if self._wanted > 0 and all(message.__class__ in _MAY_WAIT for message in self._waiting):
                self._bell = Bell(self._mutex)
                try:
                    self._bell.wait(timeout_s)
                finally:
                    self._bell = None
            return len(self._waiting)

    def _count(self, bell: Bell, message: Any) -> None:
        self._wanted -= 1
        if self._wanted <= 0 or message.__class__ not in _MAY_WAIT:
            ring = bell.take()
            if ring is not None:
                ring()

    def pause(self, unread: list[Any]) -> None:
        """End a turn early, with what it has not handled; no turn is due until ``Resume`` or a stop comes.

        A stop that waits already ends the pause at once.
        """
        with self._mutex:
            self._waiting = unread + self._waiting
            stopping = any(isinstance(envelope_of(message).message, _ActorStop) for message in self._waiting)
            self._paused = not stopping
            self._scheduled = stopping
        if stopping and self._dispatcher is not None and self._owner is not None:
            self._dispatcher.schedule(self._owner)

    def finish_turn(self, *, quiet: bool, due: bool = False) -> bool:
        """End a turn; True when another is ``due``, or called for by messages that came meanwhile."""
        with self._mutex:
            self._quiet = quiet
            if due:
                self._scheduled = True
                return True
            if self._waiting:
                self._scheduled = not quiet or any(message.__class__ not in _MAY_WAIT for message in self._waiting)
                return self._scheduled
            self._scheduled = False
            return False


class ThreadDispatcher:
    """A few threads that give turns in the order in which actors became ready; threads start as they are needed.

    Args:
        name: of the threads.
        threads_max: how many there may be.
        may_block: whether travelling actors get their turns here when a turn given here made them due.
    """

    def __init__(self, name: str, threads_max: int, *, may_block: bool = False) -> None:
        self._name = name
        self._threads_max = threads_max
        self.may_block = may_block
        """Whether turns given here may wait for a disk, a lock or a server."""
        self._ready: queue.SimpleQueue[Turns | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._stopped = False
        self._ended = False

    def schedule(self, actor: Turns) -> None:
        """See ``Dispatcher.schedule``: a thread of this dispatcher gives the turn, or the current one by its lane."""
        lane = _this_thread.lane
        if lane is not None and actor.travels:
            lane.append((self, actor))
        else:
            self.enqueue(actor)

    def enqueue(self, actor: Turns) -> None:
        """Have a thread of this dispatcher give the turn."""
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
        lane: deque[LaneItem] = deque()
        open_lane(lane)
        if self.may_block:
            may_put_off()
        else:
            leave_thread()
        ready = self._ready
        while (actor := ready.get()) is not None:
            if actor.take_turn():
                ready.put(actor)  # behind the others: a busy actor does not keep a thread for itself
            while lane:
                dispatcher, traveller = lane.popleft()
                if not ready.empty():
                    dispatcher.enqueue(traveller)  # others wait for this very thread
                elif traveller.take_turn():
                    lane.append((dispatcher, traveller))
            catch_up()

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
