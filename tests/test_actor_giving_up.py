"""An actor that fails too often ends in a halt, and nobody writes across the doubt that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import logmark
from logmark import errors
from logmark.actors import SessionActor
from logmark.testing import eventually


def test_a_session_whose_actor_gave_up_is_halted_and_accepts_nothing_more(
    raise_once: Callable[..., list[Any]],
) -> None:
    limits = logmark.Limits(actor_restarts_max=2)
    with logmark.open("memory:", limits=limits) as rt:
        session, other = rt.session("a"), rt.session("b")
        session.append("note")
        raised = raise_once(SessionActor, "on_drained", times=3)
        with pytest.raises(errors.AppendError):
            session.append("note")
        eventually(lambda: rt.store.halted("a") is not None)
        assert len(raised) == 3
        with pytest.raises(errors.SessionHalted, match="failed too often"):
            session.append("note")
        with pytest.raises(errors.SessionHalted):
            session.submit("note")
        assert other.append("note") == 1
    # close() drains: the halt has been recorded by then.
    assert rt.store.halted("a") is not None
    assert rt.store.halted("b") is None
