"""The live page in a real browser: what it shows, what comes, what goes wrong, what a hostile event can do to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope
from logmark.testing._browser import WatchedStore

pytestmark = pytest.mark.slow

Watched = Callable[..., WatchedStore]
ALL = "Array.from({length: view.list.places}, (_, place) => view.list.at(place).seq)"
SHOWN = "[...document.querySelectorAll('.row:not([hidden])')]"
SETTLED = WatchedStore.SETTLED


def a_build(runtime: logmark.Runtime, session_id: str = "chat-42") -> logmark.Session:
    """Three jobs: one ended well, one timed out, one runs."""
    session = runtime.session(session_id)
    for step in range(40):
        session.append("job.event", {"message": f"step {step}"}, job_id=f"build-{step % 3}")
    session.append("job.result", {"final_status": "success"}, job_id="build-0")
    session.append("job.error", {"code": "TIMEOUT", "message": "too long"}, job_id="build-1")
    return session


# -- what it shows -----------------------------------------------------------------------------------------------------


def test_sessions_events_jobs_and_one_event_in_full(watched: Watched) -> None:
    here = watched()
    a_build(here.runtime)
    here.runtime.session("another").append("x", 1)
    page = here.look()
    page.wait_for("document.querySelectorAll('tr.session').length === 2")
    page.evaluate("new Promise(requestAnimationFrame)")
    page.click("tr.session:nth-child(2) button")
    page.wait_for(f"{SETTLED} && view.jobs.size === 3")
    assert page.evaluate(ALL) == list(range(1, 43))
    assert page.wait_for("document.querySelectorAll('button.lane').length === 3")
    lanes = page.evaluate("[...document.querySelectorAll('button.lane')].map((lane) => lane.title)")
    assert lanes == [
        "build-2: running, 13 events, 3 to 39",
        "build-1: timed_out, 14 events, 2 to 42",
        "build-0: success, 15 events, 1 to 41",
    ]
    page.evaluate("view.go(41)")
    page.press("Enter")
    page.wait_for("document.querySelector('#dmark .status')")
    said = page.text("#dbody")
    for words in ("final_status", "event_seq41", "job_idbuild-0", "statussuccess", "commit41 alone", "of it the sync"):
        assert words in said, said
    assert "Nobody in this process was subscribed" in said
    assert page.evaluate("location.hash") == "#session=chat-42&seq=41"
    live = here.runtime.session("chat-42").append("x", "now", job_id="build-2")
    page.wait_for(f"view.last === {live}")
    page.evaluate(f"showDetail({live})")
    page.wait_for("document.querySelector('#dbody').textContent.includes('Offered to 1 subscriber')")
    assert "1 subscriber of this process now, this page among them: 1 has taken it." in page.text("#dbody")


def test_what_is_appended_comes_and_streamed_rows_grow_in_their_place(watched: Watched) -> None:
    here = watched()
    session = a_build(here.runtime)
    page = here.look("chat-42")
    for number in range(5):
        session.append("message.created", f"line {number}")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('line 4')) && view.follow")
    text = ""
    for number in range(30):
        text += f"word{number} "
        session.upsert("answer", "message.changed", {"text": text})
    session.append("x", "behind it")
    page.wait_for("view.last === 78 && view.list.places === 49")
    row = page.wait_for(f"{SHOWN}.map((row) => row.textContent).find((text) => text.includes('word29'))")
    assert row.startswith("48")
    assert "\N{MULTIPLICATION SIGN}30" in row
    assert page.evaluate("[...view.timeline.holes.list].map((hole) => [hole.from, hole.to, hole.kind])") == [
        [49, 77, "part"]
    ]
    # Who comes later, and reads it from the log, sees the same.
    other = here.look("chat-42")
    other.wait_for("view.list.places === 49")
    other.wait_for(f"{SHOWN}.some((row) => /word29.*\N{MULTIPLICATION SIGN}30/.test(row.textContent))")
    other.evaluate("showDetail(48)")
    other.wait_for("document.querySelector('#dbody').textContent.includes('A streamed row: 30 events so far')")


def test_gaps_damage_and_halts_stand_out_and_the_rest_is_readable(watched: Watched, tmp_path: Path) -> None:
    here = watched(f"file:{tmp_path / 'store'}")
    session = a_build(here.runtime)
    here.runtime.store.reserve("chat-42", 10_000_042)
    session.append("x", "behind the gap")
    page = here.look("chat-42")
    page.wait_for("document.querySelector('.row.gap:not([hidden])')")
    assert page.evaluate("view.list.places") == 44
    gap = page.text(".row.gap:not([hidden]) .text")
    assert gap.startswith("gap: 43 \N{EN DASH} 10,000,042 have no event")
    page.wait_for("document.querySelector('.axis i.gap')")
    here.runtime.store.halt("chat-42", "the disk was on fire")
    page.wait_for("document.querySelector('#trouble').textContent.includes('the disk was on fire')")
    page.wait_for("document.querySelector('#tags').textContent === 'halted'")
    other = here.look("chat-42")
    other.wait_for("view.jobs.size === 3")
    other.evaluate("view.go(5)")
    other.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('step 4'))")


def test_a_box_that_grows_with_the_list_goes_on_following(watched: Watched) -> None:
    """The browser moves what it shows when there is more room; that is no person who wants to stay there."""
    here = watched()
    a_build(here.runtime)
    page = here.look("chat-42")
    drawn = page.evaluate(
        """(async () => {
            const box = $("timeline"), list = view.list, places = list.places;
            const frames = async (n) => { while (n--) await new Promise(requestAnimationFrame); };
            Object.defineProperty(list, "places", { get: () => places - 5, configurable: true });
            box.style.maxHeight = "200px";
            await frames(4);
            const before = [view.follow, box.scrollTop];
            delete list.places;
            box.style.maxHeight = "";
            const moved = box.scrollTop;
            await frames(4);
            return [...before, moved, view.follow, box.scrollHeight - box.clientHeight - box.scrollTop];
        })()"""
    )
    followed, top, moved, follows, left = drawn
    assert followed
    assert moved < top  # the browser has done so
    assert follows
    assert left < 1


def test_what_is_readable_before_damage_is_shown_and_the_damage_too(watched: Watched, tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'store'}"
    with logmark.open(url) as runtime:
        a_build(runtime, "damaged")
    (segment,) = (tmp_path / "store").rglob("*.jsonl")
    sound = segment.read_bytes()
    segment.write_bytes(sound.replace(b"step 20", b"step XX"))
    here = watched(url)
    page = here.look("damaged")
    page.wait_for("document.querySelector('.row.damage:not([hidden]) .text')?.textContent.startsWith('damage: ')")
    assert page.evaluate("view.list.at(view.list.places - 1).hole.from") == 21
    page.click("#verify")
    page.wait_for("document.querySelector('#findings.bad') && /checksum/i.test($('findings').textContent)")
    page.evaluate("view.go(3)")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('step 2'))")
    segment.write_bytes(sound)
    page.click("#verify")
    page.wait_for(f"document.querySelector('#findings.good') && {SETTLED} && view.list.places === 42")
    assert page.evaluate(ALL) == list(range(1, 43))


# -- a lost server -----------------------------------------------------------------------------------------------------


def test_a_lost_server_is_told_and_found_again_without_gap_or_double(watched: Watched) -> None:
    here = watched()
    session = a_build(here.runtime)
    page = here.look("chat-42")
    for round_ in range(2):
        port = here.served.port
        here.served.close()
        page.wait_for("/^Server lost/.test(document.querySelector('#state').textContent)")
        for number in range(150 + round_ * 400):  # within what is told again, and beyond it
            session.append("job.event", number, job_id="build-2")
        here.served = here.serve(port)
        page.wait_for(f"net.ready && view.last === {session.last_seq}")
        page.wait_for(SETTLED)
        session.append("x", "live again")
        page.wait_for(f"view.last === {session.last_seq}")
        page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('live again'))")
        assert page.evaluate(ALL) == list(range(1, session.last_seq + 1))
        assert page.text("#state") == "Live"
    # Every row says what its number has, from end to end.
    page.evaluate("""(async () => {
        for (let place = 0; place < view.list.places; place += 20) {
            view.list.want(place, place + 20);
            await new Promise((done) => setTimeout(done, 5));
        }
    })()""")
    page.wait_for("Array.from({length: view.list.places}, (_, i) => view.list.at(i)).every((item) => item.row)")
    told = page.evaluate("Array.from({length: view.list.places}, (_, i) => view.list.at(i).row.p)")
    assert told == [event.payload_json.decode() for event in session.read_raw()]


def test_a_token_is_asked_for_kept_for_the_tab_and_taken_out_of_the_address(watched: Watched) -> None:
    here = watched()
    a_build(here.runtime)
    page = here.browser.open(here.served.url)
    here.pages.append(page)
    page.wait_for("document.querySelector('#login').open")
    assert page.evaluate("net.socket === null && sessions.size === 0")
    page.type("not-the-token")
    page.press("Enter")
    page.wait_for("document.querySelector('#login-why').textContent.includes('not known') && $('login').open")
    page.type(here.token)
    page.press("Enter")
    page.wait_for("net.ready && sessions.size === 1")
    again = here.look()
    assert here.token not in again.evaluate("location.href")
    assert here.token not in again.evaluate("document.documentElement.outerHTML")
    again.call("Page.reload")
    again.wait_for("net.ready && sessions.size === 1")


# -- hostile events ----------------------------------------------------------------------------------------------------

STEERING = r"/[\u0000\u001b\u009b\u2028\u202e\u2066]/"
SCRIPTS = [
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "</script><svg onload=window.harmed=1>",
    "javascript:window.harmed=1",
    "\u202etxet gnorw\u202c \u2066x\u2069 \x1b[31m \x00 \x9b \u2028 \ufeff",
    '"><b onclick="window.harmed=1">',
    "${window.harmed=1} {{constructor.constructor('window.harmed=1')()}}",
]


def test_hostile_events_are_text_and_nothing_else(watched: Watched) -> None:
    here = watched()
    for name in (SCRIPTS[4], SCRIPTS[0], "__proto__"):
        session = here.runtime.session(name[:60])
        for text in SCRIPTS:
            session.append(text, text, job_id=text, source={"name": text}, trace_id=text[:40])
        session.append(
            "__proto__", {"__proto__": {"polluted": 1}}, job_id="__proto__", extensions={"row_id": "__proto__"}
        )
        session.append("hasOwnProperty", [], job_id="toString", extensions={"toString": 1, "<b>": "<i>"})
        nested: Any = "<script>window.harmed = 1</script>"
        for _ in range(60):
            nested = [nested]
        session.append("deep", nested)
        session.append("huge", "<b>" + "W" * 900_000)
        session.append("wide", {f"key {n}": 2**63 - 1 for n in range(5000)})
    page = here.look()
    page.evaluate("window.before = document.querySelectorAll('script, img, svg, b, iframe').length")
    for session_id in [info.session_id for info in here.runtime.sessions()]:
        page.evaluate(f"openSession({session_id!r})")
        page.wait_for(f"view.id === {session_id!r} && {SETTLED} && view.jobs.size > 5")
        for seq in range(1, 13):
            page.evaluate(f"view.go({seq}); showDetail({seq})")
            page.wait_for(f"detail.row && detail.row.s === {seq} && document.querySelector('#dbody pre')")
            page.evaluate("new Promise((done) => requestAnimationFrame(done))")
            assert page.evaluate(f"!{STEERING}.test(document.body.textContent)")
        page.evaluate("document.querySelector('button.lane').click()")
        page.wait_for("view.filter")
        page.evaluate("clearFilter(); showDetail(12)")
        page.wait_for("document.querySelector('#dbody pre').textContent.includes('9223372036854775807')")
    assert page.evaluate(f"!{STEERING}.test(document.documentElement.outerHTML)")
    assert page.evaluate("window.harmed === undefined && ({}).polluted === undefined")
    assert "<script>window.harmed" in page.evaluate(
        "[...document.querySelectorAll('tr')].map((x) => x.innerText).join()"
    )
    # The last word is the browser's: what was smuggled in would not run.
    page.evaluate("""(() => {
        const node = document.createElement("script");
        try { node.textContent = "window.harmed = 2"; document.head.append(node); } catch { /* refused */ }
    })()""")
    assert page.evaluate("window.harmed") is None
    assert any("Content Security Policy" in problem or "TrustedScript" in problem for problem in page.problems)
    page.problems.clear()


# -- finding one's way -------------------------------------------------------------------------------------------------


def test_the_keyboard_does_everything(watched: Watched) -> None:
    here = watched()
    a_build(here.runtime)
    page = here.look()
    page.wait_for("document.querySelectorAll('tr.session').length === 1")
    page.press("/")
    page.type("chat")
    page.press("Enter")
    page.wait_for(SETTLED)
    page.wait_for("document.activeElement.id === 'timeline'")
    page.press("k", "k", "ArrowUp")
    assert page.evaluate("view.selected") == 40
    page.press("j", "ArrowDown")
    assert page.evaluate("view.selected") == 42
    page.wait_for(
        "document.getElementById($('timeline').getAttribute('aria-activedescendant'))?.seq === 42"
        ' && document.querySelector(\'[aria-selected=true][aria-posinset="42"][aria-setsize="42"]\')'
    )
    page.press("Home")
    assert page.evaluate("view.selected") == 1
    page.press("PageDown")
    assert 5 < page.evaluate("view.selected") < 40
    page.press("End", "Enter")
    page.wait_for("document.querySelector('#dbody pre') && document.activeElement.id === 'dtitle'")
    page.press("Escape")
    assert page.evaluate("$('detail').hidden && document.activeElement.id === 'timeline'")
    page.press("/")
    page.type("#7")
    page.press("Enter")
    page.wait_for("view.selected === 7 && document.activeElement.id === 'timeline'")
    page.press("/")
    page.type("job:build-1 type:error")
    page.press("Enter")
    page.wait_for(f"view.filter && view.list.high >= 42 && JSON.stringify({ALL}) === '[42]'")
    page.press("Escape")
    assert page.evaluate("view.filter === null && view.list.places") == 42


def test_the_keyboard_pauses_switches_and_shows_where_it_is(watched: Watched) -> None:
    here = watched()
    session = a_build(here.runtime)
    page = here.look("chat-42")
    page.press("?", shift=True)
    page.wait_for("$('keys').open")
    page.press("Escape")
    page.wait_for("!$('keys').open")
    page.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.press(" ")
    assert page.evaluate("view.paused")
    session.append("x", "unseen")
    page.wait_for("view.newest === 43 && view.last === 42")
    page.press(" ")
    page.wait_for("view.last === 43 && !view.paused")
    session.append("x", "behind it")  # which does not follow on what the page has, before the pause's own was fetched
    page.wait_for("view.last === 44")
    page.press("End")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('behind it'))")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('unseen'))")
    # Whatever has the focus shows it.
    for _ in range(12):
        page.press("Tab")
        assert page.evaluate(
            "(() => { const at = document.activeElement, look = getComputedStyle(at);"
            " return at === document.body || look.outlineStyle !== 'none' && parseFloat(look.outlineWidth) >= 1 })()"
        )
    page.evaluate("$('timeline').focus()")
    page.press("Escape")
    page.wait_for("view === null && $('session').hidden")


def test_a_pause_and_a_filter_keep_ones_place(watched: Watched) -> None:
    here = watched()
    session = a_build(here.runtime)
    session.append_many([Envelope(type="tick", payload=n, job_id=f"job-{n % 4}") for n in range(2000)])
    page = here.look("chat-42")
    page.wait_for("view.jobs.size === 7 && !$('lanes').hidden")
    page.evaluate("view.go(1000)")
    page.wait_for(f"{SETTLED} && {SHOWN}.some((row) => row.seq === 1000)")
    # What came in a pause and is not looked at, and what comes behind it in the same page.
    page.click("#pause")
    session.append_many([Envelope(type="missed", payload=n) for n in range(3)])
    page.wait_for("view.newest === 2045")
    page.click("#pause")
    session.append("behind")
    page.wait_for("view.last === 2046")
    page.press("End")
    page.wait_for(f"{SETTLED} && {SHOWN}.filter((row) => row.textContent.includes('missed')).length === 3")
    page.evaluate("view.go(1000)")
    page.wait_for(f"{SETTLED} && {SHOWN}.some((row) => row.seq === 1000)")
    page.evaluate("scrolled(view.offset + 56)")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    top = page.evaluate("view.window[0]")
    page.click("#pause")
    session.append_many([Envelope(type="tick", payload=n) for n in range(500)])
    page.wait_for("view.newest === 2546")
    assert page.evaluate("[view.last, view.window[0]]") == [2046, top]
    page.wait_for("!$('foot').hidden && $('tail').textContent === '500 new events · resume'")
    page.click("#pause")
    page.wait_for("view.last === 2546")
    assert page.evaluate("view.window[0]") == top
    here.runtime.store.truncate_before("chat-42", 45)
    page.wait_for("view.first === 45")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("view.window[0]") == top
    page.evaluate("filterJob('job-2')")
    page.wait_for("view.list.places > 200")
    page.wait_for("view.list.ended.before && view.list.high >= 2546 || (view.offset += 2000, draw(), false)")
    assert page.evaluate(ALL) == list(range(45, 2043, 4))
    page.evaluate("filterJob('job-2')")
    page.wait_for(f"view.filter === null && {SHOWN}.some((row) => row.seq === 1000)")
    session.append("rare.type", {"needle": "in the hay"})
    page.evaluate("$('query').value = 'needle type:rare'; applyQuery()")
    page.wait_for(f"JSON.stringify({ALL}) === '[2547]'")
    session.append("rare.type", {"needle": "another"})
    page.wait_for(f"JSON.stringify({ALL}) === '[2547,2548]'")


def test_a_hundred_thousand_events_stay_a_window(watched: Watched) -> None:
    here = watched()
    session = here.runtime.session("long")
    for start in range(0, 90_000, 10_000):
        session.append_many([("tick", start + n) for n in range(10_000)])
    session.append_many([Envelope(type="tick", payload=90_000 + n, job_id=f"j{n % 7}") for n in range(10_000)])
    page = here.look("long")
    page.evaluate(
        "window.asked = 0; const ask = net.ask; net.ask = function (...all) { asked++; return ask.apply(this, all) }"
    )
    nodes = [page.evaluate("document.querySelectorAll('*').length")]
    for seq in (1, 50_000, 99_990, 123, 77_777):
        page.evaluate(f"view.go({seq})")
        page.wait_for(f"{SETTLED} && {SHOWN}.some((row) => row.seq === {seq} && row.textContent.includes({seq - 1}))")
        nodes.append(page.evaluate("document.querySelectorAll('*').length"))
    for share in range(1, 10):
        page.evaluate(f"$('timeline').scrollTop = $('timeline').scrollHeight * {share} / 10")
        page.wait_for(f"view.window[0] > {share * 8000} && {SETTLED}")
        nodes.append(page.evaluate("document.querySelectorAll('*').length"))
    assert max(nodes) < 900
    assert page.evaluate("asked") < 150
    page.evaluate("(async () => { for (let n = 0; n < 100; n++) await view.timeline.fetch(n * 5) })()")
    assert 20 < page.evaluate("view.timeline.pages.size") <= 80
    page.press("End")
    page.wait_for("view.follow")
    session.append("x", "the newest")
    page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('the newest'))")
    # A frame is drawn in a fraction of its time; the bound is far from it, for a machine that has other things to do.
    spent = page.evaluate(
        """(() => {
            view.follow = false;
            const began = performance.now();
            for (let i = 0; i < 50; i++) { view.offset = i * 30000; drawNow(); }
            return (performance.now() - began) / 50;
        })()"""
    )
    assert spent < 100


# -- another process ---------------------------------------------------------------------------------------------------


def test_the_command_watches_a_store_that_another_process_writes(watched: Watched, tmp_path: Path) -> None:
    here = watched(f"file:{tmp_path / 'store'}")
    session = a_build(here.runtime)
    command = [sys.executable, "-W", "error", "-m", "logmark", "ui", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        page = here.look("chat-42", url=url)
        session.append("x", "from the other process")
        page.wait_for(f"{SHOWN}.some((row) => row.textContent.includes('from the other process'))")
        page.evaluate("showDetail(43)")
        page.wait_for("document.querySelector('#dbody').textContent.includes('it only reads the store')")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr.read() == "logmark: stopping; once more stops at once\n"
        page.wait_for("/^Server lost/.test(document.querySelector('#state').textContent)")
