"""Session ids on disk: every valid id has a directory of its own, inside the store, whatever the file system folds."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logmark.protocol import check_session_id
from logmark.storage import EventStore, FileEventStore, MemoryEventStore
from logmark.storage._layout import session_dir, session_id_of
from logmark.testing.conformance import ODD_SESSION_IDS, append_events, make_event, texts_of

SAFE = re.compile(r"[a-z0-9%_-][a-z0-9%_.-]{0,199}\Z")
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)", re.IGNORECASE)

# Text as users write it, text that looks like an escape, and text near the limit.
SESSION_IDS = st.one_of(
    st.text(min_size=1, max_size=60),
    st.text(alphabet="%.aA0/2eE\\\x00-_ ", min_size=1, max_size=12),
    st.text(alphabet="aA.%é", min_size=60, max_size=200),
).filter(lambda text: len(text.encode()) <= 200)


@given(SESSION_IDS)
@example("con")
@example("nul.txt")
@example("com1.")
@example("lpt9")
@example("." * 200)
@example("a" * 199 + ".")
@example("A" * 66 + "aa")
@example("A" * 66 + "aaa")
def test_every_id_has_a_name_that_is_safe_everywhere(session_id: str) -> None:
    """Row 4: no separator, no capital, no leading or trailing dot, no device, no more than 200 characters."""
    assert check_session_id(session_id) == session_id
    name = session_dir(session_id)

    assert SAFE.match(name)
    assert not name.endswith(".")
    assert not DEVICES.match(name)
    assert os.path.basename(name) == name
    assert session_id_of(name) in ({session_id} if "%%" not in name else {None})


@given(st.sets(SESSION_IDS, min_size=2, max_size=8))
@example(set(ODD_SESSION_IDS))
@example({"a", "A", "á", "a\u0301", "%61", "\uff41"})
def test_no_two_ids_share_a_name_where_case_and_composition_are_folded(session_ids: set[str]) -> None:
    """Row 41: also on file systems that fold case or normalise names."""
    names = {unicodedata.normalize("NFKC", session_dir(each)).casefold() for each in session_ids}

    assert len(names) == len(session_ids)


@given(st.text(alphabet=st.characters(max_codepoint=0x7F, exclude_characters="/\x00"), min_size=1, max_size=30))
@example("%41")
@example("%61")
@example("a%2")
@example("%ff")
@example("%C3%A9")
def test_a_name_that_no_session_has_is_nobodys(name: str) -> None:
    """Row 41: what somebody else put among the sessions is not mistaken for one."""
    found = session_id_of(name)

    assert found is None or session_dir(found) == name


@pytest.mark.parametrize("engine", ["memory", "files"])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=30
)
@given(session_ids=st.lists(SESSION_IDS, min_size=1, max_size=6, unique=True))
def test_any_text_names_a_session_of_its_own(
    engine: str, tmp_path_factory: pytest.TempPathFactory, session_ids: list[str]
) -> None:
    """Rows 4 and 41: written, read and listed under its own id, by this store and by the next."""
    store: EventStore
    path: Path | None = None
    if engine == "memory":
        store = MemoryEventStore()
    else:
        path = tmp_path_factory.mktemp("store")
        store = FileEventStore(path, durability="os")
    for turn in ("first", "second"):
        for index, session_id in enumerate(session_ids):
            append_events(store, session_id, make_event(f"{turn} {index}", id=turn))
    if path is not None:
        store.close()
        store = FileEventStore(path, durability="os")

    assert list(store.sessions()) == sorted(session_ids)
    for index, session_id in enumerate(session_ids):
        assert texts_of(store.read(session_id)) == [f"first {index}", f"second {index}"]
    store.close()
    if path is not None:
        assert sorted(each.name for each in path.iterdir()) == ["sessions", "store.json"]
