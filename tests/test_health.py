"""How a runtime is: told truly, without waiting for a disk that hangs, and without telling secrets."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import _health
from logmark.errors import InvalidArgument
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import CapturedLogs, eventually

SOON = 30.0
TOKENS = {"s3cret": "alice"}


class Hanging(MemoryEventStore):
    """A store whose disk answers nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.pings = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def ping(self) -> None:
        self.pings += 1
        assert self.go_on.wait(SOON)

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.entered.set()
        assert self.go_on.wait(SOON)
        return super().append(batches)


# -- Runtime.health ----------------------------------------------------------------------------------------------------


def test_a_runtime_says_how_it_is_from_its_opening_to_after_its_close(every_store_url: str) -> None:
    with logmark.open(every_store_url) as runtime:
        idle = runtime.health(timeout=SOON)
        session = runtime.session("a")
        session.append("x")
        with session.subscribe() as viewer:
            used = runtime.health(timeout=SOON)
            assert viewer.lag == 0
    closed = runtime.health()

    assert (idle.status, idle.problems, idle.reachable, idle.is_serving) == ("ok", (), True, True)
    assert (idle.sessions, idle.subscriptions, idle.writers) == (0, 0, 0)
    assert (used.sessions, used.subscriptions, used.inbox_events, used.oldest_append_s) == (1, 1, 0, 0)
    assert used.writers >= 1
    assert (closed.status, closed.problems, closed.reachable) == ("closed", ("closed",), None)
    assert not closed.is_serving


def test_it_is_frozen_and_a_value(every_store_url: str) -> None:
    with logmark.open(every_store_url) as runtime:
        health = runtime.health()
        with pytest.raises(AttributeError):
            health.status = "closed"  # type: ignore[misc]
        assert json.loads(json.dumps(health.public()))["status"] == "ok"


def test_a_disk_that_hangs_is_told_in_time_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "_PROBE_FRESH_S", 0.0)
    store = Hanging()
    with logmark.Runtime(store) as runtime:
        waiting = runtime.session("a").submit("x")
        assert store.entered.wait(SOON)
        began = time.monotonic()
        healths = [runtime.health(timeout=0.01) for _ in range(10)]
        took_s = time.monotonic() - began
        pings = store.pings
        oldest = eventually(lambda: runtime.health(timeout=0.0).oldest_append_s, timeout=SOON)
        store.go_on.set()
        assert waiting.result(SOON) == 1

    assert {(health.status, health.reachable, health.problems) for health in healths} == {
        ("unavailable", False, ("store_unreachable",))
    }
    assert healths[-1].inbox_events == 1
    assert healths[-1].inbox_bytes > 0
    assert oldest > 0
    assert took_s < SOON / 2
    assert pings == 1


def test_an_append_that_the_disk_has_for_long_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "_STALLED_S", 0.0)
    store = Hanging()
    store.ping = lambda: None  # type: ignore[method-assign]
    with logmark.Runtime(store) as runtime:
        waiting = runtime.session("a").submit("x")
        assert store.entered.wait(SOON)
        eventually(lambda: runtime.health().oldest_append_s > 0, timeout=SOON)
        stalled = runtime.health()
        store.go_on.set()
        waiting.result(SOON)
        # Who waits for a future may be there before the writer has given back its places.
        eventually(lambda: runtime.health().status == "ok", timeout=SOON)

    assert (stalled.status, stalled.problems, stalled.is_serving) == ("degraded", ("append_stalled",), True)


def test_a_store_that_is_gone_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_health, "_PROBE_FRESH_S", 0.0)
    with logmark.open(str(tmp_path / "store")) as runtime:
        runtime.session("a").append("x")
        assert runtime.health(timeout=SOON).reachable
        shutil.move(tmp_path / "store", tmp_path / "elsewhere")
        eventually(lambda: not runtime.health(timeout=SOON).reachable, timeout=SOON)
        gone = runtime.health(timeout=SOON)
        shutil.move(tmp_path / "elsewhere", tmp_path / "store")
        eventually(lambda: runtime.health(timeout=SOON).status == "ok", timeout=SOON)

    assert (gone.status, gone.problems) == ("unavailable", ("store_unreachable",))


