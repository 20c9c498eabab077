"""The SessionActor: owns a session's counter and decides the order within it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef

from ..protocol import (
    ActorRestarted,
    AppendError,
    AppendUncertain,
    Clock,
    Limits,
    RawEnvelope,
    RuntimeClosed,
    SessionHalted,
    StorageRejected,
)
from ..storage import Appended, BatchResult, Logger, SessionBatch, put_off
from ._answer_log import log_answer
from ._base import LogmarkActor
from ._callers import Callers
from ._dispatch import Dispatcher
from ._gate import Gate
from ._instrumentation import Instruments
from ._linger import Linger
from ._measure import persisted_batch
from ._seams import SessionChildren, Timers
from ._watermark import Watermark
from .messages import (
    Append,
    CheckWriter,
    Committed,
    GetMarks,
    GetRows,
    GetRowsBase,
    HaltSession,
    Observed,
    Persist,
    Persisted,
    Send,
    Subscribe,
    Unsubscribe,
)

__all__ = ["SessionActor"]

_CHECK_WRITER_S = 0.25


@dataclasses.dataclass(slots=True)
class _InFlight:
    """The batch that the writer has, in the order of its submission; control envelopes wait in their places."""

    batch_id: int
    items: list[Append | Send]
    appends: list[Append]
    handed_s: float
    writer: ActorRef[Any] | None = None
    result: BatchResult | None = None
    succeeded: bool = False
    logged: bool = False


class SessionActor(LogmarkActor):
    """Owns the order of one session.

    All that waits in its inbox becomes one batch, and at most one batch is with the writer. The counter is a cache of
    the writer's last answer; nothing is stamped, told or broadcast before that answer has come. It never blocks.

    Args:
        session_id: the session.
        choose_writer: returns the ref that gets ``Persist`` next: a PersistActor's, or a ``MockWriter``'s in a test.
        children: starts the BroadcastActor, the JobActor and the RowActor.
        gate: gets its places back as appends are answered.
        watermark: rises as numbers become durable.
        instruments: are told of each commit.
        new_linger: returns what waits for callers before a commit; None: nothing does.
    """

    # With all of its attributes in a dict, more than Python shares the keys of, an idle session would take 1.2 kB more.
    __slots__ = (
        "_batch_ids",
        "_broadcast",
        "_callers",
        "_children",
        "_choose_writer",
        "_gate",
        "_halt_recorder",
        "_in_flight",
        "_instruments",
        "_jobs",
        "_limits",
        "_linger",
        "_new_linger",
        "_refusal",
        "_rows",
        "_rows_apart",
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
        instruments: Instruments | None = None,
        new_linger: Callable[[], Linger] | None = None,
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
        self._callers = Callers(gate, self._log)
        self._watermark = watermark
        self._limits = limits
        self._timers = timers
        self._broadcast: ActorRef[Any] | None = None
        self._jobs: ActorRef[Any] | None = None
        self._rows: ActorRef[Any] | None = None
        self._rows_apart: ActorRef[Any] | None = None  # started, but only for what a pruning has to keep
        self._waiting: deque[Append | Send] = deque()
        self._in_flight: _InFlight | None = None
        self._batch_ids = 0
        self._writer_check_due = False
        self._refusal: SessionHalted | None = None
        self._halt_recorder: ActorRef[Any] | None = None
        self._unrecorded: HaltSession | None = None
        self._instruments = instruments
        self._new_linger = new_linger
        self._linger: Linger | None = None  # from the first batch of several on

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
            case GetRows():
                self._for_rows(message)
            case CheckWriter():
                self._check_writer()
            case _:
                super().on_receive(message)

    def take_turn(self) -> bool:
        """As any actor; first, callers that are on their way may be waited for."""
        linger = self._linger
        if linger is not None and linger.is_due:
            try:
                linger.wait(self.actor_inbox)
            finally:
                self._callers.end_relay()
        return super().take_turn()

    def is_due(self) -> bool:
        """After a plan to wait for callers, what waits has not been handed over yet."""
        return self._linger is not None and self._linger.is_due

    def on_drained(self) -> None:
        """Hand the next batch to the writer, unless it still has the last one, or callers are to be waited for."""
        if self.is_due():
            return
        while self._waiting and self._in_flight is None:
            self._hand_over()

    def is_quiet(self) -> bool:
        """While the writer has a batch, its answer brings the next turn; what comes meanwhile is the next batch."""
        return self._in_flight is not None

    # -- towards the log ----------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        items, appends, declined = self._next_batch()
        if declined:
            self._callers.leave(declined)
        if not appends:
            # Nothing to store: control envelopes alone overtake nobody, as nothing is in flight.
            controls = tuple(item.envelope for item in items if isinstance(item, Send))
            if controls:
                self._announce(Committed(controls, self.last_seq, self.last_seq))
            return
        self._batch_ids += 1
        batch = SessionBatch(self.session_id, tuple([append.request for append in appends]))
        in_flight = self._in_flight = _InFlight(self._batch_ids, items, appends, self._clock.monotonic())
        self._gate.oldest_ns = appends[0].submitted_ns
        try:
            # After a doubt, the batch goes to the writer that records the halt: another could be faster and write it.
            recorder, self._halt_recorder = self._halt_recorder, None
            writer = recorder if recorder is not None and recorder.is_alive() else self._choose_writer()
            if self._unrecorded is not None:  # there was no writer for it: it goes before whatever is written next
                writer.tell(self._unrecorded)
                self._unrecorded = None
        except Exception as error:  # such as no thread for one: nobody was told anything, so nothing is written
            self._refuse_batch(in_flight, f"there is no writer: {error!r}")
            return
        in_flight.writer = writer
        try:
            writer.tell(Persist(self._batch_ids, batch, self.actor_ref))
        except ActorDeadError:
            self._refuse_batch(in_flight, "the writer is not running")
            return
        self._watch_writer()

    def _refuse_batch(self, in_flight: _InFlight, reason: str) -> None:
        """Answer a batch that came to no writer."""
        error = StorageRejected(session_id=self.session_id, reason=reason)
        self._log.warning(
            "append_failed",
            error=type(error).__name__,
            reason=str(error),
            appends=len(in_flight.appends),
            batch=in_flight.batch_id,
        )
        self._finish(error)

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
                if not self._callers.begin(item):
                    declined.append(item)
                    events_left += len(item.request.events)
                    bytes_left += item.size_bytes
                    continue
                appends.append(item)
            else:
                waiting.popleft()
            items.append(item)
        return items, appends, declined

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
        self._log_uncertain(in_flight, reason, first_id)
        self._record_halt(reason, first_id)
        self._finish(AppendUncertain(session_id=self.session_id, reason=reason, first_event_id=first_id))

    def _log_uncertain(self, in_flight: _InFlight, reason: str, first_event_id: str) -> None:
        self._log.error(
            "append_uncertain",
            reason=reason,
            first_event_id=first_event_id,
            appends=len(in_flight.appends),
            batch=in_flight.batch_id,
        )

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
            self._log.warning("late_answer", last_seq=message.result.last_seq, batch=message.batch_id)
            self._on_observed(Observed(message.result.last_seq))
            return
        result = in_flight.result = message.result
        self._gate.note(len(in_flight.appends), message.commit_s)
        starts_jobs = self._jobs is None and _has_jobs(in_flight)
        envelopes = self._envelopes(in_flight, result) if starts_jobs or self._is_followed(in_flight) else ()
        failed = [answer for answer in result.answers if not isinstance(answer, Appended)]
        in_flight.succeeded = not failed and len(result.answers) == len(in_flight.appends)
        self._log_answer(in_flight, result, message.commit_s)
        known = self.last_seq
        self._watermark.rise(result.last_seq)
        if envelopes:
            if starts_jobs:
                self._jobs = self._children.start_jobs()
            self._announce(Committed(envelopes, result.last_seq_before, result.last_seq))
        elif result.last_seq > known:
            self._announce(Observed(result.last_seq))  # nothing of ours was written, but others have been here
        if self._instruments is not None:
            self._instruments.batch_persisted(
                persisted_batch(self.session_id, in_flight.appends, message, self._clock.time_ns())
            )
        # The callers come last, so that what an append's caller asks next finds the append everywhere.
        if in_flight.succeeded:
            self._plan_linger(len(in_flight.appends), message.commit_s)
        self._finish(None)

    def _plan_linger(self, answered: int, commit_s: float) -> None:
        linger = self._linger
        if linger is None:
            if self._new_linger is None or answered + len(self._waiting) == 1:
                return
            linger = self._linger = self._new_linger()
        linger.plan(answered=answered, waiting=len(self._waiting), commit_s=commit_s)

    def _is_followed(self, in_flight: _InFlight) -> bool:
        """Say whether anybody behind this actor has to see the batch itself, and not only how far the log goes."""
        if self._broadcast is not None or self._jobs is not None or self._rows is not None:
            return True
        return len(in_flight.items) != len(in_flight.appends)

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
                envelopes += RawEnvelope.from_events(self.session_id, answer.first_seq, item.request.events)
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
        # Nor when they are to be in it.
        puts_off = in_flight.succeeded and self._waiting and not self.is_due()
        if not (puts_off and put_off(lambda: self._callers.answer(appends, answers))):
            self._callers.answer(appends, answers, relayed=self.is_due())
        if result is None:
            # What failed is the appends; the control envelopes between them were never the writer's.
            controls = tuple(item.envelope for item in in_flight.items if isinstance(item, Send))
            if controls:
                self._announce(Committed(controls, self.last_seq, self.last_seq))

    def _log_answer(self, in_flight: _InFlight, result: BatchResult, commit_s: float) -> None:
        if not in_flight.logged and (not in_flight.succeeded or self._log.enabled("info")):
            writer_s = self._clock.monotonic() - in_flight.handed_s
            log_answer(self._log, in_flight.batch_id, in_flight.appends, result, commit_s, writer_s)
        in_flight.logged = True

    # -- to those behind ----------------------------------------------------------------------------------------

    def _announce(self, message: Committed | Observed) -> None:
        """Tell subscribers and marks what is durable."""
        if self._broadcast is not None and not _told(self._broadcast, message):
            self._broadcast = None  # it gave up, and its subscribers have been told so
        if self._jobs is not None and not _told(self._jobs, message):
            self._jobs = None  # it gave up; who asks next starts one that reads the log
        if self._rows is not None and not _told(self._rows, message):
            self._rows = None

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

    def _for_rows(self, message: GetRows) -> None:
        ref = self._rows or self._rows_apart
        if ref is None or not _told(ref, message):
            ref = self._children.start_rows()
            ref.tell(message)
        if self._rows is None and isinstance(message, GetRowsBase):
            self._rows_apart = ref
        else:
            self._rows, self._rows_apart = ref, None

    # -- failure and the end ------------------------------------------------------------------------------------

    def on_message_failed(self, message: Any) -> None:
        """Put what was not dealt with where ``on_restarted`` and ``on_gave_up`` look for it, or answer it."""
        in_flight = self._in_flight
        match message:
            case Append() if all(message is not item for item in self._waiting):
                self._waiting.append(message)
            case Persisted() if in_flight is not None and in_flight.batch_id == message.batch_id:
                in_flight.result = message.result
            case GetMarks() | GetRows():
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
        self._callers.end_relay()
        in_flight = self._in_flight
        if in_flight is not None and in_flight.result is not None:
            self._log_answer(in_flight, in_flight.result, 0.0)
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
        self._callers.end_relay()
        if self._in_flight is not None and self._in_flight.result is not None:
            self._log_answer(self._in_flight, self._in_flight.result, 0.0)
            self._finish(None)
        if self._in_flight is None:
            self._record_halt(reason, None)
        self._halt_uncertain(reason)
        self._reject_waiting(ActorRestarted(session_id=self.session_id, reason=repr(error)))
        self._stop_children()

    def on_stop(self) -> None:
        """Stop: nothing that was accepted goes without an answer."""
        self._callers.end_relay()
        if self._in_flight is not None:
            # No halt: the writer still has the session's lock, so nothing is appended across what it does. Should that
            # fail, the store halts the session.
            reason = "the runtime was closed before the disk answered"
            first_id = self._in_flight.appends[0].request.events[0].id
            self._log_uncertain(self._in_flight, reason, first_id)
            self._finish(
                AppendUncertain(session_id=self.session_id, reason=reason, first_event_id=first_id, halted=False)
            )
        self._reject_waiting(RuntimeClosed())
        self._linger = None
        self.on_drained()  # the control envelopes that are left
        self._stop_children()

    def _stop_children(self) -> None:
        for child in (self._broadcast, self._jobs, self._rows, self._rows_apart):
            if child is not None:
                child.stop(block=False)

    def on_dead_letter(self, message: Any) -> None:
        """Answer an append that came after the end."""
        if isinstance(message, Append):
            self._callers.reject(message, self._refusal or RuntimeClosed())
        elif isinstance(message, GetMarks | GetRows):
            message.answer(RuntimeClosed())
        elif isinstance(message, Subscribe):
            message.subscriber.end()

    def _reject_waiting(self, error: AppendError) -> None:
        """Reject the appends that wait; the control envelopes among them keep their places."""
        waiting = self._waiting
        self._waiting = deque(item for item in waiting if isinstance(item, Send))
        appends = len(waiting) - len(self._waiting)
        if appends:
            self._log.warning("append_failed", error=type(error).__name__, reason=str(error), appends=appends)
        for item in waiting:
            if isinstance(item, Append):
                self._callers.reject(item, error)


def _has_jobs(in_flight: _InFlight) -> bool:
    """Say whether any event of a batch belongs to a job."""
    for append in in_flight.appends:
        for event in append.request.events:
            if event.job_id is not None:
                return True
    return False


def _told(ref: ActorRef[Any], message: Any) -> bool:
    """Tell an actor, and say whether it lives."""
    try:
        ref.tell(message)
    except ActorDeadError:
        return False
    return True
