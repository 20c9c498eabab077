"""The connection to NATS servers: nats-py's client on a thread of its own, asked from any other.

nats-py's own reconnecting is switched off. It would keep what could not be sent, and send it whenever it is connected
again, also long after its caller was told that nothing was written. Here a connection is one client: when it is gone,
every question that is open on it is answered with "not known", and the next client is another one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from ..protocol import Limits
from ._logging import Logger
from ._nats_url import NatsUrl

__all__ = ["Answer", "Link", "NotSent", "Unanswered"]

_PAUSE_S = 0.02
_PAUSE_S_MAX = 0.5
_LOOK_S = 0.25
_MARGIN_S = 5.0
_NO_RESPONDERS = 503


class NotSent(Exception):
    """There was no connection until the deadline, or nobody took what was sent: certainly nothing was done."""


class Unanswered(Exception):
    """It was sent, and no answer came: what was done is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One message from the server.

    Attributes:
        status: of an answer without content, such as 404; None: it has content.
    """

    status: int | None
    headers: dict[str, str]
    data: bytes

    @classmethod
    def of(cls, message: Msg) -> Answer:
        """Make it of a client's message."""
        headers = message.headers or {}
        status = headers.get("Status")
        return cls(None if status is None else int(status), headers, message.data)


class _Question:
    """What was asked, and what has come so far."""

    __slots__ = ("answers", "client", "data", "done", "headers", "is_many", "sent_at", "subject", "token")

    def __init__(self, subject: str, data: bytes, headers: dict[str, str] | None, *, is_many: bool) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.is_many = is_many
        self.token = ""
        self.client: Client | None = None
        self.sent_at = 0.0
        self.answers: list[Answer] = []
        # Of the kind that a thread waits for: the answer need not go through the event loop once more.
        self.done: concurrent.futures.Future[list[Answer]] = concurrent.futures.Future()

    def hear(self, answer: Answer) -> None:
        """Take one answer; of many, the one with a status is the last."""
        self.answers.append(answer)
        if not self.is_many or answer.status is not None:
            self.end(None)

    def end(self, error: Exception | None) -> None:
        """Let who has asked go on."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it has ended, or nobody waits any more
            if error is None:
                self.done.set_result(self.answers)
            else:
                self.done.set_exception(error)


class Link:
    """A connection that is made again whenever it is lost. Safe from any thread.

    Args:
        url: the servers.
        limits: server_wait_s counts.
        log: gets ``server_lost`` and ``server_reached``.
    """

    def __init__(self, url: NatsUrl, *, limits: Limits, log: Logger) -> None:
        self._url = url
        self._wait_s = limits.server_wait_s
        self._log = log
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._background_failed)
        self._client: Client | None = None
        self._is_lost = asyncio.Event()
        self._may_send = threading.Event()
        self._has_tried = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()
        self._questions: dict[str, _Question] = {}
        self._next_token = 0
        self._heard_at = 0.0
        self._failure: Exception | None = None
        self._silence: Exception | None = None
        self._was_reached = False
        self._is_closed = False
        self._mutex = threading.Lock()
        self._hints: dict[str, Callable[[Msg | None], None]] = {}
        self.max_payload = 0
        """The greatest message that the server last connected to takes, headers included; 0 before there was one."""
        self.server_version: tuple[int, int] = (0, 0)
        self._thread = threading.Thread(target=self._run, name="logmark-nats", daemon=True)

    def start(self) -> None:
        """Begin to connect, and wait until there is a connection or every server has refused one.

        Raises:
            NotSent: there is none; it goes on trying.
        """
        began = time.monotonic()
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NotSent(f"no thread for the connection: {error}") from error
        self._has_tried.wait(self._wait_s)
        if not self._may_send.is_set():
            raise self._not_reached(began)

    # -- what other threads call -----------------------------------------------------------------------------------

    def ask(self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None, *, deadline: float) -> Answer:
        """Send a request and return its answer.

        Raises:
            NotSent: nothing was done.
            Unanswered: nobody knows.
        """
        return self._answers(self._send(_Question(subject, data, headers, is_many=False), deadline), deadline)[0]

    def ask_many(self, subject: str, data: bytes, *, deadline: float) -> list[Answer]:
        """Send a request that has several answers, the last of which has a status; raises as ``ask`` does."""
        return self._answers(self._send(_Question(subject, data, None, is_many=True), deadline), deadline)

    def ask_each(self, questions: Sequence[tuple[str, bytes]], *, deadline: float) -> list[Answer | Exception]:
        """Send requests at once and return the answer to each, or what ``ask`` would have raised."""
        found: list[Answer | Exception] = []
        sent: list[_Question] = []
        try:
            for subject, data in questions:
                sent.append(self._send(_Question(subject, data, None, is_many=False), deadline))
        except NotSent as error:
            return [error] * len(questions)
        for question in sent:
            try:
                found.append(self._answers(question, deadline)[0])
            except (NotSent, Unanswered) as error:
                found.append(error)
        return found

    def _send(self, question: _Question, deadline: float) -> _Question:
        """Hand a question over to the connection's thread when there is a connection."""
        began = time.monotonic()
        if self._is_closed or not self._may_send.wait(max(0.0, deadline - began)):
            raise self._not_reached(began)
        try:
            self._loop.call_soon_threadsafe(self._begin, question)
        except RuntimeError:  # the loop has ended
            raise NotSent("the store is closed") from None
        return question

    def _answers(self, question: _Question, deadline: float) -> list[Answer]:
        try:
            answers = question.done.result(max(0.0, deadline - time.monotonic()))
        except concurrent.futures.TimeoutError:
            question.done.cancel()
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._give_up, question)
            raise Unanswered("the server has not answered") from None
        if answers[0].status == _NO_RESPONDERS:
            raise NotSent("nobody answers for the stream: it has no leader now, or JetStream is not on")
        return answers

    def _not_reached(self, began: float) -> NotSent:
        if self._is_closed:
            return NotSent("the store is closed")
        failure = "no answer" if self._failure is None else _reason(self._failure)
        waited_s = time.monotonic() - began
        waited = f" in {waited_s:.3g} s" if waited_s >= _LOOK_S else ""
        return NotSent(f"the server could not be reached{waited}: {failure}")

    def attempt_by(self, deadline: float) -> float:
        """Return until when to wait for an answer before asking again: one that was asked may not be there any more."""
        return min(deadline, time.monotonic() + max(0.25, self._wait_s / 4))

    def listen(self, subject: str, heard: Callable[[Msg | None], None]) -> None:
        """Have ``heard`` called, in the connection's thread, with what comes, and with None after each reconnection."""
        with self._mutex:
            if self._is_closed:
                return
            future = asyncio.run_coroutine_threadsafe(self._listen(subject, heard), self._loop)
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            future.result(self._wait_s)  # it goes on without being waited for

    def close(self) -> None:
        """End the connection and the thread; what is asked meanwhile is answered with "not known"."""
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._is_closing.set)
            self._thread.join(self._wait_s + _MARGIN_S)
        elif self._thread.ident is None:
            self._loop.close()
        self._may_send.set()  # who waits for a connection finds that there will be none

    def after_fork_in_child(self) -> None:
        """Let go of the parent's socket without a word to the server; the thread does not exist here."""
        self._is_closed = True
        self._mutex = threading.Lock()
        self._may_send = threading.Event()  # as the lock within may be held by a thread that is not here
        client = self._client
        transport = None if client is None else client._transport  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        writer = getattr(transport, "_io_writer", None)
        side = None if writer is None else writer.get_extra_info("socket")
        if side is not None:
            nothing = os.open(os.devnull, os.O_RDWR)
            with contextlib.suppress(OSError):
                os.dup2(nothing, side.fileno())
            os.close(nothing)

    # -- what happens in the connection's thread -------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_connected())
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _keep_connected(self) -> None:
        closing = asyncio.create_task(self._is_closing.wait())
        connecting = asyncio.create_task(self._connect_again_and_again())
        await asyncio.wait([closing, connecting], return_when=asyncio.FIRST_COMPLETED)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        self._may_send.clear()
        client, self._client = self._client, None
        if client is not None:
            await _shut(client, self._wait_s)
        self._fail_questions("the store was closed")

    async def _connect_again_and_again(self) -> None:
        pause_s = _PAUSE_S
        while True:
            for server in self._url.servers:
                client = await self._connect(server)
                if client is not None:
                    pause_s = _PAUSE_S
                    await self._stay(client)
            self._has_tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _connect(self, server: str) -> Client | None:
        """Return a client of a server, with everything subscribed; None when there is none to be had."""
        client = Client()
        self._is_lost.clear()
        try:
            async with asyncio.timeout(self._wait_s):
                await client.connect(
                    servers=[server],
                    name="logmark",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, round(self._wait_s)),
                    ping_interval=max(1, round(self._wait_s / 4)),
                    max_outstanding_pings=2,
                    user=self._url.login.get("user"),
                    password=self._url.login.get("password"),
                    token=self._url.login.get("token"),
                    error_cb=self._client_failed,
                    disconnected_cb=self._client_ended,
                    closed_cb=self._client_ended,
                )
                await _subscribe(client, f"{self._inbox}.*", self._hear)
                for subject in self._hints:
                    await _subscribe(client, subject, self._hint)
                await client.flush(max(1, round(self._wait_s)))
        except Exception as error:  # whatever the client meets: the next attempt may succeed
            self._note_failure(self._failure if isinstance(error, NatsError) and self._failure else error)
            await _shut(client, self._wait_s)
            return None
        except BaseException:
            await _shut(client, self._wait_s)
            raise
        self.max_payload = client.max_payload
        version = client.connected_server_version
        self.server_version = (version.major, version.minor)
        is_news, self._failure = self._failure is not None and self._was_reached, None
        self._client, self._was_reached = client, True
        self._may_send.set()
        self._has_tried.set()
        if is_news:
            self._log.info("server_reached", store=self._url.shown)
        self._tell(None)
        return client

    async def _stay(self, client: Client) -> None:
        """Wait until the connection is gone, and say so to all who wait for an answer."""
        while not client.is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._is_lost.wait()
        self._may_send.clear()
        self._client = None
        lost = client.last_error or ConnectionResetError("the connection was lost")
        error, self._silence = self._failure or self._silence or lost, None
        if self._failure is None and self._was_reached:
            self._log.warning("server_lost", store=self._url.shown, reason=_reason(error))
        self._failure = error
        self._fail_questions(_reason(error))
        await _shut(client, self._wait_s)

    def _fail_questions(self, reason: str) -> None:
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.end(Unanswered(reason))

    async def _client_failed(self, error: Exception) -> None:
        if self._client is None:
            self._failure = error

    async def _client_ended(self) -> None:
        self._is_lost.set()

    def _note_failure(self, error: Exception) -> None:
        if self._failure is None and self._was_reached:
            self._log.warning("server_lost", store=self._url.shown, reason=_reason(error))
        self._failure = error

    def _background_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note what a task of the client has raised: its connection is lost then, which is seen by itself."""
        error = context.get("exception") or context.get("message")
        self._log.debug("hints_interrupted", reason=f"in the client: {error!r}")

    def _begin(self, question: _Question) -> None:
        client = self._client
        if question.done.cancelled():
            return
        if client is None or not client.is_connected:
            question.end(NotSent("the connection was lost before it was sent"))
            return
        self._next_token += 1
        question.token = str(self._next_token)
        self._questions[question.token] = question
        question.client, question.sent_at = client, time.monotonic()
        task = self._loop.create_task(self._publish(client, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_up(self, question: _Question) -> None:
        """Forget a question, and leave a server that answers nothing at all any more.

        One that is cut off from the others keeps its connections, and what is asked there reaches nobody.
        """
        self._questions.pop(question.token, None)
        if question.client is not None and question.client is self._client and self._heard_at < question.sent_at:
            self._silence = TimeoutError("the server answers nothing any more")
            task = self._loop.create_task(_shut(question.client, self._wait_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, client: Client, question: _Question) -> None:
        reply = f"{self._inbox}.{question.token}"
        try:
            await client.publish(question.subject, question.data, reply=reply, headers=question.headers)
        except (NatsError, OSError) as error:  # it may be among what was handed to the socket
            question.end(Unanswered(_reason(error)))

    async def _hear(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        token = message.subject.rpartition(".")[2]
        question = self._questions.get(token)
        if question is not None:
            question.hear(Answer.of(message))
            if question.done.done():
                self._questions.pop(token, None)

    async def _listen(self, subject: str, heard: Callable[[Msg | None], None]) -> None:
        is_new = subject not in self._hints
        self._hints[subject] = heard
        if is_new and self._client is not None:
            with contextlib.suppress(NatsError, OSError):
                await _subscribe(self._client, subject, self._hint)
                await self._client.flush(max(1, round(self._wait_s)))
        heard(None)

    async def _hint(self, message: Msg) -> None:
        self._tell(message)

    def _tell(self, message: Msg | None) -> None:
        for heard in self._hints.values():
            try:
                heard(message)
            except Exception as error:  # of who listens, and none of the connection's
                self._log.debug("hints_interrupted", reason=repr(error))


async def _subscribe(client: Client, subject: str, hear: Callable[[Msg], Coroutine[Any, Any, None]]) -> None:
    await client.subscribe(subject, cb=hear)  # pyright: ignore[reportUnknownMemberType]


async def _shut(client: Client, wait_s: float) -> None:
    """Close a client and its socket, whatever state it is in."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(wait_s):
            await client.close()
    transport = cast("Any", client._transport)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if transport is not None:  # a client whose connection broke while it was closing has left it open
        with contextlib.suppress(Exception):
            transport.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(wait_s):
                await transport.wait_closed()


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
