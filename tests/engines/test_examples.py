"""The short example of each engine, from submission to result, with the engine's real workers."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from procrastinate.schema import SchemaManager
from starlette.testclient import TestClient

from tests.conftest import PostgresServer
from tests.engines.engine import EXAMPLES, Urls, WorkerProcesses, postgres_database

FOLDER = str(EXAMPLES)
WORKERS = {
    "dramatiq_app": ("dramatiq", "--path", FOLDER, "--", "dramatiq_app"),
    "procrastinate_app": ("procrastinate", "--app=procrastinate_app.engine", "worker"),
    "rq_app": (
        *("rq.cli", "worker", "--path", FOLDER, "--config", "rq_app"),
        *("--worker-class", "rq.worker.SimpleWorker"),
    ),
    "saq_app": ("saq", "saq_app.settings"),
    "taskiq_app": ("taskiq", "worker", "--workers=1", "--app-dir", FOLDER, "taskiq_app:broker"),
}


@pytest.mark.parametrize("name", WORKERS)
def test_an_example_runs_its_report_in_a_worker(
    name: str,
    own_urls: Urls,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    with postgres_database(postgres, SchemaManager.get_schema()) as database:
        environment = {
            "BROKER": own_urls.broker,
            "STORE": own_urls.store,
            "DATABASE_URL": database,
        }
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        with WorkerProcesses(WORKERS[name], tmp_path / "log") as processes:
            processes.start()
            example = import_module(name)
            with TestClient(example.app) as client:
                accepted = client.post("/api/reports", json={"pages": 4})
                assert accepted.status_code == 202
                document = accepted.json()
                assert client.portal is not None
                client.portal.call(example.jobs.wait, document["jobId"])
                status = client.get(document["statusUrl"]).json()
    assert (status["status"], status["result"]) == ("completed", 4)
    assert status["detail"]["current"] == 4
