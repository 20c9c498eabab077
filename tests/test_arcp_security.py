"""What a loopback server owes its users: who may come in, how much they may take, and what they learn of others."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as ws_connect

import logmark
from logmark.errors import InvalidArgument
from logmark.gateway import AgentContext, Gateway, GatewayLimits
from logmark.testing import ArcpProbe, CapturedLogs, eventually

SOON = 30.0
TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}
ALICE, BOB = TOKENS


@pytest.fixture
def serve() -> Iterator[Callable[..., Gateway]]:
    with logmark.open("memory:") as runtime:

        @runtime.agent("echo", version="1")
        def echo(ctx: AgentContext, given: Any) -> Any:
            ctx.log("info", "hunter2")
            return given

        with contextlib.ExitStack() as stack:

            def make(**options: Any) -> Gateway:
                names = {field.name for field in dataclasses.fields(GatewayLimits)}
                bounds = {name: options.pop(name) for name in list(options) if name in names}
                limits = GatewayLimits(**{"tick_interval_s": 0.05, "close_wait_s": 5.0, **bounds})
                return stack.enter_context(logmark.serve(runtime, tokens=TOKENS, limits=limits, **options))

            yield make


Serve = Callable[..., Gateway]


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Origin": "https://evil.example"}, "/arcp", 403),
        ({"Origin": "null"}, "/arcp", 403),
        ({"Origin": "http://localhost"}, "/arcp", 403),
        ({}, "/", 404),
        ({}, "/arcp/", 404),
        ({}, "/other?x=/arcp", 404),
    ],
)
def test_a_page_or_a_stranger_is_not_let_in(serve: Serve, headers: dict[str, str], path: str, status: int) -> None:
    url = serve().url.removesuffix("/arcp") + path
    with pytest.raises(InvalidStatus) as refused, ws_connect(url, additional_headers=headers):
        pass
    assert refused.value.response.status_code == status


def handshake(port: int, host: str) -> bytes:
    """Shake hands with a Host of one's own choice, as after DNS rebinding, and return the status line."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /arcp HTTP/1.1",
        *([f"Host: {host}"] if host else []),
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        return sock.makefile("rb").readline()


def test_another_host_s_name_is_not_answered(serve: Serve) -> None:
    port = serve(hosts=["console.example"]).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST", "console.example"):
        assert b" 101 " in handshake(port, host), host
    for host in (f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::2]"):
        assert b" 101 " not in handshake(port, host), host


def test_a_listed_origin_may_come(serve: Serve) -> None:
    url = serve(origins=["https://console.example"]).url
    with ArcpProbe(url, ALICE, headers={"Origin": "https://console.example"}) as probe:
        assert probe.session_id


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_addresses_are_asked_for_by_name(host: str) -> None:
    with logmark.open("memory:") as runtime, pytest.raises(InvalidArgument):
        logmark.serve(runtime, tokens=TOKENS, host=host)


@pytest.mark.parametrize(
    "tokens", [{}, {"": "alice"}, {"t": ""}, {"t": "a\nb"}, {"t": "x" * 129}, {"t": 7}, {7: "alice"}]
)
def test_nobody_is_served_without_a_token(tokens: Any) -> None:
    with logmark.open("memory:") as runtime, pytest.raises(InvalidArgument):
        logmark.serve(runtime, tokens=tokens)


@pytest.mark.parametrize(
    "auth",
    [
        {"token": "wrong"},
        {"token": ""},
        {},
        None,
        {"token": 7},
        {"scheme": "basic", "token": ALICE},
        {"token": "x" * 9999},
    ],
)
def test_without_a_good_token_there_is_one_answer_and_the_end(serve: Serve, auth: Any, logs: CapturedLogs) -> None:
    with ArcpProbe(serve().url, hello=False) as probe:
        probe.send("session.hello", {"auth": auth})
        assert probe.closed.wait(SOON)
        assert [(each["type"], each["payload"]["code"]) for each in probe.frames] == [
            ("session.error", "UNAUTHENTICATED")
        ]
    assert "wrong" not in str(logs.events)


def test_nothing_is_answered_before_the_hello(serve: Serve) -> None:
    url = serve().url
    for frame in ("session.ping", "job.submit", "session.list_jobs", "session.pong", "x"):
        with ArcpProbe(url, hello=False) as probe:
            probe.send(frame, {"agent": "echo"})
            assert probe.closed.wait(SOON)
            assert [each["type"] for each in probe.frames] == ["session.error"]


# -- how much ----------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_sent_away(serve: Serve) -> None:
    gateway = serve(handshake_wait_s=0.3)
    with ArcpProbe(gateway.url, hello=False) as silent, socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.settimeout(SOON)
        sock.sendall(b"GET /arcp HT")  # one that never finishes its handshake
        assert silent.closed.wait(SOON)
        assert sock.recv(1000) == b""


def test_sockets_are_counted_from_their_first_moment(serve: Serve) -> None:
    gateway = serve(connections_max=20)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        with socket.create_connection(("127.0.0.1", gateway.port)) as extra:
            extra.settimeout(SOON)
            assert extra.recv(1) == b""

    def served() -> bool:
        with contextlib.suppress(Exception), ArcpProbe(gateway.url, ALICE) as probe:
            return bool(probe.session_id)
        return False

    eventually(served, timeout=SOON)


