"""Where requests are decided: each against its principal's ledger, and durable before it is answered."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from ..protocol import LogmarkError, RequestRefused
from ..protocol.arcp import (
    Accepted,
    Cancel,
    Cancelled,
    Done,
    Fact,
    Hello,
    JobRecord,
    Ledger,
    ListJobs,
    Refusal,
    Request,
    Resume,
    Submit,
    Subscribe,
    Subscribed,
    SubscriptionRecord,
    Unsubscribe,
    Welcomed,
    accepted_payload,
    agent_name,
    list_jobs,
    moment_ns,
    subscribed_payload,
)
from ._contract import JobSpec
from ._lease import budget_left

if TYPE_CHECKING:
    from ._book import Book
    from ._hub import Hub
    from ._link import Decision, Link

__all__ = ["Desk"]

_TERMINAL = frozenset({"success", "error", "cancelled", "timed_out"})
_TOKEN_BYTES = 32


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Desk:
    """Decides the requests of all connections of a gateway. Safe from any thread."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def decide(self, link: Link, request: Request) -> Decision:
        """Return the answer, and what is to happen once it is on its way.

        Raises:
            LogmarkError: it could not be decided.
        """
        if isinstance(request, Hello):
            return self._hello(link, request)
        principal, session_id = link.principal, link.session_id
        if principal is None or session_id is None:
            return Refusal("UNAUTHENTICATED", "there is no session"), None
        book = self._hub.book(principal)
        match request:
            case Submit():
                return self._submit(link, book, session_id, request)
            case Cancel():
                return self._cancel(book, session_id, request)
            case ListJobs():
                limits = self._hub.limits
                return book.read(
                    lambda ledger: list_jobs(
                        request,
                        ledger,
                        self._hub.job_state,
                        jobs_max=limits.list_jobs_max,
                        bytes_max=limits.list_bytes_max,
                    )
                ), None
            case Subscribe():
                return self._subscribe(link, book, session_id, request)
            case Unsubscribe():
                return self._unsubscribe(book, session_id, request)
            case _:
                return Done(), None

    # -- sessions ---------------------------------------------------------------------------------------------------

    def _hello(self, link: Link, request: Hello) -> Decision:
        hub = self._hub
        principal = hub.principal_of(request.token)
        if principal is None:
            hub.log.warning("arcp_login_refused", peer=link.peer)
            return Refusal("UNAUTHENTICATED", "the token is not known"), None
        if hub.draining:
            return Refusal("INTERNAL_ERROR", "the server is shutting down"), None
        if not hub.admit(link, principal):
            return Refusal("INTERNAL_ERROR", "the principal has too many connections"), None
        token = f"rtk_{secrets.token_urlsafe(_TOKEN_BYTES)}"
        book = hub.book(principal)
        resume = request.resume
        if resume is None:
            session_id, after_seq = f"sess_{hub.new_id()}", 0
            refusal = book.decide(partial(self._open, session_id, link.features, token))
        else:
            session_id, after_seq = resume.session_id, resume.last_event_seq
            refusal = book.decide(partial(self._resume, resume, link.features, token))
        if refusal is not None:
            hub.log.warning("arcp_session_refused", principal=principal, code=refusal.code, resumed=resume is not None)
            return refusal, None
        link.token_hash = _digest(token)
        welcome = Welcomed(session_id=session_id, resume_token=token, agents=hub.agents.describe(), after_seq=after_seq)
        return welcome, partial(hub.attach, link, session_id, after_seq)

    def _open(
        self, session_id: str, features: frozenset[str], token: str, ledger: Ledger
    ) -> tuple[Refusal | None, list[Fact]]:
        hub = self._hub
        refusal = ledger.may_open(hub.limits.principal_sessions_max)
        if refusal is not None:
            return refusal, []
        return None, ledger.open_session(
            session_id,
            token_hash=_digest(token),
            features=features,
            instance=hub.instance.id,
            now_ns=hub.now_ns(),
        )

    def _resume(
        self, resume: Resume, features: frozenset[str], token: str, ledger: Ledger
    ) -> tuple[Refusal | None, list[Fact]]:
        hub = self._hub
        # Of a session that was deleted nothing is left to resume: its numbers are used, and none is available.
        log = hub.runtime.store.info(resume.session_id) if ledger.session(resume.session_id) is not None else None
        decided = ledger.resume_session(
            resume.session_id,
            presented_hash=_digest(resume.resume_token),
            last_event_seq=resume.last_event_seq,
            log_first_seq=1 if log is None else log.next_seq + 1 if log.deleted else log.first_available,
            log_last_seq=0 if log is None else log.last_seq,
            token_hash=_digest(token),
            features=features,
            instance=hub.instance.id,
            now_ns=hub.now_ns(),
        )
        return (decided, []) if isinstance(decided, Refusal) else (None, decided)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _submit(self, link: Link, book: Book, session_id: str, request: Submit) -> Decision:
        hub = self._hub
        # A repetition is answered as the first time, even if the agent has gone or the lease has run out since.
        decided = book.read(lambda ledger: ledger.repeated(request.idempotency_key, request.fingerprint))
        record: JobRecord | None = None
        if decided is None:
            if hub.draining:
                return Refusal("INTERNAL_ERROR", "the server is shutting down"), None
            try:
                record = self._new_job(link, session_id, request)
            except RequestRefused as refused:
                return Refusal(refused.code, refused.reason), None
            decided = book.decide(partial(self._accept, request, record))
        if isinstance(decided, Refusal):
            return decided, None
        payload = accepted_payload(decided, hub.budget_members(decided.budget))
        accepted = Accepted(decided.job_id, payload, decided.trace_id)
        if record is None or decided.job_id != record.job_id:
            return accepted, partial(self._follow_repeated, link, book, session_id, decided)
        hub.log.info("arcp_job_accepted", session=session_id, job=record.job_id, agent=agent_name(record))
        return accepted, partial(self._start, link, request, record)

    def _new_job(self, link: Link, session_id: str, request: Submit) -> JobRecord:
        hub = self._hub
        if "@" in request.agent and "agent_versions" not in link.features:
            raise RequestRefused(code="INVALID_REQUEST", reason="agent_versions was not negotiated")
        entry = hub.agents.resolve(request.agent)
        now_ns = hub.now_ns() // 1000 * 1000  # as fine as it is told, so that filters mean what they show
        lease, constraints = hub.agents.check_lease(
            request.lease_request, request.lease_constraints, now_ns=now_ns, features=link.features
        )
        budget = hub.agents.budget(lease)
        return JobRecord(
            job_id=f"job_{hub.new_id()}",
            session_id=session_id,
            agent=entry.name,
            version=entry.version,
            lease=lease,
            lease_constraints=constraints,
            budget=None if budget is None else {name: f"{left:f}" for name, left in budget.items()},
            trace_id=request.trace_id,
            parent_job_id=request.parent_job_id,
            instance=hub.instance.id,
            accepted_at_ns=now_ns,
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint,
        )

    def _accept(self, request: Submit, record: JobRecord, ledger: Ledger) -> tuple[JobRecord | Refusal, list[Fact]]:
        again = ledger.repeated(request.idempotency_key, request.fingerprint)
        if again is not None:  # an equal submission was faster
            return again, []
        decided = ledger.accept_job(record, running_max=self._hub.limits.principal_jobs_max)
        return (decided, []) if isinstance(decided, Refusal) else (record, decided)

    def _start(self, link: Link, request: Submit, record: JobRecord) -> None:
        hub = self._hub
        hub.beat()
        live = hub.add_job(link.principal or "", record)
        expires_at = (record.lease_constraints or {}).get("expires_at")
        spec = JobSpec(
            session_id=record.session_id,
            job_id=record.job_id,
            principal=link.principal or "",
            agent=record.agent,
            version=record.version,
            input=request.input,
            lease=record.lease,
            expires_at_ns=None if expires_at is None else moment_ns("expires_at", expires_at),
            max_runtime_s=request.max_runtime_s,
            trace_id=record.trace_id,
            parent_job_id=record.parent_job_id,
            features=link.features,
        )
        try:
            hub.runner.start(spec, live)
        except LogmarkError as error:
            reason = error.reason if isinstance(error, RequestRefused) else "the job could not be started"
            live.error("INTERNAL_ERROR", reason, retryable=True)
        except BaseException:
            live.error("INTERNAL_ERROR", "the job could not be started", retryable=True)
            raise
        finally:
            link.follow()

    def _follow_repeated(self, link: Link, book: Book, session_id: str, job: JobRecord) -> None:
        """Let a session that repeated another one's submission see the job as the first one does, from its start."""
        if job.session_id == session_id or book.read(lambda ledger: ledger.has_followed(session_id, job.job_id)):
            return  # it has seen the job, or is about to
        decided = self._subscribed(book, session_id, job.job_id, after_seq=0, history=True)
        if isinstance(decided, SubscriptionRecord):
            self._forward(link, decided)

    def _forward(self, link: Link, record: SubscriptionRecord) -> None:
        link.follow()
        self._hub.forwarder.start(record, link.features)

    def _cancel(self, book: Book, session_id: str, request: Cancel) -> Decision:
        hub = self._hub

        def cancel(ledger: Ledger) -> tuple[Refusal | JobRecord, list[Fact]]:
            decided = ledger.cancel_job(
                request.job_id, session_id=session_id, reason=request.reason, now_ns=hub.now_ns()
            )
            job = ledger.job(request.job_id)
            if isinstance(decided, Refusal) or job is None:
                return (decided if isinstance(decided, Refusal) else Refusal("JOB_NOT_FOUND", "")), []
            return job, decided

        decided = book.decide(cancel)
        if isinstance(decided, Refusal):
            return decided, None
        status, _ = hub.job_state(decided)
        payload: dict[str, Any] = {"job_id": request.job_id, "current_status": status}
        if request.reason:
            payload["reason"] = request.reason
        # The job is told behind the acknowledgement, which leaves through the faster lane: so it comes before the end.
        return Cancelled(request.job_id, payload), partial(hub.cancel, request.job_id, request.reason)

    # -- subscriptions ----------------------------------------------------------------------------------------------

    def _subscribe(self, link: Link, book: Book, session_id: str, request: Subscribe) -> Decision:
        hub = self._hub
        job = book.read(lambda ledger: ledger.job(request.job_id))
        hub.log.info(
            "arcp_subscription_decided",
            session=session_id,
            job=request.job_id,
            principal=link.principal,
            granted=job is not None,
        )
        if job is None:
            return Refusal("JOB_NOT_FOUND", "there is no such job", request.job_id), None
        status, high_water = hub.job_state(job)
        after_seq = request.from_event_seq
        if request.history and after_seq > max(high_water, hub.runtime.session(job.session_id).last_seq):
            reason = "from_event_seq is beyond the events of the job's session"
            return Refusal("INVALID_REQUEST", reason, request.job_id), None
        decided = self._subscribed(
            book,
            session_id,
            job.job_id,
            after_seq=min(after_seq, high_water),
            history=request.history,
            state=(status, high_water),
        )
        if isinstance(decided, Refusal):
            return decided, None
        payload = subscribed_payload(
            job,
            hub.budget_members(self._budget_left(job)),
            status=status,
            high_water=high_water,
            replayed=request.history and after_seq < high_water,
        )
        answer = Subscribed(job.job_id, payload)
        if decided is None:
            return answer, None
        return answer, partial(self._forward, link, decided)

    def _budget_left(self, job: JobRecord) -> Mapping[str, Decimal] | None:
        """Return the current counters of a job (section 7.6): its agent's, or where that has gone, those in its log."""
        if job.budget is None:
            return None
        running = self._hub.runner.budget(job.job_id)
        if running is not None:
            return running
        store = self._hub.runtime.store
        initial = {currency: Decimal(amount) for currency, amount in job.budget.items()}
        return budget_left(initial, job.job_id, store.read_backwards(job.session_id, before_seq=None))

    def _subscribed(
        self,
        book: Book,
        session_id: str,
        job_id: str,
        *,
        after_seq: int,
        history: bool,
        state: tuple[str, int] | None = None,
    ) -> SubscriptionRecord | Refusal | None:
        hub = self._hub
        subscription_id = f"sub_{hub.new_id()}"
        copied_after = hub.runtime.session(session_id).last_seq

        def subscribe(ledger: Ledger) -> tuple[SubscriptionRecord | Refusal | None, list[Fact]]:
            job = ledger.job(job_id)
            status, high_water = state or (("pending", 0) if job is None else hub.job_state(job))
            decided = ledger.subscribe(
                job_id,
                session_id=session_id,
                subscription_id=subscription_id,
                copied_after=copied_after,
                after_seq=after_seq,
                high_water=high_water,
                ended=status in _TERMINAL,
                history=history,
                subscriptions_max=hub.limits.session_subscriptions_max,
                now_ns=hub.now_ns(),
            )
            return (decided, []) if isinstance(decided, Refusal) else decided

        return book.decide(subscribe)

    def _unsubscribe(self, book: Book, session_id: str, request: Unsubscribe) -> Decision:
        hub = self._hub
        hub.forwarder.stop(session_id, request.job_id)
        book.decide(
            lambda ledger: (
                None,
                ledger.unsubscribe(request.job_id, session_id=session_id, reason="unsubscribed", now_ns=hub.now_ns()),
            )
        )
        return Done(), None