@pytest.mark.parametrize("engine", ["file", "sqlite"])
def test_a_halt_is_known_until_it_is_repaired(engine: str, tmp_path: Path) -> None:
    with logmark.open(f"{engine}:{tmp_path / 'store'}") as runtime:
        for name in ("a", "b"):
            runtime.session(name).append("x")
            runtime.store.halt(name, f"on purpose in {name}")
        halted = runtime.health()
        runtime.store.repair("a")
        runtime.store.clear_halt("b")
        mended = runtime.health()

    assert (halted.status, halted.problems, halted.halted) == ("degraded", ("session_halted",), ("a", "b"))
    assert halted.last_error is not None
    assert (halted.last_error.event, halted.last_error.session_id) == ("session_halted", "b")
    assert "on purpose in b" in halted.last_error.detail
    assert (mended.status, mended.halted) == ("ok", ())


def test_restarts_are_counted(raise_once: Callable[..., list[Any]]) -> None:
    with logmark.open("memory:") as runtime:
        session = runtime.session("a")
        session.append("x")
        raised = raise_once(logmark.actors.SessionActor, "_on_persisted")
        session.append("x")
        health = runtime.health()

    assert raised
    assert (health.restarts, health.given_up, health.status) == (1, 0, "ok")
    assert health.last_error is not None
    assert health.last_error.event == "actor_failed"


def test_lag_is_that_of_open_subscriptions(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        session = runtime.session("a")
        session.append_many([("x", n) for n in range(10)])
        behind, ahead = session.subscribe(from_seq=1), session.subscribe(from_seq=8)
        open_ = runtime.health()
        behind.close()
        half = runtime.health()
        ahead.close()
        none = runtime.health()

    assert (open_.subscriptions, open_.lag, open_.lag_max) == (2, 13, 10)
    assert (half.subscriptions, half.lag, half.lag_max) == (1, 3, 3)
    assert (none.subscriptions, none.lag, none.lag_max) == (0, 0, 0)


def test_a_runtime_does_not_keep_subscriptions_that_nobody_has() -> None:
    with logmark.open("memory:") as runtime:
        subscription = runtime.session("a").subscribe()
        assert runtime.health().subscriptions == 1
        runtime.session("a").stop()  # its actor holds subscribers as long as it lives
        del subscription
        gc.collect()
        eventually(lambda: runtime.health().subscriptions == 0, timeout=SOON)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://alice:pa%20ss@host:4222/x", "nats://alice@host:4222/x"),
        (
            "postgresql://alice:p:q@host/db?sslmode=x&password=pass&a=b",
            "postgresql://alice@host/db?sslmode=x&password=…&a=b",
        ),
        ("postgresql://host/db?sslpassword=pass", "postgresql://host/db?sslpassword=…"),
        ("file:/srv/a:b@c", "file:/srv/a:b@c"),
        ("memory:", "memory:"),
    ],
)
def test_the_url_has_no_password(url: str, shown: str) -> None:
    store = MemoryEventStore()
    store.url = url
    with logmark.Runtime(store) as runtime:
        assert runtime.health().store == shown


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_says_that_it_is_one() -> None:
    with logmark.open("memory:") as runtime:
        runtime.session("a").append("x")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(runtime.health().public()).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = json.loads(pipe.read())
        os.waitpid(child, 0)

    assert (said["status"], said["problems"]) == ("unavailable", ["forked"])


# -- GET /healthz and /metrics -----------------------------------------------------------------------------------------


