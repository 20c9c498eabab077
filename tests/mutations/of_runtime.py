"""The safeguards of the runtime and its actors."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_RUNTIME"]

SESSION_ACTOR = "actors/_session.py"
SUBSCRIPTION = "src/logmark/_subscription.py"


OF_RUNTIME = (
    Safeguard(
        "a lone caller does not do the commits of others",
        "actors/_caller.py",
        "settled > _SETTLED_TURNS_MAX or lane[0][0].may_block",
        "settled > _SETTLED_TURNS_MAX",
        ("tests/test_caller_turns.py",),
    ),
    Safeguard(
        "a caller with his answer is not kept",
        "actors/_caller.py",
        "settled > _SETTLED_TURNS_MAX or lane[0][0].may_block",
        "lane[0][0].may_block",
        ("tests/test_caller_turns.py",),
    ),
    Safeguard(
        "who never comes back in time is not waited for",
        "actors/_linger.py",
        "wanted = max(1, wanted - self._missing)",
        "wanted = self._answered",
        ("tests/test_actor_linger.py",),
    ),
    Safeguard(
        "the program's own functions run in no caller's thread",
        "actors/_job.py",
        "self.travels = types.status_rules is not None",
        "self.travels = True",
        ("tests/test_caller_turns.py",),
    ),
    # -- waking readers ----------------------------------------------------------------------------------------------
    Safeguard(
        "a reader's ring is for one wait",
        "actors/_bell.py",
        "sleep, self._sleep = self._sleep, None",
        "sleep = self._sleep",
        ("tests/test_bell.py",),
    ),
    Safeguard(
        "an interrupted reader has its mutex back",
        "actors/_bell.py",
        "            self._mutex.acquire()\n            self._sleep = None",
        "            self._sleep = None",
        ("tests/test_bell.py",),
    ),
    Safeguard(
        "readers are woken when a batch is offered",
        SUBSCRIPTION,
        "if ring is not None and not put_off(ring):",
        "if ring is not None and put_off(ring):",
        ("tests/test_subscriptions.py", "tests/test_slow_subscriber.py"),
    ),
    # -- waiting for callers before a commit -------------------------------------------------------------------------
    Safeguard(
        "callers that are waited for have their answers",
        SESSION_ACTOR,
        "in_flight.succeeded and self._waiting and not self.is_due()",
        "in_flight.succeeded and self._waiting",
        ("tests/test_actor_linger.py",),
    ),
    Safeguard(
        "what waits is not handed over before the wait",
        SESSION_ACTOR,
        "        if self.is_due():\n            return\n",
        "",
        ("tests/test_actor_linger.py",),
    ),
    Safeguard(
        "a stop does not wait for callers",
        SESSION_ACTOR,
        "        self._linger = None\n        self.on_drained()",
        "        self.on_drained()",
        ("tests/test_actor_linger.py",),
    ),
    Safeguard(
        "a question ends the wait for callers",
        "actors/_dispatch.py",
        "if self._wanted <= 0 or message.__class__ not in _MAY_WAIT:",
        "if self._wanted <= 0:",
        ("tests/test_actor_linger.py",),
    ),
    Safeguard(
        "callers are waited for only where that answers more",
        "actors/_linger.py",
        "self._has_paid = self._rates[True] > ",
        "self._has_paid = self._rates[True] > 0 * ",
        ("tests/test_actor_linger.py",),
    ),
    # -- callers that wake each other ---------------------------------------------------------------------------------
    Safeguard(
        "nobody sleeps on behind the wait for callers",
        SESSION_ACTOR,
        "            finally:\n                self._callers.end_relay()\n",
        "            finally:\n                pass\n",
        ("tests/test_actor_relay.py",),
    ),
    Safeguard(
        "a stop leaves no caller asleep",
        SESSION_ACTOR,
        'goes without an answer."""\n        self._callers.end_relay()\n',
        'goes without an answer."""\n',
        ("tests/test_actor_relay.py",),
    ),
    Safeguard(
        "a restart leaves no caller asleep",
        SESSION_ACTOR,
        "        self._callers.end_relay()\n        in_flight = self._in_flight\n",
        "        in_flight = self._in_flight\n",
        ("tests/test_actor_relay.py",),
    ),
    Safeguard(
        "an actor that gives up leaves no caller asleep",
        SESSION_ACTOR,
        "        self._gate.close(self._refusal)\n        self._callers.end_relay()\n",
        "        self._gate.close(self._refusal)\n",
        ("tests/test_actor_relay.py",),
    ),
    Safeguard(
        "a caller wakes the next",
        "src/logmark/_replies.py",
        "            if self._then is not None:\n                self._then()\n",
        "            pass\n",
        ("tests/test_actor_relay.py",),
    ),
    # -- the end of a program, and forks -----------------------------------------------------------------------------
    Safeguard(
        "closing waits for what was accepted",
        "src/logmark/_runtime.py",
        "            drained = [session.drain(deadline) for session in sessions]\n",
        "            drained = [True for session in sessions]\n",
        ("tests/test_shutdown.py", "tests/test_actor_close.py"),
    ),
    Safeguard(
        "a forked child is told so",
        "src/logmark/_runtime.py",
        "        self._forked = True\n",
        "        self._forked = False\n",
        ("tests/test_real_processes.py", "-k", "forked"),
    ),
    # -- actors -----------------------------------------------------------------------------------------------------
    Safeguard(
        "shown only after the answer of the writer",
        SESSION_ACTOR,
        "        in_flight.writer = writer\n        try:\n",
        "        in_flight.writer = writer\n"
        "        events = [event for append in appends for event in append.request.events]\n"
        "        early = [e.stamped(self.session_id, seq) for seq, e in enumerate(events, self.last_seq + 1)]\n"
        "        self._announce(Committed(tuple(early), self.last_seq, self.last_seq + len(early)))\n"
        "        try:\n",
        ("tests/test_persist_first.py",),
    ),
    Safeguard(
        "callers are answered last",
        SESSION_ACTOR,
        "        known = self.last_seq\n        self._watermark.rise(result.last_seq)\n",
        "        self._finish(None)\n        known = self.last_seq\n        self._watermark.rise(result.last_seq)\n",
        ("tests/test_persist_first.py", "tests/test_own_writes.py", "tests/test_actor_invariants.py"),
    ),
    Safeguard(
        "a retry is not shown again",
        SESSION_ACTOR,
        "isinstance(answer, Appended) and answer.written:",
        "isinstance(answer, Appended):",
        ("tests/test_persist_first.py", "tests/test_actor_batches.py", "tests/test_actor_invariants.py"),
    ),
    Safeguard(
        "one batch at a time",
        SESSION_ACTOR,
        "        while self._waiting and self._in_flight is None:\n",
        "        while self._waiting:\n",
        ("tests/test_actor_batches.py",),
    ),
    Safeguard(
        "a restart answers who waits",
        SESSION_ACTOR,
        "        self._reject_waiting(ActorRestarted(session_id=self.session_id, reason=repr(error)))\n"
        "        self._watch_writer()\n",
        "        self._waiting.clear()\n        self._watch_writer()\n",
        ("tests/test_actor_restart.py",),
    ),
    Safeguard(
        "places in the inbox are given back",
        "actors/_callers.py",
        "        self.leave(appends)\n",
        "",
        ("tests/test_actor_gate.py", "tests/test_overload.py"),
    ),
    Safeguard(
        "control envelopes keep their places",
        SESSION_ACTOR,
        "                envelopes.append(item.envelope)\n                continue\n",
        "                envelopes.insert(0, item.envelope)\n                continue\n",
        ("tests/test_control_order.py",),
    ),
    Safeguard(
        "a dead writer is noticed",
        SESSION_ACTOR,
        '            self._halt_uncertain("the writer died")\n',
        "            pass\n",
        ("tests/test_dead_writer.py",),
    ),
    Safeguard(
        "a halt that found no writer goes before the next write",
        SESSION_ACTOR,
        "                writer.tell(self._unrecorded)\n",
        "",
        ("tests/test_dead_writer.py", "-k", "halt"),
    ),
    Safeguard(
        "a failing writer answers its batch",
        "actors/_persist.py",
        "        self._answer(message, _failed(message, error), 0.0)\n\n    def on_dead_letter",
        "\n    def on_dead_letter",
        ("tests/test_dead_writer.py", "tests/test_many_threads.py"),
    ),
    Safeguard(
        "a subscriber that raises is detached",
        "actors/_broadcast.py",
        "        except BaseException as error:  # a SystemExit",
        "        except ZeroDivisionError as error:  # a SystemExit",
        ("tests/test_actor_broadcast.py",),
    ),
    Safeguard(
        "a lagging subscriber rejoins without a gap",
        SUBSCRIPTION,
        "                if self._queue and self._queue[0][0] <= self._next_seq:\n",
        "                if self._queue:\n",
        ("tests/test_slow_subscriber.py", "tests/test_subscriptions.py"),
    ),
    Safeguard(
        "nothing is handed out twice where history meets live",
        SUBSCRIPTION,
        "                elif seq >= self._next_seq:\n",
        "                elif seq > 0:\n",
        ("tests/test_subscriptions.py", "tests/test_actor_broadcast.py"),
    ),
    Safeguard(
        "a subscriber's queue is bounded",
        SUBSCRIPTION,
        "self._queued_events + len(batch) <= self._limits.subscriber_events_max",
        "self._queued_events >= 0",
        ("tests/test_slow_subscriber.py", "tests/test_pressure.py", "-k", "not stalled_subscriber_costs"),
    ),
    Safeguard(
        "the threads that are there do the work when no more are to be had",
        "actors/_seams.py",
        "                except RuntimeError:  # no more threads to be had: those that run do the work\n"
        "                    if not self._threads:\n"
        "                        raise\n",
        "                except ZeroDivisionError:\n                    raise\n",
        ("tests/test_real_processes.py", "-k", "thread"),
    ),
)
