"""Tools to test programs that embed logmark."""

from __future__ import annotations

from ._clock import ManualClock
from ._events import encoded_event, request_of
from ._faults import Crashed
from ._faulty_files import FaultyFiles
from ._harness import ActorHarness
from ._logs import CapturedLogs, capture_logs
from ._sim_model import SimulationFailure
from ._simulation import Simulation, SimulationReport
from ._step import InlineReads, ManualTimers, StepDispatcher
from ._subscriber import RecordingSubscriber
from ._wait import eventually
from ._writer import HeldCommit, MockWriter

__all__ = [
    "ActorHarness",
    "CapturedLogs",
    "Crashed",
    "FaultyFiles",
    "HeldCommit",
    "InlineReads",
    "ManualClock",
    "ManualTimers",
    "MockWriter",
    "RecordingSubscriber",
    "Simulation",
    "SimulationFailure",
    "SimulationReport",
    "StepDispatcher",
    "capture_logs",
    "encoded_event",
    "eventually",
    "request_of",
]
