"""Every framework serves the files of jobs: whole, in parts, to their owner, in constant memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.adapters.asgi import StatusMonitor
from asyncjobs.files import FolderStorage
from tests.adapters.conftest import QUICK, OpenSite, Order, Site
from tests.waiting import until_sync

pytestmark = pytest.mark.every_store

TEXT = bytes(range(256)) * 4096
NAME = "März 50% 世界;\"a'.csv"


class Counting(FolderStorage):
    """Counts the contents that are open for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = 0
        self.read_bytes = 0

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        self.open += 1
        try:
            for chunk in super().read(key, start, stop):
                self.read_bytes += len(chunk)
                yield chunk
        finally:
            self.open -= 1


@pytest.fixture
def served(
    open_site: OpenSite, new_url: Callable[[], str], tmp_path: Path
) -> Generator[tuple[Site, Counting]]:
    storage = Counting(tmp_path / "files")
    jobs = AsyncJobs(new_url(), settings=QUICK, files=storage)

    @jobs.handler("export")
    async def export(order: Order, job: JobContext) -> None:
        await job.save_file(NAME, TEXT, media_type="text/csv; charset=utf-8")
        await job.save_file("large.bin", (b"x" * 1_000_000 for _ in range(order.count)))

    with open_site(jobs, identify=identified) as site:
        yield site, storage


def identified(request: Any) -> str:
    owner: str = request.headers.get("x-owner", "ann")
    return owner


def exported(site: Site, count: int = 1) -> dict[str, Any]:
    answer = site.client.post("/submit/export", json={"count": count})
    assert answer.status_code == 202, answer.text
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        job: dict[str, Any] = site.client.get(answer.json()["statusUrl"]).json()
        if job["status"] not in {"pending", "processing"}:
            assert job["status"] == "completed", job
            return job
    raise AssertionError("the job takes too long")


def test_a_file_is_downloaded_whole_and_in_parts(served: tuple[Site, Counting]) -> None:
    client = served[0].client
    job = exported(served[0])
    [file, _] = job["files"]
    assert (file["name"], file["size"]) == (NAME, len(TEXT))
    assert file["url"].startswith(f"/api/jobs/{job['jobId']}/files/M%C3%A4rz%2050%25%20")
    whole = client.get(file["url"])
    assert (whole.status_code, whole.content) == (200, TEXT)
    assert whole.headers["content-type"] == "text/csv; charset=utf-8"
    assert whole.headers["content-length"] == str(len(TEXT))
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert whole.headers["etag"] == f'"{sha256(TEXT).hexdigest()[:32]}"'
    assert "transfer-encoding" not in whole.headers
    assert re.search(r"filename\*=UTF-8''M%C3%A4rz%2050%25", whole.headers["content-disposition"])

    headers = {"Range": "bytes=1000000-", "If-Range": whole.headers["etag"]}
    part = client.get(file["url"], headers=headers)
    assert (part.status_code, part.content) == (206, TEXT[1_000_000:])
    assert part.headers["content-range"] == f"bytes 1000000-{len(TEXT) - 1}/{len(TEXT)}"
    assert part.headers["content-length"] == str(len(TEXT) - 1_000_000)

    head = client.head(file["url"], headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(TEXT))
    known = client.get(file["url"], headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    far = client.get(file["url"], headers={"Range": f"bytes={len(TEXT)}-"})
    assert (far.status_code, far.json()["code"]) == (416, "range_not_satisfiable")
    assert far.headers["content-range"] == f"bytes */{len(TEXT)}"


def test_only_the_owner_gets_a_file(served: tuple[Site, Counting]) -> None:
    job = exported(served[0])
    for file in job["files"]:
        answer = served[0].client.get(file["url"], headers={"X-Owner": "bob"})
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    "name", ["other.csv", "..%2F..%2Fetc%2Fpasswd", "%2e%2e", "large.bin%00", "%FF", "large.bin%0A"]
)
def test_a_name_that_was_not_saved_is_not_found(served: tuple[Site, Counting], name: str) -> None:
    job = exported(served[0])
    answer = served[0].client.get(f"/api/jobs/{job['jobId']}/files/{name}")
    assert answer.status_code == 404, answer.text


def test_a_client_that_leaves_closes_the_file(served: tuple[Site, Counting]) -> None:
    site, storage = served
    url = exported(site, count=60)["files"][1]["url"]
    with site.client.stream("GET", url) as answer:
        assert next(answer.iter_raw())
    until_sync(lambda: storage.open == 0)
    assert storage.read_bytes < 60_000_000


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_resumes_a_download(served: tuple[Site, Counting], tmp_path: Path) -> None:
    url = exported(served[0])["files"][0]["url"]
    target = tmp_path / "download"
    target.write_bytes(TEXT[:300_000])
    command = ["curl", "-sS", "--fail", "-C", "-", "-o", str(target), f"{served[0].url}{url}"]
    subprocess.run(command, check=True)
    assert target.read_bytes() == TEXT
    assert served[1].read_bytes == len(TEXT) - 300_000


@pytest.mark.own_store
def test_a_monitor_without_a_framework_serves_files(tmp_path: Path) -> None:
    jobs = AsyncJobs("memory://", settings=QUICK, files=tmp_path)

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("export.csv", TEXT)

    async def download() -> None:
        monitor = StatusMonitor(jobs, prefix="/jobs")
        async with monitor.running():
            handle = await jobs.enqueue(export)
            await handle.wait()
            transport = httpx2.ASGITransport(monitor)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                path = f"/jobs/{handle.id}/files/export.csv"
                answer = await client.get(path, headers={"Range": "bytes=-5"})
                assert (answer.status_code, answer.content) == (206, TEXT[-5:])

    for backend in ("asyncio", "trio"):
        anyio.run(download, backend=backend)


@pytest.mark.thorough
def test_a_large_file_passes_in_constant_memory(served: tuple[Site, Counting]) -> None:
    import tracemalloc  # noqa: PLC0415

    site, storage = served
    with _tracing() as peak:
        url = exported(site, count=200)["files"][1]["url"]
        received = 0
        with site.client.stream("GET", url) as answer:
            for chunk in answer.iter_raw():
                received += len(chunk)
    assert received == 200_000_000 == storage.read_bytes
    assert peak[0] < 30_000_000
    assert not tracemalloc.is_tracing()


@contextmanager
def _tracing() -> Generator[list[int]]:
    import tracemalloc  # noqa: PLC0415

    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
