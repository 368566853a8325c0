"""`asyncjobs follow`: follow a job by its status URL from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
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


@contextmanager
def listening(heard: list[tuple[str | None, str | None]]) -> Generator[str]:
    """Serve a job that does not exist, and collect two headers of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.headers["Authorization"], self.headers["X-Tenant"]))
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/api/jobs/job_1"
        server.shutdown()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Authorization: Bearer a b", ("Bearer a b", None)),
        ("Authorization:Bearer a:b", ("Bearer a:b", None)),
        ("Authorization: Bearer a b\nX-Tenant: north", ("Bearer a b", "north")),
        ("Authorization: Bearer a b\n", ("Bearer a b", None)),
        ("\r\n Authorization: Bearer a b \r\n\r\nX-Tenant: north\r\n", ("Bearer a b", "north")),
        ("X-Tenant:", (None, "")),
        ("", (None, None)),
        ("\n", (None, None)),
    ],
)
def test_headers_are_read_from_the_environment_one_per_line(
    given: str, wanted: tuple[str | None, str | None]
) -> None:
    heard: list[tuple[str | None, str | None]] = []
    with listening(heard) as url:
        assert follow(url, env={"ASYNCJOBS_HEADER": given}).exit_code == 4
    assert heard[0] == wanted


def test_headers_of_the_command_line_replace_those_of_the_environment() -> None:
    heard: list[tuple[str | None, str | None]] = []
    with listening(heard) as url:
        options = ("--header", "Authorization: Bearer c", "--header", "X-Tenant: south")
        follow(*options, url, env={"ASYNCJOBS_HEADER": "Authorization: Bearer a"})
    assert heard[0] == ("Bearer c", "south")


@pytest.mark.parametrize(
    "header", ["s3cret", ": s3cret", "Authorization : s3cret", "A: s3cret ä", "ä: s3cret"]
)
@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_malformed_header_is_rejected_and_not_shown(header: str, way: str) -> None:
    given = ("--header", header) if way == "option" else ()
    env = {} if way == "option" else {"ASYNCJOBS_HEADER": f"X-Tenant: north\n{header}"}
    result = follow(*given, "http://127.0.0.1:1/api/jobs/job_1", env=env)
    assert (result.exit_code, "malformed" in result.stderr) == (2, True)
    assert "s3cret" not in result.output
