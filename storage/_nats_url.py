"""The URL of a NATS store: the servers, the stream, and what is asked of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote

from ..protocol import InvalidArgument

__all__ = ["NatsUrl"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_REPLICAS_MAX = 5
_PARAMETERS = ("replicas", "monitor")
_FORM = "nats://[USER:PASSWORD@]HOST[:PORT][,…]/NAME[?replicas=N][&monitor=HOST:PORT,…]"


@dataclasses.dataclass(frozen=True, slots=True)
class NatsUrl:
    """Where the servers are, and which stream of theirs is the store.

    Attributes:
        servers: ``nats://HOST:PORT``, in the order given.
        name: of the stream.
        shown: the URL without a password or token, for logs and errors.
        replicas: on how many servers each event has to be; None: whatever the stream has, one when it is made.
        monitor: ``HOST:PORT`` of the servers' monitoring, by which their settings can be looked at.
        login: what the client says who it is: a user and a password, or a token, or nothing.
    """

    servers: tuple[str, ...]
    name: str
    shown: str
    replicas: int | None = None
    monitor: tuple[str, ...] = ()
    login: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str], repr=False)

    @classmethod
    def parse(cls, url: str) -> NatsUrl:
        """Read ``nats://…``; user, password and token in it are percent-encoded where they need to be.

        Raises:
            InvalidArgument: it has another form.
        """
        base, mark, query = url.partition("?")
        scheme, slashes, rest = base.partition("://")
        authority, slash, name = rest.partition("/")
        user, at, hosts = authority.rpartition("@")
        listed = hosts.split(",")
        if scheme.lower() != "nats" or not slashes or not all(_HOST.fullmatch(host) for host in listed):
            raise _wrong("it names no server")
        if not slash or not _NAME.fullmatch(name):
            raise _wrong("NAME is that of the stream, of up to 100 letters, digits, _ and -")
        options = _options(query) if mark else {}
        replicas = options.get("replicas")
        if replicas is not None and (not replicas.isdigit() or not 1 <= int(replicas) <= _REPLICAS_MAX):
            raise _wrong(f"replicas is a number from 1 to {_REPLICAS_MAX}")
        monitor = tuple(options["monitor"].split(",")) if "monitor" in options else ()
        if not all(_HOST.fullmatch(host) for host in monitor):
            raise _wrong("monitor is a list of HOST:PORT")
        known, colon, password = user.partition(":")
        login = {"user": unquote(known), "password": unquote(password)} if colon else {"token": unquote(user)}
        return cls(
            servers=tuple(f"nats://{host}" for host in listed),
            name=name,
            # A user without a password is a token, which is as secret.
            shown=f"nats://{f'{known}@' if colon else ''}{hosts}/{name}{f'?{query}' if query else ''}",
            replicas=None if replicas is None else int(replicas),
            monitor=monitor,
            login=login if at else {},
        )


def _options(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _PARAMETERS or name in found or not unquote(value):
            raise _wrong(f"its parameters are {', '.join(_PARAMETERS)}, each once, not {name!r}")
        found[name] = value
    return found


def _wrong(reason: str) -> InvalidArgument:
    """Return the error; it does not repeat the URL, in which a password may be."""
    message = f"not the URL of a NATS store, {_FORM}: {reason}"
    return InvalidArgument(message)
