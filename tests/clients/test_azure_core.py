"""azure-core's LROPoller, as the clients that Microsoft generates use it."""

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

pytestmark = pytest.mark.every_store

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
    """A submission that azure-core has made, to be followed in one of its ways."""

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
        # The path's arguments are what generated clients always give: so URLs without a host are
        # understood. The pause is far too long for a test: it is Retry-After that counts.
        polling = LROBasePolling[Any, HttpRequest, HttpResponse](
            timeout=60,
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
        poller.result(timeout=20)
    return str(caught.value)


def test_the_poller_returns_the_result(begin: Begin) -> None:
    assert begin("double", count=21).follow().result(timeout=20) == {"doubled": 42}


def test_the_poller_raises_what_a_job_failed_of(begin: Begin) -> None:
    said = failure_of(begin("full").follow())
    assert "The disk is full." in said
    assert "disk_full" in said


def test_the_poller_raises_for_a_cancelled_job(begin: Begin, client: Client) -> None:
    begun = begin("gate", name="never")
    client.send_request(HttpRequest("POST", begun.cancel_url)).raise_for_status()
    said = failure_of(begun.follow())
    assert "The job was cancelled." in said
    assert "job_cancelled" in said


def test_the_poller_finds_its_way_without_any_option(served: Any, client: Client) -> None:
    polling = LROBasePolling[Any, HttpRequest, HttpResponse]()
    poller = LROPoller(client, submit(client, "double", count=4), read, polling)
    assert poller.result(timeout=20) == {"doubled": 8}
    assert poller.status() == "Succeeded"
    # Microsoft's guidelines: what has succeeded is found at the resource's own place.
    assert [asked.path.rpartition("/")[2] for asked in served.seen[-2:]] == ["operation", "result"]


def test_the_poller_asks_again_when_it_was_told_to(
    begin: Begin, served: Any, request: pytest.FixtureRequest
) -> None:
    name = request.node.nodeid
    begun = begin("gate", name=name)
    poller = begun.follow()
    while not served.requests(begun.url):
        poller.wait(timeout=0.01)
    submit(begun.client, "release", name=name)
    assert poller.result(timeout=20) == {"opened": name}
    first, second, *_ = [asked.at for asked in served.requests(begun.url)]
    assert 1 <= second - first < 5
