"""The short example of an engine, from the submission to the end, with its real workers."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.engines.conftest import Launch

EXAMPLES = str(Path(__file__).parents[2] / "examples")


def follow_report(
    name: str, worker: tuple[str, ...], launch: Launch, environment: dict[str, str]
) -> None:
    """Submit a report to the app of an example, and follow it to its end."""
    with pytest.MonkeyPatch.context() as patch, launch(*worker, **environment) as fleet:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        fleet.start()
        example = import_module(name)
        try:
            with TestClient(example.app) as client:
                accepted = client.post("/api/reports", json={"pages": 4})
                assert accepted.status_code == 202
                document = accepted.json()
                assert client.portal is not None
                client.portal.call(example.jobs.wait, document["jobId"])
                status = client.get(document["statusUrl"]).json()
                assert (status["status"], status["result"]) == ("completed", 4)
                assert status["detail"]["current"] == 4
        finally:
            del sys.modules[name]
