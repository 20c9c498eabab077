"""The motion: SessionActor, PersistActor, BroadcastActor, JobActor, RowActor, and what gives them their turns."""

from __future__ import annotations

from . import messages
from ._base import LogmarkActor
from ._bases import BASE_PREFIX, decode_base, encode_base
from ._bell import Bell
from ._broadcast import Batch, BroadcastActor
from ._caller import CallerLane
from ._changes import Changes
from ._dispatch import Dispatcher, Mailbox, ThreadDispatcher, Turns, refuse_in_turn
from ._gate import Gate
from ._instrumentation import AppendSpan, Instrumentation, Instruments, Notice, PersistedBatch
from ._job import JobActor
from ._linger import Linger, RateLinger
from ._persist import PersistActor, WriterPool
from ._relay import Relay, Sleeper
from ._rows import RowActor, RowIndex
from ._seams import BlockingReads, SessionChildren, ThreadBlockingReads, ThreadTimers, Timers
from ._session import SessionActor
from ._system import ActorSystem, Seams, ThreadSeams
from ._watch import WatchActor
from ._watermark import Watermark

__all__ = [
    "BASE_PREFIX",
    "ActorSystem",
    "AppendSpan",
    "Batch",
    "Bell",
    "BlockingReads",
    "BroadcastActor",
    "CallerLane",
    "Changes",
    "Dispatcher",
    "Gate",
    "Instrumentation",
    "Instruments",
    "JobActor",
    "Linger",
    "LogmarkActor",
    "Mailbox",
    "Notice",
    "PersistActor",
    "PersistedBatch",
    "RateLinger",
    "Relay",
    "RowActor",
    "RowIndex",
    "Seams",
    "SessionActor",
    "SessionChildren",
    "Sleeper",
    "ThreadBlockingReads",
    "ThreadDispatcher",
    "ThreadSeams",
    "ThreadTimers",
    "Timers",
    "Turns",
    "WatchActor",
    "Watermark",
    "WriterPool",
    "decode_base",
    "encode_base",
    "messages",
    "refuse_in_turn",
]
