"""Receivers are called when jobs end; the public library for receivers verifies the calls."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest
import trustme
from standardwebhooks import Webhook

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, JobType, Settings
from asyncjobs.core import lifecycle
from asyncjobs.core.job import Callback
from asyncjobs.core.lifecycle import CALLBACK_PATIENCE
from asyncjobs.errors import ConfigurationError, InvalidCallback
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.messages import Request, Response
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.http.submissions import Submit
from asyncjobs.protocols import CallbackResult, Selection
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, begun
from asyncjobs.webhooks import WebhookOptions, Webhooks
from tests.waiting import until
from tests.webhooks.conftest import (
    NAME,
    OK,
    SECRET,
    Answering,
    Receiver,
    answer,
    receiving,
    serving_as,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
QUICK = Settings(sweep_interval=timedelta(seconds=0.05), poll_interval=timedelta(seconds=0.05))
AT_ONCE = (timedelta(0),) * 5
HERE = Answering(["127.0.0.1"])


def webhooks(secrets: str | Sequence[str] = SECRET, **options: Any) -> Webhooks:
    given: dict[str, Any] = {"loopback": True, "resolve": HERE, "schedule": AT_ONCE, **options}
    return Webhooks({NAME: secrets}, options=WebhookOptions(**given))


def ended(url: str, calls: int = 0, result: bytes = b"8") -> Job:
    job = lifecycle.complete(begun(sample_job(callback_url=url)), NOW, token="t", result=result)
    return job.model_copy(update={"callback": Callback(calls=calls, next_at=NOW)})


def url_of(receiver: Receiver, scheme: str = "http") -> str:
    return f"{scheme}://{NAME}:{receiver.port}/ended"


def queue(store: Any, sender: Webhooks | None) -> AsyncJobs:
    jobs = AsyncJobs(store, settings=QUICK, callbacks=sender)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    return jobs


async def settled(jobs: AsyncJobs, job: Job) -> Job:
    """Return a job when it has ended and has no pending callback."""
    await jobs.wait(job.id)

    async def owes_nothing() -> bool:
        return not lifecycle.owes_callback(await jobs.find(job.id))

    await until(owes_nothing)
    return await jobs.find(job.id)


async def test_a_receiver_can_verify_the_message(
    store: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    async with (
        receiving(tls=serving_as(authority, NAME)) as receiver,
        queue(store, webhooks([OTHER, SECRET], tls=trusting)) as jobs,
    ):
        options = EnqueueOptions(callback_url=url_of(receiver, "https"))
        job = (await jobs.enqueue("double", 4, options=options)).job
        await settled(jobs, job)
    [post] = receiver.posts
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(post.body, post.headers)
    event = json.loads(post.body)
    assert (event["type"], event["data"]["result"]) == ("job.completed", 8)
    assert post.headers["webhook-id"] == f"{job.id}_completed"
    assert post.headers["content-type"] == "application/json"
    assert post.target == "/ended"


async def test_a_failed_call_is_repeated_with_the_same_message(store: Any) -> None:
    async with (
        receiving(answer(500), None, b"junk", answer(302, "location: /"), OK) as receiver,
        queue(store, webhooks()) as jobs,
    ):
        options = EnqueueOptions(callback_url=url_of(receiver))
        job = (await jobs.enqueue("double", 4, options=options)).job
        callback = (await settled(jobs, job)).callback
    assert callback is not None
    assert (callback.calls, callback.error) == (5, None)
    assert callback.told_at is not None
    assert len({post.headers["webhook-id"] for post in receiver.posts}) == 1
    assert len({post.body for post in receiver.posts}) == 1
    for post in receiver.posts:
        Webhook(SECRET).verify(post.body, post.headers)


async def test_a_name_that_is_rebound_to_this_machine_is_not_called() -> None:
    rebinding = Answering(["93.184.215.14"], ["127.0.0.1"])
    async with receiving() as receiver:
        sender = webhooks(loopback=False, resolve=rebinding, ports=frozenset({receiver.port}))
        job = ended(url_of(receiver, "https"))
        rebinding.answers.pop(0)
        result = await sender.send(job, now=NOW)
    assert (result.error, receiver.connections) == ("its host has an address that is not public", 0)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await webhooks().send(ended(url_of(receiver)), now=NOW) == CallbackResult()
    assert (proxy.connections, receiver.connections) == (0, 1)


async def test_a_silent_receiver_times_out() -> None:
    async with receiving(b"") as receiver:
        with anyio.fail_after(20):
            result = await webhooks(timeout=0.2).send(ended(url_of(receiver)), now=NOW)
    assert result.error == "no answer within 0.2 s"


async def test_a_silent_resolver_times_out() -> None:
    async def silent(_host: str, _port: int) -> Sequence[str]:
        await anyio.sleep_forever()
        return []

    sender = webhooks(timeout=0.2, resolve=silent)
    with anyio.fail_after(20):
        result = await sender.send(ended(f"https://{NAME}/"), now=NOW)
    assert result.error is not None


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("said", "calls", "least", "most"),
    [
        (answer(500), 0, HOUR, 1.2 * HOUR),
        (answer(404), 1, 2 * HOUR, 2.4 * HOUR),
        (answer(500), 2, None, None),
        (answer(410), 0, None, None),
        (answer(503, "Retry-After: 5"), 0, HOUR, 1.2 * HOUR),
        (answer(429, "Retry-After: 10800"), 0, 3 * HOUR, 3 * HOUR),
        (answer(429, "Retry-After: 999999999"), 0, 24 * HOUR, 24 * HOUR),
        (answer(429, "Retry-After: 5"), 2, None, None),
    ],
    ids=["first", "second", "last", "gone", "sooner", "later", "never", "too-often"],
)
async def test_schedule_and_retry_after_set_the_pause_after_a_failed_call(
    said: bytes, calls: int, least: timedelta | None, most: timedelta | None
) -> None:
    async with receiving(said) as receiver:
        sender = webhooks(schedule=(HOUR, 2 * HOUR))
        result = await sender.send(ended(url_of(receiver), calls), now=NOW)
    assert result.error == f"it responded with {said[9:12].decode()}"
    if least is None or most is None:
        assert result.again is None
    else:
        assert result.again is not None
        assert least <= result.again <= most


async def test_the_url_is_checked_again_at_the_call() -> None:
    result = await webhooks().send(ended("https://elsewhere.example.com/"), now=NOW)
    assert result.error == "its host is not one of the receivers"
    assert result.again is not None


def test_durations_are_seconds_or_timedeltas() -> None:
    options = WebhookOptions(schedule=[5, timedelta(minutes=1)], timeout=2)
    assert options.schedule == (timedelta(seconds=5), timedelta(minutes=1))
    assert options.timeout == timedelta(seconds=2)


def test_the_default_schedule_ends_within_the_default_retention() -> None:
    assert sum(WebhookOptions().schedule, timedelta(0)) * 1.2 < timedelta(hours=24)


REFUSED = {
    "http": f"http://{NAME}/",
    "http-443": f"http://{NAME}:443/",
    "port": f"https://{NAME}:8443/",
    "host": "https://elsewhere.example.com/",
    "no-url": "hooks",
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=list(REFUSED))
def test_a_url_that_matches_no_receiver_is_refused(url: str) -> None:
    with pytest.raises(InvalidCallback):
        Webhooks({NAME: SECRET}).check(url)
    Webhooks({NAME: SECRET}).check(f"https://{NAME}/")
    Webhooks({NAME: SECRET}, options=WebhookOptions(ports=frozenset({8443}))).check(
        f"https://{NAME}:8443/"
    )


@pytest.mark.parametrize(
    "receivers", [{"*": SECRET}, {NAME: []}, {NAME: "secret"}], ids=["any", "none", "bad"]
)
def test_malformed_receivers_are_refused_by_the_constructor(receivers: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Webhooks(receivers)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": (CALLBACK_PATIENCE,)},
        {"schedule": (-HOUR,)},
        {"timeout": 0},
        {"timeout": 61},
        {"concurrency": 0},
        {"host_concurrency": 0},
        {"timeout": timedelta(minutes=2)},
        {"schedule": (-1,)},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"WebhookOptions\.(schedule|timeout|\w*concurrency)"):
        WebhookOptions(**options)


def test_repr_shows_no_secret() -> None:
    sender = Webhooks({NAME: SECRET})
    assert SECRET not in repr(sender) + repr(sender.options)


# over HTTP


async def submit(
    jobs: AsyncJobs, *, allowed: bool, header: str | None, own: str | None = None
) -> Response:
    endpoints = Endpoints(jobs, Mount(options=MountOptions(callbacks=allowed)))
    headers = {"content-type": "application/json"}
    if header is not None:
        headers["callback-url"] = header
    request = Request("POST", headers=headers)
    options = None if own is None else EnqueueOptions(callback_url=own)
    kind: JobType[int, int] = jobs.registry.find("double")
    async with jobs:
        return await endpoints.accept(request, kind, 4, Submit(options=options))


URL = f"https://{NAME}/"


@pytest.mark.parametrize(
    ("allowed", "header", "own", "kept"),
    [
        (True, URL, None, URL),
        (True, None, None, None),
        (False, None, URL, URL),
        (True, f"{URL}theirs", URL, URL),
    ],
    ids=["client", "none", "app", "both"],
)
async def test_clients_or_the_application_can_set_the_callback_url(
    store: Any, beside: Any, allowed: bool, header: str | None, own: str | None, kept: str | None
) -> None:
    jobs = queue(store, webhooks(loopback=False))
    reply = await submit(jobs, allowed=allowed, header=header, own=own)
    assert reply.status == 202
    [job] = (await beside.list(Selection(), limit=9)).jobs
    assert job.callback_url == kept


@pytest.mark.parametrize(
    ("allowed", "header"),
    [(False, URL), (True, "https://elsewhere.example.com/"), (True, "")],
    ids=["not-here", "elsewhere", "empty"],
)
async def test_a_refused_callback_url_answers_400(
    store: Any, beside: Any, allowed: bool, header: str
) -> None:
    reply = await submit(queue(store, webhooks(loopback=False)), allowed=allowed, header=header)
    assert (reply.status, json.loads(reply.body)["code"]) == (400, "invalid_callback")
    assert not (await beside.list(Selection(), limit=9)).jobs


def test_without_h11_the_import_names_the_extra() -> None:
    script = "import sys; sys.modules['h11'] = None; import asyncjobs.webhooks"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert b"pip install 'asyncjobs-http[webhooks]'" in done.stderr
