"""The examples on each framework, in a browser, over connections that are cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

OpenPage = Callable[..., Page]

EXAMPLES = Path(__file__).parents[2] / "examples"
UVICORN = ("uvicorn", "--app-dir", str(EXAMPLES), "--port")
SERVERS = {
    "fastapi": (*UVICORN, "{port}", "fastapi_app:app"),
    "starlette": (*UVICORN, "{port}", "starlette_app:app"),
    "flask": ("flask", "--app", str(EXAMPLES / "flask_app.py"), "run", "--port", "{port}"),
}

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Exports</title>
<script type="module">
    import {submitJob} from "/api/jobs/client.js";
    import "/api/jobs/element.js";
    const {statusUrl} = await submitJob("/api/exports", {format: "csv"});
    const element = document.createElement("async-job");
    element.setAttribute("result-link", "download_url");
    element.setAttribute("transport", location.hash.slice(1));
    element.statusUrl = statusUrl;
    document.body.append(element);
</script><body></body></html>"""


@pytest.fixture(scope="module", params=SERVERS)
def client(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    new_url: Callable[[], str],
) -> Generator[httpx2.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [part.format(port=port) for part in SERVERS[request.param]]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path_factory.mktemp(request.param),
        env={**os.environ, "EXPORTS_STORE": new_url()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        try:
            while not answers(client):
                assert process.poll() is None
            yield client
        finally:
            process.terminate()
            process.wait(timeout=20)


def answers(client: httpx2.Client) -> bool:
    try:
        client.get("/")
    except httpx2.TransportError:
        return False
    return True


def progressed(page: Page, percent: int) -> None:
    bar = page.get_by_role("progressbar", name="Progress")
    expect(bar).to_be_visible()
    page.wait_for_function(
        "percent => document.querySelector('async-job').job?.progress >= percent",
        arg=percent,
        timeout=60_000,
    )


@pytest.mark.parametrize("transport", ["events", "wait"])
def test_an_export_is_shown_through_cuts(
    open_page: OpenPage, client: Any, passage: Any, transport: str, tmp_path: Path
) -> None:
    page = open_page()
    page.route("**/page", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    page.goto(f"{passage.url}/page#{transport}")
    for percent in (5, 30):
        progressed(page, percent)
        passage.cut()
    page.screenshot(path=tmp_path / "cut.png")
    link = page.get_by_role("link", name="Result")
    expect(link).to_be_visible(timeout=60_000)
    page.screenshot(path=tmp_path / "completed.png")
    download = client.get((link.get_attribute("href") or "").removeprefix(passage.url))
    assert download.text.startswith("code_point,character,name")


def test_the_status_page_comes_to_the_end_through_cuts(
    page: Page, client: Any, passage: Any
) -> None:
    accepted = client.post("/api/exports", json={"format": "csv"}).raise_for_status().json()
    page.goto(passage.url + accepted["statusUrl"])
    expect(page.locator(".status")).to_have_text("In progress")
    passage.cut()
    expect(page.locator(".status")).to_have_text("Completed", timeout=60_000)
