"""What is out of the ordinary in a log: halts, restarts, lag, torn tails, retries, late answers, deaths."""

from __future__ import annotations

import dataclasses
from typing import Any

from ._facts import Fact, Place, moment_of, pid_of, process_of, runtime_of, text_of
from ._reader import LogReader
from ._sentences import SAFE, SENTENCES, TO_DO, filled

__all__ = ["Oddities", "Oddity"]

_LOUD = frozenset({"warning", "error"})
_QUIET = frozenset({"retry_answered", "append_declined"})
_OF_THE_LINE = frozenset({"event", "level", "timestamp", "runtime", "pid", "actor", "session", "exception"})


@dataclasses.dataclass(slots=True)
class Oddity:
    """Something that happened, once or again and again.

    Attributes:
        event: the log event; ``process_ended`` and the like are what the log does not say and shows all the same.
        level: of the log event; ``info`` for what a program may do on purpose.
        session, process: whom it concerns, None for nobody in particular.
        text, safe, to_do: what happened, what of the data is safe, and what to do; the last two may be empty.
        count: how often.
        first_ns, last_ns: when, in nanoseconds since 1970.
        place, last_place: the lines.
    """

    event: str
    level: str
    session: str | None
    process: str | None
    text: str
    safe: str
    to_do: str
    count: int
    first_ns: int | None
    last_ns: int | None
    place: Place
    last_place: Place


class Oddities:
    """Takes the events of a log and keeps what is odd; the same again is counted."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Oddity] = {}
        self._acknowledged: dict[str, int] = {}
        self._heard: dict[str, tuple[Fact, Place]] = {}
        self._of_runtime: dict[str, dict[str, int]] = {}
        self._open: set[str] = set()

    def feed(self, fact: Fact, place: Place) -> None:
        """Take the next event."""
        event, level = fact["event"], fact["level"]
        if "pid" not in fact:
            self._heard[runtime_of(fact, place)] = (fact, place)
        if event == "batch_persisted":
            session, last = fact["session"], fact["last_seq"]
            if last > self._acknowledged.get(session, 0):
                self._acknowledged[session] = last
            self._of_runtime.setdefault(runtime_of(fact, place), {})[session] = last
            if fact["retries"]:
                self._note("batch_retries", "info", fact, place, {})
        elif event == "runtime_opened":
            self._open.add(runtime_of(fact, place))
        elif event == "runtime_closed":
            self._open.discard(runtime_of(fact, place))
            if not fact["drained"]:
                self._note("not_drained", "warning", fact, place, {"process": process_of(fact).capitalize()})
        elif level in _LOUD or event in _QUIET:
            self._note(event, level, fact, place, {})

    def _note(self, event: str, level: str, fact: Fact, place: Place, more: dict[str, Any]) -> None:
        session = fact.get("session")
        error = fact.get("error") if event in {"append_failed", "append_declined"} else None
        key = (event, session, pid_of(fact) or place.file, fact.get("actor"), error)
        known, moment = self._found.get(key), moment_of(fact)
        if known is not None:
            known.count += 1
            known.last_ns, known.last_place = moment or known.last_ns, place
            return
        keys = {name: text_of(value) if isinstance(value, str) else value for name, value in fact.items()} | more
        keys["acknowledged"] = self._acknowledged.get(str(session), 0)
        text = filled(SENTENCES.get(event), keys) or _plain(fact)
        to_do = TO_DO.get(f"{event}:{error}") or TO_DO.get(event)
        safe = SAFE.get(f"{event}:{error}") or SAFE.get(event)
        if not keys["acknowledged"] and safe is not None:
            safe = safe.replace(
                "Everything up to number {acknowledged} was acknowledged before, and stays on disk.", ""
            )
        self._found[key] = Oddity(
            event=event,
            level=level,
            session=session,
            process=process_of(fact),
            text=text,
            safe=filled(safe, keys).strip(),
            to_do=filled(to_do, keys),
            count=1,
            first_ns=moment,
            last_ns=moment,
            place=place,
            last_place=place,
        )

    def finish(self, reader: LogReader) -> list[Oddity]:
        """Return everything odd, in the order in which it began, with what only the end of the logs shows."""
        for runtime in sorted(self._open):
            fact, place = self._heard[runtime]
            told = self._of_runtime.get(runtime, {})
            known = ", ".join(f"session {name} up to number {seq}" for name, seq in sorted(told.items())[:5])
            more = "" if len(told) <= 5 else f", and {len(told) - 5} more sessions"  # noqa: PLR2004 - as many as fit
            process = process_of(fact).capitalize()
            keys = {"process": process, "known": f"{known}{more}" if known else "there was nothing"}
            self._note("process_ended", "warning", _of_the_process(fact), place, keys)
        self._open.clear()
        for name in reader.cut:
            self._of_file("log_cut", name, "")
        for name, reason in reader.broken:
            self._of_file("log_broken", name, reason)
        # What has no time of its own comes last.
        return sorted(self._found.values(), key=lambda each: (each.first_ns is None, each.first_ns or 0))

    def _of_file(self, event: str, name: str, reason: str) -> None:
        fact: Fact = {"event": event, "level": "warning"}
        self._note(event, "warning", fact, Place(name, 0), {"file": name, "reason": reason})


def _of_the_process(fact: Fact) -> Fact:
    return {name: value for name, value in fact.items() if name in {"timestamp", "runtime"}}


def _plain(fact: Fact) -> str:
    """Describe an event that has no sentence here by its keys."""
    keys = ", ".join(f"{name}={text_of(value)}" for name, value in fact.items() if name not in _OF_THE_LINE)
    return f"{fact['event'].replace('_', ' ').capitalize()}{': ' + keys if keys else ''}."
