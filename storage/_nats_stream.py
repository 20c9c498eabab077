"""The stream of a NATS store: what is asked of the server, the stream's settings, and questions about its messages."""

from __future__ import annotations

import base64
import contextlib
import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import orjson

from ._logging import Logger
from ._nats_link import Answer, Link, NotSent, Unanswered
from ._nats_message import EXPECTED, Stored
from ._nats_url import NatsUrl

__all__ = ["NoStream", "Refused", "Stream", "StreamUnusable"]

T = TypeVar("T")
_VERSION_MIN = (2, 11)
_STORE_VERSION = 1
_METADATA = "logmark"
_PAUSE_S = 0.05
_SUBJECTS_PAGE = 100_000
_HTTP_OK = 200
_NOT_FOUND = 404
_END_OF_BATCH = 204
_NO_MESSAGE = 10037
_NO_STREAM = 10059
_NAME_TAKEN = 10058
_MAY_PASS = frozenset({10008, 10009, 10158, 10163})
"""Errors of a server that will be able to do it in a moment: it elects a leader, or has the same message in hand."""


class Refused(Exception):
    """The server said no: nothing was done.

    Attributes:
        code: JetStream's own, such as 10071.
    """

    def __init__(self, code: int, description: str) -> None:
        self.code = code
        self.description = description
        super().__init__(f"{description} (JetStream error {code})")


class StreamUnusable(Exception):
    """There is no stream, or it is none of logmark's, or it promises less than was asked for."""


class NoStream(StreamUnusable):
    """There is no stream, and none was to be made."""


