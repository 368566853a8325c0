"""The React hooks, in the example and in strict mode."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Locator, Page, Route, expect

from tests.npm import install_packages

OpenPage = Callable[..., Page]
Hooked = Callable[..., Page]
Begin = Callable[..., Any]

ROOT = Path(__file__).parents[2]

# React is published as CommonJS; a CDN converts it to modules, as these lines do.
MODULE = """{imports}
const require = (name) => ({{{found}}})[name];
const process = {{env: {{NODE_ENV: "development"}}}}, module = {{exports: {{}}}};
((exports) => {{ {source}
}})(module.exports);
export default module.exports;
export const {{ {names} }} = module.exports;
"""
CDN = "https://esm.sh"
PACKAGES: dict[str, tuple[str, list[str], str]] = {
    f"{CDN}/scheduler": ("scheduler/cjs/scheduler.development.js", [], ""),
    f"{CDN}/react@19.2.0": (
        "react/cjs/react.development.js",
        [],
        "createElement, StrictMode, useCallback, useEffect, useId, useRef, useState",
    ),
    f"{CDN}/react-dom": ("react-dom/cjs/react-dom.development.js", ["react"], ""),
    f"{CDN}/react-dom@19.2.0/client": (
        "react-dom/cjs/react-dom-client.development.js",
        ["react", "react-dom", "scheduler"],
        "createRoot",
    ),
}
WHERE = {"react": f"{CDN}/react@19.2.0"}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Route], None]:
    """Answer requests to the CDN with the packages of the lock file."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        copy(ROOT / "tests" / "javascript" / "js" / name, folder)
    install_packages(folder)

    def answer(route: Route) -> None:
        path, needs, names = PACKAGES[route.request.url]
        body = MODULE.format(
            imports="\n".join(
                f'import * as p{place} from "{WHERE.get(name, f"{CDN}/{name}")}";'
                for place, name in enumerate(needs)
            ),
            found=", ".join(f'"{name}": p{place}.default' for place, name in enumerate(needs)),
            source=(folder / "node_modules" / path).read_text(),
            names=names,
        )
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"}
        route.fulfill(body=body, headers=headers)

    return answer


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, new_url: Callable[[], str]) -> Generator[str]:
    """Serve the example with the command in its first line."""
    folder = tmp_path_factory.mktemp("example")
    config = uvicorn.Config("", port=0)
    with config.bind_socket() as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.listen()  # connections wait until the server accepts them
        command = ["uvicorn", "--fd", str(listening.fileno()), "react_app:app"]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--app-dir", str(ROOT / "examples")],
            cwd=folder,
            env={**os.environ, "EXPORTS_STORE": new_url()},
            pass_fds=[listening.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        yield url
        process.terminate()
        process.wait(timeout=20)


def opened(open_page: OpenPage, modules: Any, url: str, **context: Any) -> Page:
    page = open_page(**context)
    page.route(f"{CDN}/**", modules)
    page.goto(url)
    return page


def quiet(seen: Any) -> None:
    """Drop the messages of React's development build."""
    seen.faults[:] = [text for text in seen.faults if "React DevTools" not in text]


def category(name: str) -> Callable[[Route], None]:
    """Export one category, whatever method filled in the form."""
    body = json.dumps({"format": "csv", "category": name})
    return lambda route: route.continue_(post_data=body)


# Some thousand characters take a moment. No character has category `Xx`: that job fails.
SYMBOLS, NOTHING = category("So"), category("Xx")


def broken(route: Route) -> None:
    route.abort()


def away(route: Route) -> None:
    route.fulfill(status=400, json={"error": "No.", "code": "no"})


@pytest.fixture
def exports(open_page: OpenPage, modules: Any, example: str, seen: Any) -> Generator[Page]:
    """Open the example as a new visitor."""
    page = opened(open_page, modules, f"{example}/react/")
    expect(page.get_by_text("Nothing yet")).to_be_visible()
    yield page
    quiet(seen)


def export_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Export")


def row(page: Page, state: str) -> Locator:
    found = page.locator(f"li[data-state={state}]")
    expect(found).to_have_count(1, timeout=60_000)
    return found


def test_the_example_exports_a_file(exports: Page) -> None:
    exports.route("**/api/exports", SYMBOLS)
    export_button(exports).click()
    link = row(exports, "completed").get_by_role("link", name="Download")
    with exports.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "characters.csv"
    assert download.value.path().read_text().startswith("code_point,character,name")


def test_a_double_click_in_the_example_creates_one_job(exports: Page, seen: Any) -> None:
    exports.route("**/api/exports", SYMBOLS)
    export_button(exports).dblclick()
    row(exports, "completed")
    assert seen.count("/api/exports") == 1


def test_the_example_retries_a_lost_submission_under_the_same_key(exports: Page, seen: Any) -> None:
    exports.route("**/api/exports", away)
    export_button(exports).click()
    expect(exports.get_by_role("alert")).to_have_text(re.compile("could not be started"))
    exports.unroute("**/api/exports")
    exports.route("**/api/exports", SYMBOLS)
    export_button(exports).click()
    row(exports, "completed")
    expect(exports.get_by_role("alert")).to_be_hidden()
    keys = {
        one.headers["idempotency-key"] for one in seen.requests if one.url.endswith("/api/exports")
    }
    assert len(keys) == 1


def test_the_example_shows_progress_and_cancels(exports: Page) -> None:
    export_button(exports).click()
    running = row(exports, "processing")
    expect(running.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(running.get_by_text(re.compile("of 1[0-9]{2},[0-9]{3} rows"))).to_be_visible()
    running.get_by_role("button", name="Cancel").press("Enter")
    cancelled = row(exports, "cancelled")
    expect(cancelled).to_be_focused()
    expect(cancelled.get_by_role("button")).to_have_count(0)


def test_the_example_shows_an_error_and_tries_again(exports: Page) -> None:
    exports.route("**/api/exports", NOTHING)
    export_button(exports).click()
    failed = row(exports, "failed")
    expect(failed.get_by_text("No character has the category Xx.")).to_be_visible()
    exports.unroute("**/api/exports")
    exports.route("**/api/exports", SYMBOLS)
    failed.get_by_role("button", name="Try again").click()
    row(exports, "completed")
    row(exports, "failed")


def test_the_example_lists_the_exports_of_the_visitor_after_a_reload(
    exports: Page, open_page: OpenPage, modules: Any, example: str
) -> None:
    exports.route("**/api/exports", SYMBOLS)
    export_button(exports).click()
    row(exports, "completed")
    exports.reload()
    expect(row(exports, "completed").get_by_role("link", name="Download")).to_be_visible()
    other = opened(open_page, modules, f"{example}/react/")
    expect(other.get_by_text("Nothing yet")).to_be_visible()


def test_the_example_reloads_the_list_after_an_outage(exports: Page) -> None:
    exports.route("**/api/jobs?*", broken)
    exports.reload()
    expect(exports.get_by_role("alert")).to_contain_text("cannot be loaded")
    exports.unroute("**/api/jobs?*")
    exports.get_by_role("button", name="Try again").click()
    expect(exports.get_by_text("Nothing yet")).to_be_visible()
    expect(exports.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_example_fits_a_narrow_page(
    open_page: OpenPage, modules: Any, example: str, seen: Any, scheme: str
) -> None:
    context = {"color_scheme": scheme, "viewport": {"width": 320, "height": 700}}
    page = opened(open_page, modules, f"{example}/react/", **context)
    page.route("**/api/exports", SYMBOLS)
    export_button(page).click()
    row(page, "completed")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    quiet(seen)


HOOKED = """<!doctype html><meta charset="utf-8"><title>A page</title>
<script type="importmap">{"imports": {"react": "https://esm.sh/react@19.2.0",
    "react-dom/client": "https://esm.sh/react-dom@19.2.0/client"}}</script>
<body><script type="module">
import {createElement as h, StrictMode} from "react";
import {createRoot} from "react-dom/client";
import {useAsyncJob, useAsyncJobWs, useJobOutput, useJobs} from "/api/jobs/react.js";
const hooks = {"#socket": useAsyncJobWs, "#jobs": useJobs, "#output": useJobOutput};
const hook = hooks[location.hash] ?? useAsyncJob;
const Shown = ({job}) => {
    window.shown = hook(job);
    return h("output", null, JSON.stringify(shown));
};
const root = createRoot(document.body.appendChild(document.createElement("div")));
window.render = (job) => root.render(
    h(StrictMode, null, job === undefined ? null : h(Shown, {job})));
window.ready = true;
</script></body>"""

IDLE = {
    "isLoading": False,
    "isComplete": False,
    "isFailed": False,
    "isCancelled": False,
    "progress": 0,
}


@pytest.fixture
def hooked(open_page: OpenPage, modules: Any, client: Any, seen: Any) -> Generator[Hooked]:
    page = open_page()
    page.route(f"{CDN}/**", modules)

    def show(how: str, job: Any) -> Page:
        page.goto(f"{client.base_url}/empty#{how}")
        page.set_content(HOOKED)
        page.wait_for_function("window.ready")
        page.evaluate("job => render(job)", job)
        return page

    yield show
    quiet(seen)


def shows(page: Page, **members: Any) -> None:
    page.wait_for_function(
        "wanted => Object.entries(wanted).every("
        "([name, value]) => JSON.stringify(window.shown?.[name]) === JSON.stringify(value))",
        arg=members,
    )


@pytest.mark.parametrize("how", ["events", "socket"])
def test_a_hook_follows_a_job_by_its_id(hooked: Hooked, job: Any, how: str) -> None:
    page = hooked(how, job.id)
    job.tell(percent=42, message="Writing")
    shows(page, isLoading=True, progress=42, message="Writing", isComplete=False)
    job.tell(result={"rows": 7})
    shows(page, isLoading=False, isComplete=True, progress=100, result={"rows": 7})


def test_a_hook_without_a_job_is_idle(hooked: Hooked) -> None:
    page = hooked("events", None)
    shows(page, **IDLE)


def test_a_hook_returns_why_a_job_failed(hooked: Hooked, job: Any) -> None:
    page = hooked("events", job.path)
    job.tell(error="The disk is full.", code="disk_full")
    shows(page, isFailed=True, isLoading=False, error="The disk is full.")


def test_a_hook_returns_an_error_for_an_unknown_job(hooked: Hooked) -> None:
    page = hooked("events", "job_8e03978e-40d5-43dd-bc93-6894a57f9324")
    shows(page, isFailed=True, isLoading=False)
    assert "Job not found" in page.evaluate("shown.error")


def test_a_hook_sends_no_request_if_the_submission_returned_the_end(
    hooked: Hooked, job: Any, seen: Any
) -> None:
    job.tell(result={"rows": 7})
    document = job.until_ended()
    page = hooked("events", {"jobId": job.id, "statusUrl": None, "document": document})
    shows(page, isComplete=True, isLoading=False, result={"rows": 7})
    assert [one.url for one in seen.requests if job.id in one.url] == []


def test_a_hook_treats_an_unknown_terminal_status_as_failed(hooked: Hooked, job: Any) -> None:
    job.tell(result={"rows": 7})
    document = {**job.until_ended(), "status": "skipped", "result": None}
    page = hooked("events", {"jobId": job.id, "statusUrl": None, "document": document})
    shows(page, isFailed=True, isLoading=False, error="The job ended with the status skipped.")


def test_a_hook_cancels_its_job(hooked: Hooked, job: Any) -> None:
    page = hooked("events", job.path)
    shows(page, isLoading=True)
    page.evaluate("shown.cancel()")
    shows(page, isCancelled=True, isLoading=False)


def test_a_hook_drops_its_former_job(hooked: Hooked, job: Any) -> None:
    page = hooked("events", job.path)
    job.tell(percent=42)
    shows(page, progress=42)
    page.evaluate("render(null)")
    shows(page, **IDLE)


def test_an_unmounted_hook_stops_following(hooked: Hooked, job: Any) -> None:
    page = hooked("events", job.path)
    job.tell(percent=42)
    shows(page, progress=42)
    page.evaluate("render(undefined)")
    expect(page.locator("output")).to_have_count(0)
    job.tell(result=7)
    job.until_ended()
    assert page.evaluate("shown.progress") == 42


def titles(page: Page, *wanted: str) -> None:
    page.wait_for_function(
        "wanted => JSON.stringify(window.shown?.jobs.map(job => job.title)) === wanted",
        arg=json.dumps(wanted, separators=(",", ":")),
    )


def as_user(page: Page, client: Any, name: str) -> None:
    page.context.add_cookies([{"name": "user", "value": name, "url": str(client.base_url)}])


def test_a_hook_keeps_the_list_of_a_tag_current(
    hooked: Hooked, client: Any, begin: Begin, seen: Any
) -> None:
    first = begin("ann", tag="customer:42", title="First")
    begin("ann", tag="other", title="Other")
    begin("bob", tag="customer:42", title="Not ann's")
    page = hooked("jobs", None)
    shows(page, jobs=[], isLoading=False)
    as_user(page, client, "ann")
    page.evaluate("render({tag: 'customer:42'})")
    titles(page, "First")
    shows(page, isLoading=False)
    begin("ann", tag="customer:42", title="Second")
    titles(page, "Second", "First")
    first.tell(title="First, half done", metadata={})
    titles(page, "Second", "First, half done")
    page.evaluate("render({tag: 'other'})")
    titles(page, "Other")
    page.evaluate("render({tag: 'other', members: true})")
    titles(page, "Other")
    page.evaluate("render({tag: ' x'})")
    page.wait_for_function("window.shown.error?.includes('a tag must not be empty')")
    page.evaluate("render(undefined)")
    expect(page.locator("output")).to_have_count(0)
    assert seen.count("/api/jobs?tag=customer%3A42") <= 2  # strict mode begins twice
    assert seen.count("/api/jobs?tag=other&members=true") > 0
