"""Bases: what was derived from the events of a session before some of them were pruned, kept as records.

A snapshot may be lost, as its events are there; a base may not.
"""

from __future__ import annotations

__all__ = ["BASE_PREFIX", "decode_base", "encode_base"]

BASE_PREFIX = "base:"
"""The record's name begins with this; what the fold is kept under follows."""


def encode_base(seq: int, data: bytes) -> bytes:
    """Return what is kept of everything up to a number, given what was derived from it."""
    return b"%d\n%b" % (seq, data)


def decode_base(data: bytes) -> tuple[int, bytes]:
    """Return the number and what was derived from everything up to it; ValueError when it is no base."""
    seq, newline, derived = data.partition(b"\n")
    if not newline or not seq.isdigit():
        raise ValueError("it is not of the form of a base")
    return int(seq), derived
