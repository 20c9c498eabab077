"""One contract, five engines: the same program, switched by nothing but its URL, does the same on each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope
from logmark.errors import CursorAhead, SeqPruned, SessionDeleted, SessionHalted, SessionSealed, WrongExpectedSeq
from logmark.testing import CommandRun

DATA = Path(__file__).parent / "data"
ENGINES = ("memory", "file", "sqlite", "postgresql", "nats")
SOON = 30.0
_numbers = itertools.count(1)


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a new, empty store's URL of an engine."""

    def make(engine: str) -> str:
        name = f"five_{next(_numbers)}"
        match engine:
            case "memory":
                return "memory:"
            case "postgresql":
                return str(request.getfixturevalue("postgres_server").url(schema=name))
            case "nats":
                return str(request.getfixturevalue("nats_server").url(name))
            case _:
                return f"{engine}:{tmp_path / name}"

    return make


def program(url: str) -> list[Any]:
    """Do what programs do, and return all that it could see."""
    seen: list[Any] = []
    with logmark.open(url) as runtime:
        session = runtime.session("chat-42")
        seen.append(session.append("message.created", {"text": "hi"}, id="first"))
        seen.append(session.append("message.created", {"text": "hi again"}, id="first"))
        seen.append(session.append_many([Envelope(type="job.event", payload=n, job_id="build-7") for n in range(3)]))
        seen.append(session.append("job.result", {}, job_id="build-7", expected_seq=4))
        for call in (
            lambda: session.append("note", 1, expected_seq=4),
            lambda: list(session.read(99)),
        ):
            with pytest.raises((WrongExpectedSeq, CursorAhead)) as caught:
                call()
            seen.append((type(caught.value), str(caught.value)))
        mark = session.job("build-7").mark
        assert mark is not None
        seen.append((mark.first_seq, mark.last_seq, mark.count, mark.status))
        runtime.store.reserve("chat-42", 9)
        with session.subscribe(1) as subscription:
            seen.append(session.append("note", "behind a gap"))
            seen += [(each.event_seq, each.payload) for each in (subscription.get(SOON) for _ in range(6))]
        page = session.page(before=10, limit=2)
        seen.append(([each.event_seq for each in page.events], page.has_more))
        seen.append([each.event_seq for each in session.read(3)])

        store = runtime.store
        seen.append(store.save_record("chat-42", "cursor", b"7", version=0))
        seen.append({name: (record.data, record.version) for name, record in store.records("chat-42").items()})
        store.halt("chat-42", "to see what happens")
        with pytest.raises(SessionHalted):
            session.append("note", "refused")
        seen.append(len(store.repair("chat-42")))
        seen.append(store.truncate_before("chat-42", 3))
        with pytest.raises(SeqPruned) as pruned:
            list(store.read("chat-42"))
        seen.append(str(pruned.value))
        seen.append([(each.event_seq, each.type, each.id == "first") for each in store.read("chat-42", from_seq=3)])
        seen.append(store.seal("chat-42"))
        with pytest.raises(SessionSealed) as sealed:
            runtime.session("chat-42").append("note", "refused")
        seen.append(str(sealed.value))
        runtime.session("gone").append("note", 1)
        store.delete("gone")
        with pytest.raises(SessionDeleted):
            list(store.read("gone"))
        seen.append(store.verify("chat-42"))
        seen.append([(each.session_id, each.last_seq, each.sealed) for each in runtime.sessions()])
    return seen


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_the_same_program_sees_the_same_on_every_engine(url_of: Callable[[str], str], engine: str) -> None:
    """Row "shown by" of issue 6."""
    assert program(url_of(engine)) == program(url_of("memory"))


def test_every_command_says_the_same_on_every_engine(
    url_of: Callable[[str], str], run: Callable[..., CommandRun]
) -> None:
    """``ingest``, ``ls``, ``info``, ``view``, ``verify`` and ``repair``, of what was read from the same file."""
    said: dict[str, list[Any]] = {}
    for engine in ENGINES[1:]:
        url = url_of(engine)
        found = [run("ingest", DATA / "arcp-wire.jsonl", "--json", "--store", url) for _ in range(2)]
        listed = run("ls", "--json", "--store", url)
        names = [json.loads(line)["session_id"] for line in listed.out.splitlines()]
        assert names
        found += [listed, *(run(each, "--json", "--store", url) for each in ("verify", "repair"))]
        for name in names[:2]:
            found += [run(each, name, "--json", "--store", url) for each in ("info", "view", "verify")]
        assert {each.code for each in found} == {0}, [each.err for each in found]
        said[engine] = [[without_times(line) for line in each.out.splitlines()] for each in found]
    assert said["sqlite"] == said["file"]
    assert said["postgresql"] == said["file"]
    assert said["nats"] == said["file"]


def without_times(line: str) -> Any:
    members = json.loads(line)
    return {name: value for name, value in members.items() if name not in {"elapsed_s", "ts"}}


def test_a_store_goes_round_all_engines_and_comes_back_the_same(
    url_of: Callable[[str], str], run: Callable[..., CommandRun]
) -> None:
    """``logmark copy`` from each to the next: numbers, gaps, ids and bytes; again, when there is more."""
    urls = [url_of(engine) for engine in ("file", "nats", "postgresql", "sqlite", "nats", "file")]
    for turn in range(2):
        with logmark.open(urls[0]) as runtime:
            for name in ("a", "b/\N{PILE OF POO}"):
                runtime.session(name).append_many([("note", {"turn": turn, "n": n}) for n in range(40)])
                runtime.session(name).append("note", turn, id=f"own {turn}")
                runtime.store.reserve(name, runtime.session(name).last_seq + 3)
        for source, destination in itertools.pairwise(urls):
            done = run("copy", source, destination)
            assert done.code == 0, done.err
    with logmark.open(urls[0]) as first, logmark.open(urls[-1]) as last:
        for name in ("a", "b/\N{PILE OF POO}"):
            assert list(first.store.read(name)) == list(last.store.read(name))
            assert first.store.info(name).next_seq == last.store.info(name).next_seq
