"""The agents of a runtime: which names and versions there are, and what a reference on the wire stands for."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from ..protocol import InvalidArgument, RequestRefused
from ._contract import AgentEntry
from ._lease import budget_of, check_lease

if TYPE_CHECKING:
    from ._context import AgentContext

__all__ = ["AgentFunction", "Agents"]

AgentFunction = Callable[["AgentContext", Any], Any]
"""What does the work of a job: called with the job's context and input; what it returns is the inline result."""

F = TypeVar("F", bound=Callable[..., Any])

# ARCP draft, section 7.5.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION = re.compile(r"[a-zA-Z0-9.+_-]+")
_PART_CHARS_MAX = 100
_ARGUMENTS = 2  # the context and the input
_FEATURES = frozenset({"agent_versions", "cost.budget", "lease_expires_at", "progress", "result_chunk"})


class Agents:
    """The agents of one runtime, several versions side by side. Safe from any thread, also while it is served.

    Made by ``Runtime.agents``; ``Runtime.agent`` registers. Implements ``AgentCatalogue``.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._functions: dict[str, dict[str, AgentFunction]] = {}
        self._defaults: dict[str, str] = {}
        self._pinned: set[str] = set()

    def register(self, name: str, *, version: str, default: bool = False) -> Callable[[F], F]:
        """Return a decorator that registers a function and returns it as it is; see ``Runtime.agent``."""
        _check(name, "an agent's name", _NAME)
        _check(version, "an agent's version", _VERSION)

        def decorate(function: F) -> F:
            _check_function(name, function)
            self._add(name, version, function, default=default)
            return function

        return decorate

    def _add(self, name: str, version: str, function: AgentFunction, *, default: bool) -> None:
        with self._mutex:
            versions = self._functions.get(name, {})
            if version in versions:
                message = f"agent {name}@{version} is registered already; give the new one another version"
                raise InvalidArgument(message)
            if default and name in self._pinned:
                message = f"{name}@{self._defaults[name]} is already marked as the default; there is only one"
                raise InvalidArgument(message)
            self._functions.setdefault(name, versions)[version] = function
            if default:
                self._pinned.add(name)
            if default or name not in self._pinned:
                self._defaults[name] = version

    def function(self, name: str, version: str) -> AgentFunction | None:
        """Return what does the work of an agent, None when it is not registered in this process."""
        with self._mutex:
            return self._functions.get(name, {}).get(version)

    # -- what the wire side asks --------------------------------------------------------------------------------

    def resolve(self, agent: str) -> AgentEntry:
        """See ``AgentCatalogue.resolve``; ARCP draft, section 7.5."""
        name, at, version = agent.partition("@")
        if not _is_valid(name, _NAME) or (at and not _is_valid(version, _VERSION)):
            raise RequestRefused(code="INVALID_REQUEST", reason="agent is not of the form name or name@version")
        with self._mutex:
            versions = self._functions.get(name)
            if versions is None:
                raise RequestRefused(code="AGENT_NOT_AVAILABLE", reason=f"there is no agent {name!r}")
            if not at:
                version = self._defaults[name]
            elif version not in versions:
                reason = f"agent {name!r} has no version {version!r}"
                raise RequestRefused(code="AGENT_VERSION_NOT_AVAILABLE", reason=reason)
        return AgentEntry(name, version)

    def describe(self) -> list[dict[str, Any]]:
        """See ``AgentCatalogue.describe``; in the order of registration."""
        with self._mutex:
            return [
                {"name": name, "versions": list(versions), "default": self._defaults[name]}
                for name, versions in self._functions.items()
            ]

    def features(self) -> frozenset[str]:
        """See ``AgentCatalogue.features``. Not among them: ``model.use`` and ``provisioned_credentials``.

        An agent is Python code of this process: which models it calls and with whose credentials is out of reach here.
        """
        return _FEATURES

    def check_lease(
        self, lease_request: Any, lease_constraints: Any, *, now_ns: int, features: frozenset[str]
    ) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
        """See ``AgentCatalogue.check_lease``."""
        return check_lease(lease_request, lease_constraints, now_ns=now_ns, features=features)

    def budget(self, lease: Mapping[str, Sequence[str]]) -> dict[str, Decimal] | None:
        """See ``AgentCatalogue.budget``."""
        return budget_of(lease)


def _is_valid(part: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(part, str) and len(part) <= _PART_CHARS_MAX and pattern.fullmatch(part) is not None


def _check(part: object, what: str, pattern: re.Pattern[str]) -> None:
    if not _is_valid(part, pattern):
        message = f"{what} matches {pattern.pattern} and has at most {_PART_CHARS_MAX} characters; not so {part!r:.120}"
        raise InvalidArgument(message)


def _check_function(name: str, function: Any) -> None:
    if not callable(function):
        message = f"agent {name!r} must be a function of a context and an input, not {function!r:.120}"
        raise InvalidArgument(message)
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    called = function if inspect.isroutine(function) else type(function).__call__
    if any(is_kind(called) for is_kind in kinds):
        message = f"agent {name!r} runs in a thread: it must be a plain function, neither asynchronous nor a generator"
        raise InvalidArgument(message)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a built-in that does not tell
    try:
        signature.bind(*range(_ARGUMENTS))
    except TypeError as error:
        message = f"agent {name!r} must take a context and an input: {error}"
        raise InvalidArgument(message) from error
