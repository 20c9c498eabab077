"""Logs read back: what happened to an event, a session or a job, what was slow or odd, and whether the order held."""

from __future__ import annotations

from ._checks import Checker, Violation
from ._facts import Fact, Place, moment_of, time_ns_of
from ._lives import IdHit, event_life, find_id
from ._oddities import Oddities, Oddity
from ._reader import LogReader, LogSource, find_sources, readable_twice
from ._slowest import SlowAppend, Slowest
from ._stories import Step, Story, job_story, session_story
from ._summary import RuntimeSummary, SessionSummary, Summary
from ._times import clock_of, day_of, span_of

__all__ = [
    "Checker",
    "Fact",
    "IdHit",
    "LogReader",
    "LogSource",
    "Oddities",
    "Oddity",
    "Place",
    "RuntimeSummary",
    "SessionSummary",
    "SlowAppend",
    "Slowest",
    "Step",
    "Story",
    "Summary",
    "Violation",
    "clock_of",
    "day_of",
    "event_life",
    "find_id",
    "find_sources",
    "job_story",
    "moment_of",
    "readable_twice",
    "session_story",
    "span_of",
    "time_ns_of",
]
