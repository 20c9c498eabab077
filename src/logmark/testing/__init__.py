"""Tools to test programs that embed logmark."""

from __future__ import annotations

from ._agents import RecordingSink, job_spec, run_agent
from ._arcp_probe import ArcpProbe, wire_faults
from ._clock import ManualClock
from ._command import CommandRun
from ._events import encoded_event, request_of
from ._faults import Crashed
from ._faulty_files import FaultyFiles
from ._harness import ActorHarness
from ._log_check import LogCheck, check_log_files, checked_logs
from ._logs import CapturedLogs, capture_logs
from ._nats_server import NatsCluster, NatsServer
from ._postgres_server import PostgresServer
from ._proxy import FaultyProxy, ProxyFault
from ._sim_model import SimulationFailure
from ._simulation import Simulation, SimulationReport
from ._step import InlineReads, ManualTimers, StepDispatcher
from ._subscriber import RecordingSubscriber
from ._wait import eventually
from ._writer import HeldCommit, MockWriter

__all__ = [
    "ActorHarness",
    "ArcpProbe",
    "CapturedLogs",
    "CommandRun",
    "Crashed",
    "FaultyFiles",
    "FaultyProxy",
    "HeldCommit",
    "InlineReads",
    "LogCheck",
    "ManualClock",
    "ManualTimers",
    "MockWriter",
    "NatsCluster",
    "NatsServer",
    "PostgresServer",
    "ProxyFault",
    "RecordingSink",
    "RecordingSubscriber",
    "Simulation",
    "SimulationFailure",
    "SimulationReport",
    "StepDispatcher",
    "capture_logs",
    "check_log_files",
    "checked_logs",
    "encoded_event",
    "eventually",
    "job_spec",
    "request_of",
    "run_agent",
    "wire_faults",
]
