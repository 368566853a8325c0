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
from pathlib import Path
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


def test_the_files_of_a_job_are_saved_however_it_ends(served: Served, tmp_path: Path) -> None:
    whole = served.submit("saves", sizes={"a.bin": 3, "b.bin": 0}).status_url
    result = follow("--save", str(tmp_path), whole)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'a.bin'}\n{tmp_path / 'b.bin'}\n"
    assert (tmp_path / "a.bin").read_bytes() == bytes(3)
    failed = served.submit("full", sizes={"a.bin": 5}).status_url
    result = follow("--save", str(tmp_path), failed)
    assert (result.exit_code, result.stderr) == (1, "Error: The disk is full.\n")
    assert (tmp_path / "a.bin").read_bytes() == bytes(5)
    assert follow("--save", str(tmp_path), "--json", whole).exit_code == 2


def test_a_file_of_a_hostile_name_is_not_saved(tmp_path: Path) -> None:
    for name in (r'"../a\u001b"', r'"a\u0000"'):
        with answering(
            ended("failed", files=f'[{{"name": {name}, "size": 1, "url": "/a"}}]')
        ) as url:
            result = follow("--save", str(tmp_path), url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert "\x1b" not in result.stderr
        assert "a path" in result.stderr


def test_a_timeout_is_reported(gate: ServedJob) -> None:
    result = follow("--timeout", "0.3", gate.status_url)
    assert (result.exit_code, "had not ended after 0.3 s" in result.stderr) == (1, True)


def test_an_unknown_job_exits_with_4(served: Served) -> None:
    assert follow(f"{served.url}/api/jobs/job_x").exit_code == 4


@contextmanager
def answering(body: bytes, *statuses: int, media_type: str = "application/json") -> Generator[str]:
    """Answer each request with the same body, and with the next status or else the last one."""
    left = list(statuses or (200,))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Content-Type", media_type)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/api/jobs/job_1"
        server.shutdown()


def ended(status: str, **members: str) -> bytes:
    """Return the document of a job that has ended; the members are JSON."""
    more = "".join(f', "{name}": {text}' for name, text in members.items())
    return f'{{"jobId": "job_1", "status": "{status}", "version": 1{more}}}'.encode()


HOSTILE = r'"\u001b]0;owned\u0007 \u009b2J \ud800 \u202e"'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (ended("failed", error=HOSTILE), 200, 1),
        (ended("failed", error=HOSTILE, errorCode=HOSTILE), 200, 1),
        (ended("cancelled").replace(b'"job_1"', HOSTILE.encode()), 200, 1),
        (ended("completed", result=HOSTILE), 200, 0),
        (b'{"detail": %s}' % HOSTILE.encode(), 404, 4),
        (b'{"detail": %s}' % HOSTILE.encode(), 400, 1),
        (ended("processing").replace(b"processing", b"\x9b2J"), 200, 1),
    ],
    ids=["error", "code", "id", "result", "not-found", "refused", "status"],
)
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["plain", "json"])
def test_no_unprintable_character_of_the_server_reaches_the_terminal(
    body: bytes, status: int, code: int, more: tuple[str, ...]
) -> None:
    with answering(body, status) as url:
        result = follow(url, *more)
    assert result.exit_code == code
    assert all(char.isprintable() or char == "\n" for char in result.output)


def test_a_result_is_printed_in_ascii() -> None:
    with answering(ended("completed", result=r'"\ud800 ä"')) as url:
        result = follow(url)
    assert result.stdout == '"\\ud800 \\u00e4"\n'


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize("depth", [300, 900, 950, 980, 5_000, 200_000])
def test_a_deep_result_is_printed_or_refused_in_a_sentence(
    depth: int, more: tuple[str, ...]
) -> None:
    with answering(ended("completed", result="[" * depth + "]" * depth)) as url:
        result = follow(url, *more)
    if result.exit_code == 0:
        assert result.stdout.count("[") == depth
    else:
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


def test_a_result_with_a_number_beyond_a_float_is_refused() -> None:
    with answering(ended("completed", result="1e999")) as url:
        result = follow(url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("body", "code", "stdout", "stderr"),
    [
        (b"\xff\xfe", 1, "", "Error: The result is neither JSON nor text.\n"),
        (b"12 rows", 0, '"12 rows"\n', ""),
    ],
)
def test_a_result_of_another_media_type_is_printed_if_it_is_text(
    body: bytes, code: int, stdout: str, stderr: str
) -> None:
    with answering(body, 202, 200, media_type="image/png") as url:
        result = follow(url)
    assert (result.exit_code, result.stdout, result.stderr) == (code, stdout, stderr)


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
