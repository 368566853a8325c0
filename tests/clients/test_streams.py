"""httpx-sse and websockets, on a job that a test lets go on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import websockets.asyncio.client as in_loop
import websockets.sync.client as in_thread
from httpx_sse import connect_sse
from websockets.exceptions import ConnectionClosedOK

pytestmark = pytest.mark.every_store


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


def test_websockets_reads_documents_to_the_jobs_end_and_a_clean_close(gate: Any) -> None:
    with in_thread.connect(gate.socket_url) as socket:
        documents = [json.loads(socket.recv(timeout=120))]
        gate.release()
        documents += map(json.loads, socket)
        with pytest.raises(ConnectionClosedOK):
            socket.recv()
    assert_whole(documents, gate)
    assert socket.close_code == 1000


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the only loop that websockets knows
async def test_websockets_on_a_loop_reads_documents_to_the_jobs_end(gate: Any) -> None:
    async with in_loop.connect(gate.socket_url) as socket:
        documents = [json.loads(await socket.recv())]
        gate.release()
        documents += [json.loads(text) async for text in socket]
    assert_whole(documents, gate)
    assert socket.close_code == 1000
