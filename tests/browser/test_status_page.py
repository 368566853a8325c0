"""The status page in a real browser: `job` is driven by the test, `seen` records requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

# Elapsed time must not depend on it.
WRONG_CLOCK = datetime(2001, 1, 1, tzinfo=UTC)

# The page's announcements in its live regions.
LISTENING = """addEventListener("DOMContentLoaded", () => {
    const region = document.querySelector("[aria-live=polite]");
    window.announced = [];
    new MutationObserver(() => announced.push(region.textContent)).observe(
        region, {childList: true, characterData: true, subtree: true});
})"""

KEEPING_SOURCES = """
    window.sources = [];
    window.EventSource = class extends EventSource {
        constructor(url) { super(url); sources.push(this); }
    };"""


def part(page: Page, name: str) -> Locator:
    return page.locator(f'[part="{name}"]')


def status(page: Page) -> Locator:
    return part(page, "status")


def broken(route: Route) -> None:
    route.abort()


def test_progress_reaches_the_page_without_a_reload(page: Page, job: Any, seen: Any) -> None:
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    job.tell(percent=42, message="writing", current=16842, total=40100, unit="rows")
    expect(page.get_by_label("Progress")).to_have_js_property("value", 42)
    expect(part(page, "percent")).to_have_text("42%")
    expect(part(page, "message")).to_have_text("writing")
    expect(part(page, "count")).to_have_text("16,842 of 40,100 rows")
    expect(page).to_have_title("42% · Export")
    asked = [one.url for one in seen.requests if one.url != f"{job.url}/output"]
    assert asked == [job.url, f"{job.url}/events"]


def test_text_that_the_job_emits_grows_on_the_page(page: Page, job: Any) -> None:
    job.tell(emit="one <b>two</b>\n")
    page.goto(job.url)
    output = part(page, "output")
    expect(output).to_have_text("one <b>two</b>")
    job.tell(emit=" three &amp; ")
    expect(output).to_have_js_property("textContent", "one <b>two</b>\n three &amp; ")
    job.tell(emit="four")
    job.tell(result=None)
    expect(output).to_have_js_property("textContent", "one <b>two</b>\n three &amp; four")
    page.reload()
    expect(output).to_have_js_property("textContent", "one <b>two</b>\n three &amp; four")


def test_output_that_is_no_text_is_not_on_the_page(page: Page, job: Any) -> None:
    job.tell(emit={"a": "b"})
    with page.expect_response(f"{job.url}/output"):
        page.goto(job.url)
    expect(part(page, "output")).to_be_hidden()


def test_a_new_title_and_new_metadata_reach_the_page(page: Page, job: Any) -> None:
    page.goto(job.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Export")
    hostile = "<img src=x onerror=alert(1)>"
    job.tell(title=f"Customers {hostile}", metadata={"file": hostile, "rows": [1, "a"]})
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Customers {hostile}")
    expect(page).to_have_title(f"In progress · Customers {hostile}")
    expect(part(page, "name")).to_have_text(["file", "rows"])
    expect(part(page, "value")).to_have_text([hostile, '[1,"a"]'])
    shown = part(page, "metadata").inner_html()
    job.tell(title="All customers", metadata={})
    expect(page.get_by_role("heading", level=1)).to_have_text("All customers")
    expect(part(page, "value")).to_have_count(0)
    job.tell(title=f"Customers {hostile}", metadata={"file": hostile, "rows": [1, "a"]})
    expect(part(page, "value")).to_have_count(2)
    page.reload()
    expect(part(page, "value")).to_have_count(2)
    assert part(page, "metadata").inner_html() == shown


def test_completion_shows_the_result_and_ends_the_stream(page: Page, job: Any, seen: Any) -> None:
    page.add_init_script(KEEPING_SOURCES)
    page.goto(job.url)
    expect(page.get_by_role("link", name="Download result")).to_be_hidden()
    job.tell(result={"rows": 2})
    expect(status(page)).to_have_text("Completed")
    assert page.evaluate("sources.map(source => source.readyState)") == [2]
    expect(page).to_have_title("Completed · Export")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(page.get_by_text("Finished")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download result").click()
    assert download.value.suggested_filename == "export.json"
    assert download.value.path().read_bytes() == b'{"rows":2}'
    assert seen.count("/events") == 1
    assert seen.count(job.path) == 1  # the page itself


def test_a_failure_is_shown(page: Page, job: Any) -> None:
    page.goto(job.url)
    expect(part(page, "error")).to_be_hidden()
    job.tell(error="The <b>disk</b> is full.", code="disk_full")
    expect(status(page)).to_have_text("Failed")
    expect(part(page, "error")).to_have_text("The <b>disk</b> is full.")
    expect(part(page, "code")).to_be_hidden()
    page.get_by_text("Technical details").click()
    expect(part(page, "code")).to_have_text("disk_full")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(page.get_by_role("link", name="Download result")).to_be_hidden()


def test_a_running_job_can_be_cancelled_in_place(page: Page, job: Any, seen: Any) -> None:
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(status(page)).to_have_text("Cancelled")
    expect(page.get_by_role("button")).to_have_count(0)
    # The button is gone: keyboard focus moves to the status.
    expect(status(page)).to_be_focused()
    assert job.document()["status"] == "cancelled"
    assert sum(request.is_navigation_request() for request in seen.requests) == 1


def test_a_cancellation_that_fails_can_be_tried_again(page: Page, job: Any) -> None:
    page.route("**/cancel", broken)
    page.goto(job.url)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile("could not be cancelled"))
    page.unroute("**/cancel")
    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")
    expect(part(page, "note")).to_have_css("display", "none")


def answer_with(status: int) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, json={"error": "No.", "code": "no"})


@pytest.mark.parametrize(
    ("code", "words", "note"),
    [
        (404, "Not found", "no longer exists"),
        (410, "Not found", "no longer exists"),
        (401, "Not signed in", "Sign in"),
        (403, "Not signed in", "Sign in"),
    ],
)
def test_an_open_page_shows_that_access_to_its_job_was_lost(
    page: Page, job: Any, code: int, words: str, note: str
) -> None:
    page.route("**/events", broken)
    page.goto(job.url)
    job.tell(percent=42, message="Uploading", current=1, total=2)
    expect(part(page, "percent")).to_have_text("42%")
    page.route(job.url, answer_with(code))
    expect(status(page)).to_have_text(words, timeout=20_000)
    expect(page.get_by_role("alert")).to_contain_text(note)
    expect(page).to_have_title(f"{words} · Export")
    for gone in ("percent", "message", "count", "elapsed", "bar", "cancel"):
        expect(part(page, gone)).to_be_hidden()


def test_a_cancellation_of_a_deleted_job_shows_that_it_is_gone(page: Page, job: Any) -> None:
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    page.route("**/cancel", answer_with(404))
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(status(page)).to_have_text("Not found")
    expect(status(page)).to_be_focused()


def test_a_link_that_has_expired_is_a_page(page: Page, client: Any) -> None:
    page.goto(f"{client.base_url}/api/jobs/job_8e03978e-40d5-43dd-bc93-6894a57f9324")
    expect(page.get_by_role("heading", name="Job not found")).to_be_visible()


def test_a_job_without_progress_has_an_indeterminate_bar(page: Page, job: Any) -> None:
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    expect(part(page, "bar")).not_to_have_attribute("value", "0")
    expect(part(page, "percent")).to_be_empty()


def test_the_progress_message_disappears_at_the_end(page: Page, job: Any) -> None:
    page.goto(job.url)
    job.tell(percent=90, message="Uploading", current=9, total=10)
    expect(part(page, "message")).to_have_text("Uploading")
    job.tell(result=7)
    expect(status(page)).to_have_text("Completed")
    expect(part(page, "message")).to_be_empty()
    expect(part(page, "count")).to_have_text("9 of 10")


def test_a_reloaded_page_shows_the_same(page: Page, job: Any) -> None:
    page.goto(job.url)
    job.tell(percent=60)
    expect(part(page, "percent")).to_have_text("60%")
    page.reload()
    expect(part(page, "percent")).to_have_text("60%")
    expect(page).to_have_title("60% · Export")


def test_without_javascript_the_page_is_refreshed(
    open_page: Callable[..., Page], job: Any, seen: Any
) -> None:
    page = open_page(java_script_enabled=False)
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    job.tell(percent=50, message="halfway")
    expect(part(page, "percent")).to_have_text("50%")
    job.tell(result=None)
    expect(page.get_by_role("link", name="Download result")).to_be_visible()
    assert all(request.is_navigation_request() for request in seen.requests)


@pytest.mark.parametrize("host", ["127.0.0.1", "jobs.test"])
def test_without_javascript_a_job_can_be_cancelled(
    open_page: Callable[..., Page], job: Any, host: str
) -> None:
    page = open_page(java_script_enabled=False)
    url = job.url.replace("127.0.0.1", host)
    page.goto(url)
    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")
    expect(page).to_have_url(url)


def test_elapsed_time_is_measured_by_the_server_clock(page: Page, job: Any) -> None:
    page.clock.install(time=WRONG_CLOCK)
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    expect(part(page, "elapsed")).to_have_text(re.compile("^(under )?[01] s of about 30 s$"))
    page.clock.run_for(65_000)
    expect(part(page, "elapsed")).to_have_text(re.compile("^1 min [4-6] s, longer than usual$"))


def test_times_are_shown_in_the_readers_locale_and_zone(
    open_page: Callable[..., Page], job: Any
) -> None:
    page = open_page(locale="de-DE", timezone_id="Pacific/Auckland")
    page.goto(job.url)
    created = datetime.fromisoformat(job.document()["createdAt"])
    expect(part(page, "created")).to_have_text(re.compile(r"\d\d\.\d\d\.\d{4}, \d\d:\d\d:\d\d"))
    expect(part(page, "created")).not_to_have_text(re.compile(f"{created:%H:%M:%S}"))


def test_announcements_are_few(page: Page, job: Any) -> None:
    page.add_init_script(LISTENING)
    page.goto(job.url)
    expect(status(page)).to_have_text("In progress")
    for percent in (10, 24, 26, 30, 49, 52, 53):
        job.tell(percent=percent)
        expect(part(page, "percent")).to_have_text(f"{percent}%")
    job.tell(error="The disk is full.", code="disk_full")
    expect(status(page)).to_have_text("Failed")
    announced = page.evaluate("announced")
    assert [text for text in announced if text != "In progress"] == [
        "In progress, 25%",
        "In progress, 50%",
        "Failed. The disk is full.",
    ]


def test_absolute_links_to_the_same_origin_work(page: Page, absolute_job: Any) -> None:
    job = absolute_job
    page.goto(job.url)
    job.tell(percent=33)
    expect(part(page, "percent")).to_have_text("33%")
    page.get_by_role("button", name="Cancel").click()
    expect(status(page)).to_have_text("Cancelled")


def test_the_page_shows_the_end_after_a_lost_connection(page: Page, proxy: Any, job: Any) -> None:
    page.goto(proxy.through(job.url))
    expect(status(page)).to_have_text("In progress")
    proxy.cut()
    job.tell(result=1)
    expect(status(page)).to_have_text("Completed", timeout=60_000)
