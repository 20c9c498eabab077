"""Whether a session's directory is as it was when everything in it was last looked at.

Before each append a writer has to know that its lock file, its head and its segment are still the ones under their
names, and that no halt marker has come: four questions about paths. Every making, moving and removing of a name changes
its directory's time of modification, so one look at the directory answers them all at once while nothing happens to it.

The time is only as good as its steps. A directory that was modified just before it was looked at may be modified again
within the same step; it is not relied on before the step is surely over (the problem, and the cure, that git knows as
"racy git": Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

from ..protocol import Clock
from ._files import Files

__all__ = ["Undisturbed"]

_STEP_NS_MAX = 50_000_000
_COARSE_STEP_NS_MAX = 3_000_000_000  # whole seconds, as some file systems count, or two of them, as FAT does
_SECOND_NS = 1_000_000_000


class Undisturbed:
    """One directory. Not thread-safe: asked under the session's lock."""

    __slots__ = ("_clock", "_files", "_known", "_path", "held")

    def __init__(self, files: Files, clock: Clock, path: str) -> None:
        self._files = files
        self._clock = clock
        self._path = path
        self._known: tuple[int, int, int] | None = None
        self.held = False
        """What ``holds`` last said."""

    def holds(self) -> bool:
        """Say whether no name was made, moved or removed since the look that was remembered."""
        self.held = self._known is not None and self._identity() == self._known
        return self.held

    def look(self) -> tuple[int, int, int] | None:
        """Look at the directory before what is in it; None when it cannot be relied on yet."""
        self._known = None
        identity = self._identity()
        modified_ns = identity[0]
        step_ns = _STEP_NS_MAX if modified_ns % _SECOND_NS else _COARSE_STEP_NS_MAX
        return identity if self._clock.time_ns() - modified_ns > step_ns else None

    def remember(self, looked_at: tuple[int, int, int] | None) -> None:
        """What is in the directory is in order, as of that look."""
        self._known = looked_at

    def _identity(self) -> tuple[int, int, int]:
        found = self._files.stat(self._path)
        return found.st_mtime_ns, found.st_ino, found.st_dev
