"""How the live page looks in a real browser: dark and light, narrow and wide, and the pictures of ``docs/ui.md``.

``LOGMARK_UI_PICTURES=docs pytest tests/test_ui_looks.py -k pictures`` takes the pictures anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark import Envelope
from logmark.testing._browser import BrowserPage, WatchedStore

pytestmark = pytest.mark.slow

Watched = Callable[..., WatchedStore]
SHOWN = "[...document.querySelectorAll('.row:not([hidden])')]"
SETTLED = WatchedStore.SETTLED


# -- how it looks ------------------------------------------------------------------------------------------------------

CONTRAST = """(() => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
        const hex = style.getPropertyValue(name).trim().slice(1);
        const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
        const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)];
        return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    };
    return [["--text", "--bg"], ["--soft", "--bg"], ["--faint", "--panel"], ["--faint", "--bg"],
        ["--accent", "--panel"], ["--bad", "--bad-soft"],
        ["--warn", "--warn-soft"], ["--good", "--good-soft"], ["--on-accent", "--accent"]]
        .map(([a, b]) => [a, b, ratio(a, b)]);
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_scheme_and_can_be_read_in_both(watched: Watched, scheme: str) -> None:
    here = watched()
    page = here.look(scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for text, ground, ratio in page.evaluate(CONTRAST):
        assert ratio >= 4.5, (text, ground)
    page.prefer({"light": "dark", "dark": "light"}[scheme])
    page.wait_for(f"document.documentElement.dataset.theme !== {scheme!r}")
    page.click("#theme")
    page.wait_for(f"document.documentElement.dataset.theme === {scheme!r}")
    page.call("Page.reload")
    page.wait_for(f"net.ready && document.documentElement.dataset.theme === {scheme!r}")


def test_it_can_be_read_at_400_pixels(watched: Watched) -> None:
    here = watched()
    session = here.runtime.session("a-session-with-a-rather-long-name-that-does-not-fit-anywhere")
    for step in range(42):
        session.append("job.event", {"kind": "log", "body": {"message": f"step {step}"}}, job_id=f"build-{step % 3}")
    session.append("a.type.with.a.long.name.that.goes.on", {"text": "word " * 400}, job_id="build-2")
    here.runtime.store.reserve(session.session_id, 99)
    session.append("x", 1)
    page = here.look(width=400, height=780)
    page.wait_for("document.querySelectorAll('tr.session').length === 1")
    fits = """document.documentElement.scrollWidth <= 400
        && [...document.querySelectorAll('button, h1, .row:not([hidden]) *')].every((node) => {
            const at = node.getBoundingClientRect();
            return !at.width || at.right <= 401 && at.left >= -1;
        })"""
    assert page.evaluate(fits)
    page.evaluate(f"openSession({session.session_id!r})")
    page.wait_for(f"{SETTLED} && view.jobs.size === 3")
    page.wait_for(fits)
    assert page.evaluate(f"{SHOWN}[0].offsetHeight") == 50
    page.evaluate("showDetail(43)")
    page.wait_for("document.querySelector('#dbody pre')")
    assert page.evaluate(fits)
    assert page.evaluate("$('detail').offsetWidth") == 400
    page.click("#dclose")
    page.click("#back")
    page.wait_for("view === null")


# -- pictures ----------------------------------------------------------------------------------------------------------

STEPS = ("resolving", "fetching sources", "compiling core", "compiling net", "linking", "running checks")
ANSWER = (
    "The nightly import stopped at row 40,112 because the upstream file ends in the middle of a record. Nothing that"
    " was acknowledged is lost: the last complete batch is durable, and the next run goes on behind it."
)


def a_busy_day(runtime: logmark.Runtime) -> None:
    """Sessions of every kind, as a person would find them."""
    build = runtime.session("build/release-7.2")
    jobs = [f"{name}-7.2" for name in ("core", "net", "docs", "wheels", "smoke")]
    for step in range(150):
        job = jobs[min(step // 22, 4)] if step % 3 else jobs[min(step // 40, 4)]
        name = STEPS[step % len(STEPS)]
        kind = ("log", "progress", "tool_call")[step % 3]
        bodies = {
            "log": {"level": "info", "message": f"{name}, unit {step}"},
            "progress": {"current": step, "total": 150, "units": "units"},
            "tool_call": {"tool": "compile", "arguments": {"unit": f"src/{name.split()[-1]}_{step}.c"}},
        }
        build.append(
            "job.event", {"kind": kind, "body": bodies[kind]}, job_id=job, trace_id="4bf92f3577b34da6a3ce929d0e0e4736"
        )
        if step == 95:
            build.append("job.result", {"final_status": "success", "result": {"built": 44}}, job_id=jobs[0])
        if step == 110:
            build.append("job.error", {"code": "TIMEOUT", "message": "no answer in 30 s"}, job_id=jobs[1])
        if step == 130:
            build.append("job.error", {"code": "INTERNAL_ERROR", "message": "linker ended with 1"}, job_id=jobs[2])
    chat = runtime.session("chat-42")
    for turn in range(6):
        chat.append(
            "message.created", {"from": "ana", "text": f"And what about import {turn + 1}?"}, job_id=f"turn-{turn + 1}"
        )
        chat.append_many(
            [
                Envelope(
                    type="tool.called",
                    payload={"tool": "search_log", "query": f"import {turn + 1}"},
                    job_id=f"turn-{turn + 1}",
                ),
                Envelope(
                    type="tool.returned", payload={"rows": 112 * (turn + 1), "took_ms": 38}, job_id=f"turn-{turn + 1}"
                ),
            ]
        )
        words = ANSWER.split()
        for end in range(4, len(words) + 1 if turn < 5 else 32, 3):
            chat.upsert(
                f"answer-{turn + 1}", "message.changed", {"text": " ".join(words[:end])}, job_id=f"turn-{turn + 1}"
            )
        if turn < 5:
            chat.append("turn.ended", {"tokens": 180 + turn}, job_id=f"turn-{turn + 1}")
    chat.cursor("mailer").ack(chat.last_seq - 37)
    ledger = runtime.session("ledger/2026-11")
    ledger.append_many(
        [
            Envelope(
                type="entry.posted", payload={"account": 4000 + n % 9, "cents": n * 125}, job_id=f"batch-{n // 30}"
            )
            for n in range(120)
        ]
    )
    runtime.store.reserve("ledger/2026-11", 164)
    ledger.append_many(
        [
            Envelope(type="entry.posted", payload={"account": 4000 + n % 9, "cents": n * 125}, job_id="batch-5")
            for n in range(60)
        ]
    )
    runtime.session("orders").append_many([Envelope(type="order.placed", payload={"order": n}) for n in range(412)])
    runtime.store.halt("orders", "sync failed: Input/output error")
    archive = runtime.session("audit/2025")
    archive.append_many([Envelope(type="audited", payload=n) for n in range(2000)])
    runtime.store.truncate_before("audit/2025", 1501)
    runtime.store.seal("audit/2025")
    runtime.session("sensors").append_many(
        [Envelope(type="measured", payload={"celsius": 20 + n % 7}) for n in range(9000)]
    )


def test_pictures(watched: Watched, tmp_path: Path) -> None:
    """The pictures of the documentation; here, that they can be taken and show something."""
    asked = os.environ.get("LOGMARK_UI_PICTURES")
    folder = Path(asked) if asked else tmp_path
    here = watched(f"file:{tmp_path / 'store'}" if asked else "memory:")
    a_busy_day(here.runtime)
    sensors = here.runtime.session("sensors")

    def take(page: BrowserPage, name: str) -> None:
        page.wait_for(f"!view || {SETTLED} && view.findings")
        page.evaluate("document.activeElement.blur(); setText($('store'), 'file:/var/lib/studio/events')")
        page.evaluate("document.fonts.ready.then(() => new Promise((done) => setTimeout(done, 50)))")
        data = page.picture(folder / f"ui-{name}.png", scale=1.5 if asked else 1)
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000

    page = here.look(width=1280, height=440)
    page.wait_for("sessions.size === 6")
    for n in range(300):
        sensors.append("measured", {"celsius": n})
    page.wait_for("sessions.get('sensors').rate > 0 && sessions.get('chat-42').lag > 0")
    take(page, "sessions")

    page = here.look("build/release-7.2", width=1440, height=860)
    page.wait_for("view.jobs.size === 5")
    page.evaluate("view.go(136)")
    page.wait_for(SETTLED)
    page.evaluate("select(133); showDetail(133)")
    page.wait_for("document.querySelector('#dmark .status')")
    take(page, "event")

    page = here.look("chat-42", width=1280, height=760, scheme="dark")
    page.wait_for("view.jobs.size === 6")
    here.runtime.session("chat-42").upsert("answer-6", "message.changed", {"text": ANSWER}, job_id="turn-6")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('behind it'))")
    take(page, "streaming")

    page = here.look("ledger/2026-11", width=1280, height=620)
    page.wait_for("view.jobs.size === 5")
    page.evaluate("view.go(121)")
    page.wait_for(f"{SETTLED} && document.querySelector('.row.gap')")
    take(page, "gap")

    page = here.look("build/release-7.2", width=400, height=760)
    page.wait_for("view.jobs.size === 5")
    page.evaluate("view.go(100)")
    take(page, "narrow")
