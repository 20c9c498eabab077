"""The actor that all four are: a pykka.Actor whose turns a dispatcher gives, and that survives its own failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pykka import Actor, ActorDeadError, ActorRef, ActorRegistry, Future, ThreadingFuture
from pykka._envelope import Envelope
from pykka.messages import _ActorStop  # pyright: ignore[reportPrivateUsage]

from ..protocol import Clock
from ..storage import Logger
from . import messages
from ._dispatch import Dispatcher, Mailbox, envelope_of
from ._seams import Timers
from .messages import Resume

__all__ = ["LogmarkActor", "LogmarkRef"]


A = TypeVar("A", bound=Actor)

_OWN_MESSAGES = frozenset(vars(messages)[name] for name in messages.__all__) - {Resume}
_PAUSE_S_MIN = 0.01
_PAUSE_S_MAX = 1.0


class LogmarkRef(ActorRef[A]):
    """A ref as pykka's, with a ``tell`` that takes two thirds of the time: each append passes three."""

    actor_inbox: Mailbox  # pyright: ignore[reportIncompatibleVariableOverride] - what _create_actor_inbox makes

    def tell(self, message: Any) -> None:
        """Put a message into the inbox, as it is: only what was asked needs pykka's envelope."""
        if self.actor_stopped.is_set():
            reason = f"{self} not found"
            raise ActorDeadError(reason)
        self.actor_inbox.add(message)