def get(port: int, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_anybody_may_ask_and_nobody_learns_a_secret(tmp_path: Path) -> None:
    store = tmp_path / "sensitive-place"
    with logmark.open(str(store)) as runtime, logmark.serve(runtime, tokens=TOKENS) as gateway:
        runtime.session("private-session").append("x")
        runtime.store.halt("private-session", "private-reason")
        status, headers, body = get(gateway.port, "/healthz?verbose=1")

    said = json.loads(body)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert (said["status"], said["problems"], said["sessions_halted"]) == ("degraded", ["session_halted"], 1)
    assert said["engine"] == "file"
    for secret in (b"sensitive", b"private", b"s3cret", b"alice"):
        assert secret not in body


def test_a_runtime_that_does_not_work_is_503() -> None:
    store = Hanging()
    with logmark.Runtime(store) as runtime:
        store.go_on.set()
        gateway = logmark.serve(runtime, tokens=TOKENS)
        store.go_on.clear()
        hanging = get(gateway.port, "/healthz")
        store.go_on.set()
        eventually(lambda: get(gateway.port, "/healthz")[0] == 200, timeout=SOON)
    closed = get(gateway.port, "/healthz")
    gateway.close(0)

    assert (hanging[0], json.loads(hanging[2])["problems"]) == (503, ["store_unreachable"])
    assert (closed[0], json.loads(closed[2])["status"]) == (503, "closed")


def test_metrics_are_there_when_they_are_given() -> None:
    with logmark.open("memory:") as runtime:
        with logmark.serve(runtime, tokens=TOKENS) as gateway:
            assert get(gateway.port, "/metrics")[0] == 404
        with logmark.serve(runtime, tokens=TOKENS, metrics=lambda: b"logmark_up 1\n") as gateway:
            status, headers, body = get(gateway.port, "/metrics")
            other = get(gateway.port, "/metrics/")[0]

    assert (status, body, other) == (200, b"logmark_up 1\n", 404)
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_page_that_cannot_be_made_says_no_more_than_that(logs: CapturedLogs) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError("private-detail")

    with logmark.open("memory:") as runtime, logmark.serve(runtime, tokens=TOKENS, metrics=broken) as gateway:
        status, _, body = get(gateway.port, "/metrics")
        assert get(gateway.port, "/healthz")[0] == 200

    assert (status, b"private" in body) == (500, False)
    assert [each["path"] for each in logs.named("gateway_page_failed")] == ["/metrics"]


@pytest.mark.parametrize(
    ("host", "page", "socket_"),
    [
        ("127.0.0.1", 200, True),
        ("localhost:1", 200, True),
        ("10.1.2.3:7777", 200, False),  # a probe comes with an address
        ("[fd00::1]:7777", 200, False),
        ("evil.example.org", 403, False),  # and a page of another site with a name
    ],
)
def test_a_page_of_another_site_cannot_read_them(host: str, page: int, socket_: bool) -> None:
    with logmark.open("memory:") as runtime, logmark.serve(runtime, tokens=TOKENS, metrics=bytes) as gateway:
        assert [get(gateway.port, path, host)[0] for path in ("/healthz", "/metrics")] == [page, page]
        assert get(gateway.port, "/arcp", host)[0] == (426 if socket_ else 403)


@pytest.mark.parametrize(
    "request_", [b"POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /healthz\r\n\r\n", b"\x16\x03\x01"]
)
def test_what_is_no_get_is_no_page_and_no_harm(request_: bytes) -> None:
    with logmark.open("memory:") as runtime, logmark.serve(runtime, tokens=TOKENS) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SOON) as peer:
            peer.sendall(request_)
            peer.shutdown(socket.SHUT_WR)
            answer = peer.recv(100)
        assert b" 200 " not in answer
        assert get(gateway.port, "/healthz")[0] == 200


def test_logmark_serve_has_both_pages(serve: Callable[..., Any], tmp_path: Path) -> None:
    served = serve("--metrics")
    port = int(served.url.rpartition(":")[2].partition("/")[0])
    assert json.loads(get(port, "/healthz")[2])["status"] == "ok"
    status, _, body = get(port, "/metrics")

    assert status == 200
    assert b"\nlogmark_up 1.0\n" in body
    assert b"\nprocess_resident_memory_bytes " in body


def test_metrics_need_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = logmark.cli.main(["serve", "--stdio", "--metrics", "--store", str(tmp_path / "store"), "--agents", "a:b"])
    assert (code, "--listen" in capsys.readouterr().err) == (2, True)


def test_the_object_is_documented_by_its_fields() -> None:
    fields = set(logmark.Health.__dataclass_fields__)
    documented = logmark.Health.__doc__ or ""
    assert {name for name in fields if name not in documented} == set()
    with pytest.raises(InvalidArgument):
        logmark.open("nowhere:", instrumentation=None)
