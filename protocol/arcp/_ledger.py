"""What a principal has: sessions, jobs, idempotency keys and subscriptions, folded from facts.

A request is decided against the ledger and becomes facts; the driver appends them to the principal's log of facts, on
condition that nobody has appended in between, and applies them once they are durable. So every decision rests on all
that was decided before, also by other processes, and a new process that folds the same log knows the same.

Facts are not countable frames: they lie in a log of their own, so that they take no number of any session.
"""

from __future__ import annotations

import bisect
import dataclasses
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from ._codes import Refusal

__all__ = ["RESET", "Fact", "JobRecord", "Ledger", "SessionRecord", "Status", "SubscriptionRecord"]

Status = Literal["pending", "running", "success", "error", "cancelled", "timed_out"]

Fact = tuple[str, dict[str, Any]]
"""A type and its payload."""

RESET = "arcp.ledger_reset"
"""The type of the fact that voids all before it; the facts behind it say again what still matters."""

_NO_SESSION = Refusal("PERMISSION_DENIED", "there is no such session, or the resume token is not its newest one")
_NOT_COVERED = Refusal("RESUME_WINDOW_EXPIRED", "the session can no longer be resumed from there; open a new one")


@dataclasses.dataclass(slots=True)
class SessionRecord:
    """A session of the principal.

    Attributes:
        token_hash: of the one token that resumes it.
        instance: the process that served it last.
        detached_at_ns: when its last connection ended; None while one is thought to stand.
    """

    session_id: str
    token_hash: str
    features: frozenset[str]
    instance: str
    opened_at_ns: int
    detached_at_ns: int | None = None


@dataclasses.dataclass(slots=True)
class JobRecord:
    """A job of the principal.

    Attributes:
        instance: the process that runs it.
        status: as far as the facts tell; between acceptance and end, the log of events knows better.
        last_event_seq: number of the job's last event, once it has ended.
    """

    job_id: str
    session_id: str
    agent: str
    version: str
    lease: Mapping[str, Sequence[str]]
    lease_constraints: Mapping[str, Any] | None
    budget: Mapping[str, str] | None
    trace_id: str | None
    parent_job_id: str | None
    instance: str
    accepted_at_ns: int
    idempotency_key: str | None
    fingerprint: str
    status: Status = "pending"
    last_event_seq: int = 0
    ended_at_ns: int | None = None
    cancel_reason: str | None = None

    @property
    def key(self) -> tuple[int, str]:
        """The place in every listing, also after the job has gone."""
        return self.accepted_at_ns, self.job_id

    @property
    def ended(self) -> bool:
        """Whether the facts say that it has its terminal."""
        return self.ended_at_ns is not None


@dataclasses.dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """A session that follows a job of another session (or the past of one of its own).

    Attributes:
        copied_after: number in the follower's own session behind which the copies lie.
        after_seq: number, in the job's own session, after which events are forwarded.
        through_seq: number of the last one to forward, or None to follow until the job's end.
    """

    subscription_id: str
    session_id: str
    job_id: str
    source_session_id: str
    copied_after: int
    after_seq: int
    through_seq: int | None


