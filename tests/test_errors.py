"""Errors: one tree as it is drawn, each with its facts, and each survives pickling, copying and being raised twice."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import logmark
from logmark import errors
from logmark._replies import own_error
from logmark.errors import LogmarkError
from logmark.protocol import AppendError

CLASSES: dict[str, type[LogmarkError]] = {name: getattr(errors, name) for name in errors.__all__}
# What the constructors of the leaves take. A test below sees to it that none is missing.
FACTS: dict[str, dict[str, Any]] = {
    "ActorRestarted": {"session_id": "chat-42", "reason": "it raised"},
    "AppendUncertain": {"session_id": "chat-42", "reason": "fsync failed", "first_event_id": "01J", "halted": False},
    "CursorAhead": {"session_id": "chat-42", "cursor": 8, "last_seq": 7},
    "EventIdConflict": {"session_id": "chat-42", "event_id": "01J", "event_seq": 7},
    "EventTooDeep": {"limit": 64},
    "EventTooLarge": {"size_bytes": 1001, "limit_bytes": 1000},
    "ForeignCursor": {"session_id": "chat-42", "cursor_session_id": "chat-43"},
    "ForkedRuntime": {"owner_pid": 1, "pid": 2},
    "InvalidPosition": {"reason": "its checksum does not agree"},
    "JobEnded": {"job_id": "job_1", "status": "success"},
    "JobFailed": {"reason": "the input has no repository", "code": "INVALID_REQUEST", "retryable": False},
    "LeaseRefused": {"job_id": "job_1", "code": "LEASE_EXPIRED", "reason": "it has expired"},
    "LockTimeout": {"session_id": "chat-42", "waited_s": 1.5, "holder_pid": 4711},
    "LogCorrupt": {"session_id": "chat-42", "reason": "bits", "event_seq": 7, "segment": "1.jsonl", "offset": 99},
    "MissingExtra": {"engine": "nats", "extra": "nats"},
    "NotControl": {"type": "job.event"},
    "NotCountable": {"type": "session.ping"},
    "Overloaded": {"session_id": "chat-42", "waited_s": 1.5, "waiting_events": 10},
    "ProjectionBusy": {"session_id": "chat-42", "name": "view", "path": "view.csv"},
    "ProjectionHalted": {"session_id": "chat-42", "name": "view", "seq": 7, "reason": "KeyError()", "halted_at": None},
    "RecordChanged": {"session_id": "chat-42", "name": "cursor:ui", "version": 3},
    "RequestRefused": {"code": "JOB_NOT_FOUND", "reason": "there is no such job", "retryable": True},
    "SchemaMismatch": {"session_id": "chat-42", "expected": 1, "found": 2, "segment": "1.jsonl", "offset": 99},
    "SeqPruned": {"session_id": "chat-42", "seq": 7, "first_available": 9},
    "SequenceExhausted": {"session_id": "chat-42", "last_seq": 7},
    "SessionDeleted": {"session_id": "chat-42", "last_seq": 7, "deleted_at": "2026-01-01T00:00:00Z"},
    "SessionHalted": {"session_id": "chat-42", "reason": "fsync failed", "halted_at": "2026-01-01T00:00:00Z"},
    "SessionSealed": {"session_id": "chat-42", "last_seq": 7},
    "StaleCursor": {"session_id": "chat-42", "name": "ui", "seq": 7, "event_id": "01J", "found_id": "01K"},
    "StorageRejected": {"session_id": "chat-42", "reason": "no space", "errno": 28},
    "StorageUnavailable": {"store": "file:data", "reason": "no space", "errno": 28},
    "SubscriptionClosed": {"session_id": "chat-42"},
    "UpcastFailed": {"session_id": "chat-42", "seq": 7, "type": "message", "version": 1, "reason": "KeyError"},
    "WaitTimeout": {"session_id": "chat-42", "what": "event 8", "timeout_s": 1.5},
    "WouldDeadlock": {"call": "append()"},
    "WrongExpectedSeq": {"session_id": "chat-42", "expected_seq": 6, "last_seq": 7},
}
LEAVES = sorted(name for name, cls in CLASSES.items() if not cls.__subclasses__())


def make(name: str) -> LogmarkError:
    cls = CLASSES[name]
    return cls(**FACTS[name]) if name in FACTS else cls("what happened, and what to do")


def facts_of(error: BaseException) -> dict[str, Any]:
    return {name: getattr(error, name) for name in FACTS.get(type(error).__name__, {})}


def test_every_error_that_takes_facts_is_tested_with_them() -> None:
    with_facts = {
        name
        for name, cls in CLASSES.items()
        if any(
            parameter.kind is parameter.KEYWORD_ONLY
            for parameter in inspect.signature(cls.__init__).parameters.values()
        )
    }
    assert with_facts == FACTS.keys()
    for name, facts in FACTS.items():
        parameters = set(inspect.signature(CLASSES[name].__init__).parameters)
        assert parameters - facts.keys() <= {"self", "what"}, name


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "own_error": own_error,
    **{f"pickle {protocol}": pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", CLASSES)
def test_an_error_survives(name: str, how: str) -> None:
    error = make(name)
    again = COPIES[how](error)
    assert type(again) is type(error)
    assert again is not error
    assert str(again) == str(error)
    assert again.args == error.args
    assert facts_of(again) == facts_of(error) == FACTS.get(name, {})
    assert vars(again) == vars(error)
    with pytest.raises(type(error)) as caught:
        raise again
    assert caught.value is again


def test_an_error_survives_with_its_notes() -> None:
    error = make("WrongExpectedSeq")
    error.add_note("while importing")
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["while importing"]


def test_an_error_crosses_a_process_boundary() -> None:
    program = (
        "import pickle, sys\n"
        "from logmark.errors import WrongExpectedSeq\n"
        "error = WrongExpectedSeq(session_id='chat-42', expected_seq=6, last_seq=7)\n"
        "sys.stdout.buffer.write(pickle.dumps(error))\n"
    )
    data = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout
    error = pickle.loads(data)
    assert isinstance(error, errors.WrongExpectedSeq)
    assert (error.session_id, error.expected_seq, error.last_seq) == ("chat-42", 6, 7)


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_says_what_happened_and_to_whom(name: str) -> None:
    error = make(name)
    assert isinstance(error, LogmarkError)
    text = str(error)
    assert len(text) > 10
    if not text.startswith("what happened"):
        for fact in ("session_id", "event_id", "cursor", "last_seq", "expected_seq", "limit", "holder_pid", "type"):
            if fact in FACTS.get(name, {}):
                assert str(FACTS[name][fact]) in text
    assert repr(error).startswith(name)
    assert inspect.getdoc(CLASSES[name])


def test_errors_of_the_system_keep_their_number() -> None:
    for name in ("StorageRejected", "StorageUnavailable"):
        error = make(name)
        assert isinstance(error, OSError)
        assert error.errno == 28
        assert pickle.loads(pickle.dumps(error)).errno == 28


def test_each_caller_of_a_failed_batch_raises_an_error_of_its_own() -> None:
    cause = OSError(28, "no space")
    error = errors.StorageRejected(session_id="chat-42", reason="no space", errno=28)
    error.__cause__ = cause
    first, second = own_error(error), own_error(error)
    with pytest.raises(errors.StorageRejected) as caught:
        raise first
    assert caught.value.__traceback__ is not None
    assert second.__traceback__ is None
    assert first.__cause__ is second.__cause__ is cause
    assert isinstance(first, AppendError)


# -- the tree --------------------------------------------------------------------------------------------------------


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Return for each class in the drawing its parent and the class of the standard library beside it."""
    found: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*(?:[├└]── )?)([A-Z]\w+)\s*(?:\((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            assert match[2] not in found
            found[match[2]] = (above[depth - 1] if depth else None, match[3])
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    tree = drawn_tree()
    assert tree.keys() == CLASSES.keys()
    for name, (parent, standard) in tree.items():
        names = {base.__name__ for base in CLASSES[name].__bases__}
        expected = {parent or "Exception"} | ({standard} if standard else set())
        assert names == expected, name


def test_the_leaves_can_be_caught_by_the_standard_librarys_names() -> None:
    for name, standard in {
        "InvalidArgument": ValueError,
        "NotEncodable": ValueError,
        "Overloaded": TimeoutError,
        "LockTimeout": TimeoutError,
        "WaitTimeout": TimeoutError,
        "StorageRejected": OSError,
        "SequenceExhausted": OverflowError,
        "MissingExtra": ImportError,
    }.items():
        assert issubclass(CLASSES[name], standard)
    assert "AppendUncertain" in LEAVES
    assert not issubclass(errors.AppendUncertain, errors.AppendRejected)


def test_every_error_class_there_is_is_public() -> None:
    def below(cls: type[LogmarkError]) -> set[type[LogmarkError]]:
        return {cls}.union(*(below(child) for child in cls.__subclasses__()))

    ours = {cls for cls in below(LogmarkError) if cls.__module__.startswith("logmark.")}
    assert ours == set(CLASSES.values())
    assert errors.__all__ == sorted(errors.__all__)


# -- the facade ------------------------------------------------------------------------------------------------------


def test_the_facade_keeps_what_it_announces() -> None:
    assert logmark.__all__ == sorted(logmark.__all__)
    for name in logmark.__all__:
        assert getattr(logmark, name) is not None
        assert name in dir(logmark)
    for name in set(logmark.__all__) & CLASSES.keys():
        assert getattr(logmark, name) is CLASSES[name]
    for name in ("actors", "errors", "logs", "protocol", "storage", "testing"):
        assert getattr(logmark, name) is importlib.import_module(f"logmark.{name}")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", logmark.__version__)
    missing = "no_such_thing"
    with pytest.raises(AttributeError, match=missing):
        getattr(logmark, missing)


def test_a_star_import_brings_the_facade_and_nothing_else() -> None:
    program = "from logmark import *\nimport sys\nprint(*sorted(set(dir()) - {'sys'}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60, text=True)
    assert [name for name in run.stdout.split() if not name.startswith("__")] == logmark.__all__


def test_a_session_is_named_in_what_it_raises() -> None:
    with logmark.open("memory:") as runtime:
        session = runtime.session("chat-42")
        session.append("x")
        with pytest.raises(errors.WrongExpectedSeq, match="chat-42") as caught:
            session.append("x", expected_seq=5)
        assert (caught.value.session_id, caught.value.expected_seq, caught.value.last_seq) == ("chat-42", 5, 1)
        with pytest.raises(errors.CursorAhead, match="chat-42") as ahead:
            session.page(after=3)
        assert (ahead.value.cursor, ahead.value.last_seq) == (3, 1)
