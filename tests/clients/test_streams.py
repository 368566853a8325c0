"""httpx-sse and websockets follow a job to its end."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from websockets.asyncio.client import connect


def assert_whole(documents: list[dict[str, Any]], job: Any) -> None:
    """Check that documents lead from the waiting job to its end."""
    assert (documents[0]["status"], documents[0]["progress"]) == ("processing", 40)
    assert (documents[-1]["status"], documents[-1]["result"]) == ("completed", {"opened": job.name})


def test_httpx_sse_reads_events_to_the_jobs_end(gate: Any) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", gate.events_url) as source:
        incoming = source.iter_sse()
        # The pause before a reconnection comes first, alone.
        events = [one for one in [next(incoming), next(incoming)] if one.data]
        gate.release()
        events += incoming
    assert_whole([event.json() for event in events], gate)
    ids = [int(event.id) for event in events]
    assert ids == sorted(set(ids))
    again = {"Last-Event-ID": events[-1].id}
    assert httpx.get(gate.events_url, headers=again).status_code == 204


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # websockets runs on asyncio alone
async def test_websockets_reads_documents_to_the_jobs_end(gate: Any) -> None:
    async with connect(gate.socket_url) as socket:
        documents = [json.loads(await socket.recv())]
        gate.release()
        documents += [json.loads(text) async for text in socket]
    assert_whole(documents, gate)
    assert socket.close_code == 1000
