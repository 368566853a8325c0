"""The health file of a worker process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs
from asyncjobs.workers.health import (
    DEAD_AFTER_SECONDS,
    read_health,
    write_heartbeat,
    write_heartbeats,
)
from tests.waiting import until


def test_a_process_is_live_with_a_heartbeat_and_ready_if_its_store_responds(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_heartbeat(one, "ok")
    assert not read_health([one, two]).live
    write_heartbeat(two, "it is away")
    health = read_health([one, two])
    assert (health.live, health.ready) == (True, False)
    write_heartbeat(two, "ok")
    assert read_health([one, two]).ready


@pytest.mark.parametrize("text", ["", "{", json.dumps({"at": 0.0, "store": "ok"})])
def test_a_partial_or_old_heartbeat_is_not_live(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    assert not read_health([file]).live


def test_a_heartbeat_counts_for_the_length_of_a_lease(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for age, live in ((DEAD_AFTER_SECONDS - 5, True), (DEAD_AFTER_SECONDS + 5, False)):
        file.write_text(json.dumps({"at": time.time() - age, "store": "ok"}))
        assert read_health([file]).live is live


@pytest.mark.anyio
async def test_an_unavailable_store_is_not_ready_and_the_file_is_removed_at_the_end(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    jobs = AsyncJobs("memory://")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_heartbeats, file, jobs)
        await until(file.exists)
        health = read_health([file])
        assert (health.live, health.ready) == (True, False)
        assert "not open" in str(health.document)
        tasks.cancel_scope.cancel()
    assert not file.exists()
