"""One connection: its state machine, what waits to be sent, and the thread that sends it.

Two lanes lead to the transport. Control frames wait in a short queue and go first; events are read from the session's
log, one at a time, when no control frame waits. So an answer never stands behind events, a slow client costs its own
position in the log and no memory, and a client that comes back goes on where it was.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..protocol import LogmarkError, RawEnvelope, SeqPruned, SessionDeleted, SubscriptionClosed, WaitTimeout
from ..protocol.arcp import Answer, Ask, Connection, Effect, Leave, Moment, Refusal, Request, Send, event_frame

if TYPE_CHECKING:
    from .._subscription import Subscription
    from ._hub import Hub

__all__ = ["Link", "Transport", "TransportGone"]

_GOING_AWAY = 1001


class TransportGone(Exception):
    """The peer can no longer be reached."""


class Transport(Protocol):
    """A way to one peer."""

    @property
    def peer(self) -> str:
        """Where the peer is, for the log."""
        ...

    def send(self, data: bytes) -> None:
        """Send one frame; may block. Raises TransportGone."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; may block for a moment."""
        ...

    def abort(self) -> None:
        """Make ``send`` and the reader fail at once, from any thread; never blocks."""
        ...


Decision = tuple[Answer, Callable[[], None] | None]
"""An answer, and what to do once it is on its way."""


