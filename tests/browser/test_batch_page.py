"""The page of a batch in a real browser: its numbers and failures change without a reload."""

from __future__ import annotations

from typing import Any

import httpx2
from playwright.sync_api import Locator, Page, expect

from asyncjobs import JobId
from asyncjobs.core.batches import member_id


def part(page: Page, name: str) -> Locator:
    return page.locator(f'[part="{name}"]')


def test_numbers_and_failures_reach_the_page(page: Page, client: httpx2.Client) -> None:
    accepted = client.post("/batches?jobs=3").json()
    url = f"{client.base_url}".rstrip("/") + accepted["statusUrl"]
    ids = [member_id(JobId(accepted["jobId"]), index) for index in range(3)]
    page.goto(url)
    expect(page.get_by_role("heading", level=1)).to_have_text("All exports")
    expect(part(page, "jobs-processing")).to_have_text("3")
    _tell(client, ids[0], error="<b>The disk is full.</b>", code="full")
    expect(part(page, "jobs-failed")).to_have_text("1")
    expect(part(page, "count")).to_have_text("1 of 3 jobs")
    link = part(page, "failures").get_by_role("link")
    expect(link).to_have_text("<b>The disk is full.</b>")
    _tell(client, ids[1], result=1)
    expect(part(page, "jobs-completed")).to_have_text("1")
    page.get_by_role("button", name="Cancel").click()
    expect(part(page, "status")).to_have_text("Cancelled")
    expect(part(page, "jobs-cancelled")).to_have_text("1")
    expect(part(page, "failures").get_by_role("listitem")).to_have_count(1)
    page.reload()
    expect(part(page, "jobs-failed")).to_have_text("1")
    link.click()
    expect(part(page, "error")).to_have_text("<b>The disk is full.</b>")
    assert page.url.endswith(ids[0])


def _tell(client: httpx2.Client, job: str, **step: Any) -> None:
    client.post(f"/tell/{job}", json=step).raise_for_status()
