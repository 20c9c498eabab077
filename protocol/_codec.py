"""JSON in and out, with the encoder's silent corners closed.

orjson is exact where it raises, and lossy where it does not: it writes NaN and infinities as ``null``, reads integers
beyond 64 bits as floats, and lets the last of two equal keys win. Here each of these is an error, at the call that
brought the value, before anything is written.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn, cast

import orjson

from ._errors import DecodeError, EventTooDeep, EventTooLarge, NotEncodable

__all__ = ["JSON_OPTIONS", "decode_json", "encode_json", "encode_text"]

JSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+])(?<![eE]-)-?[0-9]{19,}(?![0-9.eE])")
_INTEGER_DIGITS_MAX = 20  # with its sign, the longest 64-bit integer
_INTEGER_MIN = -(2**63)
_INTEGER_MAX = 2**64 - 1


def encode_text(text: str) -> bytes:
    """Return a string as a JSON string."""
    return orjson.dumps(text)


def encode_json(value: Any, *, bytes_max: int, depth_max: int) -> bytes:
    """Encode a JSON value exactly, or raise.

    Mappings with text keys, lists, tuples, text, booleans, None, finite floats and integers of 64 bits are JSON values,
    as are enums and UUIDs by their value. The bytes are a snapshot: later changes of ``value`` do not reach them.

    Raises:
        NotEncodable: NaN, an infinity, an integer beyond 64 bits, a lone surrogate, a key that is not text, or an
            object without a JSON form.
        EventTooDeep: more than ``depth_max`` nested containers.
        EventTooLarge: more than ``bytes_max`` bytes.
    """
    try:
        data = orjson.dumps(value, option=JSON_OPTIONS)
    except TypeError as error:  # orjson.JSONEncodeError is a TypeError
        _raise_not_encodable(error, depth_max)
    if len(data) > bytes_max:
        raise EventTooLarge(size_bytes=len(data), limit_bytes=bytes_max)
    if b"\n" in data:  # the encoder never writes one; a Fragment, which it passes on unseen, may
        raise NotEncodable("the value holds an orjson.Fragment with a line break; pass the value itself")
    # A byte search is a lower bound that settles nearly every value without walking it in Python.
    if data.count(b"{") + data.count(b"[") > depth_max and _depth_exceeds(value, depth_max):
        raise EventTooDeep(limit=depth_max)
    if b"null" in data:
        _refuse_non_finite(value)
    return data


def decode_json(data: bytes, *, bytes_max: int, depth_max: int) -> Any:
    """Decode JSON exactly, or raise.

    Raises:
        DecodeError: not JSON, not UTF-8, a duplicate key, an integer beyond 64 bits, too deep or too large.
    """
    if len(data) > bytes_max:
        message = f"{len(data)} bytes of JSON, the limit is {bytes_max}"
        raise DecodeError(message)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        message = f"not valid JSON: {error}"
        raise DecodeError(message) from error
    if data.count(b"{") + data.count(b"[") > depth_max and _depth_exceeds(value, depth_max):
        message = f"nested more than {depth_max} levels deep"
        raise DecodeError(message)
    if data.count(b":") > 1 or _LONG_INTEGER.search(data):
        # The standard library's scanner is slower, but shows each object and each integer before it is folded.
        json.loads(data, object_pairs_hook=_refuse_duplicate_keys, parse_int=_refuse_long_integer)
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                message = f"the key {key!r} appears twice in one object"
                raise DecodeError(message)
            seen.add(key)


def _refuse_long_integer(digits: str) -> None:
    if len(digits) > _INTEGER_DIGITS_MAX or not _INTEGER_MIN <= int(digits) <= _INTEGER_MAX:
        message = f"the integer {digits[:24]} does not fit 64 bits"
        raise DecodeError(message)


def _raise_not_encodable(error: TypeError, depth_max: int) -> NoReturn:
    if "recursion" in str(error).lower():
        raise EventTooDeep(limit=depth_max) from error
    message = f"the value has no JSON form: {error}; pass text, numbers, booleans, None, lists and dicts"
    raise NotEncodable(message) from error


def _children(value: Any) -> Iterable[Any] | None:
    """Return what a container holds; None for a value that is no container."""
    while isinstance(value, enum.Enum):
        value = value.value  # what the encoder writes
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    if isinstance(value, list | tuple):
        return cast("Iterable[Any]", value)
    return None


def _depth_exceeds(value: Any, depth_max: int) -> bool:
    level = [value]
    for _ in range(depth_max):
        level = [child for item in level for child in _children(item) or ()]
    return any(_children(item) is not None for item in level)


def _refuse_non_finite(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        while isinstance(item, enum.Enum):
            item = item.value  # what the encoder wrote
        if isinstance(item, float) and not math.isfinite(item):
            message = f"{item!r} has no JSON form; pass None or text instead"
            raise NotEncodable(message)
        stack.extend(_children(item) or ())