class Stream:
    """The stream of a store. Safe from any thread.

    Args:
        link: to the servers.
        url: of the store.
        wait_s: the longest wait for an answer.
    """

    def __init__(self, link: Link, url: NatsUrl, *, wait_s: float) -> None:
        self._link = link
        self._url = url
        self._wait_s = wait_s
        self._has_one_replica = False
        self.message_bytes_max = 0
        """The greatest message that the stream takes, headers included."""
        self.name = url.name

    def deadline(self) -> float:
        """Return until when an answer is waited for that is asked for now."""
        return time.monotonic() + self._wait_s

    # -- making it --------------------------------------------------------------------------------------------------

    def open(self, *, create: bool, must_sync: bool, log: Logger) -> None:
        """Make the stream when there is none and look at its settings.

        Raises:
            StreamUnusable: there is none and none is to be made, or it must not be used.
            NotSent, Unanswered, Refused: the server cannot be asked.
        """
        deadline = self.deadline()
        try:
            found = self.info(deadline=deadline)
        except Refused as error:
            if error.code != _NO_STREAM:
                raise
            if not create:
                raise NoStream(f"there is no stream {self.name!r}") from None
            found = self._make(deadline)
        version = self._link.server_version
        if version < _VERSION_MIN:
            seen, wanted = (".".join(map(str, each)) for each in (version, _VERSION_MIN))
            raise StreamUnusable(f"the server is of version {seen}, and {wanted} or later is needed")
        config = cast("dict[str, Any]", found["config"])
        self._check_version(config)
        problems = self._weaknesses(config)
        if problems:
            raise StreamUnusable(f"stream {self.name!r} promises less than is asked of it: {'; '.join(problems)}")
        self._has_one_replica = config["num_replicas"] == 1
        size = cast("int", config.get("max_msg_size", -1))
        self.message_bytes_max = self._link.max_payload if size < 0 else min(size, self._link.max_payload)
        if must_sync:
            self._check_sync(log if create else None)

    def weaknesses(self, *, deadline: float) -> list[str]:
        """Return in what the stream promises less by now than is asked of it."""
        return self._weaknesses(self.info(deadline=deadline)["config"])

    def _weaknesses(self, config: dict[str, Any]) -> list[str]:
        return list(_weaknesses(config, self._url.replicas or 1))

    def _make(self, deadline: float) -> dict[str, Any]:
        config = {
            "name": self.name,
            "description": "a store of logmark; do not publish, purge or edit by hand",
            "subjects": [f"logmark.{self.name}.>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",  # a stream that is full refuses what is new and drops nothing
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "num_replicas": self._url.replicas or 1,
            "allow_direct": True,
            "allow_rollup_hdrs": True,  # records and snapshots take the place of the last one of their name
            # Whoever follows hears of a message when it is stored; without its body.
            "republish": {
                "src": f"logmark.{self.name}.e.*",
                "dest": f"logmark-hint.{self.name}.e.*".replace("*", "{{wildcard(1)}}"),
                "headers_only": True,
            },
            "metadata": {_METADATA: str(_STORE_VERSION)},
        }
        try:
            return self.api(f"STREAM.CREATE.{self.name}", config, deadline=deadline)
        except Refused as error:
            if error.code == _NAME_TAKEN:  # somebody else was quicker, and wants other settings
                return self.info(deadline=deadline)
            if error.code == _NO_STREAM:
                raise
            raise StreamUnusable(f"the stream cannot be made: {error}") from error

    def _check_version(self, config: dict[str, Any]) -> None:
        metadata = cast("dict[str, str]", config.get("metadata") or {})
        found = metadata.get(_METADATA, "")
        if not found.isdigit() or config.get("subjects") != [f"logmark.{self.name}.>"]:
            raise StreamUnusable(f"stream {self.name!r} is none of logmark's; use another NAME")
        if int(found) != _STORE_VERSION:
            raise StreamUnusable(
                f"expected store version {_STORE_VERSION}, found {found}; open it with the version of logmark that"
                " made it"
            )

    def _check_sync(self, log: Logger | None) -> None:
        """Look whether the servers sync before they acknowledge; where that cannot be seen, say so in the log."""
        if not self._url.monitor and log is not None:
            log.warning(
                "server_sync_unknown",
                store=self._url.shown,
                reason="a client cannot see sync_interval; name the servers' monitoring (?monitor=HOST:PORT) to have it"
                " looked at",
            )
        for host in self._url.monitor:
            settings = _settings(host, self._wait_s)
            if not settings.get("sync_always"):
                raise StreamUnusable(
                    f"the server at {host} acknowledges what is not on its disk yet; set sync_interval: always in its"
                    ' jetstream settings, or open the store with durability="os"'
                )

    # -- asking -----------------------------------------------------------------------------------------------------

    def _asked(self, attempt: Callable[[float], T], deadline: float) -> T:
        """Ask what may be asked again, until there is an answer or the deadline has passed."""
        while True:
            try:
                return attempt(self._link.attempt_by(deadline))
            except (NotSent, Unanswered):
                if time.monotonic() + _PAUSE_S >= deadline:
                    raise
            except Refused as error:
                if error.code not in _MAY_PASS or time.monotonic() + _PAUSE_S >= deadline:
                    raise
            time.sleep(_PAUSE_S)

    def api(self, verb: str, request: dict[str, Any] | None = None, *, deadline: float) -> dict[str, Any]:
        """Return the answer to a request that may be made twice.

        Raises:
            Refused: the server said no.
            NotSent, Unanswered: it did not answer in time.
        """
        body = b"" if request is None else orjson.dumps(request)

        def attempt(until: float) -> dict[str, Any]:
            found = cast("dict[str, Any]", orjson.loads(self._link.ask(f"$JS.API.{verb}", body, deadline=until).data))
            _raise_refusal(found)
            return found

        return self._asked(attempt, deadline)

    def info(self, *, deadline: float) -> dict[str, Any]:
        """Return what the server says of the stream."""
        return self.api(f"STREAM.INFO.{self.name}", deadline=deadline)

    def last(self, subject: str, *, deadline: float) -> Stored | None:
        """Return the last message of a subject by the word of the stream's leader, or None."""
        if self._has_one_replica:  # there is nobody else to answer
            return self.direct({"last_by_subj": subject}, deadline=deadline)
        return self._of_leader({"last_by_subj": subject}, deadline)

    def last_of_each(self, subjects: Sequence[str], *, deadline: float) -> list[Stored | Exception | None]:
        """Return for each subject what ``last`` does, or why it could not be asked this time."""
        if self._has_one_replica:
            verb, parse = f"$JS.API.DIRECT.GET.{self.name}", _direct_answer
        else:
            verb, parse = f"$JS.API.STREAM.MSG.GET.{self.name}", _leader_answer
        questions = [(verb, orjson.dumps({"last_by_subj": subject})) for subject in subjects]
        found: list[Stored | Exception | None] = []
        for answer in self._link.ask_each(questions, deadline=self._link.attempt_by(deadline)):
            try:
                found.append(answer if isinstance(answer, Exception) else parse(answer))
            except Refused as error:
                found.append(error)
        return found

    def next(self, subject: str, seq: int, *, deadline: float) -> Stored | None:
        """Return the first message of a subject that has a number in the stream or a later one."""
        found = self.direct({"seq": max(1, seq), "next_by_subj": subject}, deadline=deadline)
        if found is None and not self._has_one_replica:  # whoever has answered may be a little behind
            found = self._of_leader({"seq": max(1, seq), "next_by_subj": subject}, deadline)
        return found

    def last_below(self, subject: str, seq: int, *, deadline: float) -> Stored | None:
        """Return the last message of a subject below a number in the stream, as far as who answers knows."""
        if seq <= 1:
            return None
        found = self._many({"multi_last": [subject], "up_to_seq": seq - 1}, deadline)
        return found[0] if found else None

    def at(self, seq: int, *, deadline: float) -> Stored | None:
        """Return the message that has a number in the stream, or None."""
        found = self.direct({"seq": seq}, deadline=deadline)
        if found is None and not self._has_one_replica:
            found = self._of_leader({"seq": seq}, deadline)
        return found

    def page(self, subject: str, seq: int, *, bytes_max: int, count_max: int, deadline: float) -> list[Stored]:
        """Return messages of a subject from a number in the stream on; none when the server has no more."""
        request = {"seq": max(1, seq), "next_by_subj": subject, "batch": count_max, "max_bytes": bytes_max}
        found = self._many(request, deadline)
        if not found and not self._has_one_replica:
            one = self._of_leader({"seq": max(1, seq), "next_by_subj": subject}, deadline)
            found = [] if one is None else [one]
        return found

    def direct(self, request: dict[str, Any], *, deadline: float) -> Stored | None:
        """Return a message by the word of any server that has the stream, or None."""
        subject, body = f"$JS.API.DIRECT.GET.{self.name}", orjson.dumps(request)
        return _direct_answer(self._asked(lambda until: self._link.ask(subject, body, deadline=until), deadline))

    def _many(self, request: dict[str, Any], deadline: float) -> list[Stored]:
        subject, body = f"$JS.API.DIRECT.GET.{self.name}", orjson.dumps(request)
        answers = self._asked(lambda until: self._link.ask_many(subject, body, deadline=until), deadline)
        last = answers[-1]
        if last.status not in (_END_OF_BATCH, _NOT_FOUND):
            raise Refused(last.status or 0, last.headers.get("Description", "a page was not answered as one"))
        return [_stored(answer) for answer in answers[:-1]]

    def _of_leader(self, request: dict[str, Any], deadline: float) -> Stored | None:
        subject, body = f"$JS.API.STREAM.MSG.GET.{self.name}", orjson.dumps(request)
        return self._asked(lambda until: _leader_answer(self._link.ask(subject, body, deadline=until)), deadline)

    def publish(self, subject: str, body: bytes, headers: dict[str, str], *, deadline: float) -> int:
        """Store a message and return its number in the stream.

        Raises:
            Refused: it is not stored.
            NotSent: likewise.
            Unanswered: nobody knows; the same may be published again.
        """
        found = cast("dict[str, Any]", orjson.loads(self._link.ask(subject, body, headers, deadline=deadline).data))
        _raise_refusal(found)
        return int(found["seq"])

    def put(self, subject: str, body: bytes, *, deadline: float) -> int:
        """Store a message in place of all before it in its subject, where that may be done twice; raises as ``api``."""
        headers = {"Nats-Rollup": "sub"}
        return self._asked(lambda until: self.publish(subject, body, headers, deadline=until), deadline)

    def purge(self, subject: str, *, deadline: float, before: int | None = None, keep: int | None = None) -> None:
        """Remove messages of a subject: those below a number in the stream, or all but the last few."""
        request: dict[str, Any] = {"filter": subject}
        if before is not None:
            request["seq"] = before
        if keep is not None:
            request["keep"] = keep
        self.api(f"STREAM.PURGE.{self.name}", request, deadline=deadline)

    def subjects(self, wanted: str) -> Iterator[str]:
        """Yield the subjects that have messages and match, in no order."""
        offset = 0
        while True:
            request = {"subjects_filter": wanted, "offset": offset}
            state = self.api(f"STREAM.INFO.{self.name}", request, deadline=self.deadline())["state"]
            found = cast("dict[str, int]", state.get("subjects") or {})
            yield from found
            offset += len(found)
            if len(found) < _SUBJECTS_PAGE:
                return


def _raise_refusal(found: dict[str, Any]) -> None:
    error = found.get("error")
    if error is not None:
        raise Refused(int(error.get("err_code", error.get("code", 0))), str(error.get("description", "")))


def _direct_answer(answer: Answer) -> Stored | None:
    return None if answer.status == _NOT_FOUND else _stored(answer)


def _leader_answer(answer: Answer) -> Stored | None:
    found = cast("dict[str, Any]", orjson.loads(answer.data))
    try:
        _raise_refusal(found)
    except Refused as error:
        if error.code == _NO_MESSAGE:
            return None
        raise
    message = found["message"]
    headers = base64.b64decode(message.get("hdrs", "")).decode(errors="replace")
    expected = next((line[len(EXPECTED) + 1 :] for line in headers.split("\r\n") if line.startswith(EXPECTED)), "")
    body = base64.b64decode(message.get("data", ""))
    return Stored(message["seq"], message["subject"], _number(expected.strip()), body)


def _stored(answer: Answer) -> Stored:
    headers = answer.headers
    expected = _number(headers.get(EXPECTED, ""))
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], expected, answer.data)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _weaknesses(config: dict[str, Any], replicas: int) -> Iterator[str]:
    """Yield what of the settings would lose an event that was acknowledged, or refuse what a store needs."""
    wanted: dict[str, tuple[Any, str]] = {
        "storage": ("file", "a server that restarts would have nothing"),
        "retention": ("limits", "messages would go when somebody has read them"),
        "no_ack": (False, "nothing would be acknowledged"),
        "sealed": (False, "nothing could be written"),
        "deny_purge": (False, "truncate_before and delete could remove nothing"),
        "allow_direct": (True, "nothing could be read"),
        "allow_rollup_hdrs": (True, "records could not be replaced"),
        "discard_new_per_subject": (False, "a session could be full for ever"),
        "persist_mode": ("default", "a message would be acknowledged before it is written"),
    }
    defaults: dict[str, Any] = {"retention": "limits", "persist_mode": "default"}
    for name, (value, reason) in wanted.items():
        found = config.get(name, defaults.get(name, False)) or defaults.get(name, False)
        if found != value:
            yield f"{name} is {found!r} and must be {value!r}, because {reason}"
    if config.get("max_age"):
        yield "max_age is set, by which events would go when they are old"
    if config.get("max_msgs_per_subject", -1) > 0:
        yield "max_msgs_per_subject is set, by which the first events of a session would go"
    if config.get("discard", "old") == "old" and (config.get("max_bytes", -1) > 0 or config.get("max_msgs", -1) > 0):
        yield "discard is 'old' with a limit on its size, by which the first events would go; it must be 'new'"
    if config.get("num_replicas", 1) < replicas:
        yield f"it has {config.get('num_replicas', 1)} replicas, and {replicas} were asked for"
    for name in ("mirror", "sources"):
        if config.get(name):
            yield f"it has {name}, whose messages nobody has compared with what was there"


def _settings(host: str, wait_s: float) -> dict[str, Any]:
    """Return the JetStream settings that a server's monitoring tells.

    Raises:
        StreamUnusable: it does not answer.
    """
    connection = http.client.HTTPConnection(host, timeout=wait_s)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/varz")
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != _HTTP_OK:
                raise StreamUnusable(f"the monitoring of the server at {host} answers {answer.status} {answer.reason}")
            return cast("dict[str, Any]", orjson.loads(text).get("jetstream", {}).get("config", {}))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StreamUnusable(f"the monitoring of the server at {host} does not answer: {error}") from error
