"""The safeguards, and how each is taken out.

A safeguard is a line or two of the code without which a promise does not hold. ``run.py`` takes one out at a time, in a
copy, and expects the tests that are named here to notice. The texts are as short as makes them unique in their file, so
that a change beside them does not concern them; ``run.py --check`` says which of them a change did concern.
"""

from __future__ import annotations

from of_agents import OF_AGENTS
from of_lifetimes import OF_LIFETIMES
from of_nats import OF_NATS
from of_readers import OF_READERS
from of_runtime import OF_RUNTIME
from of_storage import OF_STORAGE
from safeguard import Safeguard

__all__ = ["SAFEGUARDS", "Safeguard"]

SAFEGUARDS = (*OF_STORAGE, *OF_LIFETIMES, *OF_RUNTIME, *OF_AGENTS, *OF_READERS, *OF_NATS)
