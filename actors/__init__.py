"""The motion: SessionActor, PersistActor, BroadcastActor, JobActor, and what gives them their turns."""

from __future__ import annotations

from . import messages
from ._base import LogmarkActor
from ._broadcast import Batch, BroadcastActor
from ._caller import CallerLane
from ._dispatch import Dispatcher, Mailbox, ThreadDispatcher, Turns, refuse_in_turn
from ._gate import Gate
from ._job import JobActor
from ._persist import PersistActor, WriterPool
from ._seams import BlockingReads, ThreadBlockingReads, ThreadTimers, Timers
from ._session import SessionActor, SessionChildren
from ._system import ActorSystem, Seams, ThreadSeams
from ._watch import WatchActor
from ._watermark import Watermark

__all__ = [
    "ActorSystem",
    "Batch",
    "BlockingReads",
    "BroadcastActor",
    "CallerLane",
    "Dispatcher",
    "Gate",
    "JobActor",
    "LogmarkActor",
    "Mailbox",
    "PersistActor",
    "Seams",
    "SessionActor",
    "SessionChildren",
    "ThreadBlockingReads",
    "ThreadDispatcher",
    "ThreadSeams",
    "ThreadTimers",
    "Timers",
    "Turns",
    "WatchActor",
    "Watermark",
    "WriterPool",
    "messages",
    "refuse_in_turn",
]