class LogmarkActor(Actor):
    """A pykka actor without a thread of its own.

    It uses the hooks that pykka documents for implementors of actor types. Differences from ``ThreadingActor``: a turn
    handles all that waits and then calls ``on_drained``; an exception in a handler restarts the actor
    (``on_restarted``) instead of stopping it, from the second on after a pause that doubles, until it has failed
    ``restarts_max`` times within ``restart_window_s`` (``on_gave_up``); what it leaves unread when it stops goes to
    ``on_dead_letter``.
    """

    travels: bool = False
    """Whether any thread that may block may give it its turn; see ``_dispatch.py``."""

    actor_inbox: Mailbox  # pyright: ignore[reportIncompatibleVariableOverride] - what _create_actor_inbox makes

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
        restarts_max: int = 5,
        restart_window_s: float = 60.0,
        timers: Timers | None = None,
    ) -> None:
        super().__init__()
        self._actor_ref = LogmarkRef(self)
        self._dispatcher = dispatcher
        self._clock = clock
        self._log = log
        self._restarts_max = restarts_max
        self._restart_window_s = restart_window_s
        self._timers_for_pauses = timers
        self._pause_s = 0.0
        self._restarted_at: tuple[float, ...] = ()
        self._started = False
        self._ended = False

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox()

    @staticmethod
    def _create_future() -> Future[Any]:
        return ThreadingFuture()

    def _start_actor_loop(self) -> None:
        try:
            self.actor_inbox.attach(self, self._dispatcher)
        except RuntimeError:  # there is no thread to give it a turn, so it never lived
            ActorRegistry.unregister(self.actor_ref)
            self._end()
            raise

    def take_turn(self) -> bool:
        """Handle all that waits, in order; called by the dispatcher, one turn at a time."""
        if not self._started:
            self._started = True
            try:
                self.on_start()
            except Exception as error:
                self._fail(error)
        inbox = self.actor_inbox
        if not self._handle_all(inbox.take()):
            return False
        # Restarted in on_drained: what it was about is due all the same, and failing for ever ends in giving up.
        while not self._ended:
            try:
                self.on_drained()
                break
            except Exception as error:
                self._fail(error)
            if self._pause_s > 0 and self._pause([]):
                return False
        if self._ended:
            self._bury(inbox.take())
            return inbox.finish_turn(quiet=False)
        return inbox.finish_turn(quiet=self.is_quiet(), due=self.is_due())

    def _handle_all(self, waiting: list[Any]) -> bool:
        """Handle messages in order; False when a pause ended the turn."""
        for index, message in enumerate(waiting):
            if self._ended:
                self._bury(waiting[index:])
                break
            if message.__class__ in _OWN_MESSAGES:
                try:
                    self.on_receive(message)
                except Exception as error:
                    self._fail(error, message)
            else:
                self._handle(envelope_of(message))
            if self._pause_s > 0 and self._pause(waiting[index + 1 :]):
                return False
        return True

    def _stop(self) -> None:
        self._ended = True
        super()._stop()

    def _end(self) -> None:
        """Stop without ``on_stop``."""
        self._ended = True
        self.actor_stopped.set()

    def _pause(self, unread: list[Any]) -> bool:
        """Take a rest after a failure that was not the first; False when there is none to take."""
        pause_s, self._pause_s = self._pause_s, 0.0
        if self._ended or self._timers_for_pauses is None:
            return False
        self.actor_inbox.pause(unread)
        self._timers_for_pauses.after(pause_s, self.actor_ref, Resume())
        return True

    def _handle(self, envelope: Envelope[Any]) -> None:
        reply_to = envelope.reply_to
        if isinstance(envelope.message, Resume):
            return
        try:
            response = self._handle_receive(envelope.message)
        except Exception as error:
            if reply_to is not None:
                reply_to.set_exception((type(error), error, error.__traceback__))
            else:
                self._fail(error, envelope.message)
        else:
            if reply_to is not None:
                reply_to.set(response)

    def _fail(self, error: Exception, message: Any = None) -> None:
        """Restart after a failure, or give up after too many."""
        now = self._clock.monotonic()
        recent = (*(at for at in self._restarted_at if at > now - self._restart_window_s), now)
        self._restarted_at = recent
        self._log.error("actor_failed", error=repr(error), restarts=len(recent), exc_info=error)
        self._attempt(self.on_message_failed, message)
        if len(recent) <= self._restarts_max and self._attempt(self.on_restarted, error):
            if len(recent) > 1 and self._timers_for_pauses is not None:
                self._pause_s = min(_PAUSE_S_MAX, _PAUSE_S_MIN * 2 ** (len(recent) - 2))
            self._log.warning("actor_restarted", restarts=len(recent), pause_s=self._pause_s)
            return
        self._attempt(self.on_gave_up, error)
        ActorRegistry.unregister(self.actor_ref)
        self._end()
        self._log.error("actor_gave_up", error=repr(error))

    def _attempt(self, hook: Callable[[Any], None], argument: Any) -> bool:
        try:
            hook(argument)
        except Exception as second:
            self._log.error("actor_restart_failed", error=repr(second), exc_info=second)
            return False
        return True

    def _bury(self, unread: list[Any]) -> None:
        for envelope in map(envelope_of, unread):
            if isinstance(envelope.message, _ActorStop):
                if envelope.reply_to is not None:
                    envelope.reply_to.set(None)
            elif envelope.reply_to is not None:
                dead = ActorDeadError(f"{self.actor_ref} stopped before handling the message")
                envelope.reply_to.set_exception((ActorDeadError, dead, None))
            else:
                self._bury_one(envelope.message)

    def _bury_one(self, message: Any) -> None:
        try:
            self.on_dead_letter(message)
        except Exception as error:
            self._log.error("dead_letter_failed", message=type(message).__name__, error=repr(error), exc_info=error)

    def is_quiet(self) -> bool:
        """Say whether the next turn comes by itself, so that appends need not call for one; asked after a turn."""
        return False

    def is_due(self) -> bool:
        """Say whether another turn is due whatever comes; asked after a turn."""
        return False

    def on_drained(self) -> None:
        """Act on what the turn's messages brought; called once after the last of them."""

    def on_message_failed(self, message: Any) -> None:
        """Learn which message was being handled (None: a hook ran), before ``on_restarted`` or ``on_gave_up``."""

    def on_restarted(self, error: Exception) -> None:
        """Answer who waits and rebuild the state; the mailbox is as it was."""

    def on_gave_up(self, error: Exception) -> None:
        """Answer who waits; the actor stops."""

    def on_dead_letter(self, message: Any) -> None:
        """Answer the sender of a message that came too late."""
        self._log.debug("dead_letter", message=type(message).__name__)
