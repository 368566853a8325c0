"""The client in a real browser: hidden, offline, reloaded, and disconnected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

OpenPage = Callable[..., Page]

FOLLOW = """async ([url, options]) => {
    const {followJob} = await import("/api/jobs/client.js");
    window.versions = [];
    const said = new AbortController();
    window.leave = () => said.abort();
    const onUpdate = (job) => {
        versions.push(job.version);
        document.body.dataset.progress = job.progress;
        document.body.dataset.status = job.status;
    };
    window.job = followJob(url, {onUpdate, signal: said.signal, ...options});
    const told = (error) => error.name === "JobError" ? error.code : error.name;
    window.end = job.then(job => job.status, told);
}"""

RESUME = """async () => {
    const {resumeJobs} = await import("/api/jobs/client.js");
    const onUpdate = (job) => {
        document.body.dataset.progress = job.progress;
        document.body.dataset.status = job.status;
    };
    return [...resumeJobs({onUpdate}).keys()].map(url => new URL(url).pathname);
}"""

# Chromium does not hide the tabs of a headless window.
HIDE = """(hidden) => {
    Object.defineProperty(document, "visibilityState", {
        configurable: true, get: () => hidden ? "hidden" : "visible"});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture
def page(open_page: OpenPage, client: Any) -> Page:
    """Open an empty page of the application's origin."""
    page = open_page()
    page.goto(f"{client.base_url}/empty")
    return page


def follow(page: Page, job: Any, **options: Any) -> None:
    page.evaluate(FOLLOW, [job.path, options])


def shows(page: Page, progress: int) -> None:
    expect(page.locator("body")).to_have_attribute("data-progress", str(progress))


def ends(page: Page, status: str = "completed") -> None:
    assert page.evaluate("end") == status
    versions: list[int] = page.evaluate("versions")
    assert versions == sorted(set(versions))


def count(seen: Any, job: Any) -> int:
    return sum(request.url == job.url for request in seen.requests)


def test_events_bring_each_step_and_the_end(page: Page, job: Any, seen: Any) -> None:
    follow(page, job)
    for percent in (10, 20, 30):
        job.tell(percent=percent)
        shows(page, percent)
    job.tell(result=7)
    ends(page)
    assert (seen.count("/events"), count(seen, job)) == (1, 0)


def broken(route: Route) -> None:
    route.abort()


def test_held_reads_take_over_if_events_are_blocked(page: Page, job: Any, seen: Any) -> None:
    page.route("**/events", broken)
    follow(page, job)
    job.tell(percent=10)
    shows(page, 10)
    job.tell(result=7)
    ends(page)
    asked = [one.headers.get("prefer") for one in seen.requests if one.url == job.url]
    assert "wait=25" in asked


def test_a_socket_brings_each_step_and_the_end(page: Page, job: Any, seen: Any) -> None:
    follow(page, job, transport="socket")
    job.tell(percent=10)
    shows(page, 10)
    job.tell(result=7)
    ends(page)
    assert (seen.count("/events"), count(seen, job)) == (0, 0)


def test_events_take_over_if_no_socket_opens(page: Page, job: Any, seen: Any) -> None:
    follow(page, job, transport="socket", socketUrl="ws://127.0.0.1:9/nothing")
    job.tell(percent=10)
    shows(page, 10)
    job.tell(result=7)
    ends(page)
    assert seen.count("/events") == 1
    assert all("WebSocket connection" in text for text in seen.faults)
    seen.faults.clear()


@pytest.mark.parametrize("transport", ["socket", "events"])
def test_an_unknown_job_is_an_error(page: Page, transport: str) -> None:
    never = "/api/jobs/job_8e03978e-40d5-43dd-bc93-6894a57f9324"
    page.evaluate(FOLLOW, [never, {"transport": transport}])
    assert page.evaluate("end") == "job_not_found"


def a_page(route: Route) -> None:
    route.fulfill(body="<title>Log in</title>", content_type="text/html")


def test_a_page_in_place_of_events_and_status_is_an_error(page: Page, seen: Any) -> None:
    page.route("**/api/jobs/login**", a_page)
    page.route("**/api/jobs/login/events", a_page)
    page.evaluate(FOLLOW, ["/api/jobs/login", {}])
    assert page.evaluate("end") == "not_a_job"
    seen.faults[:] = [text for text in seen.faults if "has a MIME type" not in text]


def test_endless_redirects_are_an_error(page: Page) -> None:
    page.evaluate(FOLLOW, ["/circle", {}])
    assert page.evaluate("end") == "redirect_loop"


def test_a_hidden_tab_pauses_until_it_is_visible(page: Page, job: Any) -> None:
    follow(page, job)
    job.tell(percent=10)
    shows(page, 10)
    page.evaluate(HIDE, True)
    job.tell(result=7)
    job.until_ended()
    page.evaluate("fetch('/empty').then(() => null)")  # everything sent before has arrived
    assert page.evaluate("versions.at(-1)") == 3
    shows(page, 10)
    page.evaluate(HIDE, False)
    ends(page)


def test_a_hidden_tab_goes_on_with_background(page: Page, job: Any) -> None:
    page.evaluate(HIDE, True)
    follow(page, job, background=True)
    job.tell(result=7)
    ends(page)


def test_following_resumes_when_the_network_is_back(page: Page, job: Any) -> None:
    follow(page, job)
    job.tell(percent=10)
    shows(page, 10)
    page.context.set_offline(True)
    job.tell(result=7)
    page.context.set_offline(False)
    ends(page)


def test_a_kept_job_is_resumed_after_a_reload(page: Page, job: Any) -> None:
    follow(page, job, keep=True)
    job.tell(percent=10)
    shows(page, 10)
    page.reload()
    assert page.evaluate(RESUME) == [job.path]
    shows(page, 10)
    job.tell(result=7)
    expect(page.locator("body")).to_have_attribute("data-status", "completed")
    assert page.evaluate("localStorage.length") == 0
    page.reload()
    assert page.evaluate(RESUME) == []


def test_a_signal_ends_the_following(page: Page, job: Any) -> None:
    follow(page, job)
    job.tell(percent=10)
    shows(page, 10)
    page.evaluate("leave()")
    assert page.evaluate("end") == "AbortError"


@pytest.mark.parametrize("transport", ["events", "wait", "socket"])
def test_following_survives_cut_connections(
    open_page: OpenPage, job: Any, proxy: Any, transport: str
) -> None:
    page = open_page()
    page.goto(proxy.through(f"{job.client.base_url}/empty"))
    follow(page, job, transport=transport)
    for percent in (10, 20):
        job.tell(percent=percent)
        shows(page, percent)
        proxy.cut()
    job.tell(result=7)
    ends(page)
