"""Downloads of the Python clients from a server, through a proxy that cuts connections."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import flask
import httpx2
import pytest

from asyncjobs import AsyncJobs, JobContext, Retry
from asyncjobs.adapters import flask as on_flask
from asyncjobs.client import (
    AccessRefused,
    AsyncJobsClient,
    DownloadFailed,
    DownloadTimeout,
    JobNotFound,
    JobsClient,
    RemoteFile,
    RemoteFileChanged,
    RemoteFileNotFound,
)
from asyncjobs.files import FolderStorage
from asyncjobs.testing import TcpProxy
from tests.waiting import until, until_sync
from tests.wsgi import serving_wsgi

# More than the sockets of client and server hold.
LARGE = bytes(range(256)) * 4096 * 24
HALF = len(LARGE) // 2
USER = {"X-User": "ann"}


class Halting(FolderStorage):
    """Calls a function at the middle of the next large content that is read from its beginning."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.at_half: Callable[[], object] | None = None

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        for chunk in super().read(key, start, stop):
            yield chunk
            start += len(chunk)
            if start > HALF and self.at_half is not None:
                call, self.at_half = self.at_half, None
                call()


class FileSite:
    """A server whose jobs save files, reached through a proxy; and the ranges it was asked for."""

    def __init__(self, path: Path) -> None:
        self.storage = Halting(path)
        self.ranges: list[str | None] = []
        self.again = threading.Event()
        self.url = ""
        self.proxy = TcpProxy("127.0.0.1", 0)
        jobs = AsyncJobs("memory://", files=self.storage)

        @jobs.handler("export")
        async def export(_: Any, job: JobContext) -> None:
            await job.save_file("large.bin", LARGE)
            await job.save_file("empty", b"")

        @jobs.handler("twice", retry=Retry(max_attempts=2, initial_delay=0))
        def twice(_: Any, job: JobContext) -> None:
            again = job.attempt > 1
            job.sync.save_file("large.bin", b"new" if again else LARGE)
            if not again:
                self.again.wait(60)
                raise ValueError("the first attempt")

        self.jobs, self.app = jobs, flask.Flask(__name__)
        on_flask.mount(self.app, jobs, identify=_identify)
        for kind in ("export", "twice"):
            self.app.add_url_rule(
                f"/{kind}", kind, partial(on_flask.accept, kind), methods=["POST"]
            )

    def recorded(self, environ: Any, start_response: Any) -> Any:
        if "/files/" in environ["PATH_INFO"]:
            self.ranges.append(environ.get("HTTP_RANGE"))
        return self.app(environ, start_response)

    def exported(self, kind: str = "export") -> str:
        """Submit a job; return its URL, through the proxy, when it has the large file."""
        answer = httpx2.post(f"{self.url}/{kind}", json={}, headers=USER)
        url = f"{self.url}{answer.json()['statusUrl']}"
        wanted = 2 if kind == "export" else 1
        until_sync(lambda: len(document(url).get("files", [])) == wanted)
        return self.proxy.through(url)

    def replace(self, url: str) -> None:
        """Let a job save its file anew, and then cut the connections."""
        self.again.set()
        until_sync(lambda: document(url)["files"][0]["size"] == len(b"new"))
        self.proxy.cut()


def document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(url, headers=USER).json()
    return found


def _identify(request: Any) -> str:
    if "X-User" not in request.headers:
        flask.abort(401)
    return str(request.headers["X-User"])


@pytest.fixture
def site(tmp_path: Path) -> Generator[FileSite]:
    site = FileSite(tmp_path / "files")
    with serving_wsgi(site.recorded) as site.url:
        site.proxy.server = ("127.0.0.1", urlsplit(site.url).port or 0)
        with site.proxy:
            yield site
    site.again.set()
    on_flask.portal_of(site.jobs, site.app).close()


@pytest.fixture
def http() -> Generator[httpx2.Client]:
    with httpx2.Client(headers=USER) as http:
        yield http


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


def has_bytes(folder: Path) -> bool:
    return any(one.stat().st_size for one in folder.iterdir())


def names_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_the_files_of_a_job_are_listed_and_saved_in_a_folder(
    site: FileSite, http: httpx2.Client, folder: Path
) -> None:
    url = site.exported()
    job = JobsClient(http=http).attach(url)
    assert not job.files
    job.result()
    large = RemoteFile("large.bin", len(LARGE), f"{url}/files/large.bin")
    assert job.files == (large, RemoteFile("empty", 0, f"{url}/files/empty"))
    assert [job.download(file, folder).name for file in job.files] == ["large.bin", "empty"]
    assert (folder / "large.bin").read_bytes() == LARGE
    assert (folder / "empty").read_bytes() == b""
    assert names_in(folder) == ["empty", "large.bin"]
    assert job.download("empty", folder / "large.bin").read_bytes() == b""


