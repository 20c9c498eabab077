"""Who takes part: logmark, the bare disk, and the peers, each in a module of its own."""

from __future__ import annotations

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._logmark import EVENT_TYPE, Logmark
from ._raw import Raw
from ._table import PEERS, label_of, make

__all__ = [
    "EVENT_TYPE",
    "PEERS",
    "Caller",
    "Events",
    "Logmark",
    "Missing",
    "Participant",
    "Payload",
    "Raw",
    "Tally",
    "label_of",
    "make",
]
