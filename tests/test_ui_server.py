"""The server of the live page: who is let in, what a browser is allowed, what is asked for and what is answered."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import logmark
from logmark import Envelope
from logmark.errors import InvalidArgument, StorageUnavailable
from logmark.storage import _logging
from logmark.testing import CapturedLogs, eventually
from logmark.ui import LivePage, serve_page
from logmark.ui._listener import CONNECTIONS_MAX

SOON = 30.0
TOKEN = "a-token-of-the-tests"
TEXT = resources.files("logmark.ui").joinpath("page.html").read_text(encoding="utf-8")


@pytest.fixture
def runtime() -> Iterator[logmark.Runtime]:
    with logmark.open("memory:") as opened:
        yield opened


@pytest.fixture
def page(runtime: logmark.Runtime) -> Iterator[LivePage]:
    with serve_page(runtime, tokens={TOKEN: "tester", "another": "other"}) as served:
        yield served


class Looking:
    """A browser's end of the connection."""

    def __init__(self, page: LivePage, token: str | None = TOKEN, **headers: str) -> None:
        connecting = connect(
            f"ws://127.0.0.1:{page.port}/live", compression=None, close_timeout=0.5, additional_headers=headers
        )
        self.socket: ClientConnection = contextlib.ExitStack().enter_context(connecting)
        self.frames: list[dict[str, Any]] = []
        if token is not None:
            self.tell(op="hello", token=token)

    def tell(self, **frame: Any) -> None:
        self.socket.send(orjson.dumps(frame), text=True)

    def until(self, matches: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Return the first frame, of those to come, that matches."""
        while True:
            frame: dict[str, Any] = orjson.loads(self.socket.recv(SOON))
            self.frames.append(frame)
            if matches(frame):
                return frame

    def ask(self, op: str, **frame: Any) -> dict[str, Any]:
        self.tell(op=op, id=7, **frame)
        return self.until(lambda answer: answer.get("id") == 7)

    def close_code(self) -> int:
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.socket.recv(SOON)
        assert self.socket.close_code is not None
        return self.socket.close_code


@pytest.fixture
def look(page: LivePage) -> Iterator[Callable[..., Looking]]:
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Looking:
            looking = Looking(page, **options)
            stack.callback(looking.socket.close)
            return looking

        yield start


def get(page: LivePage, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=SOON)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


# -- the page itself ---------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_whose_policy_allows_itself_and_nothing_else(page: LivePage) -> None:
    status, headers, text = get(page)
    assert (status, text) == (200, TEXT)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["require-trusted-types-for"] == "'script'"


def test_the_page_needs_nothing_from_outside_and_makes_no_markup_of_text() -> None:
    assert set(re.findall(r"https?:[^\s'\"<>]+", TEXT)) == {"http://www.w3.org/2000/svg"}  # a name, fetched by nobody
    assert re.findall(r"\b(?:src|href)=\"(?!data:)", TEXT) == []
    assert re.findall(r"<\w[^>]*\s(?:on\w+|style)=", TEXT) == []
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert sink not in TEXT


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/?x=1", {}, 200),
        ("/", {"Host": "localhost:1"}, 200),
        ("/", {"Host": "[::1]:80"}, 200),
        ("/", {"Host": "evil.example"}, 403),
        ("/", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("/", {"Host": ""}, 403),
        ("/page.html", {}, 404),
        ("/../page.html", {}, 404),
        ("//", {}, 404),
        ("/live/", {}, 404),
    ],
)
def test_another_name_or_another_path_is_refused(
    page: LivePage, path: str, headers: dict[str, str], status: int
) -> None:
    found = get(page, path, **headers)
    assert found[0] == status
    assert found[1]["x-content-type-options"] == "nosniff"


def test_only_the_page_itself_may_connect_and_only_under_its_own_name(page: LivePage, logs: CapturedLogs) -> None:
    own = f"http://127.0.0.1:{page.port}"
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost",
        f"http://localhost:{page.port}",
        f"{own}/",
        f"https://127.0.0.1:{page.port}",
    ):
        with pytest.raises(InvalidStatus) as refused:
            Looking(page, Origin=origin)
        assert refused.value.response.status_code == 403
    assert len(logs.named("page_handshake_refused", reason="origin")) == 6
    with pytest.raises(InvalidStatus):
        Looking(page, Origin="http://evil.example", Host="evil.example")
    assert logs.named("page_handshake_refused", reason="host")
    with contextlib.closing(Looking(page, Origin=own).socket) as opened:
        assert orjson.loads(opened.recv(SOON))["op"] == "welcome"


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        {"op": "hello", "token": "wrong"},
        {"op": "hello", "token": ""},
        {"op": "hello", "token": None},
        {"op": "hello", "token": TOKEN.upper()},
        {"op": "hello", "token": TOKEN + "\0"},
        {"op": "open", "session": "s", "told": 0, "token": TOKEN},
        [TOKEN],
    ],
)
def test_nothing_is_told_without_a_token(
    runtime: logmark.Runtime, look: Callable[..., Looking], first: Any, logs: CapturedLogs
) -> None:
    runtime.session("secret").append("x")
    looking = look(token=None)
    looking.socket.send(orjson.dumps(first), text=True)
    assert looking.close_code() == 4401
    assert looking.frames == []
    assert logs.wait_for("page_login_refused", timeout=SOON)["peer"].startswith("127.0.0.1:")
    assert TOKEN not in repr(logs.events)


def test_tokens_are_needed_and_the_address_is_one_of_this_machine(runtime: logmark.Runtime) -> None:
    for tokens in ({}, {"": "x"}, {"x": ""}):
        with pytest.raises(InvalidArgument, match="tokens"):
            serve_page(runtime, tokens=tokens)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(InvalidArgument, match="elsewhere"):
            serve_page(runtime, tokens={"t": "x"}, host=host)
    with serve_page(runtime, tokens={"t": "x"}) as page, pytest.raises(StorageUnavailable, match="cannot listen"):
        serve_page(runtime, tokens={"t": "x"}, port=page.port)


# -- what is asked for -------------------------------------------------------------------------------------------------


def filled(runtime: logmark.Runtime, events: int = 1000) -> logmark.Session:
    session = runtime.session("chat")
    session.append_many([Envelope(type="tick", payload={"n": n}, job_id=f"job-{n % 3}") for n in range(events)])
    return session


def test_windows_are_bounded_and_say_what_is_missing(runtime: logmark.Runtime, look: Callable[..., Looking]) -> None:
    session = filled(runtime)
    runtime.store.reserve("chat", 5000)
    session.append("x", "y" * 100_000)
    looking = look()
    found = looking.ask("window", session="chat", **{"from": 1, "to": 10**18})
    assert ([row["s"] for row in found["rows"]], found["through"]) == (list(range(1, 401)), 400)
    found = looking.ask("window", session="chat", **{"from": 3000, "to": 3005})
    assert (found["rows"], found["gaps"], found["through"]) == ([], [[1001, 5000]], 3005)
    found = looking.ask("window", session="chat", **{"from": 4999, "to": 6000})
    assert [row["s"] for row in found["rows"]] == [5001]
    assert len(found["rows"][0]["p"]) < 300
    assert found["gaps"] == [[1001, 5000]]
    runtime.store.halt("chat", "on request")
    found = looking.ask("window", session="chat", **{"from": 4999, "to": 6000})
    assert found["gaps"] == [[1001, 5000]]
    found = looking.ask("window", session="never written to", **{"from": 1, "to": 5})
    assert (found["rows"], found["through"], found["trouble"]) == ([], 0, None)


def test_a_pruned_session_begins_where_it_is_kept(runtime: logmark.Runtime, look: Callable[..., Looking]) -> None:
    filled(runtime)
    runtime.store.truncate_before("chat", 601)
    looking = look()
    found = looking.ask("window", session="chat", **{"from": 1, "to": 700})
    assert found["first"] == 601
    looking.tell(op="open", session="chat", told=0)
    assert looking.until(lambda frame: frame["op"] == "opened")["first"] == 601


def test_searches_go_both_ways_and_say_how_far_they_came(
    runtime: logmark.Runtime, look: Callable[..., Looking]
) -> None:
    session = filled(runtime, 45_000)
    session.append("rare", {"text": "nädel im häu"})
    looking = look()
    found = looking.ask("find", session="chat", job="job-1", types=[], words=[], after=100)
    assert [row["s"] for row in found["rows"][:3]] == [101, 104, 107]
    assert (len(found["rows"]), found["end"]) == (200, False)
    found = looking.ask("find", session="chat", job="job-1", types=["tick"], words=[], before=101)
    assert ([row["s"] for row in found["rows"]], found["end"]) == (list(range(98, 0, -3)), True)
    found = looking.ask("find", session="chat", types=[], words=["nädel"], after=0)
    assert (found["rows"], found["scanned"], found["end"]) == ([], 20_000, False)
    found = looking.ask("find", session="chat", types=["rar"], words=["häu"], after=40_000)
    assert ([row["s"] for row in found["rows"]], found["end"]) == ([45_001], True)
    runtime.store.reserve("chat", 10**9)
    session.append("rare")
    found = looking.ask("find", session="chat", types=["rar"], words=[], before=10**9 + 2)
    wanted = ([10**9 + 1, 45_001], False, found["scanned"])
    assert wanted[2] < 30_000
    assert ([row["s"] for row in found["rows"]], found["end"], found["scanned"]) == wanted
    runtime.store.halt("chat", "on request")  # what can be read is found all the same, at the same places
    again = looking.ask("find", session="chat", types=["rar"], words=[], before=10**9 + 2)
    assert ([row["s"] for row in again["rows"]], again["end"], again["scanned"]) == wanted


@pytest.mark.parametrize(
    "frame",
    [
        {"op": "no such thing"},
        {"op": "window", "session": "chat", "from": -1, "to": 5},
        {"op": "window", "session": "chat", "from": "1", "to": 5},
        {"op": "window", "session": "chat", "from": True, "to": 5},
        {"op": "window", "session": "", "from": 1, "to": 5},
        {"op": "event", "session": ["chat"], "seq": 1},
        {"op": "event", "session": "chat", "seq": 2**63},
        {"op": "find", "session": "chat", "types": "tick"},
        {"op": "find", "session": "chat", "words": ["x"] * 17},
        {"op": "open", "session": "chat"},
        ["window"],
    ],
)
def test_what_no_page_would_send_ends_the_connection(look: Callable[..., Looking], frame: Any) -> None:
    looking = look()
    looking.socket.send(orjson.dumps(frame), text=True)
    assert looking.close_code() == 1008


def test_what_is_not_json_or_too_long_ends_the_connection(look: Callable[..., Looking]) -> None:
    for data, code in (("{", 1008), ("[" * 60_000, 1008), ("x" * 70_000, 1009)):
        looking = look()
        looking.socket.send(data)
        assert looking.close_code() == code


def test_a_question_that_fails_is_answered_so(look: Callable[..., Looking]) -> None:
    looking = look()
    assert "session" in looking.ask("window", session="x" * 300, **{"from": 1, "to": 5})["text"]
    assert looking.ask("verify", session="nobody")["findings"] == []
    assert looking.ask("event", session="nobody", seq=1)["event"] is None


def test_numbers_of_64_bits_and_steering_characters_are_told_as_text(
    runtime: logmark.Runtime, look: Callable[..., Looking]
) -> None:
    session = runtime.session("s")
    session.append("x", {"n": 2**64 - 1, "t": "\u202e\x1b"}, extensions={"big": 2**63, "\u202e": "\x9b"})
    found = look().ask("event", session="s", seq=1)["event"]
    assert '"n": 18446744073709551615' in found["payload"]
    assert ["big", "9223372036854775808"] in found["fields"]
    said = found["payload"] + found["row"]["p"] + "".join(map("".join, found["fields"]))
    assert not set("\u202e\x1b\x9b") & set(said)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_every_event_is_told_once_in_order_and_marks_follow(
    runtime: logmark.Runtime, look: Callable[..., Looking]
) -> None:
    session = filled(runtime, 50)
    looking = look()
    looking.tell(op="open", session="chat", told=20)
    looking.until(lambda frame: frame["op"] == "live" and frame["last"] == 50)
    for _ in range(100):
        session.append("tick", None, job_id="job-0")
    looking.until(lambda frame: frame["op"] == "live" and frame["last"] == 150)
    rows = [row["s"] for frame in looking.frames if frame["op"] == "live" for row in frame["rows"]]
    assert rows == list(range(21, 151))
    marks: dict[str, Any] = {}

    def all_there(frame: dict[str, Any]) -> bool:
        if frame["op"] == "jobs":
            marks.update({mark[0]: mark[1:] for mark in frame["marks"]})
        return marks.get("job-0") == [1, 150, 117, "running"]

    for frame in looking.frames:
        all_there(frame)
    if marks.get("job-0") != [1, 150, 117, "running"]:
        looking.until(all_there)


def test_a_burst_costs_a_browser_no_more_than_its_end(runtime: logmark.Runtime, look: Callable[..., Looking]) -> None:
    session = filled(runtime, 10)
    looking = look()
    looking.tell(op="open", session="chat", told=10)
    looking.until(lambda frame: frame["op"] == "opened")
    for _ in range(5):
        session.append_many([Envelope(type="tick", payload=n) for n in range(5000)])
    looking.until(lambda frame: frame["op"] == "live" and frame["last"] == 25_010)
    rows = [row["s"] for frame in looking.frames if frame["op"] == "live" for row in frame["rows"]]
    assert rows == sorted(set(rows))
    assert rows[-200:] == list(range(24_811, 25_011))
    assert len(rows) < 10_000


def test_halts_lag_and_cursors_are_told(runtime: logmark.Runtime, look: Callable[..., Looking]) -> None:
    session = filled(runtime, 10)
    session.cursor("mailer").ack(4)
    looking = look()
    row = looking.until(lambda frame: frame["op"] == "sessions" and frame["changed"])["changed"][0]
    assert (row["id"], row["last"], row["lag"], row["halted"]) == ("chat", 10, 6, None)
    with session.subscribe(1) as behind:
        behind.get(SOON)
        behind.get(SOON)
        told = looking.until(lambda frame: frame["op"] == "sessions" and frame["changed"])["changed"][0]
        assert told["lag"] == 8
        readers = looking.ask("event", session="chat", seq=3)["readers"]
        assert readers == {"taken": 0, "before": 1, "cursors": [["mailer", 4]]}
        behind.get(SOON)
        assert looking.ask("event", session="chat", seq=3)["readers"]["taken"] == 1
    looking.tell(op="open", session="chat", told=10)
    runtime.store.halt("chat", "smoke\u202e")
    with pytest.raises(logmark.SessionHalted):
        session.append("x")
    told = looking.until(lambda frame: frame["op"] == "sessions" and frame["changed"])["changed"][0]
    assert told["halted"] == "smoke\\u202e"
    seen = next((frame for frame in looking.frames if frame["op"] == "notes"), None)
    note = (seen or looking.until(lambda frame: frame["op"] == "notes"))["notes"][0]
    assert (note["event"], note["level"]) == ("append_failed", "warning")


def test_what_is_known_of_a_commit_is_of_this_process_only(runtime: logmark.Runtime, page: LivePage) -> None:
    session = filled(runtime, 3)
    with serve_page(runtime, tokens={TOKEN: "x"}, writing=False) as other:
        for served, known in ((page, True), (other, False)):
            looking = Looking(served)
            with contextlib.closing(looking.socket):
                assert looking.until(lambda frame: frame["op"] == "welcome")["writing"] is known
                trail = looking.ask("event", session="chat", seq=2)["trail"]
                assert (trail is not None) is known
                if trail is not None:
                    assert (trail["first_seq"], trail["last_seq"], trail["events"]) == (1, 3, 3)
    assert session.last_seq == 3


def test_nothing_that_a_browser_does_changes_the_store(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with logmark.open(url) as writer:
        filled(writer, 20_000)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "store").rglob("*")) if path.is_file()}
    limits = logmark.Limits(marks_unsaved_events_max=2**62)  # as `logmark ui` does
    with (
        logmark.open(url, limits=limits, create=False) as runtime,
        serve_page(runtime, tokens={TOKEN: "x"}, writing=False) as page,
    ):
        looking = Looking(page)
        with contextlib.closing(looking.socket):
            looking.tell(op="open", session="chat", told=0)
            looking.until(lambda frame: frame["op"] == "jobs" and frame["total"] == 3)
            looking.ask("verify", session="chat")
            looking.ask("find", session="chat", types=["tick"], words=[], before=15_000)
            looking.ask("window", session="chat", **{"from": 1, "to": 300})
            looking.ask("event", session="nobody", seq=1)
    assert {path: path.read_bytes() for path in sorted((tmp_path / "store").rglob("*")) if path.is_file()} == before


def test_a_store_that_cannot_be_reached_is_told_and_followed_again(
    runtime: logmark.Runtime, look: Callable[..., Looking], monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    session = filled(runtime, 5)

    def away(_session_id: str) -> Any:
        raise StorageUnavailable(store="memory:", reason="the server is away")

    looking = look()
    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "info", away)
        looking.tell(op="open", session="chat", told=5)
        told = looking.until(lambda frame: frame["op"] == "trouble")
        assert "away" in told["text"]
        assert told["last"] == 5
        if not any(frame["op"] == "sessions" and frame["error"] for frame in looking.frames):
            looking.until(lambda frame: frame["op"] == "sessions" and frame["error"])
        assert "away" in looking.ask("window", session="chat", **{"from": 1, "to": 5})["text"]
    looking.until(lambda frame: frame["op"] == "opened")
    session.append("x")
    assert looking.until(lambda frame: frame["op"] == "live")["last"] == 6
    assert not logs.named("page_connection_failed")


def test_a_runtime_that_is_closed_first_breaks_nothing(logs: CapturedLogs) -> None:
    runtime = logmark.open("memory:")
    filled(runtime, 5)
    with serve_page(runtime, tokens={TOKEN: "x"}) as page:
        looking = Looking(page)
        looking.tell(op="open", session="chat", told=5)
        looking.until(lambda frame: frame["op"] == "opened")
        runtime.close()
        looking.until(lambda frame: frame["op"] == "trouble")
        assert "closed" in looking.ask("window", session="chat", **{"from": 1, "to": 5})["text"]
    looking.socket.close()
    assert not logs.named("page_connection_failed")
    assert not logs.named("page_overview_failed")


# -- the end -----------------------------------------------------------------------------------------------------------


def test_closing_lets_every_browser_go_and_leaves_no_thread(runtime: logmark.Runtime, logs: CapturedLogs) -> None:
    filled(runtime)
    sinks = _logging._sinks
    page = serve_page(runtime, tokens={TOKEN: "x"})
    assert len(_logging._sinks) == len(sinks) + 1
    many = [Looking(page) for _ in range(5)]
    for looking in many:
        looking.tell(op="open", session="chat", told=0)
        looking.until(lambda frame: frame["op"] == "opened")
    page.close()
    page.close()
    for looking in many:
        looking.close_code()
        looking.socket.close()
    assert _logging._sinks == sinks
    eventually(lambda: not any(thread.name.startswith("page-") for thread in threading.enumerate()), SOON)
    assert runtime.session("chat").append("x") == 1001
    assert len(logs.named("page_closed")) == 1
    assert not logs.named("page_connection_failed")


def test_one_connection_too_many_is_closed_and_idle_ones_do_not_keep_others_out(
    page: LivePage, logs: CapturedLogs
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
        extra = stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
        extra.settimeout(SOON)
        assert extra.recv(1) == b""
        assert logs.wait_for("page_connection_refused", timeout=SOON)["connections"] == CONNECTIONS_MAX
    eventually(lambda: can_get(page), SOON)


def can_get(page: LivePage) -> bool:
    try:
        return get(page)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_browser_that_does_not_read_harms_nobody(runtime: logmark.Runtime, look: Callable[..., Looking]) -> None:
    session = filled(runtime, 10)
    deaf, other = look(), look()
    deaf.tell(op="open", session="chat", told=0)
    for _ in range(200):
        deaf.tell(op="window", id=1, session="chat", **{"from": 1, "to": 400})
    other.tell(op="open", session="chat", told=10)
    other.until(lambda frame: frame["op"] == "opened")
    for _ in range(20):
        session.append_many([Envelope(type="tick", payload="x" * 200) for _ in range(1000)])
    other.until(lambda frame: frame["op"] == "live" and frame["last"] == 20_010)
