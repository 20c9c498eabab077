"""A subscriber that remembers what it was offered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..protocol import RawEnvelope

__all__ = ["RecordingSubscriber"]


class RecordingSubscriber:
    """Records every offer; implements ``logmark.actors.messages.Subscriber``. Safe from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offers: list[tuple[tuple[RawEnvelope, ...], int]] = []
        self._ends = 0

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        """Record a batch. Called by the BroadcastActor."""
        with self._changed:
            self._offers.append((envelopes, last_seq))
            self._changed.notify_all()

    def end(self) -> None:
        """Record the end. Called by the BroadcastActor."""
        with self._changed:
            self._ends += 1
            self._changed.notify_all()

    @property
    def offers(self) -> list[tuple[tuple[RawEnvelope, ...], int]]:
        """Every offer: its envelopes and the ``last_seq`` that came with them."""
        with self._changed:
            return list(self._offers)

    @property
    def envelopes(self) -> list[RawEnvelope]:
        """Every envelope in the order of the offers, control envelopes among the events."""
        return [envelope for envelopes, _ in self.offers for envelope in envelopes]

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events, in the order of the offers."""
        return [envelope.event_seq for envelope in self.envelopes if envelope.event_seq is not None]

    @property
    def types(self) -> list[str]:
        """The types of the envelopes, in the order of the offers."""
        return [envelope.type for envelope in self.envelopes]

    @property
    def last_seq(self) -> int:
        """The highest ``last_seq`` of any offer, 0 before the first: how far the log is known to go."""
        return max((last_seq for _, last_seq in self.offers), default=0)

    @property
    def ended(self) -> bool:
        """Whether it was told that nothing will come any more."""
        return self._ends > 0

    @property
    def ends(self) -> int:
        """How often it was told so."""
        return self._ends

    def wait_for(self, n: int, timeout: float = 5.0) -> list[RawEnvelope]:
        """Wait until there are ``n`` envelopes, and return all there are.

        Raises:
            TimeoutError: fewer after ``timeout`` seconds of real time.
        """
        self._wait(lambda: sum(len(envelopes) for envelopes, _ in self._offers) >= n, timeout, f"{n} envelopes")
        return self.envelopes

    def wait_for_seq(self, seq: int, timeout: float = 5.0) -> None:
        """Wait until an offer has said that the log goes to ``seq``; it need not have brought the event.

        Raises:
            TimeoutError: none has after ``timeout`` seconds of real time.
        """
        self._wait(lambda: any(last_seq >= seq for _, last_seq in self._offers), timeout, f"last_seq {seq}")

    def wait_ended(self, timeout: float = 5.0) -> None:
        """Wait for the end.

        Raises:
            TimeoutError: it has not come after ``timeout`` seconds of real time.
        """
        self._wait(lambda: self._ends > 0, timeout, "the end")

    def _wait(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not reached():
                left = deadline - time.monotonic()
                if left <= 0:
                    offers = [
                        ([each.event_seq or each.type for each in envelopes], last_seq)
                        for envelopes, last_seq in self._offers
                    ]
                    message = f"{what} did not come in {timeout:g} s; the offers were {offers}"
                    raise TimeoutError(message)
                self._changed.wait(left)

    def __repr__(self) -> str:
        return f"<RecordingSubscriber last_seq={self.last_seq} offers={len(self._offers)}>"
