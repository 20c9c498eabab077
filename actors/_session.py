"""The SessionActor: owns a session's counter and decides the order within it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pykka import ActorDeadError, ActorRef

from ..protocol import (
    ActorRestarted,
    AppendError,
    AppendUncertain,
    Clock,
    EventIdConflict,
    Limits,
    RawEnvelope,
    RuntimeClosed,
    SessionHalted,
    StorageRejected,
    WrongExpectedSeq,
)
from ..storage import Appended, BatchResult, Logger, SessionBatch, put_off, rfc3339
from ._base import LogmarkActor
from ._dispatch import Dispatcher
from ._gate import Gate
from ._seams import Timers
from ._watermark import Watermark
from .messages import (
    Append,
    CheckWriter,
    Committed,
    GetMarks,
    HaltSession,
    Observed,
    Persist,
    Persisted,
    Send,
    Subscribe,
    Unsubscribe,
)

__all__ = ["SessionActor", "SessionChildren"]

_CHECK_WRITER_S = 0.25


class SessionChildren(Protocol):
    """Starts the actors behind a SessionActor, each when it is first needed."""

    def start_broadcast(self) -> ActorRef[Any]:
        """Start the session's BroadcastActor."""
        ...

    def start_jobs(self) -> ActorRef[Any]:
        """Start the session's JobActor."""
        ...


@dataclasses.dataclass(slots=True)
class _InFlight:
    """The batch that the writer has, in the order of its submission; control envelopes wait in their places."""

    batch_id: int
    items: list[Append | Send]
    appends: list[Append]
    writer: ActorRef[Any] | None = None
    result: BatchResult | None = None
    succeeded: bool = False


