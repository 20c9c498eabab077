"""The sections of the report, each a function from a context to rows."""

from __future__ import annotations

from ._base import Context, Field, Section
from ._table import SECTIONS

__all__ = ["SECTIONS", "Context", "Field", "Section"]
