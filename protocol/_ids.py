"""What is a valid session id."""

from __future__ import annotations

from ._errors import InvalidArgument

__all__ = ["check_session_id"]


def check_session_id(session_id: object, *, bytes_max: int = 200) -> str:
    """Return the id, or raise: any non-empty text up to ``bytes_max`` UTF-8 bytes is valid.

    Raises:
        InvalidArgument: not text, empty, too long, or with a lone surrogate.
    """
    if not isinstance(session_id, str):
        message = f"a session id is text, not {type(session_id).__name__}"
        raise InvalidArgument(message)
    try:
        size = len(session_id.encode())
    except UnicodeEncodeError as error:
        message = f"session id {session_id!r} is not valid Unicode: {error.reason}"
        raise InvalidArgument(message) from error
    if not 0 < size <= bytes_max:
        message = f"a session id has 1 to {bytes_max} UTF-8 bytes, this one has {size}"
        raise InvalidArgument(message)
    return session_id
