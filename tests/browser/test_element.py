"""The look, accessibility and behaviour of <async-job>."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.waiting import until_sync

OpenPage = Callable[..., Page]
Show = Callable[..., Page]

# The policy of a page without any inline code.
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; trusted-types 'none'"

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="color-scheme" content="light dark">
<script type="module" src="/api/jobs/element.js"></script>
<body><async-job status-url="{url}" {more}></async-job></body></html>"""

LONG = "https://exports.example.com/" + "a-very-long-name-without-any-space" * 4

NEVER = "/api/jobs/job_8e03978e-40d5-43dd-bc93-6894a57f9324"


@pytest.fixture
def show(page: Page, client: Any) -> Show:
    """Open a page with the element, under a strict policy."""

    def opened(url: str, more: str = "", on: Page = page) -> Page:
        headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html"}
        body = PAGE.format(url=url, more=more)
        on.route("**/element", lambda route: route.fulfill(body=body, headers=headers))
        on.goto(f"{client.base_url}/element")
        return on

    return opened


def state(page: Page, words: str) -> None:
    expect(page.locator("async-job")).to_have_attribute("state", words)


def test_it_shows_a_job_up_to_its_result(show: Show, job: Any) -> None:
    page = show(job.path)
    bar = page.get_by_role("progressbar", name="Progress")
    job.tell(percent=42, message="<b>Writing</b>")
    expect(bar).to_have_js_property("value", 42)
    expect(page.get_by_text("<b>Writing</b>")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(page.get_by_role("link")).to_be_hidden()
    job.tell(result={"rows": 7})
    state(page, "completed")
    expect(page.get_by_role("link", name="Download result")).to_have_attribute(
        "href", f"{job.url}/result"
    )
    expect(page.get_by_role("button")).to_be_hidden()


def test_it_shows_the_title_of_a_job_that_has_one(show: Show, job: Any) -> None:
    page = show(job.path)
    state(page, "processing")
    title = page.locator("async-job").locator("[part=title]")
    expect(title).to_be_hidden()
    job.tell(title="<b>Customers</b>", metadata={})
    expect(title).to_have_text("<b>Customers</b>")
    expect(title).to_be_visible()


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("/exports/1.csv", "/exports/1.csv"),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        (7, None),
    ],
)
def test_a_result_can_set_the_link_but_not_to_a_script(
    show: Show, job: Any, client: Any, link: object, found: str | None
) -> None:
    page = show(job.path, 'result-link="download_url"')
    job.tell(result={"download_url": link})
    state(page, "completed")
    wanted = f"{job.url}/result" if found is None else str(client.base_url.join(found))
    expect(page.get_by_role("link")).to_have_attribute("href", wanted)


def test_it_shows_why_a_job_failed(show: Show, job: Any) -> None:
    page = show(job.path)
    job.tell(error="The disk is full.", code="disk_full")
    expect(page.locator("[part=error]")).to_have_text("The disk is full.")
    expect(page.get_by_role("status")).to_have_text("Failed. The disk is full.")


def test_the_button_cancels_the_job(show: Show, job: Any) -> None:
    page = show(job.path)
    state(page, "processing")
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    expect(page.get_by_role("button")).to_be_hidden()


def test_focus_stays_in_the_element_after_a_cancel_by_keyboard(show: Show, job: Any) -> None:
    page = show(job.path)
    state(page, "processing")
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    state(page, "cancelled")
    assert page.evaluate("document.activeElement.shadowRoot?.activeElement?.part.value") == "status"


def refuse(route: Route) -> None:
    route.fulfill(status=403, json={"error": "No.", "code": "cross_site"})