class SessionActor(LogmarkActor):
    """Owns the order of one session.

    All that waits in its inbox becomes one batch, and at most one batch is with the writer. The counter is a cache of
    the writer's last answer; nothing is stamped, told or broadcast before that answer has come. It never blocks.

    Args:
        session_id: the session.
        choose_writer: returns the ref that gets ``Persist`` next: a PersistActor's, or a ``MockWriter``'s in a test.
        children: starts the BroadcastActor and the JobActor.
        gate: gets its places back as appends are answered.
        watermark: rises as numbers become durable.
    """

    # With all of its attributes in a dict, more than Python shares the keys of, an idle session would take 1.2 kB more.
    __slots__ = (
        "_batch_ids",
        "_broadcast",
        "_children",
        "_choose_writer",
        "_gate",
        "_halt_recorder",
        "_in_flight",
        "_jobs",
        "_limits",
        "_refusal",
        "_timers",
        "_unrecorded",
        "_waiting",
        "_watermark",
        "_writer_check_due",
        "session_id",
    )

    travels = True

    def __init__(
        self,
        *,
        session_id: str,
        choose_writer: Callable[[], ActorRef[Any]],
        children: SessionChildren,
        gate: Gate,
        watermark: Watermark,
        limits: Limits,
        timers: Timers,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
    ) -> None:
        super().__init__(
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="session", session=session_id),
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self.session_id = session_id
        self._choose_writer = choose_writer
        self._children = children
        self._gate = gate
        self._watermark = watermark
        self._limits = limits
        self._timers = timers
        self._broadcast: ActorRef[Any] | None = None
        self._jobs: ActorRef[Any] | None = None
        self._waiting: deque[Append | Send] = deque()
        self._in_flight: _InFlight | None = None
        self._batch_ids = 0
        self._writer_check_due = False
        self._refusal: SessionHalted | None = None
        self._halt_recorder: ActorRef[Any] | None = None
        self._unrecorded: HaltSession | None = None

    @property
    def last_seq(self) -> int:
        """The counter: number of the last event, as the writer last answered."""
        return self._watermark.seq

    def on_receive(self, message: Any) -> None:
        """Take one message; batches are formed when the inbox is drained."""
        match message:
            case Append() | Send():
                self._waiting.append(message)
            case Persisted():
                self._on_persisted(message)
            case Observed():
                self._on_observed(message)
            case Subscribe() | Unsubscribe():
                self._for_broadcast(message)
            case GetMarks():
                self._for_jobs(message)
            case CheckWriter():
                self._check_writer()
            case _:
                super().on_receive(message)

    def on_drained(self) -> None:
        """Hand the next batch to the writer, unless it still has the last one."""
        while self._waiting and self._in_flight is None:
            self._hand_over()

    def is_quiet(self) -> bool:
        """While the writer has a batch, its answer brings the next turn; what comes meanwhile is the next batch."""
        return self._in_flight is not None

    # -- towards the log ----------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        items, appends, declined = self._next_batch()
        if declined:
            self._leave(declined)
        if not appends:
            # Nothing to store: control envelopes alone overtake nobody, as nothing is in flight.
            controls = tuple(item.envelope for item in items if isinstance(item, Send))
            if controls:
                self._announce(Committed(controls, self.last_seq, self.last_seq))
            return
        self._batch_ids += 1
        batch = SessionBatch(self.session_id, tuple(append.request for append in appends))
        in_flight = self._in_flight = _InFlight(self._batch_ids, items, appends)
        try:
            # After a doubt, the batch goes to the writer that records the halt: another could be faster and write it.
            recorder, self._halt_recorder = self._halt_recorder, None
            writer = recorder if recorder is not None and recorder.is_alive() else self._choose_writer()
            if self._unrecorded is not None:  # there was no writer for it: it goes before whatever is written next
                writer.tell(self._unrecorded)
                self._unrecorded = None
        except Exception as error:  # such as no thread for one: nobody was told anything, so nothing is written
            self._finish(StorageRejected(session_id=self.session_id, reason=f"there is no writer: {error!r}"))
            return
        in_flight.writer = writer
        try:
            writer.tell(Persist(self._batch_ids, batch, self.actor_ref))
        except ActorDeadError:
            self._finish(StorageRejected(session_id=self.session_id, reason="the writer is not running"))
            return
        self._watch_writer()

    def _next_batch(self) -> tuple[list[Append | Send], list[Append], list[Append]]:
        """Take the next batch off the queue: its items in order, its appends, and the appends nobody wants any more."""
        items: list[Append | Send] = []
        appends: list[Append] = []
        declined: list[Append] = []
        events_left, bytes_left = self._limits.batch_events_max, self._limits.batch_bytes_max
        waiting = self._waiting
        while waiting:
            item = waiting[0]
            if isinstance(item, Append):
                events_left -= len(item.request.events)
                bytes_left -= item.size_bytes
                if appends and (events_left < 0 or bytes_left < 0):
                    break
                waiting.popleft()
                if not self._begin(item):
                    declined.append(item)
                    events_left += len(item.request.events)
                    bytes_left += item.size_bytes
                    continue
                appends.append(item)
            else:
                waiting.popleft()
            items.append(item)
        return items, appends, declined

    def _leave(self, appends: list[Append]) -> None:
        """Give back the places of appends that were answered."""
        if len(appends) == 1:
            append = appends[0]
            self._gate.leave(len(append.request.events), append.size_bytes)
        else:
            self._gate.leave(
                sum([len(append.request.events) for append in appends]), sum([append.size_bytes for append in appends])
            )

    def _check_writer(self) -> None:
        """Fail the batch in flight when its writer has died without a word."""
        self._writer_check_due = False
        in_flight = self._in_flight
        if in_flight is not None and in_flight.writer is not None and not in_flight.writer.is_alive():
            self._halt_uncertain("the writer died")
        self._watch_writer()

    def _watch_writer(self) -> None:
        if self._in_flight is not None and not self._writer_check_due:
            self._timers.after(_CHECK_WRITER_S, self.actor_ref, CheckWriter())
            self._writer_check_due = True

    def _halt_uncertain(self, reason: str) -> None:
        """Nobody knows whether the batch in flight was written: tell its callers, and have the halt recorded."""
        in_flight = self._in_flight
        if in_flight is None:
            return
        first_id = in_flight.appends[0].request.events[0].id
        self._log.error("append_uncertain", reason=reason, first_event_id=first_id)
        self._record_halt(reason, first_id)
        self._finish(AppendUncertain(session_id=self.session_id, reason=reason, first_event_id=first_id))

    def _record_halt(self, reason: str, first_event_id: str | None) -> None:
        halt = HaltSession(self.session_id, reason, first_event_id)
        try:
            writer = self._choose_writer()
            writer.tell(halt)
        except Exception as error:
            self._log.error("halt_not_recorded", reason=f"no writer is running: {error!r}")
            self._unrecorded = halt
        else:
            self._halt_recorder = writer

    # -- back from the log --------------------------------------------------------------------------------------

    def _on_persisted(self, message: Persisted) -> None:
        in_flight = self._in_flight
        if in_flight is None or in_flight.batch_id != message.batch_id:
            # The answer to a batch whose callers were told otherwise. What it wrote is in the log all the same.
            self._log.warning("late_answer", last_seq=message.result.last_seq)
            self._on_observed(Observed(message.result.last_seq))
            return
        result = in_flight.result = message.result
        self._gate.note(len(in_flight.appends), message.commit_s)
        envelopes = self._envelopes(in_flight, result) if self._is_followed(in_flight) else ()
        in_flight.succeeded = len(result.answers) == len(in_flight.appends) and all(
            isinstance(answer, Appended) for answer in result.answers
        )
        if not in_flight.succeeded or self._log.enabled("info"):
            self._log_persisted(in_flight, message)
        known = self.last_seq
        self._watermark.rise(result.last_seq)
        if envelopes:
            self._announce(Committed(envelopes, result.last_seq_before, result.last_seq))
        elif result.last_seq > known:
            self._announce(Observed(result.last_seq))  # nothing of ours was written, but others have been here
        # The callers come last, so that what an append's caller asks next finds the append everywhere.
        self._finish(None)

    def _is_followed(self, in_flight: _InFlight) -> bool:
        """Say whether anybody behind this actor has to see the batch itself, and not only how far the log goes."""
        if self._broadcast is not None or self._jobs is not None or len(in_flight.items) != len(in_flight.appends):
            return True
        return any(event.job_id is not None for append in in_flight.appends for event in append.request.events)

    def _envelopes(self, in_flight: _InFlight, result: BatchResult) -> tuple[RawEnvelope, ...]:
        """Stamp what was written with its numbers, control envelopes in their places."""
        envelopes: list[RawEnvelope] = []
        answers = iter(result.answers)
        for item in in_flight.items:
            if isinstance(item, Send):
                envelopes.append(item.envelope)
                continue
            answer = next(answers)
            if isinstance(answer, Appended) and answer.written:
                session_id = self.session_id
                envelopes += [
                    event.stamped(session_id, seq) for seq, event in enumerate(item.request.events, answer.first_seq)
                ]
        return tuple(envelopes)

    def _finish(self, error: AppendError | None) -> None:
        """Answer every caller of the batch in flight, with its own answer or with one error for all."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return
        appends, result = in_flight.appends, in_flight.result
        answers: tuple[Appended | AppendError, ...]
        if error is None and result is not None and len(result.answers) == len(appends):
            answers = result.answers
        else:
            answers = (error or AppendUncertain(session_id=self.session_id, reason="no answer"),) * len(appends)
        # With a next batch at hand, its way to the disk comes first: these callers can run while the disk works on it.
        # Not so after a failure: who hears of one may take back what waits, so that nothing is stored behind it.
        if not (in_flight.succeeded and self._waiting and put_off(lambda: self._settle_all(appends, answers))):
            self._settle_all(appends, answers)
        if result is None:
            # What failed is the appends; the control envelopes between them were never the writer's.
            controls = tuple(item.envelope for item in in_flight.items if isinstance(item, Send))
            if controls:
                self._announce(Committed(controls, self.last_seq, self.last_seq))

    def _settle_all(self, appends: list[Append], answers: tuple[Appended | AppendError, ...]) -> None:
        for append, answer in zip(appends, answers, strict=True):
            self._settle(append, answer)
        self._leave(appends)

    def _log_persisted(self, in_flight: _InFlight, message: Persisted) -> None:
        result = message.result
        answered = list(zip(in_flight.appends, result.answers, strict=True))
        done = [(append, answer) for append, answer in answered if isinstance(answer, Appended) and answer.written]
        failed = [answer for answer in result.answers if not isinstance(answer, Appended)]
        if done:
            written = [answer for _, answer in done]
            began_ns = in_flight.appends[0].submitted_ns
            self._log.info(
                "batch_persisted",
                first_seq=written[0].first_seq,
                last_seq=written[-1].last_seq,
                events=sum(answer.last_seq - answer.first_seq + 1 for answer in written),
                appends=len(in_flight.appends),
                retries=len(in_flight.appends) - len(written) - len(failed),
                bytes=result.bytes_written,
                sync_ms=round(result.sync_s * 1000, 3),
                commit_ms=round(message.commit_s * 1000, 3),
                submitted_first=rfc3339(in_flight.appends[0].submitted_ns),
                submitted_last=rfc3339(in_flight.appends[-1].submitted_ns),
                append_seqs=[answer.first_seq for answer in written],
                append_offsets_us=[(append.submitted_ns - began_ns) // 1000 for append, _ in done],
            )
        elif not failed:
            self._log.info("retry_answered", appends=len(in_flight.appends), last_seq=result.last_seq)
        for error in {type(answer): answer for answer in failed}.values():
            count = sum(type(answer) is type(error) for answer in failed)
            name, reason = type(error).__name__, str(error)
            if isinstance(error, WrongExpectedSeq | EventIdConflict):
                # The caller's own condition did not hold: it has its answer, and nobody else need look.
                self._log.info("append_declined", error=name, reason=reason, appends=count)
            else:
                self._log.warning("append_failed", error=name, reason=reason, appends=count)

    # -- to those behind ----------------------------------------------------------------------------------------

    def _announce(self, message: Committed | Observed) -> None:
        """Tell subscribers and marks what is durable."""
        if self._broadcast is not None and not _told(self._broadcast, message):
            self._broadcast = None  # it gave up, and its subscribers have been told so
        if (
            self._jobs is None
            and isinstance(message, Committed)
            and any(envelope.event_seq is not None and envelope.job_id is not None for envelope in message.envelopes)
        ):
            self._jobs = self._children.start_jobs()
        if self._jobs is not None and not _told(self._jobs, message):
            self._jobs = None  # it gave up; who asks next starts one that reads the log

    def _on_observed(self, message: Observed) -> None:
        if message.last_seq > self.last_seq:
            self._watermark.rise(message.last_seq)
            self._announce(message)

    def _for_broadcast(self, message: Subscribe | Unsubscribe) -> None:
        if self._broadcast is not None and _told(self._broadcast, message):
            return
        if isinstance(message, Subscribe):
            self._broadcast = self._children.start_broadcast()
            self._broadcast.tell(message)

    def _for_jobs(self, message: GetMarks) -> None:
        if self._jobs is None or not _told(self._jobs, message):
            self._jobs = self._children.start_jobs()
            self._jobs.tell(message)

    # -- failure and the end ------------------------------------------------------------------------------------

    def on_message_failed(self, message: Any) -> None:
        """Put what was not dealt with where ``on_restarted`` and ``on_gave_up`` look for it, or answer it."""
        in_flight = self._in_flight
        match message:
            case Append() if all(message is not item for item in self._waiting):
                self._waiting.append(message)
            case Persisted() if in_flight is not None and in_flight.batch_id == message.batch_id:
                in_flight.result = message.result
            case GetMarks():
                message.answer(ActorRestarted(session_id=self.session_id, reason="it could not pass a question on"))
            case Subscribe():
                message.subscriber.end()
            case CheckWriter():
                self._writer_check_due = False
            case _:
                pass

    def on_restarted(self, error: Exception) -> None:
        """Answer who waits: with the numbers where they are known, else that nothing was written.

        The batch that the writer still has stays in flight: its answer is on the way. Those behind are told how far the
        log goes, and find by themselves what they have not been shown.
        """
        in_flight = self._in_flight
        if in_flight is not None and in_flight.result is not None:
            self._watermark.rise(in_flight.result.last_seq)
            self._announce(Observed(in_flight.result.last_seq))
            self._finish(None)
        self._reject_waiting(ActorRestarted(session_id=self.session_id, reason=repr(error)))
        self._watch_writer()

    def on_gave_up(self, error: Exception) -> None:
        """Fail everything and halt the session; a batch that the writer has may or may not be written."""
        reason = f"the session's actor failed too often: {error!r}"
        # A successor would know nothing of the batch that a writer may still have, and could give another the next one.
        self._refusal = SessionHalted(session_id=self.session_id, reason=f"{reason}; then open the store anew")
        self._gate.close(self._refusal)
        if self._in_flight is not None and self._in_flight.result is not None:
            self._finish(None)
        if self._in_flight is None:
            self._record_halt(reason, None)
        self._halt_uncertain(reason)
        self._reject_waiting(ActorRestarted(session_id=self.session_id, reason=repr(error)))
        self._stop_children()

    def on_stop(self) -> None:
        """Stop: nothing that was accepted goes without an answer."""
        if self._in_flight is not None:
            # No halt: the writer still has the session's lock, so nothing is appended across what it does. Should that
            # fail, the store halts the session.
            self._finish(
                AppendUncertain(
                    session_id=self.session_id,
                    reason="the runtime was closed before the disk answered",
                    first_event_id=self._in_flight.appends[0].request.events[0].id,
                    halted=False,
                )
            )
        self._reject_waiting(RuntimeClosed())
        self.on_drained()  # the control envelopes that are left
        self._stop_children()

    def _stop_children(self) -> None:
        for child in (self._broadcast, self._jobs):
            if child is not None:
                child.stop(block=False)

    def on_dead_letter(self, message: Any) -> None:
        """Answer an append that came after the end."""
        if isinstance(message, Append):
            self._reject(message, self._refusal or RuntimeClosed())
        elif isinstance(message, GetMarks):
            message.answer(RuntimeClosed())
        elif isinstance(message, Subscribe):
            message.subscriber.end()

    def _reject_waiting(self, error: AppendError) -> None:
        """Reject the appends that wait; the control envelopes among them keep their places."""
        waiting = self._waiting
        self._waiting = deque(item for item in waiting if isinstance(item, Send))
        for item in waiting:
            if isinstance(item, Append):
                self._reject(item, error)

    def _reject(self, append: Append, error: AppendError) -> None:
        if self._begin(append):
            self._settle(append, error)
        self._leave([append])

    # A caller's own mistake, such as settling the future itself, may not keep the answers from the others.

    def _begin(self, append: Append) -> bool:
        try:
            return append.reply.begin()
        except Exception as error:
            self._log.error("reply_failed", error=repr(error), exc_info=error)
            return False

    def _settle(self, append: Append, answer: Appended | AppendError) -> None:
        try:
            append.reply.settle(answer)
        except Exception as error:
            self._log.error("reply_failed", error=repr(error), exc_info=error)


def _told(ref: ActorRef[Any], message: Any) -> bool:
    """Tell an actor, and say whether it lives."""
    try:
        ref.tell(message)
    except ActorDeadError:
        return False
    return True
