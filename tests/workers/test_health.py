"""What a health file says to who reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import pytest

from asyncjobs import AsyncJobs
from asyncjobs.workers.health import DEAD_SECONDS, beat, read_health, write_beat


def test_a_process_is_live_while_it_beats_and_ready_while_its_store_answers(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_beat(one, "ok")
    assert not read_health([one, two]).live
    write_beat(two, "it is away")
    health = read_health([one, two])
    assert (health.live, health.ready) == (True, False)
    write_beat(two, "ok")
    assert read_health([one, two]).ready


@pytest.mark.parametrize("text", ["", "{", json.dumps({"at": 0.0, "store": "ok"})])
def test_what_was_not_written_lately_and_whole_is_no_sign_of_life(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    assert not read_health([file]).live


def test_a_process_has_the_time_of_a_lease_between_two_beats(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for age, live in ((DEAD_SECONDS - 5, True), (DEAD_SECONDS + 5, False)):
        file.write_text(json.dumps({"at": time.time() - age, "store": "ok"}))
        assert read_health([file]).live is live


@pytest.mark.anyio
async def test_a_store_that_is_away_shows_and_the_file_goes_with_the_process(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    jobs = AsyncJobs("memory://")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat, file, jobs)
        with anyio.fail_after(30):
            while not file.exists():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        health = read_health([file])
        assert (health.live, health.ready) == (True, False)
        assert "not open" in str(health.document)
        tasks.cancel_scope.cancel()
    assert not file.exists()
