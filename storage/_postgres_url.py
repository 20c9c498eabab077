"""The URL of a PostgreSQL store: as libpq reads it, plus the schema that holds the tables."""

from __future__ import annotations

import dataclasses
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..protocol import InvalidArgument

__all__ = ["PostgresUrl", "check_schema"]

_SCHEMA_PARAMETER = "logmark_schema"
_SECRETS = frozenset({"password", "sslpassword"})
_NAME_BYTES_MAX = 63  # PostgreSQL cuts longer names off, and two of them would be one


def check_schema(name: str) -> str:
    """Return the name of a schema when it can be one.

    Raises:
        InvalidArgument: it is empty, too long, or has a character that would need quoting everywhere.
    """
    if not name or len(name.encode()) > _NAME_BYTES_MAX or not name.isprintable() or set(name) & set('"%\\'):
        message = (
            f"{_SCHEMA_PARAMETER} is the name of a schema, of 1 to {_NAME_BYTES_MAX} bytes without quotes, per cent"
            f" signs and backslashes, not {name!r}"
        )
        raise InvalidArgument(message)
    return name


@dataclasses.dataclass(frozen=True, slots=True)
class PostgresUrl:
    """Where the server is, and which schema of its database holds the store.

    Attributes:
        conninfo: what libpq gets; it may hold a password.
        shown: the URL without passwords, for logs and errors, and to open the store again where libpq finds the
            password by itself (``PGPASSWORD``, ``~/.pgpass``).
        schema: the schema, or None for the first one in the server's search path.
        parameters: what libpq makes of it.
    """

    conninfo: str = dataclasses.field(repr=False)
    shown: str
    schema: str | None
    parameters: dict[str, str] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, url: str) -> PostgresUrl:
        """Read ``postgresql://…``.

        Raises:
            InvalidArgument: libpq does not take it, or ``logmark_schema`` is no name.
        """
        base, mark, query = url.partition("?")
        schema: str | None = None
        passed: list[str] = []
        shown: list[str] = []
        for part in query.split("&") if mark else []:
            name, _, value = part.partition("=")
            if unquote(name) == _SCHEMA_PARAMETER:
                schema = check_schema(unquote(value))
                shown.append(part)
                continue
            passed.append(part)
            if unquote(name) not in _SECRETS:
                shown.append(part)
        conninfo = _joined(base, passed)
        secret = _password_in(base)
        try:
            parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
        except psycopg.Error as error:
            # libpq quotes the part that it does not understand, which may be what was meant for a password.
            reason = str(error).strip()
            detail = "" if secret and secret in reason else f": {reason}"
            message = f"{_joined(_without_password(base), shown)!r} is no URL of a PostgreSQL server{detail}"
            raise InvalidArgument(message) from None
        return cls(conninfo, _joined(_without_password(base), shown), schema, parameters)


def _joined(base: str, query: list[str]) -> str:
    return f"{base}?{'&'.join(query)}" if query else base


def _authority(base: str) -> tuple[str, str, str]:
    """Return what stands before the user, ``user:password`` (or nothing), and the rest from ``@`` on."""
    scheme, slashes, rest = base.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    return f"{scheme}{slashes}", user, f"{at}{hosts}{slash}{path}"


def _password_in(base: str) -> str:
    return _authority(base)[1].partition(":")[2]


def _without_password(base: str) -> str:
    before, user, after = _authority(base)
    return f"{before}{user.partition(':')[0]}{after}"
