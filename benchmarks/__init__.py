"""The same work on logmark, on its peers and on the bare disk, side by side: ``python -m benchmarks``."""

from __future__ import annotations
