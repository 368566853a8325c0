"""No client message shows any part of a password, for any URL."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncjobs.client import JobsClient
from asyncjobs.client.errors import ClientError, ServerUnreachable, shown_url

PARTS = ["Zq7x", "73915", "8246", "xXyYz"]
DELIMITERS = ["", "@", ":", "/", "?", "#", "[", "]", "%", "%40", "&", "=", " ", "\\", "℀"]

passwords = st.lists(
    st.tuples(st.sampled_from(PARTS), st.sampled_from(DELIMITERS)), min_size=1, max_size=4
).map(lambda parts: "".join(word for part in parts for word in part))

shapes = st.sampled_from(
    [
        "http://ann:{}@127.0.0.1:1/api/jobs/job_1",
        "https://:{}@127.0.0.1:1/api/jobs/job_1?after=3#top",
        "//ann:{}@127.0.0.1:1/api/jobs/job_1",
        "http://an@n:{}@[::1]:1/api/jobs/job_1",
        "http://127.0.0.1:1/api/jobs/job_1?token={}",
    ]
)


@given(shapes, passwords)
@example("http://ann:{}@127.0.0.1:1/api/jobs/job_1", "8246/xXyYz")
@settings(deadline=None)
def test_no_part_of_a_password_is_shown(shape: str, password: str) -> None:
    url = shape.format(password)
    for shown in (shown_url(url), str(ServerUnreachable(url, "away"))):
        assert not [part for part in PARTS if part in shown], shown


@pytest.mark.parametrize("password", ["Zq7x/xXyYz", "Zq7x?xXyYz", "Zq7x#xXyYz", "[xXyYz]"])
def test_no_part_of_a_password_is_shown_if_the_http_library_refuses_the_url(password: str) -> None:
    job = JobsClient().attach(f"http://ann:{password}@127.0.0.1:1/api/jobs/job_1")
    with pytest.raises(ClientError) as caught:
        job.result(timeout=0.1)
    shown = "".join(traceback.format_exception(caught.value, limit=0))
    assert not [part for part in PARTS if part in shown], shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "http://ann:x@api.example:8000/jobs/1?after=3",
            "http://api.example:8000/jobs/1?...",
        ),
        ("https://[::1]/jobs/1", "https://[::1]/jobs/1"),
        ("/api/jobs/@me", "/api/jobs/@me"),
        ("https://api.example/users/@me", "https://api.example/users/@me"),
        ("https://api.example:8000/users/@me", "https://..."),
        ("http://ann:secret", "an invalid URL"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert shown_url(url) == shown
