"""What every section gets, and how participants are opened for one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Generator

from ..harness import Sample, Shape, check_waited, drive, run_bout, verify
from ..participants import PEERS, Logmark, Missing, Participant, Raw, label_of, make
from ..progress import Progress
from ..report import Row, rows_of
from ..slow_disk import EXTRA_US

__all__ = ["Context", "Field", "Section"]


@dataclasses.dataclass(slots=True)
class Context:
    """How much to do, with whom, and where."""

    directory: str
    peers: tuple[str, ...] = ()
    rounds: int = 5
    seconds: float = 0.3
    quick: bool = False
    full: bool = False
    slow_disk: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    missing: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Peers that could not take part, and why."""
    _places: int = 0

    def place(self, name: str) -> str:
        """Return a new empty directory."""
        self._places += 1
        path = os.path.join(self.directory, f"{self._places:03}-{name}")
        os.mkdir(path)
        return path

    def clear(self) -> None:
        """Delete the stores, and let the disk come to rest before the next section."""
        for name in os.listdir(self.directory):
            shutil.rmtree(os.path.join(self.directory, name))
        os.sync()

    def amount(self, normal: int, quick: int) -> int:
        """Choose between the sizes of a normal and a quick run."""
        return quick if self.quick else normal

    def check_slowed(self, participant: Participant) -> None:
        """See that the disk is slowed for a participant too, if it is for the others.

        Raises:
            Missing: it cannot be.
        """
        if self.slow_disk and not participant.syncs_through_libc:
            raise Missing("its server does not sync through the C library, so its disk cannot be slowed")

    @contextlib.contextmanager
    def field(self, wanted: Callable[[Participant], bool] | None = None) -> Generator[Field, None, None]:
        """Open the limit, logmark and those peers that are wanted; close them all in the end."""
        with contextlib.ExitStack() as stack:
            here: list[Participant] = []
            directories: dict[str, str] = {}
            for participant in (Raw(), Logmark()):
                directories[participant.name] = self.place(participant.name)
                participant.open(directories[participant.name])
                stack.callback(participant.close)
                here.append(participant)
            for name in self.peers:
                if name in self.missing:
                    continue
                self.progress.step(f"opening {name}")
                try:
                    peer = make(name)
                    if wanted is not None and not wanted(peer):
                        continue
                    self.check_slowed(peer)
                    stack.callback(_close, peer)
                    peer.open(self.place(name))
                except Missing as error:
                    self.missing[name] = str(error)
                except Exception as error:
                    self.missing[name] = f"failed: {error!r}"
                else:
                    here.append(peer)
            yield Field(self, here, directories)


def _close(peer: Participant) -> None:
    """Close a peer; what it has to say about that is no reason to lose everybody's results."""
    try:
        peer.close()
    except Exception as error:
        print(f"{peer.name}: when closing: {error!r}", file=sys.stderr)


@dataclasses.dataclass(slots=True)
class Field:
    """The participants that are open, the limit first."""

    context: Context
    participants: list[Participant]
    _directories: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    names_missing: bool = True
    """Whether those peers are named that could not be opened."""
    _bouts: int = 0

    def directory_of(self, participant: Participant) -> str:
        """Return where the limit or logmark was opened."""
        return self._directories[participant.name]

    def peers(self) -> set[str]:
        """Return the labels of the peers that are open."""
        return {participant.label for participant in self.participants if participant.name in PEERS}

    def bout(self, section: str, shape: Shape, *, limit: Shape | None = None, title: str = "") -> list[Row]:
        """Let everybody do the same work in turns, and see that it is all there afterwards.

        Args:
            section: the heading.
            shape: the work.
            limit: what the first participant does instead, when it cannot do the same.
            title: what stands before the name of the work.
        """
        self._bouts += 1
        context = self.context
        label = title + shape.label
        context.progress.begin(f"{section}: {label}")
        session_ids = [f"s{self._bouts}-{number}" for number in range(shape.sessions)]
        acknowledged: dict[str, dict[str, int]] = {}

        def contender(participant: Participant, work: Shape) -> Callable[[float], Sample]:
            done = acknowledged.setdefault(participant.label, {})

            def work_for(seconds: float) -> Sample:
                sample = drive(participant, work, session_ids, seconds)
                for session_id, count in sample.by_session.items():
                    done[session_id] = done.get(session_id, 0) + count
                return sample

            return work_for

        contenders: dict[str, Callable[[float], Sample]] = {}
        for participant in self.participants:
            if shape.window and not (participant.has_submit or (limit and participant is self.participants[0])):
                continue
            if shape.batch > 1 and not participant.has_batches:
                continue
            work = limit if limit is not None and participant is self.participants[0] else shape
            contenders[participant.label] = contender(participant, work)
        bout = run_bout(
            contenders,
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
            may_fail=self.peers(),
        )
        context.progress.step("looking whether all is there")
        for participant in self.participants:
            if participant.label not in bout.samples:
                continue
            try:
                verify(participant, acknowledged[participant.label])
                if context.slow_disk:
                    check_waited(participant.label, bout.samples[participant.label], EXTRA_US)
            except Exception as error:
                if participant.name not in PEERS:
                    raise
                bout.drop(participant.label, error)
        missing = self.missing_rows(section, label) if self.names_missing else []
        return rows_of(bout, section, label) + missing

    def missing_rows(self, section: str, work: str) -> list[Row]:
        """Return a row that says why for each peer that is not here."""
        return [
            Row(section=section, work=work, participant=label_of(name), value=None, note=reason)
            for name, reason in self.context.missing.items()
        ]


Section = Callable[[Context], list[Row]]