def test_a_download_that_is_cut_in_the_middle_continues_there(
    site: FileSite, http: httpx2.Client, folder: Path
) -> None:
    job = JobsClient(http=http).attach(site.exported())
    site.storage.at_half = site.proxy.cut
    assert job.download("large.bin", folder).read_bytes() == LARGE
    first, second = site.ranges
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) < len(LARGE)

    site.storage.at_half = site.proxy.cut
    assert b"".join(job.read_file("large.bin")) == LARGE


def test_the_asynchronous_client_does_the_same(site: FileSite, folder: Path) -> None:
    url = site.exported()

    async def use() -> None:
        async with httpx2.AsyncClient(headers=USER) as http:
            job = AsyncJobsClient(http=http).attach(url)
            site.storage.at_half = site.proxy.cut
            assert (await job.download("large.bin", folder)).read_bytes() == LARGE
            site.storage.at_half = site.proxy.cut
            pieces = [piece async for piece in job.read_file("large.bin")]
            assert b"".join(pieces) == LARGE
            assert len(site.ranges) == 4

    anyio.run(use)


def test_a_cancelled_download_leaves_nothing(site: FileSite, folder: Path) -> None:
    url, goes_on = site.exported(), threading.Event()
    site.storage.at_half = partial(goes_on.wait, 60)

    async def use() -> None:
        async with httpx2.AsyncClient(headers=USER) as http, anyio.create_task_group() as tasks:
            job = AsyncJobsClient(http=http).attach(url)
            tasks.start_soon(job.download, "large.bin", folder)
            await until(lambda: has_bytes(folder))
            tasks.cancel_scope.cancel()

    try:
        anyio.run(use)
    finally:
        goes_on.set()
    assert names_in(folder) == []


def test_a_file_that_is_replaced_meanwhile_is_read_again_or_refused(
    site: FileSite, http: httpx2.Client, folder: Path
) -> None:
    for read in (False, True):
        site.again.clear()
        url = site.exported("twice")
        job = JobsClient(http=http).attach(url)
        site.storage.at_half = partial(site.replace, site.proxy.through(url))
        if read:
            with pytest.raises(RemoteFileChanged):
                b"".join(job.read_file("large.bin"))
        else:
            assert job.download("large.bin", folder).read_bytes() == b"new"


DOWNLOAD = """
import sys, httpx2
from asyncjobs.client import JobsClient
url, folder = sys.argv[1:]
with httpx2.Client(headers={"X-User": "ann"}) as http:
    JobsClient(http=http).attach(url).download("large.bin", folder)
"""


def test_a_killed_process_leaves_no_half_file_under_the_name_of_the_file(
    site: FileSite, folder: Path
) -> None:
    url, goes_on = site.exported(), threading.Event()
    site.storage.at_half = partial(goes_on.wait, 60)
    process = subprocess.Popen([sys.executable, "-c", DOWNLOAD, url, os.fspath(folder)])
    try:
        until_sync(lambda: has_bytes(folder))
    finally:
        process.kill()
        process.wait()
        goes_on.set()
    [left] = names_in(folder)
    assert left.startswith(".large.bin.")
    assert left.endswith(".part")


def test_a_download_that_fails_keeps_the_file_that_was_there(
    site: FileSite, http: httpx2.Client, folder: Path
) -> None:
    job = JobsClient(http=http).attach(site.exported())
    (folder / "large.bin").write_bytes(b"before")
    site.storage.at_half = site.proxy.stall
    try:
        with pytest.raises(DownloadTimeout):
            job.download("large.bin", folder, timeout=1)
    finally:
        site.proxy.flow()
    assert names_in(folder) == ["large.bin"]
    assert (folder / "large.bin").read_bytes() == b"before"
    with pytest.raises(FileNotFoundError):
        job.download("large.bin", folder / "missing" / "large.bin")


def test_a_caller_who_may_not_have_the_file_gets_an_error(
    site: FileSite, http: httpx2.Client, folder: Path
) -> None:
    url = site.exported()
    with httpx2.Client(headers={"X-User": "eve"}) as foreign, pytest.raises(JobNotFound):
        JobsClient(http=foreign).attach(url).download("large.bin", folder)
    with httpx2.Client() as anonymous, pytest.raises(AccessRefused):
        JobsClient(http=anonymous).attach(url).download("large.bin", folder)
    job = JobsClient(http=http).attach(url)
    with pytest.raises(RemoteFileNotFound, match="404"):
        job.download("other.bin", folder)
    for name in ("../large.bin", "..", "/large.bin", "a/b", "a\0b"):
        with pytest.raises(DownloadFailed, match="give a path"):
            job.download(RemoteFile(name, 1, "/x"), folder)
    assert names_in(folder) == []
