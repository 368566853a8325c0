"""Flask under its usual servers: each process starts its own event loop on demand."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytestmark = pytest.mark.every_store(without="memory")

Serve = Callable[..., Any]

BIND = ("--bind", "127.0.0.1:{port}", "--graceful-timeout", "5")
SERVERS = {
    "sync": ("gunicorn", "served:flask_app()", *BIND),
    "sync-2": ("gunicorn", "served:flask_app()", *BIND, "--workers", "2"),
    "gthread": ("gunicorn", "served:flask_app()", *BIND, "--threads", "4", "-k", "gthread"),
    "preload": ("gunicorn", "served:flask_app()", *BIND, "--workers", "2", "--preload"),
    "preload-gthread": (
        *("gunicorn", "served:flask_app()", *BIND),
        *("--workers", "2", "--threads", "2", "-k", "gthread", "--preload"),
    ),
    "used-before-the-fork": (
        *("gunicorn", "served:flask_app_used_before_the_fork(closed=True)", *BIND),
        *("--workers", "2", "--preload"),
    ),
}


@pytest.fixture(scope="session", params=SERVERS)
def gunicorn(request: pytest.FixtureRequest) -> Sequence[str]:
    return SERVERS[request.param]


@pytest.fixture
def server(serve: Serve, gunicorn: Sequence[str]) -> Any:
    return serve(*gunicorn)


def test_gunicorn_workers_run_jobs_and_drain_at_sigterm(server: Any) -> None:
    urls = [server.submit(name) for name in ("nap", "doze") for _ in range(6)]
    ended = [server.ended(url) for url in urls]
    assert {job["status"] for job in ended} == {"completed"}
    assert server.pid not in {job["result"]["pid"] for job in ended}

    running = [server.submit(name, seconds=0.4) for name in ("nap", "doze")]
    for url in running:
        server.eventually(lambda url=url: server.job(url)["status"] == "processing")
    assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in server.log

    server.start()
    for url in running:
        job = server.job(url)
        assert (job["status"], job["attempt"]) == ("completed", 1)


def test_held_requests_leave_threads_for_other_requests(serve: Serve) -> None:
    server = serve(*SERVERS["gthread"])
    url = server.submit("outside")
    waits = {"Prefer": "wait=25"}
    with ThreadPoolExecutor(16) as clients:
        held = [clients.submit(server.client.get, url, headers=waits) for _ in range(16)]
        server.eventually(lambda: sum(one.done() for one in held) >= 13)
        assert server.client.get("/").text
        still = [one for one in held if not one.done()]
        assert len(still) == 3
        server.client.delete(url)
    assert [one.result().headers.get("preference-applied") for one in still] == ["wait=25"] * 3


def test_a_server_with_one_thread_holds_no_request(serve: Serve) -> None:
    server = serve(*SERVERS["sync"])
    url = server.submit("outside")
    answer = server.client.get(url, headers={"Prefer": "wait=25"})
    assert "preference-applied" not in answer.headers
    assert server.client.get(f"{url}/events").text.startswith("retry: 6000\n\n")


@pytest.mark.every_store(without="sqlite")  # its warning about the inherited queue
def test_a_forked_worker_with_an_inherited_open_queue_runs_jobs(
    serve: Serve,
) -> None:
    used = "served:flask_app_used_before_the_fork(closed=False)"
    server = serve("gunicorn", used, *BIND, "--preload")
    assert server.ended(server.submit())["result"]["pid"] != server.pid
    assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in server.log


def test_jobs_run_under_flasks_development_server(serve: Serve) -> None:
    server = serve("flask", "--app", "served:flask_app", "run", "--port", "{port}")
    urls = [server.submit(name) for name in ("nap", "doze") for _ in range(6)]
    assert {server.ended(url)["status"] for url in urls} == {"completed"}
    running = server.submit(seconds=0.4)
    server.eventually(lambda: server.job(running)["status"] == "processing")
    server.stop(signal.SIGINT)
    assert "Traceback" not in server.log
    server.start()
    job = server.job(running)
    assert (job["status"], job["attempt"]) == ("completed", 1)
