"""The status page opened by a link with a token: the only credential, and soon out of sight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, Response, expect
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from asyncjobs import AsyncJobs, Tokens
from asyncjobs.adapters.starlette import mount
from tests.waiting import until_sync

# Renewed after two seconds.
TOKENS = Tokens("the secret of the tests, in 32 bytes or more", lifetime=4)
READING = Tokens("the secret of the tests, in 32 bytes or more", scopes=["read"])


def refuse(_: Any) -> str:
    raise HTTPException(401)


@pytest.fixture
def jobs() -> AsyncJobs:
    jobs = AsyncJobs("memory://")
    jobs.external("outside", payload=int, result=str)
    return jobs


@pytest.fixture
def base(jobs: AsyncJobs) -> Generator[str]:
    app = Starlette()
    mount(app, jobs, identify=refuse, tokens=TOKENS)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until_sync(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/api/jobs"
    finally:
        server.should_exit = True
        thread.join()


def link(base: str, jobs: AsyncJobs, tokens: Tokens = TOKENS) -> tuple[Any, str]:
    """Submit a job; return it, and the link to its page with a token."""
    job = jobs.sync.enqueue("outside", 1, user_id="ann").job
    return job, f"{base}/{job.id}?token={tokens.issue(job.id, jobs.clock.now()).text}"


def test_the_token_leaves_the_address_and_the_page_follows_the_job(
    page: Page, seen: Any, base: str, jobs: AsyncJobs
) -> None:
    job, url = link(base, jobs)
    page.goto(f"{url}&from=mail")
    expect(page.locator("[part=status]")).to_have_text("Waiting")
    assert page.url == f"{base}/{job.id}?from=mail"
    page.wait_for_event("response", renews)
    jobs.sync.update_progress(job.id, 50)
    expect(page.locator("[part=percent]")).to_have_text("50%")
    page.wait_for_event("response", renews)
    jobs.sync.complete(job.id, "done")
    expect(page.locator("[part=status]")).to_have_text("Completed")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download result").click()
    assert download.value.path().read_text() == '"done"'
    assert not any(request.headers.get("referer") for request in seen.requests)


def renews(answer: Response) -> bool:
    return answer.url.endswith("/token") and answer.status == 200


def test_cancel_is_sent_with_the_token(page: Page, base: str, jobs: AsyncJobs) -> None:
    job, url = link(base, jobs)
    page.goto(url)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("[part=status]")).to_have_text("Cancelled")
    assert jobs.sync.find(job.id).status == "cancelled"


def test_a_token_that_may_only_read_offers_no_cancel(
    page: Page, base: str, jobs: AsyncJobs
) -> None:
    _, url = link(base, jobs, READING)
    page.goto(url)
    expect(page.locator("[part=status]")).to_have_text("Waiting")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_without_scripts_the_page_reloads_by_its_link_and_offers_no_cancel(
    open_page: Callable[..., Page], base: str, jobs: AsyncJobs
) -> None:
    job, url = link(base, jobs, READING)
    page = open_page(java_script_enabled=False)
    page.goto(url)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    jobs.sync.complete(job.id, "done")
    expect(page.locator("[part=status]")).to_have_text("Completed")


def test_a_link_that_has_expired_says_so(page: Page, base: str, jobs: AsyncJobs) -> None:
    job, _ = link(base, jobs)
    page.goto(f"{base}/{job.id}?token=a.b.c")
    expect(page.get_by_text("The token cannot be used: it is malformed.")).to_be_visible()
    assert page.get_by_role("link").count() == 0
