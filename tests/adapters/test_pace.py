"""How soon a client is asked to come again, what it may expect, and what becomes of impatience."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs
from asyncjobs.core.job import new_job_id
from asyncjobs.http.headers import Pacing
from asyncjobs.http.mounts import MountOptions
from asyncjobs.http.problems import ProblemDocument
from asyncjobs.http.security import PollLimit

OpenSite = Callable[..., AbstractContextManager[Any]]
Eventually = Callable[..., None]

pytestmark = pytest.mark.every_store

STRICT = MountOptions(poll_limit=PollLimit(burst=3, every=60))
FAST = PollLimit(burst=1, every=0.05)
POLLED = ["", "/result", "/operation"]


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("X-User")
    return name


@pytest.fixture(scope="module")
def strict(open_site: OpenSite) -> Generator[Any]:
    with open_site(options=STRICT) as opened:
        yield opened


def submit(site: Any, kind: str, **more: Any) -> dict[str, Any]:
    answer = site.client.post(f"/submit/{kind}", json={"count": 1}, **more)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


def url_of(site: Any, kind: str, **more: Any) -> str:
    url: str = submit(site, kind, **more)["statusUrl"]
    return url


def codes(site: Any, url: str, times: int, **headers: str) -> list[int]:
    return [site.client.get(url, headers=headers).status_code for _ in range(times)]


# what to expect


def test_what_jobs_took_replaces_what_was_guessed(
    open_site: OpenSite, eventually: Eventually
) -> None:
    pacing = Pacing(least=1, most=200)
    with open_site(options=MountOptions(pacing=pacing)) as site:

        def told() -> tuple[float, str]:
            answer = site.client.post("/submit/guessed", json={"count": 1})
            return answer.json()["estimatedDuration"], answer.headers["retry-after"]

        assert told() == (1000, "100")  # a tenth of it
        for _ in range(3):
            site.client.post("/submit/guessed", json={"count": 1}, headers={"Prefer": "wait=5"})
        eventually(lambda: told()[0] < 10)
        assert told()[1] == "1"
        assert submit(site, "double")["estimatedDuration"] == 30


def test_the_document_tells_the_pace_as_the_header_does(site: Any) -> None:
    later, outside = url_of(site, "double", params={"later": "1"}), url_of(site, "outside")
    running = url_of(site, "outside")
    site.call(site.jobs.update_progress, running.rpartition("/")[2], 50)
    for url in (later, outside, running):
        for answer in (site.client.get(url), site.client.get(f"{url}/result")):
            assert str(answer.json()["retryAfter"]) == answer.headers["retry-after"]
            assert answer.json()["retryAfter"] >= 1


def test_a_finished_job_has_no_pace(site: Any) -> None:
    url = url_of(site, "outside")
    site.call(site.jobs.complete, url.rpartition("/")[2], "done")
    answer = site.client.get(url)
    assert (answer.json()["retryAfter"], answer.json()["position"]) == (None, None)
    assert "retry-after" not in answer.headers


# the place in the queue


def positions(site: Any, urls: list[str]) -> list[int | None]:
    return [site.client.get(url).json()["position"] for url in urls]


def test_who_waits_is_told_its_place(
    open_site: OpenSite, new_jobs: Callable[..., AsyncJobs], eventually: Eventually
) -> None:
    with open_site(new_jobs(slots=1)) as site:
        running = url_of(site, "gate")
        eventually(lambda: site.client.get(running).json()["progress"] == 40)
        waiting = [url_of(site, "gate") for _ in range(5)]
        assert positions(site, waiting) == [1, 2, 3, 4, 5]
        assert positions(site, [running]) == [None]
        assert site.client.delete(waiting[1]).status_code == 200
        assert positions(site, waiting) == [1, None, 2, 3, 4]
        site.client.delete(running)
        eventually(lambda: positions(site, waiting) == [None, None, 1, 2, 3])
        for url in waiting:
            site.client.delete(url)


def test_who_does_not_wait_for_a_worker_has_no_place(site: Any) -> None:
    urls = [url_of(site, "double", params={"later": "1"}), url_of(site, "outside")]
    assert positions(site, urls) == [None, None]


# impatience


def test_who_polls_far_too_fast_is_told_to_wait(strict: Any) -> None:
    url = url_of(strict, "outside")
    assert codes(strict, url, 5) == [200, 200, 200, 429, 429]
    answer = strict.client.get(url)
    assert answer.headers["content-type"] == "application/problem+json"
    assert ProblemDocument.model_validate_json(answer.content).code == "too_many_polls"
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_the_first_poll_of_any_job_is_answered(strict: Any) -> None:
    impatient = url_of(strict, "outside")
    assert codes(strict, impatient, 4)[-1] == 429
    assert {codes(strict, url_of(strict, "outside"), 1)[0] for _ in range(20)} == {200}
    assert codes(strict, f"/api/jobs/{new_job_id()}", 5) == [404] * 5


def test_each_way_of_polling_counts(strict: Any) -> None:
    url = url_of(strict, "outside")
    asked = [strict.client.get(url + suffix) for suffix in [*POLLED, *POLLED]]
    assert [answer.status_code for answer in asked] == [200, 202, 200, 429, 429, 429]


def test_who_may_not_poll_may_follow_and_cancel(strict: Any) -> None:
    url = url_of(strict, "outside")
    assert codes(strict, url, 4)[-1] == 429
    assert strict.client.delete(url).status_code == 200
    assert strict.client.get(f"{url}/events").status_code == 200


def test_strangers_use_up_nobodys_patience(open_site: OpenSite) -> None:
    with open_site(options=STRICT, identify=by_header) as site:
        url = url_of(site, "outside", headers={"X-User": "alice"})
        assert codes(site, url, 10) == [404] * 10
        assert codes(site, url, 4, **{"X-User": "alice"}) == [200, 200, 200, 429]


def test_who_has_waited_is_answered_again(open_site: OpenSite, eventually: Eventually) -> None:
    with open_site(options=MountOptions(poll_limit=FAST)) as site:
        url = url_of(site, "outside")
        eventually(lambda: site.client.get(url).status_code == 429)
        eventually(lambda: site.client.get(url).status_code == 200)


@pytest.mark.parametrize("suffix", POLLED)
def test_nobody_is_limited_unless_asked_for(site: Any, suffix: str) -> None:
    url = url_of(site, "outside") + suffix
    assert set(codes(site, url, 100)) <= {200, 202}


def test_a_limited_poll_may_be_held(strict: Any) -> None:
    note = uuid.uuid4().hex
    held: httpx2.Response = strict.client.post(
        "/submit/double", json={"count": 1, "note": note}, headers={"Prefer": "wait=5"}
    )
    url = f"/api/jobs/{held.json()['jobId']}"
    answer = strict.client.get(url, headers={"Prefer": "wait=5"})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
