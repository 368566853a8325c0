"""azure-core's LROPoller, used as Microsoft's generated clients use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from azure.core import PipelineClient
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline import PipelineResponse
from azure.core.polling import LROPoller
from azure.core.polling.base_polling import (
    LocationPolling,
    LROBasePolling,
    OperationResourcePolling,
)
from azure.core.rest import HttpRequest, HttpResponse

from tests.waiting import until_sync

Client = PipelineClient[HttpRequest, HttpResponse]
Answer = PipelineResponse[HttpRequest, HttpResponse]

ALGORITHMS: dict[str, Callable[[], Any]] = {
    "operation": OperationResourcePolling,
    "location": LocationPolling,
}


@pytest.fixture(scope="module")
def client(served: Any) -> Generator[Client]:
    with PipelineClient[HttpRequest, HttpResponse](served.url) as client:
        yield client


@dataclass(frozen=True)
class Begun:
    """A submission by azure-core, with one of its ways to follow the job."""

    client: Client
    answer: Answer
    algorithm: Any

    @property
    def url(self) -> str:
        url: str = self.algorithm.get_polling_url()
        return urlsplit(url).path

    @property
    def cancel_url(self) -> str:
        return self.client.format_url(read(self.answer)["cancelUrl"])

    def follow(self) -> LROPoller[Any]:
        # Generated clients always pass the path's arguments, which make URLs without a host
        # absolute. The default pause is too long for a test: Retry-After replaces it.
        polling = LROBasePolling[Any, HttpRequest, HttpResponse](
            timeout=600,
            lro_algorithms=[self.algorithm],
            path_format_arguments={"endpoint": self.client.format_url("/")},
        )
        return LROPoller(self.client, self.answer, read, polling)


def submit(client: Client, kind: str, **payload: Any) -> Answer:
    request = HttpRequest("POST", client.format_url(f"/{kind}"), json=payload)
    answer: Any = client.send_request(request, _return_pipeline_response=True)
    return cast("Answer", answer)


def read(answer: Answer) -> Any:
    return json.loads(answer.http_response.text())


Begin = Callable[..., Begun]


@pytest.fixture(params=ALGORITHMS)
def begin(client: Client, request: pytest.FixtureRequest) -> Begin:
    def begun(kind: str, **payload: Any) -> Begun:
        return Begun(client, submit(client, kind, **payload), ALGORITHMS[request.param]())

    return begun


def failure_of(poller: LROPoller[Any]) -> str:
    with pytest.raises(HttpResponseError) as caught:
        poller.result(timeout=120)
    return str(caught.value)


def test_the_poller_returns_the_result(begin: Begin) -> None:
    assert begin("double", count=21).follow().result(timeout=120) == {"doubled": 42}


def test_the_poller_raises_the_message_and_code_of_a_failed_job(begin: Begin) -> None:
    said = failure_of(begin("full").follow())
    assert "The disk is full." in said
    assert "disk_full" in said


def test_the_poller_raises_for_a_cancelled_job(begin: Begin, client: Client) -> None:
    begun = begin("gate", name="never")
    client.send_request(HttpRequest("POST", begun.cancel_url)).raise_for_status()
    said = failure_of(begun.follow())
    assert "The job was cancelled." in said
    assert "job_cancelled" in said


def test_the_poller_needs_no_options(served: Any, client: Client) -> None:
    polling = LROBasePolling[Any, HttpRequest, HttpResponse]()
    poller = LROPoller(client, submit(client, "double", count=4), read, polling)
    assert poller.result(timeout=120) == {"doubled": 8}
    assert poller.status() == "Succeeded"
    # Microsoft's guidelines: the result is at the resource's own URL.
    assert [asked.path.rpartition("/")[2] for asked in served.seen[-2:]] == ["operation", "result"]


def test_the_poller_waits_for_retry_after(
    begin: Begin, served: Any, request: pytest.FixtureRequest
) -> None:
    name = request.node.nodeid
    begun = begin("gate", name=name)
    poller = begun.follow()
    until_sync(lambda: served.requests(begun.url))
    submit(begun.client, "release", name=name)
    assert poller.result(timeout=120) == {"opened": name}
    first, second, *_ = [asked.at for asked in served.requests(begun.url)]
    assert second - first >= 1
