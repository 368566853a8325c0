"""The example of a chat with npm `ai` and `@ai-sdk/react`, unmodified: in Node and in a browser."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import browser, open_page, seen
from tests.npm import NODE, install_packages

__all__ = ["browser", "open_page", "seen"]

Serve = Callable[..., AbstractContextManager[httpx2.Client]]

SCRIPTS = Path(__file__).parent / "ai"
UVICORN = ("uvicorn", "--app-dir", "{examples}/chat_app", "--port", "{port}", "app:app")
ANSWER = "“why?”. I have no model, so I count. " + ", ".join(map(str, range(1, 101)))

# React is published as CommonJS, whose names a bundler cannot export by itself.
ENTRIES = {
    "react": "import all from 'react'; export default all;"
    "export const { createElement, StrictMode, useState } = all;",
    "react-dom": "export { createRoot } from 'react-dom/client';",
    "@ai-sdk": "export { useChat } from '@ai-sdk/react';",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm") / "ai"
    copytree(SCRIPTS, folder, ignore=ignore_patterns("node_modules"))
    install_packages(folder)
    return folder


@pytest.fixture(scope="module")
def cdn(packages: Path) -> Callable[[Route], None]:
    """Answer requests to the CDN with the packages of the lock file, which share one React."""
    for name, source in ENTRIES.items():
        (packages / f"{name.strip('@')}.js").write_text(source)
    entries = [f"{name.strip('@')}.js" for name in ENTRIES]
    options = ["--bundle", "--splitting", "--format=esm", "--outdir=built", "--log-level=error"]
    define = '--define:process.env.NODE_ENV="development"'
    esbuild = next(packages.glob("node_modules/@esbuild/*/bin/esbuild"))
    subprocess.run([esbuild, *entries, *options, define], cwd=packages, check=True)

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix("https://esm.sh/")
        built = packages / "built" / path.removeprefix("built/")
        if path.startswith("built/"):
            body = built.read_text()
        else:
            name = re.split("[@/]", path.removeprefix("@"), maxsplit=1)[0]
            more = "; export { default } from './built/react.js'" if name == "react" else ""
            body = f"export * from 'https://esm.sh/built/{name}.js'{more}".replace(
                "'./built", "'https://esm.sh/built"
            )
        headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"}
        route.fulfill(body=body, headers=headers)

    return answer


@pytest.fixture
def origin(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    monkeypatch.setenv("CHAT_PAUSE", "0.02")
    with serve(UVICORN) as client:
        yield str(client.base_url).rstrip("/")


def test_the_transport_and_the_chat_of_the_sdk_resume_an_answer(
    packages: Path, origin: str
) -> None:
    ran = subprocess.run(
        [NODE, "chat.mjs", origin, "visitor=ann"],
        check=False,
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


@pytest.fixture
def page(
    open_page: Callable[..., Page], cdn: Callable[[Route], None], origin: str, seen: Any
) -> Generator[Page]:
    page = open_page()
    page.route("https://esm.sh/**", cdn)
    page.goto(origin)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    yield page
    # What React's development build and its tools say.
    seen.faults[:] = [text for text in seen.faults if "React DevTools" not in text]


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def test_a_page_that_reloads_in_the_middle_shows_the_whole_answer_once(page: Page) -> None:
    ask(page, "why?")
    answer = page.locator("li[data-role=assistant]")
    expect(answer).to_contain_text("count. 1, 2, 3, 4, 5,")
    page.reload()
    expect(page.locator("[data-status=streaming]")).to_be_visible()
    expect(answer).to_contain_text("That is all.", timeout=30_000)
    expect(page.locator("[data-status=ready]")).to_be_visible()
    expect(page.locator("li")).to_have_count(2)
    expect(answer).to_have_text(f"You wrote 4 characters: {ANSWER}. That is all. ")
    page.reload()
    expect(answer).to_have_text(f"You wrote 4 characters: {ANSWER}. That is all. ")
    expect(page.locator("li")).to_have_count(2)


def test_the_page_stops_an_answer(page: Page) -> None:
    ask(page, "why?")
    answer = page.locator("li[data-role=assistant]")
    expect(answer).to_contain_text("count. 1, 2,")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    expect(page.locator("[data-status=ready]")).to_be_visible()
    expect(answer).to_contain_text("count. 1, 2,")
    expect(answer).not_to_contain_text("That is all.")
