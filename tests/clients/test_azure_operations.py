"""The Python clients against Microsoft's test server for generated clients.

npm's `@microsoft.azure/autorest.testserver` has 81 long-running operations, of each kind that Azure
has. Its description (`swagger/lro.json`) states the outcome of each. `LEFT_OUT` lists those that
the clients do not follow, with the reason.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import httpx2
import pytest

from asyncjobs.client import (
    AsyncJobsClient,
    ClientError,
    Following,
    JobNotFound,
    JobsClient,
    NotAJob,
    NotJson,
    RemoteJobCancelled,
    RemoteJobFailed,
    RequestRefused,
)
from tests.npm import NODE, install_packages
from tests.waiting import until_sync

PACKAGES = Path(__file__).parent / "azure"
SERVER = Path("node_modules/@microsoft.azure/autorest.testserver")
HEADERS = {"x-ms-client-request-id": "9C4D50EE-2D56-4CD3-8152-34347DC9F2B0"}

LEFT_OUT = {
    "POST /LROPostDoubleHeadersFinalAzureHeaderGet": (
        "Only the API's description (`final-state-via`) says that the result of this POST is not at"
        " its Location; the answers are those of LROPostDoubleHeadersFinalAzureHeaderGetDefault."
    ),
}

#: The server's coverage counters for `swagger/lro.json`; each operation runs to its end.
OURS = ("CustomHeader", "LROD", "LROE", "LRON", "LROPatch", "LROPost", "LROPut", "LROR")

Outcome = Any | type[ClientError]

PLAIN = {"id": "100", "name": "foo"}
FOO = {"properties": {"provisioningState": "Succeeded"}, **PLAIN}
SUB = {"properties": {"provisioningState": "Succeeded"}, "id": "100", "subresource": "sub1"}
SKU = {"name": "sku", "id": "100"}


def patched(path: str) -> dict[str, Any]:
    return {"properties": {"provisioningState": "Succeeded"}, "id": f"/lro{path}", "name": "foo"}


OUTCOMES: dict[str, Outcome] = {
    "PUT /put/200/succeeded": FOO,
    "PATCH /patch/200/succeeded/ignoreheaders": FOO,
    "PATCH /patch/201/retry/onlyAsyncHeader": patched("/patch/201/retry/onlyAsyncHeader"),
    "PATCH /patch/202/retry/asyncAndLocationHeader": patched(
        "/patch/202/retry/asyncAndLocationHeader"
    ),
    "PUT /put/201/succeeded": FOO,
    "POST /list": [PLAIN],
    "PUT /put/200/succeeded/nostate": PLAIN,
    "PUT /put/202/retry/200": PLAIN,
    "PUT /put/201/creating/succeeded/200": FOO,
    "PUT /put/200/updating/succeeded/200": FOO,
    "PUT /put/201/created/failed/200": RemoteJobFailed,
    "PUT /put/200/accepted/canceled/200": RemoteJobCancelled,
    "PUT /put/noheader/202/200": FOO,
    "PUT /putasync/retry/succeeded": FOO,
    "PUT /putasync/noretry/succeeded": FOO,
    "PUT /putasync/retry/failed": RemoteJobFailed,
    "PUT /putasync/noretry/canceled": RemoteJobCancelled,
    "PUT /putasync/noheader/201/200": FOO,
    "PUT /putnonresource/202/200": SKU,
    "PUT /putnonresourceasync/202/200": SKU,
    "PUT /putsubresource/202/200": SUB,
    "PUT /putsubresourceasync/202/200": SUB,
    "DELETE /delete/provisioning/202/accepted/200/succeeded": FOO,
    "DELETE /delete/provisioning/202/deleting/200/failed": RemoteJobFailed,
    "DELETE /delete/provisioning/202/deleting/200/canceled": RemoteJobCancelled,
    "DELETE /delete/204/succeeded": None,
    "DELETE /delete/202/retry/200": None,
    "DELETE /delete/202/noretry/204": None,
    "DELETE /delete/noheader": None,
    "DELETE /deleteasync/noheader/202/204": None,
    "DELETE /deleteasync/retry/succeeded": None,
    "DELETE /deleteasync/noretry/succeeded": None,
    "DELETE /deleteasync/retry/failed": RemoteJobFailed,
    "DELETE /deleteasync/retry/canceled": RemoteJobCancelled,
    "POST /post/payload/200": {"id": "1", "name": "product"},
    "POST /post/202/retry/200": FOO,
    "POST /post/202/noretry/204": None,
    "POST /LROPostDoubleHeadersFinalLocationGet": PLAIN,
    "POST /LROPostDoubleHeadersFinalAzureHeaderGetDefault": PLAIN,
    "POST /postasync/retry/succeeded": FOO,
    "POST /postasync/noretry/succeeded": FOO,
    "POST /postasync/retry/failed": RemoteJobFailed,
    "POST /postasync/retry/canceled": RemoteJobCancelled,
    "PUT /retryerror/put/201/creating/succeeded/200": FOO,
    "PUT /retryerror/putasync/retry/succeeded": FOO,
    "DELETE /retryerror/delete/provisioning/202/accepted/200/succeeded": FOO,
    "DELETE /retryerror/delete/202/retry/200": FOO,
    "DELETE /retryerror/deleteasync/retry/succeeded": None,
    "POST /retryerror/post/202/retry/200": FOO,
    "POST /retryerror/postasync/retry/succeeded": SKU,
    "PUT /nonretryerror/put/400": RequestRefused,
    "PUT /nonretryerror/put/201/creating/400": NotAJob,
    "PUT /nonretryerror/put/201/creating/400/invalidjson": NotAJob,
    "PUT /nonretryerror/putasync/retry/400": NotAJob,
    "DELETE /nonretryerror/delete/400": RequestRefused,
    "DELETE /nonretryerror/delete/202/retry/400": RemoteJobFailed,
    "DELETE /nonretryerror/deleteasync/retry/400": NotAJob,
    "POST /nonretryerror/post/400": RequestRefused,
    "POST /nonretryerror/post/202/retry/400": RemoteJobFailed,
    "POST /nonretryerror/postasync/retry/400": NotAJob,
    "PUT /error/put/201/noprovisioningstatepayload": NotJson,
    "PUT /error/putasync/retry/nostatus": NotAJob,
    "PUT /error/putasync/retry/nostatuspayload": NotJson,
    "DELETE /error/delete/204/nolocation": None,
    "DELETE /error/deleteasync/retry/nostatus": NotAJob,
    "POST /error/post/202/nolocation": NotAJob,
    "POST /error/postasync/retry/nopayload": NotJson,
    "PUT /error/put/200/invalidjson": NotJson,
    "PUT /error/putasync/retry/invalidheader": JobNotFound,
    "PUT /error/putasync/retry/invalidjsonpolling": NotJson,
    "DELETE /error/delete/202/retry/invalidheader": JobNotFound,
    "DELETE /error/deleteasync/retry/invalidheader": JobNotFound,
    "DELETE /error/deleteasync/retry/invalidjsonpolling": NotJson,
    "POST /error/post/202/retry/invalidheader": JobNotFound,
    "POST /error/postasync/retry/invalidheader": JobNotFound,
    "POST /error/postasync/retry/invalidjsonpolling": NotJson,
    "PUT /customheader/putasync/retry/succeeded": FOO,
    "PUT /customheader/put/201/creating/succeeded/200": FOO,
    "POST /customheader/post/202/retry/200": None,
    "POST /customheader/postasync/retry/succeeded": None,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the lock file."""
    folder = tmp_path_factory.mktemp("azure") / "packages"
    copytree(PACKAGES, folder, ignore=ignore_patterns("node_modules"))
    install_packages(folder)
    return folder


