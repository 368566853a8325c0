"""OPTIONS is answered without identity or job; a CORS layer can add its headers."""

from __future__ import annotations

import pytest

from asyncjobs.http.messages import Request
from asyncjobs.http.routes import ROUTES, Route
from tests.http.mounted import UNKNOWN, Made

PREFLIGHT = {"origin": "https://app.example.com", "access-control-request-method": "GET"}


@pytest.mark.parametrize("headers", [{}, PREFLIGHT], ids=["options", "preflight"])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
def test_options_lists_the_methods_of_a_url(
    made: Made, route: Route, headers: dict[str, str]
) -> None:
    request = Request("OPTIONS", f"{UNKNOWN}{route.suffix}", headers=headers)
    answer = made().answer_anyone(request)
    assert answer is not None
    assert (answer.status, answer.body) == (204, b"")
    assert {route.method, "OPTIONS"} <= {*(answer.header("Allow") or "").split(", ")}


def test_options_lists_the_methods_of_a_script(made: Made) -> None:
    answer = made().answer_anyone(Request("OPTIONS", "client.js"))
    assert answer is not None
    assert answer.header("Allow") == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", ["job_1/nothing", "/x", "job_1//"])
def test_for_an_unknown_path_only_a_preflight_is_answered(made: Made, path: str) -> None:
    endpoints = made()
    answer = endpoints.answer_anyone(Request("OPTIONS", path, headers=PREFLIGHT))
    assert answer is not None
    assert answer.status == 204
    assert endpoints.answer_anyone(Request("OPTIONS", path)) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_other_requests_for_jobs_are_not_answered_to_anyone(made: Made, method: str) -> None:
    assert made().answer_anyone(Request(method, UNKNOWN, headers=PREFLIGHT)) is None