def test_a_principal_has_its_share(serve: Serve) -> None:
    gateway = serve(principal_connections_max=2, principal_jobs_max=1)
    with ArcpProbe(gateway.url, ALICE) as one, ArcpProbe(gateway.url, ALICE), ArcpProbe(gateway.url, BOB):
        with ArcpProbe(gateway.url, ALICE) as third:
            assert third.frames[0]["payload"]["code"] == "INTERNAL_ERROR"
            assert third.frames[0]["payload"]["retryable"] is True
        one.wait_end(one.submit("echo"))
    with logmark.open("memory:") as runtime:
        hold = threading.Event()
        runtime.agent("hold", version="1")(lambda ctx, given: hold.wait(SOON))
        limits = GatewayLimits(principal_jobs_max=1, session_subscriptions_max=1, close_wait_s=5)
        with logmark.serve(runtime, tokens=TOKENS, limits=limits) as busy, ArcpProbe(busy.url, ALICE) as probe:
            job = probe.submit("hold")
            assert probe.ask("job.submit", {"agent": "hold"})["payload"]["code"] == "INTERNAL_ERROR"
            hold.set()
            probe.wait_end(job)
            eventually(lambda: probe.ask("job.submit", {"agent": "hold"})["type"] == "job.accepted", timeout=SOON)


def test_a_frame_that_is_too_large_ends_the_connection_only(serve: Serve) -> None:
    gateway = serve(frame_bytes_max=10_000)
    with ArcpProbe(gateway.url, ALICE) as probe:
        position = probe.position
        probe.send("job.submit", {"agent": "echo", "input": "x" * 20_000})
        assert probe.closed.wait(SOON)
    with ArcpProbe(gateway.url, ALICE, resume=position) as back:
        back.wait_end(back.submit("echo"))


def test_a_slow_sender_delays_nobody(serve: Serve) -> None:
    gateway = serve()
    with socket.create_connection(("127.0.0.1", gateway.port)) as slow, ArcpProbe(gateway.url, ALICE) as probe:
        for byte in b"GET /arcp":
            slow.sendall(bytes([byte]))
            assert probe.ping() < SOON


def test_no_frame_reaches_a_megabyte(serve: Serve) -> None:
    """Published clients refuse larger ones; an event that would make one fails its emit."""
    with ArcpProbe(serve().url, ALICE) as probe:
        end = probe.wait_end(probe.submit("echo", "x" * 900_000))
        assert end["payload"]["result"] == "x" * 900_000
        end = probe.wait_end(probe.submit("echo", "\x01" * 173_000))  # six bytes each, as JSON
        assert end["payload"]["code"] == "INTERNAL_ERROR"


# -- what others see ---------------------------------------------------------------------------------------------------


def test_principals_see_nothing_of_each_other(serve: Serve) -> None:
    gateway = serve()
    with ArcpProbe(gateway.url, ALICE) as alice, ArcpProbe(gateway.url, BOB) as bob:
        job = alice.submit("echo", idempotency_key="k")
        alice.wait_end(job)
        assert bob.ask("session.list_jobs")["payload"]["jobs"] == []
        for type_, payload in (
            ("job.subscribe", {"history": True}),
            ("job.cancel", {}),
            ("job.submit", {"agent": "echo", "parent_job_id": None}),
        ):
            answers = []
            for target in (job, "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"):
                members = {name: target if value is None else value for name, value in payload.items()}
                answer = bob.ask(type_, {"job_id": target, **members})["payload"]
                answers.append({name: value for name, value in answer.items() if name not in ("request_id", "job_id")})
            assert answers[0] == answers[1]
            assert answers[0]["code"] == "JOB_NOT_FOUND"
        bob.send("job.unsubscribe", {"job_id": job})
        assert bob.submit("echo", idempotency_key="k") != job
        with ArcpProbe(gateway.url, BOB, resume=alice.position) as thief:
            assert thief.frames[0]["payload"]["code"] == "PERMISSION_DENIED"
        with ArcpProbe(gateway.url, BOB, resume=("sess_none", "rtk_none", 0)) as guess:
            for frame in (thief.frames[0], guess.frames[0]):
                assert frame["payload"]["message"] == guess.frames[0]["payload"]["message"]
        assert alice.ping() < SOON


def test_logs_hold_no_secret_and_no_payload(serve: Serve, logs: CapturedLogs) -> None:
    gateway = serve()
    with ArcpProbe(gateway.url, ALICE) as probe:
        probe.wait_end(probe.submit("echo", {"password": "hunter2"}))
        position = probe.position
    with ArcpProbe(gateway.url, ALICE, resume=position) as back:
        back.ping()
    text = str(logs.events)
    for secret in (*TOKENS, position[1], back.position[1], "hunter2"):
        assert secret not in text
    assert "arcp_session_attached" in text


def test_a_refused_principal_name_cannot_escape_its_place() -> None:
    """A principal is part of a session's name: it stays one, whatever it is called."""
    with logmark.open("memory:") as runtime, logmark.serve(runtime, tokens={"t": "../../x"}) as gateway:
        with ArcpProbe(gateway.url, "t") as probe:
            assert probe.session_id
        assert "arcp/principals/../../x" in [info.session_id for info in runtime.sessions()]


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    with logmark.open("memory:") as runtime, logmark.serve(runtime, tokens=TOKENS) as gateway:
        runtime.agent("echo", version="1")(lambda ctx, given: given)
        yield gateway


@given(
    st.lists(
        st.binary(max_size=40)
        | st.dictionaries(
            st.sampled_from(["type", "id", "payload", "session_id", "job_id", "arcp"]),
            st.sampled_from(["job.submit", "session.ack", "job.cancel", "1.1", "x"])
            | st.none()
            | st.integers(-(2**63), 2**63)
            | st.dictionaries(st.sampled_from(["agent", "job_id", "limit"]), st.sampled_from(["echo", 1, None, []])),
        ).map(orjson.dumps),
        max_size=8,
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_over_the_socket_the_session_goes_on(shared: Gateway, frames: list[bytes]) -> None:
    with ArcpProbe(shared.url, ALICE) as probe:
        for frame in frames:
            probe.connection.send(frame)
        probe.ping()
        assert probe.faults() == []