@pytest.fixture(scope="module")
def server(installed: Path) -> Generator[str]:
    """The URL of the running test server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    command = [str(NODE), str(SERVER / "dist/cli/cli.js"), "--port", str(port)]
    url = f"http://localhost:{port}"

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/report/azure").is_success
        except httpx2.TransportError:
            return False

    with subprocess.Popen(command, cwd=installed, stdout=subprocess.DEVNULL) as process:
        try:
            until_sync(answers)
            yield url
        finally:
            process.kill()


def test_every_operation_of_the_server_has_an_outcome_or_a_reason(installed: Path) -> None:
    text = (installed / SERVER / "swagger/lro.json").read_text(encoding="utf-8-sig")
    paths: dict[str, dict[str, Any]] = json.loads(text)["paths"]
    described = {
        f"{method.upper()} {path.removeprefix('/lro')}"
        for path, methods in paths.items()
        for method in methods
    }
    assert len(described) == 81
    assert {*OUTCOMES, *LEFT_OUT} == described


def outcome_of(client: JobsClient, operation: str) -> Outcome:
    """Return the result of an operation, or the class of the error that it raises."""
    method, path = operation.split()
    try:
        return client.submit(method, path, json={}).result()
    except ClientError as error:
        return type(error)


def test_each_operation_has_its_outcome(server: str) -> None:
    with httpx2.Client(headers=HEADERS) as http:
        client = JobsClient(f"{server}/lro", http=http, options=Following(timeout=60))
        assert {one: outcome_of(client, one) for one in OUTCOMES} == OUTCOMES
    counts: dict[str, int] = httpx2.get(f"{server}/report/azure").json()
    unseen = {name for name in counts if name.startswith(OURS) and not counts[name]}
    assert unseen == {one.partition("/")[2] for one in LEFT_OUT}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "operation",
    [
        "PUT /putasync/retry/succeeded",
        "PUT /put/201/creating/succeeded/200",
        "POST /post/202/retry/200",
        "DELETE /deleteasync/retry/succeeded",
    ],
)
async def test_an_operation_has_its_outcome_on_a_loop(server: str, operation: str) -> None:
    method, path = operation.split()
    async with AsyncJobsClient(f"{server}/lro") as client:
        job = await client.submit(method, path, json={})
        assert await job.result(timeout=60) == OUTCOMES[operation]
