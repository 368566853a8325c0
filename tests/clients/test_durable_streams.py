"""The conformance suite of Durable Streams and its clients, as published."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any
from urllib.parse import urlsplit

import durable_streams
import httpx
import httpx2
import pytest

from asyncjobs.testing import TcpProxy
from tests.clients.conftest import Served, serving_asgi
from tests.clients.durable_writer import WriterApp
from tests.npm import NODE, install_packages

SUITE = Path(__file__).parent / "durable"

_PRODUCERS = "Idempotent producers write over HTTP; what a job emits is fenced by its attempt."
_EXPIRY = "Writers set when a stream expires; output expires with its job."
_FORKS = "A fork is a stream of another writer; output is written by its job alone."

#: The groups of tests that are left out, each with a test that fails, and why. All others pass.
LEFT_OUT = {
    "TTL and Expiry Validation": _EXPIRY,
    "TTL and Expiry Edge Cases": _EXPIRY,
    "TTL Expiration Behavior": _EXPIRY,
    "HEAD Metadata Edge Cases": _EXPIRY,
    "Idempotent Producer Operations": _PRODUCERS,
    "Stream Closure > Idempotent Producers with Stream Closure": _PRODUCERS,
    "Stream Closure > Edge Cases > close-with-different-body-dedup": _PRODUCERS,
    "Fork - ": _FORKS,
    "Reserved subscription APIs": "Subscriptions need a service of their own; jobs have webhooks.",
}


@pytest.fixture(scope="module")
def server() -> Generator[str]:
    with serving_asgi(WriterApp(), Served()) as url:
        yield url


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("durable") / "suite"
    copytree(SUITE, folder, ignore=ignore_patterns("node_modules"))
    install_packages(folder)
    return folder


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_the_conformance_suite_of_durable_streams_passes(server: str, packages: Path) -> None:
    vitest = "node_modules/vitest/vitest.mjs"
    subprocess.run(
        [NODE, vitest, "run", "suite.test.mjs", "--reporter=json", "--outputFile=report.json"],
        cwd=packages,
        env={"STREAMS_URL": server},
        check=False,  # the report has what failed
        capture_output=True,
    )
    report = json.loads((packages / "report.json").read_text("utf-8"))
    found = [one for file in report["testResults"] for one in file["assertionResults"]]
    assert len(found) == 338
    failed = {
        " > ".join([*one["ancestorTitles"], one["title"]]): one["failureMessages"]
        for one in found
        if one["status"] != "passed"
    }
    unexpected = {name: why for name, why in failed.items() if not name.startswith(tuple(LEFT_OUT))}
    assert unexpected == {}
    # The table has no group that passes.
    assert [one for one in LEFT_OUT if not any(name.startswith(one) for name in failed)] == []
    # 109 test what jobs do not have.
    assert len(found) - len(failed) >= 225


class Writer:
    """Writes a stream of numbers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._next = 0
        self._send("PUT", b"")

    def add(self, count: int) -> None:
        """Append the next numbers."""
        numbers = range(self._next, self._next + count)
        self._next += count
        self._send("POST", json.dumps([*numbers]).encode())

    def close(self) -> None:
        """End the stream."""
        self._send("POST", b"", ("Stream-Closed", "true"))

    def _send(self, method: str, body: bytes, *headers: tuple[str, str]) -> None:
        given = {"Content-Type": "application/json", **dict(headers)}
        httpx2.request(method, self.url, content=body, headers=given).raise_for_status()


@contextmanager
def cutting(url: str) -> Generator[TcpProxy]:
    parts = urlsplit(url)
    with TcpProxy(str(parts.hostname), parts.port or 0) as proxy:
        yield proxy


@pytest.mark.thorough
@pytest.mark.parametrize("live", ["auto", "sse", "long-poll"])
def test_npms_client_reads_a_stream_to_its_end_through_a_cut_connection(
    server: str, packages: Path, live: str
) -> None:
    writer = Writer(f"{server}/v1/stream/npm-{live}")
    writer.add(3)
    items: list[int] = []
    with (
        cutting(server) as proxy,
        subprocess.Popen(
            [NODE, "read.mjs", proxy.through(writer.url), live],
            cwd=packages,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            items += json.loads(process.stdout.readline())["items"]
            proxy.cut()
            writer.add(3)
            items += json.loads(process.stdout.readline())["items"]
            proxy.cut()
            writer.add(3)
            writer.close()
            for line in process.stdout:
                items += json.loads(line)["items"]
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert items == [*range(9)]


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_pypis_client_reads_a_stream_to_its_end_through_cut_connections(
    server: str, live: Any
) -> None:
    writer = Writer(f"{server}/v1/stream/pypi-{live}")
    writer.add(3)
    items: list[int] = []
    offset, cuts, closed = "-1", 0, False
    with cutting(server) as proxy:
        while not closed:
            try:
                with durable_streams.stream(
                    proxy.through(writer.url), offset=offset, live=live
                ) as read:
                    for event in read.iter_events(mode="json"):
                        data: Any = event.data
                        items += data if isinstance(data, list) else [data]
                        offset = event.next_offset
                        if len(items) == 3 * (cuts + 1) and cuts < 2:
                            cuts += 1
                            proxy.cut()
                            writer.add(3)
                        elif len(items) == 9:
                            writer.close()
                            break
            except (httpx.TransportError, durable_streams.DurableStreamError):
                continue
            # This version of the client does not know that streams end.
            closed = httpx2.head(writer.url).headers.get("stream-closed") == "true"
    assert items == [*range(9)]
