"""The command line: ``logmark …`` and ``python -m logmark …``."""

from __future__ import annotations

from ._main import main

__all__ = ["main"]
