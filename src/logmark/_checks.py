"""Checks of a call's own arguments."""

from __future__ import annotations

from .protocol import SEQ_MAX, InvalidArgument

__all__ = ["check_name", "check_seq"]


def check_seq(name: str, value: object, least: int) -> int:
    """Return a number of at least ``least``, or raise ``InvalidArgument``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= SEQ_MAX:
        message = f"{name} must be an integer of {least} to {SEQ_MAX}, not {value!r}"
        raise InvalidArgument(message)
    return value


def check_name(name: str, value: object) -> str:
    """Return non-empty text, or raise ``InvalidArgument``."""
    if not isinstance(value, str) or not value:
        message = f"{name} must be non-empty text, not {value!r}"
        raise InvalidArgument(message)
    return value
