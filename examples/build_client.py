# ruff: noqa: INP001, T201 - a script that prints
"""A client for ``build_agents.py``, with the published ARCP client for Python (``agentruntimecontrolprotocol``).

    python build_client.py ws://127.0.0.1:7777/arcp TOKEN

It watches a build, loses its connection in the middle, resumes, and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from arcp import ClientInfo, SessionResume, SessionWelcomePayload, TransportClosed, WebSocketTransport
from arcp.client import ARCPClient


async def open_client(
    url: str, token: str, resume: SessionResume | None = None
) -> tuple[ARCPClient, WebSocketTransport, SessionWelcomePayload]:
    """Connect, and say who this is."""
    client = ARCPClient(client=ClientInfo(name="build-client", version="1.0"), token=token)
    transport = await WebSocketTransport.connect(url)
    welcome = await (client.connect(transport) if resume is None else client.resume(transport, resume=resume))
    return client, transport, welcome


async def run(url: str, token: str) -> None:
    """Submit a build, watch half of it, resume, and read the rest from its history."""
    client, transport, welcome = await open_client(url, token)
    names = [agent if isinstance(agent, str) else agent.name for agent in welcome.capabilities.agents]
    print(f"session {welcome.session_id}, agents: {', '.join(names)}")
    job = await client.submit(agent="build", input={"targets": ["core", "net", "ui", "docs"], "seconds_each": 0.1})
    async for event in job.events():
        print(f"  {event['kind']}: {event['body']}")
        if event["kind"] == "progress":
            break
    seen = client.latest_event_seq
    await transport.close()  # as a lost network would
    with contextlib.suppress(TransportClosed):
        await job.done

    again, _, _ = await open_client(
        url,
        token,
        SessionResume(session_id=welcome.session_id, resume_token=welcome.resume_token, last_event_seq=seen),
    )
    (entry,) = (await again.list_jobs()).jobs
    print(f"resumed after event {seen}; the job is {entry.status}")
    watched = await again.subscribe(job.job_id, history=True)
    events = [event["kind"] async for event in watched.handle.events()]
    print(f"  from its history and live: {', '.join(events)}")
    print(f"  the result: {(await watched.handle.done).result}")

    report = await again.submit(agent="report", input={"lines": 2000})
    text = await report.collect_chunks()
    result = await report.done
    print(f"{result.summary}: {len(text)} bytes, {text.count(b'well')} lines")
    await again.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2]))
