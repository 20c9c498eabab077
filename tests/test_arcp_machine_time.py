"""The connection's state machine and time: deadlines, heartbeats, and who is given up when."""

from __future__ import annotations

import itertools

import orjson

from logmark.protocol.arcp import FEATURES, Ask, Connection, Leave, Moment, Profile, Send, Welcomed

PROFILE = Profile(
    name="logmark",
    version="1",
    dialect="neutral",
    features=frozenset(FEATURES),
    resume_window_s=600,
    heartbeat_interval_s=30,
    handshake_wait_s=10,
    frame_bytes_max=64 * 1024,
    depth_max=16,
)


class Clock:
    """The time that a test lets pass."""

    time_s = 1_000_000.0

    @property
    def now(self) -> Moment:
        return Moment(int(self.time_s * 10**9), self.time_s)


def opened(features: tuple[str, ...] = FEATURES) -> tuple[Clock, Connection]:
    clock, ids = Clock(), itertools.count()
    connection = Connection(PROFILE, new_id=lambda: str(next(ids)), now=clock.now)
    hello = {"type": "session.hello", "payload": {"auth": {"token": "t"}, "capabilities": {"features": features}}}
    (ask,) = connection.receive(orjson.dumps(hello), clock.now)
    assert isinstance(ask, Ask)
    answer = Welcomed(session_id="sess_1", resume_token="rtk_1", agents=[], after_seq=0)
    (welcome,) = connection.answer(ask.request, answer, clock.now)
    assert isinstance(welcome, Send)
    asked = "heartbeat" in features
    assert ("heartbeat_interval_sec" in orjson.loads(welcome.data)["payload"]) == asked
    return clock, connection


def test_a_connection_that_says_nothing_is_ended_at_the_deadline() -> None:
    clock = Clock()
    connection = Connection(PROFILE, new_id=str, now=clock.now)
    clock.time_s += PROFILE.handshake_wait_s - 1
    assert connection.tick(clock.now) == []
    clock.time_s += 1
    error, leave = connection.tick(clock.now)
    assert isinstance(error, Send)
    assert isinstance(leave, Leave)
    assert connection.tick(clock.now) == []


def test_an_idle_peer_is_pinged_and_a_silent_one_is_given_up() -> None:
    clock, connection = opened()
    pings = 0
    for _ in range(59):
        clock.time_s += 1
        pings += sum(isinstance(each, Send) and each.type == "session.ping" for each in connection.tick(clock.now))
    assert pings == 3
    clock.time_s += 1
    lost, leave = connection.tick(clock.now)
    assert isinstance(lost, Send)
    assert orjson.loads(lost.data)["payload"]["code"] == "HEARTBEAT_LOST"
    assert isinstance(leave, Leave)


def test_a_peer_that_only_listens_is_asked_too_and_chatter_starves_no_ping() -> None:
    for busy in ("listens", "chatters"):
        clock, connection = opened()
        pinged = 0
        for seq in range(1, 200):
            clock.time_s += 1
            if busy == "listens":
                connection.sent(seq, clock.now)
            else:
                connection.receive(b'{"type":"session.ack","payload":{"last_processed_seq":0}}', clock.now)
            for effect in connection.tick(clock.now):
                assert isinstance(effect, Send)
                pinged += 1
                connection.receive(b'{"type":"session.pong","payload":{}}', clock.now)
        assert pinged >= 6
        assert connection.state == "open"


def test_heartbeats_are_not_forced_on_a_client_without_them() -> None:
    clock, connection = opened(features=("ack",))
    clock.time_s += 10_000
    assert connection.tick(clock.now) == []
