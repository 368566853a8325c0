"""Output in a page that is reloaded, hidden by a cut connection, or tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Seen
from tests.browser.test_react import hooked, modules, quiet, shows

__all__ = ["hooked", "modules"]

Hooked = Callable[..., Page]


def offsets(seen: Seen) -> list[str]:
    """Return the offsets that the page asked for."""
    urls = [urlsplit(one.url) for one in seen.requests]
    return [parse_qs(url.query)["offset"][0] for url in urls if url.path.endswith("/output")]


def test_a_page_that_reloads_in_the_middle_shows_each_item_once(
    hooked: Hooked, job: Any, seen: Any
) -> None:
    page = hooked("output", job.path)
    items = [{"n": number} for number in range(6)]
    for item in items[:3]:
        job.tell(emit=item)
    shows(page, items=items[:3], isLoading=True, epoch=1)
    page.reload()
    hooked("output", job.path)
    shows(page, items=items[:3])
    assert offsets(seen)[0] == "-1"
    for item in items[3:]:
        job.tell(emit=item)
    shows(page, items=items)
    assert offsets(seen)[-1] > "000001-0000000000000003"  # not from the start
    job.tell(result=None)
    shows(page, items=items, isLoading=False, isComplete=True)
    assert page.evaluate("sessionStorage.length") == 0


def test_a_page_that_loads_after_the_end_shows_all_of_it(hooked: Hooked, job: Any) -> None:
    for word in ("one ", "two ", "three"):
        job.tell(emit=word)
    job.tell(result=None)
    job.until_ended()
    page = hooked("output", job.path)
    shows(page, text="one two three", isComplete=True, epoch=1)
    page.reload()
    hooked("output", job.path)
    shows(page, text="one two three", isComplete=True, epoch=1)


def test_the_output_of_a_later_attempt_replaces_that_of_the_first(hooked: Hooked, job: Any) -> None:
    page = hooked("output", job.path)
    job.tell(emit={"attempt": 1})
    shows(page, items=[{"attempt": 1}], epoch=1)
    job.tell(fault="lost")
    job.tell(emit={"attempt": 2})
    shows(page, items=[{"attempt": 2}], epoch=2)


def test_many_items_are_rendered_together(hooked: Hooked, job: Any) -> None:
    page = hooked("output", job.path)
    page.evaluate(
        """() => {
            window.renders = 0;
            new MutationObserver(() => renders++).observe(document.body, {
                subtree: true, childList: true, characterData: true,
            });
        }"""
    )
    for number in range(300):
        job.tell(emit=[number])
    job.tell(result=None)
    shows(page, isComplete=True, items=[[number] for number in range(300)])
    assert page.evaluate("window.renders") < 300


def test_output_goes_on_after_the_connection_was_cut(page: Page, job: Any, proxy: Any) -> None:
    page.goto(f"http://127.0.0.1:{proxy.port}/empty")
    page.evaluate(
        """url => import("/api/jobs/client.js").then(({ followOutput }) => {
            window.items = [];
            const onItems = (items) => window.items.push(...items);
            window.ended = null;
            followOutput(url, { onItems }).then((end) => (window.ended = end));
        })""",
        job.path,
    )
    job.tell(emit={"n": 1})
    page.wait_for_function("window.items.length === 1")
    proxy.cut()
    job.tell(emit={"n": 2})
    page.wait_for_function("window.items.length === 2")
    job.tell(emit={"n": 3})
    job.tell(result=None)
    page.wait_for_function("window.ended?.epoch === 1")
    assert page.evaluate("window.items") == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_an_unknown_job_is_an_error(hooked: Hooked) -> None:
    page = hooked("output", "job_8e03978e-40d5-43dd-bc93-6894a57f9324")
    shows(page, isLoading=False, isComplete=False, items=[])
    page.wait_for_function("shown.error?.includes('ot found')")


@pytest.fixture(autouse=True)
def _quiet(seen: Any) -> Any:
    yield
    quiet(seen)