class Ledger:
    """The fold, and the decisions that rest on it. Not thread-safe: the driver holds a lock.

    Args:
        principal: whose ledger it is.
        resume_window_ns: how long a session can be resumed after its connection has ended.
        retention_ns: how long ended jobs and their keys are remembered.
    """

    def __init__(self, principal: str, *, resume_window_ns: int, retention_ns: int) -> None:
        self.principal = principal
        self.last_seq = 0
        self._reset_seq = 0
        self._window_ns = resume_window_ns
        self._retention_ns = retention_ns
        self._sessions: dict[str, SessionRecord] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._unended: dict[str, JobRecord] = {}
        self._attached: dict[str, SessionRecord] = {}
        self._order: list[tuple[int, str]] = []
        self._keys: dict[str, str] = {}
        self._subscriptions: dict[str, dict[str, SubscriptionRecord]] = {}
        self._followed: dict[str, set[str]] = {}
        self._folds: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            RESET: self._reset,
            "arcp.session_opened": self._opened,
            "arcp.session_resumed": self._resumed,
            "arcp.session_detached": self._detached,
            "arcp.job_accepted": self._accepted,
            "arcp.job_cancel_requested": self._cancel_requested,
            "arcp.job_ended": self._ended,
            "arcp.subscribed": self._subscribed,
            "arcp.unsubscribed": self._unsubscribed,
            "arcp.followed": self._has_followed,
        }

    # -- reading ----------------------------------------------------------------------------------------------------

    def session(self, session_id: str) -> SessionRecord | None:
        """Return a session that is attached or can be resumed."""
        return self._sessions.get(session_id)

    def is_newest(self, session_id: str, token_hash: str) -> bool:
        """Say whether a token is the session's newest one, which its one standing connection was given."""
        record = self._sessions.get(session_id)
        return record is not None and record.token_hash == token_hash

    def job(self, job_id: str) -> JobRecord | None:
        """Return a job; None for one that does not exist, is forgotten or is another principal's, all alike."""
        return self._jobs.get(job_id)

    def jobs_after(self, key: tuple[int, str] | None) -> Iterator[JobRecord]:
        """Iterate over jobs in the order of acceptance, from behind a place, whether or not its job is still there."""
        start = 0 if key is None else bisect.bisect_right(self._order, key)
        for index in range(start, len(self._order)):
            yield self._jobs[self._order[index][1]]

    def unended(self) -> list[JobRecord]:
        """Return the jobs without a terminal, as far as the facts tell."""
        return list(self._unended.values())

    def attached(self) -> list[SessionRecord]:
        """Return the sessions that are thought to be connected."""
        return list(self._attached.values())

    def subscriptions(self, session_id: str) -> list[SubscriptionRecord]:
        """Return the subscriptions of a session that have not ended."""
        return list(self._subscriptions.get(session_id, {}).values())

    def subscription(self, session_id: str, job_id: str) -> SubscriptionRecord | None:
        """Return the subscription of a session to a job."""
        return self._subscriptions.get(session_id, {}).get(job_id)

    def has_followed(self, session_id: str, job_id: str) -> bool:
        """Say whether a session has ever subscribed to a job, also if that is over."""
        return job_id in self._followed.get(session_id, ())

    @property
    def sizes(self) -> tuple[int, int]:
        """How many sessions and jobs are held in memory."""
        return len(self._sessions), len(self._jobs)

    @property
    def facts_since_reset(self) -> int:
        """How many facts a new process has to read."""
        return self.last_seq - self._reset_seq

    def begin_at(self, reset_seq: int) -> None:
        """Begin the fold at a reset, for a new ledger."""
        self.last_seq = max(self.last_seq, reset_seq - 1)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def open_session(
        self, session_id: str, *, token_hash: str, features: frozenset[str], instance: str, now_ns: int
    ) -> list[Fact]:
        """Open a session (section 6.2); see ``may_open`` first."""
        return [
            (
                "arcp.session_opened",
                {
                    "session_id": session_id,
                    "token_sha256": token_hash,
                    "features": sorted(features),
                    "instance": instance,
                    "at_ns": now_ns,
                },
            )
        ]

    def may_open(self, sessions_max: int) -> Refusal | None:
        """Refuse one session more than a principal may have."""
        if len(self._sessions) < sessions_max:
            return None
        return Refusal("INTERNAL_ERROR", f"the principal has {sessions_max} sessions, which is the most")

    def resume_session(
        self,
        session_id: str,
        *,
        presented_hash: str,
        last_event_seq: int,
        log_first_seq: int,
        log_last_seq: int,
        token_hash: str,
        features: frozenset[str],
        instance: str,
        now_ns: int,
    ) -> Refusal | list[Fact]:
        """Resume a session (section 6.3). A refusal changes nothing: the right token stays good.

        An unknown session and a wrong token look alike, and the comparison takes as long whatever was guessed. What the
        client lacks has to be in the log: from ``log_first_seq``, the first number that is available, on.
        """
        record = self._sessions.get(session_id)
        known = hmac.compare_digest(record.token_hash if record else "0" * 64, presented_hash)
        if record is None or not known:
            return _NO_SESSION
        if self._expired(record, now_ns) or not log_first_seq - 1 <= last_event_seq <= log_last_seq:
            return _NOT_COVERED
        return [
            (
                "arcp.session_resumed",
                {
                    "session_id": session_id,
                    "token_sha256": token_hash,
                    "features": sorted(features),
                    "instance": instance,
                    "at_ns": now_ns,
                },
            )
        ]

    def reset(self) -> list[Fact]:
        """Say again all that is remembered, so that the fold may begin here. One append: all of it, or none."""
        facts: list[Fact] = [(RESET, {"principal": self.principal})]
        for record in self._sessions.values():
            at = record.detached_at_ns
            facts += self.open_session(
                record.session_id,
                token_hash=record.token_hash,
                features=record.features,
                instance=record.instance,
                now_ns=record.opened_at_ns,
            )
            if at is not None:
                facts.append(("arcp.session_detached", {"session_id": record.session_id, "reason": "", "at_ns": at}))
        for job in self._jobs.values():
            facts.append(self._accepted_fact(job))
            if job.cancel_reason is not None:
                members = {"job_id": job.job_id, "reason": job.cancel_reason, "at_ns": job.accepted_at_ns}
                facts.append(("arcp.job_cancel_requested", members))
            if job.ended_at_ns is not None:
                members = {"job_id": job.job_id, "status": job.status, "last_event_seq": job.last_event_seq}
                facts.append(("arcp.job_ended", {**members, "at_ns": job.ended_at_ns}))
        for held in self._subscriptions.values():
            facts += [("arcp.subscribed", dataclasses.asdict(record)) for record in held.values()]
        for session_id, jobs in self._followed.items():
            facts.append(("arcp.followed", {"session_id": session_id, "job_ids": sorted(jobs)}))
        return facts

    def detach_session(self, session_id: str, *, token_hash: str, reason: str, now_ns: int) -> list[Fact]:
        """Note that the connection of a session has ended; nothing when another one has taken its place.

        ``token_hash`` is of the token that was given to the connection in question: each one has its own.
        """
        record = self._sessions.get(session_id)
        if record is None or record.token_hash != token_hash or record.detached_at_ns is not None:
            return []
        return [("arcp.session_detached", {"session_id": session_id, "reason": reason, "at_ns": now_ns})]

    def repeated(self, key: str | None, fingerprint: str) -> JobRecord | Refusal | None:
        """Return the job that an idempotency key stands for (section 7.2), None for a new one."""
        job_id = None if key is None else self._keys.get(key)
        job = None if job_id is None else self._jobs.get(job_id)
        if job is None:
            return None
        if not hmac.compare_digest(job.fingerprint, fingerprint):
            return Refusal("DUPLICATE_KEY", "the idempotency key was used with other parameters")
        return job

    def accept_job(self, job: JobRecord, *, running_max: int) -> Refusal | list[Fact]:
        """Accept a job (section 7.1). What it names must be the principal's own."""
        if job.parent_job_id is not None and job.parent_job_id not in self._jobs:
            return Refusal("JOB_NOT_FOUND", "there is no job parent_job_id")
        if len(self._unended) >= running_max:
            return Refusal("INTERNAL_ERROR", f"{running_max} jobs are under way, which is the most at a time")
        return [self._accepted_fact(job)]

    @staticmethod
    def _accepted_fact(job: JobRecord) -> Fact:
        members: dict[str, Any] = {
            "job_id": job.job_id,
            "session_id": job.session_id,
            "agent": job.agent,
            "version": job.version,
            "lease": {name: list(patterns) for name, patterns in job.lease.items()},
            "fingerprint": job.fingerprint,
            "instance": job.instance,
            "at_ns": job.accepted_at_ns,
        }
        for name in ("lease_constraints", "budget", "trace_id", "parent_job_id", "idempotency_key"):
            value = getattr(job, name)
            if value is not None:
                members[name] = value
        return "arcp.job_accepted", members

    def cancel_job(self, job_id: str, *, session_id: str, reason: str, now_ns: int) -> Refusal | list[Fact]:
        """Cancel a job (section 7.4): only the session that submitted it may. No facts: it has ended or is ending."""
        job = self._jobs.get(job_id)
        if job is None:
            return Refusal("JOB_NOT_FOUND", "there is no such job", job_id)
        if job.session_id != session_id:
            return Refusal("PERMISSION_DENIED", "only the session that submitted a job may cancel it", job_id)
        if job.ended or job.cancel_reason is not None:
            return []
        return [("arcp.job_cancel_requested", {"job_id": job_id, "reason": reason, "at_ns": now_ns})]

    def end_job(self, job_id: str, *, status: Status, last_event_seq: int, now_ns: int) -> list[Fact]:
        """Note how a job has ended; its terminal is in the log of events already."""
        job = self._jobs.get(job_id)
        if job is None or job.ended:
            return []
        members = {"job_id": job_id, "status": status, "last_event_seq": last_event_seq, "at_ns": now_ns}
        return [("arcp.job_ended", members)]

    def subscribe(
        self,
        job_id: str,
        *,
        session_id: str,
        subscription_id: str,
        copied_after: int,
        after_seq: int,
        high_water: int,
        ended: bool,
        history: bool,
        subscriptions_max: int,
        now_ns: int,
    ) -> Refusal | tuple[SubscriptionRecord | None, list[Fact]]:
        """Follow a job (section 7.6): behind ``after_seq`` with history, else behind its high-water.

        A session's own jobs reach it anyway; with history, what they have emitted so far is shown once more. A second
        subscription takes the place of the first.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return Refusal("JOB_NOT_FOUND", "there is no such job", job_id)
        held = self._subscriptions.get(session_id, {})
        if job_id not in held and len(held) >= subscriptions_max:
            return Refusal("INTERNAL_ERROR", f"a session follows at most {subscriptions_max} jobs at a time", job_id)
        own = job.session_id == session_id
        if not history:
            after_seq = high_water
        if (own or ended) and after_seq >= high_water:  # what is live comes anyway, or there will be none
            return None, []
        record = SubscriptionRecord(
            subscription_id=subscription_id,
            session_id=session_id,
            job_id=job_id,
            source_session_id=job.session_id,
            copied_after=copied_after,
            after_seq=after_seq,
            through_seq=high_water if own else None,
        )
        return record, [("arcp.subscribed", {**dataclasses.asdict(record), "at_ns": now_ns})]

    def unsubscribe(self, job_id: str, *, session_id: str, reason: str, now_ns: int) -> list[Fact]:
        """End a subscription; nothing when there is none (any more)."""
        record = self.subscription(session_id, job_id)
        if record is None:
            return []
        members = {"session_id": session_id, "job_id": job_id, "subscription_id": record.subscription_id}
        return [("arcp.unsubscribed", {**members, "reason": reason, "at_ns": now_ns})]

    # -- folding ----------------------------------------------------------------------------------------------------

    def apply(self, seq: int, type_: str, payload: Mapping[str, Any]) -> None:
        """Fold one durable fact in; one that was folded before, or is of no known type, changes nothing."""
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        fold = self._folds.get(type_)
        if fold is not None:
            fold(payload)

    def _reset(self, fact: Mapping[str, Any]) -> None:
        self._reset_seq = self.last_seq
        for clear in (self._sessions.clear, self._attached.clear, self._jobs.clear, self._unended.clear):
            clear()
        for clear in (self._order.clear, self._keys.clear, self._subscriptions.clear, self._followed.clear):
            clear()

    def _opened(self, fact: Mapping[str, Any]) -> None:
        record = SessionRecord(
            session_id=fact["session_id"],
            token_hash=fact["token_sha256"],
            features=frozenset(fact["features"]),
            instance=fact["instance"],
            opened_at_ns=fact["at_ns"],
        )
        self._sessions[record.session_id] = self._attached[record.session_id] = record

    def _resumed(self, fact: Mapping[str, Any]) -> None:
        record = self._sessions.get(fact["session_id"])
        if record is None:
            self._opened(fact)
            return
        record.token_hash = fact["token_sha256"]
        record.features = frozenset(fact["features"])
        record.instance = fact["instance"]
        record.detached_at_ns = None
        self._attached[record.session_id] = record

    def _detached(self, fact: Mapping[str, Any]) -> None:
        record = self._sessions.get(fact["session_id"])
        if record is not None:
            record.detached_at_ns = fact["at_ns"]
            self._attached.pop(record.session_id, None)

    def _accepted(self, fact: Mapping[str, Any]) -> None:
        job = JobRecord(
            job_id=fact["job_id"],
            session_id=fact["session_id"],
            agent=fact["agent"],
            version=fact["version"],
            lease=fact["lease"],
            lease_constraints=fact.get("lease_constraints"),
            budget=fact.get("budget"),
            trace_id=fact.get("trace_id"),
            parent_job_id=fact.get("parent_job_id"),
            instance=fact["instance"],
            accepted_at_ns=fact["at_ns"],
            idempotency_key=fact.get("idempotency_key"),
            fingerprint=fact["fingerprint"],
        )
        self._jobs[job.job_id] = self._unended[job.job_id] = job
        bisect.insort(self._order, job.key)
        if job.idempotency_key is not None:
            self._keys[job.idempotency_key] = job.job_id

    def _cancel_requested(self, fact: Mapping[str, Any]) -> None:
        job = self._jobs.get(fact["job_id"])
        if job is not None:
            job.cancel_reason = fact["reason"]

    def _ended(self, fact: Mapping[str, Any]) -> None:
        job = self._jobs.get(fact["job_id"])
        if job is not None and not job.ended:
            job.status = cast("Status", fact["status"])
            job.last_event_seq = fact["last_event_seq"]
            job.ended_at_ns = fact["at_ns"]
            self._unended.pop(job.job_id, None)

    def _subscribed(self, fact: Mapping[str, Any]) -> None:
        names = [field.name for field in dataclasses.fields(SubscriptionRecord)]
        record = SubscriptionRecord(**{name: fact[name] for name in names})
        self._subscriptions.setdefault(record.session_id, {})[record.job_id] = record
        self._followed.setdefault(record.session_id, set()).add(record.job_id)

    def _has_followed(self, fact: Mapping[str, Any]) -> None:
        self._followed.setdefault(fact["session_id"], set()).update(fact["job_ids"])

    def _unsubscribed(self, fact: Mapping[str, Any]) -> None:
        held = self._subscriptions.get(fact["session_id"], {})
        record = held.get(fact["job_id"])
        if record is not None and record.subscription_id == fact["subscription_id"]:
            del held[fact["job_id"]]

    # -- forgetting -------------------------------------------------------------------------------------------------

    def _expired(self, record: SessionRecord, now_ns: int) -> bool:
        return record.detached_at_ns is not None and now_ns - record.detached_at_ns > self._window_ns

    def forget(self, now_ns: int) -> None:
        """Drop what nobody can ask for any more: sessions behind their window, jobs and keys behind the retention.

        Only memory is freed; the facts and the events stay in the log. A session is remembered for twice its window,
        so that who comes late is told RESUME_WINDOW_EXPIRED.
        """
        for record in list(self._sessions.values()):
            at = record.detached_at_ns
            if at is not None and now_ns - at > 2 * self._window_ns:
                del self._sessions[record.session_id]
                self._subscriptions.pop(record.session_id, None)
                self._followed.pop(record.session_id, None)
        stale = [
            job
            for job in self._jobs.values()
            if job.ended_at_ns is not None and now_ns - job.ended_at_ns > self._retention_ns
        ]
        for job in stale:
            del self._jobs[job.job_id]
            if job.idempotency_key is not None and self._keys.get(job.idempotency_key) == job.job_id:
                del self._keys[job.idempotency_key]
        if stale:
            gone = {job.key for job in stale}
            self._order = [key for key in self._order if key not in gone]
