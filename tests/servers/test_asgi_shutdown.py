"""A server that gets a stop signal finishes short jobs and releases the others."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = pytest.mark.every_store(without="memory")


def begin(server: Any, name: str, **payload: Any) -> str:
    url: str = server.submit(name, **payload)
    server.eventually(lambda: server.job(url)["status"] == "processing")
    return url


def test_short_jobs_are_finished_and_long_ones_released(uvicorn: Any) -> None:
    short = [begin(uvicorn, name, seconds=0.5) for name in ("nap", "doze")]
    long = [begin(uvicorn, name, seconds=60, once=True) for name in ("nap", "doze")]
    # More jobs than the process has slots: the others wait in it and in the store.
    waiting = [uvicorn.submit(seconds=0.2) for _ in range(40)]
    assert uvicorn.stop(signal.SIGTERM) in {0, -signal.SIGTERM}
    assert "Traceback" not in uvicorn.log

    uvicorn.start()
    for url in short:
        job = uvicorn.job(url)
        assert (job["status"], job["attempt"]) == ("completed", 1)
    for url in long:
        job = uvicorn.ended(url)
        assert (job["status"], job["attempt"]) == ("completed", 2)
    assert {uvicorn.ended(url)["status"] for url in waiting} == {"completed"}


def test_a_released_job_starts_elsewhere_before_its_lease_lapses(
    patient_uvicorn: Any,
) -> None:
    url = begin(patient_uvicorn, "nap", seconds=60, once=True)
    patient_uvicorn.stop(signal.SIGTERM)
    patient_uvicorn.start()
    assert patient_uvicorn.ended(url)["attempt"] == 2


def test_a_job_with_a_stop_request_is_not_released(uvicorn: Any) -> None:
    url = begin(uvicorn, "nap", seconds=60)
    assert uvicorn.client.delete(url).status_code == 202
    uvicorn.stop(signal.SIGTERM)
    uvicorn.start()
    assert uvicorn.ended(url)["status"] == "cancelled"
