"""The states that a power cut may leave on a disk: what ``_disk.py`` says is durable, and any of what is not.

For each file: every prefix of its pending writes, also with the size ahead of the data (a tail of NULs), any subset of
its changed blocks, any subset of its changes. For the directories: any subset of the names that came, went or were
renamed. The product of all that is cut down to a budget, the same way each time.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from ._disk import PAGE_BYTES, ROOT_INO, Change, DiskImage, DiskState, FileImage, Write, applied

__all__ = ["cached_state", "file_states", "power_cut_states", "random_power_cut", "synced_state"]

_BLOCK_BYTES = 512  # what a disk writes at once, or not at all
_EVERY_BYTE_MAX = 640
_BLOCKS_MAX = 6
_CHANGES_MAX = 4
_TREES_MAX = 64

T = TypeVar("T")
_Slot = tuple[int, int]  # a directory's inode and the index of a pending change
_Tree = dict[str, int | None]  # the path of each file with its inode, and of each directory with None


def _cuts(write: Write) -> list[int]:
    """Return the lengths at which a write is cut: each one or, of a long write, those near an edge of anything."""
    offset, data = write
    if len(data) <= _EVERY_BYTE_MAX:
        return list(range(len(data) + 1))
    edges = {0, len(data), *range(-offset % _BLOCK_BYTES, len(data), _BLOCK_BYTES)}
    at = data.find(b"\n")
    while at >= 0:
        edges.add(at)
        at = data.find(b"\n", at + 1)
    near = {edge + step for edge in edges for step in (-2, -1, 0, 1, 2)}
    return sorted(cut for cut in near | set(range(0, len(data), 61)) if 0 <= cut <= len(data))


def _block_subsets(old: bytes, new: bytes, block: int, rng: random.Random) -> Iterator[bytes]:
    """Yield ``new`` with any subset of its changed blocks as they were before."""
    old = old[: len(new)].ljust(len(new), b"\0")
    changed = [at for at in range(0, len(new), block) if old[at : at + block] != new[at : at + block]]
    if len(changed) <= _BLOCKS_MAX:
        subsets: Iterator[Sequence[int]] = itertools.chain.from_iterable(
            itertools.combinations(changed, count) for count in range(len(changed) + 1)
        )
    else:
        singles = [[at] for at in changed] + [[at for at in changed if at != left] for left in changed]
        subsets = itertools.chain(singles, ([at for at in changed if rng.random() < 0.5] for _ in range(24)))
    for subset in subsets:
        content = bytearray(old)
        for at in subset:
            content[at : at + block] = new[at : at + block]
        yield bytes(content)


def _torn(content: bytes, changes: Sequence[Change]) -> Iterator[bytes]:
    """Yield what is there when the changes reach the disk one after the other, and the last only in part."""
    for change in changes:
        if isinstance(change, Write):
            for cut in _cuts(change)[1:]:
                yield applied(content, Write(change.offset, change.data[:cut]))
        content = applied(content, change)


def _extended(content: bytes, changes: Sequence[Change]) -> Iterator[bytes]:
    """Yield what is there when the size of the file reaches the disk before all of the data: a tail of NULs."""
    for change in changes:
        after = applied(content, change)
        if isinstance(change, Write) and len(after) > len(content):
            for cut in _cuts(change):
                partly = applied(content, Write(change.offset, change.data[:cut])) if cut else content
                yield partly.ljust(len(after), b"\0")
                yield content.ljust(len(partly), b"\0")
        content = after


def _chosen(content: bytes, changes: Sequence[Change]) -> Iterator[bytes]:
    """Yield what is there when any of the changes reach the disk and the others do not."""
    if len(changes) <= _CHANGES_MAX:
        for kept in itertools.product((False, True), repeat=len(changes)):
            yield functools.reduce(applied, itertools.compress(changes, kept), content)


@functools.lru_cache(maxsize=512)
def file_states(image: FileImage) -> tuple[bytes, ...]:
    """Return the contents that a file may have after a power cut, each once, the most telling first.

    First as synced, then as cached, then as it was after each change, the latest first; then the torn, the extended,
    those with blocks missing and those with changes missing in turns, each kind shuffled. So the first of them are a
    fair sample.
    """
    changes = (*image.forgotten, *image.pending)
    if not changes:
        return (image.durable,)
    rng = random.Random(len(image.cached))
    kinds = [
        list(dict.fromkeys(contents))
        for contents in (
            _torn(image.durable, changes),
            _extended(image.durable, changes),
            _block_subsets(image.durable, image.cached, _BLOCK_BYTES, rng),
            _block_subsets(image.durable, image.cached, PAGE_BYTES, rng),
            _chosen(image.durable, changes),
        )
    ]
    for contents in kinds:
        rng.shuffle(contents)
    versions = list(itertools.accumulate(changes, applied, initial=image.durable))
    found: dict[bytes | None, None] = dict.fromkeys((image.durable, image.cached, *reversed(versions)))
    found.update(dict.fromkeys(itertools.chain.from_iterable(itertools.zip_longest(*kinds))))
    return tuple(content for content in found if content is not None)


# -- names ----------------------------------------------------------------------------------------------------------


def _slots(image: DiskImage) -> list[_Slot]:
    return [(ino, index) for ino, found in image.directories.items() for index in range(len(found.pending))]


def _tree(image: DiskImage, kept: Collection[_Slot]) -> _Tree:
    """Return the paths there are when of the pending changes of names only those ``kept`` have reached the disk."""
    tree: _Tree = {}
    waiting: list[tuple[str, int]] = [("", ROOT_INO)]
    while waiting:
        path, ino = waiting.pop()
        directory = image.directories[ino]
        entries = dict(directory.durable)
        for index, change in enumerate(directory.pending):
            if (ino, index) in kept:
                if change.removed is not None and entries.get(change.removed) == change.ino:
                    del entries[change.removed]
                if change.added is not None:
                    entries[change.added] = change.ino
        for name, child in entries.items():
            if child in image.directories:
                tree[f"{path}/{name}"] = None
                waiting.append((f"{path}/{name}", child))
            else:
                tree[f"{path}/{name}"] = child
    return tree


def _trees(image: DiskImage, rng: random.Random) -> list[_Tree]:
    """Return the ways in which the names may be durable: none of the changes first, then all of them."""
    slots = _slots(image)
    choices: list[set[_Slot]] = [set(), set(slots)]
    if 2 ** len(slots) <= _TREES_MAX:
        choices += [set(itertools.compress(slots, kept)) for kept in itertools.product((0, 1), repeat=len(slots))]
    else:
        choices += [{slot} for slot in slots] + [set(slots) - {slot} for slot in slots]
        choices += [{slot for slot in slots if rng.random() < 0.5} for _ in range(_TREES_MAX - len(choices))]
    trees = {tuple(sorted(tree.items())): tree for tree in (_tree(image, kept) for kept in choices)}
    return list(trees.values())


# -- whole disks ----------------------------------------------------------------------------------------------------


def _state(tree: _Tree, contents: Mapping[int, bytes]) -> DiskState:
    return {path: None if ino is None else contents[ino] for path, ino in tree.items()}


def synced_state(image: DiskImage) -> DiskState:
    """Return what is left when nothing has reached the disk but what was synced."""
    tree = _tree(image, ())
    return _state(tree, {ino: file.durable for ino, file in image.files.items()})


def cached_state(image: DiskImage) -> DiskState:
    """Return what is left when everything has reached the disk, as after a crash of the process alone."""
    tree = _tree(image, set(_slots(image)))
    return _state(tree, {ino: file.cached for ino, file in image.files.items()})


def random_power_cut(image: DiskImage, rng: random.Random) -> DiskState:
    """Return one of the legal states."""
    chances = {ino: rng.choice((0.0, 0.5, 1.0)) for ino in image.directories}
    tree = _tree(image, {slot for slot in _slots(image) if rng.random() < chances[slot[0]]})
    contents = {ino: rng.choice(file_states(image.files[ino])) for ino in tree.values() if ino is not None}
    return _state(tree, contents)


def power_cut_states(
    image: DiskImage, *, budget: int, contents_max: Callable[[str], int | None] = lambda _path: None, seed: int = 0
) -> Iterator[DiskState]:
    """Yield legal states, the synced one and the cached one among them.

    Args:
        image: the disk at the moment of the power cut.
        budget: about how many states to yield at most.
        contents_max: says for a path how many contents of its file are of interest; None: as many as the budget allows.
        seed: for the choice among what is too much.
    """
    rng = random.Random(seed)
    trees = _trees(image, rng)
    share = max(4, budget // len(trees))
    for tree in trees:
        inos: list[int] = []
        choices: list[tuple[bytes, ...]] = []
        for path, ino in tree.items():
            if ino is not None:
                states = file_states(image.files[ino])
                inos.append(ino)
                choices.append(states[: contents_max(path) or share])
        for contents in _product(choices, share, rng):
            yield _state(tree, dict(zip(inos, contents, strict=True)))


def _product(choices: list[tuple[bytes, ...]], budget: int, rng: random.Random) -> Iterator[tuple[bytes, ...]]:
    """Yield combinations: all if they are few, else each choice once with the rest synced, cached and by chance."""
    size = 1
    for states in choices:
        size *= len(states)
    if size <= budget:
        yield from itertools.product(*choices)
        return
    yield tuple(states[0] for states in choices)
    yield tuple(states[min(1, len(states) - 1)] for states in choices)
    longest = max(range(len(choices)), key=lambda index: len(choices[index]))
    for content in choices[longest][: max(3, budget // 3)]:
        for pick in (0, 1, None):
            rest = [rng.choice(states) if pick is None else states[min(pick, len(states) - 1)] for states in choices]
            rest[longest] = content
            yield tuple(rest)
