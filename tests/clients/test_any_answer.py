"""For any answer of a server, the Python client returns or raises a `ClientError`."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random
from typing import Any

import httpx2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncjobs.client import ClientError, Following, JobsClient
from asyncjobs.client.answers import Monitor, MonitorKind, read_submission
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Arrived,
    Broken,
    End,
    Opened,
    Read,
    Rule,
    Wait,
    Woke,
)
from asyncjobs.client.follower import Follower

URL = "http://h.example/api/jobs/job_1"

urls = st.sampled_from(
    [
        *(
            "/api/jobs/job_1",
            "/b",
            "b",
            "",
            "//",
            "http://[",
            "http://h.example:99999999/",
            "http:",
        ),
        *("http://other.example/x", "https://h.example/x", "mailto:x", "http://[::1", "?a#b"),
        *("http://h.example\\@x/", "/\u00e9\x80", "http://\u2100.example/", "//h.example:x/y"),
    ]
)
texts = st.one_of(
    urls,
    st.text(max_size=9),
    st.sampled_from(
        [
            *("accepted", "pending", "processing", "completed", "failed", "cancelled", "skipped"),
            *("Succeeded", "Failed", "Canceled", "Running", "job_1", "job_cancelled", "\ud800"),
            *("2026-01-01T00:00:00Z", "1" * 5_000, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ]
    ),
)
scalars = st.one_of(
    texts, st.integers(), st.integers(-2, 12), st.floats(), st.none(), st.booleans()
)
Reply = tuple[int, dict[str, str], bytes]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
NAMES = [
    *("jobId", "status", "statusUrl", "eventsUrl", "cancelUrl", "version", "progress", "detail"),
    *("message", "result", "error", "errorCode", "completedAt", "code", "properties", "id", "kind"),
    *("provisioningState", "resourceLocation", "percentComplete", "title", "retryAfter"),
]
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=7), st.lists(inner, max_size=3)
    ),
    max_leaves=12,
)


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def job(**members: Any) -> bytes:
    return as_json({"jobId": "job_1", "status": "processing", **members})


DEEP = [b"[" * depth + b"]" * depth for depth in (300, 900, 940, 980, 200_000)]
bodies = st.one_of(
    documents.map(as_json),
    st.dictionaries(st.sampled_from(NAMES), scalars).map(lambda members: job(**members)),
    st.sampled_from(DEEP),
    st.sampled_from(DEEP).map(lambda deep: b'{"jobId": "1", "status": "pending", "x": %s}' % deep),
    st.sampled_from(DEEP).map(lambda deep: b'{"code": %s, "error": %s}' % (deep, deep)),
    st.sampled_from([b"", b"\xef\xbb\xbf{}", b"\xff\xfe", b'{"version": %s}' % (b"9" * 5_000)]),
    st.binary(max_size=30),
)
events = st.lists(
    st.tuples(st.sampled_from([b"id: ", b"data: ", b"event: ", b"retry: ", b": "]), bodies),
    max_size=4,
).map(lambda lines: b"".join(name + text + b"\n\n" for name, text in lines))
MEDIA_TYPES = ["application/json", "text/event-stream", "text/html", "image/png", "x", "\u00e9"]
names = st.sampled_from(
    [
        *("location", "operation-location", "azure-asyncoperation", "link", "etag", "retry-after"),
        *("date", "preference-applied", "set-cookie", "content-encoding"),
    ]
)
values = st.one_of(
    urls,
    urls.map(lambda url: f'<{url}>; rel="monitor"'),
    st.sampled_from(['"7"', "\u00e9", "gzip", "wait=9", "0", "-1", "1" * 5_000, "a=b; max-age=x"]),
    st.sampled_from(["Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359"]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=9),
)
STATUSES = [
    200,
    200,
    200,
    201,
    202,
    204,
    301,
    302,
    304,
    307,
    308,
    400,
    401,
    404,
    410,
    424,
    500,
    503,
]


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """A status, headers and a body."""
    headers = draw(st.dictionaries(names, values, max_size=3))
    headers |= draw(
        st.fixed_dictionaries({}, optional={"content-type": st.sampled_from(MEDIA_TYPES)})
    )
    return draw(st.sampled_from(STATUSES)), headers, draw(bodies | events)


def ask_everything(client: JobsClient, method: str) -> None:
    """Submit, follow and cancel; let any error except a `ClientError` through."""
    jobs = [client.attach(URL)]
    with suppress(ClientError):
        jobs.append(client.submit(method, "http://h.example/do", json={}))
    for each in jobs:
        with suppress(ClientError):
            each.result()
        with suppress(ClientError):
            assert each.cancel().status
        assert repr(each)


def simulate(rule: Rule, given_replies: list[Reply]) -> ClientError | None:
    """Drive a rule to its end in simulated time; the last reply is repeated."""
    now, left, step = 0.0, list(given_replies), rule.start(0)
    while not isinstance(step.then, End):
        result: ActionResult
        action = step.then
        if isinstance(action, Wait):
            now += max(action.seconds, 0.001)
            result = Woke()
        elif isinstance(action, Read):
            now += 45
            result = Broken("silence")
        else:
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            now += 0.1
            result = Answered(action.url, action.url, status, headers, body)
            events = headers.get("content-type") == "text/event-stream" and status == 200
            if action.stream and events:
                step = rule.receive(Opened(), now)
                result = Arrived(body)
        step = rule.receive(result, now)
    return step.then.error


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(replies(), min_size=1, max_size=6), st.sampled_from(METHODS))
@example([(202, {"location": "http://["}, b"")], "POST")
@example([(202, {}, b'{"statusUrl": "http://[", "status": "accepted"}')], "POST")
@example([(202, {"location": "/a"}, b""), (410, {}, b'{"code": 1e999}')], "POST")
def test_any_answers_end_the_rules_with_an_update_or_a_client_error(
    given_replies: list[Reply], method: str
) -> None:
    monitors = [Monitor(URL), Monitor(URL, MonitorKind.JOB, events=f"{URL}/events")]
    status, headers, body = given_replies[0]
    first = Answered("http://h.example/do", "http://h.example/do", status, headers, body)
    with suppress(ClientError):
        monitors.append(read_submission(first, method=method).monitor)
    for monitor in monitors:
        follower = Follower(monitor, Following(timeout=300), Random(1))  # noqa: S311  # pauses
        error = simulate(follower, given_replies)
        assert error is not None or follower.last is not None


BRIEF = Following(timeout=0.03, patience=0, submit_for=0)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.lists(replies(), min_size=1, max_size=4),
    st.sampled_from(METHODS),
)
@example([(200, {"etag": "\u00e9", "retry-after": "0"}, job())], "POST")
@example([(200, {}, job(version=10**400))], "PUT")
def test_any_answers_lead_to_a_result_or_a_client_error(
    given_replies: list[Reply], method: str
) -> None:
    left = list(given_replies)

    def answer(_: httpx2.Request) -> httpx2.Response:
        status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        raw = [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()
        ]
        return httpx2.Response(status, headers=raw, stream=httpx2.ByteStream(body))

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        ask_everything(JobsClient(http=http, options=BRIEF), method)
