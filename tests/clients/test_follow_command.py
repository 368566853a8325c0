"""`asyncjobs follow`: a job at its status URL, from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner, Result

from asyncjobs.cli.app import commands

if TYPE_CHECKING:
    from tests.clients.conftest import Served, ServedJob


def follow(*words: str, **options: Any) -> Result:
    return CliRunner().invoke(commands, ["follow", *words], catch_exceptions=False, **options)


def test_the_result_is_printed_as_json(served: Served) -> None:
    url = served.submit("double", count=4).status_url
    result = follow(url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"doubled": 8}
    assert json.loads(follow("--json", url).stdout)["status"] == "completed"


def test_a_bar_is_drawn_on_a_terminal_and_stdout_has_the_result_only(served: Served) -> None:
    url = served.submit("double", count=4).status_url
    terminal, side = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncjobs", "follow", url],
            stdout=subprocess.PIPE,
            stderr=side,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )
        os.close(side)
        printed, _ = process.communicate(timeout=120)
        shown = screen.read(65536).decode()
    assert (process.returncode, json.loads(printed)) == (0, {"doubled": 8})
    assert "completed" in shown
    assert "━" in shown
    assert "100%" in shown


def test_a_failed_job_prints_its_message_and_exits_with_1(served: Served) -> None:
    result = follow(served.submit("full").status_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: The disk is full.\n"


def test_a_timeout_is_reported(gate: ServedJob) -> None:
    result = follow("--timeout", "0.3", gate.status_url)
    assert (result.exit_code, "had not ended after 0.3 s" in result.stderr) == (1, True)


def test_an_unknown_job_exits_with_4(served: Served) -> None:
    assert follow(f"{served.url}/api/jobs/job_x").exit_code == 4


def test_headers_come_from_the_environment_a_line_each() -> None:
    heard: list[tuple[str | None, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.headers["Authorization"], self.headers["X-Tenant"]))
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/api/jobs/job_1"
        given = "Authorization: Bearer a b\nX-Tenant: north"
        assert follow(url, env={"ASYNCJOBS_HEADER": given}).exit_code == 4
        server.shutdown()
    assert heard[0] == ("Bearer a b", "north")


def test_a_malformed_header_is_rejected(served: Served) -> None:
    result = follow("--header", "secret", served.url)
    assert (result.exit_code, "is no header" in result.stderr) == (2, True)
