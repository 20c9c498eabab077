"""The BroadcastActor: shows subscribers what is durable."""

from __future__ import annotations

from typing import Any

from ..protocol import Clock, Limits
from ..storage import Logger
from ._base import LogmarkActor
from ._dispatch import Dispatcher
from ._seams import Timers
from .messages import Committed, Observed, Subscribe, Subscriber, Unsubscribe

__all__ = ["BroadcastActor"]


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
        self._subscribers: list[Subscriber] = []
        self._last_seq = 0

    def on_receive(self, message: Any) -> None:
        """Offer a batch, or change who gets them."""
        match message:
            case Committed():
                self._last_seq = max(self._last_seq, message.last_seq)
                self._offer(message)
            case Observed():
                self._last_seq = max(self._last_seq, message.last_seq)
                for subscriber in tuple(self._subscribers):
                    self._offer_one(subscriber, (), message.last_seq)
            case Subscribe():
                self._subscribers.append(message.subscriber)
            case Unsubscribe():
                self._subscribers = [each for each in self._subscribers if each is not message.subscriber]
            case _:
                super().on_receive(message)

    def _offer(self, message: Committed) -> None:
        subscribers = tuple(self._subscribers)
        for subscriber in subscribers:
            self._offer_one(subscriber, message.envelopes, message.last_seq)
        if subscribers and self._log.enabled("info"):
            numbers = [envelope.event_seq for envelope in message.envelopes if envelope.event_seq is not None]
            self._log.info(
                "batch_broadcast",
                first_seq=numbers[0] if numbers else None,
                last_seq=numbers[-1] if numbers else None,
                events=len(numbers),
                controls=len(message.envelopes) - len(numbers),
                subscribers=len(subscribers),
            )

    def _offer_one(self, subscriber: Subscriber, envelopes: tuple[Any, ...], last_seq: int) -> None:
        try:
            subscriber.offer(envelopes, last_seq)
        except BaseException as error:  # a SystemExit in a subscriber ends the subscriber, not the thread of the actors
            self._subscribers = [each for each in self._subscribers if each is not subscriber]
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
                self._subscribers.append(message.subscriber)
            case Unsubscribe():
                self._subscribers = [each for each in self._subscribers if each is not message.subscriber]
            case _:
                pass

    def on_restarted(self, error: Exception) -> None:
        """Tell the subscribers how far the log goes: what they were not shown, they find by its number."""
        for subscriber in tuple(self._subscribers):
            self._offer_one(subscriber, (), self._last_seq)

    def on_stop(self) -> None:
        """Tell the subscribers that nothing will come any more."""
        subscribers, self._subscribers = self._subscribers, []
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
