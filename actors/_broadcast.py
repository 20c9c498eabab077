"""The BroadcastActor: shows subscribers what is durable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from ..protocol import Clock, Limits, RawEnvelope
from ..storage import Logger
from ._base import LogmarkActor
from ._dispatch import Dispatcher
from ._seams import Timers
from .messages import Committed, Observed, Subscribe, Subscriber, Unsubscribe

__all__ = ["Batch", "BroadcastActor"]


_TRAVELS_MAX = 32


class Batch(tuple[RawEnvelope, ...]):  # noqa: SLOT001 - a tuple cannot have slots with something in them
    """What is offered to the subscribers of a session: measured once, however many they are.

    Attributes:
        first_seq, last_seq: of the events; None when there are only control envelopes.
        controls: how many control envelopes stand among the events.
        size_bytes: bytes of the payloads.
    """

    first_seq: int | None
    last_seq: int | None
    controls: int
    size_bytes: int

    def __new__(cls, envelopes: Iterable[RawEnvelope]) -> Self:
        """Measure the envelopes, which are in order."""
        self = super().__new__(cls, envelopes)
        numbers, self.size_bytes = RawEnvelope.measure(self)
        self.controls = numbers.count(None)
        if self.controls:
            numbers = [number for number in numbers if number is not None]
        self.first_seq, self.last_seq = (numbers[0], numbers[-1]) if numbers else (None, None)
        return self

    def events(self) -> Batch:
        """Return the batch without its control envelopes."""
        if not self.controls:
            return self
        return Batch(envelope for envelope in self if envelope.event_seq is not None)


class BroadcastActor(LogmarkActor):
    """Offers each batch once to every subscriber of a session; one that raises is detached, the others go on."""

    def __init__(
        self,
        *,
        session_id: str,
        limits: Limits,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
        timers: Timers | None = None,
    ) -> None:
        super().__init__(
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="broadcast", session=session_id),
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self._subscribers: tuple[Subscriber, ...] = ()
        self._last_seq = 0
        self.travels = True

    def on_receive(self, message: Any) -> None:
        """Offer a batch, or change who gets them."""
        match message:
            case Committed():
                self._last_seq = max(self._last_seq, message.last_seq)
                self._offer(message)
            case Observed():
                self._last_seq = max(self._last_seq, message.last_seq)
                for subscriber in self._subscribers:
                    self._offer_one(subscriber, (), message.last_seq)
            case Subscribe():
                self._keep((*self._subscribers, message.subscriber))
            case Unsubscribe():
                self._remove(message.subscriber)
            case _:
                super().on_receive(message)

    def _keep(self, subscribers: tuple[Subscriber, ...]) -> None:
        self._subscribers = subscribers
        # To offer a batch to a few costs a writer's thread less than to wake another thread for it.
        self.travels = len(subscribers) <= _TRAVELS_MAX

    def _remove(self, subscriber: Subscriber) -> None:
        self._keep(tuple(each for each in self._subscribers if each is not subscriber))

    def _offer(self, message: Committed) -> None:
        subscribers = self._subscribers
        if not subscribers:
            return
        batch = Batch(message.envelopes)
        for subscriber in subscribers:
            self._offer_one(subscriber, batch, message.last_seq)
        if self._log.enabled("info"):
            self._log.info(
                "batch_broadcast",
                first_seq=batch.first_seq,
                last_seq=batch.last_seq,
                events=len(batch) - batch.controls,
                controls=batch.controls,
                subscribers=len(subscribers),
            )

    def _offer_one(self, subscriber: Subscriber, envelopes: tuple[Any, ...], last_seq: int) -> None:
        try:
            subscriber.offer(envelopes, last_seq)
        except BaseException as error:  # a SystemExit in a subscriber ends the subscriber, not the thread of the actors
            self._remove(subscriber)
            self._log.error(
                "subscriber_detached", subscriber=object.__repr__(subscriber), error=repr(error), exc_info=error
            )
            self._end_one(subscriber)

    def on_message_failed(self, message: Any) -> None:
        """Note what the failed handler may not have noted."""
        match message:
            case Committed() | Observed():
                self._last_seq = max(self._last_seq, message.last_seq)
            case Subscribe() if all(message.subscriber is not each for each in self._subscribers):
                self._keep((*self._subscribers, message.subscriber))
            case Unsubscribe():
                self._remove(message.subscriber)
            case _:
                pass

    def on_restarted(self, error: Exception) -> None:
        """Tell the subscribers how far the log goes: what they were not shown, they find by its number."""
        for subscriber in self._subscribers:
            self._offer_one(subscriber, (), self._last_seq)

    def on_stop(self) -> None:
        """Tell the subscribers that nothing will come any more."""
        subscribers = self._subscribers
        self._keep(())
        for subscriber in subscribers:
            self._end_one(subscriber)

    def _end_one(self, subscriber: Subscriber) -> None:
        try:
            subscriber.end()
        except BaseException as error:
            self._log.error("subscriber_end_failed", error=repr(error), exc_info=error)

    def on_gave_up(self, error: Exception) -> None:
        """Nothing will be shown any more: better an end than a silence."""
        self.on_stop()

    def on_dead_letter(self, message: Any) -> None:
        """End a subscriber that came too late."""
        if isinstance(message, Subscribe):
            self._end_one(message.subscriber)