class Link:
    """A connection at work. ``feed`` belongs to the reading thread; everything else may be called from any."""

    def __init__(self, hub: Hub, transport: Transport, *, number: int) -> None:
        self.number = number
        self.principal: str | None = None
        self.token_hash = ""
        self._hub = hub
        self._transport = transport
        self._clock = hub.runtime.clock
        self._machine = Connection(hub.profile, new_id=hub.new_id, now=self._now())
        self._lock = threading.Lock()
        self._control: collections.deque[Send] = collections.deque()
        self._control_bytes = 0
        self._leave: Leave | None = None
        self._departure: tuple[str, Send] | None = None
        self._wake = threading.Event()
        self._events: Subscription | None = None
        self._next_seq = 0
        self._hold_until = 0.0
        self._sending_since: float | None = None
        self._lag_told = False
        self._last_job_id: str | None = None
        self._end_mutex = threading.Lock()
        self._ended = False
        self._writer = threading.Thread(target=self._write, name=f"arcp-writer-{number}", daemon=True)

    def start(self) -> None:
        """Start to send."""
        self._writer.start()

    @property
    def peer(self) -> str:
        """Where the connection comes from, for the log."""
        return self._transport.peer

    @property
    def session_id(self) -> str | None:
        """The session that the connection is about, once it was welcomed."""
        return self._machine.session_id

    @property
    def features(self) -> frozenset[str]:
        """What was negotiated."""
        return self._machine.features

    @property
    def is_ended(self) -> bool:
        """Whether the connection is over."""
        return self._ended

    def _now(self) -> Moment:
        return Moment(self._clock.time_ns(), self._clock.monotonic())

    # -- inwards ----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take one frame of the peer, and return when it was answered or its answer waits to be sent."""
        try:
            with self._lock:
                effects = self._machine.receive(data, self._now())
            self._carry_out(effects)
        except Exception as error:  # a fault of ours: the peer may come back, and the log says why it had to
            self._fail(error)

    def tick(self) -> None:
        """Let time pass."""
        now = self._now()
        since = self._sending_since
        if since is not None and now.monotonic_s - since > self._hub.limits.stall_wait_s:
            self._give_up("stalled")
            return
        with self._lock:
            effects = self._machine.tick(now)
        self._carry_out(effects)
        self._tell_lag()

    def leave(self, reason: str, refusal: Refusal | None = None) -> None:
        """End the connection from this side, after what waits to be sent."""
        with self._lock:
            effects = self._machine.leave(reason, refusal, self._now())
        self._carry_out(effects)

    def depart(self, reason: str, farewell: Send) -> None:
        """End the connection from this side, after the events that are there, and with a farewell if it is welcomed."""
        if self.session_id is None:
            self.leave(reason)
            return
        self._departure = reason, farewell
        self._wake.set()

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._queue(effect)
                case Ask():
                    self._decide(effect.request)
                case Leave():
                    self._leave = self._leave or effect
                    self._wake.set()

    def _decide(self, request: Request) -> None:
        answer, then = self._hub.decide(self, request)
        with self._lock:
            effects = self._machine.answer(request, answer, self._now())
        self._carry_out(effects)
        if then is not None:
            self._hub.follow_up(self, then)

    def _queue(self, send: Send) -> None:
        limits = self._hub.limits
        with self._lock:
            self._control.append(send)
            self._control_bytes += len(send.data)
            full = len(self._control) > limits.control_frames_max or self._control_bytes > limits.control_bytes_max
        if full:
            self._give_up("stalled")
        self._wake.set()

    # -- outwards ---------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Send the events of the session from where its client is, now and as they come."""
        session_id = self._machine.session_id
        if session_id is None or self._events is not None:
            return
        self._next_seq = self._machine.emitted + 1
        session = self._hub.runtime.session(session_id)
        events = session.follow(self._next_seq, limits=self._hub.queue_limits, on_change=self._wake.set)
        with self._end_mutex:
            if not self._ended:
                self._events = events
                self._wake.set()
                return
        events.close()

    def _write(self) -> None:
        try:
            while self._write_one():
                pass
        except TransportGone:
            self._end("lost")
        except LogmarkError as error:
            # A log that cannot be read is no empty log: the client is told that its session does not go on here.
            self._hub.log.error("arcp_replay_failed", session=self.session_id, error=type(error).__name__)
            refusal = Refusal("INTERNAL_ERROR", "the session's events cannot be read")
            self.leave("replay failed", refusal)
            try:
                self._say_goodbye()
            except TransportGone:
                self._end("lost")
        except Exception as error:
            self._fail(error)

    def _write_one(self) -> bool:
        """Send one frame, or wait for one; False once there will be none."""
        self._wake.clear()  # before looking, so that what comes while looking is not overslept
        send = self._next_control()
        if send is not None:
            self._transmit(send.data, None)
            if send.pause:
                self._hold_until = self._clock.monotonic() + self._hub.limits.history_pause_s
            return True
        if self._ended:
            return False
        if self._leave is not None:
            self._say_goodbye()
            return False
        held_s = self._hold_until - self._clock.monotonic()
        if held_s <= 0:
            event = self._next_event()
            if event is not None:
                self._transmit(event_frame(event, self._hub.profile.dialect), event.event_seq)
                return True
            if self._departure is not None:
                reason, farewell = self._departure
                self._transmit(farewell.data, None)
                self.leave(reason)
                return True
        self._wake.wait(held_s if held_s > 0 else None)
        return True

    def _next_control(self) -> Send | None:
        with self._lock:
            if not self._control:
                return None
            send = self._control.popleft()
            self._control_bytes -= len(send.data)
            return send

    def _next_event(self) -> RawEnvelope | None:
        events = self._events
        if events is None:
            return None
        try:
            event = events.get_raw(timeout=0)
        except (WaitTimeout, SubscriptionClosed):
            return None
        except (SeqPruned, SessionDeleted) as error:  # given up while the client was behind
            self._events = None
            self.leave("hole", Refusal("RESUME_WINDOW_EXPIRED", str(error)))
            return None
        if event.event_seq != self._next_seq:
            # A number that is missing in the log (a reservation, or a log cut by hand) must not look like none.
            self._events = None
            self.leave("hole", Refusal("RESUME_WINDOW_EXPIRED", f"event {self._next_seq} is not in the log"))
            return None
        self._next_seq += 1
        self._last_job_id = event.job_id
        return event

    def _transmit(self, data: bytes, event_seq: int | None) -> None:
        self._sending_since = self._clock.monotonic()
        try:
            # Before the bytes leave, so that an acknowledgement cannot overtake the knowledge of what it is about.
            with self._lock:
                self._machine.sent(event_seq, self._now())
            self._transport.send(data)
        finally:
            self._sending_since = None

    def _say_goodbye(self) -> None:
        while (send := self._next_control()) is not None:
            self._transmit(send.data, None)
        leave = self._leave or Leave(_GOING_AWAY, "closing")
        self._end(leave.reason)
        self._transport.close(leave.close_code, leave.reason)

    def _tell_lag(self) -> None:
        """Section 6.5: a client that acknowledges and falls behind is told so, once each time, in its event stream."""
        if not self._machine.has_acked:
            return
        most, lag = self._hub.limits.lag_events_max, self._machine.lag
        if lag > most and not self._lag_told and self._last_job_id is not None:
            self._lag_told = True
            self._hub.log.info("arcp_client_lagged", session=self.session_id, lag=lag)
            self._hub.tell_lag(self._last_job_id, lag)
        elif lag <= most // 2:
            self._lag_told = False

    # -- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self._hub.log.error("arcp_connection_failed", session=self.session_id, exc_info=error)
        self._give_up("failed")

    def _give_up(self, reason: str) -> None:
        self._end(reason)
        self._transport.abort()

    def wait_ended(self, timeout_s: float) -> None:
        """Wait until everything was sent, or for so long."""
        self._writer.join(timeout_s)

    def supersede(self) -> None:
        """End the connection because another one has taken its session over; its socket may be half open."""
        self._give_up("superseded")

    def end(self, reason: str) -> None:
        """Learn from the reading thread that nothing more comes."""
        leave = self._leave
        if leave is not None:
            self._writer.join(self._hub.limits.handshake_wait_s)  # it is saying goodbye
        self._end(leave.reason if leave is not None else reason)
        self._transport.abort()

    def _end(self, reason: str) -> None:
        with self._end_mutex:
            if self._ended:
                return
            self._ended = True
            events, self._events = self._events, None
        self._wake.set()
        if events is not None:
            events.close()
        self._hub.detach(self, reason)