def test_it_shows_an_alert_if_the_cancel_fails(show: Show, job: Any) -> None:
    page = show(job.path)
    state(page, "processing")
    page.route("**/cancel", refuse)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("could not be cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()


def test_it_shows_that_the_job_does_not_exist(show: Show) -> None:
    page = show(NEVER)
    state(page, "gone")
    expect(page.locator("[part=status]")).to_have_text("Not found")
    expect(page.get_by_role("alert")).to_contain_text("no longer exists")
    for part in ("bar", "cancel", "result"):
        expect(page.locator(f"[part={part}]")).to_be_hidden()


def signed_out(route: Route) -> None:
    route.fulfill(status=401, json={"error": "No.", "code": "no"})


def test_it_shows_that_the_reader_is_not_signed_in(page: Page, show: Show, job: Any) -> None:
    page.route(f"**{job.path}*", signed_out)
    page.route("**/events", signed_out)
    show(job.path)
    state(page, "refused")
    expect(page.get_by_role("alert")).to_contain_text("Sign in")


def test_it_shows_the_count_and_the_time(show: Show, job: Any) -> None:
    page = show(job.path)
    job.tell(percent=42, message="Writing", current=16842, total=40100, unit="rows")
    expect(page.locator("[part=count]")).to_have_text("16,842 of 40,100 rows")
    expect(page.locator("[part=elapsed]")).to_have_text(re.compile("[0-9] s of about 30 s"))
    job.tell(result=7)
    state(page, "completed")
    expect(page.locator("[part=message]")).to_be_empty()
    expect(page.locator("[part=elapsed]")).to_have_text(re.compile("^Took (under )?[0-9]+ s$"))


def test_long_words_do_not_widen_a_narrow_page(open_page: OpenPage, show: Show, job: Any) -> None:
    page = show(job.path, on=open_page(viewport={"width": 320, "height": 640}))
    job.tell(percent=10, message=LONG, current=1, total=2, unit=LONG)
    expect(page.locator("[part=message]")).to_have_text(LONG)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    job.tell(error=LONG, code="x")
    expect(page.locator("[part=error]")).to_have_text(LONG)
    assert page.evaluate("document.documentElement.scrollWidth") == 320


SHARED = """() => [
    "status", "percent", "bar", "message", "count", "elapsed", "error", "cancel"
].map(part => {
    const root = document.querySelector("async-job")?.shadowRoot ?? document;
    const found = root.querySelector(`[part=${part}]`);
    const style = getComputedStyle(found.querySelector("button") ?? found);
    return [part, style.color, style.fontSize, style.fontWeight, style.height, style.borderColor,
        style.borderRadius, style.padding, found.textContent];
})"""


# Texts have the font and colour of the surrounding page.
SAME_TEXT = """() => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`body {
        color: light-dark(#1b1f24, #e8eaed); font: 1rem/1.5 system-ui, sans-serif; }`);
    document.adoptedStyleSheets = [sheet];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_the_status_page(
    open_page: OpenPage, show: Show, job: Any, scheme: str
) -> None:
    job.tell(percent=42, message="Writing", current=16842, total=40100, unit="rows")
    until_sync(lambda: job.document()["progress"] == 42)
    looks: list[list[list[str]]] = []
    for own in (True, False):
        page = open_page(color_scheme=scheme)
        page.clock.install()
        if own:
            page.goto(job.url)
        else:
            show(job.path, on=page)
            page.evaluate(SAME_TEXT)
        expect(page.locator("[part=percent]")).to_have_text("42%")
        looks.append(page.evaluate(SHARED))
    assert without_time(looks[0]) == without_time(looks[1])


def without_time(looks: list[list[str]]) -> list[list[str]]:
    return [[*style, text if part != "elapsed" else ""] for part, *style, text in looks]


def test_a_new_url_attribute_shows_the_new_job(show: Show, job: Any) -> None:
    page = show(NEVER)
    state(page, "gone")
    page.evaluate("url => { document.querySelector('async-job').statusUrl = url; }", job.path)
    job.tell(percent=10)
    state(page, "processing")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_it_dispatches_events_to_the_page(show: Show, job: Any) -> None:
    page = show(job.path)
    page.evaluate("""() => {
        for (const name of ["job-update", "job-end"]) document.addEventListener(
            name, ({detail}) => document.body.setAttribute(name, detail.status));
    }""")
    job.tell(result=7)
    expect(page.locator("body")).to_have_attribute("job-end", "completed")
    expect(page.locator("body")).to_have_attribute("job-update", "completed")


def test_a_removed_element_stops_following(show: Show, job: Any) -> None:
    page = show(job.path)
    job.tell(percent=10)
    state(page, "processing")
    page.evaluate("window.taken = document.querySelector('async-job'); taken.remove();")
    job.tell(result=7)
    job.until_ended()
    assert page.evaluate("taken.job.status") == "processing"
    page.evaluate("document.body.append(taken)")
    state(page, "completed")


COLOURS = """() => ["status", "percent", "message", "cancel"].map(part => getComputedStyle(
    document.querySelector("async-job").shadowRoot.querySelector(`[part=${part}]`)).color)"""


def test_text_is_readable_on_a_light_page_in_dark_mode(
    open_page: OpenPage, show: Show, job: Any
) -> None:
    colours: list[list[str]] = []
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        show(job.path, on=page)
        page.evaluate("document.querySelector('meta[name=color-scheme]').remove()")
        state(page, "processing")
        colours.append(page.evaluate(COLOURS))
    assert colours[0] == colours[1]


def test_the_bar_is_visible_in_forced_colours(open_page: OpenPage, show: Show, job: Any) -> None:
    page = open_page(forced_colors="active")
    show(job.path, on=page)
    job.tell(percent=42)
    # Browsers draw it in the forced colours only if the page does not style it.
    expect(page.get_by_role("progressbar")).to_have_css("appearance", "auto")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_both_colour_schemes(
    open_page: OpenPage, show: Show, job: Any, tmp_path: Path, scheme: str
) -> None:
    page = show(job.path, on=open_page(color_scheme=scheme, viewport={"width": 480, "height": 240}))
    job.tell(percent=42, message="Writing the file")
    expect(page.get_by_role("status")).to_have_text("In progress, 25%")
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")
    expect(page.locator("async-job")).to_match_aria_snapshot("""
        - paragraph: In progress 42%
        - progressbar "Progress"
        - paragraph: Writing the file
        - paragraph: /of about 30 s/
        - status: In progress, 25%
        - button "Cancel"
    """)
    page.screenshot(path=tmp_path / f"{scheme} processing.png")
    job.tell(result=7)
    state(page, "completed")
    page.screenshot(path=tmp_path / f"{scheme} completed.png")
