"""Lists of jobs in a real browser: hidden, and disconnected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

OpenPage = Callable[..., Page]
Begin = Callable[..., Any]

FOLLOW = """async (options) => {
    const {followJobs} = await import("/api/jobs/client.js");
    const onUpdate = (jobs) => {
        document.body.dataset.titles = jobs.map(job => `${job.title} ${job.progress}`).join();
    };
    window.following = followJobs({tag: "customer:42", onUpdate, ...options});
    window.fault = following.catch(error => error.code);
}"""

HIDE = """(hidden) => {
    Object.defineProperty(document, "visibilityState", {
        configurable: true, get: () => hidden ? "hidden" : "visible"});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture
def page(open_page: OpenPage, client: Any, request: pytest.FixtureRequest) -> Page:
    """Open an empty page of the application's origin, as a user without jobs."""
    page = open_page()
    cookie = {"name": "user", "value": user_of(request), "url": str(client.base_url)}
    page.context.add_cookies([cookie])  # type: ignore[list-item]
    page.goto(f"{client.base_url}/empty")
    return page


def user_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).partition("[")[0]


def shows(page: Page, titles: str) -> None:
    expect(page.locator("body")).to_have_attribute(
        "data-titles",
        titles,
        timeout=20_000,  # a list is polled every five seconds
    )


@pytest.mark.parametrize("transport", ["events", "poll"])
def test_a_list_is_kept_current(
    page: Page, begin: Begin, request: pytest.FixtureRequest, transport: str
) -> None:
    user = f"{user_of(request)}-{transport}"
    page.evaluate("user => { document.cookie = `user=${user}` }", user)
    job = begin(user, tag="customer:42", title="One")
    page.evaluate(FOLLOW, {"transport": transport})
    shows(page, "One 0")
    begin(user, tag="customer:42", title="Two")
    shows(page, "Two 0,One 0")
    job.tell(percent=50)
    shows(page, "Two 0,One 50")


def test_a_hidden_page_holds_no_stream_and_catches_up(
    page: Page, begin: Begin, request: pytest.FixtureRequest, seen: Any
) -> None:
    user = user_of(request)
    begin(user, tag="customer:42", title="One")
    page.evaluate(FOLLOW, {})
    shows(page, "One 0")
    page.evaluate(HIDE, True)
    begin(user, tag="customer:42", title="Two")
    assert seen.count("tag=customer%3A42") == 1
    shows(page, "One 0")
    page.evaluate(HIDE, False)
    shows(page, "Two 0,One 0")


def test_a_broken_connection_is_made_again(
    open_page: OpenPage, proxy: Any, begin: Begin, request: pytest.FixtureRequest
) -> None:
    user = user_of(request)
    begin(user, tag="customer:42", title="One")
    page = open_page()
    origin = f"http://127.0.0.1:{proxy.port}"
    page.goto(f"{origin}/empty")
    page.evaluate("user => { document.cookie = `user=${user}` }", user)
    page.evaluate(FOLLOW, {})
    shows(page, "One 0")
    proxy.cut()
    begin(user, tag="customer:42", title="Two")
    shows(page, "Two 0,One 0")
