"""Named tuples, made without the detour through the Python of their own constructors."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

__all__ = ["new_tuple"]

T = TypeVar("T", bound=tuple[object, ...])


class _New(Protocol):
    def __call__(self, cls: type[T], members: tuple[object, ...], /) -> T: ...


new_tuple = cast("_New", vars(tuple)["__new__"])
"""``new_tuple(Kind, (first, second))`` makes a ``Kind`` of all its members, which nothing counts.

It takes half to two thirds of the time: for what each append makes.
"""
