"""The bad night of ``docs/trace.md`` as the live page shows it while it happens, in processes of its own.

``LOGMARK_UI_PICTURES=docs pytest tests/test_ui_incident.py`` takes its picture anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from logmark.testing import incident
from logmark.testing._browser import WatchedStore

pytestmark = pytest.mark.slow

SHOWN = "[...document.querySelectorAll('.row:not([hidden])')]"
SETTLED = WatchedStore.SETTLED


def test_a_bad_night_is_shown_as_it_happens(watched: Callable[..., WatchedStore], tmp_path: Path) -> None:
    night = tmp_path / "night"
    night.mkdir()
    here = watched(f"file:{night / 'store'}")
    page = here.look(width=1280, height=620)

    incident.play_act(str(night), "first")  # killed in the middle of a write
    page.wait_for("sessions.get('orders')?.last === 8")
    page = here.look("orders", width=1280, height=620)
    page.wait_for(f"{SETTLED} && view.last === 8")
    assert page.evaluate(f"{SHOWN}.length") >= 8

    incident.play_act(str(night), "second")  # an fsync fails: halted, with what was told before
    page.wait_for("/halted/.test(document.querySelector('#tags').textContent)")
    page.wait_for("view.last === 9")
    asked = os.environ.get("LOGMARK_UI_PICTURES")
    page.evaluate("setText($('store'), 'file:/var/lib/shop/events')")
    page.picture((Path(asked) if asked else tmp_path) / "ui-incident.png", scale=1.5 if asked else 1)

    incident.play_act(str(night), "third")  # repaired, and what had no answer repeated
    page.wait_for("view.last === 11")
    page.wait_for("!/halted/.test(document.querySelector('#tags').textContent)")
    page.wait_for(f"{SETTLED} && {SHOWN}.some((row) => row.textContent.includes('\"order\":11'))")
