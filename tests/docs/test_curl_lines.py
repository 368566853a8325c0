"""Runs the curl lines of the HTTP reference against a real server, in order.

The lines are translated to requests, since curl is not installed everywhere. A comment after each
line has the expected status. Streams are read to their end.
"""

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from string import Template

import httpx2
import pytest

pytestmark = pytest.mark.every_store(without="memory")

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^curl (?P<arguments>.+)  # (?P<status>\d{3})$", re.MULTILINE)
PATIENCE_SECONDS = 10


@pytest.fixture
def client(tmp_path: Path, new_url: Callable[[], str]) -> Generator[httpx2.Client]:
    """Start the FastAPI example; requests wait in the socket's backlog until it accepts them."""
    own = {"EXPORTS_STORE": new_url(), "EXPORTS_FOLDER": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = str(listening.fileno())
        command = [
            "uvicorn",
            "--app-dir",
            str(ROOT / "examples"),
            "fastapi_app:app",
            "--fd",
            number,
        ]
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--log-level", "error"],
            env=os.environ | own,
            pass_fds=[listening.fileno()],
        )
        host, port = listening.getsockname()
    try:
        with httpx2.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
            yield client
    finally:
        server.terminate()
        server.wait()


def request_of(arguments: str, variables: Mapping[str, str]) -> httpx2.Request:
    curl = argparse.ArgumentParser()
    curl.add_argument("-i", action="store_true")
    curl.add_argument("-N", action="store_true")
    curl.add_argument("-I", dest="method", action="store_const", const="HEAD")
    curl.add_argument("-X", dest="method")
    curl.add_argument("-H", dest="headers", action="append", default=[])
    curl.add_argument("-d", dest="data")
    curl.add_argument("url")
    # Like a shell: quotes inside a variable's value are not syntax.
    words = [Template(word).safe_substitute(variables) for word in shlex.split(arguments)]
    asked = curl.parse_args(words)
    method = asked.method or ("POST" if asked.data else "GET")
    headers = dict(header.split(": ", 1) for header in asked.headers)
    return httpx2.Request(method, asked.url, headers=headers, content=asked.data)


def test_curl_lines_get_the_status_in_their_comment(client: httpx2.Client) -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    lines = LINE.findall(page)
    assert len(lines) == page.count("\ncurl ")
    variables = {"HOST": str(client.base_url).rstrip("/")}
    for arguments, status in lines:
        request = request_of(arguments, variables)
        patience = time.monotonic() + PATIENCE_SECONDS
        answer = client.send(request)
        # The job needs time to end: ask again.
        while answer.status_code != int(status) and answer.status_code == 202:
            assert time.monotonic() < patience, arguments
            answer = client.send(request)
        assert answer.status_code == int(status), (arguments, answer.text)
        if "/api/exports" in arguments and answer.status_code == 202:
            variables["JOB"] = answer.json()["jobId"]
        if etag := answer.headers.get("etag"):
            variables |= {"ETAG": etag, "VERSION": etag.strip('"')}
