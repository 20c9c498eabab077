# ruff: noqa: INP001, T201 - a script that prints
"""A build console on logmark: workers that report, a viewer that follows, and a restart in the middle.

    python examples/embed.py [DIRECTORY]

Without a directory it uses a temporary one. Run it twice with one: the second run goes on where the first has stopped.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading

import logmark

JOBS = ("compile", "lint", "package")
STEPS = 4


def work(session: logmark.Session, job_id: str) -> None:
    """Report the steps of one job; runs in a thread of its own."""
    job = session.job(job_id)
    for step in range(1, STEPS + 1):
        job.append("job.event", {"kind": "progress", "step": step, "of": STEPS})
    job.append("job.result", {"final_status": "success"})


def follow(session: logmark.Session, from_seq: int) -> None:
    """Print a session from some number on, until the console is closed."""
    with session.subscribe(from_seq) as viewer:
        for event in viewer:
            print(f"  {event.event_seq:4}  {event.type:16} {event.job_id or '-':8} {event.payload}")
            if event.type == "console.closed":
                break


def run_builds(store: str) -> None:
    """Run all jobs at once and watch them."""
    with logmark.open(store) as runtime:
        session = runtime.session("console")
        opened = session.append("console.opened", {"jobs": list(JOBS)})
        viewer = threading.Thread(target=follow, args=(session, opened))
        workers = [threading.Thread(target=work, args=(session, job_id)) for job_id in JOBS]
        for thread in (viewer, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        # Not waiting for each is quicker; the events of one thread keep their order all the same.
        notes = [session.submit("note.added", {"text": text}) for text in ("all built", "nothing left to do")]
        closed = session.append("console.closed")
        viewer.join()
        print(f"notes {[note.result() for note in notes]}, closed with event {closed}")


def look_back(store: str) -> None:
    """Open the store again, as after a restart: everything is there, and so are the marks."""
    with logmark.open(store, create=False) as runtime:
        session = runtime.session("console")
        print(f"after a restart: {session.last_seq} events")
        for mark in session.jobs():
            print(f"  {mark.job_id:8} {mark.status:8} {mark.count} events, {mark.first_seq} to {mark.last_seq}")
        page = session.page(limit=2)
        print(f"  the newest: {[event.payload for event in page.events]}, older ones: {page.has_more}")
        try:
            session.append("note.added", {"text": "too late"}, expected_seq=session.last_seq - 1)
        except logmark.WrongExpectedSeq as error:
            print(f"  refused: {error}")


def main() -> None:
    """Run the example."""
    with contextlib.ExitStack() as stack:
        store = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory())
        run_builds(store)
        look_back(store)


if __name__ == "__main__":
    main()
