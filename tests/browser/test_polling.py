"""The status page without events: it polls."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, Request, Route, expect

# The page's clock stands still until the test moves it.
START = datetime(2001, 1, 1, tzinfo=UTC)

# The page's pauses between polls; the wait for the first event is not one of them.
KEEPING_PAUSES = """
    const setTimer = window.setTimeout, pauses = [];
    window.setTimeout = (work, pause) => {
        if (work.name === "poll") document.body.dataset.pauses = pauses.push(pause);
        window.pauses = pauses;
        return setTimer(work, pause);
    };"""


def broken(route: Route) -> None:
    route.abort()


def unanswered(_: Route) -> None:
    pass


def polled(page: Page, job: Any) -> Any:
    """Wait until the page has received the status document."""
    return page.expect_response(lambda answer: is_poll(answer.request, job))


def is_poll(request: Request, job: Any) -> bool:
    return bool(request.url == job.url) and not request.is_navigation_request()


def polls(seen: Any, job: Any) -> int:
    return sum(is_poll(request, job) for request in seen.requests)


def stop_clock(page: Page) -> None:
    page.clock.install(time=START)
    page.clock.pause_at(START + timedelta(seconds=1))


def report_all(page: Page) -> None:
    """Wait until the browser has reported all requests so far, which it does in order."""
    page.evaluate("fetch(`${location}/operation`).then(() => null)")


def answer_events(page: Page, *answers: int) -> None:
    """Let each stream end at once, with its status; the next connection breaks."""
    left = list(answers)

    def answer(route: Route) -> None:
        if not left:
            route.abort()
        elif (status := left.pop(0)) == 200:
            route.fulfill(status=200, content_type="text/event-stream", body="retry: 10\n\n")
        else:
            route.fulfill(status=status)

    page.route("**/events", answer)


@pytest.fixture
def polling(page: Page, job: Any) -> Page:
    """A page without events, with a clock that the test moves."""
    page.route("**/events", broken)
    stop_clock(page)
    page.add_init_script(KEEPING_PAUSES)
    page.goto(job.url)
    wait_for_pauses(page, 1)
    return page


def pauses(page: Page) -> list[int]:
    found: list[int] = page.evaluate("pauses")
    return found


def wait_for_pauses(page: Page, count: int) -> None:
    # Not a function: the page's policy forbids evaluating one repeatedly.
    expect(page.locator("body")).to_have_attribute("data-pauses", str(count))


def test_the_page_polls_if_events_are_blocked(polling: Page, job: Any) -> None:
    job.tell(result=1)
    job.until_ended()
    assert polling.locator("[part=status]").text_content() == "In progress"
    polling.clock.fast_forward(pauses(polling)[0])
    expect(polling.locator("[part=status]")).to_have_text("Completed")


@pytest.mark.parametrize(("header", "member"), [("7", None), ("0", 7), ("0", None)])
def test_polling_follows_retry_after(
    polling: Page, job: Any, header: str, member: int | None
) -> None:
    document = {**job.document(), "retryAfter": member}
    [first] = pauses(polling)
    polling.route(
        job.url, lambda route: route.fulfill(json=document, headers={"Retry-After": header})
    )
    polling.clock.fast_forward(first)
    wait_for_pauses(polling, 2)
    told = header == "7" or member == 7
    assert pauses(polling)[1] == (7000 if told else 2 * first)


def test_polling_ends_with_the_job(polling: Page, job: Any, seen: Any) -> None:
    job.tell(result=1)
    job.until_ended()
    polling.clock.fast_forward(5000)
    expect(polling.locator("[part=status]")).to_have_text("Completed")
    polling.clock.run_for(60_000)
    report_all(polling)
    assert polls(seen, job) == 2


def test_a_hidden_page_does_not_poll(polling: Page, job: Any, seen: Any) -> None:
    polling.evaluate("Object.defineProperty(document, 'hidden', {value: true, writable: true})")
    polling.clock.run_for(60_000)
    report_all(polling)
    assert polls(seen, job) == 1
    with polled(polling, job):
        polling.evaluate(
            "document.hidden = false; "
            "document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))"
        )


def test_a_browser_without_events_polls(page: Page, job: Any) -> None:
    page.add_init_script("delete window.EventSource")
    with polled(page, job):
        page.goto(job.url)


def test_a_stream_that_ends_before_its_job_is_reopened(page: Page, job: Any, seen: Any) -> None:
    stop_clock(page)
    answer_events(page, 200, 200, 200, 200, 200)
    with polled(page, job):
        page.goto(job.url)
    assert seen.count("/events") == 7  # five streams that ended; only the last one counts


def test_a_refused_stream_is_not_requested_again(page: Page, job: Any, seen: Any) -> None:
    stop_clock(page)
    answer_events(page, 200, 204)
    with polled(page, job):
        page.goto(job.url)
    assert seen.count("/events") == 2


def test_the_page_polls_if_a_proxy_buffers_events(page: Page, job: Any) -> None:
    page.route("**/events", unanswered)
    stop_clock(page)
    page.goto(job.url)
    with polled(page, job):
        page.clock.fast_forward(5000)


def test_an_unreachable_server_shows_an_alert_and_is_retried(polling: Page, job: Any) -> None:
    polling.route(job.url, broken)
    polling.clock.fast_forward(5000)
    expect(polling.get_by_role("alert")).to_have_text(re.compile("cannot be reached"))
    polling.unroute(job.url)
    wait_for_pauses(polling, 2)
    polling.clock.fast_forward(30_000)
    expect(polling.get_by_role("alert")).to_be_hidden()


def test_a_deleted_job_is_not_polled_again(polling: Page, job: Any, seen: Any) -> None:
    polling.route(job.url, lambda route: route.fulfill(status=404, body="{}"))
    polling.clock.fast_forward(5000)
    expect(polling.get_by_role("alert")).to_have_text(re.compile("no longer exists"))
    polling.clock.run_for(60_000)
    report_all(polling)
    assert polls(seen, job) == 2
