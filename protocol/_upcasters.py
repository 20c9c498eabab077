"""Upcasters: old payloads shown in the form that the program works with today. What is stored never changes.

An event says of which version its payload is in the top-level field ``type_version``; without it, it is version 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ._envelope import Envelope, EnvelopeFields
from ._errors import InvalidArgument
from ._reader_errors import UpcastFailed

__all__ = ["TYPE_VERSION", "Upcaster", "Upcasters", "versioned"]

TYPE_VERSION = "type_version"
_VERSION_MAX = 2**31

Upcaster = Callable[[Any], Any]
"""Returns the payload of the next version; it may change the one that it is given, which is its own."""


def check_version(name: str, value: object) -> int:
    """Return the version of a payload, 1 or more, or raise ``InvalidArgument``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _VERSION_MAX:
        message = f"{name} must be an integer of 1 to {_VERSION_MAX}, not {value!r}"
        raise InvalidArgument(message)
    return value


def versioned(extensions: Mapping[str, Any] | None, type_version: int) -> Mapping[str, Any] | None:
    """Return an event's further fields with the version of its payload; 1 is not written.

    Raises:
        InvalidArgument: it is no version, or the fields name another one.
    """
    check_version(TYPE_VERSION, type_version)
    if type_version == 1:
        return extensions
    if extensions is not None and extensions.get(TYPE_VERSION, type_version) != type_version:
        message = f"the extensions say {TYPE_VERSION} {extensions[TYPE_VERSION]!r}, the call {type_version}"
        raise InvalidArgument(message)
    return {**(extensions or {}), TYPE_VERSION: type_version}


def _check_upcaster(type: object, upcaster: object) -> None:
    if not isinstance(type, str) or not type:
        message = f"type must be non-empty text, not {type!r}"
        raise InvalidArgument(message)
    if not callable(upcaster):
        message = f"an upcaster is a function of a payload, not {upcaster!r}"
        raise InvalidArgument(message)


class Upcasters:
    """The upcasters of one runtime, one for each type and version. Safe from any thread.

    An event is shown as far as the chain goes: with upcasters from 1 and from 2, one of version 1 as version 3. One of
    a version that no upcaster starts from, such as one written by a newer program, is shown as it is.
    """

    def __init__(self, upcasters: Mapping[tuple[str, int], Upcaster] | None = None) -> None:
        self.types: dict[str, dict[int, Upcaster]] = {}
        """By event type and the version that they start from; empty: no payload is changed."""
        for key, upcaster in (upcasters or {}).items():
            try:
                type_, from_version = key
            except (TypeError, ValueError):
                message = f"an upcaster is registered for a (type, version), not for {key!r}"
                raise InvalidArgument(message) from None
            self.register(type_, from_version, upcaster)

    def register(self, type: str, from_version: int, upcaster: Upcaster) -> None:
        """Have payloads of a version shown as the next one.

        Raises:
            InvalidArgument: there is one for this version, or an argument is wrong.
        """
        _check_upcaster(type, upcaster)
        check_version("from_version", from_version)
        known = self.types.get(type, {})
        if from_version in known:
            message = f"there is an upcaster of {type!r} from version {from_version} already"
            raise InvalidArgument(message)
        self.types[type] = {**known, from_version: upcaster}  # replaced whole: who reads has the old or the new one

    def typed(self, envelope: Envelope) -> Envelope:
        """Return an event as the program wants to see it; nothing is decoded before it is looked at."""
        steps = self.types.get(envelope.type) if self.types else None
        if steps is None or envelope.event_seq is None:
            return envelope
        return _Upcast.of(envelope, steps)

    def all_typed(self, envelopes: Iterator[Envelope]) -> Iterator[Envelope]:
        """Return events as the program wants to see them."""
        return map(self.typed, envelopes) if self.types else envelopes


class _Upcast(Envelope):
    """An event whose payload is of an older version, shown in the newest that there is an upcaster to."""

    __slots__ = ("_steps", "_upcast")

    _steps: Mapping[int, Upcaster]
    _upcast: bool

    @classmethod
    def of(cls, envelope: Envelope, steps: Mapping[int, Upcaster]) -> _Upcast:
        self = cls.__new__(cls)
        for name in ("_event_seq", "_fields", "_payload", "_session_id", "_stored"):
            setattr(self, name, getattr(envelope, name))
        self._steps = steps
        self._upcast = False
        return self

    def _version(self) -> int:
        """Return the version that was written; 0 for what some other program means by the field."""
        version = super().fields.extensions.get(TYPE_VERSION, 1)
        return version if isinstance(version, int) and not isinstance(version, bool) else 0

    @property
    def fields(self) -> EnvelopeFields:
        """The fields beside session, number and payload, with the version that the payload is shown in."""
        fields = super().fields
        version = shown = self._version()
        while shown in self._steps:
            shown += 1
        if shown == version:
            return fields
        return fields._replace(extensions={**fields.extensions, TYPE_VERSION: shown})

    @property
    def payload(self) -> Any:
        """The payload, in the version that the program wants to see."""
        payload = super().payload
        if self._upcast:
            return payload
        version = self._version()
        if version in self._steps:
            payload = copy.deepcopy(payload)  # a step that fails half-way may have changed it, and is taken again
        while version in self._steps:
            try:
                payload = self._steps[version](payload)
            except Exception as error:
                raise UpcastFailed(
                    session_id=self.session_id,
                    seq=self.event_seq,
                    type=self.type,
                    version=version,
                    reason=repr(error),
                ) from error
            version += 1
        self._payload = payload
        self._upcast = True
        return payload

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a plain envelope of what is shown: functions do not pickle."""
        fields = self.fields
        values = {**fields._asdict(), "extensions": dict(fields.extensions), "payload": self.payload}
        return _plain, ({**values, "session_id": self.session_id, "event_seq": self.event_seq},)


def _plain(values: dict[str, Any]) -> Envelope:
    return Envelope(**values)
