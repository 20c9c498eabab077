"""Waiting a little, before a commit, for the callers that the last one has just answered.

Callers that wait for their answers settle into two cohorts: while the commit of the one runs, the other queues up, and
each commit is half of what it could be. Where commits are dear, waiting for those who were just answered, and will be
back, makes one cohort of two. The wait ends when they are back, as many as came back in time before; it never takes
longer than the last commit did, and a lone caller never waits.
"""

from __future__ import annotations

from typing import Protocol

from ..protocol import Clock
from ..storage import catch_up, puts_off
from ._dispatch import Mailbox

__all__ = ["Linger", "RateLinger"]

_S_MIN = 0.0001  # of a quicker commit, a thread that sleeps and wakes up takes as much
_TRIAL = 64
_HOLD_MAX = 1024
_GAIN_MIN = 1.15
_GAP_MAX = 4.0
_ALL_EVERY = 16


class Linger(Protocol):
    """Decides for one session whether to wait for callers, and waits.

    Attributes:
        is_due: whether the next turn begins with the wait.
    """

    is_due: bool

    def plan(self, *, answered: int, waiting: int, commit_s: float) -> None:
        """Decide, behind a commit of ``answered`` appends in ``commit_s`` seconds, while ``waiting`` more have come."""
        ...

    def wait(self, inbox: Mailbox) -> None:
        """Wait as decided."""
        ...


class RateLinger:
    """Waits in writers' threads, if that answers more appends in a second.

    Whether it pays depends on the disk, on the callers and on the processor: where the callers need it for as long as
    the disk works, two cohorts that take turns at both are better. So both ways are tried, by the appends that are
    answered in a second; the better one stays for some time, and then the other one is tried again.

    Args:
        clock: what everything is measured by.
    """

    __slots__ = (
        "_answered",
        "_clock",
        "_commit_s",
        "_commits_left",
        "_ended_s",
        "_has_paid",
        "_hold",
        "_is_trial",
        "_lingers",
        "_missing",
        "_rates",
        "_trial_appends",
        "_trial_s",
        "is_due",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answered = 0
        self._commit_s = 0.0
        self._missing = 0
        self._ended_s: float | None = None
        self._lingers = self._has_paid = False
        self._is_trial = True
        self._commits_left = self._hold = 4 * _TRIAL
        self._trial_appends = 0
        self._trial_s = 0.0
        self._rates: dict[bool, float] = {}
        self.is_due = False

    def plan(self, *, answered: int, waiting: int, commit_s: float) -> None:
        """See ``Linger.plan``.

        Where more wait than were answered, their callers do not wait for each answer: their batches fill by themselves.
        """
        if answered + waiting < 2 or not _may_wait(commit_s):  # noqa: PLR2004
            self._ended_s = None
            return
        self._learn(answered, commit_s)
        self._answered, self._commit_s = answered, commit_s
        self.is_due = self._lingers and waiting <= answered

    def _learn(self, answered: int, commit_s: float) -> None:
        now, before = self._clock.monotonic(), self._ended_s
        self._ended_s = now
        if before is None or now - before > _GAP_MAX * commit_s:
            return  # the callers were elsewhere
        self._commits_left -= 1
        self._trial_appends += answered
        self._trial_s += now - before
        if self._commits_left > 0:
            return
        rate = self._trial_appends / self._trial_s
        self._rates[self._lingers] = (self._rates.get(self._lingers, rate) + rate) / 2
        self._trial_appends, self._trial_s = 0, 0.0
        if self._is_trial and len(self._rates) > 1:
            # A clear gain to begin with it, and any to go on: rates of some hundred milliseconds are rough.
            self._has_paid = self._rates[True] > self._rates[False] * (1.0 if self._has_paid else _GAIN_MIN)
            self._lingers = self._has_paid
            self._is_trial, self._commits_left = False, self._hold
            self._hold = min(2 * self._hold, _HOLD_MAX)  # the first trials may have met callers that just began
        else:
            self._lingers = not self._lingers
            self._is_trial, self._commits_left = True, _TRIAL

    def wait(self, inbox: Mailbox) -> None:
        """See ``Linger.wait``; a thread that must not wait goes on at once."""
        self.is_due = False
        if not _may_wait(self._commit_s):
            return
        catch_up()
        # Those who were not back in time are not waited for again, except now and then.
        wanted = self._answered
        if self._commits_left % _ALL_EVERY:
            wanted = max(1, wanted - self._missing)
        came = inbox.wait(wanted, self._commit_s)
        self._missing = max(0, self._answered - came)


def _may_wait(seconds: float) -> bool:
    """Say whether the current thread is a writer's, and so long is long enough to sleep for."""
    return seconds >= _S_MIN and puts_off()
